"""What ``compare`` and ``report`` make of nets without gradients, foreign weights, and files with attacks."""

import re
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from lit_robust import require
from lit_robust.analysis import compare, report, sweep
from lit_robust.analysis.compare import default_attacks
from lit_robust.analysis.compare_pictures import draw_costs
from lit_robust.analysis.methods import Method, by_method, table, unit_of_cost
from lit_robust.analysis.start import begin
from lit_robust.analysis.subjects import Subject, device_of, load_subjects
from lit_robust.analysis.surrogate import surrogate_of
from lit_robust.analysis.tables import html, latex, markdown
from lit_robust.attacks import PGD, AutoAttack, Square
from lit_robust.attacks.autoattack_findings import Findings, hand_on
from lit_robust.attacks.autoattack_package import Package
from lit_robust.cli import main
from lit_robust.costs import Cost
from lit_robust.nets import digits_cnn
from tests.front_door import CONFIGS, lit, refusal, tiny
from tests.masked import NumpyStep, masked
from tests.test_analysis import ATTACK, digits, fit, say_eps, two  # noqa: F401  # a fixture
from tests.test_report import Page

PGD_ONLY = {"pgd": ATTACK}
DATA = ("--data", "DigitsDataModule", "--data.test_size", "24", "--data.val_size", "16", "--data.train_size", "64")
NET = ("--net", "lit_robust.nets.digits_cnn", "--net.width", "8")
ONE_ATTACK = ("--attacks", "{pgd: {class_path: PGD, init_args: {eps: 0.1, steps: 2}}}")


# Nets without a graph from pixels to logits.


def blind_net(width: int = 4) -> nn.Module:
    return masked(NumpyStep(), digits_cnn(width=width))


@pytest.fixture
def blind(two) -> list[str]:  # noqa: F811
    """A run of a trained net, and the weights of that net behind a step without a graph."""
    net = blind_net()
    net.net.load_state_dict(load_subjects(two[:1], torch.device("cpu"))[0].net.state_dict())
    torch.save(net.state_dict(), "blind.pth")
    return ["blind=blind.pth", "honest=runs/trained"]


@pytest.mark.parametrize("alarms", [True, False])
def test_a_net_without_a_graph_is_an_alarm_and_the_comparison_goes_on(blind, alarms, capsys):
    rows = {row["method"]: row for row in compare(blind, digits(), PGD_ONLY, alarms=alarms, net=blind_net())}
    assert rows["blind"]["pgd"] == rows["blind"]["clean"] == rows["honest"]["clean"] > rows["honest"]["pgd"]
    assert "no_graph" in rows["blind"]["alarms"].split()
    assert rows["honest"]["alarms"] == ""
    assert "blind: ALARM no_graph: " in capsys.readouterr().out


def test_an_attack_without_gradients_is_run_on_a_net_without_a_graph(blind):
    (row, _) = compare(blind, digits(), {"pgd": ATTACK, "square": Square(0.3, 50)}, gap=False, net=blind_net())
    assert row["method"] == "blind"
    assert row["square"] < row["pgd"] == row["clean"]


def test_autoattack_on_a_net_without_a_graph_repeats_the_clean_accuracy(blind):
    (row,) = compare(blind[:1], digits(), gap=False, alarms=False, limit=8, net=blind_net())
    assert row["autoattack"] == row["gama40"] == row["clean"]


def test_a_report_shows_the_alarm_of_a_net_without_a_graph(blind):
    page = Page(report(blind, digits(), PGD_ONLY, examples=2, net=blind_net()))
    assert "blind: no_graph." in page.sections["Alarms"]
    assert "No alarm for honest: the first 40 test images " in page.sections["Alarms"]
    assert "no graph" in page.sections["Adversarial images"]
    assert "adversarial images of honest" in [picture["alt"] for picture in page.pictures()]


def test_another_verb_names_the_net_without_a_graph(blind):
    with pytest.raises(ValueError, match=r"^blind: .*no graph"):
        sweep(blind, digits(), attack=ATTACK, values=[0.1], net=blind_net())


