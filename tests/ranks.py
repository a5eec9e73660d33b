"""Scenarios of tests/test_ranks.py on two ranks: `torchrun --nproc-per-node 2 -m tests.ranks FOLDER`.

One launch runs all scenarios, because importing the stack takes longer than they do, in one process group: Lightning
starts it with the first Trainer and leaves it running for the next one.
"""

import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.connectors.logger_connector import result
from torch import nn
from torch.utils.data import DataLoader, Dataset

from lit_robust.attacks import FGSM, Attack, AutoAttack
from lit_robust.attacks.autoattack import VERSIONS
from lit_robust.callbacks import (
    AttributeRamp,
    CoresetSelection,
    DelayedStart,
    EMAWeights,
    GeneralizationGap,
    RobustAccuracy,
    StopAfterDrop,
    SwitchRule,
    coreset_data,
)
from lit_robust.data.resident import ResidentDataModule
from lit_robust.defenses import (
    AAER,
    AWP,
    ELLEA,
    FGSMAT,
    GAT,
    HSAT,
    MART,
    PGDAT,
    TRADES,
    CustomizedAT,
    Defense,
    DynamicAT,
    FastAT,
    Natural,
)
from lit_robust.measures.accuracy import Survivors
from lit_robust.measures.image_blocks import Blocks
from lit_robust.ranks import leave_group, sum_over_ranks, sums_over_ranks, weighted_sum
from lit_robust.schedules import Linear
from lit_robust.selection import CRAIG, CoresetSampler, GradMatch, Random
from tests.methods import ATTACK, METHODS, build
from tests.tiny import CLASSES, SHAPE, images

#: Odd, and no multiple of any batch.
TRAIN, TEST = 21, 13
#: Finds the same adversary in every process.
EXACT = replace(ATTACK, init="zero")
#: Of the training images: a mean over ranks of each rank's weighted mean is another number.
WEIGHTS = torch.arange(TRAIN) ** 2 + 0.5

Finding = dict[str, Any]


class Data(ResidentDataModule):
    """The tiny images as bytes, all of them to train on."""

    num_classes, image_shape = CLASSES, SHAPE

    def __init__(self, batch_size: int = 4, **kwargs: Any) -> None:
        super().__init__(batch_size=batch_size, eval_batch_size=5, val_size=0, **kwargs)

    def _arrays(self, train):
        batch = images(TRAIN) if train else images(TEST, seed=1)
        return (255 * batch.x).byte(), batch.y


def weighted(batch_size: int) -> Data:
    data = Data(batch_size)
    data.select(torch.arange(TRAIN), WEIGHTS)
    return data


