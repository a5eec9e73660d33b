"""Curriculum adversarial training: a growing number of steps."""

import pytest
import torch
from lightning.pytorch import Callback
from torch import nn

from lit_robust import losses
from lit_robust.attacks import PGD
from lit_robust.callbacks import AttributeRamp
from lit_robust.defenses import AWP, CurriculumAT, Natural
from lit_robust.schedules import Staircase
from lit_robust.training.metrics import EpochMeans
from tests.formulas import Passes, assert_same_batch, gradient, in_float64, smooth_net
from tests.methods import EPS, ONE_STEP, build
from tests.ranks import Data
from tests.test_resume import STOPS, Setup, assert_the_same
from tests.test_resume import fit as fit_and_save
from tests.tiny import images, loader, trainer

SEVEN = PGD(eps=EPS, steps=7)


def curriculum(k=0, **arguments) -> CurriculumAT:
    defense = build(CurriculumAT, **({"attack": SEVEN} | arguments))
    defense.k = k
    return defense


def attacks_of(defense, batch) -> list[tuple[PGD, torch.Tensor]]:
    """The attack of each part of a batch."""
    seen = []

    class Noted(PGD):
        def __call__(self, net, x, y):
            seen.append((self, x))
            return x

    defense.attack = Noted(**vars(defense.attack))
    defense.perturb(batch)
    return seen


def test_a_k_that_the_attack_does_not_have_is_refused_before_the_training(tmp_path):
    run = trainer(tmp_path, max_epochs=2, callbacks=[AttributeRamp("k", Staircase([0, 1], [0, 8]))])
    with pytest.raises(ValueError, match=r"^AttributeRamp .*k=8 .*: k=8"):
        run.fit(curriculum(), loader(images(8)))


def test_with_no_steps_there_is_no_objective(tmp_path):
    """Not even one that has no gradient at the image."""
    kl = PGD(eps=EPS, steps=2, loss=losses.kl, compare_with="clean_logits", init="gaussian")
    trainer(tmp_path, max_epochs=1).fit(curriculum(attack=kl), loader(images(8)))


class TestParts:
    @pytest.mark.parametrize(
        ("k", "n", "sizes"),
        [(0, 10, [10]), (1, 10, [5, 5]), (3, 10, [2, 2, 2, 4]), (7, 8, [1] * 8), (4, 4, [4])],
    )
    def test_are_equal_but_for_what_is_left_over_and_attacked_with_0_to_k_steps(self, k, n, sizes):
        seen = attacks_of(curriculum(k), images(n))
        assert [len(x) for _, x in seen] == sizes
        assert [attack.steps for attack, _ in seen] == ([k] if n <= k else list(range(k + 1)))

    def test_come_back_in_their_order_the_first_as_it_was(self):
        batch = images(10)
        x_adv = curriculum(3).perturb(batch)
        change = (x_adv - batch.x).flatten(1).abs().amax(dim=1)
        assert torch.equal(x_adv[:2], batch.x[:2])
        assert (change[2:] > 0.9 * EPS).all()
        assert (change <= EPS + 1e-6).all()

    def test_are_not_made_in_basic(self):
        ((attack, x),) = attacks_of(curriculum(3, batch_mixing=False), images(10))
        assert (attack.steps, len(x)) == (3, 10)

    def test_cost_the_steps_that_are_taken(self):
        defense, batch = curriculum(3), images(12)
        passes = Passes(defense.net)
        defense.perturb(batch)
        assert passes.forward == passes.backward == 3 * (0 + 1 + 2 + 3)


