"""Mistakes, and the sentence that refuses each before training, with nothing written."""

import contextlib
import pickle
import re
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import Logger
from PIL import Image
from torch import nn

from lit_robust import load_net
from lit_robust.attacks import PGD
from lit_robust.callbacks import AdversarialExamples
from lit_robust.data import DigitsDataModule
from lit_robust.defenses import PGDAT
from lit_robust.nets import digits_cnn
from tests.front_door import lit, refusal, tiny
from tests.tiny import CLASSES, TinyNet, images, loader, trainer

# Parts of users.


class Bytes(DigitsDataModule):
    """Forgets to divide by the largest grey level."""

    white = 1


def softmax_net(num_classes: int = 10) -> nn.Sequential:
    return nn.Sequential(digits_cnn(num_classes, width=4), nn.Softmax(dim=1))


class NaNNet(nn.Module):
    """A net whose weights have been lost."""

    def __init__(self):
        super().__init__()
        self.lost = nn.Parameter(torch.full((10,), torch.nan))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.lost.expand(len(x), 10)


class HalfALogger(Logger):
    name = "half"

    def log_hyperparams(self, *args, **kwargs):
        pass


# Broken files.


def broken_files(root: Path) -> None:
    """CIFAR-10 and MNIST, truncated."""
    (root / "cifar-10-batches-py").mkdir(parents=True)
    whole = pickle.dumps({"data": np.zeros((10, 3072), np.uint8), "labels": [0] * 10})
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"):
        (root / "cifar-10-batches-py" / name).write_bytes(whole[:1000])
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        (raw / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">iiii", 2051, 9, 28, 28) + bytes(100))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">ii", 2049, 9) + bytes(9))


# The table: what a user adds to a good command line, and the message, in which ... matches anything.

