"""Attacks in eval mode see a copy of the net whose BatchNorms are folded into the convolutions before them."""

import copy
import random
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.utils.data import DataLoader

from lit_robust import nets
from lit_robust.attacks import BPDA, FGSM, PGD, Attack
from lit_robust.attacks.difficulty import PowerIteration
from lit_robust.attacks.lpips import lpips
from lit_robust.callbacks import AdversarialTraining, EMAWeights, RobustAccuracy
from lit_robust.defenses import GAT, PGDAT
from lit_robust.guards import network_mode
from lit_robust.nets import folded as folding
from lit_robust.nets.folded import FoldedNet, refill, unfolded
from tests.methods import METHODS, build
from tests.tiny import TinyNet, assert_equal, images, indexed, loader, trainer, two_ranks

#: BatchNorms that follow a convolution, and all others, of our nets.
COUNTS = {
    ("resnet18", 4): (20, 0),
    ("resnet50", 4): (53, 0),
    ("vgg16", 4): (13, 0),
    ("preact_resnet18", 4): (8, 9),
    ("wide_resnet28_10", 16): (12, 13),
    ("wide_resnet32_10", 16): (15, 16),
}


def trained(net, seed=0):
    """A net in float64 with BatchNorms as they are after some training."""
    torch.manual_seed(seed)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean):
                if tensor is not None:
                    tensor.data.normal_()
            module.running_var.uniform_(0.1, 2)
    return net.double().eval()


def logits_and_gradient(net, x):
    x = x.clone().requires_grad_()
    logits = net(x)
    (gradient,) = torch.autograd.grad(logits.logsumexp(dim=1).sum(), x)
    return logits.detach(), gradient


def assert_the_same(net, folded, x):
    for ours, its in zip(logits_and_gradient(folded, x), logits_and_gradient(net, x), strict=True):
        torch.testing.assert_close(ours, its, rtol=1e-9, atol=1e-9 * float(its.abs().max()))


def batch_norms(module):
    return [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)]


@pytest.mark.parametrize(("name", "width"), COUNTS)
def test_our_nets_keep_their_logits_and_gradients_without_these_batch_norms(name, width):
    net = trained(getattr(nets, name)(width=width))
    x = torch.rand(3, 3, 32, 32).double()
    folded = FoldedNet()(net, x)
    followed, others = COUNTS[name, width]
    assert (len(batch_norms(net)), len(batch_norms(folded))) == (followed + others, others)
    assert_the_same(net, folded, x)


def test_a_net_of_torchvision_is_folded_inside_our_wrapper():
    net = trained(nets.torchvision_net("resnet18", num_classes=4))
    x = torch.rand(2, 3, 64, 64).double()
    folded = FoldedNet()(net, x)
    assert not batch_norms(folded)
    assert_the_same(net, folded, x)


class Branches(nn.Module):
    """Cannot be traced as a whole, because it asks for the images' size."""

    def __init__(self, *parts):
        super().__init__()
        self.body, self.scale = nn.Sequential(*parts), 1.0

    def forward(self, x):
        if x.mean() < -1:
            return x
        return self.scale * self.body(x).flatten(1)


def conv(channels=3, **kwargs):
    return nn.Conv2d(channels, 4, 3, **kwargs)


X = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)).double()


def test_the_copy_has_the_weights_statistics_and_attributes_of_now():
    net = trained(Branches(conv(), nn.BatchNorm2d(4), nn.ReLU(), conv(4, bias=False), nn.BatchNorm2d(4, affine=False)))
    fold = FoldedNet()
    before = fold(net, X)
    assert len(fold.pairs) == 2
    for parameter in net.parameters():
        parameter.data.mul_(1.5)
    net.body[1].running_var.mul_(2)
    net.scale = 3.0
    assert fold(net, X) is before
    assert_the_same(net, before, X)
    net.float()
    x = X.float()
    torch.testing.assert_close(fold(net, x)(x), net(x))
    net.double()
    net.body[3] = nn.Conv2d(4, 4, 1).double()
    assert_the_same(net, fold(net, X), X)
    net.load_state_dict({name: tensor + 0.1 for name, tensor in net.state_dict().items()})
    assert_the_same(net, fold(net, X), X)


