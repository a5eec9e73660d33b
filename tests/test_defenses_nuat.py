"""Nuclear-norm adversarial training, its hybrid, and NuAT2."""

import csv
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import nn

from lit_robust import losses, schedules
from lit_robust.attacks import PGD
from lit_robust.batch import Batch
from lit_robust.callbacks import EMAWeights
from lit_robust.cli.config import load, merged
from lit_robust.defenses import NuAT, NuAT2
from lit_robust.defenses.hybrid import MEMORY, CleanLossDrop, EvenShare, SecondStepGain
from lit_robust.measures.masking import second_step_gain
from lit_robust.nets.folded import unfolded
from lit_robust.ranks import weighted_mean
from lit_robust.training.memory import Memory
from tests.formulas import forwards
from tests.methods import EPS, ONE_STEP, build
from tests.tiny import TinyNet, images, indexed, loader, trainer


def tiny(batch, trained: bool, seed: int = 0) -> nn.Module:
    """The tiny net in float64 and eval mode; its BatchNorm moved by the clean images, or not."""
    net = TinyNet(seed=seed).double().train(trained)
    net(batch.x.double())
    return net.eval()


def start(x, seed=3):
    torch.manual_seed(seed)
    return (x + EPS / 2 * torch.randn_like(x).sign()).clamp(0, 1).double()


def polar(difference):
    u, _, vh = torch.linalg.svd(difference, full_matrices=False)
    return u @ vh


def stepped(net, x_adv, batch, lam=0.0, clean=None):
    """A full step in float64 on the summed cross-entropy and lam times the nuclear norm, by their closed gradients."""
    x = batch.x.double()
    x_adv = x_adv.clone().requires_grad_()
    logits = net(x_adv)
    slope = logits.detach().softmax(dim=1) - nn.functional.one_hot(batch.y, 4)
    if lam:
        slope = slope + lam * polar(logits.detach() - clean)
    (gradient,) = torch.autograd.grad(logits, x_adv, slope)
    x_adv = (x_adv.detach() + EPS * gradient.sign()).clamp(x - EPS, x + EPS).clamp(0, 1)
    return x_adv, gradient.abs() < 1e-5 * gradient.abs().max()


def perturbed(defense, batch, batch_idx=1):
    defense.train()
    defense.batch_idx = batch_idx
    torch.manual_seed(3)
    return defense.perturb(batch)


def gradients(net: nn.Module, loss: torch.Tensor):
    return torch.autograd.grad(loss, list(net.parameters()))


