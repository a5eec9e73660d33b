import re
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.loggers import CSVLogger
from torch.nn import functional as F

from lit_robust.attacks import PGD
from lit_robust.callbacks import AttributeRamp, ramp
from lit_robust.data.loaders import Samples
from lit_robust.data.resident import ResidentLoader
from lit_robust.defenses import GAT, PGDAT, SATR3, TRADES, CustomizedAT, FriendlyAT, NuAT
from lit_robust.schedules import Linear, PerEpoch, PeriodicCosine, Staircase
from tests.methods import ONE_STEP, build
from tests.tiny import CLASSES, SaveAfter, TinyNet, images, trainer

BATCHES = 4


def batches(n=BATCHES):
    data = images(4 * n)
    return ResidentLoader(Samples.once(torch.arange(4 * n)), (255 * data.x).byte(), data.y, batch_size=4)


@dataclass(frozen=True)
class Part:
    strength: float = 1.0
    attack: PGD = field(default_factory=PGD)


class Regulariser(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.part = 1.0, Part()


class Classifier(LightningModule):
    """A user's module, not a Defense."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.lam, self.attack, self.regulariser = TinyNet(), 4.0, PGD(), Regulariser()
        self.seen: list[Any] = []

    def configure_optimizers(self):
        return torch.optim.SGD(self.net.parameters(), lr=0.1)

    def on_train_batch_start(self, batch, batch_idx):
        self.seen.append((self.lam, self.attack.eps))

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch.x), batch.y)

    def validation_step(self, batch, batch_idx):
        pass


class Reader(Callback):
    """What another callback finds at the hooks around batches."""

    def __init__(self) -> None:
        self.starts, self.ends = [], []

    def on_train_epoch_start(self, trainer, pl_module):
        self.starts.append(pl_module.lam)

    def on_train_epoch_end(self, trainer, pl_module):
        self.ends.append(pl_module.lam)


def fit(tmp_path, module, *callbacks, ckpt_path=None, val=False, **kwargs):
    kwargs = {"max_epochs": 2, "log_every_n_steps": 1, "limit_val_batches": None if val else 0} | kwargs
    run = trainer(tmp_path, callbacks=list(callbacks), **kwargs)
    run.fit(module, batches(), batches(), ckpt_path=ckpt_path, weights_only=True)
    return run


def test_the_module_finds_the_value_of_the_schedule_before_each_batch(tmp_path):
    module, lam = Classifier(), Linear(0, 8, 0, 2)
    fit(tmp_path, module, AttributeRamp("lam", lam))
    assert [value for value, _ in module.seen] == [lam(batch / BATCHES) for batch in range(2 * BATCHES)]


def test_a_path_replaces_frozen_values_and_leaves_the_old_ones_alone(tmp_path):
    module, eps = Classifier(), Linear(0, "8/255", 0, 2)
    before = module.attack
    fit(tmp_path, module, AttributeRamp("attack.eps", eps))
    assert [value for _, value in module.seen] == [eps(batch / BATCHES) for batch in range(2 * BATCHES)]
    assert before == PGD()
    assert module.attack == PGD(eps=eps(1.75))


@pytest.mark.parametrize(
    ("attribute", "schedule", "values"),
    [
        ("attack.eps", Staircase([0], ["8/255"]), 1),
        ("attack.eps", PerEpoch(Linear(0, "8/255", 0, 2)), 2),
        ("attack.eps", Linear(0, "8/255", 0, 2), 2 * BATCHES),
        ("attack.steps", Staircase([0, 1], [2, 4]), 2),
    ],
)
def test_an_attack_is_built_anew_only_when_the_value_has_changed(tmp_path, attribute, schedule, values):
    attacks = []

    class Notes(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            attacks.append(pl_module.attack)

    fit(tmp_path, Classifier(), AttributeRamp(attribute, schedule), Notes())
    assert len({id(attack) for attack in attacks}) == values


def test_an_integer_stays_one(tmp_path):
    """Such as a number of steps or replays, which must not become 2.0."""
    module = Classifier()
    fit(tmp_path, module, AttributeRamp("attack.steps", Staircase([0, 1], [2, 4])))
    assert repr(module.attack.steps) == "4"


def test_an_integer_is_reached_although_the_schedule_rounds(tmp_path):
    schedule = PerEpoch(Linear(1, 6, 0, 5))
    assert not schedule(2.0).is_integer()
    module = Classifier()
    fit(tmp_path, module, AttributeRamp("attack.steps", schedule), max_epochs=3)
    assert repr(module.attack.steps) == "3"


@pytest.mark.parametrize("path", ["regulariser.weight", "regulariser.part.strength", "regulariser.part.attack.eps"])
def test_a_path_may_pass_through_modules_and_nested_values(tmp_path, path):
    module = Classifier()
    regulariser = module.regulariser
    fit(tmp_path, module, AttributeRamp(path, Linear(0, 1, 0, 2)), max_epochs=1)
    value: Any = module
    for name in path.split("."):
        value = getattr(value, name)
    assert value == 0.375
    assert module.regulariser is regulariser


def test_several_ramps_run_side_by_side_and_the_last_values_stay(tmp_path):
    module = Classifier()
    lam, eps = PerEpoch(Linear(0, 2, 0, 2)), Linear(0, 0.1, 0, 2)
    fit(tmp_path, module, AttributeRamp("lam", lam), AttributeRamp("attack.eps", eps))
    assert [value for value, _ in module.seen] == [0.0] * BATCHES + [1.0] * BATCHES
    assert (module.lam, module.attack.eps) == (1.0, eps(1.75))


def test_a_callback_finds_the_value_when_an_epoch_starts(tmp_path):
    reader = Reader()
    fit(tmp_path, Classifier(), AttributeRamp("lam", Linear(0, 8, 0, 2)), reader)
    assert reader.starts == [0.0, 4.0]


@pytest.mark.parametrize("stop", [4, 6], ids=["boundary", "mid-epoch"])
def test_a_resumed_run_finds_the_values_of_an_uninterrupted_one(tmp_path, stop):
    def ramps():
        return AttributeRamp("lam", Linear(0, 9, 0, 3)), AttributeRamp("attack.eps", Linear(0, 0.3, 0, 3))

    whole, rest = Classifier(), Classifier()
    fit(tmp_path, whole, *ramps(), SaveAfter(stop, tmp_path / "part.ckpt"), max_epochs=3)
    fit(tmp_path, rest, *ramps(), ckpt_path=tmp_path / "part.ckpt", max_epochs=3)
    assert rest.seen == whole.seen[stop:]


def test_the_end_of_an_epoch_that_is_resumed_after_its_validation_finds_its_last_value(tmp_path):
    class Save(Callback):
        def on_validation_end(self, trainer, pl_module):
            if trainer.current_epoch == 0:
                trainer.save_checkpoint(tmp_path / "part.ckpt")

    whole, rest, ramp = Reader(), Reader(), AttributeRamp("lam", Linear(0, 8, 0, 2))
    fit(tmp_path, Classifier(), ramp, whole, Save(), val=True)
    fit(tmp_path, Classifier(), ramp, rest, ckpt_path=tmp_path / "part.ckpt", val=True)
    assert rest.ends == whole.ends == [3.0, 7.0]


def test_values_are_logged_once_per_interval_and_once_per_epoch(tmp_path):
    class Counting(Classifier):
        calls = 0

        def log(self, *args, **kwargs):
            self.calls += 1
            super().log(*args, **kwargs)

    module, logger = Counting(), CSVLogger(tmp_path)
    ramps = AttributeRamp("lam", Linear(0, 8, 0, 2)), AttributeRamp("attack.eps", Linear(0, 0.8, 0, 2))
    run = fit(tmp_path, module, *ramps, logger=logger, log_every_n_steps=2)
    assert run.callback_metrics["train/lam"] == 7.0
    assert module.calls == len(ramps) * (4 + 2)
    rows = (tmp_path / "lightning_logs/version_0/metrics.csv").read_text().splitlines()
    assert "train/lam" in rows[0]
    assert "train/attack.eps" in rows[0]
    column = rows[0].split(",").index("train/lam")
    logged = [row.split(",")[column] for row in rows[1:]]
    assert [float(value) for value in logged if value] == [1.0, 3.0, 3.0, 5.0, 7.0, 7.0]


def test_a_defense_crafts_with_the_value_of_the_ramp(tmp_path):
    class Observed(PGDAT):
        def perturb(self, batch):
            x_adv = super().perturb(batch)
            distances.append(float((x_adv - batch.x).abs().max()))
            return x_adv

    distances: list[float] = []
    module = Observed(TinyNet(), CLASSES, PGD(eps=0.2, step_size=0.2, steps=1))
    fit(tmp_path, module, AttributeRamp("attack.eps", Linear(0, 0.16, 0, 2)), val=True)
    assert distances == pytest.approx([0.02 * batch for batch in range(8)], abs=1e-6)


def test_a_step_size_follows_a_ramp_of_eps_unless_it_is_given(tmp_path):
    module = Classifier()
    module.attack = PGD(0.01, steps=10)
    fit(tmp_path, module, AttributeRamp("attack.eps", Linear(0.02, 0.2, 0, 2)))
    assert module.attack.step_length == pytest.approx(module.attack.eps / 4)


def test_a_ramp_that_grows_eps_beyond_a_given_step_is_told_once(tmp_path):
    module = Classifier()
    module.attack = PGD(0.01, step_size=0.01, steps=10)
    ramp = AttributeRamp("attack.eps", Linear(0.0, 0.4, 0, 2))
    with pytest.warns(UserWarning, match=r"epoch 1 .*step_size=0\.01 of attack .* eps=0\.2 ") as told:
        fit(tmp_path, module, ramp)
    assert sum("too short" in str(one.message) for one in told) == 1
    both = [ramp, AttributeRamp("attack.step_size", Linear(0.0, 0.1, 0, 2))]
    fit(tmp_path, module, *both)  # a warning would be an error


@pytest.mark.parametrize(
    ("attribute", "found"),
    [
        ("lamda", r"Classifier: .* lam\?"),
        ("attack.epss", r" PGD: .* eps or steps\?"),
        ("atack.eps", r"Classifier: .* attack\?"),
        ("beta", r"Classifier: .* lam\?"),
        ("eps", r"Classifier: .* lam\?"),
        ("attack", r" PGD\(.* lam\?"),
        ("attack.norm", "'linf'"),
        ("training", "(True|False)"),
        ("net.lam", "TinyNet: "),
    ],
)
def test_what_cannot_be_driven_is_refused_with_similar_names(tmp_path, attribute, found):
    with pytest.raises(ValueError, match=rf'^AttributeRamp\("{attribute}"\) .*{found}'):
        fit(tmp_path, Classifier(), AttributeRamp(attribute, Linear(0, 1, 0, 2)))


def test_a_property_is_driven_by_its_setter_and_refused_before_training_without_one(tmp_path):
    class Derived(Classifier):
        halved = property(lambda self: self.lam / 2)
        doubled = property(lambda self: self.lam * 2, lambda self, value: setattr(self, "lam", value / 2))

    module, twice = Derived(), Linear(0, 8, 0, 2)
    fit(tmp_path, module, AttributeRamp("doubled", twice))
    assert [value for value, _ in module.seen] == [twice(batch / BATCHES) / 2 for batch in range(2 * BATCHES)]
    module = Derived()
    with pytest.raises(ValueError, match=r'^AttributeRamp\("halved"\) .* property of Derived without a setter'):
        fit(tmp_path, module, AttributeRamp("halved", twice))
    assert module.seen == []


def test_two_ramps_of_one_attribute_are_refused(tmp_path):
    ramps = AttributeRamp("lam", Linear(0, 1, 0, 2)), AttributeRamp("lam", Linear(0, 2, 0, 2))
    with pytest.raises(ValueError, match=r"AttributeRamps .*lam"):
        fit(tmp_path, Classifier(), *ramps)


def test_ramps_are_tried_together_before_the_training_and_leave_no_trace_of_it(tmp_path):
    class Sum(Classifier):
        def check_numbers(self):
            tried.append((self.lam, self.attack.eps))

    tried, module = [], Sum()
    ramps = AttributeRamp("lam", Linear(0, 2, 0, 2)), AttributeRamp("attack.eps", Linear(0, 0.1, 0, 2))

    class Untouched(Callback):
        def on_sanity_check_start(self, trainer, pl_module):
            assert (pl_module.lam, pl_module.attack.eps) == (4.0, PGD().eps)

    fit(tmp_path, module, *ramps, Untouched(), val=True, num_sanity_val_steps=1)
    assert torch.tensor(tried).allclose(torch.tensor([(0, 0), (0.5, 0.025), (1, 0.05), (1.5, 0.075)]))


@pytest.mark.parametrize(
    ("attribute", "schedule", "named"),
    [
        ("attack.steps", Linear(1, 3, 0, 2), r"attack\.steps=1\.5 at epoch 0\.5: steps=1\.5"),
        ("attack.eps", Linear(0, 8, 1, 2), r"attack\.eps=4 at epoch 1\.5: eps=4"),
    ],
)
def test_values_that_the_attribute_refuses_are_refused_before_the_training(tmp_path, attribute, schedule, named):
    module = Classifier()
    with pytest.raises(ValueError, match=f"^AttributeRamp .*{named}"):
        fit(tmp_path, module, AttributeRamp(attribute, schedule))
    assert module.seen == []


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (PerEpoch(Linear(0, 0.4, 29, 69)), ["lam 0 2 0.4"]),
        (Staircase([0, 1, 2], [0, 1, 2]), []),
        (PerEpoch(Linear(0, 4, 0, 2)), []),
        (PeriodicCosine(0, 1, 1, [1, 2]), []),
    ],
)
def test_a_schedule_that_goes_on_after_the_last_epoch_is_reported(tmp_path, monkeypatch, schedule, expected):
    lines = []
    monkeypatch.setattr(ramp, "rank_zero_info", lines.append)
    fit(tmp_path, Classifier(), AttributeRamp("lam", schedule))
    assert [
        re.sub(r"(\w+) is (\S+) after (\S+) epochs, .* to (\S+): .*=2 .*", r"\1 \2 \3 \4", line) for line in lines
    ] == expected


def test_arguments_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match=r"^attribute='attack.'"):
        AttributeRamp("attack.", Linear(0, 1, 0, 2))
    with pytest.raises(TypeError, match=r"^schedule=0.5"):
        AttributeRamp("lam", 0.5)


def test_an_attack_that_is_lent_too_late_is_refused_with_the_order_to_list(tmp_path):
    module = Classifier()
    del module.attack
    with pytest.raises(ValueError, match=r"^AttributeRamp.* Classifier: .*AdversarialTraining"):
        fit(tmp_path, module, AttributeRamp("attack.eps", Linear(0, 0.1, 0, 2)))


@pytest.mark.parametrize(
    ("method", "attribute", "arguments"),
    [
        (TRADES, "beta", {}),
        (FriendlyAT, "tau", {}),
        (FriendlyAT, "omega", {}),
        (CustomizedAT, "kappa", {}),
        (GAT, "lam", {"attack": ONE_STEP}),
        (NuAT, "lam", {"attack": ONE_STEP}),
        (SATR3, "tau", {"attack": ONE_STEP}),
    ],
)
def test_a_method_refuses_before_the_training_what_it_would_refuse_when_built(tmp_path, method, attribute, arguments):
    down = AttributeRamp(attribute, Staircase([0, 1], [1, -6]))
    with pytest.raises(ValueError, match=f"^AttributeRamp .*{attribute}=-6 at epoch 1: {attribute}=-6"):
        fit(tmp_path, build(method, **arguments), down)
