"""The analyses: what they measure, write and refuse, and that a stopped one goes on."""

import csv
import math
import os
import shutil
from pathlib import Path

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import nn

from lit_robust import losses
from lit_robust.analysis import compare, curves, diversity, eigenvalue, stale, surface, sweep, targets, transfer
from lit_robust.analysis.compare import Method, ranked
from lit_robust.analysis.diversity import entropy_score
from lit_robust.analysis.eigenvalue import draw as draw_eigenvalues
from lit_robust.analysis.journal import PACKAGE, Journal, code_of
from lit_robust.analysis.stale import epochs_of
from lit_robust.analysis.study import Study
from lit_robust.analysis.subjects import Images, adversarial_images, load_subjects, read_test_images
from lit_robust.analysis.surface import filter_normalised
from lit_robust.analysis.sweep import crosses, strengths
from lit_robust.analysis.tables import latex, markdown
from lit_robust.analysis.training_curves import draw
from lit_robust.attacks import PGD, AutoAttack
from lit_robust.attacks.hessian import top_eigenvalue
from lit_robust.cli import main
from lit_robust.data import DigitsDataModule
from lit_robust.defenses import NuAT
from lit_robust.defenses.hybrid import EvenShare
from lit_robust.losses import ce, probability_margin
from lit_robust.nets import digits_cnn
from lit_robust.nets.folded import unfolded
from tests.front_door import refusal
from tests.methods import ONE_STEP, build
from tests.tiny import TinyNet, images, loader, trainer

CPU = torch.device("cpu")
ATTACK = PGD(eps=0.1, step_size=0.02, steps=4)


def digits() -> DigitsDataModule:
    return DigitsDataModule(test_size=40, eval_batch_size=16)


@pytest.fixture
def two(tmp_path, monkeypatch) -> list[str]:
    """Checkpoints of two small nets, one of them trained for a moment, in the layout of runs."""
    monkeypatch.chdir(tmp_path)
    for name, epochs in (("trained", 30), ("fresh", 0)):
        torch.manual_seed(1)
        net = digits_cnn(width=4)
        fit(net, epochs)
        path = tmp_path / f"runs/{name}/version_0/checkpoints/last.ckpt"
        path.parent.mkdir(parents=True)
        description = {"class_path": "lit_robust.nets.digits_cnn", "init_args": {"width": 4}}
        state = {f"net.{key}": value for key, value in net.state_dict().items()}
        torch.save({"state_dict": state, "lit_robust": {"net": description}}, path)
    return ["trained=runs/trained", "runs/fresh/version_0/checkpoints/last.ckpt"]


def fit(net: nn.Module, epochs: int) -> None:
    data = DigitsDataModule(train_size=256, batch_size=256)
    data.setup("fit")
    (batch,) = data.train_dataloader()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.03)
    for _ in range(epochs):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(batch.x), batch.y).backward()
        optimizer.step()


def read(path: str) -> list[dict[str, str]]:
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


# The sweep.


def test_a_sweep_over_eps_begins_at_the_clean_accuracy_and_ends_at_zero(two):
    rows = sweep(two, digits(), attack=ATTACK, values=[0, 0.05, 0.9], step="scaled")
    trained = [row["accuracy"] for row in rows if row["net"] == "trained"]
    (subject, _) = load_subjects(two, CPU)
    images = read_test_images(digits(), None, CPU)
    clean = sum(int((subject.net(batch.x).argmax(1) == batch.y).sum()) for batch in images.batches)
    assert trained[0] == clean / 40 > 0.5
    assert trained[0] > trained[1] > trained[2] == 0


def test_a_sweep_writes_the_rows_that_it_returns_and_a_picture(two):
    rows = sweep(two, digits(), attack=ATTACK, over="steps", values=[1, 3])
    assert read("analysis/sweep_steps.csv") == [{key: str(value) for key, value in row.items()} for row in rows]
    assert [(row["net"], row["steps"]) for row in rows] == [
        ("trained", 1), ("trained", 3), ("fresh/version_0", 1), ("fresh/version_0", 3),
    ]  # fmt: skip
    assert Path("analysis/sweep_steps.png").read_bytes().startswith(b"\x89PNG")


def test_a_finished_measurement_is_not_repeated(two, monkeypatch):
    first = sweep(two, digits(), attack=ATTACK, values=[0.05])
    monkeypatch.setattr(PGD, "__call__", None)  # a second attack would fail
    assert sweep(two, digits(), attack=ATTACK, values=[0.05]) == first
    with pytest.raises(TypeError):
        sweep(two, digits(), attack=ATTACK, values=[0.06])
    with pytest.raises(TypeError):
        sweep(two, digits(), attack=ATTACK, values=[0.05], limit=20)  # other images


