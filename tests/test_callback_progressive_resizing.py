"""ProgressiveResizing: the sizes of images and batches follow the epoch, also after a stop."""

import copy
from dataclasses import dataclass

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, seed_everything
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader

from lit_robust import defenses
from lit_robust.attacks import FGSM
from lit_robust.callbacks import AdversarialTraining, CoresetSelection, ProgressiveResizing
from lit_robust.data import ImageFolderDataModule
from lit_robust.data.augment import resized
from lit_robust.defenses import PGDAT
from lit_robust.nets import resnet18
from lit_robust.schedules import Linear, Staircase
from lit_robust.selection import CRAIG
from tests.stranger import DigitsData
from tests.test_resume import TinyData, differences
from tests.tiny import CLASSES, SaveAfter, trainer

PLAN = (Staircase([0, 1, 3], [8, 12, 16]), Staircase([0, 1, 3], [8, 4, 3]))
#: Images and pixels of the batches of four epochs, with 16 images to train on.
BATCHES = [(8, 8)] * 2 + [(4, 12)] * 4 + [(4, 12)] * 4 + [(3, 16)] * 5 + [(1, 16)]


class Sizes(Callback):
    """Writes down the shapes of all batches."""

    def __init__(self):
        self.trained, self.validated, self.tested = [], [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.trained.append((len(batch.x), batch.x.shape[-1]))

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.validated.append((len(batch.x), batch.x.shape[-1]))

    def on_test_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.tested.append(batch.x.shape[-1])


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    root = tmp_path_factory.mktemp("photos")
    for part, n in (("train", 8), ("val", 2), ("test", 2)):
        for label in range(2):
            (root / part / str(label)).mkdir(parents=True)
            for i in range(n):
                image = Image.effect_noise((20, 20), 50 + 100 * label).convert("RGB")
                image.save(root / part / str(label) / f"{i}.png")
    return root


def photos_in(root, **kwargs):
    given = {"image_size": 9, "batch_size": 5, "eval_batch_size": 4, "num_workers": 0} | kwargs
    return ImageFolderDataModule(str(root), **given)


def method(classes=2):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, classes)
        )
    return PGDAT(net, classes, FGSM(0.02), alarm_images=0)


def fit(folder, data, *callbacks, plan=PLAN, ckpt_path=None, module=None, **kwargs):
    seed_everything(7, verbose=False)
    seen, module = Sizes(), module or method()
    run = trainer(folder, callbacks=[ProgressiveResizing(*plan), seen, *callbacks], **{"max_epochs": 4} | kwargs)
    run.fit(module, data, ckpt_path=ckpt_path)
    return seen, module, run


def test_each_epoch_has_its_sizes(tmp_path, photos):
    seen, _, _ = fit(tmp_path, photos_in(photos))
    assert seen.trained == BATCHES
    assert seen.validated == [(4, size) for size in (8, 12, 12, 16)]


def test_the_tests_images_have_the_size_of_the_last_epoch(tmp_path, photos):
    seen, module = Sizes(), method()
    run = trainer(tmp_path, callbacks=[ProgressiveResizing(*PLAN), seen], max_epochs=4)
    run.test(module, photos_in(photos), verbose=False)
    assert seen.tested == [16]


def test_images_alone_may_grow_and_sizes_are_rounded(tmp_path, photos):
    seen, _, _ = fit(tmp_path, photos_in(photos), plan=(Linear(8, 11, 0, 2),), max_epochs=3)
    assert seen.trained == [(n, size) for size in (8, 10, 11) for n in (5, 5, 5, 1)]


def test_worker_processes_decode_the_new_size(tmp_path, photos):
    data = photos_in(photos, num_workers=1)
    seen, _, _ = fit(tmp_path, data, plan=(Staircase([0, 1], [8, 12]),), max_epochs=2)
    assert [size for _, size in seen.trained] == [8] * 4 + [12] * 4
    assert {size for *_, size in data._workers} == {12}


