"""What a method remembers: declared, forgotten, saved, merged, and read from older checkpoints."""

import pytest
import torch

from lit_robust.defenses import CurriculumAT, CustomizedAT, FreeAT, NuAT
from lit_robust.defenses.hybrid import EvenShare
from lit_robust.training.memory import Memory
from tests.methods import ONE_STEP, build
from tests.tiny import images, indexed, trainer


def remembering() -> Memory:
    memory = Memory()
    memory.declare(k=0, times=[])
    memory.tensors["delta"] = torch.ones(2)
    memory.values["k"] = 3
    memory.values["times"].append(0.5)
    return memory


def test_a_fit_begins_with_what_was_declared():
    memory = remembering()
    memory.forget()
    assert (memory.tensors, memory.values) == ({}, {"k": 0, "times": []})
    memory.values["times"].append(1.0)
    memory.forget()
    assert memory.values["times"] == []


def test_a_checkpoint_holds_a_copy_and_gives_it_back():
    memory = remembering()
    state = memory.state_dict()
    memory.values["times"].append(0.7)
    other = Memory()
    other.declare(k=0, times=[])
    other.load_state_dict(state, rank=0)
    assert other.values == {"k": 3, "times": [0.5]}
    assert torch.equal(other.tensors["delta"], torch.ones(2))


def test_values_that_this_method_does_not_declare_are_left_in_the_checkpoint():
    other = Memory()
    other.load_state_dict(remembering().state_dict(), rank=0)
    assert other.values == {}


def test_tensors_of_another_number_of_ranks_are_merged_where_the_method_says_how():
    memory = Memory()
    memory.declare(merge=lambda ranks: {"table": torch.stack([rank["table"] for rank in ranks]).amax(dim=0)})
    memory.load_state_dict({"tensors": [{"table": torch.tensor([1, 0])}, {"table": torch.tensor([0, 2])}]}, rank=0)
    assert memory.tensors["table"].tolist() == [1, 2]


def test_otherwise_a_warning_says_that_they_start_anew():
    memory, delta = Memory(), torch.ones(2)
    with pytest.warns(UserWarning, match="delta of 2 ranks"):
        memory.load_state_dict({"tensors": [{"delta": delta}, {"delta": delta}]}, rank=0)
    assert memory.tensors == {}


OLD = {  # a method, and where it kept its memory before the key `memory` existed
    "FreeAT": (lambda: build(FreeAT, attack=ONE_STEP, m=2), None),
    "CustomizedAT": (lambda: build(CustomizedAT), None),
    "NuAT-H": (lambda: build(NuAT, attack=ONE_STEP, two_step=EvenShare(0.5)), "hybrid"),
    "CurriculumAT": (lambda: build(CurriculumAT, expect_acc=0.0), "curriculum"),
}


@pytest.mark.parametrize("name", OLD)
def test_a_checkpoint_written_before_the_key_memory_existed_is_read(name, tmp_path):
    make, key = OLD[name]
    defense = make()
    fit = trainer(tmp_path, max_epochs=2)
    fit.fit(defense, indexed(images()), indexed(images(8)))
    fit.save_checkpoint(tmp_path / "a.ckpt")
    checkpoint = torch.load(tmp_path / "a.ckpt", weights_only=True)
    memory = checkpoint["lit_robust"].pop("memory")
    checkpoint["lit_robust"]["ranks"] = memory["tensors"]
    if key:
        checkpoint["lit_robust"][key] = memory["values"]
    assert memory["values"] or any(memory["tensors"])
    del checkpoint["lit_robust"]["metrics"]
    checkpoint["lit_robust"]["tally"] = [{"loss": torch.tensor([3.0, 8.0])}]
    later = make()
    later.trainer = fit
    later.on_load_checkpoint(checkpoint)
    assert later.memory.values == memory["values"]
    assert all(torch.equal(later.memory.tensors[name], value) for name, value in memory["tensors"][0].items())
    assert later.metrics.sums["loss"].tolist() == [3, 8]
