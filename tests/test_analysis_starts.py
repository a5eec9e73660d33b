"""What the analyses take by default, what they refuse before they measure, and what their pictures say."""

import json
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm

from lit_robust import losses
from lit_robust.analysis import curves, diversity, eigenvalue, stale, surface, sweep, targets, training_curves, transfer
from lit_robust.analysis.diversity import draw as draw_diversity
from lit_robust.analysis.journal import Journal
from lit_robust.analysis.output import check_folder
from lit_robust.analysis.subjects import load_subjects
from lit_robust.analysis.surface import draw as draw_surface
from lit_robust.analysis.sweep import about
from lit_robust.analysis.targets import large_attack
from lit_robust.attacks import FGSM, PGD
from lit_robust.data import DigitsDataModule
from lit_robust.measures.accuracy import describe
from lit_robust.nets import digits_cnn
from tests import test_analysis
from tests.front_door import refusal
from tests.test_analysis import ATTACK, CPU, HEAD, digits, keep_epochs, metrics, read, say_eps

two = test_analysis.two


@pytest.fixture
def drawn(monkeypatch):
    """The figures that verbs write."""
    figures = []
    for name in ("lit_robust.analysis.study", "lit_robust.analysis.training_curves"):
        monkeypatch.setattr(f"{name}.write", lambda out, stem, rows, figure, *more: figures.append(figure))
    return figures


def title(figure) -> str:
    return " ".join((figure.get_suptitle() or figure.axes[0].get_title()).split())


# The eps that the nets were trained with.

