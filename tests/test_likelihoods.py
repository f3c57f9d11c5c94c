"""Densities against closed forms and high precision; VAEs with them against enumeration; training, alone and packed."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from configs import config
from fake_runs import make_config, write_run
from test_deep_vae import enumerated as enumerated_layers

from analysis.records import load
from analysis.statistics.summary import summarise
from analysis.tables import summary as tables
from estimators import Exact
from tasks import VAE
from tasks.datasets import Dataset, Split
from tasks.distributions.likelihoods import VARIANCE_FLOOR, Gaussian, VonMisesFisher
from tasks.distributions.von_mises_fisher import LogNormaliser
from training.config import validity
from training.errors import UserError
from training.pack.build import build
from training.pack.evaluation import evaluate_last, summary
from training.replicas.streams import Streams

DENSITIES = ("gaussian", "von_mises_fisher")

# D, k, log C_D(k) and its derivative -I_{D/2}(k) / I_{D/2-1}(k), by mpmath 1.3 with 50 digits (mpmath.besseli).
NORMALISERS = [
    (2, 0.001, -1.8378773164093299, -0.00049999993750001042),
    (2, 1.0, -2.0737914249165241, -0.44638996589653451),
    (2, 37.5, -36.610147133456485, -0.98657530275282623),
    (2, 1000.0, -997.46518595627881, -0.99949987487480428),
    (2, 10000.0, -9996.3137808478416, -0.99994999874987498),
    (3, 0.001, -2.5310244136359519, -0.00033333331111111323),
    (3, 1.0, -2.6924636085404864, -0.3130352854993313),
    (3, 37.5, -35.71353613343298, -0.97333333333333333),
    (3, 1000.0, -994.93012178742721, -0.999),
    (3, 10000.0, -9992.6275366944332, -0.9999),
    (64, 0.001, 40.76772001776206, -1.56249999963009e-5),
    (64, 1.0, 40.759908450066448, -0.015621302598621634),
    (64, 37.5, 31.102648773042644, -0.46290633206866598),
    (64, 1000.0, -839.8182594404815, -0.96898074030963348),
    (64, 10000.0, -9767.7193660110009, -0.9968548042189045),
    (784, 0.001, 1497.2408989619961, -1.2755102040795628e-6),
    (784, 1.0, 1497.2402612080493, -0.0012755081342075693),
    (784, 37.5, 1496.3450760752964, -0.047722972903673758),
    (784, 1000.0, 1060.4012862057243, -0.68228923230605237),
    (784, 10000.0, -7106.0371698312316, -0.9616141881516842),
]


@pytest.mark.parametrize(("dimension", "k", "value", "slope"), NORMALISERS)
def test_the_normaliser_and_its_derivative(dimension, k, value, slope):
    concentration = torch.tensor([k], dtype=torch.float64, requires_grad=True)
    log_normaliser = LogNormaliser(dimension)(concentration)
    assert log_normaliser.item() == pytest.approx(value, abs=1e-14 * max(dimension, k))
    (gradient,) = torch.autograd.grad(log_normaliser.sum(), concentration)
    assert gradient.item() == pytest.approx(slope, rel=1e-14)


@pytest.mark.parametrize("dimension", [2, 3, 20, 48, 50, 51, 784])
def test_bessels_equation(dimension):
    """``A' = 1 - A^2 - (D - 1) A / k``, A = -d log C / dk: from the step through orders to the expansion alone."""
    k = torch.logspace(-2, 4, 60, dtype=torch.float64, requires_grad=True)
    (minus_a,) = torch.autograd.grad(LogNormaliser(dimension)(k).sum(), k, create_graph=True)
    (minus_slope,) = torch.autograd.grad(minus_a.sum(), k)
    assert torch.allclose(-minus_slope, 1 - minus_a**2 + (dimension - 1) * minus_a / k, rtol=0, atol=1e-11)


