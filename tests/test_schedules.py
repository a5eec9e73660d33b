import io
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser
from torch.optim.lr_scheduler import CosineAnnealingLR, CyclicLR, LRScheduler, MultiStepLR

from lit_robust.schedules import (
    Cosine,
    Cyclic,
    CyclicMomentum,
    CyclicStep,
    Linear,
    MultiStep,
    PerEpoch,
    PeriodicCosine,
    PiecewiseLinear,
    Product,
    Schedule,
    Staircase,
    drops,
)

EVERY_KIND = [
    PiecewiseLinear([0, 12, 30], [0, 1, 0]),
    Staircase([0, 60, 90], [1, 0.1, 0.005]),
    Linear(0, "8/255", 0, 5),
    Cosine(1, 0, 5, 30),
    PeriodicCosine(0, 0.6, 0.4, [100]),
    MultiStep([75, 90]),
    Cyclic(15, 15),
    CyclicStep(40, 50, 80),
    CyclicMomentum(40, 50, until=80),
    PerEpoch(Linear(0, 4.5, 0, 90)),
    Product([Linear(0, 1, 0, 5), MultiStep([30, 60, 80])]),
]
every_kind = pytest.mark.parametrize("schedule", EVERY_KIND, ids=lambda schedule: type(schedule).__name__)


def sgd() -> torch.optim.SGD:
    return torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0, momentum=0.9)


def stepped(optimizer: torch.optim.Optimizer, scheduler: LRScheduler, steps: int, key: str = "lr") -> list[float]:
    """The value before each step of torch's scheduler."""
    seen = []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0][key])
        optimizer.step()
        scheduler.step()
    return seen


class TestAgainstTorch:
    def test_cyclic_is_cyclic_lr_step_by_step(self):
        batches, optimizer = 7, sgd()
        torchs = CyclicLR(optimizer, 0.0, 1.0, step_size_up=3 * batches, step_size_down=5 * batches)
        ours = [Cyclic(3, 5)(step / batches) for step in range(8 * batches)]
        assert ours == pytest.approx(stepped(optimizer, torchs, 8 * batches), abs=1e-12)

    def test_cyclic_momentum_is_what_cyclic_lr_does_by_default(self):
        batches, optimizer = 7, sgd()
        torchs = CyclicLR(optimizer, 0.0, 1.0, step_size_up=3 * batches, step_size_down=5 * batches)
        ours = [CyclicMomentum(3, 5)(step / batches) for step in range(8 * batches)]
        assert ours == pytest.approx(stepped(optimizer, torchs, 8 * batches, "momentum"), abs=1e-12)

    def test_multi_step_is_multi_step_lr_stepped_once_per_epoch(self):
        optimizer = sgd()
        torchs = stepped(optimizer, MultiStepLR(optimizer, [3, 6, 7], gamma=0.2), 10)
        for epoch, rate in enumerate(torchs):
            for part in (0.0, 0.5, 0.999):
                assert MultiStep([3, 6, 7], 0.2)(epoch + part) == pytest.approx(rate, rel=1e-12)

    def test_cosine_is_cosine_annealing_lr_step_by_step(self):
        optimizer = sgd()
        torchs = stepped(optimizer, CosineAnnealingLR(optimizer, T_max=60, eta_min=0.1), 61)
        assert [Cosine(1, 0.1, 0, 6)(step / 10) for step in range(61)] == pytest.approx(torchs, abs=1e-9)