NONE = "None is a word in YAML: leave it out for its default, or write null where there may be no value."
FLAGS = {
    # Names.
    "unknown attack": ("--model.attack Foo", 'model.attack: there is no class "Foo" (others need a dotted path).'),
    "misspelt attack": ("--model.attack PDG", 'model.attack: there is no class "PDG" (did you mean PGD?).'),
    "misspelt method": ("--model PGDTA", 'model: there is no class "PGDTA" (did you mean PGDAT?).'),
    "method in small letters": ("--model pgdat", 'model: there is no class "pgdat" (did you mean PGDAT?).'),
    "data cut short": ("--data CIFAR10", 'data: there is no class "CIFAR10" (did you mean CIFAR10DataModule?).'),
    "misspelt net": (
        "--model.net lit_robust.nets.resnet19",
        "model.net: there is no lit_robust.nets.resnet19 (did you mean lit_robust.nets.resnet18?).",
    ),
    "misspelt optimizer": (
        "--model.optimizer torch.optim.SDG",
        "model.optimizer: there is no torch.optim.SDG (did you mean SGD?).",
    ),
    "misspelt loss": (
        "--model.attack.loss lit_robust.losses.cee",
        "model.attack.loss: there is no lit_robust.losses.cee (check its spelling).",
    ),
    "misspelt callback": (
        "--trainer.callbacks+=EMAWeight",
        'trainer.callbacks: there is no class "EMAWeight" (did you mean EMAWeights?).',
    ),
    "an early stop in the wrong direction": (
        "--trainer.callbacks+ EarlyStopping --trainer.callbacks.monitor val/acc/robust",
        'EarlyStopping monitors val/acc/robust, but mode="min" looks for its smallest value: set mode="max".',
    ),
    "a best checkpoint in the wrong direction": (
        "--trainer.callbacks+ ModelCheckpoint --trainer.callbacks.filename a --trainer.callbacks.monitor train/loss "
        "--trainer.callbacks.mode max",
        'ModelCheckpoint monitors train/loss, but mode="max" looks for its largest value: set mode="min".',
    ),
    "misspelt logger": (
        "--trainer.logger CSVLoger",
        'trainer.logger: there is no class "CSVLoger" (did you mean CSVLogger?).',
    ),
    "misspelt argument": (
        "--model.optimizer.rl 1",
        "model.optimizer: torch.optim.SGD has no argument 'rl': check its spelling.",
    ),
    "unknown flag": ("--trainer.foo 1", "unrecognized arguments: --trainer.foo 1: check their spelling."),
    "a net as attack": (
        "--model.attack lit_robust.nets.resnet18",
        "model.attack: lit_robust.nets.resnet18 is not of type Attack: name a class that is.",
    ),
    "a program as optimizer": (
        "--model.optimizer subprocess.Popen",
        "model.optimizer: subprocess.Popen is not of type Optimizer: name a class that is.",
    ),
    "forgotten arguments": (
        "--model.lr_scheduler Cyclic",
        "model.lr_scheduler: lit_robust.schedules.Cyclic needs up, down below init_args.",
    ),
    "forgotten argument of torch's": (
        "--model.lr_scheduler torch.optim.lr_scheduler.StepLR",
        "model.lr_scheduler: this needs step_size below init_args.",
    ),
    # Numbers.
    "arguments of no class": (
        "--model.val_attack.steps 3",
        "model.val_attack: this Attack has no class yet: give its class_path before its arguments.",
    ),
    "arguments of an attack with another name": (
        "--model.test_attacks.pgdd.eps 0.1",
        'model.test_attacks: there is no entry "pgdd" whose eps could be set: the entries are ...',
    ),
    "8 for 8/255": (
        "--model.attack.eps 8",
        "eps=8 is above 1, but pixels are in [0, 1]: did you mean 8/255?",
    ),
    "division by zero": (
        "--model.attack.eps 8/0",
        "model.attack.eps=8/0 is not a magnitude: write a number >= 0 or a fraction such as 8/255.",
    ),
    "negative eps": ("--model.attack.eps -0.1", "model.attack.eps=-0.1 is not a magnitude: write a number >= 0..."),
    "negative steps": ("--model.attack.steps -1", "steps=-1 must be an integer, at least 0."),
    "half a step": ("--model.attack.steps 2.5", "model.attack.steps: 2.5 is not of type int."),
    "unknown norm": ("--model.attack.norm l1", "model.attack.norm: l1 is unknown: choose one of 'linf', 'l2'."),
    "no run": ("--model.attack.restarts 0", "restarts=0 must be an integer, at least 1."),
    "no batch": ("--data.batch_size 0", "batch_size=0 must be an integer, at least 1."),
    "all held out": ("--data.val_size 1400", "val_size=1400 leaves no image of 1400 to train on: take fewer."),
    "more than there are": ("--data.train_size 1399", "train_size=1399 is more than the 1380 images there are."),
    "no full batch": (
        "--data.batch_size 65 --data.drop_last true",
        "batch_size=65 with drop_last=True makes no batch of 64 images on 1 ranks: take a smaller batch_size.",
    ),
    "unknown split": ("--data.split frist", "data.split: frist is unknown: choose one of 'random', 'first', ..."),
    "no width": ("--model.net.width 0", "digits_cnn's width=0 must be an integer, at least 1."),
    "a word for a number": ("--model.optimizer.lr fast", "model.optimizer.lr: fast is not of type float."),
    "None for a count": ("--data.batch_size None", f"data.batch_size: {NONE}"),
    "None for what may be null": ("--model.gradient_clip_val None", f"model.gradient_clip_val: {NONE}"),
    "negative rate": (
        "--model.optimizer.lr -1",
        "Invalid learning rate: -1.0: the lr of model.optimizer must be 0 or above.",
    ),
    "negative momentum": (
        "--model.optimizer.momentum -1",
        "Invalid momentum value: -1.0: the momentum of model.optimizer must be 0 or above.",
    ),
    "negative clipping": (
        "--model.gradient_clip_val -1",
        "gradient_clip_val=-1.0 must be a finite number, above 0: null means no clipping.",
    ),
    "negative seed": ("--seed_everything -1", "-1 is not in bounds, ... 4294967295: change seed_everything."),
    "unknown precision": (
        "--trainer.precision bf17",
        "trainer.precision: bf17 is unknown: choose one of ...'bf16-mixed'...",
    ),
    "no device": ("--trainer.devices 0", "`Trainer(devices='0')` value is not a valid input using cpu accelerator."),
    "unknown accelerator": ("--trainer.accelerator gpx", "...`accelerator='gpx'`. Available names are: ...cpu..."),
    "the trainer's clipping": (
        "--trainer.gradient_clip_val 1",
        "Automatic gradient clipping is not supported: give model.gradient_clip_val instead of the trainer's.",
    ),
    "the trainer's accumulation": (
        "--trainer.accumulate_grad_batches 2",
        "Automatic gradient accumulation is not supported: raise data.batch_size instead.",
    ),
    # Contradictions.
    "no momentum to schedule": (
        "--model.optimizer torch.optim.Adagrad --model.momentum CyclicMomentum "
        "--model.momentum.up 1 --model.momentum.down 1",
        "momentum is scheduled, but Adagrad has none: remove the schedule.",
    ),
    "seven classes for ten": (
        "--model.net.num_classes 7",
        "the net returns a tensor of shape (2, 7) for 2 images, but num_classes=10: give the net num_classes=10 ...",
    ),
    "too small images": (
        "--model.net lit_robust.nets.small_cnn",
        "the net (small_cnn) cannot read images of shape 1x8x8 (...): small_cnn cannot be built for them, choose "
        "another net.",
    ),
    "grey images for a colour net": (
        "--model.net torchvision.models.resnet18",
        "the net (ResNet) cannot read images of shape 1x8x8 (...): choose a net for this data set.",
    ),
    "a net that returns NaN": (
        "--model.net tests.test_bad_inputs.NaNNet",
        "the net returns NaN or infinite logits, ...",
    ),
    "probabilities for logits": (
        "--model.net tests.test_bad_inputs.softmax_net",
        "the net returns probabilities, but losses and attacks need logits: remove its softmax, ...",
    ),
    "bytes for pixels": (
        "--data tests.test_bad_inputs.Bytes",
        "pixels run from 0 to 16, but every eps is in units of [0, 1]: divide them by 255.",
    ),
    "a number for arguments": (
        "--model.init_args 7",
        "model.init_args='7' must be a mapping: write its options below it, indented.",
    ),
    # Files.
    "weights beside a checkpoint": (
        "--weights a.pt --ckpt_path b.ckpt",
        "--weights a.pt would be replaced by the weights of --ckpt_path b.ckpt: give one of the two.",
    ),
    "no name of weights": ("--weights=", "--weights is empty: name a file, or leave it out."),
    "no such configuration": ("-c nowhere.yaml", "-c nowhere.yaml: there is no such file."),
    "a folder for a configuration": ("-c broken", "-c broken is a folder: give a YAML file."),
    "a device for a configuration": (
        "-c /dev/zero",
        "-c /dev/zero is not a regular file: give a YAML file that can be read.",
    ),
    "no such part": ("--model.attack gone.yaml", "model.attack: there is no file gone.yaml."),
    "no data": (
        "--data MNISTDataModule --data.root nowhere",
        "MNIST cannot be read from root='nowhere' (Dataset not found): set download: true, ...",
    ),
    "truncated CIFAR-10": (
        "--data CIFAR10DataModule --data.root broken",
        "CIFAR10 cannot be read from root='broken' (...corrupted): ...after deleting a broken copy, ...",
    ),
    "truncated MNIST": (
        "--data MNISTDataModule --data.root broken",
        "MNIST cannot be read from root='broken' (...): ...after deleting a broken copy, ...",
    ),
    "a log folder below a file": (
        "--trainer.logger.save_dir tiny.yaml/runs",
        "cannot log to tiny.yaml/runs, because ...tiny.yaml is not a folder: change save_dir of trainer.logger.",
    ),
    "a log folder that is a dangling link": (
        "--trainer.logger.save_dir dangling/runs",
        "cannot log to dangling/runs, because ...dangling is a link to nowhere, which does not exist: remove the "
        "link, or change ...",
    ),
    "resuming no run": (
        "--ckpt_path last",
        "--ckpt_path last: there is no such checkpoint in runs/tiny; train first, or give a .ckpt file.",
    ),
    "misspelt monitor": (
        "--trainer.callbacks+=EarlyStopping --trainer.callbacks.monitor=val/acc/robst",
        "EarlyStopping monitors val/acc/robst, but validation logs val/acc/clean, val/acc/robust: correct the name.",
    ),
    "misspelt monitor of training": (
        "--trainer.callbacks+=TimeLeft --trainer.callbacks+=AdversarialExamples --trainer.callbacks.attack=PGD "
        "--trainer.callbacks+=EarlyStopping --trainer.callbacks.monitor=train/los",
        "EarlyStopping monitors train/los, but training logs train/acc/robust, train/adversarial, train/loss, "
        "train/lr, train/updates: correct the name.",
    ),
    "misspelt monitor of a checkpoint": (
        "--trainer.callbacks+=ModelCheckpoint --trainer.callbacks.monitor=train/acc/robst",
        "ModelCheckpoint monitors train/acc/robst, but training logs ...train/acc/robust, ...: correct the name.",
    ),
    "monitor of neither": (
        "--trainer.callbacks+=EarlyStopping --trainer.callbacks.monitor=foo",
        "EarlyStopping monitors foo, but the run logs train/acc/robust, ..., val/acc/robust: correct the name.",
    ),
    "misspelt monitor of a delay": (
        "--trainer.callbacks+=DelayedStart --trainer.callbacks.latest_epoch=0 --trainer.callbacks.monitor=nope",
        "DelayedStart monitors nope, but the run logs ...train/loss, ...: correct the name.",
    ),
    "misspelt monitor of a scheduler": (
        "--model.lr_scheduler ReduceLROnPlateau --model.lr_scheduler.monitor foo",
        "ReduceLROnPlateau monitors foo, but the run logs ...train/loss, ...: correct the name.",
    ),
    "monitor of what another callback does not log": (
        "--trainer.callbacks+=GeneralizationGap --trainer.callbacks+=EarlyStopping "
        "--trainer.callbacks.monitor=val/gap/robst",
        "EarlyStopping monitors val/gap/robst, but validation logs ...val/gap/robust: correct the name.",
    ),
    "a negative interval of logging": (
        "--trainer.log_every_n_steps -1",
        "log_every_n_steps=-1 must be an integer, at least 0: 0 logs no step.",
    ),
    "a negative number of sanity checks": (
        "--trainer.num_sanity_val_steps -2",
        "num_sanity_val_steps=-2 must be ...at least 0: 0 for none, -1 for all.",
    ),
    "a module that does not exist": (
        "--model.net my.Net",
        "model.net: there is no module my: check its spelling, or install its package.",
    ),
    "monitor without validation": (
        "--data.val_size 0",
        "ModelCheckpoint monitors val/acc/robust, but there is no validation: hold images out "
        "(data.init_args.val_size), or remove the monitor to keep the last checkpoint alone.",
    ),
    "monitor of a validation that is switched off": (
        "--trainer.limit_val_batches 0",
        "ModelCheckpoint monitors val/acc/robust, but there is no validation: hold images out ...",
    ),
    "precision that rounds images": (
        "--trainer.precision bf16-true",
        "trainer.precision=bf16-true rounds images to steps as coarse as an eps: use bf16-mixed.",
    ),
    "class count that is not the data's": (
        "--model.num_classes 5",
        "model.num_classes=5, but DigitsDataModule has 10 classes: leave it out, it is the data's.",
    ),
    "another file as checkpoint": (
        "--ckpt_path tiny.yaml",
        "tiny.yaml is not a checkpoint: give a .ckpt file that a training has written.",
    ),
    "resuming no file": ("--ckpt_path nowhere.ckpt", "no checkpoint at nowhere.ckpt: give the path of a .ckpt file."),
    "option without a value": (
        "-c",
        "argument -c/--config: expected one argument: give each option a value, after = if that begins with a minus.",
    ),
    "scheduler without its monitor": (
        "--model.lr_scheduler ReduceLROnPlateau",
        "model.lr_scheduler: this needs monitor below init_args.",
    ),
    "callback without its argument": (
        "--trainer.callbacks+=ModelPruning",
        "trainer.callbacks: lightning.pytorch.callbacks.ModelPruning needs pruning_fn below init_args.",
    ),
    "abstract logger": (
        f"--trainer.logger {__name__}.HalfALogger",
        f"trainer.logger: {__name__}.HalfALogger is abstract: implement log_metrics, version.",
    ),
    "function as logger": ("--trainer.logger os.getcwd", "trainer.logger: os.getcwd is not a class: name one."),
    "function without annotation as net": (
        "--model.net=torch.hub.load",
        "model.net: torch.hub.load is not annotated to return a Module: write def load(...) -> Module, or name a "
        "function of your own that calls it and is annotated so.",
    ),
    "misspelt option of the trainer": (
        "--trainer.max_epoch 3",
        "there is no option --trainer.max_epoch: did you mean --trainer.max_epochs?",
    ),
    "option without its section": (
        "--attack.eps 0.1",
        "there is no option --attack.eps: did you mean --model.attack.eps?",
    ),
    "misspelt section": ("--modl PGDAT", "there is no option --modl: did you mean --model?"),
    "misspelt section of the model": (
        "--modle.attack.eps 0.1",
        "there is no option --modle.attack.eps: did you mean --model.attack.eps?",
    ),
    "misspelt section and argument": (
        "--modl.atack.eps 0.1",
        "there is no option --modl.atack.eps: did you mean --model.attack.eps?",
    ),
    "misspelt section of the data": (
        "--dat.batch_size 3",
        "there is no option --dat.batch_size: did you mean --data.batch_size?",
    ),
    "option cut short": ("--seed 3", "there is no option --seed: did you mean --seed_everything?"),
    "option of the trainer cut short": (
        "--trainer.max_ep 3",
        "there is no option --trainer.max_ep: did you mean --trainer.max_epochs?",
    ),
    "negative fraction": (
        "--model.attack.eps -8/255",
        "argument --model.attack.eps: expected one argument: give each option a value, after = if that begins with a "
        "minus.",
    ),
    "option of a part without a value": (
        "--model.attack.eps --data.batch_size 3",
        "argument --model.attack.eps: expected one argument: give each option a value, after = if that begins with a "
        "minus.",
    ),
    "a logger that is never written": (
        "--trainer.logger.flush_logs_every_n_steps 0",
        "trainer.logger.flush_logs_every_n_steps=0 must be an integer, at least 1: it is a number of steps.",
    ),
    "misspelt argument of a part": (
        "--model.attack.epss 0.2",
        "model.attack: lit_robust.attacks.PGD has no argument 'epss': did you mean eps?",
    ),
    "a step of no epochs": (
        "--model.lr_scheduler StepLR --model.lr_scheduler.step_size 0",
        "lr_scheduler.step_size=0 must be an integer, at least 1: it is a number of the scheduler's steps.",
    ),
    "a number for a list": (
        "--model.lr_scheduler MultiStep --model.lr_scheduler.milestones 3",
        "model.lr_scheduler.milestones: 3 is not of type list: write [3].",
    ),
    "a base class as callback": (
        "--trainer.callbacks+=BaseFinetuning",
        "trainer.callbacks: BaseFinetuning is a base class that does nothing: name a subclass.",
    ),
    "a callback for another module": (
        "--trainer.callbacks+=BackboneFinetuning",
        "trainer.callbacks: BackboneFinetuning trains module.backbone, which a PGDAT does not have: write a "
        "BaseFinetuning that freezes and unfreezes a part of module.net.",
    ),
    "number for a schedule": (
        "--model.momentum 0.9",
        'model.momentum: there is no class "0.9" (others need a dotted path).',
    ),
}

