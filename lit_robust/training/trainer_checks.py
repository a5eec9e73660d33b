"""Checks for options of a trainer that a Defense, with its manual optimization and own loaders, does not support."""

from collections.abc import Sequence
from typing import Any, Protocol

from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    BaseFinetuning,
    BasePredictionWriter,
    BatchSizeFinder,
    Callback,
    Checkpoint,
    GradientAccumulationScheduler,
    LearningRateFinder,
    ProgressBar,
    StochasticWeightAveraging,
)
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy, Strategy
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import nn

from lit_robust import require
from lit_robust.attacks import Attack
from lit_robust.lightning_internals import batch_size_searched, flushes_every
from lit_robust.measures.attack_checks import tell_of_idle_attack
from lit_robust.nets.narrow import ENOUGH_CHANNELS, is_channels_last, miscalculated
from lit_robust.torch_internals import bf16_instructions

#: Parameters from which bfloat16 is recommended. With AVX512-BF16, a net of 6 thousand (digits_cnn of width 8) took
#: 1.16 of float32's time, one of 0.17 million (fast_cnn, 28 x 28 pixels) 0.84 to 0.97, one of 0.7 million (ResNet-18 of
#: width 16, 32 x 32 pixels) 0.65 to 0.86 (scripts/benchmark.py). On smaller images it may not pay (digits_bf16.py).
PAYS_FROM = 100_000

#: Callbacks that do nothing, or fail, until a subclass says what to do.
BASES = (Callback, Checkpoint, BaseFinetuning, BasePredictionWriter, ProgressBar)


class HasBackbone(Protocol):
    """What Lightning's ``BackboneFinetuning`` trains, and no Defense has."""

    backbone: Any


def check_callbacks(trainer: Any, module: Any) -> None:
    """Refuse callbacks that the command line can name, but that do nothing or fail; before their ``setup`` is called.

    Raises:
        ValueError: At the first one.
    """
    for callback in trainer.callbacks:
        name = type(callback).__name__
        if type(callback) in BASES:
            raise ValueError(f"trainer.callbacks: {name} is a base class that does nothing: name a subclass.")
        if isinstance(callback, BackboneFinetuning) and not hasattr(module, "backbone"):
            raise ValueError(
                f"trainer.callbacks: {name} trains module.backbone, which a {type(module).__name__} does not have: "
                "write a BaseFinetuning that freezes and unfreezes a part of module.net."
            )


def check_trainer(trainer: Any, module: Any, stage: str) -> None:
    """Refuse, before the run, options that Lightning accepts but that would have no effect or a wrong one.

    Lightning itself refuses ``gradient_clip_val`` and ``accumulate_grad_batches``.

    Args:
        trainer: The trainer of the run.
        module: The Defense.
        stage: ``fit``, ``validate``, ``test`` or ``predict``.

    Raises:
        ValueError: If a callback or an argument cannot work.
    """
    require.fine_precision(str(trainer.precision))
    check_strategy(trainer.strategy)
    hint = "for no validation set data.val_size or trainer.limit_val_batches to 0"
    if trainer.val_check_interval == 0:
        raise ValueError(f"val_check_interval=0 must be above 0: {hint}.")
    if (every := trainer.check_val_every_n_epoch) is not None:
        require.integer("check_val_every_n_epoch", every, least=1, hint=hint)
    require.integer("log_every_n_steps", trainer.log_every_n_steps, least=0, hint="0 logs no step")
    for logger in trainer.loggers:
        if isinstance(logger, CSVLogger):
            hint = "it is a number of steps"
            require.integer("trainer.logger.flush_logs_every_n_steps", flushes_every(logger), least=1, hint=hint)
    require.number(
        "num_sanity_val_steps", trainer.num_sanity_val_steps, least=0, finite=False, hint="0 for none, -1 for all"
    )
    for callback in trainer.callbacks:
        if isinstance(callback, LearningRateFinder):
            raise ValueError(
                "LearningRateFinder, which lr_find uses, cannot drive the rate of a Defense, which follows its own "
                "schedule in every batch: compare a few short fits with different model.optimizer.lr."
            )
        if isinstance(callback, GradientAccumulationScheduler):
            raise ValueError(
                "GradientAccumulationScheduler has no effect on a Defense, which steps its optimizer itself: raise "
                "data.batch_size instead."
            )
        if isinstance(callback, StochasticWeightAveraging):
            raise ValueError(
                "StochasticWeightAveraging replaces a scheduler that a Defense steps itself, so its rate would have no "
                "effect: use EMAWeights."
            )
        if isinstance(callback, BatchSizeFinder) and stage != "fit" and batch_size_searched(callback) == "batch_size":
            raise ValueError(
                f"BatchSizeFinder would change batch_size, which {TrainerFn(stage).value} does not use: set "
                'batch_arg_name="eval_batch_size".'
            )
    if stage != "fit":
        return
    if (algorithm := trainer.gradient_clip_algorithm) is not None:
        raise ValueError(
            f'gradient_clip_algorithm="{algorithm.value}" of the trainer has no effect: give model.gradient_clip_val, '
            "which clips the norm."
        )
    check_narrow_convolutions(trainer.strategy.root_device.type, module)
    tell_of_idle_attacks(trainer, module)
    tell_of_bf16(trainer.precision, trainer.strategy.root_device.type, module.net)
    if trainer.limit_train_batches == 0:
        rank_zero_warn("limit_train_batches=0 leaves nothing to train on: the weights stay as they are.")


