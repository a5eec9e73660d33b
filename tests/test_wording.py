"""The wording of refusals: the one test file to change with a sentence.

Other tests assert that something is refused, with which exception, and the name of the argument:
``test_wording_walk.py`` keeps sentences out of them. What the command line says is in ``test_bad_inputs.py`` and
``test_wording_cli.py``.
"""

import math
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest.mock import patch
from zipfile import ZipFile

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import EarlyStopping, LearningRateFinder, ModelCheckpoint, StochasticWeightAveraging
from lightning.pytorch.cli import ReduceLROnPlateau
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import CosineAnnealingLR, ExponentialLR, OneCycleLR, StepLR
from torch.utils.data import BatchSampler, DataLoader, IterableDataset

from lit_robust import load_net, losses, nets, require
from lit_robust.analysis.compare import comparison
from lit_robust.analysis.methods import by_method
from lit_robust.analysis.output import check_folder, check_packages
from lit_robust.analysis.start import check_images
from lit_robust.analysis.subjects import Subject, device_of, load_subjects
from lit_robust.analysis.surface import surface
from lit_robust.analysis.sweep import check_values, strengths
from lit_robust.attacks import (
    BPDA,
    FGSM,
    GAMAFW,
    GAMAPGD,
    PGD,
    RFGSM,
    AutoAttack,
    CurriculumFGSM,
    CurriculumPGD,
    FastLPA,
    FriendlyPGD,
    NuclearNorm,
    ReColor,
    StAdv,
    TargetedPGD,
)
from lit_robust.attacks.autoattack_findings import Findings, hand_on
from lit_robust.attacks.difficulty import FOSC, Difficulty, LastLayerSharpness
from lit_robust.attacks.lpips import AlexNetStages
from lit_robust.batch import Batch, as_batch
from lit_robust.callbacks import (
    AdversarialExamples,
    AdversarialTraining,
    AttributeRamp,
    Bound,
    CatastrophicOverfittingMonitor,
    CoresetSelection,
    DelayedStart,
    EMAWeights,
    GeneralizationGap,
    PGDDrop,
    PredictionWriter,
    RobustAccuracy,
    StopAfterDrop,
    SwitchRule,
)
from lit_robust.callbacks.adapter import Adapter
from lit_robust.callbacks.overfitting_rules import (
    AbnormalRise,
    CrossEntropySplit,
    FGSMGap,
    GradientCosineDrop,
    LinearityErrorSpike,
)
from lit_robust.checkpoint_files import read_checkpoint
from lit_robust.cli.jsonargparse_internals import internal
from lit_robust.cli.run_folders import find_checkpoints
from lit_robust.data import (
    CIFAR10DataModule,
    DigitsDataModule,
    ImageFolderDataModule,
    ImageNet100DataModule,
    ImagenetteDataModule,
)
from lit_robust.data.resident import ResidentDataModule
from lit_robust.data.saved import position_of, selection_of
from lit_robust.data.splits import hold_out
from lit_robust.defenses import (
    AAER,
    AWP,
    FGSMAT,
    HSAT,
    NFGSM,
    PGDAT,
    PSAT,
    TRADES,
    CurriculumAT,
    CustomizedAT,
    DynamicAT,
    FastAT,
    FreeAT,
    FriendlyAT,
    Natural,
    NuAT,
    NuAT2,
    PerceptualAT,
    ZeroGrad,
)
from lit_robust.defenses.hybrid import CleanLossDrop, check_measurements
from lit_robust.first_batch import check_first_batch
from lit_robust.lightning_internals import batch_in_epoch
from lit_robust.limits import Limits
from lit_robust.measures.attacked_examples import craft
from lit_robust.measures.pictures import Examples, draw
from lit_robust.metrics_files import rows_before
from lit_robust.runs import load_any, load_weights
from lit_robust.schedules import (
    Cosine,
    Cyclic,
    CyclicMomentum,
    CyclicStep,
    Linear,
    MultiStep,
    PerEpoch,
    PeriodicCosine,
    PiecewiseLinear,
    Product,
    Schedule,
    drops,
)
from lit_robust.selection import (
    CRAIG,
    CoresetSampler,
    GradMatch,
    Outer,
    Random,
    concatenated,
    facility_location,
    gradient_error,
    gradient_match,
    last_layer_gradients,
    matching_pursuit,
    of_batches,
    own_class,
    random_subset,
    resampled,
)
from lit_robust.selection.embeddings import gram
from lit_robust.threats import threat
from lit_robust.training.checkpoint_checks import (
    check_weights_finite,
    check_weights_fit,
    sums_so_far,
    warn_of_averages,
)
from lit_robust.training.optimizer_checks import check_optimizer, check_scheduler
from lit_robust.training.per_image import check_index, images_in
from lit_robust.whole_files import cannot_write
from tests.methods import ATTACK, ONE_STEP, build
from tests.tiny import CLASSES, TinyNet, images, loader, trainer

X, Y = images(8)[:2]
RAMP = Linear(0, 1, 0, 1)
PAIRS = list(zip(X, Y, strict=True))
ROWS, FACTORS = torch.ones(3, 2), Outer(torch.ones(3, 2), torch.ones(3, 4))
TWO = torch.tensor([0, 1])


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


class Fixed(nn.Module):
    """Has no parameters."""

    def forward(self, x):
        return x.flatten(1)[:, :CLASSES]


class Endless(IterableDataset):
    def __iter__(self):
        return iter([])


def fit(module: LightningModule, *callbacks: Any, validate: bool = True, y: torch.Tensor = Y, **options: Any) -> None:
    """Three epochs of one batch."""
    run = trainer(".", callbacks=list(callbacks), **({"max_epochs": 3} | options))
    run.fit(module, loader(images(8)), loader(images(8)._replace(y=y)) if validate else None)


def nan_later(method: Any, **arguments: Any) -> None:
    """The second batch has a NaN pixel."""
    data = images(16)
    data.x[12, 0, 0, 0] = torch.nan
    run = trainer(".", max_epochs=1, limit_val_batches=0)
    run.fit(build(method, **arguments), loader(data, batch_size=8))


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


