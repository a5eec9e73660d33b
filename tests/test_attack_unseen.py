"""StAdv, ReColor and JPEG: their transformations in closed form, their bounds, what they keep, their strength."""

import math
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import nn

from lit_robust.attacks import JPEG, ReColor, StAdv, cieluv, jpeg_blocks
from lit_robust.attacks.parameter_attack import Adam, smoothness_loss
from lit_robust.guards import crafting, smaller_batches
from tests.formulas import Passes
from tests.tiny import TinyNet, images, named
from tests.trained import held_out, trained

ATTACKS = [StAdv(steps=5), ReColor(steps=5, grid=(4, 5, 6)), JPEG(steps=5)]


class Grey(nn.Module):
    """A net for digits that looks at the mean of three channels."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x.mean(dim=1, keepdim=True))


def coloured(n=100):
    """Digits, in three channels of different brightness."""
    x, y = (part[:n] for part in held_out())
    return 0.1 + 0.8 * x * torch.tensor([1.0, 0.9, 0.8]).view(3, 1, 1), y


def accuracy(net, x, y):
    with torch.no_grad():
        return (net(x).argmax(1) == y).float().mean().item()


def searched(attack, net, x, y):
    with crafting(x, y) as (x, y):
        return attack.search(net, x, y)


# Bounds and strength.


@pytest.mark.parametrize("attack", ATTACKS, ids=named)
@pytest.mark.parametrize("name", ["natural", "pgd"])
@pytest.mark.parametrize("factor", [0.3, 1.0, 4.0])
def test_parameters_stay_in_the_bound_and_pixels_in_the_box_on_trained_nets(attack, name, factor):
    net, (x, y) = Grey(trained(name)), coloured()
    attack, before = replace(attack, eps=factor * attack.eps), x.clone()
    parameters = searched(attack, net, x, y)
    assert 0 < parameters.abs().max() <= attack.eps
    torch.manual_seed(0)
    x_adv = attack(net, x, y)
    assert x_adv.shape == x.shape
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    assert torch.equal(x, before)


@pytest.mark.parametrize(
    "attack", [StAdv(0.1, steps=30), ReColor(0.2, steps=30, lr=0.02), JPEG(0.1, steps=30)], ids=named
)
def test_accuracy_falls_on_a_robust_net_and_more_with_a_larger_bound(attack):
    net, (x, y) = Grey(trained("pgd")), coloured()
    left = [accuracy(net, replace(attack, eps=share * attack.eps)(net, x, y), y) for share in (0.1, 1)]
    assert left[1] < left[0] - 0.05
    assert left[1] < accuracy(net, x, y) - 0.1


@pytest.mark.parametrize("attack", ATTACKS, ids=named)
def test_an_eps_of_0_no_steps_and_no_images_change_nothing(attack):
    net, batch = TinyNet().eval(), images(8)
    x_adv = replace(attack, eps=0)(net, batch.x, batch.y)
    torch.testing.assert_close(x_adv, batch.x, rtol=0, atol=1e-5)
    assert attack(net, batch.x[:0], batch.y[:0]).shape == (0, 3, 8, 8)
    if not isinstance(attack, JPEG):  # which starts at random
        torch.testing.assert_close(replace(attack, steps=0)(net, batch.x, batch.y), batch.x, rtol=0, atol=1e-5)


def test_stadv_works_on_greyscale_and_the_others_need_colour():
    net, (x, y) = trained("pgd"), (part[:100] for part in held_out())
    assert accuracy(net, StAdv()(net, x, y), y) < accuracy(net, x, y) - 0.1
    for attack in (ReColor, JPEG):
        with pytest.raises(ValueError, match=rf"^{attack.__name__} moves colours, "):
            attack(steps=1)(net, x, y)


# The flow.


@pytest.mark.parametrize(("height", "width"), [(6, 8), (8, 5)])
def test_a_flow_of_two_over_the_width_moves_an_image_by_a_pixel(height, width):
    x, flow = torch.rand(2, 3, height, width), torch.zeros(2, 2, height, width)
    flow[:, 0] = 2 / width
    moved = StAdv().transform(x, flow)
    torch.testing.assert_close(moved[..., :-1], x[..., 1:])
    torch.testing.assert_close(moved[..., -1], x[..., -1])  # the border goes on
    flow = torch.zeros_like(flow)
    flow[:, 1] = -1 / height
    halfway = StAdv().transform(x, flow)
    torch.testing.assert_close(halfway[..., 1:, :], (x[..., 1:, :] + x[..., :-1, :]) / 2)


def test_a_pixel_of_a_ramp_changes_by_at_most_the_bound_times_the_slope():
    """0.05 of half the width are 0.4 pixels of 16."""
    x = (torch.arange(16.0) / 20).expand(6, 3, 16, 16).clone()
    net = nn.Sequential(nn.Flatten(), nn.Linear(768, 4))
    x_adv = StAdv(steps=30, smoothness=0)(net, x, torch.arange(6) % 4)
    assert 0.019 < (x_adv - x).abs().max() <= 0.4 / 20 + 1e-6


@pytest.mark.parametrize("shape", [(2, 2, 4, 4), (2, 2, 3, 5), (1, 3, 3, 4, 2)])
def test_smoothness_loss_is_the_sum_over_neighbours(shape):
    field = torch.randn(*shape, dtype=torch.float64)
    expected = torch.zeros(shape[0], dtype=torch.float64)
    points = list(torch.cartesian_prod(*(torch.arange(size) for size in shape[2:])).tolist())
    for n in range(shape[0]):
        for p in points:
            for q in points:
                if sum(abs(a - b) for a, b in zip(p, q, strict=True)) == 1:
                    expected[n] += (field[(n, slice(None), *p)] - field[(n, slice(None), *q)]).norm()
    torch.testing.assert_close(smoothness_loss(field), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", [StAdv, ReColor])
def test_more_weight_on_smoothness_gives_a_smoother_field(kind):
    net, (x, y) = Grey(trained("pgd")), coloured(40)
    rough, smooth = (searched(kind(steps=20, smoothness=s), net, x, y) for s in (0.0, 0.02))
    assert smoothness_loss(smooth).mean() < 0.7 * smoothness_loss(rough).mean()


def test_adam_is_torchs():
    generator = torch.Generator().manual_seed(0)
    gradients = torch.randn(6, 3, 2, 4, generator=generator)
    parameter = nn.Parameter(torch.zeros(3, 2, 4))
    theirs, mine, here = torch.optim.Adam([parameter], lr=0.1, maximize=True), Adam(0.1), torch.zeros(3, 2, 4)
    for gradient in gradients:
        parameter.grad = gradient
        theirs.step()
        here = here + mine(gradient)
        torch.testing.assert_close(here, parameter.detach(), rtol=1e-5, atol=1e-6)


# The colours.


@pytest.mark.parametrize(
    ("colour", "expected"),
    [
        ((0.0, 0.0, 0.0), (0.0, 0.0, 0.0)),
        ((1.0, 1.0, 1.0), (100.0, 0.0, 0.0)),
        ((1.0, 0.0, 0.0), (53.24, 175.0, 37.76)),
        ((0.0, 1.0, 0.0), (87.74, -83.08, 107.4)),
        ((0.0, 0.0, 1.0), (32.30, -9.40, -130.3)),
        ((0.5, 0.5, 0.5), (53.39, 0.0, 0.0)),
    ],
)
def test_cieluv_of_known_colours(colour, expected):
    """As tabulated for D65; the code's white is rounded to four digits."""
    found = cieluv.from_rgb(torch.tensor(colour).view(1, 3, 1, 1)).flatten()
    lightness, u, v = expected
    torch.testing.assert_close(
        found, torch.tensor([lightness / 100, (u + 100) / 200, (v + 100) / 200]), rtol=0, atol=2e-3
    )


