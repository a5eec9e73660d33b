"""What the command line uses of Lightning that is not public API, and what the order of a user's loader needs.

It is the second part of ``lightning_internals``.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from traceback import walk_tb
from typing import Any, ClassVar

from lit_robust.lightning_internals import changed, inside


@inside
def built_by_the_command_line() -> bool:
    """Whether a module is being built from a configuration, which ``save_hyperparameters`` then saves.

    Else a module built in Python would save live objects, which a checkpoint that is safe to load cannot hold.
    """
    from lightning.pytorch.core.mixins.hparams_mixin import _given_hyperparameters

    return _given_hyperparameters.get() is not None


@inside
def go_on_in_folder(logger: Any, name: str, purge_step: int | None = None, root: Path | None = None) -> None:
    """Make a file logger write into the folder of an earlier run. Without it, a resumed run would start a new one.

    Numeric versions stay numbers. TensorBoard drops what it has from ``purge_step`` on. ``root`` holds the folder.
    """
    _ = logger._version  # must be there
    logger._version = int(number[1]) if (number := re.fullmatch(r"version_(0|[1-9]\d*)", name)) else name
    if root is not None:
        logger._save_dir, logger._root_dir, logger._name = str(root.parent), str(root.parent), root.name
    if purge_step is not None:
        logger._kwargs["purge_step"] = logger._kwargs.get("purge_step") or purge_step


@inside
def begin_metrics_file(logger: Any, name: str) -> None:
    """Start a CSVLogger's table under another name.

    Without it, the logger's writer deletes the training's table, which has the usual name.
    """
    from lightning.pytorch.loggers.csv_logs import ExperimentWriter

    usual = ExperimentWriter.NAME_METRICS_FILE
    try:
        ExperimentWriter.NAME_METRICS_FILE = name
        _ = logger.experiment
    finally:
        ExperimentWriter.NAME_METRICS_FILE = usual


@inside
def fails_while_restoring(error: BaseException) -> bool:
    """Whether an error was raised while a checkpoint was restored. Without it, the message could not name the file."""
    from lightning.pytorch.trainer.connectors import checkpoint_connector

    return any(frame.f_code.co_filename == checkpoint_connector.__file__ for frame, _ in walk_tb(error.__traceback__))


@inside
def make_iterator_anew(trainer: Any) -> None:
    """Make the training's iterator again if it is a resumed training's first, which Lightning makes before its epoch.

    Lightning makes those of later epochs within them. Without it, a user's shuffling loader, or the workers of one with
    a ``DistributedSampler``, would begin a resumed epoch in another order than in an uninterrupted training. Loaders
    that restore a state have done so in the first iterator and keep it.
    """
    loop = trainer.fit_loop
    is_first = loop.is_resuming or loop.epoch_loop.restarting
    loaders = loop._combined_loader.flattened
    if trainer.current_epoch > 0 and is_first and not any(hasattr(one, "load_state_dict") for one in loaders):
        iter(loop._data_fetcher)


class CommandLineInternals:
    """Overrides private methods of ``LightningCLI``: arguments beat a checkpoint's, subcommands have our defaults."""

    #: Defaults of the trainer's methods, by subcommand.
    subcommand_defaults: ClassVar[Mapping[str, dict[str, Any]]] = {}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        for name in ("_parse_ckpt_path", "_prepare_subcommand_parser", "_parser"):
            if not hasattr(super(), name):
                raise changed(f"LightningCLI.{name}")
        super().__init__(*args, **kwargs)

    def parser_in_use(self) -> Any:
        """The parser of the subcommand, or of a script; without it, a net would not learn the number of classes."""
        return self._parser(self.subcommand)  # type: ignore[attr-defined]  # LightningCLI's

    def config_in_use(self) -> Any:
        """The configuration of the subcommand, or of a script, which runs none."""
        config = self.config  # type: ignore[attr-defined]  # LightningCLI's
        return config[config.subcommand] if "subcommand" in config else config

    def _parse_ckpt_path(self) -> None:
        """Do nothing, so that a checkpoint's arguments do not override the user's."""

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> Any:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)  # type: ignore[misc]  # LightningCLI's
        parser.set_defaults(self.subcommand_defaults.get(subcommand, {}))
        return parser
