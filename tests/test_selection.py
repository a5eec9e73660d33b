"""Coreset selection against brute force, naive greedy, least squares and scikit-learn."""

import itertools
import math
import sys

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lit_robust.selection import (
    CRAIG,
    CoresetSampler,
    Embeddings,
    GradMatch,
    Outer,
    Random,
    concatenated,
    facility_location,
    gradient_error,
    gradient_match,
    last_layer_gradients,
    matching_pursuit,
    of_batches,
    own_class,
    random_subset,
    resampled,
)
from lit_robust.selection import embeddings as embeddings_module
from lit_robust.selection.budgets import shares
from lit_robust.selection.embeddings import bias_of, gram, squared_norms

CE = nn.CrossEntropyLoss(reduction="none")


def drawn(n: int = 60, classes: int = 4, features: int = 5, seed: int = 0) -> Outer:
    """Rank-one rows that look like last-layer gradients, in float64."""
    generator = torch.Generator().manual_seed(seed)
    p = torch.rand(n, classes, generator=generator, dtype=torch.float64).softmax(1)
    y = torch.randint(classes, (n,), generator=generator)
    return Outer(
        p - nn.functional.one_hot(y, classes), torch.rand(n, features, generator=generator, dtype=torch.float64)
    )


def expanded(outer: Outer) -> Tensor:
    return torch.stack([torch.einsum("nc,nd->ncd", *term) for term in outer.terms]).sum(0).flatten(1)


def objective(rows: Tensor, chosen: list[int]) -> float:
    """F(S) of CRAIG, from its definition."""
    distances = torch.cdist(rows, rows).square()
    return float((distances.max() - distances[:, chosen].min(dim=1).values).sum())


def distance(rows: Tensor, chosen: Tensor) -> float:
    """The part of F that depends on S: the sum of all samples' squared distances to their nearest chosen one."""
    return float(torch.cdist(rows, rows[chosen]).square().min(dim=1).values.sum())


def of_all_subsets(rows: Tensor, budget: int) -> dict[tuple[int, ...], float]:
    """F(S) of each subset of this size."""
    return {chosen: objective(rows, list(chosen)) for chosen in itertools.combinations(range(len(rows)), budget)}


# Embeddings.


def test_last_layer_gradients_are_those_of_autograd() -> None:
    torch.manual_seed(0)
    body, head = nn.Linear(7, 5), nn.Linear(5, 3)
    x, y = torch.rand(4, 7), torch.tensor([0, 1, 2, 1])
    embeddings = last_layer_gradients(head, lambda: CE(head(body(x).relu()), y))
    assert isinstance(embeddings, Outer)
    for i in range(4):
        loss = CE(head(body(x[i : i + 1]).relu()), y[i : i + 1]).sum()
        weight, bias = torch.autograd.grad(loss, [head.weight, head.bias])
        expected = torch.cat([weight, bias[:, None]], dim=1).flatten()
        torch.testing.assert_close(expanded(embeddings)[i], expected)
    torch.testing.assert_close(
        bias_of(embeddings), head(body(x).relu()).softmax(1).detach() - nn.functional.one_hot(y, 3)
    )


def test_a_loss_that_runs_the_net_twice_has_two_terms() -> None:
    torch.manual_seed(0)
    body, head = nn.Linear(7, 5), nn.Linear(5, 3)
    x, x_adv, y = torch.rand(4, 7), torch.rand(4, 7), torch.tensor([0, 1, 2, 1])

    def loss(x: Tensor, x_adv: Tensor, y: Tensor) -> Tensor:
        clean, robust = head(body(x)), head(body(x_adv))
        return CE(clean, y) + 6 * (clean.softmax(1) * (clean.log_softmax(1) - robust.log_softmax(1))).sum(1)

    embeddings = last_layer_gradients(head, lambda: loss(x, x_adv, y))
    assert isinstance(embeddings, Outer)
    assert len(embeddings.terms) == 2
    for i in range(4):
        weight, bias = torch.autograd.grad(loss(x[i, None], x_adv[i, None], y[i, None]).sum(), [head.weight, head.bias])
        torch.testing.assert_close(expanded(embeddings)[i], torch.cat([weight, bias[:, None]], dim=1).flatten())


def test_selecting_leaves_no_gradient_and_no_hook() -> None:
    head = nn.Linear(5, 3)
    x, y = torch.rand(4, 5), torch.tensor([0, 1, 2, 1])
    last_layer_gradients(head, lambda: CE(head(x), y))
    assert head.weight.grad is None
    assert not head._forward_hooks


