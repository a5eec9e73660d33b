from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from torch import nn
from torch.nn import functional as F

from lit_robust.attacks import FGSM, PGD, Attack
from lit_robust.callbacks import (
    AbnormalRise,
    AdversarialTraining,
    AttributeRamp,
    Bound,
    CatastrophicOverfittingMonitor,
    CrossEntropySplit,
    EMAWeights,
    FGSMGap,
    GradientCosineDrop,
    LinearityErrorSpike,
    PGDDrop,
)
from lit_robust.data.loaders import Samples
from lit_robust.data.resident import ResidentLoader
from lit_robust.defenses import PGDAT
from lit_robust.schedules import Linear
from lit_robust.threats import L2, Linf
from tests.tiny import CLASSES, Counting, SaveAfter, TinyNet, assert_equal, images, loader, trainer, two_ranks

BATCHES = 3
TRAINED_WITH = FGSM(8 / 255)


def batches(weights=None, **share):
    data = images(8 * BATCHES)
    samples = Samples(torch.arange(8 * BATCHES), torch.ones(8 * BATCHES) if weights is None else weights)
    return ResidentLoader(samples, (255 * data.x).byte(), data.y, batch_size=8, **share)


class Net(Counting):
    """A net that counts epochs, so that a rule can be scripted, and draws random numbers in train mode."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("epoch", torch.tensor(-1))

    def features(self, x):
        return F.dropout(super().features(x), 0.2, self.training)


class Classifier(LightningModule):
    """A user's module, not a Defense; its random numbers depend on all that were drawn before."""

    def __init__(self, attack: Attack | None = TRAINED_WITH) -> None:
        super().__init__()
        self.net = Net()
        if attack is not None:
            self.attack = attack

    def configure_optimizers(self):
        return torch.optim.SGD(self.net.parameters(), lr=0.1, momentum=0.9)

    def on_train_epoch_start(self):
        self.net.epoch += 1

    def training_step(self, batch, batch_idx):
        x, y = batch[:2]
        return F.cross_entropy(self.net(x + 0.1 * torch.rand_like(x)), y)


@dataclass(frozen=True)
class Scripted(PGDDrop):
    """The accuracy of each epoch, as if measured."""

    accuracies: tuple[float, ...] = (0.3, 0.5, 0.1, 0.1)

    def measure(self, net, x, y, bound):
        return {"acc/pgd": torch.full((len(x),), self.accuracies[int(net.epoch)])}


@dataclass(frozen=True)
class ScriptedErrors(LinearityErrorSpike):
    errors: tuple[float, ...] = (1.0, 2.0, 3.0, 3.7)

    def measure(self, net, x, y, bound):
        return {"linearity_error": torch.full((len(x),), self.errors[int(net.epoch)])}


@dataclass(frozen=True)
class Succeeds(Attack):
    def __call__(self, net, x, y):
        return 1 - x


class States(Callback):
    """The net's state after every epoch."""

    def __init__(self) -> None:
        self.states = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.is_last_batch:
            self.states.append({k: v.clone() for k, v in pl_module.net.state_dict().items()})


def fit(tmp_path, module, *callbacks, ckpt_path=None, **kwargs):
    torch.manual_seed(0)
    kwargs = {"max_epochs": 4, "log_every_n_steps": 1} | kwargs
    run = trainer(tmp_path, callbacks=list(callbacks), **kwargs)
    run.fit(module, batches(), ckpt_path=ckpt_path, weights_only=True)
    return run


# The rules. Images of one pixel, whose class is whether it is bright, and a net that classifies them: PGD breaks
# exactly those that are within eps of the middle.

PIXELS = torch.tensor([0.1, 0.45, 0.55, 0.9]).view(4, 1, 1, 1)
CLASSES_OF_PIXELS = torch.tensor([0, 0, 1, 1])
BOUND = Bound(0.1)


class Threshold(nn.Module):
    def forward(self, x):
        distance = x.flatten(1) - 0.5
        return torch.cat([-distance, distance], dim=1)


