"""CoresetSelection: the plan of its epochs, what schedules see of them, and the weights in the loss."""

import csv
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import nn

from lit_robust.batch import Batch
from lit_robust.callbacks import AttributeRamp, CoresetSelection, DelayedStart, EMAWeights
from lit_robust.callbacks.coreset_data import Embedded, choose
from lit_robust.callbacks.coreset_plan import Plan
from lit_robust.callbacks.coreset_reports import in_words
from lit_robust.defenses import PGDAT, TRADES, Natural
from lit_robust.schedules import Linear, MultiStep, Staircase
from lit_robust.selection import CRAIG, GradMatch, Random
from tests.methods import build
from tests.ranks import linear
from tests.test_resume import TinyData
from tests.tiny import TinyNet, assert_equal, trainer

#: The training images of `TinyData`.
N = 22


FEWER_THAN_CLASSES = pytest.mark.filterwarnings("ignore:fraction=.* classes:UserWarning")


class Seen(Callback):
    """The number, weights and rate of each epoch's images."""

    def __init__(self) -> None:
        self.images: dict[int, list[tuple[int, float]]] = {}
        self.order: dict[int, list[int]] = {}
        self.rates: dict[int, float] = {}
        self.batches: dict[int, int] = {}

    def on_train_epoch_start(self, trainer, pl_module):
        assert trainer.current_epoch == pl_module.current_epoch

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        pairs = list(zip(batch.index.tolist(), batch.weight.tolist(), strict=True))
        self.images.setdefault(trainer.current_epoch, []).extend(pairs)
        self.order.setdefault(trainer.current_epoch, []).extend(index for index, _ in pairs)
        self.batches[trainer.current_epoch] = trainer.num_training_batches

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.rates[trainer.current_epoch] = optimizer.param_groups[0]["lr"]

    @property
    def sizes(self) -> dict[int, int]:
        return {epoch: len(images) for epoch, images in self.images.items()}


def fit(
    folder: Path,
    *callbacks: Callback,
    module: LightningModule | None = None,
    epochs: int = 8,
    data: Any = None,
    **kwargs: Any,
) -> tuple[LightningModule, Seen]:
    seed_everything(7, verbose=False)
    seen = Seen()
    module = build(PGDAT) if module is None else module
    kept = any(isinstance(callback, ModelCheckpoint) for callback in callbacks)
    more = {"enable_checkpointing": kept, "log_every_n_steps": 1} | kwargs
    run = trainer(
        folder,
        max_epochs=epochs,
        callbacks=[*callbacks, seen],
        **more,
    )
    run.fit(module, datamodule=TinyData() if data is None else data)
    return module, seen


# The plan.


def plan(fraction: Fraction, kappa: Fraction, epochs: int) -> dict[int, int]:
    """How many images each epoch trains on, by spec 6.2 in exact arithmetic."""
    warm = int(kappa * epochs)
    full = round(fraction * warm)
    return dict.fromkeys(range(full), N) | dict.fromkeys(range(warm, epochs), round(fraction * N))


