"""What a checkpoint holds of callbacks, averages and a method's memory is checked before any of it is restored."""

from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from lit_robust import callbacks
from lit_robust.batch import Batch
from lit_robust.callbacks import CatastrophicOverfittingMonitor, EMAWeights
from lit_robust.checkpoint_states import of_rank
from lit_robust.defenses import PGDAT, CustomizedAT
from tests.methods import METHODS, build
from tests.stranger import DigitClassifier
from tests.test_callback_contracts import CASES, HERE, Case, FewDigits
from tests.test_resume import TinyData, differences
from tests.tiny import SaveAfter, images, loader, trainer

JUNK: dict[str, Any] = {
    "null": None,
    "text": "junk",
    "nan": float("nan"),
    "negative": -1,
    "truth": True,
    "another shape": torch.zeros(7, 3),
    "a list of text": ["junk"],
    "a list of NaN": [float("nan")],
}
#: Entries that older versions did not have; they are written when they are true.
LATER = {"CoresetSelection": "pending", "CatastrophicOverfittingMonitor": "stopped"}
#: What an entry may be besides its type.
MAY_BE = {"null": {"switch_epoch", "bound", "healthy", "alert", "error"}, "truth": {*LATER.values()}}


def junk_for(name: str) -> Iterator[Any]:
    return (junk for what, junk in JUNK.items() if name not in MAY_BE.get(what, ()))


def with_states() -> dict[str, Case]:
    """Each kind of callback of ours that saves a state, in the case that has it."""
    states = {}
    for case in CASES.values():
        for callback in case.callbacks(None) if case.callbacks else []:
            if callback.state_dict():
                states.setdefault(type(callback).__name__, case)
    return states


def stateful() -> list[type[Callback]]:
    kinds = [kind for kind in vars(callbacks).values() if isinstance(kind, type) and issubclass(kind, Callback)]
    return [kind for kind in kinds if "load_state_dict" in vars(kind)]


def test_every_callback_with_a_state_is_tried():
    assert {kind.__name__ for kind in stateful()} == {*with_states(), "EMAWeights"}


def after_two_epochs(case: Case, tmp_path) -> list[Callback]:
    attached = case.callbacks(tmp_path)
    trainer(tmp_path, max_epochs=4, callbacks=attached).fit(case.module(), datamodule=case.data())
    return attached


@pytest.mark.filterwarnings("ignore:catastrophic overfitting")  # what the monitor is to find
@pytest.mark.parametrize("name", with_states())
def test_an_entry_of_a_callbacks_state_is_refused_by_its_name(name, tmp_path):
    case = with_states()[name]
    (callback,) = (one for one in after_two_epochs(case, tmp_path) if type(one).__name__ == name)
    good = deepcopy(callback.state_dict()) | ({LATER[name]: True} if name in LATER else {})
    callback.load_state_dict(deepcopy(good))
    for entry in good:
        for junk in junk_for(entry):
            with pytest.raises(ValueError, match=rf"^the checkpoint .*callbacks\[.*\]\.{entry} is ") as told:
                callback.load_state_dict(deepcopy(good) | {entry: junk})
            assert "\n" not in str(told.value)
            assert differences(callback.state_dict(), good) == []
        if entry != LATER.get(name):
            with pytest.raises(ValueError, match=rf"callbacks\[.*\] has no {entry}"):
                callback.load_state_dict({key: value for key, value in good.items() if key != entry})
    for junk in (None, 3, []):
        with pytest.raises(ValueError, match=r"callbacks\[.*\] is .* mapping"):
            callback.load_state_dict(junk)