class TestNuAT:
    def test_the_perturbation_is_the_formulas_in_float64(self):
        batch = images(8)
        found = perturbed(build(NuAT, attack=ONE_STEP, lam=4.5), batch)
        clean = TinyNet().double().train()(batch.x.double()).detach()
        expected, unsure = stepped(tiny(batch, trained=True), start(batch.x), batch, lam=4.5, clean=clean)
        unguided, _ = stepped(tiny(batch, trained=True), start(batch.x), batch)
        assert not torch.equal(expected, unguided)
        assert unsure.float().mean() < 0.02
        torch.testing.assert_close(found[~unsure], expected.float()[~unsure])

    def test_loss_and_gradient_are_the_formulas_in_float64(self):
        batch, x_adv = images(8), images(8, seed=1).x
        net = TinyNet().double().train()
        adversarial, clean = net(x_adv.double()), net(batch.x.double())
        singular = torch.linalg.svdvals(adversarial - clean)
        expected = nn.functional.cross_entropy(clean, batch.y) + 4.5 / 8 * singular.sum()
        defense = build(NuAT, attack=ONE_STEP, lam=4.5).train()
        found = weighted_mean(defense.loss(batch, x_adv), batch.weight)
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=0)
        for mine, its in zip(gradients(defense.net, found), gradients(net, expected), strict=True):
            torch.testing.assert_close(mine.double(), its, rtol=1e-4, atol=1e-5)

    def test_a_sample_of_weight_2_is_two_samples(self):
        batch, x_adv = images(8), images(8, seed=1).x
        defense = build(NuAT, attack=ONE_STEP, lam=4.5).eval()  # BatchNorm ignores sample weights
        weighted = batch._replace(weight=torch.tensor([2.0, 0, 1, 1, 1, 1, 1, 1]))
        rows = torch.tensor([0, 0, 2, 3, 4, 5, 6, 7])
        copied = Batch(*(part[rows] for part in batch))
        mine = weighted_mean(defense.loss(weighted, x_adv), weighted.weight)
        its = weighted_mean(defense.loss(copied, x_adv[rows]), copied.weight)
        torch.testing.assert_close(mine, its)
        for one, other in zip(gradients(defense.net, mine), gradients(defense.net, its), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)

    def test_the_scale_of_weights_changes_nothing(self):
        batch, x_adv = images(8), images(8, seed=1).x
        weights = [c * torch.rand(8, generator=torch.Generator().manual_seed(0)) for c in (1, 37)]
        defense = build(NuAT, attack=ONE_STEP, lam=4.5).eval()
        values = [weighted_mean(defense.loss(batch._replace(weight=w), x_adv), w) for w in weights]
        torch.testing.assert_close(*values)

    def test_a_batch_of_padding_alone_adds_nothing(self):
        batch = images(8)._replace(weight=torch.zeros(8))
        defense = build(NuAT, attack=ONE_STEP, lam=4.5).train()
        penalty = defense.penalty(defense.net(images(8, seed=1).x), defense.net(batch.x), batch.weight)
        assert penalty.item() == 0
        assert all(torch.isfinite(gradient).all() for gradient in gradients(defense.net, penalty))

    def test_a_batch_moves_batch_norm_three_times_and_costs_three_passes_and_a_forward(self, tmp_path):
        defense = build(NuAT, attack=ONE_STEP)
        assert forwards(defense, tmp_path) == [
            ("train", False),
            ("eval", True),
            ("train", True),
            ("train", True),
        ]
        assert int(defense.net.body[1].num_batches_tracked) == 3

    def test_logits_that_are_not_finite_end_the_run_in_one_sentence(self, tmp_path):
        defense = build(NuAT, attack=ONE_STEP, optimizer=lambda p: torch.optim.SGD(p, lr=float("inf")))
        with pytest.raises(FloatingPointError, match="not finite"):
            trainer(tmp_path, max_epochs=1).fit(defense, loader(images()))


class TestNuAT2:
    def test_the_perturbation_is_a_guided_step_and_an_unguided_one_of_full_size(self):
        batch = images(8)
        found = perturbed(build(NuAT2, attack=ONE_STEP, lam=4.0), batch, batch_idx=0)
        net = tiny(batch, trained=False)
        first, unsure = stepped(net, start(batch.x), batch, lam=4.0, clean=net(batch.x.double()).detach())
        second, doubtful = stepped(net, first, batch)
        unsure |= doubtful
        assert unsure.float().mean() < 0.02
        torch.testing.assert_close(found[~unsure], second.float()[~unsure], atol=1e-6, rtol=0)

    def test_a_batch_moves_batch_norm_twice_and_costs_four_passes_and_a_forward(self, tmp_path):
        defense = build(NuAT2, attack=ONE_STEP)
        modes = [("eval", False), ("eval", True), ("eval", True), ("train", True), ("train", True)]
        assert forwards(defense, tmp_path) == modes
        assert int(defense.net.body[1].num_batches_tracked) == 2

    def test_with_lambda_0_loss_and_gradient_are_those_of_clean_cross_entropy(self):
        batch = images(8)
        defense, net = build(NuAT2, attack=ONE_STEP, lam=0.0).train(), TinyNet().train()
        found, expected = defense.loss(batch, perturbed(defense, batch)), losses.ce(net(batch.x), batch.y)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
        for mine, its in zip(gradients(defense.net, found.mean()), gradients(net, expected.mean()), strict=True):
            torch.testing.assert_close(mine, its, rtol=0, atol=1e-6)


