"""A checkpoint resumes with the optimizer and scheduler that it was trained with; other states are refused."""

import math
import re
from functools import partial

import pytest
import torch
from torch.optim.lr_scheduler import CyclicLR, ExponentialLR, LinearLR, StepLR

from lit_robust.checkpoint_files import read_checkpoint
from lit_robust.data.saved import position_of, selection_of
from lit_robust.defenses import Natural
from tests.methods import build
from tests.test_resume import TinyData
from tests.tiny import SaveAfter, images, loader, trainer

KINDS = ("SGD", "Adam", "AdamW", "RAdam", "NAdam", "Adamax", "RMSprop", "Adagrad", "Adadelta", "ASGD", "Rprop")


def fit(path, epochs, ckpt_path=None, data=None, **arguments):
    run = trainer(path, max_epochs=epochs)
    run.fit(build(Natural, **arguments), data or loader(images(8)), ckpt_path=ckpt_path, weights_only=True)
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


class NeedsClosure(torch.optim.SGD):
    def step(self, closure):
        return super().step(closure)


@pytest.mark.parametrize("resumed", [False, True])
@pytest.mark.parametrize("kind", [torch.optim.SparseAdam, torch.optim.LBFGS, NeedsClosure])
def test_an_optimizer_that_cannot_take_the_steps_is_refused_before_training(kind, resumed, of_each_kind, tmp_path):
    torch.save(of_each_kind["Adam"], tmp_path / "x.ckpt")
    with pytest.raises(ValueError, match=rf"^the optimizer {kind.__name__} .*: use .*Adam"):
        fit(tmp_path, 2, tmp_path / "x.ckpt" if resumed else None, optimizer=partial(kind, lr=0.01))


def settings_of(kind):
    return set(getattr(torch.optim, kind)([torch.zeros(1)], lr=0.01).param_groups[0])


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
        if not named and settings_of(mine) == settings_of(theirs):  # Adam and AdamW before torch 2.7
            continue
        with pytest.raises(ValueError, match=r"^the checkpoint .* optimizer") as refused:
            fit(tmp_path, 2, tmp_path / "y.ckpt", optimizer=make)
        assert not named or {theirs, mine} <= set(re.findall(r"\w+", str(refused.value)))


UNFIT = {
    "optimizer": partial(torch.optim.SGD, lr=None),
    "lr_scheduler": partial(CyclicLR, base_lr=0.1, max_lr=0.2, step_size_up=0),
}
UNFIT_TOO = {"optimizer": partial(torch.optim.Adam, betas=(0.9,)), "lr_scheduler": partial(LinearLR, start_factor=None)}


@pytest.mark.parametrize("parts", [UNFIT, UNFIT_TOO])
@pytest.mark.parametrize("name", UNFIT)
def test_arguments_from_which_a_part_cannot_be_built_are_refused_before_training(name, parts, tmp_path):
    with pytest.raises(ValueError, match=rf"^{name} cannot be built .*\(.*Error: .*\): "):
        fit(tmp_path, 1, **{name: parts[name]})


def test_a_negative_rate_of_torchs_scheduler_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"^lr_scheduler .* -0\.09 at epoch 1: "):
        fit(tmp_path, 2, lr_scheduler=partial(ExponentialLR, gamma=-0.9))


def test_options_that_change_the_step_are_refused(tmp_path):
    saved(tmp_path, optimizer=torch.optim.Adam)
    with pytest.raises(ValueError, match="amsgrad"):
        fit(tmp_path, 2, tmp_path / "x.ckpt", optimizer=partial(torch.optim.Adam, amsgrad=True))


def test_a_state_that_lacks_what_the_optimizer_needs_is_refused(tmp_path):
    checkpoint = saved(tmp_path, optimizer=torch.optim.Adam)
    del checkpoint["optimizer_states"][0]["state"][0]["exp_avg"]
    torch.save(checkpoint, tmp_path / "x.ckpt")
    with pytest.raises(ValueError, match=r"Adam.* exp_avg "):
        fit(tmp_path, 2, tmp_path / "x.ckpt", optimizer=torch.optim.Adam)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("param_groups", 0, "params", 1), -1),
        (("param_groups", 0, "params", 1), 0),
        (("param_groups", 0, "params", 1), torch.zeros(0)),
        (("param_groups", 0, "betas"), ("../etc", 0.9)),
        (("state", 0, "step"), torch.tensor(-math.inf)),
        (("state", 0, "step"), torch.tensor(-1.0)),
        (("state", 0, "exp_avg", 0), math.nan),
    ],
    ids=lambda of: ".".join(map(str, of)) if isinstance(of, tuple) and of[0] in ("state", "param_groups") else str(of),
)
def test_a_state_that_no_optimizer_has_is_refused(place, value, tmp_path):
    checkpoint = saved(tmp_path, optimizer=torch.optim.Adam)
    *above, last = place
    parent = checkpoint["optimizer_states"][0]
    for key in above:
        parent = parent[key]
    parent[last] = value
    torch.save(checkpoint, tmp_path / "x.ckpt")
    with pytest.raises(ValueError, match=r"optimizer_states\."):
        fit(tmp_path, 2, tmp_path / "x.ckpt", optimizer=torch.optim.Adam)


