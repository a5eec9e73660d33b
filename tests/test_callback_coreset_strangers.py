"""CoresetSelection on a module, loaders and nets that were written without it."""

import os
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, seed_everything
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, Subset

from lit_robust.callbacks import AdversarialTraining, AttributeRamp, CoresetSelection
from lit_robust.callbacks.adapter import Adapter
from lit_robust.callbacks.coreset_checks import workers_of
from lit_robust.callbacks.coreset_data import BATCH_SIZE, batches_of
from lit_robust.callbacks.last_layer import embed
from lit_robust.defenses import PGDAT, Natural
from lit_robust.schedules import Linear, Staircase
from lit_robust.selection import CRAIG, CoresetSampler, GradMatch, Random, resampled
from tests.methods import ATTACK, build
from tests.stranger import MEAN, STD, DigitClassifier, DigitsData
from tests.test_callback_coreset import Automatic, Seen
from tests.test_resume import TinyData, differences
from tests.test_selection import expanded
from tests.tiny import CLASSES, TinyNet, images, loader, trainer

N = 96
HERE: dict[str, Any] = {"x": "image", "y": "label", "net": "model", "mean": MEAN, "std": STD}


class Kept(Callback):
    """The places of an epoch's images, the number of its batches, and the module's attributes."""

    def __init__(self, path: Any = None) -> None:
        self.path = path
        self.places: dict[int, list[int]] = {}
        self.batches: dict[int, int] = {}
        self.eps: list[float] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.places.setdefault(trainer.current_epoch, []).extend(int(name.split()[1]) for name in batch["name"])
        self.batches[trainer.current_epoch] = trainer.num_training_batches

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.eps.append(pl_module.attack.eps)
        if self.path is not None and (trainer.current_epoch, batch_idx) == (2, 1):
            trainer.save_checkpoint(self.path)


class Digits(DigitsData):
    """Some digits, drawn by a sampler."""

    def __init__(self, workers: int = 0, **kwargs: Any) -> None:
        super().__init__()
        self.workers, self.kwargs = workers, kwargs
        super().setup("fit")
        self.train, self.test = Subset(self.train, range(N)), Subset(self.test, range(32))
        self.sampler = CoresetSampler(self.train, **kwargs)

    def setup(self, stage):
        pass

    def train_dataloader(self):
        return DataLoader(self.train, 16, sampler=self.sampler, num_workers=self.workers)


def fit(
    folder: Any, data: Digits, kept: Kept, *more: Callback, ckpt_path: Any = None, module: Any = None, **kwargs: Any
):
    seed_everything(7, verbose=False)
    here = {"selector": GradMatch(gradient="weight"), "every": 1, "warm": 0.26} | kwargs
    selection = CoresetSelection(sampler=data.sampler, **HERE, **here)
    module = DigitClassifier(epochs=4) if module is None else module
    attached = [AdversarialTraining(ATTACK, **HERE), selection, kept, *more]
    run = trainer(folder, max_epochs=4, callbacks=attached, limit_val_batches=0)
    run.fit(module, data, ckpt_path=ckpt_path)
    return module, selection


# Loaders of a user.


@pytest.mark.filterwarnings("ignore:You.re resuming from a checkpoint that ended")
@pytest.mark.parametrize("workers", [0, 2])
def test_a_strangers_module_is_trained_on_a_resampled_coreset_and_resumed_within_an_epoch(tmp_path, workers):
    growing = Staircase([0, 2, 3], [1.0, 0.5, 0.8])
    kept = Kept(tmp_path / "a.ckpt")
    ramp = AttributeRamp("attack.eps", Linear(0, 0.08, begin=0, end=4))
    data = Digits(workers)
    module, selection = fit(tmp_path, data, kept, ramp, fraction=growing)
    assert data.sampler.workers.get("num_workers", 0) == workers
    assert {epoch: len(places) for epoch, places in kept.places.items()} == {0: 96, 1: 96, 2: 48, 3: 77}
    assert kept.batches == {0: 6, 1: 6, 2: 3, 3: 5}
    times = [epoch + batch / kept.batches[epoch] for epoch in range(4) for batch in range(kept.batches[epoch])]
    assert kept.eps == pytest.approx([0.02 * time for time in times])
    assert sorted(kept.places[0]) == list(range(N))
    weights = selection.coreset.weights.double()
    share = dict(zip(selection.coreset.indices.tolist(), (weights * 77 / weights.sum()).tolist(), strict=True))
    counts = Counter(kept.places[3])
    assert all(int(s) <= counts[place] <= int(s) + 1 for place, s in share.items())
    assert max(counts.values()) > 1
    assert counts.keys() <= share.keys()

    again, rest = Kept(), DigitClassifier(epochs=4)
    resumed, _ = fit(
        tmp_path, Digits(workers), again, ramp, fraction=growing, ckpt_path=tmp_path / "a.ckpt", module=rest
    )
    assert again.places == {2: kept.places[2][32:], 3: kept.places[3]}
    assert differences(resumed.state_dict(), module.state_dict()) == []


