"""The scripts that measure speed, memory and bfloat16, and the README's blocks of their results, on tiny nets."""

import importlib
import json
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.autograd import DeviceType
from torch.utils._python_dispatch import TorchDispatchMode

from lit_robust import defenses
from lit_robust.attacks import FGSM
from lit_robust.attacks.autoattack import AutoAttack
from lit_robust.batch import Batch
from lit_robust.defenses import Defense
from lit_robust.nets import digits_cnn
from lit_robust.torch_internals import bf16_instructions
from lit_robust.training.passes import PassCounter
from tests.tiny import CLASSES, SHAPE, TinyNet, images, trainer

SCRIPTS = Path(__file__).parent.parent / "scripts"


@pytest.fixture
def script(monkeypatch, tmp_path):
    """Import a script by name, and run its command line with these words and its result in a folder of its own."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    monkeypatch.chdir(tmp_path)

    def run(module, *words):
        monkeypatch.setattr(sys, "argv", [f"{module.__name__}.py", *words])
        module.main()

    return SimpleNamespace(load=importlib.import_module, run=run)


@pytest.fixture
def blocks(script, monkeypatch, tmp_path):
    """The README's blocks, of the results in this folder."""
    readme = script.load("readme_speed")
    monkeypatch.setattr(readme, "RESULTS", tmp_path)
    return readme


@pytest.mark.parametrize(
    "block",
    [
        *("attack_speed", "autoattack_speed", "benchmark_full", "kept_memory", "peak_memory", "start_up_speed"),
        "step_profile",
    ],
)
def test_a_block_without_results_is_empty(blocks, block):
    assert getattr(blocks, block)() == ""


# The benchmark.

CPU = {"threads": 2, "processor": "CPU", "capability": "AVX512", "bf16": ["AMX"]}


def test_every_net_and_device_has_its_rows_and_its_hardware(blocks, tmp_path):
    loop = {"seconds": 1.0, "to_floor": 1.0, "to_floor_range": [0.75, 1.0], "n": 2}
    rows = {"FastAT": {"images_per_second": 3.21, "floor": loop, "fit": loop | {"to_floor": 0.9}}}
    step = {
        "train": {"to_train": 1.0, "to_train_range": [1.0, 1.0]},
        "eval": {"to_train": 0.9, "to_train_range": [0.8, 1.0]},
    }
    results = {"batch": 8, "repeats": 3, "rows": rows, "compile": False, "width": 0, "attack_step": step, **CPU}
    gpu = {"net": "resnet18", "gpu": "NVIDIA H200", "compile": True, "commit": "0123abc"}
    kinds = {"vgg16_full": {"net": "vgg16"}, "resnet18_full": {"net": "resnet18"}, "resnet18_full_gpu_compiled": gpu}
    kinds["vgg16_old"] = {"net": "vgg16", "capability": "AVX2", "bf16": []}
    for name, about in kinds.items():
        (tmp_path / f"benchmark_{name}.json").write_text(json.dumps(results | about))
    (tmp_path / "benchmark_resnet18_16.json").write_text(json.dumps(CPU))
    written = blocks.benchmark_full()
    gpus = "resnet18, compiled, GPU"
    names = [line.split(" | ")[0][2:] for line in written.splitlines() if "FastAT" in line]
    assert names == ["resnet18", gpus, "vgg16", "vgg16, AVX2"]
    assert "| vgg16 | 8 | FastAT | 3.2 | 0.90 | - | - | - | - | - |" in written
    assert written.endswith(
        "in 3 fits, as ratios to the floor or as told, measured in the same fit; single fits deviate by at most 0.25; "
        f"resnet18 and vgg16 on 2 threads of CPU (AVX512, AMX); {gpus} on NVIDIA H200, at commit 0123abc; vgg16, AVX2 "
        f"on 2 threads of CPU (AVX2). One step of PGD, as above: resnet18: eval 0.90 (0.80 to 1.00); {gpus}: eval 0.90 "
        "(0.80 to 1.00); vgg16: eval 0.90 (0.80 to 1.00); vgg16, AVX2: eval 0.90 (0.80 to 1.00)."
    )


def test_a_processor_is_named_with_the_commit_if_the_record_has_one(blocks):
    assert blocks.device(CPU) == "2 threads of CPU (AVX512, AMX)"
    assert blocks.device(CPU | {"commit": "0123abc"}) == "2 threads of CPU (AVX512, AMX), at commit 0123abc"


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ([], "benchmark_resnet18_16.json"),
        (["--width", "0", "--accelerator", "gpu"], "benchmark_resnet18_full_gpu.json"),
        (["--net", "vgg16", "--width", "0", "--compile"], "benchmark_vgg16_full_compiled.json"),
    ],
)
def test_each_net_device_and_compilation_has_a_file_of_its_own(script, monkeypatch, words, name):
    benchmark = script.load("benchmark")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    parser = benchmark.parser_of("")
    parser.add_argument("--compile", action="store_true")
    assert benchmark.file_of(parser.parse_args(words)).name == name


