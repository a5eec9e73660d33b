"""Condenses the long error messages of jsonargparse and other packages into one sentence.

jsonargparse reports everything that it tried: each type of a union, each way to parse a value, each level of nesting.
A user needs the key, the innermost reason, and the name that was probably meant.
"""

import re
import sys
from argparse import ArgumentError
from ast import literal_eval
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from difflib import get_close_matches
from inspect import isabstract, isbuiltin, isfunction
from pathlib import Path
from traceback import extract_tb, walk_tb
from typing import Any

from lit_robust.cli.classes import find_class
from lit_robust.cli.places import check_places, of_another_type
from lit_robust.cli.wordings import BRACKETS, WORDS
from lit_robust.keywords import keywords_of
from lit_robust.lightning_cli_internals import fails_while_restoring
from lit_robust.shown import without_addresses

#: Lines that say what was tried, not why it failed.
_TRIED = re.compile(
    r"$|Does not validate|Subtypes:|Errors:|Expected a <class 'NoneType'>|Given value type:|"
    r"Expected a path but (?!\S+\.(?:ya?ml|json) )|"
    r"Parser key \"[^\"]*\"[^:]*:$|Problem with given class_path '[^']*':$"
)

#: jsonargparse's remark on callables in general; the reason follows it.
_CALLABLE = re.compile(r"Type \S*Callable\[.*\] expects a function or a callable class: ")

#: Errors whose text jsonargparse passes on, and which says enough.
_SPOKEN = (TypeError, ValueError, ImportError, AttributeError, AssertionError, ArgumentError)

#: Messages of other packages without a remedy, or with one that is wrong here, and the remedy.
_REMEDIES = {
    r"Invalid learning rate: .*": "the lr of model.optimizer must be 0 or above",
    r"No supported gpu backend found": "choose the CPU, by -c configs/trainer/cpu.yaml or --trainer.accelerator cpu",
    r"Automatic gradient clipping is not supported": "give model.gradient_clip_val instead of the trainer's",
    r"Automatic gradient accumulation is not supported": "raise data.batch_size instead",
    r"Found more than one stateful callback of type `ModelCheckpoint`": (
        "a checkpoint tells their states apart by monitor, mode, every_n_epochs, every_n_train_steps and "
        "train_time_interval; change one of these, or keep one with save_top_k or save_last"
    ),
    r"Found more than one stateful callback of type `EarlyStopping`": (
        "a checkpoint tells their states apart by monitor and mode; change one of these, or keep the stricter one"
    ),
    r"Found more than one stateful callback of type `\w+`": "keep one of them",
    r"`Trainer\(barebones=True, .*\)` was passed": "leave barebones out, or set this to false (log_every_n_steps to 0)",
    r"argument \S+: expected one argument": "give each option a value, after = if that begins with a minus",
    r"Invalid momentum value: .*": "the momentum of model.optimizer must be 0 or above",
    r"Invalid (\w+ values?|beta parameter at index \d): .*": "change this argument of model.optimizer",
    r"(No API key|api_key not) configured": "run wandb login, or log offline by --trainer.logger.offline true",
    r"\[Errno (28|30|122)\] .*": "free some space or choose a folder that can be written to",
    r"CUDA out of memory": "lower data.batch_size and data.eval_batch_size",
    r"-?\d+ is not in bounds, numpy accepts from 0 to \d+": "change seed_everything",
}


@dataclass(frozen=True)
class _Mistake:
    """The key of a wrong value, the class whose argument it is, each tried type's reason, and the value."""

    key: str
    owner: str
    reasons: list[str]
    value: str


def sentence(message: str, names: Iterable[str] = ()) -> str:
    """Condense an error into one line.

    Args:
        message: The error message of jsonargparse, another package or this one.
        names: Short names that a user may have meant.
    """
    if "Original Traceback (most recent call last)" in message:  # in a loader's worker: the last line is the error
        message = message.strip().splitlines()[-1].partition(": ")[2]
    for pattern, remedy in _REMEDIES.items():
        if match := re.match(pattern, without_addresses(message)):
            return f"{match[0]}: {remedy}."
    message = without_addresses(message)
    if re.search(r"Parser key \"|Problem with given class_path '|Does not validate against", message):
        mistake = _innermost(message)
    else:
        mistake = _Mistake("", "", [" ".join(message.split())], "")
    return _in_words(mistake, names)


