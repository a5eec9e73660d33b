"""The net as attacks see it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from lit_robust.compilation import CompilationClock
from lit_robust.first_batch import a_row_for_each_image, only_logits
from lit_robust.guards import network_mode
from lit_robust.nets.folded import FoldedNet
from lit_robust.torch_internals import is_compiled, unwrapped
from lit_robust.training.monitors import Monitored


def let_give_logits(net: nn.Module) -> None:
    """Make a net return its logits alone, with a row for each image, once however many modules hold it."""
    if not getattr(net, "gives_only_logits", False):
        net.register_forward_hook(only_logits)
        if not is_compiled(net):
            net.register_forward_hook(a_row_for_each_image)
        net.gives_only_logits = True  # type: ignore[assignment]  # a module's attributes may be of any type


class Attacked(Monitored):
    """Gives attacks the net in their mode; in eval mode, its copy with folded BatchNorms, see ``FoldedNet``.

    The copies belong to one fit or test. They are not registered as sub-modules, so no ``state_dict``, EMA or optimizer
    contains them.
    """

    net: nn.Module
    attack_bn_mode: Literal["eval", "train"] = "eval"
    #: Whether attacks in eval mode see BatchNorms folded, and whether their copy of the net is compiled.
    fold_batchnorm = True
    compiles = False
    #: Whether the net, or a part of it, is compiled.
    compiled = False

    def __init__(self) -> None:
        super().__init__()
        self._folded: dict[nn.Module, FoldedNet] = {}
        self._clock: CompilationClock | None = None

    def configure_callbacks(self) -> Any:
        """Unwrap what was wrapped since the module was built; here, before callbacks copy the net in their setup."""
        self.net = unwrapped(self.net)
        self.compiled |= any(map(is_compiled, self.net.modules()))
        return super().configure_callbacks()

    def setup(self, stage: str) -> None:
        """Forget the copies of an earlier fit or test."""
        super().setup(stage)
        self._folded.clear()
        self._clock = CompilationClock() if self.compiled else None

    def teardown(self, stage: str) -> None:
        """Say how long compilations took, and drop the copies: a GPU would keep their folded weights."""
        self._folded.clear()
        if took := str(self._clock or ""):
            rank_zero_info(took)
        super().teardown(stage)

    def folded(self, net: nn.Module, x: Tensor) -> nn.Module:
        """A net in eval mode as attacks on the images ``x`` see it, with the current weights."""
        if not self.fold_batchnorm:
            return net
        if net not in self._folded:
            self._folded[net] = FoldedNet(self.compiles)
        return self._folded[net](net, x, self.current_epoch)

    @contextmanager
    def attacked(self, x: Tensor) -> Iterator[nn.Module]:
        """The trained net in ``attack_bn_mode``, for attacks on the images ``x``."""
        with network_mode(self.net, self.attack_bn_mode):
            yield self.folded(self.net, x) if self.attack_bn_mode == "eval" else self.net
