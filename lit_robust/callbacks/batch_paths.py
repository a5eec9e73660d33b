"""Where a user's batch keeps something: an index, a key, the name of a field, or a path of them."""

from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any

from torch import Tensor

from lit_robust import require

#: An index, a key or the name of a field, or a path of them, joined by dots.
Key = int | str

#: What to give as a place.
REMEDY = 'give an index, a key or the name of a field, or a path of them such as "views.0"'


def check_key(name: str, key: Any) -> None:
    """Refuse what is not a place of a batch.

    Raises:
        TypeError: If it is neither an index nor a string.
        ValueError: If it is an empty string.
    """
    if isinstance(key, bool):
        raise TypeError(f"{name}={key} is not a place of a batch: {REMEDY}.")
    if not isinstance(require.instance(name, key, (int, str), REMEDY), int):
        require.text(name, key, REMEDY)


def path_of(batch: Any, key: Key) -> tuple[Key, ...]:
    """The steps to a place in a batch; a key that itself contains dots is one step."""
    whole = isinstance(key, int) or (isinstance(batch, Mapping) and key in batch)
    return (key,) if whole else tuple(str(key).split("."))


def part_of(owner: Any, step: Key) -> Any:
    """The element of ``owner`` that ``step`` selects."""
    if isinstance(owner, Mapping):
        return owner[step]
    if isinstance(owner, Sequence) and not (isinstance(step, str) and hasattr(owner, step)):
        return owner[int(step)]
    return getattr(owner, str(step))


def exchanged(owner: Any, path: Sequence[Key], value: Any) -> Any:
    """A shallow copy along the path, with another value at its end."""
    step, *rest = path
    if rest:
        value = exchanged(part_of(owner, step), rest, value)
    if isinstance(owner, tuple):
        fields: Sequence[str] = getattr(owner, "_fields", ())  # of a named tuple
        parts = [*owner]
        parts[fields.index(str(step)) if step in fields else int(step)] = value
        return type(owner)(*parts) if fields else tuple(parts)
    other = copy(owner)
    if isinstance(owner, Mapping):
        other[step] = value
    elif isinstance(owner, Sequence):
        other[int(step)] = value
    else:
        object.__setattr__(other, str(step), value)  # a dataclass may be frozen
    return other


def _described(batch: Any) -> str:
    kind = type(batch).__name__
    if isinstance(batch, Mapping):
        return f"a {kind} with the keys {', '.join(map(repr, batch))}"
    fields = getattr(batch, "_fields", None) or getattr(batch, "__dataclass_fields__", None)
    if fields:
        return f"a {kind} with the fields {', '.join(fields)}"
    if isinstance(batch, (tuple, list)):
        return f"a {kind} of {len(batch)}"
    return f"a {kind}"


def tensor_at(batch: Any, key: Key, name: str) -> Tensor:
    """The tensor at a place of a batch.

    Raises:
        ValueError: If there is none; ``name`` is the argument that says the place.
    """
    found = batch
    try:
        for step in path_of(batch, key):
            found = part_of(found, step)
    except (KeyError, IndexError, AttributeError, TypeError, ValueError):
        raise ValueError(f"{name}={key!r} finds nothing in {_described(batch)}: {REMEDY}.") from None
    if not isinstance(found, Tensor):
        raise ValueError(f"{name}={key!r} finds no tensor in {_described(batch)}, but {_described(found)}: {REMEDY}.")
    return found
