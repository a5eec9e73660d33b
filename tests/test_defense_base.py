"""The base of all training methods."""

import copy
import math
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelSummary, RichModelSummary
from lightning.pytorch.plugins import MixedPrecision
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from lit_robust import losses
from lit_robust.attacks import FGSM, PGD
from lit_robust.batch import Batch, as_batch
from lit_robust.callbacks import AttributeRamp, EMAWeights
from lit_robust.defenses import AWP, PGDAT, Defense, Natural
from lit_robust.ranks import weighted_mean
from lit_robust.schedules import Cyclic, Linear, MultiStep, PiecewiseLinear
from lit_robust.training.checkpoint_checks import warn_of_averages
from tests.methods import ATTACK, METHODS, build, sgd
from tests.tiny import CLASSES, TinyNet, images, indexed, loader, trainer


class Recorder(Callback):
    """Records the optimizer's settings in each batch."""

    def __init__(self, key="lr"):
        self.key, self.values = key, []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        value = trainer.optimizers[0].param_groups[0][self.key]
        self.values.append(value[0] if isinstance(value, tuple) else value)


def fit(defense, tmp_path, n=24, epochs=1, resume=None, **kwargs):
    fitted = trainer(tmp_path, max_epochs=epochs, **kwargs)
    arguments = {"ckpt_path": resume, "weights_only": True} if resume else {}
    fitted.fit(defense, loader(images(n)), loader(images(16, seed=1)), **arguments)
    return fitted


def test_a_pgdat_step_is_sgd_on_the_cross_entropy_of_pgds_images(tmp_path):
    batch, net = images(8), TinyNet()
    attack = PGD(eps=0.1, step_size=0.05, steps=2, init="zero")
    defense = build(PGDAT, net=TinyNet(), attack=attack, optimizer=lambda p: torch.optim.SGD(p, lr=0.5))
    trainer(tmp_path, max_epochs=1).fit(defense, loader(batch))

    net.train()
    x_adv = attack(net, batch.x, batch.y)
    nn.functional.cross_entropy(net(x_adv), batch.y).backward()
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(defense.net.get_parameter(name), parameter - 0.5 * parameter.grad)


@pytest.mark.parametrize("name", METHODS)
def test_a_batch_in_which_no_sample_counts_leaves_the_net_finite(tmp_path, name):
    method, batch = METHODS[name], images(24)
    batch = batch._replace(weight=(batch.index // 8 == 1).float())  # the second of three batches
    defense = build(method.cls, **method.arguments)
    run = trainer(tmp_path, max_epochs=1, callbacks=method.callbacks(), log_every_n_steps=1)
    run.fit(defense, indexed(batch))
    assert run.global_step >= 3
    assert all(bool(weight.isfinite().all()) for weight in defense.net.state_dict().values())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("weight", torch.ones(8, 1)),
        ("weight", torch.ones(8, dtype=torch.int64)),
        ("weight", -torch.ones(8)),
        ("weight", torch.full((8,), math.nan)),
        ("index", torch.arange(8.0)),
        ("index", torch.arange(8).view(8, 1)),
    ],
)
def test_a_batch_needs_one_index_and_one_weight_for_each_image(tmp_path, name, value):
    batch = images(8)._replace(**{name: value})
    with pytest.raises(ValueError, match=f"Batch.{name}"):
        trainer(tmp_path, max_epochs=1).fit(build(PGDAT), DataLoader([batch], batch_size=None))


class Stream(IterableDataset):
    """Six batches, and no length."""

    def __iter__(self):
        batch = images(48)
        return iter(zip(batch.x.split(8), batch.y.split(8), strict=True))


