"""What a command or an import waits for."""

import subprocess
import sys

import pytest

from lit_robust.cli.main import COMMANDS
from lit_robust.cli.robust_cli import RobustCLI
from lit_robust.cli.verbs import VERBS

#: As expensive as torch, and not needed by attacks.
HEAVY = {"torchvision", "lightning", "torchmetrics", "jsonargparse", "wandb", "PIL", "torch._dynamo", "torch.onnx"}


def python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)


def test_attacks_import_nothing_that_is_expensive_besides_torch():
    found = python(
        "import sys, torch; before = set(sys.modules); import lit_robust.attacks; print(*set(sys.modules) - before)"
    )
    assert found.returncode == 0, found.stderr
    new = set(found.stdout.split())
    assert "lit_robust.attacks" in new
    assert not new & HEAVY


def modules(code):
    found = python(f"{code}; import sys; print(*sys.modules)")
    assert found.returncode == 0, found.stderr
    return set(found.stdout.split())


def test_the_command_line_imports_little_more_than_lightnings():
    """At most 10 % more modules, ours and Pillow's; seconds: start_up_speed.py."""
    lightning = modules("import jsonargparse; from lightning.pytorch.cli import LightningCLI")
    new = modules("import lit_robust.cli.robust_cli") - lightning
    assert len(new) <= 0.1 * len(lightning)
    assert {name.partition(".")[0] for name in new} <= {"lit_robust", "PIL"}


def test_attacks_import_at_most_a_tenth_more_modules_than_torch():
    torch_alone = modules("import torch")
    assert len(modules("import lit_robust.attacks") - torch_alone) <= 0.1 * len(torch_alone)


@pytest.mark.parametrize(
    ("word", "code", "answer"), [("--version", 0, "lit-robust 0.1.0"), ("fitt", 2, "did you mean fit?")]
)
def test_the_version_and_a_misspelt_command_need_no_torch(word, code, answer):
    found = python(f"import sys; sys.modules['torch'] = None; from lit_robust.cli import main; main(['{word}'])")
    assert found.returncode == code, found.stderr
    assert answer in found.stdout + found.stderr


def test_the_commands_are_those_that_there_are():
    assert list(COMMANDS) == [*RobustCLI.subcommands(), *VERBS]


def test_the_package_has_its_functions_and_no_others():
    code = "import lit_robust; lit_robust.load_net, lit_robust.load_weights; lit_robust.fit"
    assert "module 'lit_robust' has no attribute 'fit'" in python(code).stderr


@pytest.mark.parametrize(
    "imports",
    [
        "from jsonargparse import ArgumentParser; from lit_robust.attacks import Attack",
        "from lit_robust.attacks import Attack; import lit_robust.callbacks; from jsonargparse import ArgumentParser",
        "from lit_robust.attacks import Attack; import lit_robust.defenses; from jsonargparse import ArgumentParser",
    ],
)
def test_a_users_own_command_line_reads_fractions(imports):
    parse = "ArgumentParser(); p.add_argument('--a', type=Attack); print(p.parse_args(['--a=PGD', '--a.eps=8/255']))"
    found = python(f"{imports}; p = {parse}")
    assert "eps=8/255" in found.stdout, found.stderr
