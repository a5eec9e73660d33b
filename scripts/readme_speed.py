"""The blocks of README.md on speed, costs and memory; ``readme_results.py`` writes them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from cpu_budget_results import markdown, read, with_range
from digits_bf16 import NETS

from lit_robust.measures.alarms import IMAGES

RESULTS = Path(__file__).parent / "results"
#: How the README calls the packages.
NAMES = {"adversarial-robustness-toolbox": "ART"}


def default_test_cost() -> str:
    """The passes of the default test."""
    results = read(RESULTS / "default_test_cost.json")
    probed, many = IMAGES, 10_000
    measured = ["accuracy under the default test, %", "passes per image", "relative to PGD-20", "relative to PGD-100"]
    lines = [["net", *measured, f"with alarms, n = {many:,}, relative to PGD-100", "alarms' passes"]]
    lines.append(["---", *["---:"] * (len(lines[0]) - 1)])
    for name, seeds in results["rows"].items():
        passes = [of_seed["default"] for of_seed in seeds]
        all_passes = [of_seed["default"] + probed / many * of_seed["alarms"] for of_seed in seeds]
        ratios = [[of_seed["default"] / of_seed[other] for of_seed in seeds] for other in ("pgd20", "pgd100")]
        ratios.append([all_of_seed / of_seed["pgd100"] for all_of_seed, of_seed in zip(all_passes, seeds, strict=True)])
        cells = [with_range([of_seed["robust"] for of_seed in seeds]), with_range(passes)]
        alarms = with_range([of_seed["alarms"] for of_seed in seeds], 0)
        lines.append([name, *cells, *(with_range(of, 2) for of in ratios), alarms])
    return (
        f"{markdown(lines)}\n\nDigits, n = {results['n']}, eps {results['eps']:g}, {len(seeds)} seeds: mean and range. "
        f"The alarms' passes are per probed image; a test probes its first {probed} images, whatever its size, so on "
        "few images they cost more than the attacks."
    )


def decoding_speed() -> str:
    """How many images a core decodes, crops and resizes."""
    results = read(RESULTS / "decoding_speed.json")
    rows = results["images_per_second"]
    lines = [["JPEGs of", *next(iter(rows.values()))], ["---", *["---:"] * len(next(iter(rows.values())))]]
    lines += [[size, *map(str, of_size.values())] for size, of_size in rows.items()]
    return (
        f"{markdown(lines)}\n\nImages per second and core, decoded and cropped at random to {results['image_size']} "
        f"pixels; {device(results)}."
    )


def selection_speed() -> str:
    """Seconds of a selection."""
    results = read(RESULTS / "selection_speed.json")
    lines = [["selection", "images", "seconds", "CPU seconds", "GB", "relative error of its gradient"]]
    lines.append(["---", *["---:"] * (len(lines[0]) - 1)])
    for name, row in results["selections"].items():
        error = f"{row['gradient_error']:.4f}" if "gradient_error" in row else "-"
        costs = (f"{row[cost]:.1f}" for cost in ("seconds", "cpu_seconds", "gigabytes"))
        lines.append([name, f"{row['images']:,}", *costs, error])
    md5 = results["md5"]["train"][:8]
    return (
        f"{markdown(lines)}\n\n{results['fraction']:.0%} of CIFAR-10's training images (md5 {md5}), "
        f"{device(results)}, one run; GB: the highest memory beyond that of images and gradients. CRAIG's error is "
        "that of the bias's gradient, the others' that of the whole layer's. scikit-learn's pursuit ends "
        "when its match is exact."
    )


def selection_error() -> str:
    """The error of a coreset's gradient, at once and after more training."""
    results = read(RESULTS / "selection_error.json")
    if not results:
        return ""
    settings = results["settings"]
    ages = (0, 1, 5)
    lines = [["selection", *(f"{name}, {_age(age)}" for name in settings for age in ages), "filled up"]]
    lines[0] += [f"weights, {name}" for name in settings]
    lines.append(["---", *["---:"] * (len(lines[0]) - 1)])
    for row in next(iter(settings.values()))[0]:
        errors = [
            with_range([100 * of_seed[row]["errors"][age] for of_seed in seeds], 1)
            for seeds in settings.values()
            for age in ages
        ]
        chosen, filled = (
            sum(of_seed[row][key] for seeds in settings.values() for of_seed in seeds) for key in ("chosen", "filled")
        )
        weights = (with_range([of_seed[row]["weight"] for of_seed in seeds], 2) for seeds in settings.values())
        lines.append([row, *errors, f"{filled / chosen:.0%}", *weights])
    seeds = len(next(iter(settings.values())))
    return (
        f"{markdown(lines)}\n\nRelative error in percent of the weighted sum of the last layer's adversarial "
        f"gradients, of {results['fraction']:.0%} of {results['images']:,} images, {seeds} seeds: mean and range. The "
        "nets train on with all images after the selection, for as many epochs as the columns say. Weights: their sum "
        "divided by the number of images. The loss is normalised by it, so at 0.5 an update is twice what was matched."
    )