def test_colours_come_back():
    x = torch.cat([torch.rand(4, 3, 16, 16), torch.rand(1, 3, 16, 16) / 255, torch.zeros(1, 3, 16, 16)])
    torch.testing.assert_close(cieluv.to_rgb(cieluv.from_rgb(x)), x, rtol=0, atol=2e-5)


def test_conversions_have_finite_gradients_everywhere():
    corners = torch.cartesian_prod(*[torch.tensor([0.0, 1e-4, 0.5, 1.0])] * 3).T.reshape(1, 3, 8, 8)
    for function in (cieluv.from_rgb, cieluv.to_rgb):
        x = corners.clone().requires_grad_()
        function(x).sum().backward()
        assert x.grad.isfinite().all()


def test_no_change_of_a_dark_colour_makes_it_bright():
    colours = cieluv.from_rgb(torch.zeros(1, 3, 20, 20))
    shifts = 0.06 * (2 * torch.rand(50, 3, 20, 20) - 1)
    assert cieluv.to_rgb(colours + shifts).max() < 0.45


def test_pixels_of_one_colour_change_alike_and_a_constant_change_is_added():
    x = torch.rand(2, 3, 1, 4).repeat(1, 1, 5, 1)  # columns of one colour
    attack = ReColor(0.06, grid=(4, 5, 6))
    nodes = 0.06 * (2 * torch.rand(2, 3, 4, 5, 6) - 1)
    changed = attack.transform(x, nodes)
    torch.testing.assert_close(changed, changed[:, :, :1].expand_as(changed), rtol=0, atol=1e-6)
    same = torch.tensor([0.02, -0.01, 0.015]).view(1, 3, 1, 1, 1).expand(2, 3, 4, 5, 6)
    grey = 0.4 + 0.2 * x  # stays in sRGB's gamut
    expected = cieluv.to_rgb(cieluv.from_rgb(grey) + same[:, :, 0, 0, :1, None])
    torch.testing.assert_close(attack.transform(grey, same.contiguous()), expected, rtol=0, atol=1e-5)


