import copy
import inspect
import re
import typing
from functools import partial

import pytest
import torch
import yaml
from jsonargparse import ArgumentError, ArgumentParser
from torch import nn
from torch.nn import functional as F
from torchvision.models import resnet, vgg

from lit_robust import nets
from lit_robust.nets.blocks import PreActBlock
from lit_robust.nets.builders import recorded
from lit_robust.nets.wide import Standardize

pytestmark = pytest.mark.usefixtures("timm")

#: What makes each net small, and the images it reads.
TINY = {
    "resnet18": ({"width": 4}, (3, 32, 32)),
    "resnet50": ({"width": 4}, (3, 32, 32)),
    "preact_resnet18": ({"width": 4}, (3, 32, 32)),
    "wide_resnet28_10": ({"width": 16}, (3, 32, 32)),
    "wide_resnet32_10": ({"width": 20}, (3, 32, 32)),
    "wide_resnet34_10": ({"width": 16}, (3, 32, 32)),
    "vgg16": ({"width": 4}, (3, 32, 32)),
    "small_cnn": ({}, (1, 28, 28)),
    "madry_cnn": ({}, (1, 28, 28)),
    "lenet_gat": ({}, (1, 28, 28)),
    "lenet_plus": ({}, (1, 28, 28)),
    "fast_cnn": ({}, (1, 28, 28)),
    "sat_cnn": ({}, (1, 28, 28)),
    "digits_cnn": ({"width": 4}, (1, 8, 8)),
    "imagenet_resnet18": ({}, (3, 64, 64)),
    "imagenet_resnet50": ({}, (3, 64, 64)),
    "torchvision_net": ({"name": "shufflenet_v2_x0_5"}, (3, 64, 64)),
    "timm_net": ({"name": "resnet18"}, (3, 64, 64)),
}
NAMES = sorted(TINY)
MNIST = [name for name in NAMES if TINY[name][1] == (1, 28, 28)]


def tiny(name, **kwargs):
    """A small net whose weights are all random, in eval mode: small_cnn's head starts at 0."""
    net = getattr(nets, name)(**TINY[name][0], **kwargs)
    for parameter in net.parameters():
        parameter.detach().add_(0.01 * torch.randn_like(parameter))
    return net.eval()


def images(name, n=2):
    return torch.rand(n, *TINY[name][1])


def net_parser():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(nn.Module, "net")
    return parser


def built(parser, config):
    instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes
    return instantiate(config).net


def copy_weights(source, target):
    """Copy by order: for nets that name the same tensors differently."""
    weights = [value for key, value in source.state_dict().items() if key not in ("mean", "std")]
    target.load_state_dict(dict(zip(target.state_dict(), weights, strict=True)))
    return target.eval()


def test_the_public_names_are_the_builders_and_their_class():
    assert set(nets.__all__) == {*NAMES, "Net"}


# The nets are those of the papers.


@pytest.mark.parametrize(
    ("name", "num_classes", "count"),
    [
        ("resnet18", 10, 11_173_962),
        ("resnet50", 10, 23_520_842),
        ("preact_resnet18", 10, 11_171_146 + 2 * 512),  # without and with the last BatchNorm
        ("wide_resnet28_10", 10, 36_479_194),
        ("wide_resnet34_10", 10, 46_160_474),
        ("wide_resnet32_10", 10, 46_160_474 - (16 * 160 + 160 * 320 + 320 * 640)),  # no 1 x 1 convolutions
        ("vgg16", 10, 14_728_266),
        ("imagenet_resnet18", 1000, 11_689_512),
        ("imagenet_resnet50", 1000, 25_557_032),
        ("imagenet_resnet18", 100, 11_689_512 - 900 * 513),
        ("imagenet_resnet50", 100, 25_557_032 - 900 * 2049),
        ("small_cnn", 10, 312_202),
        ("madry_cnn", 10, 3_274_634),
        ("lenet_plus", 10, 3_274_634),
        ("lenet_gat", 10, 832 + 25_632 + 51_264 + 102_464 + (64 * 49 + 1) * 512 + 5130),
        ("fast_cnn", 10, 272 + 8224 + (32 * 49 + 1) * 100 + 1010),
        ("sat_cnn", 10, 4160 + 295_040 + 409_728 + (2048 + 1) * 10),
        ("digits_cnn", 10, 320 + 18_496 + 36_928 + (1024 + 1) * 10),
    ],
)
def test_parameters_are_as_many_as_published_and_as_the_docstring_says(name, num_classes, count):
    build = getattr(nets, name)
    with torch.device("meta"):
        net = build(num_classes=num_classes)
    assert sum(parameter.numel() for parameter in net.parameters()) == count
    assert f"{count:,}" in build.__doc__


