"""The sets of scripts/cpu_budget.yaml on coresets and on CIFAR-10, before and while they run; results are in others."""

import csv
import json
import re
import struct
import sys
from copy import deepcopy
from fractions import Fraction
from inspect import signature
from pathlib import Path

import pytest
import torch
import yaml

from lit_robust.cli import main
from lit_robust.cli.config import load, merged
from lit_robust.defenses import NFGSM

SCRIPTS = Path(__file__).parent.parent / "scripts"
RECIPES = SCRIPTS.parent / "configs/recipes/two_cores"
RECIPE = RECIPES / "mnist_fast_cnn_composed.yaml"
SELECTORS = ["craig", "gradmatch", "random_fixed", "random_redrawn"]
TEXT = load(str(SCRIPTS / "cpu_budget.yaml"))


@pytest.fixture
def budget(monkeypatch, tmp_path):
    """The script, with its files in a folder of their own."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import cpu_budget

    monkeypatch.setattr(cpu_budget, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(cpu_budget, "RUNS", tmp_path / "runs")
    yield cpu_budget
    for name in ("cpu_budget", "cpu_budget_coresets", "cpu_budget_costs", "cpu_budget_parts", "cpu_budget_results"):
        sys.modules.pop(name, None)


def attacks_of(said):
    """The attacks of a row with their numbers of images."""
    config = said["config"]
    everything = config["data"]["init_args"]["test_size"]
    return {name: said["images"].get(name, everything) for name in config["model"]["init_args"]["test_attacks"]}


# Which rows there are.


def test_every_selector_is_tried_at_every_fraction_beside_all_images(budget):
    fractions = [f"pgdat_{selector}_{fraction}" for fraction in (0.1, 0.3, 0.5) for selector in SELECTORS]
    fractions.insert(fractions.index("pgdat_craig_0.5"), "pgdat_random_balanced_0.3")
    fast = [f"fastat_{selector}_0.3" for selector in SELECTORS]
    expected = {
        "coreset": ["pgdat", *fractions, "fastat", *fast, "composed", "composed_0.3"],
        "coreset_cold": [f"pgdat_{selector}_0.3" for selector in SELECTORS],
        "coreset_cifar": ["fastat", *fast],
    }
    for name, rows in expected.items():
        found = budget.rows_of(TEXT, name)
        assert list(found) == [f"{row}@{seed}" for row in rows for seed in range(3)]
        for label, said in found.items():
            row, _, seed = label.partition("@")
            some = [one for one in said["config"]["trainer"]["callbacks"] if one["class_path"] == "CoresetSelection"]
            assert [one["init_args"]["fraction"] for one in some] == [float(part) for part in re.findall(r"0\.\d", row)]
            assert all(one["init_args"]["warm"] == (0 if name == "coreset_cold" else 0.5) for one in some)
            assert all(one["init_args"]["every"] == (None if "fixed" in row else 5) for one in some)
            attacks = {"pgd50": 500, "gama": 500} if name == "coreset_cifar" else {"pgd40": 500, "autoattack": 500}
            few = {"autoattack": 200} if (name, seed) == ("coreset_cifar", "0") else {}
            assert attacks_of(said) == attacks | few


def test_the_rows_on_cifar_are_the_methods_of_the_comparison(budget):
    rows = budget.rows_of(TEXT, "cpu_cifar")
    methods = ["fastat", "nfgsm", "gradalign", "freeat_4", "rmgm", "gat", "nuat", "nuat_wa", "pgdat", "trades"]
    assert list(rows) == [f"{row}@{seed}" for row in methods for seed in range(3)]
    for label, said in rows.items():
        data = said["config"]["data"]["init_args"]
        assert (data["train_size"], said["config"]["trainer"]["max_epochs"]) == (10_000, 10)
        assert attacks_of(said) == {"pgd50": 500, "gama": 500} | ({"autoattack": 200} if label.endswith("@0") else {})


SETTINGS = {
    "nfgsm": {},
    "nfgsm_eval": {"attack_bn_mode": "eval"},
    "nfgsm_half_rate": {"lr": 0.05},
    "nfgsm_batch_128": {"batch_size": 128, "lr": 0.2},
}


def test_each_row_of_n_fgsm_has_the_settings_of_its_name_and_is_otherwise_that_of_the_comparison(budget):
    def settings(said):
        model = said["config"]["model"]["init_args"]
        rest = {name: value for name, value in model.items() if name not in ("optimizer", "test_attacks")}
        return rest | said["config"]["data"]["init_args"] | model["optimizer"]["init_args"]

    compared, rows = (budget.rows_of(TEXT, name) for name in ("cpu_cifar", "cpu_cifar_nfgsm"))
    assert list(rows) == [f"{row}@{seed}" for row in SETTINGS for seed in range(3)]
    for label, said in rows.items():
        row, _, seed = label.partition("@")
        other = compared[f"nfgsm@{seed}"]
        assert settings(said) == settings(other) | SETTINGS[row]
        assert said["config"]["trainer"] == other["config"]["trainer"]


MARK = "nfgsm"


def test_at_most_six_candidates_and_the_mark_are_compared_on_images_that_are_not_trained_on(budget):
    candidates = budget.rows_of(TEXT, "cpu_cifar_headline")
    assert len(candidates.keys() - {MARK}) == 6
    for said in candidates.values():
        data = said["config"]["data"]["init_args"]
        assert data["train_size"] + data["next_size"] == 50_000
    for said in budget.rows_of(TEXT, "cpu_cifar_headline_30").values():
        assert said["config"]["data"]["init_args"]["train_size"] == 50_000
    width = max(said["config"]["model"]["init_args"]["net"]["init_args"]["width"] for said in candidates.values())
    from lit_robust.nets import resnet18

    assert sum(parameter.numel() for parameter in resnet18(width=width).parameters()) < 3_000_000


def to_four_digits(node):
    """A configuration with numbers, also those written as 8/255, as they are to four digits."""
    if isinstance(node, dict):
        return {name: to_four_digits(value) for name, value in node.items()}
    if isinstance(node, list):
        return [to_four_digits(value) for value in node]
    written = isinstance(node, str) and re.fullmatch(r"\d+/\d+", node)
    return float(f"{float(Fraction(node)):.4g}") if written or type(node) in (int, float) else node


HALF_AN_HOUR = "cpu_cifar_headline_30"


def test_the_winner_is_the_candidate_that_does_best_with_more_images_and_epochs(budget):
    def composition(config):
        """What is left without images, epochs and tests; times are in units of the epochs."""
        callbacks = [one for one in deepcopy(config["trainer"]["callbacks"]) if "Diary" not in one["class_path"]]
        schedules = [part for one in callbacks for part in one["init_args"].values() if isinstance(part, dict)]
        for said in [schedule["init_args"] for schedule in schedules]:
            for name in said.keys() & {"times", "begin", "end"}:
                times = said[name] if name == "times" else [said[name]]
                said[name] = to_four_digits([time / config["trainer"]["max_epochs"] for time in times])
        said = config["model"]["init_args"]
        model = {name: said[name] for name in said if name not in ("lr_scheduler", "test_attacks")}
        return config["model"]["class_path"], model, config["trainer"]["precision"], callbacks

    rows = json.loads((SCRIPTS / "results/cpu_cpu_cifar_headline.json").read_text())["rows"]
    assert len(rows.keys() - {MARK}) == 6
    best = max(rows.values(), key=lambda record: record["diary"]["val/acc/robust"][-1])
    winner = budget.rows_of(TEXT, HALF_AN_HOUR)["winner@0"]["config"]
    assert composition(winner) == composition(best["config"])


# What they cost.

#: GradAlign's two backwards through a gradient's own graph are a part of its cost, but no calls of the net.
COUNTED = [row for row in TEXT["sets"]["cpu_cifar"]["rows"] if row != "gradalign"]


@pytest.mark.parametrize("row", COUNTED)
def test_a_row_on_cifar_makes_the_passes_that_it_says(budget, tmp_path, row):
    said = budget.rows_of(TEXT, "cpu_cifar")[f"{row}@0"]
    over = {"trainer": {"max_epochs": 1}, "model": {"init_args": {"lr_scheduler": None}}}
    config = merged(said["config"], over)
    config["model"]["init_args"]["net"] = {"class_path": "lit_robust.nets.digits_cnn", "init_args": {"width": 8}}
    sizes = {"train_size": 128, "val_size": 20, "test_size": 20, "batch_size": 32, "split": "random"}
    config["data"] = {"class_path": "DigitsDataModule", "init_args": sizes}
    (epoch,) = budget.train(budget.built(config, tmp_path), tmp_path)
    assert epoch["forwards"] / 3 + 2 * epoch["backwards"] / 3 == pytest.approx(said["passes"], abs=0.02)


@pytest.mark.parametrize(
    ("name", "row", "passes"),
    [
        ("coreset", "pgdat", 30 * 11),
        # A selection attacks all images, at epochs 15, 20 and 25; a random one reads none.
        ("coreset", "pgdat_craig_0.3", 0.3 * 30 * 11 + 3 * 11),
        ("coreset", "pgdat_random_redrawn_0.3", 0.3 * 30 * 11),
        ("coreset", "pgdat_random_balanced_0.3", 0.3 * 30 * 11 + 3 * 11),  # it only reports
        ("coreset_cold", "pgdat_gradmatch_0.3", 0.3 * 30 * 11 + 6 * 11),
        ("coreset_cifar", "fastat", 15 * 2),
    ],
)
def test_a_coreset_costs_its_fraction_and_its_selections(budget, name, row, passes):
    from cpu_budget_costs import passes_of

    assert passes_of(budget.rows_of(TEXT, name)[f"{row}@0"]) == pytest.approx(passes)


def test_what_is_done_costs_nothing_more(budget):
    from cpu_budget_costs import BF16, SECONDS, STRIDED, hours

    said = budget.rows_of(TEXT, "cpu_cifar")["fastat@0"]
    whole = hours(said, None)
    assert all(whole.values())
    width = said["config"]["model"]["init_args"]["net"]["init_args"]["width"]
    assert 3600 * whole["training"] == pytest.approx(STRIDED * 10_000 * 10 * 2 * SECONDS["resnet18", width])
    faster = hours(merged(said, {"config": {"trainer": {"precision": "bf16-mixed"}}}), None)
    assert faster["training"] == pytest.approx(BF16 * whole["training"])
    trained = hours(said, {"last": {"pgd50": [30.0, 26.0, 34.0, 500]}})
    assert trained["training"] == trained["measuring"] == 0
    assert trained["other attacks"] == pytest.approx(whole["other attacks"] * 100 / 150)
    assert not any(hours(said, {"last": dict.fromkeys(("pgd50", "gama", "autoattack"))}).values())


def test_the_estimate_is_printed_first_and_costly_attacks_see_fewer_images(budget, tmp_path, monkeypatch, capsys):
    rows = merged(
        TEXT,
        {
            "base": {
                "data": {
                    "class_path": "DigitsDataModule",
                    "init_args": {"train_size": 64, "val_size": 20, "test_size": 40, "split": "random"},
                },
                "model": {"init_args": {"net": {"class_path": "lit_robust.nets.digits_cnn"}}},
            }
        },
    )
    attack = {"class_path": "PGD", "init_args": {"eps": "EPS", "steps": 2}}
    costly = {"class_path": "PGD", "init_args": {"eps": "EPS", "steps": 3}}
    rows["sets"] = {
        "tiny": {
            "eps": 0.1,
            "epochs": 1,
            "seeds": [0, 1],
            "monitors": False,
            "threads": 2,
            "limits": {"costly": {"images": 8, "seeds": [1]}},
            "all": {"model": {"init_args": {"test_attacks": {"pgd2": attack, "costly": costly}}}},
            "rows": {"natural": {"passes": 1}},
        }
    }
    (tmp_path / "rows.yaml").write_text(yaml.safe_dump(rows))
    monkeypatch.setattr(budget, "ROWS", tmp_path / "rows.yaml")
    threads = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    budget.main(["tiny"])
    assert threads == [2]
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("2 rows: about ")
    assert "best: pgd2" in "\n".join(printed)
    found = budget.read(tmp_path / "results/cpu_tiny.json")["rows"]
    counts = {row: {name: numbers[3] for name, numbers in record["last"].items()} for row, record in found.items()}
    assert counts == {"natural@0": {"pgd2": 40, "clean": 40}, "natural@1": {"pgd2": 40, "clean": 40, "costly": 8}}
    assert "train/catastrophic_overfitting" not in found["natural@0"]["diary"]
    budget.main(["tiny", "--threads", "1"])
    assert threads == [2, 1]
    assert capsys.readouterr().out.startswith("2 rows: about 0.0 hours")


# What selections take.


def test_what_selections_take_stands_apart_and_counts_in_speed_ups(budget, tmp_path, monkeypatch, capsys):
    """Coresets of half of 64 images for epochs 2 and 3 of 4, after an epoch on all images."""
    rows = deepcopy(TEXT)
    sizes = {"train_size": 64, "val_size": 20, "test_size": 40, "split": "random"}
    rows["base"]["data"] = {"class_path": "DigitsDataModule", "init_args": sizes}
    rows["base"]["model"]["init_args"]["net"] = {"class_path": "lit_robust.nets.digits_cnn"}
    attack = {"class_path": "PGD", "init_args": {"eps": "EPS", "step_size": "EPS/2", "steps": 2}}
    method = {"passes": 3, "model": {"class_path": "PGDAT", "init_args": {"attack": attack}}}
    plan = {"fraction": 0.5, "every": 1, "warm": 0.5}
    selections = {
        name: {"class_path": "CoresetSelection", "init_args": plan | {"selector": {"class_path": name}}}
        for name in ("CRAIG", "Random")
    }
    coresets = {name: method | {"trainer": {"callbacks": [one]}} for name, one in selections.items()}
    rows["sets"] = {
        "tiny": {
            "eps": 0.1,
            "epochs": 4,
            "monitors": False,
            "all": {"model": {"init_args": {"test_attacks": {"pgd2": attack}}}},
            "rows": {"pgdat": method, **coresets},
        }
    }
    (tmp_path / "rows.yaml").write_text(yaml.safe_dump(rows))
    monkeypatch.setattr(budget, "ROWS", tmp_path / "rows.yaml")
    budget.main(["tiny"])
    capsys.readouterr()
    results = budget.read(tmp_path / "results/cpu_tiny.json")
    records = results["rows"]
    diary = records["CRAIG"]["diary"]
    assert diary["selection_forwards"] == [0, 3 * 64, 3 * 64]
    assert diary["selection_backwards"] == [0, 2 * 64, 2 * 64]
    assert [seconds > 0 for seconds in diary["selection_cpu_seconds"]] == [False, True, True]
    assert not any(records["Random"]["diary"]["selection_forwards"])
    assert "selection_forwards" not in records["pgdat"]["diary"]

    from cpu_budget_coresets import image_passes, speed_up, with_selections

    passes = {"pgdat": 4 * 64 * 6, "CRAIG": (64 + 32 + 32) * 6 + 2 * 64 * 5, "Random": (64 + 32 + 32) * 6}
    # the check of the first batch looks at two images
    assert {row: image_passes(record) for row, record in records.items()} == pytest.approx(passes, rel=0.05)
    every = [*records.values()]
    taken = [sum(diary[name]) for name in ("cpu_seconds", "selection_cpu_seconds")]
    assert with_selections(records["CRAIG"]) == pytest.approx(sum(taken))
    whole = sum(records["pgdat"]["diary"]["cpu_seconds"])
    assert speed_up(records["CRAIG"], every) == pytest.approx(whole / sum(taken))
    assert speed_up(records["pgdat"], every) == 1
    assert speed_up(records["CRAIG"], [records["CRAIG"]]) is None

    budget.main(["tiny", "--table"])
    printed = capsys.readouterr().out
    assert "| selection CPU s | speed-up | wall-clock speed-up | image passes (M) |" in printed
    for name in [name for name in diary if name.startswith("selection_")]:
        del diary[name]
    older = budget.table(results)
    (line,) = (line for line in older.splitlines() if line.startswith("| CRAIG"))
    assert len(line.split("|")) == len(older.splitlines()[0].split("|"))


# Data of their own.


@pytest.mark.parametrize(("trained", "validated"), [(40, range(40, 50)), (60, range(50, 60)), (55, range(50, 60))])
def test_the_last_images_are_validated_on_where_too_few_are_left(budget, mnist, monkeypatch, trained, validated):
    from cpu_budget_parts import FirstImages

    monkeypatch.setattr(FirstImages, "train_images", 60)
    data = FirstImages(train_size=trained, next_size=10, root=str(mnist))
    assert torch.cat([batch.index for batch in data.val_dataloader()]).tolist() == list(validated)


# A delayed start, NuAT, GradMatch and averaged weights in one file.


@pytest.fixture
def mnist(tmp_path):
    """MNIST's files with 60 + 20 images of noise, brighter where the label says."""
    raw = tmp_path / "MNIST/raw"
    raw.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    for part, n in (("train", 60), ("t10k", 20)):
        labels = torch.arange(n) % 10
        images = torch.randint(0, 128, (n, 28, 28), generator=generator, dtype=torch.uint8)
        images[torch.arange(n), 2 * labels] += 100
        header = struct.pack(">iiii", 2051, n, 28, 28)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(header + images.numpy().tobytes())
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">ii", 2049, n) + bytes(labels.tolist()))
    return tmp_path


