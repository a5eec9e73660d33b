"""What Lightning's Trainer may be asked for: each argument that touches batches is honoured or refused."""

import math
import platform
import re
from copy import deepcopy
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from lightning.pytorch import Callback, seed_everything
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder, StochasticWeightAveraging
from lightning.pytorch.callbacks.spike import SpikeDetection
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.tuner import Tuner

from lit_robust.attacks import PGD
from lit_robust.data import DigitsDataModule
from lit_robust.defenses import PGDAT, FreeAT
from lit_robust.nets import digits_cnn
from lit_robust.torch_internals import bf16_instructions
from lit_robust.training import trainer_checks
from tests.front_door import lit
from tests.methods import ONE_STEP, build
from tests.tiny import TinyNet, assert_equal, images, indexed, loader, trainer

# 1,300 images to train on, 100 to validate on and 397 to test.
SIZES = {"batch_size": 256, "eval_batch_size": 50, "val_size": 100}

pytestmark = [
    # Of Lightning's tuner, which leaves the net in the mode of the stage that it tried.
    pytest.mark.filterwarnings("ignore:Found .* module.*in eval mode at the start of training"),
]


@pytest.mark.parametrize("stage", ["fit", "validate", "test"])
def test_several_loaders_are_refused_where_their_images_would_be_counted_together(stage, tmp_path):
    module, run, loaders = build(PGDAT), trainer(tmp_path, max_epochs=1), [loader(images(8)), loader(images(4))]
    before = deepcopy(module.state_dict())
    with pytest.raises(ValueError, match=r"^there are 2 loaders, but PGDAT .*ConcatDataset"):
        run.fit(module, loaders[0], loaders) if stage == "fit" else getattr(run, stage)(module, loaders)
    assert_equal(module.state_dict(), before)


def test_predictions_are_made_for_each_of_several_loaders(tmp_path):
    found = trainer(tmp_path).predict(build(PGDAT), [loader(images(8)), loader(images(4))])
    assert [sum(map(len, one)) for one in found] == [8, 4]


class Seen(Callback):
    """The images of each training epoch, by batch, and the number of batches of each validation."""

    def __init__(self):
        self.trained, self.validated = [], []

    def on_train_epoch_start(self, trainer, pl_module):
        self.trained.append([])

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.trained[-1].append(batch.index.tolist())

    def on_validation_epoch_start(self, trainer, pl_module):
        self.validated.append(0)

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        self.validated[-1] += 1

    @property
    def batches(self):
        return [len(epoch) for epoch in self.trained]

    @property
    def distinct(self):
        return len({index for epoch in self.trained for batch in epoch for index in batch})


def method():
    seed_everything(0, verbose=False)
    return PGDAT(digits_cnn(width=2), 10, PGD(0.1, steps=1))


def fitted(tmp_path, *callbacks, data=None, **options):
    seen, defense = Seen(), method()
    run = trainer(tmp_path, callbacks=[*callbacks, seen], **{"max_epochs": 3} | options)
    run.fit(defense, data or DigitsDataModule(**SIZES))
    return seen, defense


@pytest.mark.parametrize(
    ("options", "batches", "validated"),
    [
        ({}, [6, 6, 6], [2, 2, 2]),
        ({"limit_train_batches": 2, "limit_val_batches": 1}, [2, 2, 2], [1, 1, 1]),
        ({"limit_train_batches": 0.5, "limit_val_batches": 0.5}, [3, 3, 3], [1, 1, 1]),
        ({"limit_val_batches": 0}, [6, 6, 6], []),
        ({"fast_dev_run": 2}, [2], [2]),
        ({"val_check_interval": 2}, [6, 6, 6], [2] * 9),
        ({"val_check_interval": 0.5}, [6, 6, 6], [2] * 6),
        ({"val_check_interval": 9, "check_val_every_n_epoch": None}, [6, 6, 6], [2, 2]),
        ({"check_val_every_n_epoch": 2}, [6, 6, 6], [2]),
        ({"num_sanity_val_steps": -1}, [6, 6, 6], [2] * 4),
        ({"max_steps": 7, "max_epochs": -1}, [6, 1], [2]),
        ({"min_epochs": 2, "max_epochs": 2}, [6, 6], [2, 2]),
        ({"reload_dataloaders_every_n_epochs": 2}, [6, 6, 6], [2, 2, 2]),
        ({"use_distributed_sampler": False}, [6, 6, 6], [2, 2, 2]),
        ({"inference_mode": False}, [6, 6, 6], [2, 2, 2]),
        ({"detect_anomaly": True, "max_epochs": 1}, [6], [2]),
        ({"deterministic": True, "benchmark": False, "max_epochs": 1}, [6], [2]),
        ({"profiler": "simple", "max_epochs": 1}, [6], [2]),
        ({"max_time": "00:00:00:00"}, [], []),
    ],
    ids=str,
)
def test_is_honoured(tmp_path, options, batches, validated):
    seen, defense = fitted(tmp_path, **options)
    assert (seen.batches, seen.validated) == (batches, validated)
    assert defense.trainer.global_step == sum(batches)


