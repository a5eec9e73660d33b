"""Nets of torchvision and timm by their names."""

import pytest
import torch
from torch import nn
from torchvision import models

from lit_robust import load_net, nets
from lit_robust.attacks import PGD
from lit_robust.defenses import PGDAT
from lit_robust.nets.net import IMAGENET_MEAN, IMAGENET_STD
from tests.tiny import trainer

X = torch.rand(2, 3, 64, 64)


def normalised(x, mean=IMAGENET_MEAN, std=IMAGENET_STD):
    return (x - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)


def same_weights(net, raw):
    """Give the library's own net the weights of ours, by their order within body and head."""
    state = raw.state_dict()
    mine = {key.removeprefix("body."): value for key, value in net.state_dict().items()}
    state.update({key: mine[key] if key in mine else mine[f"head.{key.rpartition('.')[2]}"] for key in state})
    raw.load_state_dict(state)
    return raw.eval()


@pytest.mark.parametrize(
    "name", ["resnet18", "shufflenet_v2_x0_5", "mnasnet0_5", "squeezenet1_1", "regnet_x_400mf", "mobilenet_v3_small"]
)
def test_a_net_of_torchvision_is_torchvisions_on_normalised_images(name):
    net = nets.torchvision_net(name, num_classes=7).eval()
    raw = same_weights(net, models.get_model(name, weights=None, num_classes=7))
    torch.testing.assert_close(net(X), raw(normalised(X)))


def test_every_net_of_torchvision_but_squeezenet_has_a_head():
    for name in models.list_models(module=models):
        if any(family in name for family in ("densenet201", "efficientnet_b7", "_v2_l", "128gf", "vit_h")):
            continue  # as their smaller relatives, and slow
        with torch.device("meta"):
            net = nets.torchvision_net(name, num_classes=7)
        assert isinstance(net, nets.Net) is not name.startswith("squeezenet"), name


@pytest.mark.usefixtures("timm")
def test_a_net_of_timm_normalises_by_its_weights():
    import timm

    net = nets.timm_net("resnet18", num_classes=7).eval()
    raw = same_weights(net, timm.create_model("resnet18", num_classes=7))
    torch.testing.assert_close(net(X), raw(normalised(X, raw.pretrained_cfg["mean"], raw.pretrained_cfg["std"])))
    assert torch.equal(net(X), net.head(net.features(X)))


@pytest.mark.usefixtures("timm")
def test_where_two_heads_make_the_logits_there_is_no_head():
    net = nets.timm_net("levit_128s", num_classes=7)
    assert not hasattr(net, "head")
    assert not hasattr(net, "features")
    assert net.built_by["init_args"]["num_classes"] == 7


def test_the_statistics_are_those_of_the_chosen_weights():
    with torch.device("meta"):
        net = nets.torchvision_net("vgg16", weights="IMAGENET1K_FEATURES", num_classes=3, mean=(0.0, 0.0, 0.0))
    assert net.std.shape == (1, 3, 1, 1)
    small = nets.torchvision_net("shufflenet_v2_x0_5", mean=None, std=None)
    assert small.mean is None
    preset = models.VGG16_Weights.IMAGENET1K_FEATURES.transforms()
    assert tuple(preset.std) != IMAGENET_STD


@pytest.fixture
def downloads(monkeypatch):
    """The weights that torchvision would download, random ones of a thousand classes."""
    asked = []
    trained = models.shufflenet_v2_x0_5(weights=None).state_dict()

    def load(url, *args, **kwargs):
        asked.append(url)
        return trained

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", load)
    return asked, trained


def test_a_pretrained_net_has_the_trained_weights_and_a_new_head(downloads):
    asked, trained = downloads
    net = nets.torchvision_net("shufflenet_v2_x0_5", pretrained=True, num_classes=5)
    assert len(asked) == 1
    assert torch.equal(net.body.conv1[0].weight, trained["conv1.0.weight"])
    assert net.head.weight.shape == (5, 1024)
    assert net.built_by["init_args"]["pretrained"] is False
    whole = nets.torchvision_net("shufflenet_v2_x0_5", pretrained=True, num_classes=1000)
    assert torch.equal(whole.head.weight, trained["fc.weight"])


def test_without_a_network_pretrained_is_one_sentence(monkeypatch):
    def load(*args, **kwargs):
        raise OSError("<urlopen error\n[Errno -2] Name or service not known>")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", load)
    with pytest.raises(OSError, match=r"^pretrained=True: .*DEFAULT .*resnet18") as told:
        nets.torchvision_net("resnet18", pretrained=True)
    assert "\n" not in str(told.value)
    assert "--model.net.pretrained false" in str(told.value)
    assert "resnet18-f37072fd.pth" in str(told.value)


