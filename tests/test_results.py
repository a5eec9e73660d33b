"""scripts/results: made by the committed configurations, and with the effects that the README reports."""

import json
import re
from pathlib import Path
from statistics import mean

import pytest

from lit_robust.cli.config import load

SCRIPTS = Path(__file__).parent.parent / "scripts"
RESULTS = {
    path.stem.removeprefix("cpu_"): json.loads(path.read_text())["rows"] for path in SCRIPTS.glob("results/cpu_*.json")
}
ROWS = [(name, row) for name, rows in RESULTS.items() for row in rows]


@pytest.fixture
def readme(monkeypatch):
    """The script that writes the README's results."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import readme_results

    return readme_results


def results_of(row):
    """The records of a single-step method, one per seed."""
    return [RESULTS["single_step"][f"{row}@{seed}"] for seed in range(3)]


def learns(record):
    """Whether a net predicts more than one class."""
    return record["last"]["clean"][0] > COMMONEST


@pytest.mark.parametrize(("name", "row"), ROWS)
def test_a_result_says_where_it_comes_from_and_is_of_the_row_that_stands_there(name, row, monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import unseen
    from cpu_budget import rows_of

    record = RESULTS[name][row]
    assert {"md5", "hardware", "versions", "commit", "code"} <= record.keys()
    assert not record["commit"].endswith("+"), "made by code that no commit holds"
    if name == unseen.SET:
        text = unseen.fair(load(str(unseen.ROWS)), {"rows": RESULTS[name]})
    else:
        text = load(str(SCRIPTS / "cpu_budget.yaml"))
    said = rows_of(text, name)[row]
    assert record["config"] == said["config"]
    assert record["config"]["seed_everything"] == int(row.partition("@")[2] or 0)
    tested = record["config"]["data"]["init_args"]["test_size"]
    assert all(n == said["images"].get(attack, tested) for attack, (*_, n) in record["last"].items())


@pytest.mark.parametrize("row", RESULTS["single_step"])
def test_every_single_step_method_has_been_attacked_in_every_way(row):
    """Masked gradients would show in one of these."""
    last = {attack: accuracy for attack, (accuracy, *_) in RESULTS["single_step"][row]["last"].items()}
    assert last["autoattack"] <= last["pgd40"]
    assert last["pgd100"] <= last["pgd40"] + 1
    assert last["pgd20_at_1.5_eps"] < last["pgd40"] + 1
    if learns(RESULTS["single_step"][row]):
        assert last["pgd20_at_2.5_eps"] <= 0.2  # one image
        assert last["autoattack"] <= last["transfer"]
    else:
        assert "trivial" in RESULTS["single_step"][row]["alarms"]


#: Rows that the library's default test and AutoAttack have been run on.
JUDGED = [
    (name, row)
    for name, row in ROWS
    if RESULTS[name][row]["last"].keys() >= {"pgd20", "pgd20_margin", "gama40", "autoattack"}
]


@pytest.mark.parametrize(("name", "row"), JUDGED)
def test_the_default_test_is_within_5_points_of_autoattack_or_raises_an_alarm(name, row, readme):
    record = RESULTS[name][row]
    assert record["alarms"] or readme.flattery(record) <= 5


def test_the_gap_is_taken_from_what_withstands_all_attacks_of_the_default_test(readme):
    record = {"last": {name: [50 + i, 0, 0, 500] for i, name in enumerate((*readme.DEFAULT_TEST, "autoattack"))}}
    assert readme.flattery(record) == 50 - 53
    assert readme.flattery(record | {"worst": 47.0}) == 47 - 53


def test_the_readmes_results_are_those_of_the_files(readme):
    text = readme.README.read_text()
    assert readme.filled(text) == text
    assert set(readme.BLOCKS) == set(re.findall(r"<!-- results: (\w+) -->", text))


def test_a_number_that_is_changed_by_hand_is_found(readme, monkeypatch, tmp_path):
    changed = tmp_path / "README.md"
    changed.write_text(re.sub(r"(\| `pgdat` .*?)\d\d\.\d", r"\g<1>99.9", readme.README.read_text(), count=1))
    monkeypatch.setattr(readme, "README", changed)
    with pytest.raises(SystemExit, match="readme_results"):
        readme.main(["--check"])
    readme.main([])
    readme.main(["--check"])
    assert "99.9" not in changed.read_text().partition("`pgdat`")[2].partition("\n")[0]


def test_a_block_without_an_end_is_refused(readme):
    with pytest.raises(ValueError, match="single_step"):
        readme.filled("<!-- results: single_step -->\n<!-- results: delayed -->\n<!-- end of results -->")


def on_coresets(seed, accuracy, seconds, selecting=None):
    """A record as ``cpu_budget.py`` writes it, on all images or on coresets."""
    callbacks = [] if selecting is None else [{"class_path": "CoresetSelection"}]
    model = {"class_path": "PGDAT", "init_args": {"test_attacks": {"pgd40": {}, "autoattack": {}}}}
    data = {"init_args": {"train_size": 100_000}}
    diary = {
        "cpu_seconds": [seconds / 2] * 2,
        "seconds": [0.55 * seconds] * 2,
        "forwards": [11.0] * 2,
        "backwards": [11.0] * 2,
    }
    if selecting is not None:
        diary |= {"selection_cpu_seconds": [selecting, 0.0], "selection_seconds": [selecting, 0.0]}
        diary |= {"selection_forwards": [1_100_000, 0], "selection_backwards": [1_000_000, 0]}
        diary |= {"train/coreset/size": [None, 30_000], "train/coreset/error": [None, 0.25]}
    tested = {name: [accuracy, accuracy - 1, accuracy + 1, 500] for name in ("clean", "pgd40", "autoattack")}
    config = {"model": model, "data": data, "trainer": {"callbacks": callbacks}, "seed_everything": seed}
    found = {
        "config": config,
        "diary": diary,
        "last": tested,
        "hardware": {"processor": "abacus", "capability": "AVX2", "threads": 1},
    }
    return found | {"md5": {"test": "0123456789"}}


def test_coresets_have_their_costs_and_a_picture_where_there_are_results(readme, monkeypatch, tmp_path):
    import coreset_pictures

    for script in (readme, coreset_pictures):
        monkeypatch.setattr(script, "RESULTS", tmp_path)
    names = ("coreset", "coreset_cold", "coreset_cifar")
    assert [readme.BLOCKS[name]() for name in names] == [""] * 3
    assert [coreset_pictures.draw(name) for name in names] == [None] * 3
    assert not list(tmp_path.iterdir())
    rows = {f"pgdat@{seed}": on_coresets(seed, 80.0 + seed, 40.0) for seed in (0, 1)}
    rows |= {f"pgdat_craig_0.3@{seed}": on_coresets(seed, 70.0 + seed, 12.0, selecting=4.0) for seed in (0, 1)}
    cold = {"pgdat_craig_0.3@0": on_coresets(0, 60.0, 16.0, selecting=4.0)}
    for name, content in (("coreset", rows), ("coreset_cold", cold)):
        (tmp_path / f"cpu_{name}.json").write_text(json.dumps({"rows": content}))
    text = readme.BLOCKS["coreset"]()
    cells = {line.split(" | ")[0]: line.strip(" |").split(" | ")[-6:] for line in text.splitlines() if "`" in line}
    # 22 passes of 100,000 images twice; of 100,000 and of 30,000, and 2.1 million of a selection
    assert cells["| `pgdat`"] == ["-", "40", "0", "1.00x", "1.00x", "4.40"]
    assert cells["| `pgdat_craig_0.3`"] == ["0.250", "12", "4", "2.50x", "2.56x", "4.96"]
    assert "Without results so far: `pgdat_craig_0.1`, " in text
    assert "2.00x" in readme.BLOCKS["coreset_cold"]()  # against the other set's row on all images
    assert "redrawn with the same seed" not in text
    drawn = {f"pgdat_random_redrawn_0.3@{seed}": on_coresets(seed, 72.0 - seed, 12.0) for seed in (0, 1)}
    (tmp_path / "cpu_coreset.json").write_text(json.dumps({"rows": rows | drawn}))
    assert "the same seed: `craig` -1.0 (-2.0 to +0.0, 2 pairs)." in readme.BLOCKS["coreset"]()
    names = ["pgdat", "pgdat_craig_0.1", "pgdat_craig_0.5", "pgdat_random_fixed_0.3"]
    assert coreset_pictures.curves(dict.fromkeys(names, 1)) == {
        "pgdat": {"": 1},
        "pgdat_craig": {"0.1": 1, "0.5": 1},
        "pgdat_random_fixed": {"0.3": 1},
    }
    assert coreset_pictures.points("coreset")["pgdat_craig_0.3"] == ([2.5, 2.5], [30.0, 29.0])
    rows["pgdat_craig_0.3@1"]["diary"]["seconds"] = [60.0, 60.0]  # has waited for the processor
    rows["pgdat@0"]["diary"]["seconds"] = [60.0, 60.0]
    (tmp_path / "cpu_coreset.json").write_text(json.dumps({"rows": rows}))
    line = next(line for line in readme.BLOCKS["coreset"]().splitlines() if "`pgdat_craig_0.3`" in line)
    assert line.strip(" |").split(" | ")[-3:] == ["2.50x", "", "4.96"]
    assert set(coreset_pictures.points("coreset_cold")) == {"pgdat", "pgdat_craig_0.3"}
    assert coreset_pictures.draw("coreset").read_bytes().startswith(b"\x89PNG")
    assert "(scripts/results/coreset.png)" in readme.BLOCKS["coreset"]()
    assert "png" not in text


def on_cifar(seed, accuracy, **changed):
    """A record on CIFAR-10: two threads, bf16, AutoAttack on 200 images of seed 0."""
    record = on_coresets(seed, accuracy, 60.0)
    record["config"]["trainer"]["precision"] = "bf16-mixed"
    record["config"]["data"]["init_args"]["next_size"] = 1000
    record["hardware"]["threads"] = 2
    record["diary"]["val/acc/robust"] = [0.2, accuracy / 100]
    names = ("clean", "pgd50", "gama", "pgd20_last", "pgd50_10", "pgd50_margin")
    record["last"] = {name: [accuracy, accuracy - 1, accuracy + 1, 500] for name in names}
    if seed == 0:
        record["last"]["autoattack"] = [accuracy - 2, accuracy - 9, accuracy + 5, 200]
    record["best"] = {"pgd50": [accuracy + 2, accuracy, accuracy + 4, 500]}
    return record | {"epochs": 10} | changed


def test_coresets_on_cifar_show_the_best_epoch_and_autoattack_of_one_seed(readme, monkeypatch, tmp_path):
    monkeypatch.setattr(readme, "RESULTS", tmp_path)
    rows = {f"fastat@{seed}": on_cifar(seed, 20.0, best={"pgd50": [30.0 + seed, 29.0, 35.0, 500]}) for seed in range(3)}
    (tmp_path / "cpu_coreset_cifar.json").write_text(json.dumps({"rows": rows}))
    text = readme.BLOCKS["coreset_cifar"]()
    head, _, line, *_ = text.splitlines()
    cells = dict(zip(head.strip("| ").split(" | "), line.strip(" |").split(" | "), strict=True))
    assert cells["best epoch: PGD-50"] == "31.0 (30.0 to 32.0)"
    assert cells["AutoAttack of seed 0"].startswith("18.0 [")
    assert "autoattack 200 of seed 0" in text


def test_under_unseen_attacks_it_is_said_whose_distance_is_meant(readme, monkeypatch, tmp_path):
    monkeypatch.setattr(readme, "RESULTS", tmp_path)
    assert readme.BLOCKS["unseen"]() == ""
    rows = {row: on_cifar(0, 20.0) for row in ("pat", "pgdat_pilot", "pgdat")}
    rows["pgdat_pilot"]["last"] = {}
    (tmp_path / "cpu_unseen.json").write_text(json.dumps({"rows": rows}))
    text = readme.BLOCKS["unseen"]()
    assert [line.split(" | ")[0] for line in text.splitlines() if line.startswith("| `")] == ["| `pat`", "| `pgdat`"]
    assert "`lpa40_of_pat`" in text
    assert "examples of training" not in text
    rows["pat"]["adversary"] = {"l2": 2.7122, "linf": 0.2563, "accuracy": 16.0}
    (tmp_path / "cpu_unseen.json").write_text(json.dumps({"rows": rows}))
    assert "`pat` change an image by 2.71 (L2) and its most changed pixel by 0.256" in readme.BLOCKS["unseen"]()


def test_on_cifar_processor_threads_precision_and_epochs_are_named(readme, monkeypatch, tmp_path):
    monkeypatch.setattr(readme, "RESULTS", tmp_path)
    names = ("cpu_cifar", "cpu_cifar_headline")
    assert [readme.BLOCKS[name]() for name in names] == [""] * 2
    rows = {f"fastat@{seed}": on_cifar(seed, 20.0 + seed) for seed in range(3)}
    rows |= {f"pgdat@{seed}": on_cifar(seed, 40.0 + seed) for seed in range(3)}
    (tmp_path / "cpu_cpu_cifar.json").write_text(json.dumps({"rows": rows}))
    text = readme.BLOCKS["cpu_cifar"]()
    cells = {line.split(" | ")[0]: line.strip(" |").split(" | ")[1:] for line in text.splitlines() if "`" in line}
    assert [cells[f"| `{row}`"][0] for row in ("fastat", "pgdat")] == ["2", "1"]
    assert cells["| `fastat`"][4] == "20.0"
    assert cells["| `fastat`"][5].startswith("18.0 [")
    assert cells["| `fastat`"][6] == "23.0 (22.0 to 24.0)"
    assert "autoattack 200 of seed 0" in text
    assert "2 threads of abacus (AVX2), bf16-mixed; " in text
    assert " 10 epochs;" in text
    assert "Without results so far: `nfgsm`, " in text


def test_each_seed_of_n_fgsm_is_shown(readme, monkeypatch, tmp_path):
    monkeypatch.setattr(readme, "RESULTS", tmp_path)
    assert readme.BLOCKS["cpu_cifar_nfgsm"]() == ""
    rows = {
        f"{row}@{seed}": on_cifar(seed, low + seed)
        for row, low in {"nfgsm": 20.0, "nfgsm_eval": 30.0}.items()
        for seed in range(2)
    }
    (tmp_path / "cpu_cpu_cifar_nfgsm.json").write_text(json.dumps({"rows": rows}))
    shown = [line.strip("| ").split(" | ") for line in readme.BLOCKS["cpu_cifar_nfgsm"]().splitlines() if "`" in line]
    assert [(row, pgd) for row, _, pgd, *_ in shown] == [("`nfgsm`", "20.0 / 21.0"), ("`nfgsm_eval`", "30.0 / 31.0")]


def test_the_candidate_that_does_best_on_held_out_images_is_the_winner(readme, monkeypatch, tmp_path):
    monkeypatch.setattr(readme, "RESULTS", tmp_path)
    candidates = {"nfgsm": on_cifar(0, 30.0), "nuat_wa": on_cifar(0, 29.0)}
    candidates["nuat_wa"]["diary"]["val/acc/robust"] = [0.9, 0.31]
    (tmp_path / "cpu_cpu_cifar_headline.json").write_text(json.dumps({"rows": candidates}))
    chosen = readme.BLOCKS["cpu_cifar_headline"]()
    assert "| `nfgsm` | 10 | 1.1 | 30.0 [27.2, 32.9] |\n| **`nuat_wa`** | 10 | 1.1 | 31.0 [28.2, 33.9] |" in chosen
    assert "One seed; 1,000 held-out images, " in chosen
    assert "overfitted" not in chosen
    candidates["nfgsm"]["diary"]["val/acc/robust"] = [0.0, 0.2, 0.0, 0.0, 0.3]
    (tmp_path / "cpu_cpu_cifar_headline.json").write_text(json.dumps({"rows": candidates}))
    chosen = readme.BLOCKS["cpu_cifar_headline"]()
    assert "`nfgsm` overfitted catastrophically on the way: no image withstood PGD-10 after epoch 3, 4." in chosen
    assert "2 threads of abacus (AVX2), bf16-mixed" in chosen
    rows = {f"winner@{seed}": on_cifar(seed, 40.0 + seed, epochs=20) for seed in range(3)}
    rows["winner@1"]["last"]["autoattack_1000"] = [39.0, 38.0, 40.0, 1000]
    (tmp_path / "cpu_cpu_cifar_headline_30.json").write_text(json.dumps({"rows": rows}))
    text = readme.BLOCKS["cpu_cifar_headline"]()
    assert text.startswith(chosen)
    assert "autoattack 200 of seed 0, autoattack_1000 1000 of seed 1" in text
    assert "| `winner` | 20 | 1.1 (1.1 to 1.1) | 41.0 " in text
    rows["nfgsm_resized@0"] = on_cifar(0, 39.0, epochs=40)
    del rows["nfgsm_resized@0"]["last"]["autoattack"]
    (tmp_path / "cpu_cpu_cifar_headline_30.json").write_text(json.dumps({"rows": rows}))
    text = readme.BLOCKS["cpu_cifar_headline"]()
    (line,) = [line for line in text.splitlines() if line.startswith("| `nfgsm_resized` | 40 | 1.1 | 39.0 ")]
    assert line.endswith(" | - | - |"), "without AutoAttack"
    assert "1 or 3 seeds: mean (range)" in text


def test_all_test_images_are_attacked_by_autoattack_on_the_net_of_the_median_seed():
    said = load(str(SCRIPTS / "cpu_budget.yaml"))["sets"]["cpu_cifar_headline_30"]["limits"]
    found = {seed: RESULTS["cpu_cifar_headline_30"][f"winner@{seed}"]["last"]["pgd50_10"][0] for seed in range(3)}
    assert said["autoattack_1000"]["seeds"] == [sorted(found, key=found.__getitem__)[1]]


def test_half_an_hour_is_compared_with_the_mark_and_the_aim_by_its_results():
    found = {}
    for record in (RESULTS["cpu_cifar_headline_30"][f"winner@{seed}"]["last"] for seed in range(3)):
        for attack, accuracy in record.items():
            found.setdefault(attack, []).append(accuracy[0])
    told = " ".join(
        (SCRIPTS.parent / "README.md").read_text().partition("The mark to beat was ")[2].partition("\n##")[0].split()
    )
    aimed = found["pgd50_10"]
    assert f"margin loss the winner's {mean(found['pgd50_margin']):.1f} is a gain" in told
    assert f"its {found['autoattack'][0]:.1f} and {found['autoattack'][1]:.1f} on the same 200 images" in told
    assert f"parameters: {mean(aimed):.1f} ({min(aimed):.1f} to {max(aimed):.1f}) misses it" in told
    assert 0 < 45 - mean(aimed) < max(aimed) - min(aimed)


def test_autoattack_in_bf16_breaks_nothing_that_float32_leaves_and_misses_few_images():
    results = json.loads((SCRIPTS / "results/autoattack_bf16.json").read_text())
    assert results["n"] == 500
    for counts in results["nets"].values():
        assert counts["float32"] - counts["float32_only"] == counts["bf16"] - counts["bf16_only"]
        assert counts["bf16_only"] + counts["float32_only"] <= 0.01 * results["n"]


def test_every_net_trained_in_bf16_is_shown_or_named_as_without_results(readme):
    from digits_bf16 import NETS

    shown = json.loads((SCRIPTS / "results/digits_bf16.json").read_text())["nets"]
    block = readme.BLOCKS["digits_bf16"]()
    missing = block.partition("Without results so far: ")[2].rstrip(".").split(", ") if "Without" in block else []
    assert [*shown, *missing] == [*NETS]
    assert all(f"| {name} | " in block for name in shown)


def test_training_in_bf16_costs_no_accuracy_beyond_the_noise():
    """The noise is 1.96 standard errors of the difference over the images of all seeds, as if they were unpaired."""
    nets = json.loads((SCRIPTS / "results/digits_bf16.json").read_text())["nets"]
    for net in nets.values():
        assert len(net["32-true"]) == len(net["bf16-mixed"]) == 3
        for attack in ("clean", "pgd20"):
            float32, bf16 = (mean(run[attack] for run in net[precision]) for precision in ("32-true", "bf16-mixed"))
            n = sum(run["n"] for run in net["32-true"])
            noise = 1.96 * (2 * float32 * (100 - float32) / n) ** 0.5
            assert bf16 > float32 - noise


def test_the_default_test_costs_less_than_pgd_100_and_least_on_a_weak_net():
    rows = json.loads((SCRIPTS / "results/default_test_cost.json").read_text())["rows"]
    means = [mean(of_seed["default"] for of_seed in rows[net]) for net in ("weak", "middling", "robust")]
    assert 20 < means[0] < means[1] < means[2] < 81
    assert all(len(seeds) == 3 for seeds in rows.values())


def test_no_honest_net_of_at_least_30_raises_an_alarm(readme):
    nets = json.loads((SCRIPTS / "results/alarm_rates.json").read_text())["nets"].values()
    honest = [net for net in nets if readme.is_honest(net)]
    assert len(honest) >= 30
    assert [net for net in honest if net["alarms"]] == []
    assert [net for net in nets if net not in honest and not net["alarms"]] == []


def test_at_most_1_of_50_honest_nets_of_the_budget_raises_an_alarm(readme):
    """Honest by the strongest attack of the default test, which all records have.

    By what withstands its attacks together, which only newer ones have, two nets at eps 0.4 are honest as well, 4 to 5
    points above AutoAttack, and Square breaks images of theirs that the test left.
    """
    nets = readme.budget_nets()
    alike = {name: net for name, net in nets.items() if readme.flattery({"last": net["last"]}) <= 5}
    assert len(alike) >= 100
    assert len([net for net in alike.values() if net["alarms"]]) <= len(alike) / 50
    assert {name.partition(",")[0] for name in nets.keys() - alike.keys()} <= {"trivial_0.4"}


def seeds(*values, n=500):
    return [{"last": {"pgd": [value, 0, 100, n]}} for value in values]


def raising(alarm, value):
    return [seeds(value)[0] | {"alarms": [alarm]}]


@pytest.mark.parametrize(
    ("rows", "places"),
    [
        # 10 points apart: more than the seeds' and the images' spread, 1.96 * sqrt(2 * 50 * 50 / 500) = 6.2.
        ({"a": seeds(60, 60, 60), "b": seeds(50, 50, 50)}, {"a": "1", "b": "2"}),
        ({"a": seeds(55, 55, 55), "b": seeds(50, 50, 50)}, {"a": "1 to 2", "b": "1 to 2"}),
        ({"a": seeds(70, 60, 50), "b": seeds(56, 50, 44)}, {"a": "1 to 2", "b": "1 to 2"}),
        # The middle one differs from neither.
        (
            {"a": seeds(60, 60, 60), "b": seeds(55, 55, 55), "c": seeds(50, 50, 50)},
            {"a": "1 to 2", "b": "1 to 3", "c": "2 to 3"},
        ),
        ({"a": seeds(90, 90), "b": seeds(50, 50, 50)}, {"a": "-", "b": "1"}),
        ({"a": seeds(90, 90) + raising("margin", 90), "b": seeds(50, 50, 50)}, {"a": "-", "b": "1"}),
    ],
)
def test_rows_have_different_ranks_only_if_seeds_and_images_do_not_explain_it(readme, rows, places):
    assert readme.ranks(rows, "pgd") == places


def test_an_accuracy_has_its_interval_over_images_and_its_range_over_seeds(readme):
    """Wilson's of the mean, which never leaves 0 to 100."""
    assert readme.measured(seeds(90.0, 80.0), "pgd") == "85.0 [81.6, 87.9] (80.0 to 90.0)"
    assert readme.measured(seeds(90.0), "pgd") == "90.0 [87.1, 92.3]"
    assert readme.measured(seeds(0.0), "pgd") == "0.0 [0.0, 0.8]"


