"""The machinery of a training: what is around a method's `perturb` and `loss`."""
