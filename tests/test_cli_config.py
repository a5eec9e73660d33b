"""The rules by which several configurations become one, a test for each."""

import itertools
import re
from pathlib import Path

import pytest
import torch
import yaml
from jsonargparse import _typehints

from lit_robust.attacks import PGD, Attack
from lit_robust.cli import main, verbs
from lit_robust.cli.classes import KEPT, find_class, same_class
from lit_robust.cli.config import gathered, load, merged
from lit_robust.magnitudes import magnitude
from tests.front_door import refusal, tiny

CONFIGS = Path(__file__).parent.parent / "configs"


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def tree(text):
    return yaml.safe_load(text)


def write(**files):
    """Write configurations, by their names; ``a__b`` is ``a/b.yaml``."""
    for name, text in files.items():
        path = Path(name.replace("__", "/")).with_suffix(".yaml")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def printed(capsys, *args):
    """The configuration of a command line."""
    with pytest.raises(SystemExit) as stop:
        main(["fit", *map(str, args), "--print_config"])
    said = capsys.readouterr()
    assert stop.value.code == 0, said.err
    return said.out


def model(capsys, *args):
    return yaml.safe_load(printed(capsys, *args))["model"]


# Mappings merge key by key.


def test_mappings_merge_key_by_key_and_anything_else_is_replaced():
    base = tree("trainer: {max_epochs: 1, devices: [0, 1], logger: {class_path: CSVLogger, init_args: {name: a}}}")
    over = tree("trainer: {max_epochs: 2, devices: [3], logger: false}")
    assert merged(base, over) == tree("trainer: {max_epochs: 2, devices: [3], logger: false}")
    assert merged(over, base) == base


def test_test_attacks_are_one_value():
    base = tree("model: {init_args: {test_attacks: {pgd20: {class_path: PGD, init_args: {steps: 20}}}}}")
    over = tree("model: {init_args: {test_attacks: {fgsm: {class_path: FGSM}}}}")
    assert merged(base, over) == over


def test_the_attacks_of_a_verb_are_one_value():
    over = tree("attacks: {fgsm: {class_path: FGSM}}")
    assert merged(tree("attacks: {pgd20: {class_path: PGD, init_args: {steps: 20}}}"), over) == over


def test_merging_leaves_what_is_merged_as_it_is():
    base, over = tree("a: {b: 1, c+: [1]}"), tree("a: {b: 2, c+: [2]}")
    assert merged(base, over) == tree("a: {b: 2, c+: [1, 2]}")
    assert (base, over) == (tree("a: {b: 1, c+: [1]}"), tree("a: {b: 2, c+: [2]}"))


# The same class merges, another one replaces.

SGD = "optimizer: {class_path: torch.optim.SGD, init_args: {lr: 0.1, weight_decay: 1}}"


@pytest.mark.parametrize("name", ["SGD", "torch.optim.SGD", "torch.optim.sgd.SGD"])
def test_a_class_is_the_same_by_whatever_name_it_is_imported(name):
    result = merged(tree(SGD), {"optimizer": {"class_path": name, "init_args": {"lr": 0.2}}})
    assert result["optimizer"]["init_args"] == {"lr": 0.2, "weight_decay": 1}


def test_another_class_replaces_its_node_whole():
    assert merged(tree(SGD), tree("optimizer: {class_path: Adam}")) == tree("optimizer: {class_path: Adam}")


def test_a_class_that_is_only_named_follows_the_same_rule():
    assert merged(tree(SGD), tree("optimizer: Adam")) == tree("optimizer: {class_path: Adam}")
    assert merged(tree(SGD), tree("optimizer: SGD"))["optimizer"]["init_args"] == {"lr": 0.1, "weight_decay": 1}
    adam = tree("optimizer: {class_path: Adam, init_args: {lr: 1}}")
    assert merged(tree("optimizer: Adam"), tree("optimizer: {init_args: {lr: 1}}")) == adam


def test_a_word_that_is_no_class_is_a_value():
    strategy = tree("strategy: {class_path: lightning.pytorch.strategies.DDPStrategy}")
    assert merged(strategy, tree("strategy: ddp")) == {"strategy": "ddp"}