@pytest.mark.parametrize(
    ("name", "arguments", "callbacks"),
    [
        ("lr_scheduler", {"lr_scheduler": Linear(1, 0, 0, 1)}, []),
        ("momentum", {"momentum": Linear(1, 0, 0, 1)}, []),
        ("weight_perturbation.warm_up", {"weight_perturbation": AWP(warm_up=0.5)}, []),
        ("schedule", {}, [lambda: AttributeRamp("attack.eps", Linear(0, 0.1, 0, 1))]),
        ("decay", {}, [lambda: EMAWeights(Linear(0.9, 0.99, 0, 1))]),
    ],
)
def test_a_function_of_time_needs_the_length_of_an_epoch(tmp_path, name, arguments, callbacks):
    def fit_on_a_stream(**kwargs):
        recorder = Recorder("momentum" if name == "momentum" else "lr")
        run = trainer(tmp_path, max_epochs=1, callbacks=[recorder, *(make() for make in callbacks)], **kwargs)
        run.fit(build(PGDAT, **arguments), DataLoader(Stream(), batch_size=None))
        return recorder.values

    with pytest.raises(ValueError, match=f"^{name} .* no length: .*limit_train_batches"):
        fit_on_a_stream()
    values = fit_on_a_stream(limit_train_batches=4)
    assert len(values) == 4
    if name in ("lr_scheduler", "momentum"):
        assert values[-1] == pytest.approx(values[0] / 4)


def test_the_attack_sees_batch_norm_in_the_mode_that_is_asked_for(tmp_path):
    moved = {}
    for mode in ("eval", "train"):
        defense = build(PGDAT, attack_bn_mode=mode, optimizer=lambda p: torch.optim.SGD(p, lr=0.0))
        fit(defense, tmp_path, n=8)
        moved[mode] = int(defense.net.body[1].num_batches_tracked)
    assert moved == {"eval": 1, "train": 1 + ATTACK.steps}


def test_a_sample_of_weight_2_is_two_samples(tmp_path):
    batch, linear = images(8), nn.Sequential(nn.Flatten(), nn.Linear(192, CLASSES))
    weight = torch.tensor([2.0, 1, 0, 1, 1, 1, 1, 1])
    values = losses.ce(linear(batch.x), batch.y)
    repeated = torch.cat([values[:2], values[:1], values[3:]])
    torch.testing.assert_close(weighted_mean(values, weight), repeated.mean())


def test_training_metrics_are_the_epochs_means(tmp_path):
    batch = images(20)  # the last batch is shorter
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, CLASSES))
    defense = build(Natural, optimizer=lambda p: torch.optim.SGD(p, lr=0.0), net=net)
    fitted = fit(defense, tmp_path, n=20, log_every_n_steps=1)
    logits = defense.net(batch.x)
    metrics = fitted.callback_metrics
    assert metrics["train/loss"].item() == pytest.approx(losses.ce(logits, batch.y).mean().item(), rel=1e-5)
    assert metrics["train/acc/clean"].item() == pytest.approx((logits.argmax(1) == batch.y).float().mean().item())
    assert metrics["train/adversarial"].item() == 1


def test_metrics_are_logged_when_lightning_writes_them(tmp_path):
    from lightning.pytorch.loggers import CSVLogger

    logger = CSVLogger(tmp_path, name="run")
    fit(build(PGDAT), tmp_path, n=40, epochs=2, logger=logger, log_every_n_steps=2)
    lines = (tmp_path / "run" / "version_0" / "metrics.csv").read_text().splitlines()
    head = lines[0].split(",")
    rows = [dict(zip(head, line.split(","), strict=True)) for line in lines[1:]]
    # 5 batches per epoch: after batches 2, 4, 6 and 8 counted from 1, and at the end of both epochs
    losses_of = {step: {row["train/loss"] for row in rows if row["step"] == step} - {""} for step in "0123456789"}
    assert [len(losses_of[step]) for step in "0123456789"] == [0, 1, 0, 1, 1, 1, 0, 1, 0, 1]
    assert {"train/acc/robust", "train/lr", "val/acc/clean", "val/acc/robust"} <= set(head)


def test_validation_and_test_count_survivors_of_their_attacks(tmp_path):
    defense = build(PGDAT, val_attack=FGSM(eps=0.05), test_attacks={"fgsm": FGSM(eps=0.05), "pgd": ATTACK})
    fitted = fit(defense, tmp_path, epochs=3)
    fitted.test(defense, loader(images(16, seed=1)), verbose=False)
    result = defense.test_results["these weights"]
    assert list(result) == ["clean", "fgsm", "pgd", "worst"]
    batch = images(16, seed=1)
    x_adv = FGSM(eps=0.05)(defense.net.eval(), batch.x, batch.y)
    expected = (defense.net(x_adv).argmax(1) == batch.y).float().mean().item()
    assert result["fgsm"].value == expected
    assert result["worst"].value <= min(result["fgsm"].value, result["pgd"].value)
    logged = {key: value.item() for key, value in fitted.callback_metrics.items()}
    assert logged["test/acc/worst"] == pytest.approx(result["worst"].value)
    assert (logged["test/low/worst"], logged["test/high/worst"]) == pytest.approx(result["worst"].interval)
    assert logged["test/n"] == 16