def test_a_sweep_after_compare_does_not_find_the_clean_accuracy(blind):
    compare(blind, digits(), PGD_ONLY, gap=False, alarms=False, net=blind_net())
    with pytest.raises(ValueError, match=r"^blind: "):
        sweep(blind, digits(), attack=ATTACK, over="steps", values=[4], net=blind_net())


def test_a_source_without_a_graph_is_refused(blind):
    with pytest.raises(ValueError, match=r"^sources=\['blind=blind.pth'\] .* no graph"):
        compare(blind[1:], digits(), PGD_ONLY, sources=blind[:1], net=blind_net())


def test_a_net_without_a_graph_has_no_surrogate(blind, capsys):
    compare(blind, digits(), PGD_ONLY, gap=False, surrogate=True, net=blind_net())
    out = capsys.readouterr().out
    assert "blind has no surrogate" in out
    assert "honest: its surrogate predicts" in out


# Foreign weights.


@pytest.fixture
def foreign(tmp_path, monkeypatch) -> nn.Module:
    """The weights of a trained net, without a word of how it is built."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(1)
    net = digits_cnn(width=8)
    fit(net, 30)
    torch.save(net.state_dict(), "foreign.pth")
    return net


@pytest.mark.parametrize("verb", ["compare", "report"])
def test_foreign_sources_are_built_like_the_other_nets(verb, foreign, capsys):
    lit("fit")
    main([verb, "mine=runs/tiny", *DATA, *NET, *ONE_ATTACK, "--sources", "[s=foreign.pth]", "--gap", "false"])
    assert f"analysis/{verb}." in capsys.readouterr().out


@pytest.mark.parametrize("verb", ["compare", "report"])
def test_a_foreign_net_has_a_surrogate(verb, foreign, capsys):
    main([verb, "theirs=foreign.pth", *DATA, *NET, *ONE_ATTACK, "--surrogate", "true", "--gap", "false"])
    assert "theirs: its surrogate predicts " in capsys.readouterr().out


def test_a_foreign_surrogate_starts_from_random_weights_and_learns(foreign, monkeypatch):
    monkeypatch.setattr("lit_robust.analysis.surrogate.EPOCHS", 0)
    study = begin(["foreign.pth"], digits(), None, "cpu", Path("analysis"), digits_cnn(width=8))
    untrained = surrogate_of(study, study.subjects[0], digits())
    assert untrained.agreement(study.images) < 0.5
    monkeypatch.setattr("lit_robust.analysis.surrogate.EPOCHS", 10)
    assert surrogate_of(study, study.subjects[0], digits()).agreement(study.images) > 0.7


class Own(nn.Module):
    """A layer that cannot be reset."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return self.scale * x


def test_a_layer_that_cannot_be_reset_is_named(foreign):
    net = nn.Sequential(Own(), foreign)
    torch.save(net.state_dict(), "own.pth")
    with pytest.raises(ValueError, match=r"^surrogate=True .*Own .*reset_parameters"):
        compare(["own.pth"], digits(), PGD_ONLY, gap=False, surrogate=True, net=net)


# Seeds of one method.


def test_runs_of_one_short_name_are_no_seeds_although_a_folder_above_them_has_the_sign_of_seeds(tmp_path):
    for parent in "ab":
        folder = tmp_path / "me@home" / parent / "run"
        folder.mkdir(parents=True)
        torch.save({"state_dict": {}}, folder / "net.ckpt")
    paths = [str(tmp_path / "me@home" / parent / "run" / "net.ckpt") for parent in "ab"]
    runs = [Subject(path, Path(path), nn.Flatten(), path) for path in paths]
    assert by_method(runs) == {run.name: [run] for run in runs}
    seeds = [Subject(f"f@{number}", Path(path), nn.Flatten(), path) for number, path in enumerate(paths)]
    assert by_method(seeds) == {"f": seeds}


