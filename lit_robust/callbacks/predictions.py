"""A net's prediction for each image, as a file."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.utilities import rank_zero_info

from lit_robust.batch import as_batch
from lit_robust.runs import run_folder
from lit_robust.whole_files import cannot_write


class PredictionWriter(BasePredictionWriter):
    """Writes ``predictions.csv`` while ``predict`` runs: index, label, predicted class and its probability.

    It works with any LightningModule whose ``predict_step`` returns class probabilities ``(N, num_classes)`` for
    batches that have ``y``, ``index`` and ``weight``. With several ranks, each writes its own file.

    Args:
        path: The file; by default ``predictions.csv`` in the run's folder.
    """

    def __init__(self, path: str | None = None) -> None:
        super().__init__(write_interval="batch")
        self.path = path

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
        columns = (batch.index, batch.y, predicted, confidence, batch.weight)
        rows = [row[:4] for row in zip(*(column.tolist() for column in columns), strict=True) if row[4] > 0]
        path = self._file(trainer)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("w" if batch_idx == 0 else "a", newline="") as file:
                writer = csv.writer(file)
                if batch_idx == 0:
                    writer.writerow(["index", "label", "predicted", "probability"])
                writer.writerows([*row[:3], f"{row[3]:.6f}"] for row in rows)
        except OSError as error:
            raise cannot_write(path, error) from error

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say where the file is."""
        rank_zero_info(f"The predictions are in {self._file(trainer)}.")

    def _file(self, trainer: Trainer) -> Path:
        path = Path(self.path or run_folder(trainer) / "predictions.csv").expanduser()
        return path if trainer.world_size == 1 else path.with_stem(f"{path.stem}_{trainer.global_rank}")
