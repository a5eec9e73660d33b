from collections import defaultdict

import pytest
import torch
from lightning.pytorch import LightningDataModule, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from lit_robust.attacks import PGD
from lit_robust.batch import Batch
from lit_robust.callbacks import EMAWeights, GeneralizationGap
from lit_robust.data import DigitsDataModule
from lit_robust.defenses import PGDAT, PSAT, CurriculumAT, CustomizedAT
from lit_robust.measures.accuracy import surviving
from lit_robust.nets import digits_cnn
from tests.methods import build
from tests.tiny import Counting, TinyNet, images, indexed, trainer

ATTACK = PGD(eps=0.1, step_size=0.05, steps=2, init="zero")


class Data(LightningDataModule):
    """Training images and separate validation images."""

    def __init__(self, trained=24, held_out=16):
        super().__init__()
        self.trained, self.held_out = images(trained, seed=0), images(held_out, seed=1)

    def train_dataloader(self):
        return indexed(self.trained)

    def plain_train_dataloader(self):
        return indexed(self.trained)

    def val_dataloader(self):
        return indexed(self.held_out)


def fitted(tmp_path, method=PGDAT, callbacks=(), data=None, epochs=2, **arguments):
    defense = build(method, val_attack=ATTACK, **arguments)
    run = trainer(tmp_path, max_epochs=epochs, callbacks=[*callbacks])
    run.fit(defense, datamodule=data or Data())
    return defense, {name: value.item() for name, value in run.callback_metrics.items()}


def robust(net, batch):
    return surviving(net.eval(), {"robust": ATTACK}, batch)["robust"].float().mean().item()


@pytest.mark.parametrize("method", [PGDAT, CurriculumAT, CustomizedAT, PSAT])
def test_both_accuracies_are_under_the_validations_attack_however_weak_the_trainings_is(tmp_path, method):
    data = Data()
    defense, logged = fitted(tmp_path, method, [GeneralizationGap()], data)
    trained, held_out = robust(defense.net, data.trained), robust(defense.net, data.held_out)
    assert logged["val/acc/robust_train"] == pytest.approx(trained)
    assert logged["val/acc/robust"] == pytest.approx(held_out)
    assert logged["val/gap/robust"] == pytest.approx(trained - held_out)


def test_only_the_first_images_are_attacked(tmp_path):
    data = Data()
    defense, logged = fitted(tmp_path, callbacks=[GeneralizationGap(images=11)], data=data)
    first = Batch(*(part[:11] for part in data.trained))
    assert logged["val/acc/robust_train"] == pytest.approx(robust(defense.net, first))


@pytest.mark.parametrize("order", [1, -1])
def test_it_is_the_averaged_weights_that_are_measured(tmp_path, order):
    data, average = Data(), EMAWeights(0.99)
    defense, logged = fitted(tmp_path, callbacks=[average, GeneralizationGap()][::order], data=data)
    assert logged["val/acc/robust_train"] == pytest.approx(robust(defense.net, data.trained))  # the fit ends with them


def test_the_training_is_what_it_is_without(tmp_path):
    weights = []
    for callbacks in ([], [GeneralizationGap()]):
        seed_everything(0)
        defense, _ = fitted(tmp_path, PSAT, callbacks, attack=PGD(eps=0.1, step_size=0.05, steps=2), net=Counting())
        weights.append(defense.state_dict())
    assert all(torch.equal(weights[0][name], value) for name, value in weights[1].items())


def test_both_are_measured_in_the_validations_precision(tmp_path):
    class Noting(TinyNet):
        def forward(self, x):
            logits = super().forward(x)
            if not self.training:
                seen[len(x)].append(logits.dtype)
            return logits

    seen = defaultdict(list)  # by their number: validation images come by eight, training images are cut to five
    run = trainer(tmp_path, max_epochs=1, precision="bf16-mixed", callbacks=[GeneralizationGap(images=5)])
    unfolded = {"attack_bn_mode": "train", "fold_batchnorm": False}  # else a copy is compared with the net, in float32
    run.fit(build(PGDAT, net=Noting(), val_attack=ATTACK, **unfolded), datamodule=Data())
    assert seen[5]
    assert set(seen[5]) == set(seen[8]) == {torch.bfloat16}


def test_a_validation_outside_of_a_training_has_no_gap(tmp_path):
    run = trainer(tmp_path, callbacks=[GeneralizationGap()])
    (metrics,) = run.validate(build(PGDAT), datamodule=Data(), verbose=False)
    assert not any("gap" in name for name in metrics)


def test_a_checkpoint_can_be_chosen_by_it(tmp_path):
    best = ModelCheckpoint(tmp_path, monitor="val/gap/robust", mode="min")
    run = trainer(
        tmp_path,
        max_epochs=2,
        num_sanity_val_steps=2,
        enable_checkpointing=True,
        callbacks=[GeneralizationGap(), best],
    )
    run.fit(build(PGDAT), datamodule=Data())
    assert best.best_model_score.item() < 0.2


def test_our_data_give_their_plain_images(tmp_path):
    data = DigitsDataModule(val_size=200)
    defense = PGDAT(net=digits_cnn(), num_classes=10, attack=PGD(eps=0.15, step_size=0.1, steps=2), val_attack=ATTACK)
    run = trainer(tmp_path, max_epochs=1, callbacks=[GeneralizationGap(images=300)])
    run.fit(defense, data)
    parts = [torch.cat(column) for column in zip(*data.plain_train_dataloader(), strict=True)]
    first = Batch(*(part[:300] for part in parts))
    assert run.callback_metrics["val/acc/robust_train"].item() == pytest.approx(robust(defense.net, first))


def test_images_must_be_at_least_one():
    with pytest.raises(ValueError, match=r"^images="):
        GeneralizationGap(images=0)


def test_a_module_without_a_validation_attack_is_refused(tmp_path):
    from tests.test_callback_robust_accuracy import Classifier

    with pytest.raises(TypeError, match=r"Classifier .*val_attacks"):
        trainer(tmp_path, max_epochs=1, callbacks=[GeneralizationGap()]).fit(
            Classifier(nn.Flatten()), datamodule=Data()
        )


def test_data_without_plain_images_are_refused(tmp_path):
    with pytest.raises(TypeError, match="DataModule"):
        trainer(tmp_path, max_epochs=1, callbacks=[GeneralizationGap()]).fit(
            build(PGDAT, net=TinyNet()), indexed(images())
        )
