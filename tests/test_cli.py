"""The command line from end to end: fit, validate, test, predict, resume, and what they write."""

import contextlib
import csv
import logging
import math
import runpy
import shutil
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from lit_robust import __version__
from lit_robust.attacks import PGD
from lit_robust.cli import main
from lit_robust.cli.verbs import VERBS
from tests.front_door import lit

CONFIGS = Path(__file__).parent.parent / "configs"
RUN = Path("runs/tiny/version_0")


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """The folder in which the tiny configuration was trained."""
    folder = tmp_path_factory.mktemp("fitted")
    with contextlib.chdir(folder):
        lit("fit")
    return folder


@pytest.fixture
def here(fitted, tmp_path, monkeypatch):
    """A working directory that has the trained run."""
    shutil.copytree(fitted, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rows(path):
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


def weights(path):
    return torch.load(path, weights_only=True)["state_dict"]


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file())


def table_of(output):
    """The last table that was printed: its columns, and its rows by name."""
    lines = output[output.rindex("accuracy in %") :].split("\n\n")[0].splitlines()
    return lines[0].removeprefix("accuracy in %").split(), {line.split()[0]: line for line in lines[2:]}


# Training.


def test_fit_writes_configuration_metrics_and_the_best_and_last_checkpoint(here):
    assert files(RUN) == ["checkpoints/best.ckpt", "checkpoints/last.ckpt", "config.yaml", "metrics.csv"]


def test_metric_keys_are_grouped_by_split(here):
    keys = set(rows(RUN / "metrics.csv")[0]) - {"epoch", "step"}
    assert keys >= {
        "train/loss",
        "train/acc/robust",
        "train/adversarial",
        "train/lr",
        "val/acc/clean",
        "val/acc/robust",
    }
    assert all(key.startswith(("train/", "val/")) for key in keys)


def test_the_saved_configuration_runs_again_and_gives_the_same_net(here):
    main(["fit", "-c", str(RUN / "config.yaml")])
    first, second = (weights(f"runs/tiny/version_{i}/checkpoints/last.ckpt") for i in (0, 1))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_fractions_are_saved_as_they_were_written(empty):
    wide = "{class_path: PGD, init_args: {eps: 10/255, init_size: 1/255}}"
    lit("fit", "--trainer.max_epochs", 0, "--model.attack.step_size", "19/255", "--model.test_attacks.wide", wide)
    model = yaml.safe_load((RUN / "config.yaml").read_text())["model"]["init_args"]
    assert (model["attack"]["init_args"]["eps"], model["attack"]["init_args"]["step_size"]) == ("38/255", "19/255")
    assert model["test_attacks"]["pgd2"]["init_args"]["eps"] == "38/255"
    wide = model["test_attacks"]["wide"]["init_args"]
    assert (wide["eps"], wide["init_size"], wide["step_size"]) == ("10/255", "1/255", None)


def test_a_flag_changes_one_argument_and_leaves_the_others(empty):
    # jsonargparse 4.53 fails here unless the parser helps: the net, a function, has arguments in the file.
    lit("fit", "--trainer.max_epochs", 0, "--model.optimizer.lr", 0.5, "--model.net.width", 2, "--data.batch_size", 16)
    config = yaml.safe_load((RUN / "config.yaml").read_text())
    assert config["model"]["init_args"]["optimizer"]["init_args"]["lr"] == 0.5
    assert config["model"]["init_args"]["net"]["init_args"] == {"num_classes": 10, "width": 2}
    assert config["model"]["init_args"]["attack"]["init_args"]["steps"] == 2
    assert config["data"]["init_args"]["train_size"] == 64


# Resuming.


def test_a_resumed_run_goes_on_in_its_folder_and_with_its_metrics(here):
    lit("fit", "--ckpt_path", "last", "--trainer.max_epochs", 2)
    assert [path.name for path in Path("runs/tiny").iterdir()] == ["version_0"]
    before, after = (rows(RUN / name) for name in ("metrics_0.csv", "metrics.csv"))
    assert {row["epoch"] for row in before} == {"0"}
    assert after[: len(before)] == before
    assert {row["epoch"] for row in after[len(before) :]} == {"1"}
    checkpoint = torch.load(RUN / "checkpoints/last.ckpt", weights_only=True)
    assert (checkpoint["epoch"], checkpoint["global_step"]) == (1, 4)


