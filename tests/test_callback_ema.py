import copy
import threading
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import (
    EMAWeightAveraging,
    ModelCheckpoint,
    ModelPruning,
    StochasticWeightAveraging,
    WeightAveraging,
)
from torch import nn
from torch.nn import functional as F

from lit_robust.attacks import PGD
from lit_robust.callbacks import EMAWeights
from lit_robust.data.loaders import Samples
from lit_robust.data.resident import ResidentLoader
from lit_robust.defenses import PGDAT
from lit_robust.schedules import Linear
from tests.methods import build
from tests.tiny import CLASSES, SaveAfter, TinyNet, assert_equal, images, loader, trainer, two_ranks

BATCHES = 3


def batches(**share):
    data = images(8 * BATCHES)
    samples = Samples.once(torch.arange(8 * BATCHES))
    return ResidentLoader(samples, (255 * data.x).byte(), data.y, batch_size=8, shuffle=True, **share)


class Classifier(LightningModule):
    """A user's module, not a Defense; with ``steps``, manual optimization with that many steps per batch."""

    def __init__(self, steps: int = 0) -> None:
        super().__init__()
        self.net, self.steps = TinyNet(), steps
        self.automatic_optimization = steps == 0

    def configure_optimizers(self):
        return torch.optim.SGD(self.net.parameters(), lr=0.1, momentum=0.9)

    def training_step(self, batch, batch_idx):
        for _ in range(self.steps):
            self.optimizers().zero_grad()
            self.manual_backward(F.cross_entropy(self.net(batch.x), batch.y))
            self.optimizers().step()
        return F.cross_entropy(self.net(batch.x), batch.y) if self.automatic_optimization else None

    def validation_step(self, batch, batch_idx):
        self.seen = copy.deepcopy(self.net.state_dict())

    def test_step(self, batch, batch_idx):
        self.seen = copy.deepcopy(self.net.state_dict())


class Recorder(Callback):
    """The live weights, and each average, after every batch and after every epoch."""

    def __init__(self) -> None:
        self.live, self.fast, self.validated = [], [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.live.append(copy.deepcopy(pl_module.net.state_dict()))
        if "fast" in pl_module.averaged:
            self.fast.append(copy.deepcopy(pl_module.averaged["fast"].state_dict()))

    def on_validation_end(self, trainer, pl_module):
        self.validated.append(getattr(pl_module, "seen", None))
        self.after_validation = copy.deepcopy(pl_module.net.state_dict())


def fit(tmp_path, module, *callbacks, ckpt_path=None, val=False, **kwargs):
    saves = any(isinstance(callback, ModelCheckpoint) for callback in callbacks)
    kwargs = {
        "max_epochs": 2,
        "enable_checkpointing": saves,
        "limit_val_batches": None if val else 0,
        "log_every_n_steps": 1,
    } | kwargs
    run = trainer(tmp_path, callbacks=list(callbacks), **kwargs)
    run.fit(module, batches(), batches(), ckpt_path=ckpt_path, weights_only=True)
    return run


def average(states, decays):
    """The closed form: the first state, then decay * average + (1 - decay) * state."""
    omega = copy.deepcopy(states[0])
    for state, decay in zip(states[1:], decays, strict=True):
        omega = {
            name: decay * omega[name] + (1 - decay) * value if value.is_floating_point() else value
            for name, value in state.items()
        }
    return omega


def assert_close(a, b, **kwargs):
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], msg=name, **kwargs)


def of_net(state_dict):
    return {name.removeprefix("net."): value for name, value in state_dict.items()}


@pytest.mark.parametrize("steps", [0, 1], ids=["automatic", "manual"])
def test_averages_follow_the_recursion_from_the_weights_after_the_first_step(tmp_path, steps):
    module, recorder = Classifier(steps), Recorder()
    fit(tmp_path, module, EMAWeights(0.8, {"fast": 0.5}), recorder)
    updates = len(recorder.live) - 1
    assert updates == 2 * BATCHES - 1
    assert_equal(recorder.fast[0], recorder.live[0])
    assert_close(recorder.fast[-1], average(recorder.live, [0.5] * updates))
    assert_close(dict(module.net.state_dict()), average(recorder.live, [0.8] * updates))