@pytest.mark.parametrize(("scaled", "step_sizes"), [(False, [0.02, 0.02]), (True, [0.01, 0.04])])
def test_the_step_is_fixed_or_scaled_with_eps(scaled, step_sizes):
    variants = strengths(ATTACK, "eps", [0.05, 0.2], scaled)
    assert [variant.step_size for variant in variants.values()] == pytest.approx(step_sizes)


def test_a_step_that_is_not_given_follows_eps():
    for scaled in (False, True):
        variants = strengths(PGD(eps=0.1, steps=5), "eps", [0, 0.2], scaled)
        assert [variant.step_length for variant in variants.values()] == pytest.approx([0, 0.1])


def test_steps_that_cannot_cross_the_ball_are_marked():
    assert crosses(PGD(eps=0.08, step_size=0.02, steps=4))
    assert not crosses(PGD(eps=0.081, step_size=0.02, steps=4))


def test_a_killed_verb_goes_on_in_the_block_where_it_stopped(two, monkeypatch):
    once, attacked, kills = PGD.__call__, [], {5, 6}

    def counting(self, net, x, y):
        attacked.append(len(x))
        if len(attacked) in kills:
            raise KeyboardInterrupt
        return once(self, net, x, y)

    monkeypatch.setattr("lit_robust.attacks.base.LONG", 4)
    long = PGD(eps=0.1, step_size=0.02, steps=4, loss=losses.margin)
    expected = transfer(two, digits(), attack=long, out=Path("other"))
    monkeypatch.setattr(PGD, "__call__", counting)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            transfer(two, digits(), attack=long)
        assert list(Path("analysis/blocks").iterdir())
    assert transfer(two, digits(), attack=long) == expected
    assert attacked == [16, 16, 8, 16, 16, 16, 16, 8]  # two of them were killed
    assert not list(Path("analysis/blocks").iterdir())


# Transfer.


def test_a_transfer_to_the_net_itself_is_the_white_box_attack(two):
    (white, black) = transfer(two[:1], digits(), sources=two, attack=ATTACK)
    (alone,) = sweep(two[:1], digits(), attack=ATTACK, over="steps", values=[4])
    assert white["white_box"]
    assert not black["white_box"]
    assert white["accuracy"] == alone["accuracy"] < black["accuracy"]
    assert (white["source"], black["source"]) == ("trained", "fresh/version_0")


def test_a_transfer_attacks_each_source_once(two, monkeypatch):
    attacked = []
    once = PGD.__call__
    monkeypatch.setattr(PGD, "__call__", lambda self, net, x, y: attacked.append(net) or once(self, net, x, y))
    transfer(two, digits(), attack=ATTACK)
    assert len(attacked) == 2 * 3  # three batches


def test_transfer_writes_a_row_for_each_pair(two):
    transfer(two, digits(), attack=ATTACK, limit=10)
    rows = read("analysis/transfer.csv")
    assert len({(row["target"], row["source"]) for row in rows}) == 4
    assert {row["n"] for row in rows} == {"10"}
    assert Path("analysis/transfer.png").exists()


# Stale adversaries.


def keep_epochs(two) -> None:
    """Make the two nets the first and the last epoch of one run."""
    folder = Path("runs/trained/version_0/checkpoints")
    Path(two[1]).rename(folder / "epoch=0.ckpt")
    for name, epoch in (("epoch=0", 0), ("last", 4)):
        checkpoint = torch.load(folder / f"{name}.ckpt", weights_only=True)
        torch.save({**checkpoint, "epoch": epoch}, folder / f"{name}.ckpt")


def test_the_final_net_meets_the_images_of_earlier_epochs(two):
    black = transfer(two[:1], digits(), sources=two[1:], attack=ATTACK)[0]["accuracy"]
    white = transfer(two[:1], digits(), attack=ATTACK)[0]["accuracy"]
    keep_epochs(two)
    rows = stale(two[:1], digits(), attack=ATTACK)
    assert [(row["epoch"], row["accuracy"]) for row in rows] == [(1, black), (5, white)]
    assert len(read("analysis/stale.csv")) == 2
    assert Path("analysis/stale.png").exists()


def test_epochs_that_a_resume_has_abandoned_are_none_of_the_runs(two):
    """The fourth epoch was kept twice, and the newer file is the first by its name; the tenth is not reached again."""
    keep_epochs(two)
    folder = Path("runs/trained/version_0/checkpoints")
    old = torch.load(folder / "epoch=0.ckpt", weights_only=True)
    for name, epoch in (("epoch=9", 9), ("epoch=3", 3), ("epoch=3-v1", 3)):
        torch.save({**old, "epoch": epoch}, folder / f"{name}.ckpt")
    for written, name in enumerate(("epoch=0", "epoch=3", "epoch=9", "epoch=3-v1", "last")):
        os.utime(folder / f"{name}.ckpt", (written, written))
    assert {epoch: path.stem for epoch, path in epochs_of("runs/trained").items()} == {
        1: "epoch=0",
        4: "epoch=3-v1",
        5: "last",
    }