def test_a_record_names_the_gpu_the_instructions_and_the_commit(script, monkeypatch):
    measured = script.load("measured")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"the GPU {device.index}")
    monkeypatch.setattr(measured, "bf16_instructions", lambda: ["AMX"])
    monkeypatch.setattr(measured, "commit", lambda: "0123")
    found = measured.about(torch.device("cuda", 1))
    assert [found[key] for key in ("gpu", "bf16", "commit")] == ["the GPU 1", ["AMX"], "0123"]
    assert "gpu" not in measured.about(torch.device("cpu"))


@pytest.mark.parametrize(
    ("known", "device", "is_measured"),
    [([], "cpu", False), ([], "cuda", True), (["AMX"], "cpu", True), (None, "cpu", True)],
)
def test_bf16_is_not_measured_on_a_cpu_that_emulates_it(script, monkeypatch, known, device, is_measured):
    measured = script.load("measured")
    monkeypatch.setattr(measured, "bf16_instructions", lambda: known)
    assert measured.multiplies_bf16(torch.device(device)) is is_measured


@pytest.mark.parametrize("with_bf16", [True, False])
def test_the_benchmark_compares_each_loop_with_those_of_its_own_turns(script, blocks, monkeypatch, tmp_path, with_bf16):
    benchmark = script.load("benchmark")
    monkeypatch.setattr(benchmark, "multiplies_bf16", lambda device: with_bf16)
    monkeypatch.setattr(benchmark, "TINY_BATCHES", 3)
    monkeypatch.setattr(benchmark, "RESULTS", tmp_path)
    monkeypatch.setattr(blocks, "read", lambda path: found)
    script.run(
        benchmark,
        *("--width", "2", "--batch", "2", "--batches", "2", "--repeats", "2"),
        "--methods",
        "FreeAT-4",
        "MART",
    )
    found = json.loads((tmp_path / "benchmark_resnet18_2.json").read_text())
    loops = {name: row.keys() - {"images_per_second"} for name, row in found["rows"].items()}
    bf16 = {"fit bf16"} if with_bf16 else set()
    assert loops == {
        "FreeAT-4": {"floor", "research", "fit"} | bf16,
        "MART": {"floor", "train", "research", "fit", "fit unfolded"} | bf16,
    }
    of = found["rows"]["MART"]
    assert [of[loop]["n"] for loop in ("fit", "floor")] == [2 * 2, 2 * 3]
    assert of["floor"]["to_floor"] == of["train"]["to_train"] == 1
    assert of["fit"]["to_train_range"][0] <= of["fit"]["to_train"] <= of["fit"]["to_train_range"][1]
    assert "to_train" not in found["rows"]["FreeAT-4"]["fit"]
    assert found["attack_step"]["train"]["to_train"] == 1
    assert len(found["attack_step"]) == (5 if with_bf16 else 3)
    assert (found["repeats"], found["bf16"]) == (2, bf16_instructions())
    assert len(found["commit"]) >= 7
    assert found["overhead_in_microseconds"].keys() == {"Lightning alone", "Natural"}
    written = blocks.benchmark()
    assert "| MART | " in written
    assert ("eval, bf16, not folded " in written) is with_bf16


def test_a_ratio_is_the_median_of_those_of_single_repeats(script):
    slow_then_fast = [{"fit": [8.0], "floor": [4.0]}, {"fit": [1.0], "floor": [1.0]}, {"fit": [3.0], "floor": [2.0]}]
    found = script.load("measured").ratio(slow_then_fast, "fit", "floor")
    assert found == {"to_floor": 1.5, "to_floor_range": [1.0, 2.0]}


def test_a_table_that_is_not_complete_says_of_how_many_fits_it_is(blocks):
    rows = {"PGDAT": {"fit": {"seconds": 1.0, "n": 4}}}
    assert " in 3 fits" in blocks.spread({"repeats": 3, "rows": rows})
    assert " in 2 fits" in blocks.spread({"repeats": 3, "rows": rows, "unfinished": {"PGDAT": [{}, {}]}})


# The front doors.


class Killed(Exception):
    """What ends a measurement in the middle."""


@pytest.fixture
def measured(script, monkeypatch, tmp_path):
    """The benchmark with loops of no time, and the names of the loops that it has measured."""
    benchmark, measured = script.load("benchmark"), []

    def compare(args, cls, method):
        measured.append(cls)
        times = {"fit": [len(measured)], "floor": [1.0]}
        return {kind: {**times, kind: [len(measured)]} for kind in ("fit", "fit bf16")}

    monkeypatch.setattr(benchmark, "RESULTS", tmp_path)
    monkeypatch.setattr(benchmark, "compare", compare)
    monkeypatch.setattr(benchmark, "attack_step", lambda args: measured.append("step") or {"train": [1.0]})
    monkeypatch.setattr(benchmark, "overhead", lambda args: measured.append("overhead") or {"Natural": 1.0})
    return SimpleNamespace(
        benchmark=benchmark,
        names=measured,
        run=lambda *words: script.run(benchmark, "--width", "2", "--repeats", "2", "--methods", *words),
        read=lambda: json.loads((tmp_path / "benchmark_resnet18_2.json").read_text()),
    )