def linear() -> nn.Module:
    """A net without BatchNorm, always the same."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(192, CLASSES))


class Drifting(PGDAT):
    """Scales its loss by a number that each rank keeps of what it has seen."""

    def loss(self, batch, x_adv):
        before = self.memory.tensors.get("drift", torch.zeros(()))
        self.memory.tensors["drift"] = before + batch.index.float().mean() / TRAIN
        return super().loss(batch, x_adv) * (1 + self.memory.tensors["drift"])


class Seen(Callback):
    """The weight of each image, by epoch."""

    def __init__(self) -> None:
        self.epochs: dict[int, list[tuple[int, float]]] = {}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        pairs = zip(batch.index.tolist(), batch.weight.tolist(), strict=True)
        self.epochs.setdefault(trainer.current_epoch, []).extend(pairs)


class Sums(Callback):
    """How many numbers each sum over ranks has, in every batch but an epoch's last; DDP's sum of gradients is left out.

    A batch lasts until the next one begins, and the last one also ends its epoch.
    """

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.sizes: list[int] = []

    def on_train_start(self, trainer, pl_module):
        self.reduce = dist.all_reduce
        dist.all_reduce = self.counted

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.sizes = []
        if batch_idx < trainer.num_training_batches - 1:
            self.batches.append(self.sizes)

    def on_train_end(self, trainer, pl_module):
        dist.all_reduce = self.reduce

    def counted(self, tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        self.sizes.append(tensor.numel())
        return self.reduce(tensor, *args, **kwargs)


class Save(Checkpoint):
    """Saves after the first epoch, or after a batch of it."""

    def __init__(self, path: Path, batch_idx: int | None = None) -> None:
        self.path, self.batch_idx = path, batch_idx

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if (trainer.current_epoch, batch_idx) == (0, self.batch_idx):
            trainer.save_checkpoint(self.path)

    def on_train_epoch_end(self, trainer, pl_module):
        if self.batch_idx is None and trainer.current_epoch == 0:
            trainer.save_checkpoint(self.path)


def quiet_trainer(**kwargs: Any) -> Trainer:
    """A trainer of all ranks."""
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    return Trainer(
        accelerator="cpu",
        devices=ranks,
        strategy="ddp" if ranks > 1 else "auto",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"enable_checkpointing": False} | kwargs,
    )


def fit(
    module: LightningModule,
    data: Any,
    *callbacks: Callback,
    ckpt_path: Path | None = None,
    max_epochs: int = 2,
    limit_val_batches: int | None = 0,
    val_check_interval: int | None = None,
) -> Trainer:
    """Two epochs on all ranks."""
    seed_everything(7, verbose=False)
    trainer = quiet_trainer(
        max_epochs=max_epochs,
        limit_val_batches=limit_val_batches,
        val_check_interval=val_check_interval,
        num_sanity_val_steps=0,
        callbacks=list(callbacks),
        enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks),
    )
    trainer.fit(module, data, ckpt_path=ckpt_path)
    return trainer


def method(name: str, folder: Path) -> Finding:
    """A method's run, and the run that resumes it after its first epoch."""
    make, path, seen, sums = METHODS[name], folder / f"{name}.ckpt", Seen(), Sums()
    whole, rest = (build(make.cls, **make.arguments) for _ in range(2))
    fit(whole, Data(), *make.callbacks(), seen, sums, Save(path))
    fit(rest, Data(), *make.callbacks(), ckpt_path=path)
    return {"weights": whole.state_dict(), "resumed": rest.state_dict(), "seen": seen.epochs, "sums": sums.batches}


#: Methods whose memory of each rank cannot be that of another number of ranks; and others, which go on without a word.
BOUND_TO_RANKS = ("FreeAT", "FreeAT in the image box", "FastAT from the previous delta")
FREE_OF_RANKS = ("PGDAT", "ELLEA", "CustomizedAT", "CurriculumAT", "NuAT-H", "NuAT2-WA")


def told_on_resuming(name: str, path: Path) -> list[str]:
    """What a run on all ranks says of the number of ranks when it goes on from a checkpoint."""
    make = METHODS[name]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(build(make.cls, **make.arguments), Data(), *make.callbacks(), ckpt_path=path)
    return [str(warning.message) for warning in caught if "ranks" in str(warning.message)]


def from_one_rank(folder: Path) -> Finding:
    """What two ranks say when they go on from the checkpoint of one."""
    told = {}
    for name in BOUND_TO_RANKS + FREE_OF_RANKS:
        checkpoint, path = torch.load(folder / f"{name}.ckpt", weights_only=True), folder / f"{os.environ['RANK']}.ckpt"
        ours = checkpoint["lit_robust"]
        ours["memory"]["tensors"], ours["metrics"] = ours["memory"]["tensors"][:1], ours["metrics"][:1]
        torch.save(checkpoint, path)
        told[name] = told_on_resuming(name, path)
    return {"told": told}


def state_of_a_rank(folder: Path) -> Finding:
    whole, rest = build(Drifting), build(Drifting)
    fit(whole, Data(), Save(folder / "state.ckpt"))
    fit(rest, Data(), ckpt_path=folder / "state.ckpt")
    return {
        "weights": whole.state_dict(),
        "resumed": rest.state_dict(),
        "state": whole.memory.tensors,
        "resumed state": rest.memory.tensors,
    }


