"""No message prints the address of an object."""

import functools

import pytest
import torch
from torch import nn

from lit_robust import require
from lit_robust.attacks import BPDA, PGD, CurriculumPGD, MultiTargetedPGD
from lit_robust.callbacks import DelayedStart, EMAWeights
from lit_robust.data import DigitsDataModule
from lit_robust.defenses import PGDAT
from lit_robust.magnitudes import magnitude
from lit_robust.schedules import Linear, MultiStep, PerEpoch, Product
from lit_robust.shown import shown
from tests.methods import build


class Thing:
    """Has the repr of any object."""

    def method(self):
        pass


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Thing(), "Thing"),
        (object(), "object"),
        (Thing().method, "Thing.method"),
        (shown, "shown"),
        (lambda: 1, "<lambda>"),
        (len, "len"),
        (functools.partial(shown, Thing()), "functools.partial(shown, Thing)"),
        ([Thing(), {"a": Thing()}], "[Thing, {'a': Thing}]"),
        (iter([]), "list_iterator"),
        (nn.Flatten(), "Flatten(start_dim=1, end_dim=-1)"),
        (nn.Sequential(nn.Flatten()), "Sequential(...)"),
        (torch.zeros(100), "Tensor(...)"),
        ("8/255", "'8/255'"),
        (None, "None"),
    ],
)
def test_a_value_is_shown_on_one_short_line_without_an_address(value, text):
    assert shown(value) == text


THING = Thing()


@pytest.mark.parametrize(
    "call",
    [
        lambda: require.number("a", THING),
        lambda: require.integer("a", THING, 1),
        lambda: require.one_of("a", THING, ["x", "y"]),
        lambda: require.instance("a", THING, int, "give one"),
        lambda: require.factory("a", THING, nn.Module, "one"),
        lambda: require.pixels("a", THING),
        lambda: magnitude(THING),
        lambda: PGD(eps=THING),
        lambda: PGD(steps=THING),
        lambda: PGD(loss=THING),
        lambda: PGD(norm=THING),
        lambda: BPDA(PGD(), THING),
        lambda: BPDA(PGD(), "head", THING),
        lambda: MultiTargetedPGD(towards=THING),
        lambda: CurriculumPGD(psi=None, lam=THING),
        lambda: Linear(THING, 1, 0, 1),
        lambda: MultiStep(THING),
        lambda: PerEpoch(THING),
        lambda: Product([THING]),
        lambda: EMAWeights(THING),
        lambda: DelayedStart(at_epoch=THING),
        lambda: DigitsDataModule(batch_size=THING),
        lambda: DigitsDataModule(augment=THING),
        lambda: DigitsDataModule(split=THING),
        *(
            functools.partial(build, PGDAT, **{name: THING})
            for name in ("net", "attack", "val_attack", "test_attacks", "optimizer", "lr_scheduler", "momentum")
        ),
        *(
            functools.partial(build, PGDAT, **{name: THING})
            for name in ("weight_perturbation", "compile", "channels_last", "lr_interval", "gradient_clip_val")
        ),
    ],
)
def test_no_refusal_prints_an_address(call):
    with pytest.raises((TypeError, ValueError)) as told:
        call()
    assert " at 0x" not in str(told.value)
    assert "\n" not in str(told.value)