def _age(epochs: int) -> str:
    return "at once" if epochs == 0 else f"{epochs} epoch{'s' * (epochs > 1)} later"


#: The columns of the benchmark: which loop is divided by which.
LOOPS = {
    "fit": ("fit", "floor"),
    "without folding": ("fit unfolded", "floor"),
    "fit, bf16": ("fit bf16", "floor"),
    "research loop": ("research", "floor"),
    "fit, to the train-mode loop": ("fit", "train"),
    "bf16, to the train-mode loop": ("fit bf16", "train"),
}


def cells(row: Mapping[str, Any]) -> list[str]:
    """A method's images per second, and the ratios of its loops."""
    ratios = [row.get(loop, {}).get(f"to_{other}") for loop, other in LOOPS.values()]
    speed = row["images_per_second"]
    return [
        f"{speed:.0f}" if speed >= 10 else f"{speed:.1f}",
        *("-" if one is None else f"{one:.2f}" for one in ratios),
    ]


def spread(*found: Mapping[str, Any]) -> str:
    """How many fits the medians are of, and how far the ratios of single fits are from them."""
    loops = [loop for of in found for row in of["rows"].values() for loop in row.values() if isinstance(loop, dict)]
    unfinished = [len(turns) for of in found for turns in of.get("unfinished", {}).values()]
    n, fits = min(loop["n"] for loop in loops), min([of.get("repeats", 1) for of in found] + unfinished)
    text = f"Medians of at least {n} batches in {fits} fit{'s' * (fits > 1)}, as ratios to the floor or as told"
    away = [
        abs(end - loop[f"to_{to}"])
        for loop in loops
        for to in ("floor", "train")
        for end in loop.get(f"to_{to}_range", ())
    ]
    return text + (f", measured in the same fit; single fits deviate by at most {max(away):.2f}" if away else "")


def benchmark_full() -> str:
    """The same on other nets, processors and GPUs, and compiled."""
    paths = sorted(path for path in RESULTS.glob("benchmark_*.json") if path.stem != "benchmark_resnet18_16")
    found = [read(path) for path in paths]
    if not found:
        return ""
    first = read(RESULTS / "benchmark_resnet18_16.json").get("capability")

    def name_of(results: Mapping[str, Any]) -> str:
        kind = "GPU" if "gpu" in results else results["capability"]
        return net_of(results) + ", compiled" * results["compile"] + f", {kind}" * (kind != first)

    found.sort(key=name_of)
    lines = [["net", "batch", "method", "images/s", *LOOPS], ["---", "---:", "---", *["---:"] * (1 + len(LOOPS))]]
    devices: dict[str, list[str]] = {}
    steps: dict[str, list[str]] = {}
    for results in found:
        name = name_of(results)
        part = f" ({next(iter(results['rows']))} and below)" if name in steps else ""
        devices.setdefault(device(results), []).append(name + part)
        for method, row in results["rows"].items():
            lines.append([name, str(results["batch"]), method, *cells(row)])
        steps.setdefault(name, []).append(attack_step(results))
    told = "; ".join(f"{' and '.join(names)} on {on}" for on, names in devices.items())
    of_nets = "; ".join(f"{name}: {', and once more: '.join(times)}" for name, times in steps.items())
    return (
        f"The same on other nets and devices:\n\n{markdown(lines)}\n\n{spread(*found)}; {told}. One step of PGD, as "
        f"above: {of_nets}."
    )


