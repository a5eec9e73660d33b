from collections import OrderedDict, UserDict
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lit_robust.attacks import PGD
from lit_robust.attacks.base import input_gradient
from lit_robust.batch import Batch
from lit_robust.callbacks.adapter import Adapter
from lit_robust.guards import crafting
from tests.tiny import CLASSES, TinyNet, images

X, Y = images(8)[:2]
OTHER = torch.rand_like(X)
EXTRA = object()


class Pair(NamedTuple):
    image: Tensor
    label: Tensor
    extra: Any


@dataclass(frozen=True, slots=True)
class Sample:
    image: Tensor
    label: Tensor
    extra: Any


class Fields:
    """A batch class of a user's own, whose constructor takes something else."""

    def __init__(self, path: str) -> None:
        self.image, self.label, self.extra = X, Y, EXTRA


class Classifier(LightningModule):
    """A user's module, with a net inside and one inside that."""

    def __init__(self, net: nn.Module | None = None) -> None:
        super().__init__()
        self.model = net or TinyNet()
        self.scale = nn.Linear(1, 1)

    def forward(self, x):
        return self.model(x)


#: A batch, where it keeps its images and labels, and how to get at the three parts of it.
BATCHES = {
    "tuple": ((X, Y, EXTRA), 0, 1),
    "list": ([X, Y, EXTRA], 0, 1),
    "labels first": ([Y, X, EXTRA], 1, 0),
    "from the end": ((EXTRA, Y, X), -1, -2),
    "Batch": (Batch(X, Y, torch.arange(8), torch.ones(8)), 0, 1),
    "dictionary": ({"image": X, "label": Y, "extra": EXTRA}, "image", "label"),
    "keys that are numbers": ({0: X, 1: Y, 2: EXTRA}, 0, 1),
    "keys with dots": ({"input.jpg": X, "input.cls": Y, "extra": EXTRA}, "input.jpg", "input.cls"),
    "ordered dictionary": (OrderedDict(image=X, label=Y, extra=EXTRA), "image", "label"),
    "mapping of another library": (UserDict(image=X, label=Y, extra=EXTRA), "image", "label"),
    "named tuple by name": (Pair(X, Y, EXTRA), "image", "label"),
    "named tuple by index": (Pair(X, Y, EXTRA), 0, 1),
    "frozen dataclass": (Sample(X, Y, EXTRA), "image", "label"),
    "object": (Fields("somewhere"), "image", "label"),
    "dictionary in a list": ([{"image": X, "extra": EXTRA}, Y], "0.image", 1),
    "tuple in a dictionary": ({"views": (X, EXTRA), "label": Y}, "views.0", "label"),
    "deep": (({"in": [Pair(X, Y, EXTRA)]},), "0.in.0.image", "0.in.0.label"),
}


def leaves(batch):
    """All values of a batch, by path."""
    if isinstance(batch, (tuple, list)):
        return {f"{i}/{place}": leaf for i, part in enumerate(batch) for place, leaf in leaves(part).items()}
    if isinstance(batch, (dict, UserDict)):
        return {f"{key}/{place}": leaf for key, part in batch.items() for place, leaf in leaves(part).items()}
    if isinstance(batch, Fields):
        return vars(batch)
    if isinstance(batch, Sample):
        return {name: getattr(batch, name) for name in batch.__slots__}
    return {"": batch}


@pytest.mark.parametrize("name", BATCHES)
def test_images_are_replaced_in_a_copy_of_the_batch(name):
    batch, x, y = BATCHES[name]
    before, adapter = leaves(batch), Adapter(x, y)
    assert adapter.pixels(batch) is X
    assert adapter.labels(batch) is Y
    other = adapter.exchanged(batch, OTHER)
    assert type(other) is type(batch)
    assert adapter.pixels(other) is OTHER
    after = leaves(other)
    assert {place for place in before if after[place] is not before[place]} == {
        place for place in before if before[place] is X
    }
    assert all(leaf is before[place] for place, leaf in leaves(batch).items())


def test_there_may_be_no_labels():
    assert Adapter(y=None).labels((X,)) is None


