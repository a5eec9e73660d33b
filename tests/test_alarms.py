"""Alarms: what each says about a net that masks its gradients, and that honest nets raise none."""

from copy import deepcopy
from functools import cache
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import LightningModule
from torch import nn

from lit_robust.attacks import BPDA, PGD, AutoAttack, MultiTargetedPGD, Square, StAdv
from lit_robust.batch import Batch
from lit_robust.callbacks import RobustAccuracy
from lit_robust.cli import main
from lit_robust.defenses import PGDAT, Natural
from lit_robust.measures.accuracy import surviving
from lit_robust.measures.alarm_rules import Count, in_words, of_classes, of_probes, sign_test
from lit_robust.measures.alarms import Alarms
from lit_robust.measures.default_attacks import default_test
from lit_robust.measures.probes import COUNTS, Probe
from tests.front_door import lit, refusal, tiny
from tests.masked import MASKS, BitDepth, NumpyStep, SaturatedSigmoid, Times1000, masked
from tests.methods import build
from tests.tiny import TinyNet, images, loader, trainer
from tests.trained import held_out, trained

EPS = 0.15
#: AutoAttack, its version for random nets, and the attack that stands in for it where there is no graph.
AUTOATTACK, SQUARE = (AutoAttack(eps=EPS), AutoAttack(eps=EPS, version="rand")), Square(eps=EPS, queries=1000)
OF_THE_PACKAGE = pytest.mark.filterwarnings("ignore::UserWarning")
ZOO = [pytest.param(alarm, mask, id=mask.__name__) for alarm, masks in MASKS.items() for mask in masks]
NAMES = {
    "zero_gradient", "not_below_clean", "large_eps", "scaling", "random", "no_graph", "margin", "square", "transfer",
    "trivial",
}  # fmt: skip


def batch(n: int = 200) -> Batch:
    x, y = held_out()
    return Batch(x[:n], y[:n], torch.arange(n), torch.ones(n))


def accuracies(net: nn.Module, attacks, n: int = 100) -> dict[str, float]:
    return {name: of.float().mean().item() for name, of in surviving(net, attacks, batch(n), "keep").items()}


def alarms(net: nn.Module, n: int = 200, **arguments) -> dict[str, str]:
    attacks = default_test(EPS)
    found = Alarms(attacks, num_classes=10, **arguments)
    found.update(net, batch(n), surviving(net, attacks, batch(n), "keep"))
    return found.compute()


@cache
def zoo(mask: type[nn.Module]) -> nn.Module:
    """A naturally trained net with a mask; trained with it where the mask draws random numbers."""
    return trained("natural", mask) if mask in MASKS["random"] else masked(mask(), trained("natural")).eval()


# The zoo of masks.


@pytest.mark.parametrize(("alarm", "mask"), ZOO)
def test_a_masked_net_raises_the_alarm_that_names_its_cause(alarm, mask):
    found = alarms(zoo(mask))
    assert alarm in found
    assert found.keys() <= NAMES


@cache
def truth(mask: type[nn.Module] | None) -> float:
    """The accuracy that is left by AutoAttack or, where it has no graph, by Square."""
    net = zoo(mask) if mask else trained("natural")
    return accuracies(net, {"truth": SQUARE if mask is NumpyStep else AUTOATTACK[mask in MASKS["random"]]})["truth"]


@OF_THE_PACKAGE
@pytest.mark.parametrize(("alarm", "mask"), ZOO)
def test_no_masked_net_gets_more_than_its_true_accuracy_without_an_alarm(alarm, mask):
    pytest.importorskip("pyautoattack")
    worst = accuracies(zoo(mask), default_test(EPS))["worst"]
    assert worst <= truth(mask) + 0.05 or alarm in alarms(zoo(mask), 100)


@OF_THE_PACKAGE
@pytest.mark.parametrize("mask", [*MASKS["zero_gradient"], NumpyStep], ids=lambda mask: mask.__name__)
def test_bpda_comes_within_5_points_of_the_truth(mask):
    pytest.importorskip("pyautoattack")
    # Cross-entropy and the margin need logits that differ, which a saturated sigmoid's do not.
    attack = MultiTargetedPGD(EPS, steps=20) if mask is SaturatedSigmoid else PGD(EPS, steps=40, keep="worst")
    assert accuracies(zoo(mask), {"bpda": BPDA(attack, "mask")})["bpda"] <= truth(mask) + 0.05


