"""Callbacks on a stranger's module whose pipeline normalises: their numbers are those of its un-normalised twin."""

import csv

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from lit_robust.attacks import PGD
from lit_robust.callbacks import (
    AbnormalRise,
    AdversarialExamples,
    CatastrophicOverfittingMonitor,
    CrossEntropySplit,
    EMAWeights,
    FGSMGap,
    GeneralizationGap,
    GradientCosineDrop,
    LinearityErrorSpike,
    PGDDrop,
    PredictionWriter,
    RobustAccuracy,
    examples,
)
from lit_robust.callbacks.adapter import Adapter
from tests.stranger import DigitClassifier, Digits, DigitsData
from tests.tiny import trainer

# The digits' pixels are multiples of 1/16, so that these numbers normalise them and back without a rounding error.
MEAN, STD, EPS = 0.25, 0.5, 0.15
HERE = {"x": "image", "y": "label", "net": "model"}
ATTACK = PGD(eps=EPS, steps=3)


class Data(DigitsData):
    """A few digits, normalised or not."""

    def __init__(self, normalised):
        super().__init__(batch_size=64)
        self.statistics = (MEAN, STD) if normalised else (0.0, 1.0)

    def setup(self, stage):
        super().setup(stage)
        self.train, self.test = (
            Digits(part.images[:size], part.labels[:size], *self.statistics)
            for part, size in ((self.train, 192), (self.test, 100))
        )

    def train_dataloader(self):
        return DataLoader(self.train, 64)

    def plain_train_dataloader(self):
        return DataLoader(self.train, 50)

    def predict_dataloader(self):
        return DataLoader(self.test, batch_size=50)  # Lightning rebuilds it


class Stranger(DigitClassifier):
    def predict_step(self, batch, batch_idx):
        return self(batch["image"]).softmax(dim=1)


class Inside(nn.Module):
    def forward(self, x):
        return (x - MEAN) / STD


def pair(run, epochs=2, **options):
    """What ``run`` makes of a trainer with each module: behind a normalising pipeline, and normalising inside."""
    found = []
    for normalised in (True, False):
        torch.manual_seed(0)
        module = Stranger(epochs=epochs)
        if not normalised:
            module.model = nn.Sequential(Inside(), module.model)
        where = HERE | ({"mean": MEAN, "std": STD} if normalised else {})
        found.append(run(module, Data(normalised), where))
    return found


def fitted(tmp_path, callbacks):
    def run(module, data, where):
        fitting = trainer(tmp_path, max_epochs=2, callbacks=callbacks(where))
        fitting.fit(module, data)
        return {name: value.item() for name, value in fitting.callback_metrics.items()}

    normalised, twin = pair(run)
    assert normalised == pytest.approx(twin, abs=1e-5)
    return normalised


