"""Real photographs through the command line, with nets of their size; skipped where there are none."""

import pytest

from lit_robust.cli import main
from tests.front_door import compose, rows

pytestmark = pytest.mark.usefixtures("real_data")


@pytest.mark.parametrize(
    ("data", "net", "options"),
    [
        ("cifar10", "resnet18", ["--data.train_size=64"]),
        ("imagenette", "imagenet_resnet18", ["--data.image_size=64", "--data.num_workers=0", "--data.val_size=10"]),
        (
            "imagenet100",
            "imagenet_resnet18",
            ["--model.net.num_classes=100", "--data.image_size=64", "--data.num_workers=0", "--data.val_size=100"],
        ),
    ],
)
def test_two_batches_of_every_data_set_go_through_fit_and_test(data, net, options, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    attacks = "{pgd2: {class_path: PGD, init_args: {steps: 2}}}"
    arguments = compose(f"data/{data}", f"net/{net}", "defense/pgdat", "attack/cifar_pgd10") + options
    arguments += ["--data.batch_size=4", "--data.eval_batch_size=4", "--model.attack.steps=2"]
    arguments += ["--model.attack.step_size=4/255"]
    arguments += [f"--trainer.limit_{split}_batches=2" for split in ("train", "val", "test")]
    main(["fit", *arguments, "--trainer.max_epochs=1"])
    main(["test", *arguments, "--ckpt_path=last", f"--model.test_attacks={attacks}"])
    assert {name: int(words[-1]) for name, words in rows(capsys.readouterr().out).items()} == {"clean": 8, "pgd2": 8}


@pytest.mark.parametrize("net", ["wide_resnet28_10", "wide_resnet32_10", "wide_resnet34_10"])
def test_the_wide_nets_take_a_step_at_batch_8(net, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main(
        [
            "fit",
            *compose("data/cifar10", f"net/{net}", "defense/pgdat", "attack/cifar_pgd10"),
            "--trainer.fast_dev_run=1",
            "--data.batch_size=8",
            "--data.eval_batch_size=8",
            "--model.attack.steps=1",
            "--model.attack.step_size=8/255",
            "--model.val_attack.steps=1",
            "--model.val_attack.step_size=8/255",
            "--trainer.limit_val_batches=0",
        ]
    )
