"""A run on disk: its folder, its checkpoints, and the plain net in one."""

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import ZIP_STORED, ZipFile, is_zipfile

import torch
from torch import Tensor, nn

from lit_robust.lightning_internals import go_on_in_folder
from lit_robust.nets.rebuild import check_fit, rebuild

#: The sections of a checkpoint that are read, here or by Lightning, and what each must be.
SECTIONS: dict[str, type] = {
    "state_dict": dict,
    "lit_robust": dict,
    "hyper_parameters": dict,
    "loops": dict,
    "callbacks": dict,
    "optimizer_states": list,
    "lr_schedulers": list,
    "current_model_state": dict,
    "averaging_state": dict,
    "extra_averages": dict,
    "epoch": int,
    "global_step": int,
}


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint of Lightning's onto the CPU; only tensors and plain values are ever unpickled.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is truncated, is no checkpoint, holds code, or a section of it is not what it should be.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}: give the path of a .ckpt file.")
    _check_archive(path)
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise ValueError(
            f"{path} holds more than tensors and plain values, so it was not loaded: such a file can run any code "
            "when it is opened; write it again with lit_robust, or save the net's state_dict alone."
        ) from error
    except Exception as error:  # of a broken file, torch raises anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ValueError(f"{path} is truncated or is no checkpoint ({reason}): use an earlier one.") from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise ValueError(f"{path} is no checkpoint of a Lightning run: it has no state_dict.")
    check_sections(checkpoint, path)
    return checkpoint


def check_sections(checkpoint: Mapping[str, Any], path: str | Path = "the checkpoint") -> None:
    """Refuse a checkpoint whose sections are not of their types.

    Raises:
        ValueError: At the first one.
    """
    found = [(name, checkpoint.get(name, kind()), kind) for name, kind in SECTIONS.items()]
    callbacks = checkpoint.get("callbacks")
    if isinstance(callbacks, dict):
        found += [(f"callbacks[{name}]", state, dict) for name, state in callbacks.items()]
    for name, value, kind in found:
        if not isinstance(value, kind):
            raise ValueError(
                f"{path} is broken: its section {name} is of type {type(value).__name__} instead of {kind.__name__}; "
                "use an earlier one."
            )


def forget_foreign_paths(checkpoint: Mapping[str, Any], callbacks: Iterable[Any]) -> None:
    """Drop from the states of ModelCheckpoints each path outside their folder: they delete what they have outdone.

    Args:
        checkpoint: Changed in place.
        callbacks: The trainer's ModelCheckpoints, whose folders are known.
    """
    for callback in callbacks:
        state = checkpoint.get("callbacks", {}).get(callback.state_key)
        if not isinstance(state, dict) or not getattr(callback, "dirpath", None):
            continue
        folder = Path(callback.dirpath).resolve()
        for name in ("best_model_path", "kth_best_model_path", "last_model_path"):
            if not _is_below(state.get(name), folder):
                state[name] = ""
        kept = dict(state.get("best_k_models") or {})
        state["best_k_models"] = {path: score for path, score in kept.items() if _is_below(path, folder)}


def _is_below(path: Any, folder: Path) -> bool:
    return isinstance(path, str) and path != "" and folder in Path(path).resolve().parents


def _check_archive(path: Path) -> None:
    """Refuse what torch.save never writes: other files, and archives that grow when they are unpacked."""
    with path.open("rb") as file:
        start = file.read(2)
    if start not in (b"PK", b"\x80\x02"):  # a zip archive, or a pickle of torch's older format
        raise ValueError(f"{path} is no checkpoint: give a .ckpt file that a training has written.")
    if start == b"PK" and not is_zipfile(path):
        raise ValueError(f"{path} is truncated or is no checkpoint: use an earlier one.")
    if start == b"PK":
        with ZipFile(path) as archive:
            if any(member.compress_type != ZIP_STORED for member in archive.infolist()):
                raise ValueError(f"{path} is compressed, which no checkpoint is: it was not unpacked.")


