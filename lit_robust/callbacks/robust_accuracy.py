"""Robust accuracy of a module that was written without it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from lit_robust import require
from lit_robust.attacks.autoattack_findings import Findings, gathering
from lit_robust.attacks.base import Attack, check_attack
from lit_robust.callbacks.adapter import Adapter, Channels
from lit_robust.callbacks.batch_paths import Key
from lit_robust.callbacks.needs import check_alone
from lit_robust.first_batch import check_sources
from lit_robust.guards import buffers_kept, frozen, own_random_state
from lit_robust.lightning_internals import is_logged_here
from lit_robust.measures.accuracy import Accuracy, Survivors, legend, rows_of, surviving, table
from lit_robust.measures.alarm_rules import in_words
from lit_robust.measures.alarms import IMAGES, Alarms, place_of
from lit_robust.measures.attack_checks import (
    check_different,
    check_names,
    tell_of_findings,
    tell_of_short_steps,
)
from lit_robust.measures.directions import check_directions
from lit_robust.measures.image_blocks import Blocks
from lit_robust.runs import load_sources
from lit_robust.seeds import seed


class HasAttacks(Protocol):
    """The attacks by name of a module that measures robust accuracies itself, such as every Defense."""

    val_attacks: Mapping[str, Attack]
    test_attacks: Mapping[str, Attack]


class RobustAccuracy(Callback):
    """Measures any LightningModule under attacks, in validation and test.

    It logs ``val/acc/<name>`` and ``test/acc/<name>`` for each attack, ``clean`` for none and, if there are several
    attacks, ``worst`` for the samples that withstand all of them. A ModelCheckpoint or EarlyStopping of the same run
    can monitor them. A test prints them with their 95 % intervals, and below them alarms, which it also counts in
    ``test/alarms``.

    Each batch is attacked before the module sees it, in float32 and in the module's present mode, also under
    Lightning's inference mode. It changes nothing, not even the module's random numbers. Random starts are the same in
    every epoch. All ranks are counted; samples of weight 0 in a ``lit_robust.batch.Batch`` are not. (Samples that
    Lightning's own sampler repeats to make ranks equally long are counted twice: test on one device.)

    On a Defense it adds attacks of other names to those that the Defense measures itself.

    Args:
        attacks: Attacks by name.
        test_attacks: Attacks of a test, if they differ, such as stronger ones.
        x: Where a batch keeps its images: an index, a key, the name of a field, or a path such as ``"views.0"``.
        y: The same for the labels.
        net: The sub-module from images to logits; None for the module itself or, without ``forward``, its ``net``.
        mean: What the data pipeline subtracts from pixels in [0, 1], if it normalises.
        std: What it then divides them by.
        alarm_images: How many test images are probed, see ``measures.alarms``; 0 turns all alarms but ``no_graph`` off.
            On a Defense, which looks for them itself, none are.
        alarm_sources: Checkpoints (in Python also nets, which are copied) whose adversarial images are shown to the net
            in a test, for the alarm ``transfer``; on a Defense give them to the Defense.
        blocks: A folder where the long attacks of a test keep what they have finished, so that a killed test goes on
            there, see ``measures.image_blocks``.

    Raises:
        ValueError: If an attack is targeted, given twice or has the name of another row, or pixels, labels or net do
            not fit in the first batch.
    """

    def __init__(
        self,
        attacks: dict[str, Attack],
        test_attacks: dict[str, Attack] | None = None,
        x: Key = 0,
        y: Key = 1,
        net: str | None = None,
        mean: Channels | None = None,
        std: Channels | None = None,
        alarm_images: int = IMAGES,
        alarm_sources: Sequence[str | Path | nn.Module] | None = None,
        blocks: str | Path | None = None,
    ) -> None:
        require.integer("alarm_images", alarm_images, least=0)
        _check_attacks("attacks", attacks)
        if test_attacks is not None:
            _check_attacks("test_attacks", test_attacks)
        self.attacks = {"val": attacks, "test": attacks if test_attacks is None else test_attacks}
        tell_of_short_steps({**attacks, **(test_attacks or {})})
        self.adapter = Adapter(x, y, net, mean, std)
        #: What was measured last, with n and its interval, by split and name.
        self.accuracies: dict[str, dict[str, Accuracy]] = {}
        #: The alarms of the last test by name (``/dataloader_idx_1`` follows if there are several), a sentence each.
        self.alarms: dict[str, str] = {}
        self.alarm_images, self.alarm_sources = alarm_images, load_sources(alarm_sources)
        self.blocks = Blocks(blocks)
        self._findings = Findings()
        self._probed: dict[int, Alarms] = {}
        self._survivors: dict[int, Survivors] = {}
        self._logged: set[str] = set()
        self._columns: dict[str, dict[str, Accuracy]] = {}

    @property
    def logged_keys(self) -> list[str]:
        """The keys that it logs in training and validation."""
        return [f"val/acc/{name}" for name in rows_of(self.attacks["val"])]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check that no row is logged twice; Lightning would average them."""
        why = "two RobustAccuracy callbacks would log the same rows: give all attacks to one."
        check_alone(trainer, self, RobustAccuracy, why)
        require.fine_precision(str(trainer.precision))
        for split, attacks in self.attacks.items():
            if twice := _own_rows(pl_module, split) & set(attacks):
                name = min(twice)
                raise ValueError(f'{type(pl_module).__name__} logs {split}/acc/{name} itself: rename "{name}" here.')

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse monitors that would take the fall of an accuracy for progress."""
        check_directions(trainer)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start counting."""
        self._survivors = {}
        self._findings.reset()

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Count the images that withstand; before the module's own step, which may change the batch."""
        self._measure("val", trainer, pl_module, batch, batch_idx, dataloader_idx)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log ``val/acc/<name>``."""
        self._report("val", pl_module)

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start counting."""
        self._survivors, self._probed = {}, {}
        self._findings.reset()

    def on_test_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Count the images that withstand."""
        self._measure("test", trainer, pl_module, batch, batch_idx, dataloader_idx)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log ``test/acc/<name>`` and ``test/alarms``."""
        self._columns = self._report("test", pl_module)
        self.blocks.drop_images()
        self.alarms = {
            f"{name}{_suffix(loader, self._probed)}": sentence
            for loader, probed in sorted(self._probed.items())
            for name, sentence in probed.compute().items()
        }
        if self._probed:
            pl_module.log("test/alarms", float(len(self.alarms)), sync_dist=True, reduce_fx="max", batch_size=1)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Print the table of a test, below the progress bar."""
        self.adapter.forget_copies()
        if stage == "test" and trainer.is_global_zero and any(self._columns.values()):
            if trainer.progress_bar_callback:
                trainer.progress_bar_callback.teardown(trainer, pl_module, stage)  # its own turn comes after ours
            n = sum(probed.n for probed in self._probed.values())
            norm = next((probed.norm for probed in self._probed.values() if probed.norm), None)
            told = f"{in_words(self.alarms, n, norm)}\n" if self._probed else ""
            print(f"\n{legend(self.attacks['test'])}\n\n{table(self._columns)}\n\n{told}")

    def _measure(
        self, split: str, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int, loader: int
    ) -> None:
        if loader not in self._survivors:
            self.adapter.check(module, batch)
            self._survivors[loader] = Survivors(rows_of(self.attacks[split])).to(module.device)
        net, attacked = self.adapter.logits_net(module), self.adapter.attacked_net(module, batch)
        batch = self.adapter.labelled(batch)
        with own_random_state(batch.x.device), frozen(net), buffers_kept(net), gathering(self._findings):
            if split == "test":
                probed = None if _own_rows(module, split) else self._alarms(net, batch.x, loader)
                seed(batch.x.device, "evaluate", batch_idx * trainer.world_size + trainer.global_rank, 0)
                correct = surviving(net, self.attacks[split], batch, "keep", self.blocks, attacked)
                if probed is not None:
                    probed.update(net, batch, correct, *place_of(trainer, batch_idx, loader))
            else:
                seed(batch.x.device, "evaluate", batch_idx, trainer.global_rank)
                correct = surviving(net, self.attacks[split], batch, attacked=attacked)
        self._survivors[loader].update(correct, batch.weight)

    def _alarms(self, net: nn.Module, x: Tensor, loader: int) -> Alarms:
        if loader not in self._probed:
            with torch.no_grad():
                classes = net(x[:1]).shape[1]
            check_sources(self.alarm_sources, x, classes)
            found = Alarms(self.attacks["test"], classes, self.alarm_images, self.alarm_sources)
            self._probed[loader] = found.to(x.device)
        return self._probed[loader]

    def _check_free(self, key: str, name: str, module: LightningModule) -> None:
        """Refuse a key that the module itself has logged: it is there before we log it for the first time."""
        if key not in self._logged and is_logged_here(module.trainer, key):
            raise ValueError(f'{type(module).__name__} logs {key} itself: rename "{name}" here.')
        self._logged.add(key)

    def _report(self, split: str, module: LightningModule) -> dict[str, dict[str, Accuracy]]:
        """Log what was counted; returns the accuracies of each loader, by the suffix that Lightning gives it."""
        tell_of_findings(self._findings)
        columns = {
            _suffix(loader, self._survivors): survivors.accuracies()
            for loader, survivors in sorted(self._survivors.items())
        }
        self.accuracies[split] = {f"{name}{suffix}": a for suffix, rows in columns.items() for name, a in rows.items()}
        for name, accuracy in self.accuracies[split].items():
            if name not in _own_rows(module, split):
                self._check_free(f"{split}/acc/{name}", name, module)
                module.log(
                    f"{split}/acc/{name}",
                    accuracy.value,
                    prog_bar=split == "val",
                    sync_dist=True,
                    add_dataloader_idx=False,
                    batch_size=1,
                )
        return {suffix.removeprefix("/") or type(module).__name__: rows for suffix, rows in columns.items()}


def _suffix(loader: int, loaders: Mapping[int, Any]) -> str:
    """What Lightning adds to the names of one of several loaders."""
    return f"/dataloader_idx_{loader}" if len(loaders) > 1 else ""


def _own_rows(module: LightningModule, split: str) -> set[str]:
    """The rows that the module logs itself, as a Defense does."""
    attacks = getattr(module, "test_attacks" if split == "test" else "val_attacks", None)
    return set(rows_of(attacks)) if isinstance(attacks, Mapping) else set()


def _check_attacks(argument: str, attacks: Mapping[str, Attack]) -> None:
    check_names(argument, attacks)
    for name, attack in attacks.items():
        check_attack(name, attack)
    check_different(argument, attacks)
