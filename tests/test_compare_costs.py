"""What ``compare`` says of the trainings' costs, and its surrogate."""

import csv
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lit_robust.analysis import compare
from lit_robust.analysis.compare import Method, table
from lit_robust.analysis.compare_pictures import draw_costs
from lit_robust.analysis.start import begin
from lit_robust.analysis.study import Study
from lit_robust.analysis.subjects import named
from lit_robust.analysis.surrogate import Surrogate, surrogate_of
from lit_robust.analysis.tables import count, duration, html, latex, markdown, with_selections
from lit_robust.attacks import PGD
from lit_robust.costs import Cost
from lit_robust.nets import digits_cnn
from tests.front_door import lit, refusal
from tests.test_analysis import ATTACK, digits, fit

A, B = "an A100", "two threads"


def cost(seconds: float, passes: int, hardware: str = A, precision: str = "32-true") -> Cost:
    return Cost(seconds, 2 * seconds, passes // 2, passes - passes // 2, [hardware], [precision])


def methods(**costs: list[Cost | None]) -> list[Method]:
    """Methods with these costs of their runs; the first one is the best."""
    images = torch.ones(40, dtype=torch.float64)
    return [
        Method(
            name, {"clean": images, "pgd": images}, {"clean": [0.9] * len(of), "pgd": [0.5 - 0.1 * i] * len(of)}, (), of
        )
        for i, (name, of) in enumerate(costs.items())
    ]


def rows_of(reference: str | None = None, **costs: list[Cost | None]) -> list[dict]:
    return table([(None, method) for method in methods(**costs)], ["clean", "pgd"], None, reference)


def test_the_gap_is_explained_below_the_table_with_its_attack_and_its_images():
    (method,) = methods(one=[cost(1, 2)])
    method.images["gap"], method.runs["gap"] = torch.ones(30), [0.8]
    (row,) = table([(None, method)], ["clean", "pgd"], "pgd")
    assert row["gap"] == pytest.approx(0.3)
    said = (
        "gap: generalisation gap in points, the accuracy of 30 training images under pgd minus that of the test images."
    )
    assert all(said in text for text in (markdown([row]), latex([row]), html([row])))
    assert "generalisation gap" not in markdown(rows_of(one=[cost(1, 2)]))


def test_a_page_breaks_alarms_and_ranges_over_seeds_into_lines():
    one = methods(one=[cost(1, 2), cost(1, 2)])[0]._replace(alarms=["margin", "scaling"])
    page = html(table([(None, one)], ["clean", "pgd"], None))
    assert '<td class="words">margin scaling</td>' in page
    assert re.search(r"<td>50\.0<br>\[[^]<]*\]<br>\(50\.0 to 50\.0\)</td>", page), "value, interval, range over seeds"


def test_times_and_passes_are_means_over_the_seeds():
    (row,) = rows_of(fast=[cost(10, 100), cost(30, 300)])
    assert (row["seconds"], row["seconds min"], row["seconds max"]) == (20, 10, 30)
    assert (row["cpu seconds"], row["passes"]) == (40, 200)


def test_saved_time_is_relative_to_the_reference():
    fast, slow = rows_of("slow", fast=[cost(25, 900)], slow=[cost(100, 1000)])
    assert (fast["time saved"], slow["time saved"]) == (0.75, 0.0)
    assert "passes saved" not in fast
    text = markdown([fast, slow])
    assert "75 %" in text
    assert "Saved: against slow." in text
    assert f"Hardware: {A}." in text


def test_on_a_processor_it_is_cpu_time_which_other_programs_do_not_lengthen():
    fast, slow = rows_of("slow", fast=[cost(25, 900, B)._replace(cpu_seconds=20)], slow=[cost(100, 1000, B)])
    assert (fast["CPU time saved"], slow["CPU time saved"]) == (0.9, 0.0)
    assert "time saved" not in fast
    assert "90 %" in markdown([fast, slow])


def test_where_the_hardware_differs_passes_are_compared():
    fast, slow = rows_of("slow", fast=[cost(25, 900)], slow=[cost(100, 1000, B)])
    assert (fast["passes saved"], slow["passes saved"]) == (pytest.approx(0.1), 0.0)
    assert "time saved" not in fast
    assert f"The hardware differs, so compare the passes, not the times. fast: {A}; slow: {B}." in markdown(
        [fast, slow]
    )


def test_a_run_that_changed_its_hardware_differs_from_itself():
    (row,) = rows_of(moved=[cost(10, 100)._replace(hardware=[A, B])])
    assert row["hardware differs"]
    assert row["hardware"] == f"{A}, then {B}"


def test_seeds_on_other_hardware_differ():
    (row,) = rows_of(mixed=[cost(10, 100), cost(10, 100, B)])
    assert row["hardware differs"]
    assert row["hardware"] == f"{A}; {B}"


def test_another_precision_is_told():
    text = markdown(rows_of(full=[cost(10, 100)], half=[cost(5, 100, precision="bf16-mixed")]))
    assert "The precision differs. full: 32-true; half: bf16-mixed." in text
    assert "precision" not in markdown(rows_of(full=[cost(10, 100)]))


@pytest.mark.parametrize("unknown", [[None], [None, cost(10, 100)]], ids=["one run", "one of two runs"])
def test_unknown_costs_are_dashes(unknown):
    old, new = rows_of("new", old=unknown, new=[cost(10, 100)])
    assert [old[key] for key in ("seconds", "cpu seconds", "passes", "time saved")] == [None] * 4
    lines = [line.split("|") for line in markdown([old, new]).splitlines()]
    assert [cell.strip() for cell in lines[2][-5:-1]] == ["-"] * 4
    assert [cell.strip() for cell in lines[3][-5:-1]] == ["10 s", "20 s", "100", "0 %"]
    assert "--" in latex([old, new])
    reference_unknown, _ = rows_of("old", new=[cost(10, 100)], old=unknown)
    assert reference_unknown["time saved"] is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0 s"),
        (0.0123, "0.0123 s"),
        (45.67, "45.7 s"),
        (119, "119 s"),
        (600, "10 min"),
        (7200, "2 h"),
        (360000, "100 h"),
    ],
)
def test_durations_have_three_digits(seconds, text):
    assert duration(seconds) == text


