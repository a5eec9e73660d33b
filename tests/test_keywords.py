"""Keyword arguments that nothing takes: each public class names itself, the argument and the one that is near."""

import dataclasses
import inspect
import pickle

import pytest
import torch
from torch import nn

from lit_robust import attacks, callbacks, data, defenses, nets, schedules, threats
from lit_robust.attacks import PGD, difficulty
from lit_robust.data import CIFAR10DataModule, DigitsDataModule
from lit_robust.defenses import AWP
from lit_robust.keywords import answer_keywords
from lit_robust.schedules import Linear
from tests.tiny import TinyNet

ROOMS = (attacks, callbacks, data, nets, schedules)
PUBLIC = [getattr(room, name) for room in ROOMS for name in room.__all__]
PUBLIC += [threats.Linf, threats.L2, AWP, *(one for one in vars(difficulty).values() if inspect.isclass(one))]
CLASSES = [
    part
    for part in PUBLIC
    if inspect.isclass(part)
    and not inspect.isabstract(part)
    and part.__module__.startswith("lit_robust.")
    and not issubclass(part, tuple)  # a NamedTuple, which has no constructor of ours
]


@pytest.mark.parametrize("cls", dict.fromkeys(CLASSES), ids=lambda cls: cls.__name__)
def test_every_public_class_names_itself_and_the_argument(cls):
    with pytest.raises(TypeError, match=rf"^{cls.__name__} .*'qqqq'"):
        cls(qqqq=1)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: DigitsDataModule(batchsize=3), "DigitsDataModule .*'batchsize': .* batch_size"),
        (lambda: CIFAR10DataModule(rot="x"), "CIFAR10DataModule .*'rot': .* root"),
        (lambda: PGD(epss=0.1), "PGD .*'epss': .* eps"),
        (lambda: dataclasses.replace(PGD(), stps=1), "PGD .*'stps': .* steps"),
        (lambda: Linear(0, 1, begn=0), "Linear .*'begn': .* begin"),
        (lambda: AWP(gama=1), "AWP .*'gama': .* gamma"),
        (lambda: defenses.TRADES(TinyNet(), 4, PGD(), bta=1), "TRADES .*'bta': .* beta"),
        (lambda: nets.resnet18(num_class=3), "resnet18 .*'num_class': .* num_classes"),
    ],
)
def test_the_argument_that_was_probably_meant_is_named(call, named):
    with pytest.raises(TypeError, match=rf"^{named}\?$"):
        call()


def test_a_users_own_class_is_named():
    class Mine(DigitsDataModule):
        def __init__(self, mine: int = 1, **kwargs):
            super().__init__(**kwargs)

    with pytest.raises(TypeError, match=r"^Mine .*'minee': .* mine\?$"):
        Mine(minee=1)
    assert Mine(mine=2, batch_size=3).batch_size == 3


def test_the_signature_stays_and_nothing_is_wrapped_twice():
    before = PGD.__init__
    answer_keywords([PGD])
    assert PGD.__init__ is before
    assert [*inspect.signature(PGD).parameters][:3] == ["eps", "step_size", "steps"]
    assert pickle.loads(pickle.dumps(PGD(eps="8/255"))) == PGD(eps="8/255")
    assert isinstance(nets.Net(nn.Flatten(), nn.Linear(4, 2), in_channels=1)(torch.zeros(1, 1, 2, 2)), torch.Tensor)
