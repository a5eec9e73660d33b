"""A run that is stopped and resumed equals an uninterrupted one, bit for bit."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, seed_everything
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.cli import ReduceLROnPlateau
from lightning.pytorch.loggers.logger import Logger

from lit_robust.attacks import FGSM
from lit_robust.callbacks import AttributeRamp, EMAWeights, RobustAccuracy
from lit_robust.cli import main
from lit_robust.data.resident import ResidentDataModule
from lit_robust.defenses import PGDAT, Defense
from lit_robust.schedules import Cyclic, Linear, PerEpoch, PiecewiseLinear
from tests.methods import METHODS, build
from tests.tiny import CLASSES, SHAPE, Counting, TinyNet, images, loader, trainer

#: Where a run of three epochs of three batches is stopped, by the names of `SaveAtStops`.
STOPS = {
    "in the first epoch": "0-1",
    "in mid-epoch": "1-0",
    "after an epoch's last batch": "1-last",
    "after validation": "1-validated",
    "between epochs": "1",
    "before the module ends its epoch": "1-own",
    "as an epoch begins": "1-begun",
}

#: Where a run's training is finished.
FINISHED = ("2", "2-1")


class TinyData(ResidentDataModule):
    """The tiny images as bytes, 22 of them to train on, cropped and mirrored."""

    num_classes, image_shape = CLASSES, SHAPE

    def __init__(self) -> None:
        super().__init__(batch_size=8, val_size=8, augment=True)

    def _arrays(self, train):
        batch = images(30) if train else images(16, seed=1)
        return (255 * batch.x).byte(), batch.y


class OwnLoaders(LightningDataModule):
    """A user's DataLoader, which knows nothing of the batch that a run is resumed at."""

    def train_dataloader(self):
        return loader(images(24))

    def val_dataloader(self):
        return loader(images(8))