class TestNuAT:
    """The rows of the authors' scripts: rates per epoch, counted from 0."""

    def test_rate_of_nuat(self):
        def rate(t: float) -> float:
            return 0.1 * CyclicStep(40, 50, 80)(t)

        assert [rate(0), rate(20), rate(40), rate(60)] == pytest.approx([0, 0.05, 0.1, 0.06])
        assert [rate(t) for t in (80, 83.3, 85, 85.999)] == pytest.approx([0.02] * 4)
        assert [rate(t) for t in (86, 88.5, 90, 90.999)] == pytest.approx([0.002] * 4)
        assert [rate(t) for t in (91, 95, 99.999)] == pytest.approx([0.0002] * 3)

    def test_rate_of_nuat2(self):
        def rate(t: float) -> float:
            return 0.1 * CyclicStep(20, 20, 35)(t)

        assert [rate(10), rate(20), rate(30)] == pytest.approx([0.05, 0.1, 0.05])
        assert [rate(t) for t in (35, 38, 40.999)] == pytest.approx([0.025] * 3)
        assert [rate(t) for t in (41, 45.999)] == pytest.approx([0.0025] * 2)
        assert [rate(t) for t in (46, 54.999)] == pytest.approx([0.00025] * 2)

    def test_momentum_stays_where_cyclic_lr_was_left(self):
        momentum = CyclicMomentum(40, 50, until=80)
        assert [momentum(t) for t in (0, 40, 80, 86, 99)] == pytest.approx([0.9, 0.8, 0.88, 0.88, 0.88])

    def test_lambda_rises_once_per_epoch_and_ends_at_its_maximum(self):
        lam = PerEpoch(Linear(0, 4.5, 0, 90))
        assert [lam(t) for t in (0, 0.99, 1, 1.99, 45.5)] == pytest.approx([0, 0, 0.05, 0.05, 2.25])
        assert [lam(t) for t in (90, 99.5)] == [4.5, 4.5]

    def test_lambda_of_the_others_stops_one_step_below(self):
        assert PerEpoch(Linear(0, 4, 0, 100))(99.5) == pytest.approx(3.96)
        assert PerEpoch(Linear(0, 4, 0, 55))(54.5) == pytest.approx(3.93, abs=0.003)


class TestValues:
    def test_piecewise_linear_passes_through_its_knots_and_is_held_outside(self):
        schedule = PiecewiseLinear([1, 3, 4], [0.3, 0.7, 0.1])
        assert [schedule(t) for t in (0, 1, 3, 4, 9)] == [0.3, 0.3, 0.7, 0.1, 0.1]
        assert [schedule(t) for t in (2, 3.5)] == pytest.approx([0.5, 0.4])

    def test_one_knot_is_a_constant(self):
        assert [PiecewiseLinear([2], [0.3])(t) for t in (0, 2, 5)] == [0.3] * 3

    def test_grad_align_is_a_triangle_of_unequal_sides(self):
        drawn = PiecewiseLinear([0, 12, 30], [0, 1, 0])
        assert all(Cyclic(12, 18)(t / 4) == pytest.approx(drawn(t / 4), abs=1e-12) for t in range(140))

    def test_staircase_changes_at_its_times(self):
        schedule = Staircase([0, 60, 90, 110], [1, 0.1, 0.01, 0.005])
        assert [schedule(t) for t in (-1, 0, 59.99, 60, 90, 109, 110, 500)] == [
            1,
            1,
            1,
            0.1,
            0.01,
            0.01,
            0.005,
            0.005,
        ]

    def test_linear_and_cosine_are_exact_at_both_ends_and_held_outside(self):
        for kind in (Linear, Cosine):
            assert [kind(0.1, 0.9, 2, 7)(t) for t in (0, 2, 7, 8)] == [0.1, 0.1, 0.9, 0.9]
            assert kind(0.1, 0.9, 2, 7)(4.5) == pytest.approx(0.5)

    def test_pas_climbs_half_a_cosine_up_to_its_cap_and_starts_again(self):
        eps = PeriodicCosine(0, "16/255", "8/255", [50, 100])
        assert [eps(0), eps(50)] == [0, 0]
        assert eps(10) == eps(60) == pytest.approx(8 / 255 * (1 - math.cos(math.pi / 5)))
        assert [eps(t) for t in (25, 30, 49.9)] == pytest.approx([8 / 255] * 3)

    def test_pas_has_cycles_of_any_length_and_holds_its_cap_after_the_last(self):
        eps = PeriodicCosine(0, "16/255", "8/255", [100, 150, 200])
        assert [eps(t) for t in (0, 100, 150)] == [0, 0, 0]
        assert eps(20) == eps(110) == pytest.approx(eps(160)) == pytest.approx(8 / 255 * (1 - math.cos(math.pi / 5)))
        assert [eps(t) for t in (200, 1000)] == [8 / 255] * 2

    def test_pas_without_a_cap_is_one_cosine(self):
        eps = PeriodicCosine(0.1, 0.6, 0.6, [100])
        assert [eps(t) for t in range(101)] == pytest.approx([Cosine(0.1, 0.6, 0, 100)(t) for t in range(101)])

    def test_a_warm_up_and_steps_multiply(self):
        rate = Product([Linear(0, 1, 0, 5), MultiStep([30, 60, 80])])
        assert [rate(t) for t in (0, 2.5, 5, 29.9, 30, 60, 80)] == pytest.approx([0, 0.5, 1, 1, 0.1, 0.01, 0.001])

    def test_a_cycle_does_not_start_again(self):
        assert [Cyclic(2, 3)(t) for t in (5, 6, 7)] == [0, 0, 0]
        assert CyclicMomentum(2, 3)(6) == 0.9


