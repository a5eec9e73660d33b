"""The adapter to AutoAttack: the package's own result, and none of its side effects."""

import logging
import sys
import warnings
from dataclasses import replace
from importlib import import_module
from io import StringIO

import pytest
import torch
from torch import nn

from lit_robust.attacks import PGD, AutoAttack
from lit_robust.attacks.autoattack_findings import Findings, gathering
from lit_robust.defenses import PGDAT
from tests.methods import build
from tests.tiny import TinyNet, images, loader, trainer

pyautoattack = pytest.importorskip("pyautoattack")
APGDAttack = pyautoattack.autoattack.APGDAttack
FABAttack_PT = pyautoattack.autoattack.FABAttack_PT
SquareAttack = pyautoattack.autoattack.SquareAttack

#: Of Square, where tests are quick.
QUERIES = 30


def make(classes=5, n=10):
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, classes))
    x = torch.rand(n, 1, 8, 8)
    y = net(x).argmax(1)
    y[0] = (y[0] + 1) % classes
    return net, x, y


@pytest.fixture
def quick(monkeypatch):
    """Few iterations for every sub-attack, built here or by the package."""
    for kind, few in (
        (APGDAttack, {"n_iter": 10}),
        (FABAttack_PT, {"n_iter": 5}),
        (SquareAttack, {"n_queries": QUERIES}),
    ):
        original = kind.__init__

        def build(self, *args, original=original, few=few, **kwargs):
            original(self, *args, **kwargs | few)

        monkeypatch.setattr(kind, "__init__", build)


def by_the_package(attack, net, x, y, queries=5000):
    """What the package's own class finds, set up for AutoAttack's versions."""
    norm, targets = {"linf": "Linf", "l2": "L2"}[attack.norm], len(net(x[:1])[0]) - 1
    kwargs = {"eps": attack.eps, "norm": norm, "seed": attack.seed}
    if attack.version == "v1":
        kwargs |= {"version": "custom", "attacks": ["apgd-ce", "apgd-dlr", "fab", "square"]}
    else:
        kwargs["version"] = attack.version
    package = pyautoattack.AutoAttack(net, **kwargs)
    package.apgd_targeted.n_target_classes = package.fab.n_target_classes = min(9, targets)
    package.square.n_queries = queries
    x_adv, _ = package.run_standard_evaluation(x, y, batch_size=attack.batch_size)
    net.zero_grad()
    return x_adv


def test_the_standard_version_is_the_packages_own_and_beats_pgd(recwarn):
    net, x, y = make()
    attack = AutoAttack(0.05)
    x_adv = attack(net, x, y)
    assert torch.equal(x_adv, by_the_package(attack, net, x, y))
    assert (x_adv - x).abs().max() <= 0.05 + 1e-6
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    survivors = net(x_adv).argmax(1) == y
    assert 0 < survivors.sum() <= (net(PGD(0.05, 0.0125, steps=20)(net, x, y)).argmax(1) == y).sum() < len(x)
    assert torch.equal(x_adv[survivors], x[survivors])
    assert torch.equal(x_adv[0], x[0])  # misclassified without an attack
    assert not recwarn.list


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("version", ["standard", "v1", "plus", "rand"])
@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.05), ("l2", 0.4)])
def test_every_version_is_the_packages_own(version, norm, eps):
    net, x, y = make()
    attack = AutoAttack(eps, norm=norm, version=version, seed=3, batch_size=4)
    x_adv = attack(net, x, y)
    assert torch.equal(x_adv, by_the_package(attack, net, x, y, QUERIES))
    assert 0 < (net(x_adv).argmax(1) == y).sum() < len(x)


