"""The rooms of the package, and which may import which."""

import ast
import importlib
import re
from pathlib import Path

import pytest
from lightning.pytorch import Callback, LightningModule, callbacks

from lit_robust.attacks import Attack
from lit_robust.defenses import Defense

PACKAGE = Path(__file__).parent.parent / "lit_robust"
GROUND = {
    "threats", "losses", "magnitudes", "keywords", "shown", "batch", "seeds", "require", "guards", "terminal",
    "logits", "lightning_internals", "lightning_cli_internals", "lightning_resume_internals", "torch_internals",
    "whole_files", "checkpoint_files", "folder_locks", "metrics_files", "weight_files",
    "checkpoint_sections", "checkpoint_states", "costs", "ranks", "limits", "compilation", "host_memory",
}  # fmt: skip
BELOW_ATTACKS = GROUND | {"schedules", "nets"}
BELOW_MEASURES = BELOW_ATTACKS | {"attacks", "data", "selection"}
BELOW_TRAINING = BELOW_MEASURES | {"measures", "first_batch"}

#: What each room may import besides itself; all arrows go from the ground upwards.
MAY_KNOW = {
    **dict.fromkeys(GROUND, GROUND),
    "schedules": GROUND,
    "nets": GROUND,
    "attacks": BELOW_ATTACKS,
    "data": BELOW_ATTACKS,
    "selection": BELOW_ATTACKS,
    "measures": BELOW_MEASURES,
    "first_batch": BELOW_MEASURES,
    "training": BELOW_TRAINING | {"runs"},
    "defenses": BELOW_TRAINING | {"training"},
    "runs": GROUND | {"nets"},
    "callbacks": BELOW_TRAINING | {"runs"},
    "analysis": BELOW_MEASURES | {"measures", "runs"},
    "__init__": {"runs"},
    "__main__": {"cli"},
}


def room_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def modules_imported_by(file: Path) -> list[str]:
    modules: list[str] = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} imports relatively"
            modules += [f"{node.module}.{alias.name}" for alias in node.names]
    return modules


def rooms_imported_by(file: Path) -> set[str]:
    return {module.split(".")[1] for module in modules_imported_by(file) if module.startswith("lit_robust.")}


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_arrows_between_rooms_go_one_way(file):
    room = room_of(file)
    if room != "cli":  # which may import everything
        assert rooms_imported_by(file) <= MAY_KNOW[room] | {room}


def rooms_named_by(source: str) -> set[str]:
    """The rooms in strings such as "lit_robust.defenses.NuAT", which are imports in disguise; not in docstrings."""
    strings = [
        node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant) and type(node.value) is str
    ]
    return {room for text in strings if "\n" not in text for room in re.findall(r"^lit_robust\.(\w+)(?:\.|$)", text)}


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_paths_in_strings_go_one_way_too(file):
    room = room_of(file)
    if room != "cli":
        assert rooms_named_by(file.read_text()) <= MAY_KNOW[room] | {room}


def test_the_walk_sees_paths_in_strings():
    assert rooms_named_by('"""lit_robust.cli.main\n"""\nPATHS = {f"lit_robust.defenses.{name}": 1}') == {"defenses"}
    assert rooms_named_by('PATHS = "lit_robust.callbacks", "lit_robust.cli.main.RobustCLI"') == {"callbacks", "cli"}


WITH_LIGHTNING = {"seeds", "lightning_internals", "lightning_cli_internals", "lightning_resume_internals"}
LIGHT = (GROUND - WITH_LIGHTNING) | {"attacks", "nets"}


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_an_attack_can_be_used_without_lightning(file):
    if room_of(file) in LIGHT:
        packages = {module.partition(".")[0] for module in modules_imported_by(file)}
        assert not packages & {"lightning", "torchmetrics", "jsonargparse"}


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_a_file_is_short_enough_to_be_read_at_once(file):
    assert len(file.read_text().splitlines()) < (141 if file == PACKAGE / "training/defense.py" else 260)


def test_nuat_and_its_hybrid_are_short_enough_together():
    files = [PACKAGE / "defenses" / name for name in ("nuat.py", "hybrid.py")]
    assert sum(len(file.read_text().splitlines()) for file in files) < 300