@pytest.mark.parametrize("mask", MASKS["random"], ids=lambda mask: mask.__name__)
def test_a_net_that_draws_is_found_whatever_the_seed(mask):
    """One that draws once per batch, from few states, may repeat a draw."""
    x, y = held_out()
    probe = Probe(zoo(mask), x[:50], y[:50], torch.ones(50, dtype=torch.bool), (EPS, "linf"))
    found = []
    for seed in range(40):
        torch.manual_seed(seed)
        found.append(bool(probe.differs().any()))
    assert sum(found) >= 39


@pytest.mark.parametrize("mask", MASKS["random"], ids=lambda mask: mask.__name__)
def test_eot_comes_within_5_points_of_the_truth(mask):
    pytest.importorskip("pyautoattack")
    assert accuracies(zoo(mask), {"eot": PGD(EPS, steps=20, eot=10)})["eot"] <= truth(mask) + 0.05


@OF_THE_PACKAGE
def test_the_margin_comes_within_5_points_of_the_truth_where_logits_are_large():
    pytest.importorskip("pyautoattack")
    found = accuracies(zoo(Times1000), default_test(EPS))
    assert found["pgd20"] > truth(Times1000) + 0.2
    assert found["pgd20_margin"] <= truth(Times1000) + 0.05


def test_the_first_alarms_of_saturated_logits_name_the_attack_that_works():
    assert "margin" in alarms(zoo(Times1000))["scaling"]
    assert "BPDA" in alarms(zoo(SaturatedSigmoid))["zero_gradient"]


# Nets without masks.


@pytest.mark.parametrize("name", ["natural", "fgsm", "pgd"])
def test_an_honest_net_raises_no_alarm(name):
    assert alarms(trained(name)) == {}


class Rounding(nn.Module):
    """A net without a gradient for 4 classes of 3 x 8 x 8 images."""

    def __init__(self):
        super().__init__()
        self.body = TinyNet()

    def forward(self, x):
        return self.body((4 * x).round() / 4)


def test_a_test_prints_keeps_and_logs_its_alarms(tmp_path, capsys):
    method = build(PGDAT, net=Rounding(), test_attacks=default_test(0.02))
    (logged,) = trainer(tmp_path).test(method, loader(images(40)), verbose=False)
    assert "zero_gradient" in method.alarms
    assert logged["test/alarms"] == len(method.alarms)
    assert f"ALARM zero_gradient: {method.alarms['zero_gradient']}" in capsys.readouterr().out


def test_in_l2_one_step_is_a_rival_too_and_a_test_says_that_square_is_none(tmp_path, capsys):
    x, y = held_out()
    found = Probe(trained("natural"), x[:20], y[:20], torch.ones(20, dtype=torch.bool), (1.0, "l2")).run()
    assert "fgsm" in found
    assert "square" not in found
    for norm, said in (("l2", 1), ("linf", 0)):
        method = build(PGDAT, test_attacks={"pgd": PGD(0.5, norm=norm, steps=2)})
        trainer(tmp_path).test(method, loader(images(40)), verbose=False)
        assert capsys.readouterr().out.count("Square was not run") == said


def test_a_test_without_alarms_says_so(tmp_path, capsys):
    method = build(PGDAT, alarm_images=0)
    (logged,) = trainer(tmp_path).test(method, loader(images(40)), verbose=False)
    assert (method.alarms, logged["test/alarms"]) == ({}, 0)
    assert "alarms are off (alarm_images=0)" in capsys.readouterr().out


class ThroughNumPy(nn.Module):
    """A net for 4 classes of 3 x 8 x 8 images whose pixels pass through NumPy."""

    def __init__(self):
        super().__init__()
        self.mask, self.body = NumpyStep(), TinyNet()

    def forward(self, x):
        return self.body(self.mask(x))


