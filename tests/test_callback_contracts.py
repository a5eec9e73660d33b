"""A contract of every callback: a second fit equals the first fit of a fresh object, bit for bit."""

import copy
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, seed_everything
from torch.utils.data import DataLoader, Subset

from lit_robust import callbacks
from lit_robust.attacks import FGSM
from lit_robust.callbacks import (
    AdversarialExamples,
    AdversarialTraining,
    AttributeRamp,
    CatastrophicOverfittingMonitor,
    CoresetSelection,
    DelayedStart,
    EMAWeights,
    GeneralizationGap,
    OverfittingRule,
    PredictionWriter,
    ProgressiveResizing,
    RobustAccuracy,
    StopAfterDrop,
    SwitchRule,
    TimeLeft,
)
from lit_robust.defenses import PGDAT
from lit_robust.schedules import Linear, MultiStep, Staircase
from lit_robust.selection import CoresetSampler
from tests.methods import ATTACK, build
from tests.stranger import MEAN, STD, DigitClassifier, DigitsData
from tests.test_resume import Rows, TinyData, differences
from tests.tiny import trainer

HERE = {"x": "image", "y": "label", "net": "model", "mean": MEAN, "std": STD}


@dataclass(frozen=True)
class LevelledOff(SwitchRule):
    """After one epoch."""

    def __call__(self, losses):
        return len(losses) == 1


@dataclass(frozen=True)
class Overfits(OverfittingRule):
    """After two epochs."""

    across_eps = True

    def measure(self, net, x, y, bound):
        return {"acc": (net(x).argmax(dim=1) == y).float()}

    def overfits(self, earlier, current):
        return len(earlier) == 2


@dataclass(frozen=True)
class Case:
    """The module, and its callbacks."""

    callbacks: Callable[[Path], list[Callback]]
    module: Callable[..., LightningModule] = lambda: build(PGDAT, lr_scheduler=MultiStep([2]))
    data: Callable[[], Any] = TinyData


class FewDigits(DigitsData):
    def setup(self, stage):
        super().setup(stage)
        self.train, self.test = Subset(self.train, range(64)), Subset(self.test, range(32))


class SampledDigits(FewDigits):
    """Draws its batches by a sampler that lasts longer than one fit."""

    def setup(self, stage):
        super().setup(stage)
        SAMPLER.items = self.train

    def train_dataloader(self):
        return DataLoader(self.train, 16, sampler=SAMPLER)


SAMPLER = CoresetSampler(range(64))


def coreset_of_digits() -> list[Callback]:
    return [AdversarialTraining(ATTACK, **HERE), CoresetSelection(0.5, every=2, warm=0.5, sampler=SAMPLER, **HERE)]


def stranger(*attached: Callback) -> Case:
    return Case(lambda folder: list(attached), DigitClassifier, lambda: FewDigits(batch_size=32))


CASES = {
    "a delay that a rule ends": Case(lambda folder: [DelayedStart(LevelledOff())]),
    "a delay that the rate's drop ends": Case(lambda folder: [DelayedStart()]),
    "an early stop": Case(lambda folder: [StopAfterDrop(1)]),
    "ramps": Case(
        lambda folder: [
            AttributeRamp("attack.eps", Linear(0.02, 0.1, 0, 4)),
            AttributeRamp("attack.steps", Staircase([0, 1, 2], [0, 1, 2])),
        ]
    ),
    "averages": Case(lambda folder: [EMAWeights(Linear(0.5, 0.9, 0, 4), {"fast": 0.5}, start_epoch=1)]),
    "a monitor": Case(lambda folder: [CatastrophicOverfittingMonitor(Overfits(), "restore", images=9)]),
    "a gap": Case(lambda folder: [GeneralizationGap(images=9)]),
    "an accuracy": stranger(RobustAccuracy({"pgd": ATTACK}, **HERE)),
    "pictures": Case(lambda folder: [AdversarialExamples(ATTACK, num_images=2, every_n_epochs=2, dirpath=str(folder))]),
    "a coreset": Case(lambda folder: [CoresetSelection(0.5, every=2, warm=0.26)]),
    "a coreset of a stranger's": Case(lambda folder: coreset_of_digits(), DigitClassifier, lambda: SampledDigits()),
    "the time left": Case(lambda folder: [TimeLeft()]),
    "adversarial training": stranger(AdversarialTraining(ATTACK, **HERE)),
    "adversarial training, delayed, ramped and measured": stranger(
        AdversarialTraining(FGSM(0.1), **HERE),
        DelayedStart(LevelledOff(), latest_epoch=3, monitor="loss"),
        AttributeRamp("attack.eps", Linear(0.02, 0.1, 0, 4)),
        RobustAccuracy({"pgd": ATTACK}, **HERE),
    ),
}


