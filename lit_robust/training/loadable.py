"""A method that is built from a checkpoint."""

from pathlib import Path
from typing import Any, Self

from lit_robust.attacks import Attack
from lit_robust.attacks.difficulty import Difficulty
from lit_robust.checkpoint_sections import check_reading
from lit_robust.schedules import Schedule
from lit_robust.training.distributed import Distributed
from lit_robust.training.rebuild_method import load_method


class Loadable(Distributed):
    """Replaces Lightning's ``load_from_checkpoint``, which instantiates whatever the file names."""

    #: Base classes of the parts that a checkpoint may name for the arguments, see ``rebuild_method``.
    checkpoint_parts: tuple[type, ...] = (Attack, Difficulty, Schedule)

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]  # Lightning's takes others
        cls,
        checkpoint_path: str | Path,
        map_location: Any = None,
        hparams_file: None = None,
        strict: bool | None = None,
        weights_only: bool | None = None,
        **kwargs: Any,
    ) -> Self:
        """Build the method that a run of the command line has saved, with its weights, from data and never from code.

        Nets of ``lit_robust.nets``, parts of ``lit_robust`` and ``torch.optim`` are built; all else is an argument.

        Args:
            checkpoint_path: A .ckpt file.
            map_location: The device of the result, by default the CPU.
            hparams_file: Must be None: a checkpoint holds its arguments.
            strict: Whether all weights must fit, as they must by default.
            weights_only: Must not be False: tensors and plain values are all that is ever read.
            **kwargs: Arguments that replace the file's, such as a net of your own.

        Raises:
            ValueError: If the file cannot be used, or an argument must be given.
        """
        check_reading(hparams_file, weights_only)
        module: Self = load_method(cls, checkpoint_path, kwargs, strict=strict is not False)
        return module.to(map_location or "cpu")
