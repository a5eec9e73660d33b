"""A folder of class folders without train, and what predictions.csv says of files and classes."""

import csv
import os
from pathlib import Path

import pytest
from PIL import Image

from lit_robust.cli import main
from lit_robust.data import ImageFolderDataModule

CLASSES = {"ant": 20, "bee": 10, "cat": 30}


@pytest.fixture
def tree(tmp_path):
    for label, (name, n) in enumerate(CLASSES.items()):
        write(tmp_path / "photos" / name, n, label)
    return tmp_path / "photos"


def write(folder, n, label=0):
    folder.mkdir(parents=True)
    for i in range(n):
        Image.new("RGB", (12, 12), (50 * label, 8 * i, 0)).save(folder / f"{i}.png")


def own(root, **kwargs):
    return ImageFolderDataModule(str(root), **{"image_size": 8, "num_workers": 0, "augment": False} | kwargs)


def files(dm, part):
    """The files of a part: those of the training set are private, and are told by the pixels."""
    loader = {"train": dm.plain_train_dataloader, "val": dm.val_dataloader, "test": dm.test_dataloader}[part]()
    return {(int(y), round(255 * float(x[1, 0, 0]))) for batch in loader for x, y in zip(batch.x, batch.y, strict=True)}


def test_every_image_is_in_one_part_and_the_classes_keep_their_shares(tree):
    dm = own(tree)
    parts = [files(dm, part) for part in ("train", "val", "test")]
    assert [len(part) for part in parts] == [43, 5, 12]
    assert set().union(*parts) == {(label, 8 * i) for label, n in enumerate(CLASSES.values()) for i in range(n)}
    assert [sum(label == one for label, _ in parts[2]) for one in range(3)] == [4, 2, 6]
    assert (dm.num_classes, dm.class_names) == (3, list(CLASSES))


def test_the_split_is_that_of_the_seed(tree):
    one, same, other = own(tree), own(tree), own(tree, split_seed=1)
    assert one.test_files == same.test_files
    assert files(one, "val") == files(same, "val")
    assert set(one.test_files) != set(other.test_files)


def test_sizes_are_given_as_elsewhere(tree):
    dm = own(tree, val_size=9, test_size=30, train_size=12)
    assert [len(files(dm, part)) for part in ("train", "val", "test")] == [12, 9, 30]
    with pytest.raises(ValueError, match=r"^test_size=60 "):
        own(tree, test_size=60)


def test_the_split_is_reported_once(tree, caplog):
    with caplog.at_level("INFO"):
        own(tree).setup()
    (told,) = [record.message for record in caplog.records if "no folder train" in record.message]
    assert told.endswith("split by split_seed=0: 43 to train, 5 to validate and 12 to test on.")


@pytest.mark.parametrize("name", ["val", "test", "Train", "training", "Validation"])
def test_parts_of_a_split_are_no_classes(tree, name):
    write(tree / name / "ant", 2)
    with pytest.raises(FileNotFoundError, match=f"photos .*{name} .*train"):
        own(tree)


def test_with_train_nothing_is_split(tree):
    os.rename(tree, tree.parent / "train")
    for name in CLASSES:
        write(tree.parent / "val" / name, 3)
    dm = own(tree.parent, val_size=0)
    assert len(files(dm, "train")) == 60
    assert dm.test_files[:2] == ["val/ant/0.png", "val/ant/1.png"]


def predict(*flags):
    main(["predict", "-c", "tiny.yaml", *flags])
    with next(Path().glob("**/predictions.csv")).open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.DictReader(file))


TINY = """
trainer: {accelerator: cpu, devices: 1, enable_progress_bar: false}
data:
  class_path: ImageFolderDataModule
  init_args: {root: photos, image_size: 8, num_workers: 0}
model:
  class_path: Natural
  init_args:
    net: {class_path: lit_robust.nets.resnet18, init_args: {width: 2}}
    attack: {class_path: FGSM, init_args: {eps: 8/255}}
"""


def test_predictions_name_file_and_class(tree, monkeypatch):
    monkeypatch.chdir(tree.parent)
    Path("tiny.yaml").write_text(TINY)
    written = predict()
    assert list(written[0]) == ["index", "file", "label", "class", "predicted", "predicted_class", "probability"]
    assert {row["file"] for row in written} == set(own(tree).test_files)
    for row in written:
        assert (tree / row["file"]).exists()
        assert row["class"] == row["file"].split("/")[0] == list(CLASSES)[int(row["label"])]
        assert row["predicted_class"] == list(CLASSES)[int(row["predicted"])]


def test_a_name_that_is_no_utf8_or_a_formula_is_written(tree, monkeypatch):
    monkeypatch.chdir(tree.parent)
    os.rename(tree / "bee", tree / "=bee")
    for i in range(10):
        os.rename(tree / "=bee" / f"{i}.png", os.fsencode(tree / "=bee" / f"{i}") + b"\xff.png")
    Path("tiny.yaml").write_text(TINY)
    names = {row["class"] for row in predict()}
    assert names == {"'=bee", "ant", "cat"}
