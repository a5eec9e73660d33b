"""The data sets: reading, splits, selection, refusals, and use by Lightning."""

import multiprocessing
import pickle
import shutil
import struct
import sys
from types import SimpleNamespace
from typing import get_args

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image
from torch import nn
from torchvision import datasets

from lit_robust import data
from lit_robust.data.splits import Split, hold_out, in_turns, place_in_class
from tests.tiny import trainer

# Lightning 2.6's own use of a name that newer versions of PyTorch deprecate.
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated:FutureWarning")


@pytest.fixture
def cifar10(tmp_path, monkeypatch):
    """CIFAR-10's files with 50 + 13 images: image i is full of the value i, its class is i mod 10."""
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda path, md5=None: open(path).close() or 1)
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for number in range(5):
        write_cifar(folder / f"data_batch_{number + 1}", range(10 * number, 10 * number + 10), "labels", 10)
    write_cifar(folder / "test_batch", range(100, 113), "labels", 10)
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    return tmp_path


def write_cifar(path, values, key, classes):
    pixels = np.repeat(np.array(values, np.uint8)[:, None], 3072, 1)
    path.write_bytes(pickle.dumps({"data": pixels, key: [value % classes for value in values]}))


@pytest.fixture
def mnist(tmp_path):
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for prefix, n in (("train", 40), ("t10k", 7)):
        values = np.arange(n, dtype=np.uint8)
        head = struct.pack(">iiii", 2051, n, 28, 28)
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(head + np.repeat(values, 784).tobytes())
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(struct.pack(">ii", 2049, n) + (values % 10).tobytes())
    return tmp_path


@pytest.fixture
def folders(tmp_path):
    """Three classes of 4 + 2 pictures of 20 x 16; a picture's red is 10 times its place in the set."""
    return write_folders(tmp_path, ["ant", "bee", "cat"])


def write_folders(base, classes, train=4, val=2):
    for part, n in (("train", train), ("val", val)):
        for label, name in enumerate(classes):
            (base / part / name).mkdir(parents=True)
            for i in range(n):
                Image.new("RGB", (20, 16), (10 * (label * n + i), 0, 255)).save(base / part / name / f"{i}.png")
    return base


def parts(batches):
    return [torch.cat(part) for part in zip(*batches, strict=True)]


def own(root, **kwargs):
    return data.ImageFolderDataModule(str(root), **{"image_size": 8, "num_workers": 0} | kwargs)


def digits(**kwargs):
    pytest.importorskip("sklearn")
    return data.DigitsDataModule(**{"val_size": 100, "batch_size": 100} | kwargs)


# What the sets read.


def test_cifar10_is_read_in_file_order_with_positions_on_disk(cifar10):
    dm = data.CIFAR10DataModule(str(cifar10), val_size=10, augment=False, batch_size=7)
    assert (dm.num_classes, dm.image_shape, dm.class_names) == (10, (3, 32, 32), list("abcdefghij"))
    seen = []
    for batches, size in ((dm.train_dataloader(), 40), (dm.val_dataloader(), 10), (dm.test_dataloader(), 13)):
        x, y, index, weight = parts(batches)
        assert (x.shape, len(y)) == ((size, 3, 32, 32), size)
        assert torch.equal(y, index % 10)
        value = index if len(seen) < 2 else index + 100
        y_of_test = len(seen) == 2
        assert torch.equal(x[:, 0, 0, 0], value / 255)
        assert torch.equal(x.amin((1, 2, 3)), x.amax((1, 2, 3)))
        assert y_of_test or set(index.tolist()) <= set(range(50))
        assert torch.equal(weight, torch.ones(size))
        seen.append(set(index.tolist()))
    assert seen[0] | seen[1] == set(range(50))
    assert seen[2] == set(range(13))


def test_cifar10_channels_are_not_mixed_up(cifar10):
    pixels = np.arange(3072, dtype=np.uint64).astype(np.uint8)[None].repeat(13, 0)
    (cifar10 / "cifar-10-batches-py" / "test_batch").write_bytes(pickle.dumps({"data": pixels, "labels": [0] * 13}))
    x = next(iter(data.CIFAR10DataModule(str(cifar10), val_size=0).test_dataloader())).x
    assert torch.equal(x[0], torch.from_numpy(pixels[0]).view(3, 32, 32) / 255)


def test_cifar100_takes_the_fine_labels(tmp_path, monkeypatch):
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda path, md5=None: True)
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    write_cifar(folder / "train", range(200), "fine_labels", 100)
    write_cifar(folder / "test", range(5), "fine_labels", 100)
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": [f"{i}th" for i in range(100)]}))
    dm = data.CIFAR100DataModule(str(tmp_path), val_size=20)
    assert (dm.num_classes, dm.image_shape) == (100, (3, 32, 32))
    _, y, index, _ = parts(dm.train_dataloader())
    assert torch.equal(y, index % 100)
    assert dm.class_names[99] == "99th"


def test_mnist_is_read_with_one_channel_and_not_augmented(mnist):
    dm = data.MNISTDataModule(str(mnist), val_size=10)
    assert (dm.num_classes, dm.image_shape) == (10, (1, 28, 28))
    x, y, index, _ = parts(dm.train_dataloader())
    assert x.shape == (30, 1, 28, 28)
    assert torch.equal(x, (index / 255).view(-1, 1, 1, 1).expand_as(x))
    assert torch.equal(y, index % 10)
    assert len(parts(dm.test_dataloader())[1]) == 7


