"""A look-up is the product with a one-hot matrix, without the product."""

import copy

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import estimators
from estimators import REINFORCE, GumbelSoftmax, StraightThrough, category, look_up

LATENTS, FEATURES = 2, 4
RELAXED = ("GumbelSoftmax", "OverlappingExponential", "SpikeAndExponential")
HARD = {method.__name__: method for method in estimators.METHODS if method.__name__ not in RELAXED}
HARD["GumbelSoftmax hard"] = lambda: GumbelSoftmax(0.7, hard=True)


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator).requires_grad_()


def one_hot(*shape):
    index = torch.randint(shape[-1], shape[:-1], generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.one_hot(index, shape[-1]).double()


def product(z, table):
    return z @ table


@pytest.mark.parametrize("categories", [2, 3])
@pytest.mark.parametrize("name", HARD)
def test_every_estimator_gets_the_same_values_and_gradients(name, categories):
    make = HARD[name]
    estimator = make(**make.examples(LATENTS, categories)[""]) if isinstance(make, type) else make()
    if estimator.binary_only and categories > 2:
        pytest.skip("for two categories")
    estimator.double()
    logits, table, weights = normal(5, LATENTS, categories), normal(categories, FEATURES), normal(FEATURES)
    results = []
    for read in (look_up, product):
        torch.manual_seed(1)
        losses = copy.deepcopy(estimator)(
            logits, lambda z, read=read: ((read(z, table).tanh() @ weights).sum(-1) - 0.3) ** 2
        )
        results.append((losses, *torch.autograd.grad(losses.sum(), (logits, table, weights))))
    for ours, reference in zip(*results, strict=True):
        assert torch.allclose(ours, reference, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "batch, lead",
    [((), ()), ((5,), ()), ((7, 3, 5), (3, 1)), ((5,), (3, 1)), ((3, 5), (1, 5)), ((4, 5, 1), (LATENTS,))],
)
def test_leading_dimensions_broadcast_as_in_a_product(batch, lead):
    """Replicas' tables, a table per latent, and samples in front of all."""
    z, table = one_hot(*batch, LATENTS, 6).requires_grad_(), normal(*lead, 6, FEATURES)
    ours, reference = look_up(z, table), z @ table
    assert torch.equal(ours, reference)
    g = torch.randn_like(reference)
    for a, b in zip(
        torch.autograd.grad(ours, (z, table), g), torch.autograd.grad(reference, (z, table), g), strict=True
    ):
        assert a.shape == b.shape and torch.allclose(a, b, rtol=1e-12, atol=1e-12)


def test_second_and_third_derivatives():
    z, table = one_hot(5, LATENTS, 6).requires_grad_(), normal(6, FEATURES)

    def derivatives(read):
        found, inputs = [read(z, table).sin().sum()], (z, table)
        for order in range(3):
            directions = [normal(*x.shape, seed=order) for x in inputs]
            slopes = torch.autograd.grad(found[-1], inputs, create_graph=True)
            found.append(sum((slope * d.detach()).sum() for slope, d in zip(slopes, directions, strict=True)))
        return [*found, *slopes]

    for ours, reference in zip(derivatives(look_up), derivatives(product), strict=True):
        assert torch.allclose(ours, reference, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("z_dtype", "table_dtype"), [("half", "float"), ("float", "float"), ("float", "half")])
def test_under_autocast_it_is_the_product_there(dtype, z_dtype, table_dtype):
    """The dtype and, as one row is taken, the exact values; the table keeps its gradient's precision."""
    dtypes = {"half": dtype, "float": torch.float32}
    z = one_hot(50, LATENTS, 6).to(dtypes[z_dtype]).requires_grad_()
    table = normal(6, FEATURES).detach().to(dtypes[table_dtype]).requires_grad_()
    with torch.autocast("cpu", dtype=dtype):
        ours, reference = look_up(z, table), z @ table
    assert ours.dtype == reference.dtype == dtype and torch.equal(ours, reference)
    g = torch.randn_like(ours)
    exact = torch.autograd.grad(z.double() @ table.double(), (z, table), g.double())
    for found, right in zip(torch.autograd.grad(ours, (z, table), g), exact, strict=True):
        assert found.dtype == right.dtype
        torch.testing.assert_close(found.double(), right.double(), rtol=0.02, atol=0.02)


def test_under_autocast_double_precision_stays_apart():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z, table = one_hot(5, LATENTS, 6), normal(6, FEATURES)
        assert look_up(z, table).dtype == torch.float64
        with pytest.raises(ValueError, match="of one dtype"):
            look_up(z, table.float())


def test_compiled_it_still_looks():
    """One graph; where rows are not one-hot, an assertion in it."""
    torch._dynamo.reset()
    z, table = one_hot(5, LATENTS, 6), normal(6, FEATURES)
    run = torch.compile(lambda z: look_up(z, table), backend="eager", fullgraph=True)
    assert torch.equal(run(z), z @ table)
    with pytest.raises(RuntimeError, match="exactly one-hot"):
        run(z / 2)


def test_no_product_over_the_categories():
    """Not one multiplication by the counter's rules, where the product needs three (two without a gradient in z)."""
    logits, table = normal(5, LATENTS, 50), normal(50, FEATURES)

    def flops(read, estimator):
        with FlopCounterMode(display=False) as counter:
            estimator(logits, lambda z: read(z, table).square().sum((-2, -1))).sum().backward()
        return counter.get_total_flops()

    one = 2 * 5 * LATENTS * 50 * FEATURES
    assert flops(look_up, REINFORCE()) == 0 and flops(product, REINFORCE()) == 2 * one
    assert flops(look_up, StraightThrough()) == one and flops(product, StraightThrough()) == 3 * one


def test_transforms_see_the_product():
    z, table = one_hot(5, LATENTS, 6), normal(6, FEATURES).detach()
    relaxed = normal(5, LATENTS, 6).detach().softmax(-1)
    for point in (z, relaxed):
        value, pull_back = torch.func.vjp(lambda z: look_up(z, table), point)
        assert torch.equal(value, point @ table)
        assert torch.allclose(pull_back(torch.ones_like(value))[0], torch.ones_like(value) @ table.mT)
    assert torch.equal(torch.vmap(look_up, (0, None))(z, table), z @ table)


def test_category_is_the_index():
    index = torch.randint(9, (4, LATENTS), generator=torch.Generator().manual_seed(0))
    assert torch.equal(category(torch.nn.functional.one_hot(index, 9).float()), index)


def test_a_diverged_example_stays_diverged_and_its_neighbours_do_not_notice():
    z = one_hot(3, LATENTS, 6)
    z[1] = torch.nan
    found = look_up(z, normal(6, FEATURES))
    assert found[1].isnan().all() and found[[0, 2]].isfinite().all()


@pytest.mark.parametrize(
    "call, sentence",
    [
        (lambda: look_up(torch.full((4, 3), 1 / 3), torch.ones(3, 2)), "use z @ table"),
        (lambda: look_up(torch.zeros(4, 3), torch.ones(3, 2)), "must be exactly one-hot"),
        (
            lambda: GumbelSoftmax()(torch.zeros(4, 1, 3), lambda z: look_up(z, torch.ones(3, 1)).sum((-2, -1))),
            "relaxed",
        ),
        (lambda: look_up(torch.eye(3), torch.ones(4, 2)), r"not torch.float32 \[3, 3\] and torch.float32 \[4, 2\]"),
        (lambda: look_up(torch.eye(3), torch.ones(3, 2).double()), "of one dtype"),
        (lambda: look_up(torch.ones(3), torch.ones(3, 2)), "z \\[\\*batch, latents, categories\\]"),
        (lambda: category(torch.full((4, 3), 1 / 3)), "has no category"),
        (lambda: category(torch.eye(3).requires_grad_()), "use look_up"),
        (
            lambda: StraightThrough()(torch.zeros(4, 1, 3).requires_grad_(), lambda z: category(z).sum(-1)),
            "use look_up",
        ),
    ],
)
def test_bad_calls_raise_one_sentence(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()