class Noisy(Dataset):
    """Items with random augmentation, which tell the process that read them."""

    def __len__(self):
        return 2 * BATCH_SIZE + 5

    def __getitem__(self, i):
        return i + torch.rand(()), os.getpid()


def test_images_to_select_from_are_read_by_the_loaders_workers_and_come_out_the_same():
    rank = SimpleNamespace(global_rank=0, world_size=1, strategy=SimpleNamespace(root_device=torch.device("cpu")))
    found, readers = {}, {}
    for workers in (0, 2):
        sampler = CoresetSampler(Noisy())
        sampler.workers = workers_of(DataLoader(Noisy(), num_workers=workers))
        places, batches = zip(*batches_of(rank, sampler, epoch=3), strict=True)
        assert places == (0, BATCH_SIZE, 2 * BATCH_SIZE)
        found[workers] = torch.cat([values for values, _ in batches])
        readers[workers] = {int(reader) for _, read in batches for reader in read}
    assert torch.equal(found[0], found[2])
    assert readers[0] == {os.getpid()}
    assert len(readers[2] - readers[0]) == 2
    assert workers_of(DataLoader(Noisy(), num_workers=2, worker_init_fn=lambda number: None)) == {}


def test_without_resampling_each_image_comes_once_and_its_weight_can_be_asked_for(tmp_path):
    data = Digits(resample=False)
    used: list[tuple[int, float]] = []

    class Weighted(DigitClassifier):
        def training_step(self, batch):
            places = torch.tensor([int(name.split()[1]) for name in batch["name"]])
            weight = data.sampler.weight_of(places)
            used.extend(zip(places.tolist(), weight.tolist(), strict=True))
            return (F.cross_entropy(self(batch["image"]), batch["label"], reduction="none") * weight).mean()

    _, selection = fit(tmp_path, data, Kept(), fraction=0.5, module=Weighted(), every=None)
    last = used[-48:]
    assert sorted(last) == list(
        zip(selection.coreset.indices.tolist(), selection.coreset.weights.tolist(), strict=True)
    )
    assert data.sampler.weight_of(torch.arange(N)).equal(torch.ones(N))  # a later fit trains on all images again


def test_after_a_fit_the_next_one_trains_on_all_images(tmp_path):
    data = TinyData()
    trainer(tmp_path, max_epochs=1, callbacks=[CoresetSelection(0.5, warm=0)]).fit(build(PGDAT), data)
    assert data.state_dict()["selection"] is None


def test_draws_are_proportional_to_the_weights_within_one_and_unbiased_over_seeds():
    indices = torch.arange(0, 60, 3)
    weights = torch.rand(20, generator=torch.Generator().manual_seed(0)) ** 2 + 0.05
    share = weights.double() * 20 / weights.double().sum()
    draws = torch.stack([torch.bincount(resampled(indices, weights, seed), minlength=60) for seed in range(2000)])
    assert draws.sum(1).eq(20).all()
    assert (draws[:, indices] >= share.floor()).all()
    assert (draws[:, indices] <= share.ceil()).all()
    torch.testing.assert_close(draws[:, indices].double().mean(0), share, rtol=0, atol=0.05)


def test_equal_weights_draw_each_sample_once():
    assert resampled(torch.tensor([3, 5, 9]), torch.full((3,), 2.5), 1).tolist() == [3, 5, 9]


