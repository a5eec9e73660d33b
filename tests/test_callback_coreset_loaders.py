"""CoresetSelection and what a training's loader, limits, schedulers and checkpoints may be: right, or told at once."""

import re
from collections import Counter
from functools import partial
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch import Callback, seed_everything
from lightning.pytorch.callbacks import Checkpoint
from torch import nn
from torch.nn import functional as F
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset

from lit_robust.batch import Batch
from lit_robust.callbacks import CoresetSelection, coreset
from lit_robust.data import DigitsDataModule
from lit_robust.defenses import PGDAT, Natural
from lit_robust.schedules import Staircase
from lit_robust.selection import CRAIG, CoresetSampler, GradMatch, Random
from tests.methods import build
from tests.test_callback_coreset import Automatic, Batches, Seen, steps_of
from tests.test_resume import TinyData
from tests.tiny import SaveAfter, TinyNet, images, trainer

N = 24
PAIRS = list(zip(*images(N)[:2], strict=True))


class Pairs(Automatic):
    """Of batches `(x, y)`."""

    def __init__(self, **scheduler: Any) -> None:
        super().__init__()
        self.scheduler = scheduler
        self.steps: list[int] = []

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        return [optimizer], [{"scheduler": steps_of(optimizer), **self.scheduler}] if self.scheduler else []

    def training_step(self, batch, batch_idx):
        self.steps.append(self.current_epoch)
        return F.cross_entropy(self.net(batch[0]), batch[1])


@pytest.fixture
def embedded(monkeypatch) -> list[int]:
    """How many images each selection has looked at."""
    found: list[int] = []

    def embed(*args):
        part = original(*args)
        found.append(len(part.y))
        return part

    original = coreset.embed
    monkeypatch.setattr(coreset, "embed", embed)
    return found


def fit(
    folder: Any,
    batch_size: int | None = 8,
    module: Any = None,
    loader: Any = None,
    epochs: int = 4,
    selection: dict[str, Any] | None = None,
    sampler: CoresetSampler | None = None,
    **kwargs: Any,
) -> tuple[Any, CoresetSelection]:
    seed_everything(7, verbose=False)
    sampler = sampler or CoresetSampler(PAIRS)
    given = {"fraction": 0.25, "warm": 0, "every": 1, "sampler": sampler} | (selection or {})
    callback = CoresetSelection(**given)
    module = Pairs() if module is None else module
    made = DataLoader(PAIRS, batch_size, sampler=sampler, drop_last=True) if loader is None else loader(sampler)
    trainer(folder, max_epochs=epochs, callbacks=[callback], **kwargs).fit(module, made)
    return module, callback


# Batches of an epoch.


@pytest.mark.parametrize(
    "selection", [{}, {"warm": 0.5}, {"fraction": Staircase([0, 2], [1.0, 0.25]), "selector": Random()}], ids=str
)
def test_a_coreset_smaller_than_one_batch_is_refused_before_training(tmp_path, selection, embedded):
    module = Pairs()
    with pytest.raises(ValueError, match=r"^fraction.*=0\.25"):
        fit(tmp_path, module=module, selection=selection)
    assert module.steps == []
    assert embedded == []


@pytest.mark.parametrize("batch_size", [6, 4, 3])
def test_one_of_a_batch_or_more_is_trained_on(tmp_path, batch_size):
    module, _ = fit(tmp_path, batch_size)
    assert len(module.steps) == 4 * (6 // batch_size)


def test_without_drop_last_a_small_batch_is_one(tmp_path):
    module, _ = fit(tmp_path, loader=lambda sampler: DataLoader(PAIRS, 8, sampler=sampler))
    assert module.steps == [0, 1, 2, 3]


def test_a_selection_that_comes_out_smaller_is_refused(tmp_path):
    selector = GradMatch(lam=0, tol=0.9, fill="none")
    module = Pairs()
    with pytest.raises(ValueError, match="GradMatch for epoch 0"):
        fit(tmp_path, module=module, selection={"fraction": 0.5, "selector": selector})
    assert module.steps == []


def test_a_datamodule_of_ours_is_refused_before_its_warm_start(tmp_path):
    seen = Seen()
    data = DigitsDataModule(batch_size=64, train_size=128, drop_last=True)
    run = trainer(tmp_path, max_epochs=4, callbacks=[CoresetSelection(0.3), seen])
    with pytest.raises(ValueError, match=r"^fraction=0\.3"):
        run.fit(build(PGDAT, net=nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), num_classes=10), data)
    assert seen.images == {}


