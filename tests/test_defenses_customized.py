"""Customized adversarial training: eps and label by image."""

from dataclasses import replace

import pytest
import torch
from lightning.pytorch import Callback
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lit_robust.attacks import PGD, FriendlyPGD
from lit_robust.callbacks import AttributeRamp
from lit_robust.data.resident import ResidentDataModule
from lit_robust.defenses import PGDAT, CustomizedAT
from lit_robust.schedules import Linear
from lit_robust.training.per_image import merge
from tests.formulas import Passes, assert_same_batch, in_float64, smooth_net
from tests.methods import ATTACK, EPS, ONE_STEP, build
from tests.tiny import CLASSES, SHAPE, images, indexed, loader, trainer

#: The authors'.
CODE = PGD(eps=0.035, step_size=0.007, steps=10, init="zero")
N = 12


def customized(eps=0.0, **arguments) -> CustomizedAT:
    """The method with a table of the tiny images, as training makes it."""
    defense = build(CustomizedAT, **({"attack": CODE} | arguments))
    numbers = torch.as_tensor(eps, dtype=torch.float32).expand(N).clone()
    defense.memory.tensors = {"numbers": numbers, "changed": torch.zeros(N, dtype=torch.bool)}
    return defense


def eps_of(defense) -> torch.Tensor:
    return defense.memory.tensors["numbers"]


class Sure(nn.Module):
    """Always predicts class 0: an attack on images of class 0 fails, on others it succeeds."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        logits = torch.zeros(len(x), CLASSES) + self.slope * x.flatten(1).sum(dim=1, keepdim=True)
        return logits + torch.tensor([100.0, 0, 0, 0])


class TestEps:
    def test_grows_by_eta_and_falls_back_where_the_attack_failed(self):
        defense, batch = customized(0.01, net=Sure()), images(N)
        *_, eps = defense.perturb(batch)
        kept = torch.tensor([0.01, 0.0125, 0.0125, 0.0125])[batch.y]
        torch.testing.assert_close(eps, kept)
        torch.testing.assert_close(eps_of(defense), kept)

    def test_grows_by_eta_and_falls_back_where_the_attack_succeeded(self):
        defense, batch = customized(0.01, net=Sure(), revert="succeeded"), images(N)
        defense.perturb(batch)
        torch.testing.assert_close(eps_of(defense), torch.tensor([0.0125, 0.01, 0.01, 0.01])[batch.y])

    @pytest.mark.parametrize("revert", ["failed", "succeeded"])
    def test_stops_at_the_attacks_eps_and_loses_eta_of_that(self, revert):
        defense, batch = customized(0.0345, net=Sure(), revert=revert), images(N)
        defense.perturb(batch)
        reverted = (batch.y == 0) == (revert == "failed")
        torch.testing.assert_close(eps_of(defense), torch.where(reverted, 0.0325, 0.035))

    def test_never_becomes_negative_under_a_ramp_that_begins_at_0(self):
        defense = customized(0.0, net=Sure())
        defense.attack = PGD(eps=0.0)
        x_adv, _, eps = defense.perturb(images(N))
        assert torch.equal(eps, torch.zeros(N))
        assert torch.equal(x_adv, images(N).x)

    def test_of_an_image_that_only_pads_a_rank_is_not_written(self):
        defense, batch = customized(net=Sure()), images(N)
        defense.perturb(batch._replace(weight=(batch.index < 8).float()))
        lost = (batch.y != 0) & (batch.index < 8)
        torch.testing.assert_close(eps_of(defense), 0.0025 * lost.float())
        assert torch.equal(defense.memory.tensors["changed"], batch.index < 8)

    def test_belongs_to_the_index_and_not_to_the_place_in_the_batch(self):
        defense, batch = customized(net=Sure()), images(N)
        order = torch.randperm(N)[:5]
        defense.perturb(type(batch)(*(part[order] for part in batch)))
        lost = torch.zeros(N).index_fill(0, order, 1.0) * (batch.y != 0)
        torch.testing.assert_close(eps_of(defense), 0.0025 * lost)


class TestAttack:
    @pytest.mark.parametrize("norm", ["linf", "l2"])
    @pytest.mark.parametrize("init", ["zero", "uniform"])
    def test_stays_in_the_ball_of_each_image_and_uses_it(self, norm, init):
        eps, batch = torch.linspace(0.001, 0.03, N), images(N)
        defense = customized(eps, attack=PGD(eps=0.035, step_size=0.02, steps=5, norm=norm, init=init))
        x_adv, *_ = defense.perturb(batch)
        change = (x_adv - batch.x).flatten(1).norm(p=torch.inf if norm == "linf" else 2, dim=1)
        assert (change <= eps + 0.0025 + 1e-6).all()
        assert (change >= (eps + 0.0025) * (0.99 if norm == "linf" else 0.5)).all()
        assert 0 <= x_adv.min() <= x_adv.max() <= 1

    def test_starts_in_that_ball_too(self):
        eps, batch = torch.linspace(0.001, 0.03, N), images(N)
        x_adv, *_ = customized(eps, attack=PGD(eps=0.035, steps=0, init="uniform")).perturb(batch)
        change = (x_adv - batch.x).flatten(1).abs().amax(dim=1)
        assert (change <= eps + 0.0025 + 1e-6).all()
        assert (change > 0.9 * eps).all()

    def test_is_the_formulas_in_float64(self):
        eps, batch, net = torch.linspace(0, 0.03, N), images(N), smooth_net()
        attack = PGD(eps=0.035, step_size=0.007, steps=5, init="zero")
        found, *_ = customized(eps, net=net, attack=attack, noise="uniform").perturb(batch)
        expected, unsure = by_the_formula(net, batch, eps.double() + 0.0025, steps=5)
        assert unsure.float().mean() < 0.02
        torch.testing.assert_close(found[~unsure], expected[~unsure])

    def test_costs_its_steps_one_forward_and_the_update(self, tmp_path):
        defense = build(CustomizedAT, attack=CODE)
        passes = Passes(defense.net)
        trainer(tmp_path, max_epochs=1).fit(defense, indexed(images(N), batch_size=N))
        assert passes.forward == 2 + N * (10 + 1 + 1)  # two images in the check of the first batch
        assert passes.backward == N * (10 + 1)


def by_the_formula(net, batch, eps, steps):
    """The attack in float64 with its gradient in the logits written out; and where the gradient's sign is in doubt."""
    net, x, y = in_float64(net), batch.x.double(), batch.y
    truth, column = F.one_hot(y, CLASSES).double(), eps.unsqueeze(1)
    q = (1 - 10 * column) * truth + 10 * column / CLASSES
    x_adv, unsure, ball = x, torch.zeros_like(x, dtype=torch.bool), eps.view(-1, 1, 1, 1)
    for _ in range(steps):
        x_adv = x_adv.detach().requires_grad_()
        z = net(x_adv)
        other = F.one_hot((z - 1e9 * truth).argmax(dim=1), CLASSES).double()
        reaches = ((z * (truth - other)).sum(dim=1, keepdim=True) + 10 > 0).double()
        by_logits = z.softmax(dim=1) - q - 128 * column * reaches * (truth - other)
        (gradient,) = torch.autograd.grad(z, x_adv, by_logits)
        unsure |= gradient.abs() < 1e-5 * gradient.abs().max()
        x_adv = (x_adv + 0.007 * gradient.sign()).clamp(x - ball, x + ball).clamp(0, 1)
    return x_adv.detach().float(), unsure


