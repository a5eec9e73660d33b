"""Metrics that a checkpoint must hold.

Those that are not logged yet, because Lightning logs a row after the hooks that save; and those that schedulers and
callbacks read at an epoch's end, among them those of a validation within the epoch.
"""

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor

from lit_robust.lightning_resume_internals import epoch_so_far, row_to_come
from lit_robust.metrics_files import keep_rows_whole, number_of_rows


def keep_metrics_whole(trainer: Any) -> None:
    """Let every CSVLogger write each row whole or not at all."""
    if trainer.is_global_zero:
        for logger in _csv_loggers(trainer):
            if logger is not None:
                keep_rows_whole(logger.experiment)


def logged_and_unlogged(trainer: Any, own: Callable[[], dict[str, float]]) -> dict[str, Any]:
    """What a checkpoint must hold of the metrics for a resumed run to log each row once; every rank must call it.

    Args:
        trainer: Its callbacks may have logged, too.
        own: What the module is about to log of the batch.
    """

    def as_logged() -> dict[str, float]:
        return {name: float(torch.tensor(value)) for name, value in own().items()}  # in single precision

    loggers = _csv_loggers(trainer) if trainer.is_global_zero else []
    return {
        "rows": [number_of_rows(logger.experiment) if logger else 0 for logger in loggers],
        "unlogged": {"row": row_to_come(trainer, as_logged), "epoch": epoch_so_far(trainer)},
        "callback_metrics": {name: value.to("cpu", copy=True) for name, value in _callback_metrics(trainer).items()},
    }


def _callback_metrics(trainer: Any) -> dict[str, Tensor]:
    found = {name: torch.as_tensor(value).detach() for name, value in trainer.callback_metrics.items()}
    return {name: value for name, value in found.items() if value.shape == ()}


def log_late(module: Any, unlogged: dict[str, dict[str, float]]) -> None:
    """Log in ``on_train_start`` what was not logged when the checkpoint was written."""
    for name, value in unlogged.get("epoch", {}).items():
        module.log(name, value, prog_bar=name == "train/loss", on_step=False, on_epoch=True, batch_size=1)
    log_row(module, unlogged)


def log_row(module: Any, unlogged: dict[str, dict[str, float]]) -> None:
    """Log the row alone, which is the last one if the training was finished."""
    row = dict(unlogged.get("row", {}))
    step = int(row.pop("step", 0))
    for logger in module.loggers if row else []:
        logger.log_metrics(row, step)
        logger.save()


def _csv_loggers(trainer: Any) -> list[CSVLogger | None]:
    """The loggers in their order, with None in place of others."""
    return [logger if isinstance(logger, CSVLogger) else None for logger in trainer.loggers]