def test_a_run_resumed_twice_keeps_all_metrics_and_equals_an_uninterrupted_one(here):
    lit("fit", "--ckpt_path", "last", "--trainer.max_epochs", 2)
    lit("fit", "--ckpt_path", RUN, "--trainer.max_epochs", 3)
    lit("fit", "--trainer.logger.name", "whole", "--trainer.max_epochs", 3)
    assert [rows(RUN / f"metrics{which}.csv")[-1]["epoch"] for which in ("_0", "_1", "")] == ["0", "1", "2"]
    assert (RUN / "metrics.csv").read_bytes() == Path("runs/whole/version_0/metrics.csv").read_bytes()
    resumed, whole = (weights(f"runs/{name}/version_0/checkpoints/last.ckpt") for name in ("tiny", "whole"))
    assert all(torch.equal(resumed[key], whole[key]) for key in whole)


def test_a_resume_keeps_the_configuration_that_the_run_began_with_and_saves_its_own(here):
    first = (RUN / "config.yaml").read_text()
    for epochs in (2, 3):
        lit("fit", "--ckpt_path", "last", "--trainer.max_epochs", epochs)
    assert (RUN / "config.yaml").read_text() == first
    resumed = [yaml.safe_load((RUN / f"config_resumed_{number}.yaml").read_text()) for number in (1, 2)]
    assert [config["trainer"]["max_epochs"] for config in resumed] == [2, 3]


class Writer:
    """Stands for TensorBoard's, which need not be installed, and writes what it is given as lines."""

    def __init__(self, log_dir, purge_step=None):
        Path(log_dir).mkdir(parents=True, exist_ok=True)
        number = len(list(Path(log_dir).glob("events*")))
        self.path = Path(log_dir, f"events.out.tfevents.{number}")
        self.path.write_text(f"purge_step={purge_step}\n")

    def add_scalar(self, name, value, step):
        with self.path.open("a") as file:
            file.write(f"{step} {name}\n")

    def flush(self): ...

    def close(self): ...


def test_a_resumed_run_goes_on_in_its_folder_of_tensorboard(empty, monkeypatch):
    monkeypatch.setattr("lightning.fabric.loggers.tensorboard._TENSORBOARD_AVAILABLE", True)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=Writer))
    board = ["--trainer.logger", "TensorBoardLogger"]
    lit("fit", *board)
    lit("fit", *board, "--ckpt_path", "last", "--trainer.max_epochs", 2)
    assert [path.name for path in Path("runs/tiny").iterdir()] == ["version_0"]
    first, second = ((RUN / f"events.out.tfevents.{number}").read_text().splitlines() for number in (0, 1))
    assert (first[0], second[0]) == ("purge_step=None", "purge_step=2")
    # Step 1 is the first epoch's row, which Lightning logs after it has saved; it is there twice, with equal values.
    assert {line for line in second if line.endswith("train/loss")} == {f"{step} train/loss" for step in (1, 2, 3)}
    assert torch.load(RUN / "checkpoints/last.ckpt", weights_only=True)["epoch"] == 1
    lit("fit", *board)
    assert sorted(path.name for path in Path("runs/tiny").iterdir()) == ["version_0", "version_1"]


def test_the_progress_bar_calls_a_resumed_run_by_its_number(here, capsys):
    bar = ["--trainer.enable_progress_bar", "true", "--trainer.callbacks+=TQDMProgressBar"]
    lit("fit", "--ckpt_path", "last", "--trainer.max_epochs", 2, *bar)
    assert "v_num=0," in capsys.readouterr().out


def test_other_data_than_the_checkpoints_are_warned_of_and_trained_on(here):
    with pytest.warns(UserWarning, match=r"data.*train_images=64 .*32, split_seed=0 .*1\)"):
        lit("fit", "--ckpt_path", "last", "--trainer.max_epochs", 2, "--data.train_size", 32, "--data.split_seed", 1)
    assert torch.load(RUN / "checkpoints/last.ckpt", weights_only=True)["lit_robust"]["data"]["train_images"] == 32


