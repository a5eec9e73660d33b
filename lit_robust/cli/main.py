"""The command line: ``lit-robust fit | validate | test | predict -c config.yaml``.

The only place that knows everything. Importing a room makes the short names of its classes work in YAML.
"""

import csv
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, NoReturn

import torch
from jsonargparse.typing import register_type
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch import callbacks as lightning_callbacks
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info

from lit_robust import __version__, callbacks
from lit_robust.cli.config import NAMES, classes_start_afresh, gathered
from lit_robust.cli.errors import sentence
from lit_robust.cli.quiet import NOISE_OF_EVALUATION, ignore, quiet
from lit_robust.data import ImageDataModule
from lit_robust.defenses import Defense
from lit_robust.lightning_internals import CommandLineInternals, epochs_done
from lit_robust.magnitudes import Magnitude
from lit_robust.runs import find_checkpoints, go_on_in, last_of, read_checkpoint, run_folder

register_type(Magnitude, serializer=str, deserializer=Magnitude)

#: What a user can cause and mend: told in one sentence. Anything else is a defect and keeps its traceback.
USER_ERRORS = (
    ValueError,
    TypeError,
    OSError,
    ImportError,
    FloatingPointError,
    MisconfigurationException,
    torch.OutOfMemoryError,
)

#: A test ends with our table, which has intervals and all checkpoints; predictions are for callbacks to write.
DEFAULTS = {"test": {"verbose": False}, "predict": {"return_predictions": False}}


class Parser(LightningArgumentParser):
    """Lightning's parser, which answers a mistake with one sentence instead of a page of usage."""

    def add_function_arguments(self, *args: Any, linked_targets: set[str] | None = None, **kwargs: Any) -> list[str]:
        """Accept for functions, which nets are, what jsonargparse (4.53) says of linked arguments to classes.

        Without this any flag such as ``--model.optimizer.lr`` fails where a file gives the net an argument.
        """
        added: list[str] = super().add_function_arguments(*args, **kwargs)
        return added

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print what is wrong and where to read on; exit with 2."""
        if not self.exit_on_error:  # an inner parser, one of several that jsonargparse tries
            super().error(message, ex)
        if "arguments are required" in message:
            message += ": give a configuration with -c (a run saves its own, config.yaml, beside its checkpoints)."
        command = " ".join(["lit-robust", *self.prog.replace("[options]", "").split()[1:]])
        _exit(message, f"{command} --help lists all options", code=2)


class SaveConfig(SaveConfigCallback):
    """Saves the configuration beside the run's metrics, by stage, and shows it to Weights & Biases."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the file under a name by which neither a test nor a resume overwrites what the run began with.

        Without a logger a run has no folder of its own, and in the user's there may be another config.yaml.
        """
        folder = run_folder(trainer)  # which the ranks agree upon, so all of them ask
        if self.already_saved or not trainer.is_global_zero or not trainer.loggers:
            return
        folder.mkdir(parents=True, exist_ok=True)
        name = "config.yaml" if stage == "fit" else f"config_{TrainerFn(stage).value}.yaml"
        if stage == "fit" and self.config.get("ckpt_path") and (folder / name).exists():
            name = f"config_resumed_{len(list(folder.glob('config_resumed_*.yaml'))) + 1}.yaml"
        self.parser.save(self.config, str(folder / name), skip_none=False, overwrite=True)
        self.save_config(trainer, pl_module, stage)
        self.already_saved = True

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Send the configuration to Weights & Biases, where it is searched and compared."""
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_hyperparams(self.config.as_dict())