@pytest.mark.parametrize("states", [[], ["x"], [None], 2], ids=str)
def test_one_optimizer_has_one_state(states, tmp_path):
    checkpoint = saved(tmp_path, optimizer=torch.optim.Adam)
    own = checkpoint["optimizer_states"]
    torch.save(checkpoint | {"optimizer_states": 2 * own if states == 2 else states}, tmp_path / "x.ckpt")
    with pytest.raises(ValueError, match="optimizer_states"):
        fit(tmp_path, 2, tmp_path / "x.ckpt", optimizer=torch.optim.Adam)


@pytest.mark.parametrize("states", [["x"], [None], [{}, {}]], ids=str)
def test_states_of_schedulers_are_checked_without_one(states, tmp_path):
    torch.save(saved(tmp_path) | {"lr_schedulers": states}, tmp_path / "x.ckpt")
    with pytest.raises(ValueError, match="lr_schedulers"):
        fit(tmp_path, 2, tmp_path / "x.ckpt")


def test_another_scheduler_is_refused(tmp_path):
    step = partial(StepLR, step_size=1)
    saved(tmp_path, lr_scheduler=partial(ExponentialLR, gamma=0.9))
    with pytest.raises(ValueError, match=r"ExponentialLR.* StepLR"):
        fit(tmp_path, 2, tmp_path / "x.ckpt", lr_scheduler=step)
    saved(tmp_path)
    with pytest.raises(ValueError, match="StepLR"):
        fit(tmp_path, 2, tmp_path / "x.ckpt", lr_scheduler=step)


COUNTS = {"epoch": [-5, 2**70, True, -1], "global_step": [2**70, -1]}
JUNK = [None, 5, "abc", [5.0], [None], [{"a": 5}], {"a": {"b": [None]}}]
OURS = {
    "rows": [*JUNK, [-4], [True], {}],
    "callback_metrics": [*JUNK, {5: torch.zeros(())}, {"a": torch.zeros(2)}, {"a": torch.tensor(1j)}],
    "unlogged": [5, "abc", [], {"row": 5}, {"epoch": {"train/x": "=cmd"}}, {"row": {"=cmd": 1.0}}, {"epoch": None}],
    "metrics": [None, 5, "abc", [5], [{"a": 5}], [{"a": torch.zeros(3)}]],
    "memory": [None, 5, "abc", [], {"tensors": 5}, {"tensors": [{"a": 5}]}, {"values": {"a": "abc"}}, {"values": []}],
    "data": [None, 5, "abc", []],
    "optimizer": [5, [], {}],
    "lr_scheduler": [5, [], {}],
    "base_rates": [None, 5, "abc", ["abc"], [None], [-0.1], [math.nan], [math.inf], {}],
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
        with pytest.raises(ValueError, match=rf"x\.ckpt .*\b{section} ") as refused:
            read_checkpoint(tmp_path / "x.ckpt")
        assert not re.search("\n", str(refused.value))


@pytest.mark.parametrize("junk", [None, 5, "abc", [], {}, {"epoch": -1, "batches": 0}, {"epoch": 0, "batches": "a"}])
def test_a_loaders_position_is_checked(junk):
    with pytest.raises(ValueError, match="loader's state"):
        position_of(junk)


@pytest.mark.parametrize("batches", [4, 10**9])
def test_a_position_beyond_the_epoch_is_refused_before_training(batches, tmp_path):
    def run(**kwargs):
        save = SaveAfter(1, tmp_path / "x.ckpt")
        data = TinyData()
        trainer(tmp_path, max_epochs=1, callbacks=[save]).fit(build(Natural), data, weights_only=True, **kwargs)

    run()
    checkpoint = torch.load(tmp_path / "x.ckpt", weights_only=True)
    (state,) = checkpoint["loops"]["fit_loop"]["state_dict"]["combined_loader"]
    state["batches"] = batches
    torch.save(checkpoint, tmp_path / "x.ckpt")
    with pytest.raises(ValueError, match=f" {batches} batches .* 3 here: "):
        run(ckpt_path=tmp_path / "x.ckpt")


@pytest.mark.parametrize(
    "loaders", [[{}], [{"epoch": 0}], [{"epoch": 0, "batches": -1}], [{}, {}], [3], {}, None], ids=str
)
def test_what_a_checkpoint_holds_of_loaders_is_checked_before_training(loaders, tmp_path):
    trainer(tmp_path, max_epochs=1, callbacks=[SaveAfter(1, tmp_path / "x.ckpt")]).fit(build(Natural), TinyData())
    checkpoint = torch.load(tmp_path / "x.ckpt", weights_only=True)
    assert len(checkpoint["loops"]["fit_loop"]["state_dict"]["combined_loader"]) == 1
    checkpoint["loops"]["fit_loop"]["state_dict"]["combined_loader"] = loaders
    torch.save(checkpoint, tmp_path / "x.ckpt")
    with pytest.raises(ValueError, match=r"^the checkpoint .*loader") as told:
        fit(tmp_path, 2, tmp_path / "x.ckpt", data=TinyData())
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("junk", [None, 5, "abc", [], {}, {"selection": 5}, {"selection": {"indices": "abc"}}])
def test_a_selection_is_checked(junk):
    with pytest.raises(ValueError, match="selection"):
        selection_of(junk)
