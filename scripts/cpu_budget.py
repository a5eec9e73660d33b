"""Train the rows of ``cpu_budget.yaml``, in minutes per row, attack them, and print a table.

    python scripts/cpu_budget.py single_step                     # all rows of a set that are not done
    python scripts/cpu_budget.py single_step --rows gat@0 nuat@0 # some of them
    python scripts/cpu_budget.py single_step --time-again        # train once more, only for the seconds
    python scripts/cpu_budget.py single_step --table             # print scripts/results/cpu_single_step.json

It first prints how many hours of one core the rest takes. A row that is done with this configuration, data and version
is skipped, and so is each attack that is done; only what is left needs the row's checkpoint. A row that was interrupted
resumes from the checkpoint of its last complete epoch, in runs/cpu_budget. Results are written atomically after each
row and each attack, so several processes can work on different rows of a set at once. All rows are trained, then all
are attacked by their first attack; the others follow, AutoAttack last.

Seconds of a training beside other work say little. ``--time-again`` trains rows that are done once more, with nothing
beside them, and replaces their seconds; all other numbers of the training must come out as before.

Nothing is selected on test images: ``last`` is the last checkpoint, ``best`` the best epoch on validation images.
"""

import argparse
import json
import os
import re
import shutil
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
import yaml
from cpu_budget_costs import hours
from cpu_budget_parts import Diary, Transfer
from cpu_budget_results import code_of, commit, hardware, key_of, md5_of, opened, quiet, read, rounded, table, versions

from lit_robust import load_net
from lit_robust.batch import Batch
from lit_robust.cli.config import load, merged
from lit_robust.cli.parser import Parser
from lit_robust.cli.robust_cli import RobustCLI
from lit_robust.data import ImageDataModule
from lit_robust.defenses import Defense
from lit_robust.host_memory import keep_freed_memory
from lit_robust.measures.accuracy import Accuracy, surviving
from lit_robust.measures.alarms import Alarms
from lit_robust.measures.image_blocks import Blocks
from lit_robust.nets.folded import FoldedNet
from lit_robust.seeds import derive_seed

HERE = Path(__file__).parent
ROWS, RESULTS, RUNS = HERE / "cpu_budget.yaml", HERE / "results", Path("runs/cpu_budget")

#: The attacks of the library's default test, after which a row is probed for alarms.
DEFAULT_TEST = {"pgd20", "pgd20_margin", "gama40"}
#: A row's first attack, crafted on the nets of the set's ``transfer`` rows; an image counts as broken if any of them
#: breaks it.
TRANSFER = "transfer"

#: What a set with ``monitors: false`` leaves out.
MONITOR = "CatastrophicOverfittingMonitor"

# From rows to configurations.


def filled(tree: Any, eps: float, epochs: int) -> Any:
    """Replace EPS and EPOCHS by their numbers."""
    if isinstance(tree, dict):
        return {key: filled(value, eps, epochs) for key, value in tree.items()}
    if isinstance(tree, list):
        return [filled(value, eps, epochs) for value in tree]
    found = re.fullmatch(r"(?:([\d.]+)\*)?(EPS|EPOCHS)(?:/([\d.]+))?", tree) if isinstance(tree, str) else None
    if found is None:
        return tree
    times, name, over = found.groups()
    number = (eps if name == "EPS" else epochs) * float(times or 1) / float(over or 1)
    return int(number) if name == "EPOCHS" and number == int(number) else round(number, 6)