def test_files_from_the_middle_of_an_epoch_are_no_epoch_of_the_runs(two):
    """The run was killed in its sixth epoch, which it had finished once before a resume from an earlier one."""
    keep_epochs(two)
    folder = Path("runs/trained/version_0/checkpoints")
    old = torch.load(folder / "epoch=0.ckpt", weights_only=True)
    for name, epoch, ended in (("step=3", 1, False), ("epoch=4", 4, True), ("epoch=5", 5, True), ("last", 5, False)):
        loops = {"fit_loop": {"epoch_loop.batch_progress": {"is_last_batch": ended}}}
        torch.save({**old, "epoch": epoch, "loops": loops}, folder / f"{name}.ckpt")
    assert {epoch: path.stem for epoch, path in epochs_of("runs/trained").items()} == {1: "epoch=0", 5: "epoch=4"}


def test_a_run_that_kept_no_epochs_is_refused(two):
    with pytest.raises(ValueError, match="keep_epochs"):
        stale(two[:1], digits(), attack=ATTACK)


# Curves.

HEAD = "epoch,step,train/loss,train/adversarial,train/lr,val/acc/clean,val/acc/robust\n"


def metrics(folder: Path) -> None:
    """A run of three epochs that was stopped in its third and resumed; its attack begins with the second."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics_0.csv").write_text(
        HEAD + "0,9,2.0,0,0.1,,\n0,9,,,,0.5,0.1\n1,19,1.5,1,0.1,0.6,0.3\n2,25,9.9,1,0.1,,\n"
    )
    (folder / "metrics.csv").write_text(HEAD + "2,29,1.0,1,0.01,0.7,0.4\n")


def test_curves_join_the_metrics_of_a_resumed_run(two):
    metrics(Path("runs/dat/version_0"))
    rows = curves(["dat=runs/dat/version_0"])
    assert [(row["epoch"], row["loss"], row["val robust"]) for row in rows] == [
        (1, 2.0, 0.1),
        (2, 1.5, 0.3),
        (3, 1.0, 0.4),
    ]
    assert [row["test robust"] for row in rows] == [""] * 3
    assert len(read("analysis/curves.csv")) == 3


def test_curves_leave_out_what_was_abandoned_by_a_resume_from_an_earlier_epoch(two):
    """The run went on to its fifth epoch, and then from its second one again, to its fourth."""
    folder = Path("runs/dat/version_0")
    folder.mkdir(parents=True)
    (folder / "metrics_0.csv").write_text(HEAD + "".join(f"{e},{e},{9 - e},1,0.1,0.5,0.1\n" for e in range(5)))
    (folder / "metrics.csv").write_text(HEAD + "2,2,3.0,1,0.1,,\n3,3,2.0,1,0.1,0.6,0.2\n")
    assert [(row["epoch"], row["loss"], row["val robust"]) for row in curves(["dat=runs/dat/version_0"])] == [
        (1, 9.0, 0.1),
        (2, 8.0, 0.1),
        (3, 3.0, ""),  # 0.1 is of the net that was abandoned
        (4, 2.0, 0.2),
    ]


def test_curves_of_a_run_that_was_started_again_are_those_of_its_last_start(two):
    folder = Path("runs/dat/version_0")
    folder.mkdir(parents=True)
    (folder / "metrics_0.csv").write_text(HEAD + "0,9,2.0,0,0.1,0.5,0.1\n1,19,1.5,1,0.1,0.6,0.3\n")
    (folder / "metrics_1.csv").write_text(HEAD)  # stopped before its first row
    (folder / "metrics.csv").write_text(HEAD + "0,9,4.0,0,0.1,0.4,0.2\n")
    assert [row["loss"] for row in curves(["dat=runs/dat/version_0"])] == [4.0]


def test_curves_mark_the_switch_and_the_rates_drop(two):
    metrics(Path("runs/dat/version_0"))
    figure = draw(curves(["dat=runs/dat/version_0"]))
    for axes in figure.axes:
        assert all(float(tick).is_integer() for tick in axes.get_xticks())
        assert axes.get_xlim() == figure.axes[0].get_xlim()
    marks = {line.get_linestyle(): line.get_xdata()[0] for line in figure.axes[0].lines[1:]}
    assert marks == {"-.": 1, ":": 2}
    legend = figure.axes[1].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["dat, clean validation", "dat, robust validation"]


def test_curves_test_the_epochs_that_were_kept(two):
    keep_epochs(two)
    metrics(Path("runs/trained/version_0"))
    rows = curves(["runs/trained/version_0"], digits(), attack=ATTACK)
    alone = sweep(
        ["runs/trained/version_0/checkpoints/epoch=0.ckpt"], digits(), attack=ATTACK, over="steps", values=[4]
    )
    assert rows[0]["test robust"] == alone[0]["accuracy"]
    assert rows[1]["test robust"] == ""  # the second epoch was not kept


def test_curves_shade_the_second_steps_of_nuat_h(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rule = EvenShare(share=0.5)
    run = trainer(tmp_path, max_epochs=4, logger=CSVLogger(tmp_path, name="run", version=0), log_every_n_steps=1)
    run.fit(build(NuAT, attack=ONE_STEP, two_step=rule), loader(images(32)))
    rows = curves(["run/version_0"])
    assert all(row["clean ce"] > 0 for row in rows)
    assert len(draw(rows).axes) == 3


def test_a_folder_without_metrics_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"metrics\.csv"):
        curves([str(tmp_path)])


# Surfaces.


def test_the_centre_of_both_surfaces_is_the_nets_own_loss(two):
    (subject, _), seen = load_subjects(two, CPU), read_test_images(digits(), None, CPU)
    crafted = {"weights": adversarial_images(subject.net, ATTACK, seen), "input": [batch.x for batch in seen.batches]}
    for space, points in crafted.items():
        rows = surface(two[:1], digits(), attack=ATTACK, space=space, points=3, limit=40, eigenvalue=False)
        (centre,) = (row["loss"] for row in rows if row["a"] == row["b"] == 0)
        own = sum(ce(subject.net(x), b.y).sum().item() for x, b in zip(points, seen.batches, strict=True)) / 40
        assert centre == pytest.approx(own, rel=1e-4)
        assert max(row["loss"] for row in rows) > 1.2 * centre
        assert len(read(f"analysis/surface_{space}.csv")) == 9


def test_an_analysis_attacks_a_net_with_folded_batchnorms_whose_images_are_the_nets_own():
    net, batch, seen = TinyNet().eval(), images(8), []

    class Watch(PGD):
        def __call__(self, attacked, x, y):
            seen.append(attacked)
            return super().__call__(attacked, x, y)

    arguments = {"eps": 0.1, "step_size": 0.02, "steps": 4, "init": "zero"}
    (x_adv,) = adversarial_images(net, Watch(**arguments), Images([batch], "key"))
    assert seen[0] is not net
    assert unfolded(seen[0]) is net
    assert torch.allclose(x_adv, PGD(**arguments)(net, batch.x, batch.y), atol=1e-6)


def test_other_nets_are_shown_the_end_of_an_attack_and_the_net_itself_what_it_misclassifies():
    """Where the net alone judges them, an image leaves the batch before ``keep="worst"`` has found its worst point."""
    net, batch = TinyNet().eval(), images(24)
    attack, seen = PGD(eps=0.3, step_size=0.02, steps=20, init="zero", keep="worst"), Images([batch], "key")
    ((whole,), (shrunk,)) = (adversarial_images(net, attack, seen, judged_by=judge) for judge in (None, net))
    assert torch.allclose(whole, attack(net, batch.x, batch.y), atol=1e-6)
    assert ce(net(whole), batch.y).mean() > ce(net(shrunk), batch.y).mean() + 0.1
    wrong = [net(x).argmax(dim=1) != batch.y for x in (whole, shrunk)]
    assert torch.equal(*wrong)


def test_adversarial_images_of_the_centre_are_weaker_elsewhere(two):
    losses = [
        {
            (row["a"], row["b"]): row["loss"]
            for row in surface(two[:1], digits(), ATTACK, craft=craft, points=3, limit=40)
        }
        for craft in ("everywhere", "centre")
    ]
    anew, once = losses
    assert sum(anew.values()) > sum(once.values())
    assert anew[0, 0] == once[0, 0]


def test_directions_have_the_norm_of_each_filter():
    weight = torch.randn(4, 3, 5, 5) * torch.arange(1, 5).view(4, 1, 1, 1)
    direction = filter_normalised(weight, torch.Generator().manual_seed(0))
    assert torch.allclose(direction.flatten(1).norm(dim=1), weight.flatten(1).norm(dim=1))
    assert not filter_normalised(torch.ones(7), torch.Generator()).any()


class Logistic(nn.Module):
    """Logits (0, w x)."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.linspace(-0.3, 0.5, 6))

    def forward(self, x):
        score = x.flatten(1) @ self.w
        return torch.stack([torch.zeros_like(score), score], dim=1)