def test_arguments_may_come_before_their_class():
    net = tree("net: {init_args: {mean: null}}"), tree("net: {class_path: lit_robust.nets.resnet18}")
    assert merged(*net) == tree("net: {class_path: lit_robust.nets.resnet18, init_args: {mean: null}}")


def test_classes_inside_another_class_go_with_it():
    delayed = "{class_path: lit_robust.schedules.PerEpoch, init_args: {schedule: {class_path: Linear}}}"
    assert merged(tree(f"lr_scheduler: {delayed}"), tree("lr_scheduler: {class_path: Cyclic}")) == {
        "lr_scheduler": {"class_path": "Cyclic"}
    }


def test_a_name_that_cannot_be_imported_is_left_to_the_parser():
    assert find_class("Sgd") is find_class("torch.optim.Sgd") is find_class("nowhere.Sgd") is None
    assert same_class("Sgd", "Sgd")
    assert not same_class("Sgd", "nowhere.Sgd")


def test_keys_and_names_may_be_anything_that_yaml_has():
    assert merged(tree("{1: {class_path: 2}}"), tree("{1: {class_path: null, 3: 4}}")) == tree(
        "1: {class_path: null, 3: 4}"
    )


# What belongs to the run stays.

OF_THE_RUN = [
    *("net", "attack", "val_attack", "test_attacks", "optimizer", "lr_scheduler", "lr_interval", "momentum"),
    *("gradient_clip_val", "channels_last", "compile", "fold_batchnorm"),
]


def test_another_method_keeps_net_attacks_and_optimization_and_nothing_else():
    arguments = dict.fromkeys([*OF_THE_RUN, "attack_bn_mode", "weight_perturbation", "lam"], 1)
    base = {"model": {"class_path": "NuAT", "init_args": arguments}}
    over = {"model": {"class_path": "lit_robust.defenses.GAT", "init_args": {"alpha": 2}}}
    stay = dict.fromkeys(OF_THE_RUN, 1)
    assert merged(base, over)["model"]["init_args"] == stay | {"alpha": 2}


def test_another_logger_keeps_the_runs_name_and_folder():
    base = tree("logger: {class_path: CSVLogger, init_args: {save_dir: runs, name: mine, prefix: x}}")
    wandb = merged(base, tree("logger: {class_path: WandbLogger}"))["logger"]
    assert wandb["init_args"] == {"save_dir": "runs", "name": "mine"}
    mlflow = merged(base, tree("logger: {class_path: MLFlowLogger}"))["logger"]
    assert mlflow["init_args"] == {"save_dir": "runs"}, "it has no argument name"


def test_what_stays_are_arguments_that_these_classes_have():
    for kind, names in KEPT.items():
        kinds = [
            cls for cls in map(find_class, ("PGDAT", "FreeAT", "CSVLogger", "WandbLogger")) if issubclass(cls, kind)
        ]
        assert kinds
        for cls in kinds:
            merged_with = merged(
                {"a": {"class_path": "Adam", "init_args": dict.fromkeys(names.split(), 1)}},
                {"a": {"class_path": cls.__name__}},
            )
            assert merged_with["a"]["init_args"].keys() == set(names.split())


# Callbacks.


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
def test_callbacks_are_appended_to_the_last_list_in_any_order_of_files(order):
    files = [tree("trainer: {callbacks: [a, b]}"), tree("trainer: {callbacks+: [c]}"), tree("trainer: {callbacks+: d}")]
    callbacks = merged(*(files[number] for number in order))["trainer"]["callbacks"]
    assert callbacks == ["a", "b", *("cd" if order.index(1) < order.index(2) else "dc")]


def test_a_later_list_replaces_the_list_and_not_what_is_appended():
    files = tree("{callbacks: [a], callbacks+: [b]}"), tree("callbacks: [c]")
    assert merged(*files) == tree("callbacks: [c, b]")