@pytest.mark.parametrize("augment", [False, True])
@pytest.mark.parametrize(("share", "batches"), [(2, 2), (0.5, 3)])
def test_overfit_batches_trains_on_the_same_images_in_every_epoch(tmp_path, share, batches, augment):
    data = DigitsDataModule(**SIZES, augment=augment)  # a warning, such as that shuffling is on, would be an error
    seen, _ = fitted(tmp_path, data=data, overfit_batches=share)
    assert seen.batches == [batches] * 3
    assert seen.trained[0] == seen.trained[1] == seen.trained[2]
    assert seen.distinct == 256 * batches
    augmented = [data.train_dataloader() for _ in range(2)]
    for epoch, walk in enumerate(augmented):
        walk.sampler.set_epoch(epoch)
    first = [next(iter(walk)).x for walk in augmented]
    assert torch.equal(*first) != augment  # each epoch has its own crops


def test_without_it_each_epoch_has_another_order(tmp_path):
    seen, _ = fitted(tmp_path, limit_train_batches=2)
    assert seen.distinct > 900


class Selects(Callback):
    """Trains on the first images, of another number in each epoch."""

    def __init__(self, *sizes):
        self.sizes = sizes

    def select(self, trainer, epoch):
        data = trainer.datamodule
        everything = torch.cat([batch.index for batch in data.plain_train_dataloader()])
        data.select(everything[: self.sizes[min(epoch, len(self.sizes) - 1)]])

    def on_fit_start(self, trainer, pl_module):
        self.select(trainer, 0)

    def on_train_epoch_end(self, trainer, pl_module):
        self.select(trainer, trainer.current_epoch + 1)


@pytest.mark.parametrize("sizes", [(256, 512, 1280, 256), (1280, 256, 512, 1280)])
@pytest.mark.parametrize("every", [0, 1, 2, 3])
def test_a_selection_of_another_size_holds_from_the_next_epoch_on(tmp_path, sizes, every):
    seen, _ = fitted(tmp_path, Selects(*sizes), max_epochs=4, reload_dataloaders_every_n_epochs=every)
    assert seen.batches == [size // 256 for size in sizes]
    assert seen.validated == [2] * 4


@pytest.mark.parametrize(
    ("callback", "named"),
    [
        (lambda: LearningRateFinder(), r"LearningRateFinder, .*model\.optimizer\.lr"),
        (lambda: StochasticWeightAveraging(1e-2), "StochasticWeightAveraging .*EMAWeights"),
    ],
)
def test_a_callback_that_could_not_act_is_refused(tmp_path, callback, named):
    with pytest.raises(ValueError, match=f"^{named}"):
        fitted(tmp_path, callback())


def test_lr_find_is_refused_before_a_step(tmp_path):
    run, defense = trainer(tmp_path, max_epochs=1), method()
    before = [value.clone() for value in defense.state_dict().values()]
    with pytest.raises(ValueError, match=r"^LearningRateFinder.* lr_find"):
        Tuner(run).lr_find(defense, datamodule=DigitsDataModule(**SIZES))
    assert all(map(torch.equal, before, defense.state_dict().values()))


def test_a_clipping_that_has_no_effect_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r'^gradient_clip_algorithm="value" .*model\.gradient_clip_val'):
        fitted(tmp_path, gradient_clip_algorithm="value")


@pytest.mark.parametrize("kind", [FSDPStrategy, ModelParallelStrategy])
def test_a_strategy_that_shards_the_weights_is_refused(kind):
    with pytest.raises(ValueError, match=f"{kind.__name__} shards .* strategy=ddp"):
        trainer_checks.check_strategy(kind())


def test_ddp_is_accepted():
    trainer_checks.check_strategy(DDPStrategy())


def test_training_on_nothing_is_told(tmp_path):
    with pytest.warns(UserWarning, match=r"^limit_train_batches=0 leaves nothing"):
        fitted(tmp_path, limit_train_batches=0)


def test_a_batch_size_that_is_searched_is_trained_with_and_the_search_leaves_no_trace(tmp_path):
    data = DigitsDataModule(**SIZES)
    _, searched = fitted(tmp_path, BatchSizeFinder(init_val=65, max_trials=2, steps_per_trial=2), data=data)
    assert data.batch_size == 130
    seen, plain = fitted(tmp_path, data=DigitsDataModule(**SIZES | {"batch_size": 130}))
    assert seen.batches == [10] * 3
    for mine, its in zip(searched.state_dict().values(), plain.state_dict().values(), strict=True):
        assert torch.equal(mine, its)


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_the_batch_size_of_evaluation_is_another_argument(tmp_path, stage):
    data, search = DigitsDataModule(**SIZES), {"method": stage, "max_trials": 2, "init_val": 20}
    with pytest.raises(ValueError, match=f"^BatchSizeFinder .*batch_size, .*{stage} .*eval_batch_size"):
        Tuner(trainer(tmp_path)).scale_batch_size(method(), datamodule=data, **search)
    size = Tuner(trainer(tmp_path)).scale_batch_size(
        defense := method(), datamodule=data, batch_arg_name="eval_batch_size", **search
    )
    assert size == data.eval_batch_size == 40
    trainer(tmp_path, max_epochs=1).fit(defense.train(), data)  # and it can still be trained


