"""Numbers that tell how robust a net is, and whether it masks its gradients; and their pictures."""
