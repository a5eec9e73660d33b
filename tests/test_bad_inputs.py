"""Mistakes, and the one sentence that answers each: it comes before training, and nothing is written."""

import contextlib
import pickle
import re
import struct
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch.demos.boring_classes import BoringModel
from torch import nn

from lit_robust import load_net
from lit_robust.attacks import FGSM, PGD, AutoAttack
from lit_robust.callbacks import AdversarialExamples
from lit_robust.data import CIFAR10DataModule, DigitsDataModule
from lit_robust.defenses import PGDAT
from lit_robust.nets import Net, digits_cnn
from tests.front_door import lit, refusal, tiny
from tests.tiny import CLASSES, TinyNet, images, loader, trainer

CONFIGS = Path(__file__).parent.parent / "configs"

# What users bring along.


class Bytes(DigitsDataModule):
    """Forgets to divide by the largest grey level."""

    white = 1


def softmax_net(num_classes: int = 10) -> nn.Sequential:
    return nn.Sequential(digits_cnn(num_classes, width=4), nn.Softmax(dim=1))


# Broken files.


def truncated_cifar10(folder: Path) -> None:
    batches = folder / "cifar-10-batches-py"
    batches.mkdir()
    whole = pickle.dumps({"data": np.zeros((10, 3072), np.uint8), "labels": [0] * 10})
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"):
        (batches / name).write_bytes(whole[:1000])


def truncated_mnist(folder: Path) -> None:
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        (raw / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">iiii", 2051, 9, 28, 28) + bytes(100))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">ii", 2049, 9) + bytes(9))


@dataclass(frozen=True)
class Mistake:
    """What a user does to a good command line, and a regular expression of the answer."""

    name: str
    says: str
    flags: str = ""
    yaml: str = ""
    command: str = "fit"
    make: object = None
    hide: tuple[str, ...] = field(default=())