class Own(ResidentDataModule):
    """The user's own arrays."""

    num_classes, image_shape = 3, (1, 8, 8)

    def __init__(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        super().__init__()
        self.arrays = images, labels

    def _arrays(self, train: bool) -> tuple[torch.Tensor, torch.Tensor]:
        return self.arrays


def frames() -> bytes:
    """A GIF of two frames."""
    buffer, frame = BytesIO(), Image.new("L", (8, 8))
    frame.save(buffer, "GIF", save_all=True, append_images=[Image.new("L", (8, 8), 255)])
    return buffer.getvalue()


def twelve_bits() -> bytes:
    """A white picture of 12 bits in 16."""
    buffer = BytesIO()
    Image.fromarray(np.full((8, 8), 2**12 - 1, np.uint16)).save(buffer, "PNG")
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


def resumed(optimizer: Any = torch.optim.Adam, then: Any = None, lr_scheduler: Any = None, now: Any = None) -> None:
    """Train with an optimizer and a scheduler, and go on with others."""
    run = trainer(".", max_epochs=1)
    run.fit(build(Natural, optimizer=optimizer, lr_scheduler=lr_scheduler), loader(images(8)))
    run.save_checkpoint("a.ckpt")
    module = build(Natural, optimizer=then or optimizer, lr_scheduler=now)
    trainer(".", max_epochs=2).fit(module, loader(images(8)), ckpt_path="a.ckpt", weights_only=True)


def state_of_adam(change: Callable[[dict[str, Any]], object]) -> None:
    """Check Adam's state after a step, with a change."""
    adam = torch.optim.Adam([weight := nn.Parameter(torch.zeros(1))])
    weight.grad = torch.zeros(1)
    adam.step()
    state = adam.state_dict()
    change(state)
    check_optimizer(adam, [state], "Adam")


def sections(**changes: object) -> None:
    """Read a checkpoint with these sections."""
    torch.save({"state_dict": {}} | changes, "a.ckpt")
    read_checkpoint("a.ckpt")


def weights(content: object) -> None:
    """Load the weights of a file."""
    torch.save(content, "weights.pt")
    load_weights(TinyNet(), "weights.pt")


def reread(change: Callable[[dict[str, Any]], object], callback: Callable[[], Callback]) -> None:
    """Train for an epoch, change the checkpoint, and go on."""
    first, second = (trainer(".", max_epochs=n, limit_val_batches=0, callbacks=[callback()]) for n in (1, 2))
    first.fit(build(Natural), loader(images(8)))
    first.save_checkpoint("a.ckpt")
    change(checkpoint := torch.load("a.ckpt", weights_only=True))
    torch.save(checkpoint, "a.ckpt")
    second.fit(build(Natural), loader(images(8)), ckpt_path="a.ckpt", weights_only=True)


def state_of_the_monitor(**change: object) -> None:
    """Load a monitor's state with a change."""
    monitor = CatastrophicOverfittingMonitor()
    monitor.load_state_dict(monitor.state_dict() | change)


def tables(*lengths: int) -> None:
    """Load what CustomizedAT remembers, of ranks with these numbers of images."""
    ranks = [{"numbers": torch.zeros(n), "changed": torch.zeros(3, dtype=torch.bool)} for n in lengths]
    build(CustomizedAT).memory.load_state_dict({"tensors": ranks}, 0)


def linked() -> None:
    """Read a class folder that is a link to another."""
    Path("photos/train").mkdir(parents=True)
    Path("photos/train/kitty").symlink_to("cat")
    pictures()


def tiff(*values: float, dtype: type = np.int32, tags: dict[int, int] | None = None) -> None:
    """Read a picture of one row."""
    Image.fromarray(np.array([values], dtype)).save(buffer := BytesIO(), "TIFF", tiffinfo=tags or {})
    pictures("train/cat/1.tif", content=buffer.getvalue())


def archive_of(members: int) -> None:
    """Read a checkpoint of so many empty members."""
    with ZipFile("a.ckpt", "w") as archive:
        for number in range(members):
            archive.writestr(f"a/{number}", b"")
    read_checkpoint("a.ckpt")


def table_of_metrics(content: bytes) -> None:
    Path("metrics.csv").write_bytes(content)
    rows_before(Path(), 1)


def position_beyond_the_epoch() -> None:
    data = DigitsDataModule(batch_size=32, train_size=64)
    data.setup()
    batches = data.train_dataloader()
    batches.load_state_dict({"epoch": 0, "batches": 4})
    next(iter(batches))


@dataclass(frozen=True)
class Overfits(PGDDrop):
    """A rule that sees overfitting in the first epoch."""

    def measure(self, *args: Any) -> dict[str, torch.Tensor]:
        return {"acc/pgd": torch.zeros(8)}

    def overfits(self, *args: Any) -> bool:
        return True


def selects(
    loader: Callable[[CoresetSampler], Any] | None = None,
    module: LightningModule | None = None,
    resample: bool = True,
    options: dict[str, Any] | None = None,
    items: Any = PAIRS,
    **arguments: Any,
) -> None:
    """Train on half of eight images, in batches of two, for four epochs."""
    sampler = CoresetSampler(items, resample=resample)
    made = DataLoader(items, 2, sampler=sampler, drop_last=True) if loader is None else loader(sampler)
    selection = CoresetSelection(**{"fraction": 0.5, "warm": 0, "sampler": sampler} | arguments)
    trainer(".", callbacks=[selection], **({"max_epochs": 4, "limit_val_batches": 0} | (options or {}))).fit(
        module or User(), made
    )


class Another(CoresetSelection):
    """Of another class; Lightning refuses two of the same."""


class Stepwise(User):
    """Its scheduler counts steps."""

    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        return [optimizer], [{"scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 9), "interval": "step"}]


class Stream(IterableDataset):
    def __iter__(self):
        return iter(PAIRS)


class EndsInATanh(TinyNet):
    def forward(self, x):
        return super().forward(x).tanh()


class Classes(TinyNet):
    def forward(self, x):
        return super().forward(x).argmax(dim=1, keepdim=True)


class OneLogit(TinyNet):
    def forward(self, x):
        return super().forward(x)[:, :1]


class Broadcasts(TinyNet):
    """Repeats the only channel, as a mean of three numbers does."""

    def forward(self, x):
        return super().forward(x.expand(-1, 3, -1, -1))


class Pair(NamedTuple):
    image: torch.Tensor
    label: torch.Tensor


class Mine(DigitsDataModule):
    """A user's own data."""

    def __init__(self, mine: int = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)


class ProbabilitiesInTraining(TinyNet):
    def forward(self, x):
        logits = super().forward(x)
        return logits.softmax(dim=1) if self.training else logits


class WithoutGraph(TinyNet):
    def forward(self, x):
        return super().forward(x).detach()


def unread(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    """Check a first batch of images of this shape."""
    batch = Batch(torch.rand(4, *shape), torch.arange(4), torch.arange(4), torch.ones(4))
    check_first_batch(make(), batch, 10)


def strange(shape: tuple[int, ...]) -> None:
    """Begin an analysis with images of another shape."""
    images = SimpleNamespace(batches=[Batch(torch.rand(4, *shape), torch.arange(4), torch.arange(4), torch.ones(4))])
    check_images([SimpleNamespace(path="weights.pth", net=nets.digits_cnn(width=4))], images)


def without_wandb() -> None:
    with patch.dict("sys.modules", {"wandb": None}):
        check_packages("mine")


def two_classes() -> None:
    runs = []
    for number, name in enumerate(("PGDAT", "TRADES")):
        saved = {"state_dict": {}, "hyper_parameters": {"_class_path": f"lit_robust.defenses.{name}"}}
        torch.save(saved, f"{number}.ckpt")
        runs.append(Subject(f"a@{number}", Path(f"{number}.ckpt"), nn.Flatten(), name))
    by_method(runs)


def device(has_gpu: bool) -> None:
    with patch("torch.cuda.is_available", lambda: has_gpu):
        device_of("meta")


#: What takes True or False, and the name of the argument.
FLAGS: list[tuple[Callable[..., object], str]] = [
    *((partial(PGD, eps=0.1, steps=5), name) for name in ("targeted", "clip_init", "freeze_misclassified")),
    (FriendlyPGD, "targeted"),
    (partial(CurriculumPGD, psi=FOSC(), lam=1), "clip_init"),
    (TargetedPGD, "freeze_misclassified"),
    (LastLayerSharpness, "feature_norm"),
    *((Random, name) for name in ("redraw", "report_error")),
    (partial(CoresetSampler, [1]), "resample"),
    (partial(CoresetSelection, 0.5), "official_order"),
    *((DigitsDataModule, name) for name in ("augment", "drop_last")),
    *((data, "download") for data in (CIFAR10DataModule, ImagenetteDataModule)),
    *((partial(build, Natural), name) for name in ("channels_last", "compile", "fold_batchnorm")),
    (partial(build, CurriculumAT), "batch_mixing"),
    (partial(build, DynamicAT), "weight_by_loss"),
    (partial(build, AAER, attack=ONE_STEP), "detach_ce"),
    (partial(build, NuAT, attack=ONE_STEP), "attack_alternate"),
    (partial(build, PerceptualAT), "only_attack_correct"),
    *((net, "pretrained") for net in (nets.torchvision_net, nets.timm_net)),
    *((partial(comparison, None, None), name) for name in ("autoattack", "gap", "alarms", "surrogate")),
    (partial(surface, [], None), "eigenvalue"),
]

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
    *(
        (partial(call, **{name: "no"}), f"{name}='no' must be of type bool: give True or False.")
        for call, name in FLAGS
    ),
    (lambda: PGD(targeted=0), "targeted=0 must be of type bool: give True or False."),
    (
        lambda: RobustAccuracy({"pgd": PGD()}, alarm_sources="twin.ckpt"),
        "alarm_sources='twin.ckpt' must be of type list or tuple: give a list of checkpoints, or of nets.",
    ),
    (
        lambda: RobustAccuracy({"pgd": PGD()}, alarm_sources=["no.ckpt"]),
        "alarm_sources: no checkpoint at no.ckpt: give the path of a .ckpt file.",
    ),
    *(
        (
            partial(call, "pgd"),
            f"{name}='pgd' is not an attack: give one of lit_robust.attacks, such as PGD(steps=10).",
        )
        for call, name in (
            (AdversarialExamples, "attack"),
            (PGDDrop, "attack"),
            (FGSMGap, "single_step"),
            (partial(FGSMGap, None), "attack"),
            (CrossEntropySplit, "attack"),
        )
    ),
    (lambda: GeneralizationGap(attack="pgd"), "attack='pgd' is not an attack: *"),
    (lambda: PGDDrop(PGD), "attack=PGD is a class: write PGD(...)."),
    (lambda: PGDDrop(threshold="0.2"), "threshold='0.2' must be a finite number, at least 0 and at most 1."),
    (lambda: FGSMGap(margin=None), "margin=None must be a finite number, at least 0 and at most 1."),
    (lambda: AbnormalRise(rise="0.1"), "rise='0.1' must be a finite number, at least 0 and at most 1."),
    (lambda: GradientCosineDrop(factor="0.5"), "factor='0.5' must be a finite number, at least 0 and at most 1."),
    (lambda: LinearityErrorSpike(history=2.5), "history=2.5 must be an integer, at least 0."),
    (
        lambda: CatastrophicOverfittingMonitor(rule="fgsm"),
        "rule='fgsm' must be of type OverfittingRule: give PGDDrop(), FGSMGap() or a rule of your own.",
    ),
    (
        lambda: CatastrophicOverfittingMonitor(PGDDrop),
        "rule=* must be of type OverfittingRule: give PGDDrop(), FGSMGap() or a rule of your own.",
    ),
    (
        lambda: AdversarialExamples(PGD(targeted=True), target="3"),
        "target='3' must be an integer, at least 0: it is the number of a class.",
    ),
    *(
        (partial(call, mean=".5", std="1"), "mean='.5' must be a number, or a list of one for each channel.")
        for call in (
            Adapter,
            partial(RobustAccuracy, {"pgd2": ATTACK}),
            partial(AdversarialTraining, ATTACK),
            partial(AdversarialExamples, ATTACK),
            GeneralizationGap,
            CatastrophicOverfittingMonitor,
            nets.resnet18,
        )
    ),
    (lambda: Adapter(mean=0.5, std=["1"]), "std=['1'] must be a number, or a list of one for each channel."),
    (lambda: Adapter(mean=True, std=1), "mean=True must be a number, or a list of one for each channel."),
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
    (
        lambda: PGD()(Twice(), X, Y),
        "the net (Twice) returns list for 8 images instead of logits: let it return one tensor (N, num_classes), alone "
        "or as the attribute logits.",
    ),
    (
        lambda: PGD()(Classes(), X, Y),
        "the net (Classes) returns logits of torch.int64, but losses and attacks need floating-point numbers: return "
        "real numbers (such as logits.abs() of complex ones), and not the predicted classes.",
    ),
    (
        lambda: PGD()(OneLogit(), X, Y),
        "labels run up to 3, but the net (OneLogit) returns 1 logits per image: number the classes from 0 on, or give "
        "the net an output for each.",
    ),
    (
        lambda: PGD()(TinyNet(), X.repeat(1, 5, 1, 1), Y),
        "the net (TinyNet) cannot read images of shape 15x8x8 and torch.float32 (*): give it images (N, C, H, W) of "
        "the size and type that it is built for.",
    ),
    (
        lambda: PGD()(TinyNet(), X, F.one_hot(Y, CLASSES)),
        "labels of shape (8, 4) are not one class for each image: give y.argmax(dim=1) for one-hot labels.",
    ),
    (
        lambda: as_batch((X, Y[:, None])),
        "labels of shape (8, 1) are not one class for each image: give y.squeeze(1).",
    ),
    (
        lambda: ReColor()(TinyNet(), X[:, :1], Y),
        "ReColor moves colours, but the images have 1 channels instead of 3: leave it out of this test or use StAdv, "
        "which works on them.",
    ),
    # Misspelt arguments.
    (lambda: PGD(epss=0.1), "PGD has no argument 'epss': did you mean eps?"),
    (lambda: PGD(qqqq=1), "PGD has no argument 'qqqq': remove it."),
    (lambda: Mine(minee=1), "Mine has no argument 'minee': did you mean mine?"),
    (lambda: nets.resnet18(num_class=3), "resnet18 has no argument 'num_class': did you mean num_classes?"),
    (lambda: build(TRADES, bta=1), "TRADES has no argument 'bta': did you mean beta?"),
    (lambda: RFGSM(eps=0.1, alpha=0.2), "alpha=0.2 is above eps=0.1 and leaves no step: choose a smaller one."),
    (
        lambda: CurriculumPGD(psi=FOSC(), lam=1, targeted=True),
        "a curriculum measures how difficult the true label is: set targeted=False, or use PGD.",
    ),
    (lambda: CurriculumPGD(psi=FOSC(), lam=math.nan), "lam=nan must be a number."),
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
        lambda: fit(build(Natural, net=TinyNet().requires_grad_(False))),
        "all parameters of the net (TinyNet) are frozen, so there is nothing to train: call requires_grad_(True) on "
        "the net, or on the part that is to be trained.",
    ),
    (
        lambda: fit(build(FreeAT, net=TinyNet().requires_grad_(False), attack=ONE_STEP)),
        "all parameters of the net (TinyNet) are frozen, so there is nothing to train: *",
    ),
    (
        lambda: fit(
            build(
                Natural,
                net=TinyNet().requires_grad_(False),
                optimizer=lambda p: torch.optim.SGD([one for one in p if one.requires_grad], lr=0.1),
            )
        ),
        "optimizer keeps none of the net's parameters, so there is nothing to train: unfreeze some by "
        "requires_grad_(True), or give the optimizer all.",
    ),
    (
        lambda: fit(build(PGDAT, net=Fixed())),
        "the net has no parameters, so there is nothing to train: give a net that has some.",
    ),
    (
        lambda: fit(build(Natural, optimizer=lambda p: torch.optim.Adam(p, lr=0.0))),
        "lr=0 of Adam trains nothing: set another lr.",
    ),
    *(
        (
            partial(nan_later, method, **arguments),
            "pixels of a later batch run from -inf to inf, but every eps is in units of [0, 1]: let the loader give "
            "all images as it gives the first ones.",
        )
        for method, arguments in (
            (PGDAT, {}),
            (NuAT, {"attack": ONE_STEP}),
            (NuAT2, {"attack": ONE_STEP}),
            (PGDAT, {"attack": NuclearNorm(0.1, steps=1)}),
        )
    ),
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
        lambda: fit(build(Natural), EarlyStopping("val/acc/robust")),
        'EarlyStopping monitors val/acc/robust, but mode="min" looks for its smallest value: set mode="max".',
    ),
    (
        lambda: fit(build(Natural), EarlyStopping("train/loss", mode="max")),
        'EarlyStopping monitors train/loss, but mode="max" looks for its largest value: set mode="min".',
    ),
    (
        lambda: fit(build(PGDAT), ModelCheckpoint(".", monitor="val/acc/clean"), enable_checkpointing=True),
        'ModelCheckpoint monitors val/acc/clean, but mode="min" looks for its smallest value: set mode="max".',
    ),
    (
        lambda: fit(build(PGDAT), DelayedStart(latest_epoch=1, monitor="val/acc/clean")),
        'DelayedStart monitors val/acc/clean, but mode="min" looks for its smallest value: set mode="max".',
    ),
    (
        lambda: fit(User(), RobustAccuracy({"pgd2": ATTACK}), EarlyStopping("val/acc/pgd2")),
        'EarlyStopping monitors val/acc/pgd2, but mode="min" looks for its smallest value: set mode="max".',
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
    (
        lambda: first_batch(y=torch.where(Y == 3, -100, Y)),
        "labels run from -100 to 2, but there are the classes 0 to 3: give samples that must not count weight "
        "0 instead of another label.",
    ),
    (
        lambda: adapt(y=torch.where(Y == 3, -100, Y)),
        "labels run from -100 to 2, but the net returns 4 logits per image: give classes numbers from 0 on, and leave "
        "out samples that shall not count.",
    ),
    (
        lambda: first_batch(nn.Sequential(TinyNet(), nn.Unflatten(1, (CLASSES, 1, 1)))),
        "the net returns a tensor of shape (2, 4, 1, 1) for 2 images, but num_classes=4: return logits.flatten(1).",
    ),
    (
        lambda: first_batch(nn.Conv2d(3, CLASSES, 1)),
        "the net returns a tensor of shape (2, 4, 8, 8) for 2 images, but num_classes=4: return "
        "logits.flatten(2).mean(2).",
    ),
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
        "more: leave this callback out, or train a module that does not attack.",
    ),
    (
        lambda: fit(Driven(), AdversarialTraining(ATTACK)),
        "Driven has an attribute adversarial of its own, but other callbacks drive AdversarialTraining through this "
        "name: rename it.",
    ),
    (
        lambda: fit(User(), AdversarialTraining(ATTACK), AdversarialTraining(ATTACK)),
        "two AdversarialTraining callbacks would attack each other's images: keep one.",
    ),
    (
        lambda: fit(User(), RobustAccuracy({"a": ATTACK}), RobustAccuracy({"b": ATTACK})),
        "two RobustAccuracy callbacks would log the same rows: give all attacks to one.",
    ),
    (
        lambda: RobustAccuracy([1]),
        'attacks=[1] must be of type Mapping: give attacks by name, {"pgd20": PGD(steps=20)}.',
    ),
    (lambda: RobustAccuracy({}), 'attacks is empty: give attacks by name, {"pgd20": PGD(steps=20)}.'),
    (
        lambda: RobustAccuracy({"a": ATTACK}, test_attacks="x"),
        "test_attacks='x' must be of type Mapping: give attacks by name, {\"pgd20\": PGD(steps=20)}.",
    ),
    (
        lambda: RobustAccuracy({"a": ATTACK}, test_attacks={}),
        'test_attacks is empty: give attacks by name, {"pgd20": PGD(steps=20)}.',
    ),
    (
        lambda: build(PGDAT, test_attacks={}),
        'test_attacks is empty: give attacks by name, {"pgd20": PGD(steps=20)}.',
    ),
    (
        lambda: build(PGDAT, val_attack=0),
        "val_attack=0 is not an attack: give one of lit_robust.attacks, such as PGD(steps=10).",
    ),
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
        "or list AdversarialTraining, which sets it, before DelayedStart.",
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
        "DelayedStart monitors loss_of_the_batch, which is a batch's value and not the epoch's mean: log it with "
        "on_epoch=True.",
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
    *(
        (lambda give=give: give(3), f"{name}=3 must be of type str or PathLike: give the path of {kind}.")
        for give, name, kind in (
            (load_net, "path", "a .ckpt file"),
            (load_any, "path", "a file of weights"),
            (lambda path: load_weights(TinyNet(), path), "path", "a file of weights"),
            (PGDAT.load_from_checkpoint, "path", "a .ckpt file"),
            (DigitsDataModule.load_from_checkpoint, "path", "a .ckpt file"),
            (lambda path: AdversarialExamples(PGD(0.1), dirpath=path), "dirpath", "a folder"),
            (PredictionWriter, "path", "a file to write"),
            (lambda path: RobustAccuracy({"pgd": PGD(0.1)}, blocks=path), "blocks", "a folder"),
        )
    ),
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
        lambda: CIFAR10DataModule(root=3),
        "root=3 must be of type str or PathLike: give the path of a folder.",
    ),
    (lambda: ImageFolderDataModule(3), "root=3 must be of type str or PathLike: give the path of a folder."),
    (
        lambda: ImageNet100DataModule(folder=3),
        "folder=3 must be of type str or PathLike: give the path of a folder under root.",
    ),
    (
        lambda: Own(torch.zeros(300, 1, 8, 8, dtype=torch.uint8), torch.zeros(295)).setup(),
        "Own._arrays(train=True) returns 300 images but 295 labels: return one for each.",
    ),
    (
        lambda: Own(torch.rand(9, 1, 8, 8), torch.zeros(9)).setup(),
        "Own._arrays(train=True) returns images of torch.float32, but they are divided by white=255: return uint8 from "
        "0 to 255.",
    ),
    (
        lambda: Own(torch.zeros(9, 3, 8, 8, dtype=torch.uint8), torch.zeros(9)).setup(),
        "Own._arrays(train=True) returns images of shape (3, 8, 8), but image_shape=(1, 8, 8): make them equal.",
    ),
    (
        lambda: Own(torch.zeros(9, 1, 8, 8, dtype=torch.uint8), torch.arange(1, 10)).setup(),
        "Own._arrays(train=True) returns labels from 1 to 9, but num_classes=3: number the classes from 0 on.",
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
        "labels of a later batch run from -101 to 3, but there are the classes 0 to 3: give samples that "
        "must not count weight 0 instead of another label.",
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
        "weights.pt holds no state_dict (a mapping of names to tensors): save net.state_dict() alone.",
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
        "the run (save_dir of trainer.logger); the previous file is intact.",
    ),
    (
        lambda: pictures("train/cat/1.png"),
        "photos/train/cat/1.png is not a readable image (not BMP*): repair or remove it.",
    ),
    (
        lambda: pictures("train/cat/1.png", content=twelve_bits()),
        "photos: the brightest pixel of all images with more than 8 bits per pixel (1) is 6.3% of their white: "
        "if they hold fewer bits, such as 12 of 16, scale them to white.",
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
        "photos: files that are not used, as they are not images: 1, photos/train/cat/boxes.txt the first.",
    ),
    (
        lambda: pictures("train/cat/1.gif", content=frames()),
        "photos: files with several frames, of which the first is used: 1, photos/train/cat/1.gif the first.",
    ),
    (
        lambda: pictures("train/bee/._0.png", "val/bee/0.png"),
        "photos/train has classes without images, bee among them: add images, or remove these folders.",
    ),
    (
        lambda: ImageFolderDataModule("nowhere"),
        "nowhere/train does not exist: it must hold one folder of images for each class.",
    ),
    # Selections and draws.
    (
        lambda: DigitsDataModule(val_size=100).select(torch.arange(1300).lt(100).long()),
        "select() got 1300 zeros and ones, as many as there are images, so they are a mask, which it would take for "
        "positions: give training_labels()[1][mask.bool()].",
    ),
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
    # Coresets: embeddings and selectors.
    (
        lambda: Outer(torch.ones(3, 2), torch.ones(4, 2)),
        "left=(3, 2) and right=(4, 2) must be (N, C) and (N, D), or (N, R, C) and (N, R, D): give one pair of factors "
        "for each row.",
    ),
    (
        lambda: Outer([[1.0]], torch.ones(1, 1)),
        "left=[[1.0]] must be of type Tensor: give a tensor with a row for each sample.",
    ),
    (
        lambda: facility_location([[1.0]], 1),
        "embeddings=[[1.0]] must be of type Tensor or Outer: give a tensor (N, D), or the factors of its rows.",
    ),
    (
        lambda: random_subset(ROWS.long(), 1),
        "embeddings of torch.int64 must be floating-point numbers: give embeddings.float().",
    ),
    (
        lambda: facility_location(ROWS[0], 1),
        "embeddings of shape (2,) must be rows (N, D): give one per sample.",
    ),
    (
        lambda: gradient_match(ROWS / 0, 1),
        "embeddings must be finite with finite squares, but those of some samples are not: lower the learning rate if "
        "they are gradients of a net whose loss has diverged.",
    ),
    (
        lambda: gradient_match(ROWS, 0),
        "budget=0 must be an integer, at least 1: it is the number of samples to choose.",
    ),
    (
        lambda: CRAIG()(ROWS, torch.zeros(3, dtype=torch.int64), 4),
        "budget=4 is more than the 3 embeddings there are: choose fewer.",
    ),
    (
        lambda: CRAIG()(ROWS, [0, 1, 1], 1),
        "y=[0, 1, 1] must be of type Tensor: give a tensor of classes (N,).",
    ),
    (
        lambda: GradMatch(fill="none")(0 * ROWS, torch.tensor([0, 1, 1]), 1),
        'GradMatch chose no sample, because the gradients that it compares add up to 0: set fill="one", which fills '
        "the budget at random.",
    ),
    (
        lambda: facility_location(ROWS, 1, sizes=torch.ones(2)),
        "sizes of shape (2,) must be (3,): give one for each sample.",
    ),
    (
        lambda: facility_location(ROWS, 1, sizes=torch.tensor([1.0, 0.0, 1.0])),
        "sizes must be finite and above 0, but 0 is among them: leave such samples out.",
    ),
    (
        lambda: CRAIG()(ROWS, TWO, 1),
        "y of shape (2,) must be (3,): give one class for each sample.",
    ),
    (
        lambda: GradMatch()(ROWS, torch.ones(3), 1),
        "y of torch.float32 must be integers: give the numbers of the classes.",
    ),
    (
        lambda: Random()(ROWS, torch.tensor([0, -1, 1]), 1),
        "y must be integers at least 0, but -1 is among them: give the numbers of the classes.",
    ),
    (
        lambda: own_class(FACTORS, torch.tensor([0, 1, 2])),
        "y must be integers from 0 to 1, but 2 is among them: give the numbers of the classes.",
    ),
    (lambda: of_batches(ROWS, 0), "batch_size=0 must be an integer, at least 1."),
    (
        lambda: gram(ROWS, FACTORS),
        "inner products need two sets of one kind: two tensors, or two Outer.",
    ),
    (
        lambda: concatenated([]),
        "parts holds nothing: give the embeddings of at least one batch, all of one kind.",
    ),
    (
        lambda: concatenated([ROWS, FACTORS]),
        "parts holds tensors and Outers: give the embeddings of at least one batch, all of one kind.",
    ),
    (
        lambda: gradient_error(ROWS, torch.tensor([3]), torch.ones(1)),
        "indices must be integers from 0 to 2, but 3 is among them: give positions in the set that is selected from.",
    ),
    (
        lambda: gradient_error(ROWS, TWO[:0], torch.ones(0)),
        "indices of shape (0,) must be (S,), with at least one position.",
    ),
    (
        lambda: gradient_error(ROWS, TWO, torch.ones(3)),
        "weights of shape (3,) must be (2,): give one for each sample.",
    ),
    (
        lambda: gradient_error(ROWS, TWO, torch.ones(2) / 0),
        "weights must be finite, but inf is among them: leave such samples out.",
    ),
    (
        lambda: resampled(TWO, torch.zeros(2), 0),
        "weights must be finite and above 0, but 0 is among them: leave such samples out.",
    ),
    (
        lambda: resampled(TWO, torch.ones(2) > 0, 0),
        "weights of torch.bool must be numbers: convert them.",
    ),
    (
        lambda: last_layer_gradients(nn.Linear(5, 3), lambda: torch.ones(4, requires_grad=True)),
        "the loss does not depend on the net's last layer, so there are no gradients to select by.",
    ),
    (
        lambda: last_layer_gradients(nn.Linear(5, 3), lambda: torch.ones(())),
        'loss() of shape () must be (N,): compute it with reduction="none".',
    ),
    (
        lambda: last_layer_gradients(nn.Conv2d(1, 1, 1), lambda: torch.ones(4)),
        "head=Conv2d(1, 1, kernel_size=(1, 1), stride=(1, 1)) must be of type Linear: give the net's last layer.",
    ),
    (
        lambda: GradMatch(gradient="own_class", scope="all"),
        'gradient="own_class" compares samples of one class, but scope="all" mixes classes: set gradient="weight".',
    ),
    (
        lambda: matching_pursuit(torch.ones(30_000, 1), 25_000),  # pytest raises the warning
        "budget=25000 of 30000 samples takes 5 GB for the inner products of those that are chosen: choose in parts "
        '(scope="class" or scope="batch"), or fewer.',
    ),
    # Coresets: samplers, data and trainings.
    (
        lambda: CoresetSampler(3),
        "dataset=3 must have a length and items by number, from which positions are selected: give a map-style "
        "dataset.",
    ),
    (lambda: CoresetSampler([]), "dataset=[] is empty: give the training set."),
    (lambda: CoresetSampler([1], collate_fn=3), "collate_fn=3 must be a function: give that of the DataLoader."),
    (lambda: CoresetSelection(True), "fraction=True must be a finite number, above 0 and at most 1."),
    (lambda: CoresetSelection(0), "fraction=0 must be a finite number, above 0 and at most 1."),
    (lambda: CoresetSelection(1.5), "fraction=1.5 must be a finite number, above 0 and at most 1."),
    (
        lambda: selects(fraction=Linear(0.5, 2, 0, 2), every=1),
        "fraction(1)=1.25 must be a finite number, above 0 and at most 1.",
    ),
    (
        lambda: CoresetSelection(0.5, Random(scope="class"), sampler=CoresetSampler([1])),
        'scope="class" of Random needs the classes of all images, which are not read from a loader of your own: set '
        'scope="all".',
    ),
    (
        lambda: CoresetSelection(0.5, sampler=3),
        "sampler=3 must be of type CoresetSampler: give the CoresetSampler of the training's DataLoader.",
    ),
    (
        lambda: fit(User(), CoresetSelection(0.5)),
        "CoresetSelection needs a DataModule of lit_robust.data, or a CoresetSampler: give the same one to the "
        "training's DataLoader and to CoresetSelection(sampler=...).",
    ),
    (
        lambda: fit(User(), CoresetSelection(0.5), Another(0.5)),
        "two CoresetSelection callbacks overrule each other: keep one.",
    ),
    (
        lambda: selects(warm=0.5, options={"max_epochs": -1}),
        "warm=0.5 is a share of max_epochs, which is -1: set the trainer's max_epochs, or warm=0.",
    ),
    (
        lambda: selects(fraction=0.1),
        "fraction=0.1 of 8 images leaves 1, fewer than one batch of batch_size=2 with drop_last=True, so that an epoch "
        "would have no batch: take a smaller batch_size, a larger fraction, or drop_last=False.",
    ),
    (
        lambda: selects(options={"limit_train_batches": 0.3}),
        "fraction=0.5 of 8 images leaves 4 in 2 batches, of which limit_train_batches=0.3 is none: set it to at least "
        "0.5.",
    ),
    (
        lambda: selects(options={"val_check_interval": 3, "limit_val_batches": 1.0}),
        "fraction=0.5 of 8 images leaves 4, so an epoch trains on 2 batches, but val_check_interval=3 waits for more: "
        "set it to at most that, or to 1.0, or count over epochs by check_val_every_n_epoch=None.",
    ),
    (
        lambda: selects(fraction=0.25),
        "fraction=0.25 leaves 2 of 8 images, so 2 of 4 classes have none in the coreset: raise the fraction.",
    ),
    (
        lambda: selects(module=Stepwise(), warm=0.5),
        "StepLR counts steps, but the warm start skips epoch 1 without any, so it would lag behind: "
        'let it count epochs (interval or lr_interval "epoch"), give a Defense a Schedule, or set warm=0.',
    ),
    (
        lambda: selects(
            module=build(Natural, lr_scheduler=partial(OneCycleLR, max_lr=0.1, total_steps=99), lr_interval="step"),
        ),
        "OneCycleLR is made for total_steps=99, but the coresets leave 8 steps in 4 epochs, so its rate stops short: "
        "set total_steps=8, or give a Defense a Schedule.",
    ),
    (
        lambda: selects(module=build(Natural), resample=False),
        "sampler=CoresetSampler(resample=False) leaves the weights to the loss, but the loader's batches (list) have "
        "none: yield lit_robust.batch.Batch with weight=sampler.weight_of(positions), or leave resample=True.",
    ),
    (
        lambda: selects(
            module=build(Natural), resample=False, items=[Batch(*row) for row in zip(*images(8), strict=True)]
        ),
        "sampler=CoresetSampler(resample=False) leaves the weights to the loss, but the loader's batches had the "
        "weight 1 throughout an epoch: yield lit_robust.batch.Batch with weight=sampler.weight_of(positions), or leave "
        "resample=True.",
    ),
    (
        lambda: selects(normalize="subset"),
        'normalize="subset" divides weighted losses, but CoresetSampler draws images by their weights: leave '
        'normalize="batch".',
    ),
    (
        lambda: selects(normalize="subset", resample=False),
        'normalize="subset" divides weighted losses, but User is not a Defense and has its own loss: leave '
        'normalize="batch".',
    ),
    (
        lambda: selects(options={"overfit_batches": 1}),
        "overfit_batches=1 replaces the sampler of the training's DataLoader, so no selection would have an effect: "
        "set limit_train_batches instead, or leave CoresetSelection out.",
    ),
    (
        lambda: selects(lambda _: DataLoader(PAIRS, 2)),
        "sampler is not that of the training's DataLoader, so no selection would have an effect: build it as "
        "DataLoader(dataset, sampler=sampler, ...) with the same CoresetSampler.",
    ),
    (
        lambda: selects(lambda sampler: [DataLoader(PAIRS, 2, sampler=sampler)]),
        "CoresetSelection chooses from the dataset of one DataLoader, but the training has a list of them: give that "
        "with sampler=sampler alone.",
    ),
    (
        lambda: selects(lambda _: DataLoader(Stream(), 2)),
        "the training's DataLoader reads Stream, an IterableDataset, which has no positions to select: give a dataset "
        "with a length, whose items are read by their number.",
    ),
    (
        lambda: selects(lambda sampler: DataLoader(PAIRS, batch_sampler=BatchSampler(sampler, 2, False))),
        "the training's DataLoader has a batch_sampler, but CoresetSelection counts images in batches of one size: "
        "build it as DataLoader(dataset, batch_size, sampler=sampler, ...).",
    ),
    (
        lambda: selects(lambda sampler: DataLoader(PAIRS, batch_size=None, sampler=sampler)),
        "the training's DataLoader has no batch_size, but CoresetSelection counts images in batches of one size: build "
        "it as DataLoader(dataset, batch_size, sampler=sampler, ...).",
    ),
    (
        lambda: selects(module=User(EndsInATanh())),
        "CoresetSelection compares gradients of the last layer, which must be an nn.Linear that returns the logits, "
        "but User does something after it or has none: set net to the sub-module that ends with it.",
    ),
    # Perceptual attacks.
    (
        lambda: FastLPA()(of_vectors().body[:1], X, Y),
        "the activations of Sequential, which LPIPS compares, are not known: give the net an attribute stages, the "
        'names of layers such as ("body.layer1", "body.layer2"), or a method activations(x).',
    ),
    (
        lambda: AlexNetStages(pretrained=False).activations(X),
        'lpips_net="alexnet" reads images of at least 31 x 31, not 8 x 8: set lpips_net="self".',
    ),
    (
        lambda: build(PGDAT, test_attacks={5: PGD()}),
        'test_attacks names an attack 5: give its name as text, such as "pgd20".',
    ),
    (
        lambda: build(PGDAT, attack=StAdv()),
        "StAdv has an eps in no L-p norm: state val_attack and test_attacks*.",
    ),
    # What a net is given, and what a data set holds.
    (
        lambda: first_batch(Classes()),
        "the net returns logits of torch.int64, but losses and attacks need floating-point numbers: *",
    ),
    (
        lambda: first_batch(Broadcasts(), x=X[:, :1]),
        "the net (Broadcasts) reads images of 1 channel although its first layer has 3 input channels: unless the net "
        "repeats the channel on purpose, its mean and std do, so build it for 1 channel.",
    ),
    (
        lambda: Adapter("images").check(User(), Pair(X, Y)),
        "x='images' finds nothing in a Pair with the fields image, label: give an index, a key or the name of a field, "
        'or a path of them such as "views.0".',
    ),
    (
        linked,
        "photos/train/kitty leads to the images of cat, which get both labels: remove the link.",
    ),
    (
        lambda: tiff(2, 2, dtype=np.float32),
        "*1.tif* (mode F with values from 2 to 2, scale them to 0 to 1)*",
    ),
    (lambda: tiff(0, 70000), "*1.tif* (mode I with values from 0 to 70000, scale them to 0 to 65535)*"),
    (lambda: tiff(0, 200), "*1.tif* (32 bits with values up to 200 may be 8 or 16 bits, save it as such)*"),
    (
        lambda: DigitsDataModule().select([0, 1, 2], "heavy"),
        "select() needs weights (S,) as a list, an array or a tensor of numbers, not 'heavy' (*).",
    ),
    # What a training resumes from.
    (
        lambda: (Path("a.ckpt").mkdir(), find_checkpoints("a.ckpt", None)),
        "--ckpt_path a.ckpt is a folder and no checkpoint: give a .ckpt file, or the folder of the run.",
    ),
    (
        lambda: archive_of(20_000),
        "a.ckpt has more members than any checkpoint has tensors: it was not unpacked.",
    ),
    (
        lambda: state_of_the_monitor(healthy=3),
        "the checkpoint is broken: callbacks[CatastrophicOverfittingMonitor{'rule': 'PGDDrop'}].healthy is 3, but it "
        "must be finite weights by name, or null; use an earlier one.",
    ),
    (
        lambda: CatastrophicOverfittingMonitor().load_state_dict({}),
        "the checkpoint is broken: callbacks[*] has no earlier; use an earlier one.",
    ),
    (
        lambda: CatastrophicOverfittingMonitor().load_state_dict(3),
        "the checkpoint is broken: callbacks[*] is 3, but it must be a mapping; use an earlier one.",
    ),
    (
        lambda: state_of_the_monitor(batches=[3]),
        "the checkpoint is broken: callbacks[*].batches is a list, but it must be a list of batches: images in [0, 1], "
        "labels, indices and weights; use an earlier one.",
    ),
    (
        lambda: reread(
            lambda saved: next(iter(saved["callbacks"].values())).update(earlier=[{"other": 1.0}]),
            lambda: CatastrophicOverfittingMonitor(Overfits()),
        ),
        "the checkpoint is broken: callbacks[*].earlier is a list, but it must be the means acc/pgd; use an earlier "
        "one.",
    ),
    (
        lambda: reread(lambda saved: saved["averaging_state"].clear(), lambda: EMAWeights(0.9)),
        "the checkpoint's averages are broken or of another net (averaging_state has no n_averaged): use an earlier "
        "one, or leave EMAWeights out.",
    ),
    (
        lambda: check_measurements({"times": [0.2, 0.1], "values": [1.0, 1.0]}),
        "the checkpoint is broken: memory.values.times is a list, but it must be times in order, one for each of the 2 "
        "values; use an earlier one.",
    ),
    (
        lambda: tables(3, 4),
        "the checkpoint is broken: memory.tensors of 2 ranks do not belong together (*); use an earlier one.",
    ),
    (
        lambda: build(Natural).memory.load_state_dict({"tensors": [{"delta": X}, {"delta": X}]}, 0),
        "the checkpoint holds delta of 2 ranks, and this training has 1: they are reset; resume on 2 ranks to go on "
        "exactly.",
    ),
    (
        lambda: sums_so_far({"metrics": [{}, {"loss": ROWS}]}, 0, SimpleNamespace(state=SimpleNamespace(fn="fit"))),
        "the checkpoint was written within an epoch by 2 ranks, and this training has 1: the rest of this epoch is "
        "batched differently: some images are seen twice, others not at all; resume on 2 ranks to go on exactly.",
    ),
    (
        position_beyond_the_epoch,
        "the checkpoint was written after 4 batches of an epoch, which has 2 here: resume with the data, batch_size "
        "and ranks of its training, or use another checkpoint.",
    ),
    (
        lambda: table_of_metrics(b"\xff\xfe"),
        "metrics.csv is not a table of metrics (*): move it out of the run's folder.",
    ),
    (
        lambda: batch_in_epoch(SimpleNamespace()),
        "lit_robust relies on internals of lightning 2.6 that lightning * has changed (batch_in_epoch: *): pip install "
        '"lightning>=2.6,<2.7".',
    ),
    (
        lambda: fit(build(Natural, optimizer=partial(torch.optim.SGD, lr=None))),
        "optimizer cannot be built from its arguments (TypeError: *): change them.",
    ),
    (
        lambda: resumed(then=torch.optim.AdamW),
        "the checkpoint was trained with the optimizer Adam, and this training has AdamW: resume with model.optimizer "
        "Adam, or start a new run with load_net.",
    ),
    (
        lambda: resumed(then=partial(torch.optim.Adam, amsgrad=True)),
        "the checkpoint was trained with another optimizer than this Adam (amsgrad=False became True): *",
    ),
    (
        lambda: fit(build(PGDAT, lr_scheduler=partial(StepLR, step_size=-1))),
        "lr_scheduler.step_size=-1 must be an integer, at least 1: it is a number of the scheduler's steps.",
    ),
    (
        lambda: fit(build(PGDAT, lr_scheduler=partial(CosineAnnealingLR, T_max=0))),
        "lr_scheduler.T_max=0 must be a finite number, above 0: it is a number of the scheduler's steps.",
    ),
    (
        lambda: resumed(lr_scheduler=partial(ExponentialLR, gamma=0.9), now=partial(StepLR, step_size=1)),
        "the checkpoint was trained with ExponentialLR, and this training has StepLR, which would start "
        "from its first step: resume with the lr_scheduler of the config.yaml beside the checkpoint's folder, or start "
        "a new run with load_net.",
    ),
    (
        lambda: resumed(now=partial(StepLR, step_size=1)),
        "the checkpoint was trained with no torch scheduler, and this training has StepLR, which would start "
        "from its first step: resume with the lr_scheduler of the config.yaml beside the checkpoint's folder, or start "
        "a new run with load_net.",
    ),
    (
        lambda: state_of_adam(lambda state: state["state"][0].pop("exp_avg")),
        "the checkpoint is broken or was trained with another optimizer than this Adam, because it kept no exp_avg of "
        "a weight: *",
    ),
    (
        lambda: check_optimizer(torch.optim.Adam([nn.Parameter(torch.zeros(1))]), [], "Adam"),
        "the checkpoint is broken: optimizer_states is a list, but it must be a list of one optimizer's state; use an "
        "earlier one.",
    ),
    (
        lambda: check_scheduler(None, [{}, {}], None),
        "the checkpoint is broken: lr_schedulers is a list, but it must be a list of at most one scheduler's state; "
        "use an earlier one.",
    ),
    (lambda: sections(epoch=-1), "a.ckpt is broken: its epoch is -1, which is not a count; use an earlier one."),
    (
        lambda: sections(lit_robust={"rows": 5}),
        "a.ckpt is broken: its section lit_robust.rows is 5, but it must be *; use an earlier one.",
    ),
    (
        lambda: position_of(5),
        "the checkpoint is broken: its loader's state is 5, but it must be the counts epoch and batches by name; use "
        "an earlier one.",
    ),
    (
        lambda: selection_of(5),
        "the checkpoint is broken: the data's selection is 5, but it must be the tensors indices and weights by name, "
        "or null; use an earlier one.",
    ),
    # Schedules.
    (lambda: PiecewiseLinear([0, 5], [0, 1, 0]), "2 times have 3 values: each needs exactly one."),
    (lambda: Cosine(1, 0, 30, 5), "end=5.0 must come after begin=30.0; for a jump use a Staircase."),
    (
        lambda: Linear(0, math.nan, 0, 5),
        "stop=nan must be a finite number: write it as 30, 0.1 or 8/255.",
    ),
    (lambda: Linear(math.inf, 0, 0, 5), "start=inf must be a finite number: write it as 30, 0.1 or 8/255."),
    (lambda: Linear([], 0, 0, 5), "start=[] must be a finite number: write it as 30, 0.1 or 8/255."),
    (lambda: Cyclic(None, 5), "up=None must be a finite number: write it as 30, 0.1 or 8/255."),
    (lambda: MultiStep([30, None]), "milestones[1]=None must be a finite number: write it as 30, 0.1 or 8/255."),
    (
        lambda: PeriodicCosine(-1, 0.6, 0.4, [10]),
        "low=-1 must be a finite number, at least 0: write it as 30, 0.1 or 8/255.",
    ),
    (
        lambda: CyclicMomentum(5, 5, until=None),
        "until=None must be a number: write it as 30, 0.1 or 8/255.",
    ),
    (
        lambda: Product([0.5]),
        "schedules[0]=0.5 must be of type Schedule: give one of lit_robust.schedules.",
    ),
    (lambda: PerEpoch(3), "schedule=3 must be of type Schedule: give one of lit_robust.schedules."),
    (lambda: drops(None, 3), "schedule=None must be of type Schedule: give one of lit_robust.schedules."),
    (lambda: drops(MultiStep([2]), None), "epochs=None must be an integer, at least 0."),
    # Values that used to fail deep inside, or to mean nothing.
    (
        lambda: build(NuAT, attack=ONE_STEP, two_step=3.5),
        "two_step=3.5 must be of type Trigger: give a rule of lit_robust.defenses.hybrid.",
    ),
    (
        lambda: build(NuAT2, attack=ONE_STEP, attack_average=-1),
        "attack_average=-1 must be of type str: give the name of an average of EMAWeights.",
    ),
    (
        lambda: build(FastAT, attack=ONE_STEP, alpha=[]),
        "alpha=[] is not a magnitude: write a number >= 0 or a fraction such as 8/255.",
    ),
    (
        lambda: build(HSAT, psi=0),
        "psi=0 must be of type Sharpness: give LastLayerSharpness() or PowerIteration(), or train PSAT.",
    ),
    (
        lambda: nets.Net(None, nn.Linear(4, 2)),
        "body=None must be of type Module: give what turns images into rows, such as an nn.Sequential.",
    ),
    (
        lambda: nets.Net(nn.Flatten(), "x"),
        "head='x' must be of type Module: give nn.Linear(features, classes).",
    ),
    (
        lambda: nets.Net(nn.Flatten(), nn.Linear(4, 2), in_channels="x"),
        "in_channels='x' must be an integer, at least 1.",
    ),
    (lambda: nets.digits_cnn(width=None), "digits_cnn's width=None must be an integer, at least 1."),
    (lambda: nets.digits_cnn(width=True), "digits_cnn's width=True must be an integer, at least 1."),
    (lambda: nets.fast_cnn(image_size=3.5), "fast_cnn's image_size=3.5 must be an integer, at least 1."),
    (lambda: nets.vgg16(in_channels=math.nan), "vgg16's in_channels=nan must be an integer, at least 1."),
    (
        lambda: nets.wide_resnet28_10(width="x"),
        "wide_resnet28_10's width='x' must be an integer, at least 1.",
    ),
    (lambda: nets.timm_net(image_size="x"), "timm_net's image_size='x' must be an integer, at least 1."),
    (
        lambda: GAMAPGD(drops=3),
        "drops=3 must be of type list or tuple: give shares of the steps, such as (0.6, 0.85).",
    ),
    (
        lambda: GAMAFW(drops=[]),
        "drops=[] is empty: give shares of the steps, such as (0.6, 0.85).",
    ),
    (
        lambda: ReColor(grid=3),
        "grid=3 must be of type list or tuple: give the nodes along L*, u* and v*, such as (16, 32, 32).",
    ),
    (
        lambda: ReColor(grid=[16, 32]),
        "grid=[16, 32] has 2 numbers: give the nodes along L*, u* and v*, such as (16, 32, 32).",
    ),
    (
        lambda: ReColor(eps=3.5),
        "eps=3.5 must be a finite number, at most 1: the axes of CIELUV are scaled to [0, 1].",
    ),
    (lambda: StAdv(eps=3.5), "eps=3.5 must be a finite number, at most 2: the image spans [-1, 1]."),
    (
        lambda: NuclearNorm(loss="x"),
        "loss='x' is not a function: give one such as lit_robust.losses.ce, or None for the norm alone.",
    ),
    (
        lambda: CurriculumFGSM(lam=math.inf),
        "lam=inf must be a finite number, at most 1: psi is a difference of probabilities.",
    ),
    (lambda: Bound("x"), "eps='x' must be a finite number, at least 0: it is the radius around an image."),
    (lambda: Bound(0.1, 3), 'norm="3" is unknown: choose linf or l2.'),
    (lambda: DelayedStart(monitor=None), "monitor=None must be of type str: give the loss's name, train/loss."),
    (lambda: DelayedStart(monitor=""), 'monitor="" is empty: give the loss\'s name, train/loss.'),
    (lambda: FGSMGap(margin=-1), "margin=-1 must be a finite number, at least 0 and at most 1."),
    (lambda: AbnormalRise(rise=-1), "rise=-1 must be a finite number, at least 0 and at most 1."),
    (lambda: GradientCosineDrop(factor=-1), "factor=-1 must be a finite number, at least 0 and at most 1."),
    (lambda: CrossEntropySplit(change=-1), "change=-1 must be a finite number, at least 0 and at most 1."),
    (lambda: LinearityErrorSpike(sigmas=-1), "sigmas=-1 must be a finite number, at least 0."),
    (lambda: PGDDrop(threshold=20), "threshold=20 must be a finite number, at least 0 and at most 1."),
    (lambda: EMAWeights(net=3), "net=3 must be of type str: give the path of a sub-module."),
    (
        lambda: EMAWeights(extra={3: 0.9}),
        'a name in extra=3 must be of type str: give decays by name, {"fast": 0.99}.',
    ),
    (
        lambda: AdversarialExamples(ATTACK, x=[]),
        "x=[] must be of type int or str: give an index, a key or the name of a field, or a path of them such as "
        '"views.0".',
    ),
    (
        lambda: AdversarialExamples(ATTACK, y=True),
        "y=True is not a place of a batch: give an index, a key or the name of a field, or a path of them such as "
        '"views.0".',
    ),
    (
        lambda: AdversarialExamples(ATTACK, net=3),
        'net=3 must be of type str: give the path of a sub-module, such as "model".',
    ),
    (
        lambda: adapt(x=Y.float()),
        "x=0 finds a tensor of shape (8,) instead of images: give an index, a key or the name of a field, or a path "
        'of them such as "views.0".',
    ),
    (lambda: PeriodicCosine(0.5, 0.6, 0.4, [10]), "low=0.5 must not exceed high=0.6 or cap=0.4."),
    (lambda: PeriodicCosine(0, 0.6, 0.4, [0, 10]), "ends=[0.0, 10.0] must be above 0, where the first cycle begins."),
    (lambda: CyclicStep(20, 20, 40), "until=40.0 must come before the triangle ends at 40.0."),
    (lambda: CyclicMomentum(5, 5, low=0.9, high=0.8), "low=0.9 and high=0.8 must satisfy 0 <= low <= high < 1."),
    # Images that a net cannot read, and a net that changes in training.
    *(
        (
            partial(unread, make, shape),
            f"the net (*) cannot read images of shape * (*): {remedy}.",
        )
        for make, shape, remedy in (
            (nets.small_cnn, (1, 32, 32), "give the net image_size=32 (--model.net.image_size 32)"),
            (nets.small_cnn, (3, 28, 28), "give the net in_channels=3 (--model.net.in_channels 3)"),
            (
                nets.madry_cnn,
                (3, 32, 32),
                "give the net in_channels=3 and image_size=32 (--model.net.in_channels 3 --model.net.image_size 32)",
            ),
            (
                nets.resnet18,
                (1, 28, 28),
                "give the net in_channels=1 and mean=None and std=None (--model.net.in_channels 1 --model.net.mean "
                "null --model.net.std null)",
            ),
            (nets.small_cnn, (1, 8, 8), "small_cnn cannot be built for them, choose another net"),
            (nets.small_cnn, (1, 28, 20), "small_cnn reads square images, crop them to 28x28"),
            (nets.digits_cnn, (3, 32, 32), "digits_cnn reads images of 1x8x8 only, choose another net"),
            (
                nets.vgg16,
                (3, 8, 8),
                "vgg16 needs larger images, raise the data's image_size (--data.image_size) or choose another net",
            ),
            (
                nets.imagenet_resnet18,
                (1, 64, 64),
                "imagenet_resnet18 reads images of 3 channels, choose a net with in_channels, such as "
                "lit_robust.nets.resnet18",
            ),
            (
                partial(nets.torchvision_net, "vit_b_32"),
                (3, 64, 64),
                "torchvision_net is built for 224x224, give the data image_size=224 (--data.image_size 224)",
            ),
        )
    ),
    (
        lambda: fit(build(PGDAT, net=ProbabilitiesInTraining())),
        "the net returns probabilities in train mode, but losses and attacks need logits: remove the softmax that it "
        "applies there, or every attack looks weaker than it is.",
    ),
    (
        lambda: fit(Driven(), DelayedStart(at_epoch=8), max_steps=2, max_epochs=9),
        "training ends at step 2 and was natural throughout: the switch was to come in epoch 8 at the latest.",
    ),
    (
        lambda: tiff(0, 1, dtype=np.uint16, tags={339: 2}),
        "photos/train/cat/1.tif is not a readable image (*signed integers of 16 bits have no certain white, save them "
        "unsigned*): repair or remove it.",
    ),
    # Analyses.
    (
        lambda: strange((1, 8, 40)),
        "weights.pth: its net does not take the data's images of 1 x 8 x 40: give the data that it was trained with.",
    ),
    (
        lambda: PGD(0.1)(WithoutGraph(), X, Y),
        "the net's logits have no graph to the pixels, so there is no gradient: compute them with torch's "
        "differentiable functions, give the step without a gradient a substitute (BPDA), or attack with Square.",
    ),
    (lambda: check_values("steps", [math.nan]), "values=nan must be a finite number, at least 0."),
    (lambda: check_values("eps", [math.nan]), "values=nan must be a finite number, at least 0."),
    (lambda: check_values("restarts", [math.inf]), "values=inf must be a finite number, at least 1."),
    (lambda: check_values("steps", [-1.0]), "values=-1.0 must be a finite number, at least 0."),
    (lambda: check_values("restarts", [0.0]), "values=0.0 must be a finite number, at least 1."),
    (lambda: check_values("steps", [1.5]), "values=1.5 of steps must be a whole number."),
    (
        lambda: strengths(ATTACK, "eps", [8.0], False),
        "values=8.0 must be a finite number, at most 1: pixels are in [0, 1].",
    ),
    (lambda: device(False), 'device="meta" cannot be used here: choose auto or cpu.'),
    (lambda: device(True), 'device="meta" cannot be used here: choose auto, cpu or cuda.'),
    (
        lambda: hand_on(Findings({"AutoAttack | zero_gradient": 3, "AutoAttack | attacked": 10})),
        "AutoAttack, at 3 of 10 images: the gradient is exactly 0, where APGD cannot move: look for rounding or "
        "saturation in the net (BPDA), and trust Square's share of the result.",
    ),
    (
        lambda: load_subjects(["a=nowhere"], torch.device("cpu")),
        "there is no nowhere: give a .ckpt file, a file of weights or the folder of a run.",
    ),
    (
        lambda: (Path("a.txt").touch(), check_folder("a.txt")),
        "out=a.txt must be a folder, and */a.txt is none: give another --out.",
    ),
    (
        without_wandb,
        "wandb_project=mine needs wandb: pip install wandb, or leave wandb_project out.",
    ),
    (
        lambda: by_method([Subject(f"a@{i}", Path(f"{i}.pt"), nn.Flatten(), "same") for i in range(2)]),
        "a@0=0.pt and a@1=1.pt have the same weights and are not two seeds of a: give a checkpoint of each seed.",
    ),
    (
        two_classes,
        "a@0 was trained by PGDAT, a@1 by TRADES, and they are not two seeds of a: give each method a name of its own.",
    ),
    (
        lambda: internal("_typehints", "gone"),
        "lit_robust relies on internals of jsonargparse 4.53 that jsonargparse * has changed (_typehints.gone): pip "
        'install "jsonargparse[signatures]>=4.53,<4.54".',
    ),
]


