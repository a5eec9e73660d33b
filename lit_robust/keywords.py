"""Refuses unknown keyword arguments and suggests the right one; Python names only the last class called."""

from collections.abc import Collection, Iterable
from difflib import get_close_matches
from functools import wraps
from inspect import Parameter, isclass, signature
from typing import Any


def check_keywords(name: str, given: Iterable[str], taken: Collection[str]) -> None:
    """Refuse keyword arguments that are not taken.

    Args:
        name: What is built or called.
        given: The names of the arguments.
        taken: The names of those that it takes.

    Raises:
        TypeError: At the first one, with what was probably meant.
    """
    for one in sorted(set(given) - {*taken}):
        near = get_close_matches(one, sorted(taken), 1)
        raise TypeError(f"{name} has no argument {one!r}: " + (f"did you mean {near[0]}?" if near else "remove it."))


def keywords_of(part: Any) -> set[str]:
    """The names of all arguments of a class or function, including those that ``**kwargs`` passes to base classes."""
    makers: list[Any] = [vars(parent).get("__init__") for parent in part.__mro__] if isclass(part) else [part]
    names = (signature(maker).parameters for maker in makers if callable(maker))
    return {name for parameters in names for name in parameters} - {"self", "args", "kwargs"}


def answer_keywords(parts: Iterable[Any]) -> None:
    """Let our classes among these, and their bases, refuse other keyword arguments by ``check_keywords``."""
    for cls in (parent for part in parts if isclass(part) for parent in part.__mro__):
        init = vars(cls).get("__init__")
        if init is not None and cls.__module__.startswith("lit_robust.") and not hasattr(init, "__wrapped__"):
            setattr(cls, "__init__", _answering(init))  # noqa: B010  # mypy refuses the assignment


def _answering(init: Any) -> Any:
    parameters = signature(init).parameters
    hands_on = any(one.kind is Parameter.VAR_KEYWORD for one in parameters.values())

    @wraps(init)
    def answering(self: Any, *args: Any, **kwargs: Any) -> None:
        if not kwargs.keys() <= parameters.keys():
            all_of_class = keywords_of(type(self))
            others = kwargs.keys() - (all_of_class if hands_on else parameters.keys())
            check_keywords(type(self).__name__, others, all_of_class - others)
        init(self, *args, **kwargs)

    return answering
