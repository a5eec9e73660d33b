"""Rebuilds a net from its description in a checkpoint, which is untrusted data and never code."""

import inspect
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lit_robust import nets
from lit_robust.torch_internals import names_within, plain_name, plain_names

#: The functions that a file may name.
BUILDERS = {name: getattr(nets, name) for name in nets.__all__ if inspect.isfunction(getattr(nets, name))}

#: The largest allowed argument of a builder: a wider net would have more weights than a file can hold.
LARGEST = 2**20


def description_of(content: Any) -> Any:
    """What a file says about how its net was built, or None."""
    sections = [content.get(name) for name in ("lit_robust", "hyper_parameters")] if isinstance(content, dict) else []
    descriptions = (section.get("net") for section in sections if isinstance(section, dict))
    return next((one for one in descriptions if one is not None), None)


def weights_of_net(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights of the module's ``net``, by the net's own names."""
    state = checkpoint["state_dict"]
    return plain_names({key.removeprefix("net."): value for key, value in state.items() if str(key).startswith("net.")})


def rebuild(description: Any, weights: Mapping[str, Tensor]) -> nn.Module:
    """Call the builder that a file names with the plain arguments that it gives.

    The net is first built on the meta device, and in memory only if the weights fit.

    Args:
        description: ``{"class_path": "lit_robust.nets.NAME", "init_args": {...}}``, or the path alone.
        weights: The file's weights, by the names of the net's ``state_dict``.

    Raises:
        ValueError: If it names anything but a builder, its arguments are not plain numbers, strings and lists
            of numbers, or the weights are of another net.
    """
    described = _described(description)
    path, arguments = str(described.get("class_path")), described.get("init_args")
    if not is_builder(description):
        raise ValueError(f"it names the net {path[:100]}, which is not in lit_robust.nets")
    name = path.rpartition(".")[2]
    build = BUILDERS[name]
    if not isinstance(arguments, dict | None) or not set(arguments or {}) <= set(inspect.signature(build).parameters):
        raise ValueError(f"it gives {name} other arguments than it has: {_short(arguments)}")
    given = {key: plain(key, value) for key, value in (arguments or {}).items()}
    if "pretrained" in given:
        given["pretrained"] = False  # the weights come from the file; nothing is downloaded
    try:
        with torch.device("meta"):
            outline = build(**given)
        check_fit(outline.state_dict(), weights)
        net: nn.Module = build(**given)
        return net
    except (ValueError, ImportError):
        raise
    except Exception as error:  # torchvision and timm raise many kinds
        raise ValueError(f"it names a net that cannot be built: {name}({_short(given)})") from error


def is_builder(description: Any) -> bool:
    """Whether a description names one of ``lit_robust.nets``."""
    path = _described(description).get("class_path")
    room, _, name = path.rpartition(".") if isinstance(path, str) else ("", "", "")
    return room == "lit_robust.nets" and name in BUILDERS


def _described(description: Any) -> dict[str, Any]:
    return description if isinstance(description, dict) else {"class_path": description, "init_args": {}}


def check_fit(own: Mapping[str, Tensor], weights: Mapping[str, Any], who: str = "it", remedy: str = "") -> None:
    """Compare names and shapes.

    Args:
        own: The net's weights.
        weights: Those of a file.
        who: What the file is called in the message.
        remedy: What follows in the message.

    Raises:
        ValueError: At the first tensor that is missing, unknown, of another shape, or none.
    """
    for key in [*own, *weights]:
        mine, theirs = (_shape(side.get(key)) for side in (own, weights))
        if mine != theirs:
            raise ValueError(
                f"{who} holds the weights of another net: {key} is {theirs or 'missing'} there and {mine or 'missing'} "
                f"here{remedy}"
            )


def names_for(net: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, str]:
    """A net's names with those in a file, which may lack those of the net's wrappers."""
    named = {key: plain_name(key) for key in net.state_dict()}
    return named if {*named.values()} <= weights.keys() else names_within(net)


def by_names(net: nn.Module, names: Mapping[str, str]) -> dict[str, Tensor]:
    """A net's weights by other names.

    Args:
        net: The net.
        names: The other names by its own.
    """
    state = net.state_dict()
    return {name: state[key] for key, name in names.items()}


def fill(net: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load weights by plain names into a net that may be wrapped."""
    own = net.state_dict()  # has the versions of its layers, without which torchvision's MNASNet loads nothing
    own.update({key: weights[name] for key, name in names_for(net, weights).items()})
    net.load_state_dict(own)


def _shape(value: Any) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else "" if value is None else type(value).__name__


def plain(name: str, value: Any) -> Any:
    """A number, a word or a tuple of numbers, as they are.

    Raises:
        ValueError: If it is anything else, too large, or a path or an address.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int | float) and math.isfinite(value) and abs(value) <= LARGEST:
        return value
    if isinstance(value, str) and len(value) <= 100 and not set(value) & {":", "\\"}:
        return value
    if isinstance(value, list | tuple) and len(value) <= 1000 and all(isinstance(one, int | float) for one in value):
        return tuple(plain(name, one) for one in value)
    raise ValueError(f"its argument {str(name)[:50]} is neither a plain number nor a word: {_short(value)}")


def _short(value: Any) -> str:
    text = f"{type(value).__name__}" if isinstance(value, Tensor) else repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."
