"""The package that runs AutoAttack's attacks: which one is installed, and what is kept from it or put in our words."""

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType

import torch
from torch import Tensor

from lit_robust.attacks.base import NoGraphError

#: What the package's checks may find, by words of its messages, and how we say it.
FINDINGS = {
    "randomized defense": 'the net draws random numbers, which misleads AutoAttack: choose version="rand".',
    "probability distribution": "the net returns probabilities, whose gradients vanish: let it return logits.",
    "zero gradient": (
        "the gradient is exactly 0 at some images, where APGD cannot move: look for rounding or saturation in the net "
        "(BPDA), and trust Square's share of the result."
    ),
    "Square Attack has decreased": (
        "Square broke images that all gradient attacks left, so the net masks its gradients: see the alarms of test."
    ),
    "dynamic defense": "the net optimises while it predicts, which AutoAttack does not take into account.",
    "dynamic defenses is not": "whether the net optimises while it predicts could not be checked.",
}


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
def in_our_words() -> Iterator[None]:
    """Warn of what the package finds in the words of ``FINDINGS``, once; and of a net without a graph by our error."""
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield
    except RuntimeError as error:
        if "does not require grad" in str(error):
            raise NoGraphError from None
        raise
    for message, category in dict.fromkeys((str(warning.message), warning.category) for warning in caught):
        ours = next((f"AutoAttack: {said}" for theirs, said in FINDINGS.items() if theirs in message), None)
        warnings.warn(ours or message, UserWarning if ours else category, stacklevel=4)


@contextmanager
def own_random_states() -> Iterator[None]:
    """Restore the caller's random states after the package has seeded torch."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    with torch.random.fork_rng(devices=devices):
        yield