def in_full(message: str, error: BaseException | None) -> str:
    """Add the causes that jsonargparse's message hides.

    Args:
        message: jsonargparse's message.
        error: The exception that it was made from.
    """
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        seen.append(error)
        text, hidden = str(error), error.__context__
        if re.search(r"Config file loop detected: (\S+) -> \1$", text) and hidden is not None:
            # The value of an option was tried a second time, as a name, which hides why the file was refused.
            message = message.replace(text, str(hidden))
        elif not isinstance(error, _SPOKEN) and not type(error).__module__.startswith("jsonargparse."):
            # Of an error in a user's module that is imported; the text alone says little, such as 'k' of a KeyError.
            named = f"{type(error).__name__}: {text}{_place(error)}".replace("\\", r"\\")
            message = re.sub(rf"(?m)^(\W*){re.escape(text)}$", rf"\g<1>{named}", message)
        error = error.__cause__ or hidden
    return message


def _place(error: BaseException) -> str:
    """The user's own file and line in which an error was raised; empty if a package did it, or the text has it."""
    frames = extract_tb(error.__traceback__)
    file = Path(frames[-1].filename) if frames else Path()
    ours = any(part in ("site-packages", "lit_robust") for part in file.parts) or file.is_relative_to(sys.base_prefix)
    known = ours or not file.is_file() or isinstance(error, SyntaxError)
    return "" if known else f" ({file.name}, line {frames[-1].lineno})"


def _innermost(message: str) -> _Mistake:
    """Find the first reason and the others of its union, up to the value, with which jsonargparse ends a union."""
    block, _, rest = _CALLABLE.sub("", message).partition("Given value: ")
    lines = [line.strip().removeprefix("- ") for line in block.splitlines()]
    told = [number for number, line in enumerate(lines) if not _TRIED.match(line)] or [0]
    if len(told) > 1 and "does not correspond to a subclass" in lines[told[0]] and not rest.startswith("{'class_path'"):
        told = told[1:]  # the value is of another type of the union, whose reason comes next
    of_items = [number for number in told if not lines[max(number - 1, 0)].startswith('Parser key "')]
    if simple := [number for number in of_items if re.match(r"Expected a <class '(list|dict)'>", lines[number])]:
        told = [number for number in told if number not in simple] or told  # what was tried for one item says more
    before = "\n".join(lines[: told[0] + 1])
    reasons = [re.sub(r'^Parser key "[^"]*":\s*', "", lines[number]) for number in told]
    reason, _, value = reasons[0].partition(". Got value: ")
    owner = re.search(r"class_path '([^']*)'", before.rpartition("Parser key")[2]) or re.search(
        r"class_path='([^']*)'", value
    )
    return _Mistake(
        key=".".join(re.findall(r'Parser key "([^"]*)"', before)),
        owner=owner[1] if owner else "",
        reasons=[reason, *reasons[1:]],
        value=value or rest.split("\n")[0].split(". Got value: ")[0],
    )


