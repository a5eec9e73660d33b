"""Weights from elsewhere, in Python and on the command line."""

import re
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from lit_robust import load_weights
from lit_robust.cli import main
from lit_robust.data import DigitsDataModule
from lit_robust.defenses import PGDAT
from lit_robust.nets import digits_cnn
from lit_robust.weight_files import read_weights
from tests.front_door import lit, refusal, rows, tiny
from tests.tiny import TinyNet


@pytest.fixture
def weights():
    return TinyNet(seed=1).state_dict()


def equal(net, weights):
    return all(torch.equal(value, weights[name]) for name, value in net.state_dict().items())


def prefixed(prefix, weights):
    return {f"{prefix}{key}": value for key, value in weights.items()}


WRAPPED = {
    "plain": lambda w: w,
    "state_dict": lambda w: {"state_dict": w, "epoch": 3, "optimizer": {"state": {}, "param_groups": []}},
    "model": lambda w: {"acc": 0.5, "model": w},
    "net": lambda w: {"net": w, "rng": torch.zeros(3)},
    "another name": lambda w: {"classifier": w},
    "two levels": lambda w: {"model": {"state_dict": w}},
    "beside an average": lambda w: {"ema": {k: 0 * v for k, v in w.items()}, "state_dict": w},
    "DataParallel": lambda w: {"state_dict": prefixed("module.", w)},
    "torch.compile": lambda w: prefixed("_orig_mod.", w),
    "both": lambda w: prefixed("module._orig_mod.", w),
    "a compiled part": lambda w: {k.replace("body.", "body._orig_mod."): v for k, v in w.items()},
    "a LightningModule": lambda w: {"state_dict": prefixed("net.", w) | {"criterion.weight": torch.ones(4)}},
    "a model in a module": lambda w: {"state_dict": prefixed("module.model.", w)},
    "parameters": lambda w: {k: nn.Parameter(v) if v.is_floating_point() else v for k, v in w.items()},
}


@pytest.mark.parametrize("name", WRAPPED)
@pytest.mark.parametrize("suffix", ["pt", "pth", "ckpt"])
def test_a_state_dict_is_found(name, suffix, weights, tmp_path):
    torch.save(WRAPPED[name](weights), path := tmp_path / f"weights.{suffix}")
    net = TinyNet().train()
    assert not equal(net, weights)
    assert load_weights(net, path) is net
    assert equal(net, weights)
    assert net.training


def test_files_of_older_versions_of_torch_are_read(weights, tmp_path):
    torch.save(weights, path := tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert equal(load_weights(TinyNet(), path), weights)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda w: w.pop("head.bias"), ["missing there: head.bias"]),
        (lambda w: w.update(extra=torch.ones(2)), ["unknown here: extra"]),
        (lambda w: w.update({"head.bias": torch.ones(7)}), ["of another shape: head.bias is (7,) there and (4,) here"]),
        (
            lambda w: [w.pop("body.0.weight"), w.update({"head.bias": torch.ones(7), "more": torch.ones(1)})],
            ["missing there: body.0.weight", "unknown here: more", "head.bias is (7,) there"],
        ),
    ],
)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_all_that_does_not_fit_is_named_and_nothing_is_loaded(change, says, prefix, weights, tmp_path):
    change(weights)
    torch.save({"state_dict": prefixed(prefix, weights)}, path := tmp_path / "weights.pt")
    net, before = TinyNet(), TinyNet().state_dict()
    with pytest.raises(ValueError, match="weights") as refused:
        load_weights(net, path)
    assert [words for words in says if words not in str(refused.value)] == []
    assert equal(net, before)


def test_many_names_are_counted(tmp_path):
    torch.save({f"layer{i}.weight": torch.ones(1) for i in range(900)}, path := tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=r"layer2\.weight and 897 more") as refused:
        load_weights(TinyNet(), path)
    assert len(str(refused.value)) < 600


class Code:
    def __reduce__(self):
        return (Path.touch, (Path("pwned"),))


