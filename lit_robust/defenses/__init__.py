"""One file a family of training methods; each is a LightningModule."""

from lit_robust.defenses.aaer import AAER
from lit_robust.defenses.base import Defense
from lit_robust.defenses.elle import ELLEA
from lit_robust.defenses.fast import FGSMAT, NFGSM, RFGSMAT, FastAT
from lit_robust.defenses.free import FreeAT
from lit_robust.defenses.gat import GAT
from lit_robust.defenses.gradalign import GradAlign
from lit_robust.defenses.natural import Natural
from lit_robust.defenses.nuat import NuAT, NuAT2
from lit_robust.defenses.pgdat import PGDAT
from lit_robust.defenses.rmgm import RMGM, SATR1, SATR3
from lit_robust.defenses.zerograd import ZeroGrad

__all__ = [
    "AAER",
    "ELLEA",
    "FGSMAT",
    "GAT",
    "NFGSM",
    "PGDAT",
    "RFGSMAT",
    "RMGM",
    "SATR1",
    "SATR3",
    "Defense",
    "FastAT",
    "FreeAT",
    "GradAlign",
    "Natural",
    "NuAT",
    "NuAT2",
    "ZeroGrad",
]
