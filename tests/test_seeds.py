import random
from typing import ClassVar

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, seed_everything
from torch.utils.data import DataLoader, TensorDataset

from lit_robust.defenses import PGDAT
from lit_robust.guards import own_random_state
from lit_robust.seeds import derive_seed, seed
from tests.methods import build
from tests.tiny import SaveAfter, images, loader, trainer


def drawn():
    return torch.rand(4)


def test_random_numbers_depend_on_the_place_in_the_run(monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    seed(torch.device("cpu"), "train", 3)
    first = drawn()
    torch.manual_seed(derive_seed(7, "train", 3))
    assert torch.equal(drawn(), first)
    seed(torch.device("cpu"), "train", 4)
    assert not torch.equal(drawn(), first)
    monkeypatch.setenv("PL_GLOBAL_SEED", "8")
    seed(torch.device("cpu"), "train", 3)
    assert not torch.equal(drawn(), first)


def drawn_everywhere():
    return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002  # the global generator


def test_python_and_numpy_are_seeded_too_and_restored_by_a_guard_as_torch_is():
    cpu = torch.device("cpu")
    seed(cpu, "train", 3)
    first, later = drawn_everywhere(), drawn_everywhere()
    assert all(a != b for a, b in zip(first, later, strict=True))
    seed(cpu, "train", 3)
    assert drawn_everywhere() == first
    with own_random_state(cpu):
        seed(cpu, "train", 4)
        other = drawn_everywhere()
    assert drawn_everywhere() == later
    assert all(a != b for a, b in zip(first, other, strict=True))


def test_an_accelerator_is_seeded_too_and_no_other(monkeypatch):
    class Accelerator:
        seeds: ClassVar[list[int]] = []
        manual_seed = seeds.append

    monkeypatch.setattr(torch, "get_device_module", {torch.device("cuda", 1): Accelerator}.__getitem__)
    seed(torch.device("cpu"), "train")
    assert Accelerator.seeds == []
    seed(torch.device("cuda", 1), "train")
    assert Accelerator.seeds == [derive_seed(0, "train")]


class Orders(Callback):
    """The first pixels of the images of each epoch, in their order."""

    def __init__(self):
        self.epochs = []

    def on_train_epoch_start(self, trainer, pl_module):
        self.epochs.append([])

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.epochs[-1] += batch[0][:, 0, 0, 0].tolist()


def orders_of(tmp_path, workers, callbacks=(), ckpt_path=None, **kwargs):
    seed_everything(0, verbose=False)
    batch, orders = images(), Orders()
    shuffled = DataLoader(TensorDataset(batch.x, batch.y), 8, shuffle=True, num_workers=workers, **kwargs)
    run = trainer(tmp_path, max_epochs=4, callbacks=[orders, *callbacks])
    run.fit(build(PGDAT), shuffled, loader(images(8)), ckpt_path=ckpt_path, weights_only=True)
    return orders.epochs


@pytest.mark.parametrize("workers", [0, 1])
def test_a_users_loader_draws_another_order_in_every_epoch_although_validations_are_seeded_alike(tmp_path, workers):
    epochs = orders_of(tmp_path, workers)
    assert len(epochs) == 4
    assert len({tuple(order) for order in epochs}) == 4
    assert len({tuple(sorted(order)) for order in epochs}) == 1


@pytest.mark.parametrize("workers", [{"workers": 0}, {"workers": 1}, {"workers": 1, "persistent_workers": True}])
def test_a_users_loader_draws_the_order_of_the_first_epoch_after_a_resume_as_without_the_stop(tmp_path, workers):
    whole = orders_of(tmp_path, **workers, callbacks=[SaveAfter(6, tmp_path / "a.ckpt")])
    assert orders_of(tmp_path, **workers, ckpt_path=tmp_path / "a.ckpt") == whole[2:]
