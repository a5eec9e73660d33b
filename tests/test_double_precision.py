"""precision=64-true: methods and callbacks run in 64 bits from the first step to the checkpoint and back."""

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lit_robust.callbacks import EMAWeights, PredictionWriter
from lit_robust.defenses import PGDAT
from tests.methods import METHODS, build
from tests.test_callback_contracts import CASES
from tests.test_resume import differences
from tests.tiny import images, indexed, trainer

#: One of each kind: no attack, replays, a penalty, memory of each image, averages, weight perturbation, curricula.
FEW = [
    "Natural",
    "FreeAT",
    "GradAlign",
    "CustomizedAT",
    "NuAT2-WA",
    "TRADES + AWP",
    "CurriculumAT",
    "HSAT by power iteration",
    "RMGM",
]


def double(tmp_path, *callbacks, epochs=1, **kwargs):
    return trainer(
        tmp_path, precision="64-true", callbacks=list(callbacks), max_epochs=epochs, log_every_n_steps=1, **kwargs
    )


def is_double(module):
    return {value.dtype for value in module.state_dict().values() if value.is_floating_point()} == {torch.float64}


@pytest.mark.parametrize("name", FEW)
def test_methods_train_and_are_tested(name, tmp_path):
    method = METHODS[name]
    module = build(method.cls, **method.arguments)
    run = double(tmp_path, *method.callbacks())
    run.fit(module, indexed(images()), indexed(images(8)))
    run.test(module, indexed(images(8)), verbose=False)
    assert is_double(module)
    assert all(is_double(average) for average in module.averaged.values())


@pytest.mark.filterwarnings("ignore:catastrophic overfitting")
@pytest.mark.parametrize("name", CASES)
def test_callbacks_run_for_all_their_epochs(name, tmp_path):
    case = CASES[name]
    module = case.module()
    double(tmp_path, *case.callbacks(tmp_path), epochs=4).fit(module, datamodule=case.data())
    assert is_double(module)


def test_predictions_are_written(tmp_path):
    writer = PredictionWriter(path=str(tmp_path / "a.csv"))
    double(tmp_path, writer).predict(build(PGDAT), indexed(images(8)), return_predictions=False)
    assert len((tmp_path / "a.csv").read_text().splitlines()) == 9


@pytest.mark.filterwarnings("ignore:The dirpath has changed", "ignore:Be aware that when using `ckpt_path`")
def test_a_checkpoint_is_restored_in_64_bits(tmp_path):
    def fit(folder, epochs, **resume):
        module = build(PGDAT)
        keep = ModelCheckpoint(tmp_path / folder, filename="a")
        averages = EMAWeights(0.9, extra={"fast": 0.5})
        run = double(tmp_path, keep, averages, epochs=epochs, enable_checkpointing=True)
        run.fit(module, indexed(images()), **resume)
        return torch.load(tmp_path / folder / "a.ckpt", weights_only=True)

    whole = fit("whole", 2)
    fit("half", 1)
    resumed = fit("rest", 2, ckpt_path=tmp_path / "half/a.ckpt", weights_only=True)
    parts = ("state_dict", "current_model_state", "averaging_state", "extra_averages", "optimizer_states")
    assert {part: differences(resumed[part], whole[part]) for part in parts} == {part: [] for part in parts}
    module = build(PGDAT)
    run = double(tmp_path)
    run.test(module, indexed(images(8)), ckpt_path=tmp_path / "whole/a.ckpt", weights_only=True, verbose=False)
    assert differences(dict(module.state_dict()), whole["state_dict"]) == []
