"""``task.kl=relaxed``: the KL between Concrete distributions against quadrature, closed forms and high precision."""

import json
import math

import configs
import mpmath
import numpy as np
import pytest
import torch

import estimators
from analysis import records
from estimators import GumbelSoftmax, noise_source, relaxed_log_prob, relaxed_log_sample
from tasks import VAE
from tasks.datasets import Dataset, Split
from training.config.plan import replicated
from training.errors import UserError
from training.pack.build import build
from training.pack.run import train_runs
from training.progress import PackLine
from training.replicas.streams import Streams

CPU = torch.device("cpu")
TEMPERATURES = [(2 / 3, 0.5), (0.1, 0.5), (0.5, 0.1), (1.0, 1.0)]


def logistic_log_density(x, location, temperature):
    """Log-density of the log-odds of a binary Concrete variable, (location + logistic noise) / temperature."""
    v = temperature * x - location
    return math.log(temperature) - v - 2 * np.logaddexp(0, -v)


def quadrature(a, b, temperature, prior_temperature):
    """KL of two binary Concrete distributions with log-odds ``a`` and ``b``: trapezoids over +-60 scales of q."""
    x = (a + np.linspace(-60, 60, 60_001)) / temperature
    log_q = logistic_log_density(x, a, temperature)
    log_p = logistic_log_density(x, b, prior_temperature)
    return float(np.trapezoid(np.exp(log_q) * (log_q - log_p), x))


def log_ratio_of_odds(a, b, temperature, prior_temperature, draws):
    """``draws`` ratios for one Bernoulli latent, and the log-odds, with a gradient each."""
    odds = torch.full((draws, 1), a, dtype=torch.float64, requires_grad=True)
    prior_odds = torch.full((draws, 1), b, dtype=torch.float64, requires_grad=True)
    logits, prior = (torch.stack((torch.zeros_like(o), o), -1) for o in (odds, prior_odds))
    _, ratio = GumbelSoftmax(temperature).sample_with_log_ratio(logits, prior, prior_temperature)
    return ratio, odds, prior_odds


def test_the_quadrature_against_the_closed_form_for_equal_temperatures():
    """KL = d coth(d / 2) - 2 for two logistic distributions at a distance of d scales, at every temperature."""
    for a, b, temperature in ((1.5, 0.0, 0.1), (-2.0, 1.0, 2 / 3), (0.3, 0.2, 3.0)):
        d = a - b
        assert quadrature(a, b, temperature, temperature) == pytest.approx(d / math.tanh(d / 2) - 2, abs=1e-10)


@pytest.mark.parametrize(("temperature", "prior_temperature"), TEMPERATURES)
@pytest.mark.parametrize(("a", "b"), [(1.3, 0.0), (-3.0, 0.7)])
def test_value_and_gradients_against_quadrature(a, b, temperature, prior_temperature):
    """One Bernoulli latent, 100,000 draws: 6 standard errors; gradients in both log-odds by central differences."""
    torch.manual_seed(0)
    ratio, odds, prior_odds = log_ratio_of_odds(a, b, temperature, prior_temperature, 100_000)
    of_odds, of_prior = torch.autograd.grad(ratio.sum(), (odds, prior_odds))
    h = 1e-3
    for draws, exact in (
        (ratio.detach(), quadrature(a, b, temperature, prior_temperature)),
        (of_odds, _difference(lambda s: quadrature(a + s, b, temperature, prior_temperature), h)),
        (of_prior, _difference(lambda s: quadrature(a, b + s, temperature, prior_temperature), h)),
    ):
        error = draws.std().item() / len(draws) ** 0.5
        assert abs(draws.mean().item() - exact) < 6 * error + 1e-5
        assert 0 < error < 0.05  # the test has power


def _difference(f, h):
    return (f(h) - f(-h)) / (2 * h)


