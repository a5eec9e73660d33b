"""The parser of the command line, which reports a mistake in one sentence."""

import json
import re
from argparse import ArgumentError
from ast import literal_eval
from collections.abc import Callable
from contextlib import suppress
from difflib import get_close_matches
from enum import Enum
from inspect import signature
from typing import Any, ClassVar, NoReturn

from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser

from lit_robust.cli.classes import NAMES
from lit_robust.cli.errors import in_full, sentence
from lit_robust.cli.exits import exit_with
from lit_robust.cli.jsonargparse_internals import subclasses_listed_by
from lit_robust.cli.net_arguments import hides_class_count, makes_net
from lit_robust.cli.places import SECTIONS
from lit_robust.defenses import Defense

#: The values that may follow an option although they begin with a minus.
_NEGATIVE = r"-\d+|-\d*\.\d+"


#: The longest list of classes in a help; there are about forty methods, and hundreds of modules of torch.
MOST_LISTED = 100


class Parser(LightningArgumentParser):
    """Lightning's parser, but a mistake is reported in one sentence instead of a page of usage."""

    #: The options of the command line, as they were written, and all its words.
    flags: ClassVar[list[str]] = []
    words: ClassVar[list[str]] = []
    #: Whether the arguments that are being added are those of a net.
    _of_net = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Refuse abbreviations of options: a typing error must not set another option."""
        super().__init__(*args, **({"allow_abbrev": False} | kwargs))

    def parse_args(self, args: Any = None, *rest: Any, **kwargs: Any) -> Any:
        """Write None in a nested flag's value as YAML's null again; jsonargparse (4.53) passes on Python's None."""
        if not self.exit_on_error and args is not None:
            args = [_as_yaml(word) for word in args]
        return super().parse_args(args, *rest, **kwargs)

    def _add_signature_arguments(self, *args: Any, **kwargs: Any) -> list[str]:
        """Let ``num_classes`` of a net be null, and make that its default: ``fill_class_count`` replaces it."""
        self._of_net = makes_net(args[0])
        added: list[str] = super()._add_signature_arguments(*args, **kwargs)
        if hides_class_count(args[0]):
            with suppress(ArgumentError):  # a parser may be asked twice
                self.add_argument("--num_classes", type=int | None, default=None, help="The data's by default.")
        return added

    def _add_signature_parameter(self, container: Any, nested_key: Any, param: Any, *args: Any, **kwargs: Any) -> None:
        if isinstance(param.default, str) and isinstance(param.default, Enum):  # Timer's, which YAML cannot hold
            kwargs |= {"default": str(param.default.value)}
        if self._of_net and param.name == "num_classes":
            # For a class, jsonargparse passes the model's ``linked_targets``.
            kwargs |= {"default": None, "linked_targets": None}
        super()._add_signature_parameter(container, nested_key, param, *args, **kwargs)

    def add_function_arguments(self, *args: Any, linked_targets: set[str] | None = None, **kwargs: Any) -> list[str]:
        """Ignore ``linked_targets``, which jsonargparse (4.53) passes here although it only accepts it for classes.

        Nets are built by functions. Without this, any flag such as ``--model.optimizer.lr`` fails if a file gives the
        net an argument.
        """
        added: list[str] = super().add_function_arguments(*args, **kwargs)
        return added

    def format_help(self, *args: Any, **kwargs: Any) -> str:
        """The help without lists of hundreds of classes, and without the backticks of docstrings."""

        def listing_few(listed: Callable[..., list[str]]) -> Callable[..., list[str]]:
            def few(*of: Any, **options: Any) -> list[str]:
                paths = listed(*of, **options)
                return paths if len(paths) <= MOST_LISTED else []

            return few

        with subclasses_listed_by(listing_few):
            text: str = super().format_help(*args, **kwargs)
        return text.replace("``", "")

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print what is wrong and where to find help, and exit with 2."""
        if not self.exit_on_error:  # an inner parser, one of several that jsonargparse tries
            super().error(message, ex)
        message = in_full(message, ex)
        if found := re.search(
            r"unrecognized arguments: --([\w.-]+)|Subcommand '\w+' does not accept option '(.*)'", message
        ):
            message = self._unknown(found[1], message) if found[1] else self._unknown_in_a_file(found[2], message)
        if without := re.match(r"argument (--\S+): expected one argument", message):
            message = message.replace(without[1], self._without_a_value(without[1]), 1)
        if missing := re.search(r"arguments are required: (.*)", message):
            runs = ["name the runs to analyse"] if "checkpoints" in missing[1] else []
            file = "give a configuration with -c (a run saves its own, config.yaml, beside its checkpoints)"
            message += f": {' and '.join(runs + [file] * (missing[1] != 'checkpoints'))}."
        command = " ".join(["lit-robust", *self.prog.replace("[options]", "").split()[1:]])
        exit_with(sentence(message, NAMES), f"{command} --help lists all options", code=2)

    def _unknown(self, key: str, message: str) -> str:
        """Suggest an option; a class's own parser sees ``--model.atack`` without the prefix."""
        written = next((flag for flag in self.flags if flag.endswith(f".{key}")), f"--{key}")
        prefix = written.removesuffix(key)
        head, dot, rest = key.partition(".")
        arguments = [*signature(Defense.__init__).parameters][1:]
        if prefix in ("--model.", "--model.init_args."):
            near = [f"{prefix}{one}{dot}{rest}" for one in get_close_matches(head, arguments, 1)]
        elif not (near := self._near(key)) and head in arguments:
            near = [f"--model.{key}"]
        return f"there is no option {written}: did you mean {near[0]}?" if near else message

    def _unknown_in_a_file(self, key: str, message: str) -> str:
        head = key.partition(".")[0]
        if head in ("class_path", "init_args"):
            return f"{head} is the key of a part, such as model: or data: indent it below that."
        near = [option.removeprefix("--") for option in self._near(key)]
        if not near and head in [*signature(Defense.__init__).parameters][1:]:
            near = [f"model.init_args.{head}"]
        return f"the configuration has no option {key!r}: did you mean {near[0]}?" if near else message

    def _without_a_value(self, group: str) -> str:
        """The option, of a group such as ``--model``, that has no value or one that looks like an option."""
        for word, value in zip(self.words, [*self.words, "--"][1:], strict=True):
            if f"{word}.".startswith(f"{group}.") and value.startswith("-") and not re.fullmatch(_NEGATIVE, value):
                return word
        return group

    def _near(self, key: str) -> list[str]:
        """The option that is meant, with its prefix, where it is cut short, or the spelling or the prefix is wrong."""
        options = [*re.findall(r"--([\w.]+)", self.format_help()), "model", "data", "trainer", "seed_everything"]
        options += [f"trainer.{name}" for name in signature(Trainer).parameters]  # a mistake in a file has no help
        last = {option.rpartition(".")[2]: option for option in options}
        if len(longer := {option for option in options if option.startswith(key)}) == 1:
            return [f"--{longer.pop()}"]
        near = get_close_matches(key, options, 1, 0.9) or [last[one] for one in get_close_matches(key, last, 1, 0.8)]
        head, dot, rest = key.partition(".")
        if not near and dot and head not in SECTIONS and (near := get_close_matches(head, SECTIONS, 1, 0.75)):
            argument, dot, rest = rest.partition(".")
            known = [*signature(Defense.__init__).parameters][1:] if near == ["model"] else []
            near = [f"{near[0]}.{''.join(get_close_matches(argument, known, 1)) or argument}{dot}{rest}"]
        return [f"--{one}" for one in near]


def _as_yaml(word: str) -> str:
    """Write a flag's value, a Python literal, as YAML if it holds None."""
    option, _, value = word.partition("=")
    if "None" in value:
        with suppress(ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
            return f"{option}={json.dumps(literal_eval(value))}"
    return word
