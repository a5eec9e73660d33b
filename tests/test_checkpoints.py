"""From a checkpoint to a plain net: the logits are the same, however the checkpoint was written."""

import os

import pytest
import torch
import torchvision
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from lit_robust import load_net
from lit_robust.attacks import PGD
from lit_robust.batch import Batch
from lit_robust.callbacks import EMAWeights
from lit_robust.checkpoint_files import read_checkpoint
from lit_robust.data import DigitsDataModule
from lit_robust.defenses import PGDAT
from lit_robust.nets import lenet_plus
from lit_robust.runs import checkpoints_of
from tests.front_door import lit
from tests.tiny import CLASSES, TinyNet, images, loader, trainer


def own_net(num_classes: int = 10, width: int = 2) -> nn.Sequential:
    """A net of the user's own."""
    return nn.Sequential(
        nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.Flatten(), nn.Linear(36 * width, num_classes)
    )


class ColourDigits(DigitsDataModule):
    """The digits in three equal colours."""

    image_shape = (3, 8, 8)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        return batch._replace(x=batch.x.expand(-1, 3, -1, -1))


def saved(net, path, classes=CLASSES, batch=None, **kwargs) -> nn.Module:
    """Train a net for an epoch in Python, save the checkpoint, and return the net."""
    method = PGDAT(net, classes, PGD(eps=0.1, step_size=0.1, steps=1))
    fitted = trainer(path.parent, max_epochs=1, **kwargs)
    fitted.fit(method, loader(batch or images()))
    fitted.save_checkpoint(path)
    return method.net.eval()


def weights_of(checkpoint) -> dict[str, torch.Tensor]:
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    return {key.removeprefix("net."): value for key, value in state.items() if key.startswith("net.")}


def holds(net: nn.Module, weights: dict[str, torch.Tensor]) -> bool:
    return net.state_dict().keys() == weights.keys() and all(
        torch.equal(value, weights[key]) for key, value in net.state_dict().items()
    )


def test_a_net_trained_by_the_command_line_comes_back(empty):
    lit("fit")
    path = empty / "runs/tiny/version_0/checkpoints/last.ckpt"
    net = load_net(path)
    assert holds(net, weights_of(path))
    assert net(torch.rand(3, 1, 8, 8)).shape == (3, 10)


def test_a_net_of_the_users_own_must_be_given_because_naming_it_would_run_its_module(empty):
    lit("fit", "--model.net", "tests.test_checkpoints.own_net", "--model.net.width", 3)
    path = empty / "runs/tiny/version_0/checkpoints/last.ckpt"
    with pytest.raises(ValueError, match=r"last\.ckpt: .*own_net"):
        load_net(path)
    assert holds(load_net(str(path), own_net(width=3)), weights_of(path))


def test_torchvisions_nets_train_by_dotted_path(empty):
    lit("fit", "--model.net", "torchvision.models.resnet18", "--model.net.num_classes", 10,
        "--data", "tests.test_checkpoints.ColourDigits", "--data.train_size", 8, "--data.val_size", 8)  # fmt: skip
    path = empty / "runs/tiny/version_0/checkpoints/last.ckpt"
    net = torchvision.models.resnet18(num_classes=10)
    assert holds(load_net(path, net), weights_of(path))


def test_our_nets_come_back_from_python_with_all_arguments(tmp_path):
    net = lenet_plus(CLASSES, in_channels=3, image_size=8, mean=(0.1, 0.2, 0.3), std=(1.0, 0.5, 2.0))
    trained = saved(net, tmp_path / "a.ckpt")
    x = images().x
    assert torch.equal(load_net(tmp_path / "a.ckpt")(x), trained(x))


def test_a_net_of_ones_own_comes_back_when_it_is_given(tmp_path):
    trained = saved(TinyNet(), tmp_path / "a.ckpt")
    x, other = images().x, TinyNet(seed=1)
    assert load_net(tmp_path / "a.ckpt", net=other) is other
    assert torch.equal(other(x), trained(x))
    with pytest.raises(ValueError, match=r"a\.ckpt: .*net="):
        load_net(tmp_path / "a.ckpt")


def test_a_file_that_is_not_there_is_refused():
    with pytest.raises(FileNotFoundError, match=r"nowhere\.ckpt"):
        load_net("nowhere.ckpt")


