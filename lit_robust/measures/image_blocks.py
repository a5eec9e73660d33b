"""Long attacks, block by block: what is finished is kept, so a killed evaluation goes on where it stopped.

A block is as many consecutive test images as the attack takes at once (its ``batch_size``), or a batch of the
evaluation if that is smaller. One process runs a block through the whole attack, and its random draws depend on its
place only. So a test on one rank, one on several ranks, and one that was killed and started again agree for every
image.
"""

import hashlib
import inspect
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lit_robust.attacks.autoattack_findings import Findings, gathering, hand_on, is_valid
from lit_robust.attacks.base import Attack
from lit_robust.batch import Batch
from lit_robust.checkpoint_files import read_data
from lit_robust.guards import may_shrink
from lit_robust.measures.correct import is_correct
from lit_robust.seeds import derive_seed
from lit_robust.whole_files import path_of, remove_part, write_whole


class Blocks:
    """The finished blocks of long attacks, a file each: which images survive, the adversarial images, and findings.

    A file is used only for the same weights, net, mode, attack, packages, images and seed, which it names, and if an
    image may leave the attack as it might then; any other, or a broken one, is replaced. Files are read as data: they
    cannot run code.

    While an attack runs, its files take as much as its images in float32: 12 KB per image of CIFAR-10, so 123 MB for
    its test set, and 600 KB per image of 224 x 224 pixels, so 3 GB for 5,000. Afterwards ``drop_images`` leaves about
    2 KB per block, which spare a second test the attack. The folder can be deleted at any time.

    Args:
        folder: Where the files are; None keeps nothing.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self.folder = None if folder is None else path_of("blocks", folder, "a folder")
        self._used: dict[Path, dict[str, Any]] = {}

    def survivors(self, attack: Attack, net: nn.Module, batch: Batch, attacked: nn.Module | None = None) -> Tensor:
        """Which images are classified correctly after the attack, ``(N,)`` bool; those of weight 0 are not attacked.

        Args:
            attack: The attack.
            net: The net.
            batch: Images and labels.
            attacked: What the attack sees instead of the net.
        """
        return self._run(attack, net, batch, with_images=False, attacked=attacked)[1]

    def images(self, attack: Attack, net: nn.Module, batch: Batch, attacked: nn.Module | None = None) -> Tensor:
        """The adversarial images, like ``batch.x``; those of weight 0 are not attacked. See ``survivors``."""
        return self._run(attack, net, batch, with_images=True, attacked=attacked)[0]

    def drop_images(self) -> None:
        """Remove the adversarial images from all files that were written or read, and keep which images survive."""
        for path, content in self._used.items():
            _write(path, content)
        self._used.clear()

    def forget(self) -> None:
        """Delete all files that were written or read."""
        for path in self._used:
            remove_part(path)
        self._used.clear()

    def _run(
        self, attack: Attack, net: nn.Module, batch: Batch, with_images: bool, attacked: nn.Module | None = None
    ) -> tuple[Tensor, Tensor]:
        x_adv, survived = batch.x.clone(), torch.ones_like(batch.y, dtype=torch.bool)
        rows, seed = (batch.weight > 0).nonzero().squeeze(1), torch.initial_seed()
        of_net = {} if self.folder is None else _about(net)
        for number, part in enumerate(torch.split(rows, getattr(attack, "batch_size", None) or max(len(rows), 1))):
            if not len(part):
                continue
            x, y = (batch.x, batch.y) if len(part) == len(batch.y) else (batch.x[part], batch.y[part])
            of_block = derive_seed(seed, number) if number else seed
            key = of_net and of_net | {
                "attack": identity(attack),
                "package": attack.package,
                "images": digest({"x": x, "y": y}),
                "seed": str(of_block),
                "folded": str(attacked is not None and attacked is not net),
                "shrinks": str(may_shrink(net)),
            }
            found = self._read(key, x, with_images)
            if found is None:
                torch.manual_seed(of_block)
                with gathering(Findings()) as findings:
                    crafted = attack(attacked or net, x, y)
                found = {"key": key, "survived": is_correct(net, crafted, y).cpu(), "x_adv": crafted.cpu()}
                found["findings"] = dict(findings.counts)
                self._keep(found)
            hand_on(Findings(found["findings"]))
            if found["x_adv"] is not None:
                x_adv[part] = found["x_adv"].to(x.device)
            survived[part] = found["survived"].to(x.device)
        return x_adv, survived

    def _path(self, key: Mapping[str, str]) -> Path | None:
        name = hashlib.sha256(repr(sorted(key.items())).encode()).hexdigest()[:32]
        return None if self.folder is None else self.folder / f"{name}.pt"

    def _keep(self, content: dict[str, Any]) -> None:
        path = self._path(content["key"])
        if path is not None:
            _write(path, content)
            self._used[path] = content | {"x_adv": None}

    def _read(self, key: Mapping[str, str], x: Tensor, with_images: bool) -> dict[str, Any] | None:
        """What was kept under a key, if it is whole; without the adversarial images only if they are not needed."""
        path = self._path(key)
        if path is None:
            return None
        try:
            content = read_data(path)
        except (OSError, ValueError):
            return None
        names = {"key", "survived", "x_adv", "findings"}
        if not (isinstance(content, dict) and content.keys() == names and content["key"] == key):
            return None
        if not is_valid(content["findings"]):
            return None
        survived, x_adv = content["survived"], content["x_adv"]
        if not (isinstance(survived, Tensor) and survived.dtype == torch.bool and survived.shape == x.shape[:1]):
            return None
        if x_adv is None and with_images:
            return None
        if x_adv is not None:
            fits = isinstance(x_adv, Tensor) and x_adv.dtype == x.dtype and x_adv.shape == x.shape
            if not fits or not bool(x_adv.isfinite().all()):
                return None
        self._used[path] = content | {"x_adv": None}
        return content


def _write(path: Path, content: dict[str, Any]) -> None:
    file = BytesIO()
    torch.save(content, file)
    write_whole(path, file.getvalue())


def _about(net: nn.Module) -> dict[str, str]:
    """What a result depends on besides the attack and the images."""
    modes = "".join("et"[module.training] for module in net.modules())
    return {
        "net": fingerprint(net),
        "modes": hashlib.sha256(modes.encode()).hexdigest()[:16],
        "device": next((tensor.device.type for tensor in net.state_dict().values()), "cpu"),
        "versions": f"lit-robust {version('lit-robust')}, torch {torch.__version__}",
    }


def fingerprint(net: nn.Module) -> str:
    """A digest of all that a net computes with, except its code: tensors, layers and their plain attributes."""
    plain = {
        name: {key: value for key, value in vars(module).items() if isinstance(value, bool | int | float | str | tuple)}
        for name, module in net.named_modules()
    }
    described = hashlib.sha256(f"{net} {plain}".encode()).hexdigest()[:16]
    return f"{digest({**net.state_dict(), **dict(net.named_buffers())})} {described}"


def digest(tensors: Mapping[str, Tensor]) -> str:
    """A digest of named tensors that changes if any byte does."""
    sha = hashlib.sha256()
    for name, tensor in tensors.items():
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        sha.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()[:16]


def identity(value: Any) -> str:
    """A text of an attack that is the same in another process, unlike ``repr``, and differs if a result may.

    A function stands for its source text. A lambda, a function with free variables, and an object of another class
    without a ``repr`` of its own are written with their address, which no other process has.
    """
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{name}: {identity(one)}' for name, one in value.items())}}}"
    if is_dataclass(value) and not isinstance(value, type):
        arguments = ", ".join(f"{field.name}={identity(getattr(value, field.name))}" for field in fields(value))
        return f"{_named(type(value))}({arguments})"
    if isinstance(value, nn.Module):  # of BPDA
        return f"{type(value).__name__}#{fingerprint(value)}"
    if inspect.isfunction(value) and "<" not in value.__qualname__ and not value.__closure__:
        return _named(value)
    return repr(value)


def _named(definition: Any) -> str:
    name = f"{definition.__module__}.{definition.__qualname__}"
    try:
        return f"{name}#{hashlib.sha256(inspect.getsource(definition).encode()).hexdigest()[:8]}"
    except (OSError, TypeError):
        return f"{name}#{id(definition)}"