class RobustCLI(CommandLineInternals, LightningCLI):
    """Lightning's command line with our defaults; what the user writes beats what a checkpoint holds."""

    subcommand_defaults = DEFAULTS

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Let the data say how many classes there are, once."""
        parser.link_arguments("data.num_classes", "model.init_args.num_classes", apply_on="instantiate")

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the trainer; what it refuses, two callbacks of a kind among it, a user can mend."""
        try:
            return super().instantiate_trainer(**kwargs)
        except RuntimeError as error:
            raise ValueError(str(error)) from error

    def after_instantiate_classes(self) -> None:
        """Try the log folders before anything costly is done, and let no written class count go unheard.

        Raises:
            ValueError: If ``num_classes`` is not the data's, whose link would overwrite it.
        """
        config = self.config[self.subcommand] if self.subcommand else self.config  # a script runs no command
        written = config.model.init_args.get("num_classes")
        if written is not None and written != self.datamodule.num_classes:
            raise ValueError(
                f"model.num_classes={written}, but {type(self.datamodule).__name__} has {self.datamodule.num_classes} "
                "classes: leave it out, it is the data's."
            )
        for logger in self.trainer.loggers:
            _check_writable(Path(logger.save_dir or "."))

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse what all files come to, then the flags.

        Without the parent's warning about ``sys.argv``, which ``main(args)`` never mixes with ``args``.
        """
        assert isinstance(args, list)
        with classes_start_afresh():
            self.config = parser.parse_args(gathered(args, self.subcommands()))

    def fit(self, ckpt_path: str | None = None, **kwargs: Any) -> None:
        """Train, or go on where a checkpoint stands, in its folder."""
        if ckpt_path is not None:
            path = last_of(find_checkpoints(ckpt_path, self.trainer))
            if epochs_done(read_checkpoint(path)) >= (self.trainer.max_epochs or 0) > 0:
                rank_zero_info(f"{path} is the end of a training: raise --trainer.max_epochs to go on, or test it.")
                return
            go_on_in(path.parent.parent, self.trainer)
            ckpt_path = str(path)
        self.trainer.fit(ckpt_path=ckpt_path, **kwargs)

    def validate(self, ckpt_path: str | None = None, **kwargs: Any) -> None:
        """Measure validation accuracy."""
        ignore(*NOISE_OF_EVALUATION)
        self.trainer.validate(ckpt_path=self._readable(ckpt_path)[0], **kwargs)

    def test(self, ckpt_path: str | None = None, **kwargs: Any) -> None:
        """Attack one checkpoint, or the last and the best of a run where a folder is given."""
        ignore(*NOISE_OF_EVALUATION)
        warnings.filterwarnings("always", module="(py)?autoattack")  # a doubt about each checkpoint, in the same words
        paths = self._readable(ckpt_path, every=True)
        for logger in self.trainer.loggers:
            if isinstance(logger, CSVLogger):  # said now, so that the table is what the terminal ends with
                rank_zero_info(f"The table will be kept in {Path(logger.log_dir, 'test.csv')}.")
        for path in paths:
            self.trainer.test(ckpt_path=path, **kwargs)

    def after_test(self) -> None:
        """Keep the table that was printed: as ``test.csv`` beside the metrics, and in Weights & Biases."""
        columns = ["checkpoint", "attack", "accuracy", "low", "high", "n"]
        rows = [
            [checkpoint, attack, accuracy.value, *accuracy.interval, accuracy.n]
            for checkpoint, accuracies in self.model.test_results.items()
            for attack, accuracy in accuracies.items()
        ]
        for logger in self.trainer.loggers if self.trainer.is_global_zero else []:
            if isinstance(logger, WandbLogger):
                logger.log_table("test/accuracies", columns, rows)
            elif isinstance(logger, CSVLogger):
                with Path(logger.log_dir, "test.csv").open("w", newline="") as file:
                    csv.writer(file).writerows([columns, *rows])

    def predict(self, ckpt_path: str | None = None, **kwargs: Any) -> None:
        """Write each image's prediction, by a ``PredictionWriter`` if no other writer is among the callbacks."""
        ignore(*NOISE_OF_EVALUATION)
        writers: list[Any] = self.trainer.callbacks  # type: ignore[attr-defined]  # set by one of its connectors
        if not any(isinstance(callback, lightning_callbacks.BasePredictionWriter) for callback in writers):
            writers.append(callbacks.PredictionWriter())
        self.trainer.predict(ckpt_path=self._readable(ckpt_path)[0], **kwargs)

    def _readable(self, ckpt_path: str | None, every: bool = False) -> list[str | None]:
        """The checkpoints to evaluate, of a folder the last or every one; None is the net as it is built.

        Each is read here, once, so that a broken one is refused before anything costly is done.
        """
        if not ckpt_path:
            rank_zero_info("No --ckpt_path: the net has the weights that it is built with.")
            return [None]
        found = find_checkpoints(ckpt_path, self.trainer)
        paths = list(found.values()) if every else [last_of(found)]
        for path in paths:
            read_checkpoint(path)
        return [str(path) for path in paths]


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line.

    Args:
        args: The arguments, those of the process by default.
    """
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    try:
        with quiet():
            RobustCLI(
                Defense,
                ImageDataModule,
                subclass_mode_model=True,
                subclass_mode_data=True,
                save_config_callback=SaveConfig,
                save_config_kwargs={"overwrite": True},
                trainer_defaults={
                    "logger": {"class_path": "CSVLogger", "init_args": {"save_dir": "runs", "name": "run"}}
                },
                seed_everything_default=0,
                parser_kwargs={"version": __version__},
                parser_class=Parser,
                auto_configure_optimizers=False,
                args=list(args) if args is not None else sys.argv[1:],
            )
    except USER_ERRORS as error:
        if os.environ.get("LIT_ROBUST_DEBUG"):
            raise
        _exit(str(error), "LIT_ROBUST_DEBUG=1 shows where this was raised", code=1)


def _exit(message: str, hint: str, code: int) -> NoReturn:
    sys.stderr.write(f"lit-robust: error: {sentence(message, NAMES)}\n({hint})\n")
    sys.exit(code)


def _check_writable(folder: Path) -> None:
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    try:
        TemporaryFile(dir=existing).close()  # what os.access says is no proof
    except OSError as error:
        why = "may not be written to" if existing.is_dir() else "is no folder"
        raise PermissionError(
            f"cannot log to {folder}, because {existing} {why}: change save_dir of trainer.logger."
        ) from error
