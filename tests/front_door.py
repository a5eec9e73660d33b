"""The command line as users call it, on a net and a data set that train in half a second."""

from pathlib import Path
from typing import Any

import pytest

from lit_robust.cli import main

CONFIGS = Path(__file__).parent.parent / "configs"

#: 64 training images of scikit-learn's digits, two batches per epoch, one epoch, runs/tiny.
TINY = """
seed_everything: 0
trainer:
  accelerator: cpu
  devices: 1
  max_epochs: 1
  log_every_n_steps: 1
  enable_progress_bar: false
  enable_model_summary: false
  logger: {class_path: CSVLogger, init_args: {save_dir: runs, name: tiny}}
  callbacks:
    - class_path: ModelCheckpoint
      init_args:
        filename: best
        monitor: val/acc/robust
        mode: max
        save_on_train_epoch_end: true
        enable_version_counter: false
    - class_path: ModelCheckpoint
      init_args: {filename: last, save_on_train_epoch_end: true, enable_version_counter: false}
data:
  class_path: DigitsDataModule
  init_args: {batch_size: 32, val_size: 20, train_size: 64, test_size: 32}
model:
  class_path: PGDAT
  init_args:
    net: {class_path: lit_robust.nets.digits_cnn, init_args: {width: 4}}
    attack: {class_path: PGD, init_args: {eps: 38/255, step_size: 0.1, steps: 2}}
    optimizer: {class_path: torch.optim.SGD, init_args: {lr: 0.05}}
    test_attacks:
      pgd2: {class_path: PGD, init_args: {eps: 38/255, step_size: 0.1, steps: 2}}
"""


def tiny(folder: Path) -> str:
    """Write the configuration into a folder and return its path."""
    path = folder / "tiny.yaml"
    path.write_text(TINY)
    return str(path)


def lit(command: str, *args: Any) -> None:
    """Run a command on the tiny configuration, which it writes into the working directory."""
    main([command, "-c", tiny(Path()), *map(str, args)])


def refusal(capsys: pytest.CaptureFixture[str], *args: Any) -> str:
    """The sentence with which a command line is refused; only one line with a hint follows it."""
    with pytest.raises(SystemExit) as stop:
        main([*map(str, args)])
    assert stop.value.code in (1, 2)
    error, hint = capsys.readouterr().err.split("lit-robust: error: ")[1].splitlines()
    assert hint.startswith("(")
    assert hint.endswith(")")
    return error


def compose(*fragments: str) -> list[str]:
    """The flags of a configuration of fragments, without noise on the terminal."""
    names = ["base", *fragments, "trainer/cpu"]
    quiet = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
    return [word for name in names for word in ("-c", str(CONFIGS / f"{name}.yaml"))] + quiet


def rows(printed: str) -> dict[str, list[str]]:
    """The rows of a test's table by name, in words."""
    lines = [line.split() for line in printed.splitlines()]
    return {words[0]: words[1:] for words in lines if len(words) > 3 and words[1][0].isdigit()}