def test_alarms_are_named_with_their_number_of_seeds(readme):
    rows = {"a": seeds(90) + raising("trivial", 13) + raising("trivial", 13), "b": seeds(50)}
    assert readme.alarms_of(rows) == "Alarms: `a` `trivial` (2 of 3)."
    assert readme.alarms_of({"b": seeds(50)}) == ""


def test_a_mean_over_seeds_has_its_range(readme):
    assert readme.with_range([90.0, 80.0]) == "85.0 (80.0 to 90.0)"
    assert readme.with_range([90.0]) == "90.0"


@pytest.mark.parametrize(
    "row", ["fastat_random", "fastat_previous", "nfgsm", "freeat_2", "freeat_4", "gradalign", "gat", "nuat"]
)
def test_the_methods_of_the_papers_reach_60_percent_in_three_minutes_with_two_of_three_seeds(row):
    assert sorted(record["last"]["pgd40"][0] for record in results_of(row))[1] >= 60
    assert all(sum(record["diary"]["cpu_seconds"]) <= 180 for record in results_of(row))


@pytest.mark.parametrize("row", RESULTS["single_step"])
def test_the_monitors_report_the_nets_that_overfit_and_no_other(row):
    """The last epoch's nets that have learned, by an attack, and are hardly robust; every one has seed 2."""
    record = RESULTS["single_step"][row]
    overfits = learns(record) and record["last"]["pgd40"][0] < 30 and not row.startswith("natural")
    assert any(record["diary"]["train/catastrophic_overfitting"]) == overfits