def check_one_loader(module: object, batches: Sequence[float]) -> None:
    """Refuse several loaders of a validation or test, whose images would be counted together.

    Args:
        module: What evaluates.
        batches: How many batches each loader has.

    Raises:
        ValueError: If there are several.
    """
    if len(batches) > 1:
        raise ValueError(
            f"there are {len(batches)} loaders, but {type(module).__name__} evaluates one: give one at a time, or join "
            "their datasets by torch.utils.data.ConcatDataset."
        )


def check_strategy(strategy: Strategy) -> None:
    """Refuse strategies that shard the weights over ranks.

    Each pass of an attack would gather all shards again: K + 1 times the communication of DDP, which has one reduction
    per update whatever the attack. Averages, folded copies and ``load_net`` also read whole nets.

    Raises:
        ValueError: If it is FSDP, DeepSpeed or another one that does.
    """
    if isinstance(strategy, FSDPStrategy | DeepSpeedStrategy | ModelParallelStrategy):
        raise ValueError(
            f"the trainer's {type(strategy).__name__} shards the net's weights, which each pass of an attack would "
            "gather again: set strategy=ddp, for which the net must fit on one device."
        )


class HasLayout(Protocol):
    """What every Defense has."""

    net: nn.Module
    channels_last: bool
    compiled: bool


def check_narrow_convolutions(device: str, module: HasLayout) -> None:
    """Refuse a net whose gradients torch gets wrong on this device; compiled for a CPU, nets are in channels_last.

    Raises:
        ValueError: If it has such a convolution, see ``nets.narrow``.
    """
    if device != "cpu" or not (found := miscalculated(module.net)):
        return
    causes = {
        "channels_last=True": (module.channels_last, "set channels_last=False"),
        "compile=True": (module.compiled, "set compile=False"),
        "net is in channels_last": (is_channels_last(module.net), "give net.to(memory_format=torch.contiguous_format)"),
    }
    for cause, (holds, remedy) in causes.items():
        if holds:
            raise ValueError(
                f"{cause}: on a CPU torch may crash, or get wrong gradients, in the net's {found[0]!r}, a strided "
                f"1 x 1 convolution of fewer than {ENOUGH_CHANNELS} input channels: {remedy}, or put "
                "lit_robust.nets.narrow.SubsamplingConv2d in its place."
            )


def tell_of_bf16(precision: str, device: str, net: nn.Module) -> None:
    """Recommend ``bf16-mixed`` on a CPU that multiplies bfloat16, if it pays, and warn where it is emulated."""
    if device != "cpu" or (instructions := bf16_instructions()) is None:
        return
    if instructions and precision == "32-true" and sum(weight.numel() for weight in net.parameters()) >= PAYS_FROM:
        rank_zero_info(
            f"This CPU multiplies bfloat16 ({', '.join(instructions)}): precision=bf16-mixed (-c "
            "configs/trainer/cpu_bf16.yaml) took 0.61 to 0.86 of the time of 32-true with AVX512-BF16, a ResNet-18 "
            "and images of 32 x 32 pixels."
        )
    if not instructions and precision == "bf16-mixed":
        rank_zero_warn(
            "precision=bf16-mixed: this CPU emulates bfloat16, which can take ten times as long: set 32-true."
        )


class HasAttacks(Protocol):
    """What every Defense has."""

    net: nn.Module
    attack: Attack
    val_attacks: dict[str, Attack]
    test_attacks: dict[str, Attack]


class MayBeNatural(Protocol):
    """A method that may train without an attack, such as ``Natural``."""

    is_natural: bool


def tell_of_idle_attacks(trainer: Any, module: HasAttacks) -> None:
    """Warn of a training attack, or one that selects the best checkpoint, that changes nothing.

    A test attack that changes nothing is a baseline.
    """
    if not getattr(module, "is_natural", False):
        tell_of_idle_attack(trainer, "attack", module.attack)
    tell_of_idle_attack(trainer, "val_attack", module.val_attacks["robust"])


def tell_of_another_eps(module: HasAttacks, eps: float | None) -> None:
    """Inform the user if no attack of the validation, or of the test, has the training attack's eps."""
    for name, attacks in (("val_attack", module.val_attacks), ("test_attacks", module.test_attacks)):
        others = [of for attack in attacks.values() if (of := getattr(attack, "eps", None)) is not None]
        if eps is not None and others and eps not in others:
            bounds = ", ".join(f"{of:.4g}" for of in dict.fromkeys(others))
            rank_zero_info(f"the training's attack has eps={eps:.4g}, but {name} has {bounds}: is this intended?")
