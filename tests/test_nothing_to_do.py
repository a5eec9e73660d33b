"""What would have no effect, or overwrite something, is told or refused before training."""

import re

import pytest
import torch
from PIL import Image

from lit_robust.attacks import FGSM, PGD
from lit_robust.callbacks import (
    AdversarialExamples,
    AdversarialTraining,
    AttributeRamp,
    DelayedStart,
    PredictionWriter,
    RobustAccuracy,
)
from lit_robust.data import DigitsDataModule, ImageFolderDataModule
from lit_robust.data.augment import crop_and_flip
from lit_robust.defenses import FGSMAT, PGDAT, Natural
from lit_robust.nets import digits_cnn
from lit_robust.schedules import Linear, Staircase
from tests.methods import ATTACK, build
from tests.stranger import DigitClassifier, DigitsData
from tests.tiny import images, indexed, trainer


def fit(tmp_path, module, *callbacks, **options):
    run = trainer(tmp_path, callbacks=[*callbacks], **{"max_epochs": 2, "limit_train_batches": 1} | options)
    run.fit(module, indexed(images(8)), indexed(images(8)))
    return module


@pytest.mark.parametrize(
    ("callback", "named"),
    [
        (lambda: DelayedStart(at_epoch=1), "DelayedStart .*Natural "),
        (lambda: AttributeRamp("attack.eps", Linear(0, 0.1, 0, 2)), r"AttributeRamp\(.*Natural "),
    ],
)
def test_a_callback_of_the_trainings_attack_is_refused_by_natural_training(tmp_path, callback, named):
    with pytest.raises(ValueError, match=f"^{named}"):
        fit(tmp_path, build(Natural), callback())
    fit(tmp_path, build(PGDAT), callback())


@pytest.mark.parametrize(
    ("method", "arguments", "sentences"),
    [
        (PGDAT, {"attack": PGD(0, steps=2), "val_attack": ATTACK}, ["eps=0 of attack changes no image: .*Natural"]),
        (FGSMAT, {"attack": FGSM(0), "val_attack": ATTACK}, ["eps=0 of attack changes no image"]),
        (PGDAT, {"attack": PGD(0.1, steps=0)}, ["steps=0 of attack takes no step"]),
        (PGDAT, {"val_attack": PGD(0)}, ["eps=0 of val_attack changes no image: set another eps"]),
        (PGDAT, {"val_attack": PGD(0.1, steps=0)}, ["steps=0 of val_attack takes no step"]),
        (Natural, {"attack": PGD(0)}, ["eps=0 of val_attack"]),  # its default follows the attack
        (PGDAT, {"attack": PGD(0)}, ["eps=0 of attack", "eps=0 of val_attack"]),
    ],
)
def test_an_attack_that_changes_nothing_is_told_once(tmp_path, method, arguments, sentences):
    with pytest.warns(UserWarning, match="=0 of ") as told:
        fit(tmp_path, build(method, **arguments))
    ours = [str(one.message) for one in told if "=0 of " in str(one.message)]
    assert len(ours) == len(sentences)
    for sentence, found in zip(sentences, ours, strict=True):
        assert re.match(sentence, found)


def test_the_first_value_of_a_ramp_and_the_baseline_of_a_test_are_no_fault(tmp_path):
    tests = {"none": PGD(0), "start": PGD(0.1, steps=0)}
    grown = AttributeRamp("attack.eps", Linear(0, 0.1, 0, 2))
    fit(tmp_path, build(PGDAT, attack=PGD(0, steps=2), val_attack=ATTACK, test_attacks=tests), grown)
    fit(tmp_path, build(PGDAT, attack=PGD(0.1, steps=0)), AttributeRamp("attack.steps", Staircase([0, 1], [0, 2])))
    RobustAccuracy({"none": PGD(0)})


def test_a_strangers_training_is_told_too(tmp_path):
    arguments = {"x": "image", "y": "label", "net": "model", "mean": 0.305, "std": 0.376}
    callback = AdversarialTraining(PGD(0), **arguments)
    run = trainer(tmp_path, max_epochs=1, limit_train_batches=1, callbacks=[callback])
    with pytest.warns(UserWarning, match=r"^eps=0 of attack "):
        run.fit(DigitClassifier(), DigitsData())


@pytest.mark.parametrize("second", ["here", "./here", "../{}/here"])
def test_two_callbacks_do_not_write_the_same_files(tmp_path, monkeypatch, second):
    monkeypatch.chdir(tmp_path)
    second = second.format(tmp_path.name)
    pictures = [AdversarialExamples(ATTACK, dirpath=path) for path in ("here", second)]
    with pytest.raises(ValueError, match=r"AdversarialExamples .*dirpath"):
        fit(tmp_path, build(PGDAT), *pictures)
    writers = [PredictionWriter(path) for path in ("here", second)]
    with pytest.raises(ValueError, match=r"PredictionWriters .*path"):
        trainer(tmp_path, callbacks=writers).predict(build(PGDAT), indexed(images(8)))
    assert not list(tmp_path.rglob("*.png")) + list(tmp_path.rglob("*.csv"))


@pytest.mark.parametrize(
    ("size", "padding"), [(1, 0), (3, 0), (4, 1), (8, 1), (16, 2), (24, 3), (28, 4), (32, 4), (64, 4)]
)
def test_small_images_are_cropped_in_cifars_proportion(size, padding):
    x = torch.rand(16, 1, size, size)
    found = crop_and_flip(x, torch.Generator().manual_seed(0))
    assert torch.equal(found, crop_and_flip(x, torch.Generator().manual_seed(0), padding=padding))
    assert not torch.equal(found, crop_and_flip(x, torch.Generator().manual_seed(0), padding=padding + 1))


@pytest.mark.parametrize(
    ("size", "augment", "told"), [(8, True, "2 x 2"), (31, True, "9 x 9"), (8, False, ""), (32, True, "")]
)
def test_crops_of_a_folders_images_that_leave_a_few_pixels_are_told(size, augment, told, tmp_path, caplog):
    caplog.set_level("INFO")
    for part in ("train", "val"):
        for name in "ab":
            (tmp_path / part / name).mkdir(parents=True)
            Image.new("RGB", (9, 9)).save(tmp_path / part / name / "a.png")
    ImageFolderDataModule(str(tmp_path), image_size=size, augment=augment, num_workers=0, val_size=0)
    assert bool(told) == (f"image_size={size} leaves {told} pixels: " in caplog.text)
    assert told or "augment" not in caplog.text


def test_a_net_learns_from_augmented_digits(tmp_path):
    torch.manual_seed(0)
    defense = Natural(digits_cnn(width=4), 10, PGD(0.1), val_attack=PGD(0.1, steps=1))
    run = trainer(tmp_path, max_epochs=6)
    run.fit(defense, DigitsDataModule(batch_size=64, augment=True))
    assert run.callback_metrics["val/acc/clean"] > 0.6
