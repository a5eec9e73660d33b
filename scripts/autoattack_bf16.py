"""Count the images on which AutoAttack in bf16 and in float32 differ.

    python scripts/autoattack_bf16.py

Three nets are trained on scikit-learn's digits, and each is attacked twice on 500 images that it was not trained on:
those of the test and of the validation. Results are written to results/autoattack_bf16.json after each net; those that
are there are not measured again.
"""

import argparse
from pathlib import Path

import torch
from cpu_budget_results import code_of, commit, hardware, opened, read, versions
from default_test_cost import train

from lit_robust.attacks import FGSM, PGD, Attack, AutoAttack
from lit_robust.batch import Batch
from lit_robust.data import DigitsDataModule
from lit_robust.measures.accuracy import surviving

RESULTS = Path(__file__).parent / "results/autoattack_bf16.json"
#: What a net is trained against, and the eps of its test.
NETS: dict[str, tuple[Attack, float]] = {
    "fgsm at 0.1": (FGSM(0.1), 0.1),
    "pgd at 0.1": (PGD(0.1, steps=5), 0.1),
    "pgd at 0.15": (PGD(0.15, steps=5), 0.15),
}
CODE = code_of(AutoAttack())


def main(args: list[str] | None = None) -> None:
    """Measure what is missing."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args(args)
    torch.set_num_threads(1)
    data = DigitsDataModule(batch_size=128, val_size=103)
    data.setup()
    held_out = [batch for loader in (data.test_dataloader(), data.val_dataloader()) for batch in loader]
    images = Batch(*(torch.cat(parts) for parts in zip(*held_out, strict=True)))
    for name, (attack, eps) in NETS.items():
        if read(RESULTS).get("nets", {}).get(name, {}).get("code") == CODE:
            continue
        net = train(attack, data, seed=0)
        attacks = {precision: AutoAttack(eps, precision=precision) for precision in ("float32", "bf16")}
        survive = surviving(net, attacks, images)
        float32, bf16 = (survive[precision] for precision in attacks)
        found = {
            "float32": int(float32.sum()),
            "bf16": int(bf16.sum()),
            "bf16_only": int((bf16 & ~float32).sum()),
            "float32_only": int((float32 & ~bf16).sum()),
        }
        with opened(RESULTS) as results:
            results |= {"n": len(images.y), "versions": versions(), "hardware": hardware(), "commit": commit()}
            results.setdefault("nets", {})[name] = found | {"code": CODE}
        print(name, found, flush=True)


if __name__ == "__main__":
    main()