def test_files_of_one_name_keep_their_own_results(tmp_path):
    defense, tested = build(PGDAT, val_attack=FGSM(eps=0.05), test_attacks={"fgsm": FGSM(eps=0.05)}), []
    fitted = fit(defense, tmp_path)
    for folder in ("a", "b"):
        fitted.save_checkpoint(tmp_path / folder / "best.ckpt")
    for folder in ("a", "b", "a"):
        file = str(tmp_path / folder / "best.ckpt")
        fitted.test(defense, loader(images(16, seed=1)), ckpt_path=file, verbose=False, weights_only=True)
        tested.append(list(defense.test_results))
    assert tested == [["best"], ["best", "b/best"], ["best", "b/best"]]


@pytest.mark.parametrize("inference_mode", [True, False])
def test_attacks_find_gradients_whether_or_not_the_trainer_uses_inference_mode(tmp_path, inference_mode):
    defense = build(Natural, test_attacks={"pgd": PGD(eps=1, step_size=0.5, steps=3)})
    trainer(tmp_path, inference_mode=inference_mode).test(defense, loader(images(16)), verbose=False)
    assert (
        defense.test_results["these weights"]["pgd"].value < defense.test_results["these weights"]["clean"].value + 1e-9
    )


def test_by_default_the_best_checkpoint_is_chosen_by_seven_steps_of_a_seventh_from_the_image():
    assert build(PGDAT).val_attacks == {"robust": PGD(eps=0.1, step_size=1 / 7 * 0.1, steps=7, init="zero")}


def test_the_learning_rate_follows_its_schedule_in_fractional_epochs(tmp_path):
    recorder = Recorder()
    defense = build(Natural, optimizer=lambda p: torch.optim.SGD(p, lr=0.4), lr_scheduler=Cyclic(up=1, down=1))
    fit(defense, tmp_path, n=32, epochs=2, callbacks=[recorder])
    assert recorder.values == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.3, 0.2, 0.1])


@pytest.mark.parametrize("optimizer", [sgd, lambda params: torch.optim.Adam(params, lr=1e-3)])
def test_the_momentum_follows_its_schedule(tmp_path, optimizer):
    recorder = Recorder("momentum" if optimizer is sgd else "betas")
    defense = build(Natural, optimizer=optimizer, momentum=PiecewiseLinear(times=[0, 1], values=[0.9, 0.8]))
    fit(defense, tmp_path, n=32, callbacks=[recorder])
    assert recorder.values == pytest.approx([0.9, 0.875, 0.85, 0.825])


def test_schedulers_of_torch_step_by_batch_or_by_epoch(tmp_path):
    def step(optimizer):
        return torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.1)

    seen = {}
    for interval in ("step", "epoch"):
        recorder = Recorder()
        defense = build(
            Natural, optimizer=lambda p: torch.optim.SGD(p, lr=1.0), lr_scheduler=step, lr_interval=interval
        )
        fit(defense, tmp_path, n=16, epochs=2, callbacks=[recorder])
        seen[interval] = recorder.values
    assert seen["step"] == pytest.approx([1, 0.1, 0.01, 0.001])  # the callback sees the rate that the batch had
    assert seen["epoch"] == pytest.approx([1, 1, 0.1, 0.1])


def test_a_plateau_scheduler_gets_the_metric_that_it_monitors(tmp_path):
    from lightning.pytorch.cli import ReduceLROnPlateau

    recorder = Recorder()
    defense = build(
        Natural,
        optimizer=lambda p: torch.optim.SGD(p, lr=1e-6),
        lr_scheduler=lambda o: ReduceLROnPlateau(o, monitor="val/acc/clean", patience=0, factor=0.5, mode="max"),
    )
    fit(defense, tmp_path, n=8, epochs=3, callbacks=[recorder])
    assert recorder.values == pytest.approx([1e-6, 1e-6, 0.5e-6])


