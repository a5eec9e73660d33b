"""The bound and the norm that nets were trained with, which their default attacks take."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, get_args

from lit_robust import attacks
from lit_robust.analysis.subjects import Subject, checkpoint_of
from lit_robust.attacks.base import EPS
from lit_robust.magnitudes import magnitude
from lit_robust.measures.accuracy import eps_text
from lit_robust.threats import Norm

#: The norms in words.
NORMS = {"linf": "L-infinity", "l2": "L2"}


def trained_threat(
    subjects: Iterable[Subject],
    flag: str = "--attack",
    tell: Callable[[str], object] = print,
    norms: Sequence[Norm] = get_args(Norm),
) -> tuple[float, Norm]:
    """The bound and the norm that all these nets were trained with, as their checkpoints say.

    Where they differ, one does not say, or the norm is none of ``norms``, it is 8/255 in L-infinity, and a sentence
    says so.

    Args:
        subjects: The nets.
        flag: The flag by which another bound is given, for the sentence.
        tell: What is called with the sentence.
        norms: The norms of the attack.
    """
    found: dict[tuple[float, Norm] | None, list[str]] = {}
    for subject in subjects:
        found.setdefault(_threat(subject), []).append(subject.name)
    (one, *others) = found
    if one is not None and not others and one[1] in norms:
        return one
    said = "; ".join(f"{', '.join(names)}: {_in_words(threat)}" for threat, names in found.items())
    tell(
        f"The default attacks have {_in_words((EPS, 'linf'))}, because the checkpoints state no common bound"
        f"{f' in {NORMS[norms[0]]}' if len(norms) == 1 else ''} ({said}): give another by {flag}."
    )
    return EPS, "linf"


def _threat(subject: Subject) -> tuple[float, Norm] | None:
    """What one checkpoint states; None if it states no eps in an L-p norm."""
    try:
        attack = checkpoint_of(subject)["hyper_parameters"]["attack"]
        arguments = attack["init_args"]
        eps, norm = magnitude(arguments["eps"]), arguments.get("norm") or _norm_of(attack["class_path"])
    except (AttributeError, KeyError, TypeError, ValueError):
        return None
    return (eps, norm) if norm in get_args(Norm) else None


def _norm_of(class_path: str) -> Any:
    """The norm of a class of attacks that has only one; ``linf`` where it names none."""
    return getattr(getattr(attacks, class_path.rpartition(".")[2], None), "norm", "linf")


def _in_words(threat: tuple[float, Norm] | None) -> str:
    return f"eps={eps_text(threat[0])} in {NORMS[threat[1]]}" if threat else "none"