@pytest.mark.parametrize(
    ("attacks", "arguments"), [(default_test(0.02), {"alarm_images": 0}), ({"stadv": StAdv(steps=2)}, {})],
    ids=["alarms off", "no L-p bound"],
)  # fmt: skip
def test_a_net_without_a_graph_raises_an_alarm_where_no_other_is_computed(attacks, arguments, tmp_path, capsys):
    """Its rows repeat the clean accuracy."""
    method = build(PGDAT, net=ThroughNumPy(), test_attacks=attacks, **arguments)
    (logged,) = trainer(tmp_path).test(method, loader(images(40)), verbose=False)
    assert {logged[f"test/acc/{name}"] for name in attacks} == {logged["test/acc/clean"]}
    assert list(method.alarms) == ["no_graph"]
    assert logged["test/alarms"] == 1
    shown = capsys.readouterr().out
    assert "ALARM no_graph: " in shown
    assert "no alarm" not in shown
    honest = build(PGDAT, test_attacks=attacks, **arguments)
    trainer(tmp_path).test(honest, loader(images(40)), verbose=False)
    assert honest.alarms == {}


def test_robust_accuracy_reports_a_missing_graph_where_its_alarms_are_off(tmp_path, capsys):
    class Classifier(LightningModule):
        def __init__(self):
            super().__init__()
            self.body = ThroughNumPy()

        def forward(self, x):
            return self.body(x)

        def test_step(self, batch, batch_idx):
            pass

    callback = RobustAccuracy(default_test(0.02), alarm_images=0)
    trainer(tmp_path, callbacks=[callback]).test(Classifier(), loader(images(40)), verbose=False)
    assert list(callback.alarms) == ["no_graph"]
    assert "ALARM no_graph: " in capsys.readouterr().out


def test_robust_accuracy_raises_them_for_a_module_that_does_not_look_itself(tmp_path, capsys):
    class Classifier(LightningModule):
        def __init__(self):
            super().__init__()
            self.body = Rounding()

        def forward(self, x):
            return self.body(x)

        def test_step(self, batch, batch_idx):
            pass

    callback = RobustAccuracy(default_test(0.02))
    (logged,) = trainer(tmp_path, callbacks=[callback]).test(Classifier(), loader(images(40)), verbose=False)
    assert "zero_gradient" in callback.alarms
    assert logged["test/alarms"] == len(callback.alarms)
    assert capsys.readouterr().out.count("ALARM zero_gradient") == 1


def test_a_net_without_a_graph_is_told_in_a_test_and_refused_everywhere_else(tmp_path):
    x, y = batch(20)[:2]
    net = masked(NumpyStep(), trained("natural"))
    with pytest.raises(ValueError, match="no graph"):
        PGD(EPS)(net, x, y)
    with pytest.raises(ValueError, match="no graph"):
        surviving(net, default_test(EPS), batch(20))
    assert accuracies(net, default_test(EPS), 20)["worst"] == accuracies(net, {}, 20)["clean"]


def test_a_constant_net_is_called_trivial():
    class Constant(nn.Module):
        def forward(self, x):
            return x.mean(dim=(1, 2, 3)).unsqueeze(1) * 0.01 + torch.eye(10)[3]

    assert "class 3" in alarms(Constant())["trivial"]


def test_a_transferred_attack_that_does_better_is_told():
    """The masked net's own gradients are 0, those of the net behind the mask break it."""
    found = alarms(zoo(MASKS["zero_gradient"][0]), sources=[trained("natural")])
    assert "transfer" in found
    assert "transfer" not in alarms(trained("pgd"), sources=[trained("natural")])


class Plain(LightningModule):
    """A module that does not look for alarms itself."""

    def __init__(self, net):
        super().__init__()
        self.body = net

    def forward(self, x):
        return self.body(x)

    def test_step(self, batch, batch_idx):
        pass


def checkpoint(folder) -> str:
    """A checkpoint of the naturally trained net."""
    net = trained("natural")
    weights = {f"net.{name}": value for name, value in net.state_dict().items()}
    torch.save({"state_dict": weights, "lit_robust": {"net": net.built_by}}, folder / "twin.ckpt")
    return str(folder / "twin.ckpt")