@pytest.mark.parametrize("name", ["wide_resnet28_10", "wide_resnet32_10", "wide_resnet34_10"])
def test_full_width_nets_read_cifar_images(name):
    with torch.device("meta"):
        net = getattr(nets, name)()
        x = torch.empty(2, 3, 32, 32)
        assert net.features(x).shape == (2, 640)
        assert net(x).shape == (2, 10)


@pytest.mark.parametrize(
    ("ours", "block", "depths", "stride"),
    [
        (nets.resnet18, resnet.BasicBlock, [2, 2, 2, 2], 1),
        (partial(nets.resnet18, stem_stride=2), resnet.BasicBlock, [2, 2, 2, 2], 2),
        (nets.resnet50, resnet.Bottleneck, [3, 4, 6, 3], 1),
    ],
)
def test_cifar_resnets_are_torchvisions_with_a_small_stem(ours, block, depths, stride):
    theirs = resnet.ResNet(block, depths, num_classes=10)
    theirs.conv1, theirs.maxpool = nn.Conv2d(3, 64, 3, stride, padding=1, bias=False), nn.Identity()
    x = torch.rand(2, 3, 8, 8)
    net = ours(mean=None, std=None).eval()
    torch.testing.assert_close(net(x), copy_weights(net, theirs)(x))


def test_vgg16_is_torchvisions_without_its_hidden_layers():
    net = nets.vgg16(mean=None, std=None).eval()
    theirs = copy_weights(net.body, vgg.make_layers(vgg.cfgs["D"], batch_norm=True))
    x = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(net.features(x), theirs(x).flatten(1))


def test_imagenet_nets_are_torchvisions():
    net = nets.imagenet_resnet18(num_classes=7, mean=None, std=None).eval()
    theirs = copy_weights(net, resnet.resnet18(weights=None, num_classes=7))
    x = images("imagenet_resnet18")
    torch.testing.assert_close(net(x), theirs(x))


def test_lenet_plus_is_what_the_spec_writes_down():
    net = nets.lenet_plus().eval()
    c1, b1, c2, b2, w1, a1, w2, a2 = net.parameters()
    x = images("lenet_plus")
    out = F.max_pool2d(F.relu(F.conv2d(x, c1, b1, padding=2)), 2)
    out = F.max_pool2d(F.relu(F.conv2d(out, c2, b2, padding=2)), 2)
    torch.testing.assert_close(net(x), F.linear(F.relu(F.linear(out.flatten(1), w1, a1)), w2, a2))


@pytest.mark.parametrize(
    ("name", "activated"),
    [
        ("preact_resnet18", {"stage1": False, "stage2": False, "stage4": False}),
        ("wide_resnet34_10", {"stage1": True, "stage2": True, "stage3": True}),
    ],
)
def test_a_shortcut_reads_what_it_reads_in_the_authors_code(name, activated):
    body = getattr(nets, name)(width=24).eval().body
    for stage, reads_activation in activated.items():
        block = body.get_submodule(stage)[0]
        nn.init.zeros_(block.conv2.weight)  # only the shortcut is left
        x = torch.randn(2, block.conv1.in_channels, 4, 4)
        expected = block.shortcut(F.relu(block.bn1(x)) if reads_activation else x)
        torch.testing.assert_close(block(x), expected)


def test_a_block_that_keeps_the_shape_adds_its_input():
    block = PreActBlock(4, 4, 1, activate_shortcut=True).eval()
    nn.init.zeros_(block.conv2.weight)
    x = torch.randn(2, 4, 4, 4)
    assert torch.equal(block(x), x)


def test_madrys_shortcuts_pool_and_pad_with_zero_channels():
    stages = nets.wide_resnet32_10(width=20).eval().body[1]
    for stage in (stages.stage1, stages.stage2):
        nn.init.zeros_(stage[0].conv2.weight)  # only the shortcut is left
    block, x = stages.stage1[0], torch.randn(2, 16, 4, 4)
    torch.testing.assert_close(block(x)[:, 2:18], F.leaky_relu(block.bn1(x), 0.1))
    assert not block(x)[:, [0, 1, 18, 19]].any()
    block, x = stages.stage2[0], torch.randn(2, 20, 4, 4)
    torch.testing.assert_close(block(x)[:, 10:30], F.avg_pool2d(x, 2))
    assert not block(x)[:, :10].any()
    assert not block(x)[:, 30:].any()


def test_madrys_net_ignores_the_brightness_and_contrast_of_an_image():
    net = tiny("wide_resnet32_10")
    x = images("wide_resnet32_10")
    torch.testing.assert_close(net(0.5 * x + 0.25), net(x))