@pytest.mark.parametrize("categories", [2, 5])
def test_the_mean_is_at_least_the_discrete_kl(categories):
    """The argmax of a Concrete variable is the discrete one: its KL is no larger (data processing). 6 standard errors.

    Where posterior and prior agree the ratio is 0 at every sample.
    """
    torch.manual_seed(0)
    logits, prior = 2 * torch.randn(2, 3, categories, dtype=torch.float64)
    q, p = (torch.distributions.Categorical(logits=x) for x in (logits, prior))
    discrete = torch.distributions.kl_divergence(q, p).sum()
    for temperature, prior_temperature in TEMPERATURES:
        estimator = GumbelSoftmax(temperature)
        _, ratio = estimator.sample_with_log_ratio(logits.expand(50_000, -1, -1), prior, prior_temperature)
        assert ratio.mean() + 6 * ratio.std() / 50_000**0.5 > discrete > 0.1
        _, none = estimator.sample_with_log_ratio(logits, logits)
        assert none.abs().max() == 0


@pytest.mark.parametrize("categories", [2, 5])
def test_the_sample_is_that_of_the_estimator(categories):
    """On the same noise, with the same gradient; and the ratio is that of torch's densities where they are finite."""
    logits = torch.randn(200, 3, categories, dtype=torch.float64, requires_grad=True)
    prior = torch.randn(3, categories, dtype=torch.float64)
    estimator, weights = GumbelSoftmax(0.8), torch.randn(3, categories, dtype=torch.float64)
    torch.manual_seed(1)
    z, ratio = estimator.sample_with_log_ratio(logits, prior, 1.3)
    torch.manual_seed(1)
    same = estimator.sample(logits)
    assert torch.allclose(z, same, rtol=1e-12)
    ours, theirs = (torch.autograd.grad((y * weights).sum(), logits, retain_graph=True)[0] for y in (z, same))
    assert torch.allclose(ours, theirs, rtol=1e-10, atol=1e-12)
    concrete = torch.distributions.RelaxedOneHotCategorical
    log_q = concrete(torch.tensor(0.8, dtype=torch.float64), logits=logits).log_prob(z)
    log_p = concrete(torch.tensor(1.3, dtype=torch.float64), logits=prior).log_prob(z)
    assert torch.allclose(ratio, (log_q - log_p).sum(-1), rtol=1e-6, atol=1e-6)


# --- numerics ------------------------------------------------------------------------------------------------------


def exact_ratio(logits, prior, temperature, prior_temperature, noise):
    """``log q - log p`` of one latent at ``y = softmax((logits + noise) / t)``, from the density over the simplex.

    Maddison, Mnih, Teh, eq. 10: (K - 1)! t^(K-1) prod_k (alpha_k y_k^(-t-1) / sum_i alpha_i y_i^-t), in 60 digits.
    """
    perturbed = [(a + g) / temperature for a, g in zip(logits, noise, strict=True)]
    total = mpmath.fsum(mpmath.exp(v) for v in perturbed)
    y = [mpmath.exp(v) / total for v in perturbed]

    def log_density(alpha, t):
        norm = mpmath.fsum(mpmath.exp(a) * v ** (-t) for a, v in zip(alpha, y, strict=True))
        product = mpmath.fsum(a - (t + 1) * mpmath.log(v) - mpmath.log(norm) for a, v in zip(alpha, y, strict=True))
        return product + (len(y) - 1) * mpmath.log(t)

    return log_density(logits, temperature) - log_density(prior, prior_temperature)