def defense(net, **arguments) -> PGDAT:
    return build(PGDAT, net=net, num_classes=10, test_attacks=default_test(EPS), **arguments)


def masked_twin() -> nn.Module:
    return masked(BitDepth(), deepcopy(trained("natural"))).eval()


@pytest.mark.parametrize("kind", ["net", "checkpoint", "none"])
@pytest.mark.parametrize("room", ["defense", "callback"])
def test_the_plain_twin_as_a_source_rings_transfer(room, kind, tmp_path):
    given = {"net": [trained("natural")], "checkpoint": [checkpoint(tmp_path)], "none": None}[kind]
    data = loader(batch(100), batch_size=50)
    if room == "defense":
        looking = tested = defense(masked_twin(), alarm_sources=given)
        run = trainer(tmp_path)
    else:
        tested, looking = Plain(masked_twin()), RobustAccuracy(default_test(EPS), alarm_sources=given)
        run = trainer(tmp_path, callbacks=[looking])
    run.test(tested, data, verbose=False)
    assert ("transfer" in looking.alarms) == (given is not None)
    assert "zero_gradient" in looking.alarms


def test_a_source_is_a_copy_and_no_part_of_the_module():
    net = deepcopy(trained("natural")).train()
    torch.manual_seed(3)
    state = torch.get_rng_state()
    with_source, without = (defense(masked_twin(), alarm_sources=sources) for sources in ([net], None))
    assert torch.equal(torch.get_rng_state(), state)
    assert net.training
    assert all(parameter.requires_grad for parameter in net.parameters())
    assert with_source.state_dict().keys() == without.state_dict().keys()
    names = [[name for name, _ in one.named_modules()] for one in (with_source, without)]
    assert names[0] == names[1]
    assert [*with_source.parameters()] != []
    (source,) = with_source.probed["test"].sources
    assert not source.training
    assert not any(parameter is other for parameter in source.parameters() for other in net.parameters())


def test_loading_a_source_leaves_the_random_state_as_it_was(tmp_path):
    path = checkpoint(tmp_path)
    state = torch.get_rng_state()
    RobustAccuracy(default_test(EPS), alarm_sources=[path])
    assert torch.equal(torch.get_rng_state(), state)


class WithoutGraph(nn.Module):
    def forward(self, x):
        return x.detach().flatten(1)[:, :10]


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (TinyNet(), r"alarm_sources\[0\] \(TinyNet\) .*this data set"),
        (WithoutGraph(), r"alarm_sources\[0\] \(WithoutGraph\) .*no graph"),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 7)), r"alarm_sources\[0\] .* returns \(2, 7\) for 10 classes"),
    ],
)
@pytest.mark.parametrize("room", ["defense", "callback"])
def test_a_source_that_does_not_fit_is_refused_before_anything_is_attacked(room, source, says, tmp_path, monkeypatch):
    monkeypatch.setattr(PGD, "__call__", None)
    measure = [RobustAccuracy(default_test(EPS), alarm_sources=[source])] if room == "callback" else []
    sources = None if room == "callback" else [source]
    tested = Plain(masked_twin()) if room == "callback" else defense(masked_twin(), alarm_sources=sources)
    with pytest.raises(ValueError, match=says):
        trainer(tmp_path, callbacks=measure).test(tested, loader(batch(20)), verbose=False)


@pytest.mark.parametrize(
    ("sources", "error", "says"),
    [
        ("twin.ckpt", TypeError, "alarm_sources='twin.ckpt' must be"),
        ([3], TypeError, "alarm_sources=3 must be of type"),
        (["no.ckpt"], FileNotFoundError, "alarm_sources: .*no.ckpt"),
        ([__file__], ValueError, "alarm_sources: .*is not a checkpoint"),
    ],
)
@pytest.mark.parametrize(
    "make", [lambda **given: defense(TinyNet(), **given), lambda **given: RobustAccuracy(default_test(EPS), **given)]
)
def test_sources_that_are_none_are_refused_when_they_are_given(make, sources, error, says):
    with pytest.raises(error, match=says):
        make(alarm_sources=sources)


