"""Refusals of a first batch that the tests of a Defense and of the adapter do not reach."""

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import nn

from lit_robust import losses
from lit_robust.attacks import PGD
from lit_robust.callbacks import AdversarialTraining, DelayedStart
from lit_robust.defenses import PGDAT, TRADES, Defense, FreeAT
from lit_robust.first_batch import check_first_batch
from tests.methods import ONE_STEP, build
from tests.tiny import CLASSES, TinyNet, images, loader, trainer


def test_a_batch_that_fits_leaves_no_trace():
    net = TinyNet().train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    check_first_batch(net, images(), CLASSES)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(module.training for module in net.modules())


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"y": images().y[:3]}, r"labels of shape \(3,\) "),
        ({"x": images().x / 0 * 0}, "^pixels .*nan"),
        ({"x": images().x * (1 + 1.2 / 255)}, r"^pixels .* 1\.00\d+,"),
    ],
)
def test_batches_that_make_no_sense_are_refused(change, named):
    with pytest.raises(ValueError, match=named):
        check_first_batch(TinyNet(), images()._replace(**change), CLASSES)


def test_a_net_that_returns_no_tensor_is_refused():
    class Twice(TinyNet):
        def forward(self, x):
            return [super().forward(x)] * 2

    with pytest.raises(ValueError, match=f"^the net .*list .*num_classes={CLASSES}"):
        check_first_batch(Twice(), images(), CLASSES)


class ProbabilitiesInTraining(TinyNet):
    """Logits in eval mode, which the check of the first batch reads."""

    def forward(self, x):
        logits = super().forward(x)
        return logits.softmax(dim=1) if self.training else logits


class OwnLoss(Defense):
    """Leaves nothing in ``seen``."""

    def loss(self, batch, x_adv):
        return losses.ce(self.net(x_adv), batch.y)


IN_TRAIN_MODE = "^the net returns probabilities .*train mode"


@pytest.mark.parametrize(
    ("method", "arguments", "callbacks"),
    [
        (PGDAT, {}, []),
        (PGDAT, {"compile": True}, []),
        (PGDAT, {"attack_bn_mode": "train"}, []),
        (PGDAT, {}, [DelayedStart(at_epoch=1)]),
        (TRADES, {}, []),
        (FreeAT, {"attack": ONE_STEP, "m": 2}, []),
        (OwnLoss, {}, []),
    ],
)
def test_probabilities_in_train_mode_are_refused_before_the_first_step(method, arguments, callbacks, tmp_path):
    module = build(method, net=ProbabilitiesInTraining(), **arguments)
    before = {name: weight.clone() for name, weight in module.named_parameters()}
    run = trainer(tmp_path, callbacks=callbacks, max_epochs=2)
    with pytest.raises(ValueError, match=IN_TRAIN_MODE):
        run.fit(module, loader(images(8)), loader(images(8)))
    assert all(torch.equal(weight, before[name]) for name, weight in module.named_parameters())


def test_the_check_of_a_compiled_net_moves_nothing(tmp_path):
    """Dropout and BatchNorm end as in a fit of the uncompiled net, whose check runs no forward."""
    states = []
    for compiled in (False, True):
        module = build(PGDAT, net=nn.Sequential(TinyNet(), nn.Dropout(0.5)))
        if compiled:
            module.net.compile(backend="eager")
            module.compiled = True
        trainer(tmp_path, max_epochs=1).fit(module, loader(images(16)))
        states.append(module.net.state_dict())
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=0, atol=1e-5)


def test_a_users_net_with_probabilities_in_train_mode_is_not_attacked_in_it(tmp_path):
    class Users(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = ProbabilitiesInTraining()

        def training_step(self, batch, batch_idx):
            return nn.functional.nll_loss(self.model(batch[0]).log(), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    def fit(mode):
        callback = AdversarialTraining(PGD(0.1, steps=1), net="model", attack_bn_mode=mode)
        trainer(tmp_path, callbacks=[callback], max_epochs=1).fit(Users(), loader(images(8)))

    fit("eval")
    with pytest.raises(ValueError, match=IN_TRAIN_MODE):
        fit("train")


def test_too_little_memory_is_no_fault_of_the_images():
    class Huge(nn.Module):
        def forward(self, x):
            raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        check_first_batch(Huge(), images(), CLASSES)


class OneLogitInTraining(TinyNet):
    def forward(self, x):
        logits = super().forward(x)
        return logits[:, 0] if self.training else logits


class TwoRows(TinyNet):
    """Returns a row for each of two images, which the check of the first batch gives it."""

    def forward(self, x):
        return super().forward(x)[:2]


@pytest.mark.parametrize("net", [OneLogitInTraining, TwoRows], ids=lambda net: net.__name__)
def test_a_net_that_returns_no_row_for_each_image_later_is_refused(net, tmp_path):
    with pytest.raises(ValueError, match=rf"^the net \({net.__name__}\) returns .* 8 images"):
        trainer(tmp_path, max_epochs=1).fit(build(PGDAT, net=net()), loader(images(8)), loader(images(8)))


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int64])
def test_logits_that_are_no_floats_are_refused(dtype):
    class Other(TinyNet):
        def forward(self, x):
            return super().forward(x).to(dtype)

    with pytest.raises(ValueError, match=f"^the net returns .*{dtype}, "):
        check_first_batch(Other(), images(), CLASSES)


class Broadcasts(nn.Module):
    """A net for three channels, whose mean repeats a single one."""

    def __init__(self, first):
        super().__init__()
        self.register_buffer("mean", torch.zeros(1, 3, 1, 1))
        self.layers = nn.Sequential(*first, nn.Flatten(), nn.LazyLinear(CLASSES))

    def forward(self, x):
        return self.layers(x - self.mean)


@pytest.mark.parametrize("first", [[nn.Conv2d(3, 2, 3)], [nn.Flatten(), nn.Linear(192, 5)]], ids=["conv", "linear"])
def test_a_mean_that_repeats_the_only_channel_is_told_of(first):
    net, grey = Broadcasts(first), images().x[:, :1]
    net(grey)
    with pytest.warns(UserWarning, match=r"\(Broadcasts\) .* 1 channel .* 3 input channels"):
        check_first_batch(net, images()._replace(x=grey), CLASSES)


@pytest.mark.parametrize("width", [1, 3])
def test_a_net_built_for_the_channels_is_told_nothing(width, recwarn):
    grey = images().x[:, :1]
    net = nn.Sequential(nn.Conv2d(width, 2, 3), nn.Flatten(), nn.Linear(72, CLASSES))
    check_first_batch(net, images()._replace(x=grey.expand(-1, width, -1, -1)), CLASSES)
    assert not recwarn.list


LATER = {
    "pixels above 1": lambda x, y: (x * 255, y),
    "pixels below 0": lambda x, y: (x - 1, y),
    "NaN": lambda x, y: (x * torch.nan, y),
    "labels above the classes": lambda x, y: (x, y + CLASSES),
    "labels below 0": lambda x, y: (x, y - CLASSES),
}


@pytest.mark.parametrize("fault", LATER)
def test_a_later_batch_of_a_prediction_is_checked(fault, tmp_path):
    batch = images(16)
    x, y = LATER[fault](batch.x[8:], batch.y[8:])
    later = batch._replace(x=torch.cat([batch.x[:8], x]), y=torch.cat([batch.y[:8], y]))
    with pytest.raises(ValueError, match=f"^{'labels' if 'labels' in fault else 'pixels'} of a later batch"):
        trainer(tmp_path).predict(build(PGDAT), loader(later))
