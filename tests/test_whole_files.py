"""What is written is whole or absent, and what is broken does not hinder what is whole."""

import os
import signal
import subprocess
import sys
from contextlib import contextmanager

import pytest
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint

from lit_robust import folder_locks, whole_files
from lit_robust.checkpoint_files import read_checkpoint
from lit_robust.defenses import Natural
from lit_robust.folder_locks import lock, unlock
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
    with pytest.raises(
        OSError, match=r"a\.txt cannot be written \(No space left on device\): free some space or choose"
    ):
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
    with pytest.warns(
        UserWarning, match=r"last\.ckpt is truncated.* This goes on from .*best\.ckpt, the newest whole one"
    ):
        path, checkpoint = read_last(checkpoints_of(run))
    assert (path.name, checkpoint["epoch"]) == ("best.ckpt", 1)


def test_a_broken_file_that_was_named_is_refused(run):
    with pytest.raises(ValueError, match=r"last\.ckpt is truncated"):
        read_last({"mine": run / "last.ckpt"})


def test_a_broken_last_checkpoint_does_not_prevent_the_test_of_the_best(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    lit("fit")
    last = checkpoints_of(tmp_path / "runs")["last"]
    last.write_bytes(last.read_bytes()[:1000])
    with pytest.warns(UserWarning, match=r"last\.ckpt is truncated .* It is left out\."):
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
    with other_training(tmp_path / "run"), pytest.raises(ValueError, match=r"another process is training in .*run: w"):
        lock(tmp_path / "run")
    lock(tmp_path / "run")
    lock(tmp_path / "run")  # its own
    unlock(tmp_path / "run")
    assert list((tmp_path / "run").iterdir()) == []


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
