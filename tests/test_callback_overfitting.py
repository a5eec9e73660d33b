from dataclasses import dataclass

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from torch.nn import functional as F

from lit_robust.attacks import FGSM, PGD, Attack
from lit_robust.callbacks import (
    CatastrophicOverfittingMonitor,
    FGSMGap,
    GradientCosineDrop,
    PGDDrop,
)
from lit_robust.data.loaders import Samples
from lit_robust.data.resident import ResidentLoader
from lit_robust.defenses import PGDAT
from tests.tiny import CLASSES, TinyNet, images, loader, trainer

BATCHES = 3


def batches(weights=None, **share):
    data = images(8 * BATCHES)
    samples = Samples(torch.arange(8 * BATCHES), torch.ones(8 * BATCHES) if weights is None else weights)
    return ResidentLoader(samples, (255 * data.x).byte(), data.y, batch_size=8, **share)


class Net(TinyNet):
    """A net that counts epochs, so that a rule can be scripted, and draws random numbers in train mode."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("epoch", torch.tensor(-1))

    def features(self, x):
        return F.dropout(super().features(x), 0.2, self.training)


class Classifier(LightningModule):
    """A user's module, not a Defense; what it draws depends on everything that was drawn before."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Net()

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

    def measure(self, net, x, y):
        return {"acc/pgd": torch.full((len(x),), self.accuracies[int(net.epoch)])}


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


