"""Condenses the long error messages of jsonargparse and other packages into one sentence.

jsonargparse reports everything that it tried: each type of a union, each way to parse a value, each level of nesting.
A user needs the key, the innermost reason, and the name that was probably meant.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from inspect import isfunction

from lit_robust.cli.classes import found as part_called

#: Lines that say what was tried, not why it failed.
_TRIED = re.compile(
    r"$|Does not validate|Subtypes:|Errors:|Expected a <class 'NoneType'>|Given value type:|Expected a path but|"
    r"Parser key \"[^\"]*\"[^:]*:$|Problem with given class_path '[^']*':$"
)

#: jsonargparse's remark on callables in general; the reason follows it.
_CALLABLE = re.compile(r"Type \S*Callable\[.*\] expects a function or a callable class: ")

#: Messages of other packages without a remedy, or with one that is wrong here, and the remedy.
_REMEDIES = {
    r"Invalid learning rate: .*": "the lr of model.optimizer must be 0 or above",
    r"No supported gpu backend found": "choose the CPU, by -c configs/trainer/cpu.yaml or --trainer.accelerator cpu",
    r"Automatic gradient clipping is not supported": "give model.gradient_clip_val instead of the trainer's",
    r"Automatic gradient accumulation is not supported": "raise data.batch_size instead",
    r"Found more than one stateful callback of type `\w+`": "keep one of them",
    r"No API key configured": "run wandb login, or log offline by --trainer.logger.offline true",
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
        if found := re.match(pattern, message):
            return f"{found[0]}: {remedy}."
    if re.search(r"Parser key \"|Problem with given class_path '|Does not validate against", message):
        mistake = _innermost(message)
    else:
        mistake = _Mistake("", "", [" ".join(message.split())], "")
    return _in_words(mistake, names)


def _innermost(message: str) -> _Mistake:
    """Find the first reason and the others of its union, up to the value, with which jsonargparse ends a union."""
    block, _, rest = _CALLABLE.sub("", message).partition("Given value: ")
    lines = [line.strip().removeprefix("- ") for line in block.splitlines()]
    told = [number for number, line in enumerate(lines) if not _TRIED.match(line)] or [0]
    if len(told) > 1 and "does not correspond to a subclass" in lines[told[0]]:
        told = told[1:]  # the value is of another type of the union, whose reason comes next
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


def _in_words(mistake: _Mistake, names: Iterable[str]) -> str:
    """Rephrase jsonargparse's reason in terms of the configuration."""
    reason, owner = mistake.reasons[0], mistake.owner
    where = f"{mistake.key}: " if mistake.key else ""
    if found := re.match(r"Not of type Magnitude: magnitude=(.*)", reason):
        return f"{mistake.key}={found[1]}"
    if found := re.match(r"Expected a dot import path string: (.*)", reason):
        return f'{where}there is no class "{found[1]}" ({_meant(found[1], names) or "others need a dotted path"}).'
    if found := re.match(r"module '(.*)' has no attribute '(.*)'", reason):
        short = [name.rpartition(".")[2] for name in names]
        return f"{where}there is no {found[1]}.{found[2]} ({_meant(found[2], short) or 'check its spelling'})."
    if found := re.match(r"Import path (\S* ?)does not correspond to a subclass of (.*)", reason):
        return f"{where}{_of_another_type(found[1].strip() or mistake.value, found[2])}"
    if found := re.match(r"Expected '(.*)' to be a subclass of (?:<class ')?(.*?)'?>?\.?$", reason):
        return f"{where}{found[1]} is not of type {found[2]}."
    if found := re.match(r"Expected '(.*)' to be a function that returns (?:<class ')?(.*?)'?>?\.?$", reason):
        return f"{where}{found[1]} is not annotated to return {found[2]}: write def f(...) -> {found[2]}."
    if found := re.match(r"Expected an instantiatable class, but (\S+) is abstract", reason):
        return f"{where}this {found[1].rpartition('.')[2]} has no class yet: give its class_path before its arguments."
    if reason.startswith("Not a valid subclass") and (named := re.search(r"'class_path': '([^']*)'", mistake.value)):
        return f"{where}the arguments of {named[1]} belong below init_args."
    if found := re.match(r"Not a valid subclass of (\w+)", reason):
        return f"{where}this is not of type {found[1]}: give its class_path, and its arguments below init_args."
    if reason.startswith("Option 'class_path' is not accepted"):
        return f"{where}the arguments of {owner} belong below init_args."
    if found := re.match(r"Option '(.*)' is not accepted", reason):
        return f"{where}{owner or 'the configuration'} has no argument {found[1]!r}: check its spelling."
    if found := re.match(r"Subcommand '.*' does not accept option '(.*)'", reason):
        return f"the configuration has no option {found[1]!r}: check its spelling."
    if mistake.key and (found := re.match(r"the following arguments are required: (.*)", reason)):
        return f"{where}{owner or 'this'} needs {found[1]} below init_args."
    if reason.startswith("unrecognized arguments: "):
        return f"{reason}: check their spelling."
    if expected := _expected(mistake):
        return f"{where}{mistake.value} {expected}."
    return f"{where}{reason}"


def _of_another_type(path: str, wanted: str) -> str:
    """What a name stands for that is no class of the type."""
    part = part_called(path)
    if isfunction(part) and "return" not in part.__annotations__:
        return (
            f"{path} is not annotated to return a {wanted}: write def {part.__name__}(...) -> {wanted}, or name a "
            "function of your own that calls it and is annotated so."
        )
    return f"{path} is not of type {wanted}."


def _expected(mistake: _Mistake) -> str:
    """What the value should have been, according to all types that were tried."""
    reasons = "\n".join(mistake.reasons)
    if choices := re.findall(r"^Expected a (?:typing\.)?Literal\[(.*)\]", reasons, re.MULTILINE):
        return f"is unknown: choose one of {', '.join(choices)}"
    types = re.findall(r"^Expected a <class '(.*)'>", reasons, re.MULTILINE)
    return f"is not of type {' or '.join(types)}" if types else ""


def _meant(name: str, names: Iterable[str]) -> str:
    full = {one.rpartition(".")[2]: one for one in names}
    near = get_close_matches(name, list(full), n=1, cutoff=0.6)
    return f"did you mean {full[near[0]]}?" if near else ""
