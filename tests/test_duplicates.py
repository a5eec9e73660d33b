"""Nothing is written twice: no six consecutive lines of package, scripts and tests are those of another place."""

import ast
from collections import defaultdict
from pathlib import Path

TREE = Path(__file__).parents[1]
LENGTH = 6


def lines_left_out(tree: ast.AST) -> set[int]:
    """The lines of imports and of the signatures of functions, which are equal for good reasons."""
    found: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            found |= {*range(node.lineno, (node.end_lineno or node.lineno) + 1)}
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            found |= {*range(node.lineno, node.body[0].lineno)}
    return found


def lines_of(source: str) -> list[tuple[int, str]]:
    """Number and content of the lines that count: no blank ones, comments, imports and signatures."""
    left_out = lines_left_out(ast.parse(source))
    lines = ((number, line.strip()) for number, line in enumerate(source.splitlines(), 1))
    return [(number, line) for number, line in lines if line and line[0] != "#" and number not in left_out]


def duplicates(sources: dict[str, str], length: int = LENGTH) -> list[list[str]]:
    """The places of equal runs of lines."""
    places = defaultdict(list)
    for name, source in sources.items():
        lines = lines_of(source)
        for start in range(len(lines) - length + 1):
            run = lines[start : start + length]
            places[tuple(line for _, line in run)].append(f"{name}:{run[0][0]}")
    return [found for found in places.values() if len(found) > 1]


def test_no_six_lines_are_written_twice():
    files = [file for folder in ("lit_robust", "scripts", "tests") for file in (TREE / folder).rglob("*.py")]
    assert duplicates({str(file.relative_to(TREE)): file.read_text() for file in files}) == []


BODY = "".join(f"    line_{number}()\n" for number in range(LENGTH))


def test_the_walk_sees_equal_lines_whatever_stands_between_them():
    other = BODY.replace("line_3()\n", "line_3()\n\n    # a remark\n")
    assert duplicates({"a": f"def f():\n{BODY}", "b": f"import re\ndef g(x):\n{other}"}) == [["a:2", "b:3"]]
    assert duplicates({"a": f"def f():\n{BODY}", "b": f"def g(x):\n{other.replace('line_0', 'another')}"}) == []


def test_the_walk_leaves_imports_and_signatures_out():
    names = "".join(f"    name_{number},\n" for number in range(LENGTH))
    both = f"from a import (\n{names})\ndef f(\n{names}):\n    pass\n"
    assert duplicates({"a": both, "b": both}) == []
