"""The README's first command: its net is robust, and not by masked gradients."""

from pathlib import Path

import pytest
import torch

from lit_robust import load_net
from lit_robust.attacks import PGD
from lit_robust.attacks.autoattack import VERSIONS
from lit_robust.batch import Batch
from lit_robust.cli import main
from lit_robust.data import DigitsDataModule

QUICKSTART = Path(__file__).parent.parent / "configs" / "quickstart.yaml"
EPS = 0.15


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where the quickstart's ``fit`` has run, and before it the same with natural training."""
    folder = tmp_path_factory.mktemp("quickstart")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        quiet = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
        fit = ["fit", "-c", str(QUICKSTART), *quiet]
        main([*fit, "--trainer.logger.name=natural", "--model=Natural", "--trainer.max_epochs=20"])
        main(fit)
    return folder / "runs"


@pytest.fixture(scope="module")
def nets(folder) -> dict[str, torch.nn.Module]:
    last = Path("version_0", "checkpoints", "last.ckpt")
    return {kind: load_net(folder / name / last) for kind, name in (("robust", "quickstart"), ("natural", "natural"))}


@pytest.fixture(scope="module")
def read_test_images() -> Batch:
    return next(iter(DigitsDataModule(eval_batch_size=397).test_dataloader()))


@torch.no_grad()
def accuracy(net, x, y) -> float:
    return 100 * (net(x).argmax(dim=1) == y).float().mean().item()


def test_its_test_ends_with_the_table_and_a_picture(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder.parent)
    monkeypatch.setitem(VERSIONS, "standard", {"apgd-ce": 1})  # a quarter of AutoAttack
    main(["test", "-c", str(QUICKSTART), "--ckpt_path", "last"])
    *_, clean, pgd, margin, gama, autoattack, worst, empty, told = capsys.readouterr().out.rstrip().splitlines()
    table = [line.split()[0] for line in (clean, pgd, margin, gama, autoattack, worst)]
    assert table == ["clean", "pgd20", "pgd20_margin", "gama40", "autoattack", "worst"]
    assert (empty, told.partition(":")[0]) == ("", "no alarm")
    assert list(folder.glob("quickstart/**/test-*.png"))


def test_it_is_robust_where_a_natural_net_is_not(nets, read_test_images):
    x, y, _, _ = read_test_images
    attack = PGD(EPS, step_size=0.02, steps=20)
    robust, natural = (accuracy(nets[name], attack(nets[name], x, y), y) for name in ("robust", "natural"))
    assert accuracy(nets["robust"], x, y) >= 95
    assert accuracy(nets["natural"], x, y) >= 95
    assert robust >= 80
    assert robust >= natural + 40


@pytest.mark.parametrize("name", ["robust", "natural"])
def test_no_net_withstands_a_large_eps(nets, read_test_images, name):
    x, y, _, _ = read_test_images
    eps = 0.75
    attack = PGD(eps, step_size=0.02 * eps / EPS, steps=20)
    assert accuracy(nets[name], attack(nets[name], x, y), y) == 0


def test_more_steps_and_a_transfer_attack_find_little_more_than_pgd_20(nets, read_test_images):
    x, y, _, _ = read_test_images
    net = nets["robust"]
    pgd20 = accuracy(net, PGD(EPS, step_size=0.02, steps=20)(net, x, y), y)
    pgd200 = accuracy(net, PGD(EPS, step_size=0.01, steps=100, restarts=2, freeze_misclassified=True)(net, x, y), y)
    transfer = accuracy(net, PGD(EPS, step_size=0.02, steps=20)(nets["natural"], x, y), y)
    assert pgd20 - 10 <= pgd200 <= pgd20 + 1
    assert transfer >= pgd20
