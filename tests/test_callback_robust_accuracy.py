from dataclasses import dataclass, replace

import pytest
import torch
from lightning.pytorch import LightningModule, seed_everything
from lightning.pytorch.callbacks import (
    EarlyStopping,
    EMAWeightAveraging,
    ModelCheckpoint,
    RichProgressBar,
    TQDMProgressBar,
)
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lit_robust.attacks import BPDA, CWPGD, GAMAFW, GAMAPGD, PGD, Attack, MultiTargetedPGD, TargetedPGD
from lit_robust.attacks.autoattack_findings import Findings, hand_on
from lit_robust.batch import Batch
from lit_robust.callbacks import RobustAccuracy
from lit_robust.defenses import PGDAT, Natural
from lit_robust.measures.accuracy import Accuracy
from tests.tiny import CLASSES, Counting, TinyNet, images, loader, trainer, two_ranks

ATTACK = PGD(eps=0.1, step_size=0.05, steps=2)

# Images of one pixel, whose class is whether it is bright, and a net that classifies them with the threshold 0.3:
# an attack breaks exactly those that are within eps of 0.3.

PIXELS = torch.tensor([0.1, 0.25, 0.35, 0.4, 0.6, 0.9]).view(-1, 1, 1, 1)
BRIGHT = (PIXELS.flatten() > 0.5).long()


class Threshold(nn.Module):
    def __init__(self, at=0.3):
        super().__init__()
        self.at = nn.Parameter(torch.tensor(at))

    def forward(self, x):
        distance = x.flatten(1) - self.at
        return torch.cat([-distance, distance], dim=1)


class Classifier(LightningModule):
    """A user's module, with random numbers in its training and evaluation."""

    def __init__(self, net=None, lr=0.0) -> None:
        super().__init__()
        self.net, self.lr, self.drawn = net or Threshold(), lr, []

    def forward(self, x):
        return self.net(x)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(F.dropout(batch[0], 0.2)), batch[1])

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        self.drawn.append(float(torch.rand(())))
        self.log("val_loss", F.cross_entropy(self.net(batch[0]), batch[1]))

    def test_step(self, batch, batch_idx):
        batch[0].zero_()  # whatever a step does to its batch


@dataclass(frozen=True)
class Inverts(Attack):
    def __call__(self, net, x, y):
        return 1 - x


@dataclass(frozen=True)
class Finds(Attack):
    def __call__(self, net, x, y):
        hand_on(Findings({"it | random": 1, "it | attacked": len(x)}))
        return x


def pixels(batch_size=2, x=PIXELS):
    return DataLoader(list(zip(x.clone(), BRIGHT, strict=True)), batch_size=batch_size)


def sure(eps):
    """Moves every pixel by eps, exactly."""
    return PGD(eps=eps, step_size=eps, steps=1, init="zero")


EXACT = {"small": sure(0.04), "large": sure(0.08)}
#: 0.35 and 0.4 are taken for bright; 0.25 falls at 0.08.
EXPECTED = {"clean": 4 / 6, "small": 4 / 6, "large": 3 / 6, "worst": 3 / 6}


def of(run, split):
    return {
        name.removeprefix(f"{split}/acc/"): float(value)
        for name, value in run.callback_metrics.items()
        if name.startswith(f"{split}/acc/")
    }


@pytest.mark.parametrize("inference_mode", [True, False])
@pytest.mark.parametrize("stage", ["fit", "validate", "test"])
def test_every_stage_finds_the_known_accuracies(tmp_path, stage, inference_mode):
    run = trainer(tmp_path, callbacks=[RobustAccuracy(EXACT)], inference_mode=inference_mode, max_epochs=1)
    module = Classifier()
    if stage == "fit":
        run.fit(module, pixels(), pixels())
    else:
        getattr(run, stage)(module, pixels(), verbose=False)
    assert of(run, "test" if stage == "test" else "val") == pytest.approx(EXPECTED)