def test_rows_that_are_done_stay_and_are_not_measured_again(measured, capsys):
    measured.run("PGDAT", "TRADES")
    once = ["PGDAT", "TRADES", "step"]
    assert measured.names == [*once, *once, "overhead"]
    both = measured.read()
    assert "unfinished" not in both
    measured.run("PGDAT")
    assert len(measured.names) == 7
    assert measured.read() == both
    capsys.readouterr()
    measured.run("FastAT", "PGDAT")
    assert measured.names[7:] == ["FastAT"] * 2
    assert capsys.readouterr().out.count("dropped") == 0
    rows = measured.read()["rows"]
    assert [*rows] == ["PGDAT", "TRADES", "FastAT"], "in the order of the methods"
    assert all(rows[name] == row for name, row in both["rows"].items())


def test_a_benchmark_that_was_killed_goes_on_where_it_was(measured, monkeypatch):
    compare = measured.benchmark.compare

    def killed(*args):
        if len(measured.names) == 4:
            raise Killed
        return compare(*args)

    monkeypatch.setattr(measured.benchmark, "compare", killed)
    with pytest.raises(Killed):
        measured.run("PGDAT", "TRADES")
    found = measured.read()
    assert {name: len(turns) for name, turns in found["unfinished"].items()} == {"TRADES": 1, "attack_step": 1}
    assert found["rows"]["TRADES"]["fit"]["n"] == 1
    monkeypatch.setattr(measured.benchmark, "compare", compare)
    measured.run("PGDAT", "TRADES")
    assert measured.names == ["PGDAT", "TRADES", "step", "PGDAT", "TRADES", "step", "overhead"]
    found = measured.read()
    assert found["rows"]["TRADES"]["fit"] | {"seconds": 3.5, "n": 2} == found["rows"]["TRADES"]["fit"]
    assert "unfinished" not in found


@pytest.mark.parametrize("words", [["--batch", "3"], ["--batches", "3"], ["--shape", "3", "16", "16"]])
def test_rows_of_other_settings_are_named_and_dropped(measured, capsys, words):
    measured.run("PGDAT", "TRADES")
    capsys.readouterr()
    measured.run("PGDAT", *words)
    (told,) = [line for line in capsys.readouterr().out.splitlines() if "dropped" in line]
    assert "PGDAT, TRADES" in told
    assert words[0][2:] in told
    assert [*measured.read()["rows"]] == ["PGDAT"]
    assert measured.names[7:] == ["PGDAT", "step"] * 2 + ["overhead"]


def test_rows_of_other_code_are_measured_again_and_another_commit_is_no_other_code(measured, monkeypatch):
    measured.run("PGDAT", "TRADES")
    codes, about = measured.benchmark.codes, measured.benchmark.about
    monkeypatch.setattr(measured.benchmark, "codes", lambda args: codes(args) | {"TRADES": "another"})
    monkeypatch.setattr(measured.benchmark, "about", lambda device: about(device) | {"commit": "another"})
    measured.run("PGDAT", "TRADES")
    assert measured.names[7:] == ["TRADES"] * 2
    assert measured.read()["commit"] == "another"


def test_the_code_of_a_row_is_that_of_its_method_and_net(script):
    benchmark = script.load("benchmark")

    def of(net):
        return benchmark.codes(SimpleNamespace(net=net, width=0, shape=(3, 32, 32)))

    assert len({*of("resnet18").values()}) > 5
    assert of("resnet18")["PGDAT"] == of("resnet18")["PGDAT, eval"] != of("vgg16")["PGDAT"]


def test_a_write_that_is_killed_leaves_the_file_as_it_was(script, monkeypatch, tmp_path):
    table = script.load("measured").Table(tmp_path / "table.json", {"n": 1}, {"a": "0", "b": "1"})
    table.put("a", 1.0)
    before = table.path.read_text()

    def killed(*_):
        raise Killed

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(Killed):
        table.put("b", 2.0)
    assert table.path.read_text() == before


GIVEN = {  # of each script: its words, what stands for a measurement, its result and the rows
    "step_profile": (["--methods", "PGDAT", "FastAT"], "profiles", {"fit": {"ReLU": 1.0}}, ["PGDAT", "FastAT"]),
    "decoding_speed": ([], "measure", {"ours": 1}, ["500 x 375", "2000 x 1500"]),
    "attack_speed": (["--attacks", "PGD-10", "FGSM"], "compare", {"eval": {}}, ["PGD-10", "FGSM"]),
    "kept_memory": (
        ["--methods", "FastAT", "--turns", "1"],
        "process",
        {"seconds": [1.0], "bytes": 10**6},
        ["FastAT, 32-true", "FastAT, bf16-mixed"],
    ),
    "peak_memory": (
        ["--methods", "PGDAT"],
        "subprocess.run",
        SimpleNamespace(stdout="bytes: 1000000"),
        ["Natural", "PGDAT"],
    ),
}