def test_the_top_eigenvalue_of_logistic_regression_has_a_closed_form():
    x = torch.rand(1, 1, 2, 3, generator=torch.Generator().manual_seed(0))
    p = Logistic()(x).softmax(1)[0, 1].item()
    value, settled = top_eigenvalue(Logistic(), [(x, torch.tensor([1]))])
    assert settled
    assert value == pytest.approx(p * (1 - p) * x.square().sum().item(), rel=1e-5)


def test_it_is_a_function_of_p_sats_gap():
    """For two classes p(1 - p) = (1 - gap^2) / 4, so both of SAT's metrics are one: the loss is sharpest at gap 0."""
    for scale in (-2.0, 0.0, 1.0, 4.0):
        x = scale * torch.rand(1, 1, 2, 3, generator=torch.Generator().manual_seed(1))
        gap = probability_margin(Logistic()(x), torch.tensor([1])).item()
        value, _ = top_eigenvalue(Logistic(), [(x, torch.tensor([1]))])
        assert value == pytest.approx((1 - gap**2) / 4 * x.square().sum().item(), rel=1e-5)


def test_an_eigenvalue_that_has_not_settled_says_so():
    images = [(torch.eye(6).view(6, 1, 2, 3), torch.arange(6) % 2)]  # all eigenvalues are nearly equal
    assert not top_eigenvalue(Logistic(), images, tol=0.0, iterations=2)[1]