def test_every_iterative_attack_finds_the_exact_accuracy(tmp_path):
    attacks = {
        type(attack).__name__: attack
        for attack in (
            *(GAMAPGD(0.08), GAMAFW(0.08), CWPGD(0.08), TargetedPGD(0.08), MultiTargetedPGD(0.08)),
            BPDA(PGD(0.08), "net", Threshold()),
        )
    }
    run = trainer(tmp_path, callbacks=[RobustAccuracy(attacks)])
    run.test(Classifier(), pixels(), verbose=False)
    assert of(run, "test") == pytest.approx(dict.fromkeys([*attacks, "worst"], 3 / 6) | {"clean": 4 / 6})


def test_one_trainer_may_go_through_all_stages(tmp_path):
    module, measure = Classifier(), RobustAccuracy(EXACT)
    run = trainer(tmp_path, callbacks=[measure], max_epochs=1)
    run.test(module, pixels(), verbose=False)
    run.fit(module, pixels(), pixels())
    run.validate(module, pixels(), verbose=False)
    run.test(module, pixels(), verbose=False)
    for split in ("val", "test"):
        assert {name: a.value for name, a in measure.accuracies[split].items()} == pytest.approx(EXPECTED)


def test_what_is_measured_is_kept_with_its_interval_and_printed_after_a_test(tmp_path, capsys):
    measure = RobustAccuracy(EXACT)
    trainer(tmp_path, callbacks=[measure]).test(Classifier(), pixels(), verbose=False)
    assert measure.accuracies["test"]["large"] == Accuracy(0.5, n=6)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["large", "50.0", "[18.8,", "81.2]", "6"] in lines
    assert ["worst", "50.0", "[18.8,", "81.2]", "6"] in lines


@pytest.mark.parametrize("bar", [RichProgressBar, TQDMProgressBar])
def test_what_a_test_prints_ends_with_the_table(bar, tmp_path, capsys):
    if bar is RichProgressBar:
        pytest.importorskip("rich")
    run = trainer(tmp_path, callbacks=[RobustAccuracy(EXACT), bar()], enable_progress_bar=True)
    run.test(Classifier(), pixels(), verbose=False)
    output = capsys.readouterr().out
    assert "Testing" in output
    *_, last_row, _, told = output.rstrip().splitlines()
    assert last_row.startswith("worst")
    assert told.startswith("no alarm")


def test_a_single_attack_has_no_worst_case(tmp_path):
    run = trainer(tmp_path, callbacks=[RobustAccuracy({"large": sure(0.08)})])
    run.validate(Classifier(), pixels(), verbose=False)
    assert of(run, "val") == pytest.approx({"clean": 4 / 6, "large": 3 / 6})


def test_a_test_may_have_attacks_of_its_own(tmp_path):
    run = trainer(tmp_path, callbacks=[RobustAccuracy({"small": sure(0.04)}, {"inverted": Inverts()})])
    module = Classifier()
    run.validate(module, pixels(), verbose=False)
    assert of(run, "val").keys() == {"clean", "small"}
    run.test(module, pixels(), verbose=False)
    assert of(run, "test") == pytest.approx({"clean": 4 / 6, "inverted": 1 / 6})  # 0.6 stays bright enough


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_what_attacks_find_in_several_batches_is_told_once(stage, tmp_path):
    run = trainer(tmp_path, callbacks=[RobustAccuracy({"finds": Finds()})])
    for _ in range(2):
        with pytest.warns(UserWarning, match="^it, at 3 of 6 images: ") as caught:
            getattr(run, stage)(Classifier(), pixels(), verbose=False)
        assert len([one for one in caught if "images" in str(one.message)]) == 1


def test_samples_of_weight_0_do_not_count(tmp_path):
    weight = torch.tensor([1, 1, 0, 0, 1, 1.0])
    batch = Batch(PIXELS, BRIGHT, torch.arange(6), weight)
    run = trainer(tmp_path, callbacks=[measure := RobustAccuracy(EXACT)])
    run.validate(Classifier(), DataLoader([batch], batch_size=None, collate_fn=lambda b: b), verbose=False)
    assert measure.accuracies["val"]["clean"] == Accuracy(1.0, n=4)
    assert measure.accuracies["val"]["large"] == Accuracy(0.75, n=4)