@pytest.mark.parametrize("batches", [2, 4, 10, 12], ids=lambda batches: f"after {batches} batches")
def test_a_run_resumes_with_the_sizes_of_its_epoch_bit_for_bit(tmp_path, photos, batches):
    path = tmp_path / "stop.ckpt"
    _, whole, _ = fit(tmp_path, photos_in(photos), SaveAfter(batches, path))
    seen, rest, run = fit(tmp_path, photos_in(photos), ckpt_path=path)
    assert differences(rest.state_dict(), whole.state_dict()) == []
    assert seen.trained == BATCHES[batches:]
    assert run.current_epoch == 4


def test_a_second_fit_begins_with_the_first_sizes(tmp_path, photos):
    data, callback, seen = photos_in(photos), ProgressiveResizing(*PLAN), Sizes()
    for _ in range(2):
        trainer(tmp_path, callbacks=[callback, seen], max_epochs=4).fit(method(), data)
    assert seen.trained == 2 * BATCHES


@pytest.mark.parametrize(
    ("plan", "error", "words"),
    [
        ((224,), TypeError, "image_size=224 "),
        ((PLAN[0], 32), TypeError, "batch_size=32 "),
        ((Linear(8, -8, 0, 2),), ValueError, "image_size at epoch 1=0 "),
        ((PLAN[0], Staircase([0, 2], [4, 0])), ValueError, "batch_size at epoch 2=0 "),
    ],
)
def test_sizes_that_no_batch_can_have_are_refused_before_training(tmp_path, photos, plan, error, words):
    with pytest.raises(error, match=f"^{words}"):
        fit(tmp_path, photos_in(photos), plan=plan)


def test_small_data_sets_are_resized_for_training_only(tmp_path):
    seen, module, run = fit(
        tmp_path, TinyData(), plan=(Staircase([0, 1], [4, 6]),), module=method(CLASSES), max_epochs=2
    )
    assert {size for _, size in seen.trained[:3]} == {4}
    assert {size for _, size in seen.trained[3:]} == {6}
    run.test(module, TinyData(), verbose=False)
    assert {size for _, size in seen.validated} == {*seen.tested} == {8}


def test_resized_images_are_those_of_the_whole_size_seen_from_further_away():
    data, smaller = TinyData(), TinyData()
    smaller.image_size = 4
    for loader in ("train_dataloader", "selection_dataloader"):
        for whole, small in zip(getattr(data, loader)(), getattr(smaller, loader)(), strict=True):
            assert torch.equal(whole.index, small.index)
            assert small.x.shape[-2:] == (4, 4)
            assert 0 <= small.x.min() <= small.x.max() <= 1
            assert torch.allclose(whole.x.mean((2, 3)), small.x.mean((2, 3)), atol=0.05), (
                "also their crops are the same"
            )
    assert torch.equal(next(iter(data.val_dataloader())).x, next(iter(smaller.val_dataloader())).x)


@pytest.mark.parametrize("batches", [2, 3, 4], ids=lambda batches: f"after {batches} batches")
def test_small_data_sets_resume_bit_for_bit_too(tmp_path, batches):
    plan, path = (Staircase([0, 1], [4, 6]),), tmp_path / "stop.ckpt"
    whole = fit(tmp_path, TinyData(), SaveAfter(batches, path), plan=plan, module=method(CLASSES), max_epochs=2)[1]
    seen, rest, _ = fit(tmp_path, TinyData(), plan=plan, module=method(CLASSES), max_epochs=2, ckpt_path=path)
    assert differences(rest.state_dict(), whole.state_dict()) == []
    assert {size for _, size in seen.trained} == ({4, 6} if batches < 3 else {6})


@pytest.mark.parametrize(
    ("fraction", "sizes"),
    # Of the two warm epochs, half is one epoch on all images, with the first size; a fifth is none.
    [(0.5, [4, 6]), (0.2, [6])],
)
def test_epochs_that_a_coreset_skips_count(tmp_path, fraction, sizes):
    chosen = CoresetSelection(fraction, CRAIG(), every=1, warm=0.5)
    seen, _, run = fit(tmp_path, TinyData(), chosen, plan=(Staircase([0, 2], [4, 6]),), module=method(CLASSES))
    assert list(dict.fromkeys(size for _, size in seen.trained)) == sizes
    assert run.current_epoch == 4


