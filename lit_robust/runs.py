"""A run on disk: its folder, its checkpoints, and the plain net in one."""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from shutil import rmtree
from typing import Any

from torch import Tensor, nn

from lit_robust.checkpoint_files import read_checkpoint
from lit_robust.folder_locks import unlock
from lit_robust.lightning_internals import go_on_in_folder
from lit_robust.metrics_files import begin_with, rows_before
from lit_robust.nets.rebuild import check_fit, rebuild
from lit_robust.weight_files import read_weights

#: Files that a run's folder has before anything is trained or measured.
BEFORE_TRAINING = re.compile(r"config(_\w+)?\.yaml|hparams\.yaml|\.training|events\.out\.tfevents\..*")

#: The tables of an evaluation; the first one is what it logs.
TABLES = {
    "validate": ["validate_metrics"],
    "test": ["test_metrics", "test"],
    "predict": ["predict_metrics", "predictions"],
}


def load_net(path: str | Path, net: nn.Module | None = None) -> nn.Module:
    """Load the trained net of a checkpoint as a plain module in eval mode, on the CPU.

    A net of ``lit_robust.nets`` is rebuilt from the checkpoint, whether the run came from the command line or from
    Python. Any other net must be given, because building whatever a file names would import, and so run, code of the
    file's choice. A run with ``EMAWeights`` saves the averaged weights, so these are loaded.

    Args:
        path: A .ckpt file.
        net: The net to load the weights into; needed if it is not one of ``lit_robust.nets``.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file cannot be used or does not say how its net was built, or its weights do not fit
            ``net``.
    """
    checkpoint = read_checkpoint(path)
    weights = weights_of_net(checkpoint)
    try:
        if net is None:
            net = rebuild_net(checkpoint)
        own = net.state_dict()
        check_fit(own, weights)
        own.update(weights)
        net.load_state_dict(own)  # with the versions of its layers, without which torchvision's MNASNet loads nothing
    except (ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise ValueError(f"{path}: {reason}: pass the net that was trained, load_net(path, net=...).") from error
    return net.eval().requires_grad_(False)


def load_weights(net: nn.Module, path: str | Path) -> nn.Module:
    """Load weights from elsewhere, a plain ``state_dict``, into a net; names and shapes are compared before.

    Args:
        net: Keeps its mode.
        path: A file of torch or safetensors, which may hold more than the weights, see ``read_weights``.

    Returns:
        The net.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file cannot be used, or its weights do not fit ``net``: what is missing, unknown or of
            another shape.
    """
    net.load_state_dict(read_weights(path, net.state_dict()))
    return net


def weights_of_net(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights of the module's ``net``, by the net's own names."""
    state = checkpoint["state_dict"]
    return {key.removeprefix("net."): value for key, value in state.items() if str(key).startswith("net.")}


def rebuild_net(checkpoint: Mapping[str, Any]) -> nn.Module:
    """Build the net that a checkpoint names, if it is one of ``lit_robust.nets``; its weights are not loaded yet.

    Raises:
        ValueError: If the checkpoint names none, or another.
    """
    recipe = checkpoint.get("lit_robust", {}).get("net") or checkpoint.get("hyper_parameters", {}).get("net")
    if recipe is None:
        raise ValueError("it does not say how its net was built")
    return rebuild(recipe, weights_of_net(checkpoint))


def checkpoints_of(folder: Path) -> dict[str, Path]:
    """Find the ``last`` and ``best`` checkpoints of the newest run below a folder, in this order."""
    names = ("last", "best")
    named = (path for path in _files_below(folder) if path.suffix == ".ckpt" and path.stem in names)
    newest = max(named, key=lambda path: path.stat().st_mtime, default=None)
    found = {name: newest.parent / f"{name}.ckpt" for name in names} if newest else {}
    return {name: path for name, path in found.items() if path.exists()}


def _files_below(folder: Path) -> Iterator[Path]:
    """All files, also through symbolic links, each folder once."""
    seen: set[Path] = set()
    for root, folders, files in os.walk(folder, followlinks=True):
        places = {name: Path(root, name).resolve() for name in folders}
        folders[:] = [name for name, place in places.items() if place not in seen]
        seen.update(places.values())
        yield from (Path(root, name) for name in files)


def find_checkpoints(ckpt_path: str, trainer: Any) -> dict[str, Path]:
    """Find the checkpoints that ``--ckpt_path`` refers to, by name, without reading them.

    Args:
        ckpt_path: A file, a folder of runs, or ``best`` or ``last`` for the trainer's newest run.
        trainer: Its logger says where runs are.

    Raises:
        FileNotFoundError: If there is none.
    """
    named = Path(ckpt_path).expanduser()
    if ckpt_path in ("best", "last"):
        logger = trainer.logger
        folder = Path(logger.save_dir or ".") / str(logger.name) if logger else Path(trainer.default_root_dir)
        folder = folder.expanduser()
        found = {name: path for name, path in checkpoints_of(folder).items() if name == ckpt_path}
    elif named.is_dir():
        folder, found = named, checkpoints_of(named)
    else:
        folder, found = named.parent, {named.stem: named}
    if not found:
        raise FileNotFoundError(
            f"--ckpt_path {ckpt_path}: there is no such checkpoint in {folder}; train first, or give a .ckpt file."
        )
    return found


def read_last(found: Mapping[str, Path]) -> tuple[Path, dict[str, Any]]:
    """Read the last checkpoint of a run or, if it is broken, the newest intact one in its folder.

    Args:
        found: Checkpoints by name; a file that was named is the only one.

    Raises:
        ValueError: If none is whole: what is wrong with the first.
    """
    first = found.get("last") or next(iter(found.values()))
    try:
        return first, read_checkpoint(first)
    except ValueError as error:
        others = [path for path in first.parent.glob("*.ckpt") if path != first] if "last" in found else []
        for path in sorted(others, key=lambda path: path.stat().st_mtime, reverse=True):
            with suppress(ValueError):
                checkpoint = read_checkpoint(path)
                from lightning.pytorch.utilities import rank_zero_warn

                rank_zero_warn(f"{error} This goes on from {path}, the newest whole one.")
                return path, checkpoint
        raise


def run_folder(trainer: Any) -> Path:
    """The folder of the logger, or of a Weights & Biases run, which holds its checkpoints; call it on all ranks."""
    from lightning.pytorch.loggers import WandbLogger  # imported only where there is a trainer

    if isinstance(trainer.logger, WandbLogger):
        _ = trainer.logger.experiment  # starts the run, which gives it an id
        return Path(trainer.logger.save_dir or ".", str(trainer.logger.name), str(trainer.logger.version))
    return Path(trainer.log_dir or trainer.default_root_dir)


def evaluate_in(run: Path, trainer: Any, stage: str) -> None:
    """Let a run's tests and predictions lie in its own folder, beside its metrics; earlier ones are numbered.

    Args:
        run: The folder that a checkpoint lies in, which need not be a run's.
        trainer: Its CSVLoggers would start a new folder; those with another root still do.
        stage: ``validate``, ``test`` or ``predict``.
    """
    from lightning.pytorch.loggers import csv_logs

    own = [logger for logger in trainer.loggers if isinstance(logger, csv_logs.CSVLogger)]
    for logger in own if (run / "checkpoints").is_dir() else []:
        if Path(logger.root_dir).resolve() == run.parent.resolve():
            for path in [run / f"config_{stage}.yaml", *(run / f"{name}.csv" for name in TABLES[stage])]:
                if path.exists() and trainer.is_global_zero:
                    path.rename(next_free(run, path.stem, path.suffix))
            go_on_in_folder(logger, run.name)
            before = csv_logs.ExperimentWriter.NAME_METRICS_FILE
            try:  # a writer deletes the file of its name, which is the training's
                csv_logs.ExperimentWriter.NAME_METRICS_FILE = f"{TABLES[stage][0]}.csv"
                _ = logger.experiment
            finally:
                csv_logs.ExperimentWriter.NAME_METRICS_FILE = before


def named_files(trainer: Any) -> str:
    """A sentence that names the run's folder and the pictures that its callbacks have drawn; call it on all ranks."""
    pictures = [str(path) for callback in trainer.callbacks for path in getattr(callback, "pictures", [])]
    drawn = f", and its pictures {', '.join(pictures)}" if pictures else ""
    return f"The run is in {run_folder(trainer)}{drawn}."


@contextmanager
def no_bare_folder(trainer: Any) -> Iterator[None]:
    """Remove the folders that loggers have made for a run, if it ends by an error before there is anything in them."""
    folders = [Path(logger.log_dir) for logger in trainer.loggers if getattr(logger, "log_dir", None)]
    new = [folder for folder in folders if not folder.exists()] if trainer.is_global_zero else []
    try:
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


def next_free(folder: Path, stem: str, suffix: str, start: int = 0) -> Path:
    """The first of ``stem_0``, ``stem_1``, ... that is not there, after all that are."""
    found = (re.fullmatch(rf"{stem}_(\d+)", path.stem) for path in folder.glob(f"{stem}_*{suffix}"))
    number = max([start - 1, *(int(match[1]) for match in found if match)]) + 1
    return folder / f"{stem}_{number}{suffix}"


def newest_config(run: Path) -> Path | None:
    """The configuration that a run was started or last resumed with; None if it was not started by a command."""
    resumed = sorted(run.glob("config_resumed_*.yaml"), key=lambda path: path.stat().st_mtime)
    found = [path for path in (run / "config.yaml", *resumed) if path.exists()]
    return found[-1] if found else None


def go_on_in(run: Path, trainer: Any, checkpoint: Mapping[str, Any]) -> None:
    """Log a resumed run into its own folder, and begin with its metrics up to the checkpoint.

    The earlier file, which may go on beyond the checkpoint, is kept as ``metrics_0.csv``; CSVLogger would delete it.

    Args:
        run: The folder of the run.
        trainer: Its loggers would start a new folder; loggers with another root still do.
        checkpoint: Holds how many rows each logger had written.

    Raises:
        ValueError: If Weights & Biases is not told which run to resume.
    """
    from lightning.pytorch.loggers import CSVLogger, WandbLogger

    numbers = checkpoint.get("lit_robust", {}).get("rows", [])
    for place, logger in enumerate(trainer.loggers):
        if isinstance(logger, WandbLogger) and logger.version is None:
            raise ValueError(
                "--ckpt_path resumes a run, and Weights & Biases needs to know which: add "
                f"--trainer.logger.init_args.id {run.name} --trainer.logger.init_args.resume allow."
            )
        if isinstance(logger, CSVLogger) and Path(logger.root_dir).resolve() == run.parent.resolve():
            metrics = run / "metrics.csv"
            number = numbers[place] if place < len(numbers) else 0
            rows = rows_before(run, number) if trainer.is_global_zero else []
            if metrics.exists() and trainer.is_global_zero:
                metrics.rename(next_free(run, "metrics", ".csv"))
            go_on_in_folder(logger, run.name)
            if rows:
                begin_with(logger.experiment, rows)
