"""The scripts that produce the committed results, on tiny data."""

import copy
import json
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch
import yaml
from jsonargparse import ArgumentParser
from lightning.pytorch import Callback
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lit_robust.attacks import FGSM, PGD
from lit_robust.batch import Batch
from lit_robust.defenses import Defense
from lit_robust.measures.accuracy import Accuracy
from tests.tiny import assert_equal

SCRIPTS = Path(__file__).parent.parent / "scripts"

TINY = """
base:
  seed_everything: 0
  trainer:
    accelerator: cpu
    devices: 1
    max_epochs: EPOCHS
    logger: false
    enable_progress_bar: false
    enable_model_summary: false
    num_sanity_val_steps: 0
    callbacks: []
    callbacks+:
      - class_path: CatastrophicOverfittingMonitor
        init_args: {rule: {class_path: lit_robust.callbacks.PGDDrop, init_args: {threshold: 1.0}}}
      - {class_path: cpu_budget_parts.Diary, init_args: {eps: EPS}}
      - class_path: ModelCheckpoint
        init_args: {filename: best, monitor: val/acc/robust, mode: max, enable_version_counter: false}
      - class_path: ModelCheckpoint
        init_args: {filename: last, save_on_train_epoch_end: true, enable_version_counter: false}
  data:
    class_path: DigitsDataModule
    init_args: {batch_size: 32, val_size: 20, train_size: 128, test_size: 64, augment: false}
  model:
    class_path: Natural
    init_args:
      net: {class_path: lit_robust.nets.digits_cnn, init_args: {width: 8}}
      attack: {class_path: FGSM, init_args: {eps: EPS}}
      optimizer: {class_path: torch.optim.Adam, init_args: {lr: 5.0e-3}}
      val_attack: {class_path: PGD, init_args: {eps: EPS, step_size: EPS/2, steps: 2}}
      test_attacks:
        pgd40: {class_path: PGD, init_args: {eps: EPS, step_size: EPS/2, steps: 2}}
sets:
  tiny:
    eps: 0.1
    epochs: 3
    transfer: [natural]
    rows:
      natural: {passes: 1}
      freeat: {passes: 3, model: {class_path: FreeAT, init_args: {m: 3}}}
  costs:
    eps: 0.1
    epochs: 1
    rows:
      fgsmat: {passes: 2, model: {class_path: FGSMAT}}
      pgdat:
        passes: 4
        model:
          class_path: PGDAT
          init_args: {attack: {class_path: PGD, init_args: {eps: EPS, step_size: EPS, steps: 3}}}
      rmgm: {passes: 4, model: {class_path: RMGM}}
      gat: {passes: 3.333, model: {class_path: GAT}}
      nuat2: {passes: 4.333, model: {class_path: NuAT2}}
      nuat2_wa:
        passes: 4.333
        trainer: {callbacks: [{class_path: EMAWeights, init_args: {extra: {fast: 0.9}}}]}
        model: {class_path: NuAT2, init_args: {attack_average: fast}}
  seeds:
    eps: 0.1
    epochs: 1
    seeds: [0, 1]
    rows:
      natural: {passes: 1}
  delayed:
    eps: 0.1
    epochs: 2
    rows:
      dat:
        passes: null
        trainer: {callbacks: [{class_path: DelayedStart, init_args: {at_epoch: 1}}]}
        model: {class_path: FGSMAT}
"""