@pytest.mark.parametrize("name", GIVEN)
def test_a_measurement_that_is_killed_keeps_its_rows_and_does_not_measure_them_again(script, monkeypatch, name):
    words, measure, found, rows = GIVEN[name]
    module, calls = script.load(name), []
    of_row = 2 if name == "kept_memory" else 1

    def measured(*args, **kwargs):
        calls.append(args)
        if len(calls) == of_row + 1:
            raise Killed
        return found

    for attribute, value in {
        measure: measured,
        "RESULT": Path("out.json"),
        "about": lambda device: {"threads": 1},
        "photo": lambda *args: b"",
        "installed": lambda names: {"torchattacks": ("1.0", None)},
    }.items():
        monkeypatch.setattr(f"{name}.{attribute}", value, raising="." in attribute)
    words = words + (["--out", "out.json"] if words else [])
    key = "images_per_second" if name == "decoding_speed" else "rows"
    with pytest.raises(Killed):
        script.run(module, *words)
    assert [*json.loads(Path("out.json").read_text())[key]] == rows[:1]
    script.run(module, *words)
    assert [*json.loads(Path("out.json").read_text())[key]] == rows
    assert len(calls) == 2 * of_row + 1


@pytest.mark.parametrize(
    "name",
    [
        *("alarm_rates", "autoattack_bf16", "coreset_pictures", "decoding_speed", "default_test_cost", "digits_bf16"),
        "free_forgetting",
    ],
)
@pytest.mark.parametrize(("word", "status"), [("--help", 0), ("--mispelt", 2)])
def test_a_word_that_asks_for_no_measurement_starts_none(script, capsys, name, word, status):
    module = script.load(name)
    with pytest.raises(SystemExit) as ended:
        script.run(module, word)
    assert ended.value.code == status
    told = capsys.readouterr()
    assert (module.__doc__ in told.out) if status == 0 else (word in told.err)


REFUSED = [
    ("benchmark", ["--repeats", "0"], ["--repeats", "0"]),
    ("benchmark", ["--batches", "0"], ["--batches", "0"]),
    ("benchmark", ["--batch", "-1"], ["--batch", "-1"]),
    ("benchmark", ["--net", "nope"], ["--net", "nope", "resnet18"]),
    ("benchmark", ["--net", "fast_cnn"], ["--width=16", "fast_cnn", "--width 0"]),
    ("benchmark", ["--net", "fast_cnn", "--width", "0"], ["--net=fast_cnn", "--shape 3 32 32"]),
    ("benchmark", ["--width", "-2"], ["--net=resnet18", "--width -2"]),
    ("benchmark", ["--accelerator", "gpu"], ["--accelerator", "no GPU"]),
    ("step_profile", ["--accelerator", "gpu"], ["--accelerator", "no GPU"]),
    ("step_profile", ["--batches", "0"], ["--batches", "0"]),
    ("attack_speed", ["--device", "cuda"], ["--device", "no GPU", "cuda"]),
    ("attack_speed", ["--device", "nope"], ["--device", "nope"]),
    ("attack_speed", ["--net", "fast_cnn", "--width", "0"], ["--net=fast_cnn", "--shape 3 32 32"]),
    ("attack_speed", ["--repeats", "0"], ["--repeats", "0"]),
    ("autoattack_speed", ["--root", "nowhere"], ["--root", "nowhere"]),
    ("autoattack_speed", ["--block", "0"], ["--block", "0"]),
    ("selection_speed", ["--root", "nowhere"], ["--root", "nowhere"]),
    ("selection_error", ["--root", "nowhere"], ["--root", "nowhere"]),
    ("kept_memory", ["--accelerator", "gpu"], ["--accelerator", "gpu"]),
    ("kept_memory", ["--turns", "0"], ["--turns", "0"]),
    ("peak_memory", ["--precision", "half"], ["--precision", "half", "bf16-mixed"]),
    ("start_up_speed", ["--turns", "0"], ["--turns", "0"]),
]


@pytest.mark.parametrize(("name", "words", "told"), REFUSED, ids=lambda one: one if isinstance(one, str) else None)
def test_what_cannot_be_measured_is_refused_in_a_sentence(script, monkeypatch, tmp_path, capsys, name, words, told):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: int(name == "kept_memory"))  # which measures glibc
    with pytest.raises(SystemExit) as ended:
        script.run(script.load(name), *words)
    assert ended.value.code == 2
    error = capsys.readouterr().err.rpartition("error: ")[2]
    assert error.count("\n") == 1
    assert all(word in error for word in told)
    assert not list(tmp_path.iterdir())


def passes_of(run, *nets):
    """Images in forwards and backwards while these nets are run."""
    counter = PassCounter()
    hooks = [net.register_forward_hook(counter) for net in nets]
    with counter.counting():
        run()
    for hook in hooks:
        hook.remove()
    return counter.forwards, counter.backwards


def test_every_method_has_a_floor(script):
    known = {name for name in defenses.__all__ if issubclass(getattr(defenses, name), Defense)} - {"Defense"}
    assert {cls for cls, _ in script.load("benchmark").METHODS.values()} == known


def test_every_methods_floor_makes_the_passes_of_its_fit(script, tmp_path):
    """In their number; what a pass computes beside is the method's."""
    benchmark, (x, y, *_) = script.load("benchmark"), images(4)
    for name, (cls, method) in benchmark.METHODS.items():
        module = benchmark.module_of(cls, method, TinyNet(), 4)
        trainer(tmp_path, max_epochs=1).fit(module, benchmark.batches(x, y, 2))
        net = TinyNet()
        floor = passes_of(benchmark.hand_written(net, method, x, y), net)
        of_fit = module.meter.passes.forwards / 2, module.meter.passes.backwards / 2
        assert of_fit == floor, name


