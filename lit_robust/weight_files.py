"""Weights of other software: a plain ``state_dict``, found in a file and matched to a net's own names."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from lit_robust.checkpoint_files import read_data
from lit_robust.torch_internals import plain_names
from lit_robust.whole_files import path_of

#: The keys under which files keep their weights, the likeliest first; other keys are tried after them.
WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network", "weights", "params", "module")

#: What DataParallel, torch.compile and modules around a net put before its names.
PREFIX = re.compile(r"^(module|_orig_mod|net|model|network)\.")


def read_weights(path: str | Path, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Find a net's weights in a file; only tensors and plain values are ever unpickled.

    The file is a ``state_dict``, or holds one below ``state_dict``, ``model``, ``net`` or another key. Prefixes such as
    ``module.``, ``net.`` and ``_orig_mod.`` are removed. Weights without the prefix belong to other modules.

    Args:
        path: A file of ``torch.save``, or of safetensors if that is installed.
        own: The net's ``state_dict``.

    Raises:
        FileNotFoundError: If there is no such file.
        ImportError: If safetensors is needed and not installed.
        ValueError: If the file cannot be used, or no weights in it have the net's names and shapes.
    """
    path = path_of("path", path, "a file of weights")
    if not path.is_file():
        kind = "is a folder" if path.is_dir() else "does not exist"
        raise FileNotFoundError(f"{path} {kind}: give a file of weights, such as net.pth.")
    content = _read_safetensors(path) if path.suffix == ".safetensors" else read_data(path, older=True)
    candidates = [names for found in _state_dicts(content) for names in _without_prefixes(found)]
    if not candidates:
        raise ValueError(f"{path} holds no state_dict (a mapping of names to tensors): save net.state_dict() alone.")
    best = max(candidates, key=lambda weights: len(own.keys() & weights.keys()) - len(weights.keys() - own.keys()))
    for weights in (*candidates, best):
        if _misfits(own, weights) == []:
            return weights
    raise ValueError(
        f"{path} holds the weights of another net ({'; '.join(_misfits(own, best))}): build the net that was trained."
    )


def _read_safetensors(path: Path) -> Any:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise ImportError(f"{path} is read by safetensors: pip install safetensors.") from error
    try:
        return load_file(path)
    except Exception as error:  # the package's own kinds
        raise ValueError(f"{path} is truncated or not of safetensors ({error}): use another copy.") from error


def _state_dicts(content: Any, depth: int = 2) -> Iterator[dict[str, Tensor]]:
    """What may be a ``state_dict`` in a file's content, the likeliest first."""
    if not isinstance(content, Mapping) or not content:
        return
    if all(isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()):
        yield dict(content)
    elif depth:
        for key in sorted(content, key=lambda key: WRAPPERS.index(key) if key in WRAPPERS else len(WRAPPERS)):
            yield from _state_dicts(content[key], depth - 1)


def _without_prefixes(weights: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """The same weights with one prefix after the other removed."""
    weights = plain_names(weights)
    yield weights
    for prefix in dict.fromkeys(found[0] for key in weights if (found := PREFIX.match(key))):
        below = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
        yield from _without_prefixes(below)


def _misfits(own: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> list[str]:
    """What is missing, unknown and of another shape, the first three of each."""
    shapes = [
        f"{key} is {tuple(weights[key].shape)} there and {tuple(own[key].shape)} here"
        for key in own
        if key in weights and weights[key].shape != own[key].shape
    ]
    groups = {
        "missing there": [key for key in own if key not in weights],
        "unknown here": [key for key in weights if key not in own],
        "of another shape": shapes,
    }
    return [f"{what}: {_some(names)}" for what, names in groups.items() if names]


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(name[:100] for name in names[:3]) + more