YAML = {
    "two callbacks of a kind": (
        "trainer: {callbacks+: [{class_path: DelayedStart, init_args: {at_epoch: 1}}, {class_path: DelayedStart}]}",
        "Found more than one stateful callback of type `DelayedStart`: keep one of them.",
    ),
    "two checkpoints that save alike": (
        "trainer: {callbacks+: [{class_path: ModelCheckpoint, init_args: {filename: other}}]}",
        "Found more than one stateful callback of type `ModelCheckpoint`: a checkpoint tells their states apart by "
        "monitor, mode, every_n_epochs, every_n_train_steps and train_time_interval; change one of these, or keep one "
        "with save_top_k or save_last.",
    ),
    "two early stops of one metric": (
        "trainer: {callbacks+: [{class_path: EarlyStopping, init_args: {monitor: train/loss}}, "
        "{class_path: EarlyStopping, init_args: {monitor: train/loss, patience: 9}}]}",
        "Found more than one stateful callback of type `EarlyStopping`: a checkpoint tells their states apart by "
        "monitor and mode; change one of these, or keep the stricter one.",
    ),
    "two coresets": (
        "trainer: {callbacks+: [{class_path: CoresetSelection, init_args: {fraction: 0.5}}, "
        "{class_path: CoresetSelection, init_args: {fraction: 0.7}}]}",
        "Found more than one stateful callback of type `CoresetSelection`: keep one of them.",
    ),
    "two averages": (
        "trainer: {callbacks+: [EMAWeights, {class_path: EMAWeights, init_args: {decay: 0.5}}]}",
        "only one callback may average weights, because swaps do not nest: give the decays of further averages ...",
    ),
    "two gaps": (
        "trainer: {callbacks+: [GeneralizationGap, {class_path: GeneralizationGap, init_args: {attack: FGSM}}]}",
        "two GeneralizationGap callbacks would log the same rows: keep one.",
    ),
    "misspelt data": (
        "data: {class_path: DigitDataModule}",
        'data: there is no class "DigitDataModule" (did you mean DigitsDataModule?).',
    ),
    "misspelt key": (
        "model: {init_args: {attack: {init_args: {step: 3}}}}",
        "model.attack: lit_robust.attacks.PGD has no argument 'step': did you mean steps?",
    ),
    "cut section": (
        "dat: {batch_size: 3}",
        "the configuration has no option 'dat.batch_size': did you mean data.batch_size?",
    ),
    "a function as logger": (
        "trainer: {logger: {class_path: os.system}}",
        "trainer.logger: os.system is not of type Logger: name a class that is.",
    ),
    "a function among loggers": (
        "trainer: {logger: [{class_path: os.system}]}",
        "trainer.logger: os.system is not of type Logger: name a class that is.",
    ),
    "a function among callbacks": (
        "trainer: {callbacks: [{class_path: os.system}]}",
        "trainer.callbacks: os.system is not of type Callback: name a class that is.",
    ),
    "misspelt key of the trainer": (
        "trainer: {max_epoch: 3}",
        "the configuration has no option 'trainer.max_epoch': did you mean trainer.max_epochs?",
    ),
    "argument beside init_args": (
        "model: {init_args: {attack: {class_path: PGD, steps: 3}}}",
        "model.attack: the arguments of PGD belong below init_args: indent steps.",
    ),
    "ramp of nothing": (
        "trainer: {callbacks+: [{class_path: AttributeRamp, init_args: {attribute: lamda, schedule: "
        "{class_path: Linear, init_args: {start: 0, stop: 1, begin: 0, end: 1}}}}]}",
        'AttributeRamp("lamda") finds no lamda in PGDAT: did you mean ...?',
    ),
    "broken YAML": (
        "trainer: {max_epochs: 1\nmodel: [",
        "mistake.yaml is not valid YAML: while parsing a flow mapping in line 1, column 10 did not find ...",
    ),
    "no mapping": ("hello", "mistake.yaml is 'hello': it must consist of options such as model: and data:."),
    "points by number": (
        "model: {init_args: {lr_scheduler: {class_path: PiecewiseLinear, init_args: {points: {0: 1, 1: -1}}}}}",
        "model.lr_scheduler: 0 is not an argument's name: give arguments by name, as name: value.",
    ),
    "a number for the trainer": ("trainer: 5", "trainer=5 must be a mapping: write its options below it, indented."),
    "a word for the trainer": ("trainer: fast", "trainer='fast' must be a mapping: write its options below it, ..."),
    "a list for the data": (
        "data: [DigitsDataModule]",
        "data=['DigitsDataModule'] must be a mapping: write its options below it, indented.",
    ),
    "a switch for the model": ("model: true", "model=True must be a mapping: write its options below it, indented."),
    "a list for a name": (
        "model: {class_path: [1]}",
        "model: class_path=[1] must be the name of a class, as text.",
    ),
    "a number for arguments": (
        "model: {class_path: PGDAT, init_args: 7}",
        "model.init_args=7 must be a mapping: write its options below it, indented.",
    ),
    "a list for the arguments of a net": (
        "model: {init_args: {net: {class_path: lit_robust.nets.digits_cnn, init_args: [4]}}}",
        "model.net.init_args=[4] must be a mapping: write its options below it, indented.",
    ),
    "an alias as a key": (
        "trainer: {&a : *a}",
        "trainer: None is not an option's name: give options by name, as name: value.",
    ),
    "a number as an argument's name": (
        "model: {init_args: {5: 2}}",
        "model: 5 is not an option's name: give options by name, as name: value.",
    ),
    "a list for an optimizer": (
        "model: {init_args: {optimizer: [SGD]}}",
        "model.optimizer: ['SGD'] names no class: give one, as class_path: NAME with its arguments below init_args.",
    ),
    "empty file": ("", "mistake.yaml is '': it must consist of options such as model: and data:."),
}

