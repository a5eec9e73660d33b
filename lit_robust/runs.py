"""A run on disk: its folder, its checkpoints, and the plain net in one."""

from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from jsonargparse import ArgumentError, ArgumentParser
from torch import nn

from lit_robust import nets
from lit_robust.lightning_internals import go_on_in_folder


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a Lightning checkpoint onto the CPU; only tensors and plain values are ever unpickled.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is truncated, is not a checkpoint, or holds code.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}: give the path of a .ckpt file.")
    with path.open("rb") as file:
        if file.read(1) not in (b"P", b"\x80"):  # neither a zip archive nor a pickle
            raise ValueError(f"{path} is no checkpoint: give a .ckpt file that a training has written.")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise ValueError(
            f"{path} holds more than tensors and plain values, so it was not loaded: such a file can run any code "
            "when it is opened; write it again with lit_robust, or save the net's state_dict alone."
        ) from error
    except (RuntimeError, EOFError, OSError) as error:
        raise ValueError(f"{path} is truncated or is no checkpoint ({error}): use an earlier one.") from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise ValueError(f"{path} is no checkpoint of a Lightning run: it has no state_dict.")
    return checkpoint


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
    weights = {
        key.removeprefix("net."): value for key, value in checkpoint["state_dict"].items() if key.startswith("net.")
    }
    net = _build(checkpoint, path) if net is None else net
    try:
        net.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} holds the weights of another net than {type(net).__name__}: {reason}") from error
    return net.eval().requires_grad_(False)


def _build(checkpoint: dict[str, Any], path: str | Path) -> nn.Module:
    recipe = checkpoint.get("lit_robust", {}).get("net") or checkpoint.get("hyper_parameters", {}).get("net")
    if recipe is None:
        raise ValueError(f"{path} does not say how its net was built: pass the net, load_net(path, net=...).")
    room, _, name = str(recipe.get("class_path") if isinstance(recipe, dict) else recipe).rpartition(".")
    if room != nets.__name__ or name not in nets.__all__:
        raise ValueError(
            f"{path} names the net {room}.{name}, which is none of {nets.__name__}: pass the net, "
            "load_net(path, net=...)."
        )
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(nn.Module, "net")
    try:
        built = parser.instantiate(parser.parse_object({"net": recipe}))
    except (ArgumentError, ValueError) as error:
        raise ValueError(f"{path} names a net that cannot be built: {recipe} ({error}).") from error
    rebuilt: nn.Module = built.net
    return rebuilt


def checkpoints_of(folder: Path) -> dict[str, Path]:
    """Find the ``last`` and ``best`` checkpoints of the newest run below a folder, in this order."""
    names = ("last", "best")
    named = (path for path in folder.rglob("*.ckpt") if path.stem in names)
    newest = max(named, key=lambda path: path.stat().st_mtime, default=None)
    found = {name: newest.parent / f"{name}.ckpt" for name in names} if newest else {}
    return {name: path for name, path in found.items() if path.exists()}


def find_checkpoints(ckpt_path: str, trainer: Any) -> dict[str, Path]:
    """Find the checkpoints that ``--ckpt_path`` refers to, by name, without reading them.

    Args:
        ckpt_path: A file, a folder of runs, or ``best`` or ``last`` for the trainer's newest run.
        trainer: Its logger says where runs are.

    Raises:
        FileNotFoundError: If there is none.
    """
    if ckpt_path in ("best", "last"):
        logger = trainer.logger
        folder = Path(logger.save_dir or ".") / str(logger.name) if logger else Path(trainer.default_root_dir)
        found = {name: path for name, path in checkpoints_of(folder).items() if name == ckpt_path}
    elif Path(ckpt_path).is_dir():
        folder, found = Path(ckpt_path), checkpoints_of(Path(ckpt_path))
    else:
        folder, found = Path(ckpt_path).parent, {Path(ckpt_path).stem: Path(ckpt_path)}
    if not found:
        raise FileNotFoundError(
            f"--ckpt_path {ckpt_path}: there is no such checkpoint in {folder}; train first, or give a .ckpt file."
        )
    return found


def last_of(found: dict[str, Path]) -> Path:
    """Choose the last checkpoint of a run, or the only one if a file was named."""
    return found.get("last") or next(iter(found.values()))


def run_folder(trainer: Any) -> Path:
    """The folder of the logger, or of a Weights & Biases run, which holds its checkpoints; call it on all ranks."""
    from lightning.pytorch.loggers import WandbLogger  # imported only where there is a trainer

    if isinstance(trainer.logger, WandbLogger):
        _ = trainer.logger.experiment  # starts the run, which gives it an id
        return Path(trainer.logger.save_dir or ".", str(trainer.logger.name), str(trainer.logger.version))
    return Path(trainer.log_dir or trainer.default_root_dir)


def go_on_in(run: Path, trainer: Any) -> None:
    """Log a resumed run into its own folder, and keep its earlier metrics, which CSVLogger would delete.

    Args:
        run: The folder of the run.
        trainer: Its loggers would start a new folder; loggers with another root still do.

    Raises:
        ValueError: If Weights & Biases is not told which run to resume.
    """
    from lightning.pytorch.loggers import CSVLogger, WandbLogger

    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger) and logger.version is None:
            raise ValueError(
                "--ckpt_path resumes a run, and Weights & Biases needs to know which: add "
                f"--trainer.logger.init_args.id {run.name} --trainer.logger.init_args.resume allow."
            )
        if isinstance(logger, CSVLogger) and Path(logger.root_dir).resolve() == run.parent.resolve():
            metrics = run / "metrics.csv"
            if metrics.exists() and trainer.is_global_zero:
                metrics.rename(run / f"metrics_{len(list(run.glob('metrics_*.csv')))}.csv")
            go_on_in_folder(logger, run.name)
