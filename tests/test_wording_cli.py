"""The wording of what the command line says about configurations; its other mistakes are in ``test_bad_inputs.py``."""

import re
import shlex
from pathlib import Path

import pytest

from lit_robust.cli import main
from lit_robust.cli.config import load
from lit_robust.cli.errors import sentence
from tests.front_door import refusal, tiny
from tests.test_cli_config import write
from tests.test_plain_yaml import NOT_PLAIN, written


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def refused_file(capsys, text: str) -> str:
    return refusal(capsys, "fit", "-c", tiny(Path()), "-c", text)


# Files that extend others.

MISTAKES = {
    "a device": (
        {"row": "extends: [/dev/zero]"},
        "row.yaml, line 1: extends /dev/zero, which is not a regular file, or may not be read.",
    ),
    "a missing file": (
        {"row": "# A comment.\nextends:\n  - base.yaml\n  - no.yaml\n", "base": "a: 1"},
        "row.yaml, line 4: extends no.yaml, but there is no such file (paths are relative to this one).",
    ),
    "a missing file of another file": (
        {"row": "extends: [papers/setting.yaml]", "papers__setting": "extends: [base.yaml]", "base": "a: 1"},
        "papers/setting.yaml, line 1: extends base.yaml, but there is no such file (paths are relative to this one).",
    ),
    "a file that extends itself": (
        {"row": "\nextends: [row.yaml]"},
        "row.yaml, line 2: extends row.yaml, which comes back to this file: remove one of the two.",
    ),
    "a cycle": (
        {"row": "extends: [a.yaml]", "a": "extends: [b.yaml]", "b": "\n\nextends: [row.yaml]"},
        "b.yaml, line 3: extends row.yaml, which comes back to this file: remove one of the two.",
    ),
    "no list": ({"row": "extends: a.yaml"}, "row.yaml: extends='a.yaml' must be a list of paths."),
    "broken YAML of another file": (
        {"row": "extends: [a.yaml]", "a": "a: 1\nb: [1\nc: 2\n"},
        "a.yaml is not valid YAML: while parsing a flow sequence in line 2, column 4",
    ),
    "a tag of Python": (
        {"row": "a: !!python/object/apply:os.getcwd []"},
        "row.yaml, line 1: the tag !!python/object/apply:os.getcwd is refused",
    ),
    "another file that is not a configuration": (
        {"row": "extends: [a.yaml]", "a": "- 1"},
        "a.yaml is '- 1': it must consist of options such as model: and data:.",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_sentence_with_file_and_line(mistake, capsys):
    files, expected = MISTAKES[mistake]
    write(**files)
    assert refusal(capsys, "fit", "-c", "row.yaml").startswith(expected)


# Files that are not a plain tree of values.

#: The names of files in ``NOT_PLAIN``, and the sentence after ``bad.yaml``; * stands for what PyYAML says.
SAID_OF = {
    "a billion values": ", line 5: there are more than 20,000 values with each alias written out: shorten it.",
    "a billion merged keys": ", line 5: there are more than 20,000 values with each alias written out: shorten it.",
    "a mapping in itself": ", line 2: a value contains itself by an alias: write out what the alias stands for.",
    "a deep list": ", line 1: there are more than 40 levels of nesting: make it flatter.",
    "an alias as the only key": (": the only key is not an option's name: give options by name, as name: value."),
    "a list as a key": " is not valid YAML: *.",
    "a very deep list": " is not valid YAML: *.",
    "a tag of Python": ", line 1: the tag !!python/object/apply:os.system is refused: write a plain value.",
    "a binary tag": ", line 1: the tag !!binary is refused: write a plain value.",
    "a set": ", line 2: the tag !!set is refused: write a plain value.",
    "a repeated key": ", line 2: the key 'lr' is repeated: keep one.",
    "an unknown alias": " is not valid YAML: *.",
    "a number of 5000 digits": ", line 1: a number has 5,000 characters: shorten it, or quote it as text.",
    "two documents": " is not valid YAML: *.",
    "junk": " is not a text in UTF-8 (byte 128): give a YAML file.",
    "control characters": " is not valid YAML: *.",
    "a long file": " is longer than 1,000,000 bytes, so it is not a configuration: give a YAML file.",
}


@pytest.mark.parametrize("name", SAID_OF)
def test_what_is_not_plain_is_answered_by_what_to_write(name):
    pattern = ".*".join(map(re.escape, SAID_OF[name].split("*")))
    with pytest.raises(ValueError, match=rf"\Abad\.yaml{pattern}\Z"):
        load(written(NOT_PLAIN[name][0]))


# Keys in the wrong place.

SECOND_FILES = {
    "model: {net: {class_path: os.system}, attack: {eps: 0.1}}": ("model", "PGDAT", "net, attack"),
    "model: {class_path: PGDAT, eps: 0.1}": ("model", "PGDAT", "eps"),
    "model: {class_path: TRADES, beta: 6}": ("model", "TRADES", "beta"),
    "model: {attack: {class_path: PGD}}": ("model", "PGDAT", "attack"),
    "model: {optimizer: {lr: 0.1}}": ("model", "PGDAT", "optimizer"),
    "model: {optimizer: null}": ("model", "PGDAT", "optimizer"),
    "data: {batch_size: 3}": ("data", "DigitsDataModule", "batch_size"),
    "model: {init_args: {attack: {eps: 0.1}}}": ("model.attack", "PGD", "eps"),
    "model: {init_args: {optimizer: {lr: 0.1}}}": ("model.optimizer", "torch.optim.SGD", "lr"),
    "model: {init_args: {val_attack: {class_path: PGD, eps: 0.1}}}": ("model.val_attack", "PGD", "eps"),
    "model: {init_args: {test_attacks: {a: {class_path: PGD, eps: 1}}}}": ("model.test_attacks.a", "PGD", "eps"),
    "model: {init_args: {lr_scheduler: {class_path: Cyclic, up: 1}}}": ("model.lr_scheduler", "Cyclic", "up"),
    "trainer: {logger: {save_dir: x}}": ("trainer.logger", "CSVLogger", "save_dir"),
    "trainer: {callbacks+: [{class_path: EMAWeights, decay: 0.9}]}": ("trainer.callbacks", "EMAWeights", "decay"),
    "trainer: {callbacks: {class_path: EMAWeights, decay: 0.9}}": ("trainer.callbacks", "EMAWeights", "decay"),
}


@pytest.mark.parametrize("text", SECOND_FILES)
def test_arguments_beside_a_class_path_name_its_class(text, capsys):
    where, owner, names = SECOND_FILES[text]
    expected = f"{where}: the arguments of {owner} belong below init_args: indent {names}."
    assert refused_file(capsys, text) == expected


@pytest.mark.parametrize(
    ("flags", "owner"),
    [
        (["--model", "{class_path: PGDAT, eps: 0.1}"], "PGDAT"),
        (["--model.attack", "{class_path: PGD, steps: 3}"], "PGD"),
        (["--trainer.callbacks", "[{class_path: EMAWeights, decay: 0.9}]"], "EMAWeights"),
        (["--trainer.callbacks+={class_path: EMAWeights, decay: 0.9}"], "EMAWeights"),
    ],
)
def test_arguments_beside_a_class_path_in_a_flag_name_its_class(flags, owner, capsys):
    says = refusal(capsys, "fit", "-c", tiny(Path()), *flags)
    assert re.search(rf"the arguments of (\w+\.)*{owner} belong below init_args", says)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("model: {init_arg: {attack: PGD}}", "model: PGDAT has no 'init_arg' beside it: did you mean init_args?"),
        ("data: {class_pth: X}", "data: DigitsDataModule has no 'class_pth' beside it: did you mean class_path?"),
        (
            "optimizer: {lr: 1}",
            "the configuration has no option 'optimizer.lr': did you mean model.init_args.optimizer?",
        ),
        ("init_args: {attack: 1}", "init_args is the key of a part, such as model: or data: indent it below that."),
    ],
)
def test_a_key_in_the_wrong_place_or_misspelt_is_answered_by_the_right_one(text, says, capsys):
    assert refused_file(capsys, text) == says


