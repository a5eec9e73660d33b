"""On a GPU, torch's optimizers update all weights by one kernel, unless the user has chosen another implementation."""

from functools import partial

import pytest
import torch

from lit_robust.training.fused import fuse
from lit_robust.training.optimizer_checks import check_optimizer
from tests.test_other_optimizers import fit, saved
from tests.tiny import TinyNet, images

FUSED = {"fused": True}


def steps(kind, devices, **options):
    """The optimizer and its weights after three steps, fused on these devices."""
    net, batch = TinyNet(), images(8)
    optimizer = kind(net.parameters(), **options)
    fuse(optimizer, devices)
    for _ in range(3):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(batch.x), batch.y).backward()
        optimizer.step()
    return optimizer, [one.detach() for one in net.parameters()]


@pytest.mark.parametrize(
    "kind",
    [partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=5e-4), partial(torch.optim.AdamW, lr=0.01, eps=1e-3)],
)
def test_a_fused_step_is_the_same_to_rounding(kind):
    fused, ours = steps(kind, ("cpu",))
    plain, theirs = steps(kind, ())
    assert [one.param_groups[0]["fused"] for one in (fused, plain)] == [True, None]
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("options", [{"fused": False}, {"foreach": True}, {"foreach": False}, {"differentiable": True}])
def test_a_choice_of_the_user_stays(options):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))], lr=0.1, **options)
    before = dict(optimizer.param_groups[0])
    fuse(optimizer, ("cpu",))
    assert optimizer.param_groups[0] == before


def test_an_optimizer_without_a_fused_step_and_weights_elsewhere_stay():
    weight = torch.nn.Parameter(torch.zeros(2))
    optimizers = torch.optim.RMSprop([weight], lr=0.1), torch.optim.SGD([weight], lr=0.1)
    fuse(optimizers[0], ("cpu",))
    fuse(optimizers[1])
    assert not any(one.param_groups[0].get("fused") for one in optimizers)


@pytest.mark.parametrize(
    ("kind", "fused"), [(torch.optim.SGD, True), (torch.optim.AdamW, True), (torch.optim.Adagrad, None)]
)
def test_an_optimizer_that_has_made_its_state_before_stays(kind, fused):
    """Adagrad has put its steps on the CPU, where a kernel of another device cannot read them."""
    optimizer = kind([torch.nn.Parameter(torch.zeros(2, device="meta"))], lr=0.1)
    fuse(optimizer, ("meta",))
    assert optimizer.param_groups[0]["fused"] is fused


def flags(group):
    return {name: group[name] for name in ("fused", "foreach", "capturable", "differentiable")}


def resumed(tmp_path, checkpoint, **options):
    """The optimizer of a run that goes on from there for an epoch, and that of a new one, with these options."""
    torch.save(checkpoint, tmp_path / "x.ckpt")
    make = partial(torch.optim.AdamW, lr=0.01, **options)
    run = fit(tmp_path, 2, tmp_path / "x.ckpt", optimizer=make)
    return run.optimizers[0], make(TinyNet().parameters())


@pytest.mark.parametrize("now", [{}, {"fused": False}, {"fused": True}, {"foreach": True}])
@pytest.mark.parametrize("before", [{"fused": True}, {"foreach": False}, {"capturable": True}, {"fused": None}])
def test_a_resumed_run_updates_as_it_is_told_and_not_as_the_checkpoints_did(before, now, tmp_path):
    checkpoint = saved(tmp_path, optimizer=partial(torch.optim.AdamW, lr=0.01))
    (group,) = checkpoint["optimizer_states"][0]["param_groups"]
    group.update(before)  # capturable is of a GPU: no step on a CPU accepts it
    optimizer, new = resumed(tmp_path, checkpoint, **now)
    assert flags(optimizer.param_groups[0]) == flags(new.param_groups[0])
    assert {float(state["step"]) for state in optimizer.state.values()} == {2}


def test_a_checkpoint_of_a_torch_that_knew_no_such_choice_resumes(tmp_path):
    checkpoint = saved(tmp_path, optimizer=partial(torch.optim.AdamW, lr=0.01))
    del checkpoint["optimizer_states"][0]["param_groups"][0]["fused"]
    optimizer, _ = resumed(tmp_path, checkpoint, fused=False)
    assert optimizer.param_groups[0]["fused"] is False


def test_groups_that_were_added_in_training_are_updated_like_new_ones():
    optimizer, old = (torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))], lr=0.1, **one) for one in ({}, FUSED))
    old.add_param_group({"params": [torch.nn.Parameter(torch.zeros(2))]})
    state = old.state_dict()
    check_optimizer(optimizer, [state], "SGD")
    assert [group["fused"] for group in state["param_groups"]] == [None, None]
