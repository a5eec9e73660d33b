"""Single-step training with a regulariser, against the formulas."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lit_robust.batch import Batch
from lit_robust.defenses import AAER, ELLEA, FGSMAT, NFGSM, RMGM, SATR1, SATR3, FastAT, GradAlign
from lit_robust.defenses.elle import adapted
from lit_robust.ranks import weighted_mean
from tests.formulas import assert_same_batch, gradient, in_float64, one_batch, smooth_net
from tests.methods import EPS, ONE_STEP, build
from tests.tiny import TinyNet, images, loader, trainer

ALPHA, LAM = 0.03, 0.7


def both(method, net=TinyNet, batch=None, **arguments):
    """The method's own adversary, loss and gradient, and the net in float64 to evaluate the formula with."""
    mine = net()
    exact = in_float64(mine)
    defense = build(method, net=mine, attack=ONE_STEP, **arguments)
    batch = batch or images()
    result = one_batch(defense, batch)
    torch.manual_seed(3)
    return defense, batch, exact, result


def assert_formula(exact, result, loss):
    """The mean loss, and its gradient in every parameter."""
    _, values, grads = result
    assert values.mean().item() == pytest.approx(loss.item(), rel=1e-5)
    loss.backward()
    for name, parameter in exact.named_parameters():
        torch.testing.assert_close(grads[name], parameter.grad.float(), rtol=1e-4, atol=1e-5)


def ce(net, x, y):
    return F.cross_entropy(net(x), y, reduction="none")


def close(mine, exact):
    torch.testing.assert_close(mine, exact.float(), rtol=0, atol=1e-6)


class Wavy(torch.nn.Module):
    """So curved that a step lowers the loss of some samples, some of which change more than the rest."""

    def __init__(self):
        super().__init__()
        self.net = smooth_net()

    def forward(self, x):
        return 3 * (4 * self.net(8 * x)).sin()


@pytest.mark.parametrize("net", [TinyNet, smooth_net])
def test_gradalign_adds_one_minus_the_cosine_of_two_input_gradients(net):
    _, batch, exact, result = both(GradAlign, net, lam=LAM)
    x_eta = (batch.x + (2 * torch.rand_like(batch.x) - 1) * EPS).double().requires_grad_()
    clean = gradient(exact, batch.x, batch.y)
    x_adv = (batch.x + EPS * clean.sign()).clamp(0, 1)
    close(result[0][0], x_adv)
    other = torch.autograd.grad(F.cross_entropy(exact(x_eta), batch.y), x_eta, create_graph=True)[0]
    cosines = [(a * b).sum() / a.norm() / b.norm() for a, b in zip(clean, other, strict=True)]
    assert_formula(exact, result, ce(exact, x_adv, batch.y).mean() + LAM * (1 - torch.stack(cosines).mean()))


def test_gradalign_leaves_samples_without_a_gradient_out_of_the_mean():
    class Saturated(torch.nn.Module):
        """Certain of the images whose first pixel is black: their gradient is exactly 0."""

        def __init__(self):
            super().__init__()
            self.net = Wavy()

        def forward(self, x):
            known = (x[:, 0, 0, 0] < 0).view(-1, 1)
            return torch.where(known, torch.tensor([[1000.0, 0, 0, 0]]).to(x), self.net(x))

    batch = images(12)
    x = batch.x.clone()
    x[::4, 0, 0, 0] = -1.0  # class 0
    _, some, grads = one_batch(build(GradAlign, net=Saturated(), attack=ONE_STEP), batch._replace(x=x))
    assert all(grad.isfinite().all() for grad in grads.values())
    rest = torch.arange(12) % 4 != 0
    torch.manual_seed(3)
    eta = (2 * torch.rand_like(x) - 1) * EPS
    net = in_float64(Saturated())
    clean, other = gradient(net, x, batch.y), gradient(net, x + eta, batch.y)
    cosine = F.cosine_similarity(clean[rest].flatten(1), other[rest].flatten(1)).mean()
    plain = ce(net, (x + EPS * clean.sign()).clamp(0, 1), batch.y).mean()
    assert some.mean().item() == pytest.approx((plain + 0.2 * (1 - cosine)).item(), rel=1e-5)


def test_gradalign_of_a_net_that_is_certain_of_everything_is_fgsm():
    class Certain(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(()))

        def forward(self, x):
            return self.scale * torch.tensor([[1000.0, 0, 0, 0]]).expand(len(x), 4) + 0 * x.sum()

    batch = images(8)._replace(y=torch.zeros(8, dtype=torch.long))
    _, values, grads = one_batch(build(GradAlign, net=Certain(), attack=ONE_STEP), batch)
    assert values.tolist() == [0.0] * 8
    assert grads["scale"].item() == 0