@FEWER_THAN_CLASSES
@pytest.mark.parametrize(
    ("fraction", "warm", "epochs"),
    [
        ("1/2", "1/2", 8),
        ("1/2", "3/5", 5),
        ("3/10", "1/2", 9),
        ("1/2", "1/2", 10),  # 2.5 epochs on all images are rounded to the even number, as Python does it
        ("1/10", "1/2", 6),  # 0.3 epochs on all images are none
        ("9/10", "1/2", 4),  # 1.8 are two, and none is skipped
        ("1", "1/2", 4),
        ("3/10", "0", 3),
        ("3/10", "1/10", 3),  # no whole epoch
        ("1/2", "29/50", 50),  # 29 epochs, although 0.58 * 50 is less in floats
        ("1/2", "1/3", 9),
    ],
)
def test_epochs_on_all_images_then_skipped_ones_then_those_of_the_coreset(tmp_path, fraction, warm, epochs):
    selection = CoresetSelection(float(Fraction(fraction)), Random(), warm=float(Fraction(warm)))
    _, seen = fit(tmp_path, selection, epochs=epochs)
    assert seen.sizes == plan(Fraction(fraction), Fraction(warm), epochs)
    assert seen.batches == {epoch: -(-size // 8) for epoch, size in seen.sizes.items()}


SHARES = sorted({Fraction(n, of) for of in (3, 7, 8, 100) for n in range(1, of)})


def test_a_plan_has_the_epochs_that_exact_arithmetic_gives():
    """Products of floats do not: 0.29 * 100 < 29, and 0.575 * 200 < 115."""
    for kappa in [Fraction(0), *SHARES]:
        for fraction in [Fraction(1, 10), Fraction(3, 10), Fraction(1, 2), Fraction(575, 1000), Fraction(1, 3)]:
            told = Plan(float(fraction), 5, float(kappa))
            for epochs in (1, 2, 3, 7, 10, 30, 50, 100, 120, 200):
                full, first = told.starts(epochs)
                assert first == int(kappa * epochs)
                assert full == round(fraction * first)
                assert 0 <= full <= first < epochs
                passes = Fraction(full) + fraction * (epochs - first)  # in epochs on all images
                assert abs(passes - fraction * epochs) <= Fraction(1, 2)
            assert told.budget(0, 10_000) == round(fraction * 10_000)


def test_the_published_example_has_half_of_the_updates():
    """fraction 0.5 and kappa 0.5 of 120 epochs: 30 on all images, 30 skipped, 60 on half of them."""
    assert Plan(0.5, 20, 0.5).starts(120) == (30, 60)


def test_a_warm_start_leaves_an_epoch_for_the_coreset():
    assert Plan(0.5, 20, 1 - 1e-12).starts(10) == (4, 9)  # 4.5 is rounded to the even number


@pytest.mark.parametrize(
    ("every", "changes"), [(None, []), (1, [5, 6, 7, 8, 9]), (2, [6, 8]), (3, [7])], ids=["once", "1", "2", "3"]
)
def test_a_coreset_is_chosen_at_the_end_of_the_warm_start_and_every_few_epochs_after(tmp_path, every, changes):
    _, seen = fit(tmp_path, CoresetSelection(0.3, Random(), every=every, warm=0.4), epochs=10)
    chosen = {epoch: {index for index, _ in images} for epoch, images in seen.images.items()}
    assert list(chosen) == [0, 4, 5, 6, 7, 8, 9]
    assert [epoch for epoch in range(5, 10) if chosen[epoch] != chosen[epoch - 1]] == changes


@pytest.mark.parametrize("selector", [CRAIG(), Random()])
def test_classes_that_are_left_out_for_want_of_images_are_counted_once(tmp_path, selector):
    with pytest.warns(UserWarning, match=r"^fraction=0\.1 .* of 4 classes") as warned:
        fit(tmp_path, CoresetSelection(0.1, selector, every=1, warm=0), epochs=3)
    (said,) = [str(one.message) for one in warned if "classes" in str(one.message)]
    assert isinstance(selector, Random) or "leaves 2 of 22 images, so 2 of 4 classes" in said


def test_skipped_epochs_are_announced_once(tmp_path, caplog):
    caplog.set_level("INFO", "lightning.pytorch")
    for warm, said in ((0.5, ["epochs 2 to 3 are"]), (0.34, ["epoch 1 is"]), (0, [])):
        caplog.clear()
        fit(tmp_path, CoresetSelection(0.5, warm=warm, every=1))
        assert [message.partition(" skipped: ")[0] for message in caplog.messages if "skipped" in message] == said


def test_a_random_subset_that_is_drawn_once_stays_and_grows_with_the_fraction(tmp_path):
    fixed = Random(redraw=False)
    _, seen = fit(tmp_path, CoresetSelection(0.3, fixed, every=1, warm=0), epochs=3)
    assert sorted(seen.order[0]) == sorted(seen.order[1]) == sorted(seen.order[2])
    assert seen.order[0] != seen.order[1]  # each epoch has its own order
    growing = CoresetSelection(Staircase([0, 1], [0.3, 0.5]), fixed, every=1, warm=0)
    _, grown = fit(tmp_path, growing, epochs=2)
    assert set(grown.order[0]) == set(seen.order[0]) < set(grown.order[1])


@pytest.mark.parametrize("scope", ["all", "class", "batch"])
def test_a_random_subset_may_report_the_error_of_its_gradient_without_another_draw(tmp_path, scope):
    found = []
    for report_error in (False, True):
        selection = CoresetSelection(0.7, Random(scope=scope, block=4, report_error=report_error), warm=0, every=1)
        _, seen = fit(tmp_path, selection, epochs=2)
        found.append((seen.order, selection.error, selection.seconds))
    (plain, nothing, _), (told, error, seconds) = found
    assert plain == told
    assert nothing is None
    assert 0 < error < 1
    assert seconds == 0  # its report is not the cost of its choice


def test_equal_weights_are_compared_at_the_sum_that_the_loss_divides_by():
    """Half of equal gradients is all of them at twice the weight, although a random subset's weights are 1."""
    alone = SimpleNamespace(is_global_zero=True, strategy=SimpleNamespace(broadcast=lambda found: found))
    embedded = Embedded(torch.ones(N, 3), torch.arange(N) % 2, torch.arange(N))
    for selector in (Random(report_error=True), Random(scope="class", report_error=True), CRAIG()):
        chosen, error = choose(alone, selector, embedded, N // 2, 0)
        assert len(chosen.indices) == N // 2
        assert error == pytest.approx(0, abs=1e-6)


def test_matched_weights_are_compared_as_they_are_and_said_not_to_add_up_to_all():
    alone = SimpleNamespace(is_global_zero=True, strategy=SimpleNamespace(broadcast=lambda found: found))
    rows = torch.rand(N, 3) - 0.2
    chosen, error = choose(alone, GradMatch(lam=0.5), Embedded(rows, torch.arange(N) % 2, torch.arange(N)), N // 2, 0)
    indices, weights, _ = chosen
    assert weights.sum() < 0.9 * N
    assert error == pytest.approx(float((weights @ rows[indices] - rows.sum(0)).norm() / rows.sum(0).norm()), rel=1e-4)
    words = in_words(chosen, GradMatch(), N, 0, 1.0, error, False)
    assert f"{N / float(weights.sum()):.2f}" in words
    assert "divides" not in in_words(
        chosen._replace(weights=weights * N / weights.sum()), GradMatch(), N, 0, 1, 0.1, False
    )


@pytest.mark.parametrize("scope", ["all", "class"])
def test_a_fraction_that_grows_is_read_at_each_selection(tmp_path, scope):
    growing = CoresetSelection(Linear(0.2, 1, begin=0, end=4), Random(scope=scope), every=2, warm=0)
    _, seen = fit(tmp_path, growing, epochs=6)
    assert seen.sizes == {0: 4, 1: 4, 2: 13, 3: 13, 4: 22, 5: 22}
    assert seen.batches == {0: 1, 1: 1, 2: 2, 3: 2, 4: 3, 5: 3}


def test_a_fraction_that_leaves_its_range_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"^fraction\(1\)=1.2"):
        fit(tmp_path, CoresetSelection(Staircase([0, 1], [0.3, 1.2]), Random(), every=1, warm=0), epochs=3)


@pytest.mark.parametrize("limit", [{"epochs": -1}, {"epochs": None, "max_steps": 9}], ids=["no limit", "steps"])
def test_a_warm_start_needs_the_number_of_epochs(tmp_path, limit):
    with pytest.raises(ValueError, match="warm="):
        fit(tmp_path, CoresetSelection(0.3, Random()), **limit)


def test_without_a_warm_start_a_number_of_steps_suffices(tmp_path):
    _, seen = fit(tmp_path, CoresetSelection(0.3, Random(), every=2, warm=0), epochs=-1, max_steps=5)
    assert seen.sizes == dict.fromkeys(range(5), 7)


# What the rest of a training sees of skipped epochs: fraction 0.5 and warm 0.5 of 8 epochs skip epochs 2 and 3.


def halves(**kwargs: Any) -> CoresetSelection:
    return CoresetSelection(0.5, **{"selector": Random(), "warm": 0.5} | kwargs)


TRAINED = [0, 1, 4, 5, 6, 7]


def test_logged_epochs_checkpoints_names_and_the_trainers_count_leave_skipped_ones_out(tmp_path):
    logger = CSVLogger(tmp_path, version="")
    names = ModelCheckpoint(tmp_path / "kept", filename="{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    _, seen = fit(tmp_path, names, halves(), logger=logger)
    assert list(seen.images) == TRAINED
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == [f"epoch={epoch}.ckpt" for epoch in TRAINED]
    with (tmp_path / "lightning_logs" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert sorted({int(float(row["epoch"])) for row in rows}) == TRAINED
    sizes = {int(float(r["epoch"])): float(r["train/coreset/size"]) for r in rows if r.get("train/coreset/size")}
    assert sizes == dict.fromkeys([4, 5, 6, 7], 11)
    assert torch.load(tmp_path / "kept" / "epoch=4.ckpt", weights_only=True)["epoch"] == 4


def steps_of(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.MultiStepLR:
    return torch.optim.lr_scheduler.MultiStepLR(optimizer, [1, 3, 5])


RATES = {0: 0.1, 1: 0.01, 4: 0.001, 5: 0.0001, 6: 0.0001, 7: 0.0001}


class Automatic(LightningModule):
    """A stranger with automatic optimization, of the same net and data."""

    def __init__(self, frequency: int = 1) -> None:
        super().__init__()
        self.net, self.frequency = TinyNet(), frequency

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        return [optimizer], [{"scheduler": steps_of(optimizer), "frequency": self.frequency}]

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.net(batch.x), batch.y)

    def validation_step(self, batch, batch_idx):
        pass


def defense() -> PGDAT:
    return build(PGDAT, lr_scheduler=steps_of)


@pytest.mark.parametrize("make", [defense, Automatic])
def test_a_torch_scheduler_passes_over_skipped_epochs(tmp_path, make):
    _, seen = fit(tmp_path, halves(), module=make())
    assert seen.rates == pytest.approx(RATES)


def test_a_scheduler_that_lightning_steps_every_third_epoch_does_so_in_skipped_ones_too(tmp_path):
    _, seen = fit(tmp_path, halves(), module=Automatic(frequency=3))
    assert seen.rates == pytest.approx({0: 0.1, 1: 0.1, 4: 0.01, 5: 0.01, 6: 0.01, 7: 0.01})


@FEWER_THAN_CLASSES
@pytest.mark.parametrize("make", [defense, Automatic])
def test_a_torch_scheduler_passes_over_epochs_skipped_before_the_first(tmp_path, make):
    _, seen = fit(tmp_path, CoresetSelection(0.1, Random(), warm=0.5), module=make(), epochs=6)
    assert seen.rates == pytest.approx({3: 0.001, 4: 0.001, 5: 0.0001})


def test_a_schedule_and_a_ramp_have_the_values_of_the_epochs_that_are_trained(tmp_path):
    module = build(TRADES, lr_scheduler=MultiStep([1, 3, 5], factor=0.1))
    values: dict[int, float] = {}

    class Beta(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if batch_idx == 0:
                values[trainer.current_epoch] = pl_module.beta

    ramp = AttributeRamp("beta", Linear(0, 8, begin=0, end=8))
    _, seen = fit(tmp_path, ramp, Beta(), halves(), module=module)
    assert seen.rates == pytest.approx(RATES)
    assert values == pytest.approx({epoch: float(epoch) for epoch in TRAINED})


@pytest.mark.parametrize("at", [{"at_epoch": 3}, {"at_epoch": 2}, {"latest_epoch": 3}, {}], ids=str)
def test_a_delayed_start_in_a_skipped_epoch_comes_with_the_next_one(tmp_path, at):
    adversarial: dict[int, bool] = {}

    class Flag(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            adversarial[trainer.current_epoch] = pl_module.adversarial

    delay = DelayedStart(**at)
    module = build(PGDAT, lr_scheduler=MultiStep([3]))
    fit(tmp_path, delay, Flag(), halves(), module=module)
    assert adversarial == {epoch: epoch >= 4 for epoch in TRAINED}
    assert delay.switch_epoch == (4 if at != {"at_epoch": 2} else 2)


def test_averages_that_start_in_a_skipped_epoch_start_with_the_next_one(tmp_path):
    lasting = EMAWeights(0.999, start_epoch=3)
    plain, _ = fit(tmp_path, halves(), epochs=8)
    averaged, _ = fit(tmp_path, halves(), lasting, epochs=8)
    at_four, _ = fit(tmp_path, halves(), EMAWeights(0.999, start_epoch=4), epochs=8)
    assert_equal(averaged.state_dict(), at_four.state_dict())
    assert not torch.equal(averaged.net.head.weight, plain.net.head.weight)


def test_the_weights_and_not_their_average_select(tmp_path):
    """The average is in the net while an epoch is validated, and the training goes on without it."""
    chosen = []
    for average in ([], [EMAWeights(0.99)]):
        selection = CoresetSelection(0.5, GradMatch(), every=1, warm=0)
        fit(tmp_path, selection, *average, epochs=4)
        chosen.append(selection.coreset)
    assert torch.equal(chosen[0].indices, chosen[1].indices)
    assert torch.equal(chosen[0].weights, chosen[1].weights)


def test_validations_keep_their_epochs(tmp_path):
    validated: list[int] = []

    class Validated(Callback):
        def on_validation_start(self, trainer, pl_module):
            validated.append(trainer.current_epoch)

    fit(tmp_path, halves(), Validated(), check_val_every_n_epoch=2)
    assert validated == [1, 5, 7]


# The whole set as a coreset.


@pytest.mark.parametrize("warm", [0, 0.5])
@pytest.mark.parametrize(
    "selector",
    [CRAIG(), Random(), Random(redraw=False), GradMatch(), CRAIG(scope="all"), GradMatch(gradient="own_class")],
)
def test_a_coreset_of_all_images_is_the_whole_training_bit_for_bit(tmp_path, selector, warm):
    whole, before = fit(tmp_path, epochs=4)
    module, seen = fit(tmp_path, CoresetSelection(1, selector, every=1, warm=warm), epochs=4)
    assert_equal(module.state_dict(), whole.state_dict())
    assert seen.images == before.images


# Weights.


class Batches(Callback):
    """Every batch, by epoch, and the loss that the module returns for it."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []
        self.losses: list[float] = []
        self.metrics: dict[str, float] = {}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.batches.append(batch)
        self.losses.append(float(pl_module.last_loss))

    def on_train_epoch_end(self, trainer, pl_module):
        self.metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}


def plain_sgd(params: Any, lr: float = 0.1) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=lr)


@pytest.mark.parametrize("normalize", ["batch", "subset"])
def test_the_loss_is_weighted_as_in_a_loop_in_double_precision(tmp_path, normalize):
    module, kept = build(Natural, net=linear(), optimizer=plain_sgd), Batches()
    selection = CoresetSelection(0.6, GradMatch(), warm=0, normalize=normalize)
    fit(tmp_path, selection, kept, module=module, epochs=2)
    weights = selection.coreset.weights.double()
    assert weights.max() > 1.5 * weights.min()
    net = linear().double()
    for batch, loss in zip(kept.batches, kept.losses, strict=True):
        values = nn.functional.cross_entropy(net(batch.x.double()), batch.y, reduction="none")
        total = batch.weight.sum() if normalize == "batch" else weights.mean() * len(batch.y)
        expected = (values * batch.weight.double()).sum() / total
        assert loss == pytest.approx(expected.item(), rel=1e-5)
        for parameter, gradient in zip(
            net.parameters(), torch.autograd.grad(expected, list(net.parameters())), strict=True
        ):
            parameter.data -= 0.1 * gradient
    for mine, theirs in zip(module.net.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(mine.double(), theirs, rtol=0, atol=1e-6)
    assert module.mean_weight is None  # after the fit


def test_an_epochs_batches_add_up_to_the_gradient_of_the_coreset_with_the_subsets_mean_weight(tmp_path):
    module, kept = build(Natural, net=linear(), optimizer=lambda p: plain_sgd(p, lr=0.0)), Batches()
    selection = CoresetSelection(0.6, GradMatch(), warm=0, normalize="subset")
    fit(tmp_path, selection, kept, module=module, epochs=1)
    sizes = torch.tensor([float(len(batch.y)) for batch in kept.batches])
    batch = Batch(*(torch.cat(parts) for parts in zip(*kept.batches, strict=True)))
    values = nn.functional.cross_entropy(linear()(batch.x), batch.y, reduction="none").detach()
    expected = (values * batch.weight).sum() / batch.weight.sum()
    assert (torch.tensor(kept.losses) * sizes).sum() / sizes.sum() == pytest.approx(float(expected), rel=1e-5)


def test_training_accuracies_count_each_image_once(tmp_path):
    module, kept = build(Natural, net=linear(), optimizer=lambda p: plain_sgd(p, lr=0.0)), Batches()
    fit(tmp_path, CoresetSelection(0.6, GradMatch(), warm=0), kept, module=module, epochs=1)
    batch = Batch(*(torch.cat(parts) for parts in zip(*kept.batches, strict=True)))
    right = linear()(batch.x).argmax(1) == batch.y
    assert 0 < right.float().mean() < 1
    assert float((right * batch.weight).sum() / batch.weight.sum()) != pytest.approx(float(right.float().mean()))
    assert kept.metrics["train/acc/clean"] == pytest.approx(float(right.float().mean()))


def test_in_the_official_order_the_weights_of_whole_batches_cancel(tmp_path):
    selector = CRAIG(scope="batch", block=8)
    runs = {}
    for official in (True, False):
        module, kept = build(Natural, net=linear(), optimizer=plain_sgd), Batches()
        selection = CoresetSelection(0.5, selector, warm=0, official_order=official)
        _, seen = fit(tmp_path, selection, kept, module=module, epochs=2)
        chosen = selection.coreset.indices.tolist()
        runs[official] = [len(batch.weight.unique()) for batch in kept.batches]
        assert (seen.order[0] == chosen) is (seen.order[1] == chosen) is official
        if official:
            plain = nn.functional.cross_entropy(linear()(kept.batches[0].x), kept.batches[0].y)
            assert kept.losses[0] == pytest.approx(plain.item(), rel=1e-5)
    assert len(selection.coreset.weights.unique()) == 2
    assert set(runs[True]) == {1}
    assert set(runs[False]) == {2}
