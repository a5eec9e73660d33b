"""Attacks; each is a value, called as ``attack(net, x, y)``."""

from lit_robust.attacks.autoattack import AutoAttack
from lit_robust.attacks.base import Attack
from lit_robust.attacks.bpda import BPDA
from lit_robust.attacks.curriculum_pgd import CurriculumFGSM, CurriculumPGD
from lit_robust.attacks.fgsm import FGSM, RFGSM
from lit_robust.attacks.friendly import FriendlyPGD
from lit_robust.attacks.gama import GAMAFW, GAMAPGD
from lit_robust.attacks.margin_pgd import CWPGD, MultiTargetedPGD, TargetedPGD
from lit_robust.attacks.nuclear import FrobeniusNorm, NuclearNorm
from lit_robust.attacks.pgd import PGD
from lit_robust.attacks.square import Square
from lit_robust.keywords import answer_keywords

__all__ = [
    "BPDA",
    "CWPGD",
    "FGSM",
    "GAMAFW",
    "GAMAPGD",
    "PGD",
    "RFGSM",
    "Attack",
    "AutoAttack",
    "CurriculumFGSM",
    "CurriculumPGD",
    "FriendlyPGD",
    "FrobeniusNorm",
    "MultiTargetedPGD",
    "NuclearNorm",
    "Square",
    "TargetedPGD",
]

answer_keywords([globals()[name] for name in __all__])
