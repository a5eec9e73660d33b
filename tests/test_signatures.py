"""An editor, `help()`, Python and the command line see the same arguments of a method."""

import inspect
from typing import Any, Literal

import pytest
import torch
import yaml
from torch import nn

from lit_robust import defenses
from lit_robust.attacks import Attack
from lit_robust.cli import main
from lit_robust.defenses import Defense
from lit_robust.magnitudes import magnitude
from lit_robust.training.arguments import SGD
from lit_robust.training.rates import sgd

METHODS = {
    name: method
    for name in defenses.__all__
    if isinstance(method := getattr(defenses, name), type) and issubclass(method, Defense)
}
FIRST = ["net", "num_classes", "attack"]


def arguments_of(method: type) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(method).parameters)


@pytest.fixture(params=METHODS)
def method(request) -> type[Defense]:
    return METHODS[request.param]


def test_every_argument_has_its_name_in_the_signature(method):
    arguments = arguments_of(method)
    assert list(arguments)[:3] == FIRST
    starred = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    assert not [name for name, argument in arguments.items() if argument.kind in starred]


def test_every_argument_is_documented(method):
    documented = inspect.getdoc(method.__init__)
    assert all(f"\n    {name}: " in documented for name in arguments_of(method))


def test_a_missing_argument_is_named(method):
    with pytest.raises(TypeError, match="'net', 'num_classes', and 'attack'"):
        method()


def test_a_method_takes_all_arguments_of_its_signature(method):
    """The names that are handed on (`Unpack`) are those that the base takes."""
    base = method.__mro__[1]
    handed_on = arguments_of(method).keys() - own_arguments(method)
    assert handed_on <= arguments_of(base).keys()


def own_arguments(method: type) -> set[str]:
    init = vars(method).get("__init__")
    return (
        set(init.__code__.co_varnames[: init.__code__.co_argcount + init.__code__.co_kwonlyargcount]) if init else set()
    )


def test_print_config_has_the_names_the_order_and_the_defaults_of_python(method, tmp_path, capsys):
    attack = {"class_path": "FGSM" if issubclass(method, defenses.FGSMAT.__mro__[1]) else "PGD"}
    model = {
        "class_path": method.__name__,
        "init_args": {"net": {"class_path": "lit_robust.nets.digits_cnn"}, "attack": attack},
    }
    (tmp_path / "a.yaml").write_text(yaml.safe_dump({"data": {"class_path": "DigitsDataModule"}, "model": model}))
    with pytest.raises(SystemExit):
        main(["fit", "-c", str(tmp_path / "a.yaml"), "--print_config"])
    printed = yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]
    arguments = arguments_of(method)
    assert list(printed) == [name for name in arguments if name != "num_classes"]  # which the data know
    for name, argument in arguments.items():
        if name == "optimizer":
            assert printed[name]["init_args"].items() >= argument.default["init_args"].items()
        elif name not in FIRST:
            value = (
                magnitude(printed[name]) if isinstance(printed[name], str) and "/" in printed[name] else printed[name]
            )
            assert value == argument.default, name


def test_help_shows_the_default_optimizer_as_a_call():
    shown = str(inspect.signature(defenses.PGDAT))
    assert " = SGD(lr=0.1, momentum=0.9, weight_decay=0.0005), lr_scheduler: " in shown


def test_the_default_optimizer_is_one_and_the_same_in_python_and_on_the_command_line():
    (group,) = sgd([nn.Parameter(torch.zeros(1))]).param_groups
    assert {name: group[name] for name in SGD["init_args"]} == SGD["init_args"]


# A method of the user's own.


class WithStars(defenses.PGDAT):
    """A method as one writes it in a hurry.

    Args:
        temperature: What it is new for.
    """

    def __init__(
        self, *args: Any, temperature: float = 2.0, attack_bn_mode: Literal["eval", "train"] = "eval", **kwargs: Any
    ):
        super().__init__(*args, attack_bn_mode=attack_bn_mode, **kwargs)
        self.temperature = temperature


class OnItsOwn(Defense):
    """A method that hands nothing on."""

    def __init__(self, net: nn.Module, num_classes: int, attack: Attack) -> None:
        super().__init__(net, num_classes, attack)


def test_a_users_method_with_stars_lists_all_arguments_of_its_base():
    arguments = arguments_of(WithStars)
    assert list(arguments)[:5] == [*FIRST, "temperature", "attack_bn_mode"]
    assert arguments["attack_bn_mode"].default == "eval"
    assert arguments.keys() == arguments_of(defenses.PGDAT).keys() | {"temperature"}
    assert "temperature: What it is new for." in WithStars.__init__.__doc__


def test_arguments_that_are_not_passed_on_are_not_listed():
    assert list(arguments_of(OnItsOwn)) == FIRST