@pytest.fixture
def budget(monkeypatch, tmp_path):
    """The script, with the tiny rows and its files in a folder of their own."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import cpu_budget

    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.yaml").write_text(TINY)
    monkeypatch.setattr(cpu_budget, "ROWS", tmp_path / "rows.yaml")
    monkeypatch.setattr(cpu_budget, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(cpu_budget, "RUNS", tmp_path / "runs")
    yield cpu_budget
    torch.set_flush_denormal(False)
    for name in ("cpu_budget", "cpu_budget_parts", "cpu_budget_results"):
        sys.modules.pop(name, None)


def results(name="tiny"):
    return json.loads(Path(f"results/cpu_{name}.json").read_text())["rows"]


def change(before, after):
    path = Path("rows.yaml")
    assert before in path.read_text()
    path.write_text(path.read_text().replace(before, after))


# Rows are data.


def test_a_row_is_laid_over_the_base_and_its_callbacks_come_before_the_bases(budget):
    row = budget.rows_of(budget.load(str(budget.ROWS)), "delayed")["dat"]["config"]
    assert row["model"]["class_path"] == "FGSMAT"
    assert row["model"]["init_args"]["attack"] == {"class_path": "FGSM", "init_args": {"eps": 0.1}}
    names = [callback["class_path"].rpartition(".")[2] for callback in row["trainer"]["callbacks"]]
    assert names == ["DelayedStart", "CatastrophicOverfittingMonitor", "Diary", "ModelCheckpoint", "ModelCheckpoint"]


@pytest.mark.parametrize(
    ("text", "number"),
    [("EPS", 0.2), ("EPS/4", 0.05), ("2.5*EPS", 0.5), ("EPOCHS", 15), ("2*EPOCHS/3", 10), ("0.9*EPOCHS", 13.5)],
)
def test_eps_and_epochs_stand_for_numbers(budget, text, number):
    filled = budget.filled({"a": [text, "EPSILON"]}, eps=0.2, epochs=15)["a"]
    assert filled == [number, "EPSILON"]
    assert isinstance(filled[0], type(number))


def test_a_set_may_have_its_rows_once_for_each_seed(budget):
    rows = budget.rows_of(yaml.safe_load(TINY), "seeds")
    assert {name: row["config"]["seed_everything"] for name, row in rows.items()} == {"natural@0": 0, "natural@1": 1}


def test_every_row_that_is_committed_is_understood(budget):
    """A mistake in the last row would otherwise be found after an hour."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Defense, "model")
    parser.add_argument("--callbacks", type=list[Callback])
    text = budget.load(str(SCRIPTS / "cpu_budget.yaml"))
    common = text["base"]["trainer"]["callbacks+"]
    for name, chosen in text["sets"].items():
        work = budget.Work(name, text)
        assert set(work.transfer) <= {row.partition("@")[0] for row in work.rows}
        if next(other for other in text["sets"].values() if other["rows"] == chosen["rows"]) is not chosen:
            continue  # the rows of another set, at another eps
        for said in [*work.rows.values()][:: len(chosen.get("seeds", "0"))]:
            callbacks = said["config"]["trainer"]["callbacks"]
            own = callbacks if said is next(iter(work.rows.values())) else callbacks[: -len(common)]
            model = budget.merged(said["config"]["model"], {"init_args": {"num_classes": 10}})
            arguments = parser.parse_object({"model": model, "callbacks": own}).as_dict()["model"]["init_args"]
            attacks = [arguments["attack"], arguments["val_attack"], *arguments["test_attacks"].values()]
            assert all(attack["init_args"]["eps"] >= said["eps"] for attack in attacks)


# A run.


def test_a_result_says_what_it_comes_from(budget, capsys):
    budget.main(["tiny"])
    rows = results()
    assert list(rows) == ["natural", "freeat"]
    row = rows["freeat"]
    assert row["config"] == budget.rows_of(yaml.safe_load(TINY), "tiny")["freeat"]["config"]
    assert row["md5"].keys() == {"train", "val", "test"}
    assert row["versions"]["torch"] == torch.__version__
    assert row["hardware"]["threads"] == 1
    assert row["last"].keys() == {"clean", "pgd40", "transfer"}
    assert row["best"].keys() == {"clean", "pgd40"}
    diary = row["diary"]
    assert {len(numbers) for numbers in diary.values()} == {3}
    named = {"seconds", "cpu_seconds", "val/acc/robust", "val/acc/fgsm", "monitor/PGDDrop/acc/pgd", "train/loss"}
    assert named <= diary.keys()
    table = capsys.readouterr().out.splitlines()[-6:-2]
    assert [line.split(" | ")[0] for line in table] == ["| row", "| ---", "| natural", "| freeat"]
    assert len({line.count("|") for line in table}) == 1


def denormals_are_0():
    return float(torch.tensor(1e-38) / 10) == 0


def test_denormal_numbers_are_0_while_a_row_trains_and_not_while_it_is_attacked(budget, monkeypatch):
    seen = {}
    for owner, name in ((budget, "train"), (budget, "surviving")):
        original = getattr(owner, name)

        def spied(*args, name=name, original=original, **kwargs):
            seen.setdefault(name, set()).add(denormals_are_0())
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, spied)
    budget.main(["tiny", "--rows", "natural"])
    assert seen == {"train": {True}, "surviving": {False}}