class Saturated(nn.Module):
    """So certain of dark images that their loss has no gradient."""

    def forward(self, x):
        distance = 1e4 * (x.flatten(1) - 0.5).clamp(max=0) + (x.flatten(1) - 0.5).clamp(min=0)
        return torch.cat([-distance, distance], dim=1)


class Wave(nn.Module):
    """Its gradient turns with every step of 0.02."""

    def forward(self, x):
        height = torch.sin(x.flatten(1) * torch.pi / 0.02).sum(dim=1, keepdim=True)
        return torch.cat([-height, height], dim=1)


def test_pgd_drop_measures_the_accuracy_under_its_attack():
    rule = PGDDrop(PGD(eps=0.1, step_size=0.1, steps=2))
    assert rule.measure(Threshold(), PIXELS, CLASSES_OF_PIXELS, BOUND)["acc/pgd"].tolist() == [1, 0, 0, 1]


def test_pgd_drop_compares_with_the_epoch_before():
    rule = PGDDrop(threshold=0.2)
    assert rule.overfits([{"acc/pgd": 0.1}, {"acc/pgd": 0.5}], {"acc/pgd": 0.29})
    assert not rule.overfits([{"acc/pgd": 0.9}, {"acc/pgd": 0.5}], {"acc/pgd": 0.31})
    assert not rule.overfits([{"acc/pgd": 0.1}], {"acc/pgd": 0.5})


def test_the_default_is_the_attack_and_threshold_of_the_authors():
    assert CatastrophicOverfittingMonitor().rule == PGDDrop(None, threshold=0.2)
    assert Bound(8 / 255).pgd5() == PGD(8 / 255, 2 / 255, steps=5)


@pytest.mark.parametrize(("eps", "correct"), [(0.01, 1), (0.1, 0)])
@pytest.mark.parametrize("rule", [PGDDrop(), FGSMGap()], ids=["PGDDrop", "FGSMGap"])
def test_attacks_that_are_left_out_have_the_eps_of_the_training(rule, eps, correct):
    for values in rule.measure(Threshold(), PIXELS, CLASSES_OF_PIXELS, Bound(eps)).values():
        assert values.tolist() == [1, correct, correct, 1]


def test_they_have_its_norm_too():
    bound = Bound(0.5, "l2")
    assert (bound.pgd5().norm, bound.fgsm().norm, bound.ball) == ("l2", "l2", L2(0.5))


def test_a_rule_with_its_own_eps_uses_it_in_l_infinity():
    assert GradientCosineDrop("8/255").within(Bound(0.5, "l2")).ball == Linf(8 / 255)


def test_fgsm_gap_measures_both_attacks():
    measured = FGSMGap(FGSM(eps=0.01), Succeeds()).measure(Threshold(), PIXELS, CLASSES_OF_PIXELS, BOUND)
    assert {name: value.tolist() for name, value in measured.items()} == {
        "acc/fgsm": [1] * 4,
        "acc/pgd": [0] * 4,
    }


@pytest.mark.parametrize(
    ("before", "now", "verdict"),
    [
        ((0.5, 0.4), (0.8, 0.3), True),
        ((0.2, 0.1), (0.6, 0.15), True),
        ((0.5, 0.4), (0.4, 0.2), False),
        ((0.8, 0.3), (0.8, 0.2), False),
    ],
    ids=["it opens while PGD falls", "it opens where PGD was never withstood", "fall without gap", "open before"],
)
def test_fgsm_gap_reports_once_when_the_gap_opens(before, now, verdict):
    previous, current = (dict(zip(("acc/fgsm", "acc/pgd"), values, strict=True)) for values in (before, now))
    assert FGSMGap(margin=0.3).overfits([previous], current) is verdict


def test_the_split_measures_the_cross_entropy_with_and_without_the_attack():
    measured = CrossEntropySplit().measure(Threshold(), PIXELS, CLASSES_OF_PIXELS, Bound(0.1))
    margin = torch.tensor([0.4, 0.05, 0.05, 0.4])
    torch.testing.assert_close(measured["ce/clean"], F.softplus(-2 * margin))
    torch.testing.assert_close(measured["ce/adversarial"], F.softplus(-2 * (margin - 0.1)))