@pytest.mark.parametrize("version", ["standard", "v1", "plus", "rand"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_every_sub_attack_is_set_up_as_the_package_does(version, norm, monkeypatch):
    """Compares all settings at the moment of the attack, which then does nothing."""
    runs = []

    def record(self, x, y):
        settings = {name: value for name, value in vars(self).items() if isinstance(value, (bool, int, float, str))}
        settings.pop("device", None)  # an argument of the package, derived from the images here
        if isinstance(self, FABAttack_PT) and not self.targeted:
            del settings["n_target_classes"]
        runs.append((type(self).__name__, settings))
        return x

    for kind in (APGDAttack, pyautoattack.autoattack.APGDAttack_targeted, FABAttack_PT, SquareAttack):
        monkeypatch.setattr(kind, "perturb", record)
    net, x, y = make()
    attack = AutoAttack(0.05, norm=norm, version=version, seed=3)
    attack(net, x, y)
    ours = runs.copy()
    runs.clear()
    by_the_package(attack, net, x, y)
    assert ours == runs
    assert len(ours) == {"standard": 4, "v1": 4, "plus": 6, "rand": 2}[version]


@pytest.mark.usefixtures("quick")
def test_the_seed_decides_and_the_callers_random_state_stays():
    net, x, y = make()
    attack, before = AutoAttack(1.0, norm="l2"), torch.get_rng_state()
    first = attack(net, x, y)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)
    assert torch.equal(attack(net, x, y), first)
    assert not torch.equal(replace(attack, seed=1)(net, x, y), first)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("version", ["standard", "v1"])
def test_parameters_get_no_gradient_and_keep_the_one_they_have(version):
    net, x, y = make()
    net[1].weight.grad = torch.ones_like(net[1].weight)
    net[3].bias.requires_grad_(False)
    net[3].eval()
    AutoAttack(0.05, version=version)(net, x, y)
    assert (net[1].weight.grad == 1).all()
    assert net[1].bias.grad is None
    assert [parameter.requires_grad for parameter in net.parameters()] == [True, True, True, False]
    assert [module.training for module in net] == [True, True, True, False]


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_it_works_without_gradients_and_in_inference_mode(mode):
    net, x, y = make()
    expected = AutoAttack(0.05)(net, x, y)
    with mode():
        assert torch.equal(AutoAttack(0.05)(net, x.clone(), y.clone()), expected)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_it_returns_images_of_the_nets_own_type(dtype):
    net, x, y = make()
    x_adv = AutoAttack(0.3)(net.to(dtype), x.to(dtype), y)
    assert x_adv.dtype == dtype
    assert (x_adv - x.to(dtype)).abs().max() <= 0.3 + max(2 * torch.finfo(dtype).eps, 1e-6)
    assert (net(x_adv).argmax(1) == y).sum() < (net(x.to(dtype)).argmax(1) == y).sum()


@pytest.mark.usefixtures("quick")
def test_a_trainer_in_double_precision_runs_it(tmp_path):
    """Lightning makes float64 the type of new tensors meanwhile."""
    types = set()

    class Double(TinyNet):
        def forward(self, x):
            types.add(torch.zeros(1).dtype)
            return super().forward(x)

    module = build(PGDAT, net=Double(), test_attacks={"autoattack": AutoAttack(0.1)})
    trainer(tmp_path, precision="64-true").test(module, loader(images(8)), verbose=False)
    assert types == {torch.float64}
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.usefixtures("quick")
def test_it_works_with_channels_last_and_autocast():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(144, 5))
    net, x = net.to(memory_format=torch.channels_last), torch.rand(6, 3, 8, 8)
    x = x.contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        x_adv = AutoAttack(0.02, version="plus")(net, x, net(x).argmax(1))
    assert x_adv.is_contiguous(memory_format=torch.channels_last)
    assert x_adv.dtype == torch.float32
    assert 0 < (net(x_adv).argmax(1) == net(x).argmax(1)).sum() < len(x)
    assert (x_adv - x).abs().max() <= 0.02 + 1e-6


@pytest.mark.usefixtures("quick")
def test_it_prints_nothing_and_reports_to_the_logger(capsys, caplog):
    net, x, y = make()
    with caplog.at_level(logging.INFO, logger="lit_robust"):
        AutoAttack(0.05)(net, x, y)
    assert capsys.readouterr() == ("", "")
    assert [record.getMessage().split(" after ")[1].split()[0] for record in caplog.records] == [
        "apgd-ce",
        "apgd-t",
        "fab-t",
        "square",
    ]
    assert {record.name.split(".")[0] for record in caplog.records} == {"lit_robust"}


@pytest.mark.usefixtures("quick")
def test_it_ends_when_nothing_is_left_to_break(caplog):
    net, x, _ = make()
    with caplog.at_level(logging.INFO, logger="lit_robust"):
        x_adv = AutoAttack(0.05)(net, x, (net(x).argmax(1) + 1) % 5)
    assert torch.equal(x_adv, x)
    assert not caplog.records


# The package's checks.


def warnings_of(net, x, y, version="standard"):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        AutoAttack(0.05, version=version)(net, x, y)
    return " ".join(str(warning.message) for warning in caught)


