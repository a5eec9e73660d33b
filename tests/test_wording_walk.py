"""Sentences of the package stand in the tables of wording alone: another test names the exception and the argument."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PACKAGE = TESTS.parent / "lit_robust"

#: A test that shares as many consecutive words with a text of the package repeats its wording.
RUN = 5

#: The tables, and what is no sentence of ours: the texts of other packages.
TABLES = {*TESTS.glob("test_wording*.py"), TESTS / "test_bad_inputs.py"}
FOREIGN = {PACKAGE / "cli/quiet.py", PACKAGE / "lightning_internals.py"}


def strings(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """The line and the text of each string, or part of an f-string, that is no docstring."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value
        elif not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
            yield from strings(node)


def runs(text: str) -> list[str]:
    """Each ``RUN`` consecutive words of a text or pattern; what stands for anything separates words."""
    parts = (part.split() for part in re.split(r"\.?[*+]|\.\.\.|\{[^}]*\}", text.replace("\\", "").lower()))
    words = [[word for one in part if (word := one.strip("^$.,:;()?'\"`[]={}<>|/-"))] for part in parts]
    return [" ".join(part[i : i + RUN]) for part in words for i in range(len(part) - RUN + 1)]


def says(file: Path) -> Iterator[tuple[int, str]]:
    """The texts of a file; of an analysis only what it raises or prints, as others stand in its figures and tables."""
    tree = ast.parse(file.read_text())
    if file.parent.name != "analysis":
        return strings(tree)
    spoken = (one for one in ast.walk(tree) if isinstance(one, ast.Raise) or ast.unparse(one).startswith("print("))
    return (text for one in spoken for text in strings(one))


@cache
def said() -> set[str]:
    files = sorted({*PACKAGE.rglob("*.py")} - FOREIGN)
    return {run for file in files for _, text in says(file) for run in runs(text)}


def repeated(source: str, name: str = "") -> list[str]:
    """The lines that repeat words of the package, and which; filters may need what a warning begins with."""
    found = ((line, set(runs(text)) & said()) for line, text in strings(ast.parse(source)) if text[:7] != "ignore:")
    return [f"{name}:{line}: {min(shared)}" for line, shared in found if shared]


@pytest.mark.parametrize("file", sorted({*TESTS.glob("*.py")} - TABLES), ids=lambda file: file.name)
def test_the_wording_is_left_to_the_tables(file):
    assert repeated(file.read_text(), file.name) == []


@pytest.mark.parametrize(
    ("test", "seen"),
    [
        ('raises(E, match=rf"^{name}=.* is a word in YAML: leave it out")', True),
        ('assert says == f"{name}=None is a word in " "YAML: write null"', True),
        ('TABLE = {"a": ("--b", "Is a word in\\nYAML: ...")}', True),
        ('assert error.startswith("is a word in YAML")', True),
        ('raises(E, match=rf"^{name}=.* is a word .* YAML: leave it out")', False),
        ('def test():\n    """None is a word in YAML."""  # None is a word in YAML.', False),
    ],
)
def test_the_walk_sees_sentences_of_any_form(test, seen):
    assert bool(repeated(test)) == seen