@pytest.mark.parametrize(
    ("clean", "adversarial", "verdict"),
    [(0.8, 1.2, True), (0.8, 0.9, False), (1.2, 1.2, False), (0.9, 1.2, False), (0.8, 1.1, False)],
    ids=["they part", "the rate is divided", "both rise", "clean falls a little", "adversarial rises a little"],
)
def test_the_cross_entropies_split_when_the_clean_one_falls_and_the_other_rises(clean, adversarial, verdict):
    current = {"ce/clean": 0.5 * clean, "ce/adversarial": 2.0 * adversarial}
    assert CrossEntropySplit(change=0.15).overfits([{"ce/clean": 0.5, "ce/adversarial": 2.0}], current) is verdict


def test_the_gradients_of_a_linear_net_all_point_the_same_way():
    measured = GradientCosineDrop(0.01).measure(Threshold(), PIXELS, CLASSES_OF_PIXELS, BOUND)
    torch.testing.assert_close(measured["gradient_cosine"], torch.ones(4))


def test_samples_without_a_gradient_have_no_cosine():
    cosine = GradientCosineDrop(0.01).measure(Saturated(), PIXELS, CLASSES_OF_PIXELS, BOUND)["gradient_cosine"]
    assert cosine.isnan().tolist() == [True, True, False, False]


def test_the_cosine_is_small_where_the_gradient_turns_within_eps():
    x = torch.rand(16, 1, 8, 8)
    rule, y = GradientCosineDrop("8/255"), torch.zeros(16, dtype=torch.int64)
    assert rule.eps == 8 / 255
    cosine = rule.measure(Wave(), x, y, BOUND)["gradient_cosine"].mean()
    assert abs(cosine) < 0.2
    assert rule.overfits([{"gradient_cosine": 0.9}], {"gradient_cosine": float(cosine)})


@pytest.mark.parametrize(
    ("before", "now", "verdict"),
    [
        (0.9, 0.44, True),
        (0.9, 0.46, False),
        (0.2, -0.1, True),
        (-0.1, -0.06, False),
        (-0.1, -0.3, False),
        (0.02, 0.005, False),
    ],
    ids=["below the share", "above it", "below zero", "negative, better", "negative, worse", "noise near zero"],
)
def test_a_cosine_that_was_small_already_does_not_count_as_a_drop(before, now, verdict):
    rule = GradientCosineDrop(factor=0.5, floor=0.1)
    assert rule.overfits([{"gradient_cosine": before}], {"gradient_cosine": now}) is verdict


class Peak(nn.Module):
    """The loss of class 0 is largest where the pixel is 0.5."""

    def forward(self, x):
        height = -(x.flatten(1) - 0.5).abs()
        return torch.cat([-height, height], dim=1)


class Parabola(nn.Module):
    """The loss of class 0 is 40 + 100 x^2, as softplus(z) is z when z is large."""

    def forward(self, x):
        height = 40 + 100 * x.flatten(1).square()
        return torch.cat([torch.zeros_like(height), height], dim=1)


def test_no_sample_is_abnormal_where_every_step_raises_the_loss():
    abnormal = AbnormalRise().measure(Threshold(), PIXELS, CLASSES_OF_PIXELS, BOUND)["abnormal"]
    assert abnormal.tolist() == [0, 0, 0, 0]


def test_at_a_peak_of_the_loss_the_five_eighths_that_start_nearest_are_abnormal():
    # From distance d a step of 1.25 eps ends at 1.25 eps - d, further away if d < 0.625 eps.
    torch.manual_seed(0)
    x, y = torch.full((10_000, 1, 1, 1), 0.5), torch.zeros(10_000, dtype=torch.int64)
    assert AbnormalRise().measure(Peak(), x, y, BOUND)["abnormal"].mean() == pytest.approx(0.625, abs=0.02)