class TestNuAT2WA:
    def fitted(self, tmp_path):
        defense = build(NuAT2, attack=ONE_STEP, lam=4.0, attack_average="fast")
        run = trainer(tmp_path, max_epochs=1, callbacks=[EMAWeights(0.9, extra={"fast": 0.5})])
        run.fit(defense, loader(images(16)))
        return defense

    def test_the_first_step_attacks_the_average_and_the_second_one_the_net(self, tmp_path):
        defense, batch = self.fitted(tmp_path), images(8)  # one epoch is over: the second one would come now
        assert defense.current_epoch == 1
        other = TinyNet(seed=5)
        defense.averaged["fast"].load_state_dict(other.state_dict())
        defense.net.load_state_dict(TinyNet().state_dict())
        found = perturbed(defense, batch)
        average, net = tiny(batch, trained=False, seed=5), tiny(batch, trained=False)
        first, unsure = stepped(average, start(batch.x), batch, lam=4.0, clean=average(batch.x.double()).detach())
        second, doubtful = stepped(net, first, batch)
        unsure |= doubtful
        torch.testing.assert_close(found[~unsure], second.float()[~unsure], atol=1e-6, rtol=0)
        assert unsure.float().mean() < 0.02

    def test_another_average_gives_another_perturbation(self, tmp_path):
        defense, batch = self.fitted(tmp_path), images(8)
        before = perturbed(defense, batch)
        defense.averaged["fast"].load_state_dict(TinyNet(seed=5).state_dict())
        assert not torch.equal(perturbed(defense, batch), before)

    def test_in_the_first_epoch_both_steps_attack_the_net(self, tmp_path):
        seen = []

        class Spy(NuAT2):
            def perturb(self, batch):
                attacked = []  # by the forwards of the attack that a backward follows

                def hook(net, args, logits):
                    if logits.requires_grad:
                        attacked.append("net" if unfolded(net) is self.net else "average")

                hooks = [net.register_forward_hook(hook) for net in (self.net, self.averaged["fast"])]
                x_adv = super().perturb(batch)
                for handle in hooks:
                    handle.remove()
                seen.append((self.current_epoch, attacked))
                return x_adv

        defense = build(Spy, attack=ONE_STEP, attack_average="fast")
        callbacks = [EMAWeights(0.9, extra={"fast": 0.5})]
        trainer(tmp_path, max_epochs=3, callbacks=callbacks).fit(defense, loader(images(8)))
        assert seen == [(0, ["net", "net"]), (1, ["average", "net"]), (2, ["average", "net"])]

    def test_the_average_keeps_its_mode_and_gets_no_gradient(self, tmp_path):
        defense = self.fitted(tmp_path)
        perturbed(defense, images(8))
        average = defense.averaged["fast"]
        assert not any(module.training for module in average.modules())
        assert all(parameter.grad is None for parameter in average.parameters())
        assert int(average.body[1].num_batches_tracked) == int(defense.net.body[1].num_batches_tracked)

    @pytest.mark.parametrize("arguments", [{"two_step": None}, {"attack_alternate": True}])
    def test_what_nuat_alone_decides_is_refused(self, arguments):
        with pytest.raises(TypeError, match=r"^NuAT2 .*two_step .*attack_alternate"):
            build(NuAT2, attack=ONE_STEP, **arguments)

    def test_with_compile_the_average_is_compiled_too(self, tmp_path, monkeypatch):
        compiled = []

        def compile_in_place(net):
            compiled.append(net)
            vars(net)["_compiled_call_impl"] = net._call_impl

        monkeypatch.setattr(nn.Module, "compile", compile_in_place)
        defense = build(NuAT2, attack=ONE_STEP, attack_average="fast", compile=True)
        callbacks = [EMAWeights(0.9, extra={"fast": 0.5})]
        trainer(tmp_path, max_epochs=1, callbacks=callbacks).fit(defense, loader(images(8)))
        of_the_average = [net is defense.averaged["fast"] for net in compiled]
        assert of_the_average == [False, True, False], "the net, its average, and what attacks see of the net"

    @pytest.mark.parametrize(
        ("callbacks", "kept"), [([], "EMAWeights"), ([EMAWeights(extra={"slow": 0.9})], "EMAWeights.* slow")]
    )
    def test_a_missing_average_is_named_before_training(self, callbacks, kept, tmp_path):
        defense = build(NuAT2, attack=ONE_STEP, attack_average="fast")
        before = defense.net.head.weight.clone()
        with pytest.raises(ValueError, match=f'^attack_average="fast" .*{kept}'):
            trainer(tmp_path, max_epochs=1, callbacks=callbacks).fit(defense, loader(images(8)))
        assert torch.equal(defense.net.head.weight, before)


