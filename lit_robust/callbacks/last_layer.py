"""The gradients from which a coreset is chosen, at the adversarial images of the whole training set."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from copy import copy, deepcopy
from itertools import islice
from typing import Any, Protocol

import torch
import torch.distributed as dist
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn

from lit_robust import losses
from lit_robust.attacks.base import Attack
from lit_robust.batch import Batch
from lit_robust.callbacks.adapter import Adapter
from lit_robust.callbacks.coreset_data import Embedded, batches_of, labels_alone, number_of_batches
from lit_robust.callbacks.selection_cost import counting
from lit_robust.callbacks.selection_stops import until_asked
from lit_robust.guards import buffers_kept, checked, frozen, network_mode
from lit_robust.ranks import alone
from lit_robust.seeds import seed
from lit_robust.selection import CoresetSampler, Embeddings, Outer, Selector, concatenated, last_layer_gradients
from lit_robust.selection.embeddings import rows
from lit_robust.terminal import progress_bar
from lit_robust.torch_internals import version_of


class Remembers(Protocol):
    """What a method remembers between batches."""

    tensors: dict[str, Tensor]
    values: dict[str, Any]


class Method(Protocol):
    """A module whose own adversary and loss are used to select, such as every Defense."""

    adversarial: bool
    attack_bn_mode: str
    #: The index of the batch in its epoch.
    batch_idx: int
    memory: Remembers
    seen: dict[str, Tensor]
    log_now: Callable[..., None]

    def perturb(self, batch: Batch) -> Any:
        """Find adversarial images."""

    def loss(self, batch: Batch, x_adv: Any) -> Tensor:
        """The training loss of each sample."""

    def natural_loss(self, batch: Batch) -> Tensor:
        """The loss of each sample while ``adversarial`` is false."""


class Guided(Protocol):
    """The further attribute of a method whose attack is guided by clean logits, such as GAT."""

    reference_bn_mode: str


class MayBeAttacked(Protocol):
    """What ``AdversarialTraining`` lends a module."""

    adversarial: bool
    attack: Attack


def is_method(module: object) -> bool:
    """Whether a module has what ``Method`` says; by name, because from Python 3.12 on isinstance misses sub-modules."""
    return all(hasattr(module, name) for name in ("perturb", "loss", "natural_loss", "attack_bn_mode", "memory"))


def head_of(net: nn.Module, x: Tensor) -> nn.Linear:
    """The Linear layer that returns the net's logits.

    Raises:
        ValueError: If there is none.
    """
    returned: list[tuple[nn.Linear, Tensor]] = []
    handles = [
        module.register_forward_hook(lambda layer, _, output: returned.append((layer, output)))
        for module in net.modules()
        if isinstance(module, nn.Linear)
    ]
    try:
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            logits = net(x)
    finally:
        for handle in handles:
            handle.remove()
    if not returned or returned[-1][1] is not logits:
        raise ValueError(
            f"CoresetSelection compares gradients of the last layer, which must be an nn.Linear that returns the "
            f"logits, but {type(net).__name__} does something after it or has none: set net to the sub-module that "
            "ends with it."
        )
    return returned[-1][0]


class Scratch:
    """Copies of a method's memory, each as it was before the selection.

    A tensor, such as the last perturbations of a batch, is copied once, and again only where a batch has written to it.
    """

    def __init__(self, module: Any, device: torch.device) -> None:
        self._memory: Remembers | None = module.memory if is_method(module) else None
        self._device = device
        self._tensors: dict[str, Tensor] = {}
        self._versions: dict[str, int] = {}

    def memory(self) -> Remembers | None:
        """What the next batch may change; None if the module is not a method."""
        if self._memory is None:
            return None
        for name, tensor in self._memory.tensors.items():
            if name not in self._tensors or version_of(self._tensors[name]) != self._versions[name]:
                self._tensors[name] = tensor.detach().to(self._device, copy=True)
                self._versions[name] = version_of(self._tensors[name])
        memory = copy(self._memory)
        memory.tensors, memory.values = dict(self._tensors), deepcopy(self._memory.values)
        return memory


@contextmanager
def untouched(module: Any, net: nn.Module, memory: Remembers | None = None) -> Iterator[None]:
    """Put the net in eval mode, frozen, uncompiled and ``alone``; then restore flags, buffers and what a method has.

    Args:
        module: What is trained.
        net: Its net.
        memory: What a method remembers meanwhile.
    """
    meanwhile = {"attack_bn_mode": "eval", "reference_bn_mode": "eval", "batch_idx": 0, "memory": memory, "seen": {}}
    kept = {} if memory is None else {name: vars(module)[name] for name in meanwhile if name in vars(module)}
    with alone(), buffers_kept(net), ExitStack() as stack:  # ranks may have unequal numbers of batches
        for context in (checked(), frozen(net), network_mode(net, "eval"), torch.compiler.set_stance("force_eager")):
            stack.enter_context(context)
        if kept:
            for name in kept:
                setattr(module, name, meanwhile[name])
            module.log_now = lambda **_: None
        try:
            yield
        finally:
            for name, value in kept.items():
                setattr(module, name, value)
            vars(module).pop("log_now", None)


def is_natural_now(module: object) -> bool:
    """Whether a delayed start has not begun yet."""
    return not getattr(module, "adversarial", True)


def loss_of(module: Any, net: nn.Module, batch: Batch, attack: Attack | None) -> Callable[[], Tensor]:
    """Find the batch's adversarial images, and return what computes the loss of each sample at them."""
    natural = is_natural_now(module)
    if is_method(module) and attack is None:
        method: Method = module
        if natural:
            return lambda: method.natural_loss(batch)
        # Not all methods attack every image of a batch with the present net in training.
        x_adv = getattr(method, "perturb_all", method.perturb)(batch)
        return lambda: method.loss(batch, x_adv)
    own = getattr(module, "attack", None)  # set by AdversarialTraining; else the user's own, of any type
    adversary = None if natural else attack or (own if isinstance(own, Attack) else None)
    images = batch.x if adversary is None else adversary(net, batch.x, batch.y)
    return lambda: losses.ce(net(images), batch.y)