@pytest.mark.parametrize("content", [Code(), {"state_dict": Code()}, TinyNet()], ids=["code", "below", "module"])
def test_a_file_that_could_run_code_is_refused(content, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(content, "weights.pt")
    with pytest.raises(ValueError, match=r"weights\.pt "):
        load_weights(TinyNet(), "weights.pt")
    assert not Path("pwned").exists()


@pytest.mark.parametrize("content", [None, 3, [torch.ones(2)], {}, {"a": 1}, {"state_dict": None}, {3: torch.ones(1)}])
def test_a_file_without_a_state_dict_is_refused(content, tmp_path):
    torch.save(content, path := tmp_path / "weights.pt")
    with pytest.raises(ValueError, match="state_dict"):
        load_weights(TinyNet(), path)


def test_a_file_that_is_none_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_weights(TinyNet(), tmp_path / "nowhere.pt")
    (tmp_path / "text.pt").write_text("no weights")
    with pytest.raises(ValueError, match=r"text\.pt "):
        load_weights(TinyNet(), tmp_path / "text.pt")


def test_a_large_shape_over_few_bytes_takes_no_memory(weights, tmp_path):
    weights["head.weight"] = torch.zeros(1).expand(10**12)
    torch.save(weights, path := tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=r"a tensor of shape \(1000000000000,\)"):
        load_weights(TinyNet(), path)


def test_safetensors_are_asked_for_or_read(weights, tmp_path, monkeypatch):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"")
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(ImportError, match="pip install safetensors"):
        load_weights(TinyNet(), path)
    fake = type(sys)("safetensors.torch")
    fake.load_file = lambda file: prefixed("module.", weights)
    monkeypatch.setitem(sys.modules, "safetensors", type(sys)("safetensors"))
    monkeypatch.setitem(sys.modules, "safetensors.torch", fake)
    assert equal(load_weights(TinyNet(), path), weights)


def test_names_that_begin_like_a_prefix_are_kept(tmp_path):
    net = nn.ModuleDict({"net": nn.Linear(2, 2), "model": nn.Linear(2, 2)})
    torch.save({"state_dict": net.state_dict()}, path := tmp_path / "weights.pt")
    assert read_weights(path, net.state_dict()).keys() == net.state_dict().keys()


# The command line.


@pytest.fixture
def foreign(tmp_path, monkeypatch):
    """A file of a net that is trained elsewhere; the folder is the working one."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(1)
    net = digits_cnn(width=4)
    torch.save({"model": prefixed("module.", net.state_dict())}, "foreign.pth")
    return net


def test_the_command_tests_weights_from_elsewhere(foreign, capsys):
    lit("test", "--weights", "foreign.pth")
    out = capsys.readouterr().out
    assert re.search(r"accuracy in % +foreign +n", out)
    x, y = DigitsDataModule(val_size=20, test_size=32).draw(32)
    right = int((foreign.eval()(x).argmax(dim=1) == y).sum())
    assert rows(out)["clean"][0] == f"{100 * right / 32:.1f}"
    assert right != 0


@pytest.mark.parametrize("command", ["fit", "validate", "predict"])
def test_every_command_takes_them(command, foreign, monkeypatch):
    begun = []
    start = {"fit": "on_fit_start", "validate": "on_validation_start", "predict": "on_predict_start"}[command]
    monkeypatch.setattr(PGDAT, start, lambda module: begun.append(equal(module.net, foreign.state_dict())))
    lit(command, "--weights", "foreign.pth")
    assert begun == [True]


def test_a_checkpoint_beside_them_has_the_last_word(foreign):
    """A run's own configuration names the weights that the run began with."""
    lit("fit", "--weights", "foreign.pth")
    Path("foreign.pth").unlink()
    (saved,) = Path().rglob("config.yaml")
    assert "weights: foreign.pth" in saved.read_text()
    main(["test", "-c", str(saved), "--ckpt_path", "last"])


def test_weights_of_another_net_are_refused_in_one_sentence(foreign, capsys):
    torch.save(TinyNet().state_dict(), "tiny.pt")
    says = refusal(capsys, "test", "-c", tiny(Path()), "--weights", "tiny.pt")
    assert says.startswith("tiny.pt holds the weights of another net (missing there: ")
    assert "nowhere.pt" in refusal(capsys, "test", "-c", tiny(Path()), "--weights", "nowhere.pt")