@pytest.mark.parametrize("warm", [0, 0.5])
def test_a_share_of_batches_that_is_none_is_refused(tmp_path, warm):
    with pytest.raises(ValueError, match=r"limit_train_batches=0\.4 is none"):
        fit(tmp_path, 3, selection={"warm": warm}, limit_train_batches=0.4)


def test_a_scheduler_that_asks_for_the_number_of_steps_leaves_the_first_epochs_batches_right(tmp_path):
    class Asks(Pairs):
        def configure_optimizers(self):
            self.asked = self.trainer.estimated_stepping_batches
            return super().configure_optimizers()

    class Length(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            lengths.append(trainer.num_training_batches)

    for data in (None, TinyData()):
        lengths: list[int] = []
        seed_everything(7, verbose=False)
        sampler = CoresetSampler(PAIRS) if data is None else None
        callbacks = [CoresetSelection(0.25, warm=0, sampler=sampler), Length()]
        run = trainer(tmp_path, max_epochs=2, callbacks=callbacks, limit_val_batches=0)
        run.fit(module := Asks(), data or DataLoader(PAIRS, 3, sampler=sampler))
        assert lengths == ([2, 2] if data is None else [1, 1])
        assert module.steps == ([0, 0, 1, 1] if data is None else [0, 1])


# Validations and schedulers.


def valid(sampler: CoresetSampler) -> DataLoader[Any]:
    return DataLoader(PAIRS, 3, sampler=sampler)


@pytest.mark.parametrize("warm", [0, 0.5])
def test_an_interval_of_validations_longer_than_an_epoch_on_the_coreset_is_refused(tmp_path, warm):
    module = Pairs()
    with pytest.raises(ValueError, match="val_check_interval=3"):
        fit(tmp_path, module=module, loader=valid, selection={"warm": warm}, val_check_interval=3)
    assert module.steps == []


@pytest.mark.parametrize(
    "kwargs",
    [
        {"val_check_interval": 2},
        {"val_check_interval": 3, "check_val_every_n_epoch": None},
        {"val_check_interval": 0.5},
        pytest.param(
            {"val_check_interval": 3, "limit_val_batches": 0},
            marks=pytest.mark.skipif(lightning.__version__ == "2.6.0", reason="it refuses this itself"),
        ),
    ],
    ids=str,
)
def test_another_interval_is_honoured(tmp_path, kwargs):
    module, _ = fit(tmp_path, loader=valid, **kwargs)
    assert len(module.steps) == 8


@pytest.mark.parametrize("make", ["stranger", "defense"])
@pytest.mark.parametrize("warm", [0.5, 0.25])
def test_a_scheduler_that_counts_steps_is_refused_where_epochs_are_skipped(tmp_path, make, warm):
    module = Pairs(interval="step") if make == "stranger" else build(PGDAT, lr_scheduler=steps_of, lr_interval="step")
    selection = CoresetSelection(0.25, Random(), warm=warm)
    run = trainer(tmp_path, max_epochs=8, callbacks=[selection], limit_val_batches=0)
    with pytest.raises(ValueError, match="MultiStepLR"):
        run.fit(module, TinyData())
    assert run.global_step == 0


@pytest.mark.parametrize("plan", [{"warm": 0}, {"fraction": 1.0, "warm": 0.5}], ids=str)
def test_it_counts_them_where_none_is_skipped(tmp_path, plan):
    given = {"fraction": 0.25, "selector": Random()} | plan
    seen = Seen()
    run = trainer(tmp_path, max_epochs=4, callbacks=[CoresetSelection(**given), seen], limit_val_batches=0)
    run.fit(Pairs(interval="step"), TinyData())
    assert run.lr_scheduler_configs[0].scheduler.last_epoch == run.global_step > 0


@pytest.mark.parametrize(("total", "told"), [(8, True), (4, False)])
def test_a_scheduler_that_is_made_for_more_steps_than_the_coresets_leave_is_warned_of(tmp_path, total, told, recwarn):
    """21 images in batches of 8; a coreset of a quarter has one batch per epoch."""
    scheduler = partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=0.1, total_steps=total)
    module = build(PGDAT, lr_scheduler=scheduler, lr_interval="step")
    selection = CoresetSelection(0.25, Random(), warm=0)
    trainer(tmp_path, max_epochs=4, callbacks=[selection], limit_val_batches=0).fit(module, TinyData())
    found = [str(one.message) for one in recwarn if "OneCycleLR" in str(one.message)]
    assert [f"total_steps={total}, " in one and " 4 steps in 4 epochs" in one for one in found] == [True] * told