def test_svhn_is_read_and_its_class_ten_is_zero(tmp_path, monkeypatch):
    scipy_io = pytest.importorskip("scipy.io")
    monkeypatch.setattr("torchvision.datasets.svhn.check_integrity", lambda path, md5=None: True)
    for part, n in (("train", 30), ("test", 5)):
        values = np.arange(n, dtype=np.uint8)
        x = np.broadcast_to(values, (32, 32, 3, n)).copy()
        scipy_io.savemat(tmp_path / f"{part}_32x32.mat", {"X": x, "y": np.where(values % 10, values % 10, 10)[:, None]})
    dm = data.SVHNDataModule(str(tmp_path), val_size=3)
    assert (dm.num_classes, dm.image_shape) == (10, (3, 32, 32))
    x, y, index, _ = parts(dm.train_dataloader())
    assert torch.equal(x[:, 1, 5, 6], index / 255)
    assert torch.equal(y, index % 10)


def test_digits_are_sixteenths_and_both_sets_are_all_of_them():
    dm = digits()
    assert (dm.num_classes, dm.image_shape, dm.class_names) == (10, (1, 8, 8), list("0123456789"))
    train, val, test = (parts(b) for b in (dm.train_dataloader(), dm.val_dataloader(), dm.test_dataloader()))
    assert [len(part[1]) for part in (train, val, test)] == [1300, 100, 397]
    assert train[0].max() == 1
    assert torch.equal((train[0] * 16).round() / 16, train[0])
    from sklearn.datasets import load_digits

    original = torch.from_numpy(load_digits().images).float() / 16
    mine = torch.cat([train[0], val[0], test[0]])[:, 0]
    assert torch.equal(mine.flatten(1).sum(1).sort().values, original.flatten(1).sum(1).sort().values)


def test_digits_tested_on_follow_from_the_split_seed_alone():
    seed_everything(1, verbose=False)
    first = parts(digits().test_dataloader())[0]
    seed_everything(2, verbose=False)
    assert torch.equal(parts(digits().test_dataloader())[0], first)
    assert not torch.equal(parts(digits(split_seed=1).test_dataloader())[0], first)


def test_without_scikit_learn_the_digits_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r'pip install "lit-robust\[digits\]"'):
        data.DigitsDataModule().setup()


def test_without_scipy_svhn_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr("torchvision.datasets.svhn.check_integrity", lambda path, md5=None: True)
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(ImportError, match=r'pip install "lit-robust\[digits\]"'):
        data.SVHNDataModule(str(tmp_path)).setup()


# Folders of images.