class Gradient(nn.Module):
    """A net that computes a gradient while it predicts."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            torch.autograd.grad(self.net(leaf).sum(), leaf)
        return self.net(x)


@pytest.mark.usefixtures("quick")
def test_failed_checks_of_the_package_are_warned_of_in_our_words():
    net, x, y = make()
    assert warnings_of(net, x, y) == ""
    randomised = nn.Sequential(nn.Dropout(0.1), net)
    assert "draws random numbers" in warnings_of(randomised, x, y)
    assert "draws random numbers" not in warnings_of(randomised, x, y, version="rand")
    assert "returns probabilities" in warnings_of(nn.Sequential(net, nn.Softmax(dim=1)), x, y)


@pytest.mark.usefixtures("quick")
def test_an_evaluation_gathers_findings_over_its_batches_instead_of_warnings(recwarn):
    net, x, y = make()
    with gathering(Findings()) as findings:
        for rows in (slice(0, 4), slice(4, 10)):
            AutoAttack(0.05)(nn.Sequential(net, nn.Softmax(dim=1)), x[rows], y[rows])
    (told,) = findings.sentences()
    assert told.startswith("AutoAttack(eps=0.05), at 10 of 10 images: ")
    assert "probabilities" in told
    findings.reset()
    assert findings.sentences() == []
    assert not recwarn.list


def test_images_without_a_gradient_count_once_for_all_attacks(quick):
    net, x, y = make()
    flat = torch.arange(10) % 3 == 1  # 1, 4, 7

    class Flat(nn.Module):
        def forward(self, inputs):
            keeps = (inputs.unsqueeze(1) - x).abs().amax(dim=(2, 3, 4)).argmin(dim=1)  # its clean image
            return net(torch.where(flat[keeps].view(-1, 1, 1, 1), inputs.detach(), inputs))

    with gathering(Findings()) as findings:
        AutoAttack(0.01)(Flat(), x, y)
    assert "at 3 of 10 images: the gradient" in " ".join(findings.sentences())


def test_what_square_alone_breaks_is_counted_and_told_from_a_share_of_all_images(monkeypatch):
    net, x, y = make()
    for kind in (APGDAttack, pyautoattack.autoattack.APGDAttack_targeted, FABAttack_PT):
        monkeypatch.setattr(kind, "perturb", lambda self, x, y: x)
    monkeypatch.setattr(SquareAttack, "perturb", lambda self, x, y: -20 * x)
    with gathering(Findings()) as findings:
        x_adv = AutoAttack(1.0)(net, x, y)
    broken = ((net(x_adv).argmax(1) != y) & (net(x).argmax(1) == y)).sum()
    assert broken > 0
    (told,) = findings.sentences()
    assert f" {broken} of 10 images: Square" in told
    for few, sentences in ((2, 0), (3, 1)):
        assert len(Findings({"it | square": few, "it | attacked": 1000}).sentences()) == sentences


@pytest.mark.usefixtures("quick")
def test_a_net_that_optimises_is_warned_of_but_not_the_next_one():
    net, x, y = make()
    assert "optimises while it predicts" in warnings_of(Gradient(net), x, y)
    assert warnings_of(net, x, y) == ""


@pytest.mark.usefixtures("quick")
def test_the_trace_function_of_a_debugger_survives():
    net, x, y = make()
    before = sys.gettrace()

    def trace(frame, event, argument):
        return None

    sys.settrace(trace)
    try:
        AutoAttack(0.05)(net, x, y)
        assert sys.gettrace() is trace
    finally:
        sys.settrace(before)


# Few classes, no package.


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(("classes", "targets"), [(4, 3), (5, 4), (10, 9), (12, 9)])
def test_targeted_attacks_aim_at_nine_classes_or_all_that_are_wrong(classes, targets, monkeypatch):
    net, x, y = make(classes)
    seen = []
    original = FABAttack_PT.perturb
    monkeypatch.setattr(
        FABAttack_PT, "perturb", lambda self, x, y: seen.append(self.n_target_classes) or original(self, x, y)
    )
    AutoAttack(0.01)(net, x, y)
    assert set(seen) == {targets}


@pytest.mark.usefixtures("quick")
def test_nets_with_too_few_classes_are_refused():
    net, x, y = make(classes=3)
    with pytest.raises(ValueError, match=r"^AutoAttack.* 3 logits.*version="):
        AutoAttack(0.05)(net, x, y)
    assert AutoAttack(0.05, version="v1")(net, x, y).shape == x.shape
    net, x, y = make(classes=2)
    for version in ("standard", "v1"):
        with pytest.raises(ValueError, match=r"^AutoAttack.* 2 logits.* restarts"):
            AutoAttack(0.05, version=version)(net, x, y)


def test_a_missing_package_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyautoattack", None)
    monkeypatch.setitem(sys.modules, "autoattack", None)
    monkeypatch.setitem(sys.modules, "pyautoattack.autopgd_base", None)
    with pytest.raises(ImportError, match=r"lit-robust\[autoattack\]"):
        AutoAttack(0.05)(*make())


@pytest.mark.usefixtures("quick")
def test_the_authors_own_package_is_used_where_only_that_is_installed(monkeypatch):
    net, x, y = make()
    expected = AutoAttack(0.05)(net, x, y)
    for name in ("", ".autopgd_base", ".fab_pt", ".square", ".checks"):
        monkeypatch.setitem(sys.modules, f"autoattack{name}", import_module(f"pyautoattack{name}"))
    monkeypatch.setitem(sys.modules, "pyautoattack", None)
    monkeypatch.setitem(sys.modules, "pyautoattack.autopgd_base", None)
    assert torch.equal(AutoAttack(0.05)(net, x, y), expected)


def test_its_progress_bar_stays_on_one_line_while_rich_draws_lightnings(quick, monkeypatch):
    pytest.importorskip("rich")
    from rich.console import Console
    from rich.file_proxy import FileProxy

    class Terminal(StringIO):
        def isatty(self):
            return True

    terminal, lines = Terminal(), StringIO()
    monkeypatch.setattr(sys, "stderr", FileProxy(Console(file=lines), terminal))
    net, x, y = make()
    AutoAttack(0.05)(net, x, y)
    assert "AutoAttack" in terminal.getvalue()
    assert "\n" not in terminal.getvalue()
    assert lines.getvalue() == ""
