"""The command line: ``lit-robust fit | validate | test | predict -c config.yaml``.

The only module that imports all others. Importing a package makes the short names of its classes work in YAML.
"""

import atexit
import sys
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch import callbacks as lightning_callbacks
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_info

from lit_robust import __version__, callbacks
from lit_robust.cli import verbs
from lit_robust.cli.classes import (
    NAMES,
    READABLE_ERRORS,
    check_makers,
    classes_start_afresh,
    expand_homes,
    importable_folder,
    raise_constructor_errors,
    short_names_are_found,
)
from lit_robust.cli.completion import SHELLS, PrintCompletion
from lit_robust.cli.config import gathered
from lit_robust.cli.errors import naming, sentence
from lit_robust.cli.exits import report
from lit_robust.cli.net_arguments import completed
from lit_robust.cli.parser import Parser
from lit_robust.cli.places import check_flags, check_nulls, check_places, check_weights
from lit_robust.cli.plain_yaml import plain_yaml
from lit_robust.cli.quiet import WARNINGS_OF_EVALUATION, ignore, quiet
from lit_robust.cli.run_files import FILE_LOGGERS, SaveConfig, keep_table, whole_ones
from lit_robust.cli.run_folders import (
    EarlierRun,
    evaluate_in,
    find_checkpoints,
    go_on_in,
    named_files,
    nothing_left,
)
from lit_robust.cli.whole_values import entries_start_afresh
from lit_robust.data import ImageDataModule
from lit_robust.defenses import Defense
from lit_robust.lightning_cli_internals import CommandLineInternals
from lit_robust.lightning_internals import epochs_done
from lit_robust.ranks import leave_group
from lit_robust.runs import load_weights, read_last, run_of
from lit_robust.training.monitors import explain_monitor_errors
from lit_robust.training.trainer_checks import check_callbacks
from lit_robust.whole_files import check_writable

#: Errors that a user can cause and fix, reported in one sentence. Any other is a defect and keeps its traceback.
USER_ERRORS = (*READABLE_ERRORS, FloatingPointError)

#: ``test`` prints our own table, with intervals and all checkpoints; callbacks write the predictions.
DEFAULTS = {"test": {"verbose": False}, "predict": {"return_predictions": False}}