EXTRAS = {
    "digits": ("fit", "", "sklearn sklearn.datasets"),
    "plot": ("fit", "--trainer.callbacks+=AdversarialExamples --trainer.callbacks.attack=PGD", "matplotlib"),
    "autoattack": (
        "test",
        "--model.test_attacks.autoattack AutoAttack",
        "pyautoattack pyautoattack.autopgd_base autoattack autoattack.autopgd_base",
    ),
}


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def check(says, expected):
    assert re.fullmatch(".*".join(map(re.escape, expected.split("..."))), says), says
    assert len(says) < 300
    assert not [path for path in Path().rglob("*") if path.suffix in (".ckpt", ".csv")], "something was written"


@pytest.mark.parametrize("mistake", FLAGS)
def test_a_mistake_on_the_command_line_is_answered_by_one_sentence(mistake, tmp_path, capsys):
    flags, expected = FLAGS[mistake]
    if "dangling" in flags:
        Path("dangling").symlink_to("nowhere")
    if "broken" in flags:
        broken_files(tmp_path / "broken")
    check(refusal(capsys, "fit", "-c", tiny(tmp_path), *flags.split()), expected)


@pytest.mark.parametrize("mistake", YAML)
def test_a_mistake_in_a_file_is_answered_by_one_sentence(mistake, tmp_path, capsys):
    text, expected = YAML[mistake]
    Path("mistake.yaml").write_text(text)
    check(refusal(capsys, "fit", "-c", tiny(tmp_path), "-c", "mistake.yaml"), expected)