def eps_by_image(folder: Path) -> Finding:
    """The means of two epochs, and of a run that is resumed in the middle of the first one."""

    def run(*callbacks: Callback, **kwargs: Any) -> dict[str, torch.Tensor]:
        module = build(CustomizedAT, net=linear(), attack=EXACT, noise="uniform", revert="succeeded")
        fit(module, Data(batch_size=8 // int(os.environ.get("WORLD_SIZE", "1"))), *callbacks, **kwargs)
        return {"eps": module.memory.tensors["numbers"], **module.state_dict()}

    whole = run(Save(folder / "eps.ckpt", batch_idx=1))
    return {"end": whole, "resumed": run(ckpt_path=folder / "eps.ckpt")}


def averages(folder: Path) -> Finding:
    def run(*callbacks: Callback, **kwargs: Any) -> dict[str, torch.Tensor]:
        module = build(PGDAT)
        fit(module, Data(), EMAWeights(0.9, extra={"fast": 0.5}), *callbacks, **kwargs)
        fast = {f"fast.{key}": value for key, value in vars(module)["averaged"]["fast"].state_dict().items()}
        return module.state_dict() | fast

    whole = run(Save(folder / "averages.ckpt"))
    return {"weights": whole, "resumed": run(ckpt_path=folder / "averages.ckpt")}


class Validated(Data):
    """Validates on the test images."""

    def val_dataloader(self):
        return self.test_dataloader()


def statistics_of(module: LightningModule) -> dict[str, torch.Tensor]:
    """Copies of BatchNorm's running mean and variance."""
    return {name: value.clone() for name, value in module.net.named_buffers() if value.is_floating_point()}


class SeenStatistics(Callback):
    """BatchNorm's statistics after each batch, before a validation averages them, and in each validation."""

    def __init__(self) -> None:
        self.trained: list[dict[str, torch.Tensor]] = []
        self.validated: list[dict[str, torch.Tensor]] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.trained.append(statistics_of(pl_module))

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        if batch_idx == 0:
            self.validated.append(statistics_of(pl_module))


def statistics(folder: Path) -> Finding:
    """Runs with a validation after the second of three batches of an epoch, resumed before it and from it on.

    One resumes from a checkpoint as older versions wrote it, without the statistics of each rank.
    """
    found = {}
    for averaging in (False, True):

        def run(*callbacks: Callback, averaging=averaging, **kwargs: Any) -> dict[str, Any]:
            module, seen = build(PGDAT, val_attack=EXACT), SeenStatistics()
            averages = [EMAWeights(0.9, extra={"fast": 0.5})] * averaging
            how = {"limit_val_batches": None, "val_check_interval": 2, **kwargs}
            fit(module, Validated(), *averages, seen, *callbacks, **how)
            fast = vars(module)["averaged"]["fast"].state_dict() if averaging else {}
            end = module.state_dict() | {f"fast.{name}": value for name, value in fast.items()}
            return {"end": end, "trained": seen.trained, "validated": seen.validated}

        paths = [folder / f"statistics{batches}{averaging}.ckpt" for batches in (1, 2)]
        whole = run(*(Save(path, batch_idx=number) for number, path in enumerate(paths)))
        resumed = [run(ckpt_path=path) for path in paths]
        checkpoint, older = torch.load(paths[0], weights_only=True), folder / f"older{os.environ['RANK']}.ckpt"
        del checkpoint["lit_robust"]["buffers"]
        checkpoint.pop("averaged_buffers", None)
        torch.save(checkpoint, older)
        found[averaging] = whole | {"resumed": resumed, "older": run(ckpt_path=older)}
    return found


class LossCurve(Callback):
    """The loss of each epoch."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_train_epoch_end(self, trainer, pl_module):
        self.losses.append(float(trainer.callback_metrics["train/loss"]))


def unequal_weights(folder: Path, cls: type[Defense] = PGDAT, **arguments: Any) -> Finding:
    module, curve = build(cls, **{"net": linear(), "attack": EXACT} | arguments), LossCurve()
    fit(module, weighted(batch_size=8 // int(os.environ.get("WORLD_SIZE", "1"))), curve, max_epochs=3)
    return {"weights": module.state_dict(), "losses": curve.losses}


def from_the_image(cls: type[Defense]) -> type[Defense]:
    """A method whose attack starts at the image itself, and follows the cross-entropy, which has a gradient there."""

    class FromTheImage(cls):
        def adversary(self):
            return EXACT

    return FromTheImage


#: Methods whose adversary is the same in every process, and whose loss is a mean over images.
IMAGE_BY_IMAGE: dict[str, tuple[type[Defense], dict[str, Any]]] = {
    "Natural": (Natural, {}),
    "FGSMAT": (FGSMAT, {"attack": FGSM(EXACT.eps)}),
    "TRADES": (from_the_image(TRADES), {}),
    "MART": (from_the_image(MART), {}),
    "FastAT": (from_the_image(FastAT), {"attack": FGSM(EXACT.eps)}),
    "GAT": (from_the_image(GAT), {"attack": FGSM(EXACT.eps)}),
    "HSAT": (HSAT, {"lam": 0.55}),
    "DynamicAT": (DynamicAT, {"c": 0.1}),
}


def image_by_image(folder: Path) -> Finding:
    return {name: unequal_weights(folder, cls, **said) for name, (cls, said) in IMAGE_BY_IMAGE.items()}


def perturbed_weights(folder: Path) -> Finding:
    return unequal_weights(folder, weight_perturbation=AWP(gamma=0.1))


def metrics(folder: Path) -> Finding:
    """The training loss with a learning rate of 0, so that each batch sees the same net."""
    module = build(Natural, net=linear(), optimizer=lambda params: torch.optim.SGD(params, lr=0.0))
    return {"loss": float(fit(module, Data()).callback_metrics["train/loss"])}


def metrics_after_a_stop(folder: Path) -> Finding:
    def run(*callbacks: Callback, **kwargs: Any) -> list[float]:
        losses: list[float] = []

        class Book(Callback):
            def on_train_epoch_end(self, trainer, pl_module):
                losses.append(float(trainer.callback_metrics["train/loss"]))

        fit(build(Natural, net=linear()), Data(), Book(), *callbacks, **kwargs)
        return losses

    whole = run(Save(folder / "metrics.ckpt", batch_idx=1))
    return {"losses": whole, "resumed": run(ckpt_path=folder / "metrics.ckpt")}


class LevelledOff(SwitchRule):
    """The last loss is below a half."""

    def __call__(self, losses):
        return losses[-1] < 0.5


class OneSided(LightningModule):
    """Not a Defense: each rank logs its own loss, which is not reduced."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.adversarial, self.epochs = linear(), True, {}

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        return [optimizer], [torch.optim.lr_scheduler.MultiStepLR(optimizer, [5])]

    def on_train_batch_start(self, batch, batch_idx):
        self.epochs[self.current_epoch] = self.adversarial

    def training_step(self, batch, batch_idx):
        losses = [[0.9, 0.4, 0.7], [0.7, 0.9, 0.2]][self.global_rank]
        value = losses[min(self.current_epoch, 2)]
        self.log("loss", value, on_step=False, on_epoch=True, sync_dist=False, batch_size=1)
        return nn.functional.cross_entropy(self.net(batch.x), batch.y)


def delayed_start(folder: Path) -> Finding:
    """Rank 0 alone would switch after epoch 1, rank 1 after epoch 2; the mean of both after epoch 2."""
    module, delay = OneSided(), DelayedStart(LevelledOff(), monitor="loss")
    trainer = fit(module, Data(), delay, StopAfterDrop(1), max_epochs=8)
    return {"losses": delay.losses, "switch": delay.switch_epoch, "epochs": module.epochs, "end": trainer.current_epoch}


def gap(folder: Path) -> Finding:
    module = build(PGDAT, val_attack=EXACT)
    trainer = fit(module, Validated(), GeneralizationGap(), limit_val_batches=None)
    return {"weights": module.state_dict(), "logged": {k: v.item() for k, v in trainer.callback_metrics.items()}}


def warnings_of_a_run(folder: Path) -> Finding:
    """What Lightning says of a fit with everything that logs, and of a test."""
    result.warning_cache.clear()  # it says each thing once in a process, and other scenarios have run
    ramp = AttributeRamp("beta", Linear(0, 1, begin=0, end=2))
    callbacks = (ramp, DelayedStart(at_epoch=1), GeneralizationGap(), RobustAccuracy({"other": EXACT}))
    attacks = {"weak": replace(EXACT, eps=0.1), "strong": replace(EXACT, eps=0.2, step_size=0.1)}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        module = build(TRADES, attack=EXACT, val_attack=EXACT, test_attacks=attacks)
        fit(module, Validated(), *callbacks, limit_val_batches=None).test(module, Data(), verbose=False)
    return {"warnings": [str(warning.message) for warning in caught]}


def under_attack() -> Defense:
    weak, strong = replace(EXACT, eps=0.1), replace(EXACT, eps=0.2, step_size=0.1)
    return build(Natural, test_attacks={"weak": weak, "strong": strong})


def evaluation(folder: Path) -> Finding:
    module = under_attack()
    fit(module, Data()).test(module, Data(), verbose=False)
    found = {"probed": module.probed["test"].n, "alarms": module.alarms}
    return found | {"weights": module.state_dict(), "results": module.test_results["these weights"]}


@dataclass(frozen=True)
class Noise(Attack):
    """A long attack that only draws numbers; it may be killed in its second block on a rank."""

    eps: float = 0.9
    batch_size: int = 2
    is_long = True
    calls: ClassVar[list[int]] = []
    killed: ClassVar[bool] = False

    def __call__(self, net, x, y):
        if self.killed and self.calls:
            raise InterruptedError
        self.calls.append(len(x))
        return (x + self.eps * (2 * torch.rand_like(x) - 1)).clamp(0, 1)


class PerImage(Survivors):
    """Keeps what a test finds out about each image: index -> clean, long, short, worst."""

    def __init__(self, names: Iterable[str]) -> None:
        super().__init__(names)
        self.index, self.found = torch.empty(0), {}

    def update(self, correct, weight):
        super().update(correct, weight)
        rows = zip(self.index.tolist(), weight.tolist(), zip(*map(list, correct.values()), strict=True), strict=True)
        self.found.update({index: [*map(bool, bits)] for index, weight, bits in rows if weight})


class Indices(Callback):
    """Tells ``PerImage`` which images come."""

    def on_test_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        pl_module.survivors["test"].index = batch.index


def found_per_image(module: Defense, data: Any, folder: Path) -> dict[int, list[bool]]:
    """What a test in blocks finds out about each image; it may be killed."""
    module.blocks = Blocks(folder)
    module.survivors["test"] = kept = PerImage(module.survivors["test"].names)
    with suppress(InterruptedError):
        quiet_trainer(callbacks=[Indices()]).test(module, data, verbose=False)
    return kept.found


def in_blocks(folder: Path, kills: tuple[bool, ...] = (False,)) -> Finding:
    """Tests under two attacks that draw; some are killed."""
    seed_everything(7, verbose=False)
    torch.manual_seed(int(os.environ.get("RANK", "0")))  # of no effect
    attacks: dict[str, Attack] = {"long": Noise(), "short": replace(ATTACK, eps=0.04, step_size=0.02, init="uniform")}
    Noise.calls.clear()
    for Noise.killed in kills:
        module = build(Natural, net=linear(), test_attacks=attacks, alarm_images=6)
        found = found_per_image(module, Data(), folder / f"blocks_{len(kills)}")
    return {
        "found": found,
        "results": module.test_results["these weights"],
        "probed": module.probed["test"].n,
        "alarms": module.alarms,
        "attacked": sum(Noise.calls),
        "files": len(list((folder / f"blocks_{len(kills)}").iterdir())),
    }


def killed_test(folder: Path) -> Finding:
    return in_blocks(folder, (True, False))


class Digits(Data):
    """24 of scikit-learn's digits, and those that come before them to train on."""

    num_classes, image_shape = 10, (1, 8, 8)

    def _arrays(self, train):
        from sklearn.datasets import load_digits  # the other scenarios do without it

        digits = load_digits()
        rows = slice(-24) if train else slice(-24, None)
        images = torch.tensor(digits.images[rows], dtype=torch.float64).unsqueeze(1)
        return (255 * images / 16).round().byte(), torch.tensor(digits.target[rows])


def nearest_mean() -> nn.Module:
    """The linear net that chooses the class whose mean image is nearest."""
    images, y = Digits()._arrays(train=True)
    x = images.flatten(1).double() / 255
    means = torch.stack([x[y == digit].mean(dim=0) for digit in range(10)]).float()
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with torch.no_grad():
        net[1].weight.copy_(means)
        net[1].bias.copy_(-means.square().sum(dim=1) / 2)
    return net


class Flat(nn.Module):
    """Gives bright images no gradient, which AutoAttack finds."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(torch.where(x.mean(dim=(1, 2, 3), keepdim=True) < 0.33, x, x.detach()))


def autoattack(folder: Path, kills: tuple[bool, ...] = (False,)) -> Finding:
    """Tests under AutoAttack's first two attacks, in blocks of 2 images; some are killed in the second block."""
    attacks: dict[str, Attack] = {"autoattack": AutoAttack(eps=0.08, batch_size=2)}
    place, once, whole = folder / f"autoattack_{len(kills)}", AutoAttack.__call__, dict(VERSIONS["standard"])
    crafted: dict[bytes, torch.Tensor] = {}

    def crafting(self, net, x, y):
        if Noise.killed and crafted:
            raise InterruptedError
        x_adv = once(self, net, x, y)
        for image, adversarial in zip(x, x_adv, strict=True):
            assert image.numpy().tobytes() not in crafted  # no image is attacked twice
            crafted[image.numpy().tobytes()] = adversarial
        return x_adv

    VERSIONS["standard"], AutoAttack.__call__ = {"apgd-ce": 1, "apgd-dlr": 1}, crafting
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for Noise.killed in kills:
                module = build(Natural, net=Flat(nearest_mean()), num_classes=10, test_attacks=attacks, alarm_images=0)
                found = found_per_image(module, Digits(), place)
    finally:
        VERSIONS["standard"], AutoAttack.__call__ = whole, once
    told = [str(warning.message) for warning in caught if "AutoAttack" in str(warning.message)]
    results = module.test_results["these weights"]
    return {"found": found, "results": results, "crafted": crafted, "told": told}


def killed_autoattack(folder: Path) -> Finding:
    return autoattack(folder, (True, False))


class Chosen(Callback):
    """The coreset of each epoch."""

    def __init__(self, selection: CoresetSelection) -> None:
        self.selection, self.epochs = selection, {}

    def on_train_epoch_start(self, trainer, pl_module):
        indices, weights, filled = self.selection.coreset
        self.epochs[trainer.current_epoch] = (indices.clone(), weights.clone(), filled)
        if self.selection.sampler is not None:
            self.length = len(self.selection.sampler)


def per_rank(batch_size: int) -> int:
    return batch_size // int(os.environ.get("WORLD_SIZE", "1"))


def coreset(folder: Path) -> Finding:
    """The first coreset, of augmented images, and a run of two epochs, resumed after its first epoch and within it."""
    found = {}
    for selector in (CRAIG(), GradMatch(), GradMatch(gradient="own_class"), Random(), Random(scope="class")):

        def run(*callbacks: Callback, selector=selector, **kwargs: Any) -> dict[str, Any]:
            selection = CoresetSelection(0.5, selector, every=1, warm=0, normalize="subset")
            module, chosen, seen = build(TRADES, net=linear()), Chosen(selection), Seen()  # BatchNorm ends epochs
            fit(module, Data(augment=True), selection, chosen, seen, *callbacks, **kwargs)
            last = dict(zip(("indices", "weights"), selection.coreset[:2], strict=True))
            return {"end": module.state_dict() | last, "chosen": chosen.epochs, "seen": seen.epochs}

        paths = [folder / f"coreset{number}.ckpt" for number in range(2)]
        whole = run(Save(paths[0]), Save(paths[1], batch_idx=0))
        found[str(selector)] = whole | {"resumed": [run(ckpt_path=path)["end"] for path in paths]}
    return found


def coreset_of_a_trained_net(folder: Path) -> Finding:
    """Coresets of a net without BatchNorm, with the same batches for one rank and two."""
    selection = CoresetSelection(0.6, GradMatch(), every=1, warm=0)
    module, chosen = build(PGDAT, net=linear(), attack=EXACT), Chosen(selection)
    fit(module, Data(per_rank(8)), selection, chosen, max_epochs=3)
    return {"weights": module.state_dict(), "chosen": chosen.epochs}


class Pictures(Dataset):
    """The tiny images as dictionaries, with noise that each access draws anew."""

    def __init__(self) -> None:
        self.batch = images(TRAIN)

    def __len__(self):
        return TRAIN

    def __getitem__(self, i):
        noisy = (self.batch.x[i] + 0.05 * torch.rand(SHAPE)).clamp(0, 1)
        return {"image": noisy, "label": self.batch.y[i], "place": i}


class Sampled(LightningModule):
    """Not a Defense: a plain mean over the batches that a user's loader yields."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.places = linear(), {}

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def training_step(self, batch, batch_idx):
        self.places.setdefault(self.current_epoch, []).extend(batch["place"].tolist())
        return nn.functional.cross_entropy(self.net(batch["image"]), batch["label"])


def coreset_of_a_sampler(folder: Path) -> Finding:
    def run(*callbacks: Callback, **kwargs: Any) -> dict[str, Any]:
        module, data = Sampled(), Pictures()
        sampler = CoresetSampler(data)
        here = {"x": "image", "y": "label", "net": "net"}
        selection = CoresetSelection(0.6, GradMatch(), every=1, warm=0, sampler=sampler, **here)
        chosen = Chosen(selection)
        loader = DataLoader(data, per_rank(4), sampler=sampler)
        fit(module, loader, selection, chosen, *callbacks, **kwargs)
        return {"places": module.places, "chosen": chosen.epochs, "length": chosen.length}

    whole = run(Save(folder / "sampler.ckpt", batch_idx=1))
    return whole | {"resumed": run(ckpt_path=folder / "sampler.ckpt")["places"]}


class Relative(PGDAT):
    """Scales its loss by its mean over the images of all ranks."""

    def loss(self, batch, x_adv):
        losses = super().loss(batch, x_adv)
        total, weight = sum_over_ranks(weighted_sum(losses, batch.weight))
        return losses * total / weight


#: Methods whose loss waits for the other ranks.
WAITING: dict[str, tuple[type[Defense], dict[str, Any]]] = {
    "Relative": (Relative, {"attack": EXACT}),
    "ELLEA": (ELLEA, {"attack": FGSM(EXACT.eps), "lam_max": 10.0}),
    "AAER": (AAER, {"attack": FGSM(EXACT.eps)}),
}


def coreset_of_blocks(folder: Path) -> Finding:
    """Coresets of images that are read in two blocks, one for each rank, and in three, of which rank 0 gets two."""
    found, size = {}, coreset_data.BATCH_SIZE
    pairs = list(zip(*images(TRAIN)[:2], strict=True))
    try:
        for coreset_data.BATCH_SIZE in (11, 8):
            for name, (cls, said) in WAITING.items():
                sampler = CoresetSampler(pairs)
                selection = CoresetSelection(0.6, GradMatch(), every=None, warm=0, sampler=sampler)
                chosen, loader = Chosen(selection), DataLoader(pairs, per_rank(8), sampler=sampler)
                fit(build(cls, net=linear(), **said), loader, selection, chosen, max_epochs=1)
                found[name, coreset_data.BATCH_SIZE] = chosen.epochs[0]
    finally:
        coreset_data.BATCH_SIZE = size
    return found


def sums_of_attacks(folder: Path) -> Finding:
    def of_steps(steps: int) -> list[list[int]]:
        sums = Sums()
        fit(build(PGDAT, attack=replace(ATTACK, steps=steps)), Data(), sums, max_epochs=1)
        return sums.batches

    return {str(steps): of_steps(steps) for steps in (1, 4)}


def summed(folder: Path) -> Finding:
    """Sums over ranks of tensors of two dtypes and several layouts, in how many reductions, and what was summed."""
    rank = int(os.environ["RANK"])
    images = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(rank))
    tensors = [images, images[0].double(), images.to(memory_format=torch.channels_last), images.sum(), images.mT[1]]
    sums = Sums()
    sums.on_train_start(None, None)
    totals = sums_over_ranks(tensors)
    sums.on_train_end(None, None)
    return {"tensors": tensors, "totals": totals, "sizes": sums.sizes}


SCENARIOS: dict[str, Callable[[Path], Finding]] = {
    "from one rank": from_one_rank,
    "state of a rank": state_of_a_rank,
    "eps by image": eps_by_image,
    "averages": averages,
    "statistics": statistics,
    "unequal weights": unequal_weights,
    "perturbed weights": perturbed_weights,
    "image by image": image_by_image,
    "metrics": metrics,
    "metrics after a stop": metrics_after_a_stop,
    "delayed start": delayed_start,
    "gap": gap,
    "warnings": warnings_of_a_run,
    "coreset": coreset,
    "coreset of a trained net": coreset_of_a_trained_net,
    "coreset of a sampler": coreset_of_a_sampler,
    "coreset of blocks": coreset_of_blocks,
    "evaluation": evaluation,
    "test": in_blocks,
    "killed test": killed_test,
    "autoattack": autoattack,
    "killed autoattack": killed_autoattack,
    "sums of attacks": sums_of_attacks,
    "summed": summed,
}


def explained(scenario: Callable[..., Finding], *arguments: Any) -> Finding:
    """The result of a scenario, or its error; the other scenarios are run in any case."""
    try:
        return scenario(*arguments)
    except Exception:
        return {"error": traceback.format_exc()}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    place = Path(sys.argv[1])
    findings = {name: explained(method, name, place) for name in METHODS}
    findings |= {name: explained(scenario, place) for name, scenario in SCENARIOS.items()}
    torch.save(findings, place / f"{os.environ['RANK']}.pt")
    leave_group()
