"""The wording of refusals: the one test file to change with a sentence.

Other tests assert that something is refused, with which exception, and the name of the argument. What the command line
says is in ``tests/test_bad_inputs.py``.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import EarlyStopping, LearningRateFinder, ModelCheckpoint, StochasticWeightAveraging
from lightning.pytorch.cli import ReduceLROnPlateau
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset

from lit_robust import load_net, losses, nets, require
from lit_robust.attacks import BPDA, FGSM, GAMAPGD, PGD, RFGSM, AutoAttack, CurriculumPGD, FriendlyPGD, TargetedPGD
from lit_robust.attacks.difficulty import FOSC, Difficulty, LastLayerSharpness
from lit_robust.batch import as_batch
from lit_robust.callbacks import (
    AdversarialExamples,
    AdversarialTraining,
    AttributeRamp,
    CatastrophicOverfittingMonitor,
    DelayedStart,
    EMAWeights,
    GeneralizationGap,
    PGDDrop,
    RobustAccuracy,
    StopAfterDrop,
    SwitchRule,
)
from lit_robust.callbacks.adapter import Adapter
from lit_robust.data import (
    CIFAR10DataModule,
    DigitsDataModule,
    ImageFolderDataModule,
    ImageNet100DataModule,
    ImagenetteDataModule,
)
from lit_robust.data.splits import hold_out
from lit_robust.defenses import (
    AWP,
    FGSMAT,
    HSAT,
    NFGSM,
    PGDAT,
    PSAT,
    TRADES,
    CurriculumAT,
    CustomizedAT,
    FastAT,
    FreeAT,
    FriendlyAT,
    Natural,
    NuAT2,
    ZeroGrad,
)
from lit_robust.defenses.hybrid import CleanLossDrop
from lit_robust.first_batch import check_first_batch
from lit_robust.measures.examples import craft
from lit_robust.measures.pictures import Examples, draw
from lit_robust.runs import load_weights
from lit_robust.schedules import (
    Cosine,
    Cyclic,
    CyclicMomentum,
    CyclicStep,
    Linear,
    MultiStep,
    PeriodicCosine,
    PiecewiseLinear,
    Product,
    Schedule,
)
from lit_robust.threats import threat
from lit_robust.training.checkpoint_checks import warn_of_averages
from lit_robust.training.limits import Limits
from lit_robust.training.per_image import check_index, images_in
from lit_robust.training.trained import check_weights_finite, check_weights_fit
from lit_robust.whole_files import cannot_write
from tests.methods import ATTACK, ONE_STEP, build
from tests.tiny import CLASSES, TinyNet, images, loader, trainer

X, Y = images(8)[:2]
RAMP = Linear(0, 1, 0, 1)


class User(LightningModule):
    """A user's module, written without attacks."""

    def __init__(self, net: nn.Module | None = None) -> None:
        super().__init__()
        self.net = net or TinyNet()

    def forward(self, x):
        return self.net(x)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val/acc/robust", 0.5)


class Driven(User):
    """Has what callbacks drive, and logs its loss in both ways."""

    def __init__(self) -> None:
        super().__init__()
        self.adversarial, self.attack, self.lam = True, ATTACK, 1.0

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.log("loss", loss, on_step=False, on_epoch=True)
        self.log("loss_of_the_batch", loss)
        return loss


class Silent(Driven):
    training_step = User.training_step


class Netless(User):
    def __init__(self) -> None:
        super().__init__()
        self.model, self.net = self.net, None

    forward = LightningModule.forward


class Twice(TinyNet):
    def forward(self, x):
        return [super().forward(x)] * 2


class Endless(IterableDataset):
    def __iter__(self):
        return iter([])


def fit(module: LightningModule, *callbacks: Any, validate: bool = True, y: torch.Tensor = Y, **options: Any) -> None:
    """Three epochs of one batch."""
    run = trainer(".", callbacks=list(callbacks), **({"max_epochs": 3} | options))
    run.fit(module, loader(images(8)), loader(images(8)._replace(y=y)) if validate else None)


def first_batch(net: nn.Module | None = None, **change: torch.Tensor) -> None:
    check_first_batch(net or TinyNet(), images(8)._replace(**change), CLASSES)


def adapt(module: LightningModule | None = None, x: torch.Tensor = X, y: torch.Tensor = Y, **arguments: Any) -> None:
    Adapter(**arguments).check(module or User(), (x, y))


def of_vectors() -> nn.Module:
    """A net of which only vectors are trained."""
    net = TinyNet()
    for weight in net.parameters():
        weight.requires_grad_(weight.ndim == 1)
    return net


def end_of_an_epoch(logged: dict[str, float]) -> None:
    """A plateau scheduler reads its metric."""
    defense = build(Natural, lr_scheduler=lambda optimizer: ReduceLROnPlateau(optimizer, monitor="loss"))
    defense.configure_optimizers()
    defense.rate.epoch_done(logged)


def load_saved(net: nn.Module | None = None) -> None:
    """Train a TinyNet, and load its checkpoint."""
    run = trainer(".", max_epochs=1)
    run.fit(build(Natural), loader(images(8)))
    run.save_checkpoint("a.ckpt")
    load_net("a.ckpt", net)


def raised(error: BaseException) -> None:
    raise error


def pictures(*files: str, content: bytes = b"no image", **options: Any) -> None:
    """Read two classes of one picture each in ``photos/train`` and ``photos/val``, and these files."""
    buffer = BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    for name in ("train/cat/0.png", "train/dog/0.png", "val/cat/0.png", "val/dog/0.png"):
        (path := Path("photos") / name).parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(buffer.getvalue())
    for name in files:
        (path := Path("photos") / name).parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    ImageFolderDataModule("photos", **{"image_size": 8, "num_workers": 0, "val_size": 0} | options)


def frames() -> bytes:
    """A GIF of two frames."""
    buffer, frame = BytesIO(), Image.new("L", (8, 8))
    frame.save(buffer, "GIF", save_all=True, append_images=[Image.new("L", (8, 8), 255)])
    return buffer.getvalue()


def without_network() -> None:
    """Ask torchvision for weights that cannot be downloaded."""
    with patch("torchvision.models._api.load_state_dict_from_url", side_effect=OSError("no network here")):
        nets.torchvision_net("resnet18", pretrained=True)


def later_batch(**change: torch.Tensor) -> None:
    """Watch a good batch and another one."""
    limits = Limits(CLASSES)
    limits.watch(images(8))
    limits.watch(images(8)._replace(**change))
    limits.check()