@pytest.mark.parametrize("extra", EXTRAS)
def test_a_missing_package_is_answered_by_what_to_install(extra, tmp_path, capsys, monkeypatch):
    command, flags, modules = EXTRAS[extra]
    for module in modules.split():
        monkeypatch.setitem(sys.modules, module, None)
    says = refusal(capsys, command, "-c", tiny(tmp_path), *flags.split())
    assert f'pip install "lit-robust[{extra}]"' in says


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ([], 'expected "subcommand" to be one of {fit,validate,test,predict}, but it was not provided.'),
        (["fiit"], 'there is no command "fiit": did you mean fit?'),
        (["fit"], "the following arguments are required: fit.data, fit.model: give a configuration with -c (...)."),
        (
            ["sweep"],
            "the following arguments are required: checkpoints, data: name the runs to analyse and give a "
            "configuration with -c (...).",
        ),
        (
            ["sweep", "--data", "DigitsDataModule"],
            "the following arguments are required: checkpoints: name the runs to analyse.",
        ),
        (
            ["transfer", "a", "--data", "DigitsDataModule", "--sources", "b"],
            "sources: b is not of type list: write [b].",
        ),
        (
            ["report", "a", "--data", "DigitsDataModule", "--attacks", "PGD"],
            "attacks: PGD is not of type dict: write {name: PGD}.",
        ),
        (["fit", "--model", "PGDAT"], "model: lit_robust.defenses.PGDAT needs net, attack below init_args."),
    ],
)
def test_an_incomplete_command_line_is_answered_by_what_is_missing(args, expected, capsys):
    check(refusal(capsys, *args), expected)


