"""Keys in the wrong place, nulls, short names and Lightning's callbacks on the command line."""

import re
import shlex
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import callbacks as lightning_callbacks
from lightning.pytorch.cli import ReduceLROnPlateau

from lit_robust.cli import main
from lit_robust.cli.classes import find_class
from lit_robust.cli.places import check_places
from tests.front_door import lit, refusal, tiny


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def refused_file(capsys, text: str) -> str:
    return refusal(capsys, "fit", "-c", tiny(Path()), "-c", text)


SECOND_FILES = {
    "model: {net: {class_path: os.system}, attack: {eps: 0.1}}": ("model", "PGDAT", "net, attack"),
    "model: {class_path: PGDAT, eps: 0.1}": ("model", "PGDAT", "eps"),
    "model: {class_path: TRADES, beta: 6}": ("model", "TRADES", "beta"),
    "model: {attack: {class_path: PGD}}": ("model", "PGDAT", "attack"),
    "model: {optimizer: {lr: 0.1}}": ("model", "PGDAT", "optimizer"),
    "model: {optimizer: null}": ("model", "PGDAT", "optimizer"),
    "data: {batch_size: 3}": ("data", "DigitsDataModule", "batch_size"),
    "model: {init_args: {attack: {eps: 0.1}}}": ("model.attack", "PGD", "eps"),
    "model: {init_args: {optimizer: {lr: 0.1}}}": ("model.optimizer", "torch.optim.SGD", "lr"),
    "model: {init_args: {val_attack: {class_path: PGD, eps: 0.1}}}": ("model.val_attack", "PGD", "eps"),
    "model: {init_args: {test_attacks: {a: {class_path: PGD, eps: 1}}}}": ("model.test_attacks.a", "PGD", "eps"),
    "model: {init_args: {lr_scheduler: {class_path: Cyclic, up: 1}}}": ("model.lr_scheduler", "Cyclic", "up"),
    "trainer: {logger: {save_dir: x}}": ("trainer.logger", "CSVLogger", "save_dir"),
    "trainer: {callbacks+: [{class_path: EMAWeights, decay: 0.9}]}": ("trainer.callbacks", "EMAWeights", "decay"),
    "trainer: {callbacks: {class_path: EMAWeights, decay: 0.9}}": ("trainer.callbacks", "EMAWeights", "decay"),
}


@pytest.mark.parametrize("text", SECOND_FILES)
def test_arguments_beside_a_class_path_name_its_class(text, capsys):
    where, owner, names = SECOND_FILES[text]
    expected = f"{where}: the arguments of {owner} belong below init_args: indent {names}."
    assert refused_file(capsys, text) == expected


@pytest.mark.parametrize(
    ("flags", "owner"),
    [
        (["--model", "{class_path: PGDAT, eps: 0.1}"], "PGDAT"),
        (["--model.attack", "{class_path: PGD, steps: 3}"], "PGD"),
        (["--trainer.callbacks", "[{class_path: EMAWeights, decay: 0.9}]"], "EMAWeights"),
        (["--trainer.callbacks+={class_path: EMAWeights, decay: 0.9}"], "EMAWeights"),
    ],
)
def test_arguments_beside_a_class_path_in_a_flag_name_its_class(flags, owner, capsys):
    says = refusal(capsys, "fit", "-c", tiny(Path()), *flags)
    assert re.search(rf"the arguments of (\w+\.)*{owner} belong below init_args", says)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("model: {init_arg: {attack: PGD}}", "model: PGDAT has no 'init_arg' beside it: did you mean init_args?"),
        ("data: {class_pth: X}", "data: DigitsDataModule has no 'class_pth' beside it: did you mean class_path?"),
        (
            "optimizer: {lr: 1}",
            "the configuration has no option 'optimizer.lr': did you mean model.init_args.optimizer?",
        ),
        ("init_args: {attack: 1}", "init_args is the key of a part, such as model: or data: indent it below that."),
    ],
)
def test_a_key_in_the_wrong_place_or_misspelt_is_answered_by_the_right_one(text, says, capsys):
    assert refused_file(capsys, text) == says


def test_what_is_in_its_place_is_left_alone():
    check_places({"model": {"class_path": "A", "init_args": {"x": {3: [4, None]}}, "dict_kwargs": {"y": {"class": 1}}}})


# null.

