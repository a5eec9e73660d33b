"""Every training method, as the contracts build it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning.pytorch import Callback

from lit_robust.attacks import FGSM, PGD, FastLPA
from lit_robust.attacks.difficulty import LastLayerSharpness, PowerIteration
from lit_robust.callbacks import EMAWeights
from lit_robust.defenses import (
    AAER,
    AWP,
    ELLEA,
    FGSMAT,
    GAT,
    HSAT,
    MART,
    NFGSM,
    PGDAT,
    PSAT,
    RFGSMAT,
    RMGM,
    SATR1,
    SATR3,
    TRADES,
    CurriculumAT,
    CustomizedAT,
    Defense,
    DynamicAT,
    FastAT,
    FreeAT,
    FriendlyAT,
    GradAlign,
    Natural,
    NuAT,
    NuAT2,
    PerceptualAT,
    ZeroGrad,
)
from lit_robust.defenses.hybrid import CleanLossDrop, SecondStepGain
from tests.tiny import CLASSES, TinyNet

EPS = 0.1
ATTACK = PGD(eps=EPS, step_size=0.05, steps=2)
ONE_STEP = FGSM(eps=EPS)


def sgd(params: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=0.1, momentum=0.9)


def build(method: Callable[..., Defense], **arguments: Any) -> Defense:
    """A method on the tiny net with the tiny attack."""
    defaults = {"net": TinyNet(), "num_classes": CLASSES, "attack": ATTACK, "optimizer": sgd}
    return method(**(defaults | arguments))


@dataclass(frozen=True)
class Method:
    """A method, its arguments, how far its adversary may be from the clean image, and the callbacks that it needs."""

    cls: Callable[..., Defense]
    arguments: dict[str, Any] = field(default_factory=dict)
    bound: float = EPS
    callbacks: Callable[[], list[Callback]] = list


#: The contracts run over all of them.
METHODS: dict[str, Method] = {
    "Defense": Method(Defense),
    "Natural": Method(Natural),
    "PGDAT": Method(PGDAT),
    "PGDAT with the authors' forwards": Method(PGDAT, {"bn_forwards": "authors"}),
    "FGSMAT": Method(FGSMAT, {"attack": ONE_STEP}),
    "RFGSMAT": Method(RFGSMAT, {"attack": ONE_STEP}),
    "FastAT": Method(FastAT, {"attack": ONE_STEP}),
    "FastAT from the previous delta": Method(FastAT, {"attack": ONE_STEP, "delta_init": "previous"}),
    "NFGSM": Method(NFGSM, {"attack": ONE_STEP}, bound=3 * EPS),
    "FreeAT": Method(FreeAT, {"attack": ONE_STEP, "m": 2}),
    "FreeAT in the image box": Method(FreeAT, {"attack": ONE_STEP, "m": 2, "clip_delta": "image"}),
    "GradAlign": Method(GradAlign, {"attack": ONE_STEP}),
    "RMGM": Method(RMGM, {"attack": ONE_STEP, "lam": 0.5}),
    "SATR1": Method(SATR1, {"attack": ONE_STEP}),
    "SATR3": Method(SATR3, {"attack": ONE_STEP, "alpha": 0.02}, bound=EPS + 0.02),
    "ELLEA": Method(ELLEA, {"attack": ONE_STEP, "lam_max": 10.0}),
    "ELLEA with the authors' forwards": Method(ELLEA, {"attack": ONE_STEP, "lam_max": 10.0, "bn_forwards": "authors"}),
    "ZeroGrad": Method(ZeroGrad, {"attack": ONE_STEP}),
    "AAER": Method(AAER, {"attack": ONE_STEP}),
    "AAER on NFGSM": Method(AAER, {"attack": ONE_STEP, "base": "nfgsm"}, bound=3 * EPS),
    "GAT": Method(GAT, {"attack": ONE_STEP}),
    "GAT guided in every batch": Method(GAT, {"attack": ONE_STEP, "attack_alternate": False}),
    "NuAT": Method(NuAT, {"attack": ONE_STEP}),
    "NuAT-H": Method(NuAT, {"attack": ONE_STEP, "two_step": CleanLossDrop(every=0.3, drop=0.1, warm_up=0.5)}),
    "NuAT-H by the second step's gain": Method(NuAT, {"attack": ONE_STEP, "two_step": SecondStepGain(gain=0.05)}),
    "NuAT2": Method(NuAT2, {"attack": ONE_STEP}),
    "NuAT2-WA": Method(
        NuAT2,
        {"attack": ONE_STEP, "attack_average": "fast"},
        callbacks=lambda: [EMAWeights(0.9, extra={"fast": 0.5})],
    ),
    "CustomizedAT": Method(CustomizedAT),
    "CustomizedAT, eta taken back where the attack succeeded": Method(CustomizedAT, {"revert": "succeeded"}),
    "CurriculumAT": Method(CurriculumAT, {"expect_acc": 0.0}),
    "CurriculumAT, BASIC": Method(CurriculumAT, {"expect_acc": 0.0, "batch_mixing": False, "attack_bn_mode": "eval"}),
    "TRADES": Method(TRADES),
    "TRADES with the authors' forwards": Method(TRADES, {"bn_forwards": "authors"}),
    "TRADES in L2": Method(TRADES, {"attack": PGD(eps=EPS, step_size=0.1, steps=2, norm="l2")}),
    "MART": Method(MART),
    "FriendlyAT": Method(FriendlyAT, {"tau": 1}),
    "PerceptualAT": Method(PerceptualAT, {"attack": FastLPA(0.3, steps=2)}, bound=1.0),
    "PerceptualAT as its authors run it": Method(
        PerceptualAT, {"attack": FastLPA(0.3, steps=2, projection="none")}, bound=1.0
    ),
    "PGDAT + AWP": Method(PGDAT, {"weight_perturbation": AWP(gamma=0.01)}),
    "NuAT + AWP": Method(NuAT, {"attack": ONE_STEP, "weight_perturbation": AWP()}),
    "TRADES + AWP": Method(TRADES, {"weight_perturbation": AWP()}),
    "PGDAT + AWP with the authors' forwards": Method(
        PGDAT, {"weight_perturbation": AWP(gamma=0.01), "bn_forwards": "authors"}
    ),
    "TRADES + AWP with the authors' forwards": Method(TRADES, {"weight_perturbation": AWP(), "bn_forwards": "authors"}),
    "PSAT": Method(PSAT, {"lam": 0.0}),
    "PSAT in its FGSM form": Method(PSAT, {"attack": ONE_STEP, "lam": 0.4}, bound=1.25 * EPS),
    "HSAT": Method(HSAT, {"lam": 0.55}),
    "HSAT with the features": Method(HSAT, {"lam": 0.5, "psi": LastLayerSharpness(feature_norm=True)}),
    "HSAT by power iteration": Method(HSAT, {"lam": 0.6, "psi": PowerIteration()}),
    "DynamicAT": Method(DynamicAT, {"c": 0.1}),
    "DynamicAT as its authors run it": Method(DynamicAT, {"c": 0.1, "origin": "start", "weight_by_loss": True}),
}
