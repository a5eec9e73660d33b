"""Refusals of a first batch that the tests of a Defense and of the adapter do not reach."""

from functools import partial

import pytest
import torch
from torch import nn

from lit_robust import nets
from lit_robust.batch import Batch
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

    with pytest.raises(ValueError, match=f"^the net .*list .*num_classes={CLASSES}"):
        check_first_batch(Twice(), images(), CLASSES)


def test_too_little_memory_is_no_fault_of_the_images():
    class Huge(nn.Module):
        def forward(self, x):
            raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        check_first_batch(Huge(), images(), CLASSES)


@pytest.mark.parametrize(
    ("build", "shape", "remedy"),
    [
        (nets.small_cnn, (1, 32, 32), "give the net image_size=32 (--model.net.image_size 32)."),
        (nets.small_cnn, (3, 28, 28), "give the net in_channels=3 (--model.net.in_channels 3)."),
        (
            nets.madry_cnn,
            (3, 32, 32),
            "give the net in_channels=3 and image_size=32 (--model.net.in_channels 3 --model.net.image_size 32).",
        ),
        (
            nets.resnet18,
            (1, 28, 28),
            "give the net in_channels=1 and mean=None and std=None (--model.net.in_channels 1 --model.net.mean null "
            "--model.net.std null).",
        ),
        (nets.small_cnn, (1, 8, 8), "small_cnn cannot be built for them, choose another net."),
        (nets.small_cnn, (1, 28, 20), "small_cnn reads square images, crop them to 28x28."),
        (nets.digits_cnn, (3, 32, 32), "digits_cnn reads images of 1x8x8 only, choose another net."),
        (
            nets.vgg16,
            (3, 8, 8),
            "vgg16 needs larger images, raise the data's image_size (--data.image_size) or choose another net.",
        ),
        (
            nets.imagenet_resnet18,
            (1, 64, 64),
            "imagenet_resnet18 reads images of 3 channels, choose a net with in_channels, such as "
            "lit_robust.nets.resnet18.",
        ),
        (
            partial(nets.torchvision_net, "vit_b_32"),
            (3, 64, 64),
            "torchvision_net is built for 224x224, give the data image_size=224 (--data.image_size 224).",
        ),
    ],
)
def test_images_of_another_shape_name_the_argument_to_change(build, shape, remedy):
    batch = Batch(torch.rand(4, *shape), torch.arange(4), torch.arange(4), torch.ones(4))
    with pytest.raises(ValueError, match=r"^the net .*images") as refused:
        check_first_batch(build(), batch, 10)
    assert str(refused.value).endswith(f"): {remedy}")
