"""Every YAML file below configs/ goes through the command line, those that recipes share as parts of recipes."""

import contextlib
import functools
import gc
import math
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch import Trainer
from PIL import Image

from lit_robust import defenses, load_net
from lit_robust.attacks import PGD
from lit_robust.cli import main
from lit_robust.cli.config import load, merged
from lit_robust.cli.robust_cli import RobustCLI
from lit_robust.defenses.single_step import SingleStep
from lit_robust.magnitudes import magnitude
from lit_robust.measures.default_attacks import default_test
from tests.recipe_digests import CONFIGS, LIST, RECIPES, digests, name_of

SETTINGS = sorted((CONFIGS / "recipes").rglob("_*.yaml"))


def fragments(folder):
    return sorted((CONFIGS / folder).glob("*.yaml"))


@functools.cache
def read(path):
    """A file merged with all that it extends."""
    return merged(load(str(path)))


def flags_of(*paths):
    return [part for path in paths for part in ("-c", str(CONFIGS / path) if isinstance(path, str) else str(path))]


def composed(data="digits", net="digits_cnn", defense="pgdat", attack="digits_pgd7", callback=None, trainer="cpu"):
    """The fragments in the order that base.yaml states."""
    parts = {"data": data, "net": net, "defense": defense, "attack": attack, "callback": callback, "trainer": trainer}
    return flags_of("base.yaml", *(f"{room}/{part}.yaml" for room, part in parts.items() if part))


def parsed(capsys, *flags):
    """The configuration of a command line."""
    with pytest.raises(SystemExit) as stop:
        main(["fit", *flags, "--print_config"])
    said = capsys.readouterr()
    assert stop.value.code == 0, said.err
    return yaml.safe_load(said.out)


# Tiny data in the real sets' formats.


