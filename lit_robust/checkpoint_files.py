"""Checkpoints as files from outside: read as data and checked section by section."""

from collections.abc import Iterable, Mapping
from io import BytesIO
from itertools import islice
from pathlib import Path
from pickle import UnpicklingError
from pickletools import genops
from typing import Any
from zipfile import ZIP_STORED, BadZipFile, ZipFile, is_zipfile

import torch

from lit_robust.checkpoint_sections import PARTS, is_count
from lit_robust.lightning_internals import LOOPS
from lit_robust.shown import shown
from lit_robust.whole_files import path_of

#: The sections of a checkpoint that are read, here or by Lightning, and what each must be.
SECTIONS: dict[str, type] = {
    "state_dict": dict,
    "lit_robust": dict,
    "hyper_parameters": dict,
    LOOPS: dict,
    "callbacks": dict,
    "optimizer_states": list,
    "lr_schedulers": list,
    "current_model_state": dict,
    "averaging_state": dict,
    "extra_averages": dict,
    "averaged_buffers": list,
    "epoch": int,
    "global_step": int,
    "pytorch-lightning_version": str,
}


#: The longest pickle, in bytes: everything but the numbers of tensors; a run's has about 100,000.
LONGEST = 2**22

#: The largest directory of an archive, in bytes: about 15,000 members; a checkpoint has one per tensor.
LONGEST_DIRECTORY = 2**20

#: The pickles at the beginning of torch's older format: a number, a version, the system, the values, the tensors' keys.
_OLDER_PICKLES = 5

#: The most values besides the numbers of tensors, and the most levels of nesting.
MOST, DEEPEST = 10**6, 50


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


def read_data(path: str | Path, older: bool = False) -> Any:
    """Read a file of ``torch.save`` onto the CPU; only tensors and plain values are ever unpickled.

    Args:
        path: The file.
        older: Whether it may be in torch's older format, a bare pickle, which was written until 2020.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is truncated, is of another kind, or holds code.
    """
    path = path_of("path", path, "a .ckpt file")
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}: give the path of a .ckpt file.")
    _check_archive(path, older)
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise ValueError(
            f"{path} holds more than tensors and plain values, so it was not loaded: such a file can run any code "
            "when it is opened; write it again with lit_robust, or save the net's state_dict alone."
        ) from error
    except Exception as error:  # of a broken file, torch raises anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ValueError(f"{path} is truncated or is not a checkpoint ({reason}): use an earlier one.") from error
    try:
        _size(found, (), {})
    except ValueError as error:
        raise ValueError(f"{path} is broken: {error}; use an earlier one.") from error
    return found


