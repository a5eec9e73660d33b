"""A digest of each resolved recipe; ``python -m tests.recipe_digests`` rewrites the list."""

import hashlib
import json
from pathlib import Path
from typing import Any

from lit_robust.cli.classes import same_class
from lit_robust.cli.config import load, merged

CONFIGS = Path(__file__).parent.parent / "configs"
#: Files that begin with an underscore are what recipes share.
RECIPES = sorted(path for path in (CONFIGS / "recipes").rglob("*.yaml") if not path.name.startswith("_"))
LIST = Path(__file__).with_suffix(".txt")


def name_of(path: Path) -> str:
    """A file below configs/ without its suffix."""
    return str(path.relative_to(CONFIGS).with_suffix(""))


def _plain(tree: Any, key: str = "") -> Any:
    """Classes by their short names, if they have one."""
    if isinstance(tree, dict):
        return {name: _plain(value, name) for name, value in tree.items()}
    if isinstance(tree, list):
        return [_plain(value) for value in tree]
    short = str(tree).rpartition(".")[2]
    return short if key == "class_path" and same_class(short, tree) else tree


def digests() -> str:
    """A line per recipe: a digest of its merged files, without the defaults of this or other packages."""
    lines = []
    for path in RECIPES:
        text = json.dumps(_plain(merged(load(str(path)))), sort_keys=True)
        lines.append(f"{name_of(path)} {hashlib.sha256(text.encode()).hexdigest()[:12]}\n")
    return "".join(lines)


if __name__ == "__main__":
    LIST.write_text(digests())
