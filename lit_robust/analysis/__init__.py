"""Analyses of trained nets: each verb measures, and writes a CSV file and a picture, or a page."""

from lit_robust.analysis.compare import compare
from lit_robust.analysis.diversity import diversity
from lit_robust.analysis.eigenvalue import eigenvalue
from lit_robust.analysis.report import report
from lit_robust.analysis.stale import stale
from lit_robust.analysis.surface import surface
from lit_robust.analysis.sweep import sweep
from lit_robust.analysis.targets import targets
from lit_robust.analysis.training_curves import curves
from lit_robust.analysis.transfer import transfer

__all__ = [
    "compare",
    "curves",
    "diversity",
    "eigenvalue",
    "report",
    "stale",
    "surface",
    "sweep",
    "targets",
    "transfer",
]