@pytest.mark.parametrize(
    ("batch", "x", "found"),
    [
        ({"img": X}, 0, "a dict .*'img'"),
        ({"img": X}, "image", "a dict .*'img'"),
        ([Y], 1, "a list of 1"),
        (Pair(X, Y, 0), "images", "a Pair .* image, label, extra"),
        (Sample(X, Y, 0), "images", "a Sample .* image, label, extra"),
        (X, 0, "a Tensor"),
        ({"views": [X, X]}, "views", "a dict .*'views', .* list of 2"),
    ],
)
def test_a_batch_without_images_is_refused_with_a_description_of_the_batch(batch, x, found):
    with pytest.raises(ValueError, match=f"^x={x!r} .*{found}"):
        Adapter(x).pixels(batch)


def test_the_users_own_net_is_attacked_where_it_can_be():
    module = Classifier()
    assert Adapter().logits_net(module) is module
    assert Adapter(net="model").logits_net(module) is module.model
    assert Adapter(net="model.head").logits_net(module) is module.model.head


# Normalised images.

MEAN, STD = [0.2, 0.4, 0.6], [0.5, 0.25, 0.1]


def normalised(x, mean=MEAN, std=STD):
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (mean, std))
    return (x - mean) / std


@pytest.mark.parametrize(("mean", "std"), [(MEAN, STD), (0.5, 0.5), ([0.5], 0.5), (0, 1 / 255)], ids=str)
def test_attacks_get_pixels_and_a_net_of_pixels(mean, std):
    module = Classifier().eval()
    adapter = Adapter(net="model", mean=mean, std=std)
    batch = normalised(X, mean, std), Y
    torch.testing.assert_close(adapter.pixels(batch), X)
    assert adapter.pixels(batch).min() >= 0
    assert adapter.pixels(batch).max() <= 1
    torch.testing.assert_close(adapter.logits_net(module)(X), module.model(batch[0]), rtol=1e-4, atol=1e-4)


def test_an_attack_on_normalised_images_is_the_attack_on_pixels_with_the_normalisation_in_the_net():
    class Inside(nn.Module):
        def forward(self, x):
            return module.model(normalised(x))

    module, attack = Classifier().eval(), PGD(eps=0.1, step_size=0.05, steps=3, init="zero")
    adapter = Adapter(net="model", mean=MEAN, std=STD)
    batch = normalised(X), Y
    x_adv = attack(adapter.logits_net(module), adapter.pixels(batch), Y)
    torch.testing.assert_close(x_adv, attack(Inside(), X, Y), rtol=0, atol=1e-5)
    assert (x_adv - X).abs().max() <= 0.1 + 1e-6
    torch.testing.assert_close(adapter.exchanged(batch, x_adv)[0], normalised(x_adv), rtol=0, atol=1e-4)


def test_a_pixel_that_does_not_move_keeps_its_exact_value():
    adapter, batch = Adapter(mean=MEAN, std=STD), (normalised(X), Y)
    x_adv = adapter.pixels(batch).clone()
    x_adv[:, :, 0, 0] = 0.5
    same = adapter.exchanged(batch, x_adv)[0] == batch[0]
    assert same[:, :, 1:].all()
    assert not same[:, :, 0, 0].any()


def test_gradients_pass_through_the_normalisation_when_it_was_first_used_in_inference_mode():
    adapter, module = Adapter(mean=[0.11, 0.12, 0.13], std=[0.9, 0.8, 0.7]), Classifier()
    with torch.inference_mode():
        batch = normalised(X, [0.11, 0.12, 0.13], [0.9, 0.8, 0.7]), Y
        with crafting(adapter.pixels(batch), Y) as (x, y):
            x.requires_grad_()
            logits = adapter.logits_net(module)(x)
            assert input_gradient(nn.functional.cross_entropy(logits, y, reduction="none"), x).abs().sum() > 0


# What is refused before anything is trained or measured.


class Softmax(TinyNet):
    def forward(self, x):
        return super().forward(x).softmax(dim=1)


class Pooled(TinyNet):
    def forward(self, x):
        return super().forward(x).mean()


class Broken(TinyNet):
    def forward(self, x):
        return super().forward(x) / 0


class Twice(TinyNet):
    def forward(self, x):
        return [super().forward(x)] * 2


class Labelled(TinyNet):
    def forward(self, x, y):
        return super().forward(x)


