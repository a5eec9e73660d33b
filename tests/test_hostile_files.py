"""Files from outside are data: nothing in them is run, followed or trusted; faults are refused in one sentence."""

import re
import zipfile
from copy import deepcopy
from functools import partial
from pathlib import Path
from random import Random

import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from lit_robust import load_net
from lit_robust.attacks import PGD
from lit_robust.callbacks import EMAWeights
from lit_robust.checkpoint_files import SECTIONS, read_checkpoint, read_data
from lit_robust.cli.errors import naming
from lit_robust.cli.robust_cli import USER_ERRORS
from lit_robust.defenses import PGDAT, TRADES, CurriculumAT, Defense
from lit_robust.nets import digits_cnn
from lit_robust.schedules import MultiStep
from tests.front_door import lit
from tests.tiny import loader as loader_of
from tests.tiny import trainer


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> dict:
    """A checkpoint of a net of ours."""
    folder = tmp_path_factory.mktemp("good")
    method = PGDAT(digits_cnn(num_classes=4, width=2), 4, PGD(eps=0.1, step_size=0.1, steps=1))
    fit = trainer(folder, max_epochs=1)
    fit.fit(method, loader_of(digits()))
    fit.save_checkpoint(folder / "a.ckpt")
    return torch.load(folder / "a.ckpt", weights_only=True)


def digits():
    from tests.tiny import images

    batch = images(8)
    return batch._replace(x=batch.x[:, :1])


def written(checkpoint: dict, folder: Path) -> Path:
    torch.save(checkpoint, folder / "x.ckpt")
    return folder / "x.ckpt"


MARK = "import pathlib; pathlib.Path('pwned').touch()\n"
#: Descriptions of nets that would run code, reach for the network or a file, or take memory without end.
NETS = {
    "torch's function that executes source text": {
        "class_path": "lit_robust.nets.Net",
        "init_args": {
            "body": {
                "class_path": "torch.fx.graph_module.reduce_graph_module",
                "init_args": {"body": {"_code": "forward=lambda self:None"}, "import_block": MARK},
            },
            "head": {"class_path": "torch.nn.Linear", "init_args": {"in_features": 2, "out_features": 2}},
        },
    },
    "the same inside a builder's argument": {
        "class_path": "lit_robust.nets.digits_cnn",
        "init_args": {"width": {"class_path": "os.system", "init_args": {"command": "touch pwned"}}},
    },
    "a function of Python": {"class_path": "os.system", "init_args": {"command": "touch pwned"}},
    "a module of the room": {"class_path": "lit_robust.nets.builders.recorded", "init_args": {}},
    "a path": "tests.test_hostile_files.own",
    "another argument": {"class_path": "lit_robust.nets.digits_cnn", "init_args": {"depth": 3}},
    "no memory for that": {"class_path": "lit_robust.nets.digits_cnn", "init_args": {"width": 10**6, "num_classes": 4}},
    "a number without end": {"class_path": "lit_robust.nets.digits_cnn", "init_args": {"width": float("inf")}},
    "a huge integer": {"class_path": "lit_robust.nets.digits_cnn", "init_args": {"width": 10**30}},
    "a file": {"class_path": "lit_robust.nets.digits_cnn", "init_args": {"width": "../../etc/passwd"}},
    "an address": {"class_path": "lit_robust.nets.digits_cnn", "init_args": {"width": "http:example"}},
    "a list of lists": {"class_path": "lit_robust.nets.resnet18", "init_args": {"mean": [[0.1], [0.2]]}},
    "another net of ours": {"class_path": "lit_robust.nets.digits_cnn", "init_args": {"width": 3, "num_classes": 4}},
    "no text": 7,
    "no arguments": {"class_path": "lit_robust.nets.digits_cnn", "init_args": [1, 2]},
    "nothing": {},
}


