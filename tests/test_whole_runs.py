"""What belongs to a run lies in its folder, wherever that is; a broken last.ckpt hides no whole one."""

from pathlib import Path
from shutil import copytree

import pytest

from lit_robust.runs import checkpoints_of
from tests.front_door import lit

RUN = Path("runs/tiny/version_0")


@pytest.fixture
def moved(tmp_path, monkeypatch):
    """A run that is copied to another root."""
    monkeypatch.chdir(tmp_path)
    lit("fit")
    copytree(RUN, "else/myrun/version_0")
    return Path("else/myrun/version_0")


def test_a_run_elsewhere_is_tested_in_its_own_folder(moved):
    lit("test", "--trainer.logger.name", "elsewhere", "--ckpt_path", "else/myrun")
    assert (moved / "test.csv").exists()
    assert (moved / "metrics.csv").exists()
    assert not Path("runs/elsewhere").exists()
    lit("predict", "--trainer.logger.name", "elsewhere", "--ckpt_path", moved)
    assert (moved / "predictions.csv").exists()
    assert not Path("runs/elsewhere").exists()


def test_a_run_behind_a_link_is_tested_and_resumed_in_its_own_folder(moved):
    Path("link").symlink_to(RUN)
    lit("test", "--ckpt_path", "link")
    lit("fit", "--ckpt_path", "link", "--trainer.max_epochs", 2)
    assert (RUN / "test.csv").exists()
    assert (RUN / "metrics_0.csv").exists()
    assert [path.name for path in Path("runs/tiny").iterdir()] == ["version_0"]


def test_a_folder_named_last_hides_no_whole_checkpoint(tmp_path):
    folder = tmp_path / "checkpoints"
    (folder / "last.ckpt").mkdir(parents=True)
    (folder / "best.ckpt").write_text("best")
    (folder / "last.ckpt" / "part.ckpt").write_text("a later file")
    best = folder / "best.ckpt"
    assert checkpoints_of(tmp_path) == {"last": best, "best": best}
    (folder / "epoch.ckpt").write_text("epoch")
    assert checkpoints_of(tmp_path) == {"last": folder / "epoch.ckpt", "best": best}
