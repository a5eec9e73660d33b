"""Square Attack: its set, its schedule, what it keeps, and its strength beside the authors' code."""

import pytest
import torch
from torch import nn

from lit_robust.attacks import Square
from lit_robust.guards import checked, smaller_batches
from tests.test_attacks import Counting, axis_net, smooth_net
from tests.tiny import TinyNet, images, named
from tests.trained import held_out, trained

EPS = 0.15


def run(attack, net, x, y, seed=0, shrink=False):
    torch.manual_seed(seed)
    if shrink:
        with smaller_batches():
            return attack(net, x, y)
    return attack(net, x, y)


def broken(net, x_adv, y):
    with torch.no_grad():
        return net(x_adv).argmax(1) != y


# The threat set.


@pytest.mark.parametrize("queries", [1, 2, 60])
@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 5, 9), (1, 9, 5), (2, 1, 1)])
def test_points_stay_in_the_ball_and_in_the_box(queries, shape):
    x, y = torch.rand(12, *shape), torch.arange(12) % 5
    x[0], x[1] = 0, 1
    net, before = nn.Sequential(nn.Flatten(), nn.Linear(x[0].numel(), 5)), x.clone()
    x_adv = run(Square(EPS, queries=queries), net, x, y)
    assert x_adv.shape == x.shape
    assert (x_adv - x).abs().max() <= EPS + 1e-6
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    assert torch.equal(x, before)


def test_eps_0_and_no_images_change_nothing():
    net, batch = TinyNet().eval(), images(8)
    assert torch.equal(run(Square(0, queries=5), net, batch.x, batch.y), batch.x)
    assert run(Square(EPS), net, batch.x[:0], batch.y[:0]).shape == (0, 3, 8, 8)


def test_the_start_is_vertical_stripes():
    x, y = torch.full((6, 3, 7, 5), 0.5), torch.zeros(6, dtype=torch.int64)
    delta = run(Square(EPS, queries=1), nn.Sequential(nn.Flatten(), nn.Linear(105, 4)), x, y) - x
    torch.testing.assert_close(delta.abs(), torch.full_like(x, EPS))
    assert torch.equal(delta, delta[:, :, :1].expand_as(delta))
    assert len(delta[:, :, 0].sign().unique()) == 2


@pytest.mark.parametrize("label", [0, 1])
def test_every_pixel_ends_in_its_corner_where_the_margin_is_linear(label):
    """Of 16 pixels, which squares of one pixel reach after 200 queries; no image is misclassified before that."""
    v = torch.randn(1, 4, 4, generator=torch.Generator().manual_seed(1))
    net = axis_net(v)
    net[1].bias.data[label] += 100.0
    x, y = 0.3 + 0.4 * torch.rand(8, 1, 4, 4), torch.full((8,), label)
    sign = 1 - 2 * label
    x_adv = run(Square(EPS, queries=900), net, x, y)
    torch.testing.assert_close(x_adv, x + EPS * sign * v.sign())


# The squares.


def sides(attack, x, query):
    squares = attack.squares(x, query)
    assert squares.shape == (len(x), 1, *x.shape[-2:])
    height, width = (squares.any(dim=axis).sum(dim=-1).flatten() for axis in (3, 2))
    assert torch.equal(height, width)
    assert torch.equal(squares.sum(dim=(1, 2, 3)), height * width)  # without holes
    (side,) = height.unique().tolist()
    return side


@pytest.mark.parametrize("area", [0.8, 0.3, 1.0])
@pytest.mark.parametrize("size", [8, 28, 32])
def test_a_square_has_the_side_of_the_authors_code_at_every_query(area, size):
    kind = pytest.importorskip("pyautoattack.autoattack").SquareAttack
    theirs = kind(None, n_queries=10000, eps=EPS, p_init=area, resc_schedule=False, device="cpu")
    x = torch.zeros(20, 3, size, size)
    for query in (1, 10, 11, 50, 51, 200, 201, 500, 501, 1000, 1001, 2001, 4001, 6001, 8001, 9999):
        expected = max(round((theirs.p_selection(query) * size * size) ** 0.5), 1)
        assert sides(Square(EPS, area=area), x, query) == expected


def test_a_square_fits_into_an_image_of_any_shape_and_gets_everywhere():
    for shape in ((1, 9), (9, 1), (4, 30)):
        assert 1 <= sides(Square(EPS, area=1.0), torch.zeros(30, 1, *shape), 1) <= min(shape)
    assert Square(EPS).squares(torch.zeros(2000, 1, 6, 6), 300).any(dim=0).all()


# What is kept.


