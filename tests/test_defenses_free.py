"""Free training, against its algorithm."""

import csv

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader

from lit_robust.attacks import FGSM
from lit_robust.defenses import FreeAT, Natural
from lit_robust.schedules import Cyclic
from tests.formulas import gradient, in_float64, smooth_net
from tests.methods import EPS, ONE_STEP, build
from tests.tiny import TinyNet, images, loader, trainer

LR = 0.2


def plain_sgd(params):
    return torch.optim.SGD(params, lr=LR)


def free(net, m=3, **arguments):
    return build(FreeAT, **({"net": net, "m": m, "attack": ONE_STEP, "optimizer": plain_sgd} | arguments))


def algorithm(net, batches, m, clip_delta, eps=EPS, dtype=torch.float64):
    """Free-m by hand: the perturbation that it ends with; the net is trained in place."""
    parameters = list(net.parameters())
    delta = torch.zeros(8, 3, 8, 8, dtype=dtype)
    for batch in batches:
        x, y, n = batch.x.to(dtype), batch.y, len(batch.x)
        for _ in range(m):
            if clip_delta == "image":
                delta[:n] = (x + delta[:n]).clamp(0, 1) - x
            shift = delta[:n].clone().requires_grad_()
            loss = F.cross_entropy(net((x + shift).clamp(0, 1) if clip_delta == "ball" else x + shift), y)
            *grads, step = torch.autograd.grad(loss, [*parameters, shift])
            with torch.no_grad():
                for parameter, grad in zip(parameters, grads, strict=True):
                    parameter -= LR * grad
            delta[:n] = (delta[:n] + eps * step.sign()).clamp(-eps, eps)
            if clip_delta == "image":
                delta[:n] = (x + delta[:n]).clamp(0, 1) - x
    return delta


def batches_of(batch, size=8):
    return [type(batch)(*parts) for parts in zip(*(part.split(size) for part in batch), strict=True)]


@pytest.mark.parametrize("clip_delta", ["ball", "image"])
@pytest.mark.parametrize("net", [smooth_net, TinyNet])
def test_three_batches_are_the_algorithm_with_one_perturbation_for_all(tmp_path, net, clip_delta):
    data = images(20)  # the last batch is short
    exact = in_float64(net())
    defense = free(net(), clip_delta=clip_delta)
    trainer(tmp_path, max_epochs=1).fit(defense, loader(data))
    delta = algorithm(exact, batches_of(data), m=3, clip_delta=clip_delta)
    torch.testing.assert_close(defense.memory.tensors["delta"], delta.float(), rtol=0, atol=1e-6)
    for mine, theirs in zip(defense.net.parameters(), exact.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs.float(), rtol=0, atol=1e-5)


def test_the_conventions_of_clipping_differ_where_images_are_black_or_white(tmp_path):
    data = images(8)
    data = data._replace(x=data.x.round())
    linear = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 4))
    direction = gradient(in_float64(linear), data.x, data.y).sign().float()
    deltas = {}
    for clip_delta in ("ball", "image"):
        defense = free(linear, m=2, clip_delta=clip_delta, optimizer=lambda params: torch.optim.SGD(params, lr=0.0))
        trainer(tmp_path, max_epochs=1).fit(defense, loader(data))
        deltas[clip_delta] = defense.memory.tensors["delta"]
    outwards = direction == 2 * data.x - 1  # from black to blacker
    torch.testing.assert_close(deltas["ball"], EPS * direction)
    torch.testing.assert_close(deltas["image"], EPS * direction * ~outwards)


def test_one_replay_from_no_perturbation_is_a_natural_step(tmp_path):
    nets = []
    for method, arguments in ((FreeAT, {"m": 1}), (Natural, {})):
        defense = build(method, net=TinyNet(), attack=ONE_STEP, optimizer=plain_sgd, **arguments)
        trainer(tmp_path, max_epochs=1).fit(defense, loader(images(8)))
        nets.append(defense.net)
    for mine, theirs in zip(*(net.parameters() for net in nets), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-6)


def test_updates_and_epochs_of_data_are_both_logged(tmp_path):
    logger = CSVLogger(tmp_path, name="run", version=0)
    fitted = trainer(tmp_path, max_epochs=2, log_every_n_steps=1, logger=logger)
    fitted.fit(free(TinyNet(), m=4), loader(images(24)))
    with (tmp_path / "run" / "version_0" / "metrics.csv").open() as file:
        rows = [(int(row["epoch"]), float(row["train/updates"])) for row in csv.DictReader(file)]
    assert [*dict.fromkeys(rows)] == [(0, 4), (0, 8), (0, 12), (1, 16), (1, 20), (1, 24)]
    assert fitted.global_step == 24


def test_a_batch_without_an_adversary_is_one_update_and_leaves_the_perturbation(tmp_path):
    defense = free(TinyNet(), m=4)
    defense.adversarial = False
    fitted = trainer(tmp_path, max_epochs=1)
    fitted.fit(defense, loader(images(24)))
    assert fitted.global_step == 3
    assert defense.memory.tensors == {}