def test_sizes_are_tried_in_the_precision_of_the_training(tmp_path, photos):
    seen, _, _ = fit(tmp_path, photos_in(photos), precision="64-true")
    assert seen.trained == BATCHES


def test_images_of_two_sides_keep_their_proportion():
    x = torch.rand(2, 3, 8, 16)
    assert resized(x, 4).shape == (2, 3, 4, 8)
    assert resized(x, 8) is x


def test_data_of_one_size_are_refused(tmp_path):
    with pytest.raises(TypeError, match=r"image_size .* DigitsData"):
        fit(tmp_path, DigitsData())
    with pytest.raises(TypeError, match=r"image_size .* no data module"):
        fit(tmp_path, TinyData().train_dataloader(), module=method(CLASSES))


def test_a_size_that_the_net_cannot_read_is_refused_before_the_epochs_of_another(tmp_path, photos):
    flat = PGDAT(nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 2)), 2, FGSM(0.02), alarm_images=0)
    before = copy.deepcopy(flat.state_dict())
    data = photos_in(photos)
    with pytest.raises(ValueError, match=r"^image_size at epoch 1=12: Sequential cannot read .* such as a ResNet"):
        fit(tmp_path, data, module=flat)
    assert (data.image_size, data.batch_size) == (9, 5), "as before"
    assert differences(flat.state_dict(), before) == []


def test_a_net_for_other_channels_is_refused_as_such_and_not_for_the_size(tmp_path, photos):
    grey = PGDAT(resnet18(2, in_channels=1, mean=None, std=None, width=2), 2, FGSM(0.02), alarm_images=0)
    with pytest.raises(ValueError, match=r"^image_size at epoch \d=\d+: .*1 channels.* in_channels=3"):
        fit(tmp_path, photos_in(photos), module=grey)


def test_a_small_data_set_is_not_enlarged(tmp_path):
    with pytest.raises(ValueError, match=r"^image_size at epoch 1=9 would enlarge .* TinyData: .* at most 8"):
        fit(tmp_path, TinyData(), plan=(Staircase([0, 1], [8, 9]),), module=method(CLASSES))


class OwnLoader(TinyData):
    """Its batches have one size, whatever is set."""

    def train_dataloader(self):
        self.image_size = None
        return super().train_dataloader()


def test_data_that_do_not_follow_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"^image_size=4 .* OwnLoader has images of 8x8"):
        fit(tmp_path, OwnLoader(), plan=(Staircase([0, 1], [4, 6]),), module=method(CLASSES))


class ByProperty(TinyData):
    """Keeps its size behind a property, as a data module with checks of its own does."""

    kept = None

    @property
    def image_size(self):
        return self.kept

    @image_size.setter
    def image_size(self, size):
        self.kept = size


class Fixed(DigitsData):
    image_size = property(lambda self: 8)


def test_a_size_behind_a_property_is_set_and_given_back(tmp_path):
    data = ByProperty()
    seen, _, _ = fit(tmp_path, data, plan=(Staircase([0, 1], [4, 6]),), module=method(CLASSES), max_epochs=2)
    assert {size for _, size in seen.trained} == {4, 6}
    assert data.image_size is None


def test_a_property_that_cannot_be_set_is_refused_before_training(tmp_path):
    with pytest.raises(TypeError, match=r"image_size .* Fixed .* setter"):
        fit(tmp_path, Fixed(), plan=(Staircase([0, 1], [4, 6]),), module=method(CLASSES))


@dataclass
class Views:
    label: torch.Tensor
    views: list


#: Batches of other people's loaders, of images and labels.
FORMS = {
    "pair": lambda x, y: (x, y),
    "list": lambda x, y: [x, y],
    "labels first": lambda x, y: (y, x),
    "dict": lambda x, y: {"name": ["digit"] * len(y), "label": y, "image": x},
    "nested": lambda x, y: {"label": y, "views": [x, x]},
    "dataclass": lambda x, y: Views(y, [x]),
    "bytes": lambda x, y: {"image": (x * 255).byte(), "label": y},
    "a mask first": lambda x, y: {"mask": torch.ones(len(y), 1, 4, 4, dtype=torch.int64), "image": x},
}