VERBS = {
    "sweep": lambda nets: sweep(nets, digits(), limit=4),
    "transfer": lambda nets: transfer(nets, digits(), limit=4),
    "surface": lambda nets: surface(nets, digits(), points=2, limit=4, eigenvalue=False),
    "diversity": lambda nets: diversity(nets, digits(), limit=4),
    "eigenvalue": lambda nets: eigenvalue(nets, digits(), over="eps", limit=4),
    "targets": lambda nets: targets(nets, digits(), limit=4, images=1),
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(("theirs", "eps"), [("0.15", 0.15), ("0.05", 8 / 255), (None, 8 / 255)])
def test_the_default_eps_is_that_of_the_training_if_all_nets_name_one(verb, theirs, eps, two, drawn, monkeypatch):
    used = set()
    for kind in (PGD, FGSM):
        once = kind.__call__
        monkeypatch.setattr(
            kind, "__call__", lambda self, net, x, y, once=once: used.add(self.eps) or once(self, net, x, y)
        )
    monkeypatch.setattr(import_module("lit_robust.analysis.eigenvalue"), "top_eigenvalue", lambda *of: (1.0, True))
    say_eps("0.15")
    if theirs is not None:
        say_eps(theirs, two[1])
    if verb == "diversity":
        assert f"eps={describe(PGD(eps)).partition('eps=')[2].partition(',')[0]}" in titled(verb, two, drawn)
        return
    VERBS[verb](two)
    expected = {"targets": {3 * eps}, "sweep": {k * eps for k in (0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 2, 4)}}
    expected["eigenvalue"] = expected["sweep"]
    assert sorted(used) == pytest.approx(sorted(expected.get(verb, {eps})))


@pytest.mark.parametrize("verb", VERBS)
def test_another_eps_than_that_of_the_training_is_told_once(verb, two, drawn, monkeypatch, capsys):
    monkeypatch.setattr(import_module("lit_robust.analysis.eigenvalue"), "top_eigenvalue", lambda *of: (1.0, True))
    say_eps("0.15")
    VERBS[verb](two[:1])
    assert "eps=0.15 in" not in capsys.readouterr().out
    VERBS[verb](two)
    said = [line for line in capsys.readouterr().out.splitlines() if " have eps=8/255 " in line]
    assert len(said) == 1
    assert "trained: eps=0.15 " in said[0]
    assert ("--eps" if verb == "diversity" else "--attack") in said[0]


def test_the_attacks_own_eps_is_marked_among_the_values(two, drawn, monkeypatch):
    monkeypatch.setattr(import_module("lit_robust.analysis.eigenvalue"), "top_eigenvalue", lambda *of: (1.0, True))
    for values, marked in (([0, 0.2], True), ([0, 0.05], False)):
        sweep(two[:1], digits(), ATTACK, values=values, limit=4)
        eigenvalue(two[:1], digits(), ATTACK, over="eps", values=values, limit=4)
        for figure in drawn[-2:]:
            labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
            assert any("eps=0.1" in label for label in labels) == marked


def titled(verb: str, nets, drawn) -> str:
    VERBS[verb](nets)
    return title(drawn[-1])


def test_the_epochs_of_runs_meet_the_eps_of_their_training(two, drawn, monkeypatch):
    used = set()
    once = PGD.__call__
    monkeypatch.setattr(PGD, "__call__", lambda self, *of: (used.add(self.eps) if self.steps else 0) or once(self, *of))
    say_eps("0.15")
    say_eps("0.15", two[1])
    keep_epochs(two)
    metrics(Path("runs/trained/version_0"))
    stale(two[:1], digits(), limit=4)
    curves(two[:1], digits(), limit=4)
    assert used == {0.15}


def test_the_large_eps_is_a_multiple_of_the_trainings_and_at_most_black_to_white(two):
    say_eps("0.2")
    (subject,) = load_subjects(two[:1], CPU)
    assert large_attack([subject]).eps == pytest.approx(0.6)
    say_eps("0.5")
    assert large_attack([subject]).eps == 1.0
    kept = torch.load(subject.path)
    kept["hyper_parameters"]["attack"]["init_args"]["norm"] = "l2"
    torch.save(kept, subject.path)
    assert (large_attack([subject]).eps, large_attack([subject]).norm) == (1.5, "l2")


# Runs and their epochs.


def test_curves_of_equal_names_are_told_apart_by_their_paths(two):
    for parent in ("runs", "other"):
        metrics(Path(parent, "pgd/version_0"))
    rows = curves(["runs/pgd/version_0", "other/pgd"])
    assert [row["run"] for row in rows] == ["runs/pgd/version_0"] * 3 + ["other/pgd/version_0"] * 3


@pytest.mark.parametrize("given", [["runs/pgd", "runs/pgd/version_0"], ["a=runs/pgd", "a=other/pgd"], [], "runs/pgd"])
def test_curves_that_name_a_run_twice_or_none_are_refused(given, two):
    for parent in ("runs", "other"):
        metrics(Path(parent, "pgd/version_0"))
    with pytest.raises(ValueError, match=r"^checkpoints="):
        curves(given)


def test_curves_take_the_folder_of_a_run_or_a_checkpoint_as_other_verbs_do(two):
    for version in (0, 1):
        metrics(Path(f"runs/pgd/version_{version}"))
    checkpoint = Path("runs/pgd/version_0/checkpoints/last.ckpt")
    checkpoint.parent.mkdir()
    checkpoint.touch()
    assert {row["run"] for row in curves(["runs/pgd"])} == {"pgd/version_1"}
    assert {row["run"] for row in curves([str(checkpoint)])} == {"pgd/version_0"}


def test_a_run_without_a_finished_epoch_is_not_left_out_silently(two):
    metrics(Path("runs/pgd/version_0"))
    Path("runs/begun").mkdir()
    Path("runs/begun/metrics.csv").write_text(HEAD)
    with pytest.raises(ValueError, match="begun"):
        curves(["runs/pgd", "runs/begun"])


def test_a_run_that_is_given_twice_is_refused_by_stale(two):
    keep_epochs(two)
    with pytest.raises(ValueError, match="twice"):
        stale(two[:1] * 2, digits(), ATTACK)


@pytest.mark.parametrize("verb", [stale, eigenvalue])
@pytest.mark.parametrize("name", ["best", "best-v1"])
def test_the_best_epoch_is_not_a_kept_one(verb, name, two):
    keep_epochs(two)
    folder = Path("runs/trained/version_0/checkpoints")
    (folder / "epoch=0.ckpt").rename(folder / f"{name}.ckpt")
    with pytest.raises(ValueError, match=r"kept 1 epoch .*keep_epochs\.yaml"):
        verb(two[:1], digits(), ATTACK)


# Surfaces.


#: The losses of a plane of input space begin with one that gives the direction of the gradient.
@pytest.mark.parametrize(("space", "before"), [("weights", 0), ("input", 1)])
def test_a_killed_surface_goes_on_in_the_row_where_it_stopped(space, before, two, monkeypatch):
    given = {"space": space, "points": 5, "limit": 16, "eigenvalue": False}
    expected = surface(two, digits(), ATTACK, **given, out=Path("whole"))
    once, points = losses.ce, []
    stop = 2 * before + 33  # in the second row of the second net

    def killed(logits, y):
        points.append(len(y))
        if len(points) == stop:
            raise KeyboardInterrupt
        return once(logits, y)

    monkeypatch.setattr(losses, "ce", killed)
    with pytest.raises(KeyboardInterrupt):
        surface(two, digits(), ATTACK, **given)
    assert len(Path("analysis/journal.jsonl").read_text().splitlines()) == 6
    assert surface(two, digits(), ATTACK, **given) == expected
    assert len(points) == stop + 2 * before + 20


def test_the_net_itself_is_a_point_of_every_plane_with_an_odd_number_of_points(two):
    rows = surface(two[:1], digits(), ATTACK, space="input", points=11, limit=4, eigenvalue=False)
    assert (0.0, 0.0) in {(row["a"], row["b"]) for row in rows}


def test_a_surface_shows_small_losses_beside_large_ones():
    """On a linear scale the second net would be uniform."""
    rows = [
        {"net": net, "a": a, "b": b, "loss": scale * (1 + abs(a) + abs(b))}
        for net, scale in (("large", 10.0), ("small", 0.01))
        for a in (-1.0, 0.0, 1.0)
        for b in (-1.0, 0.0, 1.0)
    ]
    figure = draw_surface(rows, "weights", "")
    meshes = [axes.collections[0] for axes in figure.axes[:2]]
    assert all(isinstance(mesh.norm, LogNorm) for mesh in meshes)
    assert meshes[0].norm.vmin == meshes[1].norm.vmin == 0.01
    assert meshes[0].norm.vmax == meshes[1].norm.vmax == 30
    colours = meshes[1].norm(meshes[1].get_array())
    assert colours.max() - colours.min() > 0.1
    assert "logarithmic" in figure.axes[-1].get_ylabel()


@pytest.mark.parametrize("of", [(0.0, 0.0), (1.0, 1.0), (0.0, 5.0), (float("nan"), 1.0), (float("inf"), 1.0)])
def test_losses_without_a_logarithm_are_drawn(of, tmp_path):
    rows = [{"net": "a", "a": a, "b": b, "loss": of[a]} for a in (0, 1) for b in (0, 1)]
    draw_surface(rows, "input", "").savefig(tmp_path / "a.png")


def test_a_surface_says_what_it_shows(two, drawn):
    given = {"points": 2, "limit": 4}
    surface(two[:1], digits(), ATTACK, **given, eigenvalue=False)
    assert title(drawn[-1]) == f"Loss of images of {describe(ATTACK)}, crafted anew at each point; 4 test images"
    surface(two[:1], digits(), ATTACK, **given, craft="centre", eigenvalue=False)
    assert "crafted once, for the net at the cross" in title(drawn[-1])
    surface(two[:1], digits(), ATTACK, **given, space="input", eigenvalue=False)
    assert "PGD" not in title(drawn[-1])
    assert "no attack; unit eps=0.1" in title(drawn[-1])
    surface(two[:1], digits(), ATTACK, **given, space="input")
    assert f"eigenvalue under {describe(ATTACK)}" in title(drawn[-1])


# Pictures.


@pytest.mark.parametrize("nets", [1, 2, 3])
def test_no_text_of_the_confusion_matrices_is_cut_off(nets):
    matrices = {(f"net {k}", kind): torch.eye(10) for k in range(nets) for kind in ("nuclear", "Frobenius")}
    figure = draw_diversity(matrices, [f"{kind}Norm(eps=0.1, loss=None)" for kind in ("Nuclear", "Frobenius")], 40)
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    width, height = renderer.get_canvas_width_height()
    for axes in figure.axes:
        for text in (axes.title, axes.xaxis.label, axes.yaxis.label):
            box = text.get_window_extent(renderer)
            assert 0 <= box.x0 <= box.x1 <= width, text
            assert 0 <= box.y0 <= box.y1 <= height, text
    top = figure._suptitle.get_window_extent(renderer)
    assert all(not top.overlaps(axes.title.get_window_extent(renderer)) for axes in figure.axes if axes.get_title())


@pytest.mark.parametrize(
    ("attack", "over", "scaled", "said"),
    [
        (PGD(0.2, 0.05, steps=20), "eps", False, "PGD(step_size=0.05, steps=20), step size fixed"),
        (PGD(0.2, 0.05, steps=20), "eps", True, "PGD(steps=20), step size scaled with eps"),
        (PGD(0.2, steps=20), "eps", False, "PGD(steps=20), step size scaled with eps"),
        (PGD(0.2, 0.05, steps=20), "steps", False, "PGD(eps=0.2, step_size=0.05), step size fixed"),
        (PGD(0.2, steps=20, keep="worst"), "steps", False, "PGD(eps=0.2, keep=worst), step size 2.5 eps / steps"),
        (PGD(0.2, 0.05, steps=5, restarts=3), "restarts", False, "PGD(eps=0.2, step_size=0.05, steps=5)"),
        (FGSM(0.2), "eps", False, "FGSM()"),
    ],
)
def test_a_title_leaves_out_what_is_varied_and_says_how_the_step_goes_along(attack, over, scaled, said):
    assert about(attack, over, scaled) == said


def test_pictures_over_eps_do_not_name_one(two, drawn):
    sweep(two[:1], digits(), ATTACK, values=[0, 0.1], limit=4, step="scaled")
    eigenvalue(two[:1], digits(), ATTACK, over="eps", values=[0, 0.1], limit=4)
    assert ["PGD(steps=4), step size scaled with eps, 4 test images" in title(figure) for figure in drawn] == [True] * 2


def test_curves_explain_the_marks_that_are_there_and_cover_no_point(two):
    metrics(Path("runs/dat/version_0"))
    rows = curves(["runs/dat"])
    figure = training_curves.draw(rows)
    assert figure.axes[0].get_title() == "dash-dotted: the attack begins; dotted: the rate drops"
    styles = [{line.get_linestyle() for line in axes.lines} for axes in figure.axes]
    assert styles[0] & styles[1] == {"-"}  # dashed is "clean" below, and no mark above
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    for axes in figure.axes:
        assert axes.get_legend().get_window_extent(renderer).x0 >= axes.get_window_extent(renderer).x1
    plain = [{**row, "adversarial": 1.0, "rate": 0.1} for row in rows]
    assert training_curves.draw(plain).axes[0].get_title() == ""


# Bad inputs.

DIGITS = ["--data", "DigitsDataModule", "--data.test_size", "40"]
VERBS_OF_NETS = ["sweep", "transfer", "surface", "diversity", "targets", "eigenvalue", "stale", "compare", "report"]


def begun(verb: str, two) -> list[str]:
    """The verb and nets that it takes."""
    if verb in ("stale", "curves"):
        keep_epochs(two)
        metrics(Path("runs/trained/version_0"))
    return [verb, *two[:1], *(["--over", "eps"] if verb == "eigenvalue" else [])]


@pytest.mark.parametrize("verb", [*VERBS_OF_NETS, "curves"])
def test_a_file_in_place_of_the_folder_is_refused_before_anything_is_measured(verb, two, capsys, monkeypatch):
    Path("text.ckpt").write_text("not a folder")
    words = begun(verb, two)
    monkeypatch.setattr(PGD, "__call__", None)
    for out in ("text.ckpt", "text.ckpt/below"):
        said = refusal(capsys, *words, *DIGITS, "--out", out)
        assert f"out={out} " in said
        assert "--out" in said


@pytest.mark.parametrize("verb", [*VERBS_OF_NETS, "curves"])
def test_without_wandb_its_project_is_refused_before_anything_is_measured(verb, two, capsys, monkeypatch):
    words = begun(verb, two)
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setattr(PGD, "__call__", None)
    data = [] if verb == "curves" else DIGITS
    assert "wandb_project=mine " in refusal(capsys, *words, *data, "--wandb_project", "mine")
    assert not Path("analysis").exists()


def test_a_folder_that_holds_no_journal_but_a_folder_of_its_name_is_refused(tmp_path):
    (tmp_path / "journal.jsonl").mkdir()
    with pytest.raises(ValueError, match=r"^out="):
        check_folder(tmp_path)
    (tmp_path / "nowhere").symlink_to(tmp_path / "none")
    with pytest.raises(ValueError, match=r"^out="):
        check_folder(tmp_path / "nowhere")
    check_folder(tmp_path / "new" / "folder")
    assert not (tmp_path / "new").exists()


class Wide(DigitsDataModule):
    """Digits with black margins."""

    def test_dataloader(self):
        for batch in super().test_dataloader():
            yield batch._replace(x=torch.nn.functional.pad(batch.x, (16, 16)))


@pytest.mark.parametrize("verb", [*VERBS_OF_NETS, "curves"])
def test_images_of_another_shape_are_refused_in_one_sentence(verb, two, capsys):
    words = begun(verb, two)
    said = refusal(capsys, *words, "--data", f"{__name__}.Wide", *DIGITS[2:])
    assert "1 x 8 x 40" in said


def test_labels_beyond_the_nets_classes_are_refused(two):
    with pytest.raises(ValueError, match=r"4 classes, .*data 9"):
        sweep([weights(4)], digits(), ATTACK, net=digits_cnn(4, width=4))
    assert sweep([weights(12)], digits(), ATTACK, values=[0], net=digits_cnn(12, width=4))
    with pytest.raises(ValueError, match=r"12 classes, .*data 10"):
        diversity([weights(12)], digits(), net=digits_cnn(12, width=4))
    with pytest.raises(ValueError, match="4 classes"):
        transfer([weights(4)], digits(), sources=two[:1], net=digits_cnn(4, width=4))


def weights(classes: int) -> str:
    torch.save(digits_cnn(classes, width=4).state_dict(), f"foreign_{classes}.pth")
    return f"foreign_{classes}.pth"


@pytest.mark.parametrize(
    ("over", "values", "said"),
    [
        ("steps", "[.nan]", "values=nan "),
        ("eps", "[.nan]", "values=nan "),
        ("restarts", "[.inf]", "values=inf "),
        ("steps", "[-1]", "values=-1.0 "),
        ("restarts", "[0]", "values=0.0 "),
        ("eps", "[8]", "values=8.0 "),
        ("steps", "[1.5]", "values=1.5 of steps "),
    ],
)
def test_values_that_no_attack_can_have_are_refused(over, values, said, two, capsys):
    assert said in refusal(capsys, "sweep", *two, *DIGITS, "--over", over, "--values", values)
    if over == "eps":
        assert said in refusal(capsys, "eigenvalue", *two, *DIGITS, "--over", over, "--values", values)


def test_a_sweep_of_one_point_says_so(two, capsys):
    sweep(two[:1], digits(), ATTACK, values=[0], limit=4)
    assert "values=[0] gives one point" in capsys.readouterr().out
    sweep(two[:1], digits(), ATTACK, values=[0, 0.1], limit=4)
    assert "one point" not in capsys.readouterr().out


@pytest.mark.parametrize("eps", ["8", "-1", ".nan", "much"])
def test_diversity_refuses_an_eps_by_its_name(eps, two, capsys):
    assert "eps" in refusal(capsys, "diversity", *two, *DIGITS, "--eps", eps)


def test_diversity_of_two_classes_is_refused(two):
    data = digits()
    data.num_classes = 2
    with pytest.raises(ValueError, match="at least 3 classes"):
        diversity(two, data)


@pytest.mark.parametrize("line", ["5", "null", '[["key"], 1]', "[1, 2]", '"ab"', "\udcff"])
def test_a_line_that_is_none_of_the_journals_is_passed_over(line, tmp_path):
    path = tmp_path / "journal.jsonl"
    Journal(path, CPU).get(("key",), lambda: 1)
    path.write_bytes(line.encode(errors="surrogateescape") + b"\n" + path.read_bytes())
    assert Journal(path, CPU).get(("key",), lambda: "anew") == 1
    assert json.loads(path.read_text(errors="replace").splitlines()[-1])[1] == 1


def test_the_tables_hold_the_attack_of_the_trained_eps(two):
    say_eps("0.15")
    sweep(two[:1], digits(), over="steps", values=[1, 2], limit=4)
    assert {row["attack"] for row in read("analysis/sweep_steps.csv")} == {
        f"PGD(eps=0.15, step_size=0.0375, steps={steps})" for steps in (1, 2)
    }


def test_the_readmes_pictures_are_copied_from_what_the_verbs_write(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "scripts"))
    script = import_module("mnist_pictures")

    def verb(checkpoints, data, device, out):
        assert [one.partition("=")[2] for one in checkpoints] == ["runs/a@0/checkpoints/last.ckpt"]
        out.mkdir()
        (out / "targets.png").write_bytes(b"drawn")

    monkeypatch.setattr(script, "PICTURES", {"targets": ("targets.png", {"net": "a@0"}, verb)})
    monkeypatch.setattr(script, "RESULTS", tmp_path)
    script.main(["--runs", "runs", "--out", str(tmp_path / "out"), "--only", "targets"])
    assert (tmp_path / "mnist_targets.png").read_bytes() == b"drawn"
