"""Sums, means and gathers over ranks."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def world_size() -> int:
    """The number of ranks, 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def sum_over_ranks(value: Tensor) -> Tensor:
    """The sum over all ranks, outside autograd."""
    total = value.detach().clone()
    if world_size() > 1:
        dist.all_reduce(total)
    return total


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


def weighted_mean(values: Tensor, weight: Tensor) -> Tensor:
    """The mean of ``(N,)`` values under ``(N,)`` weights over the batches of all ranks.

    DistributedDataParallel averages gradients over ranks, so each rank contributes its own weighted sum times the
    number of ranks; then the average equals one process's gradient, even if ranks hold different total weights.
    """
    return (values * weight).sum() * world_size() / sum_over_ranks(weight.sum())


@torch.no_grad()
def average_buffers(net: nn.Module) -> None:
    """Give every rank the mean of the ranks' float buffers (BatchNorm's statistics).

    A checkpoint holds only rank 0's; without this, a resumed run on several ranks would differ.
    """
    if (ranks := world_size()) > 1:
        for buffer in net.buffers():
            if buffer.is_floating_point():
                dist.all_reduce(buffer)
                buffer /= ranks
