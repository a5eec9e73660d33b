"""A step size that is not given follows eps and steps; one that is given and too short is told."""

import warnings
from dataclasses import replace

import pytest
import torch

from lit_robust.attacks import (
    BPDA,
    FGSM,
    PGD,
    RFGSM,
    AutoAttack,
    CurriculumPGD,
    FriendlyPGD,
    FrobeniusNorm,
    NuclearNorm,
)
from lit_robust.attacks.difficulty import ProbabilityGap
from lit_robust.attacks.guided import GuidedPGD
from lit_robust.callbacks import (
    AdversarialExamples,
    AdversarialTraining,
    CatastrophicOverfittingMonitor,
    FGSMGap,
    PGDDrop,
    RobustAccuracy,
)
from lit_robust.defenses import PGDAT, CustomizedAT
from lit_robust.measures.accuracy import describe
from tests.methods import build
from tests.tiny import TinyNet, images

KINDS = {
    PGD: {},
    FriendlyPGD: {},
    CurriculumPGD: {"psi": ProbabilityGap(), "lam": 1.0},
    GuidedPGD: {"penalty": lambda logits, clean: (logits - clean).square().sum(dim=1), "lam": 1.0},
    NuclearNorm: {},
    FrobeniusNorm: {},
}


def crafted(attack):
    x, y = images(8)[:2]
    torch.manual_seed(1)
    return attack(TinyNet().eval(), x, y)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize(("eps", "steps", "size"), [(0.15, 20, 0.01875), (0.15, 5, 0.075), (0.15, 2, 0.15)])
def test_a_step_that_is_not_given_follows_eps_and_steps(kind, eps, steps, size):
    attack = replace(kind(eps="8/255", steps=10, **KINDS[kind]), eps=eps, steps=steps)
    assert attack.step_size is None
    assert attack.step_length == pytest.approx(size)
    assert torch.equal(crafted(attack), crafted(replace(attack, step_size=attack.step_length)))
    assert not torch.equal(crafted(attack), crafted(replace(attack, step_size=size / 3)))


def test_in_l2_too_and_at_8_of_255_it_is_the_usual_2_of_255():
    assert PGD(0.5, steps=10, norm="l2").step_length == pytest.approx(0.125)
    assert PGD().step_length == 2 / 255
    assert PGD(steps=0).step_length == PGD(steps=1).step_length == NuclearNorm().step_length == 8 / 255


def test_customized_at_steps_by_it():
    batch = images(8)
    unset, given = (
        build(CustomizedAT, attack=PGD(0.1, size, steps=4, init="zero"), noise="uniform") for size in (None, 0.0625)
    )
    found = [defense.search(batch, torch.full((8,), 0.1))[0] for defense in (unset, given)]
    assert torch.equal(*found)


def test_legends_print_the_step_in_use():
    assert describe(PGD(0.15, steps=20)) == "PGD(eps=0.15, step_size=0.0187, steps=20)"
    assert describe(PGD(0.15, 0.05, steps=20)) == "PGD(eps=0.15, step_size=0.05, steps=20)"
    assert describe(NuclearNorm(steps=10)) == "NuclearNorm(eps=8/255, step_size=2/255, steps=10)"


@pytest.mark.parametrize(
    "twins",
    [
        (PGD(0.1), PGD(0.1, 0.025, steps=10)),
        (PGD("8/255"), PGD(8 / 255)),
        (FGSM(0.1), PGD(0.1, 0.1, steps=1, init="zero")),
        (RFGSM(0.1, variant="wong"), PGD(0.1, 0.125, steps=1)),
        (BPDA(PGD(0.1), "body"), BPDA(PGD(0.1, 0.025, steps=10), "body")),
        (AutoAttack(0.1), AutoAttack(0.1)),
    ],
    ids=lambda twins: type(twins[0]).__name__,
)
def test_an_attack_that_is_spelled_otherwise_is_the_same_attack(twins):
    twice = dict(zip("ab", twins, strict=True))
    with pytest.raises(ValueError, match=r"^test_attacks a and b "):
        build(PGDAT, test_attacks=twice)
    with pytest.raises(ValueError, match=r"^attacks a and b "):
        RobustAccuracy(twice)


def test_attacks_that_differ_in_one_argument_are_two():
    build(PGDAT, test_attacks={"a": PGD(0.1), "b": PGD(0.1, 0.02, steps=10), "c": FGSM(0.1), "d": RFGSM(0.1)})
    build(PGDAT, test_attacks={"a": BPDA(PGD(0.1), "body"), "b": BPDA(PGD(0.2), "body"), "c": BPDA(PGD(0.1), "head")})


SHORT = PGD(0.1, 0.01, steps=5)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: build(PGDAT, attack=SHORT), "attack"),
        (lambda: build(PGDAT, val_attack=SHORT), "val_attack"),
        (lambda: build(PGDAT, test_attacks={"weak": SHORT}), "weak"),
        (lambda: build(PGDAT, test_attacks={"nuclear": NuclearNorm(0.1, 0.01, steps=5)}), "nuclear"),
        (lambda: AdversarialTraining(SHORT), "attack"),
        (lambda: RobustAccuracy({"weak": SHORT}), "weak"),
        (lambda: RobustAccuracy({"pgd": PGD()}, {"weak": SHORT}), "weak"),
        (lambda: AdversarialExamples(SHORT), "attack"),
        (lambda: CatastrophicOverfittingMonitor(PGDDrop(SHORT)), "rule.attack"),
        (lambda: CatastrophicOverfittingMonitor(FGSMGap(single_step=SHORT)), "rule.single_step"),
    ],
)
def test_a_given_step_that_cannot_cross_the_ball_is_told_once(make, name):
    sentence = rf"step_size=0\.01 of {name} .*eps=0\.1 in 5 steps: .* 0\.05\)"
    with pytest.warns(UserWarning, match=sentence) as told:
        make()
    assert len(told) == 1
    with warnings.catch_warnings(action="error"):
        crafted(SHORT)  # the attack itself says nothing


def test_steps_that_just_cross_it_are_not_told():
    build(PGDAT, attack=PGD(0.1, 0.1 / 7, steps=7), val_attack=PGD(0.1, steps=50), test_attacks={"fgsm": FGSM(0.1)})
    build(PGDAT, attack=PGD(0.1, 0.01, steps=0), test_attacks={"none": PGD(0, 0.01, steps=1)})
