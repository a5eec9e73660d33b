"""What the README shows in Python can be written so."""

import re
from pathlib import Path

import pytest
import torch
import yaml

from lit_robust.attacks import PGD
from lit_robust.cli import main
from lit_robust.defenses import PGDAT
from lit_robust.nets import digits_cnn

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_its_pictures_are_there_one_of_them_above_the_first_command():
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", README)
    assert len(pictures) == 4
    assert all((ROOT / path).read_bytes().startswith(b"\x89PNG") for path in pictures)
    assert README.index(pictures[0]) < README.index("```")


def test_images_are_drawn_and_attacked_in_two_lines():
    block = README.partition("A few images, and an attack on them")[2].partition("```python\n")[2].partition("```")[0]
    lines = block.replace("CIFAR10DataModule", "DigitsDataModule")  # which needs no download
    assert len(lines.splitlines()) == 2
    defense = PGDAT(net=digits_cnn(width=4), num_classes=10, attack=PGD(steps=2))
    scope = {"defense": defense, "PGD": PGD}
    exec("from lit_robust.data import DigitsDataModule\n" + lines, scope)  # our own README
    assert scope["x"].shape == scope["x_adv"].shape == (64, 1, 8, 8)
    assert 0 < (scope["x_adv"] - scope["x"]).abs().max() <= 8 / 255 + 1e-6
    assert all(value.grad is None for value in defense.parameters())
    assert len(torch.unique(scope["y"])) > 5


def test_the_two_by_two_crosses_rate_and_precision_and_nothing_else(capsys):
    block = README.partition("<!-- two by two -->")[2].partition("```bash\n")[2].partition("```")[0]
    runs = re.search(r"for run in (.*?); do", block, re.DOTALL)[1].replace("\\\n", " ").split()
    assert len(runs) == 8
    crossed, rest = {}, {}
    for run in runs:
        recipe = ROOT / f"configs/recipes/free_fast/fvf_preact_resnet18_{run}.yaml"
        with pytest.raises(SystemExit):
            main(["fit", "-c", str(recipe), "--trainer.logger.name", run, "--print_config"])
        tree = yaml.safe_load(capsys.readouterr().out)
        arguments = tree["model"]["init_args"]
        rate, _ = arguments.pop("lr_scheduler")["class_path"].rpartition(".")[2], arguments.pop("momentum")
        crossed.setdefault(run[:4], set()).add((rate, tree["trainer"].pop("precision")))
        tree["trainer"]["logger"]["init_args"].pop("name")
        rest.setdefault(run[:4], []).append(tree)
    four = {(rate, precision) for rate in ("Cyclic", "MultiStep") for precision in ("bf16-mixed", "32-true")}
    assert crossed == {"fast": four, "free": four}
    assert all(trees == [trees[0]] * 4 for trees in rest.values())