def test_a_loss_that_is_not_finite_ends_the_training_with_a_remedy_and_no_checkpoint(tmp_path, capsys):
    says = refusal(capsys, "fit", "-c", tiny(tmp_path), "--model.optimizer.lr", "1e30")
    assert re.search("the training loss is nan in epoch 0 .*lower the learning rate", says)
    assert not [*tmp_path.rglob("*.ckpt")]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_answered_with_the_way_to_the_cpu(tmp_path, capsys):
    says = refusal(capsys, "fit", "-c", tiny(tmp_path), "--trainer.accelerator", "gpu")
    check(says, "No supported gpu backend found: choose the CPU, by -c configs/trainer/cpu.yaml or ...")


def test_too_little_memory_is_answered_with_what_to_lower(tmp_path, capsys, monkeypatch):
    def perturb(self, batch):
        raise torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of ..."
        )

    monkeypatch.setattr(PGDAT, "perturb", perturb)
    says = refusal(capsys, "fit", "-c", tiny(tmp_path))
    check(says, "CUDA out of memory: lower data.batch_size and data.eval_batch_size.")


def test_an_image_that_cannot_be_read_is_named(tmp_path, capsys):
    for part in ("train", "val"):
        for label in ("cat", "dog"):
            (tmp_path / "images" / part / label).mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(tmp_path / "images" / part / label / "0.png")
    (tmp_path / "images" / "val" / "cat" / "0.png").write_text("no picture")
    flags = ["--data", "ImageFolderDataModule", "--data.root", "images", "--data.num_workers", 1, "--data.val_size", 0]
    says = refusal(capsys, "test", "-c", tiny(tmp_path), *flags, "--data.train_size", 2, "--data.test_size", 2)
    check(says, "images/val/cat/0.png is not a readable image (...): repair or remove it.")


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
    more = ["--trainer.max_epochs", 2] if command == "fit" else []
    says = refusal(capsys, command, "-c", tiny(tmp_path), "--ckpt_path", good, "--model.net.width", 8, *more)
    assert re.search(r"another net: .* is \(4, 1, 3, 3\) there and \(8, 1, 3, 3\) here; build the net", says)


