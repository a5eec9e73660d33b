"""Fused optimizers, where they pay."""

from collections.abc import Collection

from torch.optim import Optimizer

#: Kinds of devices on which a step of one kernel is faster than a kernel for each operation.
DEVICES = ("cuda",)


def fuse(optimizer: Optimizer, devices: Collection[str] = DEVICES) -> None:
    """Let an optimizer of torch update each group of weights on such a device by one kernel: the same to rounding.

    Groups for which the user has chosen an implementation (``fused``, ``foreach``, ``differentiable``) keep it, and so
    do optimizers that have none that is fused, or have made their state. Called before the first step, when the weights
    are on their device.
    """
    # Adagrad counts steps on the CPU from its constructor on, unless that was told fused=True; the kernel of a GPU
    # could not read them. SGD, Adam and AdamW make their state in the first step, where the group's flag says.
    if optimizer.state:
        return
    for group in optimizer.param_groups:
        free = group.get("fused", False) is None and group.get("foreach") is None and not group.get("differentiable")
        if free and all(one.device.type in devices and one.is_floating_point() for one in group["params"]):
            group["fused"] = True
