"""CoresetSelection reads every method's own gradients, leaves the method as it was, and its weights reach the loss."""

import copy
import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, seed_everything
from torch import nn

from lit_robust import losses
from lit_robust.batch import Batch
from lit_robust.callbacks import AttributeRamp, CoresetSelection, coreset_data
from lit_robust.callbacks.adapter import Adapter
from lit_robust.callbacks.coreset_data import Embedded
from lit_robust.callbacks.last_layer import embed
from lit_robust.defenses import PGDAT, SATR1, TRADES, CurriculumAT, Defense, FreeAT
from lit_robust.guards import network_mode
from lit_robust.ranks import weighted_mean
from lit_robust.schedules import Staircase
from lit_robust.seeds import seed
from lit_robust.selection import CRAIG, GradMatch
from tests.methods import ATTACK, METHODS, build
from tests.test_callback_coreset import Automatic
from tests.test_resume import TinyData, differences
from tests.test_selection import expanded
from tests.tiny import Counting, TinyNet, images, indexed, trainer

WHOLE_LAYER = GradMatch(gradient="weight")


def state_of(module: Defense) -> dict[str, Any]:
    """Everything that a selection might change."""
    parts = {
        "weights and buffers": module.state_dict(),
        "modes": [part.training for part in module.modules()],
        "flags": [parameter.requires_grad for parameter in module.parameters()],
        "gradients": [parameter.grad for parameter in module.parameters()],
        "hooks": [len(part._forward_hooks) for part in module.modules()],
        "memory": module.memory.state_dict(),
        "seen": {name: value.detach() for name, value in module.seen.items()},
        "metrics": module.metrics.sums,
        "attributes": sorted(vars(module)),
        "attack": repr(module.attack),
        "mode of the attack": module.attack_bn_mode,
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": str(np.random.get_state()),  # noqa: NPY002  # the global state is what is compared
    }
    return copy.deepcopy(parts)


class Embedding(Callback):
    """What a selection reads after the first epoch, and what it changes."""

    def __init__(self, attack=None, by_autograd=True) -> None:
        self.attack, self.by_autograd = attack, by_autograd
        self.found: Embedded
        self.changes: list[str] = []
        #: The same embeddings by autograd, with the method's numbers at that moment.
        self.expected: torch.Tensor

    def on_train_epoch_end(self, trainer, pl_module):
        if trainer.current_epoch > 0:
            return
        before = state_of(pl_module)
        memory, seen = pl_module.memory, pl_module.seen
        self.found = embed(trainer, pl_module, Adapter(), WHOLE_LAYER, None, self.attack, 3)
        self.changes = differences(state_of(pl_module), before)
        assert pl_module.memory is memory
        assert pl_module.seen is seen
        if self.by_autograd:
            self.expected = by_autograd(pl_module, trainer.datamodule.selection_dataloader(), self.attack)


def embedded(module: Defense, folder: Any, *callbacks: Callback, **kwargs: Any) -> Embedding:
    seed_everything(7, verbose=False)
    probe = Embedding(**kwargs)
    trainer(folder, max_epochs=1, callbacks=[*callbacks, probe], limit_val_batches=0).fit(module, TinyData())
    return probe


@pytest.mark.parametrize("name", METHODS)
def test_a_selection_leaves_every_method_as_it_was(name, tmp_path):
    make = METHODS[name]
    probe = embedded(build(make.cls, **make.arguments), tmp_path, *make.callbacks(), by_autograd=False)
    assert probe.changes == []
    assert len(probe.found.y) == 22
    assert probe.found.index.tolist() == sorted(set(probe.found.index.tolist()))
    assert bool(expanded(probe.found.embeddings).isfinite().all())


def test_a_selection_leaves_buffers_as_they_were_that_every_forward_replaces(tmp_path):
    assert embedded(build(PGDAT, net=Counting()), tmp_path, by_autograd=False).changes == []