def test_the_share_of_selections_is_stated_where_there_is_one():
    assert with_selections(duration, 90.0, 0.0) == duration(90.0)
    assert with_selections(count, 4e6, 1e6) == f"{count(4e6)}, of which {count(1e6)} for selections"


@pytest.mark.parametrize(("number", "text"), [(7, "7"), (1234, "1.23k"), (45_600_000, "45.6M"), (123e9, "123G")])
def test_counts_have_three_digits(number, text):
    assert count(number) == text


def test_the_picture_shows_cost_on_a_logarithmic_axis_with_names_that_do_not_overlap():
    rows = rows_of(**{f"method {i}": [cost(10 + i, 10**i), cost(20 + i, 3 * 10**i)] for i in range(1, 4)}, old=[None])
    for row in rows:
        row |= {"pgd low": row["pgd"] - 0.05, "pgd high": row["pgd"] + 0.05}
    for unit, label in (("seconds", "(s)"), ("passes", "passes")):
        axes = draw_costs(rows, "pgd", "about", unit).axes[0]
        assert axes.get_xscale() == "log"
        assert label in axes.get_xlabel()
        assert [text.get_text() for text in axes.texts] == ["method 1", "method 2", "method 3"]
        boxes = [text.get_window_extent() for text in axes.texts]
        assert not any(box.overlaps(other) for i, box in enumerate(boxes) for other in boxes[:i])


@pytest.fixture
def runs(tmp_path, monkeypatch) -> list[str]:
    """Two runs of the command line, of which the second costs three times as many passes."""
    monkeypatch.chdir(tmp_path)
    lit("fit", "--trainer.logger.name", "two")
    lit("fit", "--trainer.logger.name", "eight", "--model.attack.steps", "8")
    return ["two=runs/two", "eight=runs/eight"]


def test_compare_opens_one_run_of_weights_and_biases_for_table_and_both_pictures(runs, monkeypatch):
    opened, logged = [], {}

    class Run:
        def __enter__(self):
            return self

        def __exit__(self, *error):
            return None

        def log(self, values):
            logged.update(values)

    wandb = SimpleNamespace(
        Image=lambda path: path, Table=lambda columns, data: data, init=lambda **given: opened.append(given) or Run()
    )
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    rows = compare(runs, digits(), {"pgd": ATTACK}, gap=False, alarms=False, limit=8, wandb_project="robust")
    assert opened == [{"project": "robust", "job_type": "compare"}]
    assert logged == {
        "compare/picture": "analysis/compare.png",
        "compare_cost/picture": "analysis/compare_cost.png",
        "compare/table": [[*row.values()] for row in rows],
    }


