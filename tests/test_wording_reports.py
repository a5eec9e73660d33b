"""The wording of what is reported without refusing anything: lines of the log, and what analyses print."""

import re
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
from lightning.pytorch import Callback
from PIL import Image

from lit_robust.analysis import compare, surface, surrogate, sweep
from lit_robust.analysis.compare import default_attacks
from lit_robust.analysis.start import default_attack
from lit_robust.analysis.study import Study
from lit_robust.analysis.trained_threat import trained_threat
from lit_robust.attacks import PGD
from lit_robust.callbacks import AttributeRamp, DelayedStart, Plateau, StopAfterDrop, coreset_reports
from lit_robust.callbacks.coreset_plan import Plan
from lit_robust.callbacks.coreset_reports import tell_of_joining, tell_of_skips
from lit_robust.cli import main
from lit_robust.data import DigitsDataModule, ImageFolderDataModule
from lit_robust.defenses import PGDAT, Natural, PerceptualAT
from lit_robust.measures.alarm_rules import in_words
from lit_robust.nets import digits_cnn
from lit_robust.schedules import Linear, MultiStep, PerEpoch
from lit_robust.selection import CRAIG, GradMatch
from lit_robust.selection.selector import Coreset
from tests.front_door import lit, tiny
from tests.methods import ATTACK, build
from tests.test_wording import Driven, fit, pictures, selects


def a_sum_of_weights_below_the_number_of_images() -> None:
    chosen = Coreset(torch.arange(2), torch.tensor([1.0, 2.0]), 0)
    print(coreset_reports.in_words(chosen, GradMatch(), 4, 3, 0.5, 0.02, False))


def no_error_of_the_gradient() -> None:
    chosen = Coreset(torch.arange(2), torch.ones(2), 0)
    print(coreset_reports.in_words(chosen, CRAIG(), 4, 3, 0.5, float("nan"), False))


def selected_before() -> None:
    """Restore a selection where no callback chooses another."""
    data = digits()
    data.select(data.training_labels()[1][:11], torch.ones(11))
    digits().load_state_dict(data.state_dict())


def plain_tree() -> None:
    """Read images in one folder for each class."""
    for name in ("cat", "dog"):
        (Path("photos") / name).mkdir(parents=True)
        for number in range(10):
            Image.new("RGB", (8, 8)).save(Path("photos") / name / f"{number}.png")
    ImageFolderDataModule("photos", image_size=8, num_workers=0, val_size=2).setup()


class Interrupts(Callback):
    def on_train_batch_end(self, *args):
        signal.raise_signal(signal.SIGTERM)


def interrupted() -> None:
    with pytest.raises(SystemExit):
        fit(build(Natural), Interrupts())


def weights() -> str:
    torch.save(digits_cnn(width=4).state_dict(), "a.pth")
    return "a.pth"


def digits() -> DigitsDataModule:
    return DigitsDataModule(batch_size=32, train_size=64, test_size=32)


def imitated() -> None:
    study = SimpleNamespace(device="cpu", images=SimpleNamespace(key=""), journal=SimpleNamespace(get=lambda *_: 0.75))
    with patch.object(surrogate, "Surrogate"), patch.object(surrogate, "read_training_images"):
        surrogate.surrogate_of(study, SimpleNamespace(name="a"), None)


def without_alarms() -> None:
    with patch.object(Study, "alarms", lambda *_: {}):
        compare([weights()], digits(), {"pgd": ATTACK}, limit=4, gap=False, net=digits_cnn(width=4))


def resumed_with_weights() -> None:
    weights()
    lit("fit", "--weights", "a.pth")
    (saved,) = Path().rglob("config.yaml")
    main(["test", "-c", str(saved), "--ckpt_path", "last"])