def test_standardising_a_constant_image_keeps_value_and_gradient_finite():
    x = torch.full((1, 3, 4, 4), 0.5, requires_grad=True)
    out = Standardize()(x)
    out.square().sum().backward()
    assert torch.equal(out, torch.zeros_like(out))
    assert x.grad.isfinite().all()


def test_weights_start_as_in_the_authors_code():
    small = nets.small_cnn()
    assert not any(parameter.any() for parameter in small.head.parameters())
    assert small.body[0][2].weight.std().item() == pytest.approx((2 / (9 * 32)) ** 0.5, rel=0.05)
    madry = list(nets.madry_cnn().parameters())
    assert all((parameter == 0.1).all() for parameter in madry if parameter.ndim == 1)
    assert all(0.19 < parameter.abs().max() <= 0.2 for parameter in madry if parameter.ndim > 1)
    wide = nets.wide_resnet28_10(width=32)
    assert wide.body.stage2[1].conv1.weight.std().item() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.05)
    assert not wide.head.bias.any()
    sat = nets.sat_cnn()
    assert sat.body[0][2].weight.std().item() == pytest.approx((2 / (36 * 128)) ** 0.5, rel=0.05)
    challenge = nets.wide_resnet32_10(width=32)
    assert 0.95 < challenge.head.weight.abs().max() / (3 / 128) ** 0.5 <= 1
    assert {m.eps for m in challenge.modules() if isinstance(m, nn.BatchNorm2d)} == {1e-3}


# Contracts of all nets.


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_the_heads_reading_of_the_features(name):
    net, x = tiny(name, num_classes=5), images(name)
    features = net.features(x)
    assert isinstance(net.head, nn.Linear)
    assert features.shape == (2, net.head.in_features)
    assert torch.equal(net(x), net.head(features))
    assert net(x).shape == (2, 5)
    assert torch.equal(net(x), net(x))


@pytest.mark.parametrize("name", NAMES)
def test_a_net_is_built_again_from_its_recipe_and_weights(name):
    net = tiny(name, num_classes=5)
    built_by = yaml.safe_load(yaml.safe_dump(net.built_by))
    assert built_by == net.built_by
    assert built_by["class_path"] == f"lit_robust.nets.{name}"
    parser = net_parser()
    again = built(parser, parser.parse_object({"net": built_by}))
    again.load_state_dict(net.state_dict())
    assert again.built_by == built_by
    x = images(name)
    assert torch.equal(again.eval()(x), net(x))


@pytest.mark.parametrize("name", [name for name in NAMES if TINY[name][1] != (3, 64, 64)])
def test_half_precision_and_channels_last_change_only_the_rounding(name):
    net, x = tiny(name), images(name)
    expected = net(x)
    net, x = net.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    torch.testing.assert_close(net(x), expected, atol=1e-4, rtol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        logits = net(x)
    assert logits.dtype == torch.bfloat16
    torch.testing.assert_close(logits.float(), expected, atol=0.1 * expected.abs().max().item(), rtol=0)


def test_a_net_compiles_to_one_graph():
    net, x = tiny("wide_resnet32_10"), images("wide_resnet32_10")
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), net(x))


def test_dropout_acts_in_training_only():
    net, x = tiny("small_cnn"), images("small_cnn")
    net.train()
    assert not torch.equal(net(x), net(x))


# Normalisation.


@pytest.mark.parametrize("name", ["resnet18", "preact_resnet18", "wide_resnet28_10", "vgg16", "imagenet_resnet18"])
def test_normalisation_inside_equals_normalisation_outside(name):
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    inside, x = tiny(name, mean=mean, std=std), images(name)
    outside = tiny(name, mean=None, std=None)
    outside.load_state_dict({k: v for k, v in inside.state_dict().items() if k not in ("mean", "std")})
    normalized = torch.stack([(x[:, c] - mean[c]) / std[c] for c in range(3)], dim=1)
    torch.testing.assert_close(inside(x), outside(normalized))


def test_weights_bring_their_normalisation_along():
    trained, x = tiny("resnet18", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)), images("resnet18")
    net = tiny("resnet18")
    net.load_state_dict(trained.state_dict())
    assert torch.equal(net(x), trained(x))


def test_whole_numbers_normalise_as_floats():
    net = nets.Net(nn.Flatten(), nn.Linear(12, 2), mean=(0, 0, 0), std=(1, 1, 1))
    assert net.mean.dtype == net.std.dtype == torch.float32