@pytest.mark.parametrize("row", RESULTS["overfitting"])
def test_a_monitor_reports_the_epoch_in_which_fgsm_and_pgd_diverge(row):
    """It measures PGD-5 on training images; this test uses PGD-10 on validation images, at the eps of a ramp's end."""
    diary = RESULTS["overfitting"][row]["diary"]
    gaps = [fgsm - pgd for fgsm, pgd in zip(diary["val/acc/fgsm"], diary["val/acc/robust"], strict=True)]
    reported = diary["train/catastrophic_overfitting"].index(1)
    ramp = len(gaps) // 2 if "ramp" in row else 0  # epochs in which training uses a smaller eps
    assert gaps[reported] == max(gaps[ramp : reported + 1])
    assert gaps[reported] > 0.3
    assert RESULTS["overfitting"][row]["last"]["autoattack"][0] < 30


# Which methods learn the trivial classifier.

TRIVIAL = ("trivial_0.2", "trivial_0.3", "trivial_0.4")
#: The share of the class that is commonest among the first 500 test images: what such a net gets right.
COMMONEST = 13.4


def of_seeds(name, row):
    """The accuracies of a row, without and with attacks, for all its seeds."""
    records = [record for label, record in RESULTS[name].items() if label.partition("@")[0] == row]
    return [accuracy for record in records for accuracy, *_ in record["last"].values()]


