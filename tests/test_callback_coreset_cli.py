"""CoresetSelection on the command line."""

import csv
from pathlib import Path

import pytest
import torch

from lit_robust.cli import main
from tests.front_door import lit, refusal, tiny
from tests.test_callback_coreset_resume import without_clocks
from tests.test_resume import differences

RUN = Path("runs/tiny/version_0")
SELECTION = ["--trainer.callbacks+=CoresetSelection", "--trainer.callbacks.fraction", "0.3"]
GRAD_MATCH = [*SELECTION, "--trainer.callbacks.selector", "GradMatch"]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def rows(path: Path = RUN / "metrics.csv") -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_coreset_is_trained_on_and_logged():
    lit("fit", *GRAD_MATCH, "--trainer.max_epochs", 8, "--trainer.callbacks.every", 2)
    found = {int(row["epoch"]): row for row in rows() if row.get("train/coreset/size")}
    assert list(found) == [4, 5, 6, 7]
    for row in found.values():
        assert float(row["train/coreset/size"]) == 19
        assert 0 <= float(row["train/coreset/filled"]) <= 19
        assert 0 < float(row["train/coreset/error"]) < 1
        assert float(row["train/coreset/seconds"]) > 0
    assert sorted({int(row["epoch"]) for row in rows()}) == [0, 4, 5, 6, 7]


def test_a_random_coreset_logs_no_error_of_gradients():
    lit("fit", *SELECTION, "--trainer.callbacks.selector", "Random", "--trainer.callbacks.warm", 0)
    (found,) = [row for row in rows() if row.get("train/coreset/size")]
    assert not found.get("train/coreset/error")


def test_the_configuration_shows_selector_and_fraction(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["fit", "-c", tiny(Path()), *GRAD_MATCH, "--trainer.callbacks.selector.lam", "0.5", "--print_config"])
    assert ended.value.code in (0, None)
    shown = capsys.readouterr().out
    assert "CoresetSelection" in shown
    assert "fraction: 0.3" in shown
    assert "GradMatch" in shown
    assert "lam: 0.5" in shown


def test_a_fraction_that_grows_is_a_schedule():
    growing = '{"class_path": "Staircase", "init_args": {"times": [0, 1], "values": [0.3, 0.5]}}'
    plan = ["--trainer.callbacks.warm", 0, "--trainer.callbacks.every", 1, "--trainer.max_epochs", 2]
    lit("fit", "--trainer.callbacks+=CoresetSelection", "--trainer.callbacks.fraction", growing, *plan)
    assert [float(row["train/coreset/size"]) for row in rows() if row.get("train/coreset/size")] == [19, 32]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--trainer.callbacks.selector", "GradMach"], "GradMach"),
        (["--trainer.callbacks.selector", "GradMatch", "--trainer.callbacks.selector.lamb", "1"], "lamb"),
        (["--trainer.callbacks.evry", "3"], "evry"),
        (["--trainer.callbacks.every", "0"], "every=0"),
        (["--trainer.callbacks.warm", "1.5"], "warm=1.5"),
        (["--trainer.callbacks.normalize", "sum"], "normalize"),
        (["--trainer.callbacks.fraction", "1.3"], "fraction=1.3"),
        (["--trainer.callbacks.fraction", "half"], "fraction"),
        (
            [
                "--trainer.callbacks.selector=GradMatch",
                "--trainer.callbacks.selector.gradient=own_class",
                "--trainer.callbacks.selector.scope=all",
            ],
            "gradient=",
        ),
        (["--trainer.callbacks.selector", "Random", "--trainer.callbacks.selector.scope", "row"], "scope"),
    ],
)
def test_a_misspelt_or_wrong_argument_is_one_sentence(arguments, named, capsys):
    assert named in refusal(capsys, "fit", "-c", tiny(Path()), *SELECTION, *arguments)


@pytest.mark.filterwarnings("ignore:Using ModelCheckpoint with manual optimization and every_n_train_steps")
@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_a_training_that_is_resumed_by_the_command_line_ends_as_an_uninterrupted_one():
    """Two batches in epoch 0, one in each of the epochs 3, 4 and 5."""
    plan = [*GRAD_MATCH, "--trainer.callbacks.every", "1", "--trainer.max_epochs", "6"]
    every = ["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.filename={step}"]
    every += ["--trainer.callbacks.save_top_k=-1", "--trainer.callbacks.every_n_train_steps=1"]
    lit("fit", *plan, *every)
    saved = RUN / "checkpoints"
    whole, table = torch.load(saved / "last.ckpt", weights_only=True), without_clocks(rows())
    assert whole["epoch"] == 5
    assert whole["global_step"] == 5
    for step in (1, 2, 3):
        lit("fit", *plan, *every, "--ckpt_path", saved / f"step={step}.ckpt")
        ended = torch.load(saved / "last.ckpt", weights_only=True)
        for part in ("state_dict", "optimizer_states", "epoch", "global_step"):
            assert differences(ended[part], whole[part]) == []
        assert differences(without_clocks(rows()), table) == []
