"""Efficient adversarial training as a PyTorch Lightning collection."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lit_robust.runs import load_net, load_weights

__version__ = "0.1.0"
__all__ = ["load_net", "load_weights"]


def __getattr__(name: str) -> Any:
    """Import what loads checkpoints when it is asked for, because it imports torch."""
    if name in __all__:
        from lit_robust import runs

        return getattr(runs, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
