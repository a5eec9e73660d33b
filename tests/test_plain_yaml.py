"""YAML that explodes, loops or never ends: refused with file and line, soon, by every reader of files."""

import os
import re
from pathlib import Path

import pytest

from lit_robust.cli.config import load
from lit_robust.cli.plain_yaml import DEEPEST, LONGEST, MOST, parse
from tests.front_door import refusal, tiny

#: Nine lines that stand for a billion values.
LAUGHS = "".join(
    f"a{level}: &a{level} [{', '.join(['x' if level == 0 else f'*a{level - 1}'] * 10)}]\n" for level in range(9)
)
MERGED = "".join(
    f"a{level}: &a{level} {{<<: [{', '.join([f'*a{level - 1}'] * 10)}]}}\n" if level else "a0: &a0 {x: 1}\n"
    for level in range(9)
)

#: The content of a file, and what its refusal names after the file: a line, and what is there.
NOT_PLAIN = {
    "a billion values": (LAUGHS, f", line 5: .*{MOST:,}"),
    "a billion merged keys": (MERGED, f", line 5: .*{MOST:,}"),
    "a mapping in itself": ("class_path: PGDAT\ninit_args: &a\n  attack: *a\n", ", line 2: .*itself"),
    "a list in itself": ("class_path: PGDAT\ninit_args: &a [*a]\n", ", line 2: .*itself"),
    "a key in itself": ("class_path: PGDAT\n? &a [*a]\n: 1\n", ", line 2: .*itself"),
    "a deep list": (f"class_path: {'[' * 100}{']' * 100}", f", line 1: .*{DEEPEST}"),
    "an alias as the only key": ("&a : *a", ": .*key"),
    "a list as a key": ("class_path: PGDAT\ninit_args: {? [1] : 2}", " .*YAML: "),
    "a very deep list": (f"class_path: {'[' * 5000}{']' * 5000}", " .*YAML: "),
    "a tag of Python": ("class_path: !!python/object/apply:os.system [touch pwned]", ", line 1: .*!!python/"),
    "a binary tag": ("class_path: !!binary AAAA", ", line 1: .*!!binary "),
    "a set": ("class_path: PGDAT\ninit_args: !!set {a, b}", ", line 2: .*!!set "),
    "a repeated key": ("class_path: PGDAT\ninit_args: {lr: 1, lr: 2}", ", line 2: .*'lr'"),
    "an unknown alias": ("class_path: *a", " .*YAML: "),
    "a number of 5000 digits": (f"class_path: {'1' * 5000}", ", line 1: .*5,000"),
    "a long number in base 60": (f"class_path: {':'.join(['1'] * 400_000)}", ", line 1: .*799,999"),
    "a long float": (f"class_path: 1.{'0' * 500}", ", line 1: .*502"),
    "two documents": ("class_path: PGDAT\n---\nclass_path: TRADES\n", " .*YAML: "),
    "junk": (bytes(range(256)) * 4, " .*UTF-8 .*128"),
    "control characters": ("class_path: \x01\x02", " .*YAML: "),
    "a long file": (f"class_path: PGDAT\n{'# comment ' * (LONGEST // 9)}", f" .*{LONGEST:,}"),
}


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def written(content: str | bytes, name: str = "bad.yaml") -> str:
    Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return name


#: How a file is named on the command line.
NAMED = {
    "-c": ("-c", "bad.yaml"),
    "extends": ("-c", "extends.yaml"),
    "a part of a file": ("-c", "part.yaml"),
    "deep in a file": ("-c", "deep.yaml"),
    "--model": ("--model", "bad.yaml"),
    "--data": ("--data", "bad.yaml"),
    "--trainer": ("--trainer", "bad.yaml"),
    "--trainer.logger": ("--trainer.logger", "bad.yaml"),
    "--trainer.callbacks": ("--trainer.callbacks", "bad.yaml"),
    "--trainer.callbacks+": ("--trainer.callbacks+=bad.yaml",),
    "--model.attack": ("--model.attack", "bad.yaml"),
    "--model.net": ("--model.net", "bad.yaml"),
    "--model.optimizer": ("--model.optimizer", "bad.yaml"),
    "--model.lr_scheduler": ("--model.lr_scheduler", "bad.yaml"),
    "--model.test_attacks": ("--model.test_attacks", "bad.yaml"),
}