def test_a_selection_leaves_batchnorm_alone_in_a_users_method_that_attacks_in_train_mode(tmp_path):
    class InTrainMode(PGDAT):
        def perturb(self, batch):
            with network_mode(self.net, "train"):
                return self.attack(self.net, batch.x, batch.y)

    assert embedded(build(InTrainMode), tmp_path, by_autograd=False).changes == []


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("selector", [CRAIG(), GradMatch()], ids=["CRAIG", "GradMatch"])
def test_every_method_trains_on_a_coreset(name, selector, tmp_path):
    make = METHODS[name]
    selection = CoresetSelection(0.5, selector, every=1, warm=0)
    run = trainer(tmp_path, max_epochs=2, callbacks=[*make.callbacks(), selection], limit_val_batches=0)
    run.fit(build(make.cls, **make.arguments), TinyData())
    assert len(selection.coreset.indices) == 11
    assert selection.coreset.weights.max() > 1


# Gradients.


def of_each_sample(module: Defense, batch: Batch, loss: Any) -> torch.Tensor:
    """The gradient of the last layer by autograd, with a layer of its own for each sample: ``(N, C (D + 1))``."""
    head = module.net.head
    n = len(batch.y)
    weight, bias = (part.detach().expand(n, *part.shape).clone().requires_grad_() for part in (head.weight, head.bias))

    def forward(h):
        times = len(h) // n
        return torch.einsum("ncd,nd->nc", weight.repeat(times, 1, 1), h) + bias.repeat(times, 1)

    head.forward = forward
    try:
        grads = torch.autograd.grad(loss().sum(), [weight, bias])
    finally:
        del head.forward
    return torch.cat([grads[0], grads[1][:, :, None]], dim=2).flatten(1)


def by_autograd(module: Defense, loader: Any, adversary: Any = None) -> torch.Tensor:
    """The same embeddings from the same random numbers, in eval mode."""
    module.net.eval()
    parts = []
    memory, loader.epoch = module.memory, 3
    for number, batch in enumerate(loader):
        seed(torch.device("cpu"), "select", 3, 8 * number)
        module.memory = copy.deepcopy(memory)  # a selection is no training
        if adversary is not None:
            x_adv = adversary(module.net, batch.x, batch.y)
            parts.append(of_each_sample(module, batch, lambda b=batch, x=x_adv: losses.ce(module.net(x), b.y)))
        elif module.adversarial:
            module.attack_bn_mode = module.reference_bn_mode = "eval"
            x_adv = module.perturb(batch)
            parts.append(of_each_sample(module, batch, lambda b=batch, x=x_adv: module.loss(b, x)))
        else:
            parts.append(of_each_sample(module, batch, lambda b=batch: losses.ce(module.net(b.x), b.y)))
    return torch.cat(parts)


def assert_gradients(probe: Embedding) -> None:
    assert probe.expected.norm() > 0.1
    torch.testing.assert_close(expanded(probe.found.embeddings), probe.expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["PGDAT", "TRADES", "NuAT", "Defense", "MART", "GAT", "FastAT", "NuAT2", "PSAT"])
def test_the_gradients_are_those_of_the_methods_own_loss_at_its_own_adversary(name, tmp_path):
    make = METHODS[name]
    module = build(make.cls, **make.arguments)
    probe = embedded(module, tmp_path)
    assert_gradients(probe)


@pytest.mark.parametrize(
    ("method", "callbacks"),
    [(FreeAT, []), (CurriculumAT, [AttributeRamp("k", Staircase([0], [2]))])],
    ids=["what other images have left", "parts of a batch"],
)
def test_a_selection_attacks_each_image_with_the_present_net_where_training_does_not(method, callbacks, tmp_path):
    class Seen(method):
        def loss(self, batch, x_adv):
            if not self.net.training:
                with torch.no_grad():
                    harm = losses.ce(self.net(x_adv), batch.y) - losses.ce(self.net(batch.x), batch.y)
                harms.append(harm)
            return super().loss(batch, x_adv)

    harms: list[torch.Tensor] = []
    module = build(Seen, **METHODS[method.__name__].arguments)
    embedded(module, tmp_path, *callbacks, by_autograd=False)
    harm = torch.cat(harms)
    assert len(harm) == 22
    assert (harm > 0).all()