def test_abnormal_samples_are_reported_when_their_share_rises():
    rule = AbnormalRise(rise=0.1)
    assert rule.overfits([{"abnormal": 0.9}, {"abnormal": 0.02}], {"abnormal": 0.13})
    assert not rule.overfits([{"abnormal": 0.0}, {"abnormal": 0.02}], {"abnormal": 0.11})


def test_the_linearity_error_of_a_parabola_is_that_of_theory():
    # k^2 E[t^2 (1 - t)^2] E[(x_a - x_b)^4] = k^2 (1/30) (16/15 eps^4)
    torch.manual_seed(0)
    x, y = torch.full((50_000, 1, 1, 1), 0.3), torch.zeros(50_000, dtype=torch.int64)
    error = LinearityErrorSpike(eps=0.1).measure(Parabola(), x, y, Bound(0.5))["linearity_error"]
    assert error.mean() == pytest.approx(100**2 * 0.1**4 * 8 / 225, rel=0.05)


def test_a_linearity_error_spikes_two_deviations_above_the_mean_of_its_history():
    history = [{"linearity_error": error} for error in (1.0, 2.0, 3.0)]  # 2 and 0.816
    rule = LinearityErrorSpike()
    assert rule.overfits(history, {"linearity_error": 3.64})
    assert not rule.overfits(history, {"linearity_error": 3.63})
    assert not rule.overfits(history[:2], {"linearity_error": 9.0})


# The monitor.


def test_overfitting_is_reported_in_its_epoch_and_training_continues(tmp_path):
    with pytest.warns(UserWarning, match=r"epoch 2.*Scripted.* acc/pgd 0\.5 -> 0\.1") as caught:
        run = fit(tmp_path, Classifier(), CatastrophicOverfittingMonitor(Scripted()))
    assert sum("overfitting" in str(warning.message) for warning in caught) == 1
    assert run.current_epoch == 4