def test_callbacks_without_a_list_are_appended_to_the_parsers():
    assert merged(tree("callbacks+: [a]"), tree("callbacks+: [b]")) == tree("callbacks+: [a, b]")


# Files.


def test_a_file_is_laid_over_what_it_extends_in_order():
    write(one="{a: 1, b: 1, c: 1}", two="{b: 2, c: 2}", three="extends: [one.yaml, two.yaml]\nc: 3")
    assert load("three.yaml") == {"a": 1, "b": 2, "c": 3}


def test_paths_are_relative_to_the_file_that_names_them(monkeypatch):
    write(base="a: 1", papers__setting="extends: [../base.yaml]", papers__rows__row="extends: [../setting.yaml]")
    assert load("papers/rows/row.yaml") == {"a": 1}
    monkeypatch.chdir("papers/rows")
    assert load("row.yaml") == {"a": 1}
    assert load(str(Path("row.yaml").absolute())) == {"a": 1}


def test_yaml_in_place_of_a_file_is_read_in_the_working_directory():
    write(base="a: 1")
    assert load("{extends: [base.yaml], b: 2}") == {"a": 1, "b": 2}


def test_a_run_is_named_after_the_file_that_is_given_where_the_name_says_so(monkeypatch):
    named = "trainer: {logger: {init_args: {name: '{folder}_{file}'}}}"
    write(base=named, papers__row="extends: [../base.yaml]", papers__own=named.replace("{folder}_{file}", "own"))

    def name(source):
        return load(source)["trainer"]["logger"]["init_args"]["name"]

    assert name("papers/row.yaml") == "papers_row"
    assert name("papers/own.yaml") == "own"
    assert name("extends: [papers/row.yaml]") == "run"
    monkeypatch.chdir("papers")
    assert name("row.yaml") == "papers_row"


@pytest.mark.parametrize("logger", ["false", "CSVLogger", "[CSVLogger]", "null", "{class_path: CSVLogger}"])
def test_other_loggers_are_left_as_they_are(logger):
    write(base=f"trainer: {{logger: {logger}}}")
    assert load("base.yaml") == tree(f"trainer: {{logger: {logger}}}")


def test_a_part_may_be_in_its_own_file_next_to_the_configuration():
    write(parts__all="model: mine.yaml", parts__mine="{class_path: NuAT, init_args: {lam: 7}}")
    assert load("parts/all.yaml") == tree("model: {class_path: NuAT, init_args: {lam: 7}}")


def test_files_are_read_as_jsonargparse_reads_them():
    write(numbers="{a: 1e-3, b: '1e-3', c: 2024-01-01, d: .inf}")
    assert load("numbers.yaml") == {"a": 0.001, "b": "1e-3", "c": "2024-01-01", "d": float("inf")}
    _, text = gathered(["-c", "numbers.yaml"], ())
    assert load(text) == load("numbers.yaml")


def test_a_file_may_be_extended_twice_without_being_a_cycle():
    write(base="a: 1", one="extends: [base.yaml]", two="extends: [base.yaml]", row="extends: [one.yaml, two.yaml]")
    assert load("row.yaml") == {"a": 1}


# The command line.


@pytest.mark.parametrize("given", [["-c", "a.yaml"], ["--config", "a.yaml"], ["--config=a.yaml"], ["-c=a.yaml"]])
def test_files_come_before_flags_wherever_they_stand(given):
    write(a="{a: 1, b: 1}", b="b: 2")
    args = gathered(["--seed_everything", "3", "fit", "--x", "1", *given, "--y=2", "-c", "b.yaml"], ("fit",))
    assert args[:4] == ["--seed_everything", "3", "fit", "-c"]
    assert args[5:] == ["--x", "1", "--y=2"]
    assert load(args[4]) == {"a": 1, "b": 2}


def test_files_before_a_command_are_the_commands_parsers_own():
    write(a="fit: {trainer: {max_epochs: 7}}", b="trainer: {log_every_n_steps: 9}")
    args = gathered(["-c", "a.yaml", "fit", "-c", "b.yaml"], ("fit", "test"))
    assert [load(args[number]) for number in (1, 4)] == [load("a.yaml"), load("b.yaml")]