# Weights.


class Weighted(list[Any]):
    """Items that know their position and weight."""

    sampler: CoresetSampler

    def __getitem__(self, i):
        x, y = super().__getitem__(i)
        return Batch(x, y, torch.tensor(i), self.sampler.weight_of(torch.tensor([i]))[0])


def weighted(resample: bool | None = False) -> tuple[Weighted, CoresetSampler]:
    items = Weighted(PAIRS)
    items.sampler = CoresetSampler(items, resample=resample)
    return items, items.sampler


def test_a_defense_whose_loader_gives_no_weights_is_refused(tmp_path):
    sampler = CoresetSampler(PAIRS, resample=False)
    with pytest.raises(ValueError, match=r"resample=False.* have none"):
        fit(tmp_path, 3, module=build(PGDAT), sampler=sampler)


def test_a_loader_that_gives_the_weight_one_to_all_is_refused_after_an_epoch(tmp_path):
    items = [Batch(*row) for row in zip(*images(N), strict=True)]
    sampler = CoresetSampler(items, resample=False)
    with pytest.raises(ValueError, match=r"resample=False.* throughout an epoch"):
        fit(tmp_path, module=build(PGDAT), loader=lambda s: DataLoader(items, 3, sampler=s), sampler=sampler)


@pytest.mark.filterwarnings("ignore:You.re resuming from a checkpoint that ended before the epoch")
@pytest.mark.parametrize("batches", [2, 3], ids=["in mid-epoch", "at the epoch's end"])
def test_weights_of_an_epoch_that_began_before_a_resume_are_not_missed(tmp_path, batches):
    """Twelve images in batches of four; the third is the last one."""
    path = tmp_path / "stop.ckpt"

    def run(*callbacks: Callback, **kwargs: Any) -> None:
        items, sampler = weighted()
        chosen = CoresetSelection(0.5, CRAIG(), warm=0, sampler=sampler)
        begun = trainer(tmp_path, max_epochs=2, callbacks=[chosen, *callbacks])
        begun.fit(build(Natural), DataLoader(items, 4, sampler=sampler), **kwargs)
        assert begun.current_epoch == 2

    run(SaveAtBatchEnd(batches, path))
    run(ckpt_path=path)


class SaveAtBatchEnd(SaveAfter):
    """Saves after a batch even if it is the last one, so that the epoch's end is still to come."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.fit_loop.total_batch_idx + 1 == self.batches:
            trainer.save_checkpoint(self.path)

    def on_train_epoch_end(self, trainer, pl_module):
        pass


@pytest.mark.parametrize("normalize", ["batch", "subset"])
def test_a_loader_that_gives_the_weights_trains_as_a_datamodule_does(tmp_path, normalize):
    items, sampler = weighted()
    kept, module = Batches(), build(Natural)
    selection = CoresetSelection(0.5, CRAIG(), warm=0, sampler=sampler, normalize=normalize)
    trainer(tmp_path, max_epochs=1, callbacks=[selection, kept]).fit(module, DataLoader(items, 4, sampler=sampler))
    weights = selection.coreset.weights
    assert sorted(torch.cat([batch.weight for batch in kept.batches]).tolist()) == sorted(weights.tolist())
    assert weights.unique().numel() > 1
    first = kept.batches[0]
    values = F.cross_entropy(TinyNet()(first.x), first.y, reduction="none").detach()
    total = first.weight.sum() if normalize == "batch" else weights.mean() * 4
    assert kept.losses[0] == pytest.approx(float((values * first.weight).sum() / total), rel=1e-4)
    assert module.mean_weight is None


class Images(Pairs):
    """Of a `Batch`, whose weight it does not read."""

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch.x), batch.y)


WEIGHTED = {
    "weighted, as module and loader allow it": (Natural, None, True),
    "weighted, as it is told": (Natural, False, True),
    "drawn, as it is told": (Natural, True, False),
    "drawn for a module that reads no weights": (Images, None, False),
}


def fit_weighted(folder: Any, make: Any, resample: bool | None, workers: int = 0) -> tuple[Any, CoresetSelection]:
    """Three epochs, each on a coreset of its own; what each epoch was trained on, by position and weight."""
    items, sampler = weighted(resample)
    module, kept = build(make) if make is Natural else make(), ByEpoch()
    selection = CoresetSelection(0.5, GradMatch(), warm=0, every=1, sampler=sampler, x="x", y="y")
    loader = DataLoader(items, 4, sampler=sampler, num_workers=workers, persistent_workers=workers > 0)
    seed_everything(7, verbose=False)
    run = trainer(folder, max_epochs=3, callbacks=[selection, kept], limit_val_batches=0)
    kept.selection = selection
    run.fit(module, loader)
    return kept, selection


class ByEpoch(Callback):
    """Positions and weights of each epoch's images, beside those of its coreset."""

    def __init__(self) -> None:
        self.trained: dict[int, list[tuple[int, float]]] = {}
        self.chosen: dict[int, list[tuple[int, float]]] = {}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        indices, weights, _ = self.selection.coreset
        self.chosen[trainer.current_epoch] = list(zip(indices.tolist(), weights.tolist(), strict=True))
        pairs = zip(batch.index.tolist(), batch.weight.tolist(), strict=True)
        self.trained.setdefault(trainer.current_epoch, []).extend(pairs)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("case", WEIGHTED)
