"""A signal during a coreset's selection: the finished epoch is saved, and the resumed run selects."""

import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint

from lit_robust.callbacks import AttributeRamp, CoresetSelection, EMAWeights, coreset
from lit_robust.defenses import PGDAT
from lit_robust.schedules import Linear
from lit_robust.selection import CRAIG
from lit_robust.training.signals import Stopped
from tests.methods import build
from tests.test_callback_coreset import Seen
from tests.test_resume import TinyData, differences
from tests.test_signals import RUN, fit_on_two_ranks
from tests.tiny import TinyNet, trainer


class Hit(PGDAT):
    """A signal comes while the second batch of a selection is attacked."""

    def prepare(self, at: int | None) -> None:
        self.at = at
        self.selected: dict[int, int] = {}

    def perturb(self, batch):
        if self.meter._selects:
            epoch = self.trainer.current_epoch
            self.selected[epoch] = self.selected.get(epoch, 0) + 1
            if (epoch, self.selected[epoch]) == (self.at, 2):
                os.kill(os.getpid(), signal.SIGTERM)
        return super().perturb(batch)


def run(folder: Path, at: int | None = None, **kwargs: Any) -> tuple[dict[str, Any], Hit, Seen, Any]:
    seed_everything(7, verbose=False)
    torch.manual_seed(3 if kwargs else 0)
    module, seen = build(Hit, net=TinyNet(seed=5 if kwargs else 0)), Seen()
    module.prepare(at)
    selection = CoresetSelection(0.5, CRAIG(), every=2, warm=0)
    saver = ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    ramp = AttributeRamp("attack.eps", Linear(0.02, 0.1, begin=0, end=4))
    fitting = trainer(
        folder, max_epochs=4, callbacks=[selection, EMAWeights(0.9), ramp, seen, saver], enable_checkpointing=True
    )
    try:
        fitting.fit(module, TinyData(), **kwargs)
    except Stopped:
        assert at is not None
    end = torch.load(folder / "epoch=3.ckpt", weights_only=True) if fitting.current_epoch == 4 else {}
    return end, module, seen, selection


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return run(tmp_path_factory.mktemp("whole"))


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists")
def test_a_selection_that_a_signal_stops_is_left_to_the_resumed_run(tmp_path, whole, caplog):
    end, _, seen, selection = whole
    caplog.set_level("INFO", "lightning.pytorch")
    _, stopped, before, _ = run(tmp_path, at=2)
    assert stopped.selected == {0: 3, 2: 2}  # of three batches
    assert list(before.images) == [0, 1]
    assert "in epoch 1, after step" in caplog.text
    for name in ("last.ckpt", "epoch=1.ckpt"):
        assert torch.load(tmp_path / name, weights_only=True)["callbacks"]["CoresetSelection"]["pending"] is True
        resumed_end, resumed, after, resumed_selection = run(tmp_path, ckpt_path=tmp_path / name)
        assert resumed.selected == {2: 3}
        assert after.images == {epoch: seen.images[epoch] for epoch in (2, 3)}
        assert resumed_selection.coreset.indices.equal(selection.coreset.indices)
        for part in ("state_dict", "current_model_state", "averaging_state", "optimizer_states", "global_step"):
            assert differences(resumed_end[part], end[part]) == []


def test_an_epoch_is_saved_before_the_selection_that_follows_it(tmp_path, whole):
    """A grace period that is too short for the selection, or no signal at all, does not cost the epoch."""
    found = []

    class Looks(PGDAT):
        def perturb(self, batch):
            if self.meter._selects:
                found.append(sorted(path.name for path in tmp_path.glob("*.ckpt")))
            return super().perturb(batch)

    saver = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    selection = CoresetSelection(0.5, CRAIG(), every=1, warm=0)
    fitting = trainer(tmp_path, max_epochs=2, callbacks=[selection, saver], enable_checkpointing=True)
    fitting.fit(build(Looks), TinyData())
    assert found == [[]] * 3 + [["epoch=0.ckpt"]] * 3


class Holds(Callback):
    """Writes how many embedded images this rank holds."""

    def setup(self, trainer, pl_module, stage):
        self.original = coreset.embed

        def embed(*arguments):
            embedded = self.original(*arguments)
            Path(f"held{trainer.global_rank}.txt").write_text(f"{len(embedded.y)} {len(embedded.embeddings)}")
            return embedded

        coreset.embed = embed

    def teardown(self, trainer, pl_module, stage):
        coreset.embed = self.original


def test_a_signal_to_rank_1_stops_both_in_a_selection_for_which_the_first_rank_holds_the_gradients(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    selects = ["--trainer.callbacks+=CoresetSelection", "--trainer.callbacks.fraction=0.5"]
    selects += ["--trainer.callbacks.warm=0", "--trainer.callbacks.every=1"]
    holds = "--trainer.callbacks+=tests.test_callback_coreset_stops.Holds"
    send = ["--trainer.callbacks+=tests.sender.Send", "--trainer.callbacks.hook=on_train_epoch_end"]
    send += ["--trainer.callbacks.rank=1"]
    codes, said = fit_on_two_ranks(
        [*selects, holds, "--trainer.logger.name=whole"], [*selects, *send], [*selects, "--ckpt_path=runs/tiny"]
    )
    assert codes == [[0, 143, 0]] * 2, said
    assert [Path(f"held{rank}.txt").read_text() for rank in range(2)] == ["128 128", "0 0"]
    assert re.search("SIGTERM stopped .* epoch 1, after", said)
    assert "Traceback" not in said
    mine, theirs = (
        torch.load(Path(run, "checkpoints/last.ckpt"), weights_only=True) for run in (RUN, "runs/whole/version_0")
    )
    for part in ("state_dict", "current_model_state", "averaging_state", "optimizer_states", "global_step"):
        assert differences(mine[part], theirs[part]) == []
    chosen, expected = (one["callbacks"]["CoresetSelection"]["indices"] for one in (mine, theirs))
    assert chosen.equal(expected)
