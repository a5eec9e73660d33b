"""The nets of an analysis by name, and their common images."""

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lit_robust import require
from lit_robust.attacks import Attack
from lit_robust.attacks.autoattack_findings import Findings, gathering, hand_on
from lit_robust.batch import Batch
from lit_robust.checkpoint_files import read_checkpoint
from lit_robust.data import ImageDataModule
from lit_robust.guards import checked, own_random_state, smaller_batches
from lit_robust.measures.accuracy import Accuracy
from lit_robust.measures.correct import is_correct
from lit_robust.measures.image_blocks import Blocks, digest, fingerprint
from lit_robust.nets.folded import FoldedNet
from lit_robust.runs import checkpoints_of, load_any, run_of
from lit_robust.seeds import seed


@dataclass(frozen=True)
class Subject:
    """A trained net: its name in tables and legends, its file, the net in eval mode, and ``identity`` of it."""

    name: str
    path: Path
    net: nn.Module
    key: str


@dataclass(frozen=True)
class Images:
    """Test images in batches on the device, and their digest."""

    batches: list[Batch]
    key: str

    @property
    def n(self) -> int:
        """The number of images."""
        return sum(len(batch.y) for batch in self.batches)


def device_of(name: str) -> torch.device:
    """The device of a name; ``auto`` takes a GPU if there is one.

    Raises:
        ValueError: If there is no such device.
    """
    has_gpu = torch.cuda.is_available()
    if name == "auto":
        return torch.device("cuda" if has_gpu else "cpu")
    try:
        device = torch.device(name)
        if not torch.empty(0, device=device).is_meta:  # whose tensors have no values
            return device
        reason = None
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA raises an AssertionError
        reason = error
    usable = "auto, cpu or cuda" if has_gpu else "auto or cpu"
    raise ValueError(f'device="{name}" cannot be used here: choose {usable}.') from reason


def load_subjects(checkpoints: Sequence[str], device: torch.device, net: nn.Module | None = None) -> list[Subject]:
    """Load nets.

    Args:
        checkpoints: .ckpt files, folders of runs, whose ``last`` is taken, or files of weights; ``name=path`` gives a
            net its name.
        device: Where to put the nets.
        net: The net of files that do not name one of ``lit_robust.nets``, see ``runs.load_any``.

    Raises:
        FileNotFoundError: If a path has no checkpoint.
        ValueError: If there is none, two have one name, or a file cannot be used.
    """
    if isinstance(checkpoints, str) or not checkpoints:
        raise ValueError(
            f"checkpoints={checkpoints!r} must be a list of .ckpt files or folders of runs: give at least one."
        )
    paths = [(name, _file(path)) for name, path in map(named, checkpoints)]
    shown = dict(zip([name or _short(path) for name, path in paths], [path for _, path in paths], strict=False))
    if len(shown) < len(paths):  # short names clash
        shown = {name or str(path): path for name, path in paths}
    if len(shown) < len(paths):
        raise ValueError(f"checkpoints={list(checkpoints)} names a net twice: write name=path with different names.")
    subjects = []
    for name, path in shown.items():
        loaded = load_any(path, net).to(device)
        subjects.append(Subject(name, path, loaded, fingerprint(loaded)))
    return subjects


def checkpoint_of(subject: Subject) -> dict[str, Any]:
    """What a net's checkpoint holds; nothing, if its file has weights of other software."""
    try:
        return read_checkpoint(subject.path)
    except ValueError:  # the file was read before, so it is not broken
        return {}


def named(text: str) -> tuple[str, Path]:
    """The name and the path of ``name=path``, or of a path alone, whose name is empty; ``epoch=0.ckpt`` may be one."""
    name, equals, path = text.partition("=")
    if Path(text).expanduser().exists():
        return "", Path(text).expanduser()
    return (name, Path(path).expanduser()) if equals and "/" not in name else ("", Path(text).expanduser())


