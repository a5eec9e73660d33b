"""What the README shows in Python can be written so."""

import ast
import builtins
import re
from pathlib import Path

import pytest
import torch
import yaml

from lit_robust.attacks import PGD
from lit_robust.cli import main
from lit_robust.defenses import PGDAT
from lit_robust.nets import digits_cnn
from tests.methods import ATTACK
from tests.test_resume import TinyData
from tests.tiny import CLASSES, TinyNet, trainer

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_its_pictures_are_there_one_of_them_above_the_first_command():
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", README)
    assert len([path for path in pictures if "/coreset" not in path]) == 4  # and one for each set of coresets, if drawn
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


def python_blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def names_missing_in(block: str) -> set[str]:
    """The names that a block of Python reads but neither defines nor imports."""
    read, there = set(), {*dir(builtins)}
    for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.Name):
            (read if isinstance(node.ctx, ast.Load) else there).add(node.id)
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            there.add(node.name)
        elif isinstance(node, ast.arg):
            there.add(node.arg)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            there |= {alias.asname or alias.name for alias in node.names}
    return read - there


@pytest.mark.parametrize("place", range(len(python_blocks())))
def test_a_block_can_be_copied_alone(place):
    block = python_blocks()[place]
    missing = names_missing_in(block)
    if block.startswith("x, y = CIFAR10DataModule()"):  # two lines on the block before them
        missing = names_missing_in(python_blocks()[place - 1] + block)
    assert {name for name in missing if not name.startswith("your_")} == set()


def test_the_new_method_trains_and_counts_what_it_has_seen(tmp_path):
    (block,) = (block for block in python_blocks() if "class MixedAT" in block)
    scope = {"__name__": "mixed"}
    exec(block, scope)  # our own README
    module = scope["MixedAT"](net=TinyNet(), num_classes=CLASSES, attack=ATTACK)
    run = trainer(tmp_path, max_epochs=1)
    run.fit(module, TinyData())
    assert {"train/loss", "train/acc/clean", "train/acc/robust", "train/ce/clean"} <= run.callback_metrics.keys()
    with pytest.raises(ValueError, match="share=2"):
        scope["MixedAT"](net=TinyNet(), num_classes=CLASSES, attack=ATTACK, share=2)


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