def test_a_file_without_a_name_is_left_to_the_parser(capsys):
    assert gathered(["fit", "-c"], ("fit",)) == ["fit", "-c"]
    assert "-c/--config" in refusal(capsys, "fit", "-c")


def test_flags_beat_files_wherever_they_stand(capsys):
    write(later="{trainer: {max_epochs: 5}, model: {init_args: {attack: {init_args: {steps: 9}}}}}")
    flags = ["--trainer.max_epochs", 4, "--model.attack.steps", 3]
    config = yaml.safe_load(printed(capsys, *flags, "-c", tiny(Path()), "-c", "later.yaml"))
    assert config["trainer"]["max_epochs"] == 4
    assert config["model"]["init_args"]["attack"]["init_args"]["steps"] == 3


def test_a_configuration_for_all_commands_may_stand_before_one(capsys):
    write(every="fit: {trainer: {max_epochs: 7}}")
    with pytest.raises(SystemExit):
        main(["-c", "every.yaml", "fit", "-c", tiny(Path()), "--print_config"])
    assert yaml.safe_load(capsys.readouterr().out)["trainer"]["max_epochs"] == 1  # tiny's, which comes later


ADAM = torch.optim.Adam([torch.zeros(1)]).defaults


@pytest.mark.parametrize(
    "adam",
    [
        ["--model.optimizer", "Adam"],
        ["--model.optimizer=torch.optim.Adam"],
        ["--model.optimizer", "{class_path: Adam}"],
        ["--model.init_args.optimizer", "Adam"],
        ["-c", "{model: {init_args: {optimizer: {class_path: Adam}}}}"],
    ],
    ids=str,
)
@pytest.mark.parametrize("file", ["tiny", "no optimizer"])
def test_another_optimizer_starts_from_its_own_defaults(adam, file, capsys):
    """Over another file's and over the method's own, which is SGD with lr 0.1 and weight decay."""
    path = Path(tiny(Path()))
    if file == "no optimizer":
        path.write_text("\n".join(line for line in path.read_text().splitlines() if "optimizer" not in line))
    optimizer = model(capsys, "-c", path, *adam)["init_args"]["optimizer"]
    assert optimizer["class_path"] == "torch.optim.Adam"
    assert (optimizer["init_args"]["lr"], optimizer["init_args"]["weight_decay"]) == (ADAM["lr"], ADAM["weight_decay"])


def test_a_flag_that_names_the_same_class_changes_nothing(capsys):
    before = model(capsys, "-c", tiny(Path()))
    assert before["init_args"]["optimizer"]["init_args"]["lr"] == 0.05
    assert model(capsys, "-c", tiny(Path()), "--model", "PGDAT", "--model.optimizer", "SGD") == before


def test_arguments_given_behind_a_class_are_the_new_ones(capsys):
    flags = ["--model.optimizer", "Adam", "--model.optimizer.lr", "1e-4"]
    assert model(capsys, "-c", tiny(Path()), *flags)["init_args"]["optimizer"]["init_args"]["lr"] == 1e-4


def test_another_method_on_the_command_line_keeps_what_a_file_would_keep(capsys):
    numbers = "{lam: 7, attack_bn_mode: train, weight_perturbation: {gamma: 0.01}, gradient_clip_val: 3}"
    nuat = f"{{model: {{class_path: NuAT, init_args: {numbers}}}}}"
    named = model(capsys, "-c", tiny(Path()), "-c", nuat, "--model", "GAT")
    assert named == model(capsys, "-c", tiny(Path()), "-c", nuat, "-c", "{model: {class_path: GAT}}")
    assert named["init_args"]["gradient_clip_val"] == 3
    assert named["init_args"]["optimizer"]["init_args"]["lr"] == 0.05
    assert named["init_args"]["net"]["init_args"]["width"] == 4
    own = model(capsys, "-c", tiny(Path()), "--model", "GAT")["init_args"]
    for name in ("lam", "attack_bn_mode", "weight_perturbation"):
        assert named["init_args"][name] == own[name] != yaml.safe_load(numbers)[name]


