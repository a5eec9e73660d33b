"""Weights from elsewhere, in Python and on the command line."""

import csv
import os
import re
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from lit_robust import load_weights
from lit_robust.analysis import sweep
from lit_robust.attacks import PGD
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
    start = {"fit": "on_fit_start", "validate": "on_validation_epoch_start", "predict": "on_predict_start"}[command]
    monkeypatch.setattr(PGDAT, start, lambda module: begun.append(equal(module.net, foreign.state_dict())))
    lit(command, "--weights", "foreign.pth")
    assert begun == [True]


def test_a_checkpoint_beside_them_has_the_last_word(foreign, capsys, caplog):
    """A run's own configuration names the weights that the run began with."""
    lit("fit", "--weights", "foreign.pth")
    Path("foreign.pth").unlink()
    (saved,) = Path().rglob("config.yaml")
    assert "weights: foreign.pth" in saved.read_text()
    caplog.set_level("INFO")
    for command in ("test", "fit"):
        main([command, "-c", str(saved), "--ckpt_path", "last", "--trainer.max_epochs=2"])
        assert "--ckpt_path last; weights: foreign.pth " in "".join([*capsys.readouterr(), caplog.text])


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_weights_and_a_checkpoint_on_the_command_line_are_refused(command, foreign, capsys):
    says = refusal(capsys, command, "-c", tiny(Path()), "--weights=foreign.pth", "--ckpt_path", "last")
    assert re.match(r"--weights foreign\.pth .* --ckpt_path last: ", says)


def test_weights_of_another_net_are_refused_in_one_sentence(foreign, capsys):
    torch.save(TinyNet().state_dict(), "tiny.pt")
    says = refusal(capsys, "test", "-c", tiny(Path()), "--weights", "tiny.pt")
    assert re.match(r"tiny\.pt .*\(missing there: ", says)
    assert "nowhere.pt" in refusal(capsys, "test", "-c", tiny(Path()), "--weights", "nowhere.pt")


# The verbs.

DATA = ("--data", "DigitsDataModule", "--data.test_size", "24", "--data.val_size", "16", "--data.train_size", "64")
NET = ("--net", "lit_robust.nets.digits_cnn", "--net.width", "4")


def digits():
    return DigitsDataModule(test_size=24, val_size=16, train_size=64)


@pytest.fixture
def stranger(foreign):
    """A run of another package's: two epochs whose checkpoints do not say how their net was built."""
    folder = Path("theirs/version_0/checkpoints")
    folder.mkdir(parents=True)
    for epoch in (0, 1):
        state = prefixed("model.", foreign.state_dict())
        torch.save({"state_dict": state, "epoch": epoch}, folder / f"epoch={epoch}.ckpt")
        os.utime(folder / f"epoch={epoch}.ckpt", (0, 0))  # as two that are written within one tick of the clock
    (folder.parent / "metrics.csv").write_text("epoch,step,train/loss\n0,1,2.0\n1,2,1.0\n")
    return "theirs/version_0"


def verb(name, *args):
    main([name, *args, *DATA])
    with Path(next(Path("analysis").glob(f"{name}*.csv"))).open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("sweep", ("--over", "steps", "--values", "[2]")),
        ("transfer", ("--sources", "[theirs=foreign.pth]")),
        ("surface", ("--points", "2", "--eigenvalue", "false")),
        ("diversity", ()),
        ("targets", ("--images", "1")),
        ("eigenvalue", ("--over", "eps", "--values", "[0.1]", "--limit", "4")),
        ("compare", ("--autoattack", "false", "--gap", "false", "--alarms", "false")),
    ],
)
def test_every_verb_takes_them(name, flags, foreign):
    rows = verb(name, "mine=foreign.pth", *NET, *flags)
    assert "mine" in {row.get("net") or row.get("target") or row.get("method") for row in rows}


@pytest.mark.parametrize("name", ["stale", "curves"])
def test_verbs_that_read_the_epochs_of_a_run_take_a_foreign_net(name, stranger, foreign):
    rows = verb(name, stranger, *NET)
    x, y = digits().draw(24)
    right = int((foreign.eval()(x).argmax(dim=1) == y).sum()) / 24
    assert [row["epoch"] for row in rows] == ["1", "2"]
    if name == "curves":
        assert {float(row["test clean"]) for row in rows} == {right}