def test_a_second_logger_stays_when_a_run_is_resumed(here):
    Path("two.yaml").write_text(
        "trainer: {logger: [{class_path: CSVLogger, init_args: {save_dir: runs, name: tiny}},"
        " {class_path: CSVLogger, init_args: {save_dir: elsewhere, name: tiny}}]}"
    )
    lit("fit", "-c", "two.yaml", "--ckpt_path", "last", "--trainer.max_epochs", 2)
    elsewhere, own = rows("elsewhere/tiny/version_0/metrics.csv"), rows(RUN / "metrics.csv")
    assert own[-len(elsewhere) :] == elsewhere  # from the row on that was logged right after the checkpoint
    assert (own[0]["epoch"], elsewhere[-1]["epoch"], len(elsewhere) < len(own)) == ("0", "1", True)


def test_a_learning_rate_given_with_the_checkpoint_is_used_by_a_resumed_run(here):
    lit("fit", "--ckpt_path", "last", "--trainer.max_epochs", 2, "--model.optimizer.lr", 0.25)
    resumed = [row for row in rows(RUN / "metrics.csv") if row["epoch"] == "1"]
    assert {float(row["train/lr"]) for row in resumed if row["train/lr"]} == {0.25}


def test_weight_decay_and_momentum_given_with_the_checkpoint_are_used_too(here):
    settings = ["--model.optimizer.weight_decay", 0.125, "--model.optimizer.momentum", 0.75]
    lit("fit", "--ckpt_path", "last", "--trainer.max_epochs", 2, *settings)
    checkpoint = torch.load(RUN / "checkpoints/last.ckpt", weights_only=True)
    (group,) = checkpoint["optimizer_states"][0]["param_groups"]
    assert (group["weight_decay"], group["momentum"]) == (0.125, 0.75)


def test_a_run_without_a_logger_leaves_a_configuration_of_the_users_alone(empty):
    Path("config.yaml").write_text("mine")
    lit("fit", "--trainer.logger", "false")
    assert Path("config.yaml").read_text() == "mine"


def test_a_training_that_is_done_is_left_as_it_is(here):
    files = {path: path.read_bytes() for path in RUN.rglob("*") if path.is_file()}
    lit("fit", "--ckpt_path", "last")
    assert {path: path.read_bytes() for path in Path("runs").rglob("*") if path.is_file()} == files


@pytest.mark.parametrize(
    ("command", "read"),
    [
        ("fit", ["last", "last"]),
        ("validate", ["last", "last"]),
        ("predict", ["last", "last"]),
        ("test", ["last", "best", "last", "best"]),  # all of them before the first attack
    ],
)
def test_a_checkpoint_of_a_folder_is_read_once_by_us_and_once_by_lightning(command, read, here, monkeypatch):
    names, load = [], torch.load

    def counting(file, *args, **kwargs):
        names.append(Path(getattr(file, "name", file)).stem)
        return load(file, *args, **kwargs)

    monkeypatch.setattr(torch, "load", counting)
    lit(command, "--ckpt_path", "runs/tiny", *(["--trainer.max_epochs", 2] if command == "fit" else []))
    assert names == read


# Testing.


def test_a_run_is_tested_with_its_last_and_best_checkpoint_in_one_table(here, capsys):
    lit("test", "--ckpt_path", "runs/tiny")
    output = capsys.readouterr().out
    columns, table = table_of(output)
    assert columns == ["last", "best", "n"]
    assert list(table) == ["clean", "pgd2"]
    assert all(line.count("[") == 2 and line.endswith(" 32") for line in table.values())
    assert "\npgd2 is PGD(eps=38/255, step_size=0.1, steps=2)\n" in output  # so that no one mistakes its eps
    assert "Test metric" not in output  # Lightning's own table


def test_the_table_is_saved_next_to_the_metrics(here):
    lit("test", "--ckpt_path", "runs/tiny")
    kept = rows("runs/tiny/version_0/test.csv")
    assert [(row["checkpoint"], row["attack"], row["n"]) for row in kept] == [
        ("last", "clean", "32"), ("last", "pgd2", "32"), ("best", "clean", "32"), ("best", "pgd2", "32"),
    ]  # fmt: skip
    assert all(float(row["low"]) <= float(row["accuracy"]) <= float(row["high"]) for row in kept)
    assert Path("runs/tiny/version_0/config_test.yaml").exists()


