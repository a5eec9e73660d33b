"""Training on a weighted subset of the images, which a checkpoint keeps."""

from abc import ABC, abstractmethod
from typing import Any, Protocol

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lit_robust.data.loaders import Samples
from lit_robust.data.saved import selection_of
from lit_robust.data.selections import selected
from lit_robust.lightning_internals import reload_every_epoch


class ChoosesAnew(Protocol):
    """What a callback has that selects images, such as ``CoresetSelection``."""

    coreset: Any


class Selectable(LightningDataModule, ABC):
    """A DataModule whose training images can be selected; a subclass reads them in ``setup``."""

    # Found by `setup`.
    #: Positions of all training images.
    _train: Tensor
    #: How many images the set on disk has.
    _on_disk: int
    #: Their labels.
    _labels: Tensor
    #: What is trained on; None before ``setup``.
    _selected: Samples | None = None

    @abstractmethod
    def setup(self, stage: str | None = None) -> None:
        """Read the data."""

    def select(self, indices: Tensor | None, weights: Tensor | None = None, in_order: bool = False) -> None:
        """Train on a weighted subset from the next epoch on; ``select(None)`` returns to the whole set.

        Under DDP, call it on every rank with the same values. Call it where the number of batches may still
        change: before ``fit``, in ``on_fit_start``, or in ``on_train_epoch_end`` (in ``on_train_epoch_start`` only
        if the number of samples stays the same). A checkpoint saves the selection.

        Args:
            indices: Positions in the training set, as in ``Batch.index``, or a mask over all of it.
            weights: The weight of each sample, which becomes ``Batch.weight``; None for 1.
            in_order: Whether every epoch has the order of ``indices``, instead of its own.

        Raises:
            ValueError: If an index is not a training image, or the weights are not positive or differ in number.

        Shape:
            indices: ``(S,)``;  weights: ``(S,)``.
        """
        chosen = self._samples()
        part = None if indices is None else selected(indices, weights, self._on_disk, self._train)
        chosen.indices, chosen.weights = part or (self._train, torch.ones(len(self._train)))
        chosen.in_order = in_order
        if self.trainer is not None:
            reload_every_epoch(self.trainer)

    def training_labels(self) -> tuple[Tensor, Tensor]:
        """Labels and positions ``(N,)`` of all training images, also under a selection."""
        self.setup()
        return self._labels[self._train], self._train

    def state_dict(self) -> dict[str, Any]:
        """The selection, for a checkpoint."""
        chosen = self._samples()
        some = {"indices": chosen.indices.to(torch.int32), "weights": chosen.weights, "in_order": chosen.in_order}
        return {"selection": None if chosen.indices is self._train else some}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the selection of a checkpoint when its training is resumed."""
        if self.trainer is not None and self.trainer.state.fn != "fit":
            return  # a checkpoint may be tested on other data, where its training subset means nothing
        if (selection := selection_of(state_dict))["indices"] is not None or self._samples().indices is not self._train:
            self.select(**selection)
            self._tell(selection["indices"])

    def _tell(self, indices: Tensor | None) -> None:
        """Say that images of a checkpoint stay selected, if no callback will choose others."""
        trainer: Any = self.trainer
        choose = trainer is not None and any(hasattr(callback, "coreset") for callback in trainer.callbacks)
        if indices is not None and not choose:
            rank_zero_info(
                f"training continues on the {len(indices)} of {len(self._train)} images that the checkpoint has "
                "selected: to choose again, list the callback that chose them, such as CoresetSelection."
            )

    def _samples(self) -> Samples:
        self.setup()
        assert self._selected is not None
        return self._selected