def test_numbers_and_verdict_are_logged(tmp_path):
    class Metrics(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            seen.append({name: float(value) for name, value in trainer.callback_metrics.items()})

    seen: list[dict[str, float]] = []
    with pytest.warns(UserWarning, match="epoch 2"):
        fit(tmp_path, Classifier(), CatastrophicOverfittingMonitor(Scripted()), Metrics())
    assert [values["monitor/Scripted/acc/pgd"] for values in seen] == pytest.approx([0.3, 0.5, 0.1, 0.1])
    assert [values["train/catastrophic_overfitting"] for values in seen] == [0, 0, 1, 0]


def test_stop_ends_the_training_after_that_epoch(tmp_path):
    states, module = States(), Classifier()
    with pytest.warns(UserWarning, match="epoch 2"):
        fit(tmp_path, module, CatastrophicOverfittingMonitor(Scripted(), "stop"), states)
    assert len(states.states) == 3
    assert_equal(module.net.state_dict(), states.states[2])


def test_restore_also_brings_back_the_last_healthy_weights_and_buffers(tmp_path):
    states, module = States(), Classifier()
    with pytest.warns(UserWarning, match="epoch 2"):
        fit(tmp_path, module, CatastrophicOverfittingMonitor(Scripted(), "restore"), states)
    assert len(states.states) == 3
    assert_equal(module.net.state_dict(), states.states[1])


RULES = [
    PGDDrop(),
    FGSMGap(),
    GradientCosineDrop(),
    AbnormalRise(),
    LinearityErrorSpike(),
    CrossEntropySplit(),
]


@pytest.mark.filterwarnings("ignore:catastrophic overfitting")  # so few images say anything
def test_a_monitored_run_is_the_run_without_a_monitor_bit_for_bit(tmp_path):
    alone, watched = Classifier(), Classifier()
    fit(tmp_path, alone)
    numbers = torch.rand(3)
    fit(tmp_path, watched, *(CatastrophicOverfittingMonitor(rule) for rule in RULES))
    assert torch.equal(torch.rand(3), numbers)
    assert_equal(watched.net.state_dict(), alone.net.state_dict())


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_the_measurement_is_in_train_mode_and_leaves_no_gradient(tmp_path, rule):
    class Observed(Classifier):
        def on_train_epoch_end(self):
            modes.append([part.training for part in self.net.modules()])
            gradients.append([parameter.grad.clone() for parameter in self.net.parameters()])

        def on_train_batch_end(self, outputs, batch, batch_idx):
            self.net.head.eval()  # a flag of the user's own
            before[:] = [parameter.grad.clone() for parameter in self.net.parameters()]

        def on_train_batch_start(self, batch, batch_idx):
            self.net.train()

    modes, gradients, before, within = [], [], [], []
    module = Observed()
    module.net.body.register_forward_pre_hook(lambda part, args: within.append(part.training))
    fit(tmp_path, module, CatastrophicOverfittingMonitor(rule), max_epochs=1)
    assert len(within) > BATCHES
    assert within[0] is False  # the check of the first batch, in eval mode
    assert all(within[1:])
    assert modes == [[part is not module.net.head for part in module.net.modules()]]
    assert all(torch.equal(a, b) for a, b in zip(gradients[0], before, strict=True))


@dataclass(frozen=True)
class Look(PGDDrop):
    """Records every batch that it measures."""

    seen: list = field(default_factory=list)

    def measure(self, net, x, y, bound):
        self.seen.append((x, y, torch.rand(3)))
        return super().measure(net, x, y, bound)


@pytest.mark.parametrize(("asked", "measured"), [(1, 1), (8, 1), (9, 2), (512, BATCHES)])
def test_the_given_number_of_images_is_measured_in_whole_batches(tmp_path, asked, measured):
    rule = Look()
    fit(tmp_path, Classifier(), CatastrophicOverfittingMonitor(rule, images=asked), max_epochs=1)
    first = list(batches())[:measured]
    assert torch.equal(torch.cat([x for x, _, _ in rule.seen]), torch.cat([batch.x for batch in first]))


def test_512_images_are_the_default():
    assert CatastrophicOverfittingMonitor().images == 512
    with pytest.raises(ValueError, match=r"^images="):
        CatastrophicOverfittingMonitor(images=0)


def test_the_mean_is_over_all_of_them(tmp_path):
    @dataclass(frozen=True)
    class Numbers(PGDDrop):
        def measure(self, net, x, y, bound):
            return {"acc/pgd": torch.full((len(x),), float(torch.equal(x, first)))}

    first = next(iter(batches())).x
    run = fit(tmp_path, Classifier(), CatastrophicOverfittingMonitor(Numbers()), max_epochs=1)
    assert run.callback_metrics["monitor/Numbers/acc/pgd"] == pytest.approx(1 / BATCHES)


def test_batches_are_measured_as_they_were(tmp_path):
    class Overwriting(Classifier):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            batch[0].zero_()
            return loss

    rule = Look()
    fit(tmp_path, Overwriting(), CatastrophicOverfittingMonitor(rule), max_epochs=1)
    assert torch.equal(rule.seen[0][0], next(iter(batches())).x)


def test_padding_and_samples_without_a_number_do_not_count(tmp_path):
    @dataclass(frozen=True)
    class Numbers(PGDDrop):
        def measure(self, net, x, y, bound):
            return {"acc/pgd": torch.tensor([1.0, 1.0, 0.0, torch.nan, 0.0, 1.0, 1.0, 1.0])}

    weights = torch.ones(8 * BATCHES)
    weights[4:8] = 0
    run = trainer(tmp_path, callbacks=[CatastrophicOverfittingMonitor(Numbers(), images=8)], max_epochs=1)
    run.fit(Classifier(), batches(weights))
    assert run.callback_metrics["monitor/Numbers/acc/pgd"] == pytest.approx(2 / 3)


def test_batches_may_be_pairs(tmp_path):
    run = trainer(tmp_path, callbacks=[CatastrophicOverfittingMonitor(PGDDrop(Succeeds()))], max_epochs=1)
    run.fit(Classifier(), loader(images(8)))
    assert "monitor/PGDDrop/acc/pgd" in run.callback_metrics


def test_a_defense_can_be_monitored(tmp_path):
    module = PGDAT(TinyNet(), CLASSES, PGD(steps=1))
    run = trainer(tmp_path, callbacks=[CatastrophicOverfittingMonitor()], max_epochs=1)
    run.fit(module, batches(), batches())
    assert "monitor/PGDDrop/acc/pgd" in run.callback_metrics


@pytest.mark.parametrize("stop", [6, 7], ids=["boundary", "mid-epoch"])
def test_a_resumed_run_decides_and_restores_what_an_uninterrupted_one_does(tmp_path, stop):
    def run(module, *others, ckpt_path=None):
        monitor = CatastrophicOverfittingMonitor(Scripted(), "restore")
        with pytest.warns(UserWarning, match=r"epoch 2.*Scripted.* acc/pgd 0\.5 -> 0\.1"):
            fit(tmp_path, module, monitor, *others, ckpt_path=ckpt_path)

    whole, rest = Classifier(), Classifier()
    run(whole, SaveAfter(stop, tmp_path / "part.ckpt"))
    run(rest, ckpt_path=tmp_path / "part.ckpt")
    assert_equal(rest.net.state_dict(), whole.net.state_dict())


@pytest.mark.filterwarnings("ignore:catastrophic overfitting")  # what the monitor is to find
@pytest.mark.parametrize("action", ["stop", "restore"])
def test_a_run_that_is_resumed_after_its_stop_trains_no_more_unless_the_action_is_now_warn(tmp_path, action):
    path, whole, rest, warned = tmp_path / "end.ckpt", Classifier(), Classifier(), Classifier()
    fit(tmp_path, whole, CatastrophicOverfittingMonitor(Scripted(), action), SaveAfter(9, path))
    run = fit(tmp_path, rest, CatastrophicOverfittingMonitor(Scripted(), action), ckpt_path=path)
    assert run.current_epoch == 3
    assert_equal(rest.net.state_dict(), whole.net.state_dict())
    run = fit(tmp_path, warned, CatastrophicOverfittingMonitor(Scripted(), "warn"), ckpt_path=path)
    assert run.current_epoch == 4


def test_a_second_fit_does_not_know_that_the_first_was_stopped(tmp_path):
    monitor = CatastrophicOverfittingMonitor(Scripted(), "stop")
    for _ in range(2):
        with pytest.warns(UserWarning, match="epoch 2"):
            assert fit(tmp_path, Classifier(), monitor).current_epoch == 3


class Output(Net):
    """Returns its logits as an attribute."""

    def forward(self, x):
        return SimpleNamespace(logits=super().forward(x))


class WithOutput(Classifier):
    def __init__(self) -> None:
        super().__init__()
        self.net = Output()

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch[0]).logits, batch[1])

    def val_dataloader(self):
        return batches()

    def validation_step(self, batch, batch_idx):
        pass