@pytest.mark.parametrize("name", TRIVIAL)
def test_pgd_training_learns_the_trivial_classifier_and_with_a_ramp_of_eps_it_does_not(name):
    assert all(accuracy == COMMONEST for accuracy in of_seeds(name, "madry"))
    assert all("trivial" in record["alarms"] for row, record in RESULTS[name].items() if row.startswith("madry@"))
    assert all(accuracy > COMMONEST + 30 for accuracy in of_seeds(name, "madry_with_ramp"))


@pytest.mark.parametrize("name", TRIVIAL)
def test_all_rows_of_the_slides_are_there_and_attacked_in_the_same_way(name, readme):
    rows = [*readme.SLIDES, "madry_with_ramp"]
    seeds = range(3) if name == "trivial_0.3" else [0]
    assert RESULTS[name].keys() == {f"{row}@{seed}" for row in rows for seed in seeds}
    assert len({tuple(sorted(record["last"])) for record in RESULTS[name].values()}) == 1


# The time that a delay saves.


def spent(record):
    return sum(record["diary"]["cpu_seconds"])


def means_of(row, read):
    return mean(read(RESULTS["delayed"][f"{row}@{seed}"]) for seed in range(3))


def test_a_delay_saves_time_and_costs_robustness_with_every_seed():
    """The slides report a higher accuracy; 9 epochs are short."""
    assert means_of("dat", spent) < 0.6 * means_of("rat", spent)
    pgd40 = {
        row: [RESULTS["delayed"][f"{row}@{seed}"]["last"]["pgd40"][0] for seed in range(3)] for row in ("rat", "dat")
    }
    assert max(pgd40["dat"]) < min(pgd40["rat"])


