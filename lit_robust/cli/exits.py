"""The end of a command that failed."""

import os
import sys
from typing import NoReturn


def report(error: Exception, code: int, sentence: str | None = None) -> NoReturn:
    """Print an error that the user can fix in one sentence and exit, or raise it where ``LIT_ROBUST_DEBUG`` is set."""
    if os.environ.get("LIT_ROBUST_DEBUG"):
        raise error
    exit_with(sentence or str(error), "LIT_ROBUST_DEBUG=1 shows where this was raised", code)


def exit_with(message: str, hint: str, code: int) -> NoReturn:
    """Print an error and where to find help, and exit."""
    sys.stderr.write(f"lit-robust: error: {message}\n({hint})\n")
    sys.exit(code)