def step_profile() -> str:
    """Where the time of a step goes, before and after."""
    results = read(RESULTS / "step_profile.json")
    if not results:
        return ""
    tables = []
    for method, loops in results["rows"].items():
        kinds = {kind: [of[kind] for of in loops.values()] for kind in next(iter(loops.values()))}
        kinds["sum"] = [sum(of.values()) for of in loops.values()]
        lines = [[method, *loops], ["---", *["---:"] * len(loops)]]
        tables.append(markdown(lines + [[kind, *(f"{of:.0f}" for of in times)] for kind, times in kinds.items()]))
    both = "\n\n".join(tables)
    return (
        f"Where the time of a step goes, in milliseconds per batch (`scripts/step_profile.py`):\n\n{both}\n\n"
        f"Means of {results['batches']} batches under torch's profiler; {where(results)}."
    )


def benchmark() -> str:
    """Each method's fit step against its floor, and one step of an attack."""
    results = read(RESULTS / "benchmark_resnet18_16.json")
    lines = [["method", "images/s", *LOOPS], ["---", *["---:"] * (1 + len(LOOPS))]]
    lines += [[name, *cells(row)] for name, row in results["rows"].items()]
    beside = [read(path) for path in sorted(RESULTS.glob("benchmark_*.json"))]
    times = [of["overhead_in_microseconds"] for of in beside if device(of) == device(results)]
    lightning, ours = (median_of([one[name] for one in times]) for name in ("Lightning alone", "Natural"))
    return (
        f"{markdown(lines)}\n\n{spread(results)}; {where(results)}. On a net that costs next to nothing, a step of "
        f"natural training takes {lightning} microseconds more than its floor by Lightning alone, and {ours} by a "
        f"method here (n = {len(times)}). One step of PGD, as a ratio to one of the train-mode loop in float32: "
        f"{attack_step(results)}."
    )


def median_of(values: Sequence[float]) -> str:
    """The median and, of several values, the smallest and the largest."""
    spread = f" ({min(values):.0f} to {max(values):.0f})" if len(values) > 1 else ""
    return f"{median(values):.0f}{spread}"


def attack_step(results: Mapping[str, Any]) -> str:
    """One step of PGD in eval mode as a ratio to one of the train-mode loop."""
    ratios = [(loop, of["to_train"], of["to_train_range"]) for loop, of in results["attack_step"].items()]
    told = [f"{loop} {middle:.2f} ({low:.2f} to {high:.2f})" for loop, middle, (low, high) in ratios if loop != "train"]
    return ", ".join(told)


def digits_bf16() -> str:
    """What training in bfloat16 costs in accuracy."""
    results = read(RESULTS / "digits_bf16.json")
    lines = [["net", "epochs", "clean, float32", "bf16-mixed", "PGD-20, float32", "bf16-mixed"]]
    lines.append(["---", *["---:"] * 5])
    for name, net in results["nets"].items():
        cells = [
            with_range([row[attack] for row in net[precision]])
            for attack in ("clean", "pgd20")
            for precision in ("32-true", "bf16-mixed")
        ]
        lines.append([name, str(net["epochs"]), *cells])
    n = net["32-true"][0]["n"]
    missing = [name for name in NETS if name not in results["nets"]]
    so_far = f" Without results so far: {', '.join(missing)}." if missing else ""
    return (
        f"{markdown(lines)}\n\nPGDAT on scikit-learn's digits, accuracy in percent at eps {results['eps']:g}, n = {n}, "
        f"mean and range of {len(results['seeds'])} seeds; {device(results)}.{so_far}{again(results['nets'])}"
    )


