"""Our knowledge of Lightning's internals: in one file only, and still true of the installed release."""

import ast
import csv
import importlib
import importlib.util
import inspect
import os
import pkgutil
import re
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, seed_everything
from lightning.pytorch.callbacks import BatchSizeFinder, EarlyStopping, ModelCheckpoint
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.core.mixins import hparams_mixin
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.trainer import connectors
from torch import nn

import lit_robust
from lit_robust import lightning_cli_internals as cli_internals
from lit_robust import lightning_internals as internals
from lit_robust import lightning_resume_internals as resume_internals
from lit_robust.cli.robust_cli import RobustCLI
from lit_robust.schedules.base import fractional_epoch
from lit_robust.seeds import run_seed
from lit_robust.torch_internals import compile_alike, is_compiled
from tests.tiny import TinyNet, images, loader, trainer

PACKAGE = Path(lit_robust.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

# Loaders of a user's own start an epoch anew when a run is resumed in it.
pytestmark = pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")

#: The files that this is about, the one for jsonargparse, the one that subclasses `WeightAveraging`, and the one that
#: is all about the writer of a CSVLogger, whose `save` it replaces; its attributes are tried below.
MAY_TOUCH = {
    *(PACKAGE / f"{name}_internals.py" for name in ("lightning", "lightning_cli", "lightning_resume", "torch")),
    PACKAGE / "cli" / "jsonargparse_internals.py",
    PACKAGE / "callbacks" / "ema.py",
    PACKAGE / "metrics_files.py",
}

#: Whose private names are Lightning's, by the end of the expression.
OWNERS = ("trainer", "loop", "strategy", "logger", "loggers", "results")

#: Attributes of the writer of a CSVLogger.
OF_THE_WRITER = ("metrics_file_path", "metrics_keys", "NAME_METRICS_FILE")

#: The parts of a checkpoint that hold the loops' states, and files of Lightning's, as texts.
INSIDE_TEXT = re.compile(r"loops|(\w+_)?loop|combined_loader|\w+_connector(\.py)?")

#: Functions that are given an owner and a name.
BY_NAME = ("getattr", "hasattr", "setattr", "delattr")

#: Public in spite of their names: what a named tuple has.
PUBLIC = ("_asdict", "_fields", "_replace")


# No other file touches them.


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__") and name not in PUBLIC


def last_name(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return node.attr
    if isinstance(node, ast.Call):
        return last_name(node.func)
    return node.id if isinstance(node, ast.Name) else ""


def attributes(tree: ast.AST) -> list[tuple[str, str]]:
    """Owner and name of each attribute that is read or written, also by `getattr` and its like."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            found.append((last_name(node.value), node.attr))
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in BY_NAME:
            owner, name, *_ = node.args
            if isinstance(name, ast.Constant):
                found.append((last_name(owner), name.value))
    return found


def own_names(tree: ast.AST) -> set[str]:
    """What a file defines: functions, classes, variables, and attributes of `self`."""
    own = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            own.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            own.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and last_name(node.value) == "self":
            own.add(node.attr)
    return own


OWN = {name for file in FILES if file not in MAY_TOUCH for name in own_names(ast.parse(file.read_text()))}


def insides_in(source: str) -> list[str]:
    """The places where a file touches private names of Lightning or of other packages."""
    tree = ast.parse(source)
    found = [
        f"{owner}.{name}"
        for owner, name in attributes(tree)
        if name.endswith("_loop")
        or name in OF_THE_WRITER
        or (is_private(name) and (owner.lower().endswith(OWNERS) or name not in OWN))
    ]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith(("lightning", "jsonargparse")):
            parts = [*node.module.split("."), *(alias.name for alias in node.names)]
            found += [f"{node.module}: {part}" for part in parts if is_private(part)]
        elif isinstance(node, ast.Import):
            found += [name for alias in node.names if re.match(r"jsonargparse.*\._", name := alias.name)]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and not re.search(r"\s", node.value):
            found += [part for part in re.split(r"\.(?!py$)", node.value) if INSIDE_TEXT.fullmatch(part)]
            found += re.findall(r"^jsonargparse\._.*", node.value)
    return found


@pytest.mark.parametrize(
    "file",
    [
        pytest.param(file, id=name)
        for file in FILES
        if file not in MAY_TOUCH
        for name in [str(file.relative_to(PACKAGE))]
    ],
)
def test_no_other_file_touches_the_insides_of_lightning(file):
    assert insides_in(file.read_text()) == []


@pytest.mark.parametrize(
    "line",
    [
        "trainer._results",
        "self.trainer.strategy._lightning_module",
        "logger._version = 3",
        "trainer.loggers[0]._version",
        "self.trainer.fit_loop.batch_idx",
        'getattr(trainer, "fit_loop")',
        'getattr(progress, "_started", 0)',
        "self._get(config, 'model')",
        "from lightning.pytorch.core.mixins.hparams_mixin import _given_hyperparameters",
        "from lightning.pytorch.trainer.connectors._signal import handler",
        "from jsonargparse import Namespace, _typehints",
        "from jsonargparse._paths import Path",
        "import jsonargparse._loaders_dumpers as loaders",
        'import_module("jsonargparse._typehints")',
        "jsonargparse._core",
        'checkpoint["loops"]',
        'checkpoint.get("loops", {}).get("fit_loop", {})',
        'state["combined_loader"]',
        'broken("loops.fit_loop.state_dict", state)',
        'file.endswith("checkpoint_connector.py")',
        "logger.experiment.metrics_keys = []",
        "csv_logs.ExperimentWriter.NAME_METRICS_FILE",
    ],
)
def test_the_walk_sees_each_way_in(line):
    assert insides_in(line) != []


def test_no_class_overrides_what_is_private_in_lightning():
    for module in pkgutil.walk_packages([str(PACKAGE)], "lit_robust."):
        if module.name.endswith("__main__"):
            continue
        room = importlib.import_module(module.name)
        for name, kind in inspect.getmembers(room, inspect.isclass):
            if kind.__module__ != room.__name__ or Path(room.__file__) in MAY_TOUCH:
                continue
            theirs = {
                inside for base in kind.__mro__ if base.__module__.startswith("lightning.") for inside in vars(base)
            }
            assert not [inside for inside in vars(kind) if is_private(inside) and inside in theirs - SET_BY_ABC], name


#: What `ABC` writes into every class.
SET_BY_ABC = {"_abc_impl"}


# What it knows is still true. Three batches per epoch.


class Plain(LightningModule):
    """A user's module, which counts what happens to it."""

    def __init__(self) -> None:
        super().__init__()
        self.net = TinyNet()
        self.seen, self.validated, self.ended = [], [], []

    def training_step(self, batch, batch_idx):
        x, y = batch
        self.seen.append(float(x.sum()))
        loss = nn.functional.cross_entropy(self.net(x), y)
        self.log("by_step", loss, on_step=True, on_epoch=False)
        self.log("by_both", loss, on_step=True, on_epoch=True)
        self.log("by_epoch", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx):
        self.validated.append(self.current_epoch)

    def on_train_epoch_end(self):
        self.ended.append(self.current_epoch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Ask(Callback):
    """Asks a question in some hooks."""

    def __init__(self, question, *hooks):
        self.answers = []
        for hook in hooks:
            setattr(self, hook, lambda trainer, *args: self.answers.append(question(trainer)))


class SaveAfter(Callback):
    """Saves after some batches, counted over all epochs."""

    def __init__(self, batches, path):
        self.batches, self.path, self.done = batches, path, 0

    def on_train_batch_end(self, trainer, *args):
        self.done += 1
        if self.done == self.batches:
            trainer.save_checkpoint(self.path)


def fit(tmp_path, *callbacks, module=None, ckpt_path=None, **kwargs):
    module = module or Plain()
    run = trainer(tmp_path, callbacks=list(callbacks), **{"max_epochs": 2, **kwargs})
    run.fit(module, loader(images()), loader(images(8)), ckpt_path=ckpt_path)
    return module


def answers(tmp_path, question, *hooks, **kwargs):
    ask = Ask(question, *hooks)
    fit(tmp_path, ask, **kwargs)
    return ask.answers


BATCH = ("on_train_batch_start", "on_train_batch_end")


def test_the_index_of_a_batch_in_its_epoch(tmp_path):
    asked = answers(tmp_path, internals.batch_in_epoch, "on_train_start", *BATCH)
    assert asked == [0, *[0, 0, 1, 1, 2, 2] * 2]


def test_the_index_of_the_last_batch_is_known_when_a_run_is_resumed(tmp_path):
    fit(tmp_path, SaveAfter(5, tmp_path / "a.ckpt"))
    assert answers(tmp_path, internals.batch_in_epoch, "on_train_start", ckpt_path=tmp_path / "a.ckpt") == [1]


def test_batches_of_all_epochs_are_counted(tmp_path):
    assert answers(tmp_path, internals.batches_begun, *BATCH) == [n for n in range(1, 7) for _ in BATCH]
    fit(tmp_path, SaveAfter(4, tmp_path / "a.ckpt"))
    assert answers(tmp_path, internals.batches_begun, *BATCH, ckpt_path=tmp_path / "a.ckpt") == [5, 5, 6, 6]


def test_every_second_batch_is_due_for_logging(tmp_path):
    asked = answers(tmp_path, internals.is_due_for_logging, *BATCH, log_every_n_steps=2)
    assert asked == [due for due in (False, True) * 3 for _ in BATCH]
    assert not any(answers(tmp_path, internals.is_due_for_logging, *BATCH, log_every_n_steps=0))


def test_time_is_in_fractional_epochs(tmp_path):
    asked = answers(tmp_path, lambda t: fractional_epoch(t, internals.batch_in_epoch(t)), "on_train_batch_start")
    assert asked == pytest.approx([n / 3 for n in range(6)])


def test_epochs_that_have_begun_are_counted(tmp_path):
    hooks = ("on_train_start", "on_train_batch_start")
    assert answers(tmp_path, internals.epochs_begun, *hooks) == [0, 1, 1, 1, 2, 2, 2]
    for batches, begun in ((3, 1), (5, 2)):
        fit(tmp_path, SaveAfter(batches, tmp_path / "a.ckpt"))
        assert answers(tmp_path, internals.epochs_begun, "on_train_start", ckpt_path=tmp_path / "a.ckpt") == [begun]


def test_skipped_epochs_count_once_they_are_followed(tmp_path):
    def skip_the_next(trainer):
        if trainer.current_epoch == 0:
            internals.skip_epochs(trainer, 3)
        return trainer.current_epoch, internals.epochs_begun(trainer), internals.next_epoch(trainer)

    def follow(trainer):
        before = trainer.current_epoch
        internals.set_current_epoch(trainer)
        return before, trainer.current_epoch

    class Skip(Callback):
        skipped, followed = [], []

        def on_train_epoch_start(self, trainer, pl_module):
            self.followed.append(follow(trainer))

        def on_train_epoch_end(self, trainer, pl_module):
            self.skipped.append(skip_the_next(trainer))

    fit(tmp_path, Skip(), max_epochs=5)
    assert Skip.skipped == [(0, 4, 4), (4, 5, 5)]
    assert Skip.followed == [(0, 0), (1, 4)]


def test_the_loops_of_a_checkpoint_are_those_that_are_restored(tmp_path):
    run = fit(tmp_path, SaveAfter(5, tmp_path / "a.ckpt")).trainer
    saved = torch.load(tmp_path / "a.ckpt", weights_only=True)["loops"]
    assert resume_internals.loops_to_restore(run).keys() == {"fit_loop"}
    assert saved["fit_loop"].keys() >= resume_internals.loops_to_restore(run)["fit_loop"].keys() > set()


@pytest.mark.filterwarnings("ignore")  # of the compiler's
def test_a_net_is_compiled_in_place_as_the_wrapper_around_it():
    graphs = []

    def backend(graph, example):
        graphs.append(graph)
        return graph.forward

    net = TinyNet()
    assert not is_compiled(net)
    compile_alike(net, torch.compile(net, backend=backend))
    assert is_compiled(net)
    with torch.no_grad():
        net(images(8).x)
    assert graphs


class SaveAtEnds(Callback):
    """Saves as a `ModelCheckpoint` with `save_on_train_epoch_end` does."""

    def __init__(self, folder):
        self.folder = folder

    def on_train_epoch_end(self, trainer, *args):
        trainer.save_checkpoint(self.folder / f"end{trainer.current_epoch}.ckpt")


def test_epochs_that_are_done_are_counted_in_a_checkpoint(tmp_path):
    fit(tmp_path, SaveAfter(5, tmp_path / "mid.ckpt"), SaveAtEnds(tmp_path))
    done = {path.stem: internals.epochs_done(torch.load(path, weights_only=True)) for path in tmp_path.glob("*.ckpt")}
    assert done == {"end0": 1, "mid": 1, "end1": 2}
    assert internals.epochs_done({"state_dict": {}}) == 0


class SaveAfterValidation(Callback):
    """Saves as a `ModelCheckpoint` without `save_on_train_epoch_end` does."""

    def __init__(self, path):
        self.path = path

    def on_validation_end(self, trainer, *args):
        trainer.save_checkpoint(self.path)


def test_a_checkpoint_within_an_epoch_is_told_from_one_of_its_end(tmp_path):
    callbacks = SaveAfter(5, tmp_path / "mid.ckpt"), SaveAtEnds(tmp_path), SaveAfterValidation(tmp_path / "valid.ckpt")
    fit(tmp_path, *callbacks)
    files = {path.stem: torch.load(path, weights_only=True) for path in tmp_path.glob("*.ckpt")}
    within = {name: internals.is_within_epoch(checkpoint) for name, checkpoint in files.items()}
    assert within == {"end0": False, "mid": True, "end1": False, "valid": False}
    assert not internals.is_within_epoch({"state_dict": {}})


class Ends(Plain):
    def on_load_checkpoint(self, checkpoint):
        resume_internals.end_the_epoch(checkpoint)


@pytest.mark.parametrize(("kind", "epochs"), [(Plain, [1]), (Ends, [0, 1])])
def test_an_epoch_that_was_saved_after_its_last_batch_is_validated_and_ended(tmp_path, kind, epochs):
    fit(tmp_path, SaveAfter(3, tmp_path / "a.ckpt"))
    module = fit(tmp_path, module=kind(), ckpt_path=tmp_path / "a.ckpt")
    assert (module.validated, module.ended) == (epochs, epochs)  # if Plain's are [0, 1], Lightning has fixed it


class Settles(Ends):
    def on_train_start(self):
        resume_internals.settle_restart(self.trainer)

    def on_train_epoch_end(self):
        resume_internals.end_restart(self.trainer)


@pytest.mark.parametrize(("kind", "batches"), [(Ends, 3), (Settles, 5)])
def test_a_run_with_a_limit_of_steps_that_was_saved_between_epochs_trains_each_batch(tmp_path, kind, batches):
    limits = {"max_epochs": 3, "max_steps": 8}
    fit(tmp_path, SaveAtEnds(tmp_path), **limits)
    module = fit(tmp_path, module=kind(), ckpt_path=tmp_path / "end0.ckpt", **limits)
    assert len(module.seen) == batches  # if it is 5 for Ends, Lightning has mended it


class Forgets(Settles):
    def on_train_epoch_end(self):
        pass


@pytest.mark.parametrize(("kind", "batches"), [(Ends, 4), (Forgets, 0), (Settles, 3)])
def test_a_run_that_was_saved_after_a_last_batch_without_a_validation_trains_no_batch_twice(tmp_path, kind, batches):
    fit(tmp_path, SaveAfter(3, tmp_path / "a.ckpt"), limit_val_batches=0)
    module = fit(tmp_path, module=kind(), ckpt_path=tmp_path / "a.ckpt", limit_val_batches=0)
    assert len(module.seen) == batches  # if it is 3 for the others, Lightning has mended it


@pytest.mark.parametrize("batches", [2, 4])
def test_an_epoch_that_was_saved_in_its_middle_goes_on(tmp_path, batches):
    fit(tmp_path, SaveAfter(batches, tmp_path / "a.ckpt"))
    seen = [fit(tmp_path, module=kind(), ckpt_path=tmp_path / "a.ckpt").seen for kind in (Plain, Ends)]
    assert len(seen[0]) == len(seen[1]) == 6 - batches


class SaveWithin(Callback):
    """Saves in the second batch of the first validation."""

    def __init__(self, path):
        self.path = path

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        if batch_idx == 1 and not self.path.exists():
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize(("kind", "epochs"), [(Plain, [1, 1, 1]), (Ends, [0, 0, 0, 1, 1, 1])])
def test_a_validation_that_was_saved_within_starts_at_its_first_batch(tmp_path, kind, epochs):
    for module, callbacks, path in ((Plain(), [SaveWithin(tmp_path / "a.ckpt")], None), (kind(), [], "a.ckpt")):
        run = trainer(tmp_path, max_epochs=2, callbacks=callbacks)
        run.fit(module, loader(images()), loader(images()), ckpt_path=path and tmp_path / path)
    assert module.validated == epochs  # if they are six for Plain, Lightning has mended it


def test_a_validation_is_due_at_the_end_of_the_batch_before_it(tmp_path):
    ask = Ask(resume_internals.validation_is_due, "on_train_batch_start", "on_train_batch_end", "on_validation_end")
    fit(tmp_path, ask, max_epochs=1, val_check_interval=2)
    assert ask.answers == [False] * 3 + [True, False] + [False] * 2


def test_a_run_that_was_saved_before_a_validation_was_due_validates_first(tmp_path):
    class Due(Plain):
        def on_load_checkpoint(self, checkpoint):
            resume_internals.end_the_epoch(checkpoint, due=True)

    every_two = {"val_check_interval": 2}
    fit(tmp_path, SaveAfter(2, tmp_path / "a.ckpt"), **every_two)
    runs = [fit(tmp_path, module=kind(), ckpt_path=tmp_path / "a.ckpt", **every_two) for kind in (Plain, Due)]
    assert [run.validated for run in runs] == [[1], [0, 1]]  # if they are equal, Lightning has mended it


def test_the_row_that_a_checkpoint_precedes_is_the_one_that_is_logged_next(tmp_path):
    foretold = {}

    class Foretell(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            pl_module.log("b", float(batch_idx), on_step=True)

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if row := resume_internals.row_to_come(trainer, lambda: {"mine": 3.0}):
                foretold[f"batch {trainer.global_step}"] = row

        def on_train_epoch_end(self, trainer, pl_module):
            pl_module.log("e", 2.0)
            foretold[f"epoch {trainer.current_epoch}"] = resume_internals.row_to_come(trainer, dict)

        def on_validation_end(self, trainer, pl_module):
            assert resume_internals.row_to_come(trainer, dict) == {}

    logger = CSVLogger(tmp_path, name="tiny")
    fit(tmp_path, Foretell(), logger=logger, log_every_n_steps=2)
    with Path(logger.log_dir, "metrics.csv").open(newline="") as file:
        logged = [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]
    mine = [{k: v for k, v in row.items() if k != "mine"} for row in foretold.values()]
    assert mine == [row for row in logged if "b" in row or "e" in row]
    assert [name for name, row in foretold.items() if "mine" in row] == ["batch 2", "batch 4", "batch 6"]


def test_an_epochs_metrics_are_known_between_its_last_batch_and_its_end(tmp_path):
    class LogEpoch(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            pl_module.log("mean", float(batch_idx), on_step=False, on_epoch=True, batch_size=1)

    hooks = {"on_train_batch_start": {}, "on_validation_batch_end": {"mean": 1.0}, "on_train_epoch_end": {}}
    for hook, expected in hooks.items():
        ask = Ask(lambda t: resume_internals.epoch_so_far(t), hook)
        fit(tmp_path, LogEpoch(), ask)
        mine = {name: value for name, value in ask.answers[0].items() if not name.startswith("by_")}
        assert mine == expected


def test_sigterm_is_handled_by_the_function_that_is_given_and_then_by_the_users(tmp_path):
    received = []

    class Kill(Callback):
        def setup(self, trainer, pl_module, stage):
            internals.handle_sigterm(trainer, lambda signum, frame: received.append("ours"))

        def on_train_start(self, trainer, pl_module):
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, lambda signum, frame: received.append("the user's"))
    try:
        module = fit(tmp_path, Kill())
        assert signal.getsignal(signal.SIGTERM)(signal.SIGTERM, None) is None
    finally:
        signal.signal(signal.SIGTERM, before)
    assert received == ["ours", "the user's", "the user's"]
    assert len(module.seen) == 6  # Lightning has not heard of it


class Dim(Callback):
    """Turns images black."""

    def setup(self, trainer, pl_module, stage):
        internals.change_batches(trainer, lambda batch: (0 * batch[0], batch[1]))

    def teardown(self, trainer, pl_module, stage):
        internals.restore_batches(trainer)


def test_batches_are_changed_before_the_training_step_and_no_longer_after_the_fit(tmp_path):
    module, run = Plain(), trainer(tmp_path, max_epochs=1, callbacks=[Dim()])
    run.fit(module, loader(images()))
    assert module.seen == [0.0] * 3
    run.callbacks.clear()
    run.fit_loop.max_epochs = 2
    run.fit(module, loader(images()))
    assert all(value > 0 for value in module.seen[3:])


class Growing(list):
    """A loader of two batches, and of three from the second epoch on."""

    def __init__(self, batches):
        super().__init__(batches[:2])
        self.rest = batches[2:]


@pytest.mark.parametrize(("reload", "batches"), [(False, 2 + 2), (True, 2 + 3)])
def test_a_loader_that_grows_is_counted_anew(tmp_path, reload, batches):
    class Grow(Callback):
        def on_fit_start(self, trainer, pl_module):
            if reload:
                internals.reload_every_epoch(trainer)

        def on_train_epoch_end(self, trainer, pl_module):
            growing.extend(growing.rest)
            growing.rest = []

    module, growing = Plain(), Growing(list(loader(images())))
    trainer(tmp_path, max_epochs=2, callbacks=[Grow()]).fit(module, growing)
    assert len(module.seen) == batches  # if it is 5 without the reload, Lightning counts by itself


class Stateful(list):
    def state_dict(self):
        return {"at": 3}

    def load_state_dict(self, state):
        pass


def test_the_states_of_the_training_loaders_are_found(tmp_path):
    run = trainer(tmp_path, max_epochs=1, callbacks=[SaveAfter(2, tmp_path / "a.ckpt")])
    run.fit(Plain(), Stateful(loader(images())), loader(images(8)))
    place, states = resume_internals.loader_states(torch.load(tmp_path / "a.ckpt", weights_only=True))
    assert (place, states) == ("loops.fit_loop.state_dict.combined_loader", [{"at": 3}])
    assert resume_internals.loader_states({"loops": {"fit_loop": {"state_dict": {}}}})[1] == []


class Fails(Plain):
    def __init__(self, hook):
        super().__init__()
        setattr(self, hook, self.fail)

    def fail(self, *args):
        raise KeyError("here")


@pytest.mark.parametrize(("hook", "restoring"), [("on_load_checkpoint", True), ("on_train_start", False)])
def test_an_error_of_restoring_a_checkpoint_is_known(hook, restoring, tmp_path):
    fit(tmp_path, SaveAfter(2, tmp_path / "a.ckpt"))
    with pytest.raises(KeyError) as caught:
        fit(tmp_path, module=Fails(hook), ckpt_path=tmp_path / "a.ckpt")
    assert cli_internals.fails_while_restoring(caught.value) is restoring


@pytest.mark.parametrize("callback", [EarlyStopping("val/other"), ModelCheckpoint(monitor="val/other")])
def test_an_error_about_an_unknown_monitor_is_known(callback, tmp_path):
    with pytest.raises((RuntimeError, MisconfigurationException)) as caught:
        fit(tmp_path, callback, enable_checkpointing=True)
    assert internals.misses_monitor(caught.value)
    assert not internals.misses_monitor(RuntimeError("another one"))


@pytest.mark.filterwarnings("ignore:Experiment logs directory")
def test_a_table_under_another_name_leaves_the_usual_one(tmp_path):
    (tmp_path / "run" / "a").mkdir(parents=True)
    (tmp_path / "run" / "a" / "metrics.csv").write_text("loss\n1\n")
    first, second = (CSVLogger(tmp_path, name="run", version="a") for _ in range(2))
    cli_internals.begin_metrics_file(first, "tests.csv")
    first.log_metrics({"loss": 2.0})
    first.save()
    assert (tmp_path / "run" / "a" / "metrics.csv").read_text() == "loss\n1\n"
    assert "2.0" in (tmp_path / "run" / "a" / "tests.csv").read_text()
    _ = second.experiment
    assert not (tmp_path / "run" / "a" / "metrics.csv").exists()  # if it does, Lightning no longer deletes it


def test_a_csv_loggers_writer_has_what_metrics_files_replaces(tmp_path):
    logger = CSVLogger(tmp_path)
    logger.log_metrics({"loss": 2.0}, step=1)
    writer, saved = logger.experiment, []
    assert (writer.metrics, writer.metrics_keys) == ([{"loss": 2.0, "step": 1}], [])
    assert Path(writer.metrics_file_path).parent == Path(logger.log_dir)
    writer.save = lambda: saved.append(True)
    logger.save()
    assert saved == [True]


def test_a_longer_interval_of_the_users_would_cut_epochs_off_and_is_shortened(tmp_path):
    run = trainer(tmp_path, reload_dataloaders_every_n_epochs=3)
    internals.reload_every_epoch(run)
    assert run.reload_dataloaders_every_n_epochs == 1


def test_loaders_that_an_optimizer_has_asked_for_are_made_anew(tmp_path):
    class Asks(Plain):
        def configure_optimizers(self):
            made.append(self.trainer.estimated_stepping_batches)
            return super().configure_optimizers()

    class Halves(Callback):
        def on_fit_start(self, trainer, pl_module):
            module.half = True
            internals.reload_every_epoch(trainer)

        def on_train_epoch_start(self, trainer, pl_module):
            made.append(trainer.num_training_batches)

    made: list[int] = []
    module = Asks()
    module.half = False
    module.train_dataloader = lambda: loader(images(16 if module.half else 32))
    trainer(tmp_path, max_epochs=1, callbacks=[Halves()]).fit(module)
    assert made == [4, 2]


@pytest.mark.parametrize(("again", "kind", "made"), [(False, [], 0), (True, [], 1), (True, [Stateful], 0)])
def test_the_iterator_of_a_resumed_trainings_first_epoch_can_be_made_within_it(tmp_path, again, kind, made):
    class Counted(*(kind or [list])):
        times = 0

        def __iter__(self):
            self.times += 1
            return super().__iter__()

    class Again(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            before.append(batches.times)
            if again:
                cli_internals.make_iterator_anew(trainer)

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if batch_idx == 0:
                after.append(batches.times)

    for epochs, path in ((2, None), (4, tmp_path / "end1.ckpt")):
        batches, before, after = Counted(loader(images())), [], []
        run = trainer(tmp_path, max_epochs=epochs, callbacks=[Again(), SaveAtEnds(tmp_path)])
        run.fit(Plain(), batches, loader(images(8)), ckpt_path=path)
        first, second = (done - begun for begun, done in zip(before, after, strict=True))
        assert second == 1  # Lightning's own
        assert first == (made if path else 0)


@pytest.mark.parametrize("given", ["a loader", "a module"])
def test_the_trainings_loader_can_be_made_before_the_fit_makes_it(tmp_path, given):
    class Looks(Callback):
        def on_fit_start(self, trainer, pl_module):
            found.append(internals.loader_maker(trainer)())

    found, mine, module = [], loader(images()), Plain()
    module.train_dataloader = lambda: mine
    trainer(tmp_path, max_epochs=1, callbacks=[Looks()]).fit(module, mine if given == "a loader" else None)
    assert found == [mine]


def test_the_argument_that_a_search_of_the_batch_size_changes_is_found():
    assert internals.batch_size_searched(BatchSizeFinder(batch_arg_name="eval_batch_size")) == "eval_batch_size"


@pytest.mark.parametrize("hook", ["on_train_batch_end", "on_train_epoch_end"])
def test_a_metric_without_a_mean_over_the_epoch_is_known(tmp_path, hook):
    names = ("by_step", "by_both_step", "by_both", "by_both_epoch", "by_epoch", "nothing")
    asked = answers(tmp_path, lambda t: [internals.logged_by_step_alone(t, name) for name in names], hook)
    assert asked[0] == [True, True, False, False, False, False]


def test_a_metric_of_an_earlier_run_is_none_of_this_one(tmp_path):
    known = {}

    class Knows(Plain):
        def on_train_start(self):
            resume_internals.know_metrics(self.trainer, {"earlier": torch.tensor(2.0), "by_both": torch.tensor(-1.0)})

    def is_known(trainer):
        known.update(trainer.callback_metrics)
        return [internals.is_logged_here(trainer, name) for name in ("earlier", "by_both", "by_both_epoch")]

    assert answers(tmp_path, is_known, "on_train_epoch_end", module=Knows())[0] == [False, True, True]
    assert known["earlier"] == 2  # if Lightning restores metrics, know_metrics is not needed
    assert known["by_both"] > 0


VERSIONS = {"version_7": 7, "version_0": 0, "mine": "mine", "version_07": "version_07"}


@pytest.mark.parametrize(("name", "version"), VERSIONS.items())
def test_a_csv_logger_goes_on_in_the_folder_of_an_earlier_run(tmp_path, name, version):
    logger = CSVLogger(tmp_path, name="tiny")
    cli_internals.go_on_in_folder(logger, name)
    logger.log_metrics({"a": 1.0})
    logger.save()
    assert (logger.version, logger.log_dir) == (version, str(tmp_path / "tiny" / name))
    assert (tmp_path / "tiny" / name / "metrics.csv").exists()


#: Arguments by which a command line of Lightning's own does not warn.
SILENT = {"trainer_defaults": {"logger": False}, "seed_everything_default": 0}


class Built(Plain):
    def __init__(self, width: int = 1) -> None:
        super().__init__()
        self.by_the_command_line = cli_internals.built_by_the_command_line()


class Hyper(Plain):
    def __init__(self, width: int = 1) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.width = width


def test_a_module_knows_whether_the_command_line_builds_it(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["lit-robust"])
    cli = LightningCLI(Built, run=False, args=["--model.width=2"], **SILENT)
    assert cli.model.by_the_command_line is True
    assert Built().by_the_command_line is False


def test_the_command_line_overrides_what_is_there_and_nothing_else():
    for name in ("_parse_ckpt_path", "_prepare_subcommand_parser"):
        assert callable(getattr(LightningCLI, name))
        assert name in vars(cli_internals.CommandLineInternals)
        assert getattr(RobustCLI, name) is vars(cli_internals.CommandLineInternals)[name]


def test_subcommands_have_our_defaults_and_a_checkpoint_lays_nothing_over_what_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["lit-robust"])
    fit(tmp_path, SaveAtEnds(tmp_path), module=Hyper(width=3))

    class Ours(cli_internals.CommandLineInternals, LightningCLI):
        subcommand_defaults = {"test": {"verbose": False}}  # noqa: RUF012  # as a user would write it

        def test(self, **kwargs):
            self.asked = kwargs

    class Theirs(LightningCLI):
        test = Ours.test

    args = ["test", f"--ckpt_path={tmp_path / 'end0.ckpt'}", "--model.width=2"]
    ours, theirs = (kind(Hyper, args=args, **SILENT) for kind in (Ours, Theirs))
    assert (ours.model.width, ours.asked["verbose"]) == (2, False)
    assert ours.config_in_use().model.width == 2
    assert (theirs.model.width, theirs.asked["verbose"]) == (3, True)  # what it would be without


def test_a_script_which_runs_no_command_has_one_configuration(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["script.py"])

    class Script(cli_internals.CommandLineInternals, LightningCLI):
        pass

    assert Script(Hyper, run=False, args=["--model.width=2"], **SILENT).config_in_use().model.width == 2


def test_the_seed_of_a_run_is_where_seed_everything_leaves_it():
    seed_everything(7)
    assert run_seed() == 7


# What Lightning no longer has is reported when it is needed.

HOLLOW = SimpleNamespace(strategy=SimpleNamespace(), fit_loop=SimpleNamespace())


@pytest.mark.parametrize(
    "use",
    [
        lambda: internals.batch_in_epoch(HOLLOW),
        lambda: internals.batches_begun(HOLLOW),
        lambda: internals.is_due_for_logging(HOLLOW),
        lambda: internals.epochs_begun(HOLLOW),
        lambda: internals.next_epoch(HOLLOW),
        lambda: internals.skip_epochs(HOLLOW, 2),
        lambda: internals.set_current_epoch(HOLLOW),
        lambda: internals.epochs_done({"loops": {"fit_loop": {"epochs": 3}}}),
        lambda: internals.is_within_epoch({"loops": {"fit_loop": {"epochs": 3}}}),
        lambda: resume_internals.loops_to_restore(HOLLOW),
        lambda: resume_internals.end_the_epoch({"loops": {"fit_loop": {"batches": 3}}}),
        lambda: resume_internals.settle_restart(HOLLOW),
        lambda: resume_internals.end_restart(HOLLOW),
        lambda: resume_internals.know_metrics(HOLLOW, {}),
        lambda: resume_internals.loader_states({"loops": {}}),
        lambda: resume_internals.validation_is_due(HOLLOW),
        lambda: resume_internals.row_to_come(HOLLOW, dict),
        lambda: resume_internals.epoch_so_far(HOLLOW),
        lambda: internals.handle_sigterm(HOLLOW, print),
        lambda: internals.change_batches(HOLLOW, lambda batch: batch),
        lambda: internals.restore_batches(object()),
        lambda: internals.reload_every_epoch(HOLLOW),
        lambda: internals.loader_maker(HOLLOW),
        lambda: internals.batch_size_searched(HOLLOW),
        lambda: internals.logged_by_step_alone(HOLLOW, "loss"),
        lambda: internals.is_logged_here(HOLLOW, "loss"),
        lambda: internals.flushes_every(HOLLOW),
        lambda: cli_internals.make_iterator_anew(HOLLOW),
        lambda: cli_internals.go_on_in_folder(HOLLOW, "version_0"),
        lambda: cli_internals.CommandLineInternals(),
    ],
)
def test_another_lightning_is_reported_in_one_sentence_that_names_the_tested_one(use):
    with pytest.raises(ImportError, match=r" lightning 2\.6 .* lightning \d.* \(.+\): pip install \""):
        use()


def test_an_error_in_code_that_is_called_is_not_blamed_on_lightning():
    @internals.inside
    def calls(trainer, function):
        return function()

    with pytest.raises(KeyError, match="MISSING"):
        calls(HOLLOW, lambda: os.environ["MISSING"])


def test_a_context_that_is_gone_is_reported_too(monkeypatch):
    monkeypatch.delattr(hparams_mixin, "_given_hyperparameters")
    with pytest.raises(ImportError, match=r"lightning 2\.6.*built_by_the_command_line.*_given_hyperparameters"):
        cli_internals.built_by_the_command_line()


def test_a_file_of_lightnings_that_is_gone_is_reported_too(monkeypatch):
    monkeypatch.setitem(sys.modules, "lightning.pytorch.trainer.connectors.checkpoint_connector", None)
    monkeypatch.delattr(connectors, "checkpoint_connector", raising=False)
    with pytest.raises(ImportError, match=r"lightning 2\.6.*fails_while_restoring"):
        cli_internals.fails_while_restoring(ValueError())


@pytest.mark.parametrize("file", [internals, cli_internals, resume_internals], ids=lambda file: file.__name__)
def test_the_file_can_be_imported_without_lightning(file, monkeypatch):
    monkeypatch.setitem(sys.modules, "lightning", None)
    spec = importlib.util.spec_from_file_location("alone", file.__file__)
    spec.loader.exec_module(importlib.util.module_from_spec(spec))


#: What the other functions are made with.
MAKERS = {internals.changed, internals.inside}


@pytest.mark.parametrize("file", [internals, cli_internals, resume_internals], ids=lambda file: file.__name__)
def test_every_function_is_tried_here(file):
    source = Path(__file__).read_text()
    for name, what in vars(file).items():
        if inspect.isfunction(what) and what.__module__ == file.__name__ and what not in MAKERS:
            assert f"internals.{name}(" in source