def test_a_loop_by_hand_makes_the_passes_that_it_says(script):
    benchmark = script.load("benchmark")
    net, made = TinyNet(), []
    net.register_forward_hook(lambda net, inputs, logits: made.append((net.training, logits.requires_grad)))
    x, y, *_ = images(4)
    before = net.head.weight.clone()
    for research in (False, True):
        made.clear()
        method = benchmark.Method({}, steps=2, mode="eval", references=("eval", "train"), update=2)
        benchmark.hand_written(net, method, x, y, research)()
        assert made == [(False, False), (True, False), (False, True), (False, True), (True, True), (True, True)]
    assert not torch.equal(net.head.weight, before)
    made.clear()
    benchmark.hand_written(net, benchmark.Method({}, steps=2, mode="train", replays=0), x, y)()
    assert made == [(True, True)] * 2


@pytest.mark.parametrize(("fold", "bf16"), [(True, False), (False, False), (True, True)])
def test_an_attack_is_folded_and_cast_as_it_is_asked_for(script, fold, bf16):
    given = []

    class Spy(FGSM):
        def __call__(self, net, x, y):
            given.append((net, net(x).dtype))
            return x

    net, (x, y, *_) = TinyNet().eval(), images(4)
    script.load("measured").as_attacked(Spy(0.1), net, "eval", x, y, fold, bf16)()
    ((attacked, dtype),) = given
    assert (attacked is not net) == fold
    assert dtype == (torch.bfloat16 if bf16 else torch.float32)


# The profile.


def test_a_profile_sums_operators_by_what_they_are_for(script):
    """On a GPU it is the kernels' time, once."""
    step_profile = script.load("step_profile")

    def event(key, cpu, gpu=0, kind=DeviceType.CPU):
        return SimpleNamespace(key=key, self_cpu_time_total=cpu, self_device_time_total=gpu, device_type=kind)

    names = {
        "aten::mkldnn_convolution": "convolutions, forward",
        "aten::convolution_backward": "convolutions, backward",
        "aten::native_batch_norm_backward": "BatchNorm",
        "aten::threshold_backward": "ReLU",
        "Optimizer.step#SGD.step": "optimizer",
        "aten::copy_": "copies and conversions",
        "aten::addmm": "others",
    }
    events = [event(key, 2000) for key in names] + [event("aten::batch_norm", 1000)]
    found = step_profile.by_kind(SimpleNamespace(key_averages=lambda: events), 2)
    assert found == dict.fromkeys(names.values(), 1.0) | {"BatchNorm": 1.5}
    events += [event("aten::cudnn_convolution", 10, gpu=4000), event("implicit_gemm", 0, 4000, DeviceType.CUDA)]
    found = step_profile.by_kind(SimpleNamespace(key_averages=lambda: events), 2)
    assert found == dict.fromkeys(names.values(), 0.0) | {"convolutions, forward": 2.0}


def test_a_profile_has_every_loop_and_kind(script, blocks, monkeypatch, tmp_path):
    step_profile = script.load("step_profile")
    monkeypatch.setattr(step_profile, "multiplies_bf16", lambda device: True)
    words = ["--width", "2", "--batch", "2", "--batches", "1", "--out", "step_profile.json"]
    script.run(step_profile, *words)
    rows = json.loads((tmp_path / "step_profile.json").read_text())["rows"]
    unfolded = {"research loop", "fit", "fit, bf16"}
    assert {name: {*loops} for name, loops in rows.items()} == {
        "PGDAT, eval": unfolded | {"without folding"},
        "FastAT": unfolded,
    }
    assert all(of.keys() == step_profile.KINDS.keys() for loops in rows.values() for of in loops.values())
    written = blocks.step_profile()
    assert "| PGDAT, eval | research loop | without folding | fit | fit, bf16 |" in written
    assert written.count("| sum |") == 2


# Attacks beside other packages.


class AlwaysEval:
    """A package that attacks in eval mode, and leaves the net in it."""

    @staticmethod
    def fgsm(net, x, y):
        net.eval()(x)


class AsGiven:
    """A package that attacks in the caller's mode."""

    @staticmethod
    def fgsm(net, x, y):
        net(x)


def test_each_package_is_compared_in_the_modes_in_which_it_attacks(script, blocks, monkeypatch, tmp_path):
    speed = script.load("attack_speed")
    found = {"torchattacks": ("1.0", AlwaysEval), "foolbox": ("2.0", AsGiven)}
    monkeypatch.setattr(speed, "installed", lambda names: {name: found[name] for name in names if name in found})
    peers = dict.fromkeys(found, lambda package, net, x, y: package.fgsm(net, x, y))
    monkeypatch.setattr(speed, "PAIRS", {"FGSM": speed.Pair(FGSM(0.1), peers)})
    words = ["--width", "2", "--batch", "2", "--repeats", "1", "--out", "attack_speed.json"]
    script.run(speed, *words)
    results = json.loads((tmp_path / "attack_speed.json").read_text())
    rows = results["rows"]["FGSM"]
    assert {name: [*modes] for name, modes in rows.items()} == {"torchattacks": ["eval"], "foolbox": ["eval", "train"]}
    assert results["missing"] == ["adv-lib", "adversarial-robustness-toolbox"]
    for modes in rows.values():
        for row in modes.values():
            assert row["forwards"] == {"ours": 1, "peer": 1}
            assert row["seconds"].keys() == {"ours", "alone", "peer", "peer, channels_last"}
            assert row["peer / ours"] == pytest.approx(row["seconds"]["peer"] / row["seconds"]["ours"], rel=0.05)
    written = blocks.attack_speed()
    assert "| FGSM | foolbox 2.0 | train | 1 / 1 | " in written
    assert "Not installed, so left out: adv-lib, ART." in written