@pytest.mark.usefixtures("timm")
def test_without_a_network_timms_pretrained_is_one_sentence(monkeypatch):
    import timm

    def fail(*args, **kwargs):
        raise ConnectionError("no network here")

    monkeypatch.setattr(timm, "create_model", fail)
    with pytest.raises(OSError, match=r"^pretrained=True: .*resnet18 .*\(Connection"):
        nets.timm_net("resnet18", pretrained=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "resnet19"}, r'^name="resnet19" .*torchvision.* resnet18'),
        ({"name": "http://a/b"}, '^name="http://a/b" '),
        ({"weights": "IMAGENET1K_V9"}, '^weights="IMAGENET1K_V9" .*resnet18'),
        ({"mean": "none"}, '^mean="none" '),
        ({"num_classes": None}, "num_classes=None "),
    ],
)
def test_what_makes_no_net_of_torchvision_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        nets.torchvision_net(**arguments)


@pytest.mark.usefixtures("timm")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "resnet19"}, '^name="resnet19" .*timm.* resnet18'),
        ({"name": "hf-hub:someone/net"}, '^name="hf-hub:someone/net" '),
        ({"name": "local-dir:/tmp"}, '^name="local-dir:/tmp" '),
        ({"name": "../net"}, r'^name="\.\./net" '),
        ({"name": "resnet18.none"}, r'^name="resnet18\.none" .*\(Invalid pretrained tag'),
        ({"image_size": 64}, "^image_size=64: resnet18 "),
    ],
)
def test_what_makes_no_net_of_timm_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        nets.timm_net(**arguments)


def test_without_timm_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(ImportError, match=r'pip install "lit-robust\[timm\]"'):
        nets.timm_net()


def saved(net, folder):
    """A checkpoint of a method with this net."""
    method = PGDAT(net, 4, PGD(eps=0.1, step_size=0.1, steps=1))
    fit = trainer(folder, max_epochs=0)
    fit.fit(method, torch.utils.data.DataLoader([(X[0], 1)]))
    fit.save_checkpoint(folder / "a.ckpt")
    return folder / "a.ckpt"


@pytest.mark.parametrize("name", ["shufflenet_v2_x0_5", "mnasnet0_5", "squeezenet1_1", "regnet_x_400mf"])
def test_a_net_of_torchvision_is_loaded_from_a_checkpoint(name, tmp_path):
    net = nets.torchvision_net(name, num_classes=4, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    again = load_net(saved(net, tmp_path))
    assert torch.equal(again(X), net.eval()(X))


@pytest.mark.usefixtures("timm")
@pytest.mark.parametrize("name", ["resnet18", "levit_128s"])
def test_a_net_of_timm_is_loaded_from_a_checkpoint(name, tmp_path):
    net = nets.timm_net(name, num_classes=4)
    again = load_net(saved(net, tmp_path))
    x = torch.rand(2, 3, 224, 224)
    assert torch.equal(again(x), net.eval()(x))


@pytest.mark.usefixtures("timm")
@pytest.mark.parametrize("change", [{"pretrained": True}, {"pretrained": 7}])
def test_a_checkpoint_downloads_nothing(change, tmp_path, downloads):
    asked, _ = downloads
    path = saved(nets.torchvision_net("shufflenet_v2_x0_5", num_classes=4), tmp_path)
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["lit_robust"]["net"]["init_args"] |= change
    torch.save(checkpoint, path)
    assert isinstance(load_net(path), nn.Module)
    assert asked == []


@pytest.mark.usefixtures("timm")
@pytest.mark.parametrize(
    "name", ["hf-hub:someone/net", "local-dir:/tmp", "../net", "someone/net", 7, None, ["resnet18"]]
)
@pytest.mark.parametrize("builder", ["torchvision_net", "timm_net"])
def test_a_checkpoint_names_no_address_and_no_path(builder, name, tmp_path):
    path = saved(nets.torchvision_net("shufflenet_v2_x0_5", num_classes=4), tmp_path)
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["lit_robust"]["net"] = {"class_path": f"lit_robust.nets.{builder}", "init_args": {"name": name}}
    torch.save(checkpoint, path)
    with pytest.raises(ValueError, match=r"a\.ckpt: .*pass the net") as refused:
        load_net(path)
    assert "\n" not in str(refused.value)