def remembered(detector, curve, every=0.05, begin=10.0) -> dict:
    """A method's memory after a detector has measured a curve."""
    method = SimpleNamespace(memory=Memory(), batch_idx=0, log_now=lambda **values: None)
    method.memory.declare(**MEMORY)
    method.trainer = SimpleNamespace(num_training_batches=1)  # so that it looks in every batch
    with patch.object(type(detector), "measure", side_effect=curve):
        for k in range(len(curve)):
            method.time = begin + k * every
            detector.alert(method, batch=None)
    return method.memory.values


def triggers(*args, **kwargs) -> int:
    return remembered(*args, **kwargs)["triggers"]


class TestCleanLossDrop:
    def test_a_level_curve_and_a_gentle_decline_are_no_alarm(self):
        assert triggers(CleanLossDrop(), [1.0] * 100) == 0
        assert triggers(CleanLossDrop(), [1 - 0.002 * k for k in range(100)]) == 0  # 2 % in half an epoch

    def test_a_fall_by_a_third_within_half_an_epoch_is_an_alarm(self):
        memory = remembered(CleanLossDrop(), [1.0] * 20 + [1 - 0.033 * k for k in range(11)])
        assert memory["triggers"] == 1
        assert memory["until"] == pytest.approx(10 + 30 * 0.05 + 0.5)

    def test_the_comparison_is_with_the_moving_average_half_an_epoch_ago_by_hand(self):
        # smoothing near 0 makes the average the curve itself: 0.86 is a drop of 14 %, 0.84 one of 16 %
        sharp = CleanLossDrop(smoothing=1e-9, window=0.5, drop=0.15)
        for last, fires in ((0.86, False), (0.84, True)):
            memory = remembered(sharp, [1.0, 1.0, last], every=0.25)
            assert memory["values"] == [1.0, 1.0, last]
            assert memory["triggers"] == fires

    def test_the_average_forgets_with_its_time_constant(self):
        memory = remembered(CleanLossDrop(smoothing=0.05), [1.0, 0.0])
        assert memory["values"][-1] == pytest.approx(2.718281828**-1)

    def test_it_is_silent_in_the_warm_up_and_before_a_whole_window_is_known(self):
        fall = [1.0] * 11 + [0.1] * 5
        assert triggers(CleanLossDrop(warm_up=5), fall, begin=3.0) == 0
        assert triggers(CleanLossDrop(warm_up=5), fall, begin=6.0) == 1
        assert triggers(CleanLossDrop(), [1.0] * 2 + [0.1] * 8) == 0

    def test_an_alert_that_goes_on_is_one_trigger(self):
        memory = remembered(CleanLossDrop(), [1.0] * 20 + [0.9**k for k in range(20)])
        assert memory["triggers"] == 1
        assert memory["until"] == pytest.approx(10 + 39 * 0.05 + 0.5)

    def test_memory_reaches_back_one_window(self):
        memory = remembered(CleanLossDrop(window=0.5), [1.0] * 400)
        assert len(memory["times"]) == len(memory["values"]) == 11

    def test_it_watches_the_mean_clean_cross_entropy_since_the_last_look(self, tmp_path):
        watched, clean = [], []

        class Spy(CleanLossDrop):
            def measure(self, method, batch):
                watched.append((method.time, super().measure(method, batch)))
                return watched[-1][1]

        class Net(NuAT):
            def loss(self, batch, x_adv):
                values = super().loss(batch, x_adv)
                clean.append([(values * batch.weight).sum().item(), batch.weight.sum().item()])  # lambda is 0
                return values

        defense = build(Net, attack=ONE_STEP, lam=0.0, two_step=Spy(every=0.5))
        batch = images(32)._replace(weight=torch.arange(32) % 5 / 2)
        trainer(tmp_path, max_epochs=2).fit(defense, indexed(batch))  # 4 batches per epoch: looks before 0 and 2
        assert watched[0] == (0.0, None)  # there is nothing yet
        assert [time for time, _ in watched[1:]] == [0.5, 1.0, 1.5]  # the second one reaches into the epoch before
        sums = [torch.tensor(clean[i : i + 2]).sum(dim=0) for i in (0, 2, 4)]
        means = [(total / weight).item() for total, weight in sums]
        assert [value for _, value in watched[1:]] == pytest.approx(means, rel=1e-5)
        assert defense.memory.values["times"] == [1.0, 1.5]  # reaches back one window