def test_an_image_folder_knows_its_classes_before_setup_and_labels_them_alphabetically(folders):
    dm = own(folders, augment=False, batch_size=5, val_size=0)
    assert (dm.num_classes, dm.image_shape) == (3, (3, 8, 8))
    assert dm.class_names == ["ant", "bee", "cat"]
    x, y, index, weight = parts(dm.train_dataloader())
    assert (x.dtype, x.shape) == (torch.float32, (12, 3, 8, 8))
    assert torch.equal(y, index // 4)
    assert torch.equal(x[:, 0, 0, 0], 10 * index / 255)
    assert torch.equal(x[:, 2], torch.ones(12, 8, 8))
    assert torch.equal(weight, torch.ones(12))
    x, y, index, _ = parts(dm.test_dataloader())
    assert torch.equal(y, index // 2)
    assert dm.val_dataloader() == []


def test_classes_take_turns_in_evaluation_because_files_are_sorted_by_class(folders):
    dm = own(folders, val_size=5)
    assert parts(dm.test_dataloader())[2].tolist() == [0, 2, 4, 1, 3, 5]
    assert parts(dm.val_dataloader())[1][:3].tolist() == [0, 1, 2]
    assert parts(dm.plain_train_dataloader())[1][:3].tolist() == [0, 1, 2]


def test_validation_images_are_a_tenth_by_default_and_never_those_of_the_test_set(tmp_path):
    write_folders(tmp_path, ["ant", "bee"], train=12, val=2)
    dm = own(tmp_path)
    assert parts(dm.val_dataloader())[1].tolist() == [0, 1, 0]  # 3 of 24, in the proportions of the classes
    assert len(parts(dm.train_dataloader())[1]) == 21
    (tmp_path / "val").rename(tmp_path / "test")
    assert torch.equal(parts(own(tmp_path).val_dataloader())[2], parts(dm.val_dataloader())[2])
    assert not torch.equal(parts(own(tmp_path, split_seed=1).val_dataloader())[2], parts(dm.val_dataloader())[2])


def test_with_a_test_folder_val_is_validated_on_unless_a_size_is_given(folders):
    (folders / "val").rename(folders / "test")
    write_folders(folders / "other", ["ant", "bee", "cat"], val=5)
    (folders / "other" / "val").rename(folders / "val")
    dm = own(folders, eval_batch_size=4)
    assert len(parts(dm.test_dataloader())[1]) == 6
    x, y, index, _ = parts(dm.val_dataloader())
    assert sorted(index.tolist()) == list(range(12, 27))  # they come after those of train
    assert torch.equal(x[:, 0, 0, 0], 10 * (index - 12) / 255)
    assert torch.equal(y, (index - 12) // 5)
    assert sorted(parts(dm.train_dataloader())[2].tolist()) == list(range(12))
    with pytest.raises(ValueError, match=r"^select\(\) .*\b12\b"):
        dm.select([12])
    dm = own(folders, val_size=2)
    assert [len(parts(batches)[1]) for batches in (dm.train_dataloader(), dm.val_dataloader())] == [10, 2]
    assert own(folders, val_size=0).val_dataloader() == []


def test_evaluation_sees_the_middle_of_the_picture(tmp_path):
    write_folders(tmp_path, ["ant"])
    picture = np.zeros((32, 64, 3), np.uint8)
    picture[:, 24:40] = 255
    Image.fromarray(picture).save(tmp_path / "val" / "ant" / "0.png")
    (x, *_), *_ = next(iter(own(tmp_path, image_size=14).test_dataloader())).x  # 64 x 32 -> 32 x 16, its middle 14
    assert torch.equal(x[:, 4:10], torch.ones(14, 6))
    assert torch.equal(x[:, :2], torch.zeros(14, 2))
    assert torch.equal(x[:, 12:], torch.zeros(14, 2))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_folder_augmentation_depends_on_seed_epoch_and_image_not_on_workers_or_order(tmp_path, num_workers):
    write_folders(tmp_path, ["ant", "bee"])
    noise = np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8)
    for path in tmp_path.glob("train/*/*.png"):
        Image.fromarray(noise).save(path)

    def epoch(number, workers, batch_size=3):
        walk = own(tmp_path, num_workers=workers, batch_size=batch_size, val_size=0).train_dataloader()
        walk.set_epoch(number)
        x, _, index, _ = parts(walk)
        return x[index.argsort()], index

    x, index = epoch(0, num_workers)
    assert len(torch.unique(x.flatten(1), dim=0)) == 8  # one picture, eight different crops
    again, other_batches = epoch(0, 0, batch_size=5)
    assert torch.equal(again, x)
    assert torch.equal(other_batches, index)
    later, later_index = epoch(1, 0)
    assert not torch.equal(later, x)
    assert not torch.equal(later_index, index)


def test_folder_loading_draws_nothing_from_the_global_random_numbers(folders):
    dm = own(folders)
    state = torch.get_rng_state()
    list(dm.train_dataloader())
    assert torch.equal(torch.get_rng_state(), state)


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(parts(one), parts(other), strict=True))


def workers_at(walk):
    """The processes that are there after an epoch."""
    assert list(walk)
    return {process.pid for process in multiprocessing.active_children()}


def test_workers_stay_from_epoch_to_epoch_and_are_told_seed_and_selection_of_each(folders):
    before = {process.pid for process in multiprocessing.active_children()}
    here, there = (own(folders, num_workers=n, batch_size=2, val_size=2) for n in (0, 2))
    plain, walk = here.train_dataloader(), there.train_dataloader()
    few = parts(here.plain_train_dataloader())[2][:3]
    for epoch, selection in enumerate([None, None, few, None]):
        for dm, batches in ((here, plain), (there, walk)):
            dm.select(selection)
            batches.set_epoch(epoch)
        assert same(walk, plain)
        assert len(plain) == (5 if selection is None else 2)
    pids = workers_at(walk) - before
    assert len(pids) == 2
    assert workers_at(walk) - before == pids
    assert workers_at(there.train_dataloader()) - before == pids  # one that Lightning loads anew
    assert len(workers_at(there.val_dataloader()) - before) == 4
    assert len(workers_at(there.plain_train_dataloader()) - before) == 4


def test_workers_whose_epoch_was_broken_off_start_the_next_one_afresh(folders):
    walk, plain = (own(folders, num_workers=n, batch_size=1).train_dataloader() for n in (2, 0))
    next(iter(walk))
    assert same(walk, plain)
    walk.load_state_dict({"epoch": 3, "batches": 4})
    plain.load_state_dict({"epoch": 3, "batches": 4})
    assert same(walk, plain)


def test_two_iterations_at_once_do_not_mix_their_images(folders):
    walk, plain = (own(folders, num_workers=n, batch_size=2).train_dataloader() for n in (1, 0))
    first = iter(walk)
    begun = next(first)
    assert same(walk, plain)
    assert same([begun, *first], plain)


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("kept", [0, 10, 2000])
def test_a_picture_that_breaks_after_construction_is_named(folders, kept, num_workers):
    path = folders / "val" / "bee" / "1.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(path)
    dm = own(folders, num_workers=num_workers)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(OSError, match=r"val/bee/1\.png [^\n]*$"):
        list(dm.test_dataloader())


def test_image_folders_that_do_not_fit_are_refused_at_construction(tmp_path, folders):
    with pytest.raises(FileNotFoundError, match="nowhere/train "):
        own(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"^val_size="):
        own(folders, val_size=12)
    (folders / "val" / "cat" / "0.png").unlink()
    (folders / "val" / "cat" / "1.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"/val .*cat"):
        own(folders)
    (folders / "val" / "cat").rmdir()
    with pytest.raises(FileNotFoundError, match=r"/val .*1 of the 3 classes, cat"):
        own(folders)
    (folders / "val" / "dog").mkdir()
    with pytest.raises(ValueError, match=r"/val .*dog"):
        own(folders)
    shutil.rmtree(folders / "val")
    with pytest.raises(FileNotFoundError, match="/val "):
        own(folders)


def test_imagenette_lies_where_torchvision_puts_it(tmp_path):
    write_folders(tmp_path / "imagenette2-160", [f"n{i}" for i in range(10)])
    dm = data.ImagenetteDataModule(str(tmp_path), val_size=10, num_workers=0, image_size=8)
    assert (dm.num_classes, dm.image_shape) == (10, (3, 8, 8))
    assert list(dm.class_names) == [names[0] for names in datasets.Imagenette._WNID_TO_CLASS.values()]
    assert [len(parts(b)[1]) for b in (dm.train_dataloader(), dm.val_dataloader(), dm.test_dataloader())] == [
        30,
        10,
        20,
    ]


def test_imagenet100_takes_the_classes_of_a_list_from_a_larger_set(tmp_path):
    write_folders(tmp_path / "imagenet", ["n3", "n1", "n2"])
    (tmp_path / "classes.txt").write_text("n3\nn1\n")
    kwargs = {"folder": "imagenet", "val_size": 0, "num_workers": 0, "image_size": 8}
    dm = data.ImageNet100DataModule(str(tmp_path), class_list=str(tmp_path / "classes.txt"), **kwargs)
    assert dm.num_classes == 2
    x, y, _, _ = parts(dm.test_dataloader())
    assert y.tolist() == [0, 1, 0, 1]
    assert (x[:, 0, 0, 0] * 25.5).round().tolist() == [2, 0, 3, 1]  # n1 was written second, n3 first
    assert dm.class_names == ["n1", "n3"]
    (tmp_path / "classes.txt").write_text("n3 giant panda, panda\nn1\tant\nn2\n")
    dm = data.ImageNet100DataModule(str(tmp_path), class_list=str(tmp_path / "classes.txt"), **kwargs)
    assert dm.class_names == ["ant", "n2", "giant panda"]
    (tmp_path / "classes.txt").write_text("n3 third class\n\nn9\n")
    with pytest.raises(FileNotFoundError, match=r"/train .*1 of the 2 classes, n9"):
        data.ImageNet100DataModule(str(tmp_path), class_list=str(tmp_path / "classes.txt"), **kwargs).setup()


def test_imagenet100_has_a_hundred_classes_unless_a_list_says_otherwise(tmp_path):
    assert data.ImageNet100DataModule().num_classes == 100
    for n in (99, 2):
        write_folders(tmp_path / str(n), [f"n{i}" for i in range(n)], train=1, val=1)
        with pytest.raises(ValueError, match=f"{n}/train .*{n} classes.*class_list"):
            data.ImageNet100DataModule(str(tmp_path), folder=str(n)).setup()
    (tmp_path / "twice.txt").write_text("n1\nn1\n")
    (tmp_path / "blank.txt").write_text("\n")
    (tmp_path / "classes.tar").write_bytes(b"\xff\xfe")
    missing, empty = FileNotFoundError, ValueError
    for name, error in (("nothing.txt", missing), ("classes.tar", missing), ("twice.txt", empty), ("blank.txt", empty)):
        with pytest.raises(error, match=f"^class_list=.*{name}"):
            data.ImageNet100DataModule(class_list=str(tmp_path / name))


# Splits and budgets.


def test_random_holds_out_another_part_for_another_seed():
    labels = torch.zeros(100, dtype=torch.int64)
    first, again, other = (hold_out(labels, 30, "random", seed)[1] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("split", get_args(Split))
def test_a_split_is_a_partition_in_file_order(split):
    labels = torch.arange(3).repeat(20)[torch.randperm(60)]
    train, val = hold_out(labels, 9, split, seed=0)
    assert len(val) == 9
    assert torch.equal(torch.cat([train, val]).sort().values, torch.arange(60))
    assert torch.equal(train, train.sort().values)
    assert torch.equal(val, val.sort().values)


def test_stratified_holds_out_each_class_in_its_proportion_and_another_part_for_another_seed():
    labels = torch.repeat_interleave(torch.arange(4), torch.tensor([100, 50, 9, 1]))
    train, val = hold_out(labels, 16, "stratified", seed=0)
    assert torch.bincount(labels[val]).tolist() == [10, 5, 1]
    assert torch.bincount(labels[train]).tolist() == [90, 45, 8, 1]
    assert torch.equal(hold_out(labels, 16, "stratified", seed=0)[1], val)
    assert not torch.equal(hold_out(labels, 16, "stratified", seed=1)[1], val)


def test_first_is_the_first_images():
    assert hold_out(torch.arange(8), 3, "first", seed=0)[1].tolist() == [0, 1, 2]


def test_first_per_class_is_the_walk_in_file_order():
    labels = torch.randint(4, (200,))
    taken, walk = [0] * 4, []
    for position, label in enumerate(labels.tolist()):
        if taken[label] < 5:
            taken[label] += 1
            walk.append(position)
    assert hold_out(labels, 20, "first_per_class", seed=0)[1].tolist() == walk


def test_permutation_splits_are_numpys_of_seed_zero():
    labels = torch.zeros(60, dtype=torch.int64)
    permutation = np.random.RandomState(0).permutation(60)
    shuffled = list(range(60))
    np.random.RandomState(0).shuffle(shuffled)
    assert permutation.tolist() == shuffled
    assert hold_out(labels, 10, "permutation_first", 0)[1].tolist() == sorted(shuffled[:10])
    assert hold_out(labels, 10, "permutation_last", 0)[1].tolist() == sorted(shuffled[50:])


def test_a_class_too_small_for_its_share_is_refused():
    with pytest.raises(ValueError, match="val_size=4"):
        hold_out(torch.tensor([0, 0, 0, 0, 1]), 4, "first_per_class", seed=0)


def test_place_in_class_counts_the_earlier_images_of_the_class():
    assert place_in_class(torch.tensor([2, 0, 2, 2, 0])).tolist() == [0, 0, 1, 2, 1]


def test_budgets_take_the_first_images_but_every_class_where_files_are_sorted(cifar10, folders):
    dm = data.CIFAR10DataModule(str(cifar10), split="first", val_size=10, train_size=6, test_size=4)
    assert sorted(parts(dm.train_dataloader())[2].tolist()) == list(range(10, 16))
    assert len(parts(dm.val_dataloader())[1]) == 10
    assert parts(dm.test_dataloader())[2].tolist() == [0, 1, 2, 3]
    dm = own(folders, val_size=0, train_size=7, test_size=3)
    assert sorted(parts(dm.train_dataloader())[2].tolist()) == [0, 1, 2, 4, 5, 8, 9]
    assert parts(dm.test_dataloader())[1].tolist() == [0, 1, 2]


def test_in_turns_every_class_comes_before_any_comes_again():
    assert in_turns(torch.tensor([0, 0, 0, 1, 2, 2])).tolist() == [0, 3, 4, 1, 5, 2]


# What is refused.


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        ("CIFAR10", {"batch_size": 0}),
        ("CIFAR10", {"eval_batch_size": -1}),
        ("CIFAR10", {"val_size": -1}),
        ("CIFAR10", {"val_size": 50_000}),
        ("CIFAR10", {"train_size": 0}),
        ("CIFAR10", {"test_size": 0}),
        ("CIFAR10", {"split": "best"}),
        ("CIFAR10", {"split": "first_per_class", "val_size": 1005}),
        ("Imagenette", {"image_size": 0}),
        ("Imagenette", {"num_workers": -1}),
        ("Imagenette", {"size": "tiny"}),
    ],
)
def test_arguments_that_make_no_sense_are_refused_at_construction(module, arguments):
    with pytest.raises(ValueError, match=f"^{list(arguments)[-1]}="):
        getattr(data, f"{module}DataModule")(**arguments)


def test_budgets_beyond_the_data_are_refused(cifar10):
    with pytest.raises(ValueError, match=r"^train_size=41 .*40"):
        data.CIFAR10DataModule(str(cifar10), val_size=10, train_size=41).setup()


@pytest.mark.parametrize("name", ["MNIST", "CIFAR10", "CIFAR100", "SVHN", "Imagenette", "ImageNet100"])
def test_missing_data_are_one_sentence_that_names_the_root(name, tmp_path):
    dm = getattr(data, f"{name}DataModule")(str(tmp_path))
    dm.prepare_data()
    with pytest.raises(FileNotFoundError) as caught:
        dm.setup()
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)
    if name != "ImageNet100":
        assert "download: true" in str(caught.value)
        assert "LIT_ROBUST_DATA" in str(caught.value)


