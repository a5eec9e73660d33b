"""Measures of robustness and of gradient masking, and pictures of adversarial images."""