def test_a_package_that_is_not_installed_is_named(script, monkeypatch, capsys):
    speed = script.load("attack_speed")
    monkeypatch.setitem(speed.MODULES, "no-such-package", "no_such_package")
    assert speed.installed(["no-such-package"]) == {}
    assert "no-such-package is not installed" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["torchattacks", "foolbox", "adversarial-robustness-toolbox", "adv-lib"])
@pytest.mark.filterwarnings("ignore")  # the other packages'
def test_every_attack_of_an_installed_package_runs_and_makes_our_passes(script, name):
    """A few forwards more are allowed: a package may look at the clean or at the last images."""
    speed = script.load("attack_speed")
    modules = speed.installed([name])
    if not modules:
        pytest.skip(f"{name} is not installed")
    x = torch.rand(2, 3, 8, 8)
    for pair in speed.PAIRS.values():
        if name not in pair.peers:
            continue
        net, made = nn.Sequential(TinyNet(), nn.Linear(4, 10)).eval(), []
        y = net(x).argmax(1)
        net[0].register_forward_hook(lambda *_, made=made: made.append(1))  # ART calls the parts of a Sequential
        speed.ours(pair.ours, net, "train", x, y)()
        expected = len(made)
        made.clear()
        pair.peers[name](modules[name][1], net, x, y)
        assert expected <= len(made) <= 3 * expected + 3  # ART's Square makes three for each query


# AutoAttack beside its package.


@pytest.fixture
def quick(monkeypatch):
    """Few iterations for every sub-attack."""
    package = pytest.importorskip("pyautoattack").autoattack
    for kind, few in (
        (package.APGDAttack, {"n_iter": 5}),
        (package.FABAttack_PT, {"n_iter": 3}),
        (package.SquareAttack, {"n_queries": 10}),
    ):
        original = kind.__init__

        def build(self, *args, original=original, few=few, **kwargs):
            original(self, *args, **kwargs | few)

        monkeypatch.setattr(kind, "__init__", build)


def victim(n=12):
    """A net with 10 classes, images and labels, one of which it does not predict."""
    net, x = nn.Sequential(TinyNet(), nn.Linear(4, 10)).eval(), images(n).x
    y = net(x).argmax(1)
    y[0] = (y[0] + 1) % 10
    return net, Batch(x, y, torch.arange(n), torch.ones(n))


@pytest.mark.usefixtures("quick")
def test_both_sides_of_autoattack_are_counted_image_by_image(script, monkeypatch):
    speed = script.load("autoattack_speed")
    net, batch = victim()
    row = speed.measure(net, batch, 0)
    assert row["n"] == 12
    assert 0 < row["left"] < 12
    assert row["only_ours_leaves"] == row["only_package_leaves"] == row["different_without_folding"] == 0
    left = speed.theirs(net, batch)()
    monkeypatch.setattr(speed, "ours", lambda *_, fold, compile=False: lambda: ~left if fold and not compile else left)
    assert "compiled" not in row
    row = speed.measure(net, batch, 1, compile=True)
    assert row["compiled"] >= row["different_compiled"] == 0
    assert row["only_ours_leaves"] == 12 - row["left"]
    assert row["only_package_leaves"] == row["left"]
    assert row["different_without_folding"] == 0


def test_the_wanted_share_of_the_attacked_images_is_robust(script, monkeypatch):
    speed = script.load("autoattack_speed")
    net, batch = victim(40)
    y = torch.where(torch.arange(40) % 2 == 0, batch.y, (batch.y + 1) % 10)
    monkeypatch.setattr(speed, "EPS", 1e-4)  # what is right stays right
    found = speed.chosen(net, batch._replace(y=y), 20)
    assert len(found.y) == len(set(found.index.tolist())) == 20
    assert (net(found.x).argmax(1) == found.y).sum() == round(speed.ROBUST * 20)
    with pytest.raises(ValueError, match="only 0 of 40"):
        speed.chosen(net, batch._replace(y=(net(batch.x).argmax(1) + 1) % 10), 20)


def test_by_default_200_images_are_attacked_on_a_net_of_width_16(script):
    args = script.load("autoattack_speed").parser_of().parse_args([])
    assert (args.width, args.images) == (16, 200)


def test_an_estimate_counts_the_passes_of_both_sides(script, monkeypatch):
    speed = script.load("autoattack_speed")
    monkeypatch.setattr(speed, "seconds_per_image", lambda net, x: (1.0, 3.0))
    assert speed.estimated(TinyNet(), images(4).x, trained=10, attacked=0) == 3 * 3 * 10
    robust, others = speed.ROBUST * (1900 * 3 + 5900), (1 - speed.ROBUST) * 50 * 3
    for how, sides in (({}, 2), ({"sides": 3}, 3)):
        found = speed.estimated(TinyNet(), images(4).x, trained=0, attacked=200, **how)
        assert found == pytest.approx(sides * 200 * (robust + others))


