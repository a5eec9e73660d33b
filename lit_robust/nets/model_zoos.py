"""Any classification net of torchvision or timm by its name, with random or pretrained weights."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import nn

from lit_robust import require
from lit_robust.nets.builders import recorded
from lit_robust.nets.net import IMAGENET_MEAN, IMAGENET_STD, Net, NormalizedNet, PerChannel

#: One number per channel, None for pixels as they are, or those that the weights were trained with.
Statistics: TypeAlias = PerChannel | Literal["weights"]


@recorded
def torchvision_net(
    name: str = "resnet18",
    pretrained: bool = False,
    weights: str = "DEFAULT",
    num_classes: int = 10,
    mean: Statistics = "weights",
    std: Statistics = "weights",
) -> NormalizedNet:
    """Any classification net of torchvision, normalising inside by the mean and std of its weights.

    Where the last layer is a Linear, in all but SqueezeNet, the net has ``features`` and ``head``.
    GoogLeNet and Inception are built without their auxiliary classifiers.

    Args:
        name: As in ``torchvision.models``, such as ``resnet50`` or ``vit_b_16``.
        pretrained: Whether to start from trained weights, which are downloaded once; the last layer is new if they
            have another number of classes.
        weights: Which of the trained weights; their mean and std are used with random weights, too.
        num_classes: The number of logits.
        mean: See ``Net``; the weights' own by default.
        std: See ``Net``; the weights' own by default.

    Raises:
        ValueError: If there is no such net or no such weights.
        OSError: If the weights cannot be downloaded.
    """
    require.flags(pretrained=pretrained)
    from torchvision import models  # it takes as long as torch to import

    _known("name", name, models.list_models(module=models), "torchvision's classification nets")
    entries = models.get_model_weights(name)
    chosen = entries[_known("weights", weights, entries.__members__, f"the weights of {name}")]
    preset, size = chosen.transforms(), max(chosen.meta["min_size"])

    def build(**arguments: Any) -> nn.Module:
        if name.startswith("vit_"):
            arguments["image_size"] = size  # of its position embedding
        if name in ("googlenet", "inception_v3"):
            arguments |= {"aux_logits": False, "transform_input": True}
            arguments |= {} if arguments["weights"] else {"init_weights": True}
        with _regnets_on_meta():
            net: nn.Module = models.get_model(name, **arguments)
        return net

    if pretrained:
        file = Path(torch.hub.get_dir(), "checkpoints", str(chosen.url).rpartition("/")[2])
        with _told(f"the weights {weights} of {name}", f"put the file of {chosen.url} at {file}"):
            net = build(weights=chosen)
        _renew_last_layer(net, num_classes)
    else:
        net = build(weights=None, num_classes=num_classes)
    statistics = _statistics(mean, std, preset.mean, preset.std)
    return _with_head(net, lambda: build(weights=None, num_classes=num_classes), max(size, 224), *statistics)


@recorded
def timm_net(
    name: str = "resnet18",
    pretrained: bool = False,
    num_classes: int = 10,
    image_size: int | None = None,
    mean: Statistics = "weights",
    std: Statistics = "weights",
) -> NormalizedNet:
    """Any classification net of timm (the extra ``lit-robust[timm]``), normalising inside by its weights' mean and std.

    Where one Linear gives the logits, the net has ``features`` and ``head``.

    Args:
        name: As in ``timm.list_models()``, perhaps with the tag of its weights, such as ``resnet50.a1_in1k``.
        pretrained: Whether to start from trained weights, which are downloaded once; the last layer is new if they
            have another number of classes.
        num_classes: The number of logits.
        image_size: Height and width of the images, for nets that are built for one size, such as transformers; None
            for that of the weights.
        mean: See ``Net``; the weights' own by default.
        std: See ``Net``; the weights' own by default.

    Raises:
        ImportError: If timm is not installed.
        ValueError: If there is no such net.
        OSError: If the weights cannot be downloaded.
    """
    require.flags(pretrained=pretrained)
    try:
        import timm
    except ImportError as error:
        raise ImportError('timm_net needs timm: pip install "lit-robust[timm]".') from error
    _known("name", name.partition(".")[0] or name, timm.list_models(), "timm's nets")
    arguments = {"num_classes": num_classes} | ({} if image_size is None else {"img_size": image_size})

    def build(pretrained: bool = False) -> nn.Module:
        net: nn.Module = timm.create_model(name, pretrained=pretrained, **arguments)
        return net

    try:
        if pretrained:
            with _told(f"the weights of {name}", "copy the Hugging Face cache of a machine that has them"):
                net = build(pretrained=True)
        else:
            net = build()
    except TypeError as error:
        if image_size is None:
            raise
        raise ValueError(f"image_size={image_size}: {name} is not built for one size, leave image_size out.") from error
    except RuntimeError as error:  # of a tag that does not exist
        raise ValueError(f'name="{name}" makes no net of timm ({error}): see timm.list_pretrained().') from error
    preset: Mapping[str, Any] = getattr(net, "pretrained_cfg", None) or {}
    size = image_size or max(preset.get("input_size", (3, 224, 224))[1:])
    statistics = _statistics(mean, std, preset.get("mean", IMAGENET_MEAN), preset.get("std", IMAGENET_STD))
    return _with_head(net, build, size, *statistics)


def _known(argument: str, value: str, choices: Iterable[str], kind: str) -> str:
    """Refuse a name that is not on the list, such as a path or an address."""
    choices = list(choices)
    if value in choices:
        return value
    near = get_close_matches(str(value), choices, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"such as {', '.join(choices[:3])}."
    raise ValueError(f'{argument}="{value}" is none of {kind}: {hint}')


def _statistics(
    mean: Statistics, std: Statistics, own_mean: Sequence[float], own_std: Sequence[float]
) -> tuple[PerChannel, PerChannel]:
    found: list[PerChannel] = []
    for name, value, own in (("mean", mean, own_mean), ("std", std, own_std)):
        if isinstance(value, str) and value != "weights":
            raise ValueError(f'{name}="{value}" must be "weights", one number per channel, or null.')
        found.append(tuple(own) if isinstance(value, str) else value)
    return found[0], found[1]


@contextmanager
def _told(what: str, other: str) -> Iterator[None]:
    """Replace the errors of other packages, of many lines, by one sentence if weights cannot be downloaded.

    Raises:
        OSError: If they cannot be.
    """
    talker = logging.getLogger("huggingface_hub")
    level = talker.level
    talker.setLevel(logging.ERROR)  # it reports each of its retries
    try:
        yield
    except TypeError:  # of an argument
        raise
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:150].rstrip(".")
        raise OSError(
            f"pretrained=True: {what} cannot be downloaded ({reason}): connect to the network once, {other}, or start "
            "from random weights (--model.net.pretrained false)."
        ) from error
    finally:
        talker.setLevel(level)


@contextmanager
def _regnets_on_meta() -> Iterator[None]:
    """Compute the widths of a RegNet on the CPU: torchvision reads them from tensors, which are empty on ``meta``."""
    from torchvision.models import regnet

    kept = vars(regnet.BlockParams)["from_init_params"]
    compute = regnet.BlockParams.from_init_params

    def on_the_cpu(*args: Any, **kwargs: Any) -> Any:
        with torch.device("cpu"):
            return compute(*args, **kwargs)

    regnet.BlockParams.from_init_params = on_the_cpu
    try:
        yield
    finally:
        regnet.BlockParams.from_init_params = kept


def _last_layer(net: nn.Module) -> tuple[str, nn.Linear | nn.Conv2d]:
    return [(path, part) for path, part in net.named_modules() if isinstance(part, nn.Linear | nn.Conv2d)][-1]


def _replace(net: nn.Module, path: str, part: nn.Module) -> None:
    owner, _, child = path.rpartition(".")
    setattr(net.get_submodule(owner), child, part)


def _renew_last_layer(net: nn.Module, num_classes: int) -> None:
    """Give a trained net of torchvision another number of classes; with the same number the layer stays."""
    path, last = _last_layer(net)
    if isinstance(last, nn.Conv2d):
        if last.out_channels != num_classes:
            _replace(net, path, nn.Conv2d(last.in_channels, num_classes, last.kernel_size))  # type: ignore[arg-type]  # a pair of ints
    elif last.out_features != num_classes:
        _replace(net, path, nn.Linear(last.in_features, num_classes, last.bias is not None))


def _with_head(
    net: nn.Module, build: Callable[[], nn.Module], size: int, mean: PerChannel, std: PerChannel
) -> NormalizedNet:
    """Normalise a net inside, and use its last Linear as ``head`` if that layer returns the net's logits.

    A forward of the same net on the meta device shows this; it needs no memory and computes nothing.

    Args:
        net: Turns normalised images into logits.
        build: Builds the same net with random weights.
        size: The height and width of images that it reads.
        mean: The mean of each channel.
        std: Their standard deviation.
    """
    if next(net.parameters()).is_meta:
        outline = net
    else:
        with torch.device("meta"):
            outline = build()
    path, last = _last_layer(outline)
    returned: list[Any] = []
    handle = last.register_forward_hook(lambda part, args, output: returned.append(output))
    try:
        logits = outline.eval()(torch.empty(2, 3, size, size, device="meta"))
        is_head = isinstance(last, nn.Linear) and len(returned) == 1 and logits is returned[0] and logits.ndim == 2
    except Exception:  # of a net that cannot be run without values
        is_head = False
    handle.remove()
    outline.train()
    if not is_head:
        return NormalizedNet(net, mean=mean, std=std)
    head: Any = net.get_submodule(path)
    _replace(net, path, nn.Identity())
    return Net(net, head, mean=mean, std=std)
