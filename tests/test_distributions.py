"""``estimators.distributions`` against ``torch.distributions``, and its samples against the estimators.

Frequencies are compared within 6 standard errors (2e-9 each, fewer than 100 of them), from fixed seeds.
"""

import copy
import pickle

import pytest
import torch
from torch import distributions as D

import estimators
from estimators import (
    REBAR,
    REINFORCE,
    RLOO,
    DecoupledStraightThrough,
    Exact,
    GumbelSoftmax,
    IdentityStraightThrough,
    Pathwise,
    ReinMax,
    SpikeAndExponential,
    StraightThrough,
    noise_source,
)
from estimators.distributions import Bernoulli, OneHotCategorical

BATCH = (4, 5)
LOGITS = torch.randn(*BATCH, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
GIVEN = {
    "one-hot by logits": (OneHotCategorical, D.OneHotCategorical, {"logits": LOGITS}),
    "one-hot by probs": (OneHotCategorical, D.OneHotCategorical, {"probs": 3 * LOGITS.softmax(-1)}),
    "one latent": (OneHotCategorical, D.OneHotCategorical, {"logits": LOGITS[0, 0]}),
    "two categories": (OneHotCategorical, D.OneHotCategorical, {"logits": LOGITS[..., :2]}),
    "Bernoulli by logits": (Bernoulli, D.Bernoulli, {"logits": LOGITS}),
    "Bernoulli by probs": (Bernoulli, D.Bernoulli, {"probs": LOGITS.sigmoid()}),
    "Bernoulli by a number": (Bernoulli, D.Bernoulli, {"probs": 0.3}),
}


@pytest.fixture(params=GIVEN)
def pair(request):
    """Ours and torch's."""
    ours, torchs, parameters = GIVEN[request.param]
    return ours(**parameters, estimator=ReinMax()), torchs(**parameters)


def same(ours, theirs):
    """All that torch's distribution says."""
    assert (ours.batch_shape, ours.event_shape) == (theirs.batch_shape, theirs.event_shape)
    for name in ("mean", "variance", "stddev"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
    assert torch.equal(ours.mode.nan_to_num(), theirs.mode.nan_to_num())
    assert torch.equal(ours.entropy(), theirs.entropy())
    value = theirs.sample((7,))
    assert torch.equal(ours.log_prob(value), theirs.log_prob(value))
    assert ours.support.check(value).all() and ours.support.event_dim == theirs.support.event_dim
    shape = (2, *theirs.batch_shape, *theirs.event_shape)
    assert ours.sample((2,)).shape == ours.rsample((2,)).shape == shape
    assert ours.support.check(ours.sample()).all() and ours.sample().dtype == value.dtype


def test_it_is_torchs_distribution(pair):
    ours, theirs = pair
    same(ours, theirs)
    assert isinstance(ours, type(theirs)) and ours.has_enumerate_support
    assert torch.equal(ours.enumerate_support(), theirs.enumerate_support())
    assert torch.equal(ours.enumerate_support(expand=False), theirs.enumerate_support(expand=False))
    assert torch.equal(ours.probs, theirs.probs) and torch.equal(ours.logits, theirs.logits)
    assert repr(ours) == repr(theirs)
    same(copy.deepcopy(ours), theirs)
    same(pickle.loads(pickle.dumps(ours)), theirs)


def test_expand_and_independent(pair):
    ours, theirs = pair
    shape = (6, *theirs.batch_shape)
    same(ours.expand(shape), theirs.expand(shape))
    same(ours.expand(torch.Size(shape)).expand((2, *shape)), theirs.expand((2, *shape)))
    assert ours.expand(shape).estimator is ours.estimator
    ours, theirs = (D.Independent(each.expand(shape), 1) for each in pair)
    same(ours, theirs)
    assert ours.has_rsample
    same(ours.expand((3, *ours.batch_shape)), theirs.expand((3, *theirs.batch_shape)))


def test_kl_divergence(pair):
    """Registered for our classes with each other and with torch's, in both places, alone and independent."""
    ours, theirs = pair
    cls, torchs = type(ours), type(theirs)
    other = torch.linspace(-1, 1, theirs.logits.numel(), dtype=theirs.logits.dtype).reshape(theirs.logits.shape)
    q, p = cls(logits=other, estimator=REINFORCE()), torchs(logits=other)
    want = D.kl_divergence(theirs, p)
    assert (want > 0).all()
    for first, second in ((ours, q), (ours, p), (theirs, q)):
        assert torch.equal(D.kl_divergence(first, second), want)
        if theirs.batch_shape:
            joint = D.kl_divergence(D.Independent(first, 1), D.Independent(second, 1))
            assert torch.equal(joint, want.sum(-1))


@pytest.mark.parametrize("method", [m for m in estimators.METHODS if issubclass(m, Pathwise)], ids=lambda m: m.__name__)
def test_rsample_is_the_estimators_sample(method):
    """Number by number with its gradient, from logits as they were given, not normalised."""
    estimator = method()
    logits = LOGITS[..., : 2 if estimator.binary_only else 3].clone().requires_grad_()
    weights = torch.linspace(-1, 2, logits[0].numel(), dtype=torch.float64).reshape(logits[0].shape)

    def gradient(draw):
        torch.manual_seed(1)
        z = draw()
        return z.detach(), torch.autograd.grad(((z * weights).sum((-2, -1)) ** 2).sum(), logits)[0]

    want = gradient(lambda: estimator.sample(logits.expand(7, *logits.shape)))
    q = OneHotCategorical(logits=logits, estimator=estimator)
    assert q.has_rsample
    for got in (gradient(lambda: q.rsample((7,))), gradient(lambda: D.Independent(q, 1).rsample((7,)))):
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    odds = LOGITS.clone().requires_grad_()
    torch.manual_seed(1)
    bits = Bernoulli(logits=odds, estimator=estimator).rsample((7,))
    torch.manual_seed(1)
    pairs = torch.stack((torch.zeros_like(odds), odds), -1).expand(7, *BATCH, 3, 2)
    expected = estimator.sample(pairs)[..., 1]
    assert torch.equal(bits, expected)
    grads = [torch.autograd.grad((z * z + z).sum(), odds, retain_graph=True)[0] for z in (bits, expected)]
    assert torch.equal(*grads) and grads[0].abs().sum() > 0


@pytest.mark.parametrize(
    "estimator",
    [GumbelSoftmax(0.3), DecoupledStraightThrough(5.0), IdentityStraightThrough(), REINFORCE(), Exact()],
    ids=lambda e: type(e).__name__,
)
def test_sample_is_exact_whatever_the_estimator(estimator):
    """Also where rsample is relaxed or tempered; without a gradient, and from the library's noise."""
    n = 20_000
    logits = LOGITS[0, 0].clone().requires_grad_()
    torch.manual_seed(0)
    for q, p in (
        (OneHotCategorical(logits=logits, estimator=estimator), logits.softmax(-1)),
        (Bernoulli(logits=logits, estimator=estimator), logits.sigmoid()),
    ):
        z = q.sample((n,))
        assert not z.requires_grad and bool(((z == 0) | (z == 1)).all())
        assert ((z.mean(0) - p).abs() < 6 * (p * (1 - p) / n).sqrt()).all()
    with noise_source(lambda shape, dtype, device, event_dims: torch.full(tuple(shape), 0.9, dtype=dtype)):
        assert torch.equal(
            Bernoulli(logits=torch.tensor([-2.0, -2.5]), estimator=estimator).sample(), torch.tensor([1.0, 0])
        )


def test_probabilities_of_zero_and_one():
    """Never drawn, always drawn, and a finite gradient: torch's own logarithm gives them 1e-7."""
    probs = torch.tensor([[0.0, 0.3, 0.7], [1.0, 0.0, 0.0]], requires_grad=True)
    q = OneHotCategorical(probs=probs, estimator=StraightThrough())
    for z in (q.sample((200,)), q.rsample((200,))):
        assert bool((z[:, 0, 0] == 0).all() and (z[:, 1, 0] == 1).all())
    gradient = torch.autograd.grad((q.rsample() * torch.tensor([1.0, 2.0, 5.0])).sum(), probs)[0]
    # d p . v / d p of normalised p: v - p . v, where p is not 0
    assert torch.allclose(gradient[0], torch.tensor([0.0, 2 - 4.1, 5 - 4.1]), atol=1e-6)
    assert gradient[1].isfinite().all()
    odds = torch.tensor([0.0, 0.4, 1.0], requires_grad=True)
    bits = Bernoulli(probs=odds, estimator=StraightThrough())
    for b in (bits.sample((200,)), bits.rsample((200,))):
        assert bool((b[:, 0] == 0).all() and (b[:, 2] == 1).all())
    gradient = torch.autograd.grad(bits.rsample().sum(), odds)[0]
    assert torch.allclose(gradient, torch.tensor([0.0, 1.0, 0.0]), atol=1e-6)


def test_has_rsample_is_that_of_the_estimator():
    for method in estimators.METHODS:
        estimator = RLOO() if method.__name__ == "RELAX" else method()
        for q in (
            OneHotCategorical(logits=LOGITS, estimator=estimator),
            Bernoulli(logits=LOGITS, estimator=estimator),
        ):
            assert q.has_rsample == D.Independent(q, 1).has_rsample == isinstance(estimator, Pathwise)


def test_an_actor_with_a_score_function():
    """What the sentence says instead of rsample works: the logits of the distribution, in two phases."""
    logits = LOGITS.clone().requires_grad_()
    q = OneHotCategorical(logits=logits, estimator=RLOO(2))
    z, pending = q.estimator.propose(q.logits)
    losses = pending.surrogate(-z[..., 0].sum(-1))
    assert losses.shape == BATCH[:1] and torch.autograd.grad(losses.sum(), logits)[0].isfinite().all()


@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (
            lambda: OneHotCategorical(logits=LOGITS, estimator=RLOO()).rsample(),
            NotImplementedError,
            r"RLOO has no rsample.*estimator.propose\(distribution.logits\)",
        ),
        (
            lambda: Bernoulli(logits=LOGITS, estimator=REINFORCE()).rsample(),
            NotImplementedError,
            r"propose\(torch.stack\(\[torch.zeros_like\(log_odds\), log_odds\], -1\)\)",
        ),
        (
            lambda: D.Independent(OneHotCategorical(logits=LOGITS, estimator=REBAR()), 1).rsample(),
            NotImplementedError,
            r"REBAR has no rsample.*losses = estimator\(distribution.logits, loss\)",
        ),
        (
            lambda: OneHotCategorical(logits=LOGITS, estimator=SpikeAndExponential()).rsample(),
            ValueError,
            "is defined for Bernoulli latents",
        ),
        (lambda: OneHotCategorical(logits=LOGITS, estimator=ReinMax), ValueError, "an estimator such as ReinMax"),
        (lambda: Bernoulli(logits=LOGITS, estimator="reinmax"), ValueError, "not 'reinmax'"),
        (lambda: OneHotCategorical(estimator=ReinMax()), ValueError, "Either `probs` or `logits`"),
        (
            lambda: Bernoulli(probs=torch.tensor(1.5), estimator=ReinMax(), validate_args=True),
            ValueError,
            "to satisfy the constraint",
        ),
        (
            lambda: OneHotCategorical(logits=torch.full((2, 3), torch.nan), estimator=ReinMax(), validate_args=True),
            ValueError,
            "to satisfy the constraint",
        ),
        (
            lambda: OneHotCategorical(logits=LOGITS, estimator=ReinMax(), validate_args=True).log_prob(LOGITS),
            ValueError,
            "to be within the support",
        ),
    ],
)
def test_bad_input(call, error, sentence):
    """validate_args=True: torch.compile turns its default off in the whole process."""
    with pytest.raises(error, match=sentence):
        call()
