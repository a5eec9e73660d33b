"""What a checkpoint holds of callbacks, averages and a method's memory is checked before any of it is restored."""

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from lit_robust import callbacks
from lit_robust.callbacks import CatastrophicOverfittingMonitor, EMAWeights
from lit_robust.defenses import PGDAT
from tests.methods import METHODS, build
from tests.stranger import DigitClassifier
from tests.test_callback_contracts import CASES, HERE, Case, FewDigits
from tests.test_resume import TinyData, differences
from tests.tiny import images, loader, trainer

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
#: What an entry may be besides its type.
MAY_BE_NULL = {"switch_epoch", "bound", "healthy", "alert", "error"}


def junk_for(name: str) -> Iterator[Any]:
    return (junk for what, junk in JUNK.items() if what != "null" or name not in MAY_BE_NULL)


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


@pytest.mark.filterwarnings("ignore:catastrophic overfitting")
@pytest.mark.parametrize("name", with_states())
def test_an_entry_of_a_callbacks_state_is_refused_by_its_name(name, tmp_path):
    case = with_states()[name]
    (callback,) = (one for one in after_two_epochs(case, tmp_path) if type(one).__name__ == name)
    good = deepcopy(callback.state_dict())
    callback.load_state_dict(deepcopy(good))
    for entry in good:
        for junk in junk_for(entry):
            with pytest.raises(ValueError, match=rf"^the checkpoint is broken: callbacks\[.*\]\.{entry} is ") as told:
                callback.load_state_dict(deepcopy(good) | {entry: junk})
            assert "\n" not in str(told.value)
            assert differences(callback.state_dict(), good) == []
        with pytest.raises(ValueError, match=rf"callbacks\[.*\] has no {entry}"):
            callback.load_state_dict({key: value for key, value in good.items() if key != entry})
    for junk in (None, 3, []):
        with pytest.raises(ValueError, match=r"callbacks\[.*\] is .* must be a mapping"):
            callback.load_state_dict(junk)


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
}


@pytest.mark.filterwarnings("ignore:catastrophic overfitting")
def test_what_is_inside_a_monitors_entries_is_checked(tmp_path):
    (monitor,) = after_two_epochs(CASES["a monitor"], tmp_path)
    monitor._batches = [images(9)]
    good = deepcopy(monitor.state_dict())
    good |= {"bound": (0.1, "linf")}
    for entry, tries in INSIDE.items():
        for path, junk in tries:
            with pytest.raises(ValueError, match=rf"\.{entry} is "):
                monitor.load_state_dict(good | {entry: changed(good[entry], path, junk)})
    monitor.load_state_dict(good | {"bound": (float("nan"), "linf")})  # of a module without an attack


@pytest.mark.filterwarnings("ignore:catastrophic overfitting")
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
    with pytest.raises(ValueError, match=r"\.earlier is .* the means acc"):
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
}


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
    before = deepcopy([module.state_dict(), callback._average.state_dict(), callback._updates])
    with pytest.raises(ValueError, match=rf"^the checkpoint's averages are broken .*{name}.* use an earlier") as told:
        callback.on_load_checkpoint(run, module, checkpoint)
    assert "\n" not in str(told.value)
    assert differences([module.state_dict(), callback._average.state_dict(), callback._updates], before) == []


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
