"""Everything about a few runs on one HTML page, which needs no other file and holds no script."""

import json
import platform
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from html import escape
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from lit_robust import require
from lit_robust.analysis import training_curves
from lit_robust.analysis.compare import Comparison, comparison
from lit_robust.analysis.compare_pictures import draw, draw_costs
from lit_robust.analysis.output import png
from lit_robust.analysis.start import begin
from lit_robust.analysis.study import Study
from lit_robust.analysis.subjects import Subject, checkpoint_of
from lit_robust.analysis.tables import count, duration, html, html_table, with_selections
from lit_robust.attacks import Attack
from lit_robust.attacks.base import NoGraphError
from lit_robust.costs import cost_of
from lit_robust.data import ImageDataModule
from lit_robust.measures.accuracy import describe, legend
from lit_robust.measures.attack_checks import check_names
from lit_robust.measures.attacked_examples import craft, spread
from lit_robust.measures.pictures import draw as draw_examples
from lit_robust.runs import newest_config, run_of
from lit_robust.whole_files import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Even if a name were not escaped, a browser would run no script and load nothing.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

STYLE = """
body { margin: 0 auto; padding: 1rem; max-width: 74rem; font: 16px/1.5 system-ui, sans-serif; color: #222;
  background: #fff; overflow-wrap: anywhere; }
h1, h2, h3 { line-height: 1.2; }
h1 { font-size: 1.5rem; }
h2 { font-size: 1.2rem; margin-top: 2rem; border-bottom: 1px solid #ccc; }
h3 { font-size: 1rem; margin-bottom: 0.3rem; }
p { margin: 0.5rem 0; }
img { display: block; max-width: 100%; height: auto; margin: 0.5rem 0; }
.pictures { display: flex; flex-wrap: wrap; gap: 0 2rem; }
.pictures > div { max-width: 100%; }
.scrolls, pre { overflow-x: auto; }
.wide { min-width: 480px; } /* three quarters of most pictures, whose text can then be read */
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.95rem; }
th, td { padding: 0.3rem 0.5rem; border-bottom: 1px solid #ddd; text-align: left; white-space: nowrap; }
th, td.words { white-space: normal; overflow-wrap: normal; }
td.words { min-width: 9rem; }
pre { padding: 0.6rem; background: #f4f4f4; font-size: 0.8rem; overflow-wrap: normal; }
.alarm { border-left: 4px solid #b00020; padding-left: 0.6rem; }
"""


def report(
    checkpoints: list[str],
    data: ImageDataModule,
    attacks: dict[str, Attack] | None = None,
    autoattack: bool = True,
    examples: int = 5,
    gap: bool = True,
    alarms: bool = True,
    sources: list[str] | None = None,
    surrogate: bool = False,
    reference: str | None = None,
    limit: int | None = None,
    device: str = "auto",
    out: Path = Path("analysis"),
    wandb_project: str | None = None,
    net: nn.Module | None = None,
) -> Path:
    """Write one HTML page about runs: table, pictures, alarms, curves, adversarial images, costs, configurations.

    The page is a single file without scripts, and nothing in it is loaded from elsewhere. Table, ranks, costs and
    alarms are those of ``compare``, and finished measurements of either are not repeated by the other. The training
    curves are drawn where a metrics.csv is beside the checkpoint's folder.

    Args:
        checkpoints: .ckpt files, folders of runs, whose last checkpoint is taken, or files of weights; NAME=PATH names
            a method, and NAME@SEED=PATH one of its runs.
        data: Its test images are attacked.
        attacks: Attacks by name; by default those of ``compare``.
        autoattack: Whether the default attacks include AutoAttack, which takes longest.
        examples: The number of adversarial images that are drawn for each run, under the strongest attack; 0 for none.
        gap: Whether to measure the generalisation gap, as in ``compare``.
        alarms: Whether to look for signs of masked gradients, as in ``compare``.
        sources: Checkpoints whose adversarial images are shown to each net, for the alarm ``transfer``.
        surrogate: Whether to train a natural net on each net's predictions, as one more source.
        reference: The method against which the saved time is stated: wall-clock time, on processors CPU time; where the
            hardware differs, the saved passes.
        limit: Use only the first ``limit`` test images; by default all.
        device: auto, cpu or cuda.
        out: The folder of report.html, and of the journal that lets a stopped run continue.
        wandb_project: The project of Weights & Biases to which the page is also logged.
        net: The net of files that do not name one of lit_robust.nets, such as a plain state_dict; on the command line
            its path, such as torchvision.models.resnet18.

    Returns:
        The file.

    Raises:
        ValueError: If an argument is out of range or a metrics.csv is broken; besides what ``start.begin`` raises.
    """
    require.integer("examples", examples, least=0)
    if attacks is not None:
        check_names("attacks", attacks)
    study = begin(checkpoints, data, limit, device, out, net, wandb_project)
    curves = _curves(study.subjects)
    found = comparison(study, data, attacks, autoattack, gap, alarms, sources, surrogate, reference, net)
    strongest = found.attacks[found.strongest]
    sections = {
        "Results": [
            html(found.rows),
            *_paragraphs(legend(found.attacks)),
            _image(draw(found.rows, found.strongest, found.about), "robust accuracies"),
        ],
        "Alarms": _alarms(found),
        "Training curves": curves,
        "Adversarial images": _examples(study, data, strongest, examples),
        "Trainings": [_trainings(study.subjects)],
        "Configurations": [part for run in study.subjects for part in _configuration(run)],
        "Versions": [_versions()],
    }
    if found.unit is not None:
        costs = draw_costs(found.rows, found.strongest, found.about, found.unit)
        sections["Results"].append(_image(costs, "robust accuracy against the cost of the training"))
    path = study.out / "report.html"
    page = _page(", ".join(row["method"] for row in found.rows), sections)
    write_whole(path, page.encode())
    print(path)
    if wandb_project is not None:
        import wandb

        with wandb.init(project=wandb_project, job_type="report") as run, path.open() as file:
            run.log({"report": wandb.Html(file, inject=False)})
    return path