def test_a_query_is_a_forward_and_the_margin_never_falls():
    net, batch = Counting(smooth_net()), images(12)
    x, y = batch.x[:, :1, :4, :4], batch.y
    margins = []
    for queries in (1, 20, 60):
        net.rows.clear()
        x_adv = run(Square(0.02, queries=queries), net, x, y)
        assert net.rows == [12] * queries
        logits = net.net(x_adv).detach()
        margins.append(logits.scatter(1, y[:, None], -torch.inf).amax(1) - logits.gather(1, y[:, None])[:, 0])
    kept = [~broken(net, x, y) & (margin < 0) for margin in margins]
    assert kept[-1].any()
    for before, after in ((0, 1), (1, 2)):
        still = kept[after]
        assert (margins[after][still] >= margins[before][still]).all()
    assert (margins[2] > margins[0]).any()


def test_a_break_is_never_undone():
    """With more queries under the same seed the first ones are the same."""
    net, (x, y) = trained("fgsm"), (part[:100] for part in held_out())
    few, many = (run(Square(EPS, queries=queries), net, x, y) for queries in (30, 150))
    early = broken(net, few, y)
    assert 0 < early.sum() < broken(net, many, y).sum()
    assert torch.equal(few[early], many[early])
    assert not torch.equal(few[~early], many[~early])


@pytest.mark.parametrize("queries", [24, 25, 26, 120])
def test_images_that_leave_the_batch_change_nothing_for_the_others(queries):
    net, (x, y) = Counting(trained("natural")).eval(), (part[:100] for part in held_out())
    attack = Square(EPS, queries=queries)
    whole = run(attack, net, x, y)
    rows = [*net.rows]
    net.rows.clear()
    smaller = run(attack, net, x, y, shrink=True)
    assert torch.equal(broken(net.net, whole, y), broken(net.net, smaller, y))
    torch.testing.assert_close(smaller, whole, atol=1e-6, rtol=0)
    assert rows == [100] * queries
    assert (min(net.rows) < 100) == (queries > 25)


def test_it_ends_when_all_images_are_broken():
    net, x = Counting(nn.Sequential(nn.Flatten(), nn.Linear(16, 3))).eval(), torch.rand(8, 1, 4, 4)
    y = (net.net(x).argmax(1) + 1) % 3
    run(Square(0.001, queries=500), net, x, y, shrink=True)
    assert len(net.rows) == 25


def test_logits_that_are_not_finite_count_as_broken():
    class Breaks(nn.Module):
        def forward(self, x):
            return x.flatten(1)[:, :2] * torch.tensor([torch.nan, 1.0])

    x = torch.rand(4, 1, 2, 2)
    with checked():  # else the first logits are refused
        few, many = (run(Square(EPS, queries=n), Breaks(), x, torch.ones(4, dtype=torch.int64)) for n in (1, 40))
    assert torch.equal(few, many)


# The surroundings.


def test_the_seed_decides():
    net, (x, y) = trained("pgd"), (part[:20] for part in held_out())
    attack = Square(EPS, queries=40)
    first, again, other = (run(attack, net, x, y, seed) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_the_callers_gradient_mode_does_not_matter(mode):
    net, batch = TinyNet().eval(), images(8)
    expected = run(Square(EPS, queries=30), net, batch.x, batch.y)
    with mode():
        found = run(Square(EPS, queries=30), net, batch.x.clone(), batch.y.clone())
        assert torch.equal(found, expected)
    assert not any(p.grad is not None for p in net.parameters())
    assert not net.training


def test_it_runs_in_bfloat16():
    net, batch = TinyNet().eval(), images(8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        x_adv = run(Square(EPS, queries=30), net, batch.x, batch.y)
    assert x_adv.dtype == torch.float32
    assert (x_adv - batch.x).abs().max() <= EPS + 1e-6


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("eps", 8),
        ("eps", -0.1),
        ("queries", 0),
        ("queries", 1.5),
        ("area", 0),
        ("area", 1.1),
        ("area", float("nan")),
    ],
    ids=named,
)
def test_arguments_that_make_no_sense_are_refused(name, value):
    with pytest.raises(ValueError, match=rf"^{name}="):
        Square(**{name: value})


def test_images_outside_the_box_and_labels_below_0_are_refused():
    net, batch = TinyNet().eval(), images(8)
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        Square(EPS)(net, 2 * batch.x + 0.5, batch.y)
    with pytest.raises(ValueError, match="labels"):
        Square(EPS)(net, batch.x, batch.y - 1)


def test_it_is_a_value():
    assert Square("8/255") == Square(8 / 255)
    assert Square() != Square(queries=100)
    assert len({Square(), Square(), Square(0.1)}) == 2