def test_at_a_larger_eps_only_the_delayed_runs_learn_with_every_seed():
    rat, dat = (
        sorted(RESULTS["delayed"][f"{row}_at_0.2@{seed}"]["last"]["pgd40"][0] for seed in range(3))
        for row in ("rat", "dat")
    )
    assert rat[:2] == [COMMONEST] * 2
    assert dat[0] > 50


# Natural and robust nets on few images.


def gaps_of(row, attack):
    """Training accuracy less test accuracy, for each seed."""
    records = [RESULTS["data_size"][f"{row}@{seed}"] for seed in range(3)]
    return [record["train"][attack][0] - record["last"][attack][0] for record in records]


@pytest.mark.parametrize(("method", "attack"), [("natural", "clean"), ("pgdat", "clean"), ("pgdat", "pgd40")])
def test_the_gap_between_training_and_test_images_grows_as_images_get_fewer(method, attack):
    many, some, few = (mean(gaps_of(f"{method}_{n}", attack)) for n in (20000, 2000, 500))
    assert many < some < few


def test_robust_nets_overfit_less_on_clean_images_and_more_on_attacked_ones_with_every_seed():
    for n in (2000, 500):
        assert max(gaps_of(f"pgdat_{n}", "clean")) < min(gaps_of(f"natural_{n}", "clean"))
        assert min(gaps_of(f"pgdat_{n}", "pgd40")) > max(gaps_of(f"natural_{n}", "pgd40"))


