"""The relaxed KL of deep VAEs against torch.distributions, as a distribution over images, and in packs."""

import json

import pytest
import torch
import torch.nn.functional as F
from test_deep_vae import images, pack, tiny
from test_relaxed_kl import replica
from test_tasks import PIXELS
from test_training import config
from torch.distributions.relaxed_bernoulli import LogitRelaxedBernoulli
from torch.distributions.relaxed_categorical import ExpRelaxedCategorical

from estimators import GumbelSoftmax
from training.errors import UserError
from training.pack.build import build
from training.pack.evaluation import evaluate_last, summary

CPU = torch.device("cpu")
DRAWS = 20_000


def density(task, z, outputs, temperature):
    """``log p(z)`` of Concrete latents; of ``log z`` or the log-odds: a difference does not depend on it."""
    temperature = torch.tensor(temperature, dtype=torch.float64)
    if task.latents.categories == 2:
        bits = z[..., 1]
        return LogitRelaxedBernoulli(temperature, logits=outputs).log_prob(bits.logit()).sum(-1)
    logits = task.latents.logits(outputs)
    return ExpRelaxedCategorical(temperature, logits=logits).log_prob(z.log()).sum(-1)


@pytest.mark.parametrize(("prior_temperature", "used"), [(0.5, 0.5), (None, 0.9)])
@pytest.mark.parametrize("categories", [2, 3])
def test_against_the_formula(categories, prior_temperature, used):
    """Two layers at the same samples: losses and gradients."""
    task = tiny(categories=categories, prior="learned", kl="relaxed", prior_temperature=prior_temperature)
    estimator, x = GumbelSoftmax(0.9), images(task)
    torch.manual_seed(0)
    losses = task.loss(x, estimator, estimator)
    torch.manual_seed(0)
    outputs = task.encoders[0](x)
    z1 = estimator.sample(task.latents.logits(outputs))
    above = task.encoders[1](task.latents.features(z1))
    z2 = estimator.sample(task.latents.logits(above))
    generated = task.decoders[0](task.latents.features(z1))
    expected = F.binary_cross_entropy_with_logits(generated, x, reduction="none").sum(-1)
    expected = expected + density(task, z1, outputs, 0.9) + density(task, z2, above, 0.9)
    expected = expected - density(task, z1, task.decoders[1](task.latents.features(z2)), used)
    expected = expected - density(task, z2, task.prior_outputs.expand_as(above), used)
    assert torch.allclose(losses, expected, rtol=1e-9)
    parameters = list(task.parameters())
    ours, theirs = (torch.autograd.grad(each.mean(-1).sum(), parameters) for each in (losses, expected))
    assert all(torch.allclose(*pair, rtol=1e-7, atol=1e-10) for pair in zip(ours, theirs, strict=True))


@pytest.mark.parametrize(("categories", "layers"), [(2, 1), (2, 2), (3, 2), (2, 3)])
def test_the_weights_are_those_of_a_distribution_over_images(categories, layers):
    """The mean weight ``exp(-loss)`` is the likelihood of the model with relaxed latents: over all images it sums to 1.

    Within 6 standard errors of 20,000 draws, which are below 2 %.
    """
    task = tiny((0,), categories=categories, layers=layers, spread=0.4, kl="relaxed", prior_temperature=0.8)
    every = torch.cartesian_prod(*[torch.arange(2.0)] * PIXELS).double().repeat(DRAWS, 1)[None]
    torch.manual_seed(0)
    with torch.no_grad():
        weights = (-task.loss(every, *[GumbelSoftmax(0.9)] * layers)).exp().view(DRAWS, -1).sum(-1)
    error = weights.std() / DRAWS**0.5
    assert error < 0.02 and (weights.mean() - 1).abs() < 6 * error, (weights.mean(), error)


@pytest.mark.parametrize("prior_temperatures", [(0.5, 0.4), (None, None)])
def test_replicas_with_temperatures_of_their_own_train_as_alone(prior_temperatures):
    """Also where the prior's temperature is the estimator's, which is annealed; the record says relaxed."""
    job = config("task=deep_vae_categorical", "task.kl=relaxed", "task.latents=2", "task.categories=3", "batch_size=8")
    job["schedule"] = {"name": "exponential", "rate": 0.01, "minimum": 0.1, "every": 2, "only": []}
    variants = [
        replica(job, s, own, p) for s, (own, p) in enumerate(zip((2 / 3, 1.0), prior_temperatures, strict=True))
    ]
    together, solos = build(variants, CPU), [build([variant], CPU) for variant in variants]
    for _ in range(6):
        losses = together.train_step()
        for r, solo in enumerate(solos):
            assert torch.allclose(solo.train_step()[0], losses[r], rtol=1e-4)
    (row,) = evaluate_last(solos[0])
    result = json.loads(json.dumps(summary(solos[0], 0, "finished", row)))
    assert result["objective"] == {"kl": "relaxed", "samples": "relaxed", "is_bound": False}


def test_mistakes_are_told():
    with pytest.raises(UserError, match="use estimator=gumbel_softmax with estimator.hard=false"):
        pack("task.kl=relaxed", "estimator=rloo")
    with pytest.raises(UserError, match="task.prior_temperature is an option of task.kl=relaxed"):
        pack("task.prior_temperature=0.5", "estimator=rloo")
    with pytest.raises(ValueError, match="3 layers need as many estimators, not 1"):
        tiny(layers=3, kl="relaxed").loss(torch.zeros(2, 1, PIXELS), GumbelSoftmax())
