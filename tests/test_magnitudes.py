import copy
import pickle
from dataclasses import replace

import pytest

from lit_robust.attacks import FGSM, PGD, RFGSM
from lit_robust.magnitudes import Magnitude, magnitude
from lit_robust.measures.accuracy import describe


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("8/255", 8 / 255),
        (" 8 / 255 ", 8 / 255),
        ("0.3", 0.3),
        (0.3, 0.3),
        ("0", 0.0),
        ("1200/255", 1200 / 255),
    ],
)
def test_numbers_and_fractions_are_read(text, value):
    assert magnitude(text) == value


@pytest.mark.parametrize("text", ["8/0", "a", "", "1/2/3", "-1", "nan", "inf", "-8/255", "8/inf/", "1/", "/255"])
def test_anything_else_is_refused_with_the_arguments_name(text):
    with pytest.raises(ValueError, match=f"^eps={text} "):
        magnitude(text, "eps")


def test_a_magnitude_is_a_float_that_is_written_back_as_it_came():
    eps = Magnitude("8/255")
    assert eps == 8 / 255
    for twin in (copy.deepcopy(eps), pickle.loads(pickle.dumps(eps))):
        assert (float(twin), str(twin), repr(twin), f"{twin}") == (8 / 255, "8/255", "8/255", "8/255")


@pytest.mark.parametrize(("value", "text"), [("0.03", "0.03"), (0.03, "0.03"), (1, "1.0"), ("1", "1"), ("4/8", "4/8")])
def test_a_magnitude_prints_as_it_was_written(value, text):
    assert repr(Magnitude(value)) == repr(Magnitude(Magnitude(value))) == text


def test_an_attack_prints_its_magnitudes_as_they_were_written():
    attack = PGD(eps="8/255", step_size="2/255", init_size=0.01, steps=3)
    assert repr(attack).startswith("PGD(eps=8/255, step_size=2/255, steps=3, ")
    assert "init_size=0.01" in repr(attack)
    for twin in (copy.deepcopy(attack), pickle.loads(pickle.dumps(attack)), replace(attack)):
        assert (twin, repr(twin)) == (attack, repr(attack))
    assert repr(FGSM("4/255")) == "FGSM(eps=4/255, norm='linf')"
    assert "eps=8/255" in repr(PGD())
    assert describe(replace(attack, eps="0.0314", step_size="1.5/255")).startswith("PGD(eps=0.0314, step_size=1.5/255")
    assert describe(PGD(eps=4 / 255)) == "PGD(eps=4/255, step_size=1/255, steps=10)"
    assert hash(attack) == hash(PGD(eps=8 / 255, step_size=2 / 255, init_size=0.01, steps=3))


def test_a_refusal_prints_a_magnitude_as_it_was_written():
    with pytest.raises(ValueError, match=r"^eps=300/255 "):
        PGD(eps="300/255")
    with pytest.raises(ValueError, match=r"^alpha=9/255 .*eps=8/255 "):
        RFGSM(eps="8/255", alpha="9/255")
