"""The command ``lit-robust``; ``--version`` and a misspelt command are answered without importing torch."""

import os
import sys
from collections.abc import Sequence
from difflib import get_close_matches

from lit_robust import __version__
from lit_robust.cli.exits import report

#: Lightning's commands and the analyses.
COMMANDS = (
    *("fit", "validate", "test", "predict"),
    *("compare", "curves", "diversity", "eigenvalue", "report", "stale", "surface", "sweep", "targets", "transfer"),
)


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line.

    Args:
        args: The arguments, those of the process by default.
    """
    own_process = args is None
    args = list(sys.argv[1:] if args is None else args)
    if args[:1] == ["--version"]:
        print(f"lit-robust {__version__}")
        sys.exit(0)
    check_command(args)
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    import torch

    from lit_robust.cli.robust_cli import run
    from lit_robust.host_memory import keep_freed_memory

    if own_process:
        keep_freed_memory()
        # Weight decay drives the weights of dead channels to denormal numbers, which take a CPU up to eight times as
        # long as others. Before the first computation, as threads inherit it when they start. Not in tests, where a
        # saturated loss has denormal gradients.
        torch.set_flush_denormal(args[:1] == ["fit"])
    run(args)


def check_command(args: Sequence[str]) -> None:
    """Exit with 2 if the first word is no command, with the commands or the one that was probably meant."""
    if args and not args[0].startswith("-") and args[0] not in COMMANDS:
        near = get_close_matches(args[0], COMMANDS, 1)
        hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(COMMANDS)}."
        report(ValueError(f'there is no command "{args[0]}": {hint}'), code=2)