def test_a_maker_of_optimizers_that_cannot_be_copied_does_not_hinder_averages(tmp_path):
    class Maker:  # as the command line's, which refers to the trainer and so to the processes of other ranks
        def __call__(self, params):
            return torch.optim.SGD(params, lr=0.1)

        def __deepcopy__(self, memo):
            raise TypeError("cannot pickle '_thread.lock' object")

    run = trainer(tmp_path, max_epochs=1, callbacks=[EMAWeights(0.9)])
    run.fit(build(PGDAT, optimizer=Maker()), batches())
    assert run.global_step == BATCHES


def test_float_buffers_are_averaged_and_integer_buffers_are_the_live_ones(tmp_path):
    module, recorder = Classifier(), Recorder()
    fit(tmp_path, module, EMAWeights(0.9), recorder)
    bn, live = module.net.body[1], recorder.live[-1]
    assert bn.num_batches_tracked == live["body.1.num_batches_tracked"] == 2 * BATCHES
    assert not torch.equal(bn.running_mean, live["body.1.running_mean"])


def test_several_optimizer_steps_in_a_batch_count_as_that_many(tmp_path):
    module, recorder = Classifier(steps=3), Recorder()
    fit(tmp_path, module, EMAWeights(0.8), recorder)
    expected = average(recorder.live, [0.8**3] * (2 * BATCHES - 1))
    assert_close(dict(module.net.state_dict()), expected)


def test_batches_that_only_accumulate_gradients_do_not_update(tmp_path):
    recorder = Recorder()
    fit(tmp_path, Classifier(), EMAWeights(extra={"fast": 0.5}), recorder, accumulate_grad_batches=2)
    stepped = [recorder.live[i] for i in (1, 2, 4, 5)]  # Lightning steps after an epoch's last batch too
    assert_close(recorder.fast[-1], average(stepped, [0.5] * 3))
    assert_equal(recorder.fast[3], recorder.fast[2])


def test_a_decay_may_be_a_schedule_of_fractional_epochs(tmp_path):
    recorder, decay = Recorder(), Linear(0.1, 0.9, 0, 2)
    fit(tmp_path, Classifier(), EMAWeights(extra={"fast": decay}), recorder)
    decays = [decay(batch / BATCHES) for batch in range(1, 2 * BATCHES)]
    assert_close(recorder.fast[-1], average(recorder.live, decays))


def test_validation_sees_the_first_average_and_gives_the_live_weights_back(tmp_path):
    module, recorder = Classifier(), Recorder()
    fit(tmp_path, module, EMAWeights(0.8, {"fast": 0.5}), recorder, val=True)
    assert_close(recorder.validated[-1], average(recorder.live, [0.8] * (2 * BATCHES - 1)))
    assert_equal(recorder.after_validation, recorder.live[-1])


def test_an_extra_average_is_a_plain_net_that_is_not_part_of_the_module(tmp_path):
    module = Classifier()
    names = set(module.state_dict())
    run = fit(tmp_path, module, EMAWeights(extra={"fast": 0.5}))
    fast = module.averaged["fast"]
    assert type(fast) is TinyNet
    assert not any(part.training for part in fast.modules())
    assert not any(parameter.requires_grad for parameter in fast.parameters())
    assert all(part is not fast for part in module.modules())
    assert set(module.state_dict()) == names
    run.fit_loop.max_epochs = 3
    run.fit(module, batches(), batches())
    assert module.averaged["fast"] is not fast