def test_the_composed_recipe_is_the_row(budget):
    recipe, row = merged(load(str(RECIPE))), budget.rows_of(TEXT, "coreset")["composed_0.3@0"]["config"]
    selection, *others = recipe["trainer"]["callbacks"][-4:]
    of_row, *others_of_row = row["trainer"]["callbacks"][:4]
    assert others == others_of_row
    chosen = {"selector": {"class_path": selection["init_args"]["selector"]}}
    assert selection["init_args"] | chosen == of_row["init_args"]
    assert recipe["trainer"]["max_epochs"] == row["trainer"]["max_epochs"]
    assert recipe["data"]["init_args"]["train_size"] == row["data"]["init_args"]["train_size"]
    assert recipe["data"]["init_args"]["batch_size"] == row["data"]["init_args"]["batch_size"]
    assert recipe["model"]["class_path"] == row["model"]["class_path"] == "NuAT"
    said = recipe["model"]["init_args"]
    assert {name: said[name] for name in row["model"]["init_args"]} == row["model"]["init_args"]


def test_the_recipe_of_half_an_hour_is_the_winner(budget):
    recipe = to_four_digits(merged(load(str(RECIPES / "cifar10_resnet18_24_nfgsm.yaml"))))
    row = to_four_digits(budget.rows_of(TEXT, HALF_AN_HOUR)["winner@0"]["config"])
    assert recipe["trainer"]["callbacks"][-3:] == row["trainer"]["callbacks"][:3]
    assert "Diary" in row["trainer"]["callbacks"][3]["class_path"], "the winner's own are the first three"
    for name in ("max_epochs", "precision"):
        assert recipe["trainer"][name] == row["trainer"][name]
    assert recipe["data"]["init_args"]["batch_size"] == row["data"]["init_args"]["batch_size"]
    assert recipe["model"]["class_path"] == row["model"]["class_path"] == "NFGSM"
    said, of_row = recipe["model"]["init_args"], row["model"]["init_args"]
    assert said["k"] == signature(NFGSM).parameters["k"].default, "the row does not say it"
    for name in ("net", "optimizer", "channels_last", "attack_bn_mode"):
        assert said[name] == of_row[name]
    for name in ("lr_scheduler", "attack", "val_attack"):
        assert said[name]["class_path"] == of_row[name]["class_path"]
        assert said[name]["init_args"] == said[name]["init_args"] | of_row[name]["init_args"]