@pytest.mark.parametrize("verb", [compare, report])
def test_one_checkpoint_is_not_counted_as_several_seeds(verb, two, monkeypatch):  # noqa: F811
    monkeypatch.setattr(PGD, "__call__", None)  # an attack would fail
    with pytest.raises(ValueError, match=r"^f@0=.* f@2="):
        verb(["f@0=runs/trained", "f@1=runs/fresh", "f@2=runs/trained"], digits(), PGD_ONLY)


@pytest.mark.parametrize("verb", [compare, report])
def test_methods_of_two_classes_do_not_share_a_name(verb, two, monkeypatch):  # noqa: F811
    for name, path in zip(("PGDAT", "TRADES"), ("trained", "fresh"), strict=True):
        file = f"runs/{path}/version_0/checkpoints/last.ckpt"
        torch.save(torch.load(file) | {"hyper_parameters": {"_class_path": f"lit_robust.defenses.{name}"}}, file)
    monkeypatch.setattr(PGD, "__call__", None)
    with pytest.raises(ValueError, match=r"^f@0 .*PGDAT.* f@1 .*TRADES"):
        verb(["f@0=runs/trained", "f@1=runs/fresh"], digits(), PGD_ONLY)


# The table.


def methods(seeds: int, alarms: tuple[str, ...] = ()) -> list[Method]:
    """A method with 296 of 400 images left, by seeds that differ by 2 points each."""
    images = (torch.arange(400) < 296).double()
    runs = [0.74 + 0.02 * (seed - (seeds - 1) / 2) for seed in range(seeds)]
    return [Method("a", {"pgd": images}, {"pgd": runs}, alarms, [None] * seeds)]


def shown(seeds: int, rank: int | None = None, alarms: tuple[str, ...] = ()) -> list[str]:
    rows = table([(rank, method) for method in methods(seeds, alarms)], ["pgd"], None)
    return [markdown(rows), latex(rows), html(rows).replace("<br>", " ")]


@pytest.mark.parametrize("language", range(3))
def test_one_seed_has_the_interval_over_images(language):
    text = shown(1)[language]
    assert "74.0 [69.5, 78.1]" in text
    assert "Accuracies in % over 400 test images, [95 % interval over images]." in text
    assert "least" not in text
    assert "Rank -: fewer than 3 seeds." in text


@pytest.mark.parametrize("language", range(3))
def test_several_seeds_have_their_range_beside_the_interval(language):
    text = shown(3, rank=1)[language]
    assert "74.0 [69.5, 78.1] (72.0 to 76.0)" in text
    assert "[95 % interval over images]; of several seeds the mean (least to most)." in text
    assert "Rank -" not in text


def test_the_reasons_of_a_missing_rank_are_told():
    assert "Rank -: an alarm." in shown(3, None, ("scaling",))[0]
    assert "Rank -: attacks in bfloat16 only." in shown(3)[0]


def test_a_comparison_says_that_it_found_no_alarm(two, capsys):  # noqa: F811
    compare(two[:1], digits(), PGD_ONLY, gap=False)
    said = "No alarm for trained: the first 40 test images "
    assert said in capsys.readouterr().out
    assert said in Path("analysis/compare.md").read_text()
    compare(two[:1], digits(), PGD_ONLY, gap=False, alarms=False)
    assert "were not looked for" in capsys.readouterr().out


def test_a_comparison_in_l2_says_once_that_square_is_not_run(two, capsys):  # noqa: F811
    for attack, said in ((replace(ATTACK, norm="l2"), 1), (ATTACK, 0)):
        compare(two, digits(), {"pgd": attack}, gap=False)
        assert capsys.readouterr().out.count("Square was not run") == said


# The attacks.


