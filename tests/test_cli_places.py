"""Nulls that mean something, short names and Lightning's callbacks on the command line.

Keys in the wrong place and values that give nothing are in ``test_wording_cli.py``.
"""

import re
import shlex
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import callbacks as lightning_callbacks
from lightning.pytorch.cli import ReduceLROnPlateau

from lit_robust.cli.classes import find_class
from lit_robust.cli.places import check_places
from tests.front_door import lit, refusal, tiny


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_what_is_in_its_place_is_left_alone():
    check_places({"model": {"class_path": "A", "init_args": {"x": {3: [4, None]}}, "dict_kwargs": {"y": {"class": 1}}}})


# null.


@pytest.mark.parametrize("name", ["lr_scheduler", "momentum", "val_attack", "test_attacks", "num_classes"])
def test_null_where_it_is_the_default_is_accepted(name):
    lit("fit", "-c", f"model: {{init_args: {{{name}: null}}}}")


@pytest.mark.parametrize(
    "flags",
    [
        ["--model.attack", "{class_path: PGD, init_args: {steps: 1, step_size: null}}"],
        ["--model.attack", "{steps: 1, step_size: null}"],
        ["--model.attack.init_args", "{steps: 1, step_size: null}"],
        ["--model.test_attacks.pgd2", "{class_path: PGD, init_args: {steps: 1, step_size: null}}"],
        ["--model.attack.step_size", "null"],
    ],
)
def test_null_inside_a_flag_is_that_of_yaml(flags):
    lit("fit", *flags)
    saved = yaml.safe_load(Path("runs/tiny/version_0/config.yaml").read_text())["model"]["init_args"]
    part = saved["test_attacks"]["pgd2"] if "test" in flags[0] else saved["attack"]
    assert part["init_args"]["step_size"] is None


# Short names that several classes have.


def test_the_short_name_of_a_plateau_scheduler_is_lightnings():
    assert find_class("ReduceLROnPlateau") is ReduceLROnPlateau
    lit("fit", "--model.lr_scheduler", "ReduceLROnPlateau", "--model.lr_scheduler.monitor", "train/loss")
    saved = yaml.safe_load(Path("runs/tiny/version_0/config.yaml").read_text())
    assert saved["model"]["init_args"]["lr_scheduler"]["class_path"] == "lightning.pytorch.cli.ReduceLROnPlateau"


def test_a_plateau_scheduler_needs_its_monitor(capsys):
    says = refusal(capsys, "fit", "-c", tiny(Path()), "--model.lr_scheduler", "ReduceLROnPlateau")
    assert says.startswith("model.lr_scheduler: ")
    assert "monitor" in says


def test_torchs_own_is_found_by_its_path():
    plateau = "{class_path: torch.optim.lr_scheduler.ReduceLROnPlateau, init_args: {mode: max}}"
    lit("fit", "--model.lr_scheduler", plateau)


class Adadelta(torch.optim.SGD):
    """Has the name of one of torch's optimizers."""


def test_another_class_of_the_same_name_does_not_hide_torchs():
    lit("fit", "--model.optimizer", "Adadelta")
    saved = yaml.safe_load(Path("runs/tiny/version_0/config.yaml").read_text())
    assert saved["model"]["init_args"]["optimizer"]["class_path"].startswith("torch.optim.")


# Lightning's callbacks.

