"""Parts of ``cpu_budget.yaml`` that lit_robust does not have: data, a diary, and a transferred attack."""

import time
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from cpu_budget_coresets import OF_SELECTIONS
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from lit_robust.attacks import FGSM, Attack
from lit_robust.batch import Batch
from lit_robust.callbacks import CoresetSelection
from lit_robust.data import CIFAR10DataModule, ImageDataModule, MNISTDataModule
from lit_robust.data.loaders import Samples
from lit_robust.magnitudes import Magnitude
from lit_robust.measures.accuracy import surviving


class First(ImageDataModule):
    """The first ``train_size`` training images for training, and the next ``next_size`` for validation.

    Args:
        train_size: The number of images for training.
        next_size: The number of images for validation.
        **kwargs: Arguments of the data set.
    """

    def __init__(self, train_size: int = 20_000, next_size: int = 1_000, **kwargs: Any) -> None:
        super().__init__(train_size=train_size, val_size=0, **kwargs)
        self.next_size = next_size

    def val_dataloader(self) -> Iterable[Batch]:
        """The images that follow those for training; if too few are left, the last ones of all."""
        self.setup()
        first = min(len(self._train), self.train_images - self.next_size)
        return self._walk(Samples.once(torch.arange(first, first + self.next_size)), train=True)


class FirstImages(First, MNISTDataModule):
    """MNIST's first images."""


class FirstCIFAR10(First, CIFAR10DataModule):
    """CIFAR-10's first images."""


class ResizedCIFAR10(FirstCIFAR10):
    """``FirstCIFAR10`` under the name that the record of the candidate ``nfgsm_resized`` has."""


class Diary(Callback):
    """Records the seconds, passes and metrics of each epoch, and measures FGSM on validation images.

    Seconds cover the training batches only, without validation, monitor and checkpoint: ``seconds`` is wall-clock time,
    ``cpu_seconds`` the CPU time of all threads of the process, which does not depend on other processes.

    Where coresets are selected, ``selection_seconds``, ``selection_cpu_seconds``, ``selection_forwards`` and
    ``selection_backwards`` are those of the selection before the epoch, from the module's cost, with passes in images.

    Passes are counted on the nets that the method calls (its own and its averages): ``forwards`` and ``backwards`` per
    batch, weighted by samples, so that a pass over half a batch counts as half. A backward is counted whenever a
    gradient reaches the logits; a double backward (GradAlign) reaches them twice, and passes through the gradient's own
    graph are not counted.

    Args:
        eps: The bound of FGSM.
    """

    def __init__(self, eps: Magnitude) -> None:
        self.attack = FGSM(eps)
        self.epochs: list[dict[str, float]] = []
        self._passes, self._spent = [0.0, 0.0], [0.0, 0.0]
        self._begin = time.perf_counter(), time.process_time()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Count calls of the net's class, so that copies of the net are counted too."""
        self._net_class = type(pl_module.net)
        self._counts: list[float] | None = None
        self._hook = register_module_forward_hook(self._count)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Remove the hook."""
        self._hook.remove()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Remove the hook of a run that is stopped, which has no teardown."""
        self._hook.remove()

    def _count(self, module: nn.Module, inputs: Any, logits: Tensor) -> None:
        counts = self._counts
        if counts is None or not isinstance(module, self._net_class):
            return
        share = len(logits) / self._batch_size
        counts[0] += share

        def count(gradient: Tensor) -> None:
            counts[1] += share

        if logits.requires_grad:
            logits.register_hook(count)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on within an epoch: a run that a signal has stopped resumes there."""
        self._before: dict[str, Any] = {}
        self._begin = time.perf_counter() - self._spent[0], time.process_time() - self._spent[1]

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clocks, and remember the metrics of earlier epochs, which the trainer keeps."""
        self._before = dict(trainer.callback_metrics)
        self._passes = [0.0, 0.0]
        self._begin = time.perf_counter(), time.process_time()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Start counting."""
        self._batch_size, self._counts = len(batch.x), self._passes

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop counting, and at the last batch stop the clocks."""
        self._counts = None
        if trainer.is_last_batch:
            self._seconds = time.perf_counter() - self._begin[0], time.process_time() - self._begin[1]
            self._fgsm: list[Tensor] = []

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Measure FGSM in the validation's mode and with its weights."""
        self._fgsm.append(surviving(pl_module.net, {"fgsm": self.attack}, batch)["fgsm"])

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the epoch; the monitors come before this callback and have logged their metrics."""
        batches = trainer.num_training_batches
        entry = {"seconds": self._seconds[0], "cpu_seconds": self._seconds[1]}
        entry |= {"forwards": self._passes[0] / batches, "backwards": self._passes[1] / batches, "batches": batches}
        entry |= self._selected(trainer, pl_module)
        entry |= {"val/acc/fgsm": torch.cat(self._fgsm).float().mean().item()}
        for name, value in sorted(trainer.callback_metrics.items()):
            if value is not self._before.get(name) and not name.endswith(("_step", "_epoch")):
                entry[name] = float(value)
        self.epochs.append(entry)

    def _selected(self, trainer: Trainer, pl_module: Any) -> dict[str, float]:
        """What selections have taken since the last entry; nothing without coresets."""
        selects = any(isinstance(callback, CoresetSelection) for callback in trainer.callbacks)
        cost = pl_module.training_cost() if selects else None
        if cost is None:
            return {}
        return {name: getattr(cost, name) - sum(entry.get(name, 0) for entry in self.epochs) for name in OF_SELECTIONS}

    def state_dict(self) -> dict[str, Any]:
        """The epochs so far, and the begun one's seconds and passes, so that a resumed run has the complete diary."""
        spent = [time.perf_counter() - self._begin[0], time.process_time() - self._begin[1]]
        return {"epochs": self.epochs, "spent": spent, "passes": list(self._passes)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore them."""
        self.epochs = state_dict["epochs"]
        self._spent, self._passes = state_dict.get("spent", self._spent), state_dict.get("passes", self._passes)


class Transfer(Attack):
    """A transferred attack: crafted on other nets, evaluated on the given one.

    Args:
        attack: The attack that crafts the images.
        sources: The nets on which they are crafted; an image is broken if any of them breaks it.
    """

    def __init__(self, attack: Attack, sources: Sequence[nn.Module]) -> None:
        self.attack, self.sources = attack, sources

    def __call__(self, net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Craft on the sources and keep the images that the net misclassifies."""
        x_adv = x
        for source in self.sources:
            found = self.attack(source, x, y)
            with torch.no_grad():
                broken = net(found).argmax(dim=1) != y
            x_adv = torch.where(broken.view(-1, 1, 1, 1), found, x_adv)
        return x_adv