def test_a_validation_that_was_interrupted_is_not_counted_by_the_next_one(tmp_path):
    class Stops(Callback):
        def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
            if batch_idx == 1:
                raise RuntimeError("stop")

        on_test_batch_end = on_validation_batch_end

    for measure, key in (("validate", "val/acc/clean"), ("test", "test/acc/clean")):
        defense, data = build(PGDAT), images(24)
        with pytest.raises(RuntimeError, match="stop"):
            getattr(trainer(tmp_path, callbacks=[Stops()]), measure)(
                defense, indexed(data._replace(y=(data.y + 1) % 4)), verbose=False
            )
        ((key_metrics),) = getattr(trainer(tmp_path), measure)(defense, indexed(data), verbose=False)
        with torch.no_grad():
            expected = (defense.net.eval()(data.x).argmax(dim=1) == data.y).float().mean().item()
        assert key_metrics[key] == pytest.approx(expected)


@pytest.mark.parametrize("build_it", [lambda: build(PGDAT), lambda: build(FreeAT, attack=ONE_STEP, m=2)])
def test_callbacks_find_the_loss_of_each_batch(tmp_path, build_it):
    found = []

    class Reads(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            found.append(outputs["loss"])

    run = trainer(tmp_path, max_epochs=1, callbacks=[Reads()], log_every_n_steps=1)
    run.fit(build_it(), indexed(images(8)))
    assert len(found) == 1
    assert not found[0].requires_grad
    if not isinstance(run.lightning_module, FreeAT):  # whose logged loss is the mean of its replays
        assert found[0].item() == pytest.approx(run.callback_metrics["train/loss"].item())


def test_spike_detection_works(tmp_path):
    class Spy(SpikeDetection):
        losses: ClassVar = []

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            self.losses.append(outputs["loss"].item())
            return super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    fitted(tmp_path, Spy(warmup=100), max_epochs=1)
    assert len(Spy.losses) == 6
    assert all(math.isfinite(loss) for loss in Spy.losses)


@pytest.mark.parametrize(
    ("instructions", "precision", "width", "told"),
    [
        (["AVX512-BF16"], "32-true", 1200, "multiplies bfloat16 (AVX512-BF16): precision=bf16-mixed"),
        (["AMX", "AVX512-BF16"], "32-true", 8, None),
        (["AMX"], "bf16-mixed", 1200, None),
        ([], "bf16-mixed", 8, "emulates bfloat16"),
        ([], "32-true", 1200, None),
        (None, "32-true", 1200, None),
        (None, "bf16-mixed", 1200, None),
    ],
)
@pytest.mark.filterwarnings("default")
def test_bf16_is_recommended_or_warned_of_as_the_processor_is(
    instructions, precision, width, told, tmp_path, monkeypatch
):
    lines = []
    monkeypatch.setattr(trainer_checks, "bf16_instructions", lambda: instructions)
    for level in ("rank_zero_info", "rank_zero_warn"):
        monkeypatch.setattr(trainer_checks, level, lines.append)
    run = trainer(tmp_path, max_epochs=1, limit_train_batches=1, precision=precision)
    run.fit(build(PGDAT, net=TinyNet(width)), indexed(images()))
    found = [line for line in lines if "bfloat16" in line]
    assert [told in line for line in found] == ([True] if told else [])


def test_the_processors_instructions_are_those_that_the_system_names():
    processor = Path("/proc/cpuinfo")
    if platform.machine() != "x86_64" or not processor.exists():
        pytest.skip("no list of this processor's instructions to compare with")
    flags = set(re.search(r"^flags\s*:(.*)$", processor.read_text(), re.MULTILINE)[1].split())
    known = {"AMX": "amx_bf16", "AVX512-BF16": "avx512_bf16"}
    assert bf16_instructions() == [name for name, flag in known.items() if flag in flags]


def test_of_other_processors_the_instructions_are_unknown(monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    assert bf16_instructions() is None


def test_a_fused_optimizer_of_a_configuration_trains_like_the_other_one(tmp_path, monkeypatch):
    saved = {}
    for fused in ("true", "false"):
        (folder := tmp_path / fused).mkdir()
        monkeypatch.chdir(folder)
        lit("fit", "--model.optimizer.init_args.fused", fused)
        saved[fused] = torch.load("runs/tiny/version_0/checkpoints/last.ckpt", weights_only=True)
    groups = [one["optimizer_states"][0]["param_groups"][0] for one in saved.values()]
    assert [group["fused"] for group in groups] == [True, False]
    both = [one["state_dict"].values() for one in saved.values()]
    assert all(torch.allclose(*values, rtol=1e-4, atol=1e-6) for values in zip(*both, strict=True))