class Begun(Exception):
    """In place of a process that begins anew."""


def test_of_several_threads_a_new_process_attacks_since_threads_keep_what_held_when_they_began(budget, monkeypatch):
    def execv(program, words):
        raise Begun(program, *words)

    monkeypatch.setattr(budget.os, "execv", execv)
    monkeypatch.setattr(sys, "argv", ["cpu_budget.py", "tiny"])
    with pytest.raises(Begun) as begun:
        budget.main(["tiny", "--rows", "natural", "--threads", "2"])
    assert begun.value.args == (sys.executable, sys.executable, "cpu_budget.py", "tiny", "--attack")
    assert results()["natural"]["last"] == {}
    torch.set_flush_denormal(False)
    monkeypatch.setattr(budget, "begin_training", None)
    budget.main(["tiny", "--rows", "natural", "--threads", "2", "--attack"])
    assert results()["natural"]["last"].keys() == {"clean", "pgd40"}


def test_what_is_not_trained_cannot_be_attacked(budget, capsys):
    with pytest.raises(SystemExit):
        budget.main(["tiny", "--attack"])
    assert "--attack: natural, freeat must be trained first: leave it out." in capsys.readouterr().err


def test_an_accuracy_comes_with_its_wilson_interval(budget):
    budget.main(["tiny", "--rows", "natural"])
    value, low, high, n = results()["natural"]["last"]["pgd40"]
    expected = Accuracy(value / 100, n)
    assert n == 64
    assert [low, high] == pytest.approx([100 * bound for bound in expected.interval], abs=0.02)


def test_what_is_done_is_not_done_again(budget, capsys):
    budget.main(["tiny", "--rows", "natural"])
    before = Path("results/cpu_tiny.json").read_text()
    capsys.readouterr()
    budget.main(["tiny", "--rows", "natural"])
    assert "natural: training" not in capsys.readouterr().out
    assert Path("results/cpu_tiny.json").read_text() == before


def test_seconds_are_measured_again_only_where_all_else_comes_out_the_same(budget):
    budget.main(["costs", "--rows", "fgsmat"])
    path = Path("results/cpu_costs.json")
    content = json.loads(path.read_text())
    content["rows"]["fgsmat"]["diary"]["seconds"] = [1000.0]
    path.write_text(json.dumps(content))
    budget.main(["costs", "--rows", "fgsmat", "--time-again"])
    again = results("costs")["fgsmat"]
    assert sum(again["diary"]["seconds"]) < 1000
    assert again["last"] == content["rows"]["fgsmat"]["last"]
    content["rows"]["fgsmat"]["diary"]["train/loss"] = [9.0]
    path.write_text(json.dumps(content))
    with pytest.raises(SystemExit, match=r"fgsmat: train/loss differ"):
        budget.main(["costs", "--rows", "fgsmat", "--time-again"])
    assert results("costs") == content["rows"]


def test_a_row_that_is_done_needs_no_checkpoint_and_one_that_is_not_does(budget, capsys):
    """So results that are kept elsewhere, as in a repository, are gone on with on another machine."""
    budget.main(["tiny", "--rows", "natural"])
    shutil.rmtree("runs")
    capsys.readouterr()
    budget.main(["tiny", "--rows", "natural"])
    assert "natural: training" not in capsys.readouterr().out
    shutil.rmtree("runs")
    change("      test_attacks:\n", "      test_attacks:\n        fgsm: {class_path: FGSM, init_args: {eps: EPS}}\n")
    budget.main(["tiny", "--rows", "natural"])
    assert "natural: training" in capsys.readouterr().out
    assert results()["natural"]["last"].keys() == {"clean", "fgsm", "pgd40"}


