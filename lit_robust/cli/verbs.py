"""The analyses as commands beside Lightning's: ``lit-robust sweep runs/a runs/b -c runs/a/config.yaml``."""

import re
from collections.abc import Callable, Collection, Iterator, Sequence
from inspect import signature
from typing import Any

import yaml
from jsonargparse import ActionConfigFile  # type: ignore[attr-defined]  # exported, but not in its __all__

from lit_robust import __version__, analysis
from lit_robust.cli.classes import classes_start_afresh, raise_constructor_errors, short_names_are_found
from lit_robust.cli.config import gathered, load
from lit_robust.cli.net_arguments import build_data, fill_class_count
from lit_robust.cli.parser import Parser
from lit_robust.cli.whole_values import entries_start_afresh

#: The commands and what they call.
VERBS: dict[str, Callable[..., Any]] = {name: getattr(analysis, name) for name in analysis.__all__}

#: The help of the command line itself, whose subcommands are Lightning's.
DESCRIPTION = (
    "Efficient adversarial training. Besides the subcommands below, which train and evaluate, there are analyses of "
    f"runs: {', '.join(sorted(VERBS))}; `lit-robust compare --help` explains one."
)


def run(args: Sequence[str]) -> None:
    """Run an analysis; of the files given by ``-c``, such as a run's config.yaml, it reads its own arguments only.

    A verb with ``attacks`` also takes the model's ``test_attacks`` of a file without ``data``, such as
    configs/attack/margins.yaml. Those of a file with ``data``, such as a run's config.yaml, are not used, because they
    may be weaker than the default attacks; a line says so, as it does for a file of which nothing is used.

    Args:
        args: The verb and its arguments.
    """
    verb, *words = args
    function = VERBS[verb]
    own = signature(function).parameters
    parser = Parser(
        prog=f"lit-robust {verb}", description=(function.__doc__ or "").split("Args:")[0], version=__version__
    )
    parser.add_argument("-c", "--config", action=ActionConfigFile, help="A file with data: and other arguments.")
    parser.add_argument("checkpoints", nargs="+", help=_about("checkpoints", function))
    parser.add_function_arguments(function, skip={"checkpoints"})
    files = [*_files(words)]
    words = gathered(words, ())
    if words[:1] == ["-c"]:
        tree = {name: value for name, value in yaml.safe_load(words[1]).items() if name in own}
        given = "attacks" in tree or any(word.startswith("--attacks") for word in words[2:])
        tree |= _attacks(verb, files, own, given)
        words[1] = yaml.safe_dump(tree, default_style='"', default_flow_style=True)
    with classes_start_afresh(), entries_start_afresh(), short_names_are_found():
        config = parser.parse_args(words)
    config.pop("config")
    with raise_constructor_errors():
        if config.get("data") is not None:
            config.data = build_data(config.data, parser)
            fill_class_count(config.get("net"), config.data.num_classes)
        made = parser.instantiate_classes(config)
    function(**made)


def _about(argument: str, function: Callable[..., Any]) -> str:
    """What a docstring says of an argument."""
    said = re.search(rf"(?s)\n +{argument}: (.*?)\n +\w+: ", function.__doc__ or "")
    return " ".join(said[1].split()) if said else ""


def _files(words: Sequence[str]) -> Iterator[str]:
    """The files given by ``-c``."""
    for word, after in zip(words, [*words, ""][1:], strict=True):
        option, is_given, value = word.partition("=")
        if option in ("-c", "--config"):
            yield value if is_given else after


def _attacks(verb: str, files: Sequence[str], own: Collection[str], given: bool) -> dict[str, Any]:
    """The ``attacks`` of the last file that states some, if any; prints which files and attacks are not used.

    Args:
        verb: The command.
        files: The files given by ``-c``.
        own: The verb's arguments.
        given: Whether ``attacks`` are given otherwise.
    """
    attacks: dict[str, Any] = {}
    unused: list[str] = []
    for file in files:
        tree = load(file)
        stated = _test_attacks(tree) if "attacks" in own and not given else {}
        if stated and "data" not in tree:
            attacks = {"attacks": stated}
        elif stated:
            unused.append(
                f"{verb} does not use the test_attacks of {file} ({', '.join(stated)}), because it has data, too: for "
                "other attacks than the default ones give --attacks, or -c with a file without data."
            )
        elif not own & tree.keys():
            print(f"{verb} uses nothing of -c {file}: see its arguments by lit-robust {verb} --help.")
    if not attacks:
        print(*unused, sep="\n", end="\n" * bool(unused))
    return attacks


def _test_attacks(tree: Any) -> dict[str, Any]:
    """The model's ``test_attacks`` in a configuration; empty if it states none."""
    for key in ("model", "init_args", "test_attacks"):
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree if isinstance(tree, dict) else {}
