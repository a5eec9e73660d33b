"""Buffers of the net that differ between ranks: BatchNorm's statistics, which each rank takes from its own batches."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from lit_robust.checkpoint_states import of_rank
from lit_robust.ranks import average_buffers, float_buffers, gather_within_epoch
from lit_robust.training.meter import Metered


class Distributed(Metered):
    """Each rank trains and attacks with its own float buffers until an epoch's end or a validation averages them.

    ``Trained.finish_epoch`` averages them after an epoch's last update, and a validation within an epoch before its
    first batch, so that all ranks measure one net, the one that a ``ModelCheckpoint`` saves after it. A checkpoint that
    is written within an epoch holds the buffers of all ranks besides: its weights have rank 0's.
    """

    #: This rank's buffers in a checkpoint, until training goes on with them.
    _buffers_to_restore: Mapping[str, Tensor] = MappingProxyType({})

    def setup(self, stage: str) -> None:
        """Forget what an earlier fit has not restored."""
        super().setup(stage)
        self._buffers_to_restore = {}

    def on_train_start(self) -> None:
        """Continue with this rank's own buffers, and keep DDP from replacing them by rank 0's."""
        super().on_train_start()
        model = self.trainer.strategy.model
        if isinstance(model, DistributedDataParallel):
            model.broadcast_buffers = False  # under manual optimization it would, before the first batch alone
        own = float_buffers(self.net)
        for name, value in self._buffers_to_restore.items():
            own[name].copy_(value)
        self._buffers_to_restore = {}

    def on_validation_start(self) -> None:
        """Validate one net on all ranks."""
        super().on_validation_start()
        average_buffers(self.net)

    def buffers_of_ranks(self) -> list[dict[str, Tensor]]:
        """What a checkpoint holds of the buffers, see ``gather_within_epoch``; every rank must call it."""
        return gather_within_epoch(float_buffers(self.net), self.trainer)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep this rank's buffers for the training's start, because DDP begins with rank 0's on all ranks.

        Raises:
            ValueError: If they are broken or of another net.
        """
        if self.trainer.state.fn == "fit":
            saved = checkpoint.get("lit_robust", {}).get("buffers", [])
            self._buffers_to_restore = of_rank("buffers", saved, self.global_rank, float_buffers(self.net))
        super().on_load_checkpoint(checkpoint)