MISTAKES = [
    # Names.
    Mistake("unknown subcommand", "'fiit' .*choose from .*fit", command="fiit"),
    Mistake("unknown attack", r'model.attack: there is no class "Foo" \(others need a dotted path', "--model.attack Foo"),
    Mistake("misspelt attack", r"model.attack: .*did you mean PGD\?", "--model.attack PDG"),
    Mistake("misspelt method", r"model: .*did you mean PGDAT\?", "--model PGDTA"),
    Mistake("misspelt net", r"model.net: .*did you mean resnet18\?", "--model.net lit_robust.nets.resnet19"),
    Mistake("misspelt data", r"data: .*did you mean DigitsDataModule\?", yaml="data: {class_path: DigitDataModule}"),
    Mistake("misspelt optimizer", r"model.optimizer: .*did you mean SGD\?", "--model.optimizer torch.optim.SDG"),
    Mistake("misspelt loss", "no lit_robust.losses.cee", "--model.attack.loss lit_robust.losses.cee"),
    Mistake("misspelt callback", r"did you mean EMAWeights\?", "--trainer.callbacks+=EMAWeight"),
    Mistake("misspelt logger", r"did you mean CSVLogger\?", "--trainer.logger CSVLoger"),
    Mistake("a net as attack", "model.attack: lit_robust.nets.resnet18 is no Attack", "--model.attack lit_robust.nets.resnet18"),
    Mistake("a program as optimizer", "subprocess.Popen is no Optimizer", "--model.optimizer subprocess.Popen"),
    Mistake("unknown flag", "--trainer.foo 1: check their spelling", "--trainer.foo 1"),
    Mistake("misspelt argument", "SGD has no argument 'rl': check its spelling", "--model.optimizer.rl 1"),
    # YAML.
    Mistake("misspelt key", "PGD has no argument 'step'", yaml="model: {init_args: {attack: {init_args: {step: 3}}}}"),
    Mistake("misspelt trainer key", "no option 'trainer.max_epoch'", yaml="trainer: {max_epoch: 3}"),
    Mistake("key beside init_args", "model.attack: the arguments of .*PGD belong below init_args",
            yaml="model: {init_args: {attack: {class_path: PGD, steps: 3}}}"),
    Mistake("broken YAML", "no valid YAML: .* line 1", yaml="trainer: {max_epochs: 1\nmodel: ["),
    Mistake("text for YAML", "configuration is 'hello'", yaml="hello"),
    Mistake("missing configuration", "File does not exist: .*nowhere.yaml", "-c nowhere.yaml"),
    Mistake("forgotten argument", "Cyclic needs up, down", "--model.lr_scheduler Cyclic"),
    Mistake("forgotten argument of torch's", "model.lr_scheduler: this needs step_size: give", "--model.lr_scheduler torch.optim.lr_scheduler.StepLR"),
    # Numbers.
    Mistake("8 for 8/255", r"eps=8.0 is above 1.*did you mean 8/255\?", "--model.attack.eps 8"),
    Mistake("division by zero", r"model.attack.eps=8/0 .* such as 8/255", "--model.attack.eps 8/0"),
    Mistake("negative eps", "eps=-0.1 .*>= 0", "--model.attack.eps -0.1"),
    Mistake("negative steps", "steps=-1 must be an integer, at least 0", "--model.attack.steps -1"),
    Mistake("half a step", "model.attack.steps: 2.5 is not of type int", "--model.attack.steps 2.5"),
    Mistake("unknown norm", "model.attack.norm: l1 is unknown: choose one of 'linf', 'l2'", "--model.attack.norm l1"),
    Mistake("no restart", "restarts=0 must be an integer, at least 1", "--model.attack.restarts 0"),
    Mistake("no batch", "batch_size=0 must be at least 1", "--data.batch_size 0"),
    Mistake("all for validation", "val_size=1400 leaves no image.*take fewer", "--data.val_size 1400"),
    Mistake("too few for validation", "train_size=1399 is more than the 1380 images", "--data.train_size 1399"),
    Mistake("no full batch", "batch_size=65 with drop_last=True .*smaller", "--data.batch_size 65 --data.drop_last true"),
    Mistake("unknown split", "data.split: frist is unknown: .*'first'", "--data.split frist"),
    Mistake("width 0", "width=0 of digits_cnn must be at least 1", "--model.net.width 0"),
    Mistake("text for lr", "model.optimizer.lr: fast is not of type float", "--model.optimizer.lr fast"),
    Mistake("negative lr", "Invalid learning rate: -1.0: the lr of model.optimizer", "--model.optimizer.lr -1"),
    Mistake("negative clipping", "gradient_clip_val=-1.0 must be above 0", "--model.gradient_clip_val -1"),
    Mistake("negative seed", "-1 is not in bounds.*change seed_everything", "--seed_everything -1"),
    Mistake("unknown precision", "trainer.precision: bf17 is unknown: .*'bf16-mixed'", "--trainer.precision bf17"),
    Mistake("no device", r"Trainer\(devices='0'\)", "--trainer.devices 0"),
    Mistake("unknown accelerator", "`accelerator='gpx'`.*cpu", "--trainer.accelerator gpx"),
    Mistake("the trainer's clipping", "give model.gradient_clip_val", "--trainer.gradient_clip_val 1"),
    Mistake("the trainer's accumulation", "raise data.batch_size", "--trainer.accumulate_grad_batches 2"),
    # What does not fit together.
    Mistake("no momentum to schedule", "Adagrad has none: remove the schedule",
            "--model.optimizer torch.optim.Adagrad --model.momentum CyclicMomentum --model.momentum.up 1 --model.momentum.down 1"),
    Mistake("ramp of nothing", "no lamda in PGDAT", yaml="trainer: {callbacks+: [{class_path: AttributeRamp, "
            "init_args: {attribute: lamda, schedule: {class_path: Linear, init_args: {start: 0, stop: 1, begin: 0, end: 1}}}}]}"),
    Mistake("seven classes for ten", r"\(2, 7\) .*give the net num_classes=10", "--model.net.num_classes 7"),
    Mistake("too small images", "small_cnn|images of shape 1x8x8: choose a net", "--model.net lit_robust.nets.small_cnn"),
    Mistake("colour net, grey images", "images of shape 1x8x8: choose a net", "--model.net torchvision.models.resnet18"),
    Mistake("probabilities", "returns probabilities.*remove its softmax", "--model.net tests.test_bad_inputs.softmax_net"),
    Mistake("bytes for pixels", r"from 0 to 16.*\[0, 1\].*normalise inside", "--data tests.test_bad_inputs.Bytes"),
    # Files.
    Mistake("missing data", "MNIST cannot be read from root='nowhere'.*download",
            "--data MNISTDataModule --data.root nowhere"),
    Mistake("truncated CIFAR-10", "CIFAR10 cannot be read .*corrupted.*deleting a broken copy",
            "--data CIFAR10DataModule --data.root .", make=truncated_cifar10),
    Mistake("truncated MNIST", "MNIST cannot be read .*deleting a broken copy",
            "--data MNISTDataModule --data.root .", make=truncated_mnist),
    Mistake("log folder below a file", "cannot log to .*tiny.yaml is no folder: change save_dir",
            "--trainer.logger.save_dir tiny.yaml/runs"),
    Mistake("resume of no run", "--ckpt_path last: .*runs/tiny; train first", "--ckpt_path last"),
    Mistake("test of no file", "no checkpoint at nowhere.ckpt: give", "--ckpt_path nowhere.ckpt", command="test"),
    # Extras.
    Mistake("no scikit-learn", r'pip install "lit-robust\[digits\]"', hide=("sklearn.datasets",)),
    Mistake("no matplotlib", r'pip install "lit-robust\[plot\]"', hide=("matplotlib",),
            flags="--trainer.callbacks+=AdversarialExamples --trainer.callbacks.attack=PGD"),
    Mistake("no pyautoattack", r'pip install "lit-robust\[autoattack\]"', hide=("pyautoattack", "autoattack"),
            flags="--model.test_attacks.autoattack AutoAttack", command="test"),
]  # fmt: skip


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def nothing_was_written(folder: Path) -> bool:
    return not [*folder.rglob("*.ckpt"), *folder.rglob("metrics.csv")]


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.name)
def test_a_mistake_is_answered_by_one_sentence(mistake, tmp_path, capsys, monkeypatch):
    for module in mistake.hide:
        monkeypatch.setitem(sys.modules, module, None)
        for loaded in [name for name in sys.modules if name.startswith(f"{module}.")]:
            monkeypatch.setitem(sys.modules, loaded, None)
    if mistake.make:
        mistake.make(tmp_path)
    args = [mistake.command, "-c", tiny(tmp_path)]
    if mistake.yaml:
        (tmp_path / "mistake.yaml").write_text(mistake.yaml)
        args += ["-c", "mistake.yaml"]
    says = refusal(capsys, *args, *mistake.flags.split())
    assert re.search(mistake.says, says)
    assert len(says) < 300
    assert not re.search("Subtypes|Namespace|<class|Errno", says)
    assert nothing_was_written(tmp_path)