class SaveAfterValidation(Callback):
    """Saves when the first epoch has only its end before it."""

    def __init__(self, path) -> None:
        self.path = path

    def on_validation_end(self, trainer, pl_module):
        if trainer.current_epoch == 0:
            trainer.save_checkpoint(self.path)


def test_a_run_that_is_resumed_at_an_epochs_end_knows_how_the_net_returns_its_logits(tmp_path):
    def measured(*others, **kwargs):
        monitor = CatastrophicOverfittingMonitor(PGDDrop(threshold=1.0))
        fit(tmp_path, WithOutput(), monitor, *others, max_epochs=2, **kwargs)
        return [means["acc/pgd"] for means in monitor.state_dict()["earlier"]]

    path = tmp_path / "end.ckpt"
    whole, resumed = measured(SaveAfterValidation(path)), measured(ckpt_path=path)
    assert resumed[0] == whole[0] > 0
    assert len(resumed) == len(whole) == 2

    checkpoint = torch.load(path, weights_only=True)
    (state,) = (state for key, state in checkpoint["callbacks"].items() if "Monitor" in key)
    state["batches"][-1][1].fill_(CLASSES)
    torch.save(checkpoint, path)
    with pytest.raises(ValueError, match=r"checkpoint .*callbacks\[.*\]\.batches"):
        measured(ckpt_path=path)


