"""Training methods, one file per family; each is a LightningModule."""

from lit_robust.defenses.aaer import AAER
from lit_robust.defenses.curriculum_at import CurriculumAT
from lit_robust.defenses.customized import CustomizedAT
from lit_robust.defenses.elle import ELLEA
from lit_robust.defenses.fast import FGSMAT, NFGSM, RFGSMAT, FastAT
from lit_robust.defenses.free import FreeAT
from lit_robust.defenses.friendly import FriendlyAT
from lit_robust.defenses.gat import GAT
from lit_robust.defenses.gradalign import GradAlign
from lit_robust.defenses.mart import MART
from lit_robust.defenses.natural import Natural
from lit_robust.defenses.nuat import NuAT
from lit_robust.defenses.nuat2 import NuAT2
from lit_robust.defenses.perceptual import PerceptualAT
from lit_robust.defenses.pgdat import PGDAT
from lit_robust.defenses.rmgm import RMGM, SATR1, SATR3
from lit_robust.defenses.sat import HSAT, PSAT, DynamicAT
from lit_robust.defenses.trades import TRADES
from lit_robust.defenses.zerograd import ZeroGrad
from lit_robust.training.defense import Defense
from lit_robust.training.weight_perturbation import AWP

__all__ = [
    "AAER",
    "AWP",
    "ELLEA",
    "FGSMAT",
    "GAT",
    "HSAT",
    "MART",
    "NFGSM",
    "PGDAT",
    "PSAT",
    "RFGSMAT",
    "RMGM",
    "SATR1",
    "SATR3",
    "TRADES",
    "CurriculumAT",
    "CustomizedAT",
    "Defense",
    "DynamicAT",
    "FastAT",
    "FreeAT",
    "FriendlyAT",
    "GradAlign",
    "Natural",
    "NuAT",
    "NuAT2",
    "PerceptualAT",
    "ZeroGrad",
]
