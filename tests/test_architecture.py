"""The rooms of the package, and who may know whom."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "lit_robust"
PURE = {"magnitudes", "threats", "losses", "schedules", "batch", "seeds"}

#: What each room may import besides itself.
MAY_KNOW = {
    "magnitudes": set(),
    "threats": set(),
    "losses": set(),
    "schedules": {"magnitudes"},
    "batch": set(),
    "seeds": set(),
    "attacks": PURE,
    "nets": PURE,
    "selection": PURE,
    "data": {"batch", "seeds"},
    "defenses": PURE | {"attacks", "nets", "selection"},
    "callbacks": PURE | {"attacks", "selection"},
    "analysis": PURE | {"attacks", "nets"},
    "checkpoints": {"nets"},
    "sentences": set(),
    "noise": set(),
    "__init__": {"checkpoints"},
    "__main__": {"cli"},
}


def room_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def rooms_imported_by(file: Path) -> set[str]:
    modules = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} imports relatively"
            modules += [f"{node.module}.{alias.name}" for alias in node.names]
    return {module.split(".")[1] for module in modules if module.startswith("lit_robust.")}


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_arrows_between_rooms_go_one_way(file):
    room = room_of(file)
    if room != "cli":  # the only place that knows everything
        assert rooms_imported_by(file) <= MAY_KNOW[room] | {room}


def test_the_walk_sees_imports_of_both_forms(tmp_path):
    file = tmp_path / "module.py"
    file.write_text("import lit_robust.cli\ndef f():\n    from lit_robust import defenses\n")
    assert rooms_imported_by(file) == {"cli", "defenses"}