# How near selections are to the whole gradient.


def error_of(of_seed, row, age):
    return of_seed[row]["errors"][age]


def autoattack_by_seed(name, row):
    """AutoAttack's accuracy for each seed."""
    records = json.loads((SCRIPTS / f"results/cpu_{name}.json").read_text())["rows"]
    return [records[f"{row}@{seed}"]["last"]["autoattack"][0] for seed in range(3)]


@pytest.mark.parametrize(
    ("name", "row", "craig"),
    [
        ("coreset", "pgdat_{}_0.1", False),
        ("coreset", "pgdat_{}_0.3", False),
        ("coreset", "pgdat_{}_0.5", False),
        ("coreset", "fastat_{}_0.3", False),
        ("coreset_cold", "pgdat_{}_0.3", True),
    ],
)
def test_on_mnist_gradmatch_beats_redrawn_images_with_every_seed_and_craig_without_a_warm_start_only(name, row, craig):
    drawn = autoattack_by_seed(name, row.format("random_redrawn"))
    for selector, better in (("gradmatch", True), ("craig", craig)):
        chosen = autoattack_by_seed(name, row.format(selector))
        assert all(one > other for one, other in zip(chosen, drawn, strict=True)) == better


@pytest.mark.parametrize("selector", ["gradmatch", "craig"])
def test_skipping_the_epochs_of_the_largest_learning_rate_costs_robustness_with_every_seed(selector):
    row = f"pgdat_{selector}_0.3"
    pairs = zip(autoattack_by_seed("coreset_cold", row), autoattack_by_seed("coreset", row), strict=True)
    assert all(cold > warm + 2 for cold, warm in pairs)


def test_selections_are_nearer_to_the_gradient_than_random_images_at_once_and_five_epochs_later():
    settings = json.loads((SCRIPTS / "results/selection_error.json").read_text())["settings"]
    assert settings.keys() == {"MNIST", "CIFAR-10"}
    for seeds in settings.values():
        assert len(seeds) == 3
        for of_seed in seeds:
            rows = ("GradMatch, whole layer", "CRAIG", "random, balanced", "random")
            order = [error_of(of_seed, row, 0) for row in rows]
            assert order == sorted(order)
        for row in ("GradMatch, whole layer", "CRAIG"):
            at_random = [mean(error_of(of_seed, "random, balanced", age) for of_seed in seeds) for age in (0, 5)]
            chosen = [mean(error_of(of_seed, row, age) for of_seed in seeds) for age in (0, 5)]
            assert chosen[0] < at_random[0] / 2
            assert chosen[1] < at_random[1]
            assert chosen[1] / at_random[1] > chosen[0] / at_random[0]  # the advantage ages
