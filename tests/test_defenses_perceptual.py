"""Perceptual adversarial training: what it attacks, what it clips, what evaluates it, and that it learns."""

import pytest
import torch
from torch import nn

from lit_robust.analysis.subjects import Subject
from lit_robust.analysis.trained_threat import trained_threat
from lit_robust.attacks import BPDA, LPA, PGD, FastLPA, StAdv
from lit_robust.attacks.base import EPS
from lit_robust.attacks.lpips import lpips
from lit_robust.callbacks import AttributeRamp, CatastrophicOverfittingMonitor
from lit_robust.cli import main
from lit_robust.defenses import PGDAT, Defense, Natural, PerceptualAT
from lit_robust.measures.accuracy import surviving
from lit_robust.measures.alarms import Alarms
from lit_robust.measures.default_attacks import threat_of
from lit_robust.nets import digits_cnn
from lit_robust.schedules import Linear
from tests.formulas import assert_same_batch
from tests.methods import build, sgd
from tests.tiny import TinyNet, images, indexed, trainer
from tests.trained import digits

ATTACK = FastLPA(0.3, steps=2)


def method(**arguments) -> PerceptualAT:
    return build(PerceptualAT, **({"attack": ATTACK} | arguments))


def test_only_images_that_are_classified_correctly_are_attacked():
    defense, batch = method(), images(24)
    defense.net.eval()
    correct = defense.net(batch.x).argmax(1) == batch.y
    assert 0 < correct.sum() < 24
    defense.net.train()
    torch.manual_seed(0)
    x_adv = defense.perturb(batch)
    torch.manual_seed(0)
    attacked = method(only_attack_correct=False).perturb(batch)
    assert torch.equal(x_adv[~correct], batch.x[~correct])
    assert torch.equal(x_adv[correct], attacked[correct])
    assert (attacked != batch.x).flatten(1).any(dim=1).all()


def test_the_adversary_is_in_the_ball_of_the_net_in_eval_mode():
    defense, batch = method(), images(24)
    x_adv = defense.perturb(batch)
    distances = lpips(defense.net.eval(), batch.x, x_adv)
    assert 0 < distances.max() <= 0.3 + 1e-5


def test_the_loss_is_cross_entropy_on_what_is_found():
    assert_same_batch(method(only_attack_correct=False), build(Defense, attack=ATTACK), images(8))


@pytest.mark.parametrize(("largest", "moved"), [(None, 0.3), (0.01, 0.01)])
def test_gradients_are_clipped_by_value(largest, moved, tmp_path):
    class Steep(PerceptualAT):
        def loss(self, batch, x_adv):
            return 0.3 * sum(parameter.sum() for parameter in self.net.parameters()) * torch.ones_like(batch.weight)

    defense = build(Steep, attack=ATTACK, largest_gradient=largest, optimizer=lambda p: torch.optim.SGD(p, lr=1.0))
    before = [parameter.detach().clone() for parameter in defense.net.parameters()]
    trainer(tmp_path, max_epochs=1, limit_train_batches=1).fit(defense, indexed(images()))
    for old, new in zip(before, defense.net.parameters(), strict=True):
        torch.testing.assert_close(old - new, torch.full_like(old, moved), rtol=0, atol=1e-5)


def test_clipping_by_value_comes_before_clipping_the_norm(tmp_path):
    defense = method(largest_gradient=0.001, gradient_clip_val=1e9, optimizer=lambda p: torch.optim.SGD(p, lr=1.0))
    before = [parameter.detach().clone() for parameter in defense.net.parameters()]
    trainer(tmp_path, max_epochs=1, limit_train_batches=1).fit(defense, indexed(images()))
    steps = [(old - new).abs().max().item() for old, new in zip(before, defense.net.parameters(), strict=True)]
    assert max(steps) == pytest.approx(0.001, rel=1e-2)


@pytest.mark.parametrize(
    ("name", "value", "error"), [("largest_gradient", 0, ValueError), ("only_attack_correct", "yes", TypeError)]
)
def test_arguments_that_make_no_sense_are_refused(name, value, error):
    with pytest.raises(error, match=rf"^{name}="):
        method(**{name: value})


# The evaluation.


def test_lpa_evaluates_in_the_ball_of_the_training_whatever_the_method():
    outer = TinyNet(seed=1).eval()
    for cls in (PerceptualAT, PGDAT):
        defense = build(cls, attack=FastLPA(0.4, lpips_net=outer))
        assert defense.val_attacks == {"robust": LPA(0.4, steps=10, lpips_net=outer)}
        assert defense.test_attacks == {"lpa40": LPA(0.4, steps=40, lpips_net=outer)}
    given = method(val_attack=PGD(0.1))
    assert given.val_attacks == {"robust": PGD(0.1)}
    assert list(given.test_attacks) == ["lpa40"]


