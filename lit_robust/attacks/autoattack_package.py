"""The package that runs AutoAttack's attacks: which one is installed, and what is kept from it."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType

import torch
from torch import Tensor


class Package:
    """The modules of the installed package; both packages have the same ones."""

    name: str  #: The installed one.
    apgd: ModuleType
    fab: ModuleType
    square: ModuleType
    checks: ModuleType

    def __init__(self) -> None:
        for name in ("pyautoattack", "autoattack"):
            try:
                self.apgd = import_module(f"{name}.autopgd_base")
                self.fab = import_module(f"{name}.fab_pt")
                self.square = import_module(f"{name}.square")
                self.checks = import_module(f"{name}.checks")
                self.name = name
                return
            except ModuleNotFoundError as error:
                missing = error
        raise ImportError('AutoAttack is not installed: pip install "lit-robust[autoattack]"') from missing

    @property
    def version(self) -> str:
        """Its name and version."""
        try:
            return f"{self.name} {version(self.name)}"
        except PackageNotFoundError:  # a copy of the authors' code
            return self.name

    def check_dynamic(self, predict: Callable[[Tensor], Tensor], x: Tensor) -> None:
        """Warn if the net optimises while it predicts.

        The package counts calls of autograd with a trace function. Its counters are reset here, because otherwise one
        such net makes it warn about all later ones; the trace function of a debugger or a coverage tool, which it
        removes, is restored.
        """
        self.checks.funcs.update(dict.fromkeys(self.checks.funcs, 0))
        trace = sys.gettrace()
        try:
            self.checks.check_dynamic(predict, x)
        finally:
            sys.settrace(trace)


@contextmanager
def own_random_states() -> Iterator[None]:
    """Restore the caller's random states after the package has seeded torch."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    with torch.random.fork_rng(devices=devices):
        yield


@contextmanager
def default_type(dtype: torch.dtype) -> Iterator[None]:
    """Make new tensors of this type, as the package does without naming one."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
