"""``compile=True`` where it works and where it does not: what is said, and that the results are those of the net."""

import math
import pickle
import re
import time
from contextlib import nullcontext
from functools import partialmethod
from itertools import count

import pytest
import torch
from lightning.pytorch import Callback
from torch import nn

from lit_robust.compilation import compile_in_place
from lit_robust.defenses import PGDAT, TRADES, Natural
from tests.methods import build
from tests.tiny import Counting, TinyNet, assert_equal, images, loader, trainer

X = images().x


def fit(module, tmp_path, **arguments):
    trainer(tmp_path, max_epochs=1, **arguments).fit(module, loader(images()), loader(images(8, seed=1)))
    return module.net.state_dict()


def broken(graph, inputs):
    raise RuntimeError("no C++ compiler\nwas found")


def compiler(graphs, fails_at=math.inf):
    """A backend of torch's kind, which hands over backwards when they first run; both parts come into ``graphs``."""
    from functorch.compile import make_boxed_func
    from torch._dynamo.backends.common import aot_autograd

    backwards = count(1)

    def forward(graph, inputs):
        graphs.append("forward")
        return make_boxed_func(graph.forward)

    def backward(graph, inputs):
        graphs.append("backward")
        return broken(graph, inputs) if next(backwards) >= fails_at else make_boxed_func(graph.forward)

    return aot_autograd(fw_compiler=forward, bw_compiler=backward)


def use(monkeypatch, backend):
    """Let ``torch.compile`` have another backend than inductor, which takes a minute."""
    torch._dynamo.reset()
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend=backend))


def took(caplog):
    """The seconds and compilations of each line that reports them."""
    lines = (re.match(r"torch.compile took (\d+) s \((\d+) ", record.getMessage()) for record in caplog.records)
    return [(int(line[1]), int(line[2])) for line in lines if line]


@pytest.mark.parametrize("part", ["forward", "backward"])
@pytest.mark.parametrize("method", [Natural, PGDAT, TRADES])
def test_a_training_whose_net_cannot_be_compiled_goes_on_without_and_says_why(method, part, tmp_path, monkeypatch):
    plain = fit(build(method), tmp_path)
    use(monkeypatch, broken if part == "forward" else compiler([], fails_at=1))
    with pytest.warns(UserWarning, match="compile=True.*no C.. compiler") as warned:
        assert_equal(fit(build(method, compile=True), tmp_path), plain)
    assert len([one for one in warned if "compile=True" in str(one.message)]) <= 2  # the net, and its folded copy


def test_many_nets_of_a_process_are_all_compiled(monkeypatch):
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    use(monkeypatch, count)
    for width in range(1, 13):
        net = TinyNet(width)
        compile_in_place(net)
        net(X)
    assert len(graphs) == 12


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


class Random(Counting):
    """Draws in each forward, moves its BatchNorm and counts in buffers."""

    def forward(self, x):
        return nn.functional.dropout(super().forward(x), 0.5)


def test_trying_a_backward_leaves_no_trace(monkeypatch):
    graphs = []
    use(monkeypatch, compiler(graphs))
    (net, plain), hooked = (Random(), Random()), []
    compile_in_place(net)
    net.head.weight.register_post_accumulate_grad_hook(hooked.append)
    for _ in range(2):
        left = []
        for one in (net, plain):
            torch.manual_seed(0)
            one(X).square().mean().backward()
            left.append([torch.random.get_rng_state(), *one.buffers(), *(w.grad for w in one.parameters())])
        torch.testing.assert_close(*left, rtol=0, atol=0)
    assert len(hooked) == 2
    assert graphs == ["forward", "backward"]  # as without a trial


@pytest.mark.parametrize(
    "change",
    [
        lambda net, x: x[:3],
        lambda net, x: x.clone().requires_grad_(),
        lambda net, x: x if net.eval() else None,
        lambda net, x: x if net.head.requires_grad_(False) else None,
    ],
    ids=["size", "attack", "mode", "frozen"],
)
def test_a_backward_of_another_kind_that_fails_later_ends_no_training(change, monkeypatch):
    use(monkeypatch, compiler([], fails_at=2))
    net, plain = TinyNet(), TinyNet()
    compile_in_place(net)
    net(X).sum().backward()
    plain(X).sum().backward()
    with pytest.warns(UserWarning, match="compile=True.*no C.. compiler"):
        net(change(net, X)).sum().backward()
    plain(change(plain, X)).sum().backward()
    assert all(
        torch.equal(one.grad, other.grad) for one, other in zip(net.parameters(), plain.parameters(), strict=True)
    )


def test_a_net_that_cannot_be_copied_is_compiled_without_a_trial(tmp_path, monkeypatch):
    graphs, net = [], TinyNet()
    use(monkeypatch, compiler(graphs))
    with open(tmp_path / "journal", "w") as net.journal:
        compile_in_place(net)
        logits = net(X)
        assert graphs == ["forward"]
        logits.sum().backward()
    assert graphs == ["forward", "backward"]


def test_the_seconds_of_the_compiler_are_told_after_the_fit(tmp_path, monkeypatch, caplog):
    calls = []

    def slow(graph, inputs):
        calls.append(graph)
        time.sleep(0.6)
        return graph

    use(monkeypatch, slow)
    module = build(Natural, compile=True)
    with caplog.at_level("INFO"):
        fit(module, tmp_path, limit_val_batches=0)
        first = took(caplog)
        fit(module, tmp_path, limit_val_batches=0)  # nothing is compiled again
        fit(build(Natural), tmp_path)
    ((seconds, compilations),) = first
    assert seconds >= int(0.6 * len(calls)) >= 1
    assert compilations >= len(calls)
    assert took(caplog) == first


def test_after_a_fit_that_fails_the_next_one_counts_its_own_compilations(tmp_path, monkeypatch, caplog):
    class Fails(Callback):
        def on_train_batch_end(self, *args):
            raise KeyError("stop")

    with caplog.at_level("INFO"):
        for callbacks in ([], [Fails()], []):
            use(monkeypatch, "eager")
            module = build(Natural, compile=True)
            with pytest.raises(KeyError) if callbacks else nullcontext():
                fit(module, tmp_path, callbacks=callbacks)
    (_, alone), (_, afterwards) = took(caplog)
    assert alone == afterwards > 0
    assert pickle.loads(pickle.dumps(module)).compiled