class TestSecondStepGain:
    def test_it_fires_above_its_bound(self):
        assert triggers(SecondStepGain(gain=0.2), [0.1, 0.19, 0.2]) == 0
        assert triggers(SecondStepGain(gain=0.2), [0.1, 0.21, 0.1]) == 1

    def test_the_gain_is_what_a_second_unguided_step_adds_to_the_cross_entropy(self):
        batch, net = images(8), tiny(images(8), trained=False)
        defense = build(NuAT, attack=ONE_STEP).train()
        buffers = {name: buffer.clone() for name, buffer in defense.net.named_buffers()}
        first, _ = stepped(net, start(batch.x), batch)
        second, _ = stepped(net, first, batch)
        ce = [nn.functional.cross_entropy(net(x_adv), batch.y, reduction="none") for x_adv in (first, second)]
        expected, weight = (ce[1] - ce[0]).detach().float(), torch.arange(8.0)
        torch.manual_seed(3)
        watched = SecondStepGain().measure(defense, batch._replace(weight=weight))
        assert watched == pytest.approx((expected @ weight / weight.sum()).item(), abs=1e-4, rel=1e-3)
        assert defense.net.training
        torch.manual_seed(3)
        found = second_step_gain(defense.net.eval(), batch.x, batch.y, defense.single_step())
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)
        assert all(torch.equal(buffer, buffers[name]) for name, buffer in defense.net.named_buffers())


