"""The HTML page about runs: complete, self-contained, and safe against the names in it."""

import re
from base64 import b64decode
from html.parser import HTMLParser
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from lit_robust.analysis import compare, report
from lit_robust.attacks import PGD
from lit_robust.cli import main
from tests.front_door import lit, tiny
from tests.test_analysis import ATTACK, digits, two  # noqa: F401  # a fixture

#: A folder's name that would be a tag, and with its attribute a script.
EVIL = "<img src=x onerror=alert('1')>"
#: Elements that need no end.
VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """The elements of a page, and its text by the heading above it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.sections: dict[str, str] = {"": ""}
        self.heading = ""
        self.feed(path.read_text())
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "h2":
            self.heading = ""

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] == ["h2"]:
            self.heading += data
            self.sections[self.heading] = ""
        else:
            self.sections[self.heading] += data

    def pictures(self) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.elements if tag == "img"]


@pytest.fixture
def runs(tmp_path, monkeypatch) -> list[str]:
    """Two runs of the command line, one of them in a folder that is called like a tag."""
    monkeypatch.chdir(tmp_path)
    lit("fit", "--trainer.logger.name", EVIL, "--trainer.max_epochs", "2")
    lit("fit", "--trainer.logger.name", "honest")
    return [f"runs/{EVIL}", "honest=runs/honest"]


def write(checkpoints: list[str], **arguments) -> Page:
    return Page(report(checkpoints, digits(), **{"attacks": {"pgd": ATTACK}, "alarms": False} | arguments))


def test_a_report_has_all_of_two_runs(runs):
    page = write(runs, examples=3, alarms=True)
    name = f"{EVIL}/version_0"
    results = page.sections["Results"]
    assert name in results
    assert "Accuracies in % over 40 test images" in results
    assert "Hardware: " in results
    assert name in page.sections["Alarms"]
    assert "lit_robust.defenses.PGDAT" in page.sections["Configurations"]
    assert f"runs/{EVIL}/version_0/config.yaml" in page.sections["Configurations"]
    assert "32-true" in page.sections["Trainings"]
    assert "torch " + version("torch") in page.sections["Versions"]
    assert [picture["alt"] for picture in page.pictures()] == [
        "robust accuracies",
        "robust accuracy against the cost of the training",
        "training loss and validation accuracy over the epochs",
        f"adversarial images of {name}",
        "adversarial images of honest",
    ]


def test_a_report_runs_no_script_and_loads_nothing(runs):
    page = write(runs)
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "iframe", "object", "embed", "link", "base", "form", "svg", "a"}
    for tag, attributes in page.elements:
        assert not any(name.startswith("on") for name in attributes), tag
        assert not {"href", "srcset", "action", "style"} & attributes.keys()
    for picture in page.pictures():
        head, _, content = picture["src"].partition(",")
        assert head == "data:image/png;base64"
        assert b64decode(content).startswith(b"\x89PNG")
    policy = [of["content"] for tag, of in page.elements if of.get("http-equiv") == "Content-Security-Policy"]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
    assert "url(" not in Path("analysis/report.html").read_text()


def test_every_name_is_escaped(runs):
    """Of the run, of the attack, and in the configuration; as text, they are all there."""
    config = Path(f"runs/{EVIL}/version_0/config.yaml")
    config.write_text(config.read_text() + "\n# </pre><script>alert(2)</script>\n")
    page = write([*runs, "<td><b>=runs/honest"], attacks={"<i>pgd</i>": ATTACK})
    text = Path("analysis/report.html").read_text()
    for tag in ("<img src=x", "<script", "<b>=", "<i>", "<td><b>"):
        assert tag not in text.replace('<img src="data:', "")
    assert "<script>alert(2)</script>" in page.sections["Configurations"]
    assert "<i>pgd</i>" in page.sections["Results"]
    assert "<td><b>" in page.sections["Results"]


def test_a_page_fits_a_phone(runs):
    page = write(runs)
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in page.elements
    boxes = [place for place, (tag, of) in enumerate(page.elements) if of.get("class") == "scrolls"]
    wide = [place for place, (tag, _) in enumerate(page.elements) if tag in ("table", "img")]
    assert [place + 1 for place in boxes] == wide  # each is in a box that scrolls
    for picture in page.pictures():  # narrower, its text would be too small to read
        assert (picture.get("class") == "wide") == (int(picture["width"]) > 480)
    style = Path("analysis/report.html").read_text()
    assert re.search(r"img \{[^}]*max-width: 100%; height: auto", style)
    assert re.search(r"\.scrolls, pre \{[^}]*overflow-x: auto", style)
    assert re.search(r"\.wide \{[^}]*min-width: 480px", style)


def test_old_checkpoints_have_no_cost_no_curves_and_no_configuration(two):  # noqa: F811
    page = write(two, examples=0)
    assert "No metrics.csv" in page.sections["Training curves"]
    assert [picture["alt"] for picture in page.pictures()] == ["robust accuracies"]
    assert "No images were drawn." in page.sections["Adversarial images"]
    assert "lit_robust.nets.digits_cnn" in page.sections["Configurations"]
    assert "Hardware" not in page.sections["Results"]


def test_alarms_are_sentences_beside_the_run(two):  # noqa: F811
    path = Path("runs/trained/version_0/checkpoints/last.ckpt")
    kept = torch.load(path)
    for name in ("net.head.weight", "net.head.bias"):
        kept["state_dict"][name] = 1000 * kept["state_dict"][name]
    torch.save(kept, path)
    page = write([*two[:1], "fresh=" + two[1]], examples=0, alarms=True)
    assert "trained: zero_gradient." in page.sections["Alarms"]
    assert any(of.get("class") == "alarm" for _, of in page.elements)
    off = write(two, examples=0)
    assert "were not looked for" in off.sections["Alarms"]


def test_a_report_after_compare_measures_nothing_again(two, monkeypatch):  # noqa: F811
    (first, *_) = compare(two, digits(), {"pgd": ATTACK}, alarms=False)
    monkeypatch.setattr(PGD, "__call__", None)  # a second attack would fail
    assert f"{100 * first['pgd']:.1f}" in write(two, examples=0).sections["Results"]


def test_the_command_writes_a_report(runs, capsys):
    attack = "{pgd: {class_path: PGD, init_args: {eps: 0.1, steps: 2}}}"
    main(["report", *runs, "-c", tiny(Path()), "--attacks", attack, "--alarms", "false", "--examples", "2"])
    assert "analysis/report.html" in capsys.readouterr().out
    assert "over 32 test images" in Page(Path("analysis/report.html")).sections["Results"]


def test_a_negative_number_of_examples_is_refused(two):  # noqa: F811
    with pytest.raises(ValueError, match="examples"):
        report(two, digits(), examples=-1)
