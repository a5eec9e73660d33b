"""Records how a net was built, so that a checkpoint can rebuild it."""

import functools
import inspect
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from lit_robust import require
from lit_robust.keywords import check_keywords
from lit_robust.nets.net import NormalizedNet

P = ParamSpec("P")
N = TypeVar("N", bound=NormalizedNet)

#: The arguments that most builders share.
ARGUMENTS = {
    "num_classes": "The number of logits.",
    "in_channels": "The images' channels.",
    "image_size": "The images' height and width.",
    "width": "The channels of the first stage; those of later ones grow with them.",
    "stem_stride": "By what factor the first convolution shrinks height and width.",
    "mean": "See ``Net``.",
    "std": "See ``Net``.",
}


def recorded(build: Callable[P, N]) -> Callable[P, N]:
    """Give the nets of a builder an attribute ``built_by``: its public name and all its arguments, as plain values.

    ``jsonargparse`` reads it like any ``class_path`` with ``init_args``. Defaults are included, so it still
    builds the same net after they have changed. ``pretrained`` is recorded as False: a checkpoint brings its weights. A
    docstring without an Args section gets one, from ``ARGUMENTS``.

    Raises:
        TypeError: By the decorated builder, if it does not take the arguments.
        ValueError: By the decorated builder, if an argument of type int, which is always a size, is not an integer,
            or below 1.
    """
    signature = inspect.signature(build)

    @functools.wraps(build)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> N:
        check_keywords(build.__name__, kwargs, signature.parameters)
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{build.__name__}: {error}") from error
        bound.apply_defaults()
        for name, value in bound.arguments.items():
            kind = signature.parameters[name].annotation
            if kind is int or (kind == int | None and value is not None):
                require.integer(f"{build.__name__}'s {name}", value, least=1)
        net = build(*args, **kwargs)
        net.built_by = {
            "class_path": f"lit_robust.nets.{build.__name__}",
            "init_args": {
                name: False if name == "pretrained" else list(value) if isinstance(value, tuple) else value
                for name, value in bound.arguments.items()
            },
        }
        return net

    doc = inspect.getdoc(build) or ""
    if "Args:" not in doc:
        wrapper.__doc__ = "\n".join(
            [doc, "", "Args:", *(f"    {name}: {ARGUMENTS[name]}" for name in signature.parameters)]
        )
    return wrapper