def assert_equal(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


# The rules. Images of one pixel, whose class is whether it is bright, and a net that knows it: PGD turns
# exactly those that are within eps of the middle.

PIXELS = torch.tensor([0.1, 0.45, 0.55, 0.9]).view(4, 1, 1, 1)
CLASSES_OF_PIXELS = torch.tensor([0, 0, 1, 1])


class Threshold(nn.Module):
    def forward(self, x):
        distance = x.flatten(1) - 0.5
        return torch.cat([-distance, distance], dim=1)


class Saturated(nn.Module):
    """So sure of dark images that their loss has no gradient."""

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
    assert rule.measure(Threshold(), PIXELS, CLASSES_OF_PIXELS)["acc/pgd"].tolist() == [1, 0, 0, 1]


def test_pgd_drop_compares_with_the_epoch_before():
    rule = PGDDrop(threshold=0.2)
    assert rule.overfits({"acc/pgd": 0.5}, {"acc/pgd": 0.29})
    assert not rule.overfits({"acc/pgd": 0.5}, {"acc/pgd": 0.31})
    assert not rule.overfits({"acc/pgd": 0.1}, {"acc/pgd": 0.5})


def test_the_default_is_the_attack_and_threshold_of_the_authors():
    assert CatastrophicOverfittingMonitor().rule == PGDDrop(PGD(8 / 255, 2 / 255, steps=5), threshold=0.2)


def test_fgsm_gap_measures_both_attacks():
    measured = FGSMGap(FGSM(eps=0.01), Succeeds()).measure(Threshold(), PIXELS, CLASSES_OF_PIXELS)
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
def test_fgsm_gap_tells_once_when_the_gap_opens(before, now, verdict):
    previous, current = (dict(zip(("acc/fgsm", "acc/pgd"), values, strict=True)) for values in (before, now))
    assert FGSMGap(margin=0.3).overfits(previous, current) is verdict


def test_the_gradients_of_a_linear_net_all_point_the_same_way():
    measured = GradientCosineDrop(0.01).measure(Threshold(), PIXELS, CLASSES_OF_PIXELS)
    torch.testing.assert_close(measured["gradient_cosine"], torch.ones(4))


def test_samples_without_a_gradient_have_no_cosine():
    cosine = GradientCosineDrop(0.01).measure(Saturated(), PIXELS, CLASSES_OF_PIXELS)["gradient_cosine"]
    assert cosine.isnan().tolist() == [True, True, False, False]


def test_the_cosine_is_small_where_the_gradient_turns_within_eps():
    x = torch.rand(16, 1, 8, 8)
    rule, y = GradientCosineDrop("8/255"), torch.zeros(16, dtype=torch.int64)
    assert rule.eps == 8 / 255
    cosine = rule.measure(Wave(), x, y)["gradient_cosine"].mean()
    assert abs(cosine) < 0.2
    assert rule.overfits({"gradient_cosine": 0.9}, {"gradient_cosine": float(cosine)})
    assert not rule.overfits({"gradient_cosine": 0.9}, {"gradient_cosine": 0.5})


# The monitor.


def test_it_says_so_in_the_epoch_in_which_it_happens_and_goes_on(tmp_path):
    message = r"^catastrophic overfitting in epoch 2: acc/pgd 0\.500 -> 0\.100 \(Scripted\); training goes on\.$"
    with pytest.warns(UserWarning, match=message) as caught:
        run = fit(tmp_path, Classifier(), CatastrophicOverfittingMonitor(Scripted()))
    assert sum("overfitting" in str(warning.message) for warning in caught) == 1
    assert run.current_epoch == 4


def test_numbers_and_verdict_are_logged(tmp_path):
    class Metrics(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            seen.append({name: float(value) for name, value in trainer.callback_metrics.items()})

    seen: list[dict[str, float]] = []
    with pytest.warns(UserWarning, match="in epoch 2"):
        fit(tmp_path, Classifier(), CatastrophicOverfittingMonitor(Scripted()), Metrics())
    assert [values["monitor/acc/pgd"] for values in seen] == pytest.approx([0.3, 0.5, 0.1, 0.1])
    assert [values["train/catastrophic_overfitting"] for values in seen] == [0, 0, 1, 0]


def test_stop_ends_the_training_after_that_epoch(tmp_path):
    states, module = States(), Classifier()
    with pytest.warns(UserWarning, match=r"in epoch 2: .*; training stops\.$"):
        fit(tmp_path, module, CatastrophicOverfittingMonitor(Scripted(), "stop"), states)
    assert len(states.states) == 3
    assert_equal(module.net.state_dict(), states.states[2])


def test_restore_also_brings_back_the_last_healthy_weights_and_buffers(tmp_path):
    states, module = States(), Classifier()
    with pytest.warns(UserWarning, match="training stops with the weights of the last healthy epoch"):
        fit(tmp_path, module, CatastrophicOverfittingMonitor(Scripted(), "restore"), states)
    assert len(states.states) == 3
    assert_equal(module.net.state_dict(), states.states[1])


RULES = [PGDDrop(), FGSMGap(), GradientCosineDrop()]


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
            self.net.body.eval()  # a flag of the user's own
            before[:] = [parameter.grad.clone() for parameter in self.net.parameters()]

        def on_train_batch_start(self, batch, batch_idx):
            self.net.train()

    modes, gradients, before, within = [], [], [], []
    module = Observed()
    module.net.body.register_forward_pre_hook(lambda part, args: within.append(part.training))
    fit(tmp_path, module, CatastrophicOverfittingMonitor(rule), max_epochs=1)
    assert len(within) > BATCHES
    assert all(within)
    assert modes == [[part not in set(module.net.body.modules()) for part in module.net.modules()]]
    assert all(torch.equal(a, b) for a, b in zip(gradients[0], before, strict=True))


def test_the_first_batch_of_the_epoch_is_what_is_measured_as_it_was(tmp_path):
    class Overwriting(Classifier):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            batch[0].zero_()
            return loss

    @dataclass(frozen=True)
    class Look(PGDDrop):
        def measure(self, net, x, y):
            seen.append(x)
            return super().measure(net, x, y)

    seen: list[torch.Tensor] = []
    fit(tmp_path, Overwriting(), CatastrophicOverfittingMonitor(Look()), max_epochs=1)
    assert torch.equal(seen[0], next(iter(batches())).x)


def test_padding_and_samples_without_a_number_do_not_count(tmp_path):
    @dataclass(frozen=True)
    class Numbers(PGDDrop):
        def measure(self, net, x, y):
            return {"acc/pgd": torch.tensor([1.0, 1.0, 0.0, torch.nan, 0.0, 1.0, 1.0, 1.0])}

    weights = torch.ones(8 * BATCHES)
    weights[4:8] = 0
    run = trainer(tmp_path, callbacks=[CatastrophicOverfittingMonitor(Numbers())], max_epochs=1)
    run.fit(Classifier(), batches(weights))
    assert run.callback_metrics["monitor/acc/pgd"] == pytest.approx(2 / 3)


def test_batches_may_be_pairs(tmp_path):
    run = trainer(tmp_path, callbacks=[CatastrophicOverfittingMonitor(PGDDrop(Succeeds()))], max_epochs=1)
    run.fit(Classifier(), loader(images(8)))
    assert "monitor/acc/pgd" in run.callback_metrics


def test_a_defense_can_be_monitored(tmp_path):
    module = PGDAT(TinyNet(), CLASSES, PGD(steps=1))
    run = trainer(tmp_path, callbacks=[CatastrophicOverfittingMonitor()], max_epochs=1)
    run.fit(module, batches(), batches())
    assert "monitor/acc/pgd" in run.callback_metrics


class Save(Callback):
    def __init__(self, path, batches) -> None:
        self.path, self.batches = path, batches

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == self.batches and not trainer.is_last_batch:
            trainer.save_checkpoint(self.path)

    def on_train_epoch_end(self, trainer, pl_module):
        if trainer.global_step == self.batches:
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize("stop", [6, 7], ids=["boundary", "mid-epoch"])
def test_a_resumed_run_decides_and_restores_what_an_uninterrupted_one_does(tmp_path, stop):
    def run(module, *others, ckpt_path=None):
        monitor = CatastrophicOverfittingMonitor(Scripted(), "restore")
        with pytest.warns(UserWarning, match=r"in epoch 2: acc/pgd 0\.500 -> 0\.100"):
            fit(tmp_path, module, monitor, *others, ckpt_path=ckpt_path)

    whole, rest = Classifier(), Classifier()
    run(whole, Save(tmp_path / "part.ckpt", stop))
    run(rest, ckpt_path=tmp_path / "part.ckpt")
    assert_equal(rest.net.state_dict(), whole.net.state_dict())


def test_a_resumed_epoch_is_judged_by_its_own_first_batch_and_the_same_random_numbers(tmp_path):
    @dataclass(frozen=True)
    class Look(PGDDrop):
        def measure(self, net, x, y):
            seen.append((x, y, torch.rand(3)))
            return super().measure(net, x, y)

    seen: list[tuple[torch.Tensor, ...]] = []
    monitor = CatastrophicOverfittingMonitor(Look(threshold=1.0))
    fit(tmp_path, Classifier(), monitor, Save(tmp_path / "part.ckpt", 2), max_epochs=1)
    fit(tmp_path, Classifier(), monitor, ckpt_path=tmp_path / "part.ckpt", max_epochs=1)
    assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True))