def rows_of(text: Mapping[str, Any], name: str) -> dict[str, dict[str, Any]]:
    """The rows of a set by name: ``config`` (as the command line takes it), ``eps``, ``epochs`` and ``passes``.

    A set with ``seeds`` has each row once per seed, as ``name@seed``, or once per seed of the row's own ``seeds``; one
    with ``attacks`` is tested by these only; one with ``monitors: false`` has no monitors. ``limits`` has costly
    attacks by name, with the number of first ``images`` that they see, which is also the row's ``images``, and their
    ``seeds``.
    """
    chosen, rows = text["sets"][name], {}
    for row, said in chosen["rows"].items():
        numbers = {key: said.get(key, chosen.get(key)) for key in ("eps", "epochs", "passes")}
        over = {key: value for key, value in said.items() if key not in (*numbers, "seeds")}
        config = filled(merged(text["base"], chosen.get("all", {}), over), numbers["eps"], numbers["epochs"])
        attacks, limits = config["model"]["init_args"]["test_attacks"], chosen.get("limits", {})
        if not chosen.get("monitors", True):
            callbacks = config["trainer"]["callbacks"]
            config["trainer"]["callbacks"] = [one for one in callbacks if one["class_path"] != MONITOR]
        numbers["images"] = {name: limit["images"] for name, limit in limits.items() if "images" in limit}
        for seed in said.get("seeds", chosen.get("seeds", [config["seed_everything"]])):
            label = f"{row}@{seed}" if "seeds" in chosen else row
            names = [key for key in chosen.get("attacks", attacks) if seed in limits.get(key, {}).get("seeds", [seed])]
            model = {"init_args": config["model"]["init_args"] | {"test_attacks": {key: attacks[key] for key in names}}}
            rows[label] = numbers | {"config": config | {"model": config["model"] | model, "seed_everything": seed}}
    return rows


# From configurations to nets.


def built(config: Mapping[str, Any], folder: Path) -> RobustCLI:
    """Trainer, model and data of a configuration, as ``lit-robust`` builds them, with checkpoints in this folder."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return RobustCLI(
        Defense,
        ImageDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        save_config_callback=None,
        parser_class=Parser,
        auto_configure_optimizers=False,
        run=False,
        args=["-c", str(path), f"--trainer.default_root_dir={folder}"],
    )


def train(cli: RobustCLI, folder: Path) -> list[dict[str, float]]:
    """Train, resuming from the last checkpoint if there is one, and return the diary."""
    last = checkpoint(folder, "last")
    (diary,) = (callback for callback in cli.trainer.callbacks if isinstance(callback, Diary))
    cli.trainer.fit(cli.model, datamodule=cli.datamodule, ckpt_path=str(last) if last.exists() else None)
    return diary.epochs


def checkpoint(folder: Path, name: str) -> Path:
    """The path at which Lightning writes this checkpoint."""
    return folder / "checkpoints" / f"{name}.ckpt"


def read_net(path: Path) -> torch.nn.Module:
    """The net of a checkpoint, in the memory format that is faster on a CPU."""
    return load_net(path).to(memory_format=torch.channels_last)


def in_one(batches: Iterable[Batch]) -> Batch:
    """All images as one batch, in the net's memory format."""
    batch = Batch(*(torch.cat(parts) for parts in zip(*batches, strict=True)))
    return batch._replace(x=batch.x.contiguous(memory_format=torch.channels_last))


def in_parts(images: Batch) -> Iterator[Batch]:
    """Batches of 250 images."""
    return (Batch(*columns) for columns in zip(*(column.split(250) for column in images), strict=True))


def accuracy(
    net: torch.nn.Module, name: str, attack: Any, images: Batch, blocks: Path | None = None
) -> dict[str, list[float]]:
    """Accuracy in percent without and with an attack, with the bounds of the 95 % Wilson interval and n.

    As in a test, the attack sees the net with folded BatchNorms, and a long one keeps its ``blocks`` in this folder.
    """
    torch.manual_seed(derive_seed("cpu_budget", name))
    folded, kept = FoldedNet(), Blocks(blocks)
    found = [
        surviving(net, {name: attack}, part, blocks=kept, attacked=folded(net, part.x)) for part in in_parts(images)
    ]
    result = {}
    for which in found[0]:
        survivors = torch.cat([part[which] for part in found])
        share = Accuracy(survivors.float().mean().item(), len(survivors))
        result[which] = [round(100 * number, 2) for number in (share.value, *share.interval)] + [share.n]
    return result


