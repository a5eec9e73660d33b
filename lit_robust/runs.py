"""A run on disk: its folder, its checkpoints, and the plain net in one."""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lit_robust import require
from lit_robust.checkpoint_files import read_checkpoint, read_data
from lit_robust.guards import own_random_state
from lit_robust.nets.rebuild import (
    by_names,
    check_fit,
    description_of,
    fill,
    is_builder,
    names_for,
    rebuild,
    weights_of_net,
)
from lit_robust.torch_internals import names_within, plain_names
from lit_robust.weight_files import read_weights
from lit_robust.whole_files import path_of


def load_net(path: str | Path, net: nn.Module | None = None) -> nn.Module:
    """Load the trained net of a checkpoint as a plain module in eval mode, on the CPU.

    A net of ``lit_robust.nets`` is rebuilt from the checkpoint, whether the run came from the command line or from
    Python. Any other net must be given, because building what a file names would import, and so run, code of the
    file's choice. A run with ``EMAWeights`` saves the averaged weights, so these are loaded.

    Args:
        path: A .ckpt file.
        net: The net to load the weights into; needed if it is not one of ``lit_robust.nets``.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file cannot be used or does not say how its net was built, or its weights do not fit
            ``net``.
    """
    checkpoint = read_checkpoint(path)
    weights = weights_of_net(checkpoint)
    try:
        if net is None:
            net = rebuild_net(checkpoint)
        check_fit(by_names(net, names_for(net, weights)), weights)
        fill(net, weights)
    except (ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise ValueError(f"{path}: {reason}: pass the net that was trained, load_net(path, net=...).") from error
    return net.eval().requires_grad_(False)


def load_weights(net: nn.Module, path: str | Path) -> nn.Module:
    """Load weights of other software, a plain ``state_dict``, into a net, after comparing names and shapes.

    Args:
        net: Keeps its mode.
        path: A file of torch or safetensors, which may hold more than the weights, see ``read_weights``.

    Returns:
        The net.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file cannot be used, or its weights do not fit ``net``: what is missing, unknown or of
            another shape.
    """
    try:
        weights = read_weights(path, by_names(net, names_within(net)))
    except ValueError:  # the file may have been written from a net with the same wrappers
        weights = read_weights(path, plain_names(net.state_dict()))
    fill(net, weights)
    return net


def load_any(path: str | Path, net: nn.Module | None = None) -> nn.Module:
    """Load the net of a checkpoint as ``load_net`` does, or weights of other software into a copy of ``net``.

    Args:
        path: A checkpoint, or a file that ``load_weights`` reads.
        net: The net of all files that do not name one of ``lit_robust.nets``; it stays as it is.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file cannot be used, needs ``net`` and there is none, or its weights do not fit.
    """
    path = path_of("path", path, "a file of weights")
    content = None if path.suffix == ".safetensors" else read_data(path, older=True)
    if is_builder(description_of(content)):
        return load_net(path)
    if net is None:
        raise ValueError(
            f"{path} does not name one of lit_robust.nets: name the net that its weights belong to, as in "
            "--net lit_robust.nets.resnet18 (in Python net=resnet18())."
        )
    return load_weights(deepcopy(net), path).eval().requires_grad_(False)


def load_sources(alarm_sources: Any) -> list[nn.Module]:
    """Nets in eval mode, from checkpoints or as copies of nets; the random state stays as it was.

    Args:
        alarm_sources: A list of .ckpt files, folders of runs, whose ``last`` is taken, and nets; None for none.

    Raises:
        FileNotFoundError: If there is no such file.
        TypeError: If it is no such list.
        ValueError: If a file cannot be used, see ``load_net``.
    """
    given = [] if alarm_sources is None else alarm_sources
    require.instance("alarm_sources", given, (list, tuple), "give a list of checkpoints, or of nets")
    with own_random_state(torch.device("cpu")):  # a net is built with random weights first
        return [_source(one) for one in given]


def _source(one: Any) -> nn.Module:
    if isinstance(one, nn.Module):
        return deepcopy(one).eval().requires_grad_(False)
    path = path_of("alarm_sources", one, "a checkpoint, or a net")
    try:
        return load_net(checkpoints_of(path).get("last", path))
    except (FileNotFoundError, ValueError) as error:
        raise type(error)(f"alarm_sources: {error}") from error


def rebuild_net(checkpoint: Mapping[str, Any]) -> nn.Module:
    """Build the net that a checkpoint names, if it is one of ``lit_robust.nets``; its weights are not loaded yet.

    Raises:
        ValueError: If the checkpoint names none, or another.
    """
    description = description_of(checkpoint)
    if description is None:
        raise ValueError("it does not say how its net was built")
    return rebuild(description, weights_of_net(checkpoint))


def checkpoints_of(folder: Path) -> dict[str, Path]:
    """Find the ``last`` and ``best`` checkpoints of the newest run below a folder, in this order.

    ``last`` is last.ckpt, unless the training has gone on since and saved under other names, as after a stop by a
    signal in a run that writes no last.ckpt itself; then it is the newest whole one.
    """
    files = (path for path in _files_below(folder) if path.suffix == ".ckpt" and path.is_file())
    newest = max(files, key=_written, default=None)
    if newest is None:
        return {}
    best = newest.parent / "best.ckpt"
    found = {"last": _last_in(newest.parent), "best": best if best.is_file() else None}
    return {name: path for name, path in found.items() if path is not None}


def run_of(checkpoint: Path) -> Path | None:
    """The folder of the run whose ``checkpoints`` hold a file, also through links; None if it is elsewhere."""
    places = (path.parent for path in (checkpoint, checkpoint.resolve()))
    runs = [place.parent for place in places if place.name == "checkpoints"]
    known = (run for run in runs if (run / "config.yaml").exists() or (run / "metrics.csv").exists())
    return next(known, runs[0] if runs else None)


def name_among(known: Mapping[str, str], path: str) -> str:
    """A checkpoint's name without its suffix; with as many of its folders as tell it from ``known``, paths by name."""
    parts = path.replace("\\", "/").removesuffix(".ckpt").split("/")
    names = ("/".join(parts[-length:]) for length in range(1, len(parts) + 1))
    return next((name for name in names if known.get(name, path) == path), path)


def _last_in(folder: Path) -> Path | None:
    last = folder / "last.ckpt"
    files = sorted((path for path in folder.glob("*.ckpt") if path.is_file()), key=_written, reverse=True)
    if last not in files:
        others = [path for path in files if path.stem != "best"]
        return next(iter(others or (files if last.is_dir() else [])), None)  # a folder hides no whole checkpoint
    later = [path for path in files if _written(path)[0] > _written(last)[0]]
    with suppress(ValueError):  # a broken last.ckpt is reported by `read_last`
        step = read_checkpoint(last).get("global_step") if later else None
        for path in later:
            with suppress(ValueError):
                if read_checkpoint(path).get("global_step") != step:
                    return path
    return last


def _written(path: Path) -> tuple[int, int, str]:
    """When a file was written; of two within one tick of the clock, ``epoch=10`` comes after ``epoch=9``."""
    return path.stat().st_mtime_ns, len(path.name), path.name


def _files_below(folder: Path) -> Iterator[Path]:
    """All files, also through symbolic links, each folder once."""
    seen: set[Path] = set()
    for root, folders, files in os.walk(folder, followlinks=True):
        places = {name: Path(root, name).resolve() for name in folders if not name.endswith(".ckpt")}
        folders[:] = [name for name, place in places.items() if place not in seen]  # a .ckpt folder is not a run
        seen.update(places.values())
        yield from (Path(root, name) for name in files)


def read_last(found: Mapping[str, Path]) -> tuple[Path, dict[str, Any]]:
    """Read the last checkpoint of a run or, if it is broken, the newest intact one in its folder.

    Args:
        found: Checkpoints by name; a file that was named is the only one.

    Raises:
        ValueError: If none is whole: what is wrong with the first.
    """
    first = found.get("last") or next(iter(found.values()))
    try:
        return first, read_checkpoint(first)
    except ValueError as error:
        others = [path for path in first.parent.glob("*.ckpt") if path != first] if "last" in found else []
        for path in sorted(others, key=_written, reverse=True):
            with suppress(ValueError):
                checkpoint = read_checkpoint(path)
                from lightning.pytorch.utilities import rank_zero_warn

                rank_zero_warn(f"{error} This goes on from {path}, the newest whole one.")
                return path, checkpoint
        raise


def run_folder(trainer: Any) -> Path:
    """The folder of the logger, or of a Weights & Biases run, which holds its checkpoints; call it on all ranks."""
    from lightning.pytorch.loggers import WandbLogger  # imported only where there is a trainer

    if isinstance(trainer.logger, WandbLogger):
        _ = trainer.logger.experiment  # starts the run, which gives it an id
        return Path(trainer.logger.save_dir or ".", str(trainer.logger.name), str(trainer.logger.version))
    return Path(trainer.log_dir or trainer.default_root_dir)


def next_free(folder: Path, stem: str, suffix: str, start: int = 0) -> Path:
    """``stem_N`` with the lowest N above all existing ones."""
    found = (re.fullmatch(rf"{stem}_(\d+)", path.stem) for path in folder.glob(f"{stem}_*{suffix}"))
    number = max([start - 1, *(int(match[1]) for match in found if match)]) + 1
    return folder / f"{stem}_{number}{suffix}"


def newest_config(run: Path) -> Path | None:
    """The configuration that a run was started or last resumed with; None if it was not started by a command."""
    resumed = sorted(run.glob("config_resumed_*.yaml"), key=lambda path: path.stat().st_mtime)
    found = [path for path in (run / "config.yaml", *resumed) if path.exists()]
    return found[-1] if found else None