def test_the_eigenvalue_over_eps_is_that_of_the_adversarial_loss_at_each_eps(two):
    rows = eigenvalue(two, digits(), attack=ATTACK, over="eps", values=[0, 0.1])
    assert [(row["net"], row["eps"]) for row in rows] == [
        ("trained", 0), ("trained", 0.1), ("fresh/version_0", 0), ("fresh/version_0", 0.1),
    ]  # fmt: skip
    (subject, _), seen = load_subjects(two, CPU), read_test_images(digits(), None, CPU)
    for row, attack in zip(rows, (None, ATTACK), strict=False):
        points = [b.x for b in seen.batches] if attack is None else adversarial_images(subject.net, attack, seen)
        batches = [(x, batch.y) for x, batch in zip(points, seen.batches, strict=True)]
        assert row["eigenvalue"] == pytest.approx(top_eigenvalue(subject.net, batches)[0], rel=1e-5)
    assert len(read("analysis/eigenvalue_eps.csv")) == 4
    assert Path("analysis/eigenvalue_eps.png").exists()


def test_the_eigenvalue_over_epochs_is_that_of_each_kept_net(two):
    alone = {row["net"]: row["eigenvalue"] for row in eigenvalue(two, digits(), ATTACK, over="eps", values=[0.1])}
    keep_epochs(two)
    rows = eigenvalue(two[:1], digits(), ATTACK)
    assert [(row["net"], row["epoch"], row["eigenvalue"]) for row in rows] == [
        ("trained", 1, alone["fresh/version_0"]),
        ("trained", 5, alone["trained"]),
    ]


def test_an_eigenvalue_that_has_not_settled_is_drawn_hollow():
    row = {"net": "a", "epoch": 1, "eigenvalue": 2.0, "settled": False, "n": 1, "attack": ""}
    figure = draw_eigenvalues([row, {**row, "epoch": 2, "settled": True}], "epoch", ATTACK)
    faces = figure.axes[0].collections[0].get_facecolors()
    assert faces[0].tolist() == [1, 1, 1, 1] != faces[1].tolist()
    assert "50 iterations" in figure.axes[0].get_legend().get_texts()[-1].get_text()


def test_eigenvalues_of_no_epochs_or_of_both_are_refused(two):
    with pytest.raises(ValueError, match="keep_epochs"):
        eigenvalue(two[:1], digits(), ATTACK)
    with pytest.raises(ValueError, match=r"^values="):
        eigenvalue(two[:1], digits(), ATTACK, values=[0.1])
    with pytest.raises(ValueError, match=r"^over="):
        eigenvalue(two[:1], digits(), ATTACK, over="steps")


# Targets.

TARGETED = PGD(eps=0.4, steps=20, targeted=True)


def test_targets_tell_what_each_net_sees_in_the_same_images(two):
    rows = targets(two, digits(), TARGETED, images=5)
    assert [(row["net"], row["image"]) for row in rows] == [
        (net, image) for net in ("trained", "fresh/version_0") for image in range(5)
    ]
    assert all(int(row["target"]) == (int(row["class"]) + 1) % 10 for row in rows)
    mine, theirs = rows[:5], rows[5:]
    assert [row["class"] for row in mine] == [row["class"] for row in theirs] == list("01234")
    assert all(row["prediction"] == row["target"] for row in mine)
    assert any(row["clean prediction"] == row["class"] for row in mine)
    assert [row["confidence"] for row in read("analysis/targets.csv")] == [str(row["confidence"]) for row in rows]
    assert Path("analysis/targets.png").read_bytes().startswith(b"\x89PNG")