@pytest.mark.usefixtures("quick")
def test_autoattacks_blocks_are_resumed(script, blocks, monkeypatch, tmp_path, real_data, capsys):
    if not (real_data / "cifar-10-batches-py").is_dir():
        pytest.skip(f"no CIFAR-10 in {real_data}")
    speed = script.load("autoattack_speed")
    monkeypatch.setattr(speed, "ROBUST", 0.0)  # a net that is trained this little has none
    words = ["--root", str(real_data), "--net", "net.pt", "--width", "4", "--epochs", "1", "--train-size", "512"]
    words += ["--images", "8", "--block", "4", "--out", "autoattack_speed.json"]
    script.run(speed, *words, "--estimate")
    assert re.fullmatch(r"about \d+ minutes to train on 512 images and to attack 8\n", capsys.readouterr().out)
    assert not list(tmp_path.iterdir())
    measured = []
    original = speed.measure
    monkeypatch.setattr(speed, "measure", lambda *args: measured.append(args[2]) or original(*args))
    script.run(speed, *words)
    path = tmp_path / "autoattack_speed.json"
    results = json.loads(path.read_text())
    assert [*results["blocks"]] == ["0", "4"]
    assert AutoAttack().package == results["package"]
    del results["blocks"]["4"]
    path.write_text(json.dumps(results))
    capsys.readouterr()
    script.run(speed, *words)
    assert measured == [0, 1, 1]
    assert "to train on 0 images and to attack 4\n" in capsys.readouterr().out
    script.run(speed, *words[:-2], "--out", "autoattack_speed.json", "--block", "8")  # other blocks: all anew
    assert measured == [0, 1, 1, 0]
    assert "of the time of its package (pyautoattack" in blocks.autoattack_speed()
    assert "compile" not in blocks.autoattack_speed()
    results["blocks"]["0"] |= {"compiled": results["blocks"]["0"]["package"] / 4, "different_compiled": 1}
    path.write_text(json.dumps(results))
    assert "With `compile: true` it takes 0.25 (" in blocks.autoattack_speed()


# Start-up, memory and bfloat16.


def test_every_start_is_timed_beside_another_one(script, blocks, monkeypatch, tmp_path):
    start_up = script.load("start_up_speed")
    assert all(row.beside in (None, *start_up.ROWS) for row in start_up.ROWS.values())
    slow = start_up.Row(["-c", "import time; time.sleep(0.1)"], "a bare interpreter")
    monkeypatch.setattr(start_up, "ROWS", {"a bare interpreter": start_up.ROWS["a bare interpreter"], "slow": slow})
    script.run(start_up, "--turns", "2", "--out", "start_up_speed.json")
    rows = json.loads((tmp_path / "start_up_speed.json").read_text())["rows"]
    assert rows["slow"]["seconds"] > 0.1 > rows["slow"]["cpu_seconds"]
    assert rows["slow"]["ratio"] > 1
    assert " to a bare interpreter |" in blocks.start_up_speed()


def test_a_start_that_fails_is_not_timed(script):
    with pytest.raises(subprocess.CalledProcessError):
        script.load("start_up_speed").seconds_of(["-c", "raise ValueError"])


def test_the_peak_of_a_fit_is_measured_in_a_process_of_its_own(script, blocks, tmp_path):
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("this system does not reset the highest resident memory")
    memory = script.load("peak_memory")
    script.run(memory, "--width", "8", "--batch", "64", "--methods", "Natural", "--out", "peak_memory.json")
    rows = json.loads((tmp_path / "peak_memory.json").read_text())["rows"]
    assert [*rows] == ["Natural"]
    assert rows["Natural"]["to_natural"] == 1
    # A backward needs the inputs of the first stage's 5 convolutions and BatchNorms, 8 x 32 x 32 floats per image.
    assert 1e-6 * 64 * 10 * 8 * 32 * 32 * 4 < rows["Natural"]["megabytes"] < 120
    assert "| Natural | " in blocks.peak_memory()


def test_a_fit_whose_freed_memory_is_kept_takes_turns_with_one_as_it_is(script, blocks, monkeypatch, tmp_path):
    kept, runs = script.load("kept_memory"), []

    def measured(words, **_):
        assert words[0] == sys.executable
        runs.append("--kept" in words)
        found = {"seconds": [0.1] if "--kept" in words else [0.1, 0.3], "bytes": 10**6 * len(runs)}
        return SimpleNamespace(stdout=f"a banner\nmeasured: {json.dumps(found)}\n")

    monkeypatch.setattr(kept.subprocess, "run", measured)
    monkeypatch.setattr(kept, "about", lambda device: CPU)  # asks git by a process, too
    script.run(kept, "--methods", "NFGSM", "--turns", "3", "--out", "kept_memory.json")
    assert runs == [False, True, True, False, False, True] * len(kept.PRECISIONS)
    row = json.loads((tmp_path / "kept_memory.json").read_text())["rows"]["NFGSM, 32-true"]
    assert row["to_returned"] == 0.5
    assert row["kept"] == {"seconds": 0.1, "megabytes": 3}
    assert "| NFGSM, 32-true | 200 | 100 | 0.50 (0.50 to 0.50) | 4 | 3 |" in blocks.kept_memory()


