"""Every batch is checked: values out of range are refused before a number or a checkpoint is written."""

from contextlib import nullcontext

import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint

from lit_robust.callbacks import (
    AdversarialExamples,
    AdversarialTraining,
    CatastrophicOverfittingMonitor,
    GeneralizationGap,
    PGDDrop,
    RobustAccuracy,
)
from lit_robust.defenses import PGDAT
from lit_robust.limits import Limits
from tests.methods import ATTACK, build
from tests.tiny import TinyNet, images, indexed, trainer


def spoilt(change, batch_size=8):
    """24 images in three batches, of which the second is changed."""
    batch = images(24)
    x, y = batch.x.clone(), batch.y.clone()
    change(x[8:16], y[8:16])
    return indexed(batch._replace(x=x, y=y), batch_size)


CHANGES = {
    "0 to 255": (lambda x, y: x.mul_(255), "^pixels .* to 2[45]"),
    "normalised": (lambda x, y: x.sub_(0.5), "^pixels .* -0"),
    "NaN": (lambda x, y: x[0].fill_(torch.nan), "^pixels .*inf"),
    "-100": (
        lambda x, y: y[0].fill_(-100),
        "^labels .* -100 to 3, .* 0 to 3",
    ),
    "-1": (lambda x, y: y[3].fill_(-1), "^labels .* -1 "),
    "too many classes": (lambda x, y: y[3].fill_(4), "^labels .* 0 to 4"),
}


@pytest.mark.filterwarnings("ignore:Using ModelCheckpoint with manual optimization and every_n_train_steps")
@pytest.mark.parametrize("name", CHANGES)
def test_a_later_batch_of_a_training_is_refused_and_no_checkpoint_is_written(name, tmp_path):
    change, message = CHANGES[name]
    keep = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1)
    run = trainer(tmp_path, max_epochs=1, callbacks=[keep], enable_checkpointing=True)
    with pytest.raises(ValueError, match=message):
        run.fit(build(PGDAT), spoilt(change))
    assert [path.name for path in tmp_path.glob("*.ckpt")] == ["epoch=0-step=1.ckpt"]


@pytest.mark.parametrize("name", CHANGES)
def test_a_later_batch_of_a_validation_or_a_test_is_refused(name, tmp_path):
    change, message = CHANGES[name]
    for measure in ("validate", "test"):
        with pytest.raises(ValueError, match=message):
            getattr(trainer(tmp_path), measure)(build(PGDAT), spoilt(change), verbose=False)


def test_a_fit_without_checkpoints_is_refused_at_the_epochs_end(tmp_path):
    with pytest.raises(ValueError, match=r"^labels "):
        trainer(tmp_path, max_epochs=1, log_every_n_steps=50).fit(build(PGDAT), spoilt(CHANGES["-100"][0]))


class Stranger(LightningModule):
    """A user's module; its loss leaves out labels of -100, and it looks at no pixel."""

    def __init__(self):
        super().__init__()
        self.model = TinyNet()

    def training_step(self, batch, batch_idx):
        return torch.nn.functional.cross_entropy(self.model(batch[0].nan_to_num()), batch[1].clamp(0, 3))

    def validation_step(self, batch, batch_idx):
        pass

    test_step = validation_step

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("name", CHANGES)
def test_a_strangers_later_batch_is_refused_in_training_and_no_checkpoint_is_written(name, tmp_path):
    change, message = CHANGES[name]
    keep = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1)
    callbacks = [AdversarialTraining(ATTACK, net="model"), keep]
    run = trainer(tmp_path, max_epochs=1, limit_val_batches=0, callbacks=callbacks, enable_checkpointing=True)
    with pytest.raises(ValueError, match=message):
        run.fit(Stranger(), spoilt(change))
    assert [path.name for path in tmp_path.glob("*.ckpt")] == ["epoch=0-step=1.ckpt"]


@pytest.mark.parametrize("name", CHANGES)
def test_a_strangers_later_batch_is_refused_in_a_validation_or_a_test(name, tmp_path):
    change, message = CHANGES[name]
    for measure in ("validate", "test"):
        run = trainer(tmp_path, callbacks=[RobustAccuracy({"pgd": ATTACK}, net="model")])
        with pytest.raises(ValueError, match=message):
            getattr(run, measure)(Stranger(), spoilt(change), verbose=False)


@pytest.mark.parametrize(
    "callback",
    [
        lambda: AdversarialExamples(ATTACK, net="model"),
        lambda: CatastrophicOverfittingMonitor(PGDDrop(ATTACK), net="model"),
        lambda: GeneralizationGap(8, ATTACK, net="model"),
    ],
    ids=["examples", "monitor", "gap"],
)
def test_a_precision_that_rounds_images_is_refused_by_what_attacks_them(tmp_path, callback):
    run = trainer(tmp_path, max_epochs=1, precision="bf16-true", callbacks=[callback()])
    with pytest.raises(ValueError, match=r"^trainer\.precision=bf16-true"):
        run.fit(Stranger(), datamodule=Plain())


class Plain(LightningDataModule):
    def train_dataloader(self):
        return indexed(images(8))

    plain_train_dataloader = val_dataloader = train_dataloader


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize(("label", "refused"), [(0, False), (2999, False), (3000, True), (-1, True)])
def test_labels_are_compared_exactly_beside_images_of_any_type(dtype, label, refused):
    limits = Limits(3000)
    batch = images(8)
    kept = limits.watch(batch._replace(x=batch.x.to(dtype), y=torch.full((8,), label)))
    assert 0 <= int(kept.y.min()) <= int(kept.y.max()) < 3000
    with pytest.raises(ValueError, match=r"^labels ") if refused else nullcontext():
        limits.check()
    limits.check()  # what was refused is forgotten


def test_pixels_are_reduced_over_ranks_where_that_is_asked_for():
    alone, together = Limits(None, reduce=None), Limits(None, reduce=lambda reached: 2 * reached)
    for limits in (alone, together):
        limits.add(torch.tensor([0.0, 0.75]), torch.tensor([-5]))  # no classes, so any label
    alone.check()
    with pytest.raises(ValueError, match=r"^pixels .* 1\.5"):
        together.check()
