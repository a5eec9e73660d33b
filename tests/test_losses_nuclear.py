"""The norms of a batch of logit differences."""

import pytest
import torch

from lit_robust.losses import frobenius_norm, nuclear_norm


def gradient(norm, matrix: torch.Tensor) -> torch.Tensor:
    matrix = matrix.clone().requires_grad_()
    return torch.autograd.grad(norm(matrix), matrix)[0]


@pytest.mark.parametrize("shape", [(64, 10), (64, 100), (7, 7), (3, 10), (1, 5)])
def test_the_nuclear_norm_is_the_sum_of_singular_values_and_its_gradient_u_v_transposed(shape):
    matrix = torch.randn(shape)
    u, s, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    torch.testing.assert_close(nuclear_norm(matrix).double(), s.sum(), rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient(nuclear_norm, matrix).double(), u @ vh, rtol=0, atol=2e-5)


@pytest.mark.parametrize("shape", [(64, 10), (3, 10)])
@pytest.mark.parametrize("size", [1e-6, 1.0, 1e4])
def test_the_nuclear_norms_gradient_has_the_same_size_for_small_and_large_differences(shape, size):
    length = gradient(nuclear_norm, size * torch.randn(shape)).norm().item()
    assert length == pytest.approx(min(shape) ** 0.5, rel=1e-5)


def test_logits_that_sum_to_nothing_leave_the_gradient_exact_in_the_directions_that_matter():
    # Weight decay drives nets there: a singular value is almost 0, which float32 Gram matrices turn into noise.
    matrix = torch.randn(64, 10)
    matrix -= 0.9999 * matrix.mean(dim=1, keepdim=True)
    u, s, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    assert s[-1] / s[0] < 1e-4
    found = gradient(nuclear_norm, matrix).double() @ vh.T  # along the right singular vectors
    torch.testing.assert_close(found[:, :-1], u[:, :-1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("norm", [nuclear_norm, frobenius_norm])
@pytest.mark.parametrize(
    "matrix",
    [
        pytest.param(torch.zeros(8, 4), id="zero"),
        pytest.param(torch.eye(8, 4), id="repeated singular values"),
        pytest.param(torch.ones(8, 4), id="rank one"),
        pytest.param(torch.full((8, 4), 1e-30), id="tiny"),
        pytest.param(1e30 * torch.eye(8, 4), id="huge"),
    ],
)
def test_gradients_are_finite_where_the_norm_has_corners(norm, matrix):
    assert torch.isfinite(gradient(norm, matrix)).all()


def test_repeated_singular_values_have_the_unique_gradient_u_v_transposed():
    rotation, _ = torch.linalg.qr(torch.randn(8, 4, dtype=torch.float64))
    torch.testing.assert_close(gradient(nuclear_norm, (3 * rotation).float()), rotation.float(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("rank", [1, 3, 10])
def test_the_nuclear_norm_lies_between_the_frobenius_norm_and_root_rank_times_it(rank):
    matrix = torch.randn(64, rank) @ torch.randn(rank, 10)
    nuclear, frobenius = nuclear_norm(matrix), frobenius_norm(matrix)
    assert frobenius * (1 - 1e-6) <= nuclear <= rank**0.5 * frobenius * (1 + 1e-6)


@pytest.mark.parametrize("norm", [nuclear_norm, frobenius_norm])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_norms_compute_in_float32_under_autocast(norm, dtype):
    matrix = torch.randn(16, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value, slope = norm(matrix.to(dtype)), gradient(norm, matrix.to(dtype))
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, norm(matrix.to(dtype).float()))
    torch.testing.assert_close(slope.float(), gradient(norm, matrix.to(dtype).float()), atol=1e-2, rtol=1e-2)


def test_the_frobenius_norm_is_the_root_of_the_sum_of_squares():
    matrix = torch.randn(64, 10)
    torch.testing.assert_close(frobenius_norm(matrix), matrix.square().sum().sqrt())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_named_as_such(value):
    with pytest.raises(FloatingPointError, match=r"^the logits "):
        nuclear_norm(torch.full((8, 4), value, requires_grad=True))
