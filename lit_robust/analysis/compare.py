"""Several runs in one table: accuracies under the same attacks on the same images, ranks, and costs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from lit_robust import require
from lit_robust.analysis.compare_pictures import draw, draw_costs
from lit_robust.analysis.methods import Method, by_method, ranked, table, unit_of_cost
from lit_robust.analysis.start import begin, check_images
from lit_robust.analysis.study import CLEAN, Source, Study
from lit_robust.analysis.subjects import Subject, checkpoint_of, load_subjects, read_training_images
from lit_robust.analysis.surrogate import surrogate_of
from lit_robust.analysis.tables import latex, markdown, plain_markdown
from lit_robust.analysis.trained_threat import trained_threat
from lit_robust.attacks import Attack, AutoAttack
from lit_robust.costs import cost_of
from lit_robust.data import ImageDataModule
from lit_robust.measures.accuracy import describe, legend
from lit_robust.measures.alarm_rules import NO_SQUARE, without_alarm
from lit_robust.measures.alarms import IMAGES
from lit_robust.measures.attack_checks import check_names, is_coarse
from lit_robust.measures.default_attacks import default_test, threat_of_test
from lit_robust.whole_files import write_whole

NO_GRAPH = "gradient attacks cannot run, and their columns repeat the clean accuracy: "
NOT_SOUGHT = "Signs of masked gradients were not looked for (alarms: false)."


class Comparison(NamedTuple):
    """The results of a comparison: its table, the alarms of each run as sentences by name, and its attacks."""

    rows: list[dict[str, Any]]
    alarms: dict[str, dict[str, str]]
    remarks: list[str]  #: Sentences about what was not measured, and that no alarm was found.
    attacks: dict[str, Attack]
    strongest: str
    about: str
    unit: str | None  #: The column of the cost that can be compared; None if no cost is known.


def compare(
    checkpoints: list[str],
    data: ImageDataModule,
    attacks: dict[str, Attack] | None = None,
    autoattack: bool = True,
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
) -> list[dict[str, Any]]:
    """Compare runs: accuracies, the generalisation gap, alarms for masked gradients, and what the training cost.

    Runs named NAME@SEED=PATH with the same NAME are runs of one method. Its row holds their mean, their range, and the
    95 % interval over the images. Methods are ranked under the strongest attack, never one in bfloat16. Two methods
    get different ranks only if their means differ by more than the spread over seeds (half the sum of both ranges) and
    by more than 1.96 standard errors of the paired difference over images. A method with fewer than three seeds is not
    ranked.

    A checkpoint holds the training's wall-clock and CPU time without validation, its hardware, and its passes:
    forwards plus backwards, counted in images. Where the hardware differs, passes are compared instead of times; passes
    of different nets do not cost the same.

    Args:
        checkpoints: .ckpt files, folders of runs, whose last checkpoint is taken, or files of weights; NAME=PATH names
            a method, and NAME@SEED=PATH one of its runs.
        data: Its test images are attacked.
        attacks: Attacks by name; by default those of ``test``, and AutoAttack, at the eps that all runs were trained
            with, else 8/255. On the command line also the ``test_attacks`` of a file given by ``-c``, such as
            configs/attack/margins.yaml; not those of a file with ``data``, such as a run's config.yaml.
        autoattack: Whether the default attacks include AutoAttack, which takes longest.
        gap: Whether to attack equally many training images, too. The generalisation gap is their accuracy under the
            first attack minus that of the test images.
        alarms: Whether to look for signs of masked gradients, see ``lit_robust.measures.alarms``; a sentence each is
            printed below the table, and a method with an alarm is not ranked.
        sources: Checkpoints whose adversarial images are shown to each net, for the alarm ``transfer``.
        surrogate: Whether to train a natural net of each net's architecture on its predictions, as one more source.
        reference: The method against which the saved time is stated: wall-clock time, on processors CPU time; where the
            hardware differs, the saved passes.
        limit: Use only the first ``limit`` test images; by default all.
        device: auto, cpu or cuda.
        out: The folder for compare.csv, .md, .tex and .png, for compare_cost.png, and for the journal that lets
            a stopped run continue.
        wandb_project: The project of Weights & Biases to which table and pictures are also logged.
        net: The net of files that do not name one of lit_robust.nets, such as a plain state_dict; on the command line
            its path, such as torchvision.models.resnet18.

    Returns:
        The rows of the table, the best method first.

    Raises:
        ValueError: If an argument is out of range; besides what ``start.begin`` raises.
    """
    if attacks is not None:
        check_names("attacks", attacks)
    study = begin(checkpoints, data, limit, device, out, net, wandb_project)
    found = comparison(study, data, attacks, autoattack, gap, alarms, sources, surrogate, reference, net)
    sentences = [f"{run}: ALARM {name}: {why}" for run, fired in found.alarms.items() for name, why in fired.items()]
    sentences += found.remarks
    said = [*legend(found.attacks).splitlines(), *map(plain_markdown, sentences)]
    text = "\n".join([markdown(found.rows), *(f"- {line}" for line in said)])
    print(text)
    for suffix, content in (("md", text), ("tex", latex(found.rows))):
        write_whole(study.out / f"compare.{suffix}", content.encode())
        print(study.out / f"compare.{suffix}")
    costs = {}
    if found.unit is not None:
        costs["compare_cost"] = draw_costs(found.rows, found.strongest, found.about, found.unit)
    study.write("compare", found.rows, draw(found.rows, found.strongest, found.about), wandb_project, costs)
    return found.rows


def comparison(
    study: Study,
    data: ImageDataModule,
    attacks: Mapping[str, Attack] | None = None,
    autoattack: bool = True,
    gap: bool = True,
    alarms: bool = True,
    sources: Sequence[str] | None = None,
    surrogate: bool = False,
    reference: str | None = None,
    net: nn.Module | None = None,
) -> Comparison:
    """Measure what ``compare`` shows; its arguments are explained there.

    Raises:
        ImportError: If an attack needs a package that is not installed.
        ValueError: If there is no method ``reference``, a checkpoint is broken, a source gives no gradient, or runs of
            one name are no seeds of one method.
    """
    require.flags(autoattack=autoattack, gap=gap, alarms=alarms, surrogate=surrogate)
    methods_runs = by_method(study.subjects)
    if reference is not None:
        require.one_of("reference", reference, tuple(methods_runs))
    remarks: list[str] = []
    if attacks is None:
        attacks, remarks = default_attacks(study.subjects, data.num_classes, autoattack)
    for attack in attacks.values():
        attack.check_installed()
    test_attacks = dict(attacks)
    named_attacks = {"clean": CLEAN, **test_attacks}
    first = next(iter(test_attacks))
    measures = {name: (attack, study.images) for name, attack in named_attacks.items()}
    if gap:
        measures["gap"] = named_attacks[first], read_training_images(data, study.images.n, study.device)
    loaded = load_subjects(sources, study.device, net) if sources else []
    check_images(loaded, study.images)
    origins: list[Source] = [*loaded]
    for origin in origins:
        if why := study.no_gradient(origin.net):
            raise ValueError(f"sources={sources} cannot be attacked: {why}")
    fired = {run.name: {"no_graph": NO_GRAPH + why} for run in study.subjects if (why := study.no_gradient(run.net))}
    remarks += [f"{run} has no surrogate, which would have no gradient either." for run in fired] * surrogate
    methods: list[Method] = []
    for name, runs in methods_runs.items():
        found = {}
        for measure, (attack, images) in measures.items():
            bits = [study.survivors(run, attack, images=images, without_graph="keep") for run in runs]
            found[measure] = torch.tensor([[float(bit) for bit in one] for one in bits], dtype=torch.float64)
        for run in runs if alarms else ():
            crafting = [*origins, surrogate_of(study, run, data)] if surrogate and run.name not in fired else origins
            fired[run.name] = fired.get(run.name, {}) | study.alarms(run, test_attacks, crafting, data.num_classes)
        methods.append(
            Method(
                name,
                {measure: values.mean(dim=0) for measure, values in found.items()},
                {measure: values.mean(dim=1).tolist() for measure, values in found.items()},
                list(dict.fromkeys(alarm for run in runs for alarm in fired.get(run.name, ()))),
                [cost_of(checkpoint_of(run)) for run in runs],
            )
        )
    exact = [name for name, attack in test_attacks.items() if not is_coarse(attack)]
    strongest = min(exact or test_attacks, key=lambda name: sum(method.mean(name) for method in methods))
    order = ranked(methods, strongest) if exact else [(None, method) for _, method in ranked(methods, strongest)]
    rows = table(order, list(named_attacks), first if gap else None, reference)
    about = f"{describe(named_attacks[strongest])}, {study.images.n} test images"
    remarks += _about_alarms(study, fired, test_attacks) if alarms else [NOT_SOUGHT]
    return Comparison(rows, fired, remarks, test_attacks, strongest, about, unit_of_cost(rows))


def default_attacks(
    subjects: Sequence[Subject], classes: int, autoattack: bool = True
) -> tuple[dict[str, Attack], list[str]]:
    """The attacks of ``test`` and AutoAttack in the threat set of the training, and what to say of them.

    Raises:
        ImportError: If AutoAttack is not installed.
    """
    remarks: list[str] = []
    eps, norm = trained_threat(subjects, "--attacks", remarks.append)
    attacks = default_test(eps, norm)
    if not autoattack:
        return attacks, remarks
    if classes < 3:
        remarks.append(f"AutoAttack needs at least 3 classes, and the data has {classes}: it is left out.")
        return attacks, remarks
    strong = AutoAttack(eps, norm, version="standard" if classes > 3 else "v1")
    try:
        strong.check_installed()
    except ImportError as error:
        raise ImportError(f"{error}, or leave it out by autoattack=false.") from error
    return {**attacks, "autoattack": strong}, remarks


def _about_alarms(study: Study, fired: Mapping[str, Mapping[str, str]], attacks: Mapping[str, Attack]) -> list[str]:
    """Sentences about the runs without an alarm, how many images were probed, and what could not be looked for."""
    silent = ", ".join(run for run, alarms in fired.items() if not alarms)
    threat = threat_of_test(attacks)
    norm = threat[1] if threat else None
    said = [f"No alarm for {silent}: {without_alarm(min(IMAGES, study.images.n), norm)}."] * bool(silent)
    return said + [NO_SQUARE] * (norm == "l2")