@pytest.mark.parametrize("temperature", [0.1, 0.05])
@pytest.mark.parametrize("categories", [2, 4])
def test_single_precision_at_low_temperature_against_60_digits(categories, temperature):
    """Value and gradient on the same noise, where many samples have rounded to exactly 0 or 1."""
    generator = torch.Generator().manual_seed(0)
    logits = (6 * torch.randn(12, 1, categories, generator=generator)).requires_grad_()
    prior = torch.randn(1, categories, generator=generator)
    u = 0.98 * torch.rand((12, 1) if categories == 2 else (12, 1, categories), generator=generator) + 0.01
    with noise_source(lambda *_: u):
        z, ratio = GumbelSoftmax(temperature).sample_with_log_ratio(logits, prior, 0.5)
    assert ((z == 0) | (z == 1)).any()
    gradient = torch.autograd.grad(ratio.sum(), logits)[0]
    with mpmath.workdps(60):
        uniforms = [[mpmath.mpf(v) for v in row] for row in u.reshape(12, -1).tolist()]
        if categories == 2:  # logistic noise on the log-odds
            noise = [[mpmath.mpf(0), mpmath.log(v / (1 - v))] for (v,) in uniforms]
        else:
            noise = [[-mpmath.log(-mpmath.log(1 - v)) for v in row] for row in uniforms]
        t, low = mpmath.mpf(temperature), [mpmath.mpf(v) for v in prior[0].tolist()]
        h = mpmath.mpf(10) ** -20
        for row in range(12):
            alpha = [mpmath.mpf(v) for v in logits[row, 0].tolist()]
            value = exact_ratio(alpha, low, t, mpmath.mpf(0.5), noise[row])
            assert ratio[row].item() == pytest.approx(float(value), rel=1e-5, abs=1e-4)
            for k in range(categories):
                up, down = ([a + s * h * (i == k) for i, a in enumerate(alpha)] for s in (1, -1))
                above, below = (exact_ratio(a, low, t, mpmath.mpf(0.5), noise[row]) for a in (up, down))
                slope = float((above - below) / (2 * h))
                assert gradient[row, 0, k].item() == pytest.approx(slope, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("temperature", [0.05, 0.1, 1.0])
@pytest.mark.parametrize("categories", [2, 4])
def test_extreme_logits_are_finite_in_single_precision(categories, temperature):
    """Logits of +-1000; where they and the prior's agree in everything the ratio still is 0."""
    torch.manual_seed(0)
    logits = (1e3 * torch.randn(500, 2, categories).sign()).requires_grad_()
    prior = (1e3 * torch.randn(2, categories).sign()).requires_grad_()
    z, ratio = GumbelSoftmax(temperature).sample_with_log_ratio(logits, prior, 0.5)
    gradients = torch.autograd.grad((z * torch.arange(categories)).sum() + ratio.sum(), (logits, prior))
    assert all(value.isfinite().all() for value in (z, ratio, *gradients)) and ratio.abs().max() > 100
    assert GumbelSoftmax(temperature).sample_with_log_ratio(logits, logits)[1].abs().max() == 0


@pytest.mark.parametrize("categories", [2, 4])
def test_impossible_categories_have_samples_but_no_density(categories):
    """Never chosen, no gradient; and a density that does not exist is not a number that could be mistaken for one."""
    torch.manual_seed(0)
    logits = torch.randn(50, 2, categories)
    logits[..., 0] = -math.inf
    logits.requires_grad_()
    log_y = relaxed_log_sample(logits, 0.5)
    assert (log_y[..., 0] == -math.inf).all() and log_y[..., 1:].isfinite().all()
    assert torch.allclose(log_y.exp().sum(-1), torch.ones(50, 2))
    gradient = torch.autograd.grad((log_y.exp() * torch.arange(categories)).sum(), logits)[0]
    assert gradient.isfinite().all() and (gradient[..., 0] == 0).all() and (categories == 2 or gradient.abs().max() > 0)
    possible = torch.zeros(2, categories)
    for y, alpha in ((log_y, logits), (log_y, possible), (relaxed_log_sample(possible.expand_as(logits), 0.5), logits)):
        assert not relaxed_log_prob(y, alpha, 0.5).isfinite().any()


# --- the task ------------------------------------------------------------------------------------------------------


def tiny_vae(categories, replicas=2, **options):
    pixels = torch.randint(0, 2, (30, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    data = Dataset("tiny", (2, 3), "static", *[Split(pixels, 1)] * 3)
    vae = VAE(data, Streams(range(replicas)), latents=3, categories=categories, kl="relaxed", **options)
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter += 0.5 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    return vae, pixels.float().expand(replicas, -1, -1)


@pytest.mark.parametrize("prior", ["uniform", "learned"])
@pytest.mark.parametrize("categories", [2, 4])
def test_the_objective_is_the_cross_entropy_plus_the_ratio_of_torchs_densities(categories, prior):
    """Both temperatures per replica, a prior that is learned, the decoder at the same sample: composed by hand."""
    own, of_prior = torch.tensor([0.8, 1.2]), torch.tensor([1.1, 0.7])
    vae, x = tiny_vae(categories, prior=prior, prior_temperature=of_prior.reshape(2, 1, 1, 1))
    vae, x = vae.double(), x.double()
    estimator = GumbelSoftmax(own.double().reshape(2, 1, 1, 1))
    torch.manual_seed(3)
    losses = vae.loss(x, estimator)
    logits, prior_logits = vae.latents.logits(vae.encoders[0](x)), vae.latents.logits(vae.prior_outputs)
    torch.manual_seed(3)
    z = estimator.sample(logits)
    pixels = vae.decoders[0](vae.latents.features(z))
    nats = torch.nn.functional.binary_cross_entropy_with_logits(pixels, x, reduction="none").sum(-1)
    concrete = torch.distributions.RelaxedOneHotCategorical
    for r in range(2):
        log_q = concrete(own[r].double(), logits=logits[r]).log_prob(z[r])
        log_p = concrete(of_prior[r].double(), logits=prior_logits[r]).log_prob(z[r])
        assert torch.allclose(losses[r], nats[r] + (log_q - log_p).sum(-1), rtol=1e-6, atol=1e-5)
    gradients = torch.autograd.grad(losses.sum(), list(vae.parameters()))
    assert all(gradient.abs().max() > 0 for gradient in gradients)
    assert (prior == "learned") == any(parameter is vae.prior_outputs for parameter in vae.parameters())


def test_the_evaluation_does_not_know_the_relaxed_kl():
    vae, _ = tiny_vae(2)
    found = vae.evaluate("test", 20)
    vae.kl = "analytic"
    assert all(torch.equal(value, found[name]) for name, value in vae.evaluate("test", 20).items())


@pytest.mark.parametrize("method", [m for m in estimators.METHODS if m is not estimators.RELAX] + ["hard"])
def test_estimators_without_a_concrete_density_are_refused(method):
    estimator = GumbelSoftmax(hard=True) if method == "hard" else method()
    vae, x = tiny_vae(2)
    if isinstance(estimator, GumbelSoftmax) and not estimator.hard:
        assert vae.kl_for(estimator) == "relaxed" and vae.loss(x, estimator).isfinite().all()
        return
    with pytest.raises(
        ValueError, match=r"task.kl=relaxed needs relaxed samples with a Concrete density: use"
    ) as caught:
        vae.kl_for(estimator)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"kl": "analytic", "prior_temperature": 0.5}, "task.prior_temperature is an option of task.kl=relaxed; with"),
        ({"prior_temperature": 0.0}, "task.prior_temperature must be positive and finite, not"),
        ({"prior_temperature": torch.tensor([0.5, math.nan])}, "task.prior_temperature must be positive and finite"),
    ],
)
def test_prior_temperatures_out_of_range(options, sentence):
    data = tiny_vae(2)[0].data
    with pytest.raises(ValueError, match=sentence):
        VAE(data, Streams([0]), latents=2, **{"kl": "relaxed", **options})