class TestSteps:
    @pytest.mark.parametrize("j", [1, 2, 7, 10, 20, 40])
    def test_are_2_eps_over_j_times_a_number_between_1_and_10_over_j_and_at_most_2_eps(self, j):
        defense = curriculum(j, attack=PGD(eps=EPS, steps=40), batch_mixing=False)
        drawn = [attacks_of(defense, images(1))[0][0] for _ in range(500)]
        assert {attack.steps for attack in drawn} == {j}
        sizes = torch.tensor([attack.step_size for attack in drawn])
        low, high = sorted([2 * EPS / j, 2 * EPS / j * 10 / j])
        assert low - 1e-9 <= sizes.min() <= low + 0.02 * (high - low)
        assert min(high, 2 * EPS) - 0.02 * (high - low) <= sizes.max() <= min(high, 2 * EPS) + 1e-9
        assert defense.adversary().step_size == pytest.approx(2 * EPS / j)

    def test_above_2_eps_end_where_those_of_2_eps_do(self):
        net, batch = smooth_net(), images(8)
        ends = []
        for size in (2 * EPS, 20 * EPS, 5 * EPS):
            torch.manual_seed(3)
            ends.append(PGD(eps=EPS / 5, step_size=size / 5, steps=2, clip_init=False)(net, batch.x, batch.y))
        for end in ends[1:]:
            torch.testing.assert_close(end, ends[0])

    def test_may_be_wider_than_the_image_box_in_l2_only(self):
        assert curriculum(1, attack=PGD(eps=2.0, steps=3, norm="l2")).adversary().step_size == 4.0
        assert curriculum(1, attack=PGD(eps=0.8, steps=3)).adversary().step_size == 1.0

    def test_keep_the_attacks_other_arguments(self):
        attack = PGD(eps=EPS, step_size=0.9, steps=5, init="gaussian", clip_init=False, restarts=2)
        found = curriculum(5, attack=attack).adversary()
        assert found == PGD(eps=EPS, step_size=2 * EPS / 5, steps=5, init="gaussian", clip_init=False, restarts=2)

    def test_find_the_formulas_adversary_in_float64(self):
        net, batch = smooth_net(), images(8)
        defense = curriculum(2, net=net, batch_mixing=False, attack=PGD(eps=EPS, steps=7, clip_init=False))
        torch.manual_seed(3)
        found = defense.perturb(batch)
        torch.manual_seed(3)
        size = min(2 * EPS / 2 * (1 + 4 * float(torch.rand(()))), 2 * EPS)
        x, net = batch.x.double(), in_float64(net)
        x_adv = x + (2 * torch.rand_like(batch.x).double() - 1) * EPS  # the first gradient is taken outside [0, 1]
        unsure = torch.zeros_like(x, dtype=torch.bool)
        for _ in range(2):
            g = gradient(net, x_adv, batch.y)
            unsure |= g.abs() < 1e-5 * g.abs().max()
            x_adv = (x_adv + size * g.sign()).clamp(x - EPS, x + EPS).clamp(0, 1)
        assert unsure.float().mean() < 0.02
        torch.testing.assert_close(found[~unsure], x_adv.float()[~unsure])


def test_with_no_steps_it_is_natural_training():
    assert_same_batch(curriculum(0), build(Natural), images(8))


