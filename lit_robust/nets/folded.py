"""A net as attacks in eval mode see it: BatchNorms are folded into the convolutions before them.

In eval mode a BatchNorm is a fixed scale ``s = weight / sqrt(var + eps)`` and shift of each channel. A convolution
whose output nothing else reads can hold them: ``W' = s W`` and ``b' = s (b - mean) + bias``. The logits are the same to
rounding; forward and backward save the BatchNorms' passes over the activations.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lit_robust.compilation import compile_in_place
from lit_robust.guards import on_trial
from lit_robust.logits import logits_of
from lit_robust.nets.foldable import Pair, candidates, in_full_precision, types_fit
from lit_robust.torch_internals import is_changed, is_compiled, parts_of, shallow_copy, take_over

#: Half precision would round the folded weights too coarsely.
PRECISIONS = (torch.float32, torch.float64)

#: The largest difference of logits, in units of their distance from the mean over images, and of the largest logit,
#: whose rounding makes 1e-7. Where that distance is below the first share of the largest logit, it tells nothing.
TOLERANCE, ROUNDING = 1e-3, 1e-5

#: The images of a check.
FEW = 8

#: Convolutions with their BatchNorms.
Layers = Sequence[tuple[nn.Module, nn.Module]]

#: The attributes of a copy that hold the net and ``_Copy.refill``.
UNFOLDED, REFILL = "_unfolded", "_refill"


def unfolded(net: nn.Module) -> nn.Module:
    """The net that a copy with folded BatchNorms was made of; any other net is returned as it is.

    An attack that runs the net in train mode, or reads single layers or weights, needs this. A wrapper around a copy
    is replaced by one around its net.
    """
    copies = {part: vars(part)[UNFOLDED] for part in net.modules() if UNFOLDED in vars(part)}
    return _Copy(net, copies).net if copies else net


def refill(net: nn.Module) -> None:
    """Let a copy follow its net, whose statistics a forward in train mode has moved; no other net changes."""
    for part in net.modules():
        vars(part).get(REFILL, lambda: None)()


class FoldedNet:
    """Gives attacks a copy of a net whose BatchNorms are folded, and whose other layers and tensors are the net's own.

    The copy is built once, and again where a layer that is folded has changed; each call refills its folded weights in
    place. The pairs are found by tracing the net with ``torch.fx``, or those of its parts that can be traced. The copy
    runs the net's own code. It is used only if two forwards of the net agree, so that a random net stays as it is, and
    if folding keeps the logits on two small batches for any values of the BatchNorms. This is checked again in each
    epoch and for each shape of images, and with each batch while all images have about the same logits; a copy that
    fails is not used in this epoch, so a resumed training folds what an uninterrupted one does.

    A pair stays as it is while either layer has a hook or a parametrisation, and while the BatchNorm is in train mode
    or has no running statistics. A net that keeps what cannot be copied, such as an open file, stays as it is, because
    checks run it on copies of its attributes and buffers.

    Args:
        compiles: Whether to compile the copy. Otherwise a compiled net is not folded, because the options that it was
            compiled with are not known.
    """

    def __init__(self, compiles: bool = False) -> None:
        self.compiles = compiles
        self.forget()

    def forget(self) -> None:
        """Drop the copy."""
        self._net: nn.Module | None = None
        self._candidates: list[Pair] = []
        self._state: list[Any] = []
        self._copy: _Copy | None = None
        self._failed_in: int | None = None
        #: The pairs that can be folded now.
        self.pairs: list[Pair] = []
        #: The epochs and shapes for which the copy has given the net's logits; empty it to have the copy checked again.
        self.checked: set[Any] = set()

    def __getstate__(self) -> dict[str, Any]:
        """A copy, such as that of a module for an average, builds its own."""
        return {"compiles": self.compiles}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Begin without a net."""
        self.compiles = state["compiles"]
        self.forget()

    def __call__(self, net: nn.Module, x: Tensor, epoch: int = 0) -> nn.Module:
        """Return the copy with the net's present weights, or the net itself where nothing can be folded.

        Args:
            net: In the mode in which it is to be attacked.
            x: Images; the first few are used when the copy is checked.
            epoch: The epoch, in each of which the copy is checked.
        """
        if len(x) == 0:  # a copy could not be compared with its net
            return net
        if net is not self._net:
            self.forget()
            self._net = net
            if self.compiles or not any(map(is_compiled, net.modules())):
                self._candidates = candidates(net, x.device)
        state = [_foldable(net, pair) for pair in self._candidates]
        if state != self._state:
            self._state, self._copy, self._failed_in = state, None, None
            self.checked.clear()
            self.pairs = [pair for pair, found in zip(self._candidates, state, strict=True) if found]
        if not self.pairs or epoch == self._failed_in:
            return net
        if (place := (epoch, x.shape[1:])) not in self.checked:
            agrees = self._check(net, x)
            if agrees is False:
                self._failed_in = epoch
                return net
            self.checked |= {place} if agrees else set()
        assert self._copy is not None  # it has been checked
        self._copy.refill()
        return self._copy.net

    def _check(self, net: nn.Module, x: Tensor) -> bool | None:
        """Whether the copy gives the net's logits, or None if these do not tell; builds it if there is none."""
        layers = [(net.get_submodule(pair.conv), net.get_submodule(pair.norm)) for pair in self.pairs]
        with torch.inference_mode(False), torch.no_grad():
            with on_trial(net, x.device) as can_run:
                agrees = _may_fold(net, layers, x[:FEW].clone()) if can_run else False
            if agrees is not False and self._copy is None:
                self._copy = copy = _folded(net, layers)
                vars(copy.net).update({UNFOLDED: net, REFILL: copy.refill})  # not a sub-module
                if self.compiles:
                    compile_in_place(copy.net)
        return agrees