def test_every_callback_is_here(tmp_path):
    tried = {type(callback) for case in CASES.values() for callback in case.callbacks(tmp_path)}
    known = {kind for kind in vars(callbacks).values() if isinstance(kind, type) and issubclass(kind, Callback)}
    # The writer has no part in a fit; images of changing size are tried in test_callback_progressive_resizing.py.
    assert known - tried == {PredictionWriter, ProgressiveResizing}


def plain(values: dict[str, Any]) -> dict[str, Any]:
    """A copy of what is public and can be compared."""
    kinds = (torch.Tensor, dict, list, tuple, int, float, str, type(None))
    return copy.deepcopy({k: v for k, v in values.items() if not k.startswith("_") and isinstance(v, kinds)})


def timeless(value: Any) -> Any:
    """What no clock has measured."""
    if isinstance(value, dict):
        return {key: None if key.endswith("seconds") else timeless(one) for key, one in value.items()}
    return [timeless(one) for one in value] if isinstance(value, list | tuple) else value


def fit(case: Case, module: LightningModule, attached: list[Callback], folder: Path, caplog: Any) -> dict[str, Any]:
    """The results of four epochs: weights, metrics, and what callbacks log, print, draw and keep."""
    rows = Rows()
    seed_everything(7, verbose=False)
    caplog.clear()
    with warnings.catch_warnings(record=True) as warned:
        warnings.filterwarnings("always", "catastrophic overfitting")
        run = trainer(folder, max_epochs=4, callbacks=attached, logger=rows, log_every_n_steps=1)
        run.fit(module, datamodule=case.data())
    averages = {name: net.state_dict() for name, net in getattr(module, "averaged", {}).items()}
    drawn = {path.name: (path.read_bytes(), path.unlink()) for path in folder.glob("*.png")}
    return {
        "weights": copy.deepcopy([module.state_dict(), averages]),
        "driven": [getattr(module, name, None) for name in ("attack", "adversarial")],
        "rows": timeless(rows.rows),
        "metrics": timeless(dict(run.callback_metrics)),
        "said": [re.sub(r"[\d.]+ s,", "", said) for said in [*caplog.messages, *(str(one.message) for one in warned)]],
        "drawn": drawn,
        "saved": timeless([copy.deepcopy(callback.state_dict()) for callback in attached]),
        "kept": timeless([plain(vars(callback)) for callback in attached]),
    }


@pytest.mark.parametrize("name", CASES)
def test_a_second_fit_is_the_first_fit_of_fresh_objects(name, tmp_path, caplog):
    case = CASES[name]
    module, attached = case.module(), case.callbacks(tmp_path)
    start = copy.deepcopy(module.state_dict())
    first = fit(case, module, attached, tmp_path, caplog)
    module.load_state_dict(start)
    second = fit(case, module, attached, tmp_path, caplog)
    assert differences(second, first) == []


@pytest.mark.parametrize("name", CASES)
def test_the_keys_that_callbacks_log_are_known_before_training(name, tmp_path, caplog):
    case = CASES[name]
    attached = case.callbacks(tmp_path)
    logged = fit(case, case.module(), attached, tmp_path, caplog)["metrics"].keys()
    own = fit(case, case.module(), [], tmp_path, caplog)["metrics"].keys()
    declared = [key for callback in attached for key in callback.logged_keys]
    # A delayed start lets the module log the clean accuracy of natural epochs.
    others = [key for key in logged - own - {"train/acc/clean"} if not any(fnmatch(key, one) for one in declared)]
    assert others == []
    assert [key for key in declared if not any(fnmatch(one, key) for one in logged)] == []
