"""A net's prediction for each image, as a file."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lit_robust.batch import as_batch
from lit_robust.runs import run_folder
from lit_robust.whole_files import csv_cell


class PredictionWriter(BasePredictionWriter):
    """Writes ``predictions.csv`` while ``predict`` runs: index, label, predicted class and its probability.

    It works with any LightningModule whose ``predict_step`` returns class probabilities ``(N, num_classes)`` for
    batches that have ``y``, ``index`` and ``weight``. Where the data module has ``test_files``, the file is written,
    too, and where it has ``class_names``, the names of both classes. With several ranks, each writes its own file.

    Args:
        path: The file; by default ``predictions.csv`` in the run's folder.
    """

    def __init__(self, path: str | None = None) -> None:
        super().__init__(write_interval="batch")
        self.path = path
        self._names: tuple[Sequence[Any] | None, Sequence[Any] | None] = (None, None)

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Append a batch's rows; padding is left out."""
        probabilities, batch = prediction, as_batch(batch)
        confidence, predicted = probabilities.max(dim=1)
        if batch_idx == 0:
            data = getattr(trainer, "datamodule", None)
            self._names = getattr(data, "test_files", None), getattr(data, "class_names", None)
        files, classes = self._names
        columns: dict[str, list[Any]] = {"index": batch.index.tolist()}
        if files is not None:
            columns["file"] = _named(batch.index, files)
        columns["label"] = batch.y.tolist()
        if classes is not None:
            columns["class"] = _named(batch.y, classes)
        columns["predicted"] = predicted.tolist()
        if classes is not None:
            columns["predicted_class"] = _named(predicted, classes)
        columns["probability"] = [f"{value:.6f}" for value in confidence.tolist()]
        rows = zip(*columns.values(), strict=True)
        # A file may have a name that is no valid UTF-8; it is written as it is.
        with self._file(trainer).open(
            "w" if batch_idx == 0 else "a", newline="", encoding="utf-8", errors="surrogateescape"
        ) as file:
            writer = csv.writer(file)
            if batch_idx == 0:
                writer.writerow(columns)
            writer.writerows(row for row, weight in zip(rows, batch.weight.tolist(), strict=True) if weight > 0)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say where the file is."""
        rank_zero_info(f"The predictions are in {self._file(trainer)}.")

    def _file(self, trainer: Trainer) -> Path:
        path = Path(self.path or run_folder(trainer) / "predictions.csv")
        path.parent.mkdir(parents=True, exist_ok=True)
        return path if trainer.world_size == 1 else path.with_stem(f"{path.stem}_{trainer.global_rank}")


def _named(numbers: Tensor, names: Sequence[Any]) -> list[Any]:
    """The name of each number, as a cell of a table; empty where there is none."""
    return [csv_cell(str(names[one])) if 0 <= one < len(names) else "" for one in numbers.tolist()]