#: What is called, and a line that it logs or prints, where * stands for measured values.
LINES: list[tuple[Callable[[], object], str]] = [
    (
        lambda: selects(options={"fast_dev_run": 2}),
        "fast_dev_run: the coreset was chosen from one batch as a trial; all images are trained on.",
    ),
    (
        lambda: selects(options={"max_steps": 2}),
        "each selection looks at all 8 images, 4 batches, although training is limited to max_steps=2: for a short "
        "trial give the data fewer images, or set fast_dev_run.",
    ),
    (
        lambda: tell_of_joining(2),
        "the checkpoint has no coreset: epoch 2 is trained on all images, and CoresetSelection begins with the next "
        "one.",
    ),
    (
        lambda: tell_of_skips(Plan(0.3, 5, 0.5), 3, 10),
        "epochs 3 to 9 are skipped: the warm start trains on all images for 3 of 10 epochs, as many as fraction=0.3 "
        "pays for, and schedules advance over the others.",
    ),
    (
        a_sum_of_weights_below_the_number_of_images,
        "epoch 3: GradMatch chose 2 of 4 images in 0.5 s, with weights from 1 to 2; their weighted gradient is off by "
        "2.00% before the loss divides by the sum of weights, which multiplies its length by 1.33.",
    ),
    (
        no_error_of_the_gradient,
        "epoch 3: CRAIG chose 2 of 4 images in 0.5 s, with weights from 1 to 1; their gradient cannot be compared "
        "(nan), as that of all images is 0 or too large.",
    ),
    (
        lambda: fit(build(PerceptualAT, attack=PGD(0.1, steps=1))),
        "attack=PGD is bounded in linf, so this training is not perceptual: give FastLPA, unless that is meant.",
    ),
    (
        selected_before,
        "training continues on the 11 of 64 images that the checkpoint has selected: to choose again, list the "
        "callback that chose them, such as CoresetSelection.",
    ),
    (
        lambda: fit(Driven(), DelayedStart(at_epoch=1)),
        "training is adversarial from epoch 1 on: at_epoch=1.",
    ),
    (
        lambda: fit(build(PGDAT, lr_scheduler=MultiStep([1])), DelayedStart()),
        "training is adversarial from epoch 1 on: the learning rate drops.",
    ),
    (
        lambda: fit(Driven(), DelayedStart(Plateau(1, 1.0, 1), latest_epoch=3, monitor="loss"), max_epochs=4),
        "training is adversarial from epoch 2 on: loss has levelled off at * by Plateau(window=1, drop=1.0, "
        "min_epochs=1).",
    ),
    (
        lambda: fit(build(Natural, lr_scheduler=MultiStep([1])), StopAfterDrop(1)),
        "training stops after epoch 1, 1 epochs since the learning rate's drop.",
    ),
    (
        lambda: fit(Driven(), AttributeRamp("lam", PerEpoch(Linear(0, 0.4, 29, 69)))),
        "lam is 0 after 3 epochs, but its schedule goes on to 0.4: scale it to trainer.max_epochs=3 if it is to get "
        "there.",
    ),
    (
        plain_tree,
        "photos has no folder train, so its images are split by split_seed=0: 14 to train, 2 to validate and 4 to "
        "test on.",
    ),
    (
        lambda: pictures(augment=True),
        "augment=True crops images at random to as little as 8 % of their area, of which image_size=8 leaves 2 x 2 "
        "pixels: set augment to false, unless that is meant.",
    ),
    (interrupted, "SIGTERM stopped the training in epoch 0, after step 1; nothing was saved."),
    (
        lambda: fit(build(Natural, attack=PGD(0.05), val_attack=PGD(0.1), test_attacks={"a": PGD(0.05)})),
        "the training's attack has eps=0.05, but val_attack has 0.1: is this intended?",
    ),
    (
        resumed_with_weights,
        "The weights are those of --ckpt_path last; weights: a.pth of the configuration is not read.",
    ),
    # Analyses.
    (
        lambda: sweep([weights()], digits(), ATTACK, values=[0], limit=4, net=digits_cnn(width=4)),
        "values=[0] gives one point and no curve: give several.",
    ),
    (
        lambda: surface([weights()], digits(), ATTACK, points=2, eigenvalue=False, limit=4, net=digits_cnn(width=4)),
        "surface uses 4 test images and may be rough: give limit=200 or more, and data that has as many.",
    ),
    (
        lambda: print(in_words({}, 4, "l2")),
        "Square was not run, which has no L2 form here: judge by AutoAttack, which brings one.",
    ),
    (
        without_alarms,
        "- No alarm for a: 4 test images were probed, too few for most alarms, which need 7.",
    ),
    (
        lambda: print(*default_attacks([SimpleNamespace(name="a")], 2)[1], sep="\n"),
        "AutoAttack needs at least 3 classes, and the data has 2: it is left out.",
    ),
    (
        lambda: default_attack([SimpleNamespace(name="a")], steps=1),
        "The default attacks have eps=8/255 in L-infinity, because the checkpoints state no common bound (a: "
        "none): give another by --attack.",
    ),
    (
        lambda: trained_threat([SimpleNamespace(name="a")], "--eps", norms=("linf",)),
        "The default attacks have eps=8/255 in L-infinity, because the checkpoints state no common bound in "
        "L-infinity (a: none): give another by --eps.",
    ),
    (imitated, "a: its surrogate predicts the same class on 75.0 % of the test images."),
    (
        lambda: main(["compare", weights(), "-c", tiny(Path()), "--net", NET, *["--gap=false", "--limit=4"]]),
        "compare does not use the test_attacks of tiny.yaml (pgd2), because it has data, too: for other attacks than "
        "the default ones give --attacks, or -c with a file without data.",
    ),
]
NET = "{class_path: lit_robust.nets.digits_cnn, init_args: {width: 4}}"


@pytest.mark.parametrize(("call", "line"), LINES, ids=[line[:60] for _, line in LINES])
def test_a_line_says_what_happens(call, line, tmp_path, monkeypatch, caplog, capsys):
    monkeypatch.chdir(tmp_path)
    with caplog.at_level("INFO"):
        call()
    lines = [*capsys.readouterr().out.splitlines(), *(record.getMessage() for record in caplog.records)]
    pattern = ".*".join(map(re.escape, line.split("*")))
    assert [one for one in lines if re.fullmatch(pattern, one)], lines