class TestCurriculum:
    def run(self, tmp_path, *callbacks, epochs=4, val=False, **arguments):
        """The k of each epoch's batches, and the method."""
        seen = []

        class Spy(CurriculumAT):
            def perturb(self, batch):
                seen.append(self.k)
                return super().perturb(batch)

        arguments = {"attack": PGD(eps=EPS, steps=2)} | arguments
        fitted = trainer(tmp_path, max_epochs=epochs, callbacks=list(callbacks))
        defense = build(Spy, **arguments)
        fitted.fit(defense, loader(images(16)), loader(images(16, seed=1)) if val else None)
        return seen[::2], defense, fitted

    def test_gets_a_step_after_each_epoch_that_was_learned_and_ends_with_the_attacks(self, tmp_path):
        ks, *_ = self.run(tmp_path, expect_acc=0.0, epochs=5)
        assert ks == [0, 1, 2, 2, 2]

    def test_waits_for_the_accuracy(self, tmp_path):
        assert self.run(tmp_path, expect_acc=0.25, **still())[0] == [0, 0, 0, 0]  # which is that of one class in four
        assert self.run(tmp_path, expect_acc=0.24, **still())[0] == [0, 1, 2, 2]

    @pytest.mark.parametrize("weight_perturbation", [None, AWP(gamma=0.01)])
    def test_decides_by_its_own_count_which_is_the_logged_accuracy(self, tmp_path, weight_perturbation):
        arguments = {"expect_acc": 0.5, "weight_perturbation": weight_perturbation}
        _, defense, fitted = self.run(tmp_path, epochs=1, **arguments)
        logged = float(fitted.callback_metrics["train/acc/robust"])
        assert 0 < logged < 1
        assert defense.memory.values["learned"] == pytest.approx(logged)
        assert not defense.memory.tensors  # the next epoch is counted from 0

    def test_does_not_depend_on_the_metrics(self, tmp_path, monkeypatch):
        monkeypatch.setattr(EpochMeans, "count", lambda *arguments: None)
        assert self.run(tmp_path, expect_acc=0.0)[0] == [0, 1, 2, 2]

    def test_is_logged(self, tmp_path):
        _, _, fitted = self.run(tmp_path, expect_acc=0.0, epochs=2)
        assert fitted.callback_metrics["train/k"] == 1

    def test_waits_too_until_validation_has_not_improved_for_as_long_as_patience(self, tmp_path):
        ks, *_ = self.run(tmp_path, expect_acc=0.0, patience=2, epochs=8, val=True, **still())
        # at each k the first accuracy is the best, and two more are not
        assert ks == [0, 0, 0, 1, 1, 1, 2, 2]

    def test_stays_while_validation_improves(self, tmp_path):
        class Better(Callback):
            def on_validation_epoch_start(self, trainer, pl_module):
                pl_module.net.right = (trainer.current_epoch + 1) / 8

        ks, *_ = self.run(tmp_path, Better(), expect_acc=0.0, patience=1, epochs=4, val=True, **still())
        assert ks == [0, 0, 0, 0]

    def test_is_validated_with_k_steps_beside_the_full_attack(self, tmp_path):
        full = PGD(eps=EPS, step_size=1 / 7 * EPS, steps=7, init="zero")
        _, defense, fitted = self.run(tmp_path, expect_acc=0.0, patience=1, epochs=3, val=True)
        assert {"val/acc/robust", "val/acc/k_steps", "val/acc/clean"} <= fitted.callback_metrics.keys()
        assert defense.val_attacks["robust"] == full
        defense.k = defense.val_attacks["k_steps"].steps
        assert defense.val_attacks["k_steps"] == defense.adversary()
        assert "k_steps" not in build(CurriculumAT).val_attacks

    def test_may_be_driven_by_a_ramp(self, tmp_path):
        ramp = AttributeRamp("k", Staircase([0, 1, 3], [1, 2, 0]))
        assert self.run(tmp_path, ramp)[0] == [1, 2, 2, 0]

    def test_is_logged_once_under_a_ramp(self, tmp_path):
        ramp = AttributeRamp("k", Staircase([0, 1], [0, 2]))
        run = trainer(tmp_path, max_epochs=2, callbacks=[ramp], log_every_n_steps=1)
        run.fit(curriculum(), loader(images(8)))
        assert run.callback_metrics["train/k"] == 2


def still():
    """A net that does not learn."""
    return {"net": Same(), "optimizer": lambda params: torch.optim.SGD(params, lr=0.0)}


class Same(nn.Module):
    """The same class for all images; in eval mode right about a share of them, if that is set."""

    right = 0.0

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        labels = torch.zeros(len(x), dtype=torch.long)
        if not self.training:
            known = int(self.right * len(x))
            labels[:known] = torch.arange(known) % 4
        return 5 * nn.functional.one_hot(labels, 4) + self.slope * x.flatten(1).sum(dim=1, keepdim=True)


@pytest.fixture(scope="module")
def patient(tmp_path_factory):
    setup = Setup(CurriculumAT, {"expect_acc": 0.0, "patience": 1, "attack": PGD(eps=EPS, steps=2)})
    return setup, fit_and_save(setup, tmp_path_factory.mktemp("patient"))


@pytest.mark.parametrize("stop", ["in mid-epoch", "after an epoch's last batch", "after validation", "between epochs"])
def test_a_patient_run_resumes_as_if_it_had_not_been_stopped(patient, stop):
    memory = patient[1].end["lit_robust"]["memory"]["values"]
    assert memory["stale"] + memory["k"] > 0
    assert_the_same(patient, STOPS[stop])


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("attack", ONE_STEP, TypeError),
        ("expect_acc", 1.0, ValueError),
        ("expect_acc", 95, ValueError),
        ("patience", -1, ValueError),
    ],
)
def test_arguments_that_make_no_sense_are_refused(name, value, error):
    with pytest.raises(error, match=rf"\b{name}="):
        build(CurriculumAT, **{name: value})


@pytest.mark.filterwarnings("ignore:Total length of `list` across ranks is zero")  # of the images held out
@pytest.mark.parametrize("data", [loader(images(8)), Data()], ids=["no loader", "val_size=0"])
def test_patience_without_validation_is_refused_before_training(tmp_path, data):
    defense = build(CurriculumAT, patience=10)
    before = defense.net.head.weight.clone()
    with pytest.raises(ValueError, match=r"^patience=10"):
        trainer(tmp_path, max_epochs=1).fit(defense, data)
    assert torch.equal(defense.net.head.weight, before)