@pytest.mark.parametrize("name", MNIST)
def test_mnist_nets_take_other_images_and_a_normalisation(name):
    net = getattr(nets, name)(in_channels=3, image_size=33, mean=(0.5,) * 3, std=(0.5,) * 3)
    assert net(torch.rand(2, 3, 33, 33)).shape == (2, 10)


# Mistakes.


@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("small_cnn", 16),
        ("madry_cnn", 4),
        ("lenet_plus", 4),
        ("lenet_gat", 4),
        ("fast_cnn", 4),
        ("sat_cnn", 16),
    ],
)
def test_images_that_are_too_small_are_refused_at_construction(name, least):
    build = getattr(nets, name)
    assert build(image_size=least)(torch.rand(2, 1, least, least)).shape == (2, 10)
    assert f"at least {least} x {least}." in " ".join(build.__doc__.split())
    with pytest.raises(ValueError, match=f"^image_size={least - 1} "):
        build(image_size=least - 1)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_classes", 0),
        ("in_channels", -1),
        ("in_channels", 1),
        ("std", (1.0,)),
        ("mean", None),
        ("std", None),
        ("std", (1.0, 0.0, 1.0)),
    ],
)
def test_arguments_that_make_no_net_are_refused_by_name(name, value):
    with pytest.raises(ValueError, match=rf"\b{name}={re.escape(str(value))}"):
        nets.resnet18(**{name: value})


def test_madrys_net_cannot_be_narrower_than_its_stem():
    with pytest.raises(ValueError, match="width=8"):
        nets.wide_resnet32_10(width=8)


# Recipes.


def test_a_recipe_holds_all_arguments_as_plain_values():
    assert nets.resnet18(7, width=4).built_by == {
        "class_path": "lit_robust.nets.resnet18",
        "init_args": {
            "num_classes": 7,
            "in_channels": 3,
            "width": 4,
            "mean": [0.4914, 0.4822, 0.4465],
            "std": [0.2471, 0.2435, 0.2616],
            "stem_stride": 1,
        },
    }


def test_a_recipe_survives_copies_and_safe_checkpoints_and_is_no_weight(tmp_path):
    net = tiny("digits_cnn")
    assert copy.deepcopy(net).built_by == net.built_by
    assert not any("built_by" in key for key in net.state_dict())
    torch.save({"net": net.built_by}, tmp_path / "checkpoint.ckpt")
    assert torch.load(tmp_path / "checkpoint.ckpt", weights_only=True) == {"net": net.built_by}


def test_nets_of_the_users_own_have_no_recipe():
    net = nets.Net(nn.Flatten(), nn.Linear(12, 2), mean=(0.5,) * 3, std=(0.5,) * 3)
    assert net.built_by is None
    assert net(torch.rand(1, 3, 2, 2)).shape == (1, 2)


def test_a_builder_keeps_its_signature_types_and_docstring():
    def build(num_classes: int = 10, mean: tuple[float, ...] | None = None) -> nets.Net:
        """What it is."""
        return nets.Net(nn.Flatten(), nn.Linear(4, num_classes))

    wrapped = recorded(build)
    assert inspect.signature(wrapped) == inspect.signature(build)
    assert typing.get_type_hints(wrapped) == typing.get_type_hints(build)
    assert wrapped.__name__ == "build"
    assert wrapped.__doc__ == "What it is.\n\nArgs:\n    num_classes: The number of logits.\n    mean: See ``Net``."


def test_an_args_section_of_a_builders_own_stays():
    def build(depth: int = 1) -> nets.Net:
        """What it is.

        Args:
            depth: Its own.
        """

    assert recorded(build).__doc__ == build.__doc__


@pytest.mark.parametrize("name", [name for name in nets.__all__ if name != "Net"])
def test_help_has_every_argument_of_a_builder(name):
    build = getattr(nets, name)
    section = inspect.getdoc(build).partition("\nArgs:\n")[2].partition("\n\n")[0]
    assert re.findall(r"^    (\w+): ", section, re.MULTILINE) == list(inspect.signature(build).parameters)


def test_the_command_lines_parser_knows_a_builders_arguments():
    parser = net_parser()
    arguments = ["--net=lit_robust.nets.resnet18", "--net.width=4", "--net.mean=[0.5,0.5,0.5]"]
    net = built(parser, parser.parse_args(arguments))
    assert net.built_by["init_args"]["mean"] == [0.5, 0.5, 0.5]
    assert net.built_by["init_args"]["width"] == 4
    with pytest.raises(ArgumentError, match="depth"):
        parser.parse_args(["--net=lit_robust.nets.resnet18", "--net.depth=3"])
    with pytest.raises(ArgumentError, match="width"):
        parser.parse_args(["--net=lit_robust.nets.resnet18", "--net.width=wide"])
