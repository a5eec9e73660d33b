"""Adds up what a training costs: seconds, passes through the net, hardware and precision."""

import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lit_robust.batch import Batch
from lit_robust.costs import Cost, cost_of
from lit_robust.ranks import gather_over_ranks, world_size
from lit_robust.torch_internals import is_compiled, watch_compiled
from lit_robust.training.passes import PassCounter
from lit_robust.training.signals import Stoppable


class Clock:
    """Wall-clock and CPU seconds while it runs; it costs nothing in between."""

    def __init__(self) -> None:
        self._before = 0.0, 0.0
        self._begun: tuple[float, float] | None = None

    @property
    def runs(self) -> bool:
        """Whether it runs."""
        return self._begun is not None

    def go(self) -> None:
        """Start, unless it is running."""
        if self._begun is None:
            self._begun = time.perf_counter(), time.process_time()

    def stop(self) -> None:
        """Stop, unless it is stopped."""
        self._before, self._begun = self.seconds, None

    @property
    def seconds(self) -> tuple[float, float]:
        """Wall-clock and CPU seconds so far."""
        if self._begun is None:
            return self._before
        now = time.perf_counter(), time.process_time()
        wall, cpu = (sum(times) for times in zip(self._before, now, strict=True))
        return wall - self._begun[0], cpu - self._begun[1]


class Meter:
    """The cost of a fit: what this process adds to that of a checkpoint."""

    def __init__(self) -> None:
        self.passes, self.clock = PassCounter(), Clock()
        #: The cost before this process; None if it is unknown, because an older version has written the checkpoint.
        self.earlier: Cost | None = Cost()
        #: What selections have taken of it.
        self.selected: tuple[float, ...] = (0.0, 0.0, 0, 0)
        self._selects = False
        self._unwatch: list[Callable[[], None]] = []
        self._copies: list[nn.Module] = []

    def watch(self, *nets: nn.Module) -> None:
        """Count the passes of these nets, and no longer those of earlier ones."""
        self.leave()
        for net in nets:
            if is_compiled(net):  # a hook would become part of the graph
                self._unwatch.append(watch_compiled(net, self.passes))
            else:
                self._unwatch.append(net.register_forward_hook(self.passes).remove)

    def watch_copy(self, copy: nn.Module) -> None:
        """Count the passes of a net's copy, which shares the net's hook unless it is compiled."""
        if is_compiled(copy) and not any(one is copy for one in self._copies):
            self._copies.append(copy)
            self._unwatch.append(watch_compiled(copy, self.passes))

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count only passes in the body, not those of checks, callbacks or validations; the clock keeps running."""
        self.clock.go()  # Lightning calls no on_train_epoch_start for the rest of a resumed epoch
        with self.passes.counting():
            yield

    @property
    def spent(self) -> tuple[float, float, int, int]:
        """Wall-clock and CPU seconds, forwards and backwards of this process."""
        return (*self.clock.seconds, self.passes.forwards, self.passes.backwards)

    @contextmanager
    def selecting(self) -> Iterator[None]:
        """Run the clock in the body, and note that it and the passes counted meanwhile are a selection's."""
        before, ran = self.spent, self.clock.runs
        self.clock.go()
        self._selects = True
        try:
            yield
        finally:
            self._selects = False
            taken = (now - then for now, then in zip(self.spent, before, strict=True))
            self.selected = tuple(map(sum, zip(self.selected, taken, strict=True)))
            if not ran:
                self.clock.stop()

    def counting_selected(self) -> AbstractContextManager[None]:
        """Count the passes of the body, if it is within ``selecting``, which holds checks as well."""
        return self.passes.counting() if self._selects else nullcontext()

    def leave(self) -> None:
        """Remove the hooks."""
        self._copies.clear()
        while self._unwatch:
            self._unwatch.pop()()

    def total(self, hardware: str, precision: str) -> Cost | None:
        """The cost so far, over all ranks; every rank must call it. None if the cost before this process is unknown."""
        mine = torch.tensor([*self.spent, *self.selected], dtype=torch.float64)
        ranks = torch.stack([state["cost"] for state in gather_over_ranks({"cost": mine})])
        if (before := self.earlier) is None:
            return None
        (seconds, of_selections), sums = ranks[:, [0, 4]].amax(dim=0).tolist(), ranks.sum(dim=0).tolist()
        return Cost(
            before.seconds + seconds,
            before.cpu_seconds + sums[1],
            before.forwards + int(sums[2]),
            before.backwards + int(sums[3]),
            _with(before.hardware, hardware),
            _with(before.precision, precision),
            before.selection_seconds + of_selections,
            before.selection_cpu_seconds + sums[5],
            before.selection_forwards + int(sums[6]),
            before.selection_backwards + int(sums[7]),
        )