def test_a_second_fit_does_not_copy_the_averages_of_the_first(tmp_path):
    class Counted(TinyNet):
        copies = 0

        def __reduce_ex__(self, protocol):  # which deepcopy calls
            Counted.copies += 1
            return super().__reduce_ex__(protocol)

    module = Classifier()
    module.net = Counted()
    for expected in (2, 4):  # in the module's average, and as the extra one
        fit(tmp_path, module, EMAWeights(extra={"fast": 0.5}))
        assert Counted.copies == expected


# The checkpoint.


def test_a_checkpoint_holds_the_average_and_is_safe_to_load(tmp_path):
    module, recorder = Classifier(), Recorder()
    run = fit(tmp_path, module, EMAWeights(0.8, {"fast": 0.5}), recorder, ModelCheckpoint(tmp_path))
    checkpoint = torch.load(run.checkpoint_callback.best_model_path, weights_only=True)
    assert_close(of_net(checkpoint["state_dict"]), average(recorder.live, [0.8] * (2 * BATCHES - 1)))
    assert_equal(of_net(checkpoint["current_model_state"]), recorder.live[-1])
    assert checkpoint["averaging_state"] == {"n_averaged": torch.tensor(2 * BATCHES)}


@pytest.mark.parametrize("callbacks", [[], [EMAWeights(0.8)]], ids=["without", "with"])
def test_a_test_evaluates_the_average_with_and_without_the_callback(tmp_path, callbacks):
    module, other = Classifier(), Classifier()
    fit(tmp_path, module, EMAWeights(0.8), SaveAfter(2 * BATCHES, tmp_path / "end.ckpt"))
    run = trainer(tmp_path, callbacks=callbacks)
    run.test(other, batches(), ckpt_path=tmp_path / "end.ckpt", weights_only=True, verbose=False)
    assert_equal(other.seen, module.net.state_dict())


@pytest.mark.parametrize("steps", [0, 1], ids=["automatic", "manual"])
@pytest.mark.parametrize("stop", [3, 4], ids=["boundary", "mid-epoch"])
def test_a_resumed_run_continues_all_averages_bit_for_bit(tmp_path, steps, stop):
    def averages():
        return EMAWeights(Linear(0.5, 0.9, 0, 3), {"fast": 0.5})

    whole, rest = Classifier(steps), Classifier(steps)
    fit(tmp_path, whole, averages(), SaveAfter(stop, tmp_path / "part.ckpt"), max_epochs=3)
    fit(tmp_path, rest, averages(), ckpt_path=tmp_path / "part.ckpt", max_epochs=3)
    assert_equal(rest.net.state_dict(), whole.net.state_dict())
    assert_equal(rest.averaged["fast"].state_dict(), whole.averaged["fast"].state_dict())


def test_a_checkpoint_from_the_end_of_training_still_has_the_live_weights(tmp_path):
    module, recorder = Classifier(), Recorder()
    save = ModelCheckpoint(tmp_path, every_n_epochs=5, save_last=True)
    fit(tmp_path, module, EMAWeights(0.8), recorder, save)
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert_equal(of_net(checkpoint["current_model_state"]), recorder.live[-1])
    assert_equal(of_net(checkpoint["state_dict"]), module.net.state_dict())


def evaluated(run, module):
    run.validate(module, batches(), verbose=False)
    run.test(module, batches(), verbose=False)


@pytest.mark.parametrize("between", [lambda run, module: None, evaluated], ids=["", "evaluated"])
@pytest.mark.parametrize("make", [Classifier, lambda: build(PGDAT)], ids=["user's", "Defense"])
def test_a_checkpoint_written_after_fit_resumes_like_an_uninterrupted_run(tmp_path, make, between):
    def averages():
        return EMAWeights(0.8, {"fast": 0.5})

    whole, first, rest, recorder = make(), make(), make(), Recorder()
    fit(tmp_path, whole, averages(), max_epochs=4, val=True)
    run = fit(tmp_path, first, averages(), recorder, val=True)
    between(run, first)
    run.save_checkpoint(tmp_path / "z.ckpt")
    checkpoint = torch.load(tmp_path / "z.ckpt", weights_only=True)
    assert_equal(checkpoint["state_dict"], first.state_dict())
    assert_equal(
        {name: value for name, value in of_net(checkpoint["current_model_state"]).items() if name in recorder.live[-1]},
        recorder.live[-1],
    )
    fit(tmp_path, rest, averages(), max_epochs=4, val=True, ckpt_path=tmp_path / "z.ckpt")
    assert_equal(rest.net.state_dict(), whole.net.state_dict())
    assert_equal(rest.averaged["fast"].state_dict(), whole.averaged["fast"].state_dict())


