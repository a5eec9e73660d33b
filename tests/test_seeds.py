from typing import ClassVar

import torch

from lit_robust.seeds import derive_seed, seed


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


def test_an_accelerator_is_seeded_too_and_no_other(monkeypatch):
    class Accelerator:
        seeds: ClassVar[list[int]] = []
        manual_seed = seeds.append

    monkeypatch.setattr(torch, "get_device_module", {torch.device("cuda", 1): Accelerator}.__getitem__)
    seed(torch.device("cpu"), "train")
    assert Accelerator.seeds == []
    seed(torch.device("cuda", 1), "train")
    assert Accelerator.seeds == [derive_seed(0, "train")]