def test_one_target_leaves_its_own_images_out(two):
    rows = targets(two[:1], digits(), TARGETED, target=1, images=9)
    assert {row["target"] for row in rows} == {"1"}
    assert {row["class"] for row in rows} == set("02345678")  # the 40 images have no 9


def test_targets_draw_names_that_look_like_formulas(two, monkeypatch):
    names = ["$x_1$ an_odd", "a\nb", *"$%&{}_^#"]
    monkeypatch.setattr(DigitsDataModule, "class_names", names)
    drawn = []
    monkeypatch.setattr(Study, "write", lambda study, stem, rows, figure, *more: drawn.append(figure))
    targets(["$a$=runs/trained"], digits(), TARGETED, images=2)
    drawn[0].savefig("odd.png")
    texts = drawn[0].axes[0].texts
    assert {"$x 1$ an odd\n→ a b", "$a$", "clean"} <= {text.get_text() for text in texts}
    assert not any(text.get_parse_math() for text in texts)


def test_a_net_with_more_classes_than_the_data_is_drawn(two, monkeypatch):
    monkeypatch.setattr(DigitsDataModule, "class_names", ["zero", "one"])
    assert {row["class"] for row in targets(two[:1], digits(), TARGETED)} >= {"zero", "one", "2"}


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"attack": ATTACK}, "attack="),
        ({"target": 10}, "target=10"),
        ({"target": -1}, "target=-1"),
        ({"images": 0}, "images=0"),
        ({"target": 0, "limit": 1}, "target=0"),
    ],
    ids=lambda value: value if isinstance(value, str) else ", ".join(value),
)
def test_what_cannot_be_drawn_is_refused(two, change, names):
    with pytest.raises(ValueError, match=f"^{names}"):
        targets(two[:1], digits(), **({"attack": TARGETED} | change))


# Diversity.


@pytest.mark.parametrize(
    ("counts", "score"),
    [
        ([[5, 1, 1, 1], [2, 0, 2, 2], [0, 0, 9, 0], [0, 0, 0, 9]], 1.0),  # evenly; classes without errors do not count
        ([[5, 3, 0, 0], [0, 0, 4, 0], [0, 0, 9, 1], [0, 2, 0, 9]], 0.0),  # always the same one
        ([[0, 1, 1, 0], [0, 9, 0, 0], [0, 0, 9, 0], [0, 0, 0, 9]], math.log(2) / math.log(3)),
    ],
)
def test_the_entropy_of_the_wrong_predictions(counts, score):
    assert entropy_score(torch.tensor(counts)) == pytest.approx(score)


def test_diversity_counts_every_image_once(two):
    rows = diversity(two, digits(), eps=0.3)
    for net in ("trained", "fresh/version_0"):
        for attack in ("nuclear", "Frobenius"):
            mine = [row for row in rows if (row["net"], row["attack"]) == (net, attack)]
            assert sum(row[f"as {label}"] for row in mine for label in range(10)) == 40
    assert len(read("analysis/diversity.csv")) == len(rows) == 40
    assert Path("analysis/diversity.png").exists()


# Nets and images.


def test_a_net_is_called_after_its_run_unless_it_is_named(two):
    assert [subject.name for subject in load_subjects(two, CPU)] == ["trained", "fresh/version_0"]
    assert [subject.name for subject in load_subjects(["runs/trained"], CPU)] == ["trained/version_0"]


def test_the_limit_takes_the_first_images(two):
    images, all_of_them = read_test_images(digits(), 20, CPU), read_test_images(digits(), None, CPU)
    assert (images.n, all_of_them.n) == (20, 40)
    assert torch.equal(torch.cat([b.x for b in images.batches]), torch.cat([b.x for b in all_of_them.batches])[:20])


@pytest.mark.parametrize(
    ("change", "error", "names"),
    [
        ({"checkpoints": []}, ValueError, "checkpoints"),
        ({"checkpoints": ["a=runs/trained", "a=runs/fresh"]}, ValueError, "a=runs/fresh"),
        ({"checkpoints": ["runs/none"]}, FileNotFoundError, "runs/none"),
        ({"values": []}, ValueError, "values"),
        ({"over": "steps", "values": [1.5]}, ValueError, "values"),
        ({"over": "size"}, ValueError, "over"),
        ({"limit": 0}, ValueError, "limit"),
        ({"device": "abacus"}, ValueError, "device"),
        ({"attack": AutoAttack(), "over": "steps"}, TypeError, "over"),
    ],
    ids=str,
)
def test_what_cannot_be_measured_is_refused(two, change, error, names):
    with pytest.raises(error, match=names):
        sweep(**{"checkpoints": two, "data": digits(), "attack": ATTACK} | change)
    assert not Path("analysis").exists()


# The journal.