def test_a_resumed_run_has_the_history(tmp_path):
    message = r"epoch 3.*ScriptedErrors.* linearity_error 3 -> 3\.7"
    for others, ckpt_path in (([SaveAfter(7, tmp_path / "part.ckpt")], None), ([], tmp_path / "part.ckpt")):
        with pytest.warns(UserWarning, match=message):
            fit(tmp_path, Classifier(), CatastrophicOverfittingMonitor(ScriptedErrors()), *others, ckpt_path=ckpt_path)


def test_a_resumed_epoch_is_judged_by_its_own_first_batches_and_the_same_random_numbers(tmp_path):
    rule = Look(threshold=1.0)
    monitor = CatastrophicOverfittingMonitor(rule)
    fit(tmp_path, Classifier(), monitor, SaveAfter(2, tmp_path / "part.ckpt"), max_epochs=1)
    fit(tmp_path, Classifier(), monitor, ckpt_path=tmp_path / "part.ckpt", max_epochs=1)
    assert len(rule.seen) == 2 * BATCHES
    for whole, resumed in zip(rule.seen[:BATCHES], rule.seen[BATCHES:], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(whole, resumed, strict=True))


def test_monitors_side_by_side_share_a_verdict_and_have_one_of_their_own(tmp_path):
    @dataclass(frozen=True)
    class Robust(PGDDrop):
        def measure(self, net, x, y, bound):
            return {"acc/pgd": torch.full((len(x),), 0.75)}

    monitors = CatastrophicOverfittingMonitor(Scripted(), "stop"), CatastrophicOverfittingMonitor(Robust())
    with pytest.warns(UserWarning, match=r"epoch 2.*Scripted"):
        run = fit(tmp_path, Classifier(), *monitors)
    logged = {name: float(value) for name, value in run.callback_metrics.items()}
    assert logged["train/catastrophic_overfitting"] == 1
    assert logged["train/catastrophic_overfitting/Scripted"] == 1
    assert logged["train/catastrophic_overfitting/Robust"] == 0
    assert logged["monitor/Scripted/acc/pgd"] == pytest.approx(0.1)
    assert logged["monitor/Robust/acc/pgd"] == 0.75


# The bound of the training.


@dataclass(frozen=True)
class Steady(PGDDrop):
    """A net whose robustness is constant for four epochs and 0 in the fifth."""

    seen: list = field(default_factory=list)

    def measure(self, net, x, y, bound):
        self.seen.append(bound)
        return {"acc/pgd": torch.full((len(x),), 1 - 2.5 * bound.eps if int(net.epoch) < 4 else 0.0)}


@dataclass(frozen=True)
class SteadyAcrossEps(Steady):
    across_eps = True


def ramped(tmp_path, rule):
    ramp = AttributeRamp("attack.eps", Linear(0, 0.3, 0, 3))
    return fit(tmp_path, Classifier(PGD(0.3)), ramp, CatastrophicOverfittingMonitor(rule, images=8), max_epochs=5)


def test_a_ramp_is_measured_at_the_eps_of_the_moment_and_its_growth_is_no_false_alarm(tmp_path):
    rule = Steady()
    with pytest.warns(UserWarning, match=r"epoch 4.*Steady.* acc/pgd 0\.25 -> 0;") as caught:
        ramped(tmp_path, rule)
    assert sum("overfitting" in str(warning.message) for warning in caught) == 1
    assert [bound.eps for bound in rule.seen] == pytest.approx([0.2 / 3, 0.5 / 3, 0.8 / 3, 0.3, 0.3])


def test_a_rule_whose_numbers_mean_the_same_at_every_eps_also_judges_during_a_ramp(tmp_path):
    with pytest.warns(UserWarning, match="SteadyAcrossEps") as caught:
        ramped(tmp_path, SteadyAcrossEps())
    messages = [str(warning.message) for warning in caught if "overfitting" in str(warning.message)]
    assert [message.partition(",")[0][-7:] for message in messages] == ["epoch 1", "epoch 2", "epoch 4"]
    assert [type(rule).__name__ for rule in RULES if rule.across_eps] == ["FGSMGap", "AbnormalRise"]


