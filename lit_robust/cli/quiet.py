"""Warnings of other packages that we suppress, and why."""

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

#: Warnings that are wrong here, or that no user can act on.
WARNINGS = (
    # A resumed run uses its own folder on purpose.
    r"Experiment logs directory .* exists and is not empty",
    r"Checkpoint directory .* exists and is not empty",
    # `fit --ckpt_path last` resumes from the state after the optimizer's step.
    r"Using ModelCheckpoint with manual optimization and every_n_train_steps",
    # Small sets are on the device, big ones have workers inside their own loader.
    r"The '.*_dataloader' does not have many workers",
    # val_size: 0 asks for no validation.
    r"Total length of `list` across ranks is zero",
    # We log at the last batch of an epoch, however few batches there are.
    r"The number of training batches .* is smaller than the logging interval",
    # Lightning 2.6 uses what newer versions of torch deprecate.
    r".*LeafSpec.*is deprecated",
)

#: The same, for commands that do not train.
WARNINGS_OF_EVALUATION = (
    # Our batches carry their indices.
    r"Couldn't infer the batch indices fetched from your dataloader",
    # Callbacks' states matter only when a training is resumed.
    r"Be aware that when using `ckpt_path`, callbacks used to create the checkpoint",
    r"The dirpath has changed from",
)


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress these warnings while the command runs; importing this module changes no filters."""
    talker = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    talker.addFilter(_is_no_advertisement)
    try:
        with warnings.catch_warnings():
            ignore(*WARNINGS)
            yield
    finally:
        talker.removeFilter(_is_no_advertisement)


def ignore(*messages: str) -> None:
    """Ignore the warnings that begin with these patterns."""
    for message in messages:
        warnings.filterwarnings("ignore", message)


def _is_no_advertisement(record: logging.LogRecord) -> bool:
    return not re.search(r"Tip: For seamless cloud|TPU available: False", record.getMessage())
