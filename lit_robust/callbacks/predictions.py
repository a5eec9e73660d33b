"""A net's prediction for each image, as a file."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lit_robust.batch import Batch
from lit_robust.callbacks.adapter import Adapter
from lit_robust.callbacks.batch_paths import Key
from lit_robust.callbacks.needs import callbacks_of
from lit_robust.runs import run_folder
from lit_robust.whole_files import cannot_write, csv_cell, path_of


class PredictionWriter(BasePredictionWriter):
    """Writes ``predictions.csv`` while ``predict`` runs: index, label, predicted class and its probability.

    It works with any LightningModule whose ``predict_step`` returns class probabilities ``(N, num_classes)``. The index
    is that of a ``Batch`` or, in other batches, the one that Lightning's sampler gives; of several loaders each row
    begins with the loader's number. Where the data module has ``test_files``, each row names the file, too, and where
    it has ``class_names``, both classes. With several ranks, each writes its own file.

    Args:
        path: The file; by default ``predictions.csv`` in the run's folder.
        y: Where a batch keeps its labels: an index, a key, the name of a field, or a path; None if there are none.

    Raises:
        ValueError: If ``predict_step`` returns something else, or two callbacks write one file.
    """

    logged_keys = ()

    def __init__(self, path: str | None = None, y: Key | None = 1) -> None:
        super().__init__(write_interval="batch")
        self.path = None if path is None else path_of("path", path, "a file to write")
        self._names: tuple[Sequence[Any] | None, Sequence[Any] | None] = (None, None)
        self.adapter = Adapter(y=y)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse two writers of one file."""
        if stage != "predict":
            return
        for other in callbacks_of(trainer, PredictionWriter):
            if other is not self and other._file(trainer).resolve() == self._file(trainer).resolve():
                raise ValueError("two PredictionWriters would write the same file: give each a path.")

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
        confidence, predicted = _probabilities(prediction, pl_module).max(dim=1)
        if batch_idx == 0:
            data = getattr(trainer, "datamodule", None)
            self._names = getattr(data, "test_files", None), getattr(data, "class_names", None)
        files, classes = self._names
        labels = self.adapter.labels(batch)
        y = [None] * len(predicted) if labels is None else labels.tolist()
        index = batch.index.tolist() if isinstance(batch, Batch) else batch_indices or [-1] * len(predicted)
        exists = batch.weight.tolist() if isinstance(batch, Batch) else [1] * len(predicted)
        columns: dict[str, Sequence[Any]] = {"index": index}
        if len(trainer.num_predict_batches) > 1:
            columns = {"loader": [dataloader_idx] * len(predicted)} | columns
        if files is not None:
            columns["file"] = _named(index, files)
        columns["label"] = y
        if classes is not None:
            columns["class"] = _named(y, classes)
        columns["predicted"] = predicted.tolist()
        if classes is not None:
            columns["predicted_class"] = _named(predicted.tolist(), classes)
        columns["probability"] = [f"{value:.6f}" for value in confidence.tolist()]
        rows = [row for row, weight in zip(zip(*columns.values(), strict=True), exists, strict=True) if weight > 0]
        path = self._file(trainer)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # An image's file name may be invalid UTF-8; its bytes are written unchanged.
            first = batch_idx == dataloader_idx == 0
            with path.open("w" if first else "a", newline="", encoding="utf-8", errors="surrogateescape") as file:
                writer = csv.writer(file)
                if first:
                    writer.writerow(columns)
                writer.writerows(rows)
        except OSError as error:
            raise cannot_write(path, error) from error

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say where the file is."""
        rank_zero_info(f"The predictions are in {self._file(trainer)}.")

    def _file(self, trainer: Trainer) -> Path:
        path = self.path or run_folder(trainer) / "predictions.csv"
        return path if trainer.world_size == 1 else path.with_stem(f"{path.stem}_{trainer.global_rank}")


def _probabilities(prediction: Any, module: LightningModule) -> Tensor:
    """What ``predict_step`` has returned, if its rows are probabilities."""
    if isinstance(prediction, Tensor) and prediction.ndim == 2:
        found = prediction.float()
        if bool(((found >= 0).all(dim=1) & ((found.sum(dim=1) - 1).abs() < 1e-2)).all()):
            return found
    name, kind = type(module).__name__, f"a {type(prediction).__name__}"
    if isinstance(prediction, Tensor):
        kind = f"a tensor of shape {tuple(prediction.shape)} whose rows do not sum to 1"
    raise ValueError(
        f"{name}.predict_step returns {kind}, but PredictionWriter needs class probabilities (N, num_classes): return "
        "logits.softmax(dim=1)."
    )


def _named(numbers: Sequence[int | None], names: Sequence[Any]) -> list[Any]:
    """The name of each number, as a cell of a table; empty where there is none."""
    return [csv_cell(str(names[one])) if one is not None and 0 <= one < len(names) else "" for one in numbers]