def test_a_result_of_another_device_precision_torch_or_code_is_measured_again(tmp_path, monkeypatch):
    path, measured = tmp_path / "journal.jsonl", []

    def measures(device=CPU) -> bool:
        before = len(measured)
        Journal(path, device).get(("key",), lambda: measured.append(1) or 1)
        return len(measured) > before

    assert measures()
    assert not measures()
    assert measures(torch.device("cuda"))
    assert not measures(torch.device("cuda:1"))
    with monkeypatch.context() as changed:
        changed.setattr(torch, "get_default_dtype", lambda: torch.float64)
        assert measures()
    with monkeypatch.context() as changed:
        changed.setattr(torch, "__version__", "0.1")
        assert measures()
    with monkeypatch.context() as changed:
        changed.setattr("lit_robust.analysis.journal.code_of", lambda package: "other")
        assert measures()
    assert not measures()


@pytest.mark.parametrize(
    ("file", "counts"),
    [("attacks/pgd.py", True), ("measures/correct.py", True), ("threats.py", True), ("cli/main.py", False)],
)
def test_the_code_of_what_measures_decides_and_no_other(file, counts, tmp_path):
    copies = [tmp_path / name for name in ("one", "other")]
    for copy in copies:
        shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    (copies[1] / file).write_text((copies[1] / file).read_text() + "# Another line.\n")
    one, other = map(code_of, copies)
    assert one == code_of(PACKAGE)
    assert (one != other) is counts


def test_a_line_that_a_kill_has_cut_is_measured_again(tmp_path):
    path = tmp_path / "journal.jsonl"
    for value in (1, 2):
        Journal(path, CPU).get((f"key {value}",), lambda value=value: value)
    path.write_text(path.read_text()[:-4])
    journal = Journal(path, CPU)
    assert journal.get(("key 1",), lambda: "anew") == 1
    assert journal.get(("key 2",), lambda: "anew") == "anew"
    assert Journal(path, CPU).get(("key 2",), lambda: "again") == "anew"


# The command.


def test_the_command_takes_the_data_of_a_runs_configuration(two, capsys):
    Path("config.yaml").write_text(
        "seed_everything: 0\nmodel: {class_path: PGDAT}\n"
        "data: {class_path: DigitsDataModule, init_args: {test_size: 40, eval_batch_size: 16}}\n"
    )
    attack = ["--attack", "PGD", "--attack.eps", "0.1", "--attack.steps", "2", "--attack.step_size", "0.05"]
    main(["sweep", *two, "-c", "config.yaml", "--over", "steps", "--values", "[2]", *attack])
    assert [row["n"] for row in read("analysis/sweep_steps.csv")] == ["40", "40"]
    assert "analysis/sweep_steps.png" in capsys.readouterr().out


def test_the_command_refuses_in_one_sentence(two, capsys):
    assert "runs/none" in refusal(capsys, "sweep", "runs/none", "--data", "DigitsDataModule")
    assert "required: data" in refusal(capsys, "transfer", *two)
    assert "attak" in refusal(capsys, "sweep", *two, "--data", "DigitsDataModule", "--attak.eps", "0.1")


# The comparison.


def method(name: str, runs: list[float], images: list[float]) -> Method:
    return Method(name, {"pgd": torch.tensor(images, dtype=torch.float64)}, {"pgd": runs})


def bits(share: float, n: int = 400) -> list[float]:
    return [float(i < share * n) for i in range(n)]


def test_methods_that_differ_by_less_than_their_seeds_have_one_rank():
    wide, near = method("wide", [0.4, 0.5, 0.6], bits(0.5)), method("near", [0.44, 0.44, 0.44], bits(0.44))
    assert [rank for rank, _ in ranked([wide, near], "pgd")] == [1, 1]
    narrow = method("narrow", [0.5, 0.5, 0.5], bits(0.5))
    assert [(rank, one.name) for rank, one in ranked([near, narrow], "pgd")] == [(1, "narrow"), (2, "near")]


def test_methods_that_differ_by_less_than_the_images_explain_have_one_rank():
    apart = [method("a", [0.5] * 3, bits(0.5, 20)), method("b", [0.45] * 3, bits(0.45, 20))]
    assert [rank for rank, _ in ranked(apart, "pgd")] == [1, 1]


def test_a_method_of_two_seeds_is_not_ranked():
    few, enough = method("few", [0.9, 0.9], bits(0.9)), method("enough", [0.1] * 3, bits(0.1))
    assert [rank for rank, _ in ranked([few, enough], "pgd")] == [None, 1]


