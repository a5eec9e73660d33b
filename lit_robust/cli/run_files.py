"""Files of a run besides its metrics: the configuration, a test's table, and the checkpoints to test."""

import csv
from collections.abc import Mapping
from io import StringIO
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn

from lit_robust.checkpoint_files import read_checkpoint
from lit_robust.measures.accuracy import Accuracy
from lit_robust.measures.image_blocks import Blocks
from lit_robust.runs import next_free, run_folder
from lit_robust.training.evaluated import Evaluated
from lit_robust.whole_files import csv_cell, write_whole

#: Loggers that have a folder for each run.
FILE_LOGGERS = (CSVLogger, TensorBoardLogger)


class SaveConfig(SaveConfigCallback):
    """Saves the configuration of each stage beside the run's metrics, and logs it to Weights & Biases."""

    logged_keys = ()

    #: The file that was written.
    written: Path | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the file under a name that keeps a test or a resume from overwriting the run's first one.

        Long attacks of a test keep their finished blocks in the same folder.

        Without a logger nothing is written: the run has no folder of its own, and the current one may have another
        config.yaml.
        """
        folder = run_folder(trainer)  # the ranks agree on it, so all must call this
        if trainer.loggers and isinstance(pl_module, Evaluated):
            pl_module.blocks = Blocks(folder / "blocks")
        if self.already_saved or not trainer.is_global_zero or not trainer.loggers:
            return
        folder.mkdir(parents=True, exist_ok=True)
        name = "config.yaml" if stage == "fit" else f"config_{TrainerFn(stage).value}.yaml"
        if stage == "fit" and self.config.get("ckpt_path") and (folder / name).exists():
            name = next_free(folder, "config_resumed", ".yaml", start=1).name
        self.written = folder / name
        write_whole(self.written, self.parser.dump(self.config, skip_none=False).encode())
        self.save_config(trainer, pl_module, stage)
        self.already_saved = True

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Log the configuration to Weights & Biases, for search and comparison."""
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_hyperparams(self.config.as_dict())


def keep_table(trainer: Any, results: Mapping[str, Mapping[str, Accuracy]]) -> None:
    """Save the accuracies of a test as ``test.csv`` beside the metrics, and in Weights & Biases."""
    columns = ["checkpoint", "attack", "accuracy", "low", "high", "n"]
    rows = [
        [csv_cell(checkpoint), csv_cell(attack), accuracy.value, *accuracy.interval, accuracy.n]
        for checkpoint, accuracies in results.items()
        for attack, accuracy in accuracies.items()
    ]
    for logger in trainer.loggers if trainer.is_global_zero else []:
        if isinstance(logger, WandbLogger):
            logger.log_table("test/accuracies", columns, rows)
        elif isinstance(logger, FILE_LOGGERS):
            table = StringIO(newline="")
            csv.writer(table).writerows([columns, *rows])
            write_whole(Path(logger.log_dir, "test.csv"), table.getvalue().encode())


def whole_ones(found: Mapping[str, Path]) -> list[Path]:
    """The checkpoints that are not broken; a warning names the others.

    Raises:
        ValueError: If all are broken, with the reason for the first.
    """
    whole, broken = [], []
    for path in dict.fromkeys(found.values()):  # the best one may be the last one, too
        try:
            read_checkpoint(path)
            whole.append(path)
        except ValueError as error:
            broken.append(error)
    if not whole:
        raise broken[0]
    for reason in broken:
        rank_zero_warn(f"{reason} It is left out.")
    return whole