def test_compare_reads_the_costs_of_runs(runs, capsys):
    rows = {row["method"]: row for row in compare(runs, digits(), {"pgd": ATTACK}, alarms=False, reference="eight")}
    assert (rows["two"]["passes"], rows["eight"]["passes"]) == (64 * 2 * 3, 64 * 2 * 9)
    assert 0 < rows["two"]["seconds"] < 60
    assert rows["two"]["CPU time saved"] == 1 - rows["two"]["cpu seconds"] / rows["eight"]["cpu seconds"]
    assert "analysis/compare_cost.png" in capsys.readouterr().out
    assert Path("analysis/compare_cost.png").read_bytes().startswith(b"\x89PNG")
    with Path("analysis/compare.csv").open(newline="") as file:
        written = {row["method"]: row for row in csv.DictReader(file)}
    assert written["two"]["passes"] == "384.0"


def test_a_reference_that_is_not_compared_is_refused_before_anything_is_measured(runs, capsys):
    data = ["--data", "DigitsDataModule", "--reference", "three"]
    assert 'reference="three" ' in refusal(capsys, "compare", *runs, *data)
    assert not Path("analysis").exists()


def test_a_file_whose_name_has_an_equals_sign_needs_no_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("epoch=0.ckpt").touch()
    assert named("epoch=0.ckpt") == ("", Path("epoch=0.ckpt"))
    assert named("first=epoch=0.ckpt") == ("first", Path("epoch=0.ckpt"))


# The surrogate.


@pytest.fixture
def masked(tmp_path, monkeypatch) -> str:
    """A trained net whose logits are multiplied by 1000, so that cross-entropy has no gradient."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(1)
    net = digits_cnn(width=4)
    fit(net, 30)
    with torch.no_grad():
        for parameter in net.head.parameters():
            parameter *= 1000
    description = {"class_path": "lit_robust.nets.digits_cnn", "init_args": {"width": 4}}
    state = {f"net.{key}": value for key, value in net.state_dict().items()}
    torch.save({"state_dict": state, "lit_robust": {"net": description}}, "masked.ckpt")
    return "masked.ckpt"


def study(checkpoint: str) -> Study:
    return begin([checkpoint], digits(), None, "cpu", Path("analysis"))


def test_a_surrogate_imitates_the_net_and_is_the_same_every_time(masked):
    first = surrogate_of(study(masked), study(masked).subjects[0], digits())
    again = Surrogate(first.target, first.images)
    assert first.agreement(study(masked).images) > 0.7
    assert not any(parameter.requires_grad for parameter in first.net.parameters())
    assert not first.net.training
    state = torch.get_rng_state()
    pairs = zip(first.net.state_dict().values(), again.net.state_dict().values(), strict=True)
    assert all(torch.equal(mine, theirs) for mine, theirs in pairs)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_surrogate_breaks_images_that_masked_gradients_hide(masked):
    attack, mine = PGD(eps=0.3, step_size=0.05, steps=10, init="zero"), study(masked)
    (target,) = mine.subjects
    source = surrogate_of(mine, target, digits())
    white, black = mine.survivors(target, attack), mine.survivors(target, attack, source)
    assert white.count("1") > 30
    assert black.count("1") < 10


def test_compare_shows_each_net_the_images_of_its_own_surrogate(masked, monkeypatch, capsys):
    shown = []
    monkeypatch.setattr(
        Study, "alarms", lambda self, net, attacks, sources, classes: shown.append((net, *sources)) or {}
    )
    others = [f"a={masked}", f"b={masked}"]
    compare(others, digits(), {"pgd": ATTACK}, gap=False, surrogate=True, sources=[masked])
    assert [type(source).__name__ for _, *sources in shown for source in sources] == ["Subject", "Surrogate"] * 2
    assert all(source.target is net for net, _, source in shown)
    assert "b: its surrogate predicts " in capsys.readouterr().out


def test_a_finished_comparison_trains_no_surrogate_again(masked, monkeypatch):
    first = compare([masked], digits(), {"pgd": ATTACK}, gap=False, surrogate=True)
    monkeypatch.setattr(Surrogate, "net", None)  # a second training would fail
    assert compare([masked], digits(), {"pgd": ATTACK}, gap=False, surrogate=True) == first