def test_alarms_are_looked_for_after_the_default_test_and_once(budget, monkeypatch):
    said = "{{class_path: PGD, init_args: {{eps: EPS, steps: {}}}}}"
    names = sorted(budget.DEFAULT_TEST)
    attacks = "".join(f"        {name}: {said.format(steps)}\n" for steps, name in enumerate(names, start=1))
    change("      test_attacks:\n", f"      test_attacks:\n{attacks}")
    monkeypatch.setattr(budget, "commit", lambda: "now")
    budget.main(["tiny", "--rows", "natural"])
    row = results()["natural"]
    assert isinstance(row["alarms"], list)
    assert row["alarms_commit"] == "now"
    assert 0 <= row["worst"] <= row["last"]["clean"][0]
    monkeypatch.setattr(budget, "commit", lambda: "later")
    budget.main(["tiny", "--rows", "natural"])
    assert results()["natural"] == row
    change("steps: 1}", "steps: 4}")  # of the default test
    budget.main(["tiny", "--rows", "natural"])
    assert results()["natural"]["alarms_commit"] == "later"
    shutil.rmtree("runs")
    row = results()["natural"]
    budget.main(["tiny", "--rows", "natural"])
    assert results()["natural"] == row


def test_the_default_test_attacks_the_folded_net_and_the_net_itself_is_probed(budget, monkeypatch):
    """As a test of the library does."""
    seen, net = [], torch.nn.Identity()
    work = budget.Work("tiny", yaml.safe_load(TINY))
    images = Batch(torch.zeros(2, 1), torch.zeros(2), torch.arange(2), torch.ones(2))
    monkeypatch.setattr(budget, "DEFAULT_TEST", {"pgd40"})
    monkeypatch.setattr(budget, "in_one", lambda loader: images)
    monkeypatch.setattr(budget, "read_net", lambda path: net)
    monkeypatch.setattr(budget, "FoldedNet", lambda: lambda net, x: "folded")

    def surviving(of, attacks, part, attacked=None):
        seen.append((of, attacked))
        return {"worst": torch.ones(2)}

    monkeypatch.setattr(budget, "surviving", surviving)
    monkeypatch.setattr(budget.Alarms, "update", lambda alarms, of, *rest: seen.append(of))
    monkeypatch.setattr(budget.Alarms, "compute", lambda alarms: {})
    with budget.opened(work.path) as found:
        found["rows"] = {"natural": {"last": {"pgd40": []}}}
    work.probe("natural")
    assert seen == [(net, "folded"), net]
    assert results()["natural"]["worst"] == 100


@pytest.mark.parametrize(("rows", "told"), [(["natural"], "1 row: "), (["natural", "freeat"], "2 rows: ")])
def test_an_estimate_counts_its_rows(budget, rows, told):
    assert budget.Work("tiny", yaml.safe_load(TINY)).estimate(rows).startswith(told)


def test_an_attack_that_is_added_is_all_that_is_done(budget, capsys):
    budget.main(["tiny", "--rows", "natural"])
    before = results()["natural"]["last"]
    capsys.readouterr()
    change("      test_attacks:\n", "      test_attacks:\n        fgsm: {class_path: FGSM, init_args: {eps: EPS}}\n")
    budget.main(["tiny", "--rows", "natural"])
    assert "natural: training" not in capsys.readouterr().out
    after = results()["natural"]["last"]
    assert after.keys() - before.keys() == {"fgsm"}
    assert all(after[name] == value for name, value in before.items())


def test_a_row_with_another_configuration_is_trained_anew(budget):
    budget.main(["tiny", "--rows", "natural"])
    before = results()["natural"]
    change("lr: 5.0e-3", "lr: 1.0e-2")
    budget.main(["tiny", "--rows", "natural"])
    after = results()["natural"]
    assert after["diary"]["train/loss"] != before["diary"]["train/loss"]
    assert len(after["diary"]["train/loss"]) == 3


def test_a_trained_row_takes_attacks_that_are_new_and_drops_those_that_have_changed(budget):
    def config(**attacks):
        return {"model": {"init_args": {"test_attacks": attacks}}}

    record = {
        "config": config(a=1, b=1, c=1),
        "last": {"clean": 0, "a": 0, "b": 0, "c": 0},
        "best": {"clean": 0, "b": 0},
    }
    budget.take_attacks(record, config(a=1, b=2, d=1))
    assert record == {"config": config(a=1, b=2, d=1), "last": {"clean": 0, "a": 0}, "best": {"clean": 0}}


def test_what_other_code_has_trained_is_trained_anew_and_never_called_this_codes(budget, monkeypatch):
    trained = []
    for code in ("this", "this", "other"):
        monkeypatch.setattr(budget, "code_of", lambda *parts, code=code: code)
        budget.main(["tiny", "--rows", "natural"])
        trained.append(results()["natural"])
        shutil.rmtree("results")
    times = [record["diary"]["cpu_seconds"] for record in trained]
    assert times[0] == times[1] != times[2]
    assert [record["code"] for record in trained] == ["this", "this", "other"]


