"""Checkpoints as files from outside: read as data and checked section by section."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import ZIP_STORED, ZipFile, is_zipfile

import torch

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
    "pytorch-lightning_version": str,
}


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint of Lightning's onto the CPU; only tensors and plain values are ever unpickled.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is truncated, is not a checkpoint, holds code, or has a broken section.
    """
    checkpoint = read_data(path)
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise ValueError(
            f"{path} is not a checkpoint of a Lightning run: if it holds a net's weights, give it to --weights."
        )
    check_sections(checkpoint, path)
    return checkpoint


def read_data(path: str | Path) -> Any:
    """Read a file of ``torch.save`` onto the CPU; only tensors and plain values are ever unpickled.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is truncated, is of another kind, or holds code.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}: give the path of a .ckpt file.")
    _check_archive(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise ValueError(
            f"{path} holds more than tensors and plain values, so it was not loaded: such a file can run any code "
            "when it is opened; write it again with lit_robust, or save the net's state_dict alone."
        ) from error
    except Exception as error:  # of a broken file, torch raises anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ValueError(f"{path} is truncated or is not a checkpoint ({reason}): use an earlier one.") from error


def check_sections(checkpoint: Mapping[str, Any], path: str | Path = "the checkpoint") -> None:
    """Refuse a checkpoint with a section of the wrong type.

    Raises:
        ValueError: At the first such section.
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
    """Drop paths outside its folder from each ModelCheckpoint's state, because it deletes the files it outdates.

    Args:
        checkpoint: Changed in place.
        callbacks: The trainer's ModelCheckpoints.
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
    """Refuse what torch.save never writes: other formats, and compressed archives, which grow when unpacked."""
    with path.open("rb") as file:
        start = file.read(2)
    if start not in (b"PK", b"\x80\x02"):  # a zip archive, or a pickle of torch's older format
        raise ValueError(f"{path} is not a checkpoint: give a .ckpt file that a training has written.")
    if start == b"PK" and not is_zipfile(path):
        raise ValueError(f"{path} is truncated or is not a checkpoint: use an earlier one.")
    if start == b"PK":
        with ZipFile(path) as archive:
            if any(member.compress_type != ZIP_STORED for member in archive.infolist()):
                raise ValueError(f"{path} is compressed, which no checkpoint is: it was not unpacked.")