def test_nothing_of_the_net_changes():
    net = trained(TinyNet())
    names, state = [name for name, _ in net.named_modules()], copy.deepcopy(net.state_dict())
    fold = FoldedNet()
    folded = fold(net, X)
    assert folded is not net
    assert unfolded(folded) is net
    assert unfolded(net) is net
    assert [name for name, _ in net.named_modules()] == names
    assert net.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in net.state_dict().items())
    assert folded.head is net.head
    assert not any(part is net for part in folded.modules())


class Residual(nn.Module):
    """Adds what the BatchNorm reads."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = conv(), nn.BatchNorm2d(4)

    def forward(self, x):
        out = self.conv(x)
        return (self.bn(out) + out).flatten(1)


class ReadsTheWeight(Residual):
    """Penalises the convolution's weight in its logits."""

    def forward(self, x):
        return self.bn(self.conv(x)).flatten(1) * self.conv.weight.norm()


class TwoNorms(nn.Module):
    """Uses one convolution twice."""

    def __init__(self):
        super().__init__()
        self.conv, self.first, self.second = conv(), nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x):
        return (self.first(self.conv(x)) + self.second(self.conv(-x))).flatten(1)


class Peeks(Branches):
    """Reads a layer of a Sequential by itself."""

    def forward(self, x):
        if x.mean() < -1:
            return x
        return super().forward(x) + self.body[0](x).flatten(1)


def with_hook():
    net = nn.Sequential(conv(), nn.BatchNorm2d(4))
    net[0].register_forward_hook(lambda module, inputs, output: output * 2)
    return net


def parametrized(parametrize):
    return nn.Sequential(parametrize(conv()), nn.BatchNorm2d(4))


class OfAUser(nn.BatchNorm2d):
    """May do anything."""

    def forward(self, x):
        return super().forward(x).relu()


class Noisy(nn.Module):
    """A random defense."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(conv(), nn.BatchNorm2d(4))

    def forward(self, x):
        return self.body(x + 0.1 * torch.randn_like(x)).flatten(1)


@pytest.mark.parametrize(
    "net",
    [
        Residual,
        ReadsTheWeight,
        TwoNorms,
        lambda: Peeks(conv(), nn.BatchNorm2d(4)),
        with_hook,
        lambda: parametrized(parametrizations.weight_norm),
        lambda: parametrized(parametrizations.spectral_norm),
        lambda: parametrized(nn.utils.spectral_norm),
        lambda: nn.Sequential(conv(), nn.BatchNorm2d(4, track_running_stats=False)),
        lambda: nn.Sequential(conv(), OfAUser(4)),
        lambda: nn.Sequential(conv(), nn.ReLU(), nn.BatchNorm2d(4)),
        Noisy,
    ],
)
def test_these_stay_as_they_are(net):
    net = net().double().eval()
    torch.manual_seed(3)
    before = net(X)
    torch.manual_seed(3)
    assert FoldedNet()(net, X) is net
    assert torch.equal(net(X), before), "no random number is used up"


class ReadsAnAttribute(Peeks):
    def forward(self, x):
        return self.body(x).mean(dim=(2, 3)).view(-1, self.body[1].num_features)


class Refuses(Peeks):
    def forward(self, x):
        if (x < 0).any():
            raise ValueError("pixels below 0")
        return self.body(x).mean(dim=(2, 3))


@pytest.mark.parametrize("cls", [ReadsAnAttribute, Refuses])
def test_a_net_that_fails_in_a_check_stays_as_it_is(cls):
    """The copy's BatchNorms have no attributes, and the check invents images."""
    net = trained(cls(conv(), nn.BatchNorm2d(4)))
    assert FoldedNet()(net, 2 + X) is net


def test_logits_that_are_far_from_0_do_not_hide_a_wrong_copy():
    class Far(SecondReader):
        def forward(self, x):
            return 1e-2 * super().forward(x) + 100

    net = trained(Far(lambda net, x: bool(x.mean() > -9)))
    assert FoldedNet()(net, X) is net


