"""What is written is whole or absent, and what is broken does not hinder what is whole."""

import fcntl
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from PIL import Image

from lit_robust import folder_locks, whole_files
from lit_robust.checkpoint_files import read_checkpoint
from lit_robust.data import ImageFolderDataModule
from lit_robust.data.torchvision_sets import data_root
from lit_robust.defenses import Natural
from lit_robust.folder_locks import lock, unlock
from lit_robust.metrics_files import keep_rows_whole, number_of_rows, rows_before
from lit_robust.runs import checkpoints_of, next_free, read_last
from lit_robust.training.checkpoint_io import WholeCheckpoints
from lit_robust.whole_files import csv_cell, write_whole
from tests.front_door import lit
from tests.methods import build
from tests.tiny import images, loader, trainer


def test_a_file_takes_the_place_of_another_in_one_step(tmp_path):
    write_whole(tmp_path / "new" / "a.txt", b"first")
    write_whole(tmp_path / "new" / "a.txt", b"second")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.txt"]
    assert (tmp_path / "new" / "a.txt").read_bytes() == b"second"


def test_a_full_disk_is_reported_with_the_file_and_the_remedy(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("before")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"a\.txt .*\(No space left on device\)"):
        write_whole(tmp_path / "a.txt", b"after")
    assert (tmp_path / "a.txt").read_text() == "before"
    assert len(list(tmp_path.iterdir())) == 1


# The processes run one file: importing the package, and so torch, takes ten seconds.
KILLED = f"""
import os, runpy, sys, time
os.fsync = lambda descriptor: (print("writing", flush=True), time.sleep(60))
runpy.run_path({whole_files.__file__!r})["write_whole"](sys.argv[1], b"x" * 10_000_000)
"""


def test_a_kill_while_it_is_written_leaves_the_old_one(tmp_path):
    path = tmp_path / "last.ckpt"
    path.write_bytes(b"old")
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"writing\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert path.read_bytes() == b"old"
    assert [found.name for found in tmp_path.glob("*.ckpt")] == ["last.ckpt"]


def test_a_fit_writes_whole_checkpoints_and_removes_unfinished_ones(tmp_path):
    (tmp_path / ".last.ckpt.part").write_text("half")
    run = trainer(
        tmp_path, max_epochs=1, enable_checkpointing=True, callbacks=[ModelCheckpoint(tmp_path, filename="last")]
    )
    with pytest.warns(UserWarning, match="exists and is not empty"):
        run.fit(build(Natural), loader(images(8)))
    assert isinstance(run.strategy.checkpoint_io, WholeCheckpoints)
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]
    assert read_checkpoint(tmp_path / "last.ckpt")["epoch"] == 0


def test_a_users_own_way_of_writing_stays(tmp_path):
    class Mine(TorchCheckpointIO):
        pass

    run = trainer(tmp_path, max_epochs=1, plugins=[Mine()])
    run.fit(build(Natural), loader(images(8)))
    assert type(run.strategy.checkpoint_io) is Mine


# Broken checkpoints.


@pytest.fixture
def run(tmp_path):
    """A run with three checkpoints, of which `last` is broken."""
    for age, name in enumerate(("epoch=0", "best", "last")):
        torch.save({"state_dict": {}, "epoch": age}, tmp_path / f"{name}.ckpt")
        os.utime(tmp_path / f"{name}.ckpt", (age, age))
    (tmp_path / "last.ckpt").write_bytes((tmp_path / "last.ckpt").read_bytes()[:100])
    return tmp_path


def test_a_broken_last_checkpoint_is_replaced_by_the_newest_whole_one_with_a_warning(run):
    with pytest.warns(UserWarning, match=r"last\.ckpt .*best\.ckpt"):
        path, checkpoint = read_last(checkpoints_of(run))
    assert (path.name, checkpoint["epoch"]) == ("best.ckpt", 1)


def test_a_broken_file_that_was_named_is_refused(run):
    with pytest.raises(ValueError, match=r"last\.ckpt "):
        read_last({"mine": run / "last.ckpt"})