class _Copy:
    """A net with some of its layers replaced: copies the modules that contain them, and shares everything else."""

    def __init__(self, net: nn.Module, replaced: dict[nn.Module, nn.Module], folds: "Sequence[_Fold]" = ()) -> None:
        self._replaced = dict(replaced)
        self._folds = folds
        self._containers: list[tuple[nn.Module, nn.Module]] = []
        self.net = self._copied(net)
        self.refill()

    def _copied(self, module: nn.Module) -> nn.Module:
        parts = [self._copied(part) for part in parts_of(module).values() if part is not None]
        if module not in self._replaced and any(part in self._replaced.values() for part in parts):
            self._replaced[module] = copy = shallow_copy(module)
            self._containers.append((module, copy))
        return self._replaced.get(module, module)

    def refill(self) -> None:
        """Take over the weights, and the attributes that may have been assigned since."""
        for module, copy in self._containers:
            parts: Any = parts_of(module).items()
            take_over(copy, module, modules={name: self._replaced.get(part, part) for name, part in parts})
        for fold in self._folds:
            fold.refill()


def _folded(net: nn.Module, layers: Layers) -> _Copy:
    folds = [_Fold(conv, norm) for conv, norm in layers]
    convs: dict[nn.Module, nn.Module] = {fold.conv: fold.folded for fold in folds}
    return _Copy(net, convs | {fold.norm: _Nothing() for fold in folds}, folds)


class _Nothing(nn.Identity):
    """Identity in place of a folded BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.eval()

    def forward(self, input: Tensor) -> Tensor:
        """Return the convolution's output, which is normalised."""
        if self.training:
            raise RuntimeError("a net with folded BatchNorms has no train mode: use nets.folded.unfolded(net).")
        return input


class _Fold:
    """A convolution that holds a BatchNorm."""

    def __init__(self, conv: Any, norm: Any) -> None:
        self.conv, self.norm = conv, norm
        tensors = {"weight": torch.empty_like(conv.weight), "bias": torch.empty_like(norm.running_var)}
        parameters = {name: nn.Parameter(one, requires_grad=False) for name, one in tensors.items()}
        self.folded: Any = shallow_copy(conv, parameters=parameters)

    @torch.no_grad()
    def refill(self) -> None:
        conv, norm = self.conv, self.norm
        scale = torch.rsqrt(norm.running_var + norm.eps)
        if norm.weight is not None:
            scale = scale * norm.weight
        shift = -norm.running_mean if conv.bias is None else conv.bias - norm.running_mean
        torch.mul(conv.weight, scale.view(-1, *[1] * (conv.weight.ndim - 1)), out=self.folded.weight)
        torch.mul(shift, scale, out=self.folded.bias)
        if norm.bias is not None:
            self.folded.bias.add_(norm.bias)


def _foldable(net: nn.Module, pair: Pair) -> tuple[Any, ...] | None:
    """What a copy is built for; None while the pair must stay as it is."""
    conv, norm = net.get_submodule(pair.conv), net.get_submodule(pair.norm)
    if not types_fit(conv, norm) or is_changed(conv) or is_changed(norm):
        return None
    weight: Any = conv.weight
    if norm.training or norm.running_var is None or weight.dtype not in PRECISIONS:
        return None
    of_conv: Any = (getattr(conv, name) for name in ("stride", "padding", "dilation", "groups", "padding_mode"))
    return conv, norm, weight.shape, weight.stride(), weight.dtype, weight.device, *of_conv


def _may_fold(net: nn.Module, layers: Layers, x: Tensor) -> bool | None:
    """Whether the net is deterministic, and folding would keep its logits for any values of its BatchNorms.

    A BatchNorm that has learned nothing changes nothing, so the comparison is made with others in their places. None if
    nothing speaks against it, but all images have about the same logits, as with a last layer of zeros.
    """
    others = {norm: _another(norm) for _, norm in layers}
    changed = _Copy(net, others).net
    copy = _folded(changed, [(conv, others[norm]) for conv, norm in layers]).net
    try:
        with torch.autocast(x.device.type, enabled=False), in_full_precision(x.is_cuda):
            # Without the hooks, which count passes, and without the compiled graph.
            found = [[logits_of(one.forward(x)), logits_of(one.forward(1 - x))] for one in (net, net, changed, copy)]
        first, second, with_norms, folded = map(torch.cat, found)
    except Exception:  # any error of any code, such as one that reads its BatchNorm's statistics, or refuses 1 - x
        return False
    if not torch.equal(first, second):
        return False
    largest, spread = (found.abs().max() for found in (with_norms, with_norms - with_norms.mean(dim=0)))
    agrees = bool((with_norms - folded).abs().max() <= torch.maximum(TOLERANCE * spread, ROUNDING * largest))
    return agrees if spread > TOLERANCE * largest or not agrees else None


def _another(norm: nn.Module) -> nn.Module:
    """A BatchNorm of the same kind with random statistics, scale and shift."""

    def near(tensor: Tensor | None) -> Any:
        return None if tensor is None else tensor * (0.5 + torch.rand_like(tensor)) + 0.1 * torch.rand_like(tensor)

    parameters = {name: near(getattr(norm, name)) for name in ("weight", "bias")}
    return shallow_copy(
        norm,
        buffers={name: near(getattr(norm, name)) for name in ("running_mean", "running_var")},
        parameters={name: None if one is None else nn.Parameter(one) for name, one in parameters.items()},
    )
