"""Nets, data and methods of the user's own on the command line, and what the README says of them."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image

from lit_robust import load_net
from lit_robust.cli import main
from tests.front_door import refusal, tiny

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]


def snippets(marker: str) -> list[str]:
    """The blocks of code behind a marker, up to the next heading."""
    section = README.partition(f"<!-- {marker} -->")[2].partition("\n#")[0]
    return re.findall(r"```(?:python|bash)\n(.*?)```", section, re.DOTALL)


def words(command: str) -> list[str]:
    """A command of the README without ``lit-robust``."""
    return shlex.split(command.replace("\\\n", " "))[1:]


def installed(folder: Path) -> list[str]:
    """The command as a script that lies elsewhere, as an installation writes it."""
    script = folder / "elsewhere" / "lit-robust"
    script.parent.mkdir()
    script.write_text("import sys\nfrom lit_robust.cli import main\nsys.exit(main())\n")
    return [sys.executable, str(script)]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working directory beside the repository's configurations."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("how", ["script", "module"])
def test_the_readmes_own_parts_train(here, how):
    module, command = snippets("own parts")
    (here / "my_parts.py").write_text(module)
    start = installed(here) if how == "script" else [sys.executable, "-m", "lit_robust"]
    ran = subprocess.run(
        [*start, *words(command), *QUIET],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    config = yaml.safe_load((here / "runs/run/version_0/config.yaml").read_text())["model"]
    assert config["class_path"] == "my_parts.MyMethod"
    assert config["init_args"]["net"] == {"class_path": "my_parts.my_net", "init_args": {"num_classes": 4, "width": 8}}
    assert (here / "runs/run/version_0/checkpoints/last.ckpt").exists()


def test_the_readmes_pretrained_net_is_trained_on_ones_own_images(here, caplog, monkeypatch):
    for label, name in enumerate(["cat", "dog"]):
        (here / "photos" / name).mkdir(parents=True)
        for i in range(10):
            Image.new("RGB", (40, 40), (100 * label, 20 * i, 0)).save(here / "photos" / name / f"{i}.png")
    (command,) = snippets("own images")
    brief = ["--model.net.name=shufflenet_v2_x0_5", "--data.image_size=32", "--data.num_workers=0"]
    brief += [
        "--trainer.max_epochs=1",
        "--model.attack.steps=1",
        "--model.attack.step_size=4/255",
        "-c",
        "configs/trainer/cpu.yaml",
        *QUIET,
    ]
    brief += ["--trainer.precision=32-true", "--model.compile=false"]
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", _random_weights)
    with caplog.at_level("INFO", "lightning.pytorch"):
        main([*words(command), *brief])
    run = here / "runs/photos/version_0"
    net = yaml.safe_load((run / "config.yaml").read_text())["model"]["init_args"]["net"]["init_args"]
    assert (net["pretrained"], net["num_classes"]) == (True, 2)
    assert load_net(run / "checkpoints/last.ckpt").head.out_features == 2
    told = "photos has no folder train, .* split_seed=0: 14 to train, 2 to validate and 4 to test"
    assert any(re.match(told, record.message) for record in caplog.records)

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", _no_network)
    main(["fit", *words(command)[1:], *brief, "--trainer.max_epochs=2", "--ckpt_path=last"])
    main(["test", *words(command)[1:], *brief, "--ckpt_path=last"])


def _random_weights(url, *args, **kwargs):
    from torchvision.models import shufflenet_v2_x0_5

    return shufflenet_v2_x0_5(weights=None).state_dict()


def _no_network(url, *args, **kwargs):
    raise OSError(f"{url} was asked for")


MODULE = """
from torch import nn

class Own(nn.Module):
    def __init__(self, num_classes: int, width=2):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))
        self.num_classes = num_classes

    def forward(self, x):
        return self.layers(x)

class Wrapped(nn.Module):
    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x)

def annotated(num_classes: int = 3) -> nn.Module:
    return Own(num_classes)

def unannotated(num_classes=10):
    return Own(num_classes)
"""


@pytest.fixture
def my_module(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_module.py").write_text(MODULE)
    yield tmp_path
    sys.modules.pop("my_module", None)


def fitted(*flags):
    """The ``init_args`` of the net in the configuration that the run has saved."""
    main(["fit", "-c", tiny(Path()), "--trainer.max_epochs=0", *flags])
    return yaml.safe_load(Path("runs/tiny/version_0/config.yaml").read_text())["model"]["init_args"]["net"]["init_args"]


@pytest.mark.parametrize("flags", [[], ["--model.net.num_classes=null"], ["--model.net.num_classes=10"]])
@pytest.mark.parametrize("name", ["my_module.Own", "my_module.annotated", "lit_robust.nets.digits_cnn"])
def test_a_net_takes_the_datas_number_of_classes(name, flags, my_module):
    assert fitted(f"--model.net={name}", *flags)["num_classes"] == 10
    assert str(my_module) not in sys.path


def test_a_file_may_say_null(my_module):
    net = {"class_path": "lit_robust.nets.digits_cnn", "init_args": {"num_classes": None, "width": 2}}
    Path("net.yaml").write_text(yaml.safe_dump({"model": {"init_args": {"net": net}}}))
    assert fitted("-c", "net.yaml") == {"num_classes": 10, "width": 2}


def test_a_net_inside_a_net_takes_it_too(my_module):
    found = fitted("--model.net=my_module.Wrapped", "--model.net.net=my_module.Own")
    assert found["net"]["init_args"]["num_classes"] == 10


def test_a_written_number_of_classes_is_not_replaced(my_module, capsys):
    flags = ["--model.net=my_module.Own", "--model.net.num_classes=7"]
    assert "num_classes=10" in refusal(capsys, "fit", "-c", tiny(Path()), *flags)


@pytest.mark.usefixtures("timm")
def test_timms_function_takes_the_datas_number_of_classes(my_module):
    grey = ["--model.net.model_name=resnet18", "--model.net.dict_kwargs.in_chans=1"]
    assert fitted("--model.net=timm.create_model", *grey)["num_classes"] == 10


@pytest.mark.parametrize("name", ["my_module.unannotated", "torch.hub.load"])
def test_a_function_without_annotation_is_told_what_to_do(name, my_module, capsys):
    function = name.rpartition(".")[2]
    told = refusal(capsys, "fit", "-c", tiny(Path()), f"--model.net={name}")
    assert told.startswith(f"model.net: {name} ")
    assert f"def {function}(...) -> Module" in told


def test_a_net_of_ours_is_suggested_with_its_whole_path(my_module, capsys):
    told = refusal(capsys, "fit", "-c", tiny(Path()), "--model.net=torchvision_net")
    assert "did you mean lit_robust.nets.torchvision_net?" in told


def test_null_reaches_a_part_of_a_part(my_module):
    flags = ["--model.net.image_size=8", "--model.net.mean=null"]
    assert fitted("--model.net=lit_robust.nets.fast_cnn", *flags)["mean"] is None


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("1 / 0", "model: ZeroDivisionError: division by zero (broken_part.py, line 1)"),
        ("x = 3\n{}['k']", "model: KeyError: 'k' (broken_part.py, line 2)"),
        ("def f(:", "model: SyntaxError: invalid syntax (broken_part.py, line 1)"),
    ],
)
def test_an_error_in_a_module_of_ones_own_names_its_file_and_line(text, told, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken_part.py").write_text(text)
    assert refusal(capsys, "fit", "-c", tiny(tmp_path), "--model", "broken_part.Mine") == told