def weights(content: object) -> None:
    """Load the weights of a file."""
    torch.save(content, "weights.pt")
    load_weights(TinyNet(), "weights.pt")


@dataclass(frozen=True)
class Overfits(PGDDrop):
    """A rule that sees overfitting in the first epoch."""

    def measure(self, *args: Any) -> dict[str, torch.Tensor]:
        return {"acc/pgd": torch.zeros(8)}

    def overfits(self, *args: Any) -> bool:
        return True


#: What is called, and what it says, where * stands for what torch or a package says.
SENTENCES: list[tuple[Callable[[], object], str]] = [
    # Numbers, words and types: every branch of lit_robust/require.py.
    (lambda: require.number("lam", -1, least=0), "lam=-1 must be a finite number, at least 0."),
    (lambda: require.number("lam", 2, least=-1, most=1), "lam=2 must be a finite number, at least -1 and at most 1."),
    (lambda: require.number("lam", math.inf), "lam=inf must be a finite number."),
    (lambda: require.number("lam", "0.4", least=0), "lam='0.4' must be a finite number, at least 0."),
    (lambda: require.number("c", -2.0, least=0, finite=False), "c=-2.0 must be a number, at least 0."),
    (lambda: require.number("c", math.nan, least=0, finite=False), "c=nan must be a number, at least 0."),
    (
        lambda: require.number("q", 1.0, least=0, below=1, hint="it is a share"),
        "q=1.0 must be a finite number, at least 0 and below 1: it is a share.",
    ),
    (lambda: require.number("eta", 0, above=0, most=0.1), "eta=0 must be a finite number, above 0 and at most 0.1."),
    (lambda: require.integer("steps", 0, least=1), "steps=0 must be an integer, at least 1."),
    (lambda: require.integer("steps", 2.5, least=0), "steps=2.5 must be an integer, at least 0."),
    (lambda: require.integer("steps", True, least=0), "steps=True must be an integer, at least 0."),
    (
        lambda: require.integer("steps", 0, least=1, hint="SATR1 has them"),
        "steps=0 must be an integer, at least 1: SATR1 has them.",
    ),
    (lambda: require.one_of("base", "pgd", ("fast", "nfgsm")), 'base="pgd" is unknown: choose fast or nfgsm.'),
    (
        lambda: require.one_of("revert", "no", ("failed", "succeeded", "never")),
        'revert="no" is unknown: choose failed, succeeded or never.',
    ),
    (lambda: require.instance("psi", 3, Difficulty, "give FOSC()"), "psi=3 must be of type Difficulty: give FOSC()."),
    (
        lambda: require.instance("rule", 0.5, (Schedule, SwitchRule), "give one of them"),
        "rule=0.5 must be of type Schedule or SwitchRule: give one of them.",
    ),
    (lambda: require.pixels("eps", 8), "eps=8.0 is above 1, but pixels are in [0, 1]: did you mean 8/255?"),
    (
        lambda: require.pixels("eps", "8/0"),
        "eps=8/0 is not a magnitude: write a number >= 0 or a fraction such as 8/255.",
    ),
    (
        lambda: require.increasing("times", [0, 5, 5]),
        "times=[0, 5, 5] must hold at least one time, each later than the one before.",
    ),
    (lambda: require.increasing("times", []), "times=[] must hold at least one time, each later than the one before."),
    (
        lambda: require.fine_precision("bf16-true"),
        "trainer.precision=bf16-true rounds images to steps as coarse as an eps: use bf16-mixed.",
    ),
    (
        lambda: require.fine_precision("16-true"),
        "trainer.precision=16-true rounds images to steps as coarse as an eps: use 16-mixed.",
    ),
    # Attacks and losses.
    (lambda: PGD(loss="ce"), "loss='ce' is not a function: give one such as lit_robust.losses.ce."),
    (
        lambda: PGD(compare_with="clean_logits"),
        'loss=ce needs labels: set compare_with="label" (clean_logits is for kl).',
    ),
    (lambda: PGD(loss=losses.kl), 'loss=kl compares with the clean images\' logits: set compare_with="clean_logits".'),
    (
        lambda: PGD(loss=losses.kl, compare_with="clean_logits", init="zero"),
        'init="zero" starts where kl has no gradient, and never moves: choose "gaussian" or "uniform".',
    ),
    (
        lambda: PGD(loss=losses.kl, compare_with="clean_logits", targeted=True),
        'compare_with="clean_logits" has no target to reach: set targeted=False.',
    ),
    (
        lambda: PGD(loss=F.cross_entropy)(TinyNet(), X, Y),
        "an attack's loss must be one number per sample, but for 8 samples its shape is (): use a function of "
        'lit_robust.losses, or reduction="none".',
    ),
    (
        lambda: PGD()(TinyNet(), X.byte(), Y),
        "there are images of torch.uint8, but attacks move floating-point pixels in [0, 1]: convert them and "
        "divide by 255.",
    ),
    (lambda: RFGSM(eps=0.1, alpha=0.2), "alpha=0.2 is above eps=0.1 and leaves no step: choose a smaller one."),
    (
        lambda: CurriculumPGD(psi=FOSC(), lam=1, targeted=True),
        "a curriculum measures how difficult the true label is: set targeted=False, or use PGD.",
    ),
    (lambda: CurriculumPGD(psi=FOSC(), lam=math.nan), "lam=nan bounds nothing: give a number."),
    (
        lambda: FriendlyPGD(momentum=0.9),
        "FriendlyPGD stops samples by a rule of its own: leave out momentum, or use PGD.",
    ),
    (
        lambda: GAMAPGD(relaxed=25),
        "relaxed=25 must be a finite number, at least 0 and at most 1: it is a share of the steps.",
    ),
    (
        lambda: TargetedPGD(target_rank=0),
        "target_rank=0 must be an integer, at least 1: -1 is the least likely class.",
    ),
    (
        lambda: TargetedPGD(target_rank=4)(TinyNet().eval(), X, Y),
        "target_rank=4 is out of range: the net has 3 wrong classes, so give at most 3, or -1 for the least likely "
        "one.",
    ),
    (
        lambda: TargetedPGD(towards="ce"),
        "towards='ce' is not a function: give one such as lit_robust.losses.margin_targeted.",
    ),
    (lambda: BPDA(PGD(), 3), "forward=3 is not a step: give a layer's name, or a function of images."),
    (lambda: BPDA(PGD(), "0", "tanh"), "substitute='tanh' is not a function: leave it out for the identity."),
    (
        lambda: BPDA(PGD(), "mask")(nn.Sequential(TinyNet().body, nn.Linear(128, 4)), X, Y),
        'forward="mask" is not a layer of the net: give one of 0, 0.0, 0.1, 0.2, 0.3, 1.',
    ),
    (
        lambda: BPDA(PGD(), "head")(TinyNet(), X, Y),
        "BPDA's substitute returns the shape (8, 128), but forward (8, 4): give a substitute with the shapes of "
        "forward.",
    ),
    (
        lambda: AutoAttack()(nn.Flatten(), torch.rand(2, 3, 1, 1), torch.zeros(2).long()),
        'AutoAttack(version="standard") needs at least 4 classes for its DLR loss, but the net returns 3 logits: '
        'use version="v1".',
    ),
    (
        lambda: AutoAttack()(nn.Flatten(), torch.rand(2, 2, 1, 1), torch.zeros(2).long()),
        'AutoAttack(version="standard") needs at least 4 classes for its DLR loss, but the net returns 2 logits: '
        "use PGD with restarts.",
    ),
    (lambda: threat("l1", 0.1), 'norm="l1" is unknown: choose linf or l2.'),
    (
        lambda: losses.ce(torch.rand(8, 4), torch.zeros(3).long()),
        "logits must be (N, C) and labels (N,), but they are (8, 4) and (3,).",
    ),
    (
        lambda: losses.kl(torch.rand(8, 4), torch.rand(8, 2)),
        "logits and clean_logits must both be (N, C), but are (8, 4) and (8, 2).",
    ),
    (
        lambda: losses.dlr(torch.rand(8, 2), torch.zeros(8).long()),
        "this loss needs at least 3 classes, but the net returns 2 logits.",
    ),
    (
        lambda: losses.nuclear_norm(torch.full((8, 4), math.nan)),
        "the logits are not finite, so they have no nuclear norm: lower the learning rate, clip gradients "
        "(gradient_clip_val) or train in bf16-mixed instead of 16-mixed.",
    ),
    # What a Defense is given.
    (lambda: build(PGDAT, attack=PGD), "attack=PGD is a class: write PGD(...)."),
    (
        lambda: build(PGDAT, attack=PGD(targeted=True)),
        "attack is targeted, and its targets would be the true labels, which helps the net: set targeted: false "
        "(AdversarialExamples draws targeted pictures).",
    ),
    (
        lambda: build(PGDAT, attack=PGD(0.1, step_size=0)),
        "step_size=0 of attack never leaves its start: leave step_size out (it is then 0.025).",
    ),
    (
        lambda: build(PGDAT, val_attack="PGD"),
        "val_attack='PGD' is not an attack: give one of lit_robust.attacks, such as PGD(steps=10).",
    ),
    (
        lambda: build(PGDAT, test_attacks={"worst": PGD()}),
        'test_attacks names an attack "worst", as a row of every table is called: rename it.',
    ),
    (
        lambda: build(PGDAT, gradient_clip_val=0),
        "gradient_clip_val=0 must be a finite number, above 0: null means no clipping.",
    ),
    (
        lambda: build(PGDAT, bn_forwards="authors", attack_bn_mode="eval"),
        'attack_bn_mode="eval" must be "train" with bn_forwards="authors", as in their code: set it so, or '
        'bn_forwards="needed".',
    ),
    (
        lambda: build(PGDAT, weight_perturbation=0.005),
        "weight_perturbation=0.005 is not an AWP: write AWP(gamma=0.005), or None.",
    ),
    (lambda: AWP(gamma=-0.1), "AWP's gamma=-0.1 must be a finite number, at least 0."),
    (
        lambda: fit(build(PGDAT, net=of_vectors(), weight_perturbation=AWP())),
        "AWP perturbs tensors of more than one dimension, but this net trains none: leave weight_perturbation out.",
    ),
    (
        lambda: fit(build(Natural, optimizer=torch.optim.Adagrad, momentum=MultiStep([1]))),
        "momentum is scheduled, but Adagrad has none: remove the schedule.",
    ),
    (
        lambda: end_of_an_epoch({}),
        "the scheduler monitors loss, but nothing is logged yet: resume from a checkpoint of the epoch's end, of a "
        "ModelCheckpoint with save_on_train_epoch_end: true.",
    ),
    (lambda: end_of_an_epoch({"acc": 0.5}), "the scheduler monitors loss, which is not among ['acc']."),
    (
        lambda: fit(build(Natural), EarlyStopping("val/acc/robst"), num_sanity_val_steps=1),
        "EarlyStopping monitors val/acc/robst, but validation logs val/acc/clean, val/acc/robust: correct the name.",
    ),
    (
        lambda: fit(build(Natural), EarlyStopping("val/acc/robust"), validate=False),
        "EarlyStopping monitors val/acc/robust, but there is no validation: hold images out "
        "(data.init_args.val_size), or remove the monitor to keep the last checkpoint alone.",
    ),
    (
        lambda: fit(build(Natural, optimizer=lambda p: torch.optim.SGD(p, lr=math.inf)), validate=False),
        "the training loss is nan in epoch 1 by batch 0: lower the learning rate, clip gradients "
        "(gradient_clip_val) or train in bf16-mixed instead of 16-mixed; the checkpoint before is intact.",
    ),
    (
        lambda: check_weights_finite({"head.bias": torch.tensor([math.nan])}),
        "head.bias is no longer finite, so no checkpoint was written and the one before is intact: resume from it "
        "with a lower learning rate or clipped gradients (gradient_clip_val).",
    ),
    (
        lambda: check_weights_fit({"head.bias": torch.zeros(4)}, {"head.bias": torch.zeros(3)}),
        "the checkpoint holds the weights of another net: head.bias is (3,) there and (4,) here; build the "
        "net that was trained (its configuration is saved beside the checkpoint's folder).",
    ),
    (
        lambda: check_weights_fit({"head.bias": torch.zeros(4)}, {}),
        "the checkpoint holds the weights of another net: head.bias is missing there and (4,) here; build the "
        "net that was trained (its configuration is saved beside the checkpoint's folder).",
    ),
    # Methods.
    (
        lambda: build(FGSMAT, attack=PGD()),
        "FGSMAT takes its single step itself and needs only the bound: set attack=FGSM(eps=...), not PGD.",
    ),
    (
        lambda: build(FastAT, attack=FGSM(1.0, norm="l2")),
        'FastAT is a method for L-infinity: give FGSM(norm="linf"), or train PGDAT on this one.',
    ),
    (
        lambda: build(NFGSM, attack=ONE_STEP, k=-1),
        "k=-1 must be a finite number, at least 0: it is the noise in units of eps.",
    ),
    (
        lambda: build(ZeroGrad, attack=ONE_STEP, q=1.0),
        "q=1.0 must be a finite number, at least 0 and below 1: it is the share of the gradient that is ignored.",
    ),
    (
        lambda: build(FreeAT, attack=ONE_STEP, weight_perturbation=AWP()),
        "FreeAT cannot perturb weights, for each of its gradients serves weights and images at once: set "
        "weight_perturbation=None, or train PGDAT with it.",
    ),
    (
        lambda: build(TRADES, attack=ONE_STEP),
        "TRADES gives PGD its own start and objective: set attack=PGD(eps=..., step_size=..., steps=...), not FGSM.",
    ),
    (
        lambda: build(TRADES, attack=GAMAPGD()),
        "TRADES gives PGD its own start and objective: set attack=PGD(eps=..., step_size=..., steps=...), not GAMAPGD.",
    ),
    (
        lambda: build(FriendlyAT, attack=FriendlyPGD()),
        "FriendlyAT stops PGD early: set attack=PGD(eps=..., step_size=..., steps=...), not FriendlyPGD.",
    ),
    (
        lambda: build(CurriculumAT, expect_acc=95),
        "expect_acc=95 must be a finite number, at least 0 and below 1: it is an accuracy to exceed.",
    ),
    (
        lambda: fit(build(CurriculumAT, patience=10), validate=False),
        "patience=10 counts validations, but there is none: hold images out (data.init_args.val_size), or set "
        "patience=0.",
    ),
    (
        lambda: fit(build(CurriculumAT), AttributeRamp("k", Linear(8, 8, 0, 1))),
        "AttributeRamp leads to k=8 at epoch 0: k=8 must be a finite number, at least 0 and at most 2: the attack "
        "has no more steps.",
    ),
    (
        lambda: build(CustomizedAT, attack=PGD(momentum=0.9, restarts=3)),
        "CustomizedAT has an objective and runs of its own: leave out momentum, restarts of attack.",
    ),
    (
        lambda: build(CustomizedAT, attack=PGD(eps=0)),
        "attack.eps=0.0 must be a finite number, above 0: it is how far each image's eps may grow.",
    ),
    (
        lambda: build(CustomizedAT, eta=0.2),
        "eta=0.2 must be a finite number, above 0 and at most 0.1: it may not exceed attack.eps.",
    ),
    (
        lambda: build(CustomizedAT, smoothing=11),
        "smoothing=11 times attack.eps=0.1 is a share of the label, but above 1: choose a smoothing from 0 to 10.",
    ),
    (
        lambda: build(PSAT, attack=FGSM(0.5, norm="l2")),
        'the single-step form of PSAT is one in L-infinity: give FGSM(norm="linf"), or a PGD.',
    ),
    (
        lambda: build(HSAT, psi="power"),
        "psi='power' must be of type Sharpness: give LastLayerSharpness() or PowerIteration(), or train PSAT.",
    ),
    (
        lambda: build(
            HSAT, net=nn.Sequential(nn.Flatten(), nn.Linear(192, 4)), psi=LastLayerSharpness(feature_norm=True)
        ),
        "LastLayerSharpness(feature_norm=True) reads net.features(x) and the Linear net.head, which Sequential "
        "lacks: set feature_norm=False, or take a net of lit_robust.nets.",
    ),
    (
        lambda: build(NuAT2, attack=ONE_STEP, two_step=None),
        "NuAT2 guides the first of two steps in each batch: leave out two_step and attack_alternate.",
    ),
    (
        lambda: fit(build(NuAT2, attack=ONE_STEP, attack_average="fast")),
        'attack_average="fast" is not an average of EMAWeights: add the callback EMAWeights(decay=0.9998, '
        'extra={"fast": 0.99}).',
    ),
    (
        lambda: fit(build(NuAT2, attack=ONE_STEP, attack_average="fast"), EMAWeights(extra={"slow": 0.9})),
        'attack_average="fast" is not an average of EMAWeights, which keeps slow: add the callback '
        'EMAWeights(decay=0.9998, extra={"fast": 0.99}).',
    ),
    (
        lambda: CleanLossDrop(drop=-3),
        "drop=-3 must be a finite number, above 0 and below 1: it is the share of the loss that may be lost.",
    ),
    # The first batch.
    (
        lambda: first_batch(x=X * 255),
        "pixels run from 0.01016 to 254.9, but every eps is in units of [0, 1]: divide them by 255.",
    ),
    (
        lambda: first_batch(x=X * 2 - 1),
        "pixels run from -0.9999 to 0.9992, but every eps is in units of [0, 1]: give the images as they are "
        "and normalise inside the net.",
    ),
    (
        lambda: first_batch(x=X * math.nan),
        "pixels run from nan to nan, but every eps is in units of [0, 1]: give the images as they are and "
        "normalise inside the net.",
    ),
    (
        lambda: first_batch(x=X.byte()),
        "there are images of torch.uint8, but attacks move floating-point pixels in [0, 1]: convert them and "
        "divide by 255.",
    ),
    (
        lambda: first_batch(x=X[:, :1]),
        "the net (TinyNet) cannot read images of shape 1x8x8 (RuntimeError: *): choose a net for this data set.",
    ),
    (lambda: first_batch(y=Y + 1), "labels run from 1 to 4, but num_classes=4: set it to the data's classes."),
    (lambda: first_batch(y=Y[:3]), "there are labels of shape (3,) for 8 images: give one for each image."),
    (
        lambda: first_batch(TinyNet().body[:3]),
        "the net returns a tensor of shape (2, 8, 4, 4) for 2 images, but num_classes=4: give the net "
        "num_classes=4 (--model.net.num_classes 4).",
    ),
    (
        lambda: first_batch(Twice()),
        "the net returns list for 2 images instead of logits: give the net num_classes=4 (--model.net.num_classes 4).",
    ),
    (
        lambda: first_batch(nn.Sequential(TinyNet(), nn.Softmax(1))),
        "the net returns probabilities, but losses and attacks need logits: remove its softmax, or every attack "
        "looks weaker than it is.",
    ),
    (
        lambda: first_batch(nn.Sequential(TinyNet(), nn.Threshold(math.inf, math.nan))),
        "the net returns NaN or infinite logits, whose accuracy would be that of guessing: its weights or its "
        "normalisation are broken, take an earlier checkpoint.",
    ),
    (lambda: as_batch({"image": X}), "a batch must be a lit_robust.batch.Batch or a pair (images, labels), not dict."),
    (
        lambda: images_in(DataLoader(Endless())),
        "this method remembers a number for each image, but DataLoader does not tell how many there are: give a "
        "DataLoader of a dataset that has a length.",
    ),
    (
        lambda: check_index(torch.tensor([-1]), 12),
        "this method identifies images by their index, which the training loader does not give: let it yield "
        "lit_robust.batch.Batch(x, y, index, weight).",
    ),
    (
        lambda: check_index(torch.tensor([97]), 12),
        "a batch has the index 97, but there are 12 images: let indices count from 0.",
    ),
    # The first batch of a user's module.
    (
        lambda: adapt(x=X * 2 - 1),
        "pixels run from -0.9999 to 0.9992, but every eps is in units of [0, 1]: if the data pipeline "
        "normalises, give its mean and std; otherwise normalise inside the net.",
    ),
    (
        lambda: adapt(x=X * 9 - 4, mean=0.5, std=0.5),
        "pixels run from -1.5 to 2.998, but every eps is in units of [0, 1]: mean=[0.5] and std=[0.5] are not "
        "what the data pipeline normalises with.",
    ),
    (
        lambda: adapt(mean=0.5, std=0.5),
        "images run from 3.985e-05 to 0.9996 as they come, so the data pipeline does not normalise them with "
        "mean=[0.5] and std=[0.5]: leave mean and std out.",
    ),
    (
        lambda: adapt(mean=[0.1, 0.2], std=1),
        "mean=[0.1, 0.2] has 2 numbers for images of 3 channels: *",
    ),
    (
        lambda: adapt(x=X.byte()),
        "x=0 finds images of torch.uint8, but attacks move floating-point pixels in [0, 1]: convert them and "
        "divide by 255.",
    ),
    (lambda: adapt(y=Y[:3]), "y=1 finds labels of shape (3,) for 8 images: give one for each image."),
    (
        lambda: adapt(y=Y + 1),
        "labels run from 1 to 4, but the net returns 4 logits per image: give the net an output for each class, and "
        "classes numbers from 0 on.",
    ),
    (
        lambda: adapt(net="model"),
        'net="model" is not a sub-module of User: name the one that returns logits (it has: net).',
    ),
    (
        lambda: adapt(net="net.head"),
        "User.net.head cannot read images of shape 3x8x8 (RuntimeError: *): set net to the sub-module that turns "
        "images into logits (User has: net).",
    ),
    (
        lambda: adapt(User(nn.Sequential(TinyNet(), nn.Softmax(1)))),
        "the net returns probabilities, but losses and attacks need logits: set net to the sub-module before the "
        "softmax, or every attack looks weaker than it is.",
    ),
    (
        lambda: adapt(User(Twice())),
        "User returns list for 2 images instead of logits: set net to the sub-module that turns images into logits "
        "(User has: net).",
    ),
    (
        lambda: Adapter("img").pixels({"image": X, "label": Y}),
        "x='img' finds nothing in a dict with the keys 'image', 'label': give an index, a key or the name of a "
        'field, or a path of them such as "views.0".',
    ),
    (
        lambda: Adapter("views").pixels({"views": [X, X]}),
        "x='views' finds no tensor in a dict with the keys 'views', but a list of 2: give an index, a key or the "
        'name of a field, or a path of them such as "views.0".',
    ),
    (lambda: Adapter(mean=0.5), "mean=0.5 and std=None go together: give both, or neither."),
    (lambda: Adapter(mean=0.5, std=0.0), "std=0.0 must be finite and above 0: it is what images are divided by."),
    # Callbacks.
    (
        lambda: fit(build(Natural), AdversarialTraining(ATTACK)),
        "Natural finds adversarial images itself (it has perturb), and AdversarialTraining would attack them once "
        "more: leave this callback out, or train a module that knows nothing of attacks.",
    ),
    (
        lambda: fit(Driven(), AdversarialTraining(ATTACK)),
        "Driven has an attribute adversarial of its own, by which other callbacks would drive AdversarialTraining: "
        "rename it.",
    ),
    (
        lambda: fit(User(), AdversarialTraining(ATTACK), AdversarialTraining(ATTACK)),
        "two AdversarialTraining callbacks would attack each other's images: keep one.",
    ),
    (
        lambda: fit(User(), RobustAccuracy({"a": ATTACK}), RobustAccuracy({"b": ATTACK})),
        "two RobustAccuracy callbacks would log the same rows: give all attacks to one.",
    ),
    (lambda: RobustAccuracy([ATTACK]), 'attacks is a list: give attacks by name, {"pgd20": PGD(steps=20)}.'),
    (lambda: RobustAccuracy({}), 'attacks is empty: give attacks by name, {"pgd20": PGD(steps=20)}.'),
    (
        lambda: RobustAccuracy({"clean": ATTACK}),
        'attacks names an attack "clean", as a row of every table is called: rename it.',
    ),
    (
        lambda: fit(build(PGDAT), RobustAccuracy({"robust": ATTACK}, net="net")),
        'PGDAT logs val/acc/robust itself: rename "robust" here.',
    ),
    (lambda: fit(User(), RobustAccuracy({"robust": ATTACK})), 'User logs val/acc/robust itself: rename "robust" here.'),
    (
        lambda: fit(User(), RobustAccuracy({"pgd": ATTACK}), y=Y.float()),
        "y=1 finds torch.float32 of shape (8,), but an accuracy needs class labels (N,), integers.",
    ),
    (
        lambda: fit(Driven(), AttributeRamp("lam", RAMP), AttributeRamp("lam", RAMP)),
        "two AttributeRamps drive lam: keep one, whose schedule may be a Product of several.",
    ),
    (lambda: AttributeRamp("attack.", RAMP), "attribute='attack.' is neither a name (lam) nor a path (attack.eps)."),
    (
        lambda: fit(Driven(), AttributeRamp("atack.eps", RAMP)),
        'AttributeRamp("atack.eps") finds no atack in Driven: did you mean attack?',
    ),
    (
        lambda: fit(Driven(), AttributeRamp("attack.norm", RAMP)),
        "AttributeRamp(\"attack.norm\") drives a number, but attack.norm is 'linf': did you mean eot or eps or "
        "momentum or restarts or step_size or steps?",
    ),
    (
        lambda: fit(Driven(), AttributeRamp("net.lam", RAMP)),
        'AttributeRamp("net.lam") finds no lam in TinyNet: did you mean another module (this one has no numbers)?',
    ),
    (
        lambda: fit(User(), AttributeRamp("attack.eps", RAMP)),
        'AttributeRamp("attack.eps") finds no attack in User: if AdversarialTraining lends it, list that callback '
        "before the ramp.",
    ),
    (
        lambda: fit(Driven(), AttributeRamp("attack.steps", Linear(2, 3, 0, 1))),
        "AttributeRamp leads to attack.steps=2.5 at epoch 0.5: steps=2.5 must be an integer, at least 0.",
    ),
    (
        lambda: DelayedStart(at_epoch=1, latest_epoch=2),
        "at_epoch=1 leaves nothing for latest_epoch=2 to bound: drop one.",
    ),
    (lambda: DelayedStart(rule=0.1), "rule=0.1 must be of type SwitchRule: give a Plateau, or a subclass of your own."),
    (
        lambda: fit(Driven(), DelayedStart(at_epoch=3)),
        "at_epoch=3 is not before max_epochs=3: nothing would be adversarial.",
    ),
    (
        lambda: fit(User(), DelayedStart(at_epoch=1)),
        "DelayedStart switches module.adversarial, which User lacks: let it train naturally while that is false, "
        "or list AdversarialTraining, which lends it, before DelayedStart.",
    ),
    (
        lambda: fit(Driven(), DelayedStart()),
        "no drop of the learning rate (by a factor of 2 or more at once, by a schedule that counts epochs) can be "
        "foreseen in 3 epochs: give DelayedStart latest_epoch, the epoch that is adversarial in any case, or "
        "at_epoch.",
    ),
    (
        lambda: fit(Silent(), DelayedStart(latest_epoch=2), validate=False),
        "DelayedStart monitors train/loss, but nothing is logged yet: log it with on_epoch=True, and resume from a "
        "checkpoint of the epoch's end, of a ModelCheckpoint with save_on_train_epoch_end: true, or give at_epoch, "
        "which asks for no loss.",
    ),
    (
        lambda: fit(Driven(), DelayedStart(latest_epoch=2)),
        "DelayedStart monitors train/loss, which is not among ['loss', 'loss_of_the_batch', 'val/acc/robust'].",
    ),
    (
        lambda: fit(Driven(), DelayedStart(latest_epoch=2, monitor="loss_of_the_batch")),
        "DelayedStart monitors loss_of_the_batch, which is logged by step, so that the last batch would stand for "
        "the epoch: log it with on_epoch=True.",
    ),
    (
        lambda: fit(User(), StopAfterDrop()),
        "no drop of the learning rate (by a factor of 2 or more at once, by a schedule that counts epochs) can be "
        "foreseen in 3 epochs: set trainer.max_epochs where training is to end, and leave StopAfterDrop out.",
    ),
    (
        lambda: fit(User(), EMAWeights(), EMAWeights()),
        "only one callback may average weights, because swaps do not nest: give the decays of further averages to "
        'the first EMAWeights, as extra={"name": decay}.',
    ),
    (
        lambda: fit(User(), EMAWeights(), ModelCheckpoint(".", save_weights_only=True), enable_checkpointing=True),
        "ModelCheckpoint(save_weights_only=True) would save the live weights instead of EMAWeights' average: set "
        "it to False.",
    ),
    (
        lambda: fit(User(), EMAWeights(Linear(0.9, 1.5, 0, 1))),
        "a scheduled decay=1.5 must be a finite number, at least 0 and below 1: 0.9998 forgets half in 3465 steps.",
    ),
    (
        lambda: EMAWeights(1.0),
        "decay=1.0 must be a finite number, at least 0 and below 1: 0.9998 forgets half in 3465 steps.",
    ),
    (
        lambda: fit(Netless(), EMAWeights(extra={"fast": 0.9})),
        "EMAWeights averages a net, but Netless has neither forward nor net: set net to the sub-module that turns "
        "images into logits (it has: model).",
    ),
    (
        lambda: fit(Netless(), CatastrophicOverfittingMonitor()),
        "CatastrophicOverfittingMonitor attacks a net, but Netless has neither forward nor net: set net to the "
        "sub-module that turns images into logits (it has: model).",
    ),
    (
        lambda: fit(User(), CatastrophicOverfittingMonitor()),
        "PGDDrop measures at the training's eps, but User has no attack.eps: give the rule an attack or eps of its "
        "own, or list AdversarialTraining, which lends an attack, before the monitor.",
    ),
    (
        lambda: fit(Driven(), CatastrophicOverfittingMonitor(action="restore"), EMAWeights()),
        'action="restore" would be undone by EMAWeights, which leaves its average in the module after the fit: set '
        'action="stop", and go back to the best checkpoint.',
    ),
    (
        lambda: fit(build(Natural), DelayedStart(at_epoch=1)),
        "DelayedStart delays the training's attack, but Natural trains without one: leave this callback out, or train "
        "another method.",
    ),
    (
        lambda: fit(build(PGDAT), LearningRateFinder()),
        "LearningRateFinder, which lr_find uses, cannot drive the rate of a Defense, which follows its own schedule in "
        "every batch: compare a few short fits with different model.optimizer.lr.",
    ),
    (
        lambda: fit(build(PGDAT), StochasticWeightAveraging(0.1)),
        "StochasticWeightAveraging replaces a scheduler that a Defense steps itself, so its rate would have no effect: "
        "use EMAWeights.",
    ),
    (
        lambda: fit(build(PGDAT), gradient_clip_algorithm="norm"),
        'gradient_clip_algorithm="norm" of the trainer has no effect: give model.gradient_clip_val, which clips the '
        "norm.",
    ),
    (
        lambda: fit(build(PGDAT, attack=PGD(0.1, 0.01, steps=5))),
        "step_size=0.01 of attack is too short to cross the ball of eps=0.1 in 5 steps: leave step_size out (it is "
        "then 0.05), or take more steps.",
    ),
    (
        lambda: fit(build(PGDAT, attack=PGD(0, 0.1), val_attack=ATTACK)),
        "eps=0 of attack changes no image: set another eps, or train Natural.",
    ),
    (
        lambda: fit(build(PGDAT, attack=PGD(0.1)), AttributeRamp("attack.step_size", RAMP)),
        'AttributeRamp("attack.step_size") drives a number, but attack.step_size is None and so follows from other '
        "arguments: give it a value to start from, or leave this ramp out.",
    ),
    (
        lambda: fit(User(), GeneralizationGap()),
        "GeneralizationGap attacks as the validation does, but User has no val_attacks: give it an attack, or train "
        "a Defense.",
    ),
    (
        lambda: fit(build(PGDAT), GeneralizationGap()),
        "GeneralizationGap needs the training images as they are: give the trainer a DataModule of "
        "lit_robust.data, or one with plain_train_dataloader(), which yields them in order.",
    ),
    (
        lambda: AdversarialExamples(PGD(targeted=True)),
        "target=None does not fit PGD: a targeted attack needs the class that it aims at, and any other takes none.",
    ),
    (lambda: craft(TinyNet(), PGD(targeted=True), X, Y, target=4), "target=4 is not one of the net's 4 classes."),
    (
        lambda: draw(Examples(*[torch.rand(2, 2, 4, 4)] * 5), "pgd", None, None, None),
        "only grey and colour images can be drawn, and these have 2 channels.",
    ),
    # Nets and checkpoints.
    (
        lambda: nets.resnet18(in_channels=1),
        "mean=(0.4914, 0.4822, 0.4465) has 3 numbers for in_channels=1: give one for each channel, or neither mean nor "
        "std for pixels as they are.",
    ),
    (lambda: nets.resnet18(num_classes=0), "resnet18's num_classes=0 must be an integer, at least 1."),
    (
        lambda: nets.resnet18(mean=None),
        "mean=None and std=(0.2471, 0.2435, 0.2616) go together: give both, or neither.",
    ),
    (
        lambda: nets.resnet18(std=(1.0, 0.0, 1.0)),
        "std=(1.0, 0.0, 1.0) must be finite and above 0: it is what images are divided by.",
    ),
    (
        lambda: nets.wide_resnet32_10(width=8),
        "width=8 is less than the stem's 16 channels, which shortcuts can only add to.",
    ),
    (lambda: nets.small_cnn(image_size=15), "image_size=15 is too small for this net (*)."),
    (lambda: load_net("nowhere.ckpt"), "no checkpoint at nowhere.ckpt: give the path of a .ckpt file."),
    (lambda: load_saved(), "a.ckpt: it does not say how its net was built: pass the net that was trained, *"),
    (
        lambda: load_saved(TinyNet(width=4)),
        "a.ckpt: it holds the weights of another net: body.0.weight is *",
    ),
    # Data.
    (lambda: CIFAR10DataModule(val_size=50_000), "val_size=50000 leaves no image of 50000 to train on: take fewer."),
    (
        lambda: CIFAR10DataModule(split="first_per_class", val_size=1005),
        "val_size=1005 does not divide evenly among 10 classes.",
    ),
    (
        lambda: CIFAR10DataModule("nowhere").setup(),
        "CIFAR10 cannot be read from root='nowhere' (*): set download: true, after deleting a broken copy, or "
        "point root or the environment's LIT_ROBUST_DATA to a good one.",
    ),
    (
        lambda: ImagenetteDataModule("nowhere").setup(),
        "Imagenette is not in root='nowhere' (no folder imagenette2-160): set download: true, or point root or the "
        "environment's LIT_ROBUST_DATA to a folder that has it.",
    ),
    (
        lambda: ImageNet100DataModule(class_list="nowhere.txt"),
        "class_list='nowhere.txt' cannot be read: give a file with one wnid per line.",
    ),
    (lambda: DigitsDataModule(train_size=1399).setup(), "train_size=1399 is more than the 1300 images there are."),
    (
        lambda: DigitsDataModule(train_size=8, batch_size=9, drop_last=True).train_dataloader(),
        "batch_size=9 with drop_last=True makes no batch of 8 images on 1 ranks: take a smaller batch_size.",
    ),
    (
        lambda: DigitsDataModule(val_size=0).select([1400]),
        "select() got 1 indices, 1400 among them, that are not among the 1400 training images: they are held out, "
        "cut by train_size, or do not exist.",
    ),
    (
        lambda: DigitsDataModule(val_size=0).select([0], [-1.0]),
        "select() needs weights that are finite and above 0: leave samples out instead.",
    ),
    (
        lambda: DigitsDataModule(val_size=0).select([0, 1], [1.0]),
        "select() needs one weight for each index, at least one: got shapes (2,) and (1,).",
    ),
    (
        lambda: hold_out(torch.tensor([0, 0, 0, 0, 1]), 4, "first_per_class", seed=0),
        "split='first_per_class' finds 3 of val_size=4 images: take fewer.",
    ),
    # What else a Defense is given.
    (
        lambda: build(Natural, test_attacks={"a": PGD(0.1), "b": PGD(0.1)}),
        "test_attacks a and b are the same attack: drop one, or change it.",
    ),
    (
        lambda: fit(build(Natural, lr_scheduler=torch.optim.lr_scheduler.ReduceLROnPlateau)),
        'mode="min" of the scheduler lowers the rate while val/acc/robust gets better: set mode="max".',
    ),
    (
        lambda: fit(build(Natural, lr_scheduler=Linear(1, -1, 0, 1))),
        "lr_scheduler gives the learning rate -0.1 at epoch 1: let its values be 0 or above.",
    ),
    (
        lambda: warn_of_averages(
            {"current_model_state": {}}, SimpleNamespace(callbacks=[], state=SimpleNamespace(fn="fit"))
        ),
        "the checkpoint holds averaged weights, and this training keeps no average, so it continues from "
        "them, not from the live ones: add the EMAWeights that the checkpoint was written with.",
    ),
    (
        lambda: fit(build(PGDAT), limit_train_batches=0),
        "limit_train_batches=0 leaves nothing to train on: the weights stay as they are.",
    ),
    (
        lambda: fit(build(PGDAT), val_check_interval=0),
        "val_check_interval=0 must be above 0: for no validation set data.val_size or trainer.limit_val_batches to 0.",
    ),
    (
        lambda: Natural.load_from_checkpoint("a.ckpt", weights_only=False),
        "weights_only=False would run the code that a file holds: leave it out, or give True.",
    ),
    (
        lambda: Natural.load_from_checkpoint("a.ckpt", hparams_file="a.yaml"),
        "hparams_file='a.yaml' is not read: give its arguments by name.",
    ),
    # Later batches.
    (
        lambda: later_batch(x=X * 255),
        "pixels of a later batch run from * to *, but every eps is in units of [0, 1]: let the loader give "
        "all images as it gives the first ones.",
    ),
    (
        lambda: later_batch(x=X - 0.5),
        "pixels of a later batch run from * to *, but every eps is in units of [0, 1]: let the loader give "
        "all images as it gives the first ones.",
    ),
    (
        lambda: later_batch(y=Y - 101),
        "labels of a later batch run from -101 to 3, but there are the classes 0 to 3: give what shall not "
        "count the weight 0, not another label.",
    ),
    # Later epochs, and statistics of images.
    (
        lambda: fit(Driven(), CatastrophicOverfittingMonitor(Overfits(ATTACK)), max_epochs=2),
        "catastrophic overfitting in epoch 1, says Overfits: acc/pgd 0 -> 0; training goes on.",
    ),
    (
        lambda: fit(Driven(), CatastrophicOverfittingMonitor(Overfits(ATTACK), "stop"), max_epochs=2),
        "catastrophic overfitting in epoch 1, says Overfits: acc/pgd 0 -> 0; training stops.",
    ),
    (
        lambda: fit(Driven(), CatastrophicOverfittingMonitor(Overfits(ATTACK), "restore"), max_epochs=2),
        "catastrophic overfitting in epoch 1, says Overfits: acc/pgd 0 -> 0; training stops with the "
        "weights of the last healthy epoch.",
    ),
    (
        lambda: fit(build(PGDAT, attack=PGD(0.1, 0.05, steps=2)), AttributeRamp("attack.eps", Linear(0.1, 0.4, 0, 2))),
        "from epoch 0.5 on, step_size=0.05 of attack is too short to cross the ball of eps=0.175 in 2 "
        "steps: leave step_size out (it is then 0.175), or take more steps.",
    ),
    (
        lambda: Adapter(mean=(0.5, 0.5), std=(1.0, 1.0)).check(User(), (X, Y)),
        "mean=[0.5, 0.5] has 2 numbers for images of 3 channels: give one for each channel, or neither "
        "mean nor std for pixels as they are.",
    ),
    # Nets from elsewhere, and files.
    (
        lambda: nets.torchvision_net("resnet19"),
        'name="resnet19" is none of torchvision\'s classification nets: did you mean resnet18 or resnet152 '
        "or resnet101?",
    ),
    (
        lambda: nets.torchvision_net("resnet18", weights="IMAGENET1K_V9"),
        'weights="IMAGENET1K_V9" is none of the weights of resnet18: did you mean IMAGENET1K_V1?',
    ),
    (
        lambda: nets.torchvision_net("resnet18", mean="none"),
        'mean="none" must be "weights", one number per channel, or null.',
    ),
    (
        lambda: without_network(),
        "pretrained=True: the weights DEFAULT of resnet18 cannot be downloaded (OSError: no network here): "
        "connect to the network once, put the file of * at *, or start from random weights "
        "(--model.net.pretrained false).",
    ),
    (
        lambda: weights(3),
        "weights.pt holds no state_dict, which names a tensor each: save net.state_dict() alone.",
    ),
    (
        lambda: weights(TinyNet()),
        "weights.pt holds more than tensors and plain values, so it was not loaded: such a file can run "
        "any code when it is opened; write it again with lit_robust, or save the net's state_dict alone.",
    ),
    (
        lambda: weights({"head.bias": torch.zeros(4)}),
        "weights.pt holds the weights of another net (missing there: body.0.weight, body.0.bias, "
        "body.1.weight and 5 more): build the net that was trained.",
    ),
    (
        lambda: raised(cannot_write("a.txt", OSError(28, "No space left on device"))),
        "a.txt cannot be written (No space left on device): free some space or choose another folder for "
        "the run (save_dir of trainer.logger); what was there before is whole.",
    ),
    (
        lambda: pictures("train/cat/1.png"),
        "photos/train/cat/1.png is not a readable image (not BMP*): repair or remove it.",
    ),
    (
        lambda: pictures("train/cat/1.png", "val/dog/1.png"),
        "photos has 2 files that are not readable images: repair or remove photos/train/cat/1.png (not "
        "BMP*), photos/val/dog/1.png (not BMP*).",
    ),
    (
        lambda: pictures("train/cat/1.heic"),
        "photos/train/cat/1.heic is not a readable image (.heic is not read, save it as PNG): repair or remove it.",
    ),
    (
        lambda: pictures("train/cat/boxes.txt"),
        "photos: files that are not used, as they are no images: 1, photos/train/cat/boxes.txt the first.",
    ),
    (
        lambda: pictures("train/cat/1.gif", content=frames()),
        "photos: files with several frames, of which the first is used: 1, photos/train/cat/1.gif the first.",
    ),
    (
        lambda: pictures("train/bee/._0.png", "val/bee/0.png"),
        "photos/train has classes without images, bee among them.",
    ),
    (
        lambda: ImageFolderDataModule("nowhere"),
        "nowhere/train has no class folders: it must hold one folder of images for each class.",
    ),
    # Selections and draws.
    (
        lambda: DigitsDataModule(val_size=0).select([True] * 40),
        "select() got a mask of shape (40,), but the training set has 1400 images, those that are held out "
        "included: give one value for each, or positions.",
    ),
    (
        lambda: DigitsDataModule(val_size=0).select([12.0, 13.7]),
        "select() needs positions, which are integers, or a mask, but got torch.float32.",
    ),
    (
        lambda: DigitsDataModule(val_size=0).select("abc"),
        "select() needs a list, an array or a tensor (S,) of positions, or a mask, not str (*).",
    ),
    (
        lambda: DigitsDataModule().draw(0),
        "n=0 must be an integer, at least 1.",
    ),
    (
        lambda: DigitsDataModule(test_size=13).draw(14),
        'n=14 is more than the 13 images of split="test": draw fewer.',
    ),
    # Schedules.
    (lambda: PiecewiseLinear([0, 5], [0, 1, 0]), "2 times have 3 values: each needs exactly one."),
    (lambda: Cosine(1, 0, 30, 5), "end=5.0 must come after begin=30.0; for a jump use a Staircase."),
    (lambda: Linear(0, math.nan, 0, 5), "stop=nan is not a number."),
    (lambda: Cyclic(None, 5), "up=None is not a number."),
    (lambda: Product([0.5]), "0.5 is not a Schedule."),
    (lambda: PeriodicCosine(0.5, 0.6, 0.4, [10]), "low=0.5 must not exceed high=0.6 or cap=0.4."),
    (lambda: PeriodicCosine(0, 0.6, 0.4, [0, 10]), "ends=[0.0, 10.0] must be above 0, where the first cycle begins."),
    (lambda: CyclicStep(20, 20, 40), "until=40.0 must come before the triangle ends at 40.0."),
    (lambda: CyclicMomentum(5, 5, low=0.9, high=0.8), "low=0.9 and high=0.8 must satisfy 0 <= low <= high < 1."),
]


@pytest.mark.parametrize(("call", "sentence"), SENTENCES, ids=[sentence[:60] for _, sentence in SENTENCES])
def test_a_refusal_says_what_is_wrong_and_what_to_do_about_it(call, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pattern = ".*".join(map(re.escape, sentence.split("*")))
    with pytest.raises(Exception, match=rf"(?s)\A{pattern}\Z"):
        call()
