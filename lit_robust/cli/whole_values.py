"""Dictionaries and lists given by a flag replace earlier values completely, as in files."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lit_robust.cli.jsonargparse_internals import is_container, is_nested, values_adapted_by


@contextmanager
def entries_start_afresh() -> Iterator[None]:
    """Make the parser build each entry of a dictionary, or of a list, from what is given alone.

    jsonargparse (4.53) replaces the dictionary, but an entry takes the arguments that it leaves out from an earlier
    entry of the same name and class: ``--model.test_attacks '{pgd20: PGD}'`` would keep the file's step size. In a list
    it takes them from the earlier entry at the same place, if there are equally many. It does so in one function, which
    also parses ``--model.test_attacks.pgd20.eps``, a ``NestedArg``, for which the other arguments must stay.
    """

    def whole(accepted: Any) -> Any:
        def adapt(val: Any, typehint: Any, *args: Any, **kwargs: Any) -> Any:
            earlier = kwargs.get("prev_val")
            if is_nested(val) and isinstance(earlier, dict) and is_container(typehint, of_names=True):
                _check_entry(val.key, earlier)
            replaces = isinstance(earlier, dict | list) and not is_nested(val) and not kwargs.get("append")
            if replaces and is_container(typehint, of_names=isinstance(earlier, dict)):
                kwargs["prev_val"] = None
            return accepted(val, typehint, *args, **kwargs)

        return adapt

    with values_adapted_by(whole):
        yield


def _check_entry(path: str, entries: dict[str, Any]) -> None:
    """Refuse an argument of an entry that is not there.

    Raises:
        ValueError: With the entries that are.
    """
    name, _, argument = path.partition(".")
    if argument not in ("", "class_path") and name not in entries:
        raise ValueError(
            f'there is no entry "{name}" whose {argument} could be set: the entries are {", ".join(entries) or "none"}.'
        )
