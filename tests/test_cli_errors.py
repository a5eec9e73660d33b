"""Long errors of jsonargparse, and the sentence to which each is reduced."""

import pytest

from lit_robust.cli.errors import sentence

LITERAL = """Parser key "model":
  Does not validate against any of the Union subtypes
  Subtypes: [<class 'lit_robust.training.defense.Defense'>, <class 'NoneType'>]
  Errors:
    - Problem with given class_path 'lit_robust.defenses.PGDAT':
        Parser key "attack":
          Problem with given class_path 'lit_robust.attacks.PGD':
            Parser key "norm":
              Expected a typing.Literal['linf', 'l2']. Got value: l1
    - Expected a <class 'NoneType'>
  Given value type: <class 'dict'>
  Given value: {'class_path': 'PGDAT'}"""

UNION = """Parser key "trainer.precision":
  Does not validate against any of the Union subtypes
  Subtypes: [typing.Literal[64, 32], typing.Literal['32-true', '64-true'], <class 'NoneType'>]
  Errors:
    - Expected a <class 'int'>
    - Expected a typing.Literal['32-true', '64-true']
    - Expected a typing.Literal['64', '32']
    - Expected a <class 'NoneType'>
  Given value type: <class 'str'>
  Given value: bf17"""

CALLABLE = """Parser key "model":
  Does not validate against any of the Union subtypes
  Subtypes: [<class 'lit_robust.training.defense.Defense'>, <class 'NoneType'>]
  Errors:
    - Problem with given class_path 'lit_robust.defenses.PGDAT':
        Parser key "optimizer":
          Type typing.Callable[[collections.abc.Iterable], torch.optim.optimizer.Optimizer] expects a function or a \
callable class: Option 'rl' is not accepted. Got value: Namespace(class_path='torch.optim.SGD', init_args=Namespace())
    - Expected a <class 'NoneType'>
  Given value type: <class 'jsonargparse._util.NestedArg'>
  Given value: NestedArg(key='optimizer.rl', val='1')"""

TWO_TYPES = """Parser key "lr_scheduler":
  Does not validate against any of the Union subtypes
  Subtypes: [<class 'lit_robust.schedules.Schedule'>, typing.Callable[[Optimizer], LRScheduler], <class 'NoneType'>]
  Errors:
    - Import path torch.optim.lr_scheduler.StepLR does not correspond to a subclass of Schedule
    - Problem with given class_path 'torch.optim.lr_scheduler.StepLR':
        the following arguments are required: step_size
    - Expected a <class 'NoneType'>
  Given value type: <class 'str'>
  Given value: torch.optim.lr_scheduler.StepLR"""

FROM_A_CONSTRUCTOR = """Does not validate against any of the Union subtypes
Subtypes: [<class 'lit_robust.data.base.ImageDataModule'>, <class 'NoneType'>]
Errors:
  - batch_size=0 must be at least 1.
  - Expected a <class 'NoneType'>
Given value type: <class 'jsonargparse._namespace.Namespace'>
Given value: Namespace(class_path='lit_robust.data.DigitsDataModule', init_args=Namespace(batch_size=0))"""


@pytest.mark.parametrize(
    ("page", "says"),
    [
        (LITERAL, "model.attack.norm: l1 is unknown: choose one of 'linf', 'l2'."),
        (UNION, "trainer.precision: bf17 is unknown: choose one of '32-true', '64-true', '64', '32'."),
        (CALLABLE, "model.optimizer: torch.optim.SGD has no argument 'rl': check its spelling."),
        (TWO_TYPES, "lr_scheduler: torch.optim.lr_scheduler.StepLR needs step_size below init_args."),
        (FROM_A_CONSTRUCTOR, "batch_size=0 must be at least 1."),
    ],
)  # fmt: skip
def test_a_long_error_is_reduced_to_its_innermost_reason(page, says):
    assert sentence(page) == says


def test_only_a_close_name_is_offered():
    page = 'Parser key "model.attack":\n  Expected a dot import path string: PDG'
    assert sentence(page, ["AutoAttack", "PGD"]) == 'model.attack: there is no class "PDG" (did you mean PGD?).'
    assert sentence(page, ["AutoAttack"]) == 'model.attack: there is no class "PDG" (others need a dotted path).'


def test_a_sentence_of_ours_stays_as_it_is():
    assert sentence("steps=-1 must be an integer, at least 0.") == "steps=-1 must be an integer, at least 0."


def test_any_other_text_is_put_on_one_line():
    assert sentence("a.ckpt holds\n\tanother net:\n\t  head") == "a.ckpt holds another net: head"


def test_a_foreign_sentence_gets_the_remedy_that_it_lacks():
    told = sentence("Invalid learning rate: -1.0")
    assert told == "Invalid learning rate: -1.0: the lr of model.optimizer must be 0 or above."


def test_a_page_of_an_unknown_form_is_still_one_line():
    assert sentence('Parser key "x":\n  something\n  new') == "x: something"
    assert "\n" not in sentence('Parser key "x":\n')
