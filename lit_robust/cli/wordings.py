"""What jsonargparse says of a value that it cannot use, and how we say it."""

#: How a single value of these types is written.
BRACKETS = {"list": ": write [{}]", "dict": ": write {{name: {}}}"}

#: jsonargparse's reasons, and our sentences for them; numbers in braces are the pattern's groups.
WORDS = {
    r"Not of type Magnitude: magnitude='?None'? is": (
        "{key}=None is a word in YAML: leave it out for its default, or write null where there may be no value."
    ),
    r"Not of type Magnitude: magnitude=(.*)": "{key}={1}",
    r"Expected a path but (\S+) either": "{where}there is no file {1}.",
    r"Unable to load config '(.*)'": "{where}{1} is neither a file nor a mapping of options.",
    r"Invalid content in sub-config file (\S+): (.*)": "{where}{1} is not valid YAML: {2}",
    r"Expected a dot import path string: (.*)": '{where}there is no class "{1}" ({meant:others need a dotted path}).',
    r"Unexpected import path format: (.*)": '{where}there is no class "{1}" ({meant:others need a dotted path}).',
    r"module '(.*)' has no attribute '(.*)'": "{where}there is no {1}.{2} ({meant:check its spelling}).",
    r"Expected '(.*)' to be a subclass of (?:<class ')?(.*?)'?>?\.?$": (
        "{where}{1} is not of type {2}: name a class that is."
    ),
    r"Expected '(.*)' to be a function that returns (?:<class ')?(.*?)'?>?\.?$": (
        "{where}{1} is not annotated to return {2}: write def f(...) -> {2}."
    ),
    r"Expected an instantiatable class, but (?:\S+\.)?(\w+) is abstract": (
        "{where}this {1} has no class yet: give its class_path before its arguments."
    ),
    r"Not a valid subclass of \w+.*\n(?:.*\n)*.*'class_path': '([^']*)'": (
        "{where}the arguments of {1} belong below init_args."
    ),
    r"Not a valid subclass of (\w+)": (
        "{where}this is not of type {1}: give its class_path, and its arguments below init_args."
    ),
    r"Expected an import path or a subclass spec, but got (.*)": (
        "{where}{1} names no class: give one, as class_path: NAME with its arguments below init_args."
    ),
    r"Key must be a string, got: (.*)\.$": (
        "{where}{1} is not an argument's name: give arguments by name, as name: value."
    ),
    r"No module named '(.*)'": "{where}there is no module {1}: check its spelling, or install its package.",
    r"'NoneType' object has no attribute 'keys'": "{where}init_args is null: write its arguments, or leave it out.",
    r"argument of type 'NoneType' is not": "{where}class_path is null: name a class.",
    r"Option 'class_path' is not accepted": "{where}the arguments of {owner} belong below init_args.",
    r"Option '(.*)' is not accepted": "{where}{owner} has no argument '{1}': {argument:check its spelling}.",
    r"Subcommand '.*' does not accept option '(.*)'": "the configuration has no option '{1}': check its spelling.",
    r"the following arguments are required: ([^:\n]*)$": "{where}{owner} needs {1} below init_args.",
    r"unrecognized arguments: (.*)": "unrecognized arguments: {1}: check their spelling.",
}