class RobustCLI(CommandLineInternals, LightningCLI):
    """Lightning's command line with our defaults; the user's arguments override those of a checkpoint."""

    subcommand_defaults = DEFAULTS

    #: The run that is evaluated, if a checkpoint is given.
    run: EarlierRun | None = None

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Take the model's number of classes from the data."""
        parser.link_arguments("data.num_classes", "model.init_args.num_classes", apply_on="instantiate")
        parser.add_argument("--weights", type=str | None, help="A state_dict from elsewhere for the net to start from.")

    def setup_parser(self, *args: Any, **kwargs: Any) -> None:
        """Add the option that prints a completion script."""
        super().setup_parser(*args, **kwargs)
        PrintCompletion.commands = self.subcommands()
        self.parser.add_argument("--print_completion", action=PrintCompletion, choices=SHELLS)

    def instantiate_classes(self) -> None:
        """Build the data first, from which a net takes its number of classes; a failing constructor says why."""
        with raise_constructor_errors(), completed(self.config_in_use(), self.parser_in_use()):
            super().instantiate_classes()

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the trainer; what it refuses, such as two callbacks of one kind, is the user's to fix."""
        try:
            return super().instantiate_trainer(**kwargs)
        except RuntimeError as error:
            raise ValueError(str(error)) from error

    def after_instantiate_classes(self) -> None:
        """Check the log folders and a ``num_classes`` of the user's before anything costly is done; load ``--weights``.

        Raises:
            ValueError: If ``num_classes`` is not that of the data, which would silently replace it.
        """
        config = self.config_in_use()
        written = config.model.init_args.get("num_classes")
        if written is not None and written != self.datamodule.num_classes:
            raise ValueError(
                f"model.num_classes={written}, but {type(self.datamodule).__name__} has {self.datamodule.num_classes} "
                "classes: leave it out, it is the data's."
            )
        check_callbacks(self.trainer, self.model)
        for logger in self.trainer.loggers:
            check_writable(Path(logger.save_dir or "."))
            if isinstance(logger, FILE_LOGGERS):
                check_writable(Path(logger.log_dir), "name or version of trainer.logger")
        if not self.trainer.loggers:
            check_writable(Path(self.trainer.default_root_dir), "trainer.default_root_dir")
        if config.weights and config.get("ckpt_path"):
            rank_zero_info(
                f"The weights are those of --ckpt_path {config.ckpt_path}; weights: {config.weights} of the "
                "configuration is not read."
            )
        elif config.weights:
            load_weights(self.model.net, config.weights)
            self.model.weights_from = Path(config.weights).stem
            rank_zero_info(f"The net starts from the weights of {config.weights}.")

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse the merged files, then the flags.

        Without the parent's warning about ``sys.argv``; ``main(args)`` never reads both.
        """
        assert isinstance(args, list)
        Parser.words = args
        Parser.flags = [flag.partition("=")[0] for flag in args if flag.startswith("--")]
        try:
            check_flags(args)
            with plain_yaml(), classes_start_afresh(), entries_start_afresh(), short_names_are_found():
                self.config = parser.parse_args(gathered(args, self.subcommands()))
            config = self.config_in_use()
            check_places({"trainer": config.trainer})
            check_nulls(config)
            check_weights(config, Parser.flags)
            if "spawn" in str(config.trainer.get("strategy")):
                raise ValueError(
                    "trainer.strategy: processes that are spawned cannot get the command's parts: use ddp."
                )
            check_makers(config.model.get("init_args") or {})
        except USER_ERRORS as error:
            report(error, code=2)
        expand_homes(config.trainer.logger)

    def fit(self, ckpt_path: str | None = None, **kwargs: Any) -> None:
        """Train, or resume from a checkpoint in its run's folder."""
        run = None
        if ckpt_path is not None:
            path, checkpoint = read_last(find_checkpoints(ckpt_path, self.trainer))
            done = 0
            with suppress(ImportError, TypeError, ValueError, OverflowError):  # a broken file is refused later
                done = epochs_done(checkpoint)
            if done >= (self.trainer.max_epochs or 0) > 0:
                rank_zero_info(f"the training of {path} is complete: raise --trainer.max_epochs, or test it.")
                return
            run, ckpt_path = EarlierRun(run_of(path) or path.parent.parent, checkpoint.get("global_step", 0)), str(path)
        with nothing_left(self.trainer, run), naming(ckpt_path), explain_monitor_errors(self.trainer):
            if run is not None:
                go_on_in(run, self.trainer, checkpoint)
            self.trainer.fit(ckpt_path=ckpt_path, **kwargs)
        rank_zero_info(named_files(self.trainer))

    def validate(self, ckpt_path: str | None = None, **kwargs: Any) -> None:
        """Measure validation accuracy."""
        ignore(*WARNINGS_OF_EVALUATION)
        (path,) = self._readable(ckpt_path)
        with nothing_left(self.trainer, self.run), naming(path):
            self.trainer.validate(ckpt_path=path, **kwargs)

    def test(self, ckpt_path: str | None = None, **kwargs: Any) -> None:
        """Attack one checkpoint, or the last and the best of a run if a folder is given."""
        ignore(*WARNINGS_OF_EVALUATION)
        warnings.filterwarnings("always", module="(py)?autoattack")  # repeated for each checkpoint
        paths = self._readable(ckpt_path, every=True)
        for logger in self.trainer.loggers:
            if isinstance(logger, FILE_LOGGERS):  # printed now, so that the table comes last
                rank_zero_info(f"The table will be kept in {Path(logger.log_dir, 'test.csv')}.")
        for path in paths:
            with nothing_left(self.trainer, self.run), naming(path):
                self.trainer.test(ckpt_path=path, **kwargs)

    def after_test(self) -> None:
        """Save the printed table as ``test.csv`` beside the metrics, and in Weights & Biases."""
        keep_table(self.trainer, self.model.test_results)
        rank_zero_info(named_files(self.trainer))

    def predict(self, ckpt_path: str | None = None, **kwargs: Any) -> None:
        """Write each image's prediction, with a ``PredictionWriter`` unless the callbacks have another writer."""
        ignore(*WARNINGS_OF_EVALUATION)
        writers: list[Any] = self.trainer.callbacks  # type: ignore[attr-defined]  # set by one of its connectors
        if not any(isinstance(callback, lightning_callbacks.BasePredictionWriter) for callback in writers):
            writers.append(callbacks.PredictionWriter())
        (path,) = self._readable(ckpt_path)
        with nothing_left(self.trainer, self.run), naming(path):
            self.trainer.predict(ckpt_path=path, **kwargs)

    def _readable(self, ckpt_path: str | None, every: bool = False) -> list[str | None]:
        """The checkpoints to evaluate, of a folder the last one or all; None stands for the net as built.

        Each is read here once, so that a broken one is refused before anything costly is done.
        """
        if not ckpt_path:
            if self.model.weights_from is None:
                rank_zero_info("No --ckpt_path: the net keeps the weights it was built with.")
            return [None]
        found = find_checkpoints(ckpt_path, self.trainer)
        whole = whole_ones(found) if every and len(found) > 1 else [read_last(found)[0]]
        self.run = evaluate_in(run_of(whole[0]) or whole[0].parent.parent, self.trainer, str(self.subcommand))
        return [str(path) for path in whole]


def run(args: list[str]) -> None:
    """Run a command that exists."""
    atexit.register(leave_group)
    try:
        with quiet(), importable_folder():
            if args and args[0] in verbs.VERBS:
                return verbs.run(args)
            RobustCLI(
                Defense,
                ImageDataModule,
                subclass_mode_model=True,
                subclass_mode_data=True,
                save_config_callback=SaveConfig,
                save_config_kwargs={"overwrite": True},
                trainer_defaults={
                    "logger": {"class_path": "CSVLogger", "init_args": {"save_dir": "runs", "name": "run"}},
                    "callbacks": [callbacks.TimeLeft()],
                },
                seed_everything_default=0,
                parser_kwargs={"version": __version__, "description": verbs.DESCRIPTION},
                parser_class=Parser,
                auto_configure_optimizers=False,
                args=args,
            )
    except (KeyboardInterrupt, SystemExit) as stop:
        if isinstance(stop, KeyboardInterrupt) or isinstance(stop.__context__, KeyboardInterrupt):
            sys.exit(130)  # Lightning exits with 1
        raise
    except Exception as error:
        if not isinstance(error, (*USER_ERRORS, *_errors_of_wandb())):
            raise
        report(error, 1, sentence(str(error), NAMES))


def _errors_of_wandb() -> tuple[type[Exception], ...]:
    """What W&B raises, such as without a login; nothing if it is not in use."""
    error: type[Exception] | None = getattr(sys.modules.get("wandb"), "Error", None)
    return (error,) if error else ()
