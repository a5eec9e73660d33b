"""A run that is refused leaves nothing behind: no folder, no configuration, and an earlier run's files as they were."""

import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from lit_robust.checkpoint_files import read_checkpoint
from lit_robust.runs import run_of
from tests.front_door import lit, refusal, tiny
from tests.test_cli import Writer

LAST = "runs/tiny/version_0/checkpoints/last.ckpt"
TENSORBOARD = ["--trainer.logger", "TensorBoardLogger", "--trainer.logger.save_dir", "runs"]
TENSORBOARD += ["--trainer.logger.name", "tiny"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A run that was trained, resumed and tested."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        lit("fit")
        lit("fit", "--ckpt_path", LAST, "--trainer.max_epochs", 2)
        lit("test", "--ckpt_path", LAST)
    return folder


@pytest.fixture
def run(trained, tmp_path, monkeypatch) -> Path:
    """A copy of it, in the working directory."""
    shutil.copytree(trained / "runs", tmp_path / "runs")
    tiny(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(autouse=True)
def board(monkeypatch) -> None:
    """TensorBoard's writer need not be installed."""
    monkeypatch.setattr("lightning.fabric.loggers.tensorboard._TENSORBOARD_AVAILABLE", True)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=Writer))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


#: What is refused by the command, by ``setup``, by ``configure_optimizers``, and by the first batch.
REFUSED = {
    "a broken option": ["--trainer.check_val_every_n_epoch", 0],
    "another optimizer": ["--model.optimizer", "Adam"],
    "sparse gradients": ["--model.optimizer", "SparseAdam"],
    "a monitor": ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val/acc/x"],
    "another net": ["--model.net.width", 5],
    "a delay": ["--trainer.callbacks+=DelayedStart", "--trainer.callbacks.at_epoch=9"],
    "a negative rate": ["--model.lr_scheduler", "Linear", "--model.lr_scheduler.start", -1, "--model.lr_scheduler.end",
                        -1, "--model.lr_scheduler.begin", 0, "--model.lr_scheduler.duration", 9],
}  # fmt: skip


@pytest.mark.parametrize("logger", [[], TENSORBOARD], ids=["csv", "tensorboard"])
@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_resume_leaves_the_run_as_it_was(name, logger, run, capsys):
    before = contents(run)
    refusal(capsys, "fit", "-c", "tiny.yaml", "--ckpt_path", LAST, "--trainer.max_epochs=3", *logger, *REFUSED[name])
    after = contents(run)
    assert after.keys() == before.keys()
    assert after == before


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_start_leaves_no_folder(name, run, capsys):
    if name in ("another optimizer", "another net"):
        pytest.skip("a start of its own is not refused")
    before = contents(run)
    refusal(capsys, "fit", "-c", "tiny.yaml", "--trainer.max_epochs=3", *REFUSED[name])
    assert contents(run) == before


@pytest.mark.parametrize("logger", [[], TENSORBOARD], ids=["csv", "tensorboard"])
@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_a_refused_evaluation_leaves_the_run_as_it_was(command, logger, run, capsys):
    before = contents(run)
    for words in (
        ["--model.net.width", 5],
        ["--trainer.precision", "bf16-true"],
        ["--data.batch_size", 7, "--model.net.width", 5],
    ):
        refusal(capsys, command, "-c", "tiny.yaml", "--ckpt_path", LAST, *logger, *words)
        assert contents(run) == before


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_an_evaluation_with_tensorboard_alone_opens_no_new_folder(command, run):
    lit(command, "--ckpt_path", LAST, *TENSORBOARD)
    assert [path.name for path in (run / "runs" / "tiny").iterdir()] == ["version_0"]
    kept = contents(run / "runs" / "tiny" / "version_0")
    assert f"config_{command}.yaml" in kept
    assert any("tfevents" in name for name in kept) or command == "predict"


def test_what_was_trained_is_kept(run, capsys):
    """An error after a step is none at the start: files stay where they are."""
    before = contents(run)
    lit("fit", "--ckpt_path", LAST, "--trainer.max_epochs", 3)
    after = contents(run)
    assert {"config_resumed_2.yaml", "metrics_1.csv"} <= {Path(name).name for name in after.keys() - before.keys()}


# Links to a run.

RUN = Path("runs/tiny/version_0")
LINKS = {
    "a checkpoints folder": ("linked", RUN / "checkpoints", "linked"),
    "a file in one": ("linked", RUN / "checkpoints", "linked/last.ckpt"),
    "a file": ("good.ckpt", RUN / "checkpoints/last.ckpt", "good.ckpt"),
    "a file in checkpoints": ("checkpoints/last.ckpt", RUN / "checkpoints/last.ckpt", "checkpoints/last.ckpt"),
    "a checkpoints folder by its name": ("checkpoints", RUN / "checkpoints", "checkpoints"),
    "a run": ("linked", RUN, "linked"),
}  # fmt: skip


@pytest.mark.parametrize("name", LINKS)
def test_a_link_is_followed_to_its_run(name, run):
    place, target, given = LINKS[name]
    Path(place).parent.mkdir(exist_ok=True)
    Path(place).symlink_to(target.absolute())
    before = contents(run)
    lit("test", "--ckpt_path", given)
    lit("fit", "--ckpt_path", given, "--trainer.max_epochs", 3)
    new = {Path(name) for name in contents(run).keys() - before.keys()}
    assert all(path.is_relative_to(RUN) or path.parent == Path(place) for path in new), new
    assert {RUN / "test_0.csv", RUN / "config_resumed_2.yaml", RUN / "metrics_1.csv"} <= new
    assert read_checkpoint(RUN / "checkpoints/last.ckpt")["epoch"] == 2


def test_checkpoints_on_another_disk_belong_to_the_run_that_links_to_them(run):
    (RUN / "checkpoints").rename("disk")
    (RUN / "checkpoints").symlink_to(Path("disk").absolute())
    assert run_of(RUN / "checkpoints/last.ckpt") == RUN
    lit("test", "--ckpt_path", RUN / "checkpoints/last.ckpt")
    assert (RUN / "test_0.csv").exists()
    assert run_of(Path("disk/last.ckpt")) is None


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_a_folder_with_the_name_of_a_checkpoint_is_none(command, run, capsys):
    Path("last.ckpt").mkdir()
    error = refusal(capsys, command, "-c", "tiny.yaml", "--ckpt_path", "last.ckpt")
    assert error.startswith("--ckpt_path last.ckpt is a folder and no checkpoint: give ")
