"""The configuration of a run, saved in its folder."""

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.trainer.states import TrainerFn

from lit_robust.runs import next_free, run_folder
from lit_robust.whole_files import write_whole


class SaveConfig(SaveConfigCallback):
    """Saves the configuration of each stage beside the run's metrics, and logs it to Weights & Biases."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the file under a name that keeps a test or a resume from overwriting the run's first one.

        Without a logger nothing is written: the run has no folder of its own, and the current one may have another
        config.yaml.
        """
        folder = run_folder(trainer)  # the ranks agree on it, so all must call this
        if self.already_saved or not trainer.is_global_zero or not trainer.loggers:
            return
        folder.mkdir(parents=True, exist_ok=True)
        name = "config.yaml" if stage == "fit" else f"config_{TrainerFn(stage).value}.yaml"
        if stage == "fit" and self.config.get("ckpt_path") and (folder / name).exists():
            name = next_free(folder, "config_resumed", ".yaml", start=1).name
        write_whole(folder / name, self.parser.dump(self.config, skip_none=False).encode())
        self.save_config(trainer, pl_module, stage)
        self.already_saved = True

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Log the configuration to Weights & Biases, for search and comparison."""
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_hyperparams(self.config.as_dict())
