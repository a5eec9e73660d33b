"""Make the README's four pictures and its table of six nets from checkpoints of ``cpu_budget.py``, on MNIST's test set.

    python scripts/mnist_pictures.py                           # scripts/results/mnist_*
    python scripts/mnist_pictures.py --only surface targets    # some of them

All tables and the journal, with which a stopped run goes on, are in ``runs/mnist_pictures``.
"""

import argparse
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lit_robust import losses
from lit_robust.analysis import compare, surface, sweep, targets, transfer
from lit_robust.attacks import PGD
from lit_robust.data import MNISTDataModule

RESULTS = Path(__file__).parent / "results"
EPS = 0.2
#: Nets by name, with the row of the budget that each one is.
SINGLE_STEP = {
    "natural": "single_step/natural@0",
    "FGSM": "single_step/fgsmat@0",
    "Fast": "single_step/fastat_random@0",
    "N-FGSM": "single_step/nfgsm@0",
    "Free-4": "single_step/freeat_4@0",
    "PGD": "single_step/pgdat@0",
}
#: The nets of SAT's slides, at eps 0.3, and Free and natural training, at eps 0.2.
FLAT = {
    "natural": "single_step/natural@0",
    "Free-8 (eps 0.2)": "single_step/freeat_8@0",
    "Madry with a ramp (eps 0.3)": "trivial_0.3/madry_with_ramp@0",
    "P-SAT (eps 0.3)": "trivial_0.3/psat@0",
    "H-SAT (eps 0.3)": "trivial_0.3/hsat@0",
}
DRAWN = ("natural", "Free-4", "PGD")

#: Each picture, and the table: the file that its verb writes, the nets, and the verb.
PICTURES: dict[str, tuple[str, Mapping[str, str], Callable[..., Any]]] = {
    "surface": ("surface_weights.png", FLAT, partial(surface, attack=PGD(EPS, steps=10), points=15, limit=200)),
    "sweep": (
        "sweep_eps.png",
        SINGLE_STEP,
        partial(sweep, attack=PGD(EPS, EPS / 4, steps=20, loss=losses.margin, keep="worst"), limit=500,
                values=[0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4]),
    ),
    "targets": ("targets.png", {name: SINGLE_STEP[name] for name in DRAWN}, targets),
    "transfer": ("transfer.png", SINGLE_STEP, partial(transfer, attack=PGD(EPS, EPS / 4, steps=20), limit=500)),
    "compare": ("compare.md", SINGLE_STEP, partial(compare, limit=500, reference="PGD")),
}  # fmt: skip


def main(args: Sequence[str] | None = None) -> None:
    """Make pictures and the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=Path, default=Path("runs/cpu_budget"), help="the folder of cpu_budget.py")
    parser.add_argument("--only", nargs="+", choices=PICTURES, default=[*PICTURES], help="some of them; default: all")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/mnist_pictures"), help="the folder of tables and journal"
    )
    given = parser.parse_args(args)
    torch.set_num_threads(1)
    for name in given.only:
        file, nets, make = PICTURES[name]
        checkpoints = [f"{net}={given.runs / row / 'checkpoints/last.ckpt'}" for net, row in nets.items()]
        make(checkpoints, MNISTDataModule(eval_batch_size=100), device="cpu", out=given.out)
        shutil.copyfile(given.out / file, (RESULTS / f"mnist_{name}").with_suffix(Path(file).suffix))


if __name__ == "__main__":
    main()