def test_other_data_on_the_command_line_start_from_their_own_defaults(capsys):
    data = yaml.safe_load(printed(capsys, "-c", tiny(Path()), "--data", "MNISTDataModule"))["data"]
    assert data["class_path"] == "lit_robust.data.MNISTDataModule"
    assert data["init_args"]["val_size"] != 20
    assert data["init_args"]["train_size"] is None


def test_another_logger_on_the_command_line_keeps_the_runs_name_and_folder(capsys):
    config = yaml.safe_load(printed(capsys, "-c", tiny(Path()), "--trainer.logger", "TensorBoardLogger"))
    arguments = config["trainer"]["logger"]["init_args"]
    assert (arguments["save_dir"], arguments["name"]) == ("runs", "tiny")


def test_what_is_printed_is_the_whole_configuration_and_comes_to_itself(capsys):
    recipe = CONFIGS / "recipes/nuat/cifar10_resnet18_gat_wa.yaml"
    whole = printed(capsys, "-c", recipe)
    assert "extends" not in whole
    Path("mine.yaml").write_text(whole)
    assert printed(capsys, "-c", "mine.yaml") == whole


def test_jsonargparse_asks_what_stays_where_we_answer():
    """The function is replaced during each command only; without it the rule would have no effect."""
    asked = _typehints.discard_init_args_on_class_path_change
    assert asked.__module__ == "jsonargparse._typehints"
    with pytest.raises(SystemExit):
        main(["fit", "-c", tiny(Path()), "--data.batch_size", "0"])
    assert _typehints.discard_init_args_on_class_path_change is asked


@pytest.mark.parametrize("text", ["trainer: 5", "model: {init_args: 7}", "model: {class_path: [1]}"])
def test_a_value_in_place_of_a_mapping_is_refused_before_a_later_file_hides_it(text, tmp_path, capsys):
    write(
        wrong=text,
        good="trainer: {max_epochs: 2}\nmodel: {class_path: PGDAT, init_args: {}}",
        base="extends: [wrong.yaml]",
    )
    for name in ("wrong.yaml", "base.yaml"):
        says = refusal(capsys, "fit", "-c", tiny(tmp_path), "-c", name, "-c", "good.yaml")
        assert re.search("must be (a mapping|the name)", says), says


# A dictionary or a list that a flag gives anew.

QUICKSTART = ["-c", CONFIGS / "quickstart.yaml"]
STRONG = "{class_path: PGD, init_args: {eps: 0.15, step_size: 0.02, steps: 20, keep: worst}}"
OWN = {"eps": 0.15, "steps": 20, "step_size": None, "keep": "last", "loss": "lit_robust.losses.ce"}


def attack_in(dictionary, name="pgd20"):
    """The arguments of an attack, of those in OWN."""
    arguments = dictionary[name]["init_args"]
    return {
        key: magnitude(arguments[key]) if key in ("eps", "step_size") and arguments[key] else arguments[key]
        for key in OWN
    }


@pytest.mark.parametrize(
    "flags",
    [
        ["--model.test_attacks", "{pgd20: {class_path: PGD, init_args: {eps: 0.15, steps: 20}}}"],
        ["--model.init_args.test_attacks", "{pgd20: {class_path: PGD, init_args: {eps: 0.15, steps: 20}}}"],
        ["--model.test_attacks={pgd20: {class_path: lit_robust.attacks.PGD, init_args: {eps: 0.15, steps: 20}}}"],
        ["--model.test_attacks", "{other: FGSM, pgd20: {class_path: PGD, init_args: {eps: 0.15, steps: 20}}}"],
        ["--model", "{init_args: {test_attacks: {pgd20: {class_path: PGD, init_args: {eps: 0.15, steps: 20}}}}}"],
        ["--model.test_attacks", "{pgd20: PGD}", "--model.test_attacks.pgd20.eps=0.15",
         "--model.test_attacks.pgd20.steps=20"],
    ],
)  # fmt: skip
def test_an_attack_in_a_dictionary_given_anew_starts_from_its_own_defaults(flags, capsys):
    attacks = model(capsys, *QUICKSTART, *flags)["init_args"]["test_attacks"]
    assert attack_in(attacks) == OWN
    assert attacks.keys() == ({"other", "pgd20"} if "other" in flags[-1] else {"pgd20"})


