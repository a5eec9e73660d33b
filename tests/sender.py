"""A callback that sends a signal to its own process, for tests/test_signals.py.

`python -m tests.sender RUNS.json CODES.json` runs commands one after another, and writes their exit codes.
"""

import json
import os
import signal
import sys
from pathlib import Path

from lightning.pytorch import Callback


class Send(Callback):
    """Sends a signal in a hook, once.

    Args:
        hook: The hook's name.
        epoch: The epoch to send it in.
        batch_idx: The batch to send it in, if the hook has one.
        name: The signal's name.
        rank: The rank that sends it to itself.
    """

    def __init__(self, hook: str, epoch: int = 1, batch_idx: int = 0, name: str = "SIGTERM", rank: int = 0) -> None:
        self.hook, self.epoch, self.batch_idx, self.name, self.rank = hook, epoch, batch_idx, name, rank
        setattr(self, hook, self._send)

    def _send(self, trainer, pl_module, *args, **kwargs):
        late = trainer.current_epoch == self.epoch and not (self.epoch and trainer.sanity_checking)
        here = "batch" not in self.hook or self.batch_idx in args[-2:]
        if late and here and trainer.global_rank == self.rank:
            os.kill(os.getpid(), signal.Signals[self.name])


def exit_code(args: list[str]) -> int:
    """What the command line ends with."""
    from lit_robust.cli import main

    try:
        main(args)
    except SystemExit as stop:
        return stop.code
    return 0


if __name__ == "__main__":
    runs, codes = map(Path, sys.argv[1:])
    codes.write_text(json.dumps([exit_code(args) for args in json.loads(runs.read_text())]))