def embed(
    trainer: Trainer,
    module: Any,
    adapter: Adapter,
    selector: Selector,
    sampler: CoresetSampler | None,
    attack: Attack | None,
    epoch: int,
    limit: int | None = None,
) -> Embedded:
    """Embed this rank's batches and gather those of all ranks in the training set's order, on the first rank.

    The first rank chooses, so the others return no samples. It must hold the embeddings of all images, on its device.
    A batch's random numbers are seeded by the epoch and its place, so the result is the same on any number of ranks.
    Each image is augmented once; the attack and the embedding see the same version.

    Args:
        trainer: The trainer.
        module: What is trained.
        adapter: Finds images and labels in a batch.
        selector: What the embeddings are for.
        sampler: Of loaders that are not of ``lit_robust.data``.
        attack: The selection's adversary; None for the training's own.
        epoch: The epoch that the selection is for.
        limit: How many batches each rank embeds; None for all.

    Raises:
        Interrupted: If a signal asks to stop.
    """
    if selector.reads == "nothing":
        return labels_alone(trainer, sampler)
    total = number_of_batches(trainer, sampler)
    total = total if limit is None else min(total, limit)
    batches = islice(batches_of(trainer, sampler, epoch), limit)
    device: torch.device = trainer.strategy.root_device
    quiet = not trainer.is_global_zero or trainer.progress_bar_callback is None
    parts: list[tuple[int, Embedded]] = []
    net = head = None
    scratch = Scratch(module, device)
    bar = progress_bar("Selecting", iterable=batches, total=total, disable=quiet)
    with isolate_rng(), trainer.precision_plugin.train_step_context(), bar:
        for place, raw in until_asked(module, bar, total, device):
            converted = move_data_to_device(trainer.precision_plugin.convert_input(raw), device)
            if net is None or head is None:
                with untouched(module, adapter.users_net(module)):
                    adapter.check(module, converted)
                    net = adapter.logits_net(module)
                    head = head_of(net, adapter.pixels(converted)[:2])
            batch = adapter.labelled(converted)
            if sampler is not None:  # indices may be missing or another dataset's, weights the last selection's
                place_of = place + torch.arange(len(batch.y), device=device)
                batch = batch._replace(index=place_of, weight=torch.ones(len(batch.y), device=device))
            if len(batch.y) == 1:  # with an extra row (SATR1's), one image would look like two terms: add padding
                batch = Batch(*(part.repeat(2, *[1] * (part.ndim - 1)) for part in batch))
                batch.weight[1] = 0
            with untouched(module, net, scratch.memory()), counting(module):
                seed(device, "select", epoch, place)
                part = last_layer_gradients(head, loss_of(module, net, batch, attack))
            real = batch.weight > 0
            parts.append((place, Embedded(rows(part, real), batch.y[real], batch.index[real])))
    every = parts if trainer.world_size == 1 else _on_first_rank(parts, trainer.world_size, device)
    in_order = [part for _, part in sorted(every, key=lambda one: one[0]) if len(part.y)]
    if not in_order:
        nothing = torch.empty(0, dtype=torch.int64, device=device)
        return Embedded(torch.empty(0, 0, device=device), nothing, nothing)
    embeddings, y, index = zip(*in_order, strict=True)
    return Embedded(concatenated(list(embeddings)), torch.cat(y), torch.cat(index))


def _on_first_rank(mine: list[tuple[int, Embedded]], world: int, device: torch.device) -> list[tuple[int, Embedded]]:
    ranks: list[Any] | None = [None] * world if dist.get_rank() == 0 else None
    dist.gather_object([(place, _to(part, torch.device("cpu"))) for place, part in mine], ranks)
    return [(place, _to(part, device)) for rank in ranks or () for place, part in rank]


def _to(part: Embedded, device: torch.device) -> Embedded:
    embeddings = part.embeddings
    if isinstance(embeddings, Outer):
        moved: Embeddings = Outer(embeddings.left.to(device), embeddings.right.to(device))
    else:
        moved = embeddings.to(device)
    return Embedded(moved, part.y.to(device), part.index.to(device))