def again(nets: Mapping[str, Any]) -> str:
    """What nets reach in float32 on another processor."""
    found = {name: net["again"] for name, net in nets.items() if "again" in net}
    told = [
        f"the {name} clean {with_range([run['clean'] for run in of['32-true']])}, PGD-20 "
        f"{with_range([run['pgd20'] for run in of['32-true']])}"
        for name, of in found.items()
    ]
    on = " and ".join(sorted({device(of) for of in found.values()}))
    return f" Trained again in float32 on {on}: {'; '.join(told)}." if told else ""


def net_of(results: Mapping[str, Any]) -> str:
    """The net of a measurement."""
    return results["net"] + (f" of width {results['width']}" if results["width"] else "")


def device(results: Mapping[str, Any]) -> str:
    """The GPU of a measurement, or its processor, and the commit that was measured, where that is recorded."""
    code = f", at commit {results['commit']}" if "commit" in results else ""
    if "gpu" in results:
        return f"{results['gpu']}{code}"
    capability = ", ".join([results["capability"], *(results.get("bf16") or [])])
    threads = f"{results['threads']} thread{'s' * (results['threads'] > 1)}"
    return f"{threads} of {results['processor']} ({capability}){code}"


def where(results: Mapping[str, Any]) -> str:
    """The net, the batch, the device and the commit of a measurement."""
    return f"{net_of(results)}, batches of {results['batch']}, {device(results)}"


def peak_memory() -> str:
    """Each method's peak memory beside natural training's."""
    results = read(RESULTS / "peak_memory.json")
    if not results:
        return ""
    lines = [["method", "MB", "natural training = 1"], ["---", "---:", "---:"]]
    lines += [[name, f"{row['megabytes']:.0f}", f"{row['to_natural']:.2f}"] for name, row in results["rows"].items()]
    return (
        "What a fit holds at most beyond what the process held before (`scripts/peak_memory.py`, a process for each "
        f"method):\n\n{markdown(lines)}\n\n{where(results)}, precision {results['precision']}."
    )


def kept_memory() -> str:
    """What a training gains if glibc keeps freed memory."""
    results = read(RESULTS / "kept_memory.json")
    if not results:
        return ""
    lines = [["training", "ms, returned", "ms, kept", "ratio", "MB, returned", "MB, kept"], ["---", *["---:"] * 5]]
    for name, row in results["rows"].items():
        seconds, memory = ([row[how][key] for how in ("returned", "kept")] for key in ("seconds", "megabytes"))
        lowest, highest = row["to_returned_range"]
        ratio = f"{row['to_returned']:.2f} ({lowest:.2f} to {highest:.2f})"
        lines.append([name, *(f"{1000 * one:.0f}" for one in seconds), ratio, *map(str, memory)])
    return (
        "On Linux with glibc, memory that a batch frees goes back to the system, which clears it for the next one. The "
        "command keeps blocks below 32 MB, and asks Linux for huge pages; from Python, call "
        "`lit_robust.host_memory.keep_freed_memory()`. A variable "
        "such as `MALLOC_TRIM_THRESHOLD_` of your own is left as it is. `lit-robust fit` also takes denormal "
        "numbers, which slow a CPU down, for 0; from Python, call `torch.set_flush_denormal(True)`. An attack on a net "
        "whose gradients are that small needs them, so a validation can find such a net more robust than a test, which "
        "keeps them. What kept memory "
        "gains on a CPU (`scripts/kept_memory.py`):\n\n"
        f"{markdown(lines)}\n\nMedians per batch, and of the ratios of {results['turns']} turns with their range; MB: "
        f"the highest memory of the whole process; {where(results)}."
    )


