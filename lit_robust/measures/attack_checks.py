"""Errors and warnings for attacks that would not measure what their row says."""

from collections.abc import Mapping
from dataclasses import is_dataclass, replace
from typing import Any, Protocol

from lightning.pytorch.utilities import rank_zero_warn

from lit_robust import require
from lit_robust.attacks import FGSM, RFGSM
from lit_robust.attacks.autoattack_findings import Findings
from lit_robust.attacks.base import Attack, arguments_of, check_attack
from lit_robust.measures.accuracy import CLEAN, WORST
from lit_robust.shown import shown


def is_coarse(attack: Any) -> bool:
    """Whether an attack searches in bfloat16, also inside another one; its row is excluded from rankings."""
    return getattr(getattr(attack, "attack", attack), "precision", "float32") != "float32"


def check_attacks(attacks: Mapping[str, Attack], test_attacks: Mapping[str, Attack]) -> None:
    """Refuse attacks that would not measure what their row says.

    Raises:
        TypeError: As ``check_attack``.
        ValueError: As ``check_attack``, or if two test attacks are equal.
    """
    for name, attack in {**attacks, **test_attacks}.items():
        check_attack(name, attack)
    tell_of_short_steps({**attacks, **test_attacks})
    check_different("test_attacks", test_attacks)


def check_different(argument: str, attacks: Mapping[str, Attack]) -> None:
    """Refuse one attack under two names, also where only one of them spells out its step size or is called FGSM.

    Raises:
        ValueError: If two are the same.
    """
    earlier: dict[str, Any] = {}
    for name, attack in attacks.items():
        mine = _spelled_out(attack)
        for other, its in earlier.items():
            if its == mine:
                raise ValueError(f"{argument} {other} and {name} are the same attack: drop one, or change it.")
        earlier[name] = mine


def _spelled_out(value: Any) -> Any:
    """An attack as its class and arguments, those of an attack inside it likewise; other values as they are."""
    attack = value.pgd if isinstance(value, FGSM | RFGSM) else value
    if not isinstance(attack, Attack) or not is_dataclass(attack):
        return attack
    size: float | None = getattr(attack, "step_length", None)
    given = arguments_of(attack) | ({} if size is None else {"step_size": size})
    return type(attack), {name: _spelled_out(argument) for name, argument in given.items()}


def tell_of_short_steps(attacks: Mapping[str, Any]) -> None:
    """Warn of attacks that ``short_steps`` finds; called where a Defense or a callback is given one.

    Args:
        attacks: Attacks by the name of the argument or row; other values are skipped.
    """
    for name, attack in attacks.items():
        if found := short_steps(name, attack):
            rank_zero_warn(found)


def short_steps(name: str, attack: Any) -> str | None:
    """A sentence if an attack's steps together are shorter than its bound, so that it searches a part of the ball."""
    eps, size, steps = (getattr(attack, argument, None) for argument in ("eps", "step_size", "steps"))
    if not (eps and size and steps and steps * size < eps * (1 - 1e-6)):  # 7 steps of eps/7 fall short by rounding
        return None
    usual = replace(attack, step_size=None).step_length
    return (
        f"step_size={size:.4g} of {name} is too short to cross the ball of eps={eps:.4g} in {steps} steps: leave "
        f"step_size out (it is then {usual:.4g}), or take more steps."
    )


def tell_of_findings(findings: Findings) -> None:
    """Warn of what attacks have found on all ranks, a sentence each, and begin anew; every rank must call it."""
    for sentence in findings.over_ranks().sentences():
        rank_zero_warn(sentence)
    findings.reset()


class Ramp(Protocol):
    """A callback that sets an attribute of the module to other values, such as ``AttributeRamp``."""

    #: The attribute's path, such as ``attack.eps``.
    attribute: str


def tell_of_idle_attack(trainer: Any, name: str, attack: Any) -> None:
    """Warn of an attack without a radius or without a step, unless a callback ramps it.

    Args:
        trainer: Its callbacks are searched for a ramp, such as ``AttributeRamp("attack.eps", ...)``.
        name: The argument that holds the attack, ``attack`` or ``val_attack``.
        attack: The attack.
    """
    ramped = {getattr(callback, "attribute", None) for callback in trainer.callbacks}
    does = {"eps": "changes no image", "steps": "takes no step from where it starts"}
    for argument, nothing in does.items():
        if getattr(attack, argument, None) == 0 and f"{name}.{argument}" not in ramped:
            natural = ", or train Natural" if name == "attack" else ""
            rank_zero_warn(f"{argument}=0 of {name} {nothing}: set another {argument}{natural}.")


def check_names(argument: str, attacks: Any) -> None:
    """Refuse attacks that are not given by names of their own.

    Raises:
        TypeError: If they are given otherwise.
        ValueError: If there is none, one has no name or that of another row, or a coarse attack that of an exact one.
    """
    remedy = 'give attacks by name, {"pgd20": PGD(steps=20)}'
    require.instance(argument, attacks, Mapping, remedy)
    if not attacks:
        raise ValueError(f"{argument} is empty: {remedy}.")
    rows: set[str] = set()
    for name, attack in attacks.items():
        if not isinstance(name, str):
            raise TypeError(f'{argument} names an attack {shown(name)}: give its name as text, such as "pgd20".')
        if not name.strip() or name in rows:
            raise ValueError(f'{argument} names an attack "{name}", which is empty or another row\'s name: rename it.')
        rows.add(name)
        if is_coarse(attack) and not name.endswith("_bf16"):
            raise ValueError(
                f'{argument} names an attack in bfloat16 "{name}": call it "{name}_bf16", it may leave more images.'
            )
        if name in (CLEAN, WORST):
            raise ValueError(f'{argument} names an attack "{name}", as a row of every table is called: rename it.')