def test_autoattack_is_one_of_the_default_attacks(two, capsys):  # noqa: F811
    say_eps("0.1")
    (row,) = compare(two[:1], digits(), gap=False, alarms=False, limit=8)
    assert [key.removesuffix(" low") for key in row if key.endswith(" low")] == [
        "clean", "pgd20", "pgd20_margin", "gama40", "autoattack",
    ]  # fmt: skip
    assert row["autoattack"] <= min(row["pgd20"], row["gama40"])
    assert "autoattack is AutoAttack(eps=0.1" in capsys.readouterr().out
    (row,) = compare(two[:1], digits(), autoattack=False, gap=False, alarms=False, limit=8)
    assert "autoattack" not in row


def test_autoattack_follows_the_norm_and_the_number_of_classes(two):  # noqa: F811
    subjects = load_subjects(two[:1], torch.device("cpu"))
    assert default_attacks(subjects, 10)[0]["autoattack"] == AutoAttack()
    assert default_attacks(subjects, 3)[0]["autoattack"] == AutoAttack(version="v1")
    attacks, said = default_attacks(subjects, 2)
    assert "autoattack" not in attacks
    (_, line) = said  # after the one about eps
    assert re.search("^AutoAttack .* 3 classes, .* has 2:", line)
    kept = torch.load(subjects[0].path)
    kept["hyper_parameters"] = {"attack": {"class_path": "PGD", "init_args": {"eps": 0.5, "norm": "l2"}}}
    torch.save(kept, subjects[0].path)
    assert default_attacks(subjects, 10)[0]["autoattack"] == AutoAttack(0.5, "l2")