def test_a_checkpoint_written_within_validation_tells_live_weights_from_the_average(tmp_path):
    class Saving(Classifier):
        def validation_step(self, batch, batch_idx):
            super().validation_step(batch, batch_idx)
            self.trainer.save_checkpoint(tmp_path / "val.ckpt")

    recorder = Recorder()
    fit(tmp_path, Saving(), EMAWeights(0.8), recorder, val=True)
    checkpoint = torch.load(tmp_path / "val.ckpt", weights_only=True)
    assert_equal(of_net(checkpoint["current_model_state"]), recorder.live[-1])
    assert_equal(of_net(checkpoint["state_dict"]), recorder.validated[-1])


def test_weights_changed_after_fit_are_saved_as_the_average(tmp_path):
    module, recorder = Classifier(), Recorder()
    run = fit(tmp_path, module, EMAWeights(0.8), recorder)
    module.net.load_state_dict(TinyNet(seed=1).state_dict())
    run.save_checkpoint(tmp_path / "z.ckpt")
    checkpoint = torch.load(tmp_path / "z.ckpt", weights_only=True)
    assert_equal(of_net(checkpoint["state_dict"]), TinyNet(seed=1).state_dict())
    assert_equal(of_net(checkpoint["current_model_state"]), recorder.live[-1])


def test_a_checkpoint_of_another_module_has_nothing_of_the_fit(tmp_path):
    run, other = fit(tmp_path, Classifier(), EMAWeights(0.8)), Classifier()
    run.test(other, batches(), verbose=False)
    run.save_checkpoint(tmp_path / "z.ckpt")
    checkpoint = torch.load(tmp_path / "z.ckpt", weights_only=True)
    assert_equal(checkpoint["state_dict"], other.state_dict())
    assert "current_model_state" not in checkpoint


def test_a_test_that_fails_after_fit_leaves_the_average_in_the_module(tmp_path):
    class Failing(Classifier):
        def test_step(self, batch, batch_idx):
            raise KeyError("a broken image")

    module = Failing()
    run = fit(tmp_path, module, EMAWeights(0.8))
    average = copy.deepcopy(module.state_dict())
    with pytest.raises(KeyError, match="a broken image"):
        run.test(module, batches(), verbose=False)
    assert_equal(module.state_dict(), average)


def test_an_average_that_a_checkpoint_does_not_have_starts_from_its_live_weights(tmp_path):
    whole, rest, recorder = Classifier(), Classifier(), Recorder()
    fit(tmp_path, whole, EMAWeights(0.8), SaveAfter(3, tmp_path / "part.ckpt"), recorder)
    first = recorder.live[2]
    fit(tmp_path, rest, EMAWeights(0.8, {"fast": 0.5}), recorder, ckpt_path=tmp_path / "part.ckpt")
    assert_close(recorder.fast[0], average([first, recorder.live[3]], [0.5]))


def test_averaging_can_start_from_a_checkpoint_without_averages(tmp_path):
    whole, rest, recorder = Classifier(), Classifier(), Recorder()
    fit(tmp_path, whole, SaveAfter(3, tmp_path / "part.ckpt"))
    with pytest.warns(UserWarning, match="WeightAveraging"):
        fit(tmp_path, rest, EMAWeights(0.8), recorder, ckpt_path=tmp_path / "part.ckpt")
    assert_close(dict(rest.net.state_dict()), average(recorder.live, [0.8, 0.8]))