@pytest.mark.parametrize("place", ["lit_robust", "hyper_parameters"])
@pytest.mark.parametrize("name", NETS)
def test_a_net_is_built_by_one_of_our_builders_from_plain_numbers_or_not_at_all(
    good, name, place, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    bad = {key: value for key, value in good.items() if key not in ("lit_robust", "hyper_parameters")}
    path = written(bad | {place: {"net": NETS[name]}}, tmp_path)
    with pytest.raises(ValueError, match=r"x\.ckpt: .*pass the net") as refused:
        load_net(path)
    assert "\n" not in str(refused.value)
    assert not Path("pwned").exists()


def test_the_good_one_is_built(good, tmp_path):
    net = load_net(written(good, tmp_path))
    assert net(torch.rand(2, 1, 8, 8)).shape == (2, 4)


@pytest.mark.parametrize("junk", [None, 3, "text", [1], torch.zeros(2)], ids=lambda junk: type(junk).__name__)
@pytest.mark.parametrize("section", SECTIONS)
def test_a_section_of_another_type_is_named(good, section, junk, tmp_path):
    if isinstance(junk, SECTIONS[section]):
        junk = {}
    path = written(good | {section: junk}, tmp_path)
    with pytest.raises(ValueError, match=rf"x\.ckpt .*(section {section} |checkpoint)"):
        read_checkpoint(path)


@pytest.mark.parametrize("weight", [3, "text", None, [1.0], {"a": 1}], ids=lambda junk: type(junk).__name__)
def test_weights_that_are_no_tensors_are_named(good, weight, tmp_path):
    state = dict(good["state_dict"])
    state["net.head.weight"] = weight
    with pytest.raises(ValueError, match=r"head\.weight is .* there"):
        load_net(written(good | {"state_dict": state}, tmp_path))


@pytest.mark.parametrize(
    "content", [b"", b"\x80", b"\x80\x02", b"P", b"PK", b"PK\x03\x04", b"text", b"\x80\x02}q\x00."]
)
def test_a_file_of_a_few_bytes_is_no_checkpoint(content, tmp_path):
    (tmp_path / "x.ckpt").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.ckpt "):
        read_checkpoint(tmp_path / "x.ckpt")


def test_an_archive_that_claims_further_parts_is_reported(good, tmp_path):
    """A resumed training then goes on from another checkpoint, as after any ValueError."""
    path = written(good, tmp_path)
    content = bytearray(path.read_bytes())
    at = content.rfind(b"PK\x06\x07")
    content[at + 16 : at + 20] = b"\2\0\0\0"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.ckpt is truncated or is not a checkpoint"):
        read_checkpoint(path)


def test_an_archive_that_grows_is_not_unpacked(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.ckpt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", b"\x80\x02" + b"N0" * 5_000_000 + b".")
    with pytest.raises(ValueError, match=r"x\.ckpt .*compressed"):
        read_checkpoint(tmp_path / "x.ckpt")


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02c__builtin__\nbytearray\n(J\xff\xff\xff\x7ftR.",
        b"\x80\x02" + b"]" * 3_000_000 + b"a" * 2_999_999 + b".",
    ],
    ids=["an array of 2 GB", "lists in lists"],
)
def test_a_small_pickle_that_grows_is_not_unpickled(content, tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "load", None)
    with zipfile.ZipFile(tmp_path / "x.ckpt", "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("x/data.pkl", content)
        archive.writestr("x/version", b"3")
    with pytest.raises(ValueError, match="which no checkpoint"):
        read_checkpoint(tmp_path / "x.ckpt")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_truncated_file_is_reported(good, share, tmp_path):
    path = written(good, tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"x\.ckpt .*truncated"):
        read_checkpoint(path)


def test_a_method_is_built_from_parts_that_are_known_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lit("fit", "--model", "TRADES", "--model.beta", 2, "--model.attack", "PGD", "--model.attack.eps", "8/255",
        "--model.lr_scheduler", "MultiStep", "--model.lr_scheduler.milestones", "[1]",
        "--model.lr_scheduler.factor", 0.1)  # fmt: skip
    path = tmp_path / "runs/tiny/version_0/checkpoints/last.ckpt"
    method = Defense.load_from_checkpoint(path)
    assert type(method) is TRADES
    assert (method.beta, method.attack.eps) == (2, 8 / 255)
    assert method.rate.scheduler == MultiStep([1], 0.1)
    assert isinstance(method.rate.make_optimizer(method.net.parameters()), torch.optim.Optimizer)
    state = torch.load(path, weights_only=True)["state_dict"]
    assert all(torch.equal(value, state[key]) for key, value in method.state_dict().items())
    assert TRADES.load_from_checkpoint(path, beta=3.0).beta == 3
    likewise = Defense.load_from_checkpoint(path, map_location="cpu", strict=True, weights_only=True)
    assert all(torch.equal(value, state[key]) for key, value in likewise.state_dict().items())
    with pytest.raises(ValueError, match="weights_only=False"):
        Defense.load_from_checkpoint(path, weights_only=False)
    with pytest.raises(ValueError, match="hparams_file"):
        Defense.load_from_checkpoint(path, hparams_file="hparams.yaml")


@pytest.mark.parametrize("rule", ["EvenShare", "CleanLossDrop", "SecondStepGain"])
def test_nuat_h_is_built_with_its_trigger(rule, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lit("fit", "--model", "NuAT", "--model.attack", "FGSM", "--model.two_step", f"lit_robust.defenses.hybrid.{rule}")
    method = Defense.load_from_checkpoint(tmp_path / "runs/tiny/version_0/checkpoints/last.ckpt")
    assert type(method.two_step).__name__ == rule


TOUCH = {"class_path": "os.system", "init_args": {"command": "touch pwned"}}
SOURCE = {"body": {}, "import_block": MARK}
HOSTILE_PARTS = {
    "attack": TOUCH,
    "optimizer": TOUCH,
    "lr_scheduler": {
        "class_path": "torch.fx.graph_module.reduce_graph_module",
        "init_args": {"body": {}, "import_block": MARK},
    },
    "val_attack": {
        "class_path": "lit_robust.attacks.PGD",
        "init_args": {"loss": TOUCH},
    },
    "test_attacks": {"a": {"class_path": "tests.tiny.TinyNet"}},
    "momentum": "../../etc:passwd",
}


@pytest.mark.parametrize("name", HOSTILE_PARTS)
def test_other_parts_must_be_given(good, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    saved = {
        "_class_path": "lit_robust.defenses.PGDAT",
        "num_classes": 4,
        "attack": {"class_path": "lit_robust.attacks.PGD"},
    }
    saved["_instantiator"] = "lightning.pytorch.cli.instantiate_module"
    path = written(good | {"hyper_parameters": saved | {name: HOSTILE_PARTS[name]}}, tmp_path)
    with pytest.raises(ValueError, match=r"x\.ckpt .*PGDAT: ") as refused:
        PGDAT.load_from_checkpoint(path)
    assert "\n" not in str(refused.value)
    assert not Path("pwned").exists()


def hostile(state, path):
    """A state whose ModelCheckpoint would outdate a path by its next checkpoint."""
    worst = torch.tensor(-1.0)
    state |= {"best_model_path": path, "kth_best_model_path": path, "last_model_path": path}
    state |= {"best_k_models": {path: worst}, "best_model_score": worst, "kth_value": worst}


def through_a_link(run, home):
    (run / "link").symlink_to(home)
    return run / "link" / "precious.ckpt"


def linked(run, home):
    (run / "link.ckpt").symlink_to(home / "precious.ckpt")
    return run / "link.ckpt"


FOREIGN = {
    "absolute": lambda run, home: home / "precious.ckpt",
    "relative": lambda run, home: "home/precious.ckpt",
    "by two dots": lambda run, home: f"{run}/../home/precious.ckpt",
    "by two dots, within its folder": lambda run, home: f"{run}/a/../../home/precious.ckpt",
    "a folder": lambda run, home: home,
    "through a link": through_a_link,
    "a link": linked,
    "its own folder": lambda run, home: run,
    "a file of another kind in its folder": lambda run, home: run / "precious.txt",
    "a folder in its folder": lambda run, home: run / "precious",
    "no name": lambda run, home: f"{run}/a\0.ckpt",
    "a long name": lambda run, home: f"{run}/{'a' * 5000}.ckpt",
}


def resumed_with(tmp_path, change, callbacks):
    """Resume from a checkpoint whose ModelCheckpoints' states are changed; what is not the training's stays."""
    run, home = tmp_path / "run", tmp_path / "home"
    for path in (run / "precious", home):
        path.mkdir(parents=True)
    precious = [run / "precious.txt", run / "precious" / "a.txt", home / "precious.ckpt"]
    for path in precious:
        path.write_text("text")

    def fit(epochs, **arguments):
        method = PGDAT(digits_cnn(num_classes=4, width=2), 4, PGD(eps=0.1, step_size=0.1, steps=1))
        trained = trainer(tmp_path, enable_checkpointing=True, callbacks=callbacks(run), max_epochs=epochs)
        trained.fit(method, loader_of(digits()), loader_of(digits()), **arguments)
        return trained

    fit(1).save_checkpoint(tmp_path / "x.ckpt")
    bad = torch.load(tmp_path / "x.ckpt", weights_only=True)
    for state in bad["callbacks"].values():
        change(state, run, home)
    progress = bad["loops"]["fit_loop"]["epoch_progress"]
    progress["current"] = dict.fromkeys(("ready", "started", "processed", "completed"), 1)
    torch.save(bad, tmp_path / "x.ckpt")
    trained = fit(2, ckpt_path=tmp_path / "x.ckpt", weights_only=True)
    assert [path.read_text() for path in precious] == ["text"] * 3
    return trained


def keeping(folder, **arguments):
    return ModelCheckpoint(folder, **{"filename": "{epoch}", "monitor": "val/acc/robust", "mode": "max"} | arguments)


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
@pytest.mark.parametrize("path", FOREIGN.values(), ids=FOREIGN)
def test_a_resumed_training_deletes_nothing_but_checkpoints_in_its_own_folder(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    resumed_with(tmp_path, lambda state, run, home: hostile(state, str(path(run, home))), lambda run: [keeping(run)])


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
@pytest.mark.parametrize(
    "callbacks",
    [
        lambda run: [keeping("run")],
        lambda run: [keeping(None)],
        lambda run: [keeping(run), keeping(run, filename="b{epoch}", monitor=None, mode="min", save_last=True)],
        lambda run: [keeping(run, monitor=None, mode="min", save_last="link")],
    ],
    ids=["a relative folder", "the default folder", "two of them", "links"],
)
def test_a_training_that_keeps_in_another_way_deletes_nothing_of_others(callbacks, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    resumed_with(tmp_path, lambda state, run, home: hostile(state, str(home / "precious.ckpt")), callbacks)


SCORE = torch.tensor(-1.0)
CONTRADICTIONS = {
    "the worst is unknown": lambda state, own, other: state.update(kth_best_model_path=other),
    "the worst is foreign": lambda state, own, other: state.update(
        best_k_models={own: SCORE, "precious.ckpt": SCORE}, kth_best_model_path="precious.ckpt"
    ),
    "a score is text": lambda state, own, other: state.update(best_k_models={own: "a"}),
    "a score is missing": lambda state, own, other: state.update(best_k_models={own: None}),
    "several numbers for a score": lambda state, own, other: state.update(best_k_models={own: torch.zeros(2)}),
    "more than are kept": lambda state, own, other: state.update(
        best_k_models={own: SCORE, other: SCORE}, kth_best_model_path=""
    ),
    "no best score": lambda state, own, other: state.update(best_model_score="a"),
}


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
@pytest.mark.parametrize("change", CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_a_state_that_contradicts_itself_is_forgotten(change, tmp_path):
    trained = resumed_with(
        tmp_path,
        lambda state, run, home: change(state, state["best_model_path"], str(run / "other.ckpt")),
        lambda run: [keeping(run, verbose=True)],
    )
    assert trained.checkpoint_callback.best_model_path.endswith(".ckpt")


# Every section broken by turns.


def nested(levels: int) -> object:
    value: object = 1
    for _ in range(levels):
        value = {"a": [value]}
    return value


DELETED = object()
JUNK = {
    "none": None,
    "list": [1, 2],
    "negative": -3,
    "huge": 10**30,
    "nan": float("nan"),
    "text": "junk",
    "surrogate": "\ud800",
    "mapping": {},
    "nested": nested(60),
    "tensor": torch.zeros(3),
    "truth": True,
    "tensors": [torch.zeros(2)],
    "numbers as keys": {0: 1},
    "deleted": DELETED,
}


def places(node: object, place: tuple = ()) -> list[tuple]:
    """All places in a checkpoint, down to the numbers of an optimizer's group."""
    below = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    found = [place] if place else []
    return found + [other for key, value in below if len(place) < 6 for other in places(value, (*place, key))]


def broken(checkpoint: dict, place: tuple, junk: object) -> dict:
    """A copy with one value replaced."""
    bad = deepcopy(checkpoint)
    parent = bad
    for key in place[:-1]:
        parent = parent[key]
    if junk is DELETED:
        del parent[place[-1]]
    else:
        parent[place[-1]] = junk
    return bad


def run_on(folder: Path, **options):
    """A training with all that writes a state: averages, a best checkpoint, early stopping and a scheduler."""
    best = ModelCheckpoint(folder / "run", monitor="val/acc/robust", mode="max", enable_version_counter=False)
    stop = EarlyStopping("val/acc/robust", mode="max")
    method = CurriculumAT(
        digits_cnn(num_classes=4, width=2),
        4,
        PGD(eps=0.1, step_size=0.05, steps=1),
        lr_scheduler=partial(torch.optim.lr_scheduler.StepLR, step_size=1),
    )
    callbacks = [best, stop, EMAWeights(0.9, extra={"fast": 0.5})]
    run = trainer(folder, enable_checkpointing=True, callbacks=callbacks, **options)
    return run, method


@pytest.fixture(scope="module")
def rich(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("rich")
    run, method = run_on(folder, max_epochs=1)
    run.fit(method, loader_of(digits()), loader_of(digits()))
    run.save_checkpoint(folder / "a.ckpt")
    return torch.load(folder / "a.ckpt", weights_only=True)


@pytest.mark.filterwarnings("ignore")  # what of it is told by a warning is tested elsewhere
@pytest.mark.parametrize("seed", range(100))
def test_a_broken_value_anywhere_ends_in_one_sentence(rich, seed, tmp_path):
    """Each section is hit equally often; what is harmless trains."""
    draw = Random(seed)
    section = [*rich][seed % len(rich)]
    place = draw.choice([place for place in places(rich) if place[0] == section])
    name = draw.choice([*JUNK])
    (tmp_path / "precious").write_text("text")
    path = written(broken(rich, place, JUNK[name]), tmp_path)
    run, method = run_on(tmp_path, max_epochs=2)

    def fit():
        with naming(str(path)):
            run.fit(method, loader_of(digits()), loader_of(digits()), ckpt_path=path, weights_only=True)

    for use in (lambda: load_net(path), lambda: Defense.load_from_checkpoint(path), fit):
        says = refused(use)
        assert "\n" not in says, (place, name)
        assert not says or re.search("checkpoint|x.ckpt|training loss", says), (place, name, says)
    assert (tmp_path / "precious").read_text() == "text"
    assert {found.name for found in tmp_path.iterdir()} <= {"precious", "x.ckpt", "run"}


def refused(use) -> str:
    """The sentence of an error that the command line reports, or nothing; any other error is a defect."""
    try:
        use()
    except USER_ERRORS as error:
        return str(error)
    return ""


# Pickles that stand for more than they hold.


def doubled(levels: int) -> list:
    value: list = [1]
    for _ in range(levels):
        value = [value, value]
    return value


def in_itself() -> list:
    value: list = []
    value.append(value)
    return value


def stored(*shape: int, stride: tuple[int, ...]) -> torch.Tensor:
    """A tensor of a few stored numbers that declares a larger shape."""
    return torch.zeros(4).as_strided(shape, stride)


TOO_MUCH = {
    "2 to the 60 references": doubled(60),
    "a list in itself": in_itself(),
    "a thousand levels": nested(150),
    "a tensor that repeats one number": stored(10**6, 10**6, stride=(0, 0)),
    "a tensor that overlaps": stored(3, 2, stride=(1, 1)),
    "a sparse tensor": torch.eye(3).to_sparse(),
    "a tensor without numbers": torch.zeros(10**6, 10**6, device="meta"),
}


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
@pytest.mark.parametrize("section", ["state_dict", "hyper_parameters", "lit_robust", "callbacks", "extra"])
@pytest.mark.parametrize("name", TOO_MUCH)
def test_what_stands_for_more_than_it_holds_is_refused_soon(good, name, section, tmp_path):
    bad = dict(good) | {section: {**good.get(section, {}), "net.x": TOO_MUCH[name]}}
    path = written(bad, tmp_path)
    for use in (read_checkpoint, load_net, Defense.load_from_checkpoint):
        with pytest.raises(ValueError, match=r"x\.ckpt is (broken: it|truncated)") as refusal:
            use(path)
        assert len(str(refusal.value)) < 400
        assert "\n" not in str(refusal.value)


def test_a_long_pickle_and_the_older_format_are_not_read(good, tmp_path):
    path = written(good | {"extra": "x" * 2**24}, tmp_path)
    with pytest.raises(ValueError, match="bytes besides its tensors"):
        read_checkpoint(path)
    torch.save(good, path, _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match=r"x\.ckpt "):
        read_checkpoint(path)


def rebuilt(*arguments: object) -> object:
    """A value whose pickle asks torch to rebuild a tensor from junk."""

    class Junk:
        def __reduce__(self):
            return torch._utils._rebuild_tensor_v2, arguments

    return Junk()


@pytest.mark.parametrize("arguments", [(), (None,) * 6, (1, 2, 3, 4, 5, 6), ([], 0, (10**9,), (1,), False, {}), ("a",)])
def test_a_tensor_of_junk_is_refused(good, arguments, tmp_path):
    path = written(good | {"extra": rebuilt(*arguments)}, tmp_path)
    with pytest.raises(ValueError, match=r"x\.ckpt ") as refusal:
        read_checkpoint(path)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("members", [20_000, 70_000], ids=["32 bits", "64 bits"])
@pytest.mark.parametrize("lies", [False, True])
def test_an_archive_of_very_many_members_is_refused_before_its_directory_is_read(members, lies, tmp_path, monkeypatch):
    path = tmp_path / "x.ckpt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}.")
        for number in range(members):
            archive.writestr(f"archive/data/{number}", b"")
    if lies:  # of one member
        content = path.read_bytes()
        path.write_bytes(content[:-14] + b"\1\0\1\0" + content[-10:])
    monkeypatch.setattr("lit_robust.checkpoint_files.ZipFile", lambda path: pytest.fail("the directory was read"))
    with pytest.raises(ValueError, match=r"x\.ckpt has more members than any checkpoint has tensors"):
        read_data(path, older=True)


def test_a_checkpoint_of_thousands_of_tensors_is_read(tmp_path):
    torch.save({"state_dict": {str(number): torch.zeros(1) for number in range(4000)}}, tmp_path / "x.ckpt")
    assert len(read_checkpoint(tmp_path / "x.ckpt")["state_dict"]) == 4000


STEPS = {
    "empty lists": b"](" + b"]" * 2_000_000 + b"e.",
    "nested lists": b"]" * 1_000_000 + b"a" * 999_999 + b".",
    "without an end": b"]" * 1000,
    "junk": b"\xff\xfe",
}


@pytest.mark.parametrize("steps", STEPS.values(), ids=STEPS)
@pytest.mark.parametrize("older", [False, True])
def test_a_pickle_of_millions_of_steps_is_refused_before_torch_takes_them(older, steps, tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: pytest.fail("torch has read it"))
    path, content = tmp_path / "x.ckpt", b"\x80\x02" + steps
    if older:
        path.write_bytes(b"\x80\x02N." * 3 + content)
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", content)
    with pytest.raises(ValueError, match=r"x\.ckpt (has more than|is truncated)") as refusal:
        read_data(path, older=True)
    assert "\n" not in str(refusal.value)