class SaveAtStops(Checkpoint):
    """Saves where a run is to be stopped, in the hooks and in the order of a ModelCheckpoint."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows: dict[str, int] = {}

    def on_train_epoch_start(self, trainer, pl_module):
        self.save(trainer, f"{trainer.current_epoch}-begun")

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.save(trainer, f"{trainer.current_epoch}-{'last' if trainer.is_last_batch else batch_idx}")

    def on_validation_end(self, trainer, pl_module):
        self.save(trainer, f"{trainer.current_epoch}-validated")

    def on_train_epoch_end(self, trainer, pl_module):
        self.save(trainer, str(trainer.current_epoch))

    def save(self, trainer, name):
        if name in (*STOPS.values(), *FINISHED):
            self.rows[name] = len(trainer.logger.rows)
            trainer.save_checkpoint(self.folder / f"{name}.ckpt")


class SaveBeforeTheModule(Callback):
    """Saves as a user's own callback may: callbacks that are no ``Checkpoint`` run before the module's hooks."""

    def __init__(self, stops: SaveAtStops) -> None:
        self.stops = stops

    def on_train_epoch_end(self, trainer, pl_module):
        self.stops.save(trainer, f"{trainer.current_epoch}-own")


class Rows(Logger):
    """Keeps what is logged."""

    name = version = None

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int, dict[str, float]]] = []

    def log_metrics(self, metrics, step=None):
        self.rows.append((step, metrics))

    def log_hyperparams(self, *args, **kwargs):
        pass


class SelectTwoThirds(Callback):
    """A coreset: 16 weighted images from the second epoch on."""

    def on_train_epoch_end(self, trainer, pl_module):
        if trainer.current_epoch == 0:
            data = trainer.datamodule
            index = torch.cat([batch.index for batch in data.plain_train_dataloader()])
            data.select(index[:16], torch.arange(16) + 0.5)


@dataclass(frozen=True)
class Setup:
    """A composition of parts."""

    method: Callable[..., Defense] = PGDAT
    arguments: dict[str, Any] = field(default_factory=dict)
    callbacks: Callable[[], list[Callback]] = list
    net: Callable[..., TinyNet] = TinyNet
    trainer: dict[str, Any] = field(default_factory=dict)
    data: Callable[[], LightningDataModule] = TinyData


class Drawing(TinyNet):
    """Draws random numbers in eval mode as well."""

    def forward(self, x):
        return super().forward(x + 0.1 * torch.rand_like(x))


class DrawingElsewhere(TinyNet):
    """Draws from Python's and NumPy's generators in train mode, as some augmentations do."""

    def forward(self, x):
        drawn = random.random() - np.random.rand() if self.training else 0  # noqa: NPY002  # the global generator
        return super().forward(x + 0.1 * drawn)


def decay(optimizer):
    return torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.8)


def plateau(optimizer):
    return ReduceLROnPlateau(optimizer, monitor="train/loss", patience=0, threshold=1.0, factor=0.5)


METHOD_SETUPS = {name: Setup(method.cls, method.arguments, method.callbacks) for name, method in METHODS.items()}
FALLING = PiecewiseLinear(times=[0, 3], values=[0.9, 0.5])
PLATEAU = Setup(arguments={"lr_scheduler": plateau})
PART_SETUPS = {
    "torch's scheduler by step": Setup(arguments={"lr_scheduler": decay, "lr_interval": "step"}),
    "torch's scheduler by epoch": Setup(arguments={"lr_scheduler": decay}),
    "torch's plateau scheduler": PLATEAU,
    "schedules of rate and momentum": Setup(
        arguments={"lr_scheduler": Cyclic(up=1, down=2), "momentum": FALLING},
        callbacks=lambda: [LearningRateMonitor(log_momentum=True)],
    ),
    "Adam and clipping": Setup(
        arguments={"optimizer": torch.optim.Adam, "gradient_clip_val": 0.1, "momentum": FALLING},
        callbacks=lambda: [LearningRateMonitor(log_momentum=True)],
    ),
    "averages": Setup(callbacks=lambda: [EMAWeights(0.9, extra={"fast": 0.5})]),
    "a coreset": Setup(callbacks=lambda: [SelectTwoThirds()]),
    "a net that counts": Setup(arguments={"attack_bn_mode": "eval"}, net=Counting),
    "a random net": Setup(arguments={"attack_bn_mode": "eval"}, net=Drawing),
    "a net that draws from Python's and NumPy's generators": Setup(net=DrawingElsewhere),
}
EVERYTHING = {
    "averages, ramps and a coreset": Setup(
        callbacks=lambda: [
            EMAWeights(0.9, start_epoch=1),
            AttributeRamp("attack.eps", PerEpoch(Linear(0.02, 0.1, 0, 3))),
            AttributeRamp("attack.step_size", Linear(0.01, 0.05, 0, 3)),
            SelectTwoThirds(),
        ]
    ),
}


class Run(NamedTuple):
    """The results of a run: its last checkpoint, its log, and where it could be stopped."""

    end: dict[str, Any]
    rows: list[tuple[int, dict[str, float]]]
    stops: SaveAtStops


def fit(setup: Setup, folder: Path, stop: str | None = None) -> Run:
    """Three epochs; with a stop, only what comes after it, in another module and another random state."""
    fresh = stop is None
    torch.set_num_threads(1)
    seed_everything(7, verbose=False)
    torch.manual_seed(0 if fresh else 99)
    rows, stops = Rows(), SaveAtStops(folder)
    run = trainer(
        folder,
        callbacks=[*setup.callbacks(), *([stops, SaveBeforeTheModule(stops)] if fresh else [])],
        logger=rows,
        **{"max_epochs": 3, "log_every_n_steps": 1, "enable_checkpointing": fresh, **setup.trainer},
    )
    module = build(setup.method, **(setup.arguments | {"net": setup.net(seed=0 if fresh else 5)}))
    run.fit(module, setup.data(), ckpt_path=None if fresh else folder / f"{stop}.ckpt")
    run.save_checkpoint(folder / "end.ckpt")
    end = torch.load(folder / "end.ckpt", weights_only=True)
    for clock in ("seconds", "cpu_seconds"):  # no two runs take equally long; passes are the same
        assert end["lit_robust"]["cost"].pop(clock) > 0
    return Run(end, rows.rows, stops)


def differences(mine: Any, theirs: Any, path: str = "") -> list[str]:
    """The paths at which two nested values differ."""
    if isinstance(mine, dict) and isinstance(theirs, dict) and mine.keys() == theirs.keys():
        return [d for key in mine for d in differences(mine[key], theirs[key], f"{path}/{key}")]
    if isinstance(mine, (list, tuple)) and isinstance(theirs, (list, tuple)) and len(mine) == len(theirs):
        pairs = zip(mine, theirs, strict=True)
        return [d for place, pair in enumerate(pairs) for d in differences(*pair, f"{path}/{place}")]
    if isinstance(mine, torch.Tensor) and isinstance(theirs, torch.Tensor):
        return [] if torch.equal(mine, theirs) else [path]
    return [] if mine == theirs else [f"{path}: {mine} {theirs}"]


@pytest.fixture(scope="module")
def whole(request, tmp_path_factory):
    """A setup, and its uninterrupted run."""
    setup = request.param
    return setup, fit(setup, tmp_path_factory.mktemp("whole"))


def specified(setups: dict[str, Setup], *stops: str) -> Any:
    """Every setup with every stop."""
    cases = [(setup, STOPS[stop]) for setup in setups.values() for stop in stops]
    names = [f"{name}, {stop}" for name in setups for stop in stops]
    return pytest.mark.parametrize(("whole", "stop"), cases, ids=names, indirect=["whole"])


def assert_the_same(whole: tuple[Setup, Run], stop: str) -> None:
    setup, run = whole
    rest = fit(setup, run.stops.folder, stop)
    # Weights, buffers, optimizer, schedulers, averages, state of ranks, selection, and the loops' progress.
    assert differences(rest.end, run.end) == []
    assert differences(rest.rows, run.rows[run.stops.rows[stop] :]) == []  # each row once


@specified(METHOD_SETUPS, "in mid-epoch", "between epochs")
def test_every_method_resumes_as_if_it_had_not_been_stopped(whole, stop):
    assert_the_same(whole, stop)


@specified(PART_SETUPS, "in the first epoch", "in mid-epoch", "after an epoch's last batch", "between epochs")
def test_every_part_resumes_as_if_it_had_not_been_stopped(whole, stop):
    assert_the_same(whole, stop)


@specified(
    {name: PART_SETUPS[name] for name in ("torch's scheduler by epoch", "averages")}, "before the module ends its epoch"
)
def test_a_checkpoint_of_ones_own_callback_holds_the_schedulers_step_to_come(whole, stop):
    assert_the_same(whole, stop)


@specified(EVERYTHING, *STOPS)
def test_parts_together_resume_as_if_they_had_not_been_stopped(whole, stop):
    assert_the_same(whole, stop)


@specified({"torch's plateau scheduler": PLATEAU}, "after validation")
def test_a_plateau_scheduler_finds_its_metric_in_a_checkpoint_of_validations_end(whole, stop):
    assert_the_same(whole, stop)


@specified({"max_steps": Setup(trainer={"max_steps": 8})}, *STOPS)
def test_a_training_that_is_limited_in_steps_resumes_as_if_it_had_not_been_stopped(whole, stop):
    assert_the_same(whole, stop)


UNVALIDATED = {
    "no validation": {"limit_val_batches": 0},
    "a validation in every third epoch": {"check_val_every_n_epoch": 3},
    "a validation within the epoch": {"val_check_interval": 2},
    "a validation every four batches of all epochs": {"check_val_every_n_epoch": None, "val_check_interval": 4},
}


@specified(
    {
        f"{name}, {data.__name__}": Setup(trainer=trainer | {"log_every_n_steps": 2}, data=data)
        for name, trainer in UNVALIDATED.items()
        for data in (TinyData, OwnLoaders)
    },
    "after an epoch's last batch",
)
def test_an_epoch_ends_with_its_last_batch_if_no_validation_follows(whole, stop):
    assert_the_same(whole, stop)


WITHIN = {"val_check_interval": 2}


def plateau_of_validation(optimizer):
    return ReduceLROnPlateau(optimizer, monitor="val/acc/robust", mode="max", patience=0, threshold=1.0, factor=0.5)


def readers() -> list[Callback]:
    """Callbacks that read a validation's metric at the end of the epoch."""
    seen = {"monitor": "val/acc/robust", "mode": "max"}
    return [
        ModelCheckpoint(**seen, save_on_train_epoch_end=True, save_top_k=-1, enable_version_counter=False),
        EarlyStopping(**seen, patience=5, check_on_train_epoch_end=True),
    ]


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")  # the resumed run writes there
@specified(
    {
        "a plateau scheduler": Setup(arguments={"lr_scheduler": plateau_of_validation}, trainer=WITHIN),
        "callbacks": Setup(callbacks=readers, trainer=WITHIN | {"enable_checkpointing": True}),
        "a callback that logs it": Setup(callbacks=lambda: [RobustAccuracy({"fgsm": FGSM(eps=0.1)})], trainer=WITHIN),
    },
    "after validation",
    "after an epoch's last batch",
    "between epochs",
)
def test_the_metrics_of_a_validation_within_the_epoch_are_known_at_its_end(whole, stop):
    assert_the_same(whole, stop)