def test_gradients_are_clipped_to_the_norm(tmp_path):
    defense = build(PGDAT, net=TinyNet(), optimizer=lambda p: torch.optim.SGD(p, lr=1.0), gradient_clip_val=1e-3)
    before = [parameter.clone() for parameter in defense.net.parameters()]
    fit(defense, tmp_path, n=8)
    moved = torch.cat([(a - b).flatten() for a, b in zip(defense.net.parameters(), before, strict=True)])
    assert moved.norm().item() == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize("fused", [False, True])
def test_scaled_gradients_are_clipped_to_their_own_norm(tmp_path, fused):
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    defense = build(
        Natural, net=TinyNet(), optimizer=lambda p: torch.optim.SGD(p, lr=1.0, fused=fused), gradient_clip_val=0.1
    )
    before = [parameter.clone() for parameter in defense.net.parameters()]
    fit(defense, tmp_path, n=8, plugins=[MixedPrecision("16-mixed", "cpu", scaler)])
    moved = torch.cat([(a - b).flatten() for a, b in zip(defense.net.parameters(), before, strict=True)])
    assert moved.norm().item() == pytest.approx(0.1, rel=1e-3)


def test_images_are_turned_into_channels_last(tmp_path):
    seen = []
    defense = build(PGDAT, channels_last=True)
    defense.net.register_forward_pre_hook(
        lambda net, args: seen.append(args[0].is_contiguous(memory_format=torch.channels_last))
    )
    fit(defense, tmp_path, n=8)
    assert all(seen)


def test_a_nan_loss_stops_the_run_before_anything_is_saved(tmp_path):
    defense = build(Natural, optimizer=lambda p: torch.optim.SGD(p, lr=math.inf))
    with pytest.raises(FloatingPointError, match=r"loss .*nan .*epoch 0 .*batch 2"):
        fit(defense, tmp_path)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"x": images().x * 2 - 1}, "^pixels .* -0.9999 "),
        ({"x": images().x * 255}, "^pixels .* 255"),
        ({"x": (images().x * 255).byte()}, r"images .*torch\.uint8"),
        ({"y": images().y + 3}, "^labels .* 3 to 6.*num_classes=4"),
        ({"x": images().x[:, :1]}, r"^the net \(TinyNet\) .*1x8x8 \(RuntimeError: .*\)"),
    ],
)
def test_images_that_would_make_every_number_wrong_are_refused_before_training(tmp_path, change, named):
    defense = build(PGDAT)
    before = defense.net.head.weight.clone()
    with pytest.raises(ValueError, match=named):
        trainer(tmp_path, max_epochs=1).fit(defense, loader(images()._replace(**change)))
    assert torch.equal(before, defense.net.head.weight)


@pytest.mark.parametrize(
    ("net", "found"),
    [
        (nn.Sequential(TinyNet(), nn.Softmax(dim=1)), "softmax"),
        (nn.Sequential(TinyNet(), nn.Linear(4, 7)), r"\(2, 7\) .*num_classes=4"),
        (TinyNet().body[:3], r"\(2, 8, 4, 4\) .*num_classes=4"),
    ],
)
def test_nets_that_return_no_logits_of_these_classes_are_refused(tmp_path, net, found):
    with pytest.raises(ValueError, match=f"^the net .*{found}"):
        fit(build(PGDAT, net=net), tmp_path)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"num_classes": 1}, "num_classes="),
        ({"attack_bn_mode": "both"}, "attack_bn_mode="),
        ({"gradient_clip_val": 0}, "gradient_clip_val="),
        ({"lr_interval": "batch"}, "lr_interval="),
        ({"attack": PGD(targeted=True)}, "attack .*targeted"),
        ({"test_attacks": {"a": PGD(targeted=True)}}, "a .*targeted"),
        ({"attack": PGD(0.1, step_size=0)}, "step_size=0 .*attack"),
        ({"test_attacks": {"worst": PGD()}}, 'test_attacks .*"worst"'),
    ],
)
def test_arguments_that_make_no_sense_are_refused(arguments, named):
    with pytest.raises(ValueError, match=f"^{named}"):
        build(PGDAT, **arguments)


