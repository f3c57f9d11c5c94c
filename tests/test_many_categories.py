"""Cost grows linearly with the number of categories, and what makes it so is the same as the plain formula."""

import pytest
import torch

import estimators
from estimators import CARMS, DisARMIW, DisARMStickBreaking, DisARMTree, GumbelSoftmax
from estimators.carms import _ends, _start
from estimators.categorical import log_softmax, one_hot, softmax
from estimators.memory import Allocations

# RELAX has a network on all categories; the evaluations of those that grow do so with the categories themselves.
CATEGORICAL = [m for m in estimators.METHODS if not m.binary_only and m.__name__ != "RELAX"]
GROWING = ("ARS", "ARSM", "Exact", "IndeCateR")
LINEAR = [m for m in CATEGORICAL if m.__name__ not in (*GROWING, "CARMS")]


def allocations(estimator, categories):
    """``Allocations`` of one gradient and the bytes of the logits, ``[8, 1, categories]`` in float32."""
    logits = torch.randn(8, 1, categories, requires_grad=True)
    weights = torch.randn(categories)
    with Allocations() as found:
        estimator(logits, lambda z: (z.flatten(-2) @ weights).square()).sum().backward()
    return found, logits.nbytes


@pytest.mark.parametrize("method", [*CATEGORICAL, lambda: GumbelSoftmax(hard=True)])
def test_no_tensor_is_larger_than_the_logits_times_the_samples(method):
    """Samples are evaluations of the loss or inner draws (ReinMaxCV has its own beside them); int64 counts by bytes."""
    estimator = method()
    categories = 32 if type(estimator).__name__ in GROWING else 256 if type(estimator) is CARMS else 4096
    found, size = allocations(estimator, categories)
    samples = getattr(estimator, "num_inner", estimator.evaluations_for(torch.empty(1, 1, categories)))
    samples += type(estimator).__name__ == "ReinMaxCV"
    assert size <= found.largest <= samples * size


@pytest.mark.parametrize("method", LINEAR)
def test_peak_memory_is_linear_in_the_categories(method):
    assert allocations(method(), 8192)[0].peak < 8.2 * allocations(method(), 1024)[0].peak


def test_allocations_by_hand():
    before = torch.zeros(1000, requires_grad=True)
    with Allocations() as found:
        y = (before + 1).exp()  # 4000 bytes, freed, and 4000 bytes, kept
        z = y.expand(50, 1000)[3:]  # views
        assert (found.peak, found.largest) == (8000, 4000)
        before.detach().add_(1)
        total = z.sum()
        del y, z
        assert found.peak == 8000
        total.backward()
        assert found.peak >= 8004  # exp's result was kept for its gradient
    assert before.grad is not None
    del total
    with Allocations() as found:
        for _ in range(100):
            torch.zeros(10)
        assert found.peak == 40
        kept = [torch.zeros(10) for _ in range(100)]
        assert found.peak == 40 * len(kept)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(5, 3), (4, 7, 10), (2, 3, 4, 15), (6, 40)])
def test_softmax_over_few_categories_is_softmax(shape, dtype):
    torch.manual_seed(0)
    x = (5 * torch.randn(shape, dtype=dtype)).requires_grad_()
    g = torch.randn(shape, dtype=dtype)
    for ours, theirs in ((softmax, torch.softmax), (log_softmax, torch.log_softmax)):
        a, b = ours(x), theirs(x, -1)
        assert a.is_contiguous()
        torch.testing.assert_close(a, b)
        torch.testing.assert_close(torch.autograd.grad(a, x, g), torch.autograd.grad(b, x, g))


def test_one_hot_under_vmap_needs_no_slow_path(recwarn):
    """Every operator has a batching rule; without one, torch warns and goes example by example."""
    logits = torch.randn(6, 5, 2, 7)
    index = logits.argmax(-1)
    batched = torch.vmap(one_hot)(index, logits)
    assert torch.equal(batched, torch.nn.functional.one_hot(index, 7).float()) and batched.is_contiguous()
    assert not recwarn.list


@pytest.mark.parametrize("categories", [2, 3, 5, 7, 8])
@pytest.mark.parametrize("make", [DisARMTree, lambda: DisARMStickBreaking(None)])
def test_decisions_are_those_of_a_binary_tree(make, categories):
    """Every leaf has one path; its log-odds and their gradients are differences of logsumexps over leaves."""
    torch.manual_seed(0)
    estimator = make()
    bits = torch.cartesian_prod(*[torch.arange(2.0, dtype=torch.float64)] * (categories - 1)).reshape(
        -1, categories - 1
    )
    z, decided = estimator._walk(bits)
    assert torch.equal(z.sum(-1), torch.ones_like(z[:, 0])) and (z.sum(0) > 0).all()
    right, left = ((decided * side).mT @ z > 0 for side in (bits, 1 - bits))  # [K - 1, K]: the leaves on either side
    assert not (right & left).any()
    leaves = (4 * torch.randn(categories, dtype=torch.float64)).requires_grad_()
    expected, other = (torch.where(side, leaves, -torch.inf).logsumexp(-1) for side in (right, left))
    expected = expected - other
    odds = estimator._odds(leaves)
    torch.testing.assert_close(odds, expected)
    g = torch.randn(categories - 1, dtype=torch.float64)
    torch.testing.assert_close(torch.autograd.grad(odds, leaves, g), torch.autograd.grad(expected, leaves, g))
    chance = torch.where(bits > 0, odds.sigmoid(), (-odds).sigmoid()).prod(-1)
    torch.testing.assert_close((chance.unsqueeze(-1) * z).sum(0), leaves.softmax(-1))


@pytest.mark.parametrize("method", [DisARMTree, DisARMStickBreaking, DisARMIW, lambda: DisARMStickBreaking(None)])
def test_decisions_in_single_precision_at_extreme_logits(method):
    """Nearly and wholly impossible categories, first and last, at the signs that logcumsumexp could overflow at."""
    torch.manual_seed(0)
    inf = torch.inf
    for row in ([-inf, 0.0, 80.0, -90.0, -inf], [300.0, -300.0, 0.0, 1.0, 2.0], [0.0, -1e4, -1e5, -1e6, 1.0]):
        logits = torch.tensor([row]).expand(500, 1, 5).clone().requires_grad_()
        seen = []
        losses = method()(logits, lambda z: seen.append(z) or (z @ torch.arange(5.0)).sum(-1))  # noqa: B023
        losses.sum().backward()
        assert losses.isfinite().all() and logits.grad.isfinite().all()
        assert not seen[0][..., torch.tensor(row).softmax(-1) == 0].any()


@pytest.mark.parametrize("categories", [2, 3, 4, 7])
def test_the_orders_of_carms(categories):
    """Each unordered pair of categories is the ends of one order, and the starts are those of that order."""
    torch.manual_seed(0)
    p = torch.rand(categories, dtype=torch.float64)
    through = p.cumsum(-1)
    count = categories * (categories - 1) // 2
    first, last = _ends(torch.arange(count), categories)
    assert len({frozenset(ends) for ends in zip(first.tolist(), last.tolist(), strict=True)}) == count
    for a, b in zip(first, last, strict=True):
        order = [a.item()] + [c % categories for c in range(b + 1, b + categories + 1) if c % categories != a]
        assert order[-1] == b and sorted(order) == list(range(categories))
        starts = _start(torch.arange(categories), through - p, a, b, p[a], through[b], through[-1])
        expected = torch.stack([p[order[: order.index(c)]].sum() for c in range(categories)])
        torch.testing.assert_close(starts, expected)