@pytest.mark.parametrize(("limits", "stop"), [({}, "2"), ({"max_steps": 9}, "2"), ({"max_steps": 8}, "2-1")])
def test_a_training_that_was_killed_before_its_last_row_logs_it(tmp_path, limits, stop):
    setup = Setup(trainer=limits | {"limit_val_batches": 0})
    run = fit(setup, tmp_path)
    (last,) = run.rows[run.stops.rows[stop] :]
    assert fit(setup, tmp_path, stop).rows == [last]


DIGITS = """
seed_everything: 7
trainer:
  accelerator: cpu
  devices: 1
  max_epochs: 3
  enable_progress_bar: false
  enable_model_summary: false
  logger: {class_path: CSVLogger, init_args: {save_dir: runs, name: run}}
  callbacks:
    - class_path: ModelCheckpoint
      init_args: {filename: last, save_on_train_epoch_end: true, enable_version_counter: false}
    - class_path: EMAWeights
      init_args: {decay: 0.9}
data:
  class_path: DigitsDataModule
  init_args: {batch_size: 32, train_size: 640, augment: true}
model:
  class_path: PGDAT
  init_args:
    net: {class_path: lit_robust.nets.digits_cnn}
    attack: {class_path: PGD, init_args: {eps: 0.15, step_size: 0.05, steps: 3}}
    optimizer: {class_path: torch.optim.Adam, init_args: {lr: 5.0e-3}}
"""  # 20 batches per epoch
EVERY_21_STEPS = """
trainer:
  callbacks+:
    - class_path: ModelCheckpoint
      init_args: {filename: last, every_n_train_steps: 21, enable_version_counter: false}
"""
LAST = Path("runs/run/version_0/checkpoints/last.ckpt")