@pytest.mark.parametrize(
    ("arguments", "interval", "error"),
    [
        ({}, "epoch", 'mode="min" .* val/acc/robust'),  # torch's own default
        ({"monitor": "val/acc/clean"}, "epoch", 'mode="min" .* val/acc/clean'),
        ({"monitor": "train/loss", "mode": "max"}, "epoch", 'mode="max" .* train/loss'),
        ({"mode": "max"}, "step", "lr_interval="),
    ],
)
def test_a_plateau_scheduler_that_would_work_against_the_training_is_refused(arguments, interval, error, tmp_path):
    from lightning.pytorch.cli import ReduceLROnPlateau

    kind = ReduceLROnPlateau if "monitor" in arguments else torch.optim.lr_scheduler.ReduceLROnPlateau
    defense = build(Natural, lr_scheduler=lambda optimizer: kind(optimizer, **arguments), lr_interval=interval)
    with pytest.raises(ValueError, match=error):
        fit(defense, tmp_path)


def test_a_schedule_that_turns_the_rate_negative_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"^lr_scheduler "):
        fit(build(Natural, lr_scheduler=Linear(1, -1, 0, 1)), tmp_path)


def test_the_state_of_another_optimizer_is_refused(tmp_path):
    fit(build(Natural), tmp_path).save_checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match=r"^the checkpoint .* SGD, .* Adam"):
        fit(build(Natural, optimizer=torch.optim.Adam), tmp_path, epochs=2, resume=tmp_path / "a.ckpt")


def test_a_training_that_continues_from_averages_without_keeping_any_warns():
    checkpoint = {"state_dict": {}, "current_model_state": {}}
    run = SimpleNamespace(callbacks=[], state=SimpleNamespace(fn="fit"))
    with pytest.warns(UserWarning, match="EMAWeights"):
        warn_of_averages(checkpoint, run)
    run.callbacks = [EMAWeights(0.5)]
    warn_of_averages(checkpoint, run)  # a warning would be an error
    run.callbacks, run.state.fn = [], "test"
    warn_of_averages(checkpoint, run)


def test_another_bound_in_training_than_in_evaluation_is_reported(tmp_path, caplog):
    with caplog.at_level("INFO"):
        fit(
            build(Natural, attack=PGD(0.05), val_attack=PGD(0.1), test_attacks={"a": PGD(0.1), "b": PGD(0.05)}),
            tmp_path,
        )
    said = [record.getMessage() for record in caplog.records if "eps=0.05" in record.getMessage()]
    (line,) = said
    assert "val_attack has 0.1:" in line


def test_the_same_test_attack_twice_is_refused():
    with pytest.raises(ValueError, match=r"^test_attacks a and b "):
        build(Natural, test_attacks={"a": PGD(0.1), "b": PGD(0.1)})


def test_a_momentum_schedule_needs_an_optimizer_with_momentum(tmp_path):
    defense = build(Natural, optimizer=torch.optim.Adagrad, momentum=MultiStep(milestones=[1], factor=0.5))
    with pytest.raises(ValueError, match=r"^momentum .*Adagrad"):
        fit(defense, tmp_path)


def test_batches_of_other_loaders_weigh_1_and_have_no_index():
    x, y, _, _ = images(4)
    batch = as_batch((x, y))
    assert batch.weight.tolist() == [1, 1, 1, 1]
    assert batch.index.tolist() == [-1, -1, -1, -1]
    assert as_batch(batch) is batch


@pytest.mark.parametrize("batch", [{"image": torch.zeros(1)}, torch.zeros(1), (torch.zeros(1), "label")])
def test_other_batches_are_refused(batch):
    with pytest.raises(TypeError, match=f"Batch .*{type(batch).__name__}"):
        as_batch(batch)


def test_a_method_is_two_short_verbs(tmp_path):
    class MixedAT(Defense):
        def loss(self, batch: Batch, x_adv: torch.Tensor) -> torch.Tensor:
            return 0.5 * super().loss(batch, x_adv) + 0.5 * self.natural_loss(batch)

    fitted = fit(build(MixedAT), tmp_path)
    assert {"train/acc/robust", "train/acc/clean"} <= fitted.callback_metrics.keys()