def test_a_colour_reads_the_node_at_its_place():
    """Nodes along L*, u* and v*, in this order, interpolated linearly."""
    attack, colour = ReColor(grid=(4, 5, 6)), torch.tensor([0.6, 0.45, 0.55]).view(1, 3, 1, 1)
    grids = torch.meshgrid(*(torch.linspace(0, 1, n) for n in attack.grid), indexing="ij")
    nodes = 0.1 * torch.stack(grids).unsqueeze(0)  # each number grows along its own axis, so the change is c / 10
    x = cieluv.to_rgb(colour)
    torch.testing.assert_close(cieluv.from_rgb(attack.transform(x, nodes)), 1.1 * colour, rtol=0, atol=1e-3)


@pytest.mark.parametrize("colours", ["greyish", "all", "saturated"])
def test_the_colours_of_a_result_stay_within_the_bound(colours):
    """Also where the change leaves sRGB, and clipping would move a colour further than the bound."""
    x = {"greyish": 0.4 + 0.2 * torch.rand(6, 3, 8, 8), "all": torch.rand(6, 3, 8, 8)}.get(colours)
    x = torch.rand(6, 3, 8, 8).round() if x is None else x
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    x_adv = ReColor(0.03, steps=40, lr=0.01, grid=(4, 4, 4))(net, x, torch.arange(6) % 4)
    change = (cieluv.from_rgb(x_adv) - cieluv.from_rgb(x)).abs()
    assert 0.015 < change.max() <= 0.03 + 1e-4


# JPEG.


def test_the_cosines_are_orthonormal():
    cosines, bright, coloured_steps = jpeg_blocks.tables()
    torch.testing.assert_close(cosines @ cosines.T, torch.eye(8), rtol=0, atol=1e-6)
    assert (bright[0, 1], bright[1, 0], bright[7, 7], coloured_steps[0, 2], coloured_steps[7, 0]) == (
        11,
        12,
        99,
        24,
        99,
    )


def test_the_cosines_are_scipys():
    fft = pytest.importorskip("scipy.fft")
    block = torch.randn(8, 8, dtype=torch.float64)
    cosines = jpeg_blocks.tables()[0].double()
    found = cosines.T @ block @ cosines
    torch.testing.assert_close(found, torch.tensor(fft.idctn(block.numpy(), norm="ortho")), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (16, 48), (8, 8), (20, 35)])