class TestHybrid:
    @pytest.fixture
    def spy(self) -> tuple[type[NuAT], list]:
        """A NuAT, and the attack of each of its batches."""
        seen = []

        class Spy(NuAT):
            def adversary(self):
                seen.append(super().adversary())
                return seen[-1]

        return Spy, seen

    def test_on_alert_the_attack_is_nuat2s_and_otherwise_nuats(self, tmp_path, spy):
        method, seen = spy
        defense = build(method, attack=ONE_STEP, lam=4.0, two_step=EvenShare(0.5), attack_alternate=False)
        trainer(tmp_path, max_epochs=1).fit(defense, loader(images(16)))
        quiet, alert = seen
        assert quiet == build(NuAT, attack=ONE_STEP, lam=4.0, attack_alternate=False).adversary()
        assert (quiet.steps, quiet.lam) == (1, 4.0)
        assert alert == build(NuAT2, attack=ONE_STEP, lam=4.0, reference_bn_mode="train").adversary()
        assert (alert.steps, alert.guided_steps, alert.lam) == (2, 1, 4.0)

    def test_an_even_share_is_spread_over_the_epochs(self, tmp_path, spy):
        method, seen = spy
        run = trainer(tmp_path, max_epochs=2)
        run.fit(build(method, attack=ONE_STEP, two_step=EvenShare(0.4)), loader(images(40)))
        assert [attack.steps for attack in seen] == [1, 1, 2, 1, 2, 1, 1, 2, 1, 2]
        assert run.callback_metrics["train/two_step"].item() == pytest.approx(0.4)

    @pytest.mark.parametrize(
        ("duration", "extra_epochs", "steps"),
        [(0.25, 9.0, [2, 1] * 6), (1.0, 9.0, [2] * 12), (1.0, 0.5, [2] * 2 + [1] * 10)],
    )
    def test_an_alert_lasts_its_duration_and_ends_with_the_budget(self, tmp_path, spy, duration, extra_epochs, steps):
        class Always(SecondStepGain):
            def fires(self, times, values):
                return True

        method, seen = spy
        rule = Always(every=0.5, duration=duration, extra_epochs=extra_epochs)
        trainer(tmp_path, max_epochs=3).fit(build(method, attack=ONE_STEP, two_step=rule), loader(images(32)))
        assert [attack.steps for attack in seen] == steps  # of four batches per epoch

    def test_a_natural_epoch_is_not_watched(self, tmp_path):
        defense = build(NuAT, attack=ONE_STEP, two_step=CleanLossDrop())
        defense.adversarial = False
        trainer(tmp_path, max_epochs=1).fit(defense, loader(images()))
        assert (defense.memory.values, defense.memory.tensors) == (MEMORY, {})

    def test_what_is_watched_and_the_triggers_are_logged_at_every_look_and_the_alert_when_it_changes(self, tmp_path):
        logger = CSVLogger(tmp_path, name="run", version=0)
        rule = SecondStepGain(every=0.5, duration=0.25, gain=0, extra_epochs=0.5)  # always fires, pays for 2 batches
        defense = build(NuAT, attack=ONE_STEP, two_step=rule)
        trainer(tmp_path, max_epochs=2, logger=logger, log_every_n_steps=50).fit(defense, loader(images(32)))
        with (tmp_path / "run" / "version_0" / "metrics.csv").open() as file:
            rows = list(csv.DictReader(file))
        logged = {
            key: [(int(row["step"]), float(row[key])) for row in rows if row[key]]
            for key in ("train/triggers", "train/alert")
        }
        assert logged["train/triggers"] == [(0, 1), (2, 2), (4, 3), (6, 4)]
        assert logged["train/alert"] == [(0, 1), (1, 0), (2, 1), (3, 0)]

    @pytest.mark.parametrize(
        ("rule", "name", "value"),
        [
            (EvenShare, "share", 1.5),
            (CleanLossDrop, "every", 0),
            (CleanLossDrop, "smoothing", 0),
            (CleanLossDrop, "window", -1),
            (CleanLossDrop, "warm_up", -1),
            (CleanLossDrop, "drop", -3),
            (SecondStepGain, "extra_epochs", -1),
            (SecondStepGain, "gain", -1),
        ],
    )
    def test_arguments_that_make_no_sense_are_refused(self, rule, name, value):
        with pytest.raises(ValueError, match=f"^{name}="):
            rule(**{name: value})


RECIPES = Path(__file__).parent.parent / "configs" / "recipes" / "nuat"


def schedule_of(node):
    """The schedule of a ``class_path`` with ``init_args``."""
    if not isinstance(node, dict):
        return node
    arguments = {name: schedule_of(value) for name, value in node["init_args"].items()}
    return getattr(schedules, node["class_path"].removeprefix("lit_robust.schedules."))(**arguments)


class Recipe:
    """Rate, momentum and lambda of a recipe at a moment in fractional epochs."""

    def __init__(self, row: str) -> None:
        config = merged(load(str(RECIPES / f"{row}.yaml")))
        model = config["model"]["init_args"]
        ramp = next(c for c in config["trainer"]["callbacks"] if c["class_path"] == "AttributeRamp")["init_args"]
        assert ramp["attribute"] == "lam"
        self.epochs, self.arguments = config["trainer"]["max_epochs"], model
        self.factor, self.lam = schedule_of(model["lr_scheduler"]), schedule_of(ramp["schedule"])
        self.momentum = schedule_of(model["momentum"]) if "momentum" in model else lambda time: 0.9

    def rate(self, time: float) -> float:
        return self.arguments["optimizer"]["init_args"]["lr"] * self.factor(time)

    def each(self, schedule, epochs) -> set[float]:
        """The values of a schedule over whole epochs."""
        return {round(schedule(epoch + part), 9) for epoch in epochs for part in (0, 0.3, 0.999)}


