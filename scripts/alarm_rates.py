"""Count false alarms: train small nets that mask nothing on purpose, and see which of them raise an alarm.

    python scripts/alarm_rates.py

The nets are trained on scikit-learn's digits in ten ways with five seeds. Each is attacked by the default test and by
AutoAttack on the same images, and probed for alarms. A net is honest if the default test is within 5 points of
AutoAttack and it predicts more than one class, which is counted from its predictions of the clean images and not taken
from the alarm ``trivial``. Results are written to results/alarm_rates.json after each net. A net whose code of alarms
has not changed is not measured again; else AutoAttack's figure is kept if the net has the same weights, by their md5.
"""

import argparse
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from cpu_budget_results import code_of, commit, opened, read, versions
from default_test_cost import train
from torch import nn

from lit_robust.attacks import FGSM, GAMAPGD, PGD, RFGSM, Attack, AutoAttack, Square
from lit_robust.batch import Batch
from lit_robust.data import DigitsDataModule
from lit_robust.measures.accuracy import surviving
from lit_robust.measures.alarms import Alarms
from lit_robust.measures.default_attacks import default_test
from lit_robust.measures.probes import Probe

RESULTS = Path(__file__).parent / "results/alarm_rates.json"
#: What a net is trained against, None for natural training, and the eps of its test.
NETS: dict[str, tuple[Attack | None, float]] = {
    "natural at 0.03": (None, 0.03),
    "natural at 0.1": (None, 0.1),
    "fgsm at 0.1": (FGSM(0.1), 0.1),
    "fgsm at 0.2": (FGSM(0.2), 0.2),
    "rfgsm at 0.15": (RFGSM(0.15), 0.15),
    **{f"pgd at {eps}": (PGD(eps, steps=5), eps) for eps in (0.05, 0.1, 0.15, 0.2, 0.3)},
}


#: Changes with what the alarms depend on.
CODE = code_of(Alarms({}, 10), object.__new__(Probe), GAMAPGD(), Square(), PGD())


def percent(survived: torch.Tensor) -> float:
    """The share of images that survive."""
    return round(100 * survived.float().mean().item(), 2)


def weights_of(net: nn.Module) -> str:
    """The md5 of a net's weights and buffers by name."""
    md5 = hashlib.md5()
    for name, tensor in net.state_dict().items():
        md5.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        md5.update(tensor.detach().contiguous().numpy().tobytes())
    return md5.hexdigest()


def is_same_net(known: Mapping[str, Any], weights: str, default: float) -> bool:
    """Whether a record is of this net; records without weights are older, and the default test must do."""
    return bool(known["weights"] == weights if "weights" in known else known.get("default") == default)


@torch.no_grad()
def classes_predicted(net: nn.Module, x: torch.Tensor) -> int:
    """How many classes a net predicts for clean images ``(N, C, H, W)``."""
    return len(net(x).argmax(dim=1).unique())


def main(args: list[str] | None = None) -> None:
    """Measure what is missing."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args(args)
    torch.set_num_threads(1)
    data = DigitsDataModule(batch_size=128)
    data.setup("fit")
    data.setup("test")
    images = Batch(*(torch.cat(parts) for parts in zip(*data.test_dataloader(), strict=True)))
    for seed in range(5):
        for name, (attack, eps) in NETS.items():
            label = f"{name}@{seed}"
            known = read(RESULTS).get("nets", {}).get(label, {})
            if known.get("code") == CODE:
                continue
            net = train(attack, data, seed)
            survivors = surviving(net, default_test(eps), images)
            probed = Alarms(default_test(eps), num_classes=10)
            probed.update(net, images, survivors)
            default, weights = percent(survivors["worst"]), weights_of(net)
            if is_same_net(known, weights, default):
                autoattack = known["autoattack"]
            else:
                autoattack = percent(surviving(net, {"autoattack": AutoAttack(eps)}, images)["autoattack"])
            found = {"default": default, "autoattack": autoattack, "alarms": sorted(probed.compute()), "code": CODE}
            found |= {"weights": weights, "classes": classes_predicted(net, images.x)}
            with opened(RESULTS) as results:
                results |= {"n": len(images.y), "versions": versions(), "commit": commit()}
                results.setdefault("nets", {})[label] = found
            print(label, found, flush=True)


if __name__ == "__main__":
    main()