# null.

NULLS = {
    "model: {init_args: {optimizer: null}}": r"model\.optimizer=null has .* default, SGD\(lr=0\.1, .*\)\.",
    "model: {init_args: {attack: {init_args: {eps: null}}}}": r"model\.attack\.eps=null has .* default, 8/255\.",
    "model: {init_args: {attack: {init_args: {steps: null}}}}": r"model\.attack\.steps=null has .* default, 10\.",
    "model: {init_args: {lr_interval: null}}": r"model\.lr_interval=null has .* default, 'epoch'\.",
    "model: {init_args: {compile: null}}": r"model\.compile=null has .* default, False\.",
    "model: {init_args: {test_attacks: {a: {class_path: PGD, init_args: {norm: null}}}}}": r".*\.a\.norm=null .*",
    "data: {init_args: {batch_size: null}}": r"data\.batch_size=null has .* default, 128\.",
    "trainer: {callbacks+: [{class_path: EMAWeights, init_args: {decay: null}}]}": r"trainer\.callbacks\.decay=null .*",
    "trainer: {callbacks+: [{class_path: ModelCheckpoint, init_args: {save_top_k: null}}]}": r".*\.save_top_k=null .*",
    "model: {init_args: {optimizer: {init_args: {lr: null}}}}": r"model\.optimizer\.lr=null has .* default, 0\.001\.",
    "model: {init_args: {optimizer: {class_path: AdamW, init_args: {betas: null}}}}": r".*optimizer\.betas=null .*",
    "model: {init_args: {optimizer: {class_path: Adafactor, init_args: {eps: null}}}}": r".*optimizer\.eps=null .*",
    "model: {init_args: {lr_scheduler: {class_path: StepLR, init_args: {step_size: 1, gamma: null}}}}": (
        r"model\.lr_scheduler\.gamma=null has .* default, 0\.1\."
    ),
    "model: {init_args: {lr_scheduler: {class_path: MultiStepLR, init_args: {milestones: [1], gamma: null}}}}": (
        r"model\.lr_scheduler\.gamma=null .*"
    ),
    "model: {init_args: {lr_scheduler: {class_path: StepLR, init_args: {step_size: null}}}}": (
        r"model\.lr_scheduler: this needs step_size below init_args\."
    ),
    "model: {init_args: {lr_scheduler: {class_path: MultiStep, init_args: {milestones: [1], factor: null}}}}": (
        r"model\.lr_scheduler\.factor=null .*"
    ),
    "model: {init_args: {lr_scheduler: {class_path: ReduceLROnPlateau, init_args: {monitor: a, mode: null}}}}": (
        r"model\.lr_scheduler\.mode=null .*"
    ),
    "model: {init_args: {net: null}}": r"model: .*PGDAT needs net below init_args\.",
    "model: {init_args: {attack: null}}": r"model: .*PGDAT needs attack below init_args\.",
    "model: null": r"model=null gives nothing: write its options below it.*",
    "data: null": r"data=null gives nothing: .*",
    "trainer: null": r"trainer=null gives nothing: .*",
    "model: {init_args: null}": r"model: init_args is null: .*",
    "model: {init_args: {optimizer: {class_path: SGD, init_args: null}}}": r"model\.optimizer: init_args is null: .*",
    "model: {class_path: null}": r"model: class_path is null: name a class\.",
    "model: {init_args: {attack: {class_path: null}}}": r"model\.attack: class_path is null: name a class\.",
}