def test_one_image_beside_an_extra_row_has_one_term(tmp_path):
    """SATR1's iterative image is such a row."""
    seed_everything(7, verbose=False)
    data, probe = TinyData(), Embedding(by_autograd=False)
    data.batch_size = 7  # 22 images are three batches and one image
    trainer(tmp_path, max_epochs=1, callbacks=[probe], limit_val_batches=0).fit(
        build(SATR1, **METHODS["SATR1"].arguments), data
    )
    assert probe.found.embeddings.left.shape == (22, 4)
    assert probe.found.index.unique().numel() == 22


def test_a_sample_of_trades_has_two_terms_and_one_of_pgd_training_one(tmp_path):
    assert embedded(build(PGDAT), tmp_path).found.embeddings.left.ndim == 2
    assert embedded(build(TRADES), tmp_path).found.embeddings.left.shape[1] == 2


@pytest.mark.parametrize("name", ["Natural", "PGDAT", "TRADES", "NuAT"])
def test_clean_images_select_while_training_is_natural(name, tmp_path):
    make = METHODS[name]
    module = build(make.cls, **make.arguments)
    module.adversarial = False
    probe = embedded(module, tmp_path)
    assert_gradients(probe)
    if name != "Natural":
        module.adversarial = True
        loader = TinyData().selection_dataloader()
        assert not torch.allclose(probe.expected, by_autograd(module, loader), atol=1e-3)


def test_another_adversary_selects_by_cross_entropy(tmp_path):
    module, attack = build(TRADES), replace(ATTACK, steps=3, init="zero")
    probe = embedded(module, tmp_path, attack=attack)
    assert_gradients(probe)


def test_attack_and_gradients_see_the_same_augmented_images(tmp_path):
    seen: list[torch.Tensor] = []

    class Looks(PGDAT):
        def perturb(self, batch):
            seen.append(batch.x)
            return super().perturb(batch)

        def loss(self, batch, x_adv):
            seen.append(batch.x)
            assert (x_adv - batch.x).abs().max() <= self.attack.eps + 1e-6
            return super().loss(batch, x_adv)

    embedded(build(Looks), tmp_path)
    shown = seen[6:12]  # the epoch trains on three batches, then they are selected from
    assert all(torch.equal(*pair) for pair in zip(shown[::2], shown[1::2], strict=True))
    plain = torch.cat([batch.x for batch in TinyData().plain_train_dataloader()])
    assert not torch.equal(torch.cat(shown[::2]), plain)


# Weights. Of a sample that counts twice the loss must be that of a batch which has the sample twice.

#: Of these the loss is a number of the whole batch (a nuclear norm grows with the root of the number of rows), or it
#: draws noise for the batch.
BATCHWISE = {"SATR1", "GradAlign", *(name for name in METHODS if name.startswith("NuAT"))}


def repeated(value: Any, n: int) -> Any:
    """A batch, or what `perturb` returns, with its first row once more."""
    if isinstance(value, torch.Tensor):
        return torch.cat([value, value[:1]]) if value.ndim and len(value) == n else value
    if isinstance(value, Batch):
        return Batch(*(repeated(part, n) for part in value))
    return type(value)(repeated(part, n) for part in value) if isinstance(value, tuple | list) else value


