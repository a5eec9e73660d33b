"""The command line's part of ``lightning_internals``, with the same rules."""

from collections.abc import Mapping
from typing import Any, ClassVar

from lit_robust.lightning_internals import _changed, _inside


@_inside
def built_by_the_command_line() -> bool:
    """Whether a module is being built from a configuration, which ``save_hyperparameters`` then saves.

    Without it, a module built in Python would save live objects, which a checkpoint that is safe to load cannot hold.
    """
    from lightning.pytorch.core.mixins.hparams_mixin import _given_hyperparameters

    return _given_hyperparameters.get() is not None


class CommandLineInternals:
    """Overrides private methods of ``LightningCLI``: arguments beat a checkpoint's, subcommands have our defaults."""

    #: Defaults of the trainer's methods, by subcommand.
    subcommand_defaults: ClassVar[Mapping[str, dict[str, Any]]] = {}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        for name in ("_parse_ckpt_path", "_prepare_subcommand_parser", "_parser"):
            if not hasattr(super(), name):
                raise _changed(f"LightningCLI.{name}")
        super().__init__(*args, **kwargs)

    def parser_in_use(self) -> Any:
        """The parser of the subcommand, or of a script; without it, a net would not learn the number of classes."""
        return self._parser(self.subcommand)  # type: ignore[attr-defined]  # LightningCLI's

    def _parse_ckpt_path(self) -> None:
        """Do nothing, so that a checkpoint's arguments do not override the user's."""

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> Any:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)  # type: ignore[misc]  # LightningCLI's
        parser.set_defaults(self.subcommand_defaults.get(subcommand, {}))
        return parser