@pytest.mark.filterwarnings("ignore:catastrophic overfitting")  # what the monitor is to find
@pytest.mark.parametrize("name", LATER)
def test_a_checkpoint_of_an_older_version_without_later_entries_resumes(name, tmp_path):
    case = with_states()[name]
    first = trainer(tmp_path, max_epochs=1, callbacks=case.callbacks(tmp_path))
    first.fit(case.module(), datamodule=case.data())
    first.save_checkpoint(tmp_path / "a.ckpt")
    older = torch.load(tmp_path / "a.ckpt", weights_only=True)
    for state in older["callbacks"].values():
        state.pop(LATER[name], None)
    torch.save(older, tmp_path / "a.ckpt")
    second = trainer(tmp_path, max_epochs=2, callbacks=case.callbacks(tmp_path))
    second.fit(case.module(), datamodule=case.data(), ckpt_path=tmp_path / "a.ckpt")
    assert second.current_epoch == 2


def changed(entry: Any, path: tuple, junk: Any) -> Any:
    """A copy of an entry with one value inside replaced."""
    if not path:
        return junk
    copy = list(entry) if isinstance(entry, tuple | list) else dict(entry)
    copy[path[0]] = changed(copy[path[0]], path[1:], junk)
    return tuple(copy) if isinstance(entry, tuple) else copy


X, Y = (0, 0), (0, 1)
INSIDE = {
    "earlier": [((0,), {}), ((0,), {1: 2.0}), ((0, "acc"), "junk"), ((0, "acc"), None), ((0,), {"other": 1.0})],
    "bound": [((0,), -1.0), ((0,), "junk"), ((0,), float("inf")), ((1,), "l3"), ((1,), None), ((), (0.1,))],
    "batches": [
        ((0,), ()),
        (X, None),
        (X, torch.zeros(3)),
        (X, torch.full((9, 3, 8, 8), float("nan"))),
        (X, torch.full((9, 3, 8, 8), 2.0)),
        (X, torch.zeros(9, 3, 8, 8, dtype=torch.int64)),
        (Y, torch.zeros(2)),
        (Y, torch.zeros(1, dtype=torch.int64)),
        ((0, 3), torch.zeros(1)),
        ((0, 3), "junk"),
    ],
    "stopped": [((), None), ((), 1)],
}


@pytest.mark.filterwarnings("ignore:catastrophic overfitting")  # what the monitor is to find
def test_what_is_inside_a_monitors_entries_is_checked(tmp_path):
    (monitor,) = after_two_epochs(CASES["a monitor"], tmp_path)
    good = deepcopy(monitor.state_dict()) | {"bound": (0.1, "linf"), "batches": [tuple(images(9))], "stopped": True}
    for entry, tries in INSIDE.items():
        for path, junk in tries:
            with pytest.raises(ValueError, match=rf"\.{entry} is "):
                monitor.load_state_dict(good | {entry: changed(good[entry], path, junk)})
    monitor.load_state_dict(good | {"bound": (float("nan"), "linf")})  # of a module without an attack


@pytest.mark.filterwarnings("ignore:catastrophic overfitting")  # what the monitor is to find
@pytest.mark.parametrize("stranger", [False, True])
def test_weights_to_restore_are_those_of_the_net(stranger, tmp_path):
    here = HERE if stranger else {}
    make = DigitClassifier if stranger else lambda: build(PGDAT)
    data = (lambda: FewDigits(batch_size=32)) if stranger else TinyData
    rule = CASES["a monitor"].callbacks(None)[0].rule

    def run(epochs):
        monitor = CatastrophicOverfittingMonitor(rule, "restore", images=9, **here)
        return trainer(tmp_path, max_epochs=epochs, callbacks=[monitor])

    first = run(1)
    first.fit(make(), datamodule=data())
    first.save_checkpoint(tmp_path / "a.ckpt")
    good = torch.load(tmp_path / "a.ckpt", weights_only=True)
    (key,) = good["callbacks"]
    name = next(iter(good["callbacks"][key]["healthy"]))
    for junk in (torch.zeros(7), None, "junk"):
        bad = deepcopy(good)
        bad["callbacks"][key]["healthy"][name] = junk
        torch.save(bad, tmp_path / "b.ckpt")
        with pytest.raises(ValueError, match=rf"\.healthy.*{name} is |\.healthy is ") as told:
            run(2).fit(make(), datamodule=data(), ckpt_path=tmp_path / "b.ckpt", weights_only=True)
        assert "\n" not in str(told.value)
    bad = deepcopy(good)
    bad["callbacks"][key]["earlier"] = [{"other": 1.0}]
    torch.save(bad, tmp_path / "b.ckpt")
    with pytest.raises(ValueError, match=r"\.earlier is .* means acc"):
        run(2).fit(make(), datamodule=data(), ckpt_path=tmp_path / "b.ckpt", weights_only=True)