# Defects of Lightning's own callback, each of which gives a wrong result silently.


@pytest.mark.parametrize("val", [False, True], ids=["", "validated"])
def test_an_average_that_was_never_updated_is_never_used(tmp_path, val):
    module, recorder = Classifier(), Recorder()
    save = ModelCheckpoint(tmp_path)
    fit(tmp_path, module, EMAWeights(extra={"fast": 0.5}, start_epoch=9), recorder, save, val=val)
    assert_equal(module.net.state_dict(), recorder.live[-1])
    assert_equal(module.averaged["fast"].state_dict(), recorder.live[-1])
    checkpoint = torch.load(save.best_model_path, weights_only=True)
    assert_equal(of_net(checkpoint["state_dict"]), recorder.live[-1])
    if val:
        assert_equal(recorder.validated[-1], recorder.live[-1])


def test_the_sanity_check_sees_weights_that_were_loaded_after_setup(tmp_path):
    class Pretrained(Classifier):
        def on_fit_start(self):
            self.net.load_state_dict(TinyNet(seed=1).state_dict())

    recorder = Recorder()
    fit(tmp_path, Pretrained(), EMAWeights(), recorder, val=True, num_sanity_val_steps=1)
    assert_equal(recorder.validated[0], TinyNet(seed=1).state_dict())


def test_the_start_epoch_delays_every_update(tmp_path):
    module, recorder = Classifier(), Recorder()
    fit(tmp_path, module, EMAWeights(0.8, {"fast": 0.5}, start_epoch=1), recorder)
    for before in range(BATCHES + 1):
        assert_equal(recorder.fast[before], recorder.live[before])
    assert_close(dict(module.net.state_dict()), average(recorder.live[BATCHES:], [0.8] * (BATCHES - 1)))


def test_averages_move_to_the_device_that_the_module_is_on_when_fit_starts(tmp_path):
    module, callback = Classifier(), EMAWeights(extra={"fast": 0.5})
    run = trainer(tmp_path, callbacks=[callback])
    run.strategy.connect(module)
    callback.setup(run, module, "fit")
    module.to("meta")  # stands for a GPU, to which the strategy moves the module after setup
    callback.on_fit_start(run, module)
    one_step = SimpleNamespace(global_step=1, current_epoch=0, num_training_batches=1, is_last_batch=True, world_size=1)
    callback.on_train_batch_end(one_step, module, None, None, 0)
    checkpoint = {"state_dict": module.state_dict()}
    callback.on_save_checkpoint(run, module, checkpoint)
    for average in (checkpoint["state_dict"], checkpoint["averaging_state"], module.averaged["fast"].state_dict()):
        assert {tensor.device.type for tensor in average.values()} == {"meta"}


def test_live_weights_come_back_when_validation_fails(tmp_path):
    class Failing(Classifier):
        def validation_step(self, batch, batch_idx):
            super().validation_step(batch, batch_idx)
            raise KeyError("a broken image")

    module, recorder = Failing(), Recorder()
    with pytest.raises(KeyError, match="a broken image"):
        fit(tmp_path, module, EMAWeights(0.5), recorder, val=True)
    assert_equal(module.net.state_dict(), recorder.live[-1])
    assert not torch.equal(module.seen["head.weight"], recorder.live[-1]["head.weight"])


@pytest.mark.parametrize("verb", ["validate", "test"])
def test_after_fit_the_checkpoint_that_is_given_is_what_is_evaluated(tmp_path, verb):
    module = Classifier()
    run = fit(tmp_path, module, EMAWeights(0.8), SaveAfter(3, tmp_path / "part.ckpt"), val=True)
    getattr(run, verb)(module, batches(), ckpt_path=tmp_path / "part.ckpt", verbose=False)
    saved = torch.load(tmp_path / "part.ckpt", weights_only=True)["state_dict"]
    assert_equal(module.seen, of_net(saved))


