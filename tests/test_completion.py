"""Completion by the Tab key: bash is asked itself, where there is one."""

import json
import shutil
import subprocess
import sys
from importlib.util import find_spec
from types import SimpleNamespace

import pytest

from lit_robust.cli import completion, main
from lit_robust.cli.robust_cli import RobustCLI
from tests.front_door import refusal

needs_shtab = pytest.mark.skipif(find_spec("shtab") is None, reason="no shtab: pip install lit-robust[completion]")


def options_and_choices(parser, shell):
    """Stands for ``shtab.complete``: what the parser of ``fit`` takes, as JSON. It reads argparse as shtab does."""
    (commands,) = (action.choices for action in parser._actions if isinstance(action.choices, dict))
    return json.dumps({name: one.choices for name, one in commands["fit"]._option_string_actions.items()})


def test_options_and_what_they_take(capsys, monkeypatch):
    shtab = SimpleNamespace(complete=options_and_choices, FILE={}, DIRECTORY={})
    monkeypatch.setitem(sys.modules, "shtab", shtab)
    with pytest.raises(SystemExit):
        main(["--print_completion", "bash"])
    options = json.loads(capsys.readouterr().out)
    assert {"--model.attack.eps", "--model.beta", "--data.root", "--trainer.max_epochs", "--weights"} <= options.keys()
    assert {"TRADES", "PGDAT"} <= {*options["--model"]}
    assert "AWP" not in options["--model"]
    assert "lit_robust.nets.resnet18" in options["--model.net"]
    assert "Attack" not in options["--model.attack"]
    assert "PGD" in options["--model.attack"]
    assert "Adam" in options["--model.optimizer"]
    assert "TimeLeft" in options["--trainer.callbacks"]
    assert options["--model.attack_bn_mode"] == ["eval", "train"]
    assert options["--data.augment"] == ["true", "false"]


def test_without_shtab_a_sentence_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert 'pip install "lit-robust[completion]"' in refusal(capsys, "--print_completion", "bash")


def test_another_shell_is_refused(capsys):
    assert "fish" in refusal(capsys, "--print_completion", "fish")


@needs_shtab
@pytest.mark.parametrize("shell", completion.SHELLS)
def test_the_command_prints_a_script_for_each_shell(shell, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--print_completion", shell])
    assert stop.value.code == 0
    assert "--model.attack.step_size" in capsys.readouterr().out


TRY = """
source script.bash
COMP_WORDS=(lit-robust "$@"); COMP_CWORD=$(( ${#COMP_WORDS[@]} - 1 ))
function=$(complete -p lit-robust | sed -n 's/.*-F \\([^ ]*\\).*/\\1/p')
$function lit-robust "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("completion")
    (folder / "script.bash").write_text(completion.script("bash", RobustCLI.subcommands()))
    (folder / "mine.yaml").touch()
    return folder


@needs_shtab
@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
@pytest.mark.parametrize(
    ("words", "found"),
    [
        ([""], ["fit", "validate", "test", "predict"]),
        (["va"], ["validate"]),
        (["fit", "--model.attack.ste"], ["--model.attack.step_size", "--model.attack.steps"]),
        (["fit", "--model", "TR"], ["TRADES"]),
        (["fit", "-c", "mi"], ["mine.yaml"]),
        (["test", "-c", "mine.yaml", "--weights", "mi"], ["mine.yaml"]),
        (["test", "-c", "mine.yaml", "--ckpt"], ["--ckpt_path"]),
        (["fit", "--data.augment", ""], ["true", "false"]),
        (["fit", "--model.net", "lit_robust.nets.preact"], ["lit_robust.nets.preact_resnet18"]),
    ],
)
def test_bash_completes(words, found, folder):
    done = subprocess.run(["bash", "-c", TRY, "bash", *words], cwd=folder, capture_output=True, text=True, check=True)
    assert done.stdout.split() == found