def test_the_walk_sees_imports_of_both_forms(tmp_path):
    file = tmp_path / "module.py"
    file.write_text("import lit_robust.cli\ndef f():\n    from lit_robust import defenses\n")
    assert rooms_imported_by(file) == {"cli", "defenses"}


# What is asked of a module and of a trainer's callbacks, whose classes the asking room may not know.

LIGHTNINGS_CALLBACKS = {
    *(name for kind in callbacks.__all__ for name in dir(getattr(callbacks, kind))),
    *vars(callbacks.ModelCheckpoint()),
    *vars(callbacks.EarlyStopping("")),
}
LIGHTNINGS = {*dir(LightningModule), *vars(LightningModule()), *LIGHTNINGS_CALLBACKS}


def is_the_module(owner: ast.expr) -> bool:
    """Whether this expression is the trained module."""
    name = ast.unparse(owner)
    return name in ("pl_module", "module") or name.endswith(".lightning_module")


def names_of_callbacks(tree: ast.AST) -> set[str]:
    """The variables that hold a callback: those of loops over the trainer's, or over a list that has them."""
    found, lists = {"callback"}, set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and ".callbacks" in ast.unparse(node.value):
            lists |= {ast.unparse(target) for target in node.targets}
    for node in ast.walk(tree):
        if isinstance(node, (ast.For, ast.comprehension)):
            among = ast.unparse(node.iter)
            if among in lists or among.endswith((".callbacks", "checkpoint_callbacks")):
                found.add(ast.unparse(node.target))
    return found


def members_of_protocols(tree: ast.AST) -> set[str]:
    members = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and any(ast.unparse(base) == "Protocol" for base in node.bases):
            for part in node.body:
                if isinstance(part, ast.AnnAssign):
                    members.add(ast.unparse(part.target))
                elif isinstance(part, ast.FunctionDef):
                    members.add(part.name)
    return members


def values_of(name: ast.expr, tree: ast.AST) -> set[str]:
    """The possible strings of an expression: a constant, or the values of a loop over a tuple."""
    if isinstance(name, ast.Constant):
        return {name.value}
    if isinstance(name, ast.IfExp):
        return values_of(name.body, tree) | values_of(name.orelse, tree)
    constants = {
        ast.unparse(target): node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        for target in node.targets
    }
    for node in ast.walk(tree):
        if isinstance(node, (ast.For, ast.comprehension)) and ast.unparse(node.target) == ast.unparse(name):
            among = constants.get(ast.unparse(node.iter), node.iter)
            if isinstance(among, ast.Tuple):
                return set().union(*(values_of(item, tree) for item in among.elts))
    return {ast.unparse(name)}  # which no module has


def reads_of_a_module(tree: ast.AST) -> set[str]:
    """Each attribute that is read from the module or from a callback, also by its name."""
    read, callbacks = set(), names_of_callbacks(tree)

    def is_watched(owner: ast.expr) -> bool:
        return is_the_module(owner) or ast.unparse(owner) in callbacks

    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            if is_watched(node.value):
                read.add(node.attr)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("getattr", "hasattr"):
            owner, name, *_ = node.args
            if is_watched(owner):
                read |= values_of(name, tree)
    return read


def asked_beyond_lightning(source: str) -> set[str]:
    tree = ast.parse(source)
    return reads_of_a_module(tree) - LIGHTNINGS - members_of_protocols(tree)


@pytest.mark.parametrize(
    "file",
    sorted(PACKAGE.rglob("*.py")),
    ids=lambda file: str(file.relative_to(PACKAGE)),
)
def test_modules_and_callbacks_are_asked_for_nothing_that_a_file_does_not_state(file):
    if room_of(file) != "cli":  # which may know everything
        assert asked_beyond_lightning(file.read_text()) == set()


