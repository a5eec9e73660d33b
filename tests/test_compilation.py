"""``compile=True`` where it works and where it does not: what is said, and that the results are those of the net."""

import time
from functools import partialmethod
from itertools import count

import pytest
import torch
from torch import nn

from lit_robust.compilation import compile_in_place
from lit_robust.defenses import PGDAT, TRADES, Natural
from lit_robust.training import attacked
from tests.methods import build
from tests.tiny import TinyNet, assert_equal, images, loader, trainer

X = images().x


def fit(module, tmp_path, **arguments):
    trainer(tmp_path, max_epochs=1, **arguments).fit(module, loader(images()), loader(images(8, seed=1)))
    return module.net.state_dict()


def broken(graph, inputs):
    raise RuntimeError("no C++ compiler\nwas found")


def use(monkeypatch, backend):
    """Let ``torch.compile`` have another backend than inductor, which takes a minute."""
    torch._dynamo.reset()
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend=backend))


@pytest.mark.parametrize("method", [Natural, PGDAT, TRADES])
def test_a_training_whose_net_cannot_be_compiled_goes_on_without_and_says_why(method, tmp_path, monkeypatch):
    plain = fit(build(method), tmp_path)
    use(monkeypatch, broken)
    with pytest.warns(UserWarning, match="compile=True.*no C.. compiler") as warned:
        assert_equal(fit(build(method, compile=True), tmp_path), plain)
    assert len([one for one in warned if "compile=True" in str(one.message)]) <= 2  # the net, and its folded copy


@pytest.mark.parametrize("error", [KeyError("of the net"), RuntimeError("of the net")])
def test_an_error_of_the_net_itself_is_raised_as_it_is(error, monkeypatch):
    class Fails(nn.Module):
        def forward(self, x):
            raise error

    use(monkeypatch, "eager")
    net = Fails()
    compile_in_place(net)
    for _ in range(2):
        with pytest.raises(type(error), match="of the net"):
            net(X)


def test_a_compiler_that_has_failed_is_not_asked_again(monkeypatch):
    asked = []

    def fails(graph, inputs):
        asked.append(1)
        raise RuntimeError("no C++ compiler")

    use(monkeypatch, fails)
    net = TinyNet().eval()
    expected = net(X)
    compile_in_place(net)
    with pytest.warns(UserWarning, match="compile=True"):
        assert torch.equal(net(X), expected)
    assert torch.equal(net(X), expected)
    assert asked == [1]


def test_the_seconds_of_the_compiler_are_told_after_the_fit(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(attacked, "rank_zero_info", said.append)
    seconds = count(0, 3)
    monkeypatch.setattr(time, "perf_counter", lambda: next(seconds))
    use(monkeypatch, "eager")
    fit(build(Natural, compile=True), tmp_path, limit_val_batches=0)
    (line,) = said
    graphs = int(line.partition("for ")[2].split()[0])
    assert graphs > 0
    assert f"{3 * graphs} s" in line
    said.clear()
    fit(build(Natural), tmp_path)
    assert said == []
