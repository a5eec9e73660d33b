import pytest
import torch
from torch import nn

from lit_robust.attacks import FGSM, PGD
from lit_robust.batch import Batch
from lit_robust.measures.accuracy import Accuracy, Survivors, rows_of, surviving, table


def test_the_interval_is_wilsons():
    # The score interval solves (p - value)^2 = z^2 p (1 - p) / n for p; both ends must.
    accuracy = Accuracy(0.9, 50)
    for p in accuracy.interval:
        assert (p - 0.9) ** 2 == pytest.approx(1.959964**2 * p * (1 - p) / 50)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_the_interval_stays_in_range_and_is_never_a_point(value):
    low, high = Accuracy(value, 10).interval
    assert 0 <= low <= value <= high <= 1
    assert high - low > 0.2


def test_survivors_of_all_attacks_together_are_counted_per_sample():
    survivors = Survivors(["clean", "a", "b", "worst"])
    a, b = torch.tensor([True, True, False, True]), torch.tensor([True, False, True, True])
    clean = torch.tensor([True, True, True, True])
    survivors.update({"clean": clean, "a": a, "b": b, "worst": a & b}, torch.ones(4))
    assert {name: accuracy.value for name, accuracy in survivors.accuracies().items()} == {
        "clean": 1.0,
        "a": 0.75,
        "b": 0.75,
        "worst": 0.5,
    }


def test_padding_of_weight_0_is_not_an_image():
    survivors = Survivors(["clean"])
    survivors.update({"clean": torch.tensor([True, False, False])}, torch.tensor([1.0, 1.0, 0.0]))
    assert survivors.accuracies() == {"clean": Accuracy(0.5, 2)}


def test_an_evaluation_without_images_reports_nothing():
    assert Survivors(["clean"]).accuracies() == {}


def test_a_sample_survives_the_worst_case_only_if_it_survives_every_attack_and_is_right_without_one():
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False))
    with torch.no_grad():
        net[1].weight.copy_(torch.tensor([[1.0, 1, 1, 1], [-1, -1, -1, -1]]) - 0.0)
        net.append(nn.Linear(2, 2)).requires_grad_(False)
        net[2].weight.copy_(torch.eye(2))
        net[2].bias.copy_(torch.tensor([-2.0, 2.0]))  # class 0 where the mean pixel is above a half
    x = torch.tensor([0.55, 0.65, 0.75, 0.45]).view(4, 1, 1, 1).expand(4, 1, 2, 2).contiguous()
    y = torch.zeros(4, dtype=torch.int64)
    attacks = {"weak": FGSM(eps=0.1), "strong": FGSM(eps=0.2)}
    correct = surviving(net, attacks, Batch(x, y, y, torch.ones(4)))
    assert list(correct) == rows_of(attacks) == ["clean", "weak", "strong", "worst"]
    assert correct["clean"].tolist() == [True, True, True, False]
    assert correct["weak"].tolist() == [False, True, True, False]
    assert correct["strong"].tolist() == correct["worst"].tolist() == [False, False, True, False]


def test_one_attack_is_its_own_worst_case():
    assert rows_of({"pgd": PGD()}) == ["clean", "pgd"]


def test_the_table_has_a_row_per_attack_and_a_column_per_checkpoint():
    text = table(
        {
            "last": {"clean": Accuracy(0.5, 100)},
            "best": {"clean": Accuracy(0.75, 100), "pgd": Accuracy(0, 100)},
        }
    )
    lines = text.splitlines()
    assert lines[0].split() == ["accuracy", "in", "%", "last", "best", "n"]
    assert lines[2].split() == ["clean", "50.0", "[40.4,", "59.6]", "75.0", "[65.7,", "82.5]", "100"]
    assert lines[3].split() == ["pgd", "-", "0.0", "[", "0.0,", "3.7]", "100"]