def test_normalised_images_are_attacked_in_pixels(tmp_path):
    run = trainer(tmp_path, callbacks=[RobustAccuracy(EXACT, mean=[0.5], std=0.25)])
    module = Classifier(nn.Sequential(Undo(), Threshold()))
    run.validate(module, pixels(x=(PIXELS - 0.5) / 0.25), verbose=False)
    assert of(run, "val") == pytest.approx(EXPECTED)


class Undo(nn.Module):
    def forward(self, x):
        return 0.5 + 0.25 * x


def test_several_loaders_are_told_apart_as_lightning_does(tmp_path):
    run = trainer(tmp_path, callbacks=[RobustAccuracy({"large": sure(0.08)})])
    run.validate(Classifier(), [pixels(), pixels(x=PIXELS.clamp(max=0.31))], verbose=False)
    found = of(run, "val")
    assert found["large/dataloader_idx_0"] == pytest.approx(3 / 6)
    assert found["large/dataloader_idx_1"] == pytest.approx(1 / 6)


def test_alarms_of_several_loaders_are_told_apart(tmp_path):
    run = trainer(tmp_path, callbacks=[measured := RobustAccuracy({"large": sure(0.08)})])
    bright = [DataLoader([(PIXELS[0], one % 2) for one in range(n)], batch_size=n) for n in (30, 40)]
    run.test(Constant(), bright, verbose=False)
    found = {name: why for name, why in measured.alarms.items() if name.startswith("trivial")}
    assert {name: why.split(" images")[0] for name, why in found.items()} == {
        "trivial/dataloader_idx_0": "30 of 30",
        "trivial/dataloader_idx_1": "40 of 40",
    }
    assert run.callback_metrics["test/alarms"] == len(measured.alarms)


class Constant(Classifier):
    def test_step(self, batch, batch_idx, dataloader_idx=0):
        pass


# In a training.


def fit(tmp_path, module, *callbacks, **kwargs):
    seed_everything(0, verbose=False)
    kwargs = {"max_epochs": 3, "num_sanity_val_steps": 2, "log_every_n_steps": 1} | kwargs
    run = trainer(tmp_path, callbacks=list(callbacks), **kwargs)
    data = images(24)
    run.fit(module, loader(data), loader(data))
    return run


def test_a_measured_run_is_the_run_that_is_not_measured(tmp_path):
    plain, measured = Classifier(Counting(), 0.1), Classifier(Counting(), 0.1)
    fit(tmp_path, plain)
    fit(tmp_path, measured, RobustAccuracy({"a": ATTACK, "b": replace(ATTACK, steps=3)}))
    assert measured.drawn == plain.drawn
    for name, value in measured.state_dict().items():
        assert torch.equal(value, plain.state_dict()[name]), name
    assert {name for name, p in measured.named_parameters() if p.requires_grad} == {
        n for n, _ in plain.named_parameters()
    }


def test_the_sanity_check_runs_it_and_reports_nothing(tmp_path):
    class Metrics(ModelCheckpoint):
        def on_train_start(self, trainer, pl_module):
            metrics.append(dict(trainer.callback_metrics))

    metrics: list[dict] = []
    measure = RobustAccuracy({"robust": ATTACK})
    fit(tmp_path, Classifier(TinyNet()), measure, Metrics(save_top_k=0), max_epochs=1, enable_checkpointing=True)
    assert metrics == [{}]
    assert measure.accuracies["val"]["robust"].n == 24


def test_mistakes_are_reported_in_the_sanity_check(tmp_path):
    module = Classifier(TinyNet(), 0.1)
    with pytest.raises(ValueError, match=r"^x='image' .*list"):
        fit(tmp_path, module, RobustAccuracy({"robust": ATTACK}, x="image"))
    assert torch.equal(module.net.head.weight, TinyNet().head.weight)


