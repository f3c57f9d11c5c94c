"""The functions of estimators.functional are their classes, in any dimension and with noise from any generator."""

import functools

import pytest
import torch

from estimators import (
    RLOO,
    DecoupledStraightThrough,
    GappedStraightThrough,
    GumbelRao,
    GumbelSoftmax,
    ReinMax,
    StraightThrough,
    functional,
    noise_source,
)
from estimators.noise import open_uniform

CASES = {
    "soft": (functools.partial(functional.gumbel_softmax, tau=0.7), GumbelSoftmax(0.7)),
    "hard": (functools.partial(functional.gumbel_softmax, tau=0.7, hard=True), GumbelSoftmax(0.7, hard=True)),
    "straight_through": (functools.partial(functional.straight_through, temperature=0.5), StraightThrough(0.5)),
    "reinmax": (functools.partial(functional.reinmax, temperature=1.2), ReinMax(1.2)),
    "gumbel_rao": (functools.partial(functional.gumbel_rao, temperature=0.3, num_inner=5), GumbelRao(0.3, 5)),
    "gapped": (functools.partial(functional.gapped_straight_through, gap="p"), GappedStraightThrough(gap="p")),
    "decoupled": (
        functools.partial(functional.decoupled_straight_through, forward_temperature=2.0, backward_temperature=0.5),
        DecoupledStraightThrough(2.0, 0.5),
    ),
}


def value_and_gradient(sampled, logits):
    """A sample from the same noise every time, and the gradient of a loss that is neither linear nor symmetric."""
    torch.manual_seed(3)
    leaf = logits.clone().requires_grad_()
    z = sampled(leaf)
    weights = torch.linspace(-1, 2, z.numel(), dtype=z.dtype).reshape(z.shape)
    return z.detach(), torch.autograd.grad((z * weights).sum() ** 2 + (z * weights).sum(), leaf)[0]


@pytest.mark.parametrize("categories", [2, 3, 20])
@pytest.mark.parametrize("name", CASES)
def test_a_function_is_its_class(name, categories):
    function, estimator = CASES[name]
    logits = torch.randn(4, 5, categories, generator=torch.Generator().manual_seed(0))
    got, want = value_and_gradient(function, logits), value_and_gradient(estimator.sample, logits)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True)) and got[1].abs().sum() > 0


@pytest.mark.parametrize("categories", [2, 3])
@pytest.mark.parametrize("name", CASES)
def test_any_dimension_and_no_batch(name, categories):
    """The categories may be in any dimension; a vector of logits is one latent."""
    function, estimator = CASES[name]
    logits = torch.randn(4, 5, categories, generator=torch.Generator().manual_seed(0))
    want = value_and_gradient(estimator.sample, logits)[0]
    for dim in (0, 1, -2, -3):
        z = value_and_gradient(functools.partial(function, dim=dim), logits.movedim(-1, dim))[0]
        assert torch.equal(z, want.movedim(-1, dim))
    (z, g), (one, gradient) = (
        value_and_gradient(function, logits[0, 0]),
        value_and_gradient(lambda x: estimator.sample(x[None])[0], logits[0, 0]),
    )
    assert z.shape == (categories,) and torch.equal(z, one) and torch.equal(g, gradient)


