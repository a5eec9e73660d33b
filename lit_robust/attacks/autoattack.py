"""AutoAttack, run with the package of its authors' code."""

import logging
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from lit_robust import require
from lit_robust.attacks.autoattack_findings import watched
from lit_robust.attacks.autoattack_package import Package, default_type, own_random_states
from lit_robust.attacks.base import EPS, Attack
from lit_robust.guards import crafting, frozen
from lit_robust.logits import predicts
from lit_robust.magnitudes import Magnitude
from lit_robust.terminal import progress_bar
from lit_robust.threats import Norm

Version = Literal["standard", "v1", "plus", "rand"]
Precision = Literal["float32", "bf16"]

#: The attacks of each version in their order, with their restarts.
VERSIONS: dict[str, dict[str, int]] = {
    "standard": {"apgd-ce": 1, "apgd-t": 1, "fab-t": 1, "square": 1},
    "v1": {"apgd-ce": 5, "apgd-dlr": 5, "fab": 5, "square": 1},
    "plus": {"apgd-ce": 5, "apgd-dlr": 5, "fab": 5, "square": 1, "apgd-t": 1, "fab-t": 1},
    "rand": {"apgd-ce": 1, "apgd-dlr": 1},
}

#: Forwards per image and restart, at most (FAB: about), with 9 targets; for the estimate of the time left.
LOOKS = {"apgd-ce": 100, "apgd-dlr": 100, "apgd-t": 900, "fab": 200, "fab-t": 1800, "square": 5000}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AutoAttack(Attack):
    """AutoAttack (Croce and Hein, ICML 2020, arXiv:2003.01690): several attacks in a row.

    Each attack runs on the images that all earlier ones left correctly classified; images that none of them breaks
    are returned unchanged.

    ========  =======================================================================================
    version   attacks (100 iterations each, Square 5000 queries)
    ========  =======================================================================================
    standard  APGD-CE, targeted APGD-DLR, targeted FAB, Square; one run each, 9 targets (AutoAttack 2)
    v1        APGD-CE, APGD-DLR and FAB with 5 restarts, Square: the standard version until July 2020
    plus      v1, then the two targeted attacks
    rand      APGD-CE and APGD-DLR with gradients averaged over 20 forwards, for randomised nets
    ========  =======================================================================================

    The attacks are those of ``pyautoattack``, or of the authors' ``autoattack`` where only that is installed, and move
    images in float32. If a net has fewer than 10 classes, the targeted attacks target all wrong ones. What the
    package's own checks find (``autoattack_findings.FINDINGS``: a randomised net, outputs that are probabilities, zero
    gradients, ...) is warned of, with the number of images; in an evaluation once, at its end. A terminal shows a bar
    with the time left; the logger ``lit_robust`` gets a line per attack at level INFO. The net should be in eval mode.

    Args:
        eps: The bound, in units of [0, 1].
        norm: The norm of the ball.
        version: A row of the table.
        seed: Every attack starts from this seed in every batch; the caller's random state is restored.
        batch_size: How many images are attacked at once. A test runs each block of this size through all attacks, and
            can keep finished blocks, see ``measures.image_blocks``.
        precision: With ``bf16`` the attacks see the net under autocast. An image counts as broken only if the net
            misclassifies it without autocast, too. The gradients and margins are coarser, so more images may survive:
            a test calls the row ``autoattack_bf16``, and ``compare`` does not rank by it.

    Raises:
        ImportError: When called, if neither package is installed.
        ValueError: If an argument is out of range; when called, if the net has too few classes for the DLR
            loss.
    """

    eps: Magnitude = EPS
    norm: Norm = "linf"
    version: Version = "standard"
    seed: int = 0
    batch_size: int = 256
    precision: Precision = "float32"

    @property
    def is_long(self) -> bool:
        """It is, on any robust net."""
        return True

    @property
    def package(self) -> str:
        """The installed package and its version."""
        return Package().version

    def __post_init__(self) -> None:
        require.one_of("norm", self.norm, get_args(Norm))
        require.one_of("version", self.version, get_args(Version))
        object.__setattr__(self, "eps", require.pixels("eps", self.eps, self.norm))
        require.integer("seed", self.seed, least=0)
        require.integer("batch_size", self.batch_size, least=1)
        require.one_of("precision", self.precision, get_args(Precision))

    def check_installed(self) -> None:
        """Fail at once if neither package is installed."""
        Package()

    def __call__(self, net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Run the version's attacks, each on the images that are still unbroken."""
        package = Package()
        if not len(x):
            return x.clone()
        if y.shape != x.shape[:1]:
            raise ValueError(
                f"there are labels of shape {tuple(y.shape)} for {len(x)} images: give one for each image."
            )
        bar = progress_bar("AutoAttack", unit=" images", unit_scale=True, disable=None)

        coarse, dtype, default = self.precision == "bf16", x.dtype, torch.get_default_dtype()

        def predict(images: Tensor, exact: bool = False) -> Tensor:
            bar.update(len(images))
            autocast = torch.autocast(x.device.type, torch.bfloat16, enabled=not exact) if coarse else nullcontext()
            with default_type(default), autocast:
                logits: Tensor = net(images.to(dtype))
            return logits.float()

        # FAB calls `backward`: on a net that is not frozen it would leave gradients on the parameters.
        with (
            bar,
            crafting(x, y) as (x, y),
            frozen(net),
            torch.no_grad(),
            own_random_states(),
            default_type(torch.float32),  # precision=64-true has changed it
            watched(self._title, len(x)) as found,
        ):
            # The package reads images through `view`, and can write to those of float32 only.
            x_adv, x = x.clone(), x.float().contiguous()
            classes = self._check(package, predict, x[: self.batch_size], y[: self.batch_size])
            parts = zip(torch.split(x, self.batch_size), torch.split(y, self.batch_size), strict=True)
            unbroken = torch.cat([predicts(predict(images, exact=True), labels) for images, labels in parts])
            begin, left = time.perf_counter(), dict(VERSIONS[self.version])
            for name, restarts in VERSIONS[self.version].items():
                if not unbroken.any():
                    break
                bar.set_description(f"AutoAttack, {name}", refresh=False)
                bar.total = bar.n + int(unbroken.sum()) * sum(LOOKS[later] * left[later] for later in left)
                del left[name]
                attack = self._build(package, name, restarts, predict, classes)
                for rows in torch.split(unbroken.nonzero().squeeze(1), self.batch_size):
                    points = attack.perturb(x[rows], y[rows]).to(dtype)
                    broken = ~predicts(predict(points, exact=True), y[rows])
                    x_adv[rows[broken]] = points[broken]
                    unbroken[rows[broken]] = False
                    if name == "square":
                        found[name] += int(broken.sum())
                share, seconds = 100 * unbroken.float().mean().item(), time.perf_counter() - begin
                log.info("AutoAttack: %.2f %% robust after %s (%.1f s)", share, name, seconds)
        return x_adv

    @property
    def _title(self) -> str:
        """The attack as its findings name it: by what two attacks of a test most often differ in."""
        eps = self.eps if getattr(self.eps, "written", None) else f"{self.eps:.4g}"
        usual = {"norm": "linf", "version": "standard", "precision": "float32"}
        others = [f", {name}={getattr(self, name)}" for name, one in usual.items() if getattr(self, name) != one]
        return f"AutoAttack(eps={eps}{''.join(others)})"

    def _build(
        self, package: Package, name: str, restarts: int, predict: Callable[[Tensor], Tensor], classes: int
    ) -> Any:
        norm = {"linf": "Linf", "l2": "L2"}[self.norm]
        common = {"norm": norm, "eps": self.eps, "seed": self.seed, "n_restarts": restarts}
        targets = min(9, classes - 1)
        if name == "apgd-t":
            return package.apgd.APGDAttack_targeted(predict, n_target_classes=targets, **common)
        if name.startswith("apgd"):
            repeats = 20 if self.version == "rand" else 1
            return package.apgd.APGDAttack(predict, loss=name.removeprefix("apgd-"), eot_iter=repeats, **common)
        if name.startswith("fab"):
            targeted = name == "fab-t"
            return package.fab.FABAttack_PT(predict, targeted=targeted, n_target_classes=targets, **common)
        return package.square.SquareAttack(predict, n_queries=5000, p_init=0.8, resc_schedule=False, **common)

    def _check(self, package: Package, predict: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> int:
        """Run the package's checks, which may warn, and return the number of classes."""
        classes = int(package.checks.check_range_output(predict, x))
        needed = 4 if "apgd-t" in VERSIONS[self.version] else 3
        if classes < needed:
            remedy = 'version="v1"' if classes == 3 else "PGD with restarts"
            raise ValueError(
                f'AutoAttack(version="{self.version}") needs at least {needed} classes for its DLR loss, '
                f"but the net returns {classes} logits: use {remedy}."
            )
        if self.version != "rand":
            package.checks.check_randomized(predict, x, y)
        package.check_dynamic(predict, x)
        return classes