def test_download_is_torchvisions(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("torchvision.datasets.MNIST.download", lambda self: asked.append(self.root))
    with pytest.raises(FileNotFoundError, match=r"^MNIST "):
        data.MNISTDataModule(str(tmp_path), download=True).prepare_data()
    assert asked == [str(tmp_path)]


@pytest.mark.parametrize("kept", [0, 10, 1000])
def test_cut_off_mnist_files_are_one_sentence(mnist, kept):
    path = mnist / "MNIST" / "raw" / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(FileNotFoundError, match=r"^MNIST .*root="):
        data.MNISTDataModule(str(mnist), val_size=0).setup()


def test_cut_off_cifar_files_are_one_sentence(cifar10):
    path = cifar10 / "cifar-10-batches-py" / "data_batch_3"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(FileNotFoundError, match=r"^CIFAR10 .*root="):
        data.CIFAR10DataModule(str(cifar10), val_size=0).setup()


def test_the_root_comes_from_the_environment_unless_given(monkeypatch):
    monkeypatch.delenv("LIT_ROBUST_DATA", raising=False)
    assert data.MNISTDataModule().root == "data"
    monkeypatch.setenv("LIT_ROBUST_DATA", "elsewhere")
    assert data.MNISTDataModule().root == "elsewhere"
    assert data.MNISTDataModule("here").root == "here"


# Weighted subsets.


def test_a_selection_is_what_the_next_epoch_trains_on_and_none_returns_to_everything(cifar10):
    dm = data.CIFAR10DataModule(str(cifar10), val_size=10, split="first", batch_size=4)
    walk = dm.train_dataloader()
    dm.select(torch.tensor([49, 12, 30]), torch.tensor([2.0, 0.5, 7.0]))
    for batches in (walk, dm.train_dataloader()):
        _, y, index, weight = parts(batches)
        assert dict(zip(index.tolist(), weight.tolist(), strict=True)) == {49: 2.0, 12: 0.5, 30: 7.0}
        assert torch.equal(y, index % 10)
        assert len(batches) == 1
    assert parts(dm.plain_train_dataloader())[2].tolist() == list(range(10, 50))
    assert len(parts(dm.val_dataloader())[1]) == 10
    dm.select(None, None)
    assert sorted(parts(walk)[2].tolist()) == list(range(10, 50))
    assert torch.equal(parts(walk)[3], torch.ones(40))


@pytest.mark.parametrize("container", [list, tuple, torch.tensor, np.array])
def test_a_mask_over_the_whole_set_selects_as_its_positions_do(cifar10, container):
    dm = data.CIFAR10DataModule(str(cifar10), val_size=10, split="first")
    mask = [False] * 50
    for position in (12, 30, 49):
        mask[position] = True
    for selection in (mask, [12, 30, 49]):
        dm.select(container(selection))
        assert sorted(parts(dm.train_dataloader())[2].tolist()) == [12, 30, 49]


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ([True] * 40, r"mask of shape \(40,\).* 50 "),
        ([12.0, 13.7], r"torch\.float32"),
        ((torch.arange(50) < 20).to(torch.uint8), r"50 zeros and ones.*mask\.bool\(\)"),
        ((torch.arange(40) < 20).long(), r"40 zeros and ones.*training_labels"),
        ([1] + [0] * 39, r"40 zeros and ones.*training_labels"),
        ([True, 13, 14], "True"),
        ([torch.tensor(True), torch.tensor(13)], "True"),
        ([np.True_, np.int64(13)], "True"),
        ({12, 13}, "set"),
        ("abc", "str"),
        (["12", "13"], "list"),
        (12, "int"),
        ((i for i in (12, 13)), "generator"),
    ],
)
def test_what_is_neither_positions_nor_a_mask_is_refused(cifar10, indices, message):
    dm = data.CIFAR10DataModule(str(cifar10), val_size=10, split="first")
    with pytest.raises(ValueError, match=message):
        dm.select(indices)