def test_three_dimensions_in_closed_form():
    k = torch.logspace(-3, 2, 50, dtype=torch.float64)
    assert torch.allclose(LogNormaliser(3)(k), (k / (4 * math.pi * k.sinh())).log(), rtol=1e-13, atol=0)


def grey(pixels, shape):
    split = Split(pixels, 255)
    return Dataset("tiny", shape, "none", split, split, split)


@pytest.mark.parametrize("k", [0.5, 20.0])
def test_the_density_integrates_to_one_over_circle_and_sphere(k):
    """Any outputs: only their direction matters. Trapezoids over the angle; on the sphere over latitude, too."""
    circle = VonMisesFisher(grey(torch.ones(1, 2, dtype=torch.uint8), (1, 2)), 1, k)
    angle = torch.linspace(0, 2 * math.pi, 2001, dtype=torch.float64)[:-1]
    x = torch.stack((angle.cos(), angle.sin()), -1)[None]
    total = (-circle.nats(torch.tensor([3.0, -0.1]).double(), x)).exp().mean() * 2 * math.pi
    assert total.item() == pytest.approx(1, abs=1e-10)
    sphere = VonMisesFisher(grey(torch.ones(1, 3, dtype=torch.uint8), (1, 3)), 1, k)
    cosine = torch.linspace(-1, 1, 20001, dtype=torch.float64)[:, None]
    sine = (1 - cosine**2).clamp_min(0).sqrt()
    x = torch.stack((sine * angle[::20].cos(), sine * angle[::20].sin(), cosine.expand(-1, 100)), -1).flatten(0, 1)
    p = (-sphere.nats(torch.tensor([0.02, -0.01, 0.03]).double(), x[None])).exp().reshape(-1, 100).mean(-1)
    assert torch.trapezoid(p, cosine[:, 0]).item() * 2 * math.pi == pytest.approx(1, abs=1e-6)


def test_an_output_of_zero_has_no_direction():
    likelihood = VonMisesFisher(grey(torch.ones(1, 4, dtype=torch.uint8), (2, 2)), 1, None)
    outputs = torch.zeros(1, 1, 4, requires_grad=True)
    nats = likelihood.nats(outputs, torch.full((1, 1, 4), 0.5))
    k = likelihood.concentration()
    assert k.item() == pytest.approx(4) and nats.item() == pytest.approx(-likelihood.log_normaliser(k).item())
    (gradient,) = torch.autograd.grad(nats.sum(), outputs, create_graph=True)
    assert (gradient == 0).all()
    assert torch.autograd.grad(gradient.sum(), outputs, allow_unused=True)[0].isfinite().all()


def likelihoods(replicas=2, pixels=6):
    """Both, away from their start."""
    gaussian = Gaussian(pixels, replicas).double()
    directional = VonMisesFisher(grey(torch.ones(1, pixels, dtype=torch.uint8), (1, pixels)), replicas, None).double()
    with torch.no_grad():
        for likelihood in (gaussian, directional):
            for parameter in likelihood.parameters():
                parameter += torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    return gaussian, directional


def test_gaussian_nats_are_those_of_torch():
    gaussian, _ = likelihoods()
    with torch.no_grad():
        gaussian.raw_variance[0, 0, :2] = torch.tensor([-30.0, 40.0])
    assert gaussian.variance().min().item() == VARIANCE_FLOOR
    outputs, x = torch.randn(3, 2, 5, 6).double(), gaussian.observed(torch.rand(2, 5, 6).double())
    assert x.min() < -0.5 and x.max() > 0.5
    theirs = torch.distributions.Normal(outputs, gaussian.variance().sqrt()).log_prob(x).sum(-1)
    assert torch.allclose(gaussian.nats(outputs, x), -theirs, rtol=1e-12)