class TestRecipes:
    """The YAML files' values, against those of the authors' scripts."""

    def test_nuat(self):
        row = Recipe("cifar10_resnet18_nuat")
        assert row.epochs == 100
        assert [row.rate(t) for t in (0, 20, 40, 60, 80)] == pytest.approx([0, 0.05, 0.1, 0.06, 0.02])
        assert row.each(row.rate, range(80, 86)) == {0.02}
        assert row.each(row.rate, range(86, 91)) == {0.002}
        assert row.each(row.rate, range(91, 100)) == {0.0002}
        assert [row.lam(e + part) for e in range(100) for part in (0, 0.5)] == pytest.approx(
            [4.5 * min(e, 90) / 90 for e in range(100) for _ in (0, 0.5)]
        )
        assert [row.momentum(t) for t in (0, 20, 40, 80, 99)] == pytest.approx([0.9, 0.85, 0.8, 0.88, 0.88])

    def test_nuat_wa(self):
        row = Recipe("cifar10_resnet18_nuat_wa")
        assert [row.rate(t) for t in (0, 12.5, 25, 62.5, 100)] == pytest.approx([0, 0.05, 0.1, 0.05, 0])
        assert [row.lam(e + 0.5) for e in range(100)] == pytest.approx([0.04 * e for e in range(100)])
        assert row.momentum(25) == pytest.approx(0.8)

    @pytest.mark.parametrize(("row", "epochs"), [("mnist_lenet_gat", 50), ("imagenet100_resnet18", 120)])
    def test_nuat_wa_on_other_data_grows_lambda_to_4_over_all_epochs_too(self, row, epochs):
        recipe = Recipe(f"{row}_nuat_wa")
        assert recipe.epochs == epochs
        assert [recipe.lam(e + 0.5) for e in range(epochs)] == pytest.approx([4 * e / epochs for e in range(epochs)])

    @pytest.mark.parametrize(
        ("rows", "attack"),
        [
            ("cifar10_*", {"eps": "8/255", "step_size": "8/1785", "steps": 7, "init": "zero"}),
            ("mnist_*", {"eps": 0.3, "step_size": "0.3/40", "steps": 40, "init": "zero"}),
            (
                "imagenet100_*_gat",
                {"eps": "8/255", "step_size": "1/255", "steps": 20, "init": "uniform", "clip_init": False},
            ),
        ],
    )
    def test_the_best_checkpoint_is_chosen_by_the_attack_of_gats_code_for_the_data(self, rows, attack):
        for path in RECIPES.glob(f"{rows}.yaml"):
            val_attack = merged(load(str(path)))["model"]["init_args"]["val_attack"]
            assert val_attack["class_path"] == "PGD", path
            assert PGD(**val_attack["init_args"]) == PGD(**attack, norm="linf"), path

    def test_nuat2(self):
        row = Recipe("cifar10_wrn34_10_nuat2")
        assert row.epochs == 55
        assert [row.rate(t) for t in (10, 20, 35)] == pytest.approx([0.05, 0.1, 0.025])
        assert row.each(row.rate, range(35, 41)) == {0.025}
        assert row.each(row.rate, range(41, 46)) == {0.0025}
        assert row.each(row.rate, range(46, 55)) == {0.00025}
        assert row.lam(54.9) == pytest.approx(4 * 54 / 55)

    def test_nuat2_wa(self):
        row = Recipe("cifar10_wrn34_10_nuat2_wa")
        assert row.epochs == 80
        assert [row.rate(t) for t in (20, 50, 80)] == pytest.approx([0.1, 0.05, 0])
        assert [row.lam(1.5), row.lam(79.9)] == pytest.approx([0.05, 3.95])
        assert row.arguments["attack_average"] == "fast"

    def test_gat(self):
        row = Recipe("cifar10_resnet18_gat")
        assert row.each(row.lam, range(86)) == {10}
        assert row.each(row.lam, range(86, 100)) == {40}
        assert row.each(row.rate, range(71)) == {0.1}
        assert row.each(row.rate, range(71, 86)) == {0.01}
        assert row.each(row.rate, range(86, 100)) == {0.001}
        mnist, imagenet = Recipe("mnist_lenet_gat_gat"), Recipe("imagenet100_resnet18_gat")
        assert [mnist.lam(25.9), mnist.lam(26), mnist.rate(25.9), mnist.rate(26)] == pytest.approx(
            [15, 45, 0.01, 0.002]
        )
        assert [imagenet.lam(89.9), imagenet.lam(90), imagenet.rate(59.9), imagenet.rate(60)] == pytest.approx(
            [20, 140, 0.1, 0.01]
        )