def _literal(text: str) -> Any:
    """The Python literal in a text; None if it is not one."""
    with suppress(ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return literal_eval(text)
    return None


class _Near(str):
    """The names that were probably meant; a format falls back to another hint."""

    def __format__(self, hint: str) -> str:
        return f"did you mean {self!s}?" if self else hint


def _in_words(mistake: _Mistake, names: Iterable[str]) -> str:
    """Rephrase jsonargparse's reason in terms of the configuration."""
    reason, owner = mistake.reasons[0], mistake.owner
    try:
        check_places(_literal(mistake.value), mistake.key)
    except ValueError as error:
        return str(error)
    fields = {
        "where": f"{mistake.key}: " if mistake.key else "",
        "key": mistake.key,
        "value": mistake.value,
        "owner": owner or ("this" if mistake.key else "the configuration"),
    }
    if unfit := _unfit(mistake.value):
        return f"{fields['where']}{unfit}"
    if match := re.match(r"Import path (\S* ?)does not correspond to a subclass of (.*)", reason):
        return f"{fields['where']}{_of_another_type(match[1].strip() or mistake.value, match[2])}"
    match = re.match(r"Not a valid subclass of (\w+)", reason)
    if match and (path := of_another_type(_literal(mistake.value), match[1])):
        return f"{fields['where']}{_of_another_type(path, match[1])}"
    for pattern, words in WORDS.items():
        if match := re.match(pattern, f"{reason}\n{mistake.value}", re.MULTILINE):
            groups = [group or "" for group in (match[0], *match.groups())]
            told = words.format(
                *groups,
                **fields,
                meant=_near(groups[-1], names),
                argument=_near(groups[-1], keywords_of(find_class(owner))),
            )
            return re.sub(r"\?\.$", "?", told)
    if expected := _expected(mistake):
        return f"{fields['where']}{mistake.value} {expected}."
    return f"{fields['where']}{reason}"


def _unfit(value: str) -> str:
    """Why nothing can be built by this name, if it names an abstract class, or neither a class nor a function."""
    part: Any = find_class(value.strip("'\"")) if re.fullmatch(r"['\"]?\w+(\.\w+)+['\"]?", value) else None
    if isabstract(part):
        gaps = ", ".join(sorted(part.__abstractmethods__))
        return f"{value} is abstract: implement {gaps}."
    return f"{value} is not a class: name one." if isbuiltin(part) else ""


def _of_another_type(path: str, wanted: str) -> str:
    """Why the named object is not of this type."""
    part = find_class(path)
    if isfunction(part) and "return" not in part.__annotations__:
        return (
            f"{path} is not annotated to return a {wanted}: write def {part.__name__}(...) -> {wanted}, or name a "
            "function of your own that calls it and is annotated so."
        )
    return f"{path} is not of type {wanted}: name a class that is."


def _expected(mistake: _Mistake) -> str:
    """What the value should have been, according to all types that were tried."""
    if mistake.value.strip("'\"") == "None":
        return "is a word in YAML: leave it out for its default, or write null where there may be no value"
    reasons = "\n".join(mistake.reasons)
    if choices := re.findall(r"^Expected a (?:typing\.)?Literal\[(.*)\]", reasons, re.MULTILINE):
        return f"is unknown: choose one of {', '.join(choices)}"
    types = " or ".join(re.findall(r"^Expected a <class '(.*)'>", reasons, re.MULTILINE))
    types = types.replace("collections.abc.Sequence", "list")
    return f"is not of type {types}{BRACKETS.get(types, '').format(mistake.value)}" if types else ""


def _near(name: str, names: Iterable[str]) -> _Near:
    full = {one.rpartition(".")[2]: one for one in names if one != name}  # two classes may share a short name
    cased = [one for one in full if one.lower() == name.lower()]
    longer = sorted((one for one in full if name and one.startswith(name)), key=len)
    return _Near("".join(full[one] for one in (cased or longer or get_close_matches(name, list(full)))[:1]))


@contextmanager
def naming(path: str | None) -> Iterator[None]:
    """Name the checkpoint where Lightning cannot restore it.

    Raises:
        ValueError: In place of the error that Lightning or torch raises.
    """
    try:
        yield
    except Exception as error:
        if path is None or not fails_to_restore(error):
            raise
        what = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ValueError(f"{path} is broken or of another training ({what}): use an earlier one.") from error


def fails_to_restore(error: BaseException) -> bool:
    """Whether an error comes from where Lightning restores checkpoints, and was not raised by this package."""
    *_, (frame, _) = walk_tb(error.__traceback__)
    ours = Path(frame.f_code.co_filename).resolve().is_relative_to(Path(__file__).resolve().parents[1])
    return fails_while_restoring(error) and not ours