def test_two_images_are_repeated_at_will_and_masked_training_images_are_selected_as_told(cifar10):
    dm = data.CIFAR10DataModule(str(cifar10), val_size=10)
    two = dm.training_labels()[1][:2].tolist()
    dm.select(two * 40)
    assert sorted(set(parts(dm.train_dataloader())[2].tolist())) == two
    mask = (torch.arange(40) < 5).long()
    dm.select(positions := dm.training_labels()[1][mask.bool()])
    assert sorted(parts(dm.train_dataloader())[2].tolist()) == positions.tolist()
    every = data.CIFAR10DataModule(str(cifar10), val_size=0)
    every.select([0, 1] * 32)  # not as many as there are images
    assert len(parts(every.train_dataloader())[2]) == 64


def test_folders_deliver_selected_weights_too(folders):
    dm = own(folders, batch_size=2, val_size=0)
    dm.select([11, 0, 5], [1.5, 2.5, 3.5])
    _, _, index, weight = parts(dm.train_dataloader())
    assert dict(zip(index.tolist(), weight.tolist(), strict=True)) == {11: 1.5, 0: 2.5, 5: 3.5}


def test_plain_training_images_are_not_augmented(cifar10):
    dm = data.CIFAR10DataModule(str(cifar10), val_size=0)
    x, _, index, _ = parts(dm.plain_train_dataloader())
    assert torch.equal(x, (index / 255).view(-1, 1, 1, 1).expand_as(x))
    augmented = parts(dm.train_dataloader())[0]
    assert not torch.equal(augmented.amin((1, 2, 3)), augmented.amax((1, 2, 3)))