class Since(Callback):
    """Saves when two epochs are over."""

    def on_train_epoch_start(self, trainer, *args):
        if trainer.current_epoch == 2:
            trainer.save_checkpoint("a.ckpt")


def late(at_epoch: int) -> None:
    """Go on with a training that has been adversarial since epoch 1."""
    fit(Driven(), DelayedStart(at_epoch=1), Since())
    run = trainer(".", callbacks=[DelayedStart(at_epoch=at_epoch)], max_epochs=5)
    run.fit(Driven(), loader(images(8)), loader(images(8)), ckpt_path="a.ckpt", weights_only=True)


@pytest.mark.parametrize(("at_epoch", "remark"), [(4, ": at_epoch=4 is too late."), (1, ".")])
def test_a_switch_that_was_made_is_reported(at_epoch, remark, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    with caplog.at_level("INFO"):
        late(at_epoch)
    assert f"training has been adversarial since epoch 1{remark}" in [record.message for record in caplog.records]


@pytest.mark.parametrize(("call", "sentence"), SENTENCES, ids=[sentence[:60] for _, sentence in SENTENCES])
def test_a_refusal_says_what_is_wrong_and_what_to_do_about_it(call, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pattern = ".*".join(map(re.escape, sentence.split("*")))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", pattern)  # a sentence may also be a warning
        with pytest.raises(Exception, match=rf"(?s)\A{pattern}\Z"):
            call()