def _page(title: str, sections: Mapping[str, Iterable[str]]) -> str:
    """The page; sections hold HTML, and the title is text."""
    body = "\n".join(f"<h2>{escape(head)}</h2>\n" + "\n".join(parts) for head, parts in sections.items())
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n<h1>{escape(title)}</h1>\n{body}\n</body>\n</html>\n"
    )


def _image(figure: "Figure", what: str) -> str:
    """A picture inside the page. In a narrow window it scrolls, because its text would become too small to read.

    Args:
        figure: The picture.
        what: Its text for screen readers.
    """
    wide, high = (int(inches * 96) for inches in figure.get_size_inches())
    source = f"data:image/png;base64,{b64encode(png(figure)).decode()}"
    size = f'width="{wide}" height="{high}"' + ' class="wide"' * (wide > 480)
    return f'<div class="scrolls"><img src="{source}" {size} alt="{escape(what)}"></div>'


def _alarms(found: Comparison) -> list[str]:
    told = [
        f'<p class="alarm"><b>{escape(run)}: {escape(name)}.</b> {escape(said)}</p>'
        for run, of in found.alarms.items()
        for name, said in of.items()
    ]
    return told + [f"<p>{escape(remark)}</p>" for remark in found.remarks]


def _curves(runs: Sequence[Subject]) -> list[str]:
    """Loss and validation accuracy of the runs that have metrics."""
    rows: list[dict[str, Any]] = []
    for run in runs:
        with suppress(FileNotFoundError):
            for epoch, values in training_curves.epochs_of_metrics(_folder(run)).items():
                rows.append({"run": run.name, "epoch": epoch, **values, "test clean": "", "test robust": ""})
    if not rows:
        return ["<p>No metrics.csv is beside the checkpoints.</p>"]
    return [_image(training_curves.draw(rows), "training loss and validation accuracy over the epochs")]


def _examples(study: Study, data: ImageDataModule, attack: Attack, n: int) -> list[str]:
    """A picture for each run: clean image, magnified perturbation, adversarial image."""
    batch = study.images.batches[0]
    if n == 0 or batch.x.shape[1] not in (1, 3):
        return ["<p>No images were drawn.</p>"]
    chosen = spread(batch.y, n)
    parts = []
    for run in study.subjects:
        try:
            few = craft(run.net, attack, batch.x[chosen], batch.y[chosen])
        except NoGraphError as error:
            parts.append(f"<div><h3>{escape(run.name)}</h3><p>No images were drawn: {escape(str(error))}</p></div>")
            continue
        figure = draw_examples(few, describe(attack), class_names=data.class_names)
        picture = _image(figure, f"adversarial images of {run.name}")
        parts.append(f"<div><h3>{escape(run.name)}</h3>{picture}</div>")
    return ['<div class="pictures">', *parts, "</div>"]


def _paragraphs(text: str) -> list[str]:
    return [f"<p>{escape(line)}</p>" for line in text.splitlines()]


def _trainings(runs: Sequence[Subject]) -> str:
    """What each checkpoint says of its training."""
    head = ["run", "checkpoint", "epoch", "step", "time", "CPU time", "passes", "hardware", "precision", "Lightning"]
    body = []
    for run in runs:
        checkpoint = checkpoint_of(run)
        cost = cost_of(checkpoint)
        spent = ["-"] * 5
        if cost is not None:
            times = (cost.seconds, cost.selection_seconds), (cost.cpu_seconds, cost.selection_cpu_seconds)
            spent = [with_selections(duration, *time) for time in times]
            spent.append(with_selections(count, cost.passes, cost.selection_passes))
            spent += [cost.where, ", then ".join(cost.precision)]
        places = [str(checkpoint.get(key, "-")) for key in ("epoch", "global_step")]
        body.append([run.name, str(run.path), *places, *spent, str(checkpoint.get("pytorch-lightning_version", "-"))])
    return html_table([head, *body])


def _configuration(run: Subject) -> list[str]:
    """The configuration beside the checkpoint, or else the arguments in it."""
    file = newest_config(_folder(run))
    if file is not None:
        origin, text = str(file), file.read_text(errors="replace")
    else:
        saved = checkpoint_of(run)
        arguments = saved.get("hyper_parameters") or {"net": saved.get("lit_robust", {}).get("net")}
        origin, text = str(run.path), json.dumps(arguments, indent=2, default=str, skipkeys=True)
    return [
        f"<h3>{escape(run.name)}</h3>",
        f"<details><summary>{escape(origin)}</summary><pre>{escape(text)}</pre></details>",
    ]


def _versions() -> str:
    packages = ("lit-robust", "torch", "torchvision", "lightning")
    said = [f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in packages)]
    return f"<p>Measured with {escape(', '.join(said))} on {escape(platform.platform())}.</p>"


def _folder(run: Subject) -> Path:
    """The folder of a run, from the path of its checkpoint."""
    return run_of(run.path) or run.path.parent