def test_a_head_of_zeros_is_checked_again_when_it_has_learned():
    class WithHead(SecondReader):
        def __init__(self):
            super().__init__(lambda net, x: bool(x.mean() > -9))
            self.scale = nn.Parameter(torch.zeros(()))

        def forward(self, x):
            return self.scale * super().forward(x)

    net, fold = trained(WithHead()), FoldedNet()
    fold(net, X)
    net.scale.data.fill_(1)
    assert fold(net, X) is net


def test_an_empty_batch_decides_nothing():
    net, fold = trained(nn.Sequential(conv(), nn.BatchNorm2d(4))), FoldedNet()
    assert fold(net, X[:0]) is net
    assert not batch_norms(fold(net, X))


def test_layers_in_train_mode_stay_and_are_folded_when_that_ends():
    net, fold = trained(nn.Sequential(conv(), nn.BatchNorm2d(4), conv(4), nn.BatchNorm2d(4))), FoldedNet()
    net[1].train()
    assert len(batch_norms(fold(net, X))) == 1
    assert [pair.norm for pair in fold.pairs] == ["3"]
    net[1].eval()
    assert not batch_norms(fold(net, X))
    net.train()
    assert fold(net, X) is net


class SecondReader(nn.Module):
    """Adds what the BatchNorm reads, under a condition."""

    def __init__(self, condition):
        super().__init__()
        self.body, self.aux, self.condition = nn.Sequential(conv(), nn.BatchNorm2d(4)), False, condition

    def forward(self, x):
        found = self.body(x)
        return (found + self.body[0](x) if self.condition(self, x) else found).mean(dim=(2, 3))


def test_a_reader_of_larger_images_is_found_where_they_come():
    net, fold = trained(SecondReader(lambda net, x: x.shape[-1] >= 12)), FoldedNet()
    assert fold(net, X) is not net
    larger = torch.cat([X, X], dim=-1)
    assert fold(net, larger) is net
    assert fold(net, X) is net, "not used in this epoch"
    assert fold(net, X, 1) is not net
    assert fold(net, larger, 1) is net


def test_a_reader_that_is_switched_on_is_found_in_the_next_epoch():
    net, fold = trained(SecondReader(lambda net, x: net.aux)), FoldedNet()
    assert fold(net, X, 0) is not net
    net.aux = True
    assert fold(net, X, 1) is net


def test_a_reader_of_some_images_is_found_when_they_are_an_epochs_first():
    net, fold = trained(SecondReader(lambda net, x: bool(x.mean() > 0.9 or x.mean() < 0.1))), FoldedNet()
    assert fold(net, X, 0) is not net
    assert fold(net, X / 10, 1) is net


@pytest.mark.parametrize(
    ("name", "value"), [("padding", (1, 1)), ("stride", (2, 2)), ("dilation", (2, 2)), ("padding", "same")]
)
def test_the_copy_has_the_convolutions_attributes_of_now(name, value):
    net, fold = trained(nn.Sequential(conv(), nn.BatchNorm2d(4))), FoldedNet()
    fold(net, X)
    setattr(net[0], name, value)
    assert fold.pairs
    assert_the_same(net, fold(net, X), X)