@pytest.mark.parametrize(("by", "first"), [("exception", 0), ("signal", 2)])
def test_a_killed_row_resumes_and_ends_like_an_uninterrupted_one(by, first, budget, monkeypatch):
    """A signal lets the batch end and its checkpoint be written."""
    budget.main(["tiny", "--rows", "freeat"])
    whole = results()["freeat"]
    shutil.rmtree("results")
    shutil.rmtree("runs")
    start, began = budget.Diary.on_train_batch_start, []

    def killed(diary, trainer, module, batch, batch_idx):
        if (trainer.current_epoch, batch_idx) == (2, 1):
            if by == "exception":
                raise InterruptedError
            signal.raise_signal(signal.SIGTERM)
        start(diary, trainer, module, batch, batch_idx)

    def watched(diary, trainer, module, batch, batch_idx):
        began.append((trainer.current_epoch, batch_idx))
        start(diary, trainer, module, batch, batch_idx)

    monkeypatch.setattr(budget.Diary, "on_train_batch_start", killed)
    with pytest.raises((InterruptedError, SIGTERMException)):
        budget.main(["tiny", "--rows", "freeat"])
    assert not Path("results").exists()
    monkeypatch.setattr(budget.Diary, "on_train_batch_start", watched)
    budget.main(["tiny", "--rows", "freeat"])
    resumed = results()["freeat"]
    assert began == [(2, batch) for batch in range(first, 4)]
    for name in ("train/loss", "val/acc/robust", "monitor/PGDDrop/acc/pgd", "backwards"):
        assert resumed["diary"][name] == whole["diary"][name]
    assert (resumed["last"], resumed["best"]) == (whole["last"], whole["best"])


def test_the_table_has_the_epochs_in_which_each_rule_reported(budget):
    from cpu_budget_results import reports

    flag = "train/catastrophic_overfitting"
    rules = {f"{flag}/PGDDrop": [0, 0, 1], f"{flag}/FGSMGap": [0, 1, 1]}
    assert reports(rules | {flag: [0, 1, 1]}) == "2 (FGSMGap), 3 (PGDDrop, FGSMGap)"
    assert reports({flag: [0, 0, 0]}) == "none"


def test_rows_with_several_seeds_have_a_table_of_their_own(budget):
    from cpu_budget_results import over_seeds

    def record(clean, cpu, adversarial):
        diary = {"train/loss": [2.0, clean / 100], "cpu_seconds": [1.0, cpu], "train/adversarial": adversarial}
        return {"diary": diary, "last": {"clean": [clean, 0, 100, 9], "pgd40": [50.0, 0, 100, 9]}}

    rows = {
        "dat@0": record(90.0, 4.0, [0.0, 1.0]),
        "dat@1": record(80.0, 2.0, [1.0, 1.0]),
        "natural": record(1.0, 1.0, []),
    }
    table, legend = over_seeds(rows)
    assert table.splitlines()[2:] == [
        "| dat | 2 | 85.0 (80.0-90.0) | 50.0 (50.0-50.0) | 0.850 (0.800-0.900) | 4 (3-5) | 2, 1 |"
    ]
    assert "minimum and maximum" in legend
    assert over_seeds({"natural": rows["natural"]}) == []


# The diary.


@pytest.mark.parametrize("row", ["fgsmat", "pgdat", "rmgm", "gat", "nuat2", "nuat2_wa"])
def test_the_passes_that_are_counted_are_those_of_the_cost_model(budget, row):
    work = budget.Work("costs", yaml.safe_load(TINY))
    cli = budget.built(work.rows[row]["config"], work.folder(row))
    (epoch,) = budget.train(cli, work.folder(row))
    passes = epoch["forwards"] / 3 + 2 * epoch["backwards"] / 3
    assert passes == pytest.approx(work.rows[row]["passes"], abs=0.01)


def test_an_epoch_has_the_numbers_that_it_has_logged_itself(budget):
    budget.main(["delayed"])
    diary = results("delayed")["dat"]["diary"]
    assert diary["train/adversarial"] == [0, 1]
    assert [value is None for value in diary["train/acc/clean"]] == [False, True]
    assert [value is None for value in diary["train/acc/robust"]] == [True, False]
    assert None not in diary["train/loss"] + diary["val/acc/robust"] + diary["train/lr"]