@pytest.mark.parametrize("net", [TinyNet, smooth_net])
def test_rmgm_compares_the_logits_of_fgsm_and_r_fgsm(net):
    _, batch, exact, result = both(RMGM, net, lam=LAM, alpha=ALPHA)
    start = torch.cat([batch.x, batch.x + ALPHA * torch.randn_like(batch.x).sign()])
    labels = torch.cat([batch.y, batch.y])
    pair = (start + EPS * gradient(exact.eval(), start, labels).sign()).clamp(0, 1)
    close(torch.cat(result[0]), pair)
    z1, z2 = exact.train()(pair).chunk(2)  # one forward: BatchNorm sees both halves
    assert_formula(exact, result, F.cross_entropy(z1, batch.y) + LAM * ((z1 - z2) ** 2).sum(1).mean())


def test_rmgms_second_adversary_reaches_eps_plus_alpha_and_no_further():
    batch = images()
    _, x2 = build(RMGM, attack=ONE_STEP, alpha=ALPHA).perturb(batch)
    assert (x2 - batch.x).abs().max().item() == pytest.approx(EPS + ALPHA, abs=1e-6)


@pytest.mark.parametrize("net", [TinyNet, smooth_net])
def test_satr1_compares_the_last_sample_under_one_step_and_under_three(net):
    _, batch, exact, result = both(SATR1, net, lam=LAM)
    exact.eval()
    x1 = (batch.x + EPS * gradient(exact, batch.x, batch.y).sign()).clamp(0, 1)
    x2 = batch.x[-1:].double()
    for _ in range(3):
        x2 = (x2 + EPS / 3 * gradient(exact, x2, batch.y[-1:]).sign()).clamp(0, 1)
    close(result[0][0], x1)
    close(result[0][1], x2)
    z = exact.train()(torch.cat([x1, x2]))
    assert_formula(exact, result, F.cross_entropy(z[:-1], batch.y) + LAM * ((z[-2] - z[-1]) ** 2).sum())


def test_satr1s_last_sample_is_no_padding():
    batch = images()
    real = Batch(*(part[:-2] for part in batch))
    tiny = 1e-9  # what a coreset may weigh, and what a sum of float32 would not see
    padded = batch._replace(weight=torch.tensor([1.0] * (len(batch.y) - 3) + [tiny, 0.0, 0.0]))
    alone, beside = (one_batch(build(SATR1, net=smooth_net(), attack=ONE_STEP, lam=LAM), b) for b in (real, padded))
    close(beside[0][1], alone[0][1])
    close(beside[1][:-2], alone[1])


@pytest.mark.parametrize("tau", [0.0, 0.6, 100.0])
def test_satr3_penalises_the_mean_excess_of_the_small_steps_loss(tau):
    _, batch, exact, result = both(SATR3, lam=LAM, tau=tau, eps_low=0.02, alpha=ALPHA)
    x0 = (batch.x + ALPHA * torch.randn_like(batch.x).sign()).clamp(0, 1)
    g = gradient(exact.eval(), x0, batch.y).sign()
    large, small = (x0 + EPS * g).clamp(0, 1), (x0 + 0.02 * g).clamp(0, 1)
    close(result[0][0], large)
    close(result[0][1], small)
    z_large, z_small = exact.train()(torch.cat([large, small])).chunk(2)
    ce_large, ce_small = F.cross_entropy(z_large, batch.y), F.cross_entropy(z_small, batch.y)
    assert_formula(exact, result, ce_large + LAM * F.relu(ce_small - tau * ce_large))


@pytest.mark.parametrize(("net", "lam"), [(TinyNet, 100.0), (Wavy, 0.7)])
def test_elle_penalises_the_squared_error_of_linear_interpolation(net, lam):
    mine = net()
    exact = in_float64(mine)
    batch, defense = images(), build(ELLEA, net=mine, attack=ONE_STEP)
    defense.memory.tensors["elle"] = torch.tensor([lam / 0.99, 1.0, 9.0, 0.0])
    defense.memory.tensors["elle_error"] = torch.tensor(9.0)
    result = one_batch(defense, batch)
    torch.manual_seed(3)
    torch.rand_like(batch.x)  # of N-FGSM's start, whose noise is 0
    x_a, x_b = (batch.x + EPS * (2 * torch.rand_like(batch.x) - 1) for _ in range(2))
    t = torch.rand(len(batch.x)).double()
    x_c = (1 - t.view(-1, 1, 1, 1)) * x_a + t.view(-1, 1, 1, 1) * x_b
    x_adv = (batch.x + EPS * gradient(exact, batch.x, batch.y).sign()).clamp(0, 1)
    close(result[0], x_adv)
    ce_a, ce_b, ce_c = ce(exact, torch.cat([x_a, x_b, x_c]), batch.y.repeat(3)).chunk(3)
    error = ((ce_c - (1 - t) * ce_a - t * ce_b) ** 2).mean()
    assert_formula(exact, result, ce(exact, x_adv, batch.y).mean() + lam * error)
    assert defense.memory.tensors["elle_error"].item() == pytest.approx(error.item(), rel=1e-3)