class Scripted(Classifier):
    """Its threshold changes from epoch to epoch and is best in the second."""

    thresholds = (0.3, 0.5, 0.7, 0.7, 0.7)

    def on_train_epoch_end(self):
        pass

    def on_validation_epoch_start(self):
        self.net.at.data.fill_(self.thresholds[self.current_epoch])


@pytest.mark.parametrize("late", [False, True], ids=["at validation's end", "at the epoch's end"])
def test_checkpoints_and_early_stopping_of_the_same_run_monitor_it(tmp_path, late):
    best = ModelCheckpoint(tmp_path, "best", monitor="val/acc/robust", mode="max", save_on_train_epoch_end=late)
    stop = EarlyStopping("val/acc/robust", mode="max", patience=1, check_on_train_epoch_end=late)
    callbacks = [best, stop, RobustAccuracy({"robust": sure(0.08)})]
    run = trainer(tmp_path, callbacks=callbacks, max_epochs=5, enable_checkpointing=True, num_sanity_val_steps=1)
    run.fit(Scripted(), pixels(), pixels())
    assert best.best_model_score == pytest.approx(1.0)
    assert torch.load(best.best_model_path, weights_only=True)["epoch"] == 1
    assert run.current_epoch == 3  # 1/2, 1, 2/3 and no more patience


def test_averaged_weights_are_measured_where_they_are_validated(tmp_path):
    class Far(Classifier):
        def on_train_batch_start(self, batch, batch_idx):
            if batch_idx:  # the average starts as a copy of the weights after the first
                self.net.at.data.fill_(9.0)

        def on_train_batch_end(self, outputs, batch, batch_idx):
            self.live = self.net.at.item()

    measure = RobustAccuracy(EXACT)
    module = Far()
    averages = EMAWeightAveraging(decay=1.0)
    run = trainer(tmp_path, callbacks=[averages, measure], max_epochs=1)
    run.fit(module, pixels(), pixels())
    assert module.live == 9.0
    assert of(run, "val") == pytest.approx(EXPECTED)


def test_it_measures_what_a_defense_measures_of_itself(tmp_path):
    defense = Natural(TinyNet(), CLASSES, ATTACK, val_attack=ATTACK, test_attacks={"pgd": ATTACK})
    data = loader(images(24, seed=5), batch_size=7)
    first, second = (
        trainer(tmp_path),
        trainer(tmp_path, callbacks=[RobustAccuracy({"robust": ATTACK}, {"pgd": ATTACK})]),
    )
    for stage, split in (("validate", "val"), ("test", "test")):
        getattr(first, stage)(defense, data, verbose=False)
        getattr(second, stage)(Classifier(defense.net), data, verbose=False)
        assert of(second, split) == of(first, split)


def test_on_a_defense_it_adds_attacks_of_other_names(tmp_path):
    defense = PGDAT(TinyNet(), CLASSES, ATTACK, test_attacks={"a": ATTACK, "b": replace(ATTACK, eps=0.01)})
    measure = RobustAccuracy({"none": sure(0.0)}, {"inverted": Inverts(), "none": sure(0.0)}, net="net")
    alone, run = trainer(tmp_path), trainer(tmp_path, callbacks=[measure])
    for stage, split in (("validate", "val"), ("test", "test")):
        getattr(alone, stage)(defense, loader(images(24)), verbose=False)
        getattr(run, stage)(defense, loader(images(24)), verbose=False)
        found, own = of(run, split), of(alone, split)
        assert {name: found[name] for name in own} == own
        assert found.keys() - own.keys() == set(measure.attacks[split])
        assert found["none"] == own["clean"]


class Shares(Classifier):
    """Rank 1 has one image fewer, replaced by padding."""

    def val_dataloader(self):
        mine = slice(self.global_rank, None, 2)
        weight = torch.ones(3) if self.global_rank == 0 else torch.tensor([1.0, 1.0, 0.0])
        batch = Batch(PIXELS[mine], BRIGHT[mine], torch.arange(3), weight)
        return DataLoader([batch], batch_size=None, collate_fn=lambda b: b)

    def validation_step(self, batch, batch_idx):
        pass

    def on_validation_end(self):
        metrics = {name: float(value) for name, value in self.trainer.callback_metrics.items()}
        torch.save(metrics, f"{self.global_rank}.pt")


