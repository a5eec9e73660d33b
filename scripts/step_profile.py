"""Profile a training step before and after: the research loop, the fit without folding, the fit, and the fit in bf16.

    python scripts/step_profile.py                     # writes scripts/results/step_profile.json
    python scripts/step_profile.py --methods TRADES --batch 32

Each loop runs the passes of one method on the same batch, as in ``benchmark.py``, for a few batches under torch's
profiler. Milliseconds per batch that operators take themselves are summed by what they are for. The profiler itself
costs time per operator, so these numbers show where the time goes; ``benchmark.py`` says how fast a loop is. The file
is written after each method; what it has of the same settings and code stays.
"""

import argparse
import json
import re
from pathlib import Path
from typing import Any

import torch
from benchmark import METHODS, Method, asked, batches, codes, device_of, hand_written, module_of, parser_of
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from measured import Table, about, builder, count, multiplies_bf16
from torch import nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

RESULT = Path(__file__).parent / "results/step_profile.json"
#: What operators are for, by their names; the first that matches counts.
KINDS = {
    "convolutions, forward": r"aten::(mkldnn_convolution|cudnn_convolution|_?convolution|conv2d)$",
    "convolutions, backward": r"aten::convolution_backward|ConvolutionBackward",
    "BatchNorm": r"batch_norm",
    "ReLU": r"aten::(relu_?|clamp_min_?|threshold_backward)$",
    "optimizer": r"Optimizer|_foreach|_fused_(sgd|adam)",
    "copies and conversions": r"aten::(copy_|clone|contiguous|_?to_copy|to|empty\w*|zero_|zeros\w*|fill_|new_\w+)$",
    "others": "",
}
#: Batches before the profile, in which buffers are made and the net is traced.
WARM = 2


def by_kind(profiler: profile, count: int) -> dict[str, float]:
    """Milliseconds per batch by kind of operator."""
    found = dict.fromkeys(KINDS, 0.0)
    events = [event for event in profiler.key_averages() if event.device_type == DeviceType.CPU]
    on_gpu = any(event.self_device_time_total for event in events)  # the kernels' time, which their operators have, too
    for event in events:
        kind = next(name for name, pattern in KINDS.items() if re.search(pattern, event.key))
        found[kind] += (event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1000 / count
    return {name: round(value, 2) for name, value in found.items()}


class Profiled(Callback):
    """Profile the batches of a fit after the first ones."""

    def __init__(self, profiler: profile) -> None:
        self.profiler = profiler

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Begin."""
        if batch_idx == WARM:
            self.profiler.start()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End."""
        self.profiler.stop()


def profiles(args: argparse.Namespace, cls: str, method: Method) -> dict[str, dict[str, float]]:
    """Milliseconds per batch by loop and kind of operator."""
    device, build = device_of(args), builder(args.net, args.width, args.shape[0])
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
    seed_everything(0, verbose=False)
    x, y = torch.rand(args.batch, *args.shape), torch.randint(10, (args.batch,))

    def research() -> profile:
        step = hand_written(build().to(device), method, x.to(device), y.to(device), research=True)
        for _ in range(WARM):
            step()
        with profile(activities=activities) as profiler:
            for _ in range(args.batches):
                step()
        return profiler

    def fit(precision: str, **arguments: Any) -> profile:
        net: nn.Module = build()
        module = module_of(cls, method, net, **arguments)
        profiler = profile(activities=activities)
        Trainer(
            max_epochs=1, accelerator=args.accelerator, devices=1, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, callbacks=[Profiled(profiler)], precision=precision,
        ).fit(module, batches(x, y, args.batches + WARM))  # fmt: skip
        return profiler

    found = {"research loop": research()}
    if method.mode == "eval":
        found["without folding"] = fit("32-true", fold_batchnorm=False)
    found["fit"] = fit("32-true")
    if multiplies_bf16(device):
        found["fit, bf16"] = fit("bf16-mixed")
    return {name: by_kind(profiler, args.batches) for name, profiler in found.items()}


def main() -> None:
    """Profile, print and write."""
    parser = parser_of(__doc__)
    parser.set_defaults(methods=["PGDAT, eval", "FastAT"], batch=64)
    parser.add_argument("--batches", type=count, default=3, help="profiled batches of each loop")
    parser.add_argument("--out", type=Path, default=RESULT)
    args = asked(parser)
    settings = {"net": args.net, "width": args.width, "shape": [*args.shape], "batch": args.batch}
    settings |= {"batches": args.batches, **about(device_of(args))}
    table = Table(args.out, settings, codes(args))
    for name in table.left(args.methods):
        found = profiles(args, *METHODS[name])
        table.put(name, found)
        print(name, json.dumps(found, indent=1), flush=True)


if __name__ == "__main__":
    main()
