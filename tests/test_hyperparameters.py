"""What a call checks is checked wherever it comes in: by ``sample``, and by assignment and state after construction."""

import copy
import math
import pickle

import pytest
import torch
from torch import nn

import estimators
from estimators import (
    ARMS,
    DARN,
    NVIL,
    REBAR,
    RELAX,
    RLOO,
    DecoupledStraightThrough,
    DoubleCV,
    Exact,
    GappedStraightThrough,
    GumbelRao,
    GumbelSoftmax,
    MuProp,
    OverlappingExponential,
    ReinMax,
    ReinMaxCV,
    ReinMaxRao,
    SpikeAndExponential,
    StraightThrough,
)
from estimators.base import Pathwise
from estimators.categorical import probabilities

# --- sample --------------------------------------------------------------------------------------------------------


class Mean(Pathwise):
    """A user's own."""

    def sample(self, logits):
        return probabilities(logits)


SAMPLERS = [method for method in (*estimators.METHODS, Mean) if issubclass(method, Pathwise)]


@pytest.mark.parametrize(
    ("logits", "sentence"),
    [
        (torch.zeros(3, 2, 2, dtype=torch.int64), "logits must be floating point"),
        (torch.zeros(3, 2, 2, dtype=torch.bool), "logits must be floating point"),
        (torch.zeros(3, 2, 1), "logits need at least 2 categories"),
        (torch.zeros(2), r"\[\*batch, latents, categories\], not torch.float32 \[2\]"),
    ],
)
@pytest.mark.parametrize("method", SAMPLERS)
def test_sample_checks_what_a_call_does(method, logits, sentence):
    with pytest.raises(ValueError, match=f"^{method.__name__}: .*{sentence}") as caught:
        method().sample(logits)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("method", [SpikeAndExponential, OverlappingExponential])
def test_sample_refuses_categories_where_a_call_does(method):
    with pytest.raises(ValueError, match=f"{method.__name__} is defined for Bernoulli"):
        method().sample(torch.zeros(3, 2, 4))


# --- numbers -------------------------------------------------------------------------------------------------------

NUMBERS = [
    *((method, "temperature", 0.7, (0.0, -1.0, math.nan, math.inf)) for method in (GumbelSoftmax, StraightThrough)),
    *((method, "temperature", 0.7, (0.0, -1)) for method in (GumbelRao, ReinMaxRao, ReinMaxCV, GappedStraightThrough)),
    (ReinMax, "temperature", 1.3, (0.9, math.inf, math.nan)),
    (ReinMaxCV, "scale", -0.3, (math.inf, math.nan)),
    (GappedStraightThrough, "gap", 2.0, (0.0, -1.0, math.inf)),
    (DecoupledStraightThrough, "forward_temperature", 0.7, (0.0, -1.0)),
    (DecoupledStraightThrough, "backward_temperature", 0.7, (0.0, math.nan)),
    (SpikeAndExponential, "beta", 7.0, (0.0, 81.0, math.nan)),
    (OverlappingExponential, "beta", 80.0, (-1.0, 80.1)),
    (DARN, "centre", 0.3, (math.nan, math.inf)),
    (NVIL, "decay", 0.0, (-0.1, 1.0, math.nan)),
    (MuProp, "decay", 0.9, (-0.1, 1.0)),
    (lambda **o: DoubleCV(learn=False, **o), "alpha", -0.5, (math.nan, math.inf)),
    (lambda **o: REBAR(learn=False, **o), "temperature", 0.7, (0.0, math.nan)),
    (lambda **o: REBAR(learn=False, **o), "scale", 0.0, (-1.0, math.inf)),
    (lambda **o: RELAX(2, learn=False, **o), "temperature", 0.7, (0.0,)),
]


def attribute(estimator, name):
    return f"fixed_{name}" if isinstance(estimator, REBAR | RELAX) else name


def number(estimator, name):
    return float(getattr(estimator, attribute(estimator, name)))


@pytest.mark.parametrize(("make", "name", "good", "bad"), NUMBERS)
def test_a_number_is_checked_whenever_it_is_set(make, name, good, bad):
    estimator = make(**{name: good})
    for value in bad:
        sentence = rf"{type(estimator).__name__}: {name} must be .*, not "
        for given in (value, torch.tensor(value), torch.full((2, 1, 1, 1), value)):
            with pytest.raises(ValueError, match=sentence):
                make(**{name: given})
            with pytest.raises(ValueError, match=sentence):
                setattr(estimator, attribute(estimator, name), given)
        assert number(estimator, name) == good
    with pytest.raises(ValueError, match="last dimension of 1"):
        setattr(estimator, attribute(estimator, name), torch.full((2, 3), good))


@pytest.mark.parametrize(("make", "name", "good", "bad"), NUMBERS)
def test_a_number_that_was_set_is_in_the_state(make, name, good, bad):
    """In that of a module around it, too; a state from before numbers were in it is still a state."""
    annealed, fresh = nn.Sequential(make()), nn.Sequential(make())
    setattr(annealed[0], attribute(annealed[0], name), good)
    state = annealed.state_dict()
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    assert fresh.load_state_dict(state).missing_keys == []
    assert number(fresh[0], name) == good
    for same in (copy.deepcopy(annealed), pickle.loads(pickle.dumps(annealed)) if isinstance(make, type) else annealed):
        assert number(same[0], name) == good
    before = {key: value for key, value in state.items() if not key.endswith(attribute(fresh[0], name))}
    fresh.load_state_dict(before)
    assert number(fresh[0], name) == good
    spoilt = {**state, f"0.{attribute(fresh[0], name)}": torch.tensor(bad[0])}
    with pytest.raises(RuntimeError, match=f"{name} must be"):
        fresh.load_state_dict(spoilt)
    assert number(fresh[0], name) == good