def take_attacks(record: dict[str, Any], config: dict[str, Any]) -> None:
    """Give a trained row the test attacks of a configuration, without the results of those that have changed."""
    before, now = (one["model"]["init_args"]["test_attacks"] for one in (record["config"], config))
    record["config"] = config
    changed = {name for name, attack in before.items() if attack != now.get(name)}
    for name in changed:
        for which in ("last", "best"):
            record[which].pop(name, None)
    if changed & DEFAULT_TEST:
        for found in ("alarms", "alarms_commit", "worst"):
            record.pop(found, None)


def begin_training() -> None:
    """Take denormal numbers for 0, in the threads to come, too.

    Weight decay drives dead weights to them, with which a pass takes up to eight times as long.
    """
    torch.set_flush_denormal(True)


def end_training() -> None:
    """Take denormal numbers as they are: an attack needs the gradients of a saturated loss.

    Threads keep what held when they began, so where there are several, the script begins anew to attack.
    """
    if torch.get_num_threads() > 1:
        os.execv(sys.executable, [sys.executable, *sys.argv, "--attack"])
    torch.set_flush_denormal(False)


# The work.


class Work:
    """The rows of one set, and how each is trained and attacked.

    Args:
        name: The name of the set.
        text: The content of ``cpu_budget.yaml``.
    """

    def __init__(self, name: str, text: Mapping[str, Any]) -> None:
        self.name = name
        self.rows = rows_of(text, name)
        self.transfer = text["sets"][name].get("transfer", [])
        self.asks_for_gap = text["sets"][name].get("gap", False)
        self.path = RESULTS / f"cpu_{name}.json"

    def estimate(self, rows: Collection[str]) -> str:
        """How long these rows take, without what is done, in hours of one core."""
        done = read(self.path).get("rows", {})
        parts = [hours(self.rows[row], done.get(row)) for row in rows]
        found = {name: sum(part[name] for part in parts) for name in parts[0]}
        shares = ", ".join(f"{name} {share:.1f}" for name, share in found.items())
        return f"{len(rows)} row{'s' * (len(rows) != 1)}: about {sum(found.values()):.1f} hours of one core ({shares})"

    def folder(self, row: str) -> Path:
        """The folder of a row's run."""
        return RUNS / self.name / row

    def train(self, row: str) -> None:
        """Train a row, unless it is done, and store its diary."""
        said = self.rows[row]
        cli = built(said["config"], self.folder(row))
        record = {"config": said["config"], "md5": md5_of(cli.datamodule), "versions": versions()}
        record = json.loads(json.dumps(record))
        before = read(self.path).get("rows", {}).get(row)
        trained = before is not None and key_of(before) == key_of(record)
        if trained and (self.is_done(row, before) or checkpoint(self.folder(row), "last").exists()):
            with opened(self.path) as results:
                take_attacks(results["rows"][row], record["config"])
            return
        code = code_of(cli.model, cli.datamodule, *cli.trainer.callbacks)
        # Do not resume from a checkpoint of another configuration or other code.
        marker = self.folder(row) / "key.json"
        key = json.dumps([key_of(record), code])
        if marker.exists() and marker.read_text() != key:
            for path in self.folder(row).glob("checkpoints/*.ckpt"):
                path.unlink()
        marker.write_text(key)
        print(f"{row}: training", flush=True)
        epochs = train(cli, self.folder(row))
        record |= {"eps": said["eps"], "epochs": said["epochs"], "passes": said["passes"]}
        record |= {"commit": commit(), "code": code, "hardware": hardware()}
        record |= {"diary": rounded(epochs), "last": {}, "best": {}}
        with opened(self.path) as results:
            results.setdefault("rows", {})[row] = record
            results["rows"] = {name: results["rows"][name] for name in self.rows if name in results["rows"]}

    def time_again(self, row: str) -> None:
        """Train a row that is done once more, and replace its seconds, if all other numbers come out the same."""
        before, folder = read(self.path)["rows"][row]["diary"], self.folder(row) / "again"
        shutil.rmtree(folder, ignore_errors=True)
        now = rounded(train(built(self.rows[row]["config"], folder), folder))
        changed = [name for name in before if "seconds" not in name and now.get(name) != before[name]]
        if changed:
            raise SystemExit(f"{row}: {', '.join(changed)} differ from those of the training before: train it anew.")
        with opened(self.path) as results:
            results["rows"][row] |= {"diary": now, "hardware": hardware(), "seconds_commit": commit()}
        print(f"{row}: {sum(now['seconds']):.1f} s of training, {sum(now['cpu_seconds']):.1f} s of CPU", flush=True)

    def is_done(self, row: str, record: Mapping[str, Any]) -> bool:
        """Whether nothing is left to do on a row's checkpoints, so that they may be lost."""
        record = deepcopy(dict(record))
        take_attacks(record, self.rows[row]["config"])
        names = [name for group in self.attacks(row) for name in group]
        probed = "alarms" in record or not record["last"].keys() >= DEFAULT_TEST
        return probed and not self.missing(row, names, record) and not self.lacks_gap(record)

    def lacks_gap(self, record: Mapping[str, Any]) -> bool:
        """Whether training images are to be attacked and are not yet."""
        return self.asks_for_gap and "train" not in record

    def missing(self, row: str, names: Collection[str], record: Mapping[str, Any]) -> list[tuple[str, str]]:
        """Which of these attacks are not done, with the checkpoint that they are for."""
        first = self.attacks(row)[0]
        return [
            (which, name)
            for which in ("last", "best")
            for name in names
            if name not in record[which] and (which == "last" or [name] == first)
        ]

    def test(self, row: str, names: Collection[str]) -> None:
        """Run those of these attacks that are not done on a row's checkpoints."""
        said = self.rows[row]
        missing = self.missing(row, names, read(self.path)["rows"][row])
        if not missing:
            return
        cli = built(said["config"], self.folder(row))
        images, attacks = in_one(cli.datamodule.test_dataloader()), self.completed(row, cli.model.test_attacks)
        for which, name in missing:
            limit = said["images"].get(name)
            seen = Batch(*(part[:limit] for part in images))
            net = read_net(checkpoint(self.folder(row), which))
            found = accuracy(net, name, attacks[name], seen, self.folder(row) / "blocks")
            with opened(self.path) as results:
                results["rows"][row][which] |= {name: found[name]} | ({} if limit else {"clean": found["clean"]})
            print(f"{row}: {which}, {name} {found[name][0]}", flush=True)

    def completed(self, row: str, attacks: Mapping[str, Any]) -> dict[str, Any]:
        """A row's attacks, with those that need other rows' nets."""
        first = attacks[self.attacks(row)[0][0]]
        return {**attacks, TRANSFER: Transfer(first, [read_net(path) for path in self.sources(row)])}

    def probe(self, row: str) -> None:
        """Look for alarms on a row's last checkpoint, after the default test's attacks."""
        done = read(self.path)["rows"][row]
        if "alarms" in done or not done["last"].keys() >= DEFAULT_TEST:
            return
        cli = built(self.rows[row]["config"], self.folder(row))
        images, net = in_one(cli.datamodule.test_dataloader()), read_net(checkpoint(self.folder(row), "last"))
        attacks = {name: attack for name, attack in cli.model.test_attacks.items() if name in DEFAULT_TEST}
        torch.manual_seed(derive_seed("cpu_budget", "alarms"))
        alarms, folded, withstood = Alarms(attacks, num_classes=10), FoldedNet(), 0
        for part in in_parts(images):
            correct = surviving(net, attacks, part, attacked=folded(net, part.x))
            alarms.update(net, part, correct)  # probed as it is, as in a test
            withstood += int(correct["worst"].sum())
        found, worst = sorted(alarms.compute()), round(100 * withstood / len(images.y), 2)
        with opened(self.path) as results:
            results["rows"][row] |= {"alarms": found, "alarms_commit": commit(), "worst": worst}
        print(f"{row}: worst {worst}, alarms {found}", flush=True)

    def gap(self, row: str) -> None:
        """Attack as many training images as test images, if the set asks for the generalisation gap."""
        if not self.lacks_gap(read(self.path)["rows"][row]):
            return
        cli = built(self.rows[row]["config"], self.folder(row))
        n = len(in_one(cli.datamodule.test_dataloader()).y)
        images = Batch(*(column[:n] for column in in_one(cli.datamodule.plain_train_dataloader())))
        net = read_net(checkpoint(self.folder(row), "last"))
        (first,) = self.attacks(row)[0]
        found = accuracy(net, first, cli.model.test_attacks[first], images)
        with opened(self.path) as results:
            results["rows"][row]["train"] = found
        print(f"{row}: training images {found}", flush=True)

    def attacks(self, row: str) -> list[list[str]]:
        """The names of a row's attacks: the first, the cheap ones, and those that take minutes per row."""
        said = self.rows[row]["config"]["model"]["init_args"]["test_attacks"]
        costly = [name for name, attack in said.items() if attack["class_path"].endswith("AutoAttack")]
        first, *cheap = [name for name in said if name not in costly]
        return [[first], cheap + [TRANSFER] * bool(self.sources(row)), costly]

    def sources(self, row: str) -> list[Path]:
        """The checkpoints of the same seed that craft a row's transferred attack; none until all are trained."""
        name, at, seed = row.partition("@")
        paths = [checkpoint(self.folder(other + at + seed), "last") for other in self.transfer if other != name]
        return paths if all(path.exists() for path in paths) else []


