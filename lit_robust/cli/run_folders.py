"""Where a command writes: resumed runs and evaluations into the run's own folder, failed starts nowhere."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from shutil import rmtree
from typing import Any

from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger, csv_logs

from lit_robust.cli.run_files import FILE_LOGGERS
from lit_robust.folder_locks import unlock
from lit_robust.lightning_internals import go_on_in_folder
from lit_robust.metrics_files import begin_with, rows_before
from lit_robust.runs import next_free, run_folder
from lit_robust.training.signals import stopped_before_the_first_step

#: Files that a run's folder has before anything is trained or measured.
BEFORE_TRAINING = re.compile(r"config(_\w+)?\.yaml|hparams\.yaml|\.training|events\.out\.tfevents\..*")

#: The tables of an evaluation; the first one is what it logs.
TABLES = {
    "validate": ["validate_metrics"],
    "test": ["test_metrics", "test"],
    "predict": ["predict_metrics", "predictions"],
}


def named_files(trainer: Any) -> str:
    """A sentence that names the run's folder and the pictures that its callbacks have drawn; call it on all ranks."""
    pictures = [str(path) for callback in trainer.callbacks for path in getattr(callback, "pictures", [])]
    drawn = f", and its pictures {', '.join(pictures)}" if pictures else ""
    return f"The run is in {run_folder(trainer)}{drawn}."


def evaluate_in(run: Path, trainer: Any, stage: str) -> None:
    """Write a run's tests and predictions into its own folder, beside its metrics; earlier ones are numbered.

    Args:
        run: The folder that a checkpoint lies in, which need not be a run's.
        trainer: Its CSVLoggers would start a new folder.
        stage: ``validate``, ``test`` or ``predict``.
    """
    own = [logger for logger in trainer.loggers if isinstance(logger, CSVLogger)]
    for logger in own if (run / "checkpoints").is_dir() else []:
        for path in [run / f"config_{stage}.yaml", *(run / f"{name}.csv" for name in TABLES[stage])]:
            if path.exists() and trainer.is_global_zero:
                path.rename(next_free(run, path.stem, path.suffix))
        place = run.resolve()
        at_home = Path(logger.root_dir).resolve() == place.parent
        go_on_in_folder(logger, place.name, root=None if at_home else place.parent)
        before = csv_logs.ExperimentWriter.NAME_METRICS_FILE
        try:  # a writer deletes the file of its name, which is the training's
            csv_logs.ExperimentWriter.NAME_METRICS_FILE = f"{TABLES[stage][0]}.csv"
            _ = logger.experiment
        finally:
            csv_logs.ExperimentWriter.NAME_METRICS_FILE = before


def go_on_in(run: Path, trainer: Any, checkpoint: Mapping[str, Any]) -> None:
    """Log a resumed run into its own folder, and begin with its metrics up to the checkpoint.

    The earlier file, which may go on beyond the checkpoint, is kept as ``metrics_0.csv``; CSVLogger would delete it.
    TensorBoard keeps all files, and shows what lies beyond the checkpoint once.

    Args:
        run: The folder of the run.
        trainer: Its loggers would start a new folder; loggers with another root still do.
        checkpoint: Holds how many rows each logger had written.

    Raises:
        ValueError: If Weights & Biases is not told which run to resume.
    """
    run = run.resolve()  # through a link
    numbers = checkpoint.get("lit_robust", {}).get("rows", [])
    for place, logger in enumerate(trainer.loggers):
        if isinstance(logger, WandbLogger) and logger.version is None:
            raise ValueError(
                "--ckpt_path resumes a run, and Weights & Biases needs to know which: add "
                f"--trainer.logger.init_args.id {run.name} --trainer.logger.init_args.resume allow."
            )
        if not isinstance(logger, FILE_LOGGERS) or Path(logger.root_dir).resolve() != run.parent.resolve():
            continue
        if isinstance(logger, TensorBoardLogger):
            go_on_in_folder(logger, run.name, checkpoint.get("global_step", 0))
        else:
            metrics = run / "metrics.csv"
            number = numbers[place] if place < len(numbers) else 0
            rows = rows_before(run, number) if trainer.is_global_zero else []
            if metrics.exists() and trainer.is_global_zero:
                metrics.rename(next_free(run, "metrics", ".csv"))
            go_on_in_folder(logger, run.name)
            if rows:
                begin_with(logger.experiment, rows)


@contextmanager
def no_bare_folder(trainer: Any) -> Iterator[None]:
    """Remove the folders that loggers have made for a run, if it ends by an error before there is anything in them.

    SIGTERM counts as an error from the beginning. The command alone does this: when a start fails in Python, Lightning
    calls no hook of the module, and the user's logger, which has its folder already, may log the next attempt.
    """
    folders = [Path(logger.log_dir) for logger in trainer.loggers if getattr(logger, "log_dir", None)]
    new = [folder for folder in folders if not folder.exists()] if trainer.is_global_zero else []
    try:
        with stopped_before_the_first_step(trainer):
            yield
    except BaseException:
        for folder in folders:
            unlock(folder)
        for folder in new if trainer.global_step == 0 else []:
            files = [path.name for path in folder.rglob("*") if not path.is_dir()]
            if not any(BEFORE_TRAINING.match(name) is None for name in files):
                rmtree(folder, ignore_errors=True)
                with suppress(OSError):  # it holds other runs
                    folder.parent.rmdir()
        raise