def test_a_loss_that_is_not_finite_ends_the_training_with_a_remedy_and_no_checkpoint(tmp_path, capsys):
    says = refusal(capsys, "fit", "-c", tiny(tmp_path), "--model.optimizer.lr", "1e30")
    assert re.search("the training loss is nan in epoch 0 .*lower the learning rate", says)
    assert not [*tmp_path.rglob("*.ckpt")]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_answered_with_the_way_to_the_cpu(tmp_path, capsys):
    says = refusal(capsys, "fit", "-c", tiny(tmp_path), "-c", str(CONFIGS / "trainer" / "gpu.yaml"))
    assert says.startswith("No supported gpu backend found: choose the CPU, by -c configs/trainer/cpu.yaml")


def test_a_defect_keeps_its_traceback(tmp_path, monkeypatch):
    monkeypatch.setattr(PGDAT, "perturb", lambda self, batch: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        lit("fit")


def test_the_debug_variable_brings_the_traceback_of_a_users_mistake(tmp_path, monkeypatch):
    monkeypatch.setenv("LIT_ROBUST_DEBUG", "1")
    with pytest.raises(ValueError, match="batch_size=0"):
        lit("fit", "--data.batch_size", 0)


# Checkpoints that must not be used.


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A checkpoint of the tiny net."""
    folder = tmp_path_factory.mktemp("run")
    with contextlib.chdir(folder):
        lit("fit")
    return folder / "runs" / "tiny" / "version_0" / "checkpoints" / "last.ckpt"


class Intruder:
    """Unpickling it touches a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_the_checkpoint_of_another_net_is_refused(command, good, tmp_path, capsys):
    says = refusal(capsys, command, "-c", tiny(tmp_path), "--ckpt_path", good, "--model.net.width", 8)
    assert re.search(r"another net: .* is \(4, 1, 3, 3\) there and \(8, 1, 3, 3\) here; build the net", says)


def test_a_truncated_checkpoint_is_refused(good, tmp_path, capsys):
    Path("half.ckpt").write_bytes(good.read_bytes()[:5000])
    says = refusal(capsys, "test", "-c", tiny(tmp_path), "--ckpt_path", "half.ckpt")
    assert says.startswith("half.ckpt is truncated or is no checkpoint")
    assert says.endswith("use an earlier one.")


def test_a_checkpoint_without_weights_is_refused(tmp_path, capsys):
    torch.save({"epoch": 1}, "other.ckpt")
    says = refusal(capsys, "test", "-c", tiny(tmp_path), "--ckpt_path", "other.ckpt")
    assert says == "other.ckpt is no checkpoint of a Lightning run: it has no state_dict."


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_a_checkpoint_with_pickled_code_is_refused_and_the_code_not_run(command, good, tmp_path, capsys):
    checkpoint = torch.load(good, weights_only=True)
    torch.save({**checkpoint, "extra": Intruder(tmp_path / "touched")}, "evil.ckpt")
    says = refusal(capsys, command, "-c", tiny(tmp_path), "--ckpt_path", "evil.ckpt")
    assert says.startswith("evil.ckpt holds more than tensors and plain values, so it was not loaded")
    with pytest.raises(ValueError, match="was not loaded"):
        load_net("evil.ckpt")
    assert not (tmp_path / "touched").exists()
    torch.load("evil.ckpt", weights_only=False)  # the trap is armed
    assert (tmp_path / "touched").exists()


def test_a_checkpoint_whose_net_is_a_program_is_refused_and_the_program_not_run(good, tmp_path):
    checkpoint = torch.load(good, weights_only=True)
    for recipe in ({"class_path": "subprocess.Popen", "init_args": {"args": ["touch", str(tmp_path / "touched")]}},
                   {"class_path": "os.system", "init_args": {"command": f"touch {tmp_path / 'touched'}"}}):  # fmt: skip
        torch.save(checkpoint | {"lit_robust": {"net": recipe}}, "evil.ckpt")
        with pytest.raises(ValueError, match=r"evil.ckpt names a net that cannot be built"):
            load_net("evil.ckpt")
    assert not (tmp_path / "touched").exists()


# The same mistakes in Python.


@pytest.mark.parametrize(
    ("build", "error", "says"),
    [
        (lambda: PGD(eps=8), ValueError, r"eps=8.0 is above 1.*did you mean 8/255\?"),
        (lambda: PGD(eps="8/0"), ValueError, "eps=8/0 is not a magnitude: write a number"),
        (lambda: PGD(steps=2.5), ValueError, "steps=2.5 must be an integer, at least 0"),
        (lambda: PGD(norm="l1"), ValueError, 'norm="l1" is unknown: choose linf or l2'),
        (lambda: PGD(loss="ce"), TypeError, "loss='ce' is no function: give one such as lit_robust.losses.ce"),
        (lambda: FGSM(eps=float("nan")), ValueError, "eps=nan is not a magnitude"),
        (lambda: AutoAttack(version="fast"), ValueError, 'version="fast" is unknown: choose standard'),
        (lambda: digits_cnn(num_classes=0), ValueError, "num_classes=0 of digits_cnn must be at least 1"),
        (lambda: PGDAT(TinyNet(), 1, PGD()), ValueError, "num_classes=1 .*at least 2"),
        (lambda: PGDAT(TinyNet(), 4, PGD(), attack_bn_mode="test"), ValueError, 'choose "eval" or "train"'),
        (lambda: CIFAR10DataModule(split="frist"), ValueError, "split='frist' is not one of random, first"),
        (lambda: DigitsDataModule(val_size=0).select([1400]), ValueError, "1 indices, 1400 among them, that are not"),
        (lambda: DigitsDataModule().select([0], [-1.0]), ValueError, "weights that are finite and above 0"),
        (lambda: DigitsDataModule().select([0, 1], [1.0]), ValueError, "one weight for each index"),
        (lambda: AdversarialExamples(PGD(targeted=True)), ValueError, "target=None does not fit PGD"),
        (lambda: load_net("nowhere.ckpt"), FileNotFoundError, "no checkpoint at nowhere.ckpt: give the path"),
        (lambda: Net(nn.Flatten(), nn.Linear(4, 2), in_channels=1, mean=(0.5,)), ValueError, "give both, or null for both"),
    ],
)  # fmt: skip
def test_a_mistake_in_python_is_answered_by_one_sentence(build, error, says):
    with pytest.raises(error, match=says):
        build()


def test_a_callback_says_what_a_module_lacks(tmp_path):
    fitting = trainer(tmp_path, max_epochs=1, callbacks=[AdversarialExamples(PGD())])
    with pytest.raises(TypeError, match="module.net, which BoringModel lacks: name the nn.Module"):
        fitting.fit(BoringModel())


def test_a_net_for_another_number_of_classes_is_refused_before_the_first_step(tmp_path):
    method = PGDAT(TinyNet(), CLASSES + 1, PGD())
    with pytest.raises(ValueError, match=f"give the net num_classes={CLASSES + 1}"):
        trainer(tmp_path, max_epochs=1).fit(method, loader(images()))