AVERAGES = {
    "a negative count": ("n_averaged", lambda c: c["averaging_state"].update(n_averaged=torch.tensor(-1))),
    "counts": ("n_averaged", lambda c: c["averaging_state"].update(n_averaged=torch.zeros(3))),
    "NaN for a count": ("n_averaged", lambda c: c["averaging_state"].update(n_averaged=torch.tensor(float("nan")))),
    "null for a count": ("n_averaged", lambda c: c["averaging_state"].update(n_averaged=None)),
    "null for extra averages": ("extra_averages", lambda c: c.update(extra_averages=None)),
    "null for the averages": ("averaging_state", lambda c: c.update(averaging_state=None)),
    "no averages": ("averaging_state", lambda c: c.pop("averaging_state")),
    "NaN in an average": ("state_dict", lambda c: next(iter(c["state_dict"].values())).fill_(float("nan"))),
    "text for weights": ("current_model_state", lambda c: c.update(current_model_state="junk")),
    "text for the buffers of ranks": ("averaged_buffers is", lambda c: c.update(averaged_buffers="junk")),
    "a number for a rank's buffer": ("averaged_buffers is", lambda c: c.update(averaged_buffers=[{"a": 3}])),
    "a rank's buffer of another shape": (
        r"averaged_buffers\[0\]\.extra_averages\.fast\.body\.1\.running_mean is ",
        lambda c: c.update(averaged_buffers=[{"extra_averages.fast.body.1.running_mean": torch.zeros(3)}]),
    ),
    "NaN in a rank's buffer": (
        r"averaged_buffers\[0\]\.state_dict\.net\.body\.1\.running_var is ",
        lambda c: c.update(averaged_buffers=[{"state_dict.net.body.1.running_var": torch.full((8,), float("nan"))}]),
    ),
}


def averages_in(run: Trainer, path: Path) -> dict[str, Any]:
    """The weights, the averages and the number of their updates in a checkpoint that is written now."""
    run.save_checkpoint(path)
    written = torch.load(path, weights_only=True)
    sections = ("state_dict", "current_model_state", "averaging_state", "extra_averages")
    return {section: written[section] for section in sections}


@pytest.mark.parametrize("part", AVERAGES)
def test_averages_are_checked_before_any_is_restored(part, tmp_path):
    name, change = AVERAGES[part]
    callback = EMAWeights(0.9, extra={"fast": 0.5})
    run = trainer(tmp_path, max_epochs=1, callbacks=[callback])
    module = build(PGDAT)
    run.fit(module, loader(images(8)))
    run.save_checkpoint(tmp_path / "a.ckpt")
    checkpoint = torch.load(tmp_path / "a.ckpt", weights_only=True)
    change(checkpoint)
    callback.setup(run, module, "fit")  # of a fit that is to be resumed
    before = averages_in(run, tmp_path / "before.ckpt")
    with pytest.raises(ValueError, match=rf"^the checkpoint's averages .*{name}") as told:
        callback.on_load_checkpoint(run, module, checkpoint)
    assert "\n" not in str(told.value)
    assert differences(averages_in(run, tmp_path / "after.ckpt"), before) == []


UNFIT_BATCHES = {
    "another number of channels": images(9)._replace(x=torch.zeros(9, 2, 8, 8)),
    "another size": images(9)._replace(x=torch.zeros(9, 3, 4, 4)),
    "classes that the net has not": None,
}


