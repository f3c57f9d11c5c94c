"""Variance normalisation and baselines of MuProp and DARN: scale, mean by enumeration, state, packs; in float64."""

import configs
import pytest
import torch
from exact_means import exact_gradient, exact_mean, polynomial

from estimators import DARN, MuProp, check_estimator
from estimators.categorical import sample_with_log_prob
from tasks.distributions.kl import kl_form
from training.config import identity, validity
from training.pack.build import build
from training.pack.evaluation import evaluate

CPU = torch.device("cpu")
MAKE = {
    "MuProp": lambda **o: MuProp(**{"variance_normalisation": True} | o),
    "MuProp uncentred": lambda **o: MuProp(**{"variance_normalisation": True, "centring": False} | o),
    "DARN": lambda **o: DARN(**{"variance_normalisation": True} | o),
}


def steep(z):
    """With a standard deviation of its residual, and of DARN's sum, far above 1."""
    return 20 * polynomial(3, z.shape[-2], z.shape[-1])(z)


def trained(name, logits, calls=30, **options):
    torch.manual_seed(0)
    estimator = MAKE[name](**options).double()
    for _ in range(calls):
        estimator(logits.expand(50, *logits.shape), steep)
    return estimator


@pytest.mark.parametrize("categories", [2, 3])
@pytest.mark.parametrize("name", MAKE)
def test_the_mean_is_the_plain_one_over_the_recorded_scale(monkeypatch, name, categories):
    """By enumeration; the scale from the buffers as Adam's moments are corrected."""
    logits = 0.5 * torch.randn(2, categories, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    estimator = trained(name, logits)
    mean, square = (each.total / each.weight for each in list(estimator.children()))
    scale = (square - mean**2).sqrt()
    assert scale > 2 and torch.allclose(estimator.gradient_scale(), scale, rtol=1e-12)
    _, found = exact_mean(monkeypatch, estimator, logits, steep)
    plain = exact_gradient(logits, steep) if name != "DARN" else exact_mean(monkeypatch, DARN(), logits, steep)[1]
    assert torch.allclose(found, plain / scale, rtol=1e-10, atol=0)
    # a signal with less spread than 1 is left as it is
    fresh = MAKE[name]().double()
    _, found = exact_mean(monkeypatch, fresh, logits, steep)
    assert torch.allclose(found, plain, rtol=1e-10, atol=0)


@pytest.mark.parametrize("name", ["MuProp", "DARN"])
def test_the_moments_are_those_of_earlier_signals(name):
    """Three calls with decay 0.5: MuProp's residuals and DARN's products, summed over latents, written out."""
    estimator, signals = MAKE[name](decay=0.5).double(), []
    slope = torch.func.grad(lambda z: steep(z).sum())
    for seed in range(3):
        logits = torch.randn(6, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        torch.manual_seed(seed)
        estimator(logits, steep)
        torch.manual_seed(seed)
        z, p = sample_with_log_prob(logits)[0], logits.softmax(-1)
        residual = steep(z) - steep(p) - (slope(p) * (z - p)).sum((-2, -1))
        signals.append(residual if name == "MuProp" else (slope(z) * (z - 1 / 3)).sum((-2, -1)))
    for average, power in zip(estimator.children(), (1, 2), strict=True):
        first, second, third = (signal.pow(power).mean() for signal in signals)
        assert torch.allclose(average.value(), (first + 2 * second + 4 * third) / 7)


def test_the_baseline_keeps_the_mean_and_learns_what_the_residual_is(monkeypatch):
    """A bowl between the corners, whose depth is in the context: a baseline takes its mean away, centring cannot."""

    def bowl(context):
        depth = 5 * torch.tanh(context[..., 0]) + 2
        return lambda z: depth * (z * (z - 1)).sum((-2, -1)) + z[..., 0, 1]

    torch.manual_seed(0)
    estimator, context = MuProp(3, input_dependent=True, hidden=20), torch.randn(64, 3)
    plain = MuProp()
    optimizer = torch.optim.Adam(estimator.parameters(), lr=0.03)
    for _ in range(300):
        optimizer.zero_grad()
        estimator(torch.zeros(64, 2, 2), bowl(context), context).mean().backward()
        optimizer.step()
        plain(torch.zeros(64, 2, 2), bowl(context))

    def variance(each):
        logits = torch.zeros(64, 2, 2, requires_grad=True)
        return torch.autograd.grad(each(logits, bowl(context), context).sum(), logits)[0].var().item()

    assert variance(estimator) < 0.02 * variance(plain)
    one, logits = context[:1].double(), 0.3 * torch.randn(2, 2, dtype=torch.float64)
    monkeypatch.setattr(MuProp, "__call__", lambda self, *call: self.forward(*call, one.expand(len(call[0]), 3)))
    _, mean = exact_mean(monkeypatch, estimator, logits, bowl(one))
    assert torch.allclose(mean, exact_gradient(logits, bowl(one)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["MuProp", "DARN"])
def test_eval_and_transforms_leave_the_moments_alone(name):
    logits = torch.randn(4, 2, 2)
    for estimator in (MAKE[name]().eval(), MAKE[name]()):
        torch.func.grad(lambda x, e=estimator: e(x, steep).sum())(logits)
        estimator.eval()(logits, steep)
        assert not any(average.weight for average in estimator.children())


@pytest.mark.parametrize(
    ("estimator", "features"),
    [(MuProp(variance_normalisation=True), None), (MuProp(3, input_dependent=True, centring=False), 3)]
    + [(MuProp(3, input_dependent=True, variance_normalisation=True), 3), (DARN(variance_normalisation=True), None)],
    ids=["normalised", "baseline", "both", "DARN"],
)
def test_the_contract_holds(estimator, features):
    check_estimator(estimator, draws=2000, context_features=features)


def test_a_kl_beside_it_goes_into_the_loss():
    """As for NVIL: by default it is inside, and analytic beside a divided gradient it is said in the plan."""
    assert kl_form(DARN(), "auto") == "analytic"
    assert kl_form(DARN(variance_normalisation=True), "auto") == kl_form(MuProp(), "auto") == "sampled"
    for name in ("muprop", "darn"):
        job = configs.config(f"estimator={name}", "task.kl=analytic")
        assert validity.caution(job) is None
        job["estimator"]["variance_normalisation"] = True
        assert "divides its gradient by a running scale" in validity.caution(job)


@pytest.mark.parametrize("options", [["estimator=muprop", "estimator.input_dependent=true"], ["estimator=darn"]])
def test_packed_and_resumed_runs_have_the_same_numbers(options):
    job = configs.config(
        *options, "estimator.variance_normalisation=true", "task.latents=5", "batch_size=8", "optimizer.lr=0.05"
    )

    def pack(*seeds):
        return build([{**job, "seed": seed} for seed in seeds], CPU)

    together, alone = pack(3, 4), pack(4)
    for _ in range(5):
        assert torch.allclose(together.train_step()[1], alone.train_step()[0], rtol=1e-5)
    assert alone.estimator.square.value() > 0
    resumed = pack(4)
    resumed.restore([alone.state(0)])
    for _ in range(2):
        assert torch.equal(resumed.train_step(), alone.train_step())
    for key, value in alone.estimators.state_dict().items():
        assert torch.equal(value, resumed.estimators.state_dict()[key])


def test_what_has_no_such_option_keeps_its_state_and_name():
    """Checkpoints and names of recorded runs, which have none of these options, stay those of the defaults."""
    assert [*MuProp().state_dict()] == ["decay", "average.total", "average.weight"] and not DARN().state_dict()
    for name, added in (("muprop", ("input_dependent", "variance_normalisation", "hidden")), ("darn", ("decay",))):
        job = configs.config(f"estimator={name}")
        old = {**job, "estimator": {key: value for key, value in job["estimator"].items() if key not in added}}
        assert identity.run_name(job) == identity.run_name(old)
        normalised = {**job, "estimator": {**job["estimator"], "variance_normalisation": True}}
        assert identity.run_name(normalised) != identity.run_name(job)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (
            lambda: MuProp(3, input_dependent=True, hidden=0),
            "MuProp: hidden must be at least 1, not 0; input_dependent",
        ),
        (lambda: DARN(variance_normalisation=True, decay=1.0), r"DARN: decay must be in \[0, 1\), not 1.0"),
        (
            lambda: MuProp(3, input_dependent=True)(torch.zeros(5, 2, 2), steep),
            r"MuProp: .* needs context \[\*batch, 3\]",
        ),
        (lambda: second_derivative(MuProp(variance_normalisation=True)), "first order only"),
    ],
)
def test_bad_input_raises_one_sentence(make, sentence):
    with pytest.raises((ValueError, RuntimeError), match=sentence) as caught:
        make()
    assert "\n" not in str(caught.value)


def second_derivative(estimator):
    logits = torch.zeros(5, 2, 2, requires_grad=True)
    gradient = torch.autograd.grad(estimator(logits, steep).sum(), logits, create_graph=True)[0]
    gradient.square().sum().backward()


@pytest.mark.parametrize("name", ["nvil", "muprop", "darn"])
def test_a_row_has_the_variance_as_it_would_be_without_the_scale(name):
    option = f"estimator.variance_normalisation={{}} task=vae_bernoulli task.latents=4 estimator={name}"
    job = configs.config(*option.format("true").split())
    ours = build([{**job, "seed": seed} for seed in range(2)], CPU)
    for _ in range(20):
        ours.train_step()
    ours.estimator.square.total.add_(torch.tensor([[4.0], [9.0]]))
    scale = ours.estimator.gradient_scale().flatten()
    for row, own in zip(evaluate(ours), scale.tolist(), strict=True):
        assert row["gradient_variance_unscaled"] == pytest.approx(own**2 * row["gradient_variance"], rel=1e-6)
    assert (scale > 1).all()
    plain = build([configs.config(*option.format("false").split())], CPU)
    plain.train_step()
    assert "gradient_variance_unscaled" not in evaluate(plain)[0]
