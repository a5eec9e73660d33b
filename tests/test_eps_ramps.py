"""Epsilon schedules: AttributeRamp on the attack of a method."""

import math
from pathlib import Path

import pytest
import yaml

from lit_robust.attacks import PGD
from lit_robust.callbacks import AttributeRamp
from lit_robust.defenses import PGDAT, CurriculumAT, CustomizedAT
from lit_robust.schedules import Linear, PerEpoch, PeriodicCosine
from tests.methods import build
from tests.tiny import images, indexed, trainer

EPS, STEP = 0.1, 0.025
CALLBACKS = Path(__file__).parent.parent / "configs" / "callback"


def fit(method, tmp_path, *ramps, epochs=4):
    """The method, and the attack, change and time of each batch of images; two batches per epoch."""
    seen = []

    class Spy(method):
        def perturb(self, batch):
            x_adv = super().perturb(batch)
            adversary = x_adv if method is not CustomizedAT else x_adv[0]
            seen.append((self.attack, (adversary - batch.x).abs().max().item()))
            return x_adv

    defense = build(Spy, attack=PGD(eps=EPS, step_size=STEP, steps=4))
    run = trainer(tmp_path, max_epochs=epochs, callbacks=list(ramps))
    run.fit(defense, indexed(images(16)), indexed(images(8)))
    return defense, seen


def test_periodic_adversarial_scheduling_scales_the_step_along_with_eps(tmp_path):
    eps, step = (PerEpoch(PeriodicCosine(0, 2 * size, size, [2, 4])) for size in (EPS, STEP))
    _, seen = fit(PGDAT, tmp_path, AttributeRamp("attack.eps", eps), AttributeRamp("attack.step_size", step))
    # each cycle: 0, then half of a wave that ends at twice eps
    assert [attack.eps for attack, _ in seen] == pytest.approx([0, 0, EPS, EPS] * 2)
    assert [attack.step_size for attack, _ in seen] == pytest.approx([0, 0, STEP, STEP] * 2)
    assert [change for _, change in seen] == pytest.approx([0, 0, EPS, EPS] * 2, abs=1e-6)


def test_validation_and_test_keep_the_full_eps(tmp_path):
    defense, _ = fit(PGDAT, tmp_path, AttributeRamp("attack.eps", Linear(0, EPS, 0, 100)))
    assert defense.attack.eps == pytest.approx(EPS * 3.5 / 100)
    attacks = [*defense.val_attacks.values(), *defense.test_attacks.values()]
    assert {attack.eps for attack in attacks} == {EPS}


@pytest.mark.parametrize("method", [CustomizedAT, CurriculumAT])
def test_other_curricula_take_a_ramp_of_eps_too(method, tmp_path):
    _, seen = fit(method, tmp_path, AttributeRamp("attack.eps", Linear(0, EPS, 0, 4)))
    assert all(change <= attack.eps + 1e-6 for attack, change in seen)
    assert [attack.eps for attack, _ in seen] == pytest.approx([EPS * batch / 8 for batch in range(8)])


def schedules(name):
    """The attributes that a fragment drives, and their values."""
    ramps = yaml.safe_load((CALLBACKS / name).read_text())["trainer"]["callbacks+"]
    cosines = {ramp["init_args"]["attribute"]: ramp["init_args"]["schedule"]["init_args"]["schedule"] for ramp in ramps}
    return {attribute: PeriodicCosine(**cosine["init_args"]) for attribute, cosine in cosines.items()}


@pytest.mark.parametrize(("name", "eps", "step"), [("eps_pas.yaml", 8 / 255, 2 / 255), ("eps_cosine.yaml", 0.4, 0.01)])
def test_the_fragments_keep_the_ratio_of_step_and_eps(name, eps, step):
    found = schedules(name)
    for epoch in range(200):
        at = {attribute: schedule(epoch) for attribute, schedule in found.items()}
        assert at["attack.step_size"] == pytest.approx(at["attack.eps"] * step / eps, abs=1e-12)
    wave = found["attack.eps"].high * (1 - math.cos(math.pi / 4)) / 2
    assert found["attack.eps"](25) == pytest.approx(wave)