def test_steps_that_lightning_does_not_count_are_not_lost(tmp_path):
    class Raw(Classifier):
        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers(use_pl_optimizer=False)
            optimizer.zero_grad()
            self.manual_backward(F.cross_entropy(self.net(batch.x), batch.y))
            optimizer.step()

    module, recorder = Raw(steps=1), Recorder()
    fit(tmp_path, module, EMAWeights(), recorder, SaveAfter(2 * BATCHES, tmp_path / "end.ckpt"), val=True)
    assert_equal(module.net.state_dict(), recorder.live[-1])
    assert_equal(recorder.validated[-1], recorder.live[-1])
    checkpoint = torch.load(tmp_path / "end.ckpt", weights_only=True)
    assert_equal(of_net(checkpoint["state_dict"]), recorder.live[-1])


def test_lightning_still_has_the_private_names_that_are_relied_on():
    callback = WeightAveraging()
    assert callback._average_model is None
    assert callback._latest_update_step == 0
    assert callable(callback._swap_models)
    assert callable(callback._copy_average_to_current)


# Several ranks.


class PerRank(Classifier):
    """Each rank has other images, so BatchNorm's statistics differ, and saves its averages."""

    def train_dataloader(self):
        return batches(rank=self.global_rank, world=2)

    def on_fit_end(self):
        nets = self.averaged["fast"], self.net
        torch.save([dict(net.state_dict()) for net in nets], f"{self.global_rank}.pt")


def test_ranks_agree_on_their_averages_at_the_end_of_an_epoch(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = two_ranks(tmp_path, max_epochs=1, callbacks=[EMAWeights(0.8, {"fast": 0.5})])
    run.fit(PerRank(), val_dataloaders=batches())
    first, second = (torch.load(f"{rank}.pt") for rank in range(2))
    for mine, theirs in zip(first, second, strict=True):
        assert_equal(mine, theirs)


# With a Defense, and what is refused.


def test_a_defense_may_attack_an_average_and_leaves_no_gradient_on_it(tmp_path):
    class AttackAverage(PGDAT):
        def perturb(self, batch):
            return self.attack(self.averaged["fast"], batch.x, batch.y)

    module = AttackAverage(TinyNet(), CLASSES, PGD(steps=1))
    fit(tmp_path, module, EMAWeights(extra={"fast": 0.5}), val=True)
    assert all(parameter.grad is None for parameter in module.averaged["fast"].parameters())
    assert not torch.equal(module.averaged["fast"].head.weight, module.net.head.weight)


@pytest.mark.parametrize("second", [EMAWeights(0.99), EMAWeightAveraging()], ids=["own", "Lightning's"])
def test_a_second_averaging_callback_is_refused(tmp_path, second):
    with pytest.raises(ValueError, match=r"EMAWeights.*extra="):
        fit(tmp_path, Classifier(), EMAWeights(), second)


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (StochasticWeightAveraging(swa_lrs=0.1), "StochasticWeightAveraging.*leave one"),
        (ModelPruning("l1_unstructured", amount=0.2), "ModelPruning.*later fit"),
    ],
    ids=["SWA", "pruning"],
)
def test_callbacks_whose_weights_would_be_lost_are_refused(tmp_path, other, named):
    with pytest.raises(ValueError, match=f"^EMAWeights.*{named}"):
        fit(tmp_path, Classifier(), EMAWeights(), other)


@pytest.mark.parametrize("extra", [{}, {"fast": 0.5}], ids=["main", "extra"])
def test_parameters_that_change_during_the_fit_are_refused_by_name(tmp_path, extra):
    class Changing(Classifier):
        def on_train_start(self):
            nn.utils.parametrizations.weight_norm(self.net.head)

    with pytest.raises(ValueError, match=r"^EMAWeights' average .*head\.weight.*: .* before the fit"):
        fit(tmp_path, Changing(), EMAWeights(extra=extra))


