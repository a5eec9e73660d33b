"""Where a command writes: resumed runs and evaluations into the run's own folder, failed starts nowhere."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from shutil import rmtree
from typing import Any

from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger

from lit_robust.cli.run_files import FILE_LOGGERS, SaveConfig
from lit_robust.folder_locks import lock, unlock
from lit_robust.lightning_cli_internals import begin_metrics_file, go_on_in_folder
from lit_robust.metrics_files import begin_with, rows_before
from lit_robust.runs import checkpoints_of, next_free, run_folder
from lit_robust.training.signals import stopped_before_the_first_step
from lit_robust.whole_files import path_of

#: Files that a run's folder has before anything is trained or measured.
BEFORE_TRAINING = re.compile(r"config(_\w+)?\.yaml|hparams\.yaml|\.training|events\.out\.tfevents\..*")

#: The tables of an evaluation; the first one is what it logs.
TABLES = {
    "validate": ["validate_metrics"],
    "test": ["test_metrics", "test"],
    "predict": ["predict_metrics", "predictions"],
}


def find_checkpoints(ckpt_path: str, trainer: Any) -> dict[str, Path]:
    """Find the checkpoints that ``--ckpt_path`` refers to, by name, without reading them.

    Args:
        ckpt_path: A file, a folder of runs, or ``best`` or ``last`` for the trainer's newest run.
        trainer: Its logger says where runs are.

    Raises:
        FileNotFoundError: If there is none.
    """
    named = path_of("--ckpt_path", ckpt_path, "a checkpoint")
    if ckpt_path in ("best", "last"):
        logger = trainer.logger
        folder = Path(logger.save_dir or ".") / str(logger.name) if logger else Path(trainer.default_root_dir)
        folder = folder.expanduser()
        found = {name: path for name, path in checkpoints_of(folder).items() if name == ckpt_path}
    elif named.is_dir() and named.suffix == ".ckpt":
        raise IsADirectoryError(
            f"--ckpt_path {ckpt_path} is a folder and no checkpoint: give a .ckpt file, or the folder of the run."
        )
    elif named.is_dir():
        folder, found = named, checkpoints_of(named)
    else:
        folder, found = named.parent, {named.stem: named}
    if not found:
        raise FileNotFoundError(
            f"--ckpt_path {ckpt_path}: there is no such checkpoint in {folder}; train first, or give a .ckpt file."
        )
    return found


def named_files(trainer: Any) -> str:
    """A sentence that names the run's folder and the pictures that its callbacks have drawn; call it on all ranks."""
    pictures = [str(path) for callback in trainer.callbacks for path in getattr(callback, "pictures", [])]
    drawn = f", and its pictures {', '.join(pictures)}" if pictures else ""
    return f"The run is in {run_folder(trainer)}{drawn}."