def test_a_long_attack_keeps_its_blocks_in_the_runs_folder(here, monkeypatch):
    calls, once = [], PGD.__call__
    monkeypatch.setattr(PGD, "__call__", lambda self, *args: calls.append(self.restarts) or once(self, *args))
    attacks = "{long: {class_path: PGD, init_args: {eps: 0.1, steps: 2, restarts: 5}}}"
    monkeypatch.setattr("lit_robust.attacks.base.LONG", 10)
    command = "test", "--ckpt_path", "runs/tiny", "--model.test_attacks", attacks, "--model.alarm_images", 0
    lit(*command)
    blocks = list((RUN / "blocks").iterdir())
    assert calls == [5] * len(blocks) != []
    lit(*command)
    assert calls == [5] * len(blocks)
    assert all(path.stat().st_size < 3000 for path in blocks)  # without images
    assert rows(RUN / "test.csv") == rows(RUN / "test_0.csv")


def test_the_metrics_of_a_test_say_where_in_the_training_each_checkpoint_was_written(here):
    checkpoint = torch.load(RUN / "checkpoints/last.ckpt", weights_only=True)
    torch.save(checkpoint | {"epoch": 7, "global_step": 16}, RUN / "checkpoints/last.ckpt")
    lit("test", "--ckpt_path", "runs/tiny")
    written = rows(RUN / "test_metrics.csv")
    assert [(float(row["epoch"]), int(row["step"])) for row in written] == [(7, 16), (0, 2)]


def test_what_belongs_to_a_run_lies_in_its_folder_and_is_named(here, caplog):
    before = (RUN / "metrics.csv").read_bytes()
    draw = "--trainer.callbacks+=AdversarialExamples", "--trainer.callbacks.attack=PGD"
    for command in ("test", "test", "validate", "predict"):
        lit(command, "--ckpt_path", "last", *(draw if command == "test" else ()))
    assert [path.name for path in Path("runs/tiny").iterdir()] == ["version_0"]
    assert (RUN / "metrics.csv").read_bytes() == before
    assert set(files(RUN)) == {
        "checkpoints/best.ckpt", "checkpoints/last.ckpt", "config.yaml", "metrics.csv", "examples/test-last.png",
        "config_test.yaml", "config_test_0.yaml", "test.csv", "test_0.csv", "test_metrics.csv", "test_metrics_0.csv",
        "config_validate.yaml", "validate_metrics.csv", "config_predict.yaml", "predictions.csv",
    }  # fmt: skip
    assert caplog.text.count(f"The run is in {RUN}, and its pictures {RUN}/examples/test-last.png.") == 2
    lit("fit")
    assert "The run is in runs/tiny/version_1." in caplog.text


@pytest.mark.parametrize("bar", ["RichProgressBar", "TQDMProgressBar"])
def test_the_terminal_ends_with_the_table(bar, here, capsys):
    if bar == "RichProgressBar":
        pytest.importorskip("rich")
    lit("test", "--ckpt_path", "last", "--trainer.enable_progress_bar", "true", f"--trainer.callbacks+={bar}")
    output = capsys.readouterr().out
    assert "Testing" in output
    *_, last_row, empty, told = output.rstrip().splitlines()
    assert last_row == table_of(output)[1]["pgd2"]
    assert (empty, told.partition(":")[0]) == ("", "no alarm")


@pytest.mark.parametrize(
    ("path", "column"),
    [
        ("best", "best"),
        ("last", "last"),
        (RUN / "checkpoints/best.ckpt", "best"),
        (RUN / "checkpoints/renamed.ckpt", "renamed"),
    ],
)
def test_one_checkpoint_is_meant_by_its_file_or_by_best_or_last(path, column, here, capsys):
    shutil.copy(RUN / "checkpoints/last.ckpt", RUN / "checkpoints/renamed.ckpt")
    lit("test", "--ckpt_path", path)
    assert table_of(capsys.readouterr().out)[0] == [column, "n"]


@pytest.mark.parametrize("path", ["last", RUN / "checkpoints/last.ckpt"])  # Lightning lays over what a file holds
def test_arguments_given_with_the_checkpoint_are_tested(path, here):
    old = torch.load(RUN / "checkpoints/last.ckpt", weights_only=True)["hyper_parameters"]
    assert list(old["test_attacks"]) == ["pgd2"]
    attacks = (
        "{none: {class_path: PGD, init_args: {eps: 0, step_size: 0}},"
        " all: {class_path: PGD, init_args: {eps: 1, step_size: 1, steps: 3, init: zero}}}"
    )
    lit("test", "--ckpt_path", path, "--model.test_attacks", attacks, "--data.test_size", 200)
    accuracy = {row["attack"]: float(row["accuracy"]) for row in rows("runs/tiny/version_0/test.csv")}
    assert list(accuracy) == ["clean", "none", "all", "worst"]
    assert accuracy["none"] == accuracy["clean"] > accuracy["all"] == accuracy["worst"]