KEPT = {
    "a loss": (lambda module: sum(one.sum() for one in module.parameters()), r"graph leaves.*: detach\(\)"),
    "a lock": (lambda module: threading.Lock(), r"cannot pickle.*lock.*: keep it outside"),
    "a list of losses": (lambda module: [module.head.weight.sum()], r"graph leaves.*: keep it outside"),
}


@pytest.mark.parametrize("kept", KEPT)
def test_what_cannot_be_copied_is_named_with_its_reason(tmp_path, kept):
    make, told = KEPT[kept]
    module = Classifier()
    module.net.kept = make(module.net)
    with pytest.raises(ValueError, match=rf"^EMAWeights .*Classifier.* net\.kept \(.*{told}") as error:
        fit(tmp_path, module, EMAWeights())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("layer", [nn.LazyLinear(4), nn.LazyBatchNorm2d()], ids=["linear", "batch norm"])
def test_a_lazy_module_is_refused_before_training(tmp_path, layer):
    module = Classifier()
    module.net.lazy = layer
    with pytest.raises(ValueError, match=r"^EMAWeights .*net\.lazy\.weight.*: run one batch"):
        fit(tmp_path, module, EMAWeights())


def test_a_module_without_net_is_refused(tmp_path):
    module = Classifier()
    module.net, module.model = None, module.net
    with pytest.raises(TypeError, match=r"^EMAWeights .*Classifier .*net .*model"):
        fit(tmp_path, module, EMAWeights(extra={"fast": 0.9}))


def test_a_schedule_that_leaves_the_range_of_decays_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"decay=1\.\d+"):
        fit(tmp_path, Classifier(), EMAWeights(Linear(0.9, 1.5, 0, 1)))


def test_a_checkpoint_of_weights_only_is_refused(tmp_path):
    with pytest.raises(ValueError, match="save_weights_only=True"):
        fit(tmp_path, Classifier(), EMAWeights(), ModelCheckpoint(tmp_path, save_weights_only=True))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"decay": 1.0}, "decay="),
        ({"extra": {"fast": -0.1}}, r"extra\['fast'\]="),
        ({"start_epoch": -1}, "start_epoch="),
    ],
)
def test_arguments_that_make_no_sense_are_refused(arguments, named):
    with pytest.raises(ValueError, match=f"^{named}"):
        EMAWeights(**arguments)


BROKEN = {
    "another shape": lambda c: c["current_model_state"].update({next(iter(c["current_model_state"])): torch.zeros(1)}),
    "a weight missing": lambda c: c["current_model_state"].popitem(),
    "no weights": lambda c: c["current_model_state"].update({next(iter(c["current_model_state"])): "x"}),
    "another count": lambda c: c["averaging_state"].update(n_averaged="many"),
    "no count": lambda c: c["averaging_state"].clear(),
    "an extra average of another shape": lambda c: c["extra_averages"]["fast"].update(
        {next(iter(c["extra_averages"]["fast"])): torch.zeros(1)}
    ),
    "an extra average of nothing": lambda c: c["extra_averages"].update(fast={}),
    "an extra average of another type": lambda c: c["extra_averages"].update(fast=3),
}


@pytest.mark.parametrize("part", BROKEN)
def test_broken_averages_are_refused_in_one_sentence_in_python(part, tmp_path):
    run = trainer(tmp_path, max_epochs=1, callbacks=[EMAWeights(0.9, extra={"fast": 0.5})])
    run.fit(build(PGDAT), loader(images(8)))
    run.save_checkpoint(tmp_path / "a.ckpt")
    checkpoint = torch.load(tmp_path / "a.ckpt", weights_only=True)
    BROKEN[part](checkpoint)
    torch.save(checkpoint, tmp_path / "broken.ckpt")
    again = trainer(tmp_path, max_epochs=2, callbacks=[EMAWeights(0.9, extra={"fast": 0.5})])
    with pytest.raises(ValueError, match=r"^the checkpoint's averages ") as told:
        again.fit(build(PGDAT), loader(images(8)), ckpt_path=tmp_path / "broken.ckpt", weights_only=True)
    assert "\n" not in str(told.value)