class TestLabels:
    def test_are_hard_at_eps_0_and_lose_10_eps_to_noise(self):
        defense, y = customized(), torch.arange(CLASSES)
        assert torch.equal(defense.labels(y, torch.zeros(CLASSES)), torch.eye(CLASSES))
        soft = defense.labels(y, torch.full((CLASSES,), 0.03))
        torch.testing.assert_close(soft.sum(dim=1), torch.ones(CLASSES))
        assert (soft.diagonal() >= 0.7).all()
        assert (soft >= 0).all()

    def test_are_mixed_with_a_flat_dirichlet_distribution(self):
        defense, n = customized(smoothing=20.0), 40_000
        noise = 1 / 0.7 * (defense.labels(torch.zeros(n, dtype=torch.long), torch.full((n,), 0.035)))
        noise[:, 0] -= 0.3 / 0.7
        # Dirichlet(1, ..., 1) of C numbers: mean 1/C, variance (C - 1) / C^2 (C + 1), and P(p_j > t) = (1 - t)^(C - 1)
        torch.testing.assert_close(noise.mean(dim=0), torch.full((4,), 1 / 4), rtol=0, atol=0.004)
        torch.testing.assert_close(noise.var(dim=0), torch.full((4,), 3 / 80), rtol=0, atol=0.001)
        torch.testing.assert_close((noise > 0.5).float().mean(dim=0), torch.full((4,), 1 / 8), rtol=0, atol=0.006)

    def test_may_be_mixed_with_its_mean_instead(self):
        soft = customized(noise="uniform").labels(torch.tensor([1]), torch.tensor([0.02]))
        torch.testing.assert_close(soft, torch.tensor([[0.05, 0.85, 0.05, 0.05]]))

    def test_of_the_update_are_those_of_the_eps_after_the_revert(self):
        defense, batch = customized(0.01, net=Sure(), noise="uniform"), images(N)
        _, labels, eps = defense.perturb(batch)
        torch.testing.assert_close(labels, defense.labels(batch.y, eps_of(defense)))
        assert len(eps.unique()) == 2