@pytest.mark.parametrize(
    ("indices", "weights", "named"),
    [
        ([3], [1.0], r"\b3\b.*40"),
        ([50], [1.0], r"\b50\b.*40"),
        ([10, 11], [1.0], r"\(2,\) and \(1,\)"),
        ([], [], r"\(0,\) and \(0,\)"),
        ([10, 11], [1.0, 0.0], "weights"),
        ([10, 11], [1.0, float("nan")], "weights"),
    ],
)
def test_selections_that_make_no_sense_are_refused(cifar10, indices, weights, named):
    dm = data.CIFAR10DataModule(str(cifar10), val_size=10, split="first")
    with pytest.raises(ValueError, match=rf"^select\(\) .*{named}"):
        dm.select(torch.tensor(indices), torch.tensor(weights))


@pytest.mark.parametrize("weights", [["a", 1, 1], [[1], 1, 1], "heavy", object()])
def test_weights_that_are_no_numbers_are_refused(weights):
    with pytest.raises(ValueError, match=r"^select\(\) needs weights .* numbers, not "):
        data.DigitsDataModule().select([0, 1, 2], weights)


@pytest.mark.parametrize("world", [2, 3])
def test_the_trainers_ranks_share_every_set(cifar10, folders, world):
    for dm, sizes in (
        (data.CIFAR10DataModule(str(cifar10), val_size=11, batch_size=4, eval_batch_size=3), (39, 11, 13)),
        (own(folders, val_size=5, batch_size=2), (7, 5, 6)),
    ):
        ranks = []
        for rank in range(world):
            strategy = SimpleNamespace(root_device=torch.device("cpu"))
            dm.trainer = SimpleNamespace(global_rank=rank, world_size=world, strategy=strategy, overfit_batches=0)
            ranks.append([dm.train_dataloader(), dm.val_dataloader(), dm.test_dataloader()])
        for walks, size in zip(zip(*ranks, strict=True), sizes, strict=True):
            assert len({len(walk) for walk in walks}) == 1
            index, weight = (torch.cat(part) for part in list(zip(*map(parts, walks), strict=True))[2:])
            assert weight.sum() == size
            assert len(torch.unique(index[weight == 1])) == size


# Lightning.


class Recorder(LightningModule):
    """Trains a linear net by hand and records its batches."""

    def __init__(self, shape=(1, 8, 8)):
        super().__init__()
        self.automatic_optimization = False
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(shape)), 10))
        self.seen = []
        self.validated = []

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(nn.functional.cross_entropy(self.net(batch.x), batch.y))
        optimizer.step()
        self.seen.append((self.current_epoch, batch_idx, batch))

    def validation_step(self, batch, batch_idx):
        self.validated.append(self.current_epoch)

    def test_step(self, batch, batch_idx):
        self.seen.append((self.current_epoch, batch_idx, batch))

    def predict_step(self, batch, batch_idx):
        return batch.index

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)

    def batches_per_epoch(self):
        epochs = [epoch for epoch, _, _ in self.seen]
        return [epochs.count(epoch) for epoch in sorted(set(epochs))]


class Save(Callback):
    """Saves after one batch of one epoch."""

    def __init__(self, path, epoch, batch):
        self.path, self.epoch, self.batch = path, epoch, batch

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if (trainer.current_epoch, batch_idx) == (self.epoch, self.batch):
            trainer.save_checkpoint(self.path)


class SelectAt(Callback):
    """Selects at the end of epochs: ``{epoch: indices or None}``."""

    def __init__(self, plan):
        self.plan = plan

    def on_train_epoch_end(self, trainer, pl_module):
        if trainer.current_epoch in self.plan:
            indices = self.plan[trainer.current_epoch]
            trainer.datamodule.select(indices, None if indices is None else torch.arange(len(indices)) + 1.0)


def fit(dm, *callbacks, ckpt_path=None, max_epochs=3, **kwargs):
    seed_everything(7, verbose=False)
    module = Recorder(dm.image_shape)
    saves = any(isinstance(callback, ModelCheckpoint) for callback in callbacks)
    options = {"max_epochs": max_epochs, "callbacks": list(callbacks), "enable_checkpointing": saves} | kwargs
    trainer(None, **options).fit(module, dm, ckpt_path=ckpt_path)
    return module