def test_compare_agrees_with_the_sweep_and_writes_four_files(two):
    rows = compare([f"a@{i}={path.rpartition('=')[2]}" for i, path in enumerate(two)], digits(), {"pgd": ATTACK})
    alone = sweep(two, digits(), attack=ATTACK, over="steps", values=[4])
    assert rows[0]["pgd"] == pytest.approx(sum(row["accuracy"] for row in alone) / 2)
    assert (rows[0]["pgd min"], rows[0]["pgd max"]) == tuple(sorted(row["accuracy"] for row in alone))
    assert rows[0]["seeds"] == 2
    written = {path.suffix for path in Path("analysis").glob("compare.*")}
    assert written == {".csv", ".md", ".tex", ".png"}


def seeds(name: str, path: str) -> list[str]:
    """Three runs of a method: a net whose weights differ by next to nothing."""
    source = path if path.endswith(".ckpt") else f"{path}/version_0/checkpoints/last.ckpt"
    for seed in range(3):
        kept = torch.load(source)
        kept["state_dict"]["net.head.bias"] = kept["state_dict"]["net.head.bias"] + 1e-6 * seed
        torch.save(kept, f"{name}_{seed}.ckpt")
    return [f"{name}@{seed}={name}_{seed}.ckpt" for seed in range(3)]


def test_compare_never_ranks_by_an_attack_in_bf16(two, monkeypatch):
    """It would be the strongest one here."""
    monkeypatch.setattr(AutoAttack, "__call__", lambda self, net, x, y: PGD(0.5, steps=5)(net, x, y))
    coarse = AutoAttack(precision="bf16")
    with pytest.raises(ValueError, match="autoattack_bf16"):
        compare(two, digits(), {"autoattack": coarse})
    names = seeds("trained", two[0].partition("=")[2]) + seeds("fresh", "runs/fresh")
    small = {"gap": False, "alarms": False}
    rows = compare(names, digits(), {"pgd": PGD(0.02, steps=2), "autoattack_bf16": coarse}, **small)
    assert rows[0]["method"] == "trained"
    assert rows[0]["pgd"] > rows[0]["autoattack_bf16"]
    assert [row["rank"] for row in rows] == [1, 2]
    rows = compare(names, digits(), {"autoattack_bf16": coarse}, **small)
    assert [row["rank"] for row in rows] == [None, None]


def test_tables_escape_what_their_language_would_read():
    row = {"rank": None, "method": "a|b_c%$", "seeds": 1, "pgd": 0.5, "pgd low": 0.4, "pgd high": 0.6}
    row |= {"pgd min": 0.5, "pgd max": 0.5, "n": 10}
    assert r"a\|b_c%$" in markdown([row])
    assert r"-- & a|b\_c\%\$ & 1 & 50.0 [40.0, 60.0] \\" in latex([row])


def test_a_net_that_masks_its_gradients_is_told_and_not_ranked(two, capsys):
    """Its logits are the trained net's, 1000 times: cross-entropy has no gradient."""
    path = Path("runs/trained/version_0/checkpoints/last.ckpt")
    kept = torch.load(path)
    masked = Path("runs/masked.ckpt")
    for name in ("net.head.weight", "net.head.bias"):
        kept["state_dict"][name] = 1000 * kept["state_dict"][name]
    torch.save(kept, masked)
    names = seeds("honest", "runs/trained") + seeds("masked", str(masked))
    rows = {row["method"]: row for row in compare(names, digits(), attacks={"pgd": ATTACK}, gap=False)}
    assert (rows["honest"]["rank"], rows["honest"]["alarms"]) == (1, "")
    assert rows["masked"]["rank"] is None
    assert {"zero_gradient", "scaling"} <= set(rows["masked"]["alarms"].split())
    assert "masked@0: ALARM zero_gradient: " in capsys.readouterr().out
    assert "ALARM zero_gradient" in Path("analysis/compare.md").read_text()


def say_eps(eps: str, path: str = "runs/trained/version_0/checkpoints/last.ckpt") -> None:
    """Let a checkpoint say that it was trained at this eps."""
    kept = torch.load(path)
    kept["hyper_parameters"] = {"attack": {"class_path": "PGD", "init_args": {"eps": eps, "norm": "linf"}}}
    torch.save(kept, path)


def test_runs_are_compared_at_the_eps_that_they_were_trained_with(two, capsys):
    say_eps("0.1")
    compare(two[:1], digits(), autoattack=False, gap=False, alarms=False)
    assert "pgd20 is PGD(eps=0.1, " in capsys.readouterr().out
    assert "pgd20 is PGD(eps=0.1, " in Path("analysis/compare.md").read_text()


@pytest.mark.parametrize("eps", [None, "0.05", "large"])
def test_runs_of_different_or_unknown_eps_are_compared_at_8_of_255(eps, two, capsys):
    say_eps("0.1")
    if eps is not None:
        say_eps(eps, two[1])
    compare(two, digits(), autoattack=False, gap=False, alarms=False)
    assert "pgd20 is PGD(eps=8/255, " in capsys.readouterr().out
