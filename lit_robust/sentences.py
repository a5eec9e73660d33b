"""One sentence out of the page that jsonargparse writes about a mistake.

jsonargparse says everything that it tried: each type of a union, each way to read a value, each level on the way
there. What a user needs is the key and the innermost reason, and the name that was probably meant.
"""

import re
from collections.abc import Iterable
from difflib import get_close_matches

#: Lines that tell what was tried, and not why it failed.
_TRIED = re.compile(
    r"Does not validate|Subtypes:|Errors:|Expected a <class 'NoneType'>|Given value|Expected a path but|"
    r"Type typing\.Callable|Parser key \"[^\"]*\"[^:]*:$|Problem with given class_path '[^']*':$"
)


def sentence(message: str, names: Iterable[str] = ()) -> str:
    """Condense an error of jsonargparse; any other text comes back as it is.

    Args:
        message: What jsonargparse says.
        names: Short names that a user may have meant.
    """
    if "\n" not in message and "Parser key" not in message:
        return _in_words(message, "", "", names)
    if message.startswith("Problems parsing config"):  # YAML's own words, which name line and column
        return " ".join(message.split())
    lines = [line.strip().removeprefix("- ") for line in message.splitlines()]
    reasons = [line for line in lines if line and not _TRIED.match(line)]
    if not reasons:
        return message
    before = "\n".join(lines[: lines.index(reasons[0]) + 1] if reasons[0] in lines else lines)
    key = ".".join(re.findall(r'Parser key "([^"]*)"', before))
    owner = (re.findall(r"Problem with given class_path '([^']*)'", before) or [""])[-1]
    reason = re.sub(r'^Parser key "[^"]*":\s*', "", reasons[0])
    return _in_words(reason, key, owner, names)


def _in_words(reason: str, key: str, owner: str, names: Iterable[str]) -> str:
    """Say in the field's words what jsonargparse says in Python's."""
    where = f"{key}: " if key else ""
    if found := re.match(r"Not of type Magnitude: magnitude=(.*)", reason):
        return f"{key}={found[1]}"
    if found := re.match(r"Expected a dot import path string: (.*)", reason):
        return f'{where}there is no class "{found[1]}"{_meant(found[1], names)}.'
    if found := re.match(r"module '(.*)' has no attribute '(.*)'", reason):
        return f"{where}there is no {found[1]}.{found[2]}{_meant(found[2], names)}."
    if found := re.match(r"Option '(.*)' is not accepted", reason):
        return f"{where}{owner or 'the configuration'} has no argument {found[1]!r}: check its spelling."
    if found := re.match(r"Expected a typing\.Literal\[(.*)\]\. Got value: (.*)", reason):
        return f"{where}{found[2]} is unknown: choose one of {found[1]}."
    if found := re.match(r"Expected a <class '(.*)'>\. Got value: (.*)", reason):
        return f"{where}{found[2]} is not of type {found[1]}."
    return f"{where}{reason}" if reason.startswith(("File", "Problem")) else reason


def _meant(name: str, names: Iterable[str]) -> str:
    near = get_close_matches(name, list(names), n=1, cutoff=0.6)
    return f" (did you mean {near[0]}?)" if near else ""