@pytest.mark.parametrize(
    ("line", "asked"),
    [
        ("pl_module.rate", {"rate"}),
        ("x = module.rate.scheduler", {"rate"}),
        ("trainer.lightning_module.rate", {"rate"}),
        ("getattr(module, 'rate', None)", {"rate"}),
        ("hasattr(pl_module, 'rate')", {"rate"}),
        ("NAMES = ('rate', 'net')\nfor name in NAMES: hasattr(module, name)", {"rate", "net"}),
        ("all(hasattr(module, name) for name in ('rate', 'log'))", {"rate"}),
        ("getattr(module, 'a' if x else 'b')", {"a", "b"}),
        ("getattr(module, f'{split}_attacks')", {"f'{split}_attacks'"}),
        ("pl_module.log('a', 1)\nmodule.device", set()),
        ("class HasRate(Protocol):\n    rate: float\n    def net(self): ...\nmodule.rate\nmodule.net", set()),
        ("class HasRate:\n    rate: float\nmodule.rate", {"rate"}),
        ("{getattr(one, 'attribute', None) for one in trainer.callbacks}", {"attribute"}),
        ("for one in self.trainer.checkpoint_callbacks: one.dirpath, one.path", {"path"}),
        ("watchers = [*trainer.callbacks]\nfor one in watchers: getattr(one, 'monitor'), one.rule", {"rule"}),
        ("def logs(callback): return callback.silent", {"silent"}),
    ],
)
def test_the_walk_sees_what_is_read_from_a_module_or_a_callback(line, asked):
    assert asked_beyond_lightning(line) == asked


README = (PACKAGE.parent / "README.md").read_text()


def rows_of_the_map() -> list[set[str]]:
    table = README.partition("\n| room of `lit_robust/` | ")[2].partition("\n\n")[0]
    return [set(row.split("|")[1].strip(" `").split()) for row in table.splitlines()[2:]]


def test_the_readmes_map_names_every_room():
    assert set().union(*rows_of_the_map()) == {room_of(file) for file in PACKAGE.rglob("*.py")} - {
        "__init__",
        "__main__",
    }


def test_a_row_of_the_readmes_map_imports_itself_and_rows_above_it():
    ground, internals, *others = rows_of_the_map()
    known: set[str] = set()
    for rooms in (ground | internals, *others):
        known |= rooms
        for room in rooms - {"cli"}:  # which may import everything
            assert MAY_KNOW[room] - ({"runs"} if room == "training" else set()) <= known, room


def names_in_the_readme() -> list[tuple[str, str]]:
    """Room and name of each part that the README lists: in paragraphs that name their room, and in three tables."""
    found = []
    for room, text in re.findall(r"^\*\*\w+\*\* \(`(lit_robust\.\w+)`\)(.*?)\n\n", README, re.DOTALL | re.MULTILINE):
        found += [(room, name) for name in re.findall(r"`([A-Za-z]\w+)`", text)]
    for row in README.partition("\n| method | class |")[2].partition("\n\n")[0].splitlines()[2:]:
        room = "lit_robust.callbacks" if "callback" in row.split("|")[2] else "lit_robust.defenses"
        found += [(room, name) for name in re.findall(r"`([A-Z]\w+)`", row.split("|")[2])]
    for row in README.partition("\n| attack | class |")[2].partition("\n\n")[0].splitlines()[2:]:
        found += [("lit_robust.attacks", name) for name in re.findall(r"`([A-Z]\w+)`", row.split("|")[2])]
    for row in README.partition("\n| callback | does |")[2].partition("\n\n")[0].splitlines()[2:]:
        found += [("lit_robust.callbacks", name) for name in re.findall(r"`([A-Z]\w+)`", row.split("|")[1])]
    elsewhere = {"LIT_ROBUST_DATA"}  # a variable of the environment
    return [(room, name) for room, name in found if name not in elsewhere]


@pytest.mark.parametrize(("room", "name"), sorted(set(names_in_the_readme())))
def test_what_the_readme_lists_is_there(room, name):
    assert hasattr(importlib.import_module(room), name)


def test_every_defense_attack_and_callback_is_in_the_readme():
    listed = {name for _, name in names_in_the_readme()}
    for room, bases in (("defenses", (Defense,)), ("attacks", (Attack,)), ("callbacks", (Callback,))):
        module = importlib.import_module(f"lit_robust.{room}")
        parts = {name for name in module.__all__ if issubclass(getattr(module, name), bases)}
        assert parts - {"Defense", "Attack"} <= listed