def load_net(path: str | Path, net: nn.Module | None = None) -> nn.Module:
    """Give back the trained net of a checkpoint as a plain module in eval mode, on the CPU.

    A net of ``lit_robust.nets`` is built again as the checkpoint says, whether the run came from the command line or
    from Python. Any other net must be given: building what a file names would import, and so run, code of its choice.
    Averaged weights are what a run with ``EMAWeights`` saves, so they are what comes.

    Args:
        path: A .ckpt file.
        net: The net to load the weights into; needed where it is not one of ``lit_robust.nets``.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file cannot be used, does not say how its net was built, or ``net`` is another net.
    """
    checkpoint = read_checkpoint(path)
    weights = weights_of_net(checkpoint)
    try:
        if net is None:
            net = rebuild_net(checkpoint)
        check_fit(net.state_dict(), weights)
        net.load_state_dict(weights)
    except (ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise ValueError(f"{path}: {reason}: pass the net that was trained, load_net(path, net=...).") from error
    return net.eval().requires_grad_(False)


def weights_of_net(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights of the module's ``net``, by the net's own names."""
    state = checkpoint["state_dict"]
    return {key.removeprefix("net."): value for key, value in state.items() if str(key).startswith("net.")}


def rebuild_net(checkpoint: Mapping[str, Any]) -> nn.Module:
    """Build the net that a checkpoint names, if it is one of ``lit_robust.nets``; its weights are not loaded yet.

    Raises:
        ValueError: If the checkpoint names none, or another.
    """
    recipe = checkpoint.get("lit_robust", {}).get("net") or checkpoint.get("hyper_parameters", {}).get("net")
    if recipe is None:
        raise ValueError("it does not say how its net was built")
    return rebuild(recipe, weights_of_net(checkpoint))


def checkpoints_of(folder: Path) -> dict[str, Path]:
    """Find the ``last`` and ``best`` checkpoint of the newest run below a folder, in this order."""
    names = ("last", "best")
    named = (path for path in _files_below(folder) if path.suffix == ".ckpt" and path.stem in names)
    newest = max(named, key=lambda path: path.stat().st_mtime, default=None)
    found = {name: newest.parent / f"{name}.ckpt" for name in names} if newest else {}
    return {name: path for name, path in found.items() if path.exists()}


def _files_below(folder: Path) -> Iterator[Path]:
    """All files, also through symbolic links, each folder once."""
    seen: set[Path] = set()
    for root, folders, files in os.walk(folder, followlinks=True):
        places = {name: Path(root, name).resolve() for name in folders}
        folders[:] = [name for name, place in places.items() if place not in seen]
        seen.update(places.values())
        yield from (Path(root, name) for name in files)


def find_checkpoints(ckpt_path: str, trainer: Any) -> dict[str, Path]:
    """Find the checkpoints, by name, that are meant on the command line; none is read.

    Args:
        ckpt_path: A file, a folder of runs, or ``best`` or ``last`` of the newest run of the trainer's.
        trainer: Whose logger says where runs are.

    Raises:
        FileNotFoundError: If there is none.
    """
    named = Path(ckpt_path).expanduser()
    if ckpt_path in ("best", "last"):
        logger = trainer.logger
        folder = Path(logger.save_dir or ".") / str(logger.name) if logger else Path(trainer.default_root_dir)
        folder = folder.expanduser()
        found = {name: path for name, path in checkpoints_of(folder).items() if name == ckpt_path}
    elif named.is_dir():
        folder, found = named, checkpoints_of(named)
    else:
        folder, found = named.parent, {named.stem: named}
    if not found:
        raise FileNotFoundError(
            f"--ckpt_path {ckpt_path}: there is no such checkpoint in {folder}; train first, or give a .ckpt file."
        )
    return found


def read_last(found: Mapping[str, Path]) -> tuple[Path, dict[str, Any]]:
    """Read the last checkpoint of a run or, where that is broken, the newest whole one beside it.

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
        for path in sorted(others, key=lambda path: path.stat().st_mtime, reverse=True):
            with suppress(ValueError):
                checkpoint = read_checkpoint(path)
                from lightning.pytorch.utilities import rank_zero_warn

                rank_zero_warn(f"{error} This goes on from {path}, the newest whole one.")
                return path, checkpoint
        raise


def run_folder(trainer: Any) -> Path:
    """The logger's folder, for Weights & Biases the run's own one, which holds its checkpoints; all ranks must ask."""
    from lightning.pytorch.loggers import WandbLogger  # only where there is a trainer

    if isinstance(trainer.logger, WandbLogger):
        _ = trainer.logger.experiment  # only a run that has begun has an id
        return Path(trainer.logger.save_dir or ".", str(trainer.logger.name), str(trainer.logger.version))
    return Path(trainer.log_dir or trainer.default_root_dir)


def next_free(folder: Path, stem: str, suffix: str, start: int = 0) -> Path:
    """The first of ``stem_0``, ``stem_1``, ... that is not there, after all that are."""
    found = (re.fullmatch(rf"{stem}_(\d+)", path.stem) for path in folder.glob(f"{stem}_*{suffix}"))
    number = max([start - 1, *(int(match[1]) for match in found if match)]) + 1
    return folder / f"{stem}_{number}{suffix}"


def go_on_in(run: Path, trainer: Any) -> None:
    """Log a resumed run into its own folder, and keep the metrics that stand there, which CSVLogger deletes.

    Args:
        run: The folder of the run.
        trainer: Whose loggers would begin another; those that log elsewhere do so.

    Raises:
        ValueError: If Weights & Biases is not told which run goes on.
    """
    from lightning.pytorch.loggers import CSVLogger, WandbLogger

    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger) and logger.version is None:
            raise ValueError(
                "--ckpt_path goes on with a run, and Weights & Biases needs to know which: add "
                f"--trainer.logger.init_args.id {run.name} --trainer.logger.init_args.resume allow."
            )
        if isinstance(logger, CSVLogger) and Path(logger.root_dir).resolve() == run.parent.resolve():
            metrics = run / "metrics.csv"
            if metrics.exists() and trainer.is_global_zero:
                metrics.rename(next_free(run, "metrics", ".csv"))
            go_on_in_folder(logger, run.name)