def _file(path: Path) -> Path:
    if not path.exists():
        raise FileNotFoundError(f"there is no {path}: give a .ckpt file, a file of weights or the folder of a run.")
    if not path.is_dir():
        return path
    found = checkpoints_of(path)
    if not found:
        raise FileNotFoundError(f"there is no last.ckpt or best.ckpt below {path}: give a .ckpt file.")
    return found.get("last") or found["best"]


def _short(path: Path) -> str:
    """``quickstart/version_0`` of a run's last checkpoint, with ``:best`` for another one; the name of other files."""
    if path.suffix != ".ckpt":
        return path.stem
    folder = run_of(path.absolute()) or path.absolute().parent
    which = "" if path.stem == "last" else f":{path.stem}"
    return f"{folder.parent.name}/{folder.name}{which}"


def read_test_images(data: ImageDataModule, limit: int | None, device: torch.device) -> Images:
    """Read the first ``limit`` test images, or all, once.

    Raises:
        ValueError: If ``limit`` is below 1.
    """
    data.prepare_data()
    data.setup("test")
    return _first(data.test_dataloader(), limit, device)


def read_training_images(data: ImageDataModule, limit: int | None, device: torch.device) -> Images:
    """Read the first ``limit`` training images, not augmented."""
    data.prepare_data()
    data.setup("fit")
    return _first(data.plain_train_dataloader(), limit, device)


def _first(loader: Iterable[Batch], limit: int | None, device: torch.device) -> Images:
    if limit is not None:
        require.integer("limit", limit, least=1)
    batches: list[Batch] = []
    left = limit
    for raw in loader:
        batch = Batch(*(field[:left].to(device) for field in raw))
        batches.append(batch)
        left = None if left is None else left - len(batch.y)
        if left == 0:
            break
    return Images(
        batches,
        digest({f"{i} {name}": field for i, b in enumerate(batches) for name, field in (("x", b.x), ("y", b.y))}),
    )


def adversarial_images(
    net: nn.Module, attack: Attack, images: Images, blocks: Blocks | None = None, judged_by: nn.Module | None = None
) -> list[Tensor]:
    """Attack all batches; the random draws of a batch are the same for every net and attack.

    Args:
        net: The net, in eval mode; attacks see its BatchNorms folded, as in a test.
        attack: The attack.
        images: The clean images.
        blocks: Keeps what a long attack has finished; None for nothing.
        judged_by: ``net``, if only its own classification of the images is read: an attack may then leave an image as
            soon as it is misclassified. Other nets, and losses, need the end of the attack.
    """
    crafted, fold = [], FoldedNet()
    with gathering(Findings()) as findings:
        for number, batch in enumerate(images.batches):
            attacked = fold(net, batch.x)
            leaves = smaller_batches() if judged_by is net else nullcontext()
            with own_random_state(batch.x.device), checked(), leaves:
                seed(batch.x.device, "evaluate", number, 0)
                if getattr(attack, "is_long", False):
                    crafted.append((blocks or Blocks()).images(attack, net, batch, attacked))
                else:
                    crafted.append(attack(attacked, batch.x, batch.y))
    hand_on(findings)
    return crafted


def survivors(net: nn.Module, crafted: Iterable[Tensor], images: Images) -> str:
    """For each image, whether it and its adversarial image are classified correctly, as ``"1101..."``."""
    found = [
        is_correct(net, batch.x, batch.y) & is_correct(net, x_adv, batch.y)
        for x_adv, batch in zip(crafted, images.batches, strict=True)
    ]
    return "".join("01"[survived] for survived in torch.cat(found).tolist())


def cells(survived: str) -> dict[str, float]:
    """The accuracy of ``survivors``, its 95 % interval and n, as columns of a table."""
    accuracy = Accuracy(survived.count("1") / len(survived), len(survived))
    low, high = accuracy.interval
    return {"accuracy": accuracy.value, "low": low, "high": high, "n": accuracy.n}