RULES = [
    PGDDrop(ATTACK),
    FGSMGap(ATTACK, ATTACK),
    CrossEntropySplit(ATTACK),
    GradientCosineDrop(EPS),
    AbnormalRise(EPS),
    LinearityErrorSpike(EPS),
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_the_monitor_logs_the_same(tmp_path, rule):
    logged = fitted(tmp_path, lambda where: [CatastrophicOverfittingMonitor(rule, images=100, **where)])
    assert any(name.startswith(f"monitor/{type(rule).__name__}/") for name in logged)


def test_the_gap_is_the_same_and_that_of_both_accuracies(tmp_path):
    logged = fitted(
        tmp_path,
        lambda where: [GeneralizationGap(100, ATTACK, **where), RobustAccuracy({"robust": ATTACK}, **where)],
    )
    assert 0 < logged["val/acc/robust_train"] < 1
    assert logged["val/gap/robust"] == pytest.approx(logged["val/acc/robust_train"] - logged["val/acc/robust"])


def test_the_picture_shows_the_same_pixels_within_the_ball(tmp_path, monkeypatch):
    drawn, draw = [], examples.draw
    monkeypatch.setattr(examples, "draw", lambda found, *rest: [drawn.append(found), draw(found, *rest)][1])

    def run(module, data, where):
        callback = AdversarialExamples(ATTACK, num_images=4, dirpath=str(tmp_path / "pictures"), **where)
        trainer(tmp_path, callbacks=[callback]).validate(module, data, verbose=False)

    pair(run)
    normalised, twin = drawn
    for mine, its in zip(normalised, twin, strict=True):
        torch.testing.assert_close(mine, its)
    assert 0 <= normalised[0].min() <= normalised[0].max() == 1
    assert (normalised[1] - normalised[0]).abs().max() <= EPS + 1e-6


def test_extra_averages_are_those_of_the_named_net(tmp_path):
    def run(module, data, where):
        trainer(tmp_path, max_epochs=2, callbacks=[EMAWeights(0.9, {"fast": 0.5}, net=where["net"])]).fit(module, data)
        return module.averaged["fast"]

    normalised, twin = pair(run)
    assert isinstance(normalised, nn.Sequential)
    for mine, its in zip(normalised.state_dict().values(), twin.state_dict().values(), strict=True):
        assert torch.equal(mine, its)


def test_the_main_average_needs_no_net(tmp_path):
    module = Stranger()
    trainer(tmp_path, max_epochs=1, callbacks=[EMAWeights(0.9)]).fit(module, Data(normalised=True))


def test_predictions_name_index_and_label_of_a_strangers_batches(tmp_path):
    def run(module, data, where):
        writer = PredictionWriter(str(tmp_path / "predictions.csv"), y="label")
        trainer(tmp_path, callbacks=[writer]).predict(module, data)
        return list(csv.reader((tmp_path / "predictions.csv").read_text().splitlines())), data.test.labels

    (rows, labels), (twins, _) = pair(run)
    assert rows == twins
    assert [row[:2] for row in rows[1:]] == [[str(i), str(label)] for i, label in enumerate(labels)]


def test_predictions_without_labels_leave_the_column_empty(tmp_path):
    writer = PredictionWriter(str(tmp_path / "predictions.csv"), y=None)
    trainer(tmp_path, callbacks=[writer]).predict(Stranger(), Data(normalised=True))
    assert {row[1] for row in list(csv.reader((tmp_path / "predictions.csv").read_text().splitlines()))[1:]} == {""}


def test_predictions_of_several_loaders_are_all_kept(tmp_path):
    class OfTwo(Stranger):
        def predict_step(self, batch, batch_idx, dataloader_idx=0):
            return super().predict_step(batch, batch_idx)

    class Twice(Data):
        def predict_dataloader(self):
            return [super(Twice, self).predict_dataloader() for _ in range(2)]

    writer = PredictionWriter(str(tmp_path / "predictions.csv"), y="label")
    trainer(tmp_path, callbacks=[writer]).predict(OfTwo(), Twice(normalised=True))
    with (tmp_path / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["loader"], row["index"]) for row in rows] == [(str(n), str(i)) for n in range(2) for i in range(100)]


def test_predictions_leave_a_name_empty_that_the_data_do_not_know(tmp_path):
    class Named(Data):
        class_names = ("zero", "one")
        test_files = ("first.png", "second.png")

        def setup(self, stage):
            super().setup(stage)
            self.test.labels[2] = -1  # some data sets label what they do not know so

    writer = PredictionWriter(str(tmp_path / "predictions.csv"), y="label")
    trainer(tmp_path, callbacks=[writer]).predict(Stranger(), Named(normalised=True))
    with (tmp_path / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == ["first.png", "second.png"] + [""] * 98
    for number, name in (("label", "class"), ("predicted", "predicted_class")):
        assert [row[name] for row in rows] == [{"0": "zero", "1": "one"}.get(row[number], "") for row in rows]
    assert rows[2]["label"] == "-1"


@pytest.mark.parametrize("step", [lambda z: z, lambda z: [z], lambda z: z.softmax(dim=1)[:, 0]], ids=range(3))
def test_predictions_that_are_no_probabilities_are_refused(tmp_path, step):
    class Logits(DigitClassifier):
        def predict_step(self, batch, batch_idx):
            return step(self(batch["image"]))

    with pytest.raises(ValueError, match=r"^Logits\.predict_step .*softmax"):
        trainer(tmp_path, callbacks=[PredictionWriter(str(tmp_path / "p.csv"), y="label")]).predict(
            Logits(), Data(normalised=True)
        )


@pytest.mark.parametrize(
    "callback",
    [
        lambda **where: CatastrophicOverfittingMonitor(PGDDrop(ATTACK), **where),
        lambda **where: AdversarialExamples(ATTACK, **where),
        lambda **where: GeneralizationGap(100, ATTACK, **where),
    ],
    ids=["monitor", "examples", "gap"],
)
def test_a_normalised_pipeline_that_is_not_told_is_refused(tmp_path, callback):
    with pytest.raises(ValueError, match=r"mean .*std"):
        trainer(tmp_path, max_epochs=1, callbacks=[callback(**HERE)]).fit(Stranger(), Data(normalised=True))


def test_without_a_name_the_net_is_the_module_or_if_it_has_no_forward_its_net():
    class NoForward(Stranger):
        forward = DigitClassifier.__mro__[1].forward

        def __init__(self):
            super().__init__()
            self.net = self.model

    module = NoForward()
    assert Adapter().users_net(module) is module.net
    assert Adapter().users_net(stranger := Stranger()) is stranger