def test_elles_weight_follows_the_authors_rule_over_the_whole_run():
    errors = np.random.default_rng(0).exponential(size=200).round(3) * np.where(np.arange(200) % 50 == 49, 9, 1)
    history, lam, jumps = [], 0.0, 0
    state = torch.zeros(4, dtype=torch.float64)
    for error in errors:
        if len(history) > 2 and error > np.mean(history) + 2 * np.std(history):
            lam, jumps = 4000.0, jumps + 1
        else:
            lam *= 0.99
        history.append(error)
        state = adapted(state, torch.tensor(error), 4000.0)
        assert state[0].item() == pytest.approx(lam)
    assert 4 < jumps < 50
    assert state[2].item() == pytest.approx(np.mean(errors))
    assert math.sqrt(state[3] / 200) == pytest.approx(np.std(errors))


def test_elles_history_goes_on_after_a_resume(tmp_path):
    def ellea(seed=0):
        return build(ELLEA, net=TinyNet(seed=seed), attack=ONE_STEP, lam_max=5.0)

    whole, rest = ellea(), ellea(seed=5)
    trainer(tmp_path, max_epochs=2).fit(whole, loader(images()))
    half = trainer(tmp_path, max_epochs=1)
    half.fit(ellea(), loader(images()))
    half.save_checkpoint(tmp_path / "half.ckpt")
    trainer(tmp_path, max_epochs=2).fit(rest, loader(images()), ckpt_path=tmp_path / "half.ckpt")
    assert whole.memory.tensors["elle"][1] == 5  # the sixth batch's error waits for the seventh
    assert all(torch.equal(whole.memory.tensors[name], rest.memory.tensors[name]) for name in ("elle", "elle_error"))
    assert all(torch.equal(a, b) for a, b in zip(whole.net.parameters(), rest.net.parameters(), strict=True))


def aaer_formula(exact, batch, base, lam1, lam2, lam3, attached):
    size, alpha = (1, 1.25) if base == "fast" else (2, 1)
    start = (batch.x + (2 * torch.rand_like(batch.x) - 1) * size * EPS).clamp(0, 1)
    x_adv = start + alpha * EPS * gradient(exact, start, batch.y).sign()
    if base == "fast":
        x_adv = batch.x + (x_adv - batch.x).clamp(-EPS, EPS)
    x_adv = x_adv.clamp(0, 1)
    z0, z1 = exact(start.double()).detach(), exact(x_adv)
    ce0, ce1 = (F.cross_entropy(z, batch.y, reduction="none") for z in (z0, z1))
    abnormal = [i for i in range(len(batch.y)) if ce0[i] > ce1[i]]
    others = [i for i in range(len(batch.y)) if i not in abnormal]
    if not abnormal or not others:
        return x_adv, ce1.mean(), len(abnormal)
    variation = ((z0 - z1) ** 2).sum(1)
    drop = (ce0 - (ce1 if attached else ce1.detach()))[abnormal].mean()
    excess = F.relu(variation[abnormal].mean() - variation[others].mean().item())
    share = len(abnormal) / len(batch.y)
    return x_adv, ce1.mean() + lam1 * share * (lam2 * drop + lam3 * excess), len(abnormal)


@pytest.mark.parametrize("detach_ce", [True, False])
@pytest.mark.parametrize(("base", "net"), [("fast", Wavy), ("nfgsm", Wavy), ("fast", smooth_net), ("fast", TinyNet)])
def test_aaer_is_the_authors_loss(base, net, detach_ce):
    weights = {"lam1": 0.9, "lam2": 0.5, "lam3": 0.3}
    _, batch, exact, result = both(AAER, net, base=base, detach_ce=detach_ce, **weights)
    x_adv, loss, abnormal = aaer_formula(exact, batch, base, **weights, attached=not detach_ce)
    close(result[0][0], x_adv)
    assert (abnormal > 0) == (net is Wavy)
    assert_formula(exact, result, loss)


