"""One file a family of training methods; each is a LightningModule."""

from lit_robust.defenses.base import Defense
from lit_robust.defenses.natural import Natural
from lit_robust.defenses.pgdat import PGDAT

__all__ = ["PGDAT", "Defense", "Natural"]