def test_hard_samples_have_no_ratio():
    with pytest.raises(ValueError, match="GumbelSoftmax: one-hot samples .hard=True. have no Concrete density; use"):
        GumbelSoftmax(hard=True).sample_with_log_ratio(torch.zeros(1, 2), torch.zeros(1, 2))


# --- the harness ---------------------------------------------------------------------------------------------------

FAST = ["steps=40", "evaluate_every=20", "test_samples=3", "valid_samples=2", "progress=false", "batch_size=50"]


def config(*overrides, **settings):
    return configs.config(*FAST, *overrides) | settings


def replica(job, seed, temperature, prior_temperature):
    own = json.loads(json.dumps(job)) | {"seed": seed}
    own["estimator"]["temperature"], own["task"]["prior_temperature"] = temperature, prior_temperature
    return own


@pytest.mark.parametrize("prior", ["uniform", "learned"])
@pytest.mark.parametrize("task", ["vae_bernoulli", "vae_categorical"])
@pytest.mark.parametrize("temperatures", [(0.5, 0.4, 1.0), (None, None, None)])
def test_replicas_with_temperatures_of_their_own_train_as_alone(task, prior, temperatures):
    """Also where the prior's temperature is the estimator's, which is annealed; and a checkpoint goes on."""
    job = config(f"task={task}", "task.kl=relaxed", f"task.prior={prior}", "task.latents=5", "optimizer.lr=1e-3")
    job["schedule"] = {"name": "exponential", "rate": 0.01, "minimum": 0.1, "every": 5, "only": []}
    variants = [
        replica(job, seed, own, of_prior)
        for seed, (own, of_prior) in enumerate(zip((2 / 3, 1.0, 0.3), temperatures, strict=True))
    ]
    together, solos = build(variants, CPU), [build([variant], CPU) for variant in variants]
    for _ in range(30):
        losses = together.train_step()
        for r, solo in enumerate(solos):
            assert torch.allclose(solo.train_step()[0], losses[r], rtol=1e-4)
    again = build(variants[1:2], CPU)
    again.restore([together.state(1)])
    assert torch.allclose(again.train_step()[0], together.train_step()[1], rtol=1e-4)
    if prior == "learned":
        assert together.task.prior_outputs.abs().amax((1, 2)).min() > 0