def test_free_passes_once_per_replay(budget):
    budget.main(["tiny", "--rows", "freeat"])
    diary = results()["freeat"]["diary"]
    assert diary["backwards"] == [3] * 3
    assert diary["forwards"] == pytest.approx([3] * 3, abs=0.02)  # the check of the first batch looks at two images


def test_a_transferred_image_is_one_that_the_net_itself_misclassifies(budget):
    import cpu_budget_parts

    class Bright(torch.nn.Module):
        def __init__(self, threshold):
            super().__init__()
            self.threshold = threshold

        def forward(self, x):
            distance = x.flatten(1) - self.threshold
            return torch.cat([-distance, distance], dim=1)

    x, y = torch.tensor([0.45, 0.48, 0.9]).view(3, 1, 1, 1), torch.tensor([0, 0, 1])
    attack = PGD(eps=0.1, step_size=0.1, steps=1, init="zero")
    found = cpu_budget_parts.Transfer(attack, [Bright(0.5)])(Bright(0.57), x, y)
    assert found.flatten().tolist() == pytest.approx([0.45, 0.58, 0.9])


def test_the_first_images_are_trained_on_and_the_next_validated_on(budget, real_data):
    import cpu_budget_parts

    if not (real_data / "MNIST").is_dir():
        pytest.skip(f"no MNIST in {real_data}")
    data = cpu_budget_parts.FirstImages(train_size=50, next_size=20, root=str(real_data))
    trained = torch.cat([batch.index for batch in data.train_dataloader()])
    validated = torch.cat([batch.index for batch in data.val_dataloader()])
    assert sorted(trained.tolist()) == list(range(50))
    assert validated.tolist() == list(range(50, 70))


# Training that is bounded by a perceptual distance, beside PGD for equal seconds.

FEW = """
base:
  trainer: {log_every_n_steps: 1}
  data:
    class_path: DigitsDataModule
    init_args: {batch_size: 32, val_size: 20, train_size: 128, test_size: 32, augment: false, split: random}
  model:
    init_args:
      net: {class_path: lit_robust.nets.digits_cnn, init_args: {width: 8}}
      test_attacks:
        pgd40: {class_path: PGD, init_args: {eps: EPS, steps: 2}}
        stadv: {class_path: StAdv, init_args: {steps: 2}}
        lpa40: {class_path: LPA, init_args: {steps: 2}}
sets:
  unseen:
    epochs: 2
"""


WITHIN = ("lpa40", "lpa40_of_pat", "lpa40_of_pgdat")


@pytest.fixture
def unseen(budget):
    """The script, on top of ``budget``, and not one that another file has left on top of another."""
    sys.modules.pop("unseen", None)
    import unseen

    Path("few.yaml").write_text(FEW)
    yield unseen
    sys.modules.pop("unseen", None)


def test_pgd_gets_the_seconds_of_perceptual_training_and_both_are_attacked_alike(unseen, capsys):
    unseen.main(["--set", "few.yaml"])
    printed = capsys.readouterr().out
    assert printed.startswith("about ")
    rows = results("unseen")
    assert list(rows) == ["pat", "pgdat_pilot", "pgdat"]
    seconds = {name: sum(row["diary"]["cpu_seconds"]) for name, row in rows.items()}
    assert rows["pgdat"]["epochs"] == max(1, int(seconds["pat"] / seconds["pgdat_pilot"]))
    assert rows["pgdat"]["config"]["trainer"]["max_epochs"] == rows["pgdat"]["epochs"]
    assert set(rows["pat"]["last"]) == set(rows["pgdat"]["last"]) == {"clean", "pgd40", "stadv", *WITHIN}
    assert rows["pgdat_pilot"]["last"] == {}
    for name in ("pat", "pgdat"):
        assert 0 < rows[name]["adversary"]["linf"] <= rows[name]["adversary"]["l2"]
    assert printed.splitlines()[-4].startswith("| one seed | epochs | CPU seconds | ")
    unseen.main(["--set", "few.yaml"])
    again = capsys.readouterr().out
    assert "training" not in again
    assert "minutes" not in again
    assert results("unseen") == rows