def test_a_test_can_be_given_each_attack_by_its_name(here, capsys):
    flags = {
        "gama": "lit_robust.attacks.GAMAPGD",
        "gama.eps": "38/255",
        "gama.steps": 4,
        "fw": "{class_path: GAMAFW, init_args: {eps: 38/255, steps: 4, drops: [0.5]}}",
        "cw": "{class_path: CWPGD, init_args: {eps: 38/255, steps: 2, kappa: 3}}",
        "least": "{class_path: TargetedPGD, init_args: {eps: 38/255, steps: 2, target_rank: -1, towards: "
        "lit_robust.losses.ce_targeted}}",
        "multi": "{class_path: MultiTargetedPGD, init_args: {eps: 38/255, steps: 2, targets: 2}}",
        "bpda": "{class_path: BPDA, init_args: {attack: {class_path: PGD, init_args: {eps: 0.1}}, forward: body.0.1}}",
    }
    lit(
        "test",
        "--ckpt_path",
        "last",
        *(word for name in flags for word in (f"--model.test_attacks.{name}", flags[name])),
    )
    output = capsys.readouterr().out
    assert "\ngama is GAMAPGD(eps=38/255, step_size=76/255, steps=4)\n" in output
    assert list(table_of(output)[1]) == ["clean", "pgd2", "gama", "fw", "cw", "least", "multi", "bpda", "worst"]


def test_arguments_given_with_the_checkpoint_are_trained_with(here):
    path = RUN / "checkpoints/last.ckpt"
    lit("fit", "--ckpt_path", path, "--trainer.max_epochs", 2, "--model.attack.eps", "2/255", "--model", "Natural")
    config = yaml.safe_load((RUN / "config_resumed_1.yaml").read_text())["model"]
    assert config["class_path"] == "lit_robust.defenses.Natural"
    assert config["init_args"]["attack"]["init_args"]["eps"] == "2/255"
    assert "train/acc/clean" in rows(RUN / "metrics.csv")[0]  # what Natural observes, and PGDAT does not


def test_a_test_uses_the_weights_of_the_checkpoint(here):
    checkpoint = torch.load(RUN / "checkpoints/last.ckpt", weights_only=True)
    bias = checkpoint["state_dict"]["net.head.bias"]
    bias.copy_(torch.where(torch.arange(10) == 3, 1e6, 0.0))  # always predicts 3
    torch.save(checkpoint, "threes.ckpt")
    lit("test", "--ckpt_path", "threes.ckpt", "--data.test_size", 397)
    from lit_robust.data import DigitsDataModule

    y = torch.cat([batch.y for batch in DigitsDataModule().test_dataloader()])
    threes = float((y == 3).float().mean())
    assert [float(row["accuracy"]) for row in rows("runs/tiny/version_1/test.csv")] == pytest.approx([threes, threes])


def test_validate_measures_the_held_out_images(here):
    lit("validate", "--ckpt_path", "best")
    (row,) = rows(RUN / "validate_metrics.csv")
    (best,) = [row for row in rows(RUN / "metrics.csv") if row["val/acc/robust"]]
    assert (row["val/acc/clean"], row["val/acc/robust"]) == (best["val/acc/clean"], best["val/acc/robust"])


def test_predict_writes_a_row_per_image(here):
    lit("predict", "--ckpt_path", "last", "--data.eval_batch_size", 10)
    written = rows(RUN / "predictions.csv")
    assert [int(row["index"]) for row in written] == list(range(32))
    assert all(0.1 <= float(row["probability"]) <= 1 for row in written)
    lit("test", "--ckpt_path", "last")
    right = sum(row["predicted"] == row["label"] for row in written)
    assert float(rows(RUN / "test.csv")[0]["accuracy"]) == pytest.approx(right / 32)


def test_a_picture_of_adversarial_images_is_drawn_at_test(here):
    pytest.importorskip("matplotlib")
    lit("test", "--ckpt_path", "last", "-c", CONFIGS / "callback" / "examples.yaml")
    (picture,) = (RUN / "examples").iterdir()
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.name.startswith("test-")