class TestLoss:
    def test_is_the_formulas_in_float64(self):
        batch, x_adv, eps = images(N), images(N, seed=1).x, torch.linspace(0, 0.035, N)
        net, defense = smooth_net(), customized(net=smooth_net())
        labels = defense.labels(batch.y, eps)
        z = in_float64(net)(x_adv.double())
        own = z[torch.arange(N), batch.y]
        other = (z - 1e9 * F.one_hot(batch.y, CLASSES)).max(dim=1).values
        expected = -(labels * z.log_softmax(dim=1)).sum(dim=1) + 128 * eps * (other - own + 10).clamp_min(0)
        torch.testing.assert_close(defense.loss(batch, (x_adv, labels, eps)).double(), expected, rtol=1e-5, atol=1e-6)

    def test_without_growth_smoothing_and_margin_it_is_pgd_training(self):
        attack, batch = PGD(eps=EPS, step_size=0.05, steps=3, init="uniform"), images(N)
        mine = customized(attack=attack, eta=EPS, smoothing=0.0, margin_weight=0.0, noise="uniform")
        assert_same_batch(mine, build(PGDAT, attack=attack, attack_bn_mode="eval"), batch)


def test_numbers_that_are_not_given_are_the_codes_in_proportion_to_eps():
    code, other = customized(), customized(attack=PGD(eps=0.35))
    assert (code.eta, code.smoothing, code.margin_weight, code.kappa) == (0.0025, 10, 128, 10)
    assert (other.eta, other.smoothing, other.margin_weight) == pytest.approx((0.025, 1, 12.8))
    assert customized(eta="1/255").eta == 1 / 255


class Data(ResidentDataModule):
    """The tiny images, a third of them held out."""

    num_classes, image_shape = CLASSES, SHAPE

    def __init__(self, **kwargs) -> None:
        super().__init__(batch_size=4, val_size=8, **kwargs)

    def _arrays(self, train):
        batch = images(24 if train else 8)
        return (255 * batch.x).byte(), batch.y


def fit(tmp_path, data, *callbacks, epochs=2, **arguments):
    still = {"net": Sure(), "attack": CODE, "optimizer": lambda params: torch.optim.SGD(params, lr=0.0)}
    defense = build(CustomizedAT, **(still | arguments))
    run = trainer(tmp_path, max_epochs=epochs, callbacks=list(callbacks))
    run.fit(defense, data)
    return defense, run


class TestTraining:
    def test_each_image_is_counted_once_per_epoch_and_held_out_images_never(self, tmp_path):
        data = Data()
        defense, run = fit(tmp_path, data, epochs=3)
        trained = torch.zeros(24).index_fill(0, data.train_dataloader().samples.indices, 1.0)
        lost = (3 * 0.0025 * trained * (images(24).y != 0))[: len(eps_of(defense))]
        torch.testing.assert_close(eps_of(defense), lost)
        assert float(run.callback_metrics["train/eps"]) == pytest.approx(lost.sum().item() / 16, rel=1e-5)

    def test_the_table_grows_when_other_images_are_selected(self, tmp_path):
        class Select(Callback):
            def on_fit_start(self, trainer, pl_module):
                trainer.datamodule.select(indices[:8])

            def on_train_epoch_end(self, trainer, pl_module):
                sizes.append(len(eps_of(pl_module)))
                trainer.datamodule.select(None)

        data, sizes = Data(), []
        indices = data.train_dataloader().samples.indices.sort().values
        defense, _ = fit(tmp_path, data, Select())
        assert sizes == [indices[7] + 1, indices[-1] + 1]
        expected = 0.0025 * (images(24).y != 0)
        torch.testing.assert_close(eps_of(defense)[indices[:8]], 2 * expected[indices[:8]])
        torch.testing.assert_close(eps_of(defense)[indices[8:]], expected[indices[8:]])

    def test_a_table_of_two_ranks_is_taken_over_by_one(self, tmp_path):
        defense, run = fit(tmp_path, indexed(images(N)))
        run.save_checkpoint(tmp_path / "a.ckpt")
        checkpoint = torch.load(tmp_path / "a.ckpt", weights_only=True)
        mine = {"numbers": torch.tensor([0.1, 0.2]), "changed": torch.tensor([True, False])}
        other = {"numbers": torch.tensor([0.0, 0.3]), "changed": torch.tensor([False, True])}
        checkpoint["lit_robust"]["memory"]["tensors"] = [mine, other]
        defense.on_load_checkpoint(checkpoint)
        torch.testing.assert_close(eps_of(defense), torch.tensor([0.1, 0.3]))