ROUNDED = """
from torch import nn
from lit_robust.nets import digits_cnn

def rounded(width: int, num_classes: int) -> nn.Module:
    net = digits_cnn(width=width, num_classes=num_classes)
    net.register_forward_pre_hook(lambda net, x: ((7 * x[0]).round() / 7,))
    return net
"""


def test_the_command_line_takes_checkpoints_as_sources_and_keeps_them_out_of_checkpoints(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "rounded_net.py").write_text(ROUNDED)
    long = "--model", "Natural", "--trainer.max_epochs", 5, "--data.train_size", 1000, "--data.batch_size", 64
    lit("fit", *long)
    first = Path("runs/tiny/version_0/checkpoints/last.ckpt")
    lit("fit", *long, "--model.alarm_sources", f"[{first}]")
    again = Path("runs/tiny/version_1/checkpoints/last.ckpt")
    one, other = (torch.load(path, weights_only=True) for path in (first, again))
    assert all(torch.equal(one["state_dict"][name], value) for name, value in other["state_dict"].items())
    assert "alarm_sources" not in other["hyper_parameters"]
    saved = yaml.safe_load(Path("runs/tiny/version_1/config.yaml").read_text())
    assert saved["model"]["init_args"]["alarm_sources"] == [str(first)]
    assert isinstance(Natural.load_from_checkpoint(again), Natural)
    masked_net = "--model.net", "{class_path: rounded_net.rounded, init_args: {width: 4}}"
    test = "test", "--ckpt_path", again, *masked_net, "--data.test_size", 150
    capsys.readouterr()
    for sources, rings in (([], False), (["--model.alarm_sources", "[runs/tiny]"], True)):
        lit(*test, *sources)
        assert ("ALARM transfer: a transferred attack" in capsys.readouterr().out) == rings


@pytest.mark.parametrize("command", ["fit", "test"])
def test_a_source_that_is_missing_is_refused_before_the_run_starts(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    says = refusal(capsys, command, "-c", tiny(tmp_path), "--model.alarm_sources", "[no.ckpt]")
    assert says.startswith("alarm_sources: ")
    assert "no.ckpt" in says
    assert not Path("runs").exists()


def test_the_configuration_states_that_there_are_no_sources(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["test", "-c", tiny(tmp_path), "--print_config"])
    assert yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]["alarm_sources"] is None


# The rules.


@pytest.mark.parametrize(
    ("count", "rings"),
    [((7, 0, 200), True), ((6, 0, 200), False), ((3, 0, 100), False), ((30, 25, 200), False), ((19, 5, 200), True),
     ((9, 0, 1000), False), ((20, 0, 1000), True), ((0, 0, 0), False)],
)  # fmt: skip
def test_a_comparison_needs_3_images_2_percent_and_a_sign_test(count, rings):
    assert Count(*count).rings() == rings


def test_the_sign_test_is_the_binomials_tail():
    assert sign_test(7, 0) == 1 / 128
    assert sign_test(2, 1) == pytest.approx(0.5)
    assert sign_test(0, 0) == 1


QUIET = {name: Count(0, 0, 100) for name in COUNTS} | {"large_eps": Count(100, 0, 100)}


@pytest.mark.parametrize(
    ("counted", "named"),
    [
        ({}, set()),
        ({"no_graph": Count(100, 0, 100)}, {"no_graph"}),
        ({"zero_gradient": Count(50, 0, 100)}, {"zero_gradient"}),
        ({"random": Count(100, 0, 100)}, {"random"}),
        ({"scaled_up": Count(12, 1, 100)}, {"scaling"}),
        ({"scaled_down": Count(12, 1, 100)}, {"scaling"}),
        ({"margin": Count(9, 0, 100)}, set()),
        ({"margin": Count(12, 0, 100)}, {"margin"}),
        ({"fgsm": Count(12, 0, 100)}, {"margin"}),
        ({"guided": Count(4, 0, 100)}, set()),
        ({"guided": Count(7, 0, 100)}, {"margin"}),
        ({"large_eps": Count(80, 0, 100)}, {"large_eps"}),
        ({"large_eps": Count(2, 0, 100)}, {"large_eps", "not_below_clean"}),
        ({"large_eps": Count(0, 0, 4)}, set()),  # too few to say
        ({"square": Count(8, 0, 100)}, {"square"}),
        ({"square": Count(8, 7, 100)}, set()),
        ({"transfer": Count(8, 0, 100)}, {"transfer"}),
    ],
)
def test_each_comparison_has_its_alarm(counted, named):
    found = of_probes(QUIET | counted, classes=10, images=110, eps=0.5)
    assert found.keys() == named
    assert all(sentence.endswith(".") for sentence in found.values())


