"""Mistakes that once ended in a traceback, or in a riddle of another package: each is now a sentence, or works."""

from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import nn

from lit_robust.attacks import PGD
from lit_robust.callbacks import AdversarialTraining, EMAWeights
from lit_robust.defenses import PGDAT
from tests.methods import build
from tests.tiny import TinyNet, images, loader, trainer


class Returns(TinyNet):
    """A net that gives its logits in another form, in one of its modes or in both."""

    def __init__(self, form, modes=(True, False)):
        super().__init__()
        self.form, self.modes = form, modes

    def forward(self, x):
        logits = super().forward(x)
        return self.form(logits) if self.training in self.modes else logits


class User(LightningModule):
    """A module of the user's own."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def training_step(self, batch, batch_idx):
        found = self.net(batch[0])
        return nn.functional.cross_entropy(getattr(found, "logits", found), batch[1])

    def validation_step(self, batch, batch_idx):
        pass


def as_attribute(logits):
    return SimpleNamespace(logits=logits, aux=None)


FORMS = {
    "tuple": lambda logits: (logits, logits),
    "list": lambda logits: [logits],
    "dict": lambda logits: {"logits": logits},
    "object": lambda logits: SimpleNamespace(scores=logits),
    "nothing": lambda logits: None,
}


def fit(module, *callbacks, **options):
    run = trainer(".", max_epochs=1, callbacks=list(callbacks), **options)
    run.fit(module, loader(images(8)), loader(images(8)))
    return run


# What a net returns.


@pytest.mark.parametrize("modes", [(True, False), (True,), (False,)])
@pytest.mark.parametrize("attack_bn_mode", ["eval", "train"])
def test_logits_are_taken_from_an_attribute_in_either_mode(modes, attack_bn_mode):
    plain, wrapped = (
        build(PGDAT, net=net, attack_bn_mode=attack_bn_mode) for net in (TinyNet(), Returns(as_attribute, modes))
    )
    for defense in (plain, wrapped):
        fit(defense, EMAWeights(0.9, extra={"fast": 0.5}))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(plain.parameters(), wrapped.parameters(), strict=True))
    assert plain.state_dict().keys() == wrapped.state_dict().keys()


@pytest.mark.parametrize("modes", [(True, False), (True,), (False,)])
@pytest.mark.parametrize("form", FORMS)
def test_anything_else_is_refused_in_either_mode_before_an_update(form, modes):
    defense = build(PGDAT, net=Returns(FORMS[form], modes))
    before = [weight.clone() for weight in defense.parameters()]
    with pytest.raises(ValueError, match="instead of logits: let it return one tensor"):
        fit(defense)
    assert all(torch.equal(old, new) for old, new in zip(before, defense.parameters(), strict=True))


@pytest.mark.parametrize("modes", [(True,), (False,)])
def test_a_module_of_the_users_own_may_return_logits_as_an_attribute_in_one_mode(modes):
    net = Returns(as_attribute, modes)
    module = User(net)
    fit(module, AdversarialTraining(PGD(0.1, steps=1), net="net", attack_bn_mode="train"))