def attack_speed() -> str:
    """The attacks beside those of other packages."""
    results = read(RESULTS / "attack_speed.json")
    if not results:
        return ""
    head = ["attack", "package", "BatchNorm", "forwards", "package", "package, channels_last", "ours, plain call"]
    lines = [head, ["---", "---", "---", *["---:"] * 4]]
    ratios: list[float] = []
    for attack, peers in results["rows"].items():
        for peer, modes in peers.items():
            for mode, row in modes.items():
                found = [row[f"{loop} / ours"] for loop in ("peer", "peer, channels_last", "alone")]
                ratios.append(found[0])
                name = f"{NAMES.get(peer, peer)} {results['peers'][peer]}"
                forwards = " / ".join(str(row["forwards"][loop]) for loop in ("peer", "ours"))
                lines.append([attack, name, mode, forwards, *(f"{ratio:.2f}" for ratio in found)])
    missing = [NAMES.get(name, name) for name in results["missing"]]
    left_out = f" Not installed, so left out: {', '.join(missing)}." if missing else ""
    return (
        "The attacks beside other packages' with the same steps (`scripts/attack_speed.py`). The numbers are seconds "
        "divided by those of our attack as a training or a test runs it, in the BatchNorm mode of the package: in "
        "channels_last and, in eval mode, with folded BatchNorms. Forwards are the package's and ours.\n\n"
        f"{markdown(lines)}\n\nMedians of {results['repeats']} turns; {where(results)}, float32. The packages, "
        f"each given the net as torch builds it, take {min(ratios):.2f} to {max(ratios):.2f} times as long.{left_out}"
    )


def start_up_speed() -> str:
    """How long commands and imports take."""
    results = read(RESULTS / "start_up_speed.json")
    if not results:
        return ""
    lines = [["", "seconds", "CPU seconds", "ratio"], ["---", "---:", "---:", "---"]]
    for name, row in results["rows"].items():
        ratio = f"{row['ratio']:.2f} to {row['beside']}" if "ratio" in row else "-"
        lines.append([name, f"{row['seconds']:.2f}", f"{row['cpu_seconds']:.2f}", ratio])
    return (
        f"What a new process waits for (`scripts/start_up_speed.py`):\n\n{markdown(lines)}\n\nMedians of "
        f"{results['turns']} turns; {device(results)}."
    )


def autoattack_bf16() -> str:
    """How many images survive AutoAttack in float32 and in bf16."""
    results = read(RESULTS / "autoattack_bf16.json")
    lines = [["net", "robust, float32 attack", "robust, bf16 attack", "only under bf16", "only under float32"]]
    lines.append(["---", *["---:"] * 4])
    for name, counts in results["nets"].items():
        lines.append([name, *(str(counts[key]) for key in ("float32", "bf16", "bf16_only", "float32_only"))])
    on = device(results["hardware"])
    return f"{markdown(lines)}\n\nHow many of {results['n']} held-out digits survive; one net per row, {on}."


def autoattack_speed() -> str:
    """AutoAttack as a test runs it beside its package, a paragraph for each processor."""
    return "\n\n".join(of_autoattack(read(path)) for path in sorted(RESULTS.glob("autoattack_speed*.json")))


def of_autoattack(results: Mapping[str, Any]) -> str:
    """The seconds of both, and where they differ."""
    rows = [*results["blocks"].values()]
    total = {key: sum(row[key] for row in rows) for key in rows[0]}
    different = total["only_ours_leaves"] + total["only_package_leaves"]
    ratios = [row["ours"] / row["package"] for row in rows]
    trained = f"{results['train_size']:,} images" if results["train_size"] else "all images"
    said = "both break the same images."
    if different:
        said = (
            f"they differ on {different}, of which {total['only_ours_leaves']} are left by ours only. Without folding, "
            f"ours differs from the package on {total['different_without_folding']}, so that folding's rounding "
            "explains the others."
        )
    if "compiled" in total:
        said += (
            f" With `compile: true` it takes {total['compiled'] / total['package']:.2f} ({total['compiled']:.0f} s, "
            f"compilation included; {total['different_compiled']} images come out otherwise)."
        )
    return (
        f"AutoAttack of a test takes {total['ours'] / total['package']:.2f} of the time of its package "
        f"({results['package']}; {total['ours']:.0f} and {total['package']:.0f} s, median of {len(rows)} blocks "
        f"{median(ratios):.2f}), both in eval mode, channels_last, frozen and in float32; of {total['n']} images of "
        f"CIFAR-10 the package leaves {total['left']}, and {said} `scripts/autoattack_speed.py`: ResNet-18 of width "
        f"{results['width']}, trained on {trained}, eps 8/255, blocks of {results['block']} images, {device(results)}."
    )