# Weights & Biases.


@pytest.fixture
def wandb(monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_MODE", "offline")
    yield wandb
    wandb.finish()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of wandb's own dependencies
def test_weights_and_biases_gets_metrics_configuration_pictures_and_the_table_and_goes_on_by_id(wandb, empty):
    log = ["-c", CONFIGS / "callback/wandb.yaml", "--trainer.logger.offline", "true", "--trainer.logger.id", "abc"]
    log += ["-c", CONFIGS / "callback/examples.yaml"]
    lit("fit", *log)
    assert wandb.run.id == "abc"
    assert wandb.run.summary["val/acc/robust"] is not None
    assert math.isfinite(wandb.run.summary["train/loss"])
    assert wandb.run.config["model"]["init_args"]["attack"]["init_args"]["eps"] == "38/255"
    assert [path for path in Path("runs").rglob("*.png") if "media" in path.parts]
    assert Path("runs/lit_robust/abc/checkpoints/last.ckpt").exists()
    wandb.finish()
    assert Path("runs/lit_robust/abc/config.yaml").exists()
    assert [*Path("runs/lit_robust/abc/examples").glob("*.png")]  # not next to another run's
    with pytest.raises(SystemExit):  # it would become a run of its own
        lit("fit", *log[:4], "--ckpt_path", "last", "--trainer.max_epochs", 2)
    again = [*log, "--trainer.logger.resume", "allow", "--ckpt_path", "last"]
    lit("fit", *again, "--trainer.max_epochs", 2)
    assert wandb.run.id == "abc"
    assert wandb.run.summary["epoch"] == 1
    assert torch.load("runs/lit_robust/abc/checkpoints/last.ckpt", weights_only=True)["epoch"] == 1
    wandb.finish()
    lit("test", *again)
    assert [path for path in Path("runs").rglob("*.table.json") if "media" in path.parts]


# Output on the terminal.


def test_the_module_is_the_command(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["lit_robust", "--version"])
    with pytest.raises(SystemExit):
        runpy.run_module("lit_robust", run_name="__main__")
    said = capsys.readouterr()
    assert said.out.split() == ["lit-robust", __version__]
    assert said.err == ""


@pytest.mark.parametrize("args", [["--help"], ["fit", "--help"], ["fit", "--model.help", "PGDAT"]])
def test_help_is_there_at_every_level(args, capsys):
    with pytest.raises(SystemExit) as stop:
        main(args)
    assert stop.value.code == 0
    assert "usage" in capsys.readouterr().out.lower()


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_an_analysis_is_read_in_a_minute_and_says_which_checkpoints_it_takes(verb, capsys):
    with pytest.raises(SystemExit):
        main([verb, "--help"])
    said = capsys.readouterr().out
    assert len(said.splitlines()) < 160
    assert "``" not in said
    takes = " ".join(said.partition("arguments:\n  checkpoints ")[2].partition("options:")[0].split())
    of_runs = verb in ("stale", "curves", "eigenvalue")
    assert takes.removeprefix("The nets to attack: ").startswith("Folders of runs" if of_runs else ".ckpt files")
    assert ("@SEED=" in takes) is (verb in ("compare", "report"))


def test_no_advertisement_and_no_warning_reaches_the_user(here, capsys, caplog):
    with warnings.catch_warnings(record=True) as caught, caplog.at_level(logging.INFO):
        warnings.simplefilter("always")
        steps = ["-c", CONFIGS / "callback/save_steps.yaml", "--trainer.callbacks.every_n_train_steps", 1]
        lit("fit", *steps)
        lit("fit", *steps, "--ckpt_path", "last", "--trainer.max_epochs", 2)
        lit("test", "--ckpt_path", "runs/tiny")
    assert [str(warning.message) for warning in caught if warning.category is not DeprecationWarning] == []
    assert "Tip" not in capsys.readouterr().err + caplog.text


def test_filters_are_in_place_only_while_the_command_runs(empty):
    talker = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    before = list(warnings.filters), list(talker.filters)
    lit("fit", "--trainer.max_epochs", 0)
    with pytest.raises(SystemExit):
        lit("fit", "--data.batch_size", 0)
    assert (list(warnings.filters), list(talker.filters)) == before
