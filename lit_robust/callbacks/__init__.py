"""Callbacks for any LightningModule; each states in a Protocol what it needs of the module."""

from lit_robust.callbacks.adversarial_training import AdversarialTraining
from lit_robust.callbacks.coreset import CoresetSelection
from lit_robust.callbacks.delayed_start import DelayedStart, Plateau, SwitchRule
from lit_robust.callbacks.early_stop import StopAfterDrop
from lit_robust.callbacks.ema import EMAWeights
from lit_robust.callbacks.examples import AdversarialExamples
from lit_robust.callbacks.generalization_gap import GeneralizationGap
from lit_robust.callbacks.overfitting import CatastrophicOverfittingMonitor
from lit_robust.callbacks.overfitting_bound import Bound
from lit_robust.callbacks.overfitting_rules import (
    AbnormalRise,
    CrossEntropySplit,
    FGSMGap,
    GradientCosineDrop,
    LinearityErrorSpike,
    OverfittingRule,
    PGDDrop,
)
from lit_robust.callbacks.predictions import PredictionWriter
from lit_robust.callbacks.progressive_resizing import ProgressiveResizing
from lit_robust.callbacks.ramp import AttributeRamp
from lit_robust.callbacks.robust_accuracy import RobustAccuracy
from lit_robust.callbacks.time_left import TimeLeft
from lit_robust.keywords import answer_keywords
from lit_robust.magnitudes import read_by_jsonargparse

__all__ = [
    "AbnormalRise",
    "AdversarialExamples",
    "AdversarialTraining",
    "AttributeRamp",
    "Bound",
    "CatastrophicOverfittingMonitor",
    "CoresetSelection",
    "CrossEntropySplit",
    "DelayedStart",
    "EMAWeights",
    "FGSMGap",
    "GeneralizationGap",
    "GradientCosineDrop",
    "LinearityErrorSpike",
    "OverfittingRule",
    "PGDDrop",
    "Plateau",
    "PredictionWriter",
    "ProgressiveResizing",
    "RobustAccuracy",
    "StopAfterDrop",
    "SwitchRule",
    "TimeLeft",
]

answer_keywords([globals()[name] for name in __all__])
read_by_jsonargparse()