def check_sections(checkpoint: Mapping[str, Any], path: str | Path = "the checkpoint") -> None:
    """Refuse a checkpoint with a section of the wrong type or with values that are out of range.

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
        if kind is int and not is_count(value):
            why = f"its {name} is {shown(value)}, which is not a count"
            raise ValueError(f"{path} is broken: {why}; use an earlier one.")
    saved = checkpoint.get("lit_robust", {})
    for name, (is_right, needed) in PARTS.items():
        if name in saved and not is_right(saved[name]):
            raise ValueError(
                f"{path} is broken: its section lit_robust.{name} is {shown(saved[name])}, but it must be {needed}; "
                "use an earlier one."
            )


def forget_foreign_paths(checkpoint: Mapping[str, Any], callbacks: Iterable[Any]) -> None:
    """Drop paths that are not checkpoints in its folder from each ModelCheckpoint's state.

    ModelCheckpoint deletes outdated files by these paths.

    If the best ones that are left contradict each other, all are forgotten: new ones are saved beside them.

    Args:
        checkpoint: Changed in place.
        callbacks: The trainer's ModelCheckpoints.
    """
    for callback in callbacks:
        state = checkpoint.get("callbacks", {}).get(callback.state_key)
        if not isinstance(state, dict) or not getattr(callback, "dirpath", None):
            continue
        folder, suffix = Path(callback.dirpath).resolve(), getattr(callback, "FILE_EXTENSION", ".ckpt")
        for name in ("best_model_path", "kth_best_model_path", "last_model_path"):
            if not _is_checkpoint_in(state.get(name), folder, suffix):
                state[name] = ""
        scores = dict(state.get("best_k_models") or {})
        kept = {path: score for path, score in scores.items() if _is_checkpoint_in(path, folder, suffix)}
        worst, most = state["kth_best_model_path"], getattr(callback, "save_top_k", -1)
        known = worst in kept or (worst == "" and (most < 0 or len(kept) < most))
        if not known or not all(isinstance(score, torch.Tensor) and score.ndim == 0 for score in kept.values()):
            kept, state["kth_best_model_path"] = {}, ""
        state["best_k_models"] = kept
        if not isinstance(state.get("best_model_score"), torch.Tensor):
            state["best_model_score"] = None


def _is_checkpoint_in(path: Any, folder: Path, suffix: str) -> bool:
    try:
        return isinstance(path, str) and path.endswith(suffix) and folder in Path(path).resolve().parents
    except (OSError, ValueError, RuntimeError):  # no name of a file, or a loop of links
        return False


def _check_archive(path: Path, older: bool) -> None:
    """Refuse what torch.save never writes: other formats, and compressed archives, which grow when unpacked."""
    with path.open("rb") as file:
        start = file.read(2)
    if older and start == b"\x80\x02":
        with path.open("rb") as file:
            _check_pickles(path, file.read(LONGEST), _OLDER_PICKLES)
        return
    if start != b"PK":
        raise ValueError(f"{path} is not a checkpoint: give a .ckpt file that a training has written.")
    try:
        is_archive = is_zipfile(path)
    except BadZipFile:  # it looks for further parts
        is_archive = False
    if not is_archive:
        raise ValueError(f"{path} is truncated or is not a checkpoint: use an earlier one.")
    if _directory_size(path) > LONGEST_DIRECTORY:
        raise ValueError(f"{path} has more members than any checkpoint has tensors: it was not unpacked.")
    try:
        with ZipFile(path) as archive:
            members = archive.infolist()
    except (BadZipFile, NotImplementedError, ValueError) as error:  # the second: zipfile knows no such format
        raise ValueError(f"{path} is truncated or is not a checkpoint ({error}): use an earlier one.") from error
    if any(member.compress_type != ZIP_STORED for member in members):
        raise ValueError(f"{path} is compressed, which no checkpoint is: it was not unpacked.")
    pickles = [member for member in members if member.filename.endswith(".pkl")]
    if sum(member.file_size for member in pickles) > LONGEST:
        raise ValueError(f"{path} has more than {LONGEST:,} bytes besides its tensors, which no checkpoint has.")
    with ZipFile(path) as archive:
        try:
            contents = [archive.read(member) for member in pickles]
        except (BadZipFile, OSError, RuntimeError, NotImplementedError) as error:  # likewise
            raise ValueError(f"{path} is truncated or is not a checkpoint ({error}): use an earlier one.") from error
    if any(b"bytearray\n" in content for content in contents):  # torch makes one of any size that a file asks for
        raise ValueError(f"{path} asks for an array of bytes, which no checkpoint does: it was not unpacked.")
    for content in contents:
        _check_pickles(path, content, 1)


def _directory_size(path: Path) -> int:
    """How many bytes Python's ``ZipFile`` would read for the directory of an archive, as the archive's end says."""
    with path.open("rb") as file:
        before = max(path.stat().st_size - 2**16 - 22 - 76, 0)  # the longest comment, the end and its 64-bit extension
        file.seek(before)
        tail = file.read()
        at = len(tail) - 22 if tail[-22:-18] == b"PK\5\6" and tail[-2:] == b"\0\0" else tail.rfind(b"PK\5\6")
        sizes = [int.from_bytes(tail[at + 12 : at + 16], "little")]
        locator = tail[max(at - 20, 0) : at]
        if locator.startswith(b"PK\6\7"):
            for place in (before + at - 76, int.from_bytes(locator[8:16], "little")):
                file.seek(min(max(place, 0), before + len(tail)))
                sizes.append(int.from_bytes(file.read(56)[40:48], "little"))
    return max((size for size in sizes if size != 2**32 - 1), default=0)  # which stands for the extension's


def _check_pickles(path: Path, content: bytes, number: int) -> None:
    """Refuse consecutive pickles with more than ``MOST`` opcodes each (minutes to load) or without a STOP opcode."""
    file = BytesIO(content)
    for _ in range(number):
        try:
            steps = sum(1 for _ in islice(genops(file), MOST + 1))
        except Exception as error:  # of a broken file, anything
            reason = " ".join(str(error).split())[:100]
            raise ValueError(f"{path} is truncated or is not a checkpoint ({reason}): use an earlier one.") from error
        if steps > MOST:
            raise ValueError(f"{path} has more than {MOST:,} values besides its tensors, which no checkpoint has.")


def _size(value: Any, within: tuple[int, ...], sizes: dict[int, int]) -> int:
    """Count the values in a container, a shared one once for each reference to it.

    Raises:
        ValueError: If it contains itself, has too many values or levels, or holds a tensor larger than what is stored.
    """
    if isinstance(value, torch.Tensor):
        is_plain = value.layout == torch.strided and value.device.type == "cpu" and not value.is_quantized
        if not is_plain or value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise ValueError(f"it holds a tensor of shape {tuple(value.shape)} but fewer numbers than that")
    if not isinstance(value, dict | list | tuple | set):
        return 1
    if id(value) in within:
        raise ValueError("it holds a container that contains itself")
    if id(value) not in sizes:
        if len(within) >= DEEPEST:
            raise ValueError(f"it has more than {DEEPEST} levels of nesting")
        inner, parts = (*within, id(value)), [*value, *value.values()] if isinstance(value, dict) else [*value]
        size = 1
        for part in parts:
            size += _size(part, inner, sizes)
            if size > MOST:
                raise ValueError(f"it stands for more than {MOST:,} values")
        sizes[id(value)] = size
    return sizes[id(value)]