def test_what_it_finds_is_told_once_for_each_net_also_when_the_comparison_goes_on(two, monkeypatch):  # noqa: F811
    nets = []

    def attack(self, net, x, y):
        nets.append(net)
        if len(nets) == 5:  # in the second net, whose images come in three batches
            raise KeyboardInterrupt
        hand_on(Findings({"it | random": len(x) - 1, "it | attacked": len(x)}))
        return x

    monkeypatch.setattr(AutoAttack, "__call__", attack)
    with pytest.raises(KeyboardInterrupt), pytest.warns(UserWarning, match="trained: it"):
        compare(two, digits(), {"autoattack": AutoAttack()}, gap=False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        compare(two, digits(), {"autoattack": AutoAttack()}, gap=False)
    assert len(nets) == 5 + 2
    told = [str(one.message) for one in caught]
    assert [one.split(": the net")[0] for one in told] == [
        "trained: it, at 37 of 40 images",
        "fresh/version_0: it, at 37 of 40 images",
    ]


def test_without_its_package_it_can_be_left_out(two, monkeypatch):  # noqa: F811
    def missing(self):
        raise ImportError("no package")

    monkeypatch.setattr(Package, "__init__", missing)
    with pytest.raises(ImportError, match=r"autoattack=false\.$"):
        compare(two, digits(), gap=False, alarms=False)
    with pytest.raises(ImportError, match="no package"):
        compare(two, digits(), {"mine": AutoAttack()})
    assert not Path("analysis/compare.csv").exists()


FAST = ("--gap", "false", "--alarms", "false", "--limit", "8")


@pytest.mark.parametrize("verb", ["compare", "report"])
def test_the_attacks_of_a_fragment_are_those_of_the_comparison(verb, two, capsys):  # noqa: F811
    fragment = CONFIGS / "attack/margins.yaml"
    main([verb, two[0], "-c", tiny(Path()), "-c", str(fragment), *FAST])
    assert "not use" not in capsys.readouterr().out
    page = Path(f"analysis/{verb}.{'md' if verb == 'compare' else 'html'}").read_text()
    assert "cw40 is CWPGD(" in page
    assert "multi_targeted is MultiTargetedPGD(" in page
    assert "autoattack is" not in page
    assert "pgd20 is" not in page


def test_given_attacks_beat_those_of_a_fragment(two, capsys):  # noqa: F811
    main(["compare", two[0], *DATA, "-c", str(CONFIGS / "attack/margins.yaml"), *ONE_ATTACK, *FAST])
    out = capsys.readouterr().out
    assert "pgd is PGD(" in out
    assert "cw40" not in out


def test_the_test_attacks_of_a_whole_configuration_are_said_not_to_be_used(two, capsys):  # noqa: F811
    main(["compare", two[0], "-c", tiny(Path()), "--autoattack", "false", *FAST])
    out = capsys.readouterr().out
    assert re.search(r"does not use .* tiny\.yaml \(pgd2\), .* data, too: ", out)
    assert "pgd20 is PGD(" in out
    main(["compare", two[0], "-c", tiny(Path()), *ONE_ATTACK, *FAST])
    assert "does not use" not in capsys.readouterr().out


def test_a_file_of_which_nothing_is_used_is_named(two, capsys):  # noqa: F811
    fragment = str(CONFIGS / "attack/margins.yaml")
    main(["sweep", two[0], *DATA, "-c", fragment, "--values", "[0]", "--limit", "8"])
    assert f"sweep uses nothing of -c {fragment}: " in capsys.readouterr().out


# The picture of the costs.


def costly(*seconds: float, hardware: str = "a CPU, 1 thread") -> list[dict]:
    images = (torch.arange(400) < 200).double()
    of = [Cost(s, 3 * s, int(1000 * s), int(1000 * s), [hardware], ["32-true"]) for s in seconds]
    made = [Method(f"m{i}", {"pgd": images}, {"pgd": [0.5]}, (), [cost]) for i, cost in enumerate(of)]
    return table([(None, method) for method in made], ["pgd"], None)


@pytest.mark.parametrize(
    "seconds", [(5, 60), (5, 6), (5,), (5, 5.01), (0.01, 90), (1, 1e7), (7, 40), (4000, 90000)], ids=str
)
@pytest.mark.parametrize("unit", ["seconds", "cpu seconds", "passes"])
def test_at_least_three_costs_are_labelled_and_none_twice(seconds, unit):
    axes = draw_costs(costly(*seconds), "pgd", "about", unit).axes[0]
    low, high = axes.get_xlim()
    labels = [tick.get_text() for tick in axes.get_xticklabels()]
    assert all(low <= tick <= high for tick in axes.get_xticks())
    assert 3 <= len(labels) == len({*labels}) <= 8
    assert not axes.get_xticklabels(minor=True)
    boxes = [tick.get_window_extent() for tick in axes.get_xticklabels()]
    assert not any(box.overlaps(other) for i, box in enumerate(boxes) for other in boxes[:i])
    expected = {"seconds": "wall-clock time", "cpu seconds": "CPU time", "passes": "passes"}
    assert expected[unit] in axes.get_xlabel()


@pytest.mark.parametrize(
    ("hardware", "unit"),
    [("a CPU, 1 thread", "cpu seconds"), ("2 x a CPU, 4 threads", "cpu seconds"), ("a GPU", "seconds")],
)
def test_times_on_a_processor_are_its_own(hardware, unit):
    assert unit_of_cost(costly(1, 2, hardware=hardware)) == unit


# Words and devices.


def test_a_single_choice_is_named_alone(two, capsys):  # noqa: F811
    with pytest.raises(ValueError, match=r'^reference="b" is unknown: choose a\.$'):
        require.one_of("reference", "b", ("a",))
    said = refusal(capsys, "compare", "a=runs/trained", *DATA, "--reference", "b")
    assert said == 'reference="b" is unknown: choose a.'


@pytest.mark.parametrize("has_gpu", [True, False])
@pytest.mark.parametrize("name", ["abacus", "meta", "cuda:99", "xpu"])
def test_only_devices_that_exist_are_offered(has_gpu, name, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    choices = "auto, cpu or cuda" if has_gpu else "auto or cpu"
    with pytest.raises(ValueError, match=f'^device="{name}" .*: choose {choices}\\.$'):
        device_of(name)


def test_a_missing_gpu_is_not_offered(two, capsys):  # noqa: F811
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    said = refusal(capsys, "compare", two[0], *DATA, "--device", "cuda")
    assert said.startswith('device="cuda" ')
    assert said.endswith(": choose auto or cpu.")