def test_a_coreset_is_either_weighted_or_drawn_also_after_a_reselection(tmp_path, embedded, case, workers):
    """Persistent workers have copies of the sampler, and the first selection's weights are not those of the third."""
    make, resample, weights = WEIGHTED[case]
    kept, _ = fit_weighted(tmp_path, make, resample, workers)
    assert embedded == [N] * 3  # what the last selection has left out can be selected again
    assert kept.chosen[0] != kept.chosen[1] != kept.chosen[2]
    assert any(weight != 1 for _, weight in kept.chosen[2])
    for epoch, pairs in kept.trained.items():
        if weights:
            assert sorted(pairs) == kept.chosen[epoch]
        else:
            assert {weight for _, weight in pairs} == {1.0}
            share = sum(weight for _, weight in kept.chosen[epoch]) / len(kept.chosen[epoch])
            drawn = Counter(place for place, _ in pairs)
            assert sum(drawn.values()) == len(kept.chosen[epoch])
            assert all(abs(drawn[place] - weight / share) < 1 for place, weight in kept.chosen[epoch])


def test_a_defense_draws_from_a_loader_that_leaves_the_weights_out(tmp_path):
    """Every batch has the weight 1, so that it would train as on equal weights."""
    items = [Batch(*row) for row in zip(*images(N), strict=True)]
    for given in (items, PAIRS):
        sampler = CoresetSampler(given)
        fit(tmp_path, module=build(PGDAT), loader=lambda s, on=given: DataLoader(on, 3, sampler=s), sampler=sampler)
        assert sampler.draws


def test_a_sampler_settles_anew_for_each_module(tmp_path):
    items, sampler = weighted(None)
    for make, draws in ((Natural, False), (Images, True), (Natural, False)):
        module = build(make) if make is Natural else make()
        selection = CoresetSelection(0.5, Random(), warm=0, sampler=sampler, x="x", y="y")
        trainer(tmp_path, max_epochs=1, callbacks=[selection]).fit(module, DataLoader(items, 4, sampler=sampler))
        assert sampler.draws is draws
        assert sampler.weight_of(torch.arange(N)).eq(1).all()


def test_weights_for_the_loss_are_one_where_positions_are_drawn_by_them():
    sampler = CoresetSampler(PAIRS)
    sampler.select(torch.tensor([1, 4]), torch.tensor([0.5, 3.0]))
    assert sampler.weight_of(torch.tensor([0, 1, 4])).tolist() == [0, 1, 1]
    sampler.draw(False)
    sampler.select(torch.tensor([1, 4]), torch.tensor([0.5, 3.0]))
    assert sampler.weight_of(torch.tensor([[4], [1], [0]])).tolist() == [[3.0], [0.5], [0.0]]


@pytest.mark.parametrize("where", ["a sampler that draws", "a stranger's module", "a stranger's own weights"])
def test_a_division_by_weights_that_reach_no_loss_is_refused(tmp_path, where):
    sampler = CoresetSampler(PAIRS, resample=where == "a sampler that draws")
    module = build(PGDAT) if where == "a sampler that draws" else Pairs()
    ours = where == "a stranger's module"
    selection = CoresetSelection(0.5, warm=0, normalize="subset", sampler=None if ours else sampler)
    run = trainer(tmp_path, max_epochs=1, callbacks=[selection])
    with pytest.raises(ValueError, match="normalize="):
        run.fit(module, TinyData() if ours else DataLoader(PAIRS, 3, sampler=sampler))


