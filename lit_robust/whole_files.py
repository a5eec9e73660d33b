"""Paths that users give, and atomic writes: a file is written next to its destination and renamed onto it."""

import os
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from lit_robust import require

#: The suffix of a file that is being written; after a kill it is not taken for a checkpoint.
UNFINISHED = ".part"


def path_of(name: str, value: Any, kind: str) -> Path:
    """A path that a user gave; ``~`` is the home folder.

    Args:
        name: The argument's name.
        value: The argument's value.
        kind: What lies there, for the message.

    Raises:
        TypeError: If it is neither text nor a path.
    """
    require.instance(name, value, (str, os.PathLike), f"give the path of {kind}")
    return Path(os.path.expanduser(value))


def write_whole(path: str | Path, content: bytes) -> None:
    """Write a file atomically: at every moment there is the complete old one or the complete new one.

    Raises:
        OSError: If there is no space or no permission; the old file stays as it was.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}{UNFINISHED}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        remove_part(part)
        raise cannot_write(path, error) from error


def cannot_write(path: str | Path, error: OSError) -> OSError:
    """The error of a file that could not be written, with its name and the remedy."""
    return OSError(
        f"{path} cannot be written ({error.strerror or error}): free some space or choose another folder for the run "
        "(save_dir of trainer.logger); the previous file is intact."
    )


def remove_part(part: Path) -> None:
    """Remove an unfinished file if there is one and it may be removed."""
    try:
        part.unlink(missing_ok=True)
    except OSError:  # a file system that has become read-only keeps it
        return


def remove_unfinished(folder: str | Path) -> None:
    """Remove what killed processes have left in a folder."""
    for part in Path(folder).glob(f".*{UNFINISHED}"):
        remove_part(part)


def csv_cell(text: Any) -> Any:
    """A name as a cell that no spreadsheet takes for a formula; numbers stay as they are.

    A name that begins with ``=``, ``+``, ``-`` or ``@`` gets a quotation mark, which marks text in spreadsheets.
    """
    return f"'{text}" if isinstance(text, str) and text.startswith(("=", "+", "-", "@")) else text


def check_writable(folder: Path, option: str = "save_dir of trainer.logger") -> None:
    """Try to write into a folder, or into its nearest existing parent.

    Args:
        folder: The folder, which need not exist yet.
        option: What to change otherwise, for the message.

    Raises:
        PermissionError: If that is refused, or a file is in the place of a folder.
    """
    place = Path(os.path.abspath(folder))
    for path in (place, *place.parents):
        if path.is_symlink() and not path.exists():
            raise PermissionError(
                f"cannot log to {folder}, because {path} is a link to {os.readlink(path)}, which does not exist: "
                f"remove the link, or change {option}."
            )
    existing = next(path for path in (place, *place.parents) if path.exists())
    try:
        TemporaryFile(dir=existing).close()  # os.access is not reliable
    except OSError as error:
        why = "may not be written to" if existing.is_dir() else "is not a folder"
        raise PermissionError(f"cannot log to {folder}, because {existing} {why}: change {option}.") from error