@pytest.mark.parametrize(
    ("arguments", "batch", "named"),
    [
        ({}, (normalised(X), Y), r"pixels .* -5\.9"),
        ({}, (255 * X, Y), r"pixels .* 25\d.*mean and std"),
        ({}, (X / 0 * 0, Y), "pixels .* nan"),
        ({"mean": 0.5, "std": 0.5}, (normalised(X), Y), r"pixels .*mean=\[0\.5\] and std=\[0\.5\]"),
        ({"mean": MEAN, "std": STD}, (X, Y), r"images .*mean=\[.*\] and std=\["),
        ({"mean": [0.1, 0.2], "std": 1}, (X, Y), r"mean=\[0\.1, 0\.2\]"),
        ({}, ((255 * X).byte(), Y), r"x=0 .*torch\.uint8"),
        ({}, (X, Y[:3]), r"y=1 .*\(3,\) for 8 images"),
        ({}, (X, Y + 1), "labels .* 1 to 4"),
        ({}, (X, Y - 1), "labels .* -1 to 2"),
        ({"net": "net"}, (X, Y), 'net="net" .*Classifier.* model, scale'),
        ({"net": "scale"}, (X, Y), r"Classifier\.scale .*3x8x8 \(RuntimeError: "),
    ],
)
def test_what_does_not_fit_is_refused_in_one_sentence_with_a_remedy(arguments, batch, named):
    with pytest.raises(ValueError, match=f"^{named}") as refused:
        Adapter(**arguments).check(Classifier(), batch)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("net", "named"),
    [
        (Softmax(), "the net .*softmax"),
        (Pooled(), r"Classifier returns .* \(\) "),
        (Broken(), "the net .*NaN"),
        (Twice(), "Classifier returns list "),
        (Labelled(), r"Classifier .*3x8x8 \(TypeError: .*missing 1 required"),
    ],
)
def test_what_returns_no_logits_is_refused(net, named):
    with pytest.raises(ValueError, match=f"^{named}"):
        Adapter().check(Classifier(net), (X, Y))


def test_a_module_without_forward_needs_the_name_of_its_net():
    class NoForward(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = TinyNet()

    with pytest.raises(ValueError, match=r"^NoForward .*NoForward has: model"):
        Adapter().check(NoForward(), (X, Y))
    Adapter(net="model").check(NoForward(), (X, Y))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"mean": 0.5}, r"mean=0\.5 and std=None"),
        ({"std": 0.5}, r"mean=None and std=0\.5"),
        ({"mean": 0.5, "std": [0.5, 0]}, "std="),
    ],
)
def test_half_a_normalisation_is_refused_at_once(arguments, named):
    with pytest.raises(ValueError, match=f"^{named}"):
        Adapter(**arguments)


def test_half_a_grey_level_beyond_black_and_white_is_rounding():
    Adapter().check(Classifier(), (X.clamp(0, 1) * (1 + 0.9 / 255) - 0.45 / 255, Y))


def test_a_check_leaves_no_trace():
    module = Classifier()
    module.model.body.eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    Adapter().check(module, (X, Y))
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert (module.training, module.model.body.training, module.model.head.training) == (True, False, True)
    assert all(parameter.grad is None for parameter in module.parameters())


@pytest.mark.parametrize("y", [torch.rand(8, CLASSES), torch.rand(8), None], ids=["soft", "numbers", "none"])
def test_labels_that_are_no_classes_are_left_to_the_attack(y):
    Adapter(y=None if y is None else 1).check(Classifier(), (X, y))


class Output(TinyNet):
    """Logits as an attribute, as large libraries of nets return them."""

    def forward(self, x):
        return SimpleNamespace(logits=super().forward(x), hidden_states=None)


@pytest.mark.parametrize("arguments", [{}, {"mean": 0.5, "std": 0.5}], ids=["pixels", "normalised"])
def test_logits_may_be_an_attribute_of_what_the_net_returns(arguments):
    module, adapter = Classifier(Output()).eval(), Adapter(**arguments)
    x = 2 * X - 1 if arguments else X
    adapter.check(module, (x, Y))
    torch.testing.assert_close(adapter.logits_net(module)(X), TinyNet.forward(module.model, x))
