"""A run with a coreset that is stopped and resumed equals an uninterrupted one, bit for bit."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, seed_everything

from lit_robust.callbacks import AdversarialTraining, AttributeRamp, CoresetSelection, DelayedStart, EMAWeights
from lit_robust.defenses import PGDAT, TRADES
from lit_robust.schedules import Linear, Staircase
from lit_robust.selection import CRAIG, GradMatch, Random
from tests.methods import ATTACK, METHODS, build
from tests.test_callback_coreset import Automatic, Seen, steps_of
from tests.test_resume import Rows, SaveAtStops, TinyData, differences
from tests.tiny import TinyNet, trainer

#: The plan is: epoch 0 on all images, epoch 1 skipped, coresets chosen for epochs 2 and 4.
EPOCHS, PLAN = 6, {"warm": 0.34, "every": 2}
STOPS = {
    "in mid-epoch, before the skip": "0-1",
    "after the last batch before the skip": "0-last",
    "after the validation before the skip": "0-validated",
    "after the skip and the first selection": "0",
    "in mid-epoch of a coreset": "2-0",
    "after an epoch of a coreset that stays": "2",
    "after the last batch before a reselection": "3-last",
    "right before a reselection": "3-validated",
    "right after a reselection": "3",
    "in mid-epoch after a reselection": "4-0",
}


class SaveAt(SaveAtStops):
    """Saves at these stops."""

    def save(self, trainer, name):
        if name in STOPS.values():
            self.rows[name] = len(trainer.logger.rows)
            trainer.save_checkpoint(self.folder / f"{name}.ckpt")


@dataclass(frozen=True)
class Setup:
    module: Callable[..., LightningModule]
    selection: Callable[[], CoresetSelection]
    callbacks: Callable[[], list[Callback]] = field(default=list)


def method(name: str, **more: Any) -> Callable[..., LightningModule]:
    return lambda net: build(METHODS[name].cls, **METHODS[name].arguments, **more, net=net)


def stranger(net: TinyNet) -> Automatic:
    module = Automatic()
    module.net = net
    return module


SETUPS = {
    "PGDAT on CRAIG": Setup(method("PGDAT"), lambda: CoresetSelection(0.5, CRAIG(), **PLAN)),
    "TRADES on GradMatch, averages, ramps, and weights of the subset's mean": Setup(
        method("TRADES"),
        lambda: CoresetSelection(Staircase([0, 4], [0.5, 0.7]), GradMatch(), normalize="subset", **PLAN),
        lambda: [EMAWeights(0.9, extra={"fast": 0.5}), AttributeRamp("beta", Linear(0, 6, begin=0, end=6))],
    ),
    "a random subset in the official order, and torch's scheduler": Setup(
        method("PGDAT", lr_scheduler=steps_of),
        lambda: CoresetSelection(0.5, Random(), official_order=True, **PLAN),
    ),
    "numbers of each image": Setup(method("CustomizedAT"), lambda: CoresetSelection(0.5, **PLAN)),
    "a detector": Setup(method("NuAT-H"), lambda: CoresetSelection(0.5, GradMatch(gradient="weight"), **PLAN)),
    "a curriculum, a delayed start and a growing eps": Setup(
        method("CurriculumAT"),
        lambda: CoresetSelection(0.5, **PLAN),
        lambda: [DelayedStart(at_epoch=2), AttributeRamp("attack.eps", Linear(0.02, 0.1, begin=0, end=6))],
    ),
    "a stranger's module, which is resampled": Setup(
        stranger,
        lambda: CoresetSelection(0.5, GradMatch(), **PLAN),
        lambda: [AdversarialTraining(ATTACK)],
    ),
}


def test_a_coreset_in_a_checkpoint_is_checked_as_a_whole():
    selection = CoresetSelection(0.5)
    ints, reals = torch.tensor([1, 4, 6], dtype=torch.int32), torch.tensor([0.5, 2.0, 1.0])
    good = selection.state_dict() | {"indices": ints, "weights": reals}
    selection.load_state_dict(good)
    assert differences(selection.state_dict(), good) == []
    wrong = {
        "indices": [ints.flip(0), ints[:0], ints - 2, ints.float(), torch.tensor([1, 1, 4]), None],
        "weights": [-reals, 0 * reals, reals * math.nan, reals.long(), reals[:2], None],
    }
    for entry, tries in wrong.items():
        for junk in tries:
            with pytest.raises(ValueError, match=r"indices|weights"):
                selection.load_state_dict(good | {entry: junk})
    assert differences(selection.state_dict(), good) == []


def without_clocks(value: Any) -> Any:
    """A result without durations, and with what equals itself for NaN."""
    if isinstance(value, dict):
        return {key: without_clocks(one) for key, one in value.items() if "seconds" not in str(key)}
    if isinstance(value, list | tuple):
        return [without_clocks(one) for one in value]
    return "NaN" if isinstance(value, float) and math.isnan(value) else value


def fit(setup: Setup, folder: Path, stop: str | None = None) -> tuple[dict[str, Any], list[Any], SaveAt, Seen]:
    """All epochs, or what comes after a stop, in another module and another random state."""
    fresh = stop is None
    torch.set_num_threads(1)
    seed_everything(7, verbose=False)
    torch.manual_seed(0 if fresh else 99)
    rows, stops, seen = Rows(), SaveAt(folder), Seen()
    run = trainer(
        folder,
        max_epochs=EPOCHS,
        callbacks=[*setup.callbacks(), setup.selection(), seen, *([stops] if fresh else [])],
        logger=rows,
        log_every_n_steps=1,
        enable_checkpointing=fresh,
    )
    module = setup.module(TinyNet(seed=0 if fresh else 5))
    run.fit(module, TinyData(), ckpt_path=None if fresh else folder / f"{stop}.ckpt")
    run.save_checkpoint(folder / "end.ckpt")
    end = torch.load(folder / "end.ckpt", weights_only=True)
    return without_clocks(end), without_clocks(rows.rows), stops, seen


@pytest.fixture(scope="module", params=SETUPS)
def whole(request, tmp_path_factory):
    setup = SETUPS[request.param]
    return setup, *fit(setup, tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize("stop", STOPS)
def test_a_run_with_a_coreset_resumes_as_if_it_had_not_been_stopped(whole, stop):
    setup, end, rows, stops, seen = whole
    assert list(seen.images) == [0, 2, 3, 4, 5]
    assert set(seen.order[3]) != set(seen.order[4])
    rest_end, rest_rows, _, _ = fit(setup, stops.folder, STOPS[stop])
    assert differences(rest_end, end) == []
    if isinstance(setup.module(TinyNet()), PGDAT | TRADES):  # another module may be interrupted before a row is written
        assert differences(rest_rows, rows[stops.rows[STOPS[stop]] :]) == []
