"""The signs of gradient masking, against closed forms.

All losses are of class 0 of two, ``softplus(z)`` of the other's logit z; where z is about 40, that is z itself.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lit_robust.attacks import PGD
from lit_robust.measures import masking
from lit_robust.threats import L2, Linf
from tests.tiny import TinyNet, images

EPS = 0.1


class OfClassZero(nn.Module):
    """Logits (0, z); counts its forwards and how many images each has."""

    def __init__(self) -> None:
        super().__init__()
        self.forwards: list[int] = []

    def forward(self, x):
        self.forwards.append(len(x))
        z = self.z(x.flatten(1))
        return torch.stack([torch.zeros_like(z), z], dim=1)


class Linear(OfClassZero):
    """z = offset + w x."""

    def __init__(self, *w: float, offset: float = 40.0) -> None:
        super().__init__()
        self.w, self.offset = nn.Parameter(torch.tensor(w)), offset

    def z(self, x):
        return self.offset + x @ self.w


class Quadratic(OfClassZero):
    """z = 40 + k x^2, in each pixel with its own k."""

    def __init__(self, *k: float) -> None:
        super().__init__()
        self.k = nn.Parameter(torch.tensor(k))

    def z(self, x):
        return 40 + x.square() @ self.k


def pixels(*rows):
    """Images of one row, and their labels."""
    x = torch.tensor(rows, dtype=torch.float32).view(len(rows), 1, 1, -1)
    return x, torch.zeros(len(rows), dtype=torch.int64)


def no_gradient_is_left(net):
    return all(parameter.grad is None for parameter in net.parameters())


class TestCrossEntropyAndGradient:
    def test_those_of_a_linear_net(self):
        net, (x, y) = Linear(2.0, -1.0, offset=0.0), pixels([0.2, 0.5], [0.9, 0.1])
        ce, gradient = masking.ce_and_gradient(net, x, y)
        z = torch.tensor([-0.1, 1.7])
        torch.testing.assert_close(ce, F.softplus(z))
        torch.testing.assert_close(gradient, torch.sigmoid(z).view(2, 1, 1, 1) * torch.tensor([2.0, -1.0]))
        assert not any(tensor.requires_grad for tensor in (ce, gradient, x))
        assert no_gradient_is_left(net)

    def test_a_loss_may_depend_on_the_gradient_if_it_has_a_graph(self):
        net, (x, y) = Quadratic(3.0, 5.0), pixels([0.2, 0.5], [0.4, 0.1])
        ce, gradient = masking.ce_and_gradient(net, x, y, create_graph=True)
        gradient.square().sum().backward()
        torch.testing.assert_close(net.k.grad, 8 * net.k.detach() * x.square().sum(dim=0).flatten())
        assert not ce.requires_grad

    def test_a_compiled_net_has_a_graph_of_the_gradient_too(self):
        net, (x, y) = Quadratic(3.0, 5.0), pixels([0.2, 0.5])
        net.compile(backend="aot_eager")
        _, gradient = masking.ce_and_gradient(net, x, y, create_graph=True)
        gradient.sum().backward()
        torch.testing.assert_close(net.k.grad, 2 * x.flatten())


class TestGradientCosine:
    def test_that_of_two_vectors_however_short_they_are(self):
        at_image, _ = pixels([3, 4], [3, 4], [3, 4], [3e-15, 4e-15])
        beside, _ = pixels([4, 3], [-6, -8], [4, -3], [4e-10, 3e-10])
        torch.testing.assert_close(masking.gradient_cosine(at_image, beside), torch.tensor([0.96, -1, 0, 0.96]))

    def test_is_1_everywhere_in_the_ball_if_the_net_is_linear(self):
        net, x = Linear(2.0, -1.0, 0.5, offset=0.0), torch.rand(50, 1, 1, 3)
        y = torch.arange(50) % 2
        points = x, Linf(EPS).random_start(x)
        at_image, beside = (masking.ce_and_gradient(net, point, y)[1] for point in points)
        torch.testing.assert_close(masking.gradient_cosine(at_image, beside), torch.ones(50))

    def test_of_a_quadratic_loss_it_is_that_of_the_points_themselves(self):
        net, x, y = Quadratic(7.0, 7.0), torch.rand(50, 1, 1, 2), torch.zeros(50, dtype=torch.int64)
        other = Linf(0.5).random_start(x)
        at_image, beside = (masking.ce_and_gradient(net, point, y)[1] for point in (x, other))
        expected = F.cosine_similarity(x.flatten(1), other.flatten(1))
        assert expected.min() < 0.9
        torch.testing.assert_close(masking.gradient_cosine(at_image, beside), expected)

    def test_is_nan_where_a_gradient_vanishes_at_either_point(self):
        at_image, _ = pixels([0, 0], [1, 2], [0, 0], [1, 2])
        beside, _ = pixels([1, 2], [0, 0], [0, 0], [1, 2])
        assert masking.gradient_cosine(at_image, beside).isnan().tolist() == [True, True, True, False]

    def test_has_a_derivative_in_the_parameters(self):
        net, (x, y), (other, _) = Quadratic(3.0, 5.0), pixels([0.2, 0.5]), pixels([0.4, 0.3])
        _, at_image = masking.ce_and_gradient(net, x, y)
        _, beside = masking.ce_and_gradient(net, other, y, create_graph=True)
        masking.gradient_cosine(at_image, beside).sum().backward()
        # cos(v, k p) in 2 dimensions is that of the angle between them, whose derivative is -sin times the angle's.
        v, p, k = (t.detach().double().flatten() for t in (at_image, other, net.k))
        cross = v[0] * k[1] * p[1] - v[1] * k[0] * p[0]
        length = (k * p).norm()
        angle = torch.stack([-p[0] * k[1] * p[1], k[0] * p[0] * p[1]]) / length**2
        torch.testing.assert_close(net.k.grad.double(), -cross / (v.norm() * length) * angle, rtol=1e-4, atol=1e-5)

    def test_images_without_a_gradient_do_not_spoil_that_of_a_loss_that_masks_them(self):
        net, (x, y) = Quadratic(1.0, 2.0), pixels([0, 0], [0.5, 0.5])
        constant = torch.tensor([2.0, 1.0]).expand_as(x)
        _, beside = masking.ce_and_gradient(net, x, y, create_graph=True)
        cosine = masking.gradient_cosine(constant, beside)
        torch.testing.assert_close(cosine, torch.tensor([torch.nan, 0.8]), equal_nan=True)
        torch.where(cosine.isnan(), 0.0, 1 - cosine).sum().backward()
        # At the second image the gradient is k, and d cos(v, k) / dk = (v / |v| - cos k / |k|) / |k|, v = (2, 1).
        torch.testing.assert_close(net.k.grad, -(torch.tensor([2.0, 1.0]) - 0.8 * torch.tensor([1.0, 2.0])) / 5)


class TestLinearityError:
    @pytest.mark.parametrize("ball", [Linf(EPS), L2(EPS)], ids=["linf", "l2"])
    def test_of_a_linear_loss_is_0(self, ball):
        error = masking.linearity_error(Linear(2.0, -1.0), *pixels([0.2, 0.5], [0.9, 0.1]), ball)
        assert error.shape == (2,)
        assert error.max() < 1e-9

    @pytest.mark.parametrize("ball", [Linf(0.5), L2(0.5)], ids=["linf", "l2"])
    def test_of_a_quadratic_loss_is_that_of_the_three_points(self, ball):
        net, (x, y) = Quadratic(3.0, 5.0), pixels([0.2, 0.5], [0.9, 0.1], [0.3, 0.3])
        torch.manual_seed(0)
        error = masking.linearity_error(net, x, y, ball)
        torch.manual_seed(0)
        x_a, x_b, t = ball.random_start(x), ball.random_start(x), torch.rand(3)
        bow = t * (1 - t) * ((x_a - x_b).flatten(1).square() @ torch.tensor([3.0, 5.0]))
        torch.testing.assert_close(error, bow.square(), rtol=1e-3, atol=1e-5)
        assert net.forwards == [9]

    def test_has_a_derivative_in_the_parameters_and_none_under_no_grad(self):
        net, (x, y) = Quadratic(100.0), pixels([0.2], [0.9])
        error = masking.linearity_error(net, x, y, Linf(EPS))
        error.sum().backward()  # the error is proportional to k^2
        torch.testing.assert_close(net.k.grad, 2 * error.sum().detach()[None] / 100, rtol=1e-3, atol=0)
        with torch.no_grad():
            assert not masking.linearity_error(net, x, y, Linf(EPS)).requires_grad


def test_images_whose_loss_has_fallen_are_abnormal():
    before = torch.tensor([2.0, 1.0, 1.0, torch.nan])
    after = torch.tensor([1.0, 2.0, 1.0, 1.0])
    assert masking.abnormal(before, after).tolist() == [True, False, False, False]


class TestSecondStepGain:
    def test_of_a_linear_net_is_0_once_a_step_has_reached_the_corner(self):
        x, y = pixels([0.4, 0.5], [0.6, 0.3])
        attack = PGD(EPS, step_size=2 * EPS, steps=1)
        assert masking.second_step_gain(Linear(2.0, -1.0, offset=0.0), x, y, attack).tolist() == [0, 0]

    def test_of_a_linear_net_is_what_another_step_adds_before(self):
        attack = PGD(EPS, step_size=EPS / 2, steps=1, init="zero")
        gain = masking.second_step_gain(Linear(2.0, -1.0), *pixels([0.4, 0.5], [0.6, 0.3]), attack)
        torch.testing.assert_close(gain, torch.full((2,), 3 * EPS / 2), rtol=0, atol=1e-5)

    def test_of_a_bent_loss_is_what_the_second_step_finds(self):
        (x, y), attack = pixels([0.2], [0.5]), PGD(EPS, step_size=EPS / 2, steps=1, init="zero")
        gain = masking.second_step_gain(Quadratic(100.0), x, y, attack)
        torch.testing.assert_close(gain, 100 * ((x + EPS) ** 2 - (x + EPS / 2) ** 2).flatten(), rtol=0, atol=2e-5)

        class Peak(OfClassZero):
            def z(self, x):
                return 40 - 10 * (x - 0.51).abs().sum(dim=1)

        # From 0.5 the first step of 0.05 goes to 0.55, the second one back.
        gain = masking.second_step_gain(Peak(), *pixels([0.5]), attack)
        torch.testing.assert_close(gain, torch.tensor([0.3]), rtol=0, atol=1e-5)

    @pytest.mark.parametrize("grad", [torch.no_grad, torch.inference_mode])
    def test_takes_two_steps_and_a_forward_whatever_the_attacks_steps_are_and_leaves_nothing(self, grad):
        net = Linear(2.0, -1.0)
        with grad():
            x, y = pixels([0.4, 0.5], [0.6, 0.3])
            gains = [
                masking.second_step_gain(net, x, y, PGD(EPS, EPS / 4, steps=steps, init="zero")) for steps in (1, 7)
            ]
        assert torch.equal(*gains)
        assert net.forwards == 6 * [2]
        assert no_gradient_is_left(net)
        assert not gains[0].requires_grad
        assert x.tolist() == pixels([0.4, 0.5], [0.6, 0.3])[0].tolist()


def measure_linearity(net, x, y):
    return masking.linearity_error(net, x, y, Linf(EPS))


def measure_gain(net, x, y):
    return masking.second_step_gain(net, x, y, PGD(EPS, EPS, steps=1))


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("measure", [measure_linearity, measure_gain, masking.ce_and_gradient])
def test_the_net_is_seen_in_the_mode_that_it_is_in(measure, mode):
    net, (x, y, *_), seen = TinyNet().train(mode == "train"), images(8), []
    net.body.register_forward_pre_hook(lambda part, _: seen.append(part.training))
    measure(net, x, y)
    assert seen
    assert set(seen) == {mode == "train"}
    assert all(part.training == (mode == "train") for part in net.modules())