def test_one_argument_of_an_attack_in_a_dictionary_leaves_the_others(capsys):
    flags = "--model.test_attacks.pgd20.eps", 0.1, "--model.test_attacks.pgd20.steps", 30
    attacks = model(capsys, *QUICKSTART, *flags)["init_args"]["test_attacks"]
    assert list(attacks) == ["pgd20", "pgd20_margin", "gama40", "autoattack"]
    assert attack_in(attacks) == OWN | {"eps": 0.1, "steps": 30, "step_size": 0.02, "keep": "worst"}


def test_one_entry_of_a_dictionary_given_anew_leaves_the_others_and_merges_as_the_same_class_does(capsys):
    flags = "--model.test_attacks.pgd20", "{class_path: PGD, init_args: {steps: 30}}"
    attacks = model(capsys, *QUICKSTART, *flags)["init_args"]["test_attacks"]
    assert list(attacks) == ["pgd20", "pgd20_margin", "gama40", "autoattack"]
    assert attack_in(attacks) == OWN | {"steps": 30, "step_size": 0.02, "keep": "worst"}


CALLBACK = f"{{class_path: RobustAccuracy, init_args: {{attacks: {{pgd20: {STRONG}}}, alarm_images: 7}}}}"


def test_the_attacks_of_a_callback_given_anew_start_from_their_own_defaults(capsys):
    write(more=f"trainer: {{callbacks+: [{CALLBACK}]}}")
    flags = (
        "-c",
        "more.yaml",
        "--trainer.callbacks.attacks",
        "{pgd20: {class_path: PGD, init_args: {eps: 0.15, steps: 20}}}",
    )
    *_, last = yaml.safe_load(printed(capsys, *QUICKSTART, *flags))["trainer"]["callbacks"]
    assert attack_in(last["init_args"]["attacks"]) == OWN
    assert last["init_args"]["alarm_images"] == 7


def test_a_list_of_callbacks_given_anew_starts_from_their_own_defaults(capsys):
    write(more=f"trainer: {{callbacks: [{CALLBACK}]}}")
    (last,) = yaml.safe_load(
        printed(
            capsys, "-c", tiny(Path()), "-c", "more.yaml", "--trainer.callbacks",
            "[{class_path: RobustAccuracy, init_args: {attacks: {pgd20: {class_path: PGD, init_args: {eps: 0.15, "
            "steps: 20}}}}}]",
        )
    )["trainer"]["callbacks"]  # fmt: skip
    assert attack_in(last["init_args"]["attacks"]) == OWN
    assert last["init_args"]["alarm_images"] == 400


def test_one_argument_of_the_last_callback_leaves_the_others(capsys):
    write(more=f"trainer: {{callbacks+: [{CALLBACK}]}}")
    flags = "-c", "more.yaml", "--trainer.callbacks.attacks.pgd20.eps", 0.1
    *others, last = yaml.safe_load(printed(capsys, *QUICKSTART, *flags))["trainer"]["callbacks"]
    assert attack_in(last["init_args"]["attacks"]) == OWN | {"eps": 0.1, "step_size": 0.02, "keep": "worst"}
    assert others


def test_the_attacks_of_a_verb_given_anew_start_from_their_own_defaults(monkeypatch):
    given = {}

    def compare(checkpoints: list[str], attacks: dict[str, Attack] | None = None) -> None:
        given.update(attacks)

    monkeypatch.setitem(verbs.VERBS, "compare", compare)
    write(a=f"attacks: {{pgd20: {STRONG}}}")
    main(["compare", "a.ckpt", "-c", "a.yaml", "--attacks", "{pgd20: {class_path: PGD, init_args: {eps: 0.15}}}"])
    assert given == {"pgd20": PGD(0.15)}