@pytest.fixture(scope="module")
def data_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        (raw / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">iiii", 2051, 40, 28, 28) + bytes(40 * 784))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">ii", 2049, 40) + bytes(range(10)) * 4)
    write_cifar(root / "cifar-10-batches-py", [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"], "labels", 10)
    write_cifar(root / "cifar-100-python", ["train", "test"], "fine_labels", 100)
    with contextlib.suppress(ImportError):
        from scipy.io import savemat

        for part in ("train", "test"):
            savemat(root / f"{part}_32x32.mat", {"X": np.zeros((32, 32, 3, 40), np.uint8), "y": np.full((40, 1), 10)})
    for folder, classes in (
        ("imagenette2-160", 10),
        ("imagenet100", 100),
        ("my_images", 2),
        ("imagenet", 2),
        ("imagenet12", 12),
    ):
        for part, n in (("train", 3), ("val", 1)):
            for label in range(classes):
                (root / folder / part / f"n{label:08}").mkdir(parents=True)
                for i in range(n):
                    Image.new("RGB", (8, 8)).save(root / folder / part / f"n{label:08}" / f"{i}.png")
    return root


def write_cifar(folder, names, key, classes):
    folder.mkdir()
    batch = {"data": np.zeros((2 * classes, 3072), np.uint8), key: [*range(classes)] * 2}
    for name in names:
        (folder / name).write_bytes(pickle.dumps(batch))
    for meta in ("meta", "batches.meta"):
        (folder / meta).write_bytes(pickle.dumps({"label_names": [], "fine_label_names": []}))


@pytest.fixture(scope="module", autouse=True)
def _no_rubbish_in_what_is_imported():
    """Exclude all modules from garbage collection, which takes a quarter of the time here."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def _elsewhere(data_root, tmp_path, monkeypatch, timm):
    """An empty working directory, the tiny data for whatever asks for real ones, and no parser but that of ``fit``."""
    monkeypatch.chdir(tmp_path)
    Path("data").symlink_to(data_root)
    fit = {"fit": RobustCLI.subcommands()["fit"]}
    monkeypatch.setattr(RobustCLI, "subcommands", staticmethod(lambda: fit))
    monkeypatch.setenv("LIT_ROBUST_DATA", str(data_root))
    for module in ("cifar", "svhn"):
        monkeypatch.setattr(f"torchvision.datasets.{module}.check_integrity", lambda path, md5=None: True)


def train_briefly(flags, model, data, **arguments):
    """Fit one batch of the tiny data with a narrow net and one step of iterative attacks; nothing is written.

    It is said in one more file: jsonargparse checks everything anew for each flag.
    """
    sizes = {"batch_size": 4, "eval_batch_size": 4, "val_size": 100 if "100" in data else 10, "train_size": None}
    if data.startswith("Image"):
        sizes |= {"image_size": 32, "num_workers": 0}
    if data.startswith("ImageFolder"):
        sizes["val_size"] = 2
    net, steps = model["net"]["class_path"], {"init_args": {"steps": 1, "step_size": 1.0}}
    narrow = {"width": 16 if "wide" in net else 4}
    if "imagenet" in net or not any(family in net for family in ("digits", "vgg", "resnet")):
        narrow = {}  # those of MNIST and ImageNet have no width
    narrow |= {"num_classes": arguments.pop("num_classes")} if "num_classes" in arguments else {}
    light = {name: steps for name in ("attack", "val_attack") if "steps" in model.get(name, {}).get("init_args", {})}
    trainer = {"fast_dev_run": 1, "enable_progress_bar": False, "enable_model_summary": False}
    brief = {
        "trainer": trainer | {"accelerator": "cpu", "devices": 1, "precision": "32-true"},
        "data": {"init_args": sizes | arguments},
        "model": {"init_args": light | ({"net": {"init_args": narrow}} if narrow else {})},
    }
    Path("brief.yaml").write_text(yaml.safe_dump(brief))
    main(["fit", *flags, "-c", "brief.yaml"])


def part(room, name, key):
    """A fragment's value of a part of the model."""
    return read(CONFIGS / room / f"{name}.yaml")["model"]["init_args"][key]


def train_composed(flags, data="digits", net="digits_cnn", attack="digits_pgd7", **arguments):
    """The same for fragments."""
    model = {name: part("attack", attack, name) for name in ("attack", "val_attack")} | {"net": part("net", net, "net")}
    train_briefly(flags, model, read(CONFIGS / "data" / f"{data}.yaml")["data"]["class_path"], **arguments)


# Recipes.


def code_of(path):
    """The classes and functions that a recipe runs."""
    if isinstance(path, Path):
        return code_of(read(path))
    if isinstance(path, list):
        return set().union(*map(code_of, path))
    if isinstance(path, dict):
        return set().union({path["class_path"]} if "class_path" in path else (), *map(code_of, path.values()))
    return set()


def downloads(path):
    """Whether a recipe's training reads weights that are downloaded."""
    return read(path)["model"]["init_args"]["attack"]["init_args"].get("lpips_net") == "alexnet"


@functools.cache
def representatives():
    """Recipes that together run all the code that recipes run, those that download nothing first."""
    chosen, seen = set(), set()
    for path in sorted(RECIPES, key=lambda path: (downloads(path), -len(code_of(path)))):
        if code_of(path) - seen:
            chosen.add(path)
            seen |= code_of(path)
    return chosen


@pytest.mark.parametrize("path", [CONFIGS / "quickstart.yaml", *RECIPES], ids=name_of)
def test_a_recipe_runs_alone(path, monkeypatch):
    """All are built, but only one of those that run the same code with other numbers is trained."""
    arguments, data = read(path)["model"]["init_args"], read(path)["data"]["class_path"]
    reached, train = [], Trainer.fit

    def fit(self, model, **keywords):
        reached.append(type(model).__name__)
        if path not in RECIPES or path in representatives():
            train(self, model, **keywords)

    monkeypatch.setattr(Trainer, "fit", fit)
    train_briefly(flags_of(path), arguments, data)
    assert reached == [read(path)["model"]["class_path"]]


#: The rows of the sources' tables that these methods make, by data and net.
NUAT = "normal rfgsm_at fbf r_mgm gat nuat nuat_wa pgd_at trades"
SAT = "madry trades dynamic hsat psat"
ACS = "full craig gradmatch random"
TABLES = {
    "dat": {
        "mnist_cnn": "natural rat dat",
        "cifar10_resnet18": "natural rat dat rat_early_stop dat_early_stop",
        "cifar10_resnet50": "natural rat",
        "cifar10_wrn28_10": "natural rat dat rat_early_stop dat_early_stop",
        "cifar100_resnet50": "natural rat dat",
    },
    "nuat": {
        "cifar10_resnet18": f"{NUAT} fgsm_at atf gat_wa trades_wa awp",
        "cifar10_wrn34_10": "fbf gat gat_wa nuat nuat_wa nuat2 nuat2_wa nuat_h_50_5 nuat_wa_h_25_2 nuat_wa_h_60_6 "
        "nuat_wa_h_80_32 pgd trades awp",
        "mnist_lenet_gat": NUAT,
        "imagenet100_resnet18": NUAT,
    },
    "free_fast": {
        "cifar10_wrn32_10": "free2 free4 free8 free10 pgd7",
        "cifar100_wrn32_10": "free8 pgd7",
        "cifar10_preact_resnet18": "fast",
        "imagenet_resnet50": "fast_eps2 fast_eps4",
        "fvf_preact_resnet18": "free2 free4 free8 free10 fast_alpha10_batch128 fast_alpha10_batch256 "
        "fast_alpha16_batch128 fast_alpha16_batch256 free8_cyclic_fp32 free8_multistep_fp32 free8_multistep_mixed "
        "fast_cyclic_fp32 fast_multistep_fp32 fast_multistep_mixed",
        "fvf_wrn32_10": "free8 fast",
        "fvf_resnet50": "free8 fast",
    },
    "sat": {
        "mnist03_sat_cnn": f"{SAT} cat",
        "mnist045_sat_cnn": f"{SAT} cat",
        "cifar10_preact_resnet18": f"{SAT} cat",
        "cifar10_vgg16": f"{SAT} cat",
        "cifar10_wrn34_10": "psat",
        "cifar100_preact_resnet18": f"{SAT} cat",
        "cifar100_vgg16": f"{SAT} cat",
        "cifar100_wrn34_10": "psat",
        "imagenette16_resnet18": SAT,
        "imagenette24_resnet18": SAT,
    },
    "acs": {
        "cifar10_resnet18_pgd": f"{ACS} random_fixed",
        "cifar10_resnet18_trades": ACS,
        "svhn_resnet18_l2": ACS,
        "cifar10_resnet50_pat": ACS,
        "imagenet12_resnet50_pat": ACS,
        "cifar10_preact_resnet18_fast": ACS,
        "cifar10_resnet18_natural": ACS,
    },
}


@pytest.mark.parametrize("source", TABLES)
def test_every_row_of_a_sources_tables_has_its_recipe(source):
    rows = {f"{setting}_{row}" for setting, names in TABLES[source].items() for row in names.split()}
    assert {path.stem for path in RECIPES if path.parent.name == source} == rows


@pytest.mark.parametrize(
    ("data", "row", "m"),
    [("cifar10", f"free{m}", m) for m in (2, 4, 8, 10)]
    + [("cifar100", "free8", 8), ("cifar10", "pgd7", 1), ("cifar100", "pgd7", 1)],
)
def test_frees_epochs_make_the_80000_iterations_of_its_code(data, row, m):
    trainer = read(CONFIGS / f"recipes/free_fast/{data}_wrn32_10_{row}.yaml")["trainer"]
    iterations_per_epoch = m * math.ceil(49_000 / 128)
    assert abs(trainer["max_epochs"] * iterations_per_epoch - 80_000) <= iterations_per_epoch / 2


@pytest.mark.parametrize("folder", ["configs", "scripts"])
def test_no_line_of_yaml_is_longer_than_one_of_python(folder):
    files = sorted((CONFIGS.parent / folder).rglob("*.yaml"))
    assert files
    lines = [(file.name, line) for file in files for line in file.read_text().splitlines()]
    assert [(name, line) for name, line in lines if len(line) > 120] == []


def test_every_recipe_logs_into_a_folder_that_is_called_as_it_is():
    for path in RECIPES:
        assert read(path)["trainer"]["logger"]["init_args"]["name"] == f"{path.parent.name}_{path.stem}"


def test_recipes_state_every_part_that_decides_their_numbers():
    for path in RECIPES:
        config = read(path)
        assert {"seed_everything", "trainer", "data", "model"} <= config.keys(), path
        parts = {"net", "attack", "val_attack", "test_attacks", "optimizer", "attack_bn_mode"}
        assert parts <= config["model"]["init_args"].keys(), path


def test_a_recipe_is_a_comment_and_what_is_its_own():
    lines = [line.strip() for path in CONFIGS.rglob("*.yaml") for line in path.read_text().splitlines()]
    assert len([line for line in lines if line and not line.startswith("#")]) <= 2400
    assert len([line for line in lines if "{class_path" in line]) <= 2
    for path in RECIPES:
        assert path.read_text().startswith("# "), path
        assert "\nextends:" in path.read_text(), path


def extended_by(paths):
    """The files that files extend, and those that these extend."""
    named = [(path, name) for path in paths for name in yaml.safe_load(path.read_text()).get("extends", [])]
    found = {(path.parent / name).resolve() for path, name in named}
    return found | extended_by(found) if found else found


def test_every_setting_is_a_recipes():
    assert SETTINGS
    assert set(SETTINGS) <= extended_by(RECIPES)


def test_no_recipe_has_moved():
    """The resolved recipes, independent of other packages' versions; a changed fragment moves many."""
    found, kept = digests(), LIST.read_text()
    moved = {line.split()[0] for line in set(found.splitlines()) ^ set(kept.splitlines())}
    assert found == kept, f"{', '.join(sorted(moved))}: where that is meant, python -m tests.recipe_digests"


def recipes_of_sat(row):
    return sorted((CONFIGS / "recipes/sat").glob(f"*_{row}.yaml"))


def test_sats_recipes_measure_the_gap_of_its_slides():
    for path in recipes_of_sat("*"):
        gap = {"class_path": "GeneralizationGap", "init_args": {"images": 1000}}
        assert read(path)["trainer"]["callbacks"].count(gap) == 1, path


def test_cats_recipes_train_with_the_steps_of_its_code_in_proportion_to_eps():
    for path in recipes_of_sat("cat"):
        attack = read(path)["model"]["init_args"]["attack"]["init_args"]
        assert attack["steps"] == 10, path
        assert magnitude(attack["step_size"]) == pytest.approx(magnitude(attack["eps"]) * 0.007 / 0.035), path


def last_epochs(tree):
    """Where the schedules of the callbacks end."""
    if isinstance(tree, list):
        return [epoch for branch in tree for epoch in last_epochs(branch)]
    if not isinstance(tree, dict):
        return []
    own = [*tree.get("times", []), *tree.get("ends", []), *([tree["end"]] if "end" in tree else [])]
    return own + last_epochs([*tree.values()])


def test_hsats_ramp_ends_with_psats():
    for path in recipes_of_sat("hsat"):
        psat = path.with_stem(path.stem.replace("hsat", "psat"))
        ends = [max(last_epochs(read(recipe)["trainer"]["callbacks"])) for recipe in (path, psat)]
        assert abs(ends[0] - ends[1]) <= 1, path


# Fragments.


@pytest.mark.parametrize("path", fragments("defense"), ids=name_of)
def test_a_defense_fragment_trains(path):
    method = getattr(defenses, read(path)["model"].get("class_path", "PGDAT"))  # base.yaml's, of a part for any method
    attack = "digits_fgsm" if issubclass(method, SingleStep) else "digits_pgd7"
    train_composed(composed(defense=path.stem, attack=attack), attack=attack)


#: The ramp that goes with a method, if it has one of its own.
RAMPS = {
    "dynamicat": "sat_ramp_dynamicat",
    "friendlyat": "friendly_ramp",
    "gat": "gat_ramp",
    "hsat": "sat_ramp_hsat",
    "nuat": "nuat_ramp",
    "nuat_h": "nuat_ramp",
    "nuat2": "nuat_wa_ramp",
    "psat": "sat_ramp",
}


#: ``Natural`` has no attack to ramp, and says so.
ATTACKING = [path for path in fragments("defense") if path.stem != "natural"]


@pytest.mark.parametrize("path", ATTACKING, ids=name_of)
def test_a_method_takes_a_ramp_an_average_and_the_monitor_at_once(path, tmp_path):
    method = getattr(defenses, read(path)["model"].get("class_path", "PGDAT"))
    ramp, average = RAMPS.get(path.stem, "eps_linear"), "ema_fast" if path.stem == "nuat2" else "ema"
    attack = "digits_fgsm" if issubclass(method, SingleStep) else "digits_pgd7"
    callbacks = flags_of(*(f"callback/{name}.yaml" for name in (ramp, average, "overfitting_monitor")))
    limits = {"max_epochs": 2, "limit_train_batches": 1, "limit_val_batches": 1, "log_every_n_steps": 1}
    brief = {
        "trainer": limits | {"logger": {"init_args": {"save_dir": str(tmp_path)}}},
        "data": {"init_args": {"batch_size": 8, "eval_batch_size": 8}},
    }
    if average == "ema_fast":
        brief["model"] = {"init_args": {"attack_average": "fast"}}
    Path("brief.yaml").write_text(yaml.safe_dump(brief))
    main(["fit", *composed(defense=path.stem, attack=attack), *callbacks, *flags_of(Path("brief.yaml"))])
    attribute = read(CONFIGS / "callback" / f"{ramp}.yaml")["trainer"]["callbacks+"][0]["init_args"]["attribute"]
    logged = next(tmp_path.glob("**/metrics.csv")).read_text().splitlines()[0].split(",")
    assert f"train/{attribute}" in logged
    assert any(key.startswith("monitor/") for key in logged)
    for name in ("best", "last"):
        checkpoint = torch.load(next(tmp_path.glob(f"**/{name}.ckpt")), weights_only=True)
        assert "current_model_state" in checkpoint, "the weights beside their average"


@pytest.mark.parametrize("path", fragments("attack"), ids=name_of)
def test_an_attack_fragment_trains_and_is_what_is_trained_with(path, capsys):
    data, net = {"digits": ("digits", "digits_cnn"), "mnist": ("mnist", "fast_cnn")}.get(
        path.stem.split("_")[0], ("cifar10", "resnet18")
    )
    base = [] if "attack" in read(path)["model"]["init_args"] else ["cifar_pgd10"]
    flags = [*composed(data, net, attack=None), *flags_of(*(f"attack/{name}.yaml" for name in base), path)]
    arguments = parsed(capsys, *flags)["model"]["init_args"]
    stated = read(path)["model"]["init_args"]
    assert list(arguments["test_attacks"]) == list(stated["test_attacks"])
    for name in stated.keys() - {"test_attacks"}:
        assert as_text(stated[name]["init_args"]).items() <= as_text(arguments[name]["init_args"]).items()
    train_composed(flags, data, net, attack=base[0] if base else path.stem)


def as_text(arguments):
    return {name: str(value) for name, value in arguments.items()}


@pytest.mark.parametrize("path", fragments("data"), ids=name_of)
def test_a_data_fragment_trains(path, data_root):
    if path.stem == "svhn":
        pytest.importorskip("scipy")
    classes = {"cifar100": 100, "imagenet100": 100, "image_folder": 2}.get(path.stem, 10)
    net = {"digits": "digits_cnn", "mnist": "fast_cnn"}.get(path.stem, "resnet18")
    own = {"root": str(data_root / "my_images"), "val_size": 2} if path.stem == "image_folder" else {}
    train_composed(composed(path.stem, net), path.stem, net, num_classes=classes, **own)


@pytest.mark.parametrize("path", fragments("net"), ids=name_of)
def test_a_net_fragment_names_a_net_that_can_be_built(path, capsys):
    net = parsed(capsys, *composed("cifar10", path.stem))["model"]["init_args"]["net"]
    room, _, name = net["class_path"].rpartition(".")
    assert room == "lit_robust.nets"
    assert name.removesuffix("_net") == path.stem
    assert net["init_args"]["num_classes"] is None, "the data's"
    with torch.device("meta"):
        built = getattr(__import__(room, fromlist=[name]), name)(**net["init_args"] | {"num_classes": 10})
    assert built.head.out_features == 10


@pytest.mark.parametrize("zoo", ["torchvision", "timm"])
def test_a_net_of_another_library_trains_with_the_datas_classes(zoo, tmp_path):
    name = "shufflenet_v2_x0_5" if zoo == "torchvision" else "resnet18"
    brief = {"model": {"init_args": {"net": {"init_args": {"name": name}}, "optimizer": {"init_args": {"lr": 1e-4}}}}}
    Path("small.yaml").write_text(yaml.safe_dump(brief))
    flags = [*composed("cifar100", zoo, attack="cifar_fgsm", defense="fgsmat"), *flags_of(Path("small.yaml"))]
    limits = {"max_epochs": 1, "limit_train_batches": 1, "limit_val_batches": 1}
    brief = {"trainer": limits | {"logger": {"init_args": {"save_dir": str(tmp_path)}}}}
    brief["data"] = {"init_args": {"batch_size": 4, "eval_batch_size": 4, "val_size": 100}}
    Path("brief.yaml").write_text(yaml.safe_dump(brief))
    main(["fit", *flags, *flags_of(Path("brief.yaml"))])
    saved = yaml.safe_load(next(tmp_path.glob("**/config.yaml")).read_text())["model"]["init_args"]["net"]["init_args"]
    assert saved["num_classes"] == 100
    net = load_net(next(tmp_path.glob("**/last.ckpt")))
    assert net.head.out_features == 100


@pytest.mark.parametrize("path", fragments("callback"), ids=name_of)
def test_a_callback_fragment_trains(path, capsys):
    ramp = read(path)["trainer"].get("callbacks+", [{}])[0].get("init_args", {}).get("attribute")
    ramped = {"lam": ("nuat", "digits_fgsm"), "tau": ("friendlyat", "digits_pgd7"), "c": ("dynamicat", "digits_pgd7")}
    defense, attack = ramped.get(ramp, ("pgdat", "digits_pgd7"))
    flags = composed(defense=defense, attack=attack, callback=path.stem)
    base, more = read(CONFIGS / "base.yaml")["trainer"]["callbacks"], read(path)["trainer"].get("callbacks+", [])
    found = [callback["class_path"].rpartition(".")[2] for callback in parsed(capsys, *flags)["trainer"]["callbacks"]]
    assert found == [callback["class_path"] for callback in [*base, *more]]
    # test_cli.py and the callbacks' own tests have these.
    if path.stem not in ("wandb", "adversarial_training", "progressive_resizing"):
        train_composed(flags, attack=attack)


def test_a_ramp_brings_the_epochs_that_it_is_for():
    for path in fragments("callback"):
        trainer = read(path)["trainer"]
        if path.stem != "eps_linear":  # it is over early in any training
            assert max(last_epochs(trainer), default=0) <= trainer.get("max_epochs", 0), path


@pytest.mark.parametrize("path", fragments("trainer"), ids=name_of)
def test_a_trainer_fragment_is_understood(path, capsys):
    trainer = parsed(capsys, *composed(trainer=path.stem))["trainer"]
    assert read(path)["trainer"].items() <= trainer.items()


# Pitfalls of composition.


def test_an_attack_fragment_after_a_defense_keeps_its_class_and_arguments(capsys):
    config = parsed(capsys, *composed(defense="natural"))["model"]
    assert config["class_path"] == "lit_robust.defenses.Natural"
    assert config["init_args"]["attack_bn_mode"] == "eval"
    assert float(config["init_args"]["attack"]["init_args"]["eps"]) == 0.15
    assert config["init_args"]["optimizer"]["init_args"]["lr"] == 0.1


def test_callbacks_of_several_files_and_of_the_shell_are_appended(capsys):
    flags = composed(callback="examples") + flags_of("callback/save_steps.yaml")
    config = parsed(capsys, *flags, "--trainer.callbacks+=LearningRateMonitor")
    names = [callback["class_path"].rpartition(".")[2] for callback in config["trainer"]["callbacks"]]
    assert names == ["ModelCheckpoint"] * 2 + ["AdversarialExamples", "ModelCheckpoint", "LearningRateMonitor"]


def test_the_test_attacks_of_a_later_file_replace_those_of_an_earlier_one(capsys):
    flags = composed("cifar10", "resnet18", attack="cifar_pgd10") + flags_of("attack/autoattack_v1.yaml")
    arguments = parsed(capsys, *flags)["model"]["init_args"]
    assert list(arguments["test_attacks"]) == ["autoattack_v1"]
    assert arguments["attack"]["init_args"]["steps"] == 10


def test_fractions_survive_the_composition(capsys):
    arguments = parsed(capsys, *composed("cifar10", "resnet18", attack="cifar_l2_pgd10"))["model"]["init_args"]
    assert arguments["attack"]["init_args"]["eps"] == "128/255"
    assert arguments["test_attacks"]["autoattack"]["init_args"]["eps"] == "128/255"


# What the rows of a test are called.


def rows_in(tree):
    """Name and class of each part that stands under a name of its own, at any depth."""
    if isinstance(tree, list):
        tree = dict(enumerate(tree))
    for name, value in tree.items() if isinstance(tree, dict) else ():
        if isinstance(value, dict) and "class_path" in value:
            yield str(name), value
        yield from rows_in(value)


ALL_FILES = sorted([*CONFIGS.rglob("*.yaml"), *(CONFIGS.parent / "scripts").glob("*.yaml")])
NAMED_BY_THEIR_POINT = [
    pytest.param(name, row, id=f"{path.relative_to(CONFIGS.parent)}:{name}")
    for path in ALL_FILES
    for name, row in rows_in(yaml.safe_load(path.read_text()))
    if name in ("pgd20", "pgd20_margin") or name.endswith("_last")
]


@pytest.mark.parametrize(("name", "row"), NAMED_BY_THEIR_POINT)
def test_a_row_is_named_by_the_point_that_its_attack_keeps(name, row):
    """One name means one attack: the default test's keep the worst point, the papers' end in _last."""
    kept = row["init_args"].get("keep", PGD().keep)
    assert kept == ("last" if name.endswith("_last") else "worst")


def test_both_kinds_of_rows_are_found():
    names = [param.values[0] for param in NAMED_BY_THEIR_POINT]
    assert {"pgd20", "pgd20_margin", "pgd20_last"} <= {*names}


def test_the_default_test_names_its_rows_likewise():
    attacks = default_test(0.1)
    assert all(attacks[name].keep == "worst" for name in ("pgd20", "pgd20_margin"))
