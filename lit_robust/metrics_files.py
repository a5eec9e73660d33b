"""metrics.csv: each row once, also after a resume, and whole on a full disk."""

import csv
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

from lit_robust.whole_files import cannot_write, write_whole

Row = Mapping[str, Any]


def keep_rows_whole(experiment: Any) -> None:
    """Let a CSVLogger's writer lose no row: Lightning's rewrites the file in place whenever there is a new column.

    Args:
        experiment: ``logger.experiment``; one that writes to a remote place stays as it is.
    """
    if "://" not in str(experiment.metrics_file_path):
        experiment.save = partial(_save, experiment)


def number_of_rows(experiment: Any) -> int:
    """Write all rows to the disk; return their number."""
    experiment.save()
    return len(_read(Path(experiment.metrics_file_path)))


def rows_before(run: Path, number: int) -> list[dict[str, str]]:
    """The first rows of a run, of its metrics.csv or, where that was lost, of the newest one that was kept."""
    kept = sorted(run.glob("metrics_*.csv"), key=lambda path: path.stat().st_mtime, reverse=True)
    tables = (_read(path) for path in (run / "metrics.csv", *kept))
    return next((rows[:number] for rows in tables if len(rows) >= number), [])


def begin_with(experiment: Any, rows: Sequence[Row]) -> None:
    """Write a resumed run's metrics.csv up to its checkpoint."""
    experiment.metrics_keys = _columns(rows)
    write_whole(experiment.metrics_file_path, _table(experiment.metrics_keys, rows).encode())


def _save(experiment: Any) -> None:
    path, rows = Path(experiment.metrics_file_path), experiment.metrics
    if not rows:
        return
    columns = _columns([dict.fromkeys(experiment.metrics_keys), *rows])
    if columns != experiment.metrics_keys or not path.exists():
        write_whole(path, _table(columns, [*_read(path), *rows]).encode())
    else:
        _append(path, _table(columns, rows, header=False))
    experiment.metrics_keys, experiment.metrics = columns, []


def _append(path: Path, text: str) -> None:
    size = path.stat().st_size
    try:
        with path.open("a", newline="") as file:
            file.write(text)
    except OSError as error:
        os.truncate(path, size)
        raise cannot_write(path, error) from error


def _columns(rows: Iterable[Row]) -> list[str]:
    return sorted({column for row in rows for column in row})


def _table(columns: Sequence[str], rows: Iterable[Row], header: bool = True) -> str:
    text = StringIO(newline="")
    writer = csv.DictWriter(text, columns)
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _read(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    try:
        with path.open(newline="") as file:
            return list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        why = getattr(error, "strerror", None) or error
        raise ValueError(f"{path} is not a table of metrics ({why}): move it out of the run's folder.") from error