def test_the_rows_of_perceptual_training_are_understood(unseen):
    text = unseen.load(str(unseen.ROWS))
    rows = unseen.Work(unseen.SET, text).rows
    assert [row["epochs"] for row in rows.values()] == [8, 1, 8]
    for row in rows.values():
        config = row["config"]["model"]["init_args"]
        assert config["net"]["init_args"] == {"width": 16}
        assert list(config["test_attacks"]) == ["pgd40", "pgd40_l2", "stadv", "jpeg", "lpa40", "recolor", "autoattack"]


def test_a_perceptual_distance_of_a_row_is_that_of_its_net_for_all(unseen):
    unseen.main(["--set", "few.yaml"])
    text = unseen.merged(unseen.load(str(unseen.ROWS)), unseen.load("few.yaml"))
    work = unseen.Unseen(unseen.SET, text)
    attacks = unseen.built(work.rows["pgdat"]["config"], work.folder("pgdat")).model.test_attacks
    found = work.completed("pgdat", attacks)
    assert found["lpa40"].lpips_net == "self"
    pat = unseen.read_net(unseen.checkpoint(work.folder("pat"), "last"))
    assert_equal(found["lpa40_of_pat"].lpips_net.state_dict(), pat.state_dict())


# False alarms.


@pytest.fixture
def rates(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import alarm_rates

    yield alarm_rates
    for name in ("alarm_rates", "cpu_budget_results", "default_test_cost"):
        sys.modules.pop(name, None)


def test_only_the_weights_prove_that_a_net_is_the_measured_one(rates):
    one, other = (torch.nn.Linear(2, 2) for _ in range(2))
    weights = rates.weights_of(one)
    record = {"default": 50.0, "weights": weights}
    assert rates.is_same_net(record, weights, 40.0)
    assert not rates.is_same_net(record, rates.weights_of(other), 50.0)
    assert rates.weights_of(copy.deepcopy(one)) == weights
    older = {"default": 50.0}
    assert rates.is_same_net(older, weights, 50.0)
    assert not rates.is_same_net(older, weights, 40.0)
    assert not rates.is_same_net({}, weights, 40.0)


@pytest.mark.parametrize(
    ("net", "honest"),
    [
        ({"classes": 2, "alarms": ["trivial"]}, True),  # which is then a false alarm
        ({"classes": 1, "alarms": []}, False),
        ({"alarms": ["trivial"]}, False),
        ({"alarms": []}, True),
        ({"classes": 10, "alarms": [], "autoattack": 44.0}, False),
    ],
)
def test_a_net_is_honest_by_its_predictions_and_not_by_the_alarms_that_are_judged(rates, net, honest):
    import cpu_budget_results

    assert cpu_budget_results.is_honest({"default": 50.0, "autoattack": 46.0} | net) == honest


def test_predicted_classes_are_counted_on_clean_images(rates):
    assert rates.classes_predicted(torch.nn.Identity(), torch.eye(3)[[0, 0, 2]]) == 2


def test_records_of_alarm_rates_say_which_net_they_are_of(rates, monkeypatch, tmp_path):
    net, calls = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)), []
    monkeypatch.setattr(rates, "NETS", {"one": (None, 0.1)})
    monkeypatch.setattr(rates, "RESULTS", tmp_path / "rates.json")
    monkeypatch.setattr(rates, "train", lambda attack, data, seed: net)
    monkeypatch.setattr(rates, "AutoAttack", lambda eps: calls.append(eps) or FGSM(eps))
    monkeypatch.setattr(rates, "default_test", lambda eps: {"a": FGSM(eps), "b": PGD(eps, steps=2)})
    monkeypatch.setattr(rates.Alarms, "update", lambda *args: None)
    rates.main([])
    records = json.loads((tmp_path / "rates.json").read_text())["nets"]
    assert {record["weights"] for record in records.values()} == {rates.weights_of(net)}
    assert all(record["classes"] > 1 for record in records.values())
    assert len(calls) == 5
    monkeypatch.setattr(rates, "CODE", "another")
    rates.main([])
    assert len(calls) == 5  # the same weights: AutoAttack's figures are kept
    monkeypatch.setattr(rates, "CODE", "a third")
    with torch.no_grad():
        net[1].bias += 1  # which changes no accuracy
    rates.main([])
    assert len(calls) == 10