def test_a_coreset_of_a_larger_dataset_is_refused():
    sampler = CoresetSampler(range(10))
    sampler.select(torch.tensor([3, 9]))
    with pytest.raises(ValueError, match="indices must"):
        sampler.select(torch.tensor([3, 10]))


def test_a_loader_with_another_sampler_is_refused(tmp_path):
    class Unsampled(Digits):
        def train_dataloader(self):
            return DataLoader(self.train, 16, shuffle=True)

    with pytest.raises(ValueError, match="sampler"):
        fit(tmp_path, Unsampled(), Kept(), fraction=0.5)


def test_data_that_cannot_be_selected_from_are_refused(tmp_path):
    for given in ({"train_dataloaders": loader(images())}, {"datamodule": DigitsData()}):
        with pytest.raises(TypeError, match="CoresetSelection"):
            trainer(tmp_path, max_epochs=1, callbacks=[CoresetSelection(0.5)]).fit(build(PGDAT), **given)


def test_a_dataset_whose_items_need_a_collate_fn_is_selected_from_by_it(tmp_path):
    pairs = list(zip(images(N).x, images(N).y, strict=True))

    def together(items):
        return {
            "image": torch.stack([x for x, _ in items]),
            "label": torch.stack([y for _, y in items]),
            "no tensor": items,
        }

    class Small(Automatic):
        def training_step(self, batch, batch_idx):
            return F.cross_entropy(self.net(batch["image"]), batch["label"])

    sampler = CoresetSampler(pairs, collate_fn=together)
    selection = CoresetSelection(0.5, CRAIG(), warm=0, sampler=sampler, x="image", y="label", net="net")
    run = trainer(tmp_path, max_epochs=1, callbacks=[selection])
    run.fit(Small(), DataLoader(pairs, 16, sampler=sampler, collate_fn=together))
    assert run.num_training_batches == 3


# Modules of a user, with a DataModule of ours.


def test_a_strangers_module_is_never_weighted_but_resampled_anew_in_each_epoch(tmp_path):
    seen, selection = Seen(), CoresetSelection(0.6, GradMatch(), warm=0)
    trainer(tmp_path, max_epochs=3, callbacks=[selection, seen]).fit(Automatic(), TinyData())
    weights = selection.coreset.weights.double()
    share = weights * 13 / weights.sum()
    counts = [Counter(order) for order in seen.order.values()]
    for epoch, count in enumerate(counts):
        assert {weight for _, weight in seen.images[epoch]} == {1.0}
        drawn = torch.tensor([count[place] for place in selection.coreset.indices.tolist()])
        assert drawn.sum() == 13
        assert ((drawn >= share.floor()) & (drawn <= share.ceil())).all()
    assert counts[0] != counts[1] or counts[1] != counts[2]


def test_a_defense_is_weighted_and_never_resampled(tmp_path):
    seen, selection = Seen(), CoresetSelection(0.6, GradMatch(), warm=0)
    trainer(tmp_path, max_epochs=1, callbacks=[selection, seen]).fit(build(PGDAT), TinyData())
    expected = zip(selection.coreset.indices.tolist(), selection.coreset.weights.tolist(), strict=True)
    assert sorted(seen.images[0]) == list(expected)