@pytest.mark.filterwarnings("ignore:catastrophic overfitting")  # what the monitor is to find
@pytest.mark.filterwarnings("ignore:You.re resuming from a checkpoint that ended")  # a stranger's loader
@pytest.mark.parametrize("stranger", [False, True])
@pytest.mark.parametrize("name", UNFIT_BATCHES)
def test_kept_batches_are_those_of_the_training(name, stranger, tmp_path):
    make = DigitClassifier if stranger else lambda: build(PGDAT)
    data = (lambda: FewDigits(batch_size=32)) if stranger else TinyData
    rule = CASES["a monitor"].callbacks(None)[0].rule

    def fit(**kwargs):
        monitor = CatastrophicOverfittingMonitor(rule, images=9, **(HERE if stranger else {}))
        run = trainer(tmp_path, max_epochs=1, callbacks=[monitor, SaveAfter(1, tmp_path / "a.ckpt")])
        run.fit(make(), datamodule=data(), weights_only=True, **kwargs)

    fit()
    checkpoint = torch.load(tmp_path / "a.ckpt", weights_only=True)
    (key,) = checkpoint["callbacks"]
    assert checkpoint["callbacks"][key]["batches"]
    fit(ckpt_path=tmp_path / "a.ckpt")
    kept = Batch(*checkpoint["callbacks"][key]["batches"][0])
    bad = UNFIT_BATCHES[name] or kept._replace(y=torch.full_like(kept.y, 99))
    checkpoint["callbacks"][key]["batches"] = [tuple(bad)]
    torch.save(checkpoint, tmp_path / "b.ckpt")
    with pytest.raises(ValueError, match=r"^the checkpoint .*callbacks\[.*\]\.batches is a Tensor") as told:
        fit(ckpt_path=tmp_path / "b.ckpt")
    assert "\n" not in str(told.value)


UNFIT = {
    "more steps than the attack has": ("CurriculumAT", {"k": 3}, "k=3, but attack.steps=2"),
    "steps without end": ("CurriculumAT", {"k": 10**12}, "k=1e\\+12, but attack.steps=2"),
    "a time without a value": ("NuAT-H", {"times": [0.1, 0.2], "values": [1.0]}, r"memory\.values\.times is"),
    "a value without a time": ("NuAT-H", {"times": [], "values": [1.0]}, r"memory\.values\.times is"),
    "times that run back": ("NuAT-H", {"times": [0.2, 0.1], "values": [1.0, 1.0]}, r"times in order"),
}


@pytest.mark.parametrize("entries", UNFIT)
def test_values_that_do_not_belong_together_are_refused_before_training(entries, tmp_path):
    name, values, says = UNFIT[entries]
    method = METHODS[name]

    def fit(epochs, **kwargs):
        run = trainer(tmp_path, max_epochs=epochs)
        run.fit(build(method.cls, **method.arguments), datamodule=TinyData(), weights_only=True, **kwargs)
        return run

    fit(1).save_checkpoint(tmp_path / "a.ckpt")
    checkpoint = torch.load(tmp_path / "a.ckpt", weights_only=True)
    checkpoint["lit_robust"]["memory"]["values"] |= values
    torch.save(checkpoint, tmp_path / "b.ckpt")
    with pytest.raises(ValueError, match=says) as told:
        fit(2, ckpt_path=tmp_path / "b.ckpt")
    assert "\n" not in str(told.value)


STATISTICS = {
    "another shape": ([{"body.1.running_mean": torch.zeros(3)}], r"buffers\[0\]\.body\.1\.running_mean is "),
    "another kind": ([{"body.1.running_mean": torch.zeros(8).long()}], r"buffers\[0\]\.body\.1\.running_mean is "),
    "NaN": ([{"body.1.running_var": torch.full((8,), float("nan"))}], r"buffers\[0\]\.body\.1\.running_var is "),
    "no tensor": ([{"body.1.running_var": 3}], r"lit_robust\.buffers is "),
    "no ranks": ({"body.1.running_var": torch.zeros(8)}, r"lit_robust\.buffers is "),
}