class Metered(Stoppable):
    """Adds up the cost of the training, across resumes; every checkpoint holds it, see ``Cost``.

    The clock runs from an epoch's start to the end of its last batch, and in selections; it stands still in
    validations. The device is waited for only where a validation begins in mid-epoch, besides what the epoch's metrics
    and a checkpoint wait for.
    """

    meter: Meter

    def setup(self, stage: str) -> None:
        """Forget an earlier fit."""
        super().setup(stage)
        if stage == "fit":
            self.meter.leave()
            self.meter = Meter()

    def on_train_start(self) -> None:
        """Watch the net and its averages, which a method may attack."""
        super().on_train_start()
        self._watch()

    def _watch(self) -> None:
        averages: dict[str, nn.Module] = getattr(self, "averaged", {})
        self.meter.watch(self.net, *averages.values())

    def folded(self, net: nn.Module, x: Tensor) -> nn.Module:
        """The net that attacks see, whose passes count, too."""
        found = super().folded(net, x)
        if found is not net:
            self.meter.watch_copy(found)
        return found

    @contextmanager
    def selecting(self) -> Iterator[None]:
        """Add the body's seconds to the cost, and note them and its passes as those of a coreset's selection."""
        self._watch()  # the first selection comes before the training's start
        with self.meter.selecting():
            yield

    def on_train_epoch_start(self) -> None:
        """Run the clock."""
        super().on_train_epoch_start()
        self.meter.clock.go()

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Stop the clock after the epoch's last batch, whose metrics have waited for the device."""
        super().on_train_batch_end(outputs, batch, batch_idx)
        if self.trainer.is_last_batch:
            self.meter.clock.stop()

    def on_validation_start(self) -> None:
        """Stop the clock."""
        super().on_validation_start()
        self._in_mid_epoch = self.meter.clock.runs
        if self._in_mid_epoch:
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            self.meter.clock.stop()

    def on_validation_end(self) -> None:
        """Run the clock again, if the epoch goes on."""
        super().on_validation_end()
        if self._in_mid_epoch:
            self.meter.clock.go()

    def teardown(self, stage: str) -> None:
        """Remove the hooks."""
        if stage == "fit":
            self.meter.clock.stop()
            self.meter.leave()
        super().teardown(stage)

    def training_cost(self) -> Cost | None:
        """The cost of the training so far; every rank must call it. None if an older version has trained before."""
        return self.meter.total(hardware_of(self.device), str(self.trainer.precision))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on from the cost of a checkpoint."""
        super().on_load_checkpoint(checkpoint)
        self.meter.earlier = cost_of(checkpoint)


def _with(words: Sequence[str], word: str) -> list[str]:
    return [*words] if word in words else [*words, word]


def hardware_of(device: torch.device) -> str:
    """The device of the training in words, with the number of ranks if there are several."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    elif device.type == "cpu":
        threads = torch.get_num_threads()
        name = f"{_processor()}, {threads} thread{'s' * (threads > 1)}"
    else:
        name = device.type
    return name if world_size() == 1 else f"{world_size()} x {name}"


def _processor() -> str:
    """The processor's name; Python knows only its architecture on Linux."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine() or "CPU"