def test_predict_gives_probabilities(tmp_path):
    defense = build(Natural)
    (first, *_) = trainer(tmp_path).predict(defense, loader(images(8)))
    assert first.shape == (8, CLASSES)
    assert torch.allclose(first.sum(1), torch.ones(8))


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    defense = build(Natural)
    fitted = fit(defense, tmp_path)
    fitted.save_checkpoint(tmp_path / "a.ckpt")
    with torch.no_grad():
        defense.net.head.bias.fill_(math.nan)
    with pytest.raises(FloatingPointError, match=r"^net\.head\.bias "):
        fitted.save_checkpoint(tmp_path / "a.ckpt")
    assert torch.load(tmp_path / "a.ckpt", weights_only=True)["state_dict"]["net.head.bias"].isfinite().all()


def test_a_test_runs_in_float32_whatever_the_precision_of_the_training(tmp_path):
    seen = []
    defense = build(Natural)
    defense.net.register_forward_hook(lambda net, inputs, logits: seen.append((net.training, logits.dtype)))
    fitted = fit(defense, tmp_path, precision="bf16-mixed")
    assert (True, torch.bfloat16) in seen
    seen.clear()
    fitted.test(defense, loader(images(16)), verbose=False)
    assert {dtype for _, dtype in seen[1:]} == {torch.float32}  # the first is the check of the first batch


def test_an_attacks_draws_do_not_depend_on_which_other_attacks_are_there(tmp_path):
    net = TinyNet()
    results = []
    for others in ({}, {"first": PGD(eps=0.02, steps=3)}):
        attacks = {**others, "random": PGD(eps=0.3, steps=0)}
        defense = build(Natural, net=net, test_attacks=attacks, alarm_images=0)
        crafted = []
        defense.net.register_forward_pre_hook(lambda net, args, crafted=crafted: crafted.append(args[0].clone()))
        trainer(tmp_path).test(defense, loader(images(16)), verbose=False)
        results.append(crafted[-1])
    assert torch.equal(*results)


# A Defense beside its training: called like a net, and summarised.


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("attack", [PGD(steps=2), FGSM()])
def test_an_attack_takes_a_defense_as_it_takes_its_net(attack, training):
    defense = build(PGDAT).train(training)
    x, y = images()[:2]
    torch.manual_seed(0)
    of_net = attack(copy.deepcopy(defense).net, x, y)
    torch.manual_seed(0)
    assert torch.equal(attack(defense, x, y), of_net)
    assert not torch.equal(of_net, x)
    assert torch.equal(defense(x), copy.deepcopy(defense).net(x)) or training  # BatchNorm has moved on
    assert [name for name, value in defense.named_parameters() if value.grad is not None] == []
    assert {module.training for module in defense.modules()} == {training}
    assert defense.metrics.sums == {}
    assert not any(survivors.update_called for survivors in defense.survivors.values())


@pytest.mark.parametrize("summary", [ModelSummary, RichModelSummary])
def test_the_summary_lists_the_net_and_nothing_that_nobody_has_counted(summary, tmp_path, caplog, capsys):
    with caplog.at_level("INFO"):
        fit(build(PGDAT), tmp_path, callbacks=[summary()])
    said = "\n".join(caplog.messages) + capsys.readouterr().out
    table = said[said.index("  | Name") :].splitlines()[:6]
    cells = [[cell.strip() for cell in line.split(" | ")[1:4]] for line in (table[0], table[2])]
    assert cells == [["Name", "Type", "Params"], ["net", "TinyNet", "756"]]
    assert table[4].startswith("756 of 756 parameters trainable, ")
    assert not [word for word in ("FLOPs", "urvivors") if word in said]


def test_the_summary_keeps_flops_that_are_counted(tmp_path, capsys, caplog):
    defense = build(PGDAT)
    defense.example_input_array = images(1).x
    with caplog.at_level("INFO"):
        fit(defense, tmp_path, callbacks=[ModelSummary()])
    assert "FLOPs" in "\n".join(caplog.messages) + capsys.readouterr().out
