"""Losses of logits against their formulas in float64."""

import math

import pytest
import torch

from lit_robust import losses

N, C = 64, 7
ON_LABELS = [losses.ce, losses.margin, losses.probability_margin, losses.dlr, losses.bce]


@pytest.fixture
def logits():
    return 3 * torch.randn(N, C)


@pytest.fixture
def y():
    return torch.randint(C, (N,))


def others(scores, label):
    return [score for j, score in enumerate(scores) if j != label]


def softmax(z):
    total = sum(math.exp(v - max(z)) for v in z)
    return [math.exp(v - max(z)) / total for v in z]


FORMULAS = {
    losses.ce: lambda z, y: -math.log(softmax(z)[y]),
    losses.margin: lambda z, y: max(others(z, y)) - z[y],
    losses.probability_margin: lambda z, y: max(others(softmax(z), y)) - softmax(z)[y],
    losses.dlr: lambda z, y: -(z[y] - max(others(z, y))) / (sorted(z)[-1] - sorted(z)[-3] + 1e-12),
    losses.bce: lambda z, y: -math.log(softmax(z)[y]) - math.log(1.0001 - max(others(softmax(z), y))),
}


@pytest.mark.parametrize("loss", ON_LABELS)
def test_every_loss_equals_its_formula(loss, logits, y):
    expected = [FORMULAS[loss](z, label) for z, label in zip(logits.double().tolist(), y.tolist(), strict=True)]
    torch.testing.assert_close(loss(logits, y), torch.tensor(expected), atol=1e-5, rtol=1e-4)


def test_targeted_dlr_equals_its_formula(logits, y):
    target = (y + torch.randint(1, C, (N,))) % C
    expected = []
    for z, label, goal in zip(logits.double().tolist(), y.tolist(), target.tolist(), strict=True):
        top = sorted(z, reverse=True)
        expected.append(-(z[label] - z[goal]) / (top[0] - 0.5 * (top[2] + top[3]) + 1e-12))
    torch.testing.assert_close(losses.dlr_targeted(logits, y, target), torch.tensor(expected), atol=1e-5, rtol=1e-5)


def test_the_other_targeted_losses_equal_their_formulas(logits, y):
    target = (y + torch.randint(1, C, (N,))) % C
    rows = list(zip(logits.double().tolist(), y.tolist(), target.tolist(), strict=True))
    margins = torch.tensor([z[goal] - z[label] for z, label, goal in rows])
    torch.testing.assert_close(losses.margin_targeted(logits, y, target), margins, atol=1e-5, rtol=1e-5)
    logs = torch.tensor([math.log(softmax(z)[goal]) for z, label, goal in rows])
    torch.testing.assert_close(losses.ce_targeted(logits, y, target), logs, atol=1e-5, rtol=1e-4)


def test_kl_equals_its_formula(logits):
    clean = 2 * torch.randn(N, C)
    expected = [
        sum(p * math.log(p / q) for p, q in zip(softmax(a), softmax(b), strict=True))
        for a, b in zip(clean.double().tolist(), logits.double().tolist(), strict=True)
    ]
    torch.testing.assert_close(losses.kl(logits, clean), torch.tensor(expected), atol=1e-5, rtol=1e-5)


def test_kl_of_equal_logits_is_zero_with_zero_gradient(logits):
    adversarial = logits.clone().requires_grad_()
    value = losses.kl(adversarial, logits)
    (gradient,) = torch.autograd.grad(value.sum(), adversarial)
    assert value.abs().max() < 1e-6
    assert gradient.abs().max() < 1e-6


def test_kl_has_a_gradient_through_both_arguments(logits):
    adversarial, clean = logits.clone().requires_grad_(), (logits + torch.randn(N, C)).requires_grad_()
    for gradient in torch.autograd.grad(losses.kl(adversarial, clean).sum(), (adversarial, clean)):
        assert gradient.abs().max() > 0.01


def test_ce_takes_soft_labels(logits, y):
    soft = torch.nn.functional.one_hot(y, C).float()
    torch.testing.assert_close(losses.ce(logits, soft), losses.ce(logits, y))
    uniform = torch.full((N, C), 1 / C)
    torch.testing.assert_close(losses.ce(logits, uniform), -logits.log_softmax(1).mean(1))


@pytest.mark.parametrize("loss", [losses.margin, losses.probability_margin, losses.dlr])
def test_margins_are_positive_exactly_where_the_net_is_wrong(loss, logits, y):
    assert torch.equal(loss(logits, y) > 0, logits.argmax(1) != y)


@pytest.mark.parametrize("loss", ON_LABELS)
def test_no_loss_changes_when_all_logits_are_shifted(loss, logits, y):
    torch.testing.assert_close(loss(logits + 5, y), loss(logits, y), atol=1e-5, rtol=1e-4)


def test_dlr_does_not_change_when_logits_grow(logits, y):
    torch.testing.assert_close(losses.dlr(100 * logits, y), losses.dlr(logits, y), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("loss", ON_LABELS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_results_are_float32_whatever_the_net_returns(loss, dtype, logits, y):
    assert loss(logits.to(dtype), y).dtype == torch.float32
    assert losses.kl(logits.to(dtype), logits.to(dtype)).dtype == torch.float32


def saturated():
    rows = torch.tensor([[1e4, -1e4, 0.0, 0.0], [-1e4, 1e4, 1e4, 1e4], [0.0, 0.0, 0.0, 0.0], [1e4, 1e4, 1e4, 1e4]])
    return rows.repeat(4, 1).requires_grad_(), torch.arange(4).repeat_interleave(4)


@pytest.mark.parametrize("loss", ON_LABELS)
def test_gradients_are_finite_where_logits_saturate(loss):
    logits, y = saturated()
    value = loss(logits, y)
    assert value.isfinite().all()
    assert torch.autograd.grad(value.sum(), logits)[0].isfinite().all()


def test_gradients_of_two_argument_losses_are_finite_where_logits_saturate():
    logits, y = saturated()
    clean = logits.detach().flip(0).requires_grad_()
    targeted = (losses.dlr_targeted, losses.margin_targeted, losses.ce_targeted)
    for value in (losses.kl(logits, clean), *(loss(logits, y, (y + 1) % 4) for loss in targeted)):
        assert value.isfinite().all()
        for gradient in torch.autograd.grad(value.sum(), (logits, clean), allow_unused=True):
            assert gradient is None or gradient.isfinite().all()


@pytest.mark.parametrize("loss", ON_LABELS)
def test_labels_of_another_shape_are_refused(loss, logits, y):
    for wrong in (y[:3], y.unsqueeze(1)):
        with pytest.raises(ValueError, match=r"^logits .*labels .*\(64, 7\)"):
            loss(logits, wrong)


def test_logits_of_different_shapes_are_refused_by_kl(logits):
    with pytest.raises(ValueError, match=r"^logits .*clean_logits"):
        losses.kl(logits, logits[:, :2])


def test_losses_that_need_more_classes_say_so():
    y = torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"3 classes.* 2 logits"):
        losses.dlr(torch.randn(2, 2), y)
    with pytest.raises(ValueError, match=r"4 classes.* 3 logits"):
        losses.dlr_targeted(torch.randn(2, 3), y, y + 1)