def test_a_rule_with_an_attack_of_its_own_is_not_moved_by_a_ramp(tmp_path):
    rule = Scripted(PGD(0.1), accuracies=(0.5, 0.1, 0.1, 0.1, 0.1))
    with pytest.warns(UserWarning, match=r"epoch 1.*Scripted"):
        ramped(tmp_path, rule)


def test_a_norm_is_the_training_s_too(tmp_path):
    rule = Steady()
    fit(tmp_path, Classifier(PGD(0.1, norm="l2")), CatastrophicOverfittingMonitor(rule, images=8), max_epochs=1)
    assert rule.seen == [Bound(0.1, "l2")]


def test_a_module_without_a_bound_needs_a_rule_that_has_one(tmp_path):
    with pytest.raises(ValueError, match=r"^PGDDrop .*Classifier .*attack\.eps"):
        fit(tmp_path, Classifier(attack=None), CatastrophicOverfittingMonitor())
    rule = PGDDrop(Succeeds())
    run = fit(tmp_path, Classifier(attack=None), CatastrophicOverfittingMonitor(rule), max_epochs=1)
    assert run.callback_metrics["monitor/PGDDrop/acc/pgd"] == 0


def test_a_bound_that_is_lent_is_found_by_a_monitor_that_comes_after(tmp_path):
    lender = AdversarialTraining(PGD(0.1, 0.1, steps=1), net="net")
    rule = Steady()
    fit(tmp_path, Classifier(attack=None), lender, CatastrophicOverfittingMonitor(rule, images=8), max_epochs=1)
    assert rule.seen == [Bound(0.1)]
    with pytest.raises(ValueError, match=r"^PGDDrop .*AdversarialTraining"):
        fit(tmp_path, Classifier(attack=None), CatastrophicOverfittingMonitor(), lender)


# Ranks, averages and misuse.


@dataclass(frozen=True)
class PerRank(PGDDrop):
    def measure(self, net, x, y, bound):
        rank = torch.distributed.get_rank()
        return {"acc/pgd": torch.full((len(x),), float(rank) if int(net.epoch) < 1 else 0.0)}


class Shares(Classifier):
    """Each rank saves what was logged after every epoch."""

    def on_train_start(self):
        self.logged = []

    def train_dataloader(self):
        return batches(rank=self.global_rank, world=2)

    def on_train_epoch_end(self):
        self.logged.append(float(self.trainer.callback_metrics["monitor/PerRank/acc/pgd"]))

    def on_train_end(self):
        torch.save(self.logged, f"{self.global_rank}.pt")


@pytest.mark.filterwarnings("ignore:catastrophic overfitting")  # what the monitor is to find
def test_ranks_share_their_numbers_and_decide_alike(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    two_ranks(tmp_path, max_epochs=3, callbacks=[CatastrophicOverfittingMonitor(PerRank(), "stop")]).fit(Shares())
    assert [torch.load(f"{rank}.pt") for rank in range(2)] == [[0.5, 0.0], [0.5, 0.0]]


def test_a_module_without_net_is_refused(tmp_path):
    module = Classifier()
    module.net, module.model = None, module.net
    with pytest.raises(TypeError, match=r"^CatastrophicOverfittingMonitor .*Classifier .*net"):
        CatastrophicOverfittingMonitor().setup(trainer(tmp_path), module, "fit")


def test_weights_that_an_average_would_replace_are_not_restored(tmp_path):
    with pytest.raises(ValueError, match=r'^action="restore" .*EMAWeights'):
        fit(tmp_path, Classifier(), CatastrophicOverfittingMonitor(action="restore"), EMAWeights(0.9))
    fit(tmp_path, Classifier(), CatastrophicOverfittingMonitor(action="stop"), EMAWeights(0.9), max_epochs=1)


def test_an_unknown_action_is_refused():
    with pytest.raises(ValueError, match=r'^action="halt"'):
        CatastrophicOverfittingMonitor(action="halt")