class Foreign(LightningDataModule):
    """Batches in another form; its loader follows ``image_size`` if asked."""

    def __init__(self, form, follows=False):
        super().__init__()
        self.form, self.follows, self.image_size, self.batch_size = FORMS[form], follows, None, 4

    def train_dataloader(self):
        x, y = torch.rand(8, 3, *[self.image_size if self.follows else 8] * 2), torch.arange(8) % 2

        def collate(positions):
            return self.form(x[positions], y[positions])

        return DataLoader(range(8), self.batch_size, collate_fn=collate)


class Steps(LightningModule):
    """Trains on nothing and counts its batches."""

    def __init__(self):
        super().__init__()
        self.w, self.steps = nn.Parameter(torch.zeros(())), []

    def training_step(self, batch, batch_idx):
        self.steps.append(batch)
        return self.w**2

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def resize_foreign(folder, data, *callbacks, sizes=(4, 6), module=None):
    module = Steps() if module is None else module
    resizing = ProgressiveResizing(Staircase([0, 1], sizes))
    trainer(folder, callbacks=[resizing, *callbacks], max_epochs=2, limit_val_batches=0).fit(module, data)
    return module


@pytest.mark.parametrize("form", FORMS)
def test_loaders_of_any_form_that_ignore_the_size_are_refused_in_the_epoch_that_differs(tmp_path, form):
    module = Steps()
    with pytest.raises(ValueError, match=r"^image_size=6 .* Foreign has images of 8x8"):
        resize_foreign(tmp_path, Foreign(form), sizes=(8, 6), module=module)
    assert len(module.steps) == 2, "the first epoch has the size of the data"


@pytest.mark.parametrize("form", FORMS)
def test_loaders_of_any_form_that_follow_are_trained_on(tmp_path, form):
    assert len(resize_foreign(tmp_path, Foreign(form, follows=True)).steps) == 4


def test_images_are_where_adversarial_training_is_told_that_they_are(tmp_path):
    class TwoImages(Foreign):
        def train_dataloader(self):
            self.form = lambda x, y: {"large": torch.rand(len(y), 3, 9, 9), "small": x, "label": y}
            return super().train_dataloader()

    class Module(Steps):
        def __init__(self):
            super().__init__()
            self.net = method().net

    attacked = AdversarialTraining(FGSM(0.02), x="small", y="label")
    module = resize_foreign(tmp_path, TwoImages("pair", follows=True), attacked, module=Module())
    assert len(module.steps) == 4


@pytest.mark.parametrize("size", [(4, 4), 0, "small"])
def test_a_size_of_ones_own_must_be_a_number_of_pixels(size):
    data = TinyData()
    data.image_size = size
    with pytest.raises(ValueError, match=r"^image_size=.* an integer"):
        data.train_dataloader()


def test_data_keep_no_size_after_a_run(tmp_path, photos):
    for data in (TinyData(), photos_in(photos)):
        before = data.image_size, data.batch_size
        for _ in range(2):
            fit(tmp_path, data, plan=(Staircase([0, 1], [4, 6]), Staircase([0, 1], [3, 2])), module=method(CLASSES))
            assert (data.image_size, data.batch_size) == before


@pytest.mark.parametrize("name", ["FreeAT", "FastAT", "NuAT2"])
def test_what_a_method_remembers_of_images_may_have_another_size(tmp_path, name):
    attack, net = FGSM(0.02), method(CLASSES).net
    module = getattr(defenses, name)(net, CLASSES, attack, alarm_images=0)
    seen, _, _ = fit(tmp_path, TinyData(), plan=(Staircase([0, 1], [4, 6]),), module=module, max_epochs=2)
    assert {size for _, size in seen.trained} == {4, 6}


def test_two_of_them_are_refused(tmp_path, photos):
    with pytest.raises(ValueError, match="two ProgressiveResizing"):
        fit(tmp_path, photos_in(photos), ProgressiveResizing(*PLAN))
