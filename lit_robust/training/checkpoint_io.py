"""Checkpoints that a kill or a full disk cannot cut."""

from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from lit_robust.whole_files import remove_unfinished, write_whole


class WholeCheckpoints(TorchCheckpointIO):
    """Lightning's own, except that a local file is written beside its place and moved there.

    Lightning writes it into the system's temporary folder and copies it over the old one, if that is another file
    system: a kill in between destroys both.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint; remote paths go Lightning's way."""
        if "://" in str(path) or storage_options is not None:
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        buffer = BytesIO()
        torch.save(checkpoint, buffer)
        write_whole(path, buffer.getvalue())


def keep_checkpoints_whole(trainer: Any) -> None:
    """Let a trainer write whole checkpoints, unless the user has chosen how; remove what a kill has left."""
    if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
        trainer.strategy.checkpoint_io = WholeCheckpoints()
    for callback in trainer.checkpoint_callbacks:
        folder = getattr(callback, "dirpath", None)
        if folder and trainer.is_global_zero and "://" not in str(folder) and Path(folder).is_dir():
            remove_unfinished(folder)