class TestPlainValues:
    @every_kind
    def test_returns_plain_floats_at_any_time(self, schedule: Schedule):
        assert {type(schedule(t / 2)) for t in range(260)} == {float}

    @every_kind
    def test_is_a_hashable_value_equal_to_its_copy(self, schedule: Schedule):
        assert len({schedule, eval(repr(schedule), {**globals(), "inf": math.inf})}) == 1

    def test_numpy_leaves_nothing_behind_that_a_safe_checkpoint_refuses(self):
        schedule = PiecewiseLinear(np.arange(3), np.float64([0.0, 1.0, 0.0]))
        buffer = io.BytesIO()
        torch.save([vars(schedule), vars(Linear(np.float64(0), np.float64(1), 0, 1)), schedule(0.5)], buffer)
        buffer.seek(0)
        assert torch.load(buffer, weights_only=True)[0]["values"] == (0.0, 1.0, 0.0)

    def test_fractions_are_read_in_python_too(self):
        assert Linear(0, "8/255", 0, 5)(5) == 8 / 255


class TestDrops:
    def test_are_where_a_rate_is_divided(self):
        assert drops(MultiStep([100, 150]), 200) == [100, 150]
        assert drops(Staircase([0, 60, 90, 110], [1, 0.1, 0.01, 0.005]), 120) == [60, 90, 110]
        assert drops(MultiStep([30, 60], factor=0.5), 90) == [30, 60]

    def test_after_a_triangle_and_after_a_warm_up(self):
        assert drops(CyclicStep(40, 50, 80), 100) == [86, 91]
        assert drops(CyclicStep(20, 20, 35), 55) == [41, 46]
        assert drops(Product([Linear(0, 1, 0, 5), MultiStep([30, 60, 80])]), 90) == [30, 60, 80]

    def test_within_an_epoch_count_for_the_next_one(self):
        assert drops(MultiStep([2.5]), 10) == [3]

    def test_do_not_include_one_that_training_does_not_reach(self):
        assert drops(MultiStep([75, 90, 100]), 76) == [75]
        assert drops(MultiStep([100]), 100) == []

    @pytest.mark.parametrize("epochs", [2, 3, 4, 10, 30, 100])
    def test_a_gradual_decline_has_none_though_it_ends_by_halving(self, epochs: int):
        half = epochs / 2
        for schedule in (
            Cyclic(half, half),
            Cyclic(0.75, epochs - 0.75),
            Cosine(1, 0, 0, epochs),
            Linear(1, 0, 0, epochs),
        ):
            assert drops(schedule, epochs) == []
            assert drops(schedule, epochs + 5) == []

    def test_a_gradual_decline_in_steps_of_an_epoch_has_none(self):
        for schedule in (Linear(1, 0, 0, 30), Cosine(1, 0, 0, 30), Cyclic(15, 15), Cyclic(10, 20)):
            assert drops(PerEpoch(schedule), 30) == []

    def test_a_small_step_a_rise_and_the_end_at_zero_are_none(self):
        assert drops(MultiStep([5], factor=0.6), 10) == []
        assert drops(MultiStep([5], factor=10), 10) == []
        assert drops(Staircase([0, 5], [1, 0]), 10) == []