def test_aaer_without_abnormal_or_without_normal_samples_is_its_base():
    for row in range(12):  # a single sample is either normal or abnormal; some are abnormal
        batch = type(images())(*(part[row : row + 1] for part in images()))
        make = [build(method, net=Wavy(), attack=ONE_STEP) for method in (AAER, FastAT)]
        assert_same_batch(*make, batch)


def test_aaers_drop_changes_the_loss_and_no_gradient_unless_it_is_attached():
    results = {}
    for name, arguments in {
        "none": {"lam2": 0.0},
        "code": {"lam2": 5.0},
        "paper": {"lam2": 5.0, "detach_ce": False},
    }.items():
        results[name] = both(AAER, Wavy, lam3=0.0, **arguments)[3]
    assert results["code"][1].mean() > results["none"][1].mean()
    assert results["code"][1].equal(results["paper"][1])
    gradients = {name: result[2]["net.3.bias"] for name, result in results.items()}
    assert gradients["code"].equal(gradients["none"])
    assert not gradients["paper"].allclose(gradients["none"])


@pytest.mark.parametrize(
    ("mine", "theirs"),
    [
        ((GradAlign, {"lam": 0.0}), (FGSMAT, {})),
        ((RMGM, {"lam": 0.0}), (FGSMAT, {})),
        ((SATR1, {"lam": 0.0}), (FGSMAT, {})),
        ((SATR3, {"lam": 0.0, "alpha": 0.0}), (FGSMAT, {})),
        ((ELLEA, {"lam_max": 0.0}), (FGSMAT, {})),
        ((ELLEA, {"lam_max": 0.0, "k": 2.0}), (NFGSM, {})),
        ((AAER, {"lam1": 0.0}), (FastAT, {})),
        ((AAER, {"lam1": 0.0, "base": "nfgsm"}), (NFGSM, {})),
    ],
)
def test_without_its_regulariser_a_method_is_the_simpler_one(mine, theirs):
    # No BatchNorm: a pair in one forward would share its statistics.
    make = [build(method, net=smooth_net(), attack=ONE_STEP, **arguments) for method, arguments in (mine, theirs)]
    assert_same_batch(*make, images())


@pytest.mark.parametrize(
    ("method", "arguments"),
    [(GradAlign, {}), (RMGM, {"lam": 0.5}), (SATR3, {"tau": 0.2}), (AAER, {"lam2": 0.0})],
)
def test_a_sample_of_weight_2_is_two_samples(method, arguments):
    batch, net = images(8), Wavy if method is AAER else smooth_net
    noise = torch.rand(8, 3, 8, 8)

    def loss_of(case, rows):
        defense = build(method, net=net(), attack=ONE_STEP, **arguments)
        with pytest.MonkeyPatch.context() as patch:  # a sample's noise goes with it
            patch.setattr(torch, "rand_like", lambda x: noise[rows])
            patch.setattr(torch, "randn_like", lambda x: noise[rows] - 0.5)
            return weighted_mean(defense.loss(case, defense.perturb(case)), case.weight).item()

    weighted = batch._replace(weight=torch.tensor([2.0, 1, 1, 1, 1, 1, 1, 0]))
    twice = torch.tensor([0, 0, 1, 2, 3, 4, 5, 6])
    repeated = type(batch)(*(part[twice] for part in batch))
    assert loss_of(weighted, torch.arange(8)) == pytest.approx(loss_of(repeated, twice), rel=1e-5)


def test_the_regularisers_are_reported(tmp_path):
    keys = {GradAlign: {"cosine"}, ELLEA: {"lam", "linearity_error"}, AAER: {"abnormal"}}
    for method, names in keys.items():
        fitted = trainer(tmp_path, max_epochs=1)
        fitted.fit(build(method, attack=ONE_STEP), loader(images()))
        assert {f"train/{name}" for name in names} <= fitted.callback_metrics.keys()


@pytest.mark.parametrize(
    ("method", "name", "value"),
    [
        (GradAlign, "lam", -1),
        (RMGM, "lam", -1),
        (SATR1, "lam", math.nan),
        (SATR3, "tau", -1),
        (ELLEA, "lam_max", -5),
        (ELLEA, "lam_max", math.inf),
        (AAER, "lam1", -1),
        (AAER, "lam3", -1),
        (RMGM, "alpha", 2),
        (SATR1, "steps", 0),
        (SATR3, "eps_low", "2/0"),
        (AAER, "base", "pgd"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(method, name, value):
    with pytest.raises(ValueError, match=f"^{name}="):
        build(method, attack=ONE_STEP, **{name: value})
