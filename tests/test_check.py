"""Moments of gradients against closed forms and a loop of backward passes; the certificate's command; the docs' table.

Statistical tolerances are 6 standard errors, or 0.003 of a variance with its own standard error of about 0.0005.
"""

import inspect
import itertools
import json
import math
from pathlib import Path

import pytest
import torch

import estimators
from estimators import (
    NVIL,
    REBAR,
    REINFORCE,
    RLOO,
    VIMCO,
    DisARM,
    Exact,
    GumbelSoftmax,
    IndeCateR,
    StraightThrough,
    check,
)
from estimators.base import FAMILIES
from estimators.moments import gradient_moments
from training.documents import table

ROOT = Path(__file__).parents[1]


def toy(p, t=0.3):
    """One Bernoulli: logits ``[1, 1, 2]``, the loss ``(bit - t)^2``, its two values."""
    logits = torch.tensor([[[0.0, math.log(p / (1 - p))]]], dtype=torch.float64)
    return logits, lambda z: ((z[..., 1] - t) ** 2).sum(-1), t**2, (1 - t) ** 2


def cubic(latents=2, categories=3, examples=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits, weights = torch.randn(2, examples, latents, categories, dtype=torch.float64, generator=generator)
    return logits, lambda z: 0.5 + (z * weights.to(z.dtype)).sum((-2, -1)) ** 3


VARIANCES = {
    REINFORCE: lambda p, f0, f1: p * (1 - p) * ((1 - p) * f1**2 + p * f0**2) - ((f1 - f0) * p * (1 - p)) ** 2,
    RLOO: lambda p, f0, f1: (f1 - f0) ** 2 * p * (1 - p) * (0.5 - p * (1 - p)),
    DisARM: lambda p, f0, f1: (f1 - f0) ** 2 * max(p, 1 - p) ** 2 * min(p, 1 - p) * (max(p, 1 - p) - 0.5),
    Exact: lambda p, f0, f1: 0.0,
}


@pytest.mark.parametrize("method", VARIANCES)
@pytest.mark.parametrize("p", [0.2, 0.5])
def test_moments_are_the_closed_forms_of_one_bernoulli(method, p):
    torch.manual_seed(0)
    logits, loss, f0, f1 = toy(p)
    moments = gradient_moments(method(), logits, loss, 200_000)
    expected = VARIANCES[method](p, f0, f1)
    exact = (f1 - f0) * p * (1 - p)
    assert torch.allclose(moments.variance, torch.tensor(expected, dtype=torch.float64), atol=0.003 * f1**2)
    assert torch.allclose(moments.exact, torch.tensor([[[-exact, exact]]], dtype=torch.float64))
    assert ((moments.mean - moments.exact).abs() <= 6 * moments.standard_error + 1e-12).all()
    assert moments.relative_variance == pytest.approx(moments.variance[0, 0, 1].item() / exact**2)
    assert moments.value.item() == pytest.approx((1 - p) * f0 + p * f1, abs=6 * f1 / 200_000**0.5)
    assert moments.mean.shape == moments.variance.shape == moments.standard_error.shape == logits.shape


def test_bias_resolution_and_cosine_of_straight_through():
    """Mean 2 (p - t) p (1 - p) instead of (1 - 2t) p (1 - p): here the wrong sign."""
    torch.manual_seed(0)
    logits, loss, *_ = toy(0.2, t=0.4)
    moments = gradient_moments(StraightThrough(), logits, loss, 50_000)
    assert abs(moments.relative_bias - 3) < 3 * moments.resolution < 0.1
    assert moments.cosine == pytest.approx(-1)
    assert moments.resolution == pytest.approx((moments.variance.sum() / 50_000).sqrt().item() / moments.exact.norm())


@pytest.mark.parametrize("estimator", [RLOO(3), IndeCateR(), GumbelSoftmax(0.5)], ids=lambda e: type(e).__name__)
def test_moments_are_those_of_a_loop_of_backward_passes(estimator, monkeypatch):
    """The same draws of noise, one by one."""
    logits, loss = cubic()
    batched, stored = [], torch.rand(64, 200, 2, 2, 3, dtype=torch.float64).clamp(1e-9, 1 - 1e-9)
    for draws in (slice(None), *range(200)):

        def source(shape, dtype, device, event_dims, draws=draws):
            """``[samples, draws or nothing, ...]`` of the stored noise."""
            samples = shape[0] if isinstance(estimator, RLOO) else 1
            return stored[:samples, draws].reshape(shape)

        with estimators.noise_source(source):
            if draws == slice(None):
                together = gradient_moments(estimator, logits, loss, 200)
            else:
                leaf = logits.clone().requires_grad_()
                estimator(leaf, loss).sum().backward()
                batched.append(leaf.grad)
    loop = torch.stack(batched)
    assert torch.allclose(together.mean, loop.mean(0)) and torch.allclose(together.variance, loop.var(0))


@pytest.mark.parametrize("chunk", [1, 7, 50, 1000])
def test_chunks_merge_to_the_moments_of_all_draws(chunk):
    """Draws numbered by a fixed sequence: the moments do not depend on how they are cut."""
    logits, loss = cubic()

    class Numbered(estimators.Estimator):
        unbiased, sizes, numbers = False, [], torch.randn(101, 2, dtype=torch.float64) + 1000

        def __deepcopy__(self, memo):
            return self

        def estimate(self, logits, loss, context):
            start = sum(self.sizes)
            self.sizes.append(len(logits))
            scale = self.numbers[start : start + len(logits)]
            return scale * logits.sum((-2, -1)) ** 2

    moments = gradient_moments(Numbered(), logits, loss, 101, chunk=chunk)
    slope = 2 * logits.sum((-2, -1), keepdim=True).expand_as(logits)
    every = Numbered.numbers[..., None, None] * slope
    assert torch.allclose(moments.mean, every.mean(0), rtol=1e-12)
    assert torch.allclose(moments.variance, every.var(0), rtol=1e-8)
    assert max(Numbered.sizes) == min(chunk, 101) and sum(Numbered.sizes) == 101


def test_memory_is_bounded_by_default():
    seen = []
    logits, loss = torch.zeros(50, 20, 10), lambda z: seen.append(z.numel()) or (z**2).sum((-2, -1))
    moments = gradient_moments(RLOO(4), logits, loss, 1500)
    assert max(seen) <= 4_000_000 and sum(seen) == 1500 * 4 * logits.numel()
    assert moments.exact is None and moments.relative_bias is None and moments.max_z is None


def test_the_estimator_stays_as_it_was():
    logits, loss = cubic()
    for estimator in (NVIL(), REBAR()):
        estimator = estimator.double()
        before = {name: each.clone() for name, each in estimator.state_dict().items()}
        with torch.no_grad():
            gradient_moments(estimator, logits, loss, 100, chunk=30)
        assert all(torch.equal(before[name], each) for name, each in estimator.state_dict().items())
        assert all(parameter.grad is None for parameter in estimator.parameters())


def test_context_reaches_every_draw():
    logits, loss = cubic()
    estimator = NVIL(5, variance_normalisation=False).double()
    moments = gradient_moments(estimator, logits, loss, 2000, context=torch.randn(2, 5, dtype=torch.float64))
    assert moments.max_z < 6


def test_bad_arguments():
    logits, loss = cubic()
    with pytest.raises(ValueError, match="at least 2 draws, not 1"):
        gradient_moments(REINFORCE(), logits, loss, 1)
    with pytest.raises(ValueError, match="chunk must be at least 1"):
        gradient_moments(REINFORCE(), logits, loss, 10, chunk=0)


def test_another_objective_is_not_compared_with_the_mean():
    logits, loss = cubic()
    assert gradient_moments(VIMCO(2), logits, loss, 10).exact is None


def test_the_enumerated_bound_is_the_mean_over_ordered_samples():
    logits, loss = cubic(latents=1, categories=3)
    states = torch.eye(3, dtype=torch.float64)[:, None, None].expand(3, 2, 1, 3)
    q, w = logits[:, 0].softmax(-1), torch.exp(-loss(states))
    ordered = itertools.product(range(3), repeat=3)
    expected = sum(q[:, i] * q[:, j] * q[:, k] * ((w[i] + w[j] + w[k]) / 3).log() for i, j, k in ordered)
    assert torch.allclose(VIMCO(3).expected(logits, loss), -expected)


# --- the command ---------------------------------------------------------------------------------------------------


def test_two_methods_with_json(tmp_path, capsys):
    assert check.main(["rloo", "st_gumbel_softmax", "--draws", "2000", "--json", str(tmp_path / "out.json")]) == 0
    report = json.loads((tmp_path / "out.json").read_text())
    rloo, gumbel = report["estimators"]
    assert report["draws"] == 2000 and [rloo["name"], gumbel["name"]] == ["RLOO", "GumbelSoftmax hard"]
    assert rloo["contract"] == {"holds": True, "sentences": []} and rloo["bias"] == []
    assert rloo["declared"]["unbiased"] and not gumbel["declared"]["unbiased"]
    assert [(p["categories"], p["layers"]) for p in rloo["problems"]] == [(2, 1), (2, 2), (4, 1), (4, 2)]
    assert all(p["max_z"] < rloo["threshold"] and p["relative_variance"] > 0 for p in rloo["problems"])
    assert [cost["evaluations"] for cost in rloo["costs"]] == [2, 2]
    assert all(cost["microseconds"] > 0 for cost in rloo["costs"] + gumbel["costs"])
    assert {(row["temperature"], row["degree"]) for row in gumbel["bias"]} == {
        (temperature, degree) for temperature in check.TEMPERATURES for degree in (1, 2, 3)
    }
    assert all(row["relative_bias"] >= 0 and row["resolution"] > 0 for row in gumbel["bias"])
    printed = capsys.readouterr()
    assert "[2/2] GumbelSoftmax hard" in printed.err
    assert all(len(line) <= 120 for line in printed.out.splitlines())
    assert "RLOO " in printed.out and "+-" in printed.out


BROKEN = """
from estimators import REINFORCE
class Claims(REINFORCE):
    def signal(self, losses, context):
        return 1.5 * losses, None
class Needs(REINFORCE):
    def __init__(self, size):
        super().__init__()
class Other:
    pass
"""


def test_a_broken_estimator_of_a_user(tmp_path, capsys, monkeypatch):
    (tmp_path / "broken_module.py").write_text(BROKEN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    assert check.main(["broken_module:Claims", "--draws", "2000", "--json", "-"]) == 1
    (result,) = json.loads(capsys.readouterr().out)["estimators"]
    sentences = "\n".join(result["contract"]["sentences"])
    assert not result["contract"]["holds"] and "is biased, but it is declared unbiased" in sentences
    assert "declared unbiased, but the mean of 2000 gradients" in sentences and "(K=4, 2 layers)" in sentences
    for name, sentence in {
        "broken_module:Needs": "cannot build broken_module:Needs without arguments: TypeError",
        "broken_module:Other": "is not an estimators.Estimator but makes a Other",
        "absent_module:Class": "cannot build absent_module:Class without arguments: ModuleNotFoundError",
    }.items():
        assert check.main([name]) == 2
        assert sentence in capsys.readouterr().err


def test_an_unknown_name_is_one_sentence(capsys):
    assert check.main(["rloo", "gumble"]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1
    assert all(method.__name__ in printed.err for method in estimators.METHODS) and "'gumble'" in printed.err
    assert check.main(["rlo"]) == 2 and "'rlo' (did you mean RLOO?)" in capsys.readouterr().err
    assert check.main(["--draws", "3"]) == 2 and "--draws must be at least 500" in capsys.readouterr().err


def test_quick_on_those_that_need_care(capsys):
    """VIMCO has another objective, RELAX a shape, NVIL a scale."""
    assert check.main(["--quick", "--draws", "500", "VIMCO", "relax", "nvil"]) == 0
    printed = capsys.readouterr().out
    assert "* VIMCO: held to the multi-sample bound" in printed and "* RELAX: built for each K, hidden=10" in printed
    assert "* NVIL: divides the gradient by a running scale" in printed
    assert next(line for line in printed.splitlines() if line.startswith("VIMCO")).split()[1] == "pass*"


def test_figures_are_reproducible_and_a_wrong_sign_is_no_scale():
    plan = check.Plan(500, (1.0,), 1e-6, warm_up=3, seconds=0.0)
    runs = []
    for _ in range(2):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            runs.append(check.certify(check.subjects(["rodeo"])[0], plan)["problems"])
    assert runs[0] == runs[1]

    class Flipped(NVIL):
        def signal(self, losses, context):
            signal, learned = super().signal(losses, context)
            return -signal, learned

    result = check.certify(check.Subject("Flipped", lambda k: Flipped()), plan)
    assert all(row["relative_bias"] > 1 and row["cosine"] < -0.8 for row in result["bias"])


class Sharp(GumbelSoftmax):
    """Soft samples at the temperature 1 / ``sharpness``; its ``beta`` is a weight, and none."""

    tempered = "sharpness"
    inverse_temperature = True

    def __init__(self, sharpness: float = 3.0, beta: float = 0.1) -> None:
        super().__init__(1 / sharpness)
        self.sharpness, self.beta = sharpness, beta


def test_a_temperature_is_what_the_class_declares_and_the_default_is_measured_with_the_others():
    plan = check.Plan(500, (0.5, 2.0), 1e-6, warm_up=1, seconds=0.0)

    def at(method, plan=plan):
        (subject, *_) = check.examples(method)
        return [(temperature, make(2)) for temperature, make in check._at_temperatures(subject, plan)]

    assert [(t, made.sharpness, made.beta) for t, made in at(Sharp)] == [
        *((1 / 3.0, 3.0, 0.1), (0.5, 2.0, 0.1), (2.0, 0.5, 0.1))
    ]
    undeclared = type("Undeclared", (Sharp,), {"tempered": None})
    ((temperature, made),) = at(undeclared)
    assert temperature is None and made.sharpness == 3.0
    assert [t for t, _ in at(estimators.OverlappingExponential)] == [1 / 8.0, 0.5, 2.0]
    assert [t for t, _ in at(estimators.ReinMax)] == [1.0, 2.0]  # which refuses what is below 1
    wrong = type("Wrong", (Sharp,), {"tempered": "temperature", "__init__": lambda self: Sharp.__init__(self)})
    with pytest.raises(estimators.ContractError, match="declares tempered = 'temperature', which is not an argument"):
        estimators.check_estimator(wrong(), draws=500)


def test_biased_methods_with_a_temperature_declare_it():
    for method in estimators.METHODS:
        arguments = set(inspect.signature(method).parameters)
        if not method.unbiased and arguments & {"temperature", "backward_temperature", "beta"}:
            assert method.tempered in arguments, method


def test_every_method_and_every_option_has_a_name():
    names = [subject.name for subject in check.subjects([])]
    assert {name.split()[0] for name in names} == {method.__name__ for method in estimators.METHODS}
    options = {path.stem for path in (ROOT / "conf" / "estimator").glob("*.yaml")}
    assert len(check.subjects(sorted(options))) == len(options)
    assert {option for method in estimators.METHODS for option in table.options(method)} == options


# --- the document --------------------------------------------------------------------------------------------------


def test_the_generated_blocks_of_the_docs_are_up_to_date():
    """Every number on the page is that of the committed certificate, of which one call makes all blocks."""
    document = (ROOT / "docs" / "estimators.md").read_text()
    report = json.loads((ROOT / "docs" / "results" / "certificates" / "certificates.json").read_text())
    assert table.rewritten(document, report) == document, "run: make certificates"
    assert "| - |" not in "".join(row.split("|")[3] for row in table.markdown().splitlines())
    assert {method.family for method in estimators.METHODS} == set(FAMILIES)
    certified = {result["name"].split()[0] for result in report["estimators"]}
    assert certified == {method.__name__ for method in estimators.METHODS}, "run: make certificates"


def test_figures_for_a_choice():
    """Variance times evaluations, best first; what has no comparable figure is not in the table."""

    def result(name, variance, evaluations, unbiased=True, **declared):
        problems = [
            {"categories": k, "layers": 1, "relative_variance": value, "relative_bias": 0.25}
            for k, value in variance.items()
        ]
        costs = [{"categories": k, "evaluations": evaluations} for k in variance]
        declared = {"objective": "mean", "rescales": False, "needs_gradient": False, "unbiased": unbiased, **declared}
        return {"name": name, "declared": declared, "problems": problems, "costs": costs}

    results = [
        result("Two", {2: 1.5, 4: 4.0}, 2, needs_gradient=True),
        result("One", {2: 2.0}, 1),
        result("Soft", {2: 0.5, 4: 0.5}, 1, unbiased=False),
        result("Bound", {2: 1.0, 4: 1.0}, 5, objective="multi_sample_bound"),
        result("Scaled", {2: 1.0, 4: 1.0}, 1, unbiased=False, rescales=True),
        result("Exact", {2: 0.0, 4: 0.0}, 16),
    ]
    unbiased, biased = table.choice({"estimators": results}).split("\n\n")
    assert unbiased.splitlines()[2:] == [
        "| `One` | 2 / - | 1 / - | 2 / - | no |",
        "| `Two` | 1.5 / 4 | 2 | 3 / 8 | yes |",
    ]
    assert biased.splitlines()[2:] == ["| `Soft` | 0.5 | 0.25 | no |"]
