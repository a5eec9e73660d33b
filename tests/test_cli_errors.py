"""What becomes of a page of jsonargparse's, besides the mistakes of ``test_bad_inputs.py``."""

from lit_robust.cli.errors import sentence


def test_only_a_close_name_is_offered():
    page = 'Parser key "model.attack":\n  Expected a dot import path string: PDG'
    assert sentence(page, ["AutoAttack", "PGD"]).endswith(' "PDG" (did you mean PGD?).')
    assert "did you mean" not in sentence(page, ["AutoAttack"])


def test_a_sentence_of_ours_stays_as_it_is():
    assert sentence("steps=-1 must be an integer, at least 0.") == "steps=-1 must be an integer, at least 0."


def test_any_other_text_is_put_on_one_line():
    assert sentence("a.ckpt holds\n\tanother net:\n\t  head") == "a.ckpt holds another net: head"


def test_a_page_of_an_unknown_form_is_still_one_line():
    assert sentence('Parser key "x":\n  something\n  new') == "x: something"
    assert "\n" not in sentence('Parser key "x":\n')
