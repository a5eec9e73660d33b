"""What the rows of ``cpu_budget.yaml`` cost, estimated before they run."""

from collections.abc import Mapping
from typing import Any

#: Seconds of one core per image and pass (a forward and a backward), by net and width, in batches of 128.
SECONDS = {
    ("fast_cnn", None): 1.0e-4,
    ("resnet18", 8): 0.8e-3,
    ("resnet18", 12): 1.2e-3,
    ("resnet18", 16): 1.7e-3,
    ("resnet18", 24): 2.9e-3,
}
#: The time of a net whose stem has stride 2, relative to one whose stem has not.
STRIDED = 0.35
#: The time of a training in bf16-mixed, relative to one in float32, on processors with AVX512-BF16.
BF16 = 0.57
#: AutoAttack's passes per image; broken images cost little, so the nets of MNIST, which are more robust, take more.
AUTOATTACK = {"fast_cnn": 2500, "resnet18": 1000}
#: The monitors' images per epoch, and the passes of all three.
MONITORED, OF_MONITORS = 512, 12


def hours(row: Mapping[str, Any], done: Mapping[str, Any] | None) -> dict[str, float]:
    """Hours of one core that are left of a row: training, what each epoch measures, AutoAttack, other attacks.

    Args:
        row: A row of ``cpu_budget.rows_of``.
        done: The record so far, if the row is trained.
    """
    model, data = (row["config"][part]["init_args"] for part in ("model", "data"))
    net = model["net"]["class_path"].rpartition(".")[2]
    said = model["net"].get("init_args", {})
    strided = STRIDED if said.get("stem_stride") == 2 else 1
    of_pass = strided * SECONDS.get((net, said.get("width")), max(SECONDS.values())) / 3600
    found = {"training": 0.0, "measuring": 0.0}
    if done is None:
        faster = BF16 if row["config"]["trainer"].get("precision") == "bf16-mixed" else 1
        found["training"] = of_pass * data["train_size"] * passes_of(row) * faster
        found["measuring"] = of_pass * row["epochs"] * measured(row["config"])
    found |= {"AutoAttack": 0.0, "other attacks": 0.0}
    for name, attack in model["test_attacks"].items():
        said, n = attack.get("init_args", {}), row["images"].get(name, data["test_size"])
        costly = attack["class_path"].endswith("AutoAttack")
        passes = AUTOATTACK.get(net, max(AUTOATTACK.values())) if costly else said.get("steps", 100)
        if name not in (done or {}).get("last", {}):
            found["AutoAttack" if costly else "other attacks"] += of_pass * n * passes * said.get("restarts", 1)
    return found


def passes_of(row: Mapping[str, Any]) -> float:
    """Passes of a row's training per image: those of its epochs, and of a coreset's selections.

    Without ``passes``, a batch takes as many as the training attack has steps, and one more.
    """
    steps = row["config"]["model"]["init_args"]["attack"]["init_args"].get("steps", 1)
    passes, epochs = row["passes"] or steps + 1, row["epochs"]
    for callback in row["config"]["trainer"]["callbacks"]:
        if callback["class_path"] == "CoresetSelection":
            said = callback["init_args"]
            selector = said["selector"]
            reads = selector["class_path"] != "Random" or selector.get("init_args", {}).get("report_error", False)
            selections = (1 - said["warm"]) * epochs / (said["every"] or epochs) if reads else 0
            epochs = said["fraction"] * epochs + selections
    return float(passes * epochs)


def measured(config: Mapping[str, Any]) -> float:
    """Passes of an epoch for its validation and its monitors."""
    steps = config["model"]["init_args"]["val_attack"]["init_args"]["steps"]
    monitors = any(one["class_path"] == "CatastrophicOverfittingMonitor" for one in config["trainer"]["callbacks"])
    return float(config["data"]["init_args"].get("next_size", 0) * (steps + 2) + monitors * MONITORED * OF_MONITORS)
