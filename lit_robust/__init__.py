"""Efficient adversarial training as a PyTorch Lightning collection."""

from lit_robust.runs import load_net, load_weights

__version__ = "0.1.0"
__all__ = ["load_net", "load_weights"]
