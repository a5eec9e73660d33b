"""``"8/255"`` as a number, in YAML, on the command line and in Python."""

import math
import sys
from importlib import import_module
from typing import TYPE_CHECKING

from lit_robust.shown import without_addresses


def magnitude(value: float | str, name: str = "magnitude") -> float:
    """Read a pixel magnitude that is a number or a fraction such as ``"8/255"``.

    Args:
        value: A number, or the text of a number or of a fraction of two numbers.
        name: The argument's name, for the error.

    Returns:
        A finite float that is not negative.

    Raises:
        ValueError: If the text is neither, divides by zero, or the number is negative or not finite.
    """
    try:
        numerator, slash, denominator = str(value).partition("/")
        number = float(numerator) / (float(denominator) if slash else 1)
    except (ValueError, ZeroDivisionError):
        number = math.nan
    if not math.isfinite(number) or number < 0:
        given = without_addresses(str(value))
        raise ValueError(f"{name}={given} is not a magnitude: write a number >= 0 or a fraction such as 8/255.")
    return number


if TYPE_CHECKING:
    # For type checkers. It is here and not beside the classes that use it, because jsonargparse
    # executes the TYPE_CHECKING blocks of a class's own module.
    Magnitude = float
else:

    class Magnitude(float):
        """A float that may be written ``8/255`` and prints as it was written."""

        def __new__(cls, value: "float | str") -> "Magnitude":
            """Read the number and keep its text."""
            self = super().__new__(cls, magnitude(value))
            #: What was written, None if it was given as a number.
            self.written = value if isinstance(value, str) else getattr(value, "written", None)
            return self

        def __getnewargs__(self) -> tuple[str]:
            return (str(self),)

        def __str__(self) -> str:
            return float.__repr__(self) if self.written is None else self.written

        __repr__ = __str__


def read_by_jsonargparse() -> None:
    """Let every command line of jsonargparse read ``8/255``, also a user's own ``LightningCLI``."""
    register_type = import_module("jsonargparse.typing").register_type
    register_type(Magnitude, serializer=str, deserializer=Magnitude, fail_already_registered=False)


# Not imported for this: attacks alone need no command line. Rooms that import Lightning's call the function.
if "jsonargparse" in sys.modules:
    read_by_jsonargparse()