def test_a_broken_last_checkpoint_does_not_prevent_the_test_of_the_best(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    lit("fit")
    last = checkpoints_of(tmp_path / "runs")["last"]
    last.write_bytes(last.read_bytes()[:1000])
    with pytest.warns(UserWarning, match=r"last\.ckpt "):
        lit("test", "--ckpt_path", "runs/tiny")
    assert "best" in capsys.readouterr().out


# Names.


def test_a_number_that_was_used_is_not_used_again(tmp_path):
    assert next_free(tmp_path, "metrics", ".csv").name == "metrics_0.csv"
    (tmp_path / "metrics_1.csv").touch()  # metrics_0.csv has been deleted
    (tmp_path / "metrics_of_mine.csv").touch()
    assert next_free(tmp_path, "metrics", ".csv").name == "metrics_2.csv"


def test_a_run_is_found_through_symbolic_links_and_loops_end(tmp_path):
    (tmp_path / "disk" / "checkpoints").mkdir(parents=True)
    (tmp_path / "disk" / "checkpoints" / "last.ckpt").touch()
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "version_0").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "loop").symlink_to(tmp_path / "disk")
    found = checkpoints_of(tmp_path / "runs")
    assert found == {"last": tmp_path / "runs" / "version_0" / "checkpoints" / "last.ckpt"}


def test_a_home_folder_may_be_written_as_a_tilde(tmp_path, monkeypatch):
    torch.save({"state_dict": {}}, tmp_path / "a.ckpt")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert read_checkpoint("~/a.ckpt") == {"state_dict": {}}


def test_a_run_in_the_home_folder_is_found_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    at_home = ["--trainer.logger.init_args.save_dir", "~/runs"]
    lit("fit", *at_home)
    assert "last" in checkpoints_of(tmp_path / "home/runs/tiny")
    writer = ["--trainer.callbacks+=PredictionWriter", "--trainer.callbacks.path", "~/sub/mine.csv"]
    lit("predict", "--ckpt_path", "last", *at_home, *writer)
    assert (tmp_path / "home/sub/mine.csv").read_text().startswith("index,")
    assert not (tmp_path / "~").exists()


def test_data_in_the_home_folder_are_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("LIT_ROBUST_DATA", "~/sets")
    assert data_root(None) == str(tmp_path / "sets")
    assert data_root("~/mine") == str(tmp_path / "mine")
    for part in ("train", "val"):
        for label in ("cat", "dog"):
            (tmp_path / "images" / part / label).mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(tmp_path / "images" / part / label / "0.png")
    assert ImageFolderDataModule("~/images").num_classes == 2


@pytest.mark.parametrize("name", ["=1+1", "+cmd", "-2", "@sum"])
def test_no_name_becomes_a_formula(name):
    assert csv_cell(name) == f"'{name}"


def test_other_cells_stay_as_they_are():
    assert [csv_cell(cell) for cell in ("pgd20", -0.5, 3, "")] == ["pgd20", -0.5, 3, ""]


# Two trainings in one folder.

HOLDS = f"""
import runpy, sys, time
holder = runpy.run_path({folder_locks.__file__!r})
holder["lock"](sys.argv[1])
print("held", flush=True)
time.sleep(60)
"""


@contextmanager
def other_training(folder):
    """A process that trains in a folder until the end of the block."""
    process = subprocess.Popen([sys.executable, "-c", HOLDS, str(folder)], stdout=subprocess.PIPE)
    try:
        assert process.stdout.readline() == b"held\n"
        yield
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_second_training_in_a_folder_is_refused_until_the_first_is_killed(tmp_path):
    with other_training(tmp_path / "run"), pytest.raises(ValueError, match=r"process .*run: "):
        lock(tmp_path / "run")
    lock(tmp_path / "run")
    lock(tmp_path / "run")  # its own
    unlock(tmp_path / "run")
    assert list((tmp_path / "run").iterdir()) == []