@pytest.mark.parametrize("name", STATISTICS)
def test_buffers_of_ranks_are_those_of_the_net(name, tmp_path):
    buffers, says = STATISTICS[name]

    def fit(epochs, **kwargs):
        run = trainer(tmp_path, max_epochs=epochs)
        run.fit(build(PGDAT), loader(images(8)), weights_only=True, **kwargs)
        return run

    fit(1).save_checkpoint(tmp_path / "a.ckpt")
    checkpoint = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert checkpoint["lit_robust"]["buffers"] == []
    checkpoint["lit_robust"]["buffers"] = buffers
    torch.save(checkpoint, tmp_path / "b.ckpt")
    with pytest.raises(ValueError, match=rf"^the checkpoint .*{says}") as told:
        fit(2, ckpt_path=tmp_path / "b.ckpt")
    assert "\n" not in str(told.value)


def test_a_ranks_tensors_are_taken_where_there_are_as_many_ranks_and_names_that_are_known():
    own, saved = {"mean": torch.zeros(2), "var": torch.zeros(2)}, {"mean": torch.ones(2), "other": torch.ones(3)}
    found = of_rank("buffers", [saved], 0, own)
    assert list(found) == ["mean"]
    assert torch.equal(found["mean"], saved["mean"])
    for ranks in ([], [saved, saved], [{"mean": torch.ones(3)}] * 2):
        assert of_rank("buffers", ranks, 0, own) == {}


def test_tensors_of_ranks_that_do_not_belong_together_are_refused():
    module = build(CustomizedAT)
    whole = {"numbers": torch.zeros(3), "changed": torch.zeros(3, dtype=torch.bool)}
    for broken in ({"numbers": torch.zeros(3)}, whole | {"numbers": torch.zeros(4)}):
        with pytest.raises(ValueError, match=r"memory\.tensors of 2 ranks"):
            module.memory.load_state_dict({"tensors": [whole, broken]}, 0)


def test_tables_of_different_lengths_are_made_equal(tmp_path):
    method = METHODS["CustomizedAT"]
    module, run = build(method.cls, **method.arguments), trainer(tmp_path, max_epochs=1)
    run.fit(module, datamodule=TinyData())
    checkpoint = tmp_path / "a.ckpt"
    run.save_checkpoint(checkpoint)
    bad = torch.load(checkpoint, weights_only=True)
    bad["lit_robust"]["memory"]["tensors"] = [{"numbers": torch.zeros(500)}]
    torch.save(bad, checkpoint)
    trainer(tmp_path, max_epochs=2).fit(module, datamodule=TinyData(), ckpt_path=checkpoint, weights_only=True)
    assert {len(table) for table in module.memory.tensors.values()} == {500}


@pytest.mark.parametrize("name", METHODS)
def test_a_methods_memory_is_checked_before_any_is_restored(name, tmp_path):
    method = METHODS[name]
    module = build(method.cls, **method.arguments)
    run = trainer(tmp_path, max_epochs=1, limit_train_batches=2, callbacks=method.callbacks())
    run.fit(module, datamodule=TinyData())
    good = deepcopy(module.memory.state_dict())
    module.memory.load_state_dict(deepcopy(good), 0)
    for section, entries in {"values": good["values"], "tensors": good["tensors"][0]}.items():
        for entry, right in entries.items():
            nan = [torch.full_like(right, float("nan"))] if section == "tensors" and right.is_floating_point() else []
            for junk in [*junk_for(entry), *nan]:
                if (entry, junk if isinstance(junk, int) else None) in {("best", -1), ("alert", True)}:
                    continue  # which they may be
                bad = deepcopy(good)
                (bad["values"] if section == "values" else bad["tensors"][0])[entry] = junk
                with pytest.raises(ValueError, match=rf"memory\.(values|tensors)(\.{entry})? is ") as told:
                    module.memory.load_state_dict(bad, 0)
                assert "\n" not in str(told.value)
                assert differences(module.memory.state_dict(), good) == []
