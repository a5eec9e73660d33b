"""Strided 1 x 1 convolutions of few channels: oneDNN writes past a buffer for those of torch (its issue 6035)."""

import pytest
import torch
from torch import nn

from lit_robust.attacks import FGSM
from lit_robust.batch import Batch
from lit_robust.defenses import FastAT
from lit_robust.nets import preact_resnet18, resnet18, resnet50, wide_resnet28_10
from lit_robust.nets.foldable import candidates
from lit_robust.nets.narrow import SubsamplingConv2d, miscalculated
from tests.tiny import loader, trainer


@pytest.mark.parametrize(("channels", "stride"), [(1, 2), (3, 2), (4, 3), (7, (2, 1)), (12, 2)])
@pytest.mark.parametrize("size", [7, 8])
def test_dropping_pixels_first_changes_nothing(channels, stride, size):
    torch.manual_seed(0)
    ours = SubsamplingConv2d(channels, 5, 1, stride)
    torchs = nn.Conv2d(channels, 5, 1, stride)
    torchs.load_state_dict(ours.state_dict())
    x = torch.randn(2, channels, size, size, requires_grad=True)
    found = [
        (out := conv(x), *torch.autograd.grad(out.square().sum(), (x, *conv.parameters()))) for conv in (ours, torchs)
    ]
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("channels", [2, 3, 4, 7, 8, 12])
@pytest.mark.parametrize("threads", [1, 2])
def test_gradients_do_not_depend_on_the_layout(channels, threads):
    torch.manual_seed(0)
    conv, before = SubsamplingConv2d(channels, 2 * channels, 1, 2, bias=False), torch.get_num_threads()
    x, weights = torch.randn(16, channels, 16, 16), torch.randn(16, 2 * channels, 8, 8)
    found = []
    torch.set_num_threads(threads)
    try:
        for layout in (torch.contiguous_format, torch.channels_last):
            images = x.contiguous(memory_format=layout).requires_grad_()
            out = conv.to(memory_format=layout)(images)
            found.append(torch.autograd.grad(out, (images, conv.weight), weights.contiguous(memory_format=layout)))
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(*found, atol=1e-4, rtol=1e-4)


def test_the_weights_of_a_narrow_net_have_the_names_of_a_wide_one():
    narrow, wide = (resnet18(width=width).state_dict() for width in (8, 16))
    assert narrow.keys() == wide.keys()
    types = [type(part).__name__ for part in resnet18(width=8).modules() if getattr(part, "kernel_size", 0) == (1, 1)]
    assert types == ["SubsamplingConv2d", "Conv2d", "Conv2d"]


def test_narrow_nets_fold_as_wide_ones():
    assert candidates(resnet18(width=8), torch.device("cpu")) == candidates(resnet18(width=16), torch.device("cpu"))


def test_our_nets_are_never_refused():
    with torch.device("meta"):
        nets = [build(width=2) for build in (resnet18, resnet50, preact_resnet18)] + [wide_resnet28_10()]
    assert [miscalculated(net) for net in nets] == [[]] * 4


def strangers(channels, kernel_size=1, stride=2, groups=1):
    conv = nn.Conv2d(channels, 16, kernel_size, stride, groups=groups)
    return nn.Sequential(nn.Conv2d(3, channels, 3), conv, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")
@pytest.mark.parametrize(
    ("net", "found"),
    [
        (strangers(2), ["1"]),
        (strangers(15), ["1"]),
        (strangers(15, stride=(1, 2)), ["1"]),
        (strangers(16), []),
        (strangers(1), []),
        (strangers(4, stride=1), []),
        (strangers(4, kernel_size=3), []),
        (strangers(4, groups=4), []),
    ],
)
def test_only_strided_ones_of_few_channels_are_named(net, found):
    assert miscalculated(net) == found


def fit(net, tmp_path, **kwargs):
    x = torch.rand(8, 3, 8, 8)
    batches = loader(Batch(x, torch.arange(8), torch.arange(8), torch.ones(8)))
    trainer(tmp_path, max_epochs=1).fit(FastAT(net, 10, FGSM(8 / 255), **kwargs), batches)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")
@pytest.mark.parametrize("option", ["channels_last", "compile"])
def test_a_stranger_s_net_is_refused_before_its_gradients_are_wrong(tmp_path, option):
    with pytest.raises(ValueError, match=rf"^{option}=True: .* '1', a strided .*SubsamplingConv2d in its place\.$"):
        fit(strangers(4), tmp_path, **{option: True})
    fit(strangers(4), tmp_path)
    fit(strangers(16), tmp_path, channels_last=True)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")
def test_the_layout_counts_that_the_net_has_itself(tmp_path):
    with pytest.raises(ValueError, match=r"^net is in channels_last: .* '1', .*: give net\.to\(memory_format"):
        fit(strangers(4).to(memory_format=torch.channels_last), tmp_path)
    fit(strangers(16).to(memory_format=torch.channels_last), tmp_path)
