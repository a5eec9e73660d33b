"""One training per run folder, because two would mix their files."""

import os
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows has no flock: nothing is locked there
    fcntl = None  # type: ignore[assignment]  # a module until here

#: The locks of this process; the system releases them when the process ends.
_held: dict[Path, IO[str]] = {}


def lock(folder: str | Path) -> None:
    """Lock a folder for a training of this process; a second call changes nothing.

    Tests and predictions take no lock, so they can run during a training.

    Raises:
        ValueError: If another process trains there.
    """
    folder = Path(folder).resolve()
    if fcntl is None or folder in _held:
        return
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ".training"
    while folder not in _held:
        file = path.open("w")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.close()
            raise ValueError(
                f"another process is training in {folder}: wait until it ends, or train in another folder (name or "
                "version of trainer.logger)."
            ) from error
        if path.exists() and os.path.samestat(path.stat(), os.fstat(file.fileno())):
            _held[folder] = file
        else:  # a training that ended meanwhile has removed the file
            file.close()


def unlock(folder: str | Path) -> None:
    """Release a folder, if this process has locked it."""
    folder = Path(folder).resolve()
    file = _held.pop(folder, None)
    if file is not None:
        (folder / ".training").unlink(missing_ok=True)  # before another process can hold it
        file.close()


def _let_go() -> None:
    """Close inherited locks in a forked process, such as a loader's worker, which would hold them after a kill."""
    for file in _held.values():
        file.close()
    _held.clear()


if fcntl is not None:
    os.register_at_fork(after_in_child=_let_go)
