"""Records how a net was built, so that a checkpoint can rebuild it."""

import functools
import inspect
from collections.abc import Callable
from typing import ParamSpec

from lit_robust import require
from lit_robust.nets.net import Net

P = ParamSpec("P")


def recorded(build: Callable[P, Net]) -> Callable[P, Net]:
    """Give the nets of a builder a ``recipe``: its public name and all its arguments, as plain values.

    ``jsonargparse`` reads a recipe like any ``class_path`` with ``init_args``. Defaults are included, so a recipe still
    builds the same net after they have changed.

    Raises:
        ValueError: By the decorated builder, if an integer argument, which is always a size, is below 1.
    """
    signature = inspect.signature(build)

    @functools.wraps(build)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> Net:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{build.__name__}: {error}") from error
        bound.apply_defaults()
        for name, value in bound.arguments.items():
            if isinstance(value, int):
                require.integer(f"{build.__name__}'s {name}", value, least=1)
        net = build(*args, **kwargs)
        net.recipe = {
            "class_path": f"lit_robust.nets.{build.__name__}",
            "init_args": {
                name: list(value) if isinstance(value, tuple) else value for name, value in bound.arguments.items()
            },
        }
        return net

    return wrapper
