"""What other packages say on the terminal that is wrong here, or that no user can act on."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

#: Warnings that are wrong here, or that no user can act on.
NOISE = (
    # A resumed run goes on in its own folder on purpose.
    r"Experiment logs directory .* exists and is not empty",
    r"Checkpoint directory .* exists and is not empty",
    # The state after the optimizer's step is what `fit --ckpt_path last` goes on from.
    r"Using ModelCheckpoint with manual optimization and every_n_train_steps",
    # Small sets lie on the device, big ones have workers inside their own loader.
    r"The '.*_dataloader' does not have many workers",
    # val_size: 0 asks for no validation.
    r"Total length of `list` across ranks is zero",
    # The last batch of an epoch is reported, however few there are.
    r"The number of training batches .* is smaller than the logging interval",
    # Lightning 2.6 calls what newer versions of torch deprecate.
    r".*LeafSpec.*is deprecated",
)

#: The same where nothing is trained.
NOISE_OF_EVALUATION = (
    # Our batches carry their indices.
    r"Couldn't infer the batch indices fetched from your dataloader",
    # Callbacks' states matter to a training that goes on, and to nothing else.
    r"Be aware that when using `ckpt_path`, callbacks used to create the checkpoint",
    r"The dirpath has changed from",
)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep noise from the terminal while the command runs; importing this module changes no one's filters."""
    talker = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    talker.addFilter(_is_no_advertisement)
    try:
        with warnings.catch_warnings():
            ignore(*NOISE)
            yield
    finally:
        talker.removeFilter(_is_no_advertisement)


def ignore(*messages: str) -> None:
    """Ignore the warnings that begin with these patterns."""
    for message in messages:
        warnings.filterwarnings("ignore", message)


def _is_no_advertisement(record: logging.LogRecord) -> bool:
    return "Tip: For seamless cloud" not in record.getMessage()