def assert_same(resumed, uninterrupted):
    assert [(epoch, number) for epoch, number, _ in resumed] == [(epoch, number) for epoch, number, _ in uninterrupted]
    for (_, _, mine), (_, _, theirs) in zip(resumed, uninterrupted, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


@pytest.mark.parametrize(("epoch", "batch"), [(0, 0), (1, 3), (1, 12)])
def test_a_resumed_run_sees_exactly_the_batches_that_were_left(tmp_path, epoch, batch):
    path = str(tmp_path / "middle.ckpt")
    whole = fit(digits(augment=True), Save(path, epoch, batch))
    assert whole.batches_per_epoch() == [13, 13, 13]
    rest = fit(digits(augment=True), ckpt_path=path)
    assert_same(rest.seen, whole.seen[13 * epoch + batch + 1 :])
    assert all(torch.equal(a, b) for a, b in zip(rest.parameters(), whole.parameters(), strict=True))


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
@pytest.mark.parametrize(
    ("at_train_epoch_end", "limit"),
    [
        (True, {}),
        (False, {}),
        (False, {"max_steps": 39, "max_epochs": -1}),
    ],  # (True, max_steps): Lightning miscounts
)
def test_a_run_resumed_between_epochs_goes_on_with_a_whole_epoch(tmp_path, at_train_epoch_end, limit):
    def run(**kwargs):
        every_epoch = ModelCheckpoint(
            tmp_path, filename="{epoch}", save_top_k=-1, save_on_train_epoch_end=at_train_epoch_end
        )
        return fit(digits(), every_epoch, **kwargs, **limit)

    whole = run()
    rest = run(ckpt_path=str(tmp_path / "epoch=1.ckpt"))
    assert_same(rest.seen, whole.seen[26:])


def test_worker_loaders_resume_exactly_in_mid_epoch_too(tmp_path, folders):
    def dm():
        return own(folders, num_workers=1, batch_size=2, val_size=3)

    path = str(tmp_path / "middle.ckpt")
    whole = fit(dm(), Save(path, 1, 1), max_epochs=2)
    rest = fit(dm(), ckpt_path=path, max_epochs=2)
    assert whole.batches_per_epoch() == [5, 5]
    assert_same(rest.seen, whole.seen[7:])


def test_every_epoch_of_a_fit_is_complete_and_in_another_order():
    seen = fit(digits(), max_epochs=2).seen
    orders = [torch.cat([b.index for e, _, b in seen if e == epoch]) for epoch in range(2)]
    assert torch.equal(orders[0].sort().values, orders[1].sort().values)
    assert len(torch.unique(orders[0])) == 1300
    assert not torch.equal(orders[0], orders[1])


def test_full_smaller_full_changes_the_epochs_and_each_is_validated():
    dm = digits()
    few = parts(dm.plain_train_dataloader())[2][:250]
    module = fit(dm, SelectAt({0: few, 2: None}), max_epochs=4)
    assert module.batches_per_epoch() == [13, 3, 3, 13]
    assert sorted(set(module.validated)) == [0, 1, 2, 3]
    selected = [b for epoch, _, b in module.seen if epoch in (1, 2)]
    expected = dict(zip(few.tolist(), range(1, 251), strict=True))
    assert all(expected[i] == w for b in selected for i, w in zip(b.index.tolist(), b.weight.tolist(), strict=True))


def test_a_run_that_starts_with_a_subset_can_grow():
    dm = digits()
    dm.select(parts(dm.plain_train_dataloader())[2][:250])
    assert fit(dm, SelectAt({0: None}), max_epochs=3).batches_per_epoch() == [3, 13, 13]


@pytest.mark.parametrize(("epoch", "batch"), [(1, 0), (1, 2), (2, 1)])
def test_a_selection_survives_a_resume_and_can_still_be_lifted(tmp_path, epoch, batch):
    path = str(tmp_path / "middle.ckpt")
    few = parts(digits().plain_train_dataloader())[2][:250]
    plan = {0: few, 2: None}
    whole = fit(digits(), SelectAt(plan), Save(path, epoch, batch), max_epochs=4)
    rest = fit(digits(), SelectAt(plan), ckpt_path=path, max_epochs=4)
    assert_same(rest.seen, whole.seen[13 + 3 * (epoch - 1) + batch + 1 :])
    assert rest.batches_per_epoch()[-1] == 13


def test_a_checkpoint_with_a_selection_can_be_tested_on_other_data(tmp_path):
    path = str(tmp_path / "middle.ckpt")
    dm = digits(split="first")
    dm.select([100, 101])
    fit(dm, Save(path, 0, 0), max_epochs=1)
    module = Recorder()
    trainer(tmp_path).test(module, digits(val_size=200, split="first"), ckpt_path=path, verbose=False)
    assert sum(len(b.y) for _, _, b in module.seen) == 397


def test_without_validation_images_lightning_does_not_validate():
    with pytest.warns(UserWarning, match="Total length of `list` across ranks is zero"):
        module = fit(digits(val_size=0), max_epochs=1)
    assert module.batches_per_epoch() == [14]
    assert module.validated == []


def test_predict_goes_through_the_test_set_in_order(tmp_path):
    assert torch.equal(torch.cat(trainer(tmp_path).predict(Recorder(), digits())), torch.arange(397))


# The real data, where there are any.


@pytest.mark.parametrize(
    ("name", "sizes", "first_label"), [("MNIST", (60_000, 10_000), 5), ("CIFAR10", (50_000, 10_000), 6)]
)
def test_real_small_sets_are_complete(real_data, name, sizes, first_label):
    dm = getattr(data, f"{name}DataModule")(str(real_data), val_size=0, eval_batch_size=1000)
    if not (real_data / {"MNIST": "MNIST", "CIFAR10": "cifar-10-batches-py"}[name]).is_dir():
        pytest.skip(f"no {name} in {real_data}")
    walks = dm.plain_train_dataloader(), dm.test_dataloader()
    assert tuple(len(walk.samples.indices) for walk in walks) == sizes
    batch = next(iter(walks[0]))
    assert batch.x.shape == (1000, *dm.image_shape)
    assert batch.y[0] == first_label
    assert 0 <= batch.x.min() < 0.1 < 0.9 < batch.x.max() <= 1


@pytest.mark.parametrize(("name", "folder"), [("Imagenette", "imagenette2-160"), ("ImageNet100", "imagenet100")])
def test_real_folders_are_decoded(real_data, name, folder):
    if not (real_data / folder).is_dir():
        pytest.skip(f"no {folder} in {real_data}")
    dm = getattr(data, f"{name}DataModule")(
        str(real_data), val_size=100, image_size=32, num_workers=0, batch_size=20, test_size=200
    )
    for walk in (dm.train_dataloader(), dm.val_dataloader(), dm.test_dataloader()):
        batch = next(iter(walk))
        assert batch.x.shape[1:] == (3, 32, 32)
        assert 0 <= batch.x.min() < batch.x.max() <= 1
    labels = dm.test_dataloader().samples.indices
    assert len(labels) == 200


# Drawing a few images.


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_images_are_drawn_without_a_trainer_and_always_the_same(cifar10, split):
    (x, y), (again, labels) = (data.CIFAR10DataModule(str(cifar10), val_size=10).draw(7, split) for _ in range(2))
    assert (x.shape, x.dtype, y.shape, y.dtype) == ((7, 3, 32, 32), torch.float32, (7,), torch.int64)
    assert torch.equal(x, again)
    assert torch.equal(y, labels)
    values = (255 * x[:, 0, 0, 0]).round().long()
    assert torch.equal(values % 10, y)  # image i is full of the value i, its class is i mod 10
    assert torch.equal(x, values[:, None, None, None].expand_as(x) / 255)  # not cropped
    assert len(values.unique()) == 7
    assert values.tolist() != sorted(values.tolist())
    module = data.CIFAR10DataModule(str(cifar10), val_size=10)
    loader = {"train": module.plain_train_dataloader, "val": module.val_dataloader, "test": module.test_dataloader}
    places = parts(loader[split]())[2] + (100 if split == "test" else 0)
    assert {*values.tolist()} <= {*places.tolist()}


def test_drawing_neither_follows_nor_moves_seeds_and_selections(cifar10):
    module = data.CIFAR10DataModule(str(cifar10), val_size=10)
    state = torch.get_rng_state()
    x, _ = module.draw(5, "train")
    assert torch.equal(torch.get_rng_state(), state)
    seed_everything(9, verbose=False)
    few = parts(module.plain_train_dataloader())[2][:2]
    module.select(few)
    assert torch.equal(module.draw(5, "train")[0], x)
    assert not torch.equal(module.draw(5, "train", seed=1)[0], x)
    assert sorted(parts(module.train_dataloader())[2].tolist()) == sorted(few.tolist())


def test_drawing_downloads_and_reads_once(mnist):
    class Book(data.MNISTDataModule):
        calls = 0

        def prepare_data(self):
            self.calls += 1

    module = Book(str(mnist), val_size=5)
    module.draw(2)
    module.draw(2, "val")
    assert module.calls == 1


def test_images_are_drawn_from_folders_through_workers(folders):
    module = data.ImageFolderDataModule(str(folders), val_size=3, image_size=8, num_workers=2)
    x, y = module.draw(6)
    assert x.shape == (6, 3, 8, 8)
    assert sorted(y.tolist()) == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((14,), 'n=14 .*13 .*split="test"'),
        ((0,), "n=0"),
        ((2.5,), "n=2.5"),
        ((2, "tset"), "tset"),
    ],
)
def test_what_cannot_be_drawn_is_refused(cifar10, arguments, says):
    with pytest.raises(ValueError, match=says):
        data.CIFAR10DataModule(str(cifar10), val_size=10).draw(*arguments)


