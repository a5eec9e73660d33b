"""scripts/results: made by the committed configurations, and with the effects that the README reports."""

import json
from pathlib import Path
from statistics import mean

import pytest

SCRIPTS = Path(__file__).parent.parent / "scripts"
RESULTS = {
    path.stem.removeprefix("cpu_"): json.loads(path.read_text())["rows"] for path in SCRIPTS.glob("results/*.json")
}
ROWS = [(name, row) for name, rows in RESULTS.items() for row in rows]
#: The first test images that each attack has seen.
SEEN = {"autoattack": 500}


@pytest.mark.parametrize(("name", "row"), ROWS)
def test_a_result_says_where_it_comes_from_and_is_of_the_row_that_stands_there(name, row, monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    from cpu_budget import load, rows_of

    record = RESULTS[name][row]
    assert {"md5", "hardware", "versions", "commit", "code"} <= record.keys()
    assert not record["commit"].endswith("+"), "made by code that no commit holds"
    said = rows_of(load(str(SCRIPTS / "cpu_budget.yaml")), name)[row]
    assert record["config"] == said["config"]
    assert record["config"]["seed_everything"] == int(row.partition("@")[2] or 0)
    assert all(n == SEEN.get(attack, 1000) for attack, (*_, n) in record["last"].items())


@pytest.mark.parametrize("row", RESULTS["single_step"])
def test_every_single_step_method_has_been_attacked_in_every_way(row):
    """Masked gradients would show in one of these."""
    last = {attack: accuracy for attack, (accuracy, *_) in RESULTS["single_step"][row]["last"].items()}
    assert last["autoattack"] <= last["pgd40"] + 3  # of other images
    assert last["pgd100"] <= last["pgd40"] + 1
    assert last["pgd20_at_1.5_eps"] < last["pgd40"] + 1
    assert last["pgd20_at_2.5_eps"] == 0


def table_below(heading):
    """The cells of the first table below a heading of the README, without its own two lines."""
    section = (SCRIPTS.parent / "README.md").read_text().partition(f"\n{heading}\n")[2].partition("\n#")[0]
    return [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| `")]


def test_the_readmes_table_is_the_results():
    table = table_below("## On two CPU cores")
    assert [cells[0].strip("`") for cells in table] == list(RESULTS["single_step"])
    for row, *cells in table:
        record = RESULTS["single_step"][row.strip("`")]
        last, diary = record["last"], record["diary"]
        accuracies = [f"{last[attack][0]:.1f}" for attack in ("clean", "pgd40", "autoattack")]
        passes = mean(diary["forwards"]) / 3 + 2 * mean(diary["backwards"]) / 3
        assert cells == [*accuracies, f"{passes:.2f}", f"{sum(diary['cpu_seconds']):.0f}"]


@pytest.mark.parametrize(
    "row", ["fastat_random", "fastat_previous", "nfgsm", "freeat_2", "freeat_4", "gradalign", "gat", "nuat"]
)
def test_the_methods_of_the_papers_reach_60_percent_in_three_minutes(row):
    record = RESULTS["single_step"][row]
    assert record["last"]["pgd40"][0] >= 60
    assert sum(record["diary"]["cpu_seconds"]) <= 180


@pytest.mark.parametrize("row", RESULTS["single_step"])
def test_the_monitors_are_silent_where_nothing_overfits(row):
    assert not any(RESULTS["single_step"][row]["diary"]["train/catastrophic_overfitting"])


@pytest.mark.parametrize("row", RESULTS["overfitting"])
def test_a_monitor_reports_the_epoch_in_which_fgsm_and_pgd_diverge(row):
    """It measures PGD-5 on training images; this test uses PGD-10 on validation images."""
    diary = RESULTS["overfitting"][row]["diary"]
    gaps = [fgsm - pgd for fgsm, pgd in zip(diary["val/acc/fgsm"], diary["val/acc/robust"], strict=True)]
    reported = diary["train/catastrophic_overfitting"].index(1)
    assert gaps[reported] == max(gaps[: reported + 1])
    assert gaps[reported] > 0.3
    assert RESULTS["overfitting"][row]["last"]["autoattack"][0] < 30


# Which methods learn the trivial classifier.

TRIVIAL = ("trivial_0.2", "trivial_0.3", "trivial_0.4")
#: The share of the class that is commonest among the first test images, n = 1,000 and 500: what such a net gets right.
COMMONEST = {"clean": 12.6, "pgd40": 12.6, "autoattack": 13.4}
#: Clean accuracy and AutoAttack of SAT's slides, on MNIST at eps 0.3 and at 0.45.
SLIDES = {
    "madry": "98.07 / 85.47 | 11.22 / 11.22",
    "trades": "98.98 / 90.70 | 97.36 / 0.00",
    "dynamic": "98.93 / 92.24 | 97.98 / 65.71",
    "cat": "99.46 / 0.00 | 99.39 / 0.00",
    "hsat": "99.01 / 80.71 | 98.35 / 54.10",
    "psat": "99.16 / 92.00 | 97.87 / 58.50",
    "madry_with_ramp": "- | -",
}


def accuracies_of(name, row):
    return {attack: accuracy for attack, (accuracy, *_) in RESULTS[name][row]["last"].items()}


@pytest.mark.parametrize("name", TRIVIAL)
def test_pgd_training_learns_the_trivial_classifier_and_with_a_ramp_of_eps_it_does_not(name):
    assert accuracies_of(name, "madry") == COMMONEST
    assert all(accuracy > COMMONEST[attack] + 30 for attack, accuracy in accuracies_of(name, "madry_with_ramp").items())


@pytest.mark.parametrize("name", TRIVIAL)
def test_all_rows_of_the_slides_are_there_and_attacked_in_the_same_way(name):
    assert list(RESULTS[name]) == list(SLIDES)
    assert all(accuracies_of(name, row).keys() == COMMONEST.keys() for row in SLIDES)


def test_the_readmes_table_of_the_trivial_classifier_is_the_results_beside_the_slides():
    table = table_below("### The trivial classifier")
    assert [cells[0].strip("`") for cells in table] == list(SLIDES)
    for row, *cells in table:
        found = [accuracies_of(name, row.strip("`")) for name in TRIVIAL]
        own = [" / ".join(f"{accuracies[attack]:.1f}" for attack in COMMONEST) for accuracies in found]
        assert " | ".join(cells) == " | ".join([*own, SLIDES[row.strip("`")]])


# The time that a delay saves.


def means_of(row, read):
    return mean(read(RESULTS["delayed"][f"{row}@{seed}"]) for seed in range(3))


def test_what_the_readme_says_of_a_delay():
    """Time saved, training loss, clean and PGD-40 accuracy of DAT against RAT, over three seeds."""
    spent, loss, clean, pgd40 = (
        [means_of(row, read) for row in ("dat", "rat")]
        for read in (
            lambda record: sum(record["diary"]["cpu_seconds"]),
            lambda record: record["diary"]["train/loss"][-1],
            lambda record: record["last"]["clean"][0],
            lambda record: record["last"]["pgd40"][0],
        )
    )
    text = " ".join((SCRIPTS.parent / "README.md").read_text().split())
    assert f"saves {100 * (1 - spent[0] / spent[1]):.0f} % of the time" in text
    assert f"({loss[0]:.2f} against {loss[1]:.2f}), and clean accuracy is the same ({clean[0]:.1f} and" in text
    assert f"PGD-40 leaves less, {pgd40[0]:.1f} against {pgd40[1]:.1f}" in text


def test_at_a_larger_eps_only_the_delayed_runs_learn_with_every_seed():
    rat, dat = (
        sorted(RESULTS["delayed"][f"{row}_at_0.2@{seed}"]["last"]["pgd40"][0] for seed in range(3))
        for row in ("rat", "dat")
    )
    text = " ".join((SCRIPTS.parent / "README.md").read_text().split())
    assert rat[:2] == [COMMONEST["pgd40"]] * 2
    assert f"(the other: {rat[2]:.1f}); with the delay all three learn ({dat[0]:.1f} to {dat[2]:.1f})" in text
