"""Sums, means and gathers over ranks."""

import gc
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

_alone = ContextVar("alone", default=False)


@contextmanager
def alone() -> Iterator[None]:
    """Let this process count as the only rank: what is summed over ranks is its own.

    For work that ranks share out by whole batches, of which they may have unequal numbers, so that they would wait for
    each other forever.
    """
    token = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(token)


def world_size() -> int:
    """The number of ranks, 1 without a process group and within ``alone``."""
    if _alone.get() or not (dist.is_available() and dist.is_initialized()):
        return 1
    return dist.get_world_size()


def sum_over_ranks(value: Tensor) -> Tensor:
    """The sum over all ranks, outside autograd."""
    total = value.detach().clone()
    if world_size() > 1:
        dist.all_reduce(total)
    return total


def sums_over_ranks(values: Sequence[Tensor]) -> list[Tensor]:
    """The sum of each tensor over all ranks, outside autograd; tensors of one dtype and device share one reduction.

    On one rank they are the tensors themselves, not copies.
    """
    sums = [value.detach() for value in values]
    if world_size() > 1:
        # In the order of the tensors, which is the same on every rank; that of a set need not be.
        for kind in dict.fromkeys((one.dtype, one.device) for one in sums):
            places = [place for place, one in enumerate(sums) if (one.dtype, one.device) == kind]
            total = torch.cat([sums[place].flatten() for place in places])
            dist.all_reduce(total)
            for place, part in zip(
                places, total.split_with_sizes([sums[place].numel() for place in places]), strict=True
            ):
                sums[place] = part.view_as(sums[place])
    return sums


def weighted_sum(values: Tensor, weight: Tensor) -> Tensor:
    """The sum of ``(N,)`` values under ``(N,)`` weights, and that of the weights, ``(2,)``, outside autograd."""
    return torch.stack([(values.detach() * weight).sum(), weight.sum()])


def max_over_ranks(value: Tensor) -> Tensor:
    """The largest of all ranks, element by element, outside autograd."""
    largest = value.detach().clone()
    if world_size() > 1:
        dist.all_reduce(largest, dist.ReduceOp.MAX)
    return largest


def gather_over_ranks(state: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """The tensors of every rank, on the CPU and in the order of ranks; every rank must call it."""
    mine = {name: value.detach().cpu() for name, value in state.items()}
    states: list[Any] = [mine]
    if (ranks := world_size()) > 1:
        states = [None] * ranks
        dist.all_gather_object(states, mine)
    return states


def leave_group() -> None:
    """End a gloo process group and its threads, before Python ends; Lightning ends one of NCCL.

    A thread that still holds a tensor when Python ends aborts the process. The group waits for its threads only once
    nothing refers to it, so what is left of a run is collected first.
    """
    if dist.is_available() and dist.is_initialized() and dist.get_backend() == "gloo":
        gc.collect()
        dist.destroy_process_group()


class StopRequest:
    """Whether this process has been asked to stop training, and whether any rank has.

    A signal reaches one process, but all ranks must stop after the same batch. So the request travels with a sum over
    ranks that every batch needs anyway, and is read one batch later, when it costs no wait for the device.
    """

    #: What a signal adds to the sum, so that it also tells which one it was, for up to 1024 ranks.
    SHARES = {signal.SIGTERM: 1.0, signal.SIGINT: 1 / 1024}  # noqa: RUF012  # never changed

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget the request of an earlier fit."""
        #: The signal that this process received, 0 if none.
        self.signal = 0
        self._latest: tuple[Tensor, Any] | None = None
        self._before: tuple[Tensor, Any] | None = None

    def sum_with(self, weight: Tensor) -> Tensor:
        """The sum of a number over ranks, ``()``; the request is added to what is sent."""
        if world_size() == 1:
            return weight
        total = sum_over_ranks(torch.stack([weight, torch.full_like(weight, self._share())]))
        event = torch.cuda.Event() if total.is_cuda else None  # type: ignore[no-untyped-call]  # torch's
        self._latest = total[1].to("cpu", non_blocking=True), event
        if event is not None:
            event.record()
        return total[0]

    def of_any_rank(self) -> int:
        """The signal that some rank had received by the batch before, 0 if none; all ranks ask once per batch."""
        if world_size() == 1:
            return self.signal
        known, self._before = self._before, self._latest
        if known is None:
            return 0
        share, event = known
        if event is not None:
            event.synchronize()
        return _signal_of(float(share))

    def of_any_rank_now(self, device: torch.device) -> int:
        """The same by a reduction of its own, for validation, where a batch costs far more than a reduction."""
        return _signal_of(float(sum_over_ranks(torch.tensor(self._share(), device=device))))

    def _share(self) -> float:
        return self.SHARES.get(signal.Signals(self.signal), 1.0) if self.signal else 0.0


def _signal_of(share: float) -> int:
    if share == 0:
        return 0
    return signal.SIGTERM if share >= 1 else signal.SIGINT


#: One per process, like signal handlers.
stop_request = StopRequest()


def weighted_mean(values: Tensor, weight: Tensor, mean_weight: float | None = None) -> Tensor:
    """The mean of ``(N,)`` values under ``(N,)`` weights over the batches of all ranks.

    It is divided by the batches' sum of weights, or with ``mean_weight``, the mean over the whole data, by that times
    their number of samples that are not padding.

    DistributedDataParallel averages gradients over ranks, so each rank contributes its own weighted sum times the
    number of ranks; then the average equals one process's gradient, even if ranks hold different total weights. Where
    all weights are 0 it is 0.
    """
    total = weight.sum() if mean_weight is None else mean_weight * (weight > 0).sum().to(weight.dtype)
    return per_weight((values * weight).sum() * world_size(), stop_request.sum_with(total))


def per_weight(total: Tensor, weight: Tensor) -> Tensor:
    """A sum divided by its weight; 0, with a gradient of 0, where no sample counts."""
    return total / weight.clamp_min(torch.finfo(weight.dtype).tiny)


@torch.no_grad()
def average_buffers(module: nn.Module) -> None:
    """Give every rank the mean of the ranks' float buffers, such as BatchNorm's statistics, so that all hold one net.

    The sum has 64 bits, so buffers of 32 that are equal already stay as they are, to the bit.
    """
    if (ranks := world_size()) > 1:
        for buffer in module.buffers():
            if buffer.is_floating_point():
                buffer.copy_(sum_over_ranks(buffer.double()) / ranks)


def float_buffers(module: nn.Module) -> dict[str, Tensor]:
    """The float buffers that a module's ``state_dict`` holds, by their names there."""
    names = module.state_dict().keys()
    return {name: one for name, one in module.named_buffers() if name in names and one.is_floating_point()}


def gather_within_epoch(state: dict[str, Tensor], trainer: Any) -> list[dict[str, Tensor]]:
    """What ``gather_over_ranks`` returns, if ranks can differ: not on one rank, nor after an epoch's last batch.

    For buffers, which ``average_buffers`` makes equal there; every rank must call it.
    """
    return [] if world_size() == 1 or trainer.is_last_batch else gather_over_ranks(state)