@pytest.mark.parametrize("way", NAMED)
def test_whoever_reads_a_file_refuses_what_is_not_plain_by_file_and_line(way, tmp_path, capsys):
    written("extends: [bad.yaml]", "extends.yaml")
    written("model: bad.yaml", "part.yaml")
    written("model: {init_args: {attack: bad.yaml}}", "deep.yaml")
    for name in ("a billion values", "a mapping in itself", "junk"):
        content, says = NOT_PLAIN[name]
        written(content)
        assert re.search(rf"bad\.yaml{says}", refusal(capsys, "fit", "-c", tiny(tmp_path), *NAMED[way]))


@pytest.mark.parametrize("name", NOT_PLAIN)
def test_what_is_not_plain_is_refused_before_it_is_built(name):
    content, says = NOT_PLAIN[name]
    with pytest.raises(ValueError, match=rf"^bad\.yaml{says}") as refused:
        load(written(content))
    assert "\n" not in str(refused.value)
    assert not Path("pwned").exists()


@pytest.mark.parametrize("way", NAMED)
def test_a_pipe_that_nobody_writes_to_is_not_waited_for(way, tmp_path, capsys):
    written("extends: [bad.yaml]", "extends.yaml")
    written("model: bad.yaml", "part.yaml")
    written("model: {init_args: {attack: bad.yaml}}", "deep.yaml")
    os.mkfifo("bad.yaml")
    assert "bad.yaml " in refusal(capsys, "fit", "-c", tiny(tmp_path), *NAMED[way])


@pytest.mark.parametrize("value", ["{a: &a [*a]}", LAUGHS, "&a {b: *a}"])
@pytest.mark.parametrize("option", ["model", "model.attack", "trainer.logger", "trainer.max_epochs", "model.optimizer"])
def test_a_value_in_place_of_a_file_is_refused_soon(option, value, tmp_path, capsys):
    assert len(refusal(capsys, "fit", "-c", tiny(tmp_path), f"--{option}={value}")) < 2000


def test_a_folder_and_a_file_that_is_not_there_are_named(tmp_path, capsys):
    Path("folder.yaml").mkdir()
    for name in ("folder.yaml", "/dev/zero", "gone.yaml"):
        assert refusal(capsys, "fit", "-c", tiny(tmp_path), "-c", name).startswith(f"-c {name}")
    for option in ("model", "data", "trainer.logger", "trainer.callbacks", "model.attack", "model.optimizer"):
        for name in ("folder.yaml", "gone.yaml"):
            says = refusal(capsys, "fit", "-c", tiny(tmp_path), f"--{option}", name)
            assert says.startswith(f"{option}: ")
            assert says.endswith(f" {name}.")


def test_files_that_each_extend_the_next_one_twice_are_refused():
    for level in range(30):
        written(f"extends: [{level + 1}.yaml, {level + 1}.yaml]", f"{level}.yaml")
    written("trainer: {}", "30.yaml")
    with pytest.raises(ValueError, match="101"):
        load("0.yaml")


@pytest.mark.parametrize("option", ["model.attack", "trainer.logger", "model.optimizer", "model.net"])
def test_a_file_with_another_part_says_what_is_wrong_in_it(option, tmp_path, capsys):
    """jsonargparse tries the file's name once more, and would tell of a loop of files."""
    written("class_path: Nonsense")
    says = refusal(capsys, "fit", "-c", tiny(tmp_path), f"--{option}", "bad.yaml")
    assert says.startswith(f'{option}: there is no class "Nonsense" ')


def test_plain_yaml_stays_what_it_is():
    text = "base: &base {lr: 0.1, names: [a, b]}\nown: {<<: *base, lr: 1e-2}\nagain: *base\nwhen: 2020-01-01\n"
    assert parse(text, "a.yaml") == {
        "base": {"lr": 0.1, "names": ["a", "b"]},
        "own": {"lr": 0.01, "names": ["a", "b"]},
        "again": {"lr": 0.1, "names": ["a", "b"]},
        "when": "2020-01-01",
    }


def test_a_pipe_of_the_shell_is_read():
    reader, writer = os.pipe()
    os.write(writer, b"trainer: {max_epochs: 3}")
    os.close(writer)
    assert load(f"/dev/fd/{reader}") == {"trainer": {"max_epochs": 3}}
    os.close(reader)