def test_a_truncated_checkpoint_is_refused(good, tmp_path, capsys):
    Path("half.ckpt").write_bytes(good.read_bytes()[:5000])
    says = refusal(capsys, "test", "-c", tiny(tmp_path), "--ckpt_path", "half.ckpt")
    assert says.startswith("half.ckpt is truncated or is not a checkpoint")
    assert says.endswith("use an earlier one.")


def test_a_checkpoint_without_weights_is_refused(tmp_path, capsys):
    torch.save({"epoch": 1}, "other.ckpt")
    says = refusal(capsys, "test", "-c", tiny(tmp_path), "--ckpt_path", "other.ckpt")
    assert (
        says == "other.ckpt is not a checkpoint of a Lightning run: if it holds a net's weights, give it to --weights."
    )


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_a_checkpoint_with_pickled_code_is_refused_and_the_code_not_run(command, good, tmp_path, capsys):
    checkpoint = torch.load(good, weights_only=True)
    torch.save({**checkpoint, "extra": Intruder(tmp_path / "touched")}, "evil.ckpt")
    says = refusal(capsys, command, "-c", tiny(tmp_path), "--ckpt_path", "evil.ckpt")
    assert says.startswith("evil.ckpt holds more than tensors and plain values, so it was not loaded")
    with pytest.raises(ValueError, match=r"^evil\.ckpt "):
        load_net("evil.ckpt")
    assert not (tmp_path / "touched").exists()
    torch.load("evil.ckpt", weights_only=False)  # the trap is armed
    assert (tmp_path / "touched").exists()


