"""Refusals of a first batch that the tests of a Defense and of the adapter do not reach."""

import pytest
import torch
from torch import nn

from lit_robust.first_batch import check_first_batch
from tests.tiny import CLASSES, TinyNet, images


def test_a_batch_that_fits_leaves_no_trace():
    net = TinyNet().train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    check_first_batch(net, images(), CLASSES)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(module.training for module in net.modules())


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"y": images().y[:3]}, r"labels of shape \(3,\) for 24 images"),
        ({"x": images().x / 0 * 0}, "^pixels .*nan"),
        ({"x": images().x * (1 + 1.2 / 255)}, r"^pixels .* 1\.00\d+,"),
    ],
)
def test_batches_that_make_no_sense_are_refused(change, named):
    with pytest.raises(ValueError, match=named):
        check_first_batch(TinyNet(), images()._replace(**change), CLASSES)


def test_a_net_that_returns_no_tensor_is_refused():
    class Twice(TinyNet):
        def forward(self, x):
            return [super().forward(x)] * 2

    with pytest.raises(ValueError, match=f"^the net returns list .*num_classes={CLASSES}"):
        check_first_batch(Twice(), images(), CLASSES)


def test_too_little_memory_is_no_fault_of_the_images():
    class Huge(nn.Module):
        def forward(self, x):
            raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        check_first_batch(Huge(), images(), CLASSES)