NULLS = {
    "model: {init_args: {optimizer: null}}": r"model\.optimizer=null has .* default, SGD\(lr=0\.1, .*\)\.",
    "model: {init_args: {attack: {init_args: {eps: null}}}}": r"model\.attack\.eps=null has .* default, 8/255\.",
    "model: {init_args: {attack: {init_args: {steps: null}}}}": r"model\.attack\.steps=null has .* default, 10\.",
    "model: {init_args: {lr_interval: null}}": r"model\.lr_interval=null has .* default, 'epoch'\.",
    "model: {init_args: {compile: null}}": r"model\.compile=null has .* default, False\.",
    "model: {init_args: {test_attacks: {a: {class_path: PGD, init_args: {norm: null}}}}}": r".*\.a\.norm=null .*",
    "data: {init_args: {batch_size: null}}": r"data\.batch_size=null has .* default, 128\.",
    "trainer: {callbacks+: [{class_path: EMAWeights, init_args: {decay: null}}]}": r"trainer\.callbacks\.decay=null .*",
    "trainer: {callbacks+: [{class_path: ModelCheckpoint, init_args: {save_top_k: null}}]}": r".*\.save_top_k=null .*",
    "model: {init_args: {optimizer: {init_args: {lr: null}}}}": r"model\.optimizer\.lr=null has .* default, 0\.001\.",
    "model: {init_args: {optimizer: {class_path: AdamW, init_args: {betas: null}}}}": r".*optimizer\.betas=null .*",
    "model: {init_args: {optimizer: {class_path: Adafactor, init_args: {eps: null}}}}": r".*optimizer\.eps=null .*",
    "model: {init_args: {lr_scheduler: {class_path: StepLR, init_args: {step_size: 1, gamma: null}}}}": (
        r"model\.lr_scheduler\.gamma=null has .* default, 0\.1\."
    ),
    "model: {init_args: {lr_scheduler: {class_path: MultiStepLR, init_args: {milestones: [1], gamma: null}}}}": (
        r"model\.lr_scheduler\.gamma=null .*"
    ),
    "model: {init_args: {lr_scheduler: {class_path: StepLR, init_args: {step_size: null}}}}": (
        r"model\.lr_scheduler: this needs step_size below init_args\."
    ),
    "model: {init_args: {lr_scheduler: {class_path: MultiStep, init_args: {milestones: [1], factor: null}}}}": (
        r"model\.lr_scheduler\.factor=null .*"
    ),
    "model: {init_args: {lr_scheduler: {class_path: ReduceLROnPlateau, init_args: {monitor: a, mode: null}}}}": (
        r"model\.lr_scheduler\.mode=null .*"
    ),
    "model: {init_args: {net: null}}": r"model: .*PGDAT needs net below init_args\.",
    "model: {init_args: {attack: null}}": r"model: .*PGDAT needs attack below init_args\.",
    "model: null": r"model=null gives nothing: write its options below it.*",
    "data: null": r"data=null gives nothing: .*",
    "trainer: null": r"trainer=null gives nothing: .*",
    "model: {init_args: null}": r"model: init_args is null: .*",
    "model: {init_args: {optimizer: {class_path: SGD, init_args: null}}}": r"model\.optimizer: init_args is null: .*",
    "model: {class_path: null}": r"model: class_path is null: name a class\.",
    "model: {init_args: {attack: {class_path: null}}}": r"model\.attack: class_path is null: name a class\.",
}


@pytest.mark.parametrize("text", NULLS)
def test_null_where_it_means_nothing_is_answered_in_the_terms_of_yaml(text, capsys):
    says = refused_file(capsys, text)
    assert re.fullmatch(NULLS[text], says), says
    assert "None" not in says


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
#: What follows ``--trainer.callbacks+=Name``, and how it is refused; an empty answer means that it trains.
CALLBACKS = {
    "BackboneFinetuning": ("", "trains module.backbone, which a PGDAT does not have"),
    "BaseFinetuning": ("", "is a base class"),
    "BasePredictionWriter": ("", "is a base class"),
    "BatchSizeFinder": ("--trainer.callbacks.max_trials 1", ""),
    "Callback": ("", "is a base class"),
    "Checkpoint": ("", "is a base class"),
    "EarlyStopping": ("--trainer.callbacks.monitor train/loss", ""),
    "EMAWeightAveraging": ("", ""),
    "GradientAccumulationScheduler": ("--trainer.callbacks.scheduling '{0: 2}'", "raise data.batch_size instead"),
    "LambdaCallback": ("", ""),
    "LearningRateFinder": ("", "compare a few short fits"),
    "LearningRateMonitor": ("", ""),
    "ModelCheckpoint": ("", "keep one with save_top_k"),
    "ModelPruning": ("--trainer.callbacks.pruning_fn l1_unstructured", ""),
    "ModelSummary": ("", ""),
    "OnExceptionCheckpoint": ("--trainer.callbacks.dirpath here", ""),
    "ProgressBar": (BAR, "is a base class"),
    "RichModelSummary": ("", ""),
    "RichProgressBar": (BAR, ""),
    "SpikeDetection": ("", ""),
    "StochasticWeightAveraging": ("--trainer.callbacks.swa_lrs 0.1", "use EMAWeights"),
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


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--model.lr_scheduler", "StepLR", "--model.lr_scheduler.step_size", "0"], "lr_scheduler.step_size=0 must be"),
        (["--model.attack.eps", "-8/255"], "give each option a value, after = if that begins with a minus"),
        (["--model.optimizer.momentum", "-1"], "the momentum of model.optimizer must be 0 or above"),
        (["--model.lr_scheduler", "MultiStep", "--model.lr_scheduler.milestones", "3"], "3 is not of type list"),
    ],
)
def test_a_value_that_cannot_be_used_is_answered_by_what_to_give(flags, says, capsys):
    assert says in refusal(capsys, "fit", "-c", tiny(Path()), *flags)


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


