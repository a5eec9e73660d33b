"""Callbacks that fit any LightningModule which has what they state they need."""

from lit_robust.callbacks.ema import EMAWeights
from lit_robust.callbacks.examples import AdversarialExamples
from lit_robust.callbacks.overfitting import (
    CatastrophicOverfittingMonitor,
    FGSMGap,
    GradientCosineDrop,
    OverfittingRule,
    PGDDrop,
)
from lit_robust.callbacks.predictions import PredictionWriter
from lit_robust.callbacks.ramp import AttributeRamp

__all__ = [
    "AdversarialExamples",
    "AttributeRamp",
    "CatastrophicOverfittingMonitor",
    "EMAWeights",
    "FGSMGap",
    "GradientCosineDrop",
    "OverfittingRule",
    "PGDDrop",
    "PredictionWriter",
]
