"""What the README shows in Python can be written so."""

from pathlib import Path

import torch

from lit_robust.attacks import PGD
from lit_robust.defenses import PGDAT
from lit_robust.nets import digits_cnn

README = (Path(__file__).parents[1] / "README.md").read_text()


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
