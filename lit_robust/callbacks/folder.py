"""Where a run keeps its files."""

from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import WandbLogger


def run_folder(trainer: Trainer) -> Path:
    """The logger's folder, for Weights & Biases the run's own one, which holds its checkpoints; all ranks must ask."""
    if isinstance(trainer.logger, WandbLogger):
        _ = trainer.logger.experiment  # only a run that has begun has an id
        return Path(trainer.logger.save_dir or ".", str(trainer.logger.name), str(trainer.logger.version))
    return Path(trainer.log_dir or trainer.default_root_dir)
