import copy
import pickle

import pytest

from lit_robust.magnitudes import Magnitude, magnitude


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
        assert (float(twin), str(twin)) == (8 / 255, "8/255")
