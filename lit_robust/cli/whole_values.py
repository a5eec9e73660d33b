"""Dictionaries and lists given by a flag replace earlier values completely, as in files."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from jsonargparse import _typehints


@contextmanager
def entries_start_afresh() -> Iterator[None]:
    """Make the parser build each entry of a dictionary, or of a list, from what is given alone.

    jsonargparse (4.53) replaces the dictionary, but an entry takes the arguments that it leaves out from an earlier
    entry of the same name and class: ``--model.test_attacks '{pgd20: PGD}'`` would keep the file's step size. In a list
    it takes them from the earlier entry at the same place, if there are equally many. It does so in one function, which
    also parses ``--model.test_attacks.pgd20.eps``, a ``NestedArg``, for which the other arguments must stay.
    """
    parser: Any = _typehints  # its names are not exported
    accepted = parser.adapt_typehints

    def adapt(val: Any, typehint: Any, *args: Any, **kwargs: Any) -> Any:
        kind: Any = parser.get_typehint_origin(typehint) or typehint
        earlier = kwargs.get("prev_val")
        if isinstance(earlier, dict | list) and not isinstance(val, parser.NestedArg) and not kwargs.get("append"):
            kinds = parser.mapping_origin_types if isinstance(earlier, dict) else parser.sequence_origin_types
            if kind in kinds:
                kwargs["prev_val"] = None
        return accepted(val, typehint, *args, **kwargs)

    parser.adapt_typehints = adapt
    try:
        yield
    finally:
        parser.adapt_typehints = accepted
