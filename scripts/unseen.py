"""Train PAT and, for the same CPU seconds, PGD adversarial training, and attack both with attacks unseen in training.

    python scripts/unseen.py             # all that is not done, then the table
    python scripts/unseen.py --table     # print scripts/results/cpu_unseen.json

The rows are those of ``unseen.yaml``; files, resuming and results are those of ``cpu_budget.py``. An estimate of the
total time is printed first.
"""

import argparse
import math
import sys
import time
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import cpu_budget
import torch
from cpu_budget import Work, begin_training, built, checkpoint, end_training, in_one, read_net
from cpu_budget_costs import hours
from cpu_budget_results import opened, quiet, read

from lit_robust.batch import Batch
from lit_robust.cli.config import load, merged
from lit_robust.seeds import derive_seed

ROWS = Path(__file__).with_suffix(".yaml")
SET = "unseen"
#: Attacks within a perceptual distance, and the rows whose nets measure it.
PERCEPTUAL, NETS = {"lpa40"}, ("pat", "pgdat")
#: Images on which the time of a training step and of the attacks is measured.
SAMPLE = 20
#: Where a record keeps what is measured of the training's adversarial examples.
ADVERSARY = "adversary"


def seconds_of(record: Mapping[str, Any]) -> float:
    """The CPU seconds of a row's training."""
    return float(sum(record["diary"]["cpu_seconds"]))


def fair(text: Mapping[str, Any], results: Mapping[str, Any]) -> dict[str, Any]:
    """The rows, where ``pgdat`` has as many whole epochs as fit into the seconds of ``pat``, at least one."""
    filled = deepcopy(dict(text))
    pat, pilot = (results["rows"][name] for name in ("pat", "pgdat_pilot"))
    filled["sets"][SET]["rows"]["pgdat"]["epochs"] = max(1, math.floor(seconds_of(pat) / seconds_of(pilot)))
    return filled


def estimate(work: Work) -> float:
    """Seconds for all rows: two trainings of PAT's length, and the attacks on two nets."""
    said = work.rows["pat"]
    cli = built(said["config"], work.folder("pat"))
    model, data = cli.model, cli.datamodule
    data.setup("fit")
    x, y = data.draw(SAMPLE, "train")
    begin = time.perf_counter()
    model.perturb(Batch(x, y, torch.arange(SAMPLE), torch.ones(SAMPLE)))
    training = (time.perf_counter() - begin) / SAMPLE * data.train_size * said["epochs"]
    begin = time.perf_counter()
    first, cheap, _ = work.attacks("pat")
    for name in first + cheap:
        model.test_attacks[name.partition("_of_")[0]](model.net.eval(), x, y)
    attacking = (time.perf_counter() - begin) / SAMPLE * data.test_size
    return 2 * (training + attacking + 3600 * hours(said, None)["AutoAttack"])


class Unseen(Work):
    """The rows, attacked also within perceptual distances that are the same for both: those of the trained nets.

    ``lpa40`` takes its distance from the net that it attacks, ``lpa40_of_pat`` from that of the row ``pat``.
    """

    def attacks(self, row: str) -> list[list[str]]:
        """The names of a row's attacks in groups, see ``Work``."""
        first, cheap, costly = super().attacks(row)
        return [first, [*cheap, *(f"{name}_of_{net}" for name in cheap if name in PERCEPTUAL for net in NETS)], costly]

    def completed(self, row: str, attacks: Mapping[str, Any]) -> dict[str, Any]:
        """A row's attacks, with those that need other rows' nets."""
        nets = {net: read_net(checkpoint(self.folder(net), "last")) for net in NETS}
        within = {
            f"{name}_of_{net}": replace(attacks[name], lpips_net=nets[net])
            for name in PERCEPTUAL & attacks.keys()
            for net in NETS
        }
        return super().completed(row, attacks) | within

    def measure(self, row: str) -> None:
        """Store how large the adversarial examples of a row's training are on test images, and what withstands them."""
        if ADVERSARY in read(self.path)["rows"][row]:
            return
        cli = built(self.rows[row]["config"], self.folder(row))
        x, y, *_ = in_one(cli.datamodule.test_dataloader())
        net = read_net(checkpoint(self.folder(row), "last"))
        torch.manual_seed(derive_seed("unseen", ADVERSARY))
        x_adv = torch.cat([cli.model.attack(net, *part) for part in zip(x.split(100), y.split(100), strict=True)])
        change = (x_adv - x).flatten(1)
        found = {
            "l2": change.norm(dim=1).mean(),
            "linf": change.abs().amax(dim=1).mean(),
            "accuracy": 100 * (net(x_adv).argmax(dim=1) == y).float().mean(),
        }
        with opened(self.path) as results:
            results["rows"][row][ADVERSARY] = {name: round(float(value), 4) for name, value in found.items()}


def table(records: Mapping[str, Any]) -> str:
    """Markdown: epochs, CPU seconds, and accuracies in percent with their 95 % intervals; one seed."""
    shown = {name: record for name, record in records.items() if record["last"]}
    names = list(dict.fromkeys(name for record in shown.values() for name in record["last"]))
    lines = [["one seed", "epochs", "CPU seconds", *names], ["---"] * (3 + len(names))]
    for row, record in shown.items():
        found = [record["last"].get(name) for name in names]
        cells = ["" if one is None else f"{one[0]:.1f} [{one[1]:.1f}, {one[2]:.1f}]" for one in found]
        lines.append([row, str(record["epochs"]), f"{seconds_of(record):.0f}", *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def train(text: Mapping[str, Any]) -> None:
    """Train all that is not done."""
    work = Unseen(SET, text)
    if "pgdat" not in read(work.path).get("rows", {}):
        print(f"about {estimate(work) / 60:.0f} minutes", flush=True)
    for row in ("pat", "pgdat_pilot"):
        work.train(row)
    Unseen(SET, fair(text, read(work.path))).train("pgdat")


def attack(text: Mapping[str, Any]) -> None:
    """Attack all that is trained, and measure the examples of training."""
    work = Unseen(SET, fair(text, read(cpu_budget.RESULTS / f"cpu_{SET}.json")))
    for turn in (0, 1, 2):
        for row in ("pat", "pgdat"):
            work.test(row, work.attacks(row)[turn])
    for row in ("pat", "pgdat"):
        work.measure(row)


def main(args: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1, help="of torch; CPU seconds compare best with 1")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="FILE", help="files laid over unseen.yaml, for a trial run"
    )
    parser.add_argument("--attack", action="store_true", help="only attack, all rows being trained")
    parser.add_argument("--table", action="store_true", help="only print the results so far")
    asked = parser.parse_args(args)
    text = load(str(ROWS))
    for file in asked.set:
        text = merged(text, load(file))
    if not asked.table:
        torch.set_num_threads(asked.threads)
        with quiet():
            if not asked.attack:
                begin_training()
                train(text)
                end_training()
            attack(text)
    print(table(read(cpu_budget.RESULTS / f"cpu_{SET}.json").get("rows", {})))


if __name__ == "__main__":
    main(sys.argv[1:])
