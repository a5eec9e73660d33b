"""What the measurements of speed share: options, tables, loops in turns, and an attack as a training runs it."""

import argparse
import ctypes
import gc
import inspect
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from cpu_budget_results import commit, hardware, indented, opened, read, versions
from torch import Tensor, nn

from lit_robust import nets
from lit_robust.attacks import Attack
from lit_robust.guards import BNMode, checked, frozen, network_mode, smaller_batches
from lit_robust.nets.folded import FoldedNet
from lit_robust.torch_internals import bf16_instructions

#: Seconds of each loop by its name.
Times = Mapping[str, Sequence[float]]
PROCESS = Path("/proc/self")
#: The nets that a measurement can build.
NETS = [name for name in nets.__all__ if name != "Net"]

# Options.


def count(text: str) -> int:
    """An option's number of repeats, images and the like."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} leaves nothing to measure: give at least 1.")
    return number


def folder(text: str) -> str:
    """An option's folder of data."""
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {text}: name the one that has the data.")
    return text


def device(text: str) -> torch.device:
    """An option's device, such as ``cuda:1``."""
    try:
        found = torch.device(text)
    except RuntimeError:
        raise argparse.ArgumentTypeError(f"torch knows no device {text}: give cpu or cuda.") from None
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise argparse.ArgumentTypeError(f"torch finds no GPU for {text} here: give cpu.")
    return found


def accelerator(text: str) -> str:
    """An option's ``cpu`` or ``gpu``; a gpu must be there."""
    if text == "gpu" and not torch.cuda.device_count():
        raise argparse.ArgumentTypeError("torch finds no GPU here: give cpu.")
    return text


def check_net(parser: argparse.ArgumentParser, name: str, width: int, shape: Sequence[int]) -> None:
    """End with a sentence unless the net can be built with this width and takes images of this shape."""
    if width and "width" not in inspect.signature(getattr(nets, name)).parameters:
        parser.error(f"--width={width}: {name} has a width of its own only: give --width 0.")
    try:
        with torch.device("meta"):
            builder(name, width, shape[0])().eval()(torch.empty(1, *shape))
    except (ImportError, RuntimeError, TypeError, ValueError) as error:
        given, why = " ".join(map(str, shape)), str(error).splitlines()[0].rstrip(".")
        parser.error(f"--net={name} does not go with --width {width} --shape {given} ({why}): change one of them.")


# Tables.


class Table:
    """A file with a row for each thing that is measured, written after each; only rows of one measurement stay in it.

    Args:
        path: The file.
        settings: What all rows share; another commit is no other measurement.
        codes: The md5 of each row's code, in the order of the rows.
        rows: The key of the rows.
        beside: Those that stand beside the rows, under keys of their own.
    """

    def __init__(
        self,
        path: Path,
        settings: Mapping[str, Any],
        codes: Mapping[str, str],
        rows: str = "rows",
        beside: Sequence[str] = (),
    ) -> None:
        self.path, self.settings, self.codes, self.rows, self.beside = path, settings, codes, rows, beside

    def kept(self, before: Mapping[str, Any]) -> dict[str, Any]:
        """What a record has of these settings and codes."""
        same = not self.other(before)
        known = before.get("code", {}) if same else {}
        code = {name: md5 for name, md5 in self.codes.items() if known.get(name) == md5}
        code = {name: md5 for name, md5 in code.items() if name in self.place(before, name)}
        record: dict[str, Any] = {**self.settings, self.rows: {}, "code": code}
        for name in code:
            self.place(record, name)[name] = self.place(before, name)[name]
        unfinished = {name: turns for name, turns in before.get("unfinished", {}).items() if name in code and turns}
        return record | ({"unfinished": unfinished} if unfinished else {})

    def other(self, before: Mapping[str, Any]) -> list[str]:
        """The settings that a record has otherwise."""
        return [key for key, value in self.settings.items() if key != "commit" and before.get(key) != value]

    def place(self, record: Mapping[str, Any], name: str) -> Any:
        """Where this row stands."""
        return record if name in self.beside else record.get(self.rows, {})

    def record(self) -> dict[str, Any]:
        """What the file has of this measurement."""
        return self.kept(read(self.path))

    def left(self, names: Iterable[str]) -> list[str]:
        """Which of these rows are to be measured; says which are done, and which are of another measurement."""
        before, record, names = read(self.path), self.record(), dict.fromkeys(names)
        lost = [name for name in before.get(self.rows, {}) if name not in record[self.rows]]
        if lost:
            why = ", ".join(self.other(before)) or "code"
            print(f"{self.path.name}: {', '.join(lost)} are of another {why} and dropped: copy the file to keep them.")
        done = [name for name in names if name in record["code"] and name not in record.get("unfinished", {})]
        if done:
            print(f"{self.path.name} has {', '.join(done)} of these settings: remove what is to be measured again.")
        return [name for name in names if name not in done]

    def put(self, name: str, row: Any, unfinished: Sequence[Any] = ()) -> None:
        """Write a row, and of one with turns to come what has been measured."""
        with opened(self.path, indented) as results:
            record = self.kept(results)
            record["code"][name] = self.codes[name]
            self.place(record, name)[name] = row
            record.setdefault("unfinished", {})[name] = unfinished
            results.clear()
            results |= self.kept(record)

    def turns(self, name: str) -> list[Any]:
        """What has been measured of a row with turns to come."""
        return [*self.record().get("unfinished", {}).get(name, [])]


# Measurements.


def about(device: torch.device) -> dict[str, Any]:
    """What a record says of its code and hardware."""
    gpu = {"gpu": torch.cuda.get_device_name(device)} if device.type == "cuda" else {}
    return {"commit": commit(), **hardware(), "bf16": bf16_instructions(), **gpu, **versions()}


def multiplies_bf16(device: torch.device) -> bool:
    """Whether bf16 is measured: a CPU that is known to emulate it takes ten times as long, and tells nothing else."""
    return device.type == "cuda" or bf16_instructions() != []


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
    attack: Attack, net: nn.Module, mode: BNMode, x: Tensor, y: Tensor,
    fold: bool = True, bf16: bool = False, compile: bool = False,
) -> Callable[[], None]:  # fmt: skip
    """The attack as a training or a test runs it, on a net in channels_last; ``bf16`` as ``bf16-mixed`` does.

    ``compile`` compiles the folded net.
    """
    x, folded = x.contiguous(memory_format=torch.channels_last), FoldedNet(compile)

    def run() -> None:
        autocast = torch.autocast(x.device.type, torch.bfloat16) if bf16 else nullcontext()
        freezing = frozen(net) if compile else nullcontext()
        with network_mode(net, mode), checked(), smaller_batches(), autocast, freezing:
            attack(folded(net, x) if fold and mode == "eval" else net, x, y)

    return run
