"""The training machinery around a method's `perturb` and `loss`."""