def test_a_verb_measures_the_foreign_net_and_leaves_the_given_one_alone(foreign):
    net = digits_cnn(width=4).train()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    (row,) = sweep(["foreign.pth"], digits(), attack=PGD(eps=0), values=[0], net=net)
    x, y = digits().draw(24)
    assert row["net"] == "foreign"
    assert row["accuracy"] == int((foreign.eval()(x).argmax(dim=1) == y).sum()) / 24
    assert equal(net, before)
    assert net.training


CLASS_COUNTS = []


def net_of_classes(num_classes: int) -> nn.Module:
    CLASS_COUNTS.append(num_classes)
    return digits_cnn(num_classes, width=4)


def test_the_nets_number_of_classes_is_the_datas(foreign):
    CLASS_COUNTS.clear()
    verb("sweep", "foreign.pth", "--net", f"{__name__}.net_of_classes", "--values", "[0]")
    assert CLASS_COUNTS == [10]


def test_a_checkpoint_beside_them_builds_its_own_net(foreign):
    """The given net has another width, and is not touched for it."""
    lit("fit")
    rows = sweep(["runs/tiny", "foreign.pth"], digits(), values=[0], net=digits_cnn(width=4))
    assert [row["net"] for row in rows] == ["tiny/version_0", "foreign"]
    with pytest.raises(ValueError, match="another net"):
        sweep(["runs/tiny", "foreign.pth"], digits(), values=[0], net=digits_cnn(width=2))


def test_what_was_measured_of_one_net_is_not_told_of_another_with_the_same_weights(foreign):
    """Nets may differ in what no state_dict holds, such as a layer without weights."""
    inverted = nn.Sequential(nn.Flatten(0, -1), nn.Unflatten(0, (-1, 1, 8, 8)), digits_cnn(width=4), nn.Softmin(dim=1))
    plain = nn.Sequential(nn.Flatten(0, -1), nn.Unflatten(0, (-1, 1, 8, 8)), digits_cnn(width=4), nn.Softmax(dim=1))
    torch.save(prefixed("2.", foreign.state_dict()), "same.pth")
    accuracies = [sweep(["same.pth"], digits(), values=[0], net=net)[0]["accuracy"] for net in (plain, inverted)]
    assert accuracies[0] != accuracies[1]


@pytest.mark.parametrize("file", ["foreign.pth", "theirs/version_0/checkpoints/epoch=0.ckpt", "theirs/version_0"])
def test_a_verb_without_the_net_asks_for_it(file, stranger, capsys):
    says = refusal(capsys, "sweep", file, *DATA)
    assert "--net lit_robust.nets.resnet18" in says
    assert file in says


def test_a_verb_refuses_another_net_in_one_sentence(foreign, capsys):
    assert "another net" in refusal(capsys, "sweep", "foreign.pth", *DATA, *NET[:2])
    assert "there is no nowhere.pth: " in refusal(capsys, "sweep", "nowhere.pth", *DATA, *NET)
    assert "num_classes" in refusal(capsys, "sweep", "foreign.pth", *DATA, *NET, "--net.num_classes", "many")


def test_a_files_name_may_look_like_a_name_for_it(foreign):
    Path("foreign.pth").rename("epoch=4.pth")
    (row,) = sweep(["epoch=4.pth"], digits(), values=[0], net=digits_cnn(width=4))
    assert row["net"] == "epoch=4"


def test_the_report_takes_a_foreign_net(foreign):
    main(["report", "theirs=foreign.pth", *NET, *DATA, "--gap", "false", "--alarms", "false", "--examples", "0"])
    (page,) = Path("analysis").glob("report.html")
    assert "theirs" in page.read_text()


@pytest.mark.parametrize(("path", "found"), [(".", "is a folder"), ("nowhere.pth", "does not exist")])
def test_what_is_no_file_of_weights_is_refused(path, found):
    with pytest.raises(FileNotFoundError, match=found):
        load_weights(digits_cnn(), path)