def test_a_data_module_is_printed_by_its_sizes():
    dm = digits(train_size=50)
    assert str(dm) == "DigitsDataModule, not set up"
    dm.setup()
    assert str(dm) == "DigitsDataModule: 50 train, 100 val, 397 test images"


def test_a_data_module_is_built_from_a_checkpoint_by_plain_arguments_alone(tmp_path):
    saved = {"batch_size": 7, "_class_path": "os.system", "_instantiator": "lightning.pytorch.cli.instantiate_module"}
    content = {"state_dict": {}, "datamodule_hyper_parameters": saved}
    torch.save(content, path := tmp_path / "a.ckpt")
    dm = data.DigitsDataModule.load_from_checkpoint(path, weights_only=True, eval_batch_size=9)
    assert (type(dm), dm.batch_size, dm.eval_batch_size) == (data.DigitsDataModule, 7, 9)
    saved["batch_size"] = {"class_path": "os.system"}
    torch.save(content, path)
    with pytest.raises(ValueError, match="batch_size"):
        data.DigitsDataModule.load_from_checkpoint(path)
    with pytest.raises(ValueError, match="weights_only"):
        data.DigitsDataModule.load_from_checkpoint(path, weights_only=False)


def test_a_class_folder_that_is_a_link_to_another_is_told(folders):
    for part in ("train", "val"):
        (folders / part / "kitty").symlink_to("cat")
    with pytest.warns(UserWarning, match="kitty leads to the images of cat"):
        own(folders)