@pytest.mark.parametrize(
    ("predicted", "labels", "rings"),
    [([96, 4], [50, 50], True), ([90, 10], [50, 50], False), ([100, 0], [100, 0], False), ([0, 0], [0, 0], False),
     ([2, 0], [1, 1], False)],
)  # fmt: skip
def test_a_classifier_is_trivial_if_its_classes_are_one_and_the_labels_are_not(predicted, labels, rings):
    assert bool(of_classes(predicted, labels)) == rings


def test_only_the_first_images_are_probed_and_padding_is_not():
    found = Alarms(default_test(EPS), num_classes=10, images=30)
    first = batch(20)._replace(weight=torch.tensor([1.0, 0.0]).repeat(10))
    for part in (first, batch(50)):
        found.update(trained("natural"), part, dict.fromkeys(default_test(EPS), torch.zeros(len(part.y)).bool()))
    assert found.compute() == {}
    assert found.n == 30
    assert in_words({}, 30).startswith("no alarm: the first 30 test images")


def test_one_image_is_looked_at_where_alarms_are_off():
    class Counted(nn.Module):
        calls = 0

        def forward(self, x):
            Counted.calls += 1
            return x.flatten(1)[:, :10]

    assert alarms(trained("natural"), images=0) == {}
    found = Alarms(default_test(EPS), 10, images=0)
    for _ in range(2):
        found.update(Counted(), batch(), {})
    assert (found.compute(), Counted.calls) == ({}, 1)


def test_a_comparison_counts_all_images_that_are_right_and_attacks_those_that_are_left(monkeypatch):
    """So 2 % is a difference of two points in accuracy, on weak nets, too."""
    shown = {}

    class Breaks(Square):
        def __call__(self, net, x, y):
            shown["square"] = len(x)
            return torch.zeros_like(x)

    monkeypatch.setattr("lit_robust.measures.probes.Square", Breaks)
    net, x = trained("natural"), held_out()[0][:40]
    left = torch.arange(40) < 10
    pairs = Probe(net, x, net(x).argmax(dim=1), left, (EPS, "linf")).black_box(torch.zeros(40, dtype=torch.bool))
    assert {name: len(more) for name, (more, _) in pairs.items()} == {"square": 40}
    assert shown == {"square": 10}
    assert not pairs["square"][0][10:].any()


@pytest.mark.parametrize(
    "more", [{"far": PGD(0.5, steps=20)}, {"l2": PGD(50.0, norm="l2", steps=20)}, {"near": PGD(0.01, steps=1)}, {}]
)
def test_what_an_attack_beyond_the_threat_set_breaks_is_left_to_the_probes(more, monkeypatch):
    """A test at a large eps breaks all images, and would leave nothing to Square."""
    shown = []

    class Counting(Square):
        def __call__(self, net, x, y):
            shown.append(len(x))
            return x

    monkeypatch.setattr("lit_robust.measures.probes.Square", Counting)
    net, attacks = trained("pgd"), {"pgd": PGD(EPS, steps=5), **more}
    correct = surviving(net, attacks, batch(60))
    Alarms(attacks, 10).update(net, batch(60), correct)
    within = correct["pgd"] & correct["near"] if "near" in more else correct["pgd"]
    assert shown == [within.sum()]
    assert shown[0] > 20


def test_few_images_are_called_few():
    """With fewer than 7 no comparison passes the sign test."""
    assert "too few" in in_words({}, 6)
    assert "too few" not in in_words({}, 7)


def test_probes_leave_the_random_state_as_it_was():
    torch.manual_seed(3)
    state = torch.get_rng_state()
    alarms(trained("natural"), 20)
    assert torch.equal(torch.get_rng_state(), state)