def main(args: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    text = load(str(ROWS))
    parser.add_argument("set", choices=list(text["sets"]))
    parser.add_argument("--rows", nargs="+", help="only these; default: all")
    parser.add_argument("--threads", type=int, help="of torch, instead of the set's, which is 1 unless it says another")
    parser.add_argument("--attack", action="store_true", help="only attack rows, all of which are trained")
    parser.add_argument("--time-again", action="store_true", help="only measure the seconds of rows that are done anew")
    parser.add_argument("--table", action="store_true", help="only print the results so far")
    asked = parser.parse_args(args)
    work = Work(asked.set, text)
    unknown = set(asked.rows or ()) - set(work.rows)
    if unknown:
        parser.error(f"{', '.join(sorted(unknown))}: not among {', '.join(work.rows)}")
    untrained = [row for row in asked.rows or work.rows if row not in read(work.path).get("rows", {})]
    if asked.attack and untrained:
        parser.error(f"--attack: {', '.join(untrained)} must be trained first: leave it out.")
    if not asked.table:
        torch.set_num_threads(asked.threads or text["sets"][asked.set].get("threads", 1))
        if text["sets"][asked.set].get("keep_memory", False):
            keep_freed_memory()
        chosen = asked.rows or sorted(work.rows, key=lambda row: work.rows[row]["config"]["seed_everything"])
        with quiet():
            if not asked.attack:
                begin_training()
                if asked.time_again:
                    for row in chosen:
                        work.time_again(row)
                    return
                print(work.estimate(chosen), flush=True)
                for row in chosen:
                    work.train(row)
                end_training()
            for turn in range(3):
                for row in chosen:
                    work.test(row, work.attacks(row)[turn])
            for row in chosen:
                work.gap(row)
                work.probe(row)
    print(table(read(work.path)))


if __name__ == "__main__":
    main(sys.argv[1:])