def test_a_loss_without_the_last_layer_is_refused() -> None:
    with pytest.raises(ValueError, match="last layer"):
        last_layer_gradients(nn.Linear(5, 3), lambda: torch.ones(4, requires_grad=True))


@pytest.mark.parametrize("outer", [drawn(), Outer(torch.rand(9, 2, 3).double(), torch.rand(9, 2, 4).double())])
def test_outer_products_are_never_expanded_and_agree_with_the_expanded_rows(outer: Outer) -> None:
    dense = expanded(outer)
    torch.testing.assert_close(gram(outer, outer), dense @ dense.T)
    torch.testing.assert_close(squared_norms(outer), dense.square().sum(1))
    indices, weights = torch.tensor([0, 3, 5]), torch.tensor([1.0, 2.5, 7.0], dtype=torch.float64)
    assert gradient_error(outer, indices, weights) == pytest.approx(gradient_error(dense, indices, weights))
    torch.testing.assert_close(of_batches(outer, 4), torch.stack([part.sum(0) / 4 for part in dense.split(4)]))


class Sizes(TorchDispatchMode):
    """Records how many numbers each operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[int] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.found += [out.numel()] if isinstance(out, Tensor) else []
        return out


def test_inner_products_of_several_terms_take_little_more_memory_than_the_result(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(embeddings_module, "GRAM_BLOCK", 7 * 50)
    outer = Outer(torch.rand(50, 2, 3).double(), torch.rand(50, 2, 4).double())
    with Sizes() as sizes:
        products = gram(outer, outer)
    torch.testing.assert_close(products, expanded(outer) @ expanded(outer).T)
    largest = sorted(sizes.found)
    assert largest[-1] == 50 * 50
    assert largest[-2] <= 7 * 50


def test_own_class_keeps_the_row_of_the_label() -> None:
    outer, y = drawn(n=6), torch.tensor([0, 1, 2, 3, 0, 1])
    rows = expanded(outer).unflatten(1, (4, 5))
    torch.testing.assert_close(own_class(outer, y), rows[torch.arange(6), y])


@pytest.mark.parametrize("select", [facility_location, gradient_match, matching_pursuit])
def test_outer_and_dense_select_the_same(select: object) -> None:
    outer = drawn(n=120)
    for budget in (1, 7, 40, 119):
        torch.manual_seed(0)  # for what fills up the budget
        indices, weights = select(outer, budget)
        torch.manual_seed(0)
        same_indices, same_weights = select(expanded(outer), budget)
        assert indices.equal(same_indices)
        torch.testing.assert_close(weights, same_weights)


# Facility location.


def test_on_separated_clusters_greedy_is_the_optimum_of_brute_force() -> None:
    """Each cluster has a sample in its middle, and one cluster is in the middle of all: greedy finds these."""
    torch.manual_seed(0)
    centres = torch.tensor([[0.0, 0], [10, 10], [-10, 10], [10, -10], [-10, -10]], dtype=torch.float64)
    aside = torch.rand(5, 1, 2, dtype=torch.float64) * torch.tensor([1.0, -1.0]).double()[:, None]
    rows = (centres[:, None] + torch.cat([aside[:, :1] * 0, aside], dim=1)).flatten(0, 1)
    for budget in (1, 5):
        indices, weights = facility_location(rows, budget)
        values = of_all_subsets(rows, budget)
        assert tuple(indices.tolist()) == max(values, key=lambda chosen: values[chosen])
        assert objective(rows, indices.tolist()) == pytest.approx(max(values.values()), rel=1e-9)
    assert indices.tolist() == [0, 3, 6, 9, 12]
    assert weights.tolist() == [3, 3, 3, 3, 3]


@pytest.mark.parametrize("seed", range(5))
def test_greedy_reaches_its_bound_of_the_optimum(seed: int) -> None:
    """F is near its maximum for any subset, so what counts is how far greedy is from the worst one."""
    rows = torch.rand(12, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    for budget in (1, 2, 3, 4):
        indices, _ = facility_location(rows, budget)
        values = of_all_subsets(rows, budget).values()
        best, worst = max(values), min(values)
        reached = objective(rows, indices.tolist())
        assert reached >= (1 - 1 / math.e) * best
        assert reached - worst >= 0.9 * (best - worst)
        assert sum(value - worst >= 0.9 * (best - worst) for value in values) <= len(values) / 3
        if budget == 1:
            assert reached == pytest.approx(best, rel=1e-9)


def test_rows_of_several_samples_count_as_so_many() -> None:
    rows = torch.rand(12, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sizes = torch.tensor([1, 5, 1, 1, 3, 1, 1, 1, 4, 1, 1, 1])
    for budget in (1, 2, 3, 4):
        copied = facility_location(rows.repeat_interleave(sizes, dim=0), budget)
        indices, weights = facility_location(rows, budget, sizes=sizes.double())
        first = sizes.cumsum(0) - sizes
        assert copied[0].tolist() == first[indices].tolist()
        assert weights.equal(copied[1])


@pytest.mark.parametrize("n", [30, 150])  # within one block of candidates, and several
def test_lazy_greedy_makes_the_choices_of_naive_greedy(n: int) -> None:
    rows = torch.rand(n, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    chosen: list[int] = []
    # Later, when two samples are left that are each other's only near one, either brings the same gain.
    for _ in range(n // 6):
        left = [j for j in range(n) if j not in chosen]
        chosen.append(max(left, key=lambda j: objective(rows, [*chosen, j])))
    assert facility_location(rows, n // 6)[0].tolist() == sorted(chosen)


def test_distances_computed_on_demand_choose_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = drawn(n=150)
    kept = facility_location(rows, 40)
    monkeypatch.setattr(sys.modules["lit_robust.selection.facility_location"], "KEPT_BYTES", 0)
    on_demand = facility_location(rows, 40)
    assert kept[0].equal(on_demand[0])
    assert kept[1].equal(on_demand[1])


def test_stochastic_greedy_is_nearly_as_good_and_repeatable() -> None:
    rows = expanded(drawn(n=200))
    chosen = [
        facility_location(rows, 60, greedy="stochastic", generator=torch.Generator().manual_seed(3)) for _ in range(2)
    ]
    assert chosen[0][0].equal(chosen[1][0])
    assert len(chosen[0][0].unique()) == 60
    lazy, _ = facility_location(rows, 60)
    assert distance(rows, chosen[0][0]) < 1.2 * distance(rows, lazy)
    at_random = [random_subset(rows, 60, generator=torch.Generator().manual_seed(seed))[0] for seed in range(5)]
    assert min(distance(rows, some) for some in at_random) > 1.4 * distance(rows, lazy)


def test_every_sample_counts_once_to_its_nearest() -> None:
    rows = expanded(drawn(n=80))
    indices, weights = facility_location(rows, 13)
    nearest = torch.cdist(rows, rows[indices]).argmin(1)
    assert weights.equal(torch.bincount(nearest, minlength=13).float())
    assert weights.sum() == 80


@pytest.mark.parametrize("greedy", ["lazy", "stochastic"])
def test_duplicates_never_get_weight_zero(greedy: str) -> None:
    rows = drawn(n=10)
    doubled = Outer(rows.left.repeat(3, 1), rows.right.repeat(3, 1))
    for budget in (10, 20, 30):
        indices, weights = facility_location(doubled, budget, greedy=greedy)
        assert len(indices.unique()) == budget
        assert weights.min() >= 1
        assert weights.sum() == 30
    assert weights.equal(torch.ones(30))


# Matching pursuit.


def test_without_negative_weights_the_residual_is_that_of_least_squares_and_of_scikit_learn() -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    rows = torch.eye(12, dtype=torch.float64) + 0.1 * torch.rand(12, 12, dtype=torch.float64)
    for budget in (1, 3, 6):
        indices, weights = matching_pursuit(rows, budget, lam=0)
        target, chosen = rows.sum(0), rows[indices]
        theirs = linear_model.OrthogonalMatchingPursuit(n_nonzero_coefs=budget, fit_intercept=False)
        theirs.fit(rows.T.numpy(), target.numpy())
        assert theirs.coef_.nonzero()[0].tolist() == indices.tolist()
        torch.testing.assert_close(weights, torch.tensor(theirs.coef_)[indices])
        solved = torch.linalg.lstsq(chosen.T, target[:, None]).solution[:, 0]
        assert float((target - weights @ chosen).norm()) == pytest.approx(float((target - solved @ chosen).norm()))


@pytest.mark.parametrize("lam", [0.0, 0.01, 0.5])
def test_weights_solve_the_ridge_problem_on_the_chosen_samples(lam: float) -> None:
    rows = expanded(drawn(n=100))
    indices, weights = matching_pursuit(rows, 10, lam=lam)
    chosen, ridge = rows[indices], lam * rows.square().sum(1).mean()
    solved = torch.linalg.solve(chosen @ chosen.T + ridge * torch.eye(len(indices)), chosen @ rows.sum(0))
    torch.testing.assert_close(weights, solved)
    assert weights.min() > 0


def naive_pursuit(rows: Tensor, budget: int, lam: float) -> tuple[Tensor, Tensor, int]:
    """All weights solved anew in every step; also in how many steps several weights were negative at once."""
    ridge = lam * rows.square().sum(1).mean()
    target, chosen, several = rows.sum(0), torch.empty(0, dtype=torch.int64), 0
    weights = rows.new_empty(0)
    while len(chosen) < budget:
        products = rows @ (target - weights @ rows[chosen])
        products[chosen] = -torch.inf
        if products.max() <= 0:
            break
        chosen = torch.cat([chosen, products.argmax()[None]])
        for first in itertools.count():
            gram = rows[chosen] @ rows[chosen].T + ridge * torch.eye(len(chosen), dtype=rows.dtype)
            weights = torch.linalg.solve(gram, rows[chosen] @ target)
            if weights.min() >= 0:
                break
            several += first == 0 and int((weights < 0).sum() > 1)
            keep = torch.arange(len(chosen)) != weights.argmin()
            chosen, weights = chosen[keep], weights[keep]
    chosen, order = chosen.sort()
    return chosen, weights[order], several


def test_negative_weights_leave_one_by_one_the_most_negative_first() -> None:
    met = 0
    for seed in range(40):
        rows = torch.randn(40, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) + 0.1
        expected, their_weights, several = naive_pursuit(rows, 12, 0.01)
        indices, weights = matching_pursuit(rows, 12, lam=0.01)
        assert indices.equal(expected)
        torch.testing.assert_close(weights, their_weights)
        met += several
    assert met > 5


def test_more_samples_than_dimensions_stay_regular_by_the_ridge_and_spread_the_weights() -> None:
    rows = expanded(drawn(n=100, classes=3, features=2))  # 6 dimensions
    exact, _ = matching_pursuit(rows, 50, lam=0)
    assert len(exact) <= 7
    _, few = gradient_match(rows, 50, lam=0)
    indices, weights = gradient_match(rows, 50)
    assert weights.max() < few.max() / 2
    assert gradient_error(rows, indices, weights) < 0.005


def test_tol_ends_the_pursuit_at_the_relative_residual() -> None:
    rows = expanded(drawn(n=100))
    sizes = []
    for tol in (0.3, 0.1, 0.03):
        indices, weights = matching_pursuit(rows, 50, lam=0, tol=tol)
        fewer, weights_before = matching_pursuit(rows, len(indices) - 1, lam=0)
        assert gradient_error(rows, indices, weights) <= tol < gradient_error(rows, fewer, weights_before)
        sizes.append(len(indices))
    assert sizes == sorted(sizes)


@pytest.mark.parametrize("lam", [0.0, 0.01])
def test_a_pursuit_that_computes_products_on_demand_makes_the_same_choices(
    lam: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    outer = drawn(n=150, seed=3)
    kept = {budget: matching_pursuit(outer, budget, lam=lam) for budget in (1, 20, 60)}
    computed: list[int] = []

    def counted(a: Embeddings, b: Embeddings) -> Tensor:
        computed.append((product := gram(a, b)).numel())
        return product

    products = sys.modules["lit_robust.selection.products"]
    monkeypatch.setattr(products, "KEPT_BYTES", 0)
    monkeypatch.setattr(products, "gram", counted)
    for budget, (indices, weights) in kept.items():
        for embeddings in (outer, expanded(outer)):
            same_indices, same_weights = matching_pursuit(embeddings, budget, lam=lam)
            assert indices.equal(same_indices)
            torch.testing.assert_close(weights, same_weights)
        assert max(computed) <= (budget + 1) ** 2  # never N x N, nor budget x N


def test_a_pursuit_that_takes_much_memory_states_it(monkeypatch: pytest.MonkeyPatch) -> None:
    products = sys.modules["lit_robust.selection.products"]
    monkeypatch.setattr(products, "TOLD_BYTES", 8 * 19**2)
    matching_pursuit(drawn(), 20)  # which are kept
    monkeypatch.setattr(products, "KEPT_BYTES", 0)
    matching_pursuit(drawn(), 19)
    with pytest.warns(UserWarning, match=r"^budget=20 of 60 samples takes 3\.2e-06 GB "):
        GradMatch(scope="all")(drawn(), torch.zeros(60, dtype=torch.int64), 20)


@pytest.mark.parametrize(("fill", "weight"), [("one", 1.0), ("mean", None), ("none", None)])
def test_what_fills_up_the_budget(fill: str, weight: float | None) -> None:
    rows = expanded(drawn(n=100))
    matched, weights = matching_pursuit(rows, 50, tol=0.1)
    indices, filled = gradient_match(rows, 50, tol=0.1, fill=fill)
    assert len(indices.unique()) == len(indices) == (len(matched) if fill == "none" else 50)
    own = torch.isin(indices, matched)
    torch.testing.assert_close(filled[own], weights)
    expected = weights.mean() if weight is None else torch.tensor(weight, dtype=torch.float64)
    torch.testing.assert_close(filled[~own], expected.expand(len(indices) - len(matched)))


@pytest.mark.parametrize("select", [facility_location, gradient_match, random_subset])
def test_the_whole_set_has_weights_of_one(select: object) -> None:
    outer = drawn()
    indices, weights = select(outer, len(outer))
    assert indices.equal(torch.arange(len(outer)))
    assert weights.equal(torch.ones_like(weights))
    assert gradient_error(outer, indices, weights) < 1e-12


@pytest.mark.parametrize("select", [facility_location, gradient_match])
def test_the_gradient_of_a_coreset_is_far_nearer_than_that_of_a_random_one(select: object) -> None:
    outer = drawn(n=200)
    indices, weights = select(outer, 60)
    errors = []
    for seed in range(20):
        some, _ = random_subset(outer, 60, generator=torch.Generator().manual_seed(seed))
        errors.append(gradient_error(outer, some, torch.full((60,), 200 / 60)))
    assert gradient_error(outer, indices, weights) < sum(errors) / 20 / 3


# Selectors.


def test_classes_share_the_budget_exactly_and_in_proportion() -> None:
    assert shares(torch.tensor([50, 30, 0, 20]), 10) == [5, 3, 0, 2]
    assert shares(torch.tensor([5, 5, 5]), 7) == [3, 2, 2]
    assert sum(shares(torch.tensor([17, 3, 91, 40]), 63)) == 63
    assert shares(torch.tensor([1, 9, 90]), 2) == [0, 1, 1]


@pytest.mark.parametrize("sizes", [[43, 91, 17, 49], [1, 1, 98], [7, 0, 5, 30], [1, 2, 3, 4, 200], [10] * 10])
def test_a_larger_budget_takes_from_no_class_and_none_gives_more_than_it_has(sizes: list[int]) -> None:
    before = [0] * len(sizes)
    for budget in range(1, sum(sizes) + 1):
        given = shares(torch.tensor(sizes), budget)
        assert sum(given) == budget
        assert all(less <= more <= size for less, more, size in zip(before, given, sizes, strict=True))
        assert budget < sum(size > 0 for size in sizes) or all(given[i] for i, size in enumerate(sizes) if size)
        before = given
    assert before == sizes


@pytest.mark.parametrize("selector", [Random(scope=scope, block=7) for scope in ("all", "class", "batch")])
def test_samples_that_are_drawn_once_stay_while_the_budget_grows(selector: Random) -> None:
    y = torch.tensor([0] * 43 + [1] * 40 + [2] * 17)
    for seed in range(4):
        before: set[int] = set()
        for budget in range(3, 101):
            coreset = selector(torch.rand(100, 2), y, budget, torch.Generator().manual_seed(seed))
            assert before <= set(coreset.indices.tolist())
            before = set(coreset.indices.tolist())


def test_a_coreset_without_a_sample_is_refused() -> None:
    y = torch.arange(60) % 4
    vanish = (0 * expanded(drawn()), torch.tensor([[1.0], [-1.0]]).repeat(30, 1))
    for rows in vanish:
        for scope in ("class", "all", "batch"):
            with pytest.raises(ValueError, match="fill="):
                GradMatch(fill="none", scope=scope, block=10)(rows, 0 * y, 20)
            assert GradMatch(scope=scope, block=10)(rows, 0 * y, 20).filled == 20
    one = torch.zeros(60, 3)
    one[:, 0] = (y == 2).float()
    assert set(y[GradMatch(fill="none")(one, y, 20).indices].tolist()) == {2}


@pytest.mark.parametrize("selector", [CRAIG(), GradMatch(), GradMatch(gradient="own_class"), Random(scope="class")])
def test_per_class_selection_is_that_of_each_class_alone(selector: CRAIG | GradMatch | Random) -> None:
    outer, y = drawn(n=90), torch.arange(90) % 3
    coreset = selector(outer, y, 30, torch.Generator().manual_seed(0))
    assert torch.bincount(y[coreset.indices]).tolist() == [10, 10, 10]
    if not isinstance(selector, Random):
        for label in range(3):
            members = (y == label).nonzero()[:, 0]
            part = selector.within_class(Outer(outer.left[members], outer.right[members]), y[members])
            indices, weights, _ = selector.choose(part, 10, None)
            own = y[coreset.indices] == label
            assert coreset.indices[own].equal(members[indices])
            torch.testing.assert_close(coreset.weights[own], weights.float())


@pytest.mark.parametrize("selector", [CRAIG(scope="batch", block=8), GradMatch(scope="batch", block=8)])
def test_batches_are_chosen_whole_with_one_weight_each(selector: CRAIG | GradMatch) -> None:
    coreset = selector(drawn(n=64), torch.arange(64) % 3, 24, None)
    assert len(coreset.indices) == 24
    for block, weights in zip(coreset.indices.split(8), coreset.weights.split(8), strict=True):
        assert block.equal(torch.arange(int(block[0]), int(block[0]) + 8))
        assert len(weights.unique()) == 1


def test_the_last_block_counts_as_the_samples_it_has() -> None:
    generator = torch.Generator().manual_seed(0)
    rows, y = torch.randn(100, 3, generator=generator, dtype=torch.float64) + 0.5, torch.zeros(100, dtype=torch.int64)
    for budget in range(1, 101):
        for selector in (GradMatch(scope="batch", block=24), CRAIG(scope="batch", block=24)):
            coreset = selector(rows, y, budget, torch.Generator().manual_seed(1))
            assert budget <= len(coreset.indices) < budget + 24 + 4
            if isinstance(selector, CRAIG):
                assert float(coreset.weights.sum()) == pytest.approx(100)
            else:
                blocks = of_batches(rows, 24)
                weights = torch.zeros(5, dtype=torch.float64)
                weights[coreset.indices // 24] = coreset.weights.double()
                of_images, of_blocks = coreset.weights.double() @ rows[coreset.indices], weights @ blocks
                torch.testing.assert_close(of_images, 24 * of_blocks)
            if budget == 100:
                assert coreset.weights.equal(torch.ones(100))


@pytest.mark.parametrize("tail", [0.1, 20.0])
def test_whole_blocks_match_the_gradient_although_the_last_one_is_short(tail: float) -> None:
    """As well as without the last block: what is matched is the gradient of all samples."""
    generator = torch.Generator().manual_seed(0)
    rows, y = torch.randn(100, 3, generator=generator) + 0.5, torch.zeros(100, dtype=torch.int64)
    rows[96:] *= tail
    selector = GradMatch(scope="batch", block=24, lam=0, fill="none")
    for budget in (72, 96):
        coreset = selector(rows, y, budget)
        blocks, target = rows.split(24), rows.sum(0)
        sums = torch.stack([blocks[j].sum(0) for j in (coreset.indices // 24).unique().tolist()])
        least = (target - torch.linalg.lstsq(sums.T, target[:, None]).solution[:, 0] @ sums).norm() / target.norm()
        assert gradient_error(rows, coreset.indices, coreset.weights) == pytest.approx(float(least), abs=1e-4)


def test_blocks_that_fill_up_the_budget_are_counted_in_samples() -> None:
    rows, y = torch.rand(100, 3).double(), torch.zeros(100, dtype=torch.int64)
    last = set()
    for seed in range(10):
        selector = GradMatch(scope="batch", block=24, tol=0.99)  # one block is near enough
        coreset = selector(rows, y, 60, torch.Generator().manual_seed(seed))
        alone = GradMatch(scope="batch", block=24, tol=0.99, fill="none")(rows, y, 60)
        assert coreset.filled == len(coreset.indices) - len(alone.indices)
        last.add(bool((coreset.indices >= 96).any()))
    assert last == {True, False}


def test_how_many_filled_up_is_counted() -> None:
    coreset = GradMatch(scope="all", tol=0.1)(drawn(n=100), torch.zeros(100, dtype=torch.int64), 50)
    matched, _ = matching_pursuit(drawn(n=100), 50, tol=0.1)
    assert coreset.filled == 50 - len(matched) > 0


# Bad input.


@pytest.mark.parametrize("select", [facility_location, gradient_match, matching_pursuit, random_subset])
@pytest.mark.parametrize("budget", [0, -1, 61, 2.5, True, None])
def test_a_budget_out_of_range_is_refused(select: object, budget: object) -> None:
    with pytest.raises(ValueError, match="budget="):
        select(drawn(), budget)


def test_a_budget_may_be_any_integer() -> None:
    assert len(facility_location(drawn(), torch.tensor(7).numpy()[()])[0]) == 7


BAD_ROWS = [
    torch.zeros(3),
    torch.zeros(3, 2, 2),
    torch.zeros(()),
    torch.zeros(3, 2, dtype=torch.int64),
    torch.zeros(3, 2, dtype=torch.bool),
    torch.full((3, 2), math.nan),
    torch.tensor([[1.0, 2], [math.inf, 0], [0, 0]]),
    torch.full((3, 2), 1e30),  # whose squares are not finite
    Outer(torch.full((3, 2), math.nan), torch.ones(3, 2)),
    Outer(torch.ones(3, 2), torch.full((3, 2), math.inf)),
]


@pytest.mark.parametrize("bad", BAD_ROWS, ids=lambda bad: str(bad)[:60])
def test_embeddings_that_are_no_finite_rows_are_refused(bad: Tensor) -> None:
    for select in (facility_location, gradient_match, matching_pursuit, random_subset):
        with pytest.raises(ValueError, match="embeddings"):
            select(bad, 1)
    for selector in (CRAIG(), GradMatch(), Random(), CRAIG(scope="batch", block=2)):
        with pytest.raises(ValueError, match="embeddings"):
            selector(bad, torch.zeros(3, dtype=torch.int64), 1)


SELECTORS = [CRAIG(), GradMatch(), GradMatch(gradient="own_class"), Random(), CRAIG(scope="all"), CRAIG(scope="batch")]


@pytest.mark.parametrize("selector", SELECTORS, ids=str)
@pytest.mark.parametrize("budget", [0, -1, 61, 2.5, 2.0, True, None, "3", math.nan])
def test_a_selector_refuses_a_budget_out_of_range(selector: CRAIG, budget: object) -> None:
    with pytest.raises(ValueError, match="budget="):
        selector(drawn(), torch.arange(60) % 4, budget)


@pytest.mark.parametrize("selector", SELECTORS, ids=str)
@pytest.mark.parametrize(
    "y",
    [
        torch.arange(59) % 4,
        torch.arange(61) % 4,
        torch.zeros(0, dtype=torch.int64),
        torch.zeros(60, 1, dtype=torch.int64),
        torch.zeros(()),
        torch.arange(60) % 4 - 1,
        torch.zeros(60),
        torch.zeros(60, dtype=torch.bool),
        [0] * 60,
        None,
    ],
    ids=lambda y: str(y)[:40],
)
def test_classes_that_are_not_one_for_each_sample_are_refused(selector: CRAIG, y: Tensor) -> None:
    with pytest.raises((ValueError, TypeError), match=r"^y[ =]"):
        selector(drawn(), y, 6)


def test_a_class_without_samples_takes_no_share_and_small_ones_may() -> None:
    y = torch.tensor([5] * 50 + [2] * 9 + [7])
    for selector in (CRAIG(), GradMatch(), Random(scope="class")):
        coreset = selector(drawn(), y, 12)
        assert torch.bincount(y[coreset.indices], minlength=8).tolist() == [0, 0, 2, 0, 0, 9, 0, 1]


def test_other_functions_refuse_what_they_cannot_use() -> None:
    outer, dense = drawn(), expanded(drawn())
    two, ones = torch.tensor([0, 3]), torch.ones(2)
    refused = [
        (ValueError, "^indices", lambda: gradient_error(outer, torch.tensor([0, 60]), ones)),
        (ValueError, "^indices", lambda: gradient_error(outer, torch.tensor([-1, 3]), ones)),
        (ValueError, "^indices", lambda: gradient_error(outer, torch.zeros(0, dtype=torch.int64), ones)),
        (TypeError, "^indices=", lambda: gradient_error(outer, [0, 3], ones)),
        (ValueError, "^weights", lambda: gradient_error(outer, two, torch.ones(3))),
        (ValueError, "^weights", lambda: gradient_error(outer, two, torch.tensor([1.0, math.nan]))),
        (ValueError, "^embeddings", lambda: gradient_error(torch.zeros(3), two, ones)),
        (ValueError, "^batch_size=0", lambda: of_batches(outer, 0)),
        (ValueError, "^batch_size=1.5", lambda: of_batches(outer, 1.5)),
        (TypeError, "^embeddings=", lambda: own_class(dense, torch.arange(60) % 4)),
        (ValueError, "^y ", lambda: own_class(outer, torch.arange(60) % 5)),
        (ValueError, "^y ", lambda: own_class(outer, torch.zeros(59, dtype=torch.int64))),
        (ValueError, "^parts", lambda: concatenated([])),
        (ValueError, "^parts", lambda: concatenated([outer, dense])),
        (ValueError, "^indices", lambda: resampled(torch.tensor([]), torch.ones(0), 0)),
        (ValueError, "^weights", lambda: resampled(two, torch.ones(3), 0)),
        (ValueError, "^weights", lambda: resampled(two, torch.zeros(2), 0)),
        (TypeError, "^head=", lambda: last_layer_gradients(nn.Conv2d(1, 1, 1), lambda: ones)),
        (ValueError, r"^loss\(\)", lambda: last_layer_gradients(nn.Linear(5, 3), lambda: ones.sum())),
        (TypeError, r"^loss\(\)", lambda: last_layer_gradients(nn.Linear(5, 3), lambda: 1.0)),
        (TypeError, "^left=", lambda: Outer([[1.0]], torch.ones(1, 1))),
        (ValueError, "^right", lambda: Outer(torch.ones(1, 1), torch.ones(1, 1, dtype=torch.int64))),
    ]
    for error, named, call in refused:
        with pytest.raises(error, match=named):
            call()


@pytest.mark.parametrize("resample", [True, False])
def test_a_sampler_draws_and_orders_anew_in_each_epoch_and_the_same_in_the_same_one(resample: bool) -> None:
    sampler = CoresetSampler(range(30), resample=resample)
    sampler.draw(resample)
    sampler.select(torch.arange(0, 30, 2), torch.linspace(0.3, 3, 15))
    epochs = []
    for epoch in (0, 1, 0):
        sampler.set_epoch(epoch)
        epochs.append(list(sampler))
    assert epochs[0] == epochs[2] != epochs[1]
    assert (sorted(epochs[0]) == sorted(epochs[1])) is not resample


@pytest.mark.parametrize(
    "indices",
    [
        torch.tensor([0, 10]),
        torch.tensor([-1, 3]),
        torch.tensor([0.0, 3.0]),
        torch.tensor([True, False]),
        torch.tensor([[0, 3]]),
        torch.zeros(0, dtype=torch.int64),
        torch.tensor(3),
        [0, 3],
        "all",
    ],
    ids=str,
)
def test_a_sampler_refuses_positions_that_do_not_exist(indices: Tensor) -> None:
    sampler = CoresetSampler(range(10))
    sampler.select(torch.tensor([4, 5]), torch.tensor([1.0, 2.0]))
    with pytest.raises((ValueError, TypeError), match=r"^indices[ =]"):
        sampler.select(indices)
    assert sampler.indices.tolist() == [4, 5]  # what it had stays


@pytest.mark.parametrize(
    "weights",
    [
        torch.ones(3),
        torch.ones(2, 1),
        torch.tensor([1.0, 0.0]),
        torch.tensor([1.0, -1.0]),
        torch.tensor([1.0, math.nan]),
        torch.tensor([1.0, math.inf]),
        torch.tensor([True, True]),
        [1.0, 2.0],
        2.0,
    ],
    ids=str,
)
def test_a_sampler_refuses_weights_that_are_none(weights: Tensor) -> None:
    sampler = CoresetSampler(range(10))
    with pytest.raises((ValueError, TypeError), match=r"^weights[ =]"):
        sampler.select(torch.tensor([0, 3]), weights)
    assert len(sampler) == 10
    with pytest.raises(TypeError, match=r"^in_order="):
        sampler.select(torch.tensor([0, 3]), None, 1)


def test_a_gradient_that_vanishes_has_no_relative_error() -> None:
    rows = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert gradient_error(rows, torch.tensor([0]), torch.ones(1)) == math.inf
    assert gradient_error(rows, torch.tensor([0, 1]), torch.ones(2)) == 0
    assert math.isnan(gradient_error(1e38 * rows.abs(), torch.tensor([0]), torch.full((1,), 1e38)))


def test_factors_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="left="):
        Outer(torch.rand(3, 2), torch.rand(4, 2))
    with pytest.raises(TypeError, match="embeddings"):
        facility_location([[1.0]], 1)


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (lambda: CRAIG(scope="row"), "scope="),
        (lambda: CRAIG(greedy="eager"), "greedy="),
        (lambda: CRAIG(epsilon=0), "epsilon="),
        (lambda: CRAIG(block=0), "block="),
        (lambda: GradMatch(lam=-1), "lam="),
        (lambda: GradMatch(tol=math.nan), "tol="),
        (lambda: GradMatch(fill="zero"), "fill="),
        (lambda: GradMatch(scope="all", gradient="own_class"), "gradient="),
    ],
)
def test_arguments_out_of_range_are_refused(build: object, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        build()