def test_the_composed_recipe_delays_selects_ramps_and_averages(mnist, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIT_ROBUST_DATA", str(mnist))
    sizes = {"train_size": 40, "val_size": 10, "batch_size": 8}
    brief = {
        "trainer": {"max_epochs": 16, "accelerator": "cpu", "enable_progress_bar": False, "log_every_n_steps": 1},
        "data": {"init_args": sizes},
        "model": {"init_args": {"val_attack": {"init_args": {"steps": 1, "step_size": 0.1}}}},
    }
    Path("brief.yaml").write_text(yaml.safe_dump(brief))
    main(["fit", "-c", str(RECIPE), "-c", "brief.yaml"])
    (run,) = Path("runs/two_cores_mnist_fast_cnn_composed").glob("version_*")
    rows = list(csv.DictReader((run / "metrics.csv").read_text().splitlines()))

    def logged(name):
        return {int(row["epoch"]): float(row[name]) for row in rows if row.get(name)}

    # Epochs 0 and 1 are the warm start's; 2 to 7 are skipped.
    assert logged("train/adversarial") == {0: 0, 1: 0} | dict.fromkeys(range(8, 16), 1)
    assert logged("train/coreset/size") == dict.fromkeys(range(8, 16), 12)
    assert logged("train/lam")[15] == pytest.approx(5.7 * 15 / 30)
    for name in ("best", "last"):
        checkpoint = torch.load(run / f"checkpoints/{name}.ckpt", weights_only=True)
        averaged, live = checkpoint["state_dict"], checkpoint["current_model_state"]
        assert any(not torch.equal(averaged[key], live[key]) for key in live)
