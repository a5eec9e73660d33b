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
    gpu = {"net": "resnet18", "gpu": "NVIDIA H200", "compile": True}
    kinds = {"vgg16_full": {"net": "vgg16"}, "resnet18_full": {"net": "resnet18"}, "resnet18_full_gpu_compiled": gpu}
    for name, about in kinds.items():
        (tmp_path / f"benchmark_{name}.json").write_text(json.dumps(results | about))
    (tmp_path / "benchmark_resnet18_16.json").write_text("{}")
    written = blocks.benchmark_full()
    gpus = "resnet18, compiled, GPU"
    names = [line.split(" | ")[0][2:] for line in written.splitlines() if "FastAT" in line]
    assert names == ["resnet18", gpus, "vgg16"]
    assert "| vgg16 | 8 | FastAT | 3.2 | 0.90 | - | - | - | - | - |" in written
    assert written.endswith(
        "in 3 fits, as ratios to the floor or as told, measured in the same fit; single fits deviate by at most 0.25; "
        f"resnet18 and vgg16 on 2 threads of CPU (AVX512, AMX); {gpus} on NVIDIA H200. One step of PGD, as above: "
        f"resnet18: eval 0.90 (0.80 to 1.00); {gpus}: eval 0.90 (0.80 to 1.00); vgg16: eval 0.90 (0.80 to 1.00)."
    )


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ([], "benchmark_resnet18_16.json"),
        (["--width", "0", "--accelerator", "gpu"], "benchmark_resnet18_full_gpu.json"),
        (["--net", "vgg16", "--width", "0", "--compile"], "benchmark_vgg16_full_compiled.json"),
    ],
)
def test_each_net_device_and_compilation_has_a_file_of_its_own(script, words, name):
    benchmark = script.load("benchmark")
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


def test_the_benchmark_compares_each_loop_with_those_of_its_own_turns(script, blocks, monkeypatch, tmp_path):
    benchmark = script.load("benchmark")
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
    assert loops == {
        "FreeAT-4": {"floor", "research", "fit", "fit bf16"},
        "MART": {"floor", "train", "research", "fit", "fit unfolded", "fit bf16"},
    }
    of = found["rows"]["MART"]
    assert [of[loop]["n"] for loop in ("fit", "floor")] == [2 * 2, 2 * 3]
    assert of["floor"]["to_floor"] == of["train"]["to_train"] == 1
    assert of["fit"]["to_train_range"][0] <= of["fit"]["to_train"] <= of["fit"]["to_train_range"][1]
    assert "to_train" not in found["rows"]["FreeAT-4"]["fit"]
    assert found["attack_step"]["train"]["to_train"] == 1
    assert len(found["attack_step"]) == 5
    assert (found["repeats"], found["bf16"]) == (2, bf16_instructions())
    assert len(found["commit"]) >= 7
    assert found["overhead_in_microseconds"].keys() == {"Lightning alone", "Natural"}
    written = blocks.benchmark()
    assert "| MART | " in written
    assert "eval, bf16, not folded " in written


def test_a_ratio_is_the_median_of_those_of_single_repeats(script):
    slow_then_fast = [{"fit": [8.0], "floor": [4.0]}, {"fit": [1.0], "floor": [1.0]}, {"fit": [3.0], "floor": [2.0]}]
    found = script.load("measured").ratio(slow_then_fast, "fit", "floor")
    assert found == {"to_floor": 1.5, "to_floor_range": [1.0, 2.0]}


def passes_of(run, *nets):
    """Images in forwards and backwards while these nets are run."""
    counter = PassCounter()
    hooks = [net.register_forward_hook(counter) for net in nets]
    with counter.counting():
        run()
    for hook in hooks:
        hook.remove()
    return counter.forwards, counter.backwards


def test_every_method_has_a_floor_or_a_reason_why_not(script):
    benchmark = script.load("benchmark")
    known = {name for name in defenses.__all__ if issubclass(getattr(defenses, name), Defense)} - {"Defense"}
    assert {cls for cls, _ in benchmark.METHODS.values()} | {*benchmark.LEFT_OUT} == known
    assert not {cls for cls, _ in benchmark.METHODS.values()} & {*benchmark.LEFT_OUT}


def test_every_methods_floor_makes_the_passes_of_its_fit(script, tmp_path):
    """In their number; what a pass computes beside is the method's."""
    benchmark, (x, y, *_) = script.load("benchmark"), images(4)
    for name, (cls, method) in benchmark.METHODS.items():
        module = getattr(defenses, cls)(TinyNet(), 4, **method.arguments)
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


def test_a_profile_has_every_loop_and_kind(script, blocks, tmp_path):
    step_profile = script.load("step_profile")
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
    monkeypatch.setattr(speed, "ours", lambda net, batch, fold: lambda: ~left if fold else left)
    row = speed.measure(net, batch, 1)
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
    assert speed.estimated(TinyNet(), images(4).x, trained=0, attacked=200) == pytest.approx(
        2 * 200 * (robust + others)
    )


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
