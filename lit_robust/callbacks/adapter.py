"""Finds what an attack needs in modules and batches that were not written for attacks."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lit_robust import require
from lit_robust.batch import SHORT, Batch
from lit_robust.callbacks.batch_paths import REMEDY, Key, check_key, exchanged, path_of, tensor_at
from lit_robust.callbacks.needs import net_of, parts_of
from lit_robust.first_batch import (
    a_row_for_each_image,
    check_classes,
    check_labels,
    check_logits,
    only_logits,
    outputs,
    refuse_probabilities,
)
from lit_robust.limits import Limits
from lit_robust.logits import logits_of
from lit_robust.nets.folded import FoldedNet

#: One number, or one for each channel.
Channels = float | Sequence[float]


class Adapter:
    """Finds images, labels and logits, and converts between pixels in [0, 1] and what the net reads.

    A batch is a tuple, list, mapping, named tuple or dataclass, or any nesting of them. It is never written to.

    Args:
        x: Where a batch keeps its images: ``0``, ``"image"``, or a path such as ``"views.0"``.
        y: Where it keeps their labels; None if there are none.
        net: The path of the sub-module that returns logits, such as ``"model"``; None for the module itself or, if it
            has no ``forward``, its ``net``.
        mean: What the data pipeline subtracts from pixels in [0, 1]; None if it does not normalise them.
        std: What it then divides them by.

    Raises:
        TypeError: If ``mean`` or ``std`` is neither a number nor a list of numbers, ``x`` or ``y`` is not an index, key
            or path, or ``net`` is not a path.
        ValueError: If only one of ``mean`` and ``std`` is given, or ``std`` is not above 0.
    """

    def __init__(
        self,
        x: Key = 0,
        y: Key | None = 1,
        net: str | None = None,
        mean: Channels | None = None,
        std: Channels | None = None,
    ) -> None:
        require.statistics(mean, std)
        for name, key in (("x", x), ("y", 0 if y is None else y)):
            check_key(name, key)
        if net is not None:
            require.text("net", net, 'give the path of a sub-module, such as "model"')
        self.x = x
        self.y = y
        self.net = net
        self.mean = (0.0,) if mean is None else _numbers(mean)
        self.std = (1.0,) if std is None else _numbers(std)
        self.normalised = mean is not None
        self._unpack = False
        self._folded = FoldedNet()
        self._unchecked_in_training = True
        #: Range checks of the pixels, and of the labels once they are known to be class indices.
        self.limits = Limits(None, reduce=None)

    def pixels(self, batch: Any) -> Tensor:
        """The images of a batch, in [0, 1]."""
        x = tensor_at(batch, self.x, "x")
        if not self.normalised:
            return x
        mean, std = self._statistics(x)
        return (x * std + mean).clamp(0, 1)  # against rounding errors; `check` has refused larger ones

    def labels(self, batch: Any) -> Tensor | None:
        """The labels of a batch, if it has any."""
        if self.y is None:
            return None
        y = tensor_at(batch, self.y, "y")
        return y.long() if y.dtype in SHORT else y  # losses accept int64 only

    def exchanged(self, batch: Any, x_adv: Tensor) -> Any:
        """A copy of the batch with other pixels; an image that did not change stays exactly as it was."""
        x = tensor_at(batch, self.x, "x")
        if self.normalised:
            x_adv = x + (x_adv - self.pixels(batch)) / self._statistics(x)[1]
        return exchanged(batch, path_of(batch, self.x), x_adv)

    def logits_net(self, module: LightningModule, wrapped: bool = False) -> nn.Module:
        """The net for attacks, from pixels to logits: the user's own, wrapped if its inputs or outputs differ.

        Args:
            module: The user's module.
            wrapped: Whether to wrap it anyway, for use in train mode, in which its outputs have not been checked.
        """
        net = self.users_net(module)
        return _PixelsToLogits(net, self) if self.normalised or self._unpack or wrapped else net

    def attacked_net(self, module: LightningModule, batch: Any) -> nn.Module:
        """``logits_net`` as attacks see it, for a net in eval mode: with its BatchNorms folded, see ``FoldedNet``."""
        net = self.users_net(module)
        if not isinstance(net, LightningModule):  # which is more than a net
            net = self._folded(net, tensor_at(batch, self.x, "x"), module.current_epoch)
        return _PixelsToLogits(net, self) if self.normalised or self._unpack else net

    def forget_copies(self) -> None:
        """Drop what attacks have seen instead of the net: a GPU would keep its folded weights."""
        self._folded.forget()

    def within_classes(self, y: Tensor) -> Tensor:
        """The labels, those that ``check_range`` refuses replaced so that no CUDA kernel fails before the check."""
        return self.limits.within(y)

    def users_net(self, module: LightningModule) -> nn.Module:
        """The net as the user wrote it, which holds the weights."""
        return net_of(module, self.net)

    def labelled(self, batch: Any) -> Batch:
        """The pixels and class labels of a batch, with weights 1 and indices -1 unless it is a ``Batch``.

        Raises:
            ValueError: If its labels are not classes, or a pixel or label is out of range.
        """
        self.watch(batch)
        self.check_range()
        x, y = self.pixels(batch), self.labels(batch)
        if y is None or y.ndim != 1 or y.is_floating_point():
            found = "nothing" if y is None else f"{y.dtype} of shape {tuple(y.shape)}"
            raise ValueError(f"y={self.y!r} finds {found}, but an accuracy needs class labels (N,), integers.")
        if isinstance(batch, Batch):
            return batch._replace(x=x, y=y)
        return Batch(x, y, torch.full_like(y, -1), torch.ones_like(y, dtype=torch.float32))

    @torch.no_grad()
    def check(self, module: LightningModule, batch: Any) -> None:
        """Refuse, before training or measuring, batches and nets that cannot be attacked.

        It costs one forward of two images and a few synchronisations with the device.

        Raises:
            ValueError: If the batch has no such images or labels, pixels leave [0, 1], or the net returns no
                logits for them.
        """
        x, y = tensor_at(batch, self.x, "x"), self.labels(batch)
        if x.ndim < 2:
            raise ValueError(f"x={self.x!r} finds a tensor of shape {tuple(x.shape)} instead of images: {REMEDY}.")
        channels = x.shape[1] if x.ndim > 1 else 1
        require.statistics(list(self.mean), list(self.std), (1, channels), f"images of {channels} channels")
        if y is not None:
            check_labels(x, y, f"y={self.y!r} finds labels")
        self._check_pixels(x)
        self.check_outputs(module, self.pixels(batch), y)

    @torch.no_grad()
    def check_outputs(self, module: LightningModule, x: Tensor, y: Tensor | None) -> None:
        """Refuse a net without logits, or with too few for the labels, and see where they are; a part of ``check``.

        Args:
            module: The user's module.
            x: Pixels in [0, 1].
            y: Their labels, if they have any.

        Raises:
            ValueError: If the net cannot be attacked.
        """
        owner, parts = type(module).__name__, parts_of(module)
        name = owner if self.net is None else f"{owner}.{self.net}"
        remedy = f"set net to the sub-module that turns images into logits ({owner} has: {parts})"
        few = x[:2]
        found = outputs(self.users_net(module), self._normalise(few), name, remedy)
        logits = logits_of(found)
        self._unpack, self._unchecked_in_training = logits is not found, True
        self._folded.checked.clear()
        logits = check_logits(logits, few, name, remedy, "set net to the sub-module before the softmax")
        classes = logits.shape[1]
        # Soft labels and the targets of a user's own loss are not checked.
        if y is not None and y.ndim == 1 and not y.is_floating_point() and logits.ndim == 2 and classes > 1:
            but, remedy = f"the net returns {classes} logits per image", "classes numbers from 0 on"
            left_out = f"{but}: give {remedy}, and leave out samples that shall not count"
            check_classes(y, classes, left_out, f"{but}: give the net an output for each class, and {remedy}")
            self.limits.num_classes = classes

    @torch.no_grad()
    def watch(self, batch: Any) -> None:
        """Add a batch to the range since the last ``check_range``, without waiting for the device."""
        x = tensor_at(batch, self.x, "x")
        mean, std = self._statistics(x)
        self.limits.add(x * std + mean, self.labels(batch))

    def check_range(self) -> None:
        """Refuse what ``watch`` has seen since the last call.

        Raises:
            ValueError: If a pixel was outside [0, 1] or NaN, or a label was none of the classes.
        """
        self.limits.check()

    def _check_pixels(self, x: Tensor) -> None:
        require.floating(x, f"x={self.x!r} finds images")
        mean, std = self._statistics(x)
        given, pixels = f"mean={list(self.mean)} and std={list(self.std)}", x * std + mean
        remedy = "if the data pipeline normalises, give its mean and std; otherwise normalise inside the net"
        require.images(pixels, f"{given} are not what the data pipeline normalises with" if self.normalised else remedy)
        low, high = require.range_of(x)
        if low >= 0 and high <= 1 and require.range_of(pixels) != (low, high):
            raise ValueError(
                f"images run from {low:.4g} to {high:.4g} as they come, so the data pipeline does not normalise them "
                f"with {given}: leave mean and std out."
            )

    def _normalise(self, pixels: Tensor) -> Tensor:
        if not self.normalised:
            return pixels
        mean, std = self._statistics(pixels)
        return (pixels - mean) / std

    def _statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        shape = (-1, *[1] * (x.ndim - 2))
        mean, std = (_on(values, x.device, x.dtype).view(shape) for values in (self.mean, self.std))
        return mean, std


class _PixelsToLogits(nn.Module):
    """The user's net with the normalisation before it, returning only the logits."""

    def __init__(self, net: nn.Module, adapter: Adapter) -> None:
        super().__init__()
        self.net = net
        self.adapter = adapter
        self.training = net.training

    def forward(self, x: Tensor) -> Tensor:
        logits = only_logits(self.net, (x,), self.net(self.adapter._normalise(x)))
        a_row_for_each_image(self.net, (x,), logits)
        if self.training and self.adapter._unchecked_in_training:
            self.adapter._unchecked_in_training = False
            refuse_probabilities(logits)
        return logits


def _numbers(values: Channels) -> tuple[float, ...]:
    return tuple(map(float, values)) if isinstance(values, Sequence) else (float(values),)


@cache
def _on(values: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """The numbers as a tensor, made once: a copy to the device in every step would wait for it."""
    with torch.inference_mode(False):  # gradients pass through it later
        return torch.tensor(values, device=device, dtype=dtype)
