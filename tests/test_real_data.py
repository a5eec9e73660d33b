"""The main job on real MNIST, from the command line; skipped where there is none (see LIT_ROBUST_DATA)."""

from pathlib import Path

import pytest
import torch

from lit_robust import load_net
from lit_robust.attacks import PGD, Attack, AutoAttack
from lit_robust.attacks.autoattack import VERSIONS
from lit_robust.batch import Batch
from lit_robust.cli import main
from lit_robust.data import MNISTDataModule
from tests.front_door import compose, rows

EPS = 0.2

pytestmark = pytest.mark.usefixtures("real_data")


@pytest.fixture(scope="module")
def mnist(tmp_path_factory) -> Path:
    """A checkpoint of one epoch of PGD training on all of MNIST."""
    folder = tmp_path_factory.mktemp("mnist")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        main(
            [
                "fit",
                *compose("data/mnist", "net/fast_cnn", "defense/pgdat", "attack/mnist_pgd40"),
                "--trainer.max_epochs=1",
                "--model.optimizer=Adam",
                "--model.optimizer.lr=2e-3",
                "--model.optimizer.weight_decay=5e-4",
                f"--model.attack.eps={EPS}",
                "--model.attack.step_size=0.08",
                "--model.attack.steps=4",
                f"--model.val_attack.eps={EPS}",
                "--model.val_attack.steps=5",
                "--model.val_attack.step_size=0.08",
            ]
        )
    return folder / "runs" / "run" / "version_0"


@pytest.fixture(scope="module")
def thousand() -> Batch:
    """The first 1,000 test images of MNIST."""
    return next(iter(MNISTDataModule(eval_batch_size=1000, test_size=1000).test_dataloader()))


@torch.no_grad()
def accuracy(net, x, y) -> float:
    return (net(x).argmax(dim=1) == y).float().mean().item()


def test_an_epoch_of_mnist_is_trained_and_a_thousand_images_are_attacked(mnist, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    attacks = f"{{pgd40: {{class_path: PGD, init_args: {{eps: {EPS}, step_size: 0.01, steps: 40}}}}}}"
    main(
        [
            "test",
            "-c",
            str(mnist / "config.yaml"),
            "--ckpt_path",
            str(mnist),
            "--data.test_size=1000",
            f"--model.test_attacks={attacks}",
        ]
    )
    table = rows(capsys.readouterr().out)
    assert {name: int(words[-1]) for name, words in table.items()} == {"clean": 1000, "pgd40": 1000}
    assert float(table["clean"][0]) > 90
    assert float(table["pgd40"][0]) > 50


def crafted(mnist: Path, batch: Batch, attack: Attack) -> float:
    net = load_net(mnist / "checkpoints" / "last.ckpt")
    return accuracy(net, attack(net, batch.x, batch.y), batch.y)


PGD_50_10 = PGD(EPS, step_size=EPS / 4, steps=50, restarts=10, freeze_misclassified=True)


def test_our_pgd_is_as_strong_as_apgd(mnist, thousand, monkeypatch):
    monkeypatch.setitem(VERSIONS, "standard", {"apgd-ce": 1})
    assert 0.1 < crafted(mnist, thousand, PGD_50_10) <= crafted(mnist, thousand, AutoAttack(EPS)) + 0.01


# One epoch leaves gradients flat in places, where Square, which needs none, still finds something; AutoAttack says so.
@pytest.mark.filterwarnings("ignore:Square Attack has decreased the robust accuracy")
@pytest.mark.filterwarnings("ignore:AutoAttack.*Square breaks what all gradient attacks left")  # after one epoch
@pytest.mark.parametrize("n", [50, pytest.param(1000, marks=pytest.mark.slow)])
def test_autoattack_is_stronger_than_our_pgd(mnist, thousand, n):
    some = Batch(*(part[:n] for part in thousand))
    assert 0.1 < crafted(mnist, some, AutoAttack(EPS)) <= crafted(mnist, some, PGD_50_10)


def test_no_robustness_is_left_at_a_large_eps(mnist, thousand):
    net = load_net(mnist / "checkpoints" / "last.ckpt")
    x, y, _, _ = thousand
    assert accuracy(net, PGD(0.8, step_size=0.1, steps=50)(net, x, y), y) == 0