def test_a_process_that_was_forked_by_a_training_holds_no_lock(tmp_path):
    """A loader's worker outlives a killed training by some seconds."""
    lock(tmp_path / "run")
    begun, begins = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(begins, b".")
        time.sleep(60)
        os._exit(0)
    try:
        os.read(begun, 1)
        folder_locks._held.pop((tmp_path / "run").resolve()).close()  # as the system does at a kill
        lock(tmp_path / "run")
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(begun)
        os.close(begins)
        unlock(tmp_path / "run")


def test_a_lock_file_that_was_removed_meanwhile_is_no_lock(tmp_path, monkeypatch):
    path, flock, removed = tmp_path / ".training", fcntl.flock, []

    def late(file, operation):
        if not removed:
            removed.append(path.unlink())  # another training has ended between opening and locking
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    lock(tmp_path)
    assert path.exists()
    unlock(tmp_path)
    assert not path.exists()


@pytest.mark.parametrize(
    "content", [b"step\n" + b"1" * 200_000, b"step\n\xff\xfe", None], ids=["long", "no text", "folder"]
)
def test_a_broken_table_of_metrics_is_named(content, tmp_path):
    path = tmp_path / "metrics.csv"
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(ValueError, match=r"metrics\.csv is not a table of metrics .*: move it out"):
        rows_before(tmp_path, 1)


def test_a_fit_holds_its_loggers_folder_and_a_resume_is_refused_before_it_moves_the_metrics(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lit("fit")
    folder = tmp_path / "runs/tiny/version_0"
    before = sorted(path.name for path in folder.iterdir())
    assert ".training" not in before
    with other_training(folder):
        with pytest.raises(SystemExit) as stop:
            lit("fit", "--ckpt_path", "runs/tiny", "--trainer.max_epochs", 5)
        assert stop.value.code == 1
        assert sorted(path.name for path in folder.iterdir()) == sorted([*before, ".training"])
        lit("test", "--ckpt_path", "runs/tiny")  # while the other process trains
    lit("fit", "--ckpt_path", "runs/tiny", "--trainer.max_epochs", 5)


def test_a_resume_on_a_full_disk_releases_the_folder_and_loses_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lit("fit")
    folder = tmp_path / "runs/tiny/version_0"
    rows = (folder / "metrics.csv").read_text()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(SystemExit):
            lit("fit", "--ckpt_path", "last", "--trainer.max_epochs", 2)
    assert not (folder / ".training").exists()
    lit("fit", "--ckpt_path", "last", "--trainer.max_epochs", 2)
    assert (folder / "metrics.csv").read_text().startswith(rows)


# Starts that fail.


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        ("fit", ["--trainer.check_val_every_n_epoch=0"]),  # refused in setup
        ("fit", ["--trainer.precision=bf16-true"]),
        ("fit", ["--model.net=lit_robust.nets.resnet18", "--model.net.in_channels=3"]),  # in the first batch
        ("fit", ["--trainer.callbacks+=tests.sender.Send", "--trainer.callbacks.hook=setup"]),
        ("fit", ["--trainer.callbacks+=tests.sender.Send", "--trainer.callbacks.hook=on_fit_start"]),
        ("fit", ["--trainer.callbacks+=tests.sender.Send", "--trainer.callbacks.hook=on_sanity_check_start"]),
        ("test", ["--trainer.callbacks+=tests.sender.Send", "--trainer.callbacks.hook=setup"]),
        ("test", ["--trainer.precision=bf16-true"]),
    ],
)
def test_a_start_that_fails_leaves_no_numbered_folder(command, flags, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if "tests.sender" in flags[0]:
        flags = [*flags, "--trainer.callbacks.epoch=0"]
    with pytest.raises(SystemExit):
        lit(command, *flags)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert list(tmp_path.glob("runs/*")) == []
    lit("fit")
    with pytest.raises(SystemExit):
        lit(command, *flags)
    assert [path.name for path in (tmp_path / "runs/tiny").iterdir()] == ["version_0"]
    assert sorted(path.name for path in (tmp_path / "runs/tiny/version_0").iterdir()) == [
        "checkpoints", "config.yaml", "metrics.csv",
    ]  # fmt: skip


def test_a_run_that_fails_after_a_step_keeps_its_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        lit("fit", "--model.optimizer.lr", "1e30", "--trainer.max_epochs", 9)
    assert (tmp_path / "runs/tiny/version_0/config.yaml").exists()


# metrics.csv.


@pytest.fixture
def writer(tmp_path):
    """A CSVLogger's writer that has written two rows."""
    experiment = CSVLogger(tmp_path, name="run").experiment
    keep_rows_whole(experiment)
    experiment.log_metrics({"a": 1.0}, 0)
    experiment.save()
    experiment.log_metrics({"a": 2.5, "b": 3}, 1)
    assert number_of_rows(experiment) == 2
    return experiment


def test_metrics_are_written_as_lightning_writes_them(writer, tmp_path):
    theirs = CSVLogger(tmp_path, name="theirs").experiment
    for values, step in (({"a": 1.0}, 0), ({"a": 2.5, "b": 3}, 1)):
        theirs.log_metrics(values, step)
        theirs.save()
    assert Path(writer.metrics_file_path).read_bytes() == Path(theirs.metrics_file_path).read_bytes()


@pytest.mark.parametrize("values", [{"a": 4.0}, {"new": 4.0}], ids=["a row", "a column"])
def test_a_full_disk_loses_no_row_of_the_metrics(writer, values, monkeypatch):
    path = Path(writer.metrics_file_path)
    before = path.read_bytes()
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 3, resource.RLIM_INFINITY))
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    try:
        writer.log_metrics(values, 2)
        with pytest.raises(OSError, match=r"metrics\.csv .*\(File too large\)"):
            writer.save()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert path.read_bytes() == before
    writer.save()
    assert number_of_rows(writer) == 3


