"""Analyses of trained nets: each verb measures, and writes a CSV file and a picture."""

from lit_robust.analysis.sweep import sweep
from lit_robust.analysis.transfer import transfer

__all__ = ["sweep", "transfer"]