def test_another_net_is_refused(tmp_path):
    saved(TinyNet(), tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match=r"a\.ckpt: .* body\.0\.weight"):
        load_net(tmp_path / "a.ckpt", net=TinyNet(width=4))


def test_the_net_is_ready_for_evaluation(tmp_path):
    saved(TinyNet(), tmp_path / "a.ckpt")
    net = load_net(tmp_path / "a.ckpt", net=TinyNet())
    assert not any(module.training for module in net.modules())
    assert not any(parameter.requires_grad or parameter.is_cuda for parameter in net.parameters())


def test_averaged_weights_are_what_comes_back(tmp_path):
    keep = ModelCheckpoint(tmp_path, filename="kept")
    trained = saved(TinyNet(), tmp_path / "a.ckpt", enable_checkpointing=True, callbacks=[EMAWeights(decay=0.5), keep])
    net = load_net(tmp_path / "kept.ckpt", net=TinyNet())
    x, live = images().x, torch.load(tmp_path / "kept.ckpt", weights_only=True)["current_model_state"]
    assert torch.equal(net(x), trained(x))  # fit leaves the average in the module
    assert not torch.equal(net.head.weight, live["net.head.weight"])


def test_a_checkpoint_holds_nothing_but_tensors_and_plain_values(empty):
    lit("fit")
    saved(TinyNet(), empty / "a.ckpt")
    for path in (*checkpoints_of(empty / "runs").values(), empty / "a.ckpt"):
        assert read_checkpoint(path).keys() >= {"state_dict", "lit_robust", "epoch"}


def test_any_lightning_module_with_a_net_of_ours_may_have_written_it(tmp_path):
    class Mine(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = TinyNet()

    torch.save({"state_dict": Mine().state_dict()}, tmp_path / "mine.ckpt")
    x = images().x
    assert torch.equal(load_net(tmp_path / "mine.ckpt", net=TinyNet(seed=1))(x), TinyNet().eval()(x))


def test_the_newest_run_below_a_folder_is_found(tmp_path):
    assert checkpoints_of(tmp_path / "nothing") == {}
    for age, name in enumerate(("old", "new")):
        (tmp_path / name).mkdir()
        for which in ("best", "last"):
            path = tmp_path / name / f"{which}.ckpt"
            path.touch()
            os.utime(path, (age, age))
    assert checkpoints_of(tmp_path) == {which: tmp_path / "new" / f"{which}.ckpt" for which in ("last", "best")}
    assert list(checkpoints_of(tmp_path)) == ["last", "best"]


def written(folder, **steps):
    """Checkpoints in the order of their names, one second apart, each with its step; None for a broken one."""
    for age, (name, step) in enumerate(steps.items()):
        path = folder / f"{name}.ckpt"
        torch.save({"state_dict": {}, "global_step": step}, path)
        if step is None:
            path.write_bytes(path.read_bytes()[:99])
        os.utime(path, (age, age))


@pytest.mark.parametrize(
    ("steps", "last"),
    [
        ({"epoch1": 4, "last": 8, "best": 8}, "last"),
        ({"last": 5, "epoch1": 8}, "epoch1"),
        ({"last": 5, "epoch1": 8, "best": 8}, "best"),
        ({"last": 5, "last-v1": 8}, "last-v1"),
        ({"last": 9, "epoch1": 8}, "epoch1"),  # the run was resumed from an earlier one
        ({"last": 5, "epoch1": 8, "epoch2": None}, "epoch1"),
        ({"last": None, "epoch1": 8}, "last"),  # `read_last` says that it is broken
        ({"epoch1": 4, "epoch2": 8, "best": 8}, "epoch2"),
        ({"best": 8}, None),
    ],
)
def test_the_last_checkpoint_is_the_newest_whole_one(steps, last, tmp_path):
    written(tmp_path, **steps)
    assert checkpoints_of(tmp_path).get("last") == (tmp_path / f"{last}.ckpt" if last else None)


def test_what_is_no_file_is_no_checkpoint(tmp_path):
    (tmp_path / "gone.ckpt").symlink_to(tmp_path / "nothing")
    (tmp_path / "shards.ckpt").mkdir()
    assert checkpoints_of(tmp_path) == {}
    written(tmp_path, last=5)
    assert checkpoints_of(tmp_path) == {"last": tmp_path / "last.ckpt"}