def test_attacks_in_no_norm_are_not_evaluated_by_pgd_at_their_bound():
    with pytest.raises(ValueError, match="StAdv"):
        build(PGDAT, attack=StAdv())
    both = {"val_attack": StAdv(steps=2), "test_attacks": {"stadv": StAdv()}}
    assert build(PGDAT, attack=StAdv(steps=2), **both).val_attacks["robust"] == StAdv(steps=2)
    for attack in (StAdv(), LPA(), BPDA(LPA(), "body")):
        assert threat_of(attack) is None
    assert threat_of(PGD(0.2, norm="l2")) == (0.2, "l2")


def test_alarms_probe_the_first_norm_of_a_test():
    assert Alarms({"lpa": LPA(), "pgd": PGD(0.1)}, 4).threat == (0.1, "linf")
    assert Alarms({"lpa": LPA()}, 4).threat is None


def test_the_overfitting_monitor_does_not_measure_in_another_norm(tmp_path):
    """As for any attack without a bound in a norm."""
    with pytest.raises(ValueError, match="eps"):
        trainer(tmp_path, max_epochs=1, callbacks=[CatastrophicOverfittingMonitor()]).fit(method(), indexed(images()))


def test_a_test_of_the_method_measures_lpa(tmp_path):
    defense = method(alarm_images=8)
    fit = trainer(tmp_path, max_epochs=1)
    fit.fit(defense, indexed(images()), indexed(images(8, seed=1)))
    assert {"val/acc/clean", "val/acc/robust"} <= fit.callback_metrics.keys()
    defense.test_attacks["lpa40"] = LPA(0.3, steps=2)
    results = fit.test(defense, indexed(images(8, seed=1)), verbose=False)[0]
    assert {"test/acc/clean", "test/acc/lpa40"} <= results.keys()


def test_a_ramp_moves_the_bound(tmp_path):
    defense, seen = method(val_attack=PGD(0.1)), []
    perturb = defense.perturb
    defense.perturb = lambda batch: seen.append(defense.attack.eps) or perturb(batch)
    ramp = AttributeRamp("attack.eps", Linear(0, 0.4, 0, 1))
    trainer(tmp_path, max_epochs=2, callbacks=[ramp]).fit(defense, indexed(images(24)))
    assert seen == pytest.approx([0, 0.4 / 3, 0.8 / 3, 0.4, 0.4, 0.4])


# Learning.


def fitted(cls, tmp_path) -> nn.Module:
    x, y = (part[:-600] for part in digits())
    torch.manual_seed(0)
    net = digits_cnn(width=8)
    defense = cls(
        net=net,
        num_classes=10,
        attack=FastLPA(0.3, steps=5),
        optimizer=lambda p: torch.optim.Adam(p, 3e-3),
    )
    batch = images(1)._replace(x=x, y=y, index=torch.arange(len(y)), weight=torch.ones(len(y)))
    trainer(tmp_path, max_epochs=8).fit(defense, indexed(batch, batch_size=64))
    return net.eval()


def test_it_learns_a_robustness_that_natural_training_does_not(tmp_path):
    x, y = (part[-200:] for part in digits())
    batch = images(1)._replace(x=x, y=y, index=torch.arange(200), weight=torch.ones(200))
    attacks = {"lpa": LPA(0.3, steps=10), "stadv": StAdv(0.04, steps=20)}
    found = {}
    for cls in (Natural, PerceptualAT):
        left = surviving(fitted(cls, tmp_path), attacks, batch)
        found[cls] = {name: rows.float().mean().item() for name, rows in left.items()}
    assert found[PerceptualAT]["clean"] > 0.85
    for name in attacks:
        assert found[PerceptualAT][name] > found[Natural][name] + 0.1, found


# The command line.


def test_it_trains_on_the_command_line_and_its_checkpoint_says_in_which_distance(empty):
    flags = ["--data", "DigitsDataModule", "--model", "PerceptualAT", "--model.net", "lit_robust.nets.digits_cnn"]
    flags += ["--model.attack", "FastLPA", "--model.attack.steps", "1", "--model.attack.eps", "1/4"]
    limits = ["--trainer.limit_train_batches", "1", "--trainer.limit_val_batches", "1", "--trainer.max_epochs", "1"]
    main(["fit", *flags, *limits, "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"])
    (path,) = empty.rglob("*.ckpt")
    defense = PerceptualAT.load_from_checkpoint(path)
    assert defense.attack == FastLPA("1/4", steps=1)
    assert trained_threat([Subject("a", path, defense.net, "")]) == (EPS, "linf")  # that of nets in no norm


def test_a_user_can_optimize_it_as_any_other(tmp_path):
    trainer(tmp_path, max_epochs=1, limit_train_batches=1).fit(method(optimizer=sgd), indexed(images()))
