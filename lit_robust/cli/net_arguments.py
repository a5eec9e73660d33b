"""Changes of a net's arguments by the command, before the net is built."""

from collections.abc import Iterator
from contextlib import contextmanager
from inspect import Parameter, isclass, isfunction, signature
from typing import Any, get_type_hints

from jsonargparse import Namespace
from lightning.pytorch import LightningModule
from torch import nn
from torchmetrics import Metric

from lit_robust.cli.classes import arguments_of


def makes_net(part: Any) -> bool:
    """Whether a class or function, which is not called, makes a net."""
    if isfunction(part):
        try:
            part = get_type_hints(part).get("return")
        except (TypeError, NameError):
            return False
    return isclass(part) and issubclass(part, nn.Module) and not issubclass(part, LightningModule | Metric)


def hides_class_count(part: Any) -> bool:
    """Whether a function of timm takes ``num_classes`` as one of its ``**kwargs``, which no signature shows."""
    if not isfunction(part) or part.__module__.partition(".")[0] != "timm":
        return False
    parameters = signature(part).parameters
    return "num_classes" not in parameters and any(one.kind is Parameter.VAR_KEYWORD for one in parameters.values())


def fill_class_count(net: Any, num_classes: int) -> None:
    """Give the data's number of classes to a net, and to the nets that are its arguments, where it is null.

    Args:
        net: The configuration of a net, changed in place; anything else is left alone.
        num_classes: The number of classes.
    """
    arguments = arguments_of(net)
    for name, value in arguments.items():
        if name == "num_classes" and value is None:
            arguments[name] = num_classes
        fill_class_count(value, num_classes)


def build_data(data: Namespace, parser: Any) -> Any:
    """Make the data that a configuration names, by the parser of the command."""
    instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes  # by jsonargparse's version
    return instantiate(Namespace({"data": data})).data  # type: ignore[no-untyped-call]  # jsonargparse's


@contextmanager
def completed(config: Namespace, parser: Any) -> Iterator[None]:
    """Build the data, and complete the configuration of the net, for as long as the other parts are built.

    ``num_classes`` stays filled in. A net of ``lit_robust.nets`` whose weights a checkpoint brings is built with random
    ones, so that nothing is downloaded.

    Args:
        config: The configuration of a command; ``data`` is replaced by what it makes.
        parser: Its parser.
    """
    written = config.data
    config.data = build_data(written, parser)
    net = config.model.get("init_args", {}).get("net")
    fill_class_count(net, config.data.num_classes)
    arguments = arguments_of(net)
    pretrained = arguments.get("pretrained")
    if config.get("ckpt_path") and pretrained and str(net.class_path).startswith("lit_robust.nets."):
        arguments["pretrained"] = False
    try:
        yield
    finally:  # the run's config.yaml is written later
        config.data = written
        if pretrained:
            arguments["pretrained"] = pretrained
