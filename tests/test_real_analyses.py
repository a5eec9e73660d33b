"""Every verb from the command line, on nets that it has trained on MNIST; skipped where there is no MNIST."""

import csv
import re
from pathlib import Path

import pytest

from lit_robust import analysis
from lit_robust.cli import main
from tests.front_door import CONFIGS, compose

#: Of the fits: 600 images, four epochs, of which every second one is kept, eps 0.1.
FIT = ["-c", str(CONFIGS / "callback/keep_epochs.yaml"), "--trainer.callbacks.every_n_epochs=2"]
FIT += ["--data.train_size=600", "--data.val_size=50", "--trainer.max_epochs=4", "--trainer.log_every_n_steps=1"]
FIT += ["--model.attack.eps=0.1"]
FIT += ["--model.val_attack={class_path: PGD, init_args: {eps: 0.1, step_size: 0.1, steps: 1}}"]
FIT += [
    "--model.test_attacks=null",
    "--model.optimizer=Adam",
    "--model.optimizer.lr=0.003",
    "--model.lr_scheduler=null",
]
NETS, IMAGES = ("natural", "fgsmat"), 40
ATTACK = "--attack={class_path: PGD, init_args: {eps: 0.1, steps: 3}}"
ATTACKS = "--attacks={pgd: {class_path: PGD, init_args: {eps: 0.1, steps: 3}}}"
#: What each verb is given to be quick, the picture or page that it writes, and how many rows its table has.
VERBS = {
    "sweep": ([ATTACK, "--values=[0, 0.1]"], "sweep_eps.png", 4),
    "transfer": ([ATTACK], "transfer.png", 4),
    "stale": ([ATTACK], "stale.png", 4),
    "curves": ([], "curves.png", 8),
    "diversity": ([], "diversity.png", 40),
    "eigenvalue": ([ATTACK, "--over=epoch"], "eigenvalue_epoch.png", 4),
    "surface": ([ATTACK, "--points=3"], "surface_weights.png", 18),
    "targets": (["--images=2"], "targets.png", 4),
    "compare": ([ATTACKS, "--gap=false"], "compare.png", 2),
    "report": ([ATTACKS, "--gap=false", "--examples=1"], "report.html", 0),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("mnist")


@pytest.fixture
def runs(real_data, folder, monkeypatch):
    """The arguments of two trained nets and of their data."""
    monkeypatch.chdir(folder)
    for name in NETS:
        if not Path("runs", name).exists():
            fragments = compose("data/mnist", "net/fast_cnn", f"defense/{name}", "attack/mnist_fgsm")
            main(["fit", *fragments, *FIT, f"--trainer.logger.name={name}"])
    return [*(f"runs/{name}" for name in NETS), "-c", "runs/natural/version_0/config.yaml", f"--limit={IMAGES}"]


def test_every_verb_is_here():
    assert set(VERBS) == set(analysis.__all__)


@pytest.mark.parametrize("verb", VERBS)
def test_it_writes_its_table_and_its_picture(runs, verb):
    options, written, rows = VERBS[verb]
    main([verb, *(runs[:2] if verb == "curves" else [*runs, "--device=cpu"]), *options])
    path = Path("analysis", written)
    assert path.stat().st_size > 5_000
    if rows:
        with path.with_suffix(".csv").open(newline="") as table:
            assert len(list(csv.DictReader(table))) == rows


def test_no_page_names_what_lies_outside_of_it(runs):
    main(["report", *runs, "--device=cpu", *VERBS["report"][0]])
    page = Path("analysis/report.html").read_text()
    assert not re.findall(r"(?:src|href)=\"(?!data:|#)[^\"]*\"", page)