def test_one_coefficient_changes_its_block_by_a_quantum(height, width):
    rows, columns = -(-height // 16), -(-width // 16)
    count = 6 * rows * columns
    top, left = (16 * rows - height) // 2, (16 * columns - width) // 2
    for block in (0, 4 * rows * columns - 1):
        c = torch.zeros(1, count, 8, 8)
        c[0, block, 0, 0] = 1  # the mean of a luminance block: a step of 16 over 8
        image = jpeg_blocks.decoded(c, height, width)
        full = torch.zeros(16 * rows, 16 * columns)
        i, j = divmod(block, 2 * columns)
        full[8 * i : 8 * i + 8, 8 * j : 8 * j + 8] = 16 / 8 / 255
        torch.testing.assert_close(image[0], full[top : top + height, left : left + width].expand(3, -1, -1))
    c = torch.zeros(1, count, 8, 8)
    c[0, -1, 0, 0] = 1  # Cr, in the last square of 16 x 16
    image = jpeg_blocks.decoded(c, 16 * rows, 16 * columns)[0]
    expected = torch.tensor([1.402, -0.714136, 0.0]) * 17 / 8 / 255
    torch.testing.assert_close(image[:, -16:, -16:], expected.view(3, 1, 1).expand(3, 16, 16))
    assert image.count_nonzero() == 2 * 256


def test_what_jpeg_adds_has_coefficients_within_the_bound():
    """Where nothing is clipped they are read from the images by least squares."""
    x, net = 0.45 + 0.1 * torch.rand(4, 3, 16, 16), nn.Sequential(nn.Flatten(), nn.Linear(768, 4))
    x_adv = JPEG(0.05, steps=20)(net, x, torch.arange(4))
    units = torch.eye(6 * 64).view(-1, 6, 8, 8)
    basis = jpeg_blocks.decoded(units, 16, 16).flatten(1).T
    found = torch.linalg.lstsq(basis, (x_adv - x).flatten(1).T)
    torch.testing.assert_close(basis @ found.solution, (x_adv - x).flatten(1).T, rtol=0, atol=1e-5)
    assert 0.049 < found.solution.abs().max() <= 0.05 + 1e-3


def test_jpeg_reaches_the_worst_case_of_a_linear_net():
    x, y = torch.full((3, 3, 16, 16), 0.5), torch.zeros(3, dtype=torch.int64)
    net = nn.Sequential(nn.Flatten(), nn.Linear(768, 2))
    direction = (net[1].weight[1] - net[1].weight[0]).detach()
    units = torch.eye(6 * 64).view(-1, 6, 8, 8)
    gains = jpeg_blocks.decoded(units, 16, 16).flatten(1) @ direction
    net[1].bias.data[0] += 8  # never misclassified
    x_adv = JPEG(0.1, steps=60)(net, x, y)
    gained = (x_adv - x).flatten(1) @ direction
    torch.testing.assert_close(gained, (0.1 * gains.abs().sum()).expand(3), rtol=1e-3, atol=0)


def test_the_step_of_jpeg_is_eps_over_the_root_of_the_steps():
    assert JPEG(0.5, steps=25).step_length == 0.1
    assert JPEG(0.5, steps=25, step_size="1/4").step_length == 0.25
    assert math.isclose(replace(JPEG(0.5, steps=25), eps=1).step_length, 0.2)


# What is kept, and the surroundings.


@pytest.mark.parametrize("attack", ATTACKS, ids=named)
def test_the_worst_point_is_kept(attack):
    """With more steps, images that were misclassified stay so."""
    net, (x, y) = Grey(trained("natural")), coloured()
    results = []
    for steps in (3, 12):
        torch.manual_seed(0)
        results.append(accuracy_mask(net, replace(attack, steps=steps, **longer(attack))(net, x, y), y))
    assert (results[0] <= results[1]).all()
    assert results[1].sum() > results[0].sum()


def accuracy_mask(net, x, y):
    with torch.no_grad():
        return net(x).argmax(1) != y


def longer(attack):
    return {"step_size": 0.05} if isinstance(attack, JPEG) else {"lr": 0.02, "eps": 0.2}


@pytest.mark.parametrize("attack", ATTACKS, ids=named)
def test_images_that_leave_the_batch_change_nothing_for_the_others(attack):
    net, (x, y) = Grey(trained("natural")).eval(), coloured()
    attack = replace(attack, steps=35, **longer(attack))
    counted, found, seen = Passes(net), [], []
    for shrinks in (False, True):
        counted.forward = 0
        torch.manual_seed(0)
        if shrinks:
            with smaller_batches():
                found.append(attack(net, x, y))
        else:
            found.append(attack(net, x, y))
        seen.append(counted.forward)
    broken = [accuracy_mask(net, x_adv, y) for x_adv in found]
    assert torch.equal(*broken)
    left = ~broken[0]
    torch.testing.assert_close(found[0][left], found[1][left], rtol=0, atol=1e-4)
    assert seen[0] == 36 * len(x)
    assert seen[1] < seen[0]


@pytest.mark.parametrize("attack", ATTACKS, ids=named)
def test_it_runs_in_bfloat16(attack):
    net, (x, y) = Grey(trained("natural")), coloured()
    attack = replace(attack, steps=20, **longer(attack))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        x_adv = attack(net, x, y)
    assert x_adv.dtype == torch.float32
    assert accuracy(net, x_adv, y) < accuracy(net, x, y)


@pytest.mark.parametrize("attack", ATTACKS, ids=named)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_images_keep_the_type_that_the_net_reads(attack, dtype):
    net, (x, y) = deepcopy(Grey(trained("natural"))).to(dtype), coloured()
    x = x.to(dtype)
    x_adv = replace(attack, steps=20, **longer(attack))(net, x, y)
    assert x_adv.dtype == dtype
    assert accuracy(net, x_adv, y) < accuracy(net, x, y)


def test_they_are_values():
    assert StAdv("0.05") == StAdv()
    assert ReColor(grid=[16, 32, 32]) == ReColor()
    assert len({StAdv(), ReColor(), JPEG(), JPEG(steps=3), StAdv()}) == 4
