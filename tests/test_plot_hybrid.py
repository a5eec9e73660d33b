"""The plot of a run of NuAT-H."""

from pathlib import Path

import pytest
from lightning.pytorch.loggers import CSVLogger

from lit_robust.defenses import NuAT
from lit_robust.defenses.hybrid import SecondStepGain
from tests.methods import ONE_STEP, build
from tests.tiny import images, loader, trainer

plt = pytest.importorskip("matplotlib.pyplot")
SCRIPTS = Path(__file__).parent.parent / "scripts"


class InTurns(SecondStepGain):
    """Fires at every second measurement."""

    def fires(self, times, values):
        return times[-1] % 2 == 1


@pytest.fixture
def figure(tmp_path, monkeypatch):
    """The plot of 4 epochs of 4 batches: a trigger before batch 4, and one before batch 12, which is over budget."""
    monkeypatch.syspath_prepend(SCRIPTS)
    plot = __import__("plot_hybrid").plot
    rule = InTurns(every=1.0, duration=0.5, extra_epochs=0.5)
    run = trainer(tmp_path, max_epochs=4, logger=CSVLogger(tmp_path, name="run", version=0), log_every_n_steps=1)
    run.fit(build(NuAT, attack=ONE_STEP, two_step=rule), loader(images(32)))
    plot(tmp_path / "run" / "version_0" / "metrics.csv", tmp_path / "hybrid.png")
    yield plt.gcf()
    plt.close("all")


def test_it_draws_each_epochs_cross_entropy_the_triggers_and_the_second_steps(figure, tmp_path):
    above, below = figure.axes
    curve, *triggers = above.lines
    assert list(curve.get_xdata()) == [3, 7, 11, 15]
    assert curve.get_ydata()[-1] < curve.get_ydata()[0]
    assert [line.get_xdata()[0] for line in triggers] == [4]
    (second_steps,) = below.collections
    outline = second_steps.get_paths()[0].vertices
    assert {x for x, y in outline if y == 1} == {4, 6}
    assert plt.imread(tmp_path / "hybrid.png")[..., :3].std() > 0


def test_a_run_without_a_hybrid_is_refused_in_one_sentence(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    (tmp_path / "metrics.csv").write_text("epoch,step,train/loss\n0,1,2.0\n")
    with pytest.raises(SystemExit, match="has no train/ce/clean: only NuAT"):
        __import__("plot_hybrid").plot(tmp_path / "metrics.csv", tmp_path / "hybrid.png")
