"""The analyses as commands beside Lightning's: ``lit-robust sweep runs/a runs/b -c runs/a/config.yaml``."""

from collections.abc import Callable, Sequence
from inspect import signature
from typing import Any

import yaml
from jsonargparse import ActionConfigFile  # type: ignore[attr-defined]  # exported, but not in its __all__

from lit_robust import __version__, analysis
from lit_robust.cli.classes import classes_start_afresh, raise_constructor_errors, short_names_are_found
from lit_robust.cli.config import gathered
from lit_robust.cli.net_arguments import build_data, fill_class_count
from lit_robust.cli.parser import Parser
from lit_robust.cli.whole_values import entries_start_afresh

#: The commands and what they call.
VERBS: dict[str, Callable[..., Any]] = {name: getattr(analysis, name) for name in analysis.__all__}


def run(args: Sequence[str]) -> None:
    """Run an analysis; of the files given by ``-c``, such as a run's config.yaml, it reads its own arguments only.

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
    parser.add_argument(
        "checkpoints", nargs="+", help=".ckpt files, folders of runs, or files of weights; name=path names a net."
    )
    parser.add_function_arguments(function, skip={"checkpoints"})
    words = gathered(words, ())
    if words[:1] == ["-c"]:
        tree = {name: value for name, value in yaml.safe_load(words[1]).items() if name in own}
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