@dataclass
class EarlierRun:
    """The folder of a run that a command goes on in or evaluates, and what it has moved aside there."""

    folder: Path
    #: The step from which a training goes on.
    step: int = 0
    #: What an evaluation writes of its results.
    tables: Sequence[Path] = ()
    moved: list[tuple[Path, Path]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._of_tensorboard = self._tensorboards()

    def _tensorboards(self) -> set[Path]:
        return {*self.folder.glob("events.out.tfevents.*"), *self.folder.glob("hparams.yaml")}

    def move_aside(self, path: Path) -> None:
        """Give an existing file the next free number."""
        if path.exists():
            self.moved.append((path, path.rename(next_free(self.folder, path.stem, path.suffix))))

    def put_back(self, trainer: Any) -> None:
        """Undo what was moved, unless an evaluation has results, and remove the configuration and TensorBoard's files.

        Args:
            trainer: Its callbacks and loggers have written them.
        """
        if any(table.exists() for table in self.tables):
            return
        written = {callback.written for callback in trainer.callbacks if isinstance(callback, SaveConfig)}
        if any(isinstance(logger, TensorBoardLogger) for logger in trainer.loggers):
            written |= self._tensorboards() - self._of_tensorboard
        for path in filter(None, written):
            path.unlink(missing_ok=True)
        for path, aside in self.moved:
            aside.replace(path)
        self.moved.clear()


def evaluate_in(folder: Path, trainer: Any, stage: str) -> EarlierRun:
    """Write a run's tests and predictions into its own folder, beside its metrics; earlier ones are numbered.

    Args:
        folder: The folder that a checkpoint lies in, which need not be a run's.
        trainer: Its loggers would start a new folder.
        stage: ``validate``, ``test`` or ``predict``.
    """
    run = EarlierRun(folder, tables=[folder / f"{name}.csv" for name in TABLES[stage]])
    own = [logger for logger in trainer.loggers if isinstance(logger, FILE_LOGGERS)]
    for logger in own if (folder / "checkpoints").is_dir() else []:
        for path in [folder / f"config_{stage}.yaml", *run.tables] if trainer.is_global_zero else []:
            run.move_aside(path)
        place = folder.resolve()
        at_home = Path(logger.root_dir).resolve() == place.parent
        go_on_in_folder(logger, place.name, root=None if at_home else place.parent)
        if isinstance(logger, CSVLogger):
            begin_metrics_file(logger, f"{TABLES[stage][0]}.csv")
    return run


def go_on_in(run: EarlierRun, trainer: Any, checkpoint: Mapping[str, Any]) -> None:
    """Log a resumed run into its own folder, and begin with its metrics up to the checkpoint.

    The earlier file, which may go on beyond the checkpoint, is kept as ``metrics_0.csv``; CSVLogger would delete it.
    TensorBoard keeps all files, and shows what lies beyond the checkpoint once.

    Args:
        run: The run.
        trainer: Its loggers would start a new folder; loggers with another root still do.
        checkpoint: Holds how many rows each logger had written.

    Raises:
        ValueError: If another process trains there, or Weights & Biases does not get the id of the run to resume.
    """
    if trainer.is_global_zero:
        lock(run.folder)  # before its metrics are moved aside
    folder = run.folder.resolve()  # through a link
    numbers = checkpoint.get("lit_robust", {}).get("rows", [])
    for place, logger in enumerate(trainer.loggers):
        if isinstance(logger, WandbLogger) and logger.version is None:
            raise ValueError(
                "--ckpt_path resumes a run, and Weights & Biases needs to know which: add "
                f"--trainer.logger.init_args.id {folder.name} --trainer.logger.init_args.resume allow."
            )
        if not isinstance(logger, FILE_LOGGERS) or Path(logger.root_dir).resolve() != folder.parent.resolve():
            continue
        if isinstance(logger, TensorBoardLogger):
            go_on_in_folder(logger, folder.name, checkpoint.get("global_step", 0))
        else:
            number = numbers[place] if place < len(numbers) else 0
            rows = rows_before(folder, number) if trainer.is_global_zero else []
            if trainer.is_global_zero:
                run.move_aside(folder / "metrics.csv")
            go_on_in_folder(logger, folder.name)
            if rows:
                begin_with(logger.experiment, rows)


@contextmanager
def nothing_left(trainer: Any, run: EarlierRun | None = None) -> Iterator[None]:
    """Remove the folders of a run that fails before it has results.

    The folders that loggers have made for it are removed; an earlier run's folder is left as it was before. SIGTERM
    counts as an error from the beginning. The command alone does this: when a start fails in Python, Lightning calls no
    hook of the module, and the user's logger, which has its folder already, may log the next attempt.

    Args:
        trainer: Runs in the body.
        run: The run that it goes on with or evaluates, if any.
    """
    folders = [Path(logger.log_dir) for logger in trainer.loggers if getattr(logger, "log_dir", None)]
    new = [folder for folder in folders if not folder.exists()] if trainer.is_global_zero else []
    try:
        with stopped_before_the_first_step(trainer):
            yield
    except BaseException:
        for folder in (*folders, *([run.folder] if run else [])):
            unlock(folder)
        begun = trainer.global_step > (run.step if run else 0)
        if run and not begun and trainer.is_global_zero:
            run.put_back(trainer)
        for folder in new if not begun else []:
            _remove_bare(folder)
        raise


def _remove_bare(folder: Path) -> None:
    files = [path.name for path in folder.rglob("*") if not path.is_dir()]
    if not any(BEFORE_TRAINING.match(name) is None for name in files):
        rmtree(folder, ignore_errors=True)
        with suppress(OSError):  # it holds other runs
            folder.parent.rmdir()