def command(folder: Path, *configs: str) -> list[str]:
    """Training into a folder, with configurations that are written there."""
    folder.mkdir(exist_ok=True)
    arguments = ["fit"]
    for number, config in enumerate(configs):
        (folder / f"{number}.yaml").write_text(config)
        arguments += ["-c", str(folder / f"{number}.yaml")]
    return [*arguments, "--trainer.logger.init_args.save_dir", str(folder / "runs")]


def kill_when_written(arguments: list[str], checkpoint: Path, times: int) -> None:
    """Run the command line until the checkpoint has been written this many times, and kill it."""
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-m", "lit_robust", *arguments], env=one_thread)
    versions = set()
    while len(versions) < times and process.poll() is None:
        if checkpoint.exists():
            versions.add(checkpoint.stat().st_mtime_ns)
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it ended before it was killed"


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    torch.set_num_threads(1)
    main(command(folder, DIGITS))
    return torch.load(folder / LAST, weights_only=True)


@pytest.mark.filterwarnings("ignore:Using ModelCheckpoint with manual optimization and every_n_train_steps")
@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")  # the resumed run writes there
@pytest.mark.parametrize(
    ("configs", "writes", "steps"),
    [([DIGITS], 1, {20, 40}), ([DIGITS, EVERY_21_STEPS], 2, {21, 42})],
    ids=["with epoch checkpoints", "with step checkpoints"],
)
def test_a_killed_process_that_goes_on_from_its_last_checkpoint_ends_with_the_same_weights(
    tmp_path, uninterrupted, configs, writes, steps
):
    arguments = command(tmp_path, *configs)
    kill_when_written(arguments, tmp_path / LAST, writes)
    assert torch.load(tmp_path / LAST, weights_only=True)["global_step"] in steps
    main([*arguments, "--ckpt_path", "last"])
    end = torch.load(tmp_path / LAST, weights_only=True)
    for part in ("state_dict", "current_model_state", "averaging_state", "optimizer_states", "global_step"):
        assert differences(end[part], uninterrupted[part]) == []
