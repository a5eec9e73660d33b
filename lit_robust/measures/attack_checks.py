"""Attacks of an evaluation that would not measure what their row says: refused, or told."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol

from lightning.pytorch.utilities import rank_zero_warn

from lit_robust.attacks.base import Attack, arguments_of, check_attack
from lit_robust.measures.accuracy import CLEAN, WORST


def is_coarse(attack: Any) -> bool:
    """Whether an attack searches in bfloat16, also inside another one; it is not ranked beside exact ones."""
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
    """Refuse one attack under two names, also where only one of them spells out its step size.

    Raises:
        ValueError: If two are the same.
    """
    earlier: dict[str, Any] = {}
    for name, attack in attacks.items():
        size: float | None = getattr(attack, "step_length", None)
        spelled_out: Any = attack if size is None else (type(attack), arguments_of(attack) | {"step_size": size})
        for other, its in earlier.items():
            if its == spelled_out:
                raise ValueError(f"{argument} {other} and {name} are the same attack: drop one, or change it.")
        earlier[name] = spelled_out


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
        ValueError: If one has the name of a row that every table has, or a coarse attack that of an exact one.
    """
    if not isinstance(attacks, Mapping):
        raise TypeError(f'{argument} is a {type(attacks).__name__}: give attacks by name, {{"pgd20": PGD(steps=20)}}.')
    for name, attack in attacks.items():
        if is_coarse(attack) and not str(name).endswith("_bf16"):
            raise ValueError(
                f'{argument} names an attack in bfloat16 "{name}": call it "{name}_bf16", it may leave more images.'
            )
        if name in (CLEAN, WORST):
            raise ValueError(f'{argument} names an attack "{name}", as a row of every table is called: rename it.')