class TestBadArguments:
    @pytest.mark.parametrize(
        ("make", "name"),
        [
            (lambda: PiecewiseLinear([0, 5, 3], [0, 1, 0]), "times="),
            (lambda: PiecewiseLinear([0, 5, 5], [0, 1, 0]), "times="),
            (lambda: PiecewiseLinear([0, 5], [0, 1, 0]), "2 times"),
            (lambda: Staircase([], []), "times="),
            (lambda: MultiStep([90, 75]), "milestones="),
            (lambda: MultiStep([75], factor=0), "factor="),
            (lambda: Linear(0, 1, 5, 5), "end="),
            (lambda: Linear(0, "8/0", 0, 5), "stop="),
            (lambda: Linear(0, math.nan, 0, 5), "stop="),
            (lambda: Cosine(1, 0, 30, 5), "end="),
            (lambda: PeriodicCosine(0.5, 0.6, 0.4, [10]), "low="),
            (lambda: PeriodicCosine(0, 0.6, 0.4, [0, 10]), "ends="),
            (lambda: PeriodicCosine(0, 0.6, 0.4, [10, 5]), "ends="),
            (lambda: Cyclic(-1, 5), "up="),
            (lambda: Cyclic(1, 0), "down="),
            (lambda: CyclicStep(20, 20, 40), "until="),
            (lambda: CyclicStep(20, 20, 35, after=[11, 6]), "after="),
            (lambda: CyclicMomentum(5, 5, low=0.9, high=0.8), "low="),
            (lambda: Cyclic(None, 5), "up=None"),
            (lambda: MultiStep([None]), "milestones.*=None"),
            (lambda: MultiStep([1], factor=True), "factor=True"),
            *(
                (partial(kind, *[[] if i == empty else 0.5 * (i + 1) for i in range(count)]), name)
                for kind in (Linear, Cosine)
                for count, names in ((4, ("start", "stop", "begin", "end")),)
                for empty, name in enumerate(names)
            ),
            *(
                (partial(PeriodicCosine, **{"low": 0, "high": 1, "cap": 1, "ends": [1], name: []}), f"{name}=")
                for name in ("low", "high", "cap", "ends")
            ),
            *((partial(CyclicMomentum, 5, 5, **{name: []}), name) for name in ("until", "low", "high")),
            *(
                (partial(Linear, **{"start": 0, "stop": 1, "begin": 0, "end": 1, name: math.inf}), name)
                for name in ("start", "stop", "begin", "end")
            ),
            (lambda: Staircase([0, 1], [1, math.inf]), r"values\[1\]=inf"),
            (lambda: Linear(Linear(0, 1, 0, 1), 0, 0, 5), "start=Linear"),
        ],
    )
    def test_are_refused_by_name(self, make: Any, name: str):
        with pytest.raises(ValueError, match=f"^{name}"):
            make()

    @pytest.mark.parametrize(
        ("make", "named"),
        [
            (lambda: PerEpoch(0.5), r"schedule=0\.5"),
            (lambda: Product([0.5]), r"schedules\[0\]=0\.5"),
        ],
    )
    def test_of_a_wrong_kind_are_refused(self, make: Any, named: str):
        with pytest.raises(TypeError, match=f"^{named}"):
            make()


class TestConfiguration:
    def parse(self, *arguments: str) -> tuple[Schedule, str]:
        """The schedule, and the configuration as a run would save it."""
        parser = ArgumentParser(exit_on_error=False)
        parser.add_argument("--schedule", type=Schedule)
        parser.add_argument("--config", action="config")
        config = parser.parse_args(arguments)
        instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes
        return instantiate(config).schedule, parser.dump(config)

    def test_flags_with_short_names(self):
        flags = ["--schedule=CyclicStep", "--schedule.up=40", "--schedule.down=50", "--schedule.until=80"]
        assert self.parse(*flags)[0] == CyclicStep(40, 50, 80)

    def test_yaml_with_fractions_negative_numbers_and_nesting(self, tmp_path: Path):
        (tmp_path / "run.yaml").write_text(
            """
            schedule:
              class_path: Product
              init_args:
                schedules:
                - class_path: PerEpoch
                  init_args:
                    schedule: {class_path: Linear, init_args: {start: -0.5, stop: 8/255, begin: 0, end: 5}}
                - class_path: PiecewiseLinear
                  init_args: {times: [0, 5], values: [2/255, 1e-3]}
                - class_path: CyclicMomentum
                  init_args: {up: 5, down: 5}
            """
        )
        schedule, saved = self.parse(f"--config={tmp_path / 'run.yaml'}")
        assert schedule == Product(
            [
                PerEpoch(Linear(-0.5, 8 / 255, 0, 5)),
                PiecewiseLinear([0, 5], [2 / 255, 1e-3]),
                CyclicMomentum(5, 5),
            ]
        )
        (tmp_path / "again.yaml").write_text(saved)
        assert self.parse(f"--config={tmp_path / 'again.yaml'}")[0] == schedule

    @every_kind
    def test_as_a_sub_class_argument(self, schedule: Schedule):
        parser = ArgumentParser(exit_on_error=False)
        parser.add_subclass_arguments(Schedule, "schedule")
        init_args = {name: _config(value) for name, value in vars(schedule).items()}
        config = parser.parse_object({"schedule": {"class_path": type(schedule).__name__, "init_args": init_args}})
        instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes
        assert instantiate(config).schedule == schedule


def _config(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_config(item) for item in value]
    if isinstance(value, Schedule):
        return {
            "class_path": type(value).__name__,
            "init_args": {k: _config(v) for k, v in vars(value).items()},
        }
    return value