def test_a_resumed_run_goes_on_with_the_perturbation(tmp_path):
    whole = free(TinyNet())
    trainer(tmp_path, max_epochs=2).fit(whole, loader(images(20)))
    half = trainer(tmp_path, max_epochs=1)
    half.fit(free(TinyNet()), loader(images(20)))
    half.save_checkpoint(tmp_path / "half.ckpt")
    rest = free(TinyNet(seed=5))
    trainer(tmp_path, max_epochs=2).fit(rest, loader(images(20)), ckpt_path=tmp_path / "half.ckpt")
    assert torch.equal(whole.memory.tensors["delta"], rest.memory.tensors["delta"])
    assert all(torch.equal(a, b) for a, b in zip(whole.net.parameters(), rest.net.parameters(), strict=True))


def test_replays_in_bf16_see_the_weights_of_the_update_before(tmp_path):
    data, net = images(8), smooth_net()
    defense = free(smooth_net(), m=3)
    trainer(tmp_path, max_epochs=1, precision="bf16-mixed").fit(defense, loader(data))
    delta = torch.zeros_like(data.x)
    for _ in range(3):
        x_adv = (data.x + delta).clamp(0, 1).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):  # a new one for each forward
            logits = net(x_adv)
        *grads, step = torch.autograd.grad(F.cross_entropy(logits.float(), data.y), [*net.parameters(), x_adv])
        with torch.no_grad():
            for parameter, grad in zip(net.parameters(), grads, strict=True):
                parameter -= LR * grad
            delta = (delta + EPS * step.sign() * (x_adv == data.x + delta)).clamp(-EPS, EPS)
    torch.testing.assert_close(defense.memory.tensors["delta"], delta, rtol=0, atol=1e-6)
    for mine, theirs in zip(defense.net.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-6)


def test_samples_of_weight_0_leave_the_net_and_their_perturbation_alone(tmp_path):
    data, nets = images(8), []
    weight = torch.tensor([1.0, 1, 1, 1, 1, 0, 0, 0])
    for batch in (data._replace(weight=weight), type(data)(*(part[:5] for part in data))):
        defense = free(smooth_net())
        trainer(tmp_path, max_epochs=1).fit(defense, DataLoader([batch], batch_size=None))
        nets.append(defense)
    for mine, theirs in zip(*(defense.net.parameters() for defense in nets), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-6)
    assert not nets[0].memory.tensors["delta"][5:].any()


def test_the_learning_rate_moves_on_with_each_replay(tmp_path):
    class Rates(Callback):
        seen = ()

        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            self.seen = (*self.seen, optimizer.param_groups[0]["lr"])

    rates = Rates()
    defense = free(smooth_net(), m=4, lr_scheduler=Cyclic(up=1, down=1))
    trainer(tmp_path, max_epochs=2, callbacks=[rates]).fit(defense, loader(images(16)))
    ramp = [LR * update / 8 for update in range(8)]
    assert rates.seen == pytest.approx([*ramp, LR, *reversed(ramp[1:])])


def test_a_gradient_that_overflowed_moves_no_pixel_and_poisons_none(tmp_path):
    class Overflow(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = smooth_net()

        def forward(self, x):
            if x.requires_grad:
                x.register_hook(lambda grad: grad.index_fill(0, torch.tensor([0]), torch.nan))
            return self.net(x)

    defense = free(Overflow(), m=1)
    trainer(tmp_path, max_epochs=1).fit(defense, loader(images(8)))
    assert not defense.memory.tensors["delta"][0].any()
    assert defense.memory.tensors["delta"][1:].any()


def test_replays_of_batches_of_one_class_each_make_the_net_forget_the_other_classes(tmp_path, monkeypatch):
    """As the Free-vs-Fast report suspects; scripts/free_forgetting.py measures it on digits.

    Means over three seeds, because much depends on which class comes last.
    """
    data = images(64)
    by_class = data.y.argsort(stable=True)

    def of_seed(seed, m, rows):
        """After 8 epochs over batches of these rows, in random order."""
        monkeypatch.setenv("PL_GLOBAL_SEED", str(seed))
        batches = [(data.x[part], data.y[part]) for part in rows.split(8)]
        defense = free(
            smooth_net(), m=m, attack=FGSM(eps=0.05), optimizer=lambda params: torch.optim.Adam(params, lr=0.02)
        )
        trainer(tmp_path, max_epochs=8).fit(defense, DataLoader(batches, batch_size=None, shuffle=True))
        return (defense.net(data.x).argmax(dim=1) == data.y).float().mean().item()

    def accuracy(**what):
        return sum(of_seed(seed, **what) for seed in range(3)) / 3

    assert accuracy(m=1, rows=by_class) > 0.9
    assert accuracy(m=8, rows=by_class) < 0.4
    assert accuracy(m=8, rows=torch.arange(64)) > 0.95  # so it takes both


@pytest.mark.parametrize(("name", "value"), [("m", 0), ("clip_delta", "box")])
def test_arguments_that_make_no_sense_are_refused(name, value):
    with pytest.raises(ValueError, match=f"^{name}="):
        free(TinyNet(), **{name: value})