@pytest.mark.parametrize("text", NULLS)
def test_null_where_it_means_nothing_is_answered_in_the_terms_of_yaml(text, capsys):
    says = refused_file(capsys, text)
    assert re.fullmatch(NULLS[text], says), says
    assert "None" not in says


# Values that give nothing, and files in the way.

ITEM = "[{init_args: {epochs: 3}}]"
GIVES_NOTHING = {
    "--trainer.callbacks [null]": "trainer.callbacks[0] is empty: name a class, or remove it.",
    "--trainer.callbacks=[null]": "trainer.callbacks[0] is empty: name a class, or remove it.",
    "--trainer.callbacks+=[{}]": "trainer.callbacks[0] is empty: name a class, or remove it.",
    "-c 'trainer: {callbacks: [TimeLeft, null]}'": "trainer.callbacks[1] is empty: name a class, or remove it.",
    "-c 'trainer: {callbacks: [{}]}'": "trainer.callbacks[0] is empty: name a class, or remove it.",
    "-c 'trainer: {logger: [{}]}'": "trainer.logger[0] is empty: name a class, or remove it.",
    "-c 'trainer: {plugins: [null]}'": "trainer.plugins[0] is empty: name a class, or remove it.",
    f"--trainer.callbacks '{ITEM}'": "trainer.callbacks[0] has init_args but no class_path: .*",
    f"-c 'trainer: {{callbacks: {ITEM}}}'": "trainer.callbacks[0] has init_args but no class_path: .*",
    "-c 'trainer: {logger: [{init_args: {name: a}}]}'": "trainer.logger[0] has init_args but no class_path: .*",
    "--model.test_attacks '{a: null}'": "model.test_attacks.a is empty: name a class, or remove it.",
    "-c 'model: {init_args: {test_attacks: {a: null, b: PGD}}}'": "model.test_attacks.a is empty: .*",
    "-c 'trainer: {callbacks+: {class_path: RobustAccuracy, init_args: {attacks: {a: {}}}}}'": (
        ".*attacks.a is empty: .*"
    ),
    **{
        f"--{section} {null}": f"{section}=null gives nothing: .*"
        for section in ("data", "model", "trainer")
        for null in ("null", "None", "'~'", "''")
    },
    "--ckpt_path ''": "--ckpt_path is empty: name a file, .*",
    "--ckpt_path=": "--ckpt_path is empty: name a file, .*",
    "--data=": "data=null gives nothing: .*",
    "-c 'model: {init_args: {attack: {class_path: PGD, init_args: {step_size: None}}}}'": (
        "model.attack.step_size=None is a word in YAML: .* write null .*"
    ),
    "--model.test_attacks '{a: PGD, a: FGSM}'": "--model.test_attacks, line 1: the key 'a' is repeated: keep one.",
    "-c 'model: {init_args: {test_attacks: {a: PGD, a: FGSM}}}'": "-c, line 1: the key 'a' is repeated: keep one.",
    "--model.attack '{class_path: PGD, init_args: {eps: !!binary 1}}'": ".* line 1: the tag !!binary is .*",
    "--trainer.callbacks+=GradientAccumulationScheduler --trainer.callbacks.scheduling 2": (
        "trainer.callbacks.scheduling: 2 is not of type dict: write .*"
    ),
}