@pytest.mark.parametrize("task", ["vae_bernoulli", "vae_categorical"])
def test_the_record_says_relaxed_and_the_bounds_rise(task, tmp_path):
    """300 steps; bounds on exact samples, better than at the start (64 pixels: log 2 each)."""
    overrides = [f"task={task}", "task.kl=relaxed", "task.prior=learned", "task.prior_temperature=0.5", "steps=300"]
    job = config(*overrides, "optimizer.lr=3e-3", runs_dir=str(tmp_path))
    (run,) = replicated(job, overrides)
    train_runs([run], PackLine(False), solo=True)
    result = json.loads((run.path / records.RESULT).read_text())
    assert result["objective"] == {"kl": "relaxed", "samples": "relaxed", "is_bound": False}
    assert result["protocol"]["evaluation"] == "hard samples, analytic KL in the ELBO"
    assert -64 * math.log(2) < result["metrics"]["test_elbo"] < result["metrics"]["test_bound"] < -15


def test_mistakes_are_told_before_anything_trains(tmp_path):
    job = config("estimator=st_gumbel_softmax", "task.kl=relaxed", runs_dir=str(tmp_path))
    with pytest.raises(UserError, match="use estimator=gumbel_softmax with estimator.hard=false"):
        train_runs(list(replicated(job)), PackLine(False), solo=True)
    assert not list(tmp_path.rglob("*.json")) and not list(tmp_path.rglob("*.pt"))
    job = config("task.kl=relaxed", "task.latents=2")
    with pytest.raises(UserError, match="task.prior_temperature is null in some runs of a pack and a number in others"):
        build([replica(job, 0, 1.0, None), replica(job, 1, 1.0, 0.5)], CPU)


def test_a_divergence_with_the_relaxed_kl_is_told():
    """The estimator's sample and density are used, not its call, so nothing sees the logits."""
    ours = build([config("task.kl=relaxed", "task.latents=3")], CPU)
    with torch.no_grad():
        ours.task.encoders[0].weights[0][0] = torch.inf
    ours.train_step()
    ((_, details),) = ours.divergences([0], everywhere=False)
    assert "gumbel_softmax, temperature 1, logits not seen" in details["divergence"]


def test_every_method_declares_whether_its_value_is_that_of_relaxed_samples():
    """The loss is 0 at exactly one-hot samples and positive elsewhere, and estimators preserve values."""
    torch.manual_seed(0)
    logits = torch.randn(50, 3, 2)
    for method in estimators.METHODS:
        estimator = method(3, 2) if method is estimators.RELAX else method()
        losses = estimator(logits, lambda z: (z * (1 - z)).sum((-2, -1)))
        if estimator.objective == "mean":
            assert (losses.detach().abs().max().item() > 0) == estimator.relaxed, method
    assert not GumbelSoftmax(hard=True).relaxed
