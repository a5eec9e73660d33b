"""A value as a message shows it."""

import re
from typing import Any

#: ``<module.Class object at 0x7f...>``, ``<function f at 0x7f...>`` and the like; the group is the name.
_OBJECT = re.compile(
    r"<(?:function |generator object |coroutine object )?(?:[\w.]|<\w+>)*?(\w+|<\w+>)(?: object)? at 0x[0-9a-fA-F]+>"
)
_METHOD = re.compile(r"<(?:bound method|built-in (?:function|method)) (\S+?)(?: of [^<>]*)?>")

#: The longest text of a value.
LONGEST = 100


def shown(value: Any) -> str:
    """The value's ``repr`` on one line, without addresses; only the class name if it is too long, such as a net's."""
    try:
        text = without_addresses(repr(value))
    except ValueError:  # Python writes no integer of more than 4300 digits
        return f"{type(value).__name__}(...)"
    if isinstance(value, str):
        return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
    return text if len(text) <= LONGEST and "\n" not in text else f"{type(value).__name__}(...)"


def without_addresses(text: str) -> str:
    """Replace ``<... Class object at 0x7f...>`` by ``Class``: an address says nothing to a reader."""
    return _METHOD.sub(r"\1", _OBJECT.sub(r"\1", text))