# Values that give nothing, and files in the way.

ITEM = "[{init_args: {epochs: 3}}]"
GIVES_NOTHING = {
    "--trainer.callbacks [null]": "trainer.callbacks[0] is empty: name a class, or remove it.",
    "--trainer.callbacks=[null]": "trainer.callbacks[0] is empty: name a class, or remove it.",
    "--trainer.callbacks+=[{}]": "trainer.callbacks[0] is empty: name a class, or remove it.",
    "-c 'trainer: {callbacks: [TimeLeft, null]}'": "trainer.callbacks[1] is empty: name a class, or remove it.",
    "-c 'trainer: {callbacks: [{}]}'": "trainer.callbacks[0] is empty: name a class, or remove it.",
    "-c 'trainer: {logger: [{}]}'": "trainer.logger[0] is empty: name a class, or remove it.",
    "-c 'trainer: {plugins: [null]}'": "trainer.plugins[0] is empty: name a class, or remove it.",
    f"--trainer.callbacks '{ITEM}'": "trainer.callbacks[0] has init_args but no class_path: .*",
    f"-c 'trainer: {{callbacks: {ITEM}}}'": "trainer.callbacks[0] has init_args but no class_path: .*",
    "-c 'trainer: {logger: [{init_args: {name: a}}]}'": "trainer.logger[0] has init_args but no class_path: .*",
    "--model.test_attacks '{a: null}'": "model.test_attacks.a is empty: name a class, or remove it.",
    "-c 'model: {init_args: {test_attacks: {a: null, b: PGD}}}'": "model.test_attacks.a is empty: .*",
    "-c 'trainer: {callbacks+: {class_path: RobustAccuracy, init_args: {attacks: {a: {}}}}}'": (
        ".*attacks.a is empty: .*"
    ),
    **{
        f"--{section} {null}": f"{section}=null gives nothing: .*"
        for section in ("data", "model", "trainer")
        for null in ("null", "None", "'~'", "''")
    },
    "--ckpt_path ''": "--ckpt_path is empty: name a file, .*",
    "--ckpt_path=": "--ckpt_path is empty: name a file, .*",
    "--data=": "data=null gives nothing: .*",
    "-c 'model: {init_args: {attack: {class_path: PGD, init_args: {step_size: None}}}}'": (
        "model.attack.step_size=None is a word in YAML: .* write null .*"
    ),
    "--model.test_attacks '{a: PGD, a: FGSM}'": "--model.test_attacks, line 1: the key 'a' is repeated: keep one.",
    "-c 'model: {init_args: {test_attacks: {a: PGD, a: FGSM}}}'": "-c, line 1: the key 'a' is repeated: keep one.",
    "--model.attack '{class_path: PGD, init_args: {eps: !!binary 1}}'": ".* line 1: the tag !!binary is .*",
    "--trainer.callbacks+=GradientAccumulationScheduler --trainer.callbacks.scheduling 2": (
        "trainer.callbacks.scheduling: 2 is not of type dict."
    ),
}


@pytest.mark.parametrize("words", GIVES_NOTHING)
def test_a_value_that_gives_nothing_is_refused_while_parsing(words, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["fit", "-c", tiny(Path()), *shlex.split(words)])
    error = capsys.readouterr().err.split("lit-robust: error: ")[1].splitlines()[0]
    pattern = GIVES_NOTHING[words].replace("[", r"\[").replace("]", r"\]").replace("{", r"\{")
    assert re.fullmatch(pattern, error), error
    assert stop.value.code == 2


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        (["--trainer.logger.name", "file"], "name or version of trainer.logger"),
        (["--trainer.logger.version", "../file"], "name or version of trainer.logger"),
        (["--trainer.logger.save_dir", "runs/file"], "save_dir of trainer.logger"),
        (["--trainer.logger", "false", "--trainer.default_root_dir", "runs/file"], "trainer.default_root_dir"),
    ],
)
def test_a_file_in_the_place_of_a_runs_folder_is_named(words, remedy, capsys):
    Path("runs").mkdir()
    Path("runs/file").touch()
    error = refusal(capsys, "fit", "-c", tiny(Path()), *words)
    assert re.fullmatch(rf"cannot log to .*, because \S*runs/file is not a folder: change {remedy}\.", error)
    assert [path.name for path in Path("runs").iterdir()] == ["file"]