def test_the_fit_of_kept_memory_is_that_of_the_method_in_its_precision(script, capsys):
    kept = script.load("kept_memory")
    words = ("--width", "2", "--batch", "2", "--batches", "3", "--methods", "TRADES", "--only", "bf16-mixed")
    script.run(kept, *words)
    found = json.loads(capsys.readouterr().out.rpartition("measured: ")[2])
    assert len(found["seconds"]) == 3
    assert found["bytes"] > 50e6, "at least torch itself"


def test_each_net_is_trained_in_both_precisions_once(script, blocks, monkeypatch, tmp_path, capsys):
    bf16 = script.load("digits_bf16")
    monkeypatch.setattr(bf16, "RESULT", tmp_path / "digits_bf16.json")
    monkeypatch.setattr(bf16, "NETS", {"tiny": bf16.Row(partial(digits_cnn, width=4), 1)})
    monkeypatch.setattr(bf16, "SEEDS", (0,))
    script.run(bf16)
    assert capsys.readouterr().out.count("tiny") == 2
    net = json.loads((tmp_path / "digits_bf16.json").read_text())["nets"]["tiny"]
    assert net.keys() == {"epochs", "32-true", "bf16-mixed"}
    assert net["32-true"][0].keys() == {"clean", "pgd20", "n", "cpu_seconds"}
    script.run(bf16)
    assert capsys.readouterr().out == ""
    assert "| tiny | 1 | " in blocks.digits_bf16()
    assert "Trained again" not in blocks.digits_bf16()
    script.run(bf16, "--again")
    after = json.loads((tmp_path / "digits_bf16.json").read_text())["nets"]["tiny"]
    accuracy = {key: value for key, value in net["32-true"][0].items() if key != "cpu_seconds"}
    assert after.items() > net.items()
    assert after["again"]["32-true"][0].items() > accuracy.items()
    told = f"the tiny clean {accuracy['clean']:.1f}, PGD-20 {accuracy['pgd20']:.1f}."
    assert f"Trained again in float32 on {blocks.device(after['again'])}: {told}" in blocks.digits_bf16()


# What only a GPU can show.


@pytest.fixture
def check(script, monkeypatch):
    """The script, and the modes of synchronisation that it has set."""
    module, modes = script.load("gpu_check"), []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    return module, modes


class NoWaiting(TorchDispatchMode):
    """Raises what CUDA raises where the host reads a number from a tensor while it may not wait."""

    def __init__(self, modes):
        super().__init__()
        self.modes = modes

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if self.modes[-1:] == ["error"] and func in (
            torch.ops.aten._local_scalar_dense.default,
            torch.ops.aten.nonzero.default,
        ):
            raise RuntimeError("called a synchronizing CUDA operation")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["PGDAT", "TRADES", "FastAT"])
def test_the_host_may_not_wait_within_a_step_of_the_fused_training(check, name):
    module, modes = check
    with NoWaiting(modes):
        assert module.first_wait(name, TinyNet(), "cpu", SHAPE, CLASSES) is None
    assert modes == ["default"] * module.WARM + ["error", "default"] * module.WATCHED + ["default"]


def test_a_wait_is_told_with_its_place(check):
    module, modes = check

    class Waits(TinyNet):
        def forward(self, x):
            if modes[-1:] == ["error"]:
                raise RuntimeError("called a synchronizing CUDA operation")
            return super().forward(x)

    found = module.first_wait("FastAT", Waits(), "cpu", SHAPE, CLASSES)
    assert found.startswith("called a synchronizing CUDA operation (")
    assert "test_speed_scripts.py:" in found
    assert modes[-1] == "default"


def test_another_error_is_no_wait(check):
    class Fails(TinyNet):
        def forward(self, x):
            if self.training:
                raise RuntimeError("of the net")
            return super().forward(x)

    with pytest.raises(RuntimeError, match="of the net"):
        check[0].first_wait("FastAT", Fails(), "cpu", SHAPE, CLASSES)


def test_without_a_gpu_nothing_is_measured(check, script, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="no GPU"):
        script.run(check[0], "--out", "results")
    assert not list(tmp_path.iterdir())


def test_the_parts_take_at_most_10_minutes_and_are_written_down_one_by_one(check, script, monkeypatch, tmp_path):
    module, _ = check
    (tmp_path / "cifar-10-batches-py").mkdir()
    assert len(module.parts(tmp_path, tmp_path / "elsewhere")) == 3
    assert sum(limit for _, limit in module.parts(tmp_path, tmp_path).values()) < 600
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(module, "about", lambda device: {})
    parts = {"fails": (["-c", "raise SystemExit(3)"], 60), "hangs": (["-c", "while True: pass"], 1)}
    monkeypatch.setattr(module, "parts", lambda out, root: parts)
    script.run(module, "--out", "out")
    found = json.loads((tmp_path / "out/gpu_check.json").read_text())["parts"]
    assert [part["status"] for part in found.values()] == [3, -9]
    assert 1 <= found["hangs"]["seconds"] < 20
