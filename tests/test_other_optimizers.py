"""A checkpoint resumes with the optimizer and scheduler that it was trained with; other states are refused."""

import re
from functools import partial

import pytest
import torch
from torch.optim.lr_scheduler import ExponentialLR, StepLR

from lit_robust.checkpoint_files import read_checkpoint
from lit_robust.data.saved import position_of, selection_of
from lit_robust.defenses import Natural
from tests.methods import build
from tests.tiny import images, loader, trainer

KINDS = ("SGD", "Adam", "AdamW", "RAdam", "NAdam", "Adamax", "RMSprop", "Adagrad", "Adadelta", "ASGD", "Rprop")


def fit(path, epochs, ckpt_path=None, **arguments):
    run = trainer(path, max_epochs=epochs)
    run.fit(build(Natural, **arguments), loader(images(8)), ckpt_path=ckpt_path, weights_only=True)
    return run


def saved(folder, **arguments):
    fit(folder, 1, **arguments).save_checkpoint(folder / "x.ckpt")
    return torch.load(folder / "x.ckpt", weights_only=True)


@pytest.fixture(scope="module")
def of_each_kind(tmp_path_factory):
    return {
        name: saved(tmp_path_factory.mktemp(name), optimizer=partial(getattr(torch.optim, name), lr=0.01))
        for name in KINDS
    }


@pytest.mark.parametrize("named", [True, False], ids=["named", "of an older version"])
@pytest.mark.parametrize("theirs", KINDS)
def test_another_optimizer_is_refused_and_its_own_resumes(of_each_kind, theirs, named, tmp_path):
    checkpoint = of_each_kind[theirs]
    ours = {key: value for key, value in checkpoint["lit_robust"].items() if named or key != "optimizer"}
    torch.save(checkpoint | {"lit_robust": ours}, tmp_path / "y.ckpt")
    for mine in KINDS:
        make = partial(getattr(torch.optim, mine), lr=0.01)
        if mine == theirs:
            fit(tmp_path, 2, tmp_path / "y.ckpt", optimizer=make)
            continue
        with pytest.raises(ValueError, match=r"was trained with (the|another) optimizer") as refused:
            fit(tmp_path, 2, tmp_path / "y.ckpt", optimizer=make)
        assert not named or f"the optimizer {theirs}, and this training has {mine}" in str(refused.value)


def test_options_that_change_the_step_are_refused(tmp_path):
    saved(tmp_path, optimizer=torch.optim.Adam)
    with pytest.raises(ValueError, match="amsgrad=False became True"):
        fit(tmp_path, 2, tmp_path / "x.ckpt", optimizer=partial(torch.optim.Adam, amsgrad=True))


def test_a_state_that_lacks_what_the_optimizer_needs_is_refused(tmp_path):
    checkpoint = saved(tmp_path, optimizer=torch.optim.Adam)
    del checkpoint["optimizer_states"][0]["state"][0]["exp_avg"]
    torch.save(checkpoint, tmp_path / "x.ckpt")
    with pytest.raises(
        ValueError, match="broken or was trained with another optimizer than this Adam, because it kept no exp_avg"
    ):
        fit(tmp_path, 2, tmp_path / "x.ckpt", optimizer=torch.optim.Adam)


@pytest.mark.parametrize("states", [[], ["x"], [None], 2], ids=str)
def test_one_optimizer_has_one_state(states, tmp_path):
    checkpoint = saved(tmp_path, optimizer=torch.optim.Adam)
    own = checkpoint["optimizer_states"]
    torch.save(checkpoint | {"optimizer_states": 2 * own if states == 2 else states}, tmp_path / "x.ckpt")
    with pytest.raises(ValueError, match="the checkpoint is broken: optimizer_states"):
        fit(tmp_path, 2, tmp_path / "x.ckpt", optimizer=torch.optim.Adam)


@pytest.mark.parametrize("states", [["x"], [None], [{}, {}]], ids=str)
def test_states_of_schedulers_are_checked_without_one(states, tmp_path):
    torch.save(saved(tmp_path) | {"lr_schedulers": states}, tmp_path / "x.ckpt")
    with pytest.raises(ValueError, match="the checkpoint is broken: lr_schedulers"):
        fit(tmp_path, 2, tmp_path / "x.ckpt")


def test_another_scheduler_is_refused(tmp_path):
    step = partial(StepLR, step_size=1)
    saved(tmp_path, lr_scheduler=partial(ExponentialLR, gamma=0.9))
    with pytest.raises(ValueError, match="with ExponentialLR, and this training has StepLR"):
        fit(tmp_path, 2, tmp_path / "x.ckpt", lr_scheduler=step)
    saved(tmp_path)
    with pytest.raises(ValueError, match="with no torch scheduler, and this training has StepLR"):
        fit(tmp_path, 2, tmp_path / "x.ckpt", lr_scheduler=step)


COUNTS = {"epoch": [-5, 2**70, True, -1], "global_step": [2**70, -1]}
JUNK = [None, 5, "abc", [5.0], [None], [{"a": 5}], {"a": {"b": [None]}}]
OURS = {
    "rows": [*JUNK, [-4], [True], {}],
    "unlogged": [5, "abc", [], {"row": 5}, {"epoch": {"train/x": "=cmd"}}, {"row": {"=cmd": 1.0}}, {"epoch": None}],
    "metrics": [None, 5, "abc", [5], [{"a": 5}], [{"a": torch.zeros(3)}]],
    "memory": [None, 5, "abc", [], {"tensors": 5}, {"tensors": [{"a": 5}]}, {"values": {"a": "abc"}}, {"values": []}],
    "data": [None, 5, "abc", []],
    "optimizer": [5, [], {}],
    "lr_scheduler": [5, [], {}],
    "validation_is_due": [None, 5, "abc", []],
}


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("good"))


@pytest.mark.parametrize("section", [*COUNTS, *OURS])
def test_what_is_read_of_a_section_is_checked(good, section, tmp_path):
    for junk in (COUNTS | OURS)[section]:
        bad = {section: junk} if section in COUNTS else {"lit_robust": good["lit_robust"] | {section: junk}}
        torch.save(good | bad, tmp_path / "x.ckpt")
        with pytest.raises(
            ValueError, match=rf"x\.ckpt is broken: its (section lit_robust\.)?{section} is "
        ) as refused:
            read_checkpoint(tmp_path / "x.ckpt")
        assert not re.search("\n", str(refused.value))


@pytest.mark.parametrize("junk", [None, 5, "abc", [], {}, {"epoch": -1, "batches": 0}, {"epoch": 0, "batches": "a"}])
def test_a_loaders_position_is_checked(junk):
    with pytest.raises(ValueError, match="the checkpoint is broken: its loader's state is"):
        position_of(junk)


@pytest.mark.parametrize("junk", [None, 5, "abc", [], {}, {"selection": 5}, {"selection": {"indices": "abc"}}])
def test_a_selection_is_checked(junk):
    with pytest.raises(ValueError, match="the checkpoint is broken: the data's selection is"):
        selection_of(junk)
