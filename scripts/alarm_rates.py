"""Count false alarms: train small nets that mask nothing on purpose, and see which of them raise an alarm.

    python scripts/alarm_rates.py

The nets are trained on scikit-learn's digits in ten ways with five seeds. Each is attacked by the default test and by
AutoAttack on the same images, and probed for alarms. A net is honest if the default test is within 5 points of
AutoAttack and it predicts more than one class. Results are written to results/alarm_rates.json after each net; those
that are there are not measured again.
"""

from pathlib import Path

import torch
from cpu_budget_results import commit, opened, read, versions
from default_test_cost import train

from lit_robust.attacks import FGSM, PGD, RFGSM, Attack, AutoAttack
from lit_robust.batch import Batch
from lit_robust.data import DigitsDataModule
from lit_robust.measures.accuracy import surviving
from lit_robust.measures.alarms import Alarms
from lit_robust.measures.default_attacks import default_test

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


def main() -> None:
    """Measure what is missing."""
    torch.set_num_threads(1)
    data = DigitsDataModule(batch_size=128)
    data.setup("fit")
    data.setup("test")
    images = Batch(*(torch.cat(parts) for parts in zip(*data.test_dataloader(), strict=True)))
    for seed in range(5):
        for name, (attack, eps) in NETS.items():
            label = f"{name}@{seed}"
            if label in read(RESULTS).get("nets", {}):
                continue
            net = train(attack, data, seed)
            survivors = surviving(net, default_test(eps), images)
            probed = Alarms(default_test(eps), num_classes=10)
            probed.update(net, images, survivors["worst"])
            robust = surviving(net, {"autoattack": AutoAttack(eps)}, images)["autoattack"]
            found = {
                "default": round(100 * survivors["worst"].float().mean().item(), 2),
                "autoattack": round(100 * robust.float().mean().item(), 2),
                "alarms": sorted(probed.compute()),
            }
            with opened(RESULTS) as results:
                results |= {"n": len(images.y), "versions": versions(), "commit": commit()}
                results.setdefault("nets", {})[label] = found
            print(label, found, flush=True)


if __name__ == "__main__":
    main()