@pytest.mark.parametrize("name", CASES)
def test_all_noise_comes_from_the_generator(name):
    """Its own stream: the same numbers whatever the global generator, which it leaves as it is, and the harness."""
    function, _ = CASES[name]
    logits = torch.randn(6, 7, 3, generator=torch.Generator().manual_seed(0))

    def drawn():
        return function(logits, generator=torch.Generator().manual_seed(11))

    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = drawn()
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    with noise_source(lambda shape, dtype, device, event_dims: torch.full(tuple(shape), 0.5, dtype=dtype)):
        assert torch.equal(first, drawn())
    generator = torch.Generator().manual_seed(11)
    assert torch.equal(first, function(logits, generator=generator))
    assert not torch.equal(first, function(logits, generator=generator))
    source = torch.Generator().manual_seed(11)
    with noise_source(lambda shape, dtype, device, _: open_uniform(shape, dtype, device, (source,))):
        assert torch.equal(first, CASES[name][1].sample(logits))


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("shape", [(), (5,), (2, 3, 4)])
def test_bits_by_their_log_odds(shape, hard):
    """gumbel_sigmoid is the second of two categories; soft it is sigmoid((a + logistic noise) / tau)."""
    odds = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(3)
    u = open_uniform(odds.shape, odds.dtype, odds.device)
    expected = ((odds + u.logit()) / 0.6).sigmoid()
    z, gradient = value_and_gradient(lambda a: functional.gumbel_sigmoid(a, 0.6, hard), odds)
    assert z.shape == shape and torch.allclose(z, (expected > 0.5).double() if hard else expected, rtol=1e-12)
    pairs = torch.stack((torch.zeros_like(odds), odds), -1)
    both, pair_gradient = value_and_gradient(
        lambda x: functional.gumbel_softmax(x, 0.6, hard, generator=None)[..., 1], pairs
    )
    assert torch.equal(z, both) and torch.allclose(gradient, pair_gradient[..., 1], rtol=1e-12)
    bits = functional.sample_bits(StraightThrough(), odds, torch.Generator().manual_seed(0))
    assert bits.shape == shape and bool(((bits == 0) | (bits == 1)).all())


def test_the_mean_of_a_hard_sample_is_the_softmax():
    """Within 6 standard errors in each of three coordinates."""
    p = torch.tensor([0.2, 0.5, 0.3])
    z = functional.gumbel_softmax(
        p.log()[:, None].expand(3, 40_000), hard=True, dim=0, generator=torch.Generator().manual_seed(0)
    )
    assert ((z.mean(1) - p).abs() < 6 * (p * (1 - p) / 40_000).sqrt()).all()


def test_one_graph():
    """torch.compile takes the functions in one graph, the building of the estimator included."""
    logits = torch.randn(4, 5, requires_grad=True)
    for function, _ in CASES.values():
        compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
        torch.autograd.grad(compiled(logits, dim=0)[0].sum(), logits)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda x: functional.gumbel_softmax(x, dim=2), r"dim must be an integer, a dimension of logits \[4, 3\]"),
        (lambda x: functional.reinmax(x, dim=-3), "not -3"),
        (lambda x: functional.gumbel_softmax(x, 1.0, False, 1e-10), "not 1e-10"),
        (lambda x: functional.gumbel_softmax(x, 1.0, False, True), "not True"),
        (lambda x: functional.gumbel_softmax(x.tolist()), "logits must be a tensor, not list; use torch.as_tensor"),
        (lambda x: functional.gumbel_sigmoid(0.5), "log_odds must be a tensor, not float"),
        (lambda x: functional.gumbel_softmax(x, generator=0), r"not 0; use torch.Generator\('cpu'\).manual_seed"),
        (lambda x: functional.sample(RLOO(), x), r"a pathwise one such as ReinMax\(\), not RLOO\(\)"),
        (lambda x: functional.sample("reinmax", x), "not 'reinmax'"),
        (lambda x: functional.straight_through(x.sum()), r"a dimension of logits \[\]"),
        (lambda x: functional.gumbel_softmax(x.long()), r"not torch.int64; use logits.float\(\)"),
        (lambda x: functional.gumbel_sigmoid(x.long()), r"not torch.int64; use log_odds.float\(\)"),
        (lambda x: functional.gumbel_softmax(x[:, :1]), r"at least 2 categories in dim=-1, not \[4, 1\]"),
        (lambda x: functional.gumbel_softmax(x, tau=0), "gumbel_softmax: tau must be positive and finite, not 0"),
        (lambda x: functional.gumbel_sigmoid(x, tau=-1.0), "gumbel_sigmoid: tau must be positive and finite"),
        (lambda x: functional.reinmax(x, temperature=0.5), "temperature must be at least 1, not 0.5"),
        (lambda x: functional.gumbel_rao(x, num_inner=0), "num_inner must be at least 1, not 0"),
        (lambda x: functional.gapped_straight_through(x, gap="q"), "gap must be positive and finite or 'p'"),
        (
            lambda x: functional.reinmax(torch.full_like(x, -torch.inf), generator=torch.Generator()),
            "has no distribution",
        ),
    ],
)
def test_bad_input_is_one_sentence(call, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        call(torch.randn(4, 3))
    assert "\n" not in str(caught.value)