@pytest.mark.parametrize("words", GIVES_NOTHING)
def test_a_value_that_gives_nothing_is_refused_while_parsing(words, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["fit", "-c", tiny(Path()), *shlex.split(words)])
    error = capsys.readouterr().err.split("lit-robust: error: ")[1].splitlines()[0]
    pattern = GIVES_NOTHING[words].replace("[", r"\[").replace("]", r"\]").replace("{", r"\{")
    assert re.fullmatch(pattern, error), error
    assert stop.value.code == 2


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        (["--trainer.logger.name", "file"], "name or version of trainer.logger"),
        (["--trainer.logger.version", "../file"], "name or version of trainer.logger"),
        (["--trainer.logger.save_dir", "runs/file"], "save_dir of trainer.logger"),
        (["--trainer.logger", "false", "--trainer.default_root_dir", "runs/file"], "trainer.default_root_dir"),
    ],
)
def test_a_file_in_the_place_of_a_runs_folder_is_named(words, remedy, capsys):
    Path("runs").mkdir()
    Path("runs/file").touch()
    error = refusal(capsys, "fit", "-c", tiny(Path()), *words)
    assert re.fullmatch(rf"cannot log to .* \S*runs/file .*: change {remedy}\.", error)
    assert [path.name for path in Path("runs").iterdir()] == ["file"]


# What becomes of a page of jsonargparse's.


def test_only_a_close_name_is_offered():
    page = 'Parser key "model.attack":\n  Expected a dot import path string: PDG'
    assert sentence(page, ["AutoAttack", "PGD"]).endswith(' "PDG" (did you mean PGD?).')
    assert "did you mean" not in sentence(page, ["AutoAttack"])


def test_a_sentence_of_ours_stays_as_it_is():
    assert sentence("steps=-1 must be an integer, at least 0.") == "steps=-1 must be an integer, at least 0."


def test_any_other_text_is_put_on_one_line():
    assert sentence("a.ckpt holds\n\tanother net:\n\t  head") == "a.ckpt holds another net: head"


def test_a_page_of_an_unknown_form_is_still_one_line():
    assert sentence('Parser key "x":\n  something\n  new') == "x: something"
    assert "\n" not in sentence('Parser key "x":\n')