# Short runs.


@pytest.mark.parametrize("data", ["ours", "theirs"])
def test_a_fast_dev_run_tries_the_selection_on_one_batch(tmp_path, data, embedded, caplog):
    sampler = None if data == "ours" else CoresetSampler(PAIRS * 20)
    seen, module = Seen(), build(PGDAT) if data == "ours" else Pairs()
    selection = CoresetSelection(0.3, sampler=sampler)
    loader = TinyData() if sampler is None else DataLoader(sampler.items, 8, sampler=sampler)
    callbacks = [selection, seen] if data == "ours" else [selection]
    with caplog.at_level("INFO"):
        trainer(tmp_path, fast_dev_run=2, callbacks=callbacks).fit(module, loader)
    assert embedded == ([8] if data == "ours" else [128])
    assert "fast_dev_run: " in caplog.text
    assert selection.coreset is None
    if data == "ours":
        assert seen.sizes == {0: 16}
        assert {weight for _, weight in seen.images[0]} == {1.0}


@pytest.mark.parametrize("limit", [{"limit_train_batches": 0}, {"max_steps": 3}, {"epochs": 1}], ids=str)
def test_nothing_is_selected_for_an_epoch_that_is_not_trained(tmp_path, limit, embedded):
    module, _ = fit(tmp_path, loader=lambda sampler: DataLoader(PAIRS, 2, sampler=sampler), **limit)
    assert len(embedded) == len(set(module.steps))


@pytest.mark.parametrize("limit", [{"limit_train_batches": 1}, {"max_steps": 2}], ids=str)
def test_a_limit_that_leaves_less_than_a_selection_costs_is_told(tmp_path, limit, caplog):
    with caplog.at_level("INFO"):
        fit(tmp_path, 3, **limit)
    (name, value), *_ = limit.items()
    assert re.search(f"selection looks .* 24 images, 8 batches, .* {name}={value}:", caplog.text)
    caplog.clear()
    with caplog.at_level("INFO"):
        fit(tmp_path, 3, selection={"selector": Random()}, **limit)
        fit(tmp_path, 3)
    assert "selection looks" not in caplog.text


# Loaders that cannot be selected from.


class Stream(IterableDataset[Any]):
    def __iter__(self):
        return iter(PAIRS)


def loader_of_six(sampler: CoresetSampler) -> DataLoader[Any]:
    return DataLoader(PAIRS, 6, sampler=sampler)


@pytest.mark.parametrize(
    ("loader", "error", "named"),
    [
        (lambda s: DataLoader(PAIRS, batch_sampler=BatchSampler(s, 6, False)), ValueError, "a batch_sampler"),
        (lambda s: DataLoader(PAIRS, batch_size=None, sampler=s), ValueError, "no batch_size"),
        (lambda s: {"a": loader_of_six(s), "b": loader_of_six(s)}, TypeError, "a dict"),
        (lambda s: [loader_of_six(s)], TypeError, "a list"),
        (lambda _: DataLoader(Stream(), 6), ValueError, "IterableDataset"),
        (lambda _: DataLoader(PAIRS, 6, shuffle=True), ValueError, "^sampler is"),
        (lambda _: DataLoader(PAIRS, 6, sampler=CoresetSampler(PAIRS)), ValueError, "^sampler is"),
        (lambda s: DataLoader(PAIRS * 2, 6, sampler=s), ValueError, "a dataset of 48 items, .* of 24"),
        (lambda s: DataLoader(PAIRS[:12], 6, sampler=s), ValueError, "a dataset of 12 items, .* of 24"),
    ],
)
@pytest.mark.parametrize("warm", [0, 0.5])
def test_each_loader_that_no_coreset_reaches_is_refused_by_its_own_sentence(
    tmp_path, loader, error, named, warm, embedded
):
    with pytest.raises(error, match=named):
        fit(tmp_path, loader=loader, selection={"warm": warm})
    assert embedded == []


def test_another_dataset_with_the_same_positions_is_trained_on(tmp_path):
    module, _ = fit(tmp_path, loader=lambda sampler: DataLoader(list(PAIRS), 6, sampler=sampler))
    assert module.steps == [0, 1, 2, 3]


