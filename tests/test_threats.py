"""Threat sets: projections, random starts and steepest steps."""

import pytest
import torch

from lit_robust.threats import L2, Linf, threat

SHAPES = [(1, 1, 1, 1), (3, 1, 8, 8), (5, 3, 4, 6), (2, 7)]
SETS = [Linf(0.0), Linf(8 / 255), Linf(0.3), Linf(1.0), L2(0.0), L2(0.5), L2(3.0)]
ULP = 1e-6


def size(threat_set, change):
    return change.flatten(1).abs().amax(1) if isinstance(threat_set, Linf) else change.flatten(1).norm(dim=1)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("threat_set", SETS, ids=str)
class TestProjection:
    def test_lands_in_the_ball_and_in_the_box(self, threat_set, shape):
        for scale in (1e-3, 0.1, 10.0):
            x = torch.rand(shape)
            projected = threat_set.project(x + scale * torch.randn(shape), x)
            assert (size(threat_set, projected - x) <= threat_set.eps + ULP).all()
            assert projected.min() >= 0
            assert projected.max() <= 1

    def test_is_idempotent(self, threat_set, shape):
        x = torch.rand(shape)
        once = threat_set.project(x + torch.randn(shape), x)
        torch.testing.assert_close(threat_set.project(once, x), once, atol=1e-7, rtol=0)

    def test_leaves_points_of_the_set_alone(self, threat_set, shape):
        x = torch.rand(shape)
        inside = threat_set.project(x + 0.5 * (threat_set.random_start(x) - x), x)
        torch.testing.assert_close(threat_set.project(inside, x), inside, atol=1e-7, rtol=0)
        torch.testing.assert_close(threat_set.project(x, x), x, atol=0, rtol=0)

    def test_random_starts_are_in_the_ball_and_differ(self, threat_set, shape):
        x = torch.rand(shape)
        starts = [threat_set.random_start(x) for _ in range(2)]
        for start in starts:
            assert (size(threat_set, start - x) <= threat_set.eps + ULP).all()
        assert torch.equal(*starts) == (threat_set.eps == 0)


def test_linf_projection_is_the_nearest_point():
    x, x_adv = torch.tensor([[0.5, 0.0, 0.9]]), torch.tensor([[0.9, -1.0, 0.95]])
    torch.testing.assert_close(Linf(0.2).project(x_adv, x), torch.tensor([[0.7, 0.0, 0.95]]))


def test_l2_projection_scales_first_and_clips_then():
    x, x_adv = torch.tensor([[0.5, 0.9]]), torch.tensor([[0.8, 1.3]])  # a change of (0.3, 0.4), length 0.5
    torch.testing.assert_close(L2(0.25).project(x_adv, x), torch.tensor([[0.65, 1.0]]))


def test_uniform_starts_fill_the_ball_evenly():
    x = torch.full((1000, 16), 0.5)
    change = Linf(0.1).random_start(x) - x
    assert change.abs().max() > 0.0999
    assert change.mean().abs() < 2e-3
    assert (change.var() - 0.1**2 / 3).abs() < 1e-4


def test_lengths_of_l2_starts_are_uniform_up_to_eps():
    x = torch.full((4000, 16), 0.5)
    length = (L2(2.0).random_start(x) - x).norm(dim=1)
    torch.testing.assert_close(
        length.quantile(torch.tensor([0.25, 0.5, 0.75])), torch.tensor([0.5, 1.0, 1.5]), atol=0.07, rtol=0
    )


def test_random_starts_may_leave_the_box():
    x = torch.zeros(4, 16)
    assert Linf(0.1).random_start(x).min() < 0
    assert L2(1.0).random_start(x).min() < 0


def test_steepest_steps_maximise_a_linear_function_over_the_unit_ball():
    gradient = torch.randn(6, 3, 4, 4)
    others = torch.randn(200, *gradient.shape)
    for threat_set, dual in (
        (Linf(0.1), gradient.flatten(1).abs().sum(1)),
        (L2(0.1), gradient.flatten(1).norm(dim=1)),
    ):
        step = threat_set.steepest_step(gradient)
        gain = (step * gradient).flatten(1).sum(1)
        torch.testing.assert_close(gain, dual)  # the dual norm is the maximum
        for other in others:
            rival = other / size(threat_set, other).view(-1, 1, 1, 1)
            assert ((rival * gradient).flatten(1).sum(1) <= gain + 1e-4).all()


def test_a_gradient_of_zero_gives_no_step():
    for threat_set in (Linf(0.1), L2(0.1)):
        assert threat_set.steepest_step(torch.zeros(2, 1, 2, 2)).count_nonzero() == 0
        assert threat_set.steepest_step(torch.full((2, 1, 2, 2), torch.nan)).count_nonzero() == 0


@pytest.mark.parametrize("kind", [Linf, L2])
def test_eps_may_differ_between_samples(kind):
    x, far = torch.rand(3, 1, 4, 4), torch.randn(3, 1, 4, 4)
    radii = [0.0, 0.1, 0.5]
    together = kind(torch.tensor(radii).view(3, 1, 1, 1))
    one_by_one = torch.cat([kind(r).project(x[i : i + 1] + far[i : i + 1], x[i : i + 1]) for i, r in enumerate(radii)])
    torch.testing.assert_close(together.project(x + far, x), one_by_one)
    assert (size(together, together.random_start(x) - x) <= torch.tensor(radii) + ULP).all()


@pytest.mark.parametrize("threat_set", [Linf(0.1), L2(0.5)], ids=str)
def test_memory_format_is_kept(threat_set):
    x = torch.rand(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    for result in (threat_set.project(x, x), threat_set.random_start(x), threat_set.steepest_step(x)):
        assert result.is_contiguous(memory_format=torch.channels_last)


def test_threat_builds_norms_by_name():
    assert threat("linf", 0.1) == Linf(0.1)
    assert threat("l2", 0.5) == L2(0.5)
    with pytest.raises(ValueError, match=r'^norm="l1"'):
        threat("l1", 0.1)
