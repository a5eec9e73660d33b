"""The command line, ``lit-robust``."""

from lit_robust.cli.main import main

__all__ = ["main"]