def test_a_float_becomes_a_tensor_and_a_tensor_takes_a_float():
    estimator = GumbelSoftmax(0.5)
    estimator.temperature = torch.full((2, 1, 1, 1), 0.7)
    assert [name for name, _ in estimator.named_buffers()] == ["temperature"] == list(estimator.state_dict())
    estimator.temperature = 0.2
    assert torch.equal(estimator.temperature, torch.full((2, 1, 1, 1), 0.2))
    learned = nn.Parameter(torch.tensor(0.5))
    estimator.temperature = learned
    assert list(estimator.parameters()) == [learned]
    assert list(GumbelSoftmax(0.5).state_dict(keep_vars=True)) == []  # which is asked for tensors that live


def test_the_temperature_that_was_set_is_the_one_that_samples():
    logits, estimator = torch.randn(100, 3, 4), GumbelSoftmax(1.0)
    samples = []
    for sampler in (estimator, GumbelSoftmax(0.3)):
        estimator.temperature = 0.3
        torch.manual_seed(0)
        samples.append(sampler.sample(logits))
    assert torch.equal(*samples)


# --- sample dimensions ---------------------------------------------------------------------------------------------

EXAMPLES, LATENTS, FEATURES = 6, 3, 6
SAMPLES_IN_FRONT = [m for m in estimators.METHODS if m.__name__ not in ("DARN", "MuProp", "REBAR", "RELAX", "RODEO")]
SAMPLES_IN_FRONT = [m for m in SAMPLES_IN_FRONT if m().evaluations_for(torch.empty(1, LATENTS, 2)) > 1]


def decoder(normalisation, features=FEATURES):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2 * LATENTS, features), normalisation, nn.Tanh(), nn.Linear(features, 1))


@pytest.mark.parametrize("examples", [EXAMPLES, EXAMPLES + 1])
@pytest.mark.parametrize("method", [m for m in SAMPLES_IN_FRONT if m is not DoubleCV])
def test_batch_normalisation_of_the_wrong_dimension_is_an_error(method, examples):
    """Also where there are as many examples as features, which torch does not notice."""
    network = decoder(nn.BatchNorm1d(FEATURES))
    logits = torch.randn(examples, LATENTS, 2, requires_grad=True)
    with pytest.raises(ValueError, match=f"^{method.__name__}: the loss gets z .* flatten the leading dimensions") as e:
        method()(logits, lambda z: network(z.flatten(-2)).squeeze(-1))
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("normalisation", [lambda: nn.BatchNorm1d(FEATURES).eval(), lambda: nn.GroupNorm(2, FEATURES)])
@pytest.mark.parametrize("method", [RLOO, Exact, DoubleCV, ARMS])
def test_so_is_that_of_groups_and_of_fixed_statistics(method, normalisation):
    network = decoder(normalisation())
    with pytest.raises(ValueError, match="took dimension 1 of .*, the examples"):
        method()(torch.randn(EXAMPLES, LATENTS, 2, requires_grad=True), lambda z: network(z.flatten(-2)).squeeze(-1))


@pytest.mark.parametrize("layer", [nn.BatchNorm2d(6), nn.Conv2d(6, 6, 1)])
def test_images_too(layer):
    network = nn.Sequential(nn.Unflatten(-1, (6, 1, 1)), layer)
    with pytest.raises(ValueError, match="RLOO: the loss gets z of .* flatten the leading dimensions"):
        RLOO()(torch.randn(6, 3, 2, requires_grad=True), lambda z: network(z.flatten(-2)).sum((-3, -2, -1)))


@pytest.mark.parametrize("examples", [1, EXAMPLES])
@pytest.mark.parametrize("method", [RLOO, Exact, DoubleCV, ARMS, StraightThrough, GumbelSoftmax])
def test_normalisation_in_its_place_is_none(method, examples):
    """Leading dimensions flattened around it; in an encoder; of the last dimension."""
    encoder = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6).eval(), nn.Linear(6, 2 * LATENTS))
    network, last = decoder(nn.BatchNorm1d(FEATURES).eval()), decoder(nn.LayerNorm(FEATURES))
    logits = encoder(torch.randn(examples, 4)).unflatten(-1, (LATENTS, 2))

    def loss(z):
        kl = (logits.softmax(-1) * logits.log_softmax(-1)).sum((-2, -1))
        x = z.flatten(-2)
        return network(x.flatten(0, -2)).unflatten(0, x.shape[:-1]).squeeze(-1) + last(x).squeeze(-1) + kl

    method()(logits, loss).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_another_error_of_the_loss_is_itself():
    with pytest.raises(RuntimeError, match="cannot be multiplied|mat1 and mat2"):
        RLOO()(torch.zeros(6, 3, 2), lambda z: (z.flatten(-2) @ torch.zeros(5, 1)).squeeze(-1))