def test_folded_weights_follow_the_memory_format():
    net, fold = trained(nn.Sequential(conv(), nn.BatchNorm2d(4))), FoldedNet()
    fold(net, X)
    net.to(memory_format=torch.channels_last)
    assert fold(net, X)[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert_the_same(net, fold(net, X), X)


def test_a_hook_that_comes_later_is_called():
    net, fold, seen = trained(nn.Sequential(conv(), nn.BatchNorm2d(4))), FoldedNet(), []
    assert fold(net, X) is not net
    handle = net[1].register_forward_hook(lambda module, inputs, output: seen.append(output))
    assert fold(net, X) is net
    handle.remove()
    assert fold(net, X) is not net


class LeavesTraces(nn.Module):
    """Counts its forwards in buffers and attributes, keeps activations, and draws from every generator."""

    def __init__(self):
        super().__init__()
        self.body, self.last, self.calls, self.kept = nn.Sequential(conv(), nn.BatchNorm2d(4)), None, 0, {"all": []}
        self.register_buffer("added", torch.zeros(()))
        self.register_buffer("replaced", torch.zeros(()))

    def forward(self, x):
        random.random(), np.random.rand(), torch.rand(1)  # noqa: NPY002
        self.last, self.calls = self.body(x).flatten(1), self.calls + 1
        self.kept["all"].append(self.last)
        self.added.add_(1)
        self.replaced = self.replaced + 1
        return self.last


def random_states():
    _, of_numpy, *place = np.random.get_state()  # noqa: NPY002
    return random.getstate(), of_numpy.tolist(), place, torch.get_rng_state().tolist()


def test_building_and_checking_a_copy_leave_no_trace():
    net, fold = trained(LeavesTraces()), FoldedNet()
    net(X)  # keeps a tensor with a graph
    kept, last, added = net.kept["all"], net.last, net.added
    states = random_states()
    for epoch in range(2):
        fold(net, X, epoch)
    assert fold.pairs
    assert net.last is last
    assert net.kept["all"] is kept
    assert [*map(id, kept)] == [id(last)]
    assert net.added is added
    assert (net.calls, float(net.added), float(net.replaced)) == (1, 1, 1)
    assert random_states() == states


def test_the_hooks_of_others_are_not_copied():
    class Owner:
        def look(self, module, inputs, output):
            pass

        def __deepcopy__(self, memo):
            raise AssertionError

    net = trained(TinyNet())
    net.register_forward_hook(Owner().look)
    assert FoldedNet()(net, X) is not net


def test_the_copy_counts_in_the_buffers_of_the_net():
    net = trained(LeavesTraces())
    FoldedNet()(net, X)(X)
    assert (float(net.added), float(net.replaced)) == (1, 1)


def test_a_net_that_cannot_be_copied_is_never_run(tmp_path):
    net = trained(LeavesTraces())
    with (tmp_path / "log").open("w") as net.log:
        assert FoldedNet()(net, X) is net
    assert net.calls == 0


def test_a_copy_that_was_built_in_inference_mode_gives_gradients():
    net, fold = trained(TinyNet()), FoldedNet()
    with torch.inference_mode():
        fold(net, X)
    with torch.inference_mode():
        fold(net, X)
    assert_the_same(net, fold(net, X), X)


def test_a_copy_has_no_train_mode():
    net = trained(TinyNet())
    folded = FoldedNet()(net, X)
    with network_mode(folded, "train"), pytest.raises(RuntimeError, match="no train mode"):
        folded(X)


def test_a_compiled_net_is_folded_only_by_whoever_compiles_it():
    net = trained(TinyNet())
    net.compile(backend="eager")
    assert FoldedNet()(net, X) is net
    folded = FoldedNet(compiles=True)(net, X)
    assert folded is not net
    assert folded._compiled_call_impl is not None
    assert folded._compiled_call_impl is not net._compiled_call_impl


# In training and evaluation.


class Count:
    """Counts the BatchNorm forwards that attacks and losses make."""

    def __init__(self, monkeypatch):
        self.calls = 0
        original = nn.BatchNorm2d.forward

        def forward(module, x):
            self.calls += 1
            return original(module, x)

        monkeypatch.setattr(nn.BatchNorm2d, "forward", forward)


def attacks_in_eval_mode(name):
    module = build(METHODS[name].cls, **METHODS[name].arguments)
    in_weights = isinstance(getattr(module, "psi", None), PowerIteration)
    return module.attack_bn_mode == "eval" and module.adversarial and not in_weights


@pytest.mark.parametrize("name", [*filter(attacks_in_eval_mode, METHODS)])
def test_a_method_that_attacks_in_eval_mode_meets_no_batch_norm(name, tmp_path, monkeypatch):
    """Except GAT and NuAT, whose clean logits are in train mode by the authors' code, and curvatures in the weights."""
    method = METHODS[name]
    module = build(method.cls, **method.arguments)
    trainer(tmp_path, max_epochs=1, limit_train_batches=1, callbacks=method.callbacks()).fit(module, indexed(images()))
    module.eval()
    module.perturb(images(8))  # builds the copies
    count = Count(monkeypatch)
    module.perturb(images(8))
    assert count.calls <= (getattr(module, "reference_bn_mode", "eval") == "train")


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_gats_clean_logits_move_the_statistics_as_without_folding(mode, tmp_path):
    def statistics(fold):
        module = build(GAT, attack=FGSM(eps=0.1), reference_bn_mode=mode, fold_batchnorm=fold)
        trainer(tmp_path, max_epochs=2).fit(module, indexed(images()))
        return module.net.body[1].running_mean, module.net.body[1].num_batches_tracked

    (ours, steps), (its, its_steps) = statistics(True), statistics(False)
    torch.testing.assert_close(ours, its)
    assert steps == its_steps


def test_only_the_judging_forwards_of_an_evaluation_meet_a_batch_norm(tmp_path, monkeypatch):
    attacks = {"a": PGD(steps=4), "b": PGD(steps=3)}
    module = build(PGDAT, test_attacks=attacks, alarm_images=0)
    run = trainer(tmp_path)
    run.test(module, indexed(images(8)), verbose=False)
    count = Count(monkeypatch)
    run.test(module, indexed(images(8)), verbose=False)
    assert count.calls <= 3 + 7  # clean and two attacks; the checks of the first batch
    module.fold_batchnorm = False
    count.calls = 0
    run.test(module, indexed(images(8)), verbose=False)
    assert count.calls >= 3 + 4 + 3


class Stranger(LightningModule):
    """A user's module, whose pipeline normalises the images."""

    def __init__(self):
        super().__init__()
        self.net = TinyNet()

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def normalised():
    return DataLoader([((x - 0.5) / 0.25, y) for x, y, *_ in zip(*images(16), strict=True)], batch_size=8)


@pytest.mark.parametrize("validates", [False, True])
def test_callbacks_for_a_strangers_module_attack_the_folded_net(validates, tmp_path, monkeypatch):
    def forwards(steps):
        attack, pipeline = PGD(steps=steps), {"mean": 0.5, "std": 0.25}
        if validates:
            callback = RobustAccuracy({"pgd": attack}, net="net", **pipeline)
        else:
            callback = AdversarialTraining(attack, attack_bn_mode="eval", net="net", **pipeline)
        with monkeypatch.context() as patched:
            count = Count(patched)
            trainer(tmp_path, max_epochs=2, callbacks=[callback]).fit(Stranger(), normalised(), normalised())
        return count.calls

    assert forwards(steps=12) == forwards(steps=2)


def test_without_folding_the_attack_sees_the_net(tmp_path):
    module = build(PGDAT, attack_bn_mode="eval", fold_batchnorm=False)
    with module.attacked(images().x) as net:
        assert net is module.net


def test_training_is_the_same_to_rounding(tmp_path):
    def weights(fold):
        module = build(PGDAT, attack_bn_mode="eval", fold_batchnorm=fold)
        trainer(tmp_path, max_epochs=3).fit(module, indexed(images()))
        return module.net.state_dict()

    for name, tensor in weights(True).items():
        torch.testing.assert_close(tensor, weights(False)[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["MART", "TRADES", "NuAT"])
def test_a_net_is_traced_once_in_a_fit_and_once_in_a_test(name, tmp_path, monkeypatch):
    """Also with attacks in every batch of some epochs, validations between them, and a smaller last batch."""
    traced = []
    candidates = folding.candidates
    monkeypatch.setattr(folding, "candidates", lambda *args: traced.append(args) or candidates(*args))
    method = METHODS[name]
    module = build(method.cls, **method.arguments)
    run = trainer(tmp_path, max_epochs=3, callbacks=method.callbacks())
    run.fit(module, indexed(images(20)), indexed(images(20)))
    assert len(traced) == 1
    run.test(module, indexed(images(20)), verbose=False)
    assert len(traced) == 2


def test_no_copy_outlives_a_fit_or_a_test(tmp_path):
    """On a GPU its weights would stay there."""
    module, callback = build(GAT, attack=FGSM(eps=0.1)), RobustAccuracy({"fgsm": FGSM(eps=0.1)})
    run = trainer(tmp_path, max_epochs=1, callbacks=[callback])
    run.fit(module, loader(images(8)), loader(images(8)))
    assert not module._folded
    run.test(module, loader(images(8)), verbose=False)
    assert not module._folded
    assert not callback.adapter._folded.pairs


def test_no_checkpoint_knows_of_it(tmp_path):
    module = build(PGDAT, attack_bn_mode="eval")
    run = trainer(tmp_path, max_epochs=1)
    run.fit(module, indexed(images()))
    assert module.state_dict().keys() == {f"net.{name}" for name in TinyNet().state_dict()}
    run.save_checkpoint(tmp_path / "a.ckpt")
    assert torch.load(tmp_path / "a.ckpt", weights_only=True)["state_dict"].keys() == module.state_dict().keys()


def test_bpda_finds_the_layer_of_the_net_itself():
    net = trained(nn.Sequential(conv(), nn.BatchNorm2d(4), nn.Flatten()))
    seen = []

    def substitute(x):
        seen.append(x)
        return F.batch_norm(x, net[1].running_mean, net[1].running_var, net[1].weight, net[1].bias)

    attack = BPDA(PGD(steps=1, init="zero"), forward="1", substitute=substitute)
    folded = FoldedNet()(net, X)
    attack(folded, X, torch.zeros(4, dtype=torch.int64))
    torch.testing.assert_close(seen[0], net[0](X))


class Wrapper(nn.Module):
    """The pixels' normalisation before a net, as of callbacks."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(2 * x - 1)


def test_a_wrapper_around_the_copy_is_unfolded_and_refilled_too():
    net = trained(TinyNet())
    wrapper = Wrapper(FoldedNet()(net, X))
    assert unfolded(wrapper).net is net
    assert_the_same(Wrapper(net), unfolded(wrapper), X)
    net.body[1].running_mean.add_(1)
    refill(wrapper)
    assert_the_same(Wrapper(net), wrapper, X)


# What reads layers or weights.


class Staged(nn.Module):
    """Convolution, BatchNorm and a head, whose layers an attack reads."""

    def __init__(self, stages):
        super().__init__()
        self.block, self.bn = (
            nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), conv(4)),
            nn.BatchNorm2d(4),
        )
        self.head = nn.Linear(64, 4)
        if stages:
            self.stages = stages

    def forward(self, x):
        return self.head(self.bn(self.block(x)).relu().flatten(1))

    def activations(self, x):
        return [self.block[0](x), self.block(x)]


@pytest.mark.parametrize(
    ("stages", "left"),
    [
        (("block.0",), ["bn"]),
        (("block",), ["block.1"]),
        (("block.0", "block"), []),
        (("block.1", "block.2", "bn"), ["block.1", "bn"]),
        ((), ["block.1", "bn"]),
    ],
    ids=str,
)
def test_lpips_of_the_copy_is_that_of_the_net(stages, left):
    net, fold = trained(Staged(stages)), FoldedNet()
    copied = Wrapper(fold(Wrapper(net), X)) if stages else fold(net, X)
    assert [pair.norm.removeprefix("net.") for pair in fold.pairs] == left
    original = Wrapper(Wrapper(net)) if stages else net
    torch.testing.assert_close(lpips(copied, X, 1 - X), lpips(original, X, 1 - X))


def test_power_iteration_measures_the_curvature_in_the_nets_own_weights():
    net, y = trained(TinyNet()), torch.arange(4)
    found = [PowerIteration().begin(PGD(), attacked, X, y)(X, net(X), X) for attacked in (net, FoldedNet()(net, X))]
    torch.testing.assert_close(*found)


# What copies or shares a module.


def test_averages_know_nothing_of_it(tmp_path):
    def averages(fold):
        module = build(PGDAT, attack_bn_mode="eval", fold_batchnorm=fold)
        averaging = EMAWeights(0.8, {"fast": 0.5})
        trainer(tmp_path, max_epochs=2, callbacks=[averaging]).fit(module, indexed(images()))
        return module.averaged["fast"].state_dict()

    ours, its = averages(True), averages(False)
    assert ours.keys() == its.keys() == TinyNet().state_dict().keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, its[name], rtol=1e-3, atol=1e-4)


class OnTwoRanks(PGDAT):
    """Saves each rank's net."""

    def on_fit_end(self):
        super().on_fit_end()
        floats = {name: one for name, one in self.net.state_dict().items() if one.is_floating_point()}
        torch.save((floats, len(self._folded[self.net].pairs)), f"{self.global_rank}.pt")


def test_two_ranks_that_attack_the_folded_net_end_with_the_same_weights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    two_ranks(tmp_path, max_epochs=2).fit(build(OnTwoRanks, attack_bn_mode="eval"), indexed(images()))
    (mine, pairs), (theirs, its_pairs) = (torch.load(f"{rank}.pt") for rank in range(2))
    assert pairs == its_pairs == 1
    assert not torch.equal(mine["head.weight"], TinyNet().head.weight)
    assert_equal(mine, theirs)


class SwitchOn(Callback):
    """Switches the second reader on after an epoch."""

    def on_train_epoch_start(self, trainer, pl_module):
        pl_module.net.aux = trainer.current_epoch > 0


@dataclass(frozen=True)
class Recorder(Attack):
    """Notes whether it is shown a copy."""

    seen: list[bool]

    def __call__(self, net, x, y):
        self.seen.append(unfolded(net) is not net)
        return x


@pytest.mark.parametrize("by", ["method", "callback"])
def test_an_epochs_first_batch_checks_the_copy(by, tmp_path):
    seen, net = [], SecondReader(lambda net, x: net.aux)
    attack, callbacks = Recorder(seen), [SwitchOn()]
    if by == "method":
        attacks = {"attack": attack, "val_attack": attack, "test_attacks": {"a": attack}}
        module = build(PGDAT, net=net, attack_bn_mode="eval", **attacks)
    else:
        module = Stranger()
        module.net = net
        callbacks.append(AdversarialTraining(attack, attack_bn_mode="eval", net="net"))
    data = indexed(images()) if by == "method" else loader(images())
    trainer(tmp_path, max_epochs=2, callbacks=callbacks).fit(module, data)
    assert seen == [True] * 3 + [False] * 3


def test_a_callback_checks_the_copy_in_each_test(tmp_path):
    seen, module = [], Stranger()
    module.net, module.test_step = SecondReader(lambda net, x: net.aux), lambda batch, batch_idx: None
    callback = RobustAccuracy({"a": Recorder(seen)}, net="net", alarm_images=0)
    run = trainer(tmp_path, callbacks=[callback])
    for _ in range(2):
        run.test(module, loader(images(8)), verbose=False)
        module.net.aux = True
    assert seen == [True, False]


def tf32() -> list[Any]:
    """What says whether products of matrices and convolutions are rounded to TF32, by the older and newer switches."""

    def read(get):
        try:
            return get()
        except (AttributeError, RuntimeError) as error:  # before torch 2.9; a mixture of both
            return type(error)

    backends = torch.backends
    return [
        read(get)
        for get in (
            torch.get_float32_matmul_precision,
            lambda: backends.cudnn.allow_tf32,
            lambda: backends.cuda.matmul.fp32_precision,
            lambda: backends.cudnn.conv.fp32_precision,
        )
    ]


@pytest.mark.parametrize(
    "setting",
    [
        "set_float32_matmul_precision('high')",
        "set_float32_matmul_precision('medium')",
        "backends.cuda.matmul.allow_tf32 = True",
        "backends.cudnn.allow_tf32 = False",
        "backends.fp32_precision = 'tf32'",
        "backends.cuda.matmul.fp32_precision = 'tf32'",
        "backends.cudnn.fp32_precision = 'tf32'",
        "backends.cudnn.conv.fp32_precision = 'ieee'",
    ],
)
def test_a_check_on_a_gpu_rounds_nothing_to_tf32_and_leaves_the_settings_as_they_were(setting):
    """In a process of its own, because torch does not forget by which of its switches something was set."""
    if "fp32_precision" in setting and not hasattr(torch.backends.cudnn, "conv"):
        pytest.skip("torch has these switches since 2.9")
    code = (
        f"import torch; torch.{setting}\n"
        "from lit_robust.nets.foldable import in_full_precision; from tests.test_folded import tf32\n"
        "before = tf32()\n"
        "with in_full_precision(on_gpu=True): within = tf32()\n"
        "assert torch.backends.cudnn.enabled\n"
        "assert tf32() == before, (before, tf32())\n"
        "assert 'tf32' not in within[2:] and within[0] not in ('high', 'medium') and within[1] is not True, within"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent.parent)