@pytest.mark.parametrize("which", [0, 1])
def test_gradients(which):
    """First and second derivatives in the outputs and the likelihood's own parameter; ``torch.func``, too."""
    likelihood = likelihoods()[which]
    outputs = torch.randn(3, 2, 4, 6, dtype=torch.float64, requires_grad=True)
    x = likelihood.observed(torch.rand(2, 4, 6, dtype=torch.float64))
    (own,) = likelihood.parameters()
    call = torch.func.functional_call
    name = next(name for name, _ in likelihood.named_parameters())

    class Nats(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.likelihood = likelihood

        def forward(self, outputs):
            return self.likelihood.nats(outputs, x)

    def nats(outputs, own):
        return call(Nats(), {f"likelihood.{name}": own}, (outputs,))

    assert torch.autograd.gradcheck(nats, (outputs, own)) and torch.autograd.gradgradcheck(nats, (outputs, own))
    by_func = torch.func.grad(lambda a: likelihood.nats(a, x).sum())(outputs.detach())
    assert torch.allclose(by_func, torch.autograd.grad(likelihood.nats(outputs, x).sum(), outputs)[0])


def tiny_vae(likelihood, seeds=(0, 1), **options):
    """Nine joint states, parameters away from their start."""
    pixels = torch.randint(0, 256, (40, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    options = {"latents": 2, "categories": 3, **options}
    vae = VAE(grey(pixels, (2, 3)), Streams(seeds), likelihood=likelihood, **options)
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    return vae


def log_density(vae, outputs, images):
    """``log p(x|z)`` from the literature's formulas, apart from the code under test."""
    if isinstance(vae.likelihood, Gaussian):
        variance = F.softplus(vae.likelihood.raw_variance)
        return torch.distributions.Normal(outputs, variance.sqrt()).log_prob(2 * images - 1).sum(-1)
    k = vae.likelihood.raw_concentration.exp()
    # D = 6: I_2(k) = I_0(k) - 2 I_1(k) / k
    bessel = torch.special.i0(k) - 2 * torch.special.i1(k) / k
    log_normaliser = 2 * k.log() - 3 * math.log(2 * math.pi) - bessel.log()
    return log_normaliser + k * F.cosine_similarity(outputs, images.expand_as(outputs), dim=-1)


def enumerated(vae, images):
    """``log q`` and ``log p(x, z)`` ``[states, R, E]``."""
    codes = torch.cartesian_prod(torch.arange(3), torch.arange(3))
    features = F.one_hot(codes, 3).float().flatten(1)[:, None, None].expand(-1, *images.shape[:2], -1)
    encoder_input = 2 * images - 1 if isinstance(vae.likelihood, Gaussian) else F.normalize(images, dim=-1)
    q = vae.encoders[0](encoder_input).unflatten(-1, (2, 3)).log_softmax(-1).flatten(-2)
    return (features * q).sum(-1), log_density(vae, vae.decoders[0](features), images) - 2 * math.log(3)


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize(("layers", "categories"), [(1, 3), (2, 2), (2, 3), (3, 2)])
@pytest.mark.parametrize("likelihood", DENSITIES)
def test_a_density_under_several_layers_against_enumeration(likelihood, layers, categories, centred):
    """The exact loss and the exact ELBO and log-likelihood of evaluation."""
    options = {"latents": 1, "categories": categories, "prior": "learned", "centred": centred, "hidden": (4,)}
    vae = tiny_vae(likelihood, layers=layers, **options).double()
    images = (vae.data.test.pixels[:5] / 255).double().expand(2, -1, -1)
    density = partial(log_density, vae)
    scaled = (lambda x: 2 * x - 1) if likelihood == "gaussian" else partial(F.normalize, dim=-1)
    log_q, log_joint = enumerated_layers(vae, images, density, scaled)
    elbo, log_p = (log_q.exp() * (log_joint - log_q)).sum(0), log_joint.logsumexp(0)
    assert torch.allclose(vae.loss(images, *[Exact()] * layers), -elbo, rtol=1e-9)
    found = vae.exact(images)
    assert torch.allclose(found["exact_elbo"], elbo, rtol=1e-9)
    assert torch.allclose(found["exact_log_likelihood"], log_p, rtol=1e-9)
    assert (elbo < log_p - 1e-4).all()


@pytest.mark.parametrize("likelihood", DENSITIES)
def test_elbo_bound_and_log_density_against_enumeration(likelihood):
    """Sampled ELBO = exact ELBO <= bound <= log p(x), met with many samples; 6 standard errors over 40 images."""
    vae = tiny_vae(likelihood)
    images = (vae.data.test.pixels / 255).expand(2, -1, -1)
    with torch.no_grad():
        log_q, joint = enumerated(vae, images)
        elbo = (log_q.exp() * (joint - log_q)).sum(0)
        spread = (log_q.exp() * (joint - log_q) ** 2).sum(0) - elbo**2
        exact = joint.logsumexp(0)
    for samples in (1, 30):
        found = vae.evaluate("test", samples)
        assert set(found) == {"elbo", "bound"}
        error = (spread.mean(-1) / samples / 40).sqrt()
        assert ((found["elbo"] - elbo.mean(-1)).abs() < 6 * error + 1e-4).all()
        assert (found["bound"] < exact.mean(-1) + 6 * error + 1e-4).all()
        assert (found["bound"] >= found["elbo"] - 6 * error).all()
    chi2 = ((2 * joint - log_q).logsumexp(0) - 2 * exact).exp().mean(-1) - 1
    tolerance = 6 * (chi2 / 4000 / 40).sqrt() + chi2 / 4000 + 1e-4
    details = vae.evaluate("test", 4000, details=True)
    assert torch.allclose(details["exact_log_likelihood"], exact.mean(-1).double(), rtol=1e-5)
    assert torch.allclose(details["exact_elbo"], elbo.mean(-1).double(), rtol=1e-5)
    found = details["bound"]
    assert ((found - exact.mean(-1)).abs() < tolerance).all() and (tolerance < 0.1).all()
    assert (exact.mean(-1) - elbo.mean(-1) > 0.1).all()


@pytest.mark.parametrize("likelihood", DENSITIES)
def test_the_objective_through_exact_is_the_negative_elbo(likelihood):
    vae = tiny_vae(likelihood)
    images = (vae.data.test.pixels / 255).expand(2, -1, -1)
    log_q, joint = enumerated(vae, images)
    elbo = (log_q.exp() * (joint - log_q)).sum(0)
    losses = vae.loss(images, Exact())
    assert torch.allclose(losses, -elbo, rtol=1e-4, atol=1e-4)
    parameters = list(vae.parameters())
    ours = torch.autograd.grad(losses.mean(-1).sum(), parameters)
    exact = torch.autograd.grad(-elbo.mean(-1).sum(), parameters)
    assert len(parameters) == 5
    for got, want in zip(ours, exact, strict=True):
        assert torch.allclose(got, want, rtol=1e-3, atol=1e-5)


def test_pictures_and_initial_bias():
    """Pictures lie in [0, 1]; with ``data_mean`` and no weights they are the mean image (its direction)."""
    for likelihood in DENSITIES:
        vae = tiny_vae(likelihood, output_bias="data_mean")
        for pictures in vae.examples(4):
            for images in pictures.values():
                assert images.shape == (4, 2, 3) and images.min() >= 0 and images.max() <= 1
        fresh = VAE(vae.data, Streams([0]), latents=2, likelihood=likelihood, output_bias="data_mean")
        with torch.no_grad():
            fresh.decoders[0].weights[0].zero_()
        (pictures,) = fresh.examples(1)
        mean = vae.data.mean if likelihood == "gaussian" else vae.data.mean / vae.data.mean.max()
        assert torch.allclose(pictures["samples"].flatten(), mean, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"likelihood": "laplace"}, "task.likelihood must be one of bernoulli, gaussian, von_mises_fisher"),
        ({"concentration": 3.0}, "task.concentration is an option of task.likelihood=von_mises_fisher"),
        ({"likelihood": "gaussian", "concentration": 3.0}, "task.concentration is an option of"),
        ({"likelihood": "von_mises_fisher", "concentration": 0.0}, "task.concentration must be positive and finite"),
        ({"likelihood": "von_mises_fisher", "concentration": math.inf}, "task.concentration must be positive"),
    ],
)
def test_options_out_of_range(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        VAE(tiny_vae("gaussian").data, Streams([0]), latents=2, **options)


@pytest.mark.parametrize("likelihood", DENSITIES)
def test_bits_have_no_density(likelihood):
    bits = Split(torch.ones(4, 6, dtype=torch.uint8), 1)
    with pytest.raises(ValueError, match="data.binarization=static makes bits of them; use data.binarization=none"):
        VAE(Dataset("tiny", (2, 3), "static", bits, bits, bits), Streams([0]), likelihood=likelihood)
    with pytest.raises(UserError, match="data.binarization=dynamic makes bits of them; use data.binarization=none"):
        validity.check(config(f"task.likelihood={likelihood}"))
    with pytest.raises(UserError, match="task.concentration is an option of"):
        validity.check(config("task.concentration=3"))


def test_zeros_and_single_pixels_have_no_direction():
    pixels = torch.ones(5, 6, dtype=torch.uint8)
    pixels[[1, 3]] = 0
    with pytest.raises(ValueError, match="2 of the train images of data=tiny are all zeros"):
        VAE(grey(pixels, (2, 3)), Streams([0]), likelihood="von_mises_fisher")
    with pytest.raises(ValueError, match="at least 2 pixels"):
        VAE(grey(pixels[:1, :1], (1, 1)), Streams([0]), likelihood="von_mises_fisher")


ON_DIGITS = ("data.binarization=none", "task.latents=8", "task.categories=2", "batch_size=20", "test_samples=2")
TASKS = {
    "gaussian": ("task=vae_gaussian_pixels", "task.hidden=[9]"),
    "von_mises_fisher": ("task=vae_cosine",),
}


@pytest.mark.parametrize(
    "estimator", ["nvil", "rloo", "disarm", "gumbel_softmax", "rebar", "reinmax", "vimco", "exact"]
)
@pytest.mark.parametrize("likelihood", DENSITIES)
def test_training_alone_and_in_a_pack(likelihood, estimator):
    """Two steps, from a checkpoint on, and a record; the likelihood's parameter is each replica's own."""
    own = config(f"estimator={estimator}", *TASKS[likelihood], *ON_DIGITS, "optimizer.lr=1e-2")
    together, alone = (
        build([{**own, "seed": seed} for seed in seeds], torch.device("cpu")) for seeds in ([3, 4, 5], [4])
    )
    before = [parameter.detach().clone() for parameter in alone.task.likelihood.parameters()]
    for _ in range(2):
        losses, single = together.train_step(), alone.train_step()
        assert losses.isfinite().all() and torch.allclose(single[0], losses[1], rtol=1e-4)
    for ours, theirs in zip(alone.parameters, together.parameters, strict=True):
        assert torch.allclose(ours[0], theirs[1], rtol=1e-2, atol=1e-4)
    assert all((now != then).any() for now, then in zip(alone.task.likelihood.parameters(), before, strict=True))
    again = build(alone.configs, alone.device)
    again.restore([alone.state(0)])
    assert torch.equal(again.train_step(), alone.train_step())
    (row,) = evaluate_last(alone)
    assert math.isfinite(row["test_bound"])
    result = summary(alone, 0, "finished", row)
    assert result["objective"]["is_bound"] == (estimator != "gumbel_softmax")
    assert result["protocol"]["evaluation_is_bound"] and result["protocol"]["binarization"] == "none"
    assert ("variance_floor" in result["protocol"]) == (likelihood == "gaussian")


def test_each_replica_has_the_concentration_of_its_config():
    packs = [
        build(
            [config(*TASKS["von_mises_fisher"], *ON_DIGITS, f"task.concentration={k}") for k in own],
            torch.device("cpu"),
        )
        for own in ((5.0, 60.0), (60.0,))
    ]
    assert packs[0].task.likelihood.concentration().flatten().tolist() == [5.0, 60.0]
    for _ in range(3):
        together, alone = (pack.train_step() for pack in packs)
        assert torch.allclose(together[1], alone[0], rtol=1e-5) and not torch.allclose(together[0], alone[0], rtol=0.01)
    assert packs[0].task.likelihood.concentration().flatten().tolist() == [5.0, 60.0]


def best_constant(likelihood, data):
    """Test log-density of the maximum-likelihood constant: mean and variance (with the floor), or direction and k."""
    train, test = (getattr(data, name).pixels.double() / 255 for name in ("train", "test"))
    if likelihood == "gaussian":
        train, test = 2 * train - 1, 2 * test - 1
        deviation = train.var(0, correction=0).clamp_min(VARIANCE_FLOOR).sqrt()
        return torch.distributions.Normal(train.mean(0), deviation).log_prob(test).sum(-1).mean().item()
    train, test = F.normalize(train, dim=-1), F.normalize(test, dim=-1)
    resultant = train.mean(0)
    k, log_normaliser = torch.logspace(0, 4, 4001, dtype=torch.float64), LogNormaliser(64)
    best = k[(log_normaliser(k) + k * resultant.norm()).argmax()]
    return (log_normaliser(best) + best * (test @ F.normalize(resultant, dim=0)).mean()).item()


@pytest.mark.parametrize("likelihood", DENSITIES)
def test_a_short_training_beats_the_best_constant(likelihood):
    """On the test split, as a bound; 600 steps at a high rate. The margins seen are 10 and 14 nats."""
    own = config("estimator=rloo", f"task.likelihood={likelihood}", "data.binarization=none", "task.latents=30")
    own["task"]["output_bias"], own["optimizer"]["lr"] = "data_mean", 1e-2
    pack = build([own], torch.device("cpu"))
    start = pack.task.evaluate("test", 10)["bound"].item()
    for _ in range(600):
        pack.train_step()
    end = pack.task.evaluate("test", 10)["bound"].item()
    assert end > start + 30 and end > best_constant(likelihood, pack.data) + 4


def test_the_table_says_density_and_has_no_published_probability_beside_it(tmp_path):
    """Nats, lower is better, numbers below zero keep their sign; Bernoulli pixels in this cell have a published one."""
    density = {"likelihood": "gaussian", "variance_floor": 0.001, "density": "pixels scaled to [-1, 1]"}
    write_run(
        tmp_path / "grey", make_config("gumbel_softmax", task__likelihood="gaussian"), test=668.03, protocol=density
    )
    summarised = summarise(load(tmp_path / "grey"))
    text = " ".join(tables.to_text(summarised).split())
    assert "-668.03" in text and "lower is better" in text and "-log p(x) <= negative test bound in nats" in text
    assert "p is a density of pixels scaled to [-1, 1], so numbers may be negative" in text
    assert "likelihood gaussian" in text and "variance floor 0.001" in text
    assert summarised["published"].isna().all()
    write_run(tmp_path / "bits", make_config("gumbel_softmax"))
    assert summarise(load(tmp_path / "bits"))["published"].notna().all()


def test_a_learned_concentration_can_be_the_setting_that_was_chosen(tmp_path):
    for concentration, valid in ((None, 90.0), (30.0, 80.0)):
        write_run(
            tmp_path,
            make_config(task__concentration=concentration, tune=["task.concentration"]),
            valid=valid,
            test=valid,
        )
    assert "Chosen for nvil: task.concentration=none (best of 2 on validation)." in tables.to_text(
        summarise(load(tmp_path)), width=1000
    )