def test_a_dataset_whose_length_is_unknown_is_trained_on(tmp_path):
    class Endless(Dataset[Any]):
        def __getitem__(self, position):
            return PAIRS[position % N]

    module, _ = fit(tmp_path, loader=lambda sampler: DataLoader(Endless(), 6, sampler=sampler))
    assert module.steps == [0, 1, 2, 3]


@pytest.mark.parametrize("overfit", [2, 0.5])
def test_overfit_batches_is_refused_where_it_replaces_the_sampler(tmp_path, overfit):
    with pytest.raises(ValueError, match=f"overfit_batches={overfit}"):
        fit(tmp_path, 6, overfit_batches=overfit)


def test_data_of_ours_overfit_on_batches_of_the_coreset(tmp_path):
    seen, selection = Seen(), CoresetSelection(0.75, CRAIG(), warm=0)
    trainer(tmp_path, max_epochs=2, callbacks=[selection, seen], overfit_batches=1).fit(build(PGDAT), TinyData())
    assert seen.order == dict.fromkeys([0, 1], selection.coreset.indices[:8].tolist())


def test_a_dataset_without_positions_is_refused_by_the_sampler():
    for junk in (Stream(), iter([1]), 3, None):
        with pytest.raises(TypeError, match="dataset="):
            CoresetSampler(junk)
    with pytest.raises(ValueError, match="dataset="):
        CoresetSampler([])
    with pytest.raises(TypeError, match="resample="):
        CoresetSampler(PAIRS, resample=1)
    with pytest.raises(TypeError, match="collate_fn="):
        CoresetSampler(PAIRS, collate_fn=[1])


# Checkpoints of another list of callbacks.


def resumed(folder: Any, before: bool, after: bool, at: str = "end", **kwargs: Any) -> tuple[Seen, Any]:
    """Two epochs with or without a coreset, then two more with or without it."""

    class Saves(Checkpoint):
        def on_train_epoch_end(self, trainer, pl_module):
            if at == "end" and trainer.current_epoch == 1:
                trainer.save_checkpoint(folder / "first.ckpt")

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if at == "middle" and (trainer.current_epoch, batch_idx) == (1, 0):
                trainer.save_checkpoint(folder / "first.ckpt")

    def run(epochs: int, selects: bool, *more: Callback, **ckpt: Any) -> Any:
        seed_everything(7, verbose=False)
        callbacks = [CoresetSelection(0.5, **{"warm": 0, "every": 1} | kwargs)] if selects else []
        options = {"limit_val_batches": 0, "enable_checkpointing": True}
        fitting = trainer(folder, max_epochs=epochs, callbacks=[*callbacks, *more], **options)
        fitting.fit(module := build(PGDAT), datamodule=TinyData(), **ckpt)
        return module

    seen = Seen()
    run(3, before, Saves())
    return seen, run(6, after, seen, ckpt_path=folder / "first.ckpt")


@pytest.mark.parametrize(
    ("at", "sizes"), [("end", {2: 22, 3: 11, 4: 11, 5: 11}), ("middle", {1: 14, 2: 11, 3: 11, 4: 11, 5: 11})]
)
def test_a_coreset_joins_a_run_that_had_none_in_the_next_epoch(tmp_path, at, sizes, caplog):
    with caplog.at_level("INFO"):
        seen, _ = resumed(tmp_path, False, True, at)
    first = min(sizes)
    assert f"has no coreset: epoch {first} " in caplog.text
    assert seen.sizes == sizes


def test_a_warm_start_that_is_joined_skips_what_is_left_of_it(tmp_path):
    seen, _ = resumed(tmp_path, False, True, warm=0.9)  # of 6 epochs 5 are warm, of which 2 are trained
    assert seen.sizes == {2: 22, 5: 11}


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks")
def test_a_run_that_is_resumed_without_the_coreset_says_what_it_trains_on(tmp_path, caplog):
    with caplog.at_level("INFO"):
        seen, _ = resumed(tmp_path, True, False)
    assert "training continues on the 11 of 22 images " in caplog.text
    assert seen.sizes == dict.fromkeys([2, 3, 4, 5], 11)
    assert {index for index, _ in seen.images[2]} == {index for index, _ in seen.images[5]}


def test_a_run_that_is_resumed_with_it_says_nothing_of_the_kind(tmp_path, caplog):
    with caplog.at_level("INFO"):
        seen, _ = resumed(tmp_path, True, True)
    assert not re.search("training continues on|has no coreset", caplog.text)
    assert seen.sizes == dict.fromkeys([2, 3, 4, 5], 11)
