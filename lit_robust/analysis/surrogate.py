"""A surrogate: a natural net of the attacked net's architecture, trained on its predictions."""

from copy import deepcopy
from functools import cached_property

import torch
from torch import nn

from lit_robust.analysis.study import Study
from lit_robust.analysis.subjects import Images, Subject, checkpoint_of, read_training_images
from lit_robust.data import ImageDataModule
from lit_robust.guards import own_random_state
from lit_robust.losses import ce
from lit_robust.runs import rebuild_net
from lit_robust.seeds import run_seed, seed

#: How many training images it learns from, for how many epochs, and Adam's rate (ours).
IMAGES, EPOCHS, RATE = 10_000, 10, 1e-3


class Surrogate:
    """Papernot et al.'s substitute (arXiv:1602.02697), without their synthetic images; trained when it is needed.

    Adversarial images that are crafted on it do not depend on the target's gradients, so they find what masked
    gradients hide.

    Args:
        target: The net whose predictions are the labels.
        images: The training images.
    """

    def __init__(self, target: Subject, images: Images) -> None:
        self.target, self.images = target, images
        self.key = f"surrogate {target.key} {images.key} {EPOCHS} {RATE} {run_seed()}"

    @cached_property
    def net(self) -> nn.Module:
        """The net in eval mode: fresh weights, trained by cross-entropy on the target's classes."""
        device = self.images.batches[0].x.device
        x = torch.cat([batch.x for batch in self.images.batches])
        with own_random_state(device), torch.enable_grad():
            seed(device, "surrogate", self.target.key)
            net = _fresh(self.target).to(device).train()
            optimizer = torch.optim.Adam(net.parameters(), RATE)
            even = len(x) // 2 * 2  # so that no batch is a single image, which BatchNorm cannot take
            for _ in range(EPOCHS):
                for rows in torch.split(torch.randperm(len(x))[:even], 64):
                    with torch.no_grad():
                        y = self.target.net(x[rows]).argmax(dim=1)
                    optimizer.zero_grad()
                    torch.autograd.backward(ce(net(x[rows]), y).mean())
                    optimizer.step()
        return net.eval().requires_grad_(False)

    def agreement(self, seen: Images) -> float:
        """The share of other images on which both predict the same class."""
        with torch.no_grad():
            same = [self.net(b.x).argmax(dim=1) == self.target.net(b.x).argmax(dim=1) for b in seen.batches]
        return torch.cat(same).double().mean().item()


def _fresh(target: Subject) -> nn.Module:
    """A net of the target's architecture with random weights: as its checkpoint says, else a copy that is reset.

    Raises:
        ValueError: If a layer cannot be reset.
    """
    try:
        return rebuild_net(checkpoint_of(target))
    except ValueError:  # the checkpoint names no net of lit_robust.nets
        net = deepcopy(target.net).requires_grad_(True)
    for layer in net.modules():
        if callable(reset := getattr(layer, "reset_parameters", None)):
            reset()
        elif any(True for _ in layer.parameters(recurse=False)):
            raise ValueError(
                f"surrogate=True needs random weights for {target.name}, but its layer {type(layer).__name__} has no "
                "method reset_parameters: write one, or give nets trained elsewhere as sources."
            )
    return net


def surrogate_of(study: Study, target: Subject, data: ImageDataModule) -> Surrogate:
    """The surrogate of a net, and a line about how well it imitates it; measured once, see ``Study.journal``."""
    made = Surrogate(target, read_training_images(data, IMAGES, study.device))
    key = ("agreement", made.key, study.images.key)
    share = study.journal.get(key, lambda: made.agreement(study.images))
    print(f"{target.name}: its surrogate predicts the same class on {100 * share:.1f} % of the test images.")
    return made