BAR = "--trainer.enable_progress_bar true"
#: What follows ``--trainer.callbacks+=Name``, and a part of its refusal; an empty one means that it trains.
CALLBACKS = {
    "BackboneFinetuning": ("", "module.backbone"),
    "BaseFinetuning": ("", "base class"),
    "BasePredictionWriter": ("", "base class"),
    "BatchSizeFinder": ("--trainer.callbacks.max_trials 1", ""),
    "Callback": ("", "base class"),
    "Checkpoint": ("", "base class"),
    "EarlyStopping": ("--trainer.callbacks.monitor train/loss", ""),
    "EMAWeightAveraging": ("", ""),
    "GradientAccumulationScheduler": ("--trainer.callbacks.scheduling '{0: 2}'", "data.batch_size"),
    "LambdaCallback": ("", ""),
    "LearningRateFinder": ("", "short fits"),
    "LearningRateMonitor": ("", ""),
    "ModelCheckpoint": ("", "save_top_k"),
    "ModelPruning": ("--trainer.callbacks.pruning_fn l1_unstructured", ""),
    "ModelSummary": ("", ""),
    "OnExceptionCheckpoint": ("--trainer.callbacks.dirpath here", ""),
    "ProgressBar": (BAR, "base class"),
    "RichModelSummary": ("", ""),
    "RichProgressBar": (BAR, ""),
    "SpikeDetection": ("", ""),
    "StochasticWeightAveraging": ("--trainer.callbacks.swa_lrs 0.1", "EMAWeights"),
    "TQDMProgressBar": (BAR, ""),
    "ThroughputMonitor": (f"--trainer.callbacks.batch_size_fn {__name__}.size_of", ""),
    "Timer": ("", ""),
    "WeightAveraging": ("", ""),
}
NEEDED = {
    "EarlyStopping": "monitor",
    "GradientAccumulationScheduler": "scheduling",
    "ModelPruning": "pruning_fn",
    "OnExceptionCheckpoint": "dirpath",
    "StochasticWeightAveraging": "swa_lrs",
    "ThroughputMonitor": "batch_size_fn",
}


def size_of(batch) -> int:
    return len(batch[0])


@pytest.mark.filterwarnings("ignore")  # Lightning's own
@pytest.mark.parametrize("name", sorted({*lightning_callbacks.__all__} - {"DeviceStatsMonitor"}))  # wants psutil
def test_each_callback_of_lightning_trains_or_is_refused_in_one_sentence(name, capsys):
    flags, says = CALLBACKS[name]
    words = [f"--trainer.callbacks+={name}", *shlex.split(flags)]
    if says:
        answer = refusal(capsys, "fit", "-c", tiny(Path()), *words)
        assert says in answer
        assert len(answer) < 300
    else:
        lit("fit", *words)


@pytest.mark.parametrize("name", NEEDED)
def test_a_callback_of_lightning_names_the_argument_that_it_needs(name, capsys):
    says = refusal(capsys, "fit", "-c", tiny(Path()), f"--trainer.callbacks+={name}")
    assert says.startswith(f"trainer.callbacks: lightning.pytorch.callbacks.{name} ")
    assert f" {NEEDED[name]} " in says


def test_a_trainer_without_logging_is_told_what_to_switch_off(capsys):
    says = refusal(capsys, "fit", "-c", tiny(Path()), "--trainer.barebones", "true")
    assert "barebones=True, logger=CSVLogger)" in says
    assert "leave barebones out" in says


# A command or a class that cannot be used.


@pytest.mark.parametrize(("word", "meant"), [("fitt", "fit"), ("compair", "compare"), ("tset", "test")])
def test_a_misspelt_command_is_answered_by_the_one_that_was_meant(word, meant, capsys):
    assert f"did you mean {meant}?" in refusal(capsys, word, "-c", "config.yaml")


def test_a_word_that_is_no_command_is_answered_by_all_of_them(capsys):
    error = refusal(capsys, "xyz")
    assert all(command in error for command in ("fit", "predict", "sweep", "report"))


def test_a_class_that_lacks_methods_is_answered_by_their_names(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = "from lightning.pytorch.loggers import Logger\n\n\nclass Half(Logger):\n    name = 'half'\n"
    Path("half_a_logger.py").write_text(text)
    error = refusal(capsys, "fit", "-c", tiny(tmp_path), "--trainer.logger", "half_a_logger.Half")
    assert error.startswith("trainer.logger: half_a_logger.Half ")
    assert {"log_hyperparams", "log_metrics", "version"} <= set(re.findall(r"\w+", error))


def test_a_function_that_makes_no_logger_is_not_one(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    error = refusal(capsys, "fit", "-c", tiny(tmp_path), "--trainer.logger", "os.getcwd")
    assert error.startswith("trainer.logger: os.getcwd ")


@pytest.mark.parametrize("strategy", ["ddp_spawn", "ddp_spawn_find_unused_parameters_true"])
def test_spawned_processes_are_refused_by_the_command(strategy, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    error = refusal(capsys, "fit", "-c", tiny(tmp_path), "--trainer.strategy", strategy)
    assert error.startswith("trainer.strategy: ")
