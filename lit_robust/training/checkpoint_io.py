"""Checkpoints that a kill or a full disk cannot truncate."""

from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from lit_robust.whole_files import remove_unfinished, write_whole


class WholeCheckpoints(TorchCheckpointIO):
    """Lightning's checkpoint IO, except that a local file is written next to its destination and renamed onto it.

    Lightning writes to the system's temporary folder and, if that is on another file system, copies the file over the
    old one: a kill during the copy destroys both.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint; remote paths are left to Lightning."""
        if "://" in str(path) or storage_options is not None:
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        buffer = BytesIO()
        torch.save(checkpoint, buffer)
        write_whole(path, buffer.getvalue())


def keep_checkpoints_whole(trainer: Any) -> None:
    """Make a trainer write checkpoints atomically, unless the user has set a checkpoint IO; remove unfinished files."""
    if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
        trainer.strategy.checkpoint_io = WholeCheckpoints()
    for callback in trainer.checkpoint_callbacks:
        folder = getattr(callback, "dirpath", None)
        if folder and trainer.is_global_zero and "://" not in str(folder) and Path(folder).is_dir():
            remove_unfinished(folder)
