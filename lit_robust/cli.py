"""The command line: ``lit-robust fit | validate | test | predict -c config.yaml``.

The only place that knows everything. Importing a room makes the short names of its classes work in YAML.
"""

import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from jsonargparse.typing import register_type
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, WandbLogger

from lit_robust import __version__, attacks, callbacks, data, defenses, nets, schedules
from lit_robust.checkpoints import checkpoints_of, read_checkpoint
from lit_robust.data import ImageDataModule
from lit_robust.defenses import Defense
from lit_robust.magnitudes import Magnitude
from lit_robust.sentences import sentence

register_type(Magnitude, serializer=str, deserializer=Magnitude)

#: What YAML may call by its short name, because importing a room is what makes it known.
NAMES = [name for room in (attacks, callbacks, data, defenses, nets, schedules) for name in room.__all__]

#: What a user can cause and mend: told in one sentence. Anything else is a defect and keeps its traceback.
USER_ERRORS = (ValueError, TypeError, OSError, ImportError, FloatingPointError, MisconfigurationException)


class Parser(LightningArgumentParser):
    """Lightning's parser, which answers a mistake with one sentence instead of a page of usage."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print what is wrong and where to read on; exit with 2."""
        if not self.exit_on_error:  # an inner parser, one of several that jsonargparse tries
            super().error(message, ex)
        if "arguments are required" in message:
            message += ": give a configuration with -c (a run saves its own, config.yaml, beside its checkpoints)."
        command = " ".join(["lit-robust", *self.prog.replace("[options]", "").split()[1:]])
        sys.stderr.write(f"lit-robust: error: {sentence(message, NAMES)}\n({command} --help lists all options)\n")
        sys.exit(2)


class SaveConfig(SaveConfigCallback):
    """Saves the configuration beside the run's metrics, by stage, and shows it to Weights & Biases."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Choose the file's name: a test beside a training does not overwrite the training's."""
        self.config_filename = "config.yaml" if stage == "fit" else f"config_{stage}.yaml"
        super().setup(trainer, pl_module, stage)

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Send the configuration to Weights & Biases, where it is searched and compared."""
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_hyperparams(self.config.as_dict())


class RobustCLI(LightningCLI):
    """Lightning's command line with our defaults."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Let the data say how many classes there are, once."""
        parser.link_arguments("data.num_classes", "model.init_args.num_classes", apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse without the parent's warning about ``sys.argv``, which ``main(args)`` never mixes with ``args``."""
        assert isinstance(args, list)
        self.config = parser.parse_args(args)

    def _parse_ckpt_path(self) -> None:
        # Lightning lays the checkpoint's arguments over what the user wrote. Here what the user writes is what runs.
        pass

    def fit(self, ckpt_path: str | None = None, **kwargs: Any) -> None:
        """Train, or go on where a checkpoint stands, in its folder."""
        if ckpt_path is not None:
            path = self._one(ckpt_path)
            self._go_on_in(path.parent.parent)
            ckpt_path = str(path)
        self.trainer.fit(ckpt_path=ckpt_path, **kwargs)

    def validate(self, ckpt_path: str | None = None, **kwargs: Any) -> None:
        """Measure validation accuracy."""
        self.trainer.validate(ckpt_path=self._optional(ckpt_path), **kwargs)

    def test(self, ckpt_path: str | None = None, **kwargs: Any) -> None:
        """Attack one checkpoint, or the last and the best of a run where a folder is given."""
        for path in self._find(ckpt_path).values() if ckpt_path else [None]:
            self.trainer.test(ckpt_path=path and str(path), **kwargs)

    def predict(self, ckpt_path: str | None = None, **kwargs: Any) -> None:
        """Write class probabilities."""
        self.trainer.predict(ckpt_path=self._optional(ckpt_path), return_predictions=False, **kwargs)

    def _optional(self, ckpt_path: str | None) -> str | None:
        return ckpt_path and str(self._one(ckpt_path))

    def _one(self, ckpt_path: str) -> Path:
        found = self._find(ckpt_path)
        return found.get("last") or next(iter(found.values()))

    def _find(self, ckpt_path: str) -> dict[str, Path]:
        """The checkpoints that are meant by a file, a folder, or ``best`` or ``last`` of the newest run."""
        if ckpt_path in ("best", "last"):
            logger = self.trainer.logger
            folder = Path(logger.save_dir or ".") / str(logger.name) if logger else Path(self.trainer.default_root_dir)
            found = {name: path for name, path in checkpoints_of(folder).items() if name == ckpt_path}
        elif Path(ckpt_path).is_dir():
            folder, found = Path(ckpt_path), checkpoints_of(Path(ckpt_path))
        else:
            folder, found = Path(ckpt_path).parent, {Path(ckpt_path).stem: Path(ckpt_path)}
        if not found:
            raise FileNotFoundError(f"--ckpt_path {ckpt_path}: there is no such checkpoint in {folder}.")
        for path in found.values():
            read_checkpoint(path)
        return found

    def _go_on_in(self, run: Path) -> None:
        """Log a resumed run into its own folder, and keep the metrics that stand there, which CSVLogger deletes."""
        logger = self.trainer.logger
        if isinstance(logger, CSVLogger) and Path(logger.root_dir).resolve() == run.parent.resolve():
            metrics = run / "metrics.csv"
            if metrics.exists():
                metrics.rename(run / f"metrics_{len(list(run.glob('metrics_*.csv')))}.csv")
            self.trainer.loggers = [CSVLogger(logger.save_dir, name=logger.name, version=run.name)]


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line.

    Args:
        args: The arguments, those of the process by default.
    """
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    warnings.filterwarnings("ignore", message="Experiment logs directory .* exists and is not empty")
    try:
        RobustCLI(
            Defense,
            ImageDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=SaveConfig,
            save_config_kwargs={"overwrite": True},
            trainer_defaults={"logger": {"class_path": "CSVLogger", "init_args": {"save_dir": "runs", "name": "run"}}},
            seed_everything_default=0,
            parser_kwargs={"version": __version__},
            parser_class=Parser,
            auto_configure_optimizers=False,
            args=list(args) if args is not None else sys.argv[1:],
        )
    except USER_ERRORS as error:
        if os.environ.get("LIT_ROBUST_DEBUG"):
            raise
        sys.exit(f"lit-robust: error: {sentence(str(error), NAMES)}\n(LIT_ROBUST_DEBUG=1 shows where this was raised)")
