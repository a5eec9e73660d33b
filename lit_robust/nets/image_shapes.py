"""Which arguments to change if a net cannot read the images."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from lit_robust import nets

#: Our nets for images of one shape.
_ONLY = {"digits_cnn": "1x8x8"}


def name_of(net: nn.Module) -> str:
    """The builder of a net of ``lit_robust.nets``, else its class."""
    built_by: Any = getattr(net, "built_by", None)
    return str(built_by["class_path"]).rpartition(".")[2] if built_by else type(net).__name__


def remedy(net: nn.Module, shape: Sequence[int]) -> str | None:
    """The arguments of a net of ``lit_robust.nets`` that do not fit images ``(C, H, W)``; None for other nets.

    Args:
        net: The net, which failed to read the images.
        shape: Their channels, height and width.
    """
    built_by: Any = getattr(net, "built_by", None)
    if not built_by or len(shape) != 3:
        return None
    arguments, name, (channels, height, width) = built_by["init_args"], name_of(net), shape
    if name in _ONLY:
        return f"{name} reads images of {_ONLY[name]} only, choose another net"
    if arguments.get("in_channels", 3) != channels:
        if "in_channels" not in arguments:
            return f"{name} reads images of 3 channels, choose a net with in_channels, such as lit_robust.nets.resnet18"
        changed: dict[str, Any] = {"in_channels": channels}
        if arguments.get("mean") is not None:
            changed |= {"mean": None, "std": None}  # one value per channel
    else:
        changed = {}
    wanted = _size_of(net, arguments)
    if wanted and height != width:
        return f"{name} reads square images, crop them to {wanted}x{wanted}"
    if wanted and wanted != height and "image_size" in arguments:
        changed["image_size"] = height
    elif wanted and wanted != height:
        return f"{name} is built for {wanted}x{wanted}, give the data image_size={wanted} (--data.image_size {wanted})"
    if not changed:
        return f"{name} needs larger images, raise the data's image_size (--data.image_size) or choose another net"
    if not _reads(name, arguments | changed, shape):
        return f"{name} cannot be built for them, choose another net"
    words = " and ".join(f"{key}={value}" for key, value in changed.items())
    flags = " ".join(f"--model.net.{key} {'null' if value is None else value}" for key, value in changed.items())
    return f"give the net {words} ({flags})"


def _reads(name: str, arguments: dict[str, Any], shape: Sequence[int]) -> bool:
    """Whether a net with these arguments reads the images; tried on the meta device, without memory."""
    try:
        with torch.device("meta"):
            getattr(nets, name)(**arguments).eval()(torch.empty(2, *shape))
    except Exception:  # a net may raise anything for images that it cannot read
        return False
    return True


def _size_of(net: nn.Module, arguments: dict[str, Any]) -> int | None:
    """The height and width that a net is built for, None if it reads several."""
    body: Any = getattr(net, "body", net)
    if "image_size" in arguments and arguments["image_size"] is not None:
        return int(arguments["image_size"])
    preset = getattr(body, "pretrained_cfg", None) or {}
    if preset.get("fixed_input_size"):  # timm's
        return int(preset["input_size"][-1])
    size = getattr(body, "image_size", None)  # of torchvision's transformers
    return size if isinstance(size, int) else None