def test_ranks_tables_are_merged_by_the_rank_that_has_seen_an_image():
    states = [
        {"numbers": torch.tensor([0.1, 0.5, 0.3, 0.2]), "changed": torch.tensor([True, False, False, True])},
        {"numbers": torch.tensor([0.4, 0.7, 0.3, 0.4]), "changed": torch.tensor([False, True, False, True])},
    ]
    merged = merge(states)
    torch.testing.assert_close(merged["numbers"], torch.tensor([0.1, 0.7, 0.3, 0.3]))
    assert not merged["changed"].any()
    assert torch.equal(merge(states[:1])["numbers"], states[0]["numbers"])


@pytest.mark.parametrize(
    ("arguments", "error", "named"),
    [
        ({"attack": ONE_STEP}, TypeError, "CustomizedAT .*attack=.* FGSM"),
        ({"attack": FriendlyPGD(0.1, 0.05, steps=2)}, TypeError, "CustomizedAT .*attack=.* FriendlyPGD"),
        ({"attack": replace(ATTACK, momentum=0.9, restarts=3)}, ValueError, "CustomizedAT .*momentum, restarts"),
        ({"kappa": float("nan")}, ValueError, "kappa="),
        ({"attack": PGD(eps=0.0)}, ValueError, r"attack\.eps="),
        ({"eta": 0.0}, ValueError, "eta="),
        ({"eta": 0.2}, ValueError, "eta="),
        ({"eta": 2}, ValueError, "eta="),
        ({"smoothing": 11.0}, ValueError, r"smoothing=11 .*attack\.eps=0\.1"),
        ({"smoothing": -1.0}, ValueError, "smoothing="),
        ({"margin_weight": -1.0}, ValueError, "margin_weight="),
        ({"revert": "wrong"}, ValueError, "revert="),
        ({"noise": "gauss"}, ValueError, "noise="),
    ],
)
def test_arguments_that_make_no_sense_are_refused(arguments, error, named):
    with pytest.raises(error, match=f"^{named}"):
        build(CustomizedAT, **({"attack": ATTACK} | arguments))


def test_a_ramp_of_eps_beyond_the_first_one_is_refused_before_labels_get_negative(tmp_path):
    defense = build(CustomizedAT, attack=PGD("1/255", "1/255", steps=2, init="zero"))
    run = trainer(tmp_path, max_epochs=5, callbacks=[AttributeRamp("attack.eps", Linear("1/255", "8/255", 0, 5))])
    with pytest.raises(ValueError, match=r"at epoch 1\.5: smoothing=89\.25 .*attack\.eps=0\.0121569"):
        run.fit(defense, indexed(images(N)))


def test_a_subset_of_the_users_own_keeps_the_indices_of_the_whole(tmp_path):
    whole = indexed(images(N)).dataset
    few = DataLoader(torch.utils.data.Subset(whole, [0, 1, 9, 11]), batch_size=2)
    defense = build(CustomizedAT)
    trainer(tmp_path, max_epochs=1).fit(defense, few)
    assert len(defense.memory.tensors["numbers"]) == N
    assert set(defense.memory.tensors["numbers"].nonzero().flatten().tolist()) <= {0, 1, 9, 11}


class Endless(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter([])


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (loader(images(N)), r"index.*lit_robust\.batch\.Batch"),
        (indexed(images(N)._replace(index=torch.arange(N) + 90)), "index 97.* 12 images"),
        (DataLoader(Endless()), "DataLoader "),
    ],
    ids=["no index", "index out of range", "no length"],
)
def test_images_without_an_index_are_refused_before_training(tmp_path, data, named):
    defense = build(CustomizedAT)
    before = defense.net.head.weight.clone()
    with pytest.raises(ValueError, match=named):
        trainer(tmp_path, max_epochs=1).fit(defense, data)
    assert torch.equal(defense.net.head.weight, before)