def test_a_checkpoint_whose_net_is_a_program_is_refused_and_the_program_not_run(good, tmp_path):
    checkpoint = torch.load(good, weights_only=True)
    for net in ({"class_path": "subprocess.Popen", "init_args": {"args": ["touch", str(tmp_path / "touched")]}},
                   {"class_path": "os.system", "init_args": {"command": f"touch {tmp_path / 'touched'}"}}):  # fmt: skip
        torch.save(checkpoint | {"lit_robust": {"net": net}}, "evil.ckpt")
        with pytest.raises(ValueError, match=r"^evil\.ckpt: .*(subprocess\.Popen|os\.system)"):
            load_net("evil.ckpt")
    assert not (tmp_path / "touched").exists()


# Mistakes in Python, of which tests/test_wording.py has more.


def test_a_callback_says_what_a_module_lacks(tmp_path):
    fitting = trainer(tmp_path, max_epochs=1, callbacks=[AdversarialExamples(PGD())])
    with pytest.raises(ValueError, match=r"^x=0 .*Tensor"):
        fitting.fit(BoringModel())


def test_a_net_for_another_number_of_classes_is_refused_before_the_first_step(tmp_path):
    method = PGDAT(TinyNet(), CLASSES + 1, PGD())
    with pytest.raises(ValueError, match=f"^the net .*num_classes={CLASSES + 1}"):
        trainer(tmp_path, max_epochs=1).fit(method, loader(images()))


# Functions that a configuration would have called.


def of_a_system(command: str) -> str:
    return f"{{class_path: os.system, init_args: {{command: {command}}}}}"


@pytest.mark.parametrize(
    "flag",
    [
        "--model.attack.loss={}",
        "--model.test_attacks={{a: {{class_path: PGD, init_args: {{loss: {}}}}}}}",
        "--trainer.callbacks+={{class_path: LambdaCallback, init_args: {{on_fit_start: {}}}}}",
        "--model.lr_scheduler={{class_path: LambdaLR, init_args: {{lr_lambda: {}}}}}",
        "--trainer.strategy={{class_path: DDPStrategy, init_args: {{ddp_comm_hook: {}}}}}",
    ],
)
def test_a_function_that_makes_no_function_is_not_called(flag, tmp_path, capsys):
    touched = tmp_path / "touched"
    says = refusal(capsys, "fit", "-c", tiny(tmp_path), flag.format(of_a_system(f"touch {touched}")))
    assert "system was not called: " in says
    assert not touched.exists()


def test_a_users_function_that_is_annotated_to_make_one_is_called(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("my_losses.py").write_text(
        "from collections.abc import Callable\n"
        "from torch import Tensor\n"
        "from torch.nn import functional as F\n"
        "def cooled(temperature: float) -> Callable[[Tensor, Tensor], Tensor]:\n"
        "    return lambda logits, y: F.cross_entropy(logits / temperature, y, reduction='none')\n"
    )
    lit("fit", "--model.attack.loss={class_path: my_losses.cooled, init_args: {temperature: 2.0}}")