def test_the_gradients_are_those_at_the_attacked_pixels_of_a_pipeline_that_normalises(tmp_path):
    found: list[Any] = []
    attack = replace(ATTACK, init="zero")
    data = Digits()

    class Embeds(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            whole = GradMatch(gradient="weight")
            found.append(embed(trainer, pl_module, Adapter(**HERE), whole, data.sampler, None, 1))
            pl_module.eval()
            x = torch.stack([item["image"] for item in data.train])
            y = torch.tensor([item["label"] for item in data.train])

            class Pixels(nn.Module):
                def forward(self, pixels):
                    return pl_module.model((pixels - MEAN) / STD)

            x_adv = attack(Pixels(), (x * STD + MEAN).clamp(0, 1), y)
            with torch.no_grad():
                features = pl_module.model[:-1]((x_adv - MEAN) / STD)
                logits = pl_module.model[-1](features)
            error = logits.softmax(1) - F.one_hot(y, 10)
            rows = torch.cat([features, torch.ones(N, 1)], dim=1)
            found.append((error[:, :, None] * rows[:, None]).flatten(1))

    attached = [AdversarialTraining(attack, **HERE), Embeds()]
    trainer(tmp_path, max_epochs=1, callbacks=attached, limit_val_batches=0).fit(DigitClassifier(), data)
    assert found[0].index.tolist() == list(range(N))
    torch.testing.assert_close(expanded(found[0].embeddings), found[1], rtol=1e-3, atol=1e-4)


# Nets and trainers.


@pytest.mark.parametrize("kwargs", [{"precision": "bf16-mixed"}, {"precision": "64-true"}, {}], ids=str)
@pytest.mark.parametrize("channels_last", [False, True])
def test_precisions_and_layouts_select(tmp_path, kwargs, channels_last):
    selection = CoresetSelection(0.5, GradMatch(), warm=0)
    module = build(PGDAT, channels_last=channels_last)
    trainer(tmp_path, max_epochs=1, callbacks=[selection], **kwargs).fit(module, TinyData())
    assert len(selection.coreset.indices) == 11
    assert selection.error == pytest.approx(0.35, abs=0.02)


@pytest.mark.parametrize("compiled", ["in place", "wrapped"])
def test_a_compiled_net_selects_what_the_plain_one_selects(tmp_path, compiled):
    chosen = []
    for this in (None, compiled):
        torch.compiler.reset()
        net = TinyNet()
        if this == "in place":
            net.compile(backend="eager")
        elif this == "wrapped":
            net = torch.compile(net, backend="eager")
        selection = CoresetSelection(0.5, GradMatch(gradient="weight"), warm=0)
        module = build(PGDAT, net=net, attack=replace(ATTACK, init="zero"))
        trainer(tmp_path, max_epochs=1, callbacks=[selection]).fit(module, TinyData())
        chosen.append(selection.coreset)
    assert torch.equal(chosen[0].indices, chosen[1].indices)
    torch.testing.assert_close(chosen[0].weights, chosen[1].weights)


class EndsInATanh(TinyNet):
    def forward(self, x):
        return super().forward(x).tanh()


class EndsInAConvolution(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Conv2d(3, CLASSES, 8)

    def forward(self, x):
        return self.body(x).flatten(1)


@pytest.mark.parametrize("net", [EndsInATanh, EndsInAConvolution])
def test_a_net_that_does_not_end_in_a_linear_layer_is_refused(tmp_path, net):
    with pytest.raises(ValueError, match="CoresetSelection"):
        trainer(tmp_path, max_epochs=1, callbacks=[CoresetSelection(0.5, warm=0)]).fit(
            build(PGDAT, net=net()), TinyData()
        )


@pytest.mark.parametrize("bar", [False, True])
def test_a_progress_bar_is_shown_where_the_trainer_has_one(tmp_path, bar, capfd):
    attached = [CoresetSelection(0.5, warm=0)]
    trainer(tmp_path, max_epochs=1, callbacks=attached, enable_progress_bar=bar).fit(build(Natural), TinyData())
    out, err = capfd.readouterr()
    assert ("Selecting" in out + err) is bar


def test_two_of_them_are_refused(tmp_path):
    class Another(CoresetSelection):
        """Of another class; Lightning refuses two of the same."""

    both = [CoresetSelection(0.5, Random()), Another(0.3, Random())]
    with pytest.raises(ValueError, match="CoresetSelection"):
        trainer(tmp_path, max_epochs=1, callbacks=both).fit(build(PGDAT), TinyData())


def test_what_is_no_sampler_and_classes_that_are_not_read_are_refused():
    with pytest.raises(TypeError, match=r"^sampler="):
        CoresetSelection(0.5, sampler=CoresetSampler)
    with pytest.raises(ValueError, match="scope="):
        CoresetSelection(0.5, Random(scope="class"), sampler=CoresetSampler(range(9)))


def test_a_strangers_own_attack_and_mean_weight_are_left_alone(tmp_path):
    class Own(Automatic):
        attack, mean_weight = "my own", 3.0

    module, seen = Own(), Seen()
    trainer(tmp_path, max_epochs=1, callbacks=[CoresetSelection(0.5, warm=0), seen]).fit(module, TinyData())
    assert module.mean_weight == 3.0
    assert {weight for pairs in seen.images.values() for _, weight in pairs} == {1.0}
