"""Progress bars for work outside the trainer's loops."""

import sys
from typing import Any

from tqdm import tqdm  # Lightning depends on it


def progress_bar(name: str, **arguments: Any) -> Any:
    """A bar of tqdm that disappears when it is complete; ``arguments`` are tqdm's."""
    # Rich, which draws Lightning's bar, would print each update of this bar as a new line.
    terminal = getattr(sys.stderr, "rich_proxied_file", sys.stderr)
    return tqdm(desc=name, file=terminal, leave=False, **arguments)
