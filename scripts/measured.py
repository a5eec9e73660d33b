"""What the measurements of speed share: loops in turns, an attack as a training runs it, and where a number is from."""

import ctypes
import gc
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from cpu_budget_results import commit, hardware, versions
from torch import Tensor, nn

from lit_robust import nets
from lit_robust.attacks import Attack
from lit_robust.guards import BNMode, checked, network_mode, smaller_batches
from lit_robust.nets.folded import FoldedNet
from lit_robust.torch_internals import bf16_instructions

#: Seconds of each loop by its name.
Times = Mapping[str, Sequence[float]]
PROCESS = Path("/proc/self")


def about(device: torch.device) -> dict[str, Any]:
    """What a record says of its code and hardware."""
    gpu = {"gpu": torch.cuda.get_device_name(device)} if device.type == "cuda" else {}
    return {"commit": commit(), **hardware(), "bf16": bf16_instructions(), **gpu, **versions()}


def builder(name: str, width: int, channels: int = 3) -> Callable[[], nn.Module]:
    """Builds a net for 10 classes; a width of 0 is its own."""
    arguments = ({"width": width} if width else {}) | ({"in_channels": channels} if channels != 3 else {})
    return partial(getattr(nets, name), num_classes=10, **arguments)


def resident(peak: bool) -> int:
    """This process's resident memory in bytes, or its highest since the last reset."""
    found = re.search(rf"{'VmHWM' if peak else 'VmRSS'}:\s*(\d+) kB", (PROCESS / "status").read_text())
    assert found, "the kernel does not say how much memory is resident"
    return 1024 * int(found[1])


def reset_peak() -> int:
    """Free what is not used, let the highest resident memory begin anew at the present one, and return that."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    (PROCESS / "clear_refs").write_text("5")
    return resident(peak=False)


def synchronized(device: torch.device) -> float:
    """The time, after the device has finished."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def in_turns(loops: Mapping[str, Callable[[], Any]], turns: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of each loop in each turn; the first turn, which allocates and folds, is not timed."""
    times: dict[str, list[float]] = {name: [] for name in loops}
    for turn in range(turns + 1):
        for name, run in loops.items():
            begun = synchronized(device)
            run()
            if turn:
                times[name].append(synchronized(device) - begun)
    return times


def ratio(repeats: Sequence[Times], loop: str, to: str) -> dict[str, Any]:
    """The median over repeats of a loop's ratio to one that took turns with it, and the smallest and the largest."""
    found = [median(times[loop]) / median(times[to]) for times in repeats]
    return {f"to_{to}": round(median(found), 3), f"to_{to}_range": [round(min(found), 3), round(max(found), 3)]}


def as_attacked(
    attack: Attack, net: nn.Module, mode: BNMode, x: Tensor, y: Tensor, fold: bool = True, bf16: bool = False
) -> Callable[[], None]:
    """The attack as a training or a test runs it, on a net in channels_last; ``bf16`` as ``bf16-mixed`` does."""
    x, folded = x.contiguous(memory_format=torch.channels_last), FoldedNet()

    def run() -> None:
        autocast = torch.autocast(x.device.type, torch.bfloat16) if bf16 else nullcontext()
        with network_mode(net, mode), checked(), smaller_batches(), autocast:
            attack(folded(net, x) if fold and mode == "eval" else net, x, y)

    return run