@pytest.mark.filterwarnings("ignore:.*Using `DistributedSampler`")
def test_two_ranks_count_every_image_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = two_ranks(tmp_path, callbacks=[RobustAccuracy(EXACT)], use_distributed_sampler=False)
    run.validate(Shares(), verbose=False)
    zero, one = (torch.load(f"{rank}.pt") for rank in range(2))
    # without 0.9, which no attack breaks
    assert (
        zero
        == one
        == pytest.approx(
            {"val/acc/clean": 3 / 5, "val/acc/small": 3 / 5, "val/acc/large": 2 / 5, "val/acc/worst": 2 / 5}
        )
    )


# What is refused.


@pytest.mark.parametrize(
    ("attacks", "named"),
    [
        ({}, "attacks is empty"),
        ({"clean": ATTACK}, '"clean"'),
        ({"worst": ATTACK}, '"worst"'),
        ({"pgd": PGD(targeted=True)}, "^pgd .*targeted"),
    ],
)
def test_attacks_that_would_not_measure_what_their_row_says_are_refused(attacks, named):
    with pytest.raises(ValueError, match=named):
        RobustAccuracy(attacks)
    with pytest.raises(ValueError, match=named):
        RobustAccuracy({"ok": ATTACK}, attacks)


def test_a_row_that_a_defense_logs_itself_is_refused(tmp_path):
    run = trainer(tmp_path, callbacks=[RobustAccuracy({"robust": ATTACK}, net="net")])
    with pytest.raises(ValueError, match=r"^PGDAT .*val/acc/robust"):
        run.validate(PGDAT(TinyNet(), CLASSES, ATTACK), loader(images()))


class LogsItself(Classifier):
    def validation_step(self, batch, batch_idx):
        self.log("val/acc/robust", 0.9)


def test_a_row_that_a_users_module_logs_itself_is_refused_and_not_written_over(tmp_path):
    run = trainer(tmp_path, callbacks=[RobustAccuracy({"robust": ATTACK}, net="net")])
    with pytest.raises(ValueError, match=r"^LogsItself .*val/acc/robust"):
        run.validate(LogsItself(), pixels())


def test_pixels_that_the_precision_would_round_are_refused(tmp_path):
    run = trainer(tmp_path, precision="bf16-true", callbacks=[RobustAccuracy({"robust": ATTACK}, net="net")])
    with pytest.raises(ValueError, match=r"^trainer\.precision=bf16-true"):
        run.validate(Classifier(), pixels())


def test_labels_may_be_of_any_integers(tmp_path):
    callback = RobustAccuracy({"robust": ATTACK}, net="net")
    short = DataLoader(list(zip(PIXELS, BRIGHT.to(torch.uint8), strict=True)), batch_size=6)
    trainer(tmp_path, callbacks=[callback]).validate(Classifier(), short, verbose=False)
    assert callback.accuracies["val"]["clean"].n == 6


def test_attacks_that_have_no_names_are_refused():
    with pytest.raises(TypeError, match=r"^attacks=list.* Mapping"):
        RobustAccuracy([ATTACK])


def test_two_of_them_are_refused(tmp_path):
    run = trainer(tmp_path, callbacks=[RobustAccuracy(EXACT), RobustAccuracy({"other": ATTACK})])
    with pytest.raises(ValueError, match="RobustAccuracy"):
        run.validate(Classifier(), pixels())


@pytest.mark.parametrize("y", [F.one_hot(BRIGHT).float(), BRIGHT.float()], ids=["soft", "numbers"])
def test_labels_that_are_no_classes_are_refused(tmp_path, y):
    data = DataLoader(list(zip(PIXELS, y, strict=True)), batch_size=6)
    with pytest.raises(ValueError, match=r"^y=1 .*torch\.float32"):
        trainer(tmp_path, callbacks=[RobustAccuracy(EXACT)]).validate(Classifier(), data)