@pytest.mark.parametrize("name", METHODS)
def test_weights_reach_every_loss_and_a_sample_of_weight_two_is_the_sample_twice(name, tmp_path):
    make = METHODS[name]
    net = TinyNet()
    net.body[1] = nn.Identity()  # BatchNorm's statistics would count it once
    module = build(make.cls, **(make.arguments | {"net": net}))
    run = trainer(tmp_path, max_epochs=1, limit_train_batches=1, callbacks=make.callbacks())
    run.fit(module, indexed(images()))
    batch = images(8)
    x_adv = module.perturb(batch)
    memory = module.memory

    def gradient(batch: Batch, x_adv: Any) -> torch.Tensor:
        module.memory = copy.deepcopy(memory)
        torch.manual_seed(0)
        mean = weighted_mean(module.loss(batch, x_adv), batch.weight)
        return torch.cat([part.flatten() for part in torch.autograd.grad(mean, list(net.parameters()))])

    weighted = gradient(batch._replace(weight=torch.tensor([2.0, 1, 1, 1, 1, 1, 1, 1])), x_adv)
    assert not torch.allclose(gradient(batch, x_adv), weighted, atol=1e-4)
    if name not in BATCHWISE:
        twice = gradient(repeated(batch, 8), repeated(x_adv, 8))
        torch.testing.assert_close(weighted, twice, rtol=1e-4, atol=1e-6)


# Memory.


@pytest.mark.parametrize("writes", [False, True])
def test_a_memory_is_copied_once_for_a_selection_unless_a_batch_writes_to_it(tmp_path, writes):
    found: list[tuple[int, float]] = []
    kept: list[torch.Tensor] = []

    class Remembers(PGDAT):
        def perturb(self, batch):
            if not self.memory.tensors:
                self.memory.tensors["delta"] = torch.zeros(10, 10)
                kept.append(self.memory.tensors["delta"])
            delta = self.memory.tensors["delta"]
            found.append((delta.data_ptr(), float(delta.sum())))
            if writes:
                delta[0] += 1
            self.memory.values["noted"] = self.memory.values.get("noted", 0) + 1
            self.memory.tensors["other"] = batch.x
            return super().perturb(batch)

    seed_everything(7, verbose=False)
    module, selection = build(Remembers), Embedding(by_autograd=False)
    trainer(tmp_path, max_epochs=1, callbacks=[selection], limit_val_batches=0).fit(module, TinyData())
    trained, chosen = found[:3], found[3:]
    assert selection.changes == []
    assert len(chosen) == 3
    assert {total for _, total in chosen} == {30.0 if writes else 0.0}  # as training has left it
    assert all(place != kept[0].data_ptr() for place, _ in chosen)
    assert len({place for place, _ in chosen}) == 1 or writes
    assert [total for _, total in trained] == ([0.0, 10.0, 20.0] if writes else [0.0] * 3)
    assert module.memory.values["noted"] == 3


def test_a_strangers_own_attributes_of_such_names_are_left_alone(tmp_path):
    class Own(Automatic):
        seen, memory, batch_idx = ["mine"], "my own", 5

        def __init__(self):
            super().__init__()
            self.seen, self.memory = ["mine"], "my own"

    module = Own()
    trainer(tmp_path, max_epochs=1, callbacks=[CoresetSelection(0.5, warm=0)]).fit(module, TinyData())
    assert (module.seen, module.memory, module.batch_idx) == (["mine"], "my own", 5)


@pytest.mark.parametrize("error", [float("inf"), float("nan")])
def test_an_error_of_the_gradient_that_is_no_number_is_told_and_neither_logged_nor_saved(
    tmp_path, error, monkeypatch, caplog
):
    monkeypatch.setattr(coreset_data, "gradient_error", lambda *_: error)
    selection = CoresetSelection(0.5, warm=0)
    run = trainer(tmp_path, max_epochs=1, callbacks=[selection], limit_val_batches=0)
    with caplog.at_level("INFO"):
        run.fit(build(PGDAT), TinyData())
    assert f"gradient cannot be compared ({error})" in caplog.text
    assert "train/coreset/error" not in run.callback_metrics
    CoresetSelection(0.5).load_state_dict(selection.state_dict())