def test_a_resumed_runs_rows_are_those_of_its_newest_file_that_has_as_many(tmp_path):
    for age, (name, rows) in enumerate({"metrics_0.csv": 5, "metrics_1.csv": 3, "metrics.csv": 1}.items()):
        (tmp_path / name).write_text("step\n" + "".join(f"{age}{row}\n" for row in range(rows)))
        os.utime(tmp_path / name, (age, age))
    steps = {number: [row["step"] for row in rows_before(tmp_path, number)] for number in (0, 1, 2, 4, 6)}
    assert steps == {0: [], 1: ["20"], 2: ["10", "11"], 4: ["00", "01", "02", "03"], 6: []}


@pytest.mark.parametrize("every", [3, 4])
def test_a_run_that_is_killed_right_after_a_step_checkpoint_logs_each_row_once(every, tmp_path, monkeypatch):
    """What a kill leaves is the folder as it is when the checkpoint has been written."""
    monkeypatch.chdir(tmp_path)
    lit("fit", "--trainer.max_epochs", 4, "--trainer.logger.name", "whole")
    steps = ["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.filename=last"]
    steps += [f"--trainer.callbacks.every_n_train_steps={every}", "--trainer.callbacks.enable_version_counter=false"]
    copied = tmp_path / "killed"

    class Copying(WholeCheckpoints):
        def save_checkpoint(self, checkpoint, path, storage_options=None):
            super().save_checkpoint(checkpoint, path, storage_options)
            if checkpoint["global_step"] == every and not copied.exists():
                shutil.copytree("runs", copied)

    monkeypatch.setattr("lit_robust.training.checkpoint_io.WholeCheckpoints", Copying)
    lit("fit", "--trainer.max_epochs", 4, *steps)
    shutil.rmtree("runs/tiny")
    shutil.move(copied / "tiny", "runs/tiny")
    lit("fit", "--trainer.max_epochs", 4, "--ckpt_path", "last", *steps)
    mine, whole = (Path(f"runs/{name}/version_0/metrics.csv").read_text() for name in ("tiny", "whole"))
    assert mine == whole