def test_two_monitors_may_run_side_by_side_and_one_verdict_is_enough(tmp_path):
    monitors = (
        CatastrophicOverfittingMonitor(Scripted(), "stop"),
        CatastrophicOverfittingMonitor(GradientCosineDrop(factor=-9.0)),
    )
    with pytest.warns(UserWarning, match="in epoch 2"):
        run = fit(tmp_path, Classifier(), *monitors)
    assert run.callback_metrics["train/catastrophic_overfitting"] == 1


@dataclass(frozen=True)
class PerRank(PGDDrop):
    def measure(self, net, x, y):
        rank = torch.distributed.get_rank()
        return {"acc/pgd": torch.full((len(x),), float(rank) if int(net.epoch) < 1 else 0.0)}


class Shares(Classifier):
    """Each rank writes down what was logged after every epoch."""

    def on_train_start(self):
        self.logged = []

    def train_dataloader(self):
        return batches(rank=self.global_rank, world=2)

    def on_train_epoch_end(self):
        self.logged.append(float(self.trainer.callback_metrics["monitor/acc/pgd"]))

    def on_train_end(self):
        torch.save(self.logged, f"{self.global_rank}.pt")


@pytest.mark.filterwarnings("ignore:catastrophic overfitting")
def test_ranks_share_their_numbers_and_decide_alike(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp_fork",
        max_epochs=3,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[CatastrophicOverfittingMonitor(PerRank(), "stop")],
        log_every_n_steps=1,
    )
    run.fit(Shares())
    assert [torch.load(f"{rank}.pt") for rank in range(2)] == [[0.5, 0.0], [0.5, 0.0]]


def test_a_module_without_net_is_refused(tmp_path):
    module = Classifier()
    module.net, module.model = None, module.net
    with pytest.raises(TypeError, match=r"attacks module\.net, which Classifier lacks"):
        CatastrophicOverfittingMonitor().setup(trainer(tmp_path), module, "fit")


def test_an_unknown_action_is_refused():
    with pytest.raises(ValueError, match='action="halt" is unknown: choose warn, stop or restore'):
        CatastrophicOverfittingMonitor(action="halt")
