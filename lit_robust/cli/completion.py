"""Completion of the command line by the shell's Tab key, as a script that a shell reads at its start.

The script is static, because a completion that asks Python would import torch at each Tab. It is made from signatures:
jsonargparse's own script lists all subclasses of all types, such as every module of torch for a net, and takes minutes.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from inspect import isabstract, isclass, signature
from types import ModuleType
from typing import Any, Literal, get_args, get_origin

import torch
from lightning.pytorch import Callback, Trainer, loggers
from lightning.pytorch import callbacks as lightning_callbacks

from lit_robust import attacks, callbacks, data, defenses, nets, schedules

#: tcsh cannot complete the options of subcommands.
SHELLS = ("bash", "zsh")

#: Where an option's classes are: it takes their names, and ``option.argument`` each of their arguments.
CLASSES: dict[str, tuple[ModuleType, ...]] = {
    "--data": (data,),
    "--model": (defenses,),
    "--model.attack": (attacks,),
    "--model.val_attack": (attacks,),
    "--model.net": (nets,),
    "--model.optimizer": (torch.optim,),
    "--model.lr_scheduler": (schedules, torch.optim.lr_scheduler),
    "--model.momentum": (schedules,),
    "--trainer.callbacks": (callbacks, lightning_callbacks),
    "--trainer.logger": (loggers,),
}
FILES = ("-c", "--config", "--ckpt_path", "--weights")
FOLDERS = ("--data.root", "--trainer.default_root_dir", "--trainer.logger.save_dir")


class PrintCompletion(argparse.Action):
    """``--print_completion bash`` prints the script and exits."""

    #: The subcommands and what each skips of its trainer's method, as ``LightningCLI.subcommands`` has them.
    commands: Mapping[str, set[str]] = {}

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        """Print and exit."""
        sys.stdout.write(script(values, self.commands) + "\n")
        sys.exit(0)


def script(shell: str, commands: Mapping[str, set[str]]) -> str:
    """The completion script of a shell.

    Args:
        shell: One of ``SHELLS``.
        commands: The subcommands, each with the arguments of the trainer's method that are not options.

    Raises:
        ModuleNotFoundError: Without shtab.
    """
    try:
        import shtab
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'Completion scripts are made by shtab: pip install "lit-robust[completion]".'
        ) from error
    parser = argparse.ArgumentParser("lit-robust")
    below = parser.add_subparsers()
    special = dict.fromkeys(FILES, shtab.FILE) | dict.fromkeys(FOLDERS, shtab.DIRECTORY)
    shared = dict(_options())
    for command, skipped in commands.items():
        of_method = [name for name in signature(getattr(Trainer, command)).parameters if name not in {"self", *skipped}]
        sub = below.add_parser(command, help=command)  # shtab leaves out what has no help
        for option, choices in ({f"--{name}": () for name in of_method} | shared).items():
            action = sub.add_argument(option, choices=choices or None)
            if option in special:
                action.complete = special[option]  # type: ignore[attr-defined]  # shtab's
    text: str = shtab.complete(parser, shell)
    return text


def _options() -> Iterator[tuple[str, Sequence[str]]]:
    """Options and the values that they take, where these are few."""
    for option in ("-c", "--config", "--weights", "--print_config", "--seed_everything"):
        yield option, ()
    for parameter in list(signature(Trainer.__init__).parameters.values())[1:]:
        yield f"--trainer.{parameter.name}", _choices(parameter.annotation)
    for option, rooms in CLASSES.items():
        makers = {name: getattr(room, name) for room in rooms for name in room.__all__}
        makers = {name: maker for name, maker in makers.items() if callable(maker) and _is_part(option, maker)}
        prefix = "lit_robust.nets." if option == "--model.net" else ""
        yield option, [f"{prefix}{name}" for name in makers]
        yield f"{option}.help", [f"{prefix}{name}" for name in makers]
        for maker in makers.values():
            for name, annotation in _arguments(maker):
                yield f"{option}.{name}", _choices(annotation)


def _is_part(option: str, maker: Any) -> bool:
    """Whether this is what the option takes, and no base class or function beside it."""
    if option == "--model.net":
        return not isclass(maker)
    kinds = {"--trainer.callbacks": Callback, "--model": defenses.Defense, "--data": data.ImageDataModule}
    return isclass(maker) and not isabstract(maker) and issubclass(maker, kinds.get(option, object))


def _arguments(maker: Any) -> Iterator[tuple[str, Any]]:
    """Names and types, also of what a constructor passes on to those of its base classes."""
    for function in [vars(cls).get("__init__") for cls in maker.__mro__[:-1]] if isclass(maker) else [maker]:
        for parameter in signature(function).parameters.values() if function else ():
            if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD) and parameter.name != "self":
                yield parameter.name, parameter.annotation


def _choices(annotation: Any) -> Sequence[str]:
    if annotation is bool:
        return ("true", "false")
    return [str(value) for value in get_args(annotation)] if get_origin(annotation) is Literal else ()
