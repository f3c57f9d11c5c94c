"""A basket of estimators along a run: closed forms on a toy, repeatability, records."""

import math

import pytest
import torch
from test_basket import config, nodes, trained
from test_training import train

from analysis import records
from estimators import moments
from estimators.exact import enumerate_states
from training import interrupt
from training.config import validity
from training.config.identity import run_name
from training.errors import UserError
from training.gradients import basket, point
from training.gradients import watcher as along
from training.interrupt import Stopped
from training.pack.build import build

CPU = torch.device("cpu")
TARGET = 0.3
TINY = ["task.latents=3", "estimator=rloo", "basket=default", "basket.draws=12", "basket.warm_up=2", "basket.points=3"]
TINY += ["basket.examples=10", "basket.rounds=2", "basket.reference_draws=6", "steps=20", "evaluate_every=10"]
FEW = [f"~basket.estimators.{name}" for name in ("relax", "muprop", "carms", "arm", "gumbel_rao", "darn", "double_cv")]


# --- closed forms ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bit():
    """One bit with E[(b - t)^2] at p = 0.8 and a batch of one: the gradient is that in the log-odds."""
    pack = build([config("task=toy", "data=none", "batch_size=1", f"task.target={TARGET}")], CPU)
    with torch.no_grad():
        pack.task.outputs.fill_(math.log(0.8 / 0.2))
    return point.Point(pack)


def closed_forms():
    """Mean and variance at p = 0.8, f(b) = (b - t)^2, D = f(1) - f(0), v = p (1 - p), m = 0.8."""
    p, f0, f1 = 0.8, TARGET**2, (1 - TARGET) ** 2
    d, v, m = f1 - f0, p * (1 - p), 0.8
    exact = d * v
    return {
        "reinforce": (exact, v * ((1 - p) * f1**2 + p * f0**2) - exact**2),
        "rloo": (exact, d**2 * v * (0.5 - v)),
        "arm": (exact, d**2 * (1 / 12 - 2 / 3 * (m - 0.5) ** 3 - v**2)),
        "disarm": (exact, d**2 * m**2 * (1 - m) * (m - 0.5)),
        # f'(b) v with b a sample: its mean is 2 (p - t) v, where the exact gradient is (1 - 2 t) v
        "straight_through": (2 * (p - TARGET) * v, 4 * v**2 * v),
    }


def test_variance_and_bias_are_those_of_closed_forms(bit):
    """Variances within 6 standard errors of 20 blocks (false alarms below 1e-5 each), biases within 3 of theirs."""
    forms = closed_forms()
    (exact, _), estimators = forms["reinforce"], nodes(*forms)
    kind, reference = point.reference_gradient(bit, nodes("indecater"), draws=4, warm_up=0, max_states=2)
    assert kind == "exact" and reference.mean[0].item() == pytest.approx(exact, rel=1e-5)
    results = {result.measured: result for result in basket.measure(bit, estimators, draws=20000, reference=reference)}
    for name, (mean, variance) in forms.items():
        found, bias = results[name].figures, (mean - exact) ** 2 / exact**2
        assert abs(found.variance - variance) < 6 * found.variance_error < 0.2 * variance, name
        assert abs(found.bias_square - bias) < 3 * found.bias_square_error < 0.2, name
        assert found.relative_variance == pytest.approx(variance / exact**2, rel=0.1)
        assert found.signal_to_noise == pytest.approx(abs(mean) / variance**0.5, rel=0.1), name
        assert found.cosine == pytest.approx(1, abs=0.01)
    low, high = results["straight_through"].figures.bias_interval
    assert 0 < low < 2 * (0.8 - TARGET) / (1 - 2 * TARGET) - 1 < high
    assert all(results[name].figures.bias_interval[0] == 0 for name in forms if name != "straight_through")


def test_the_reference_is_enumeration():
    """Three latents of four categories, in parts of the batch: the gradient of sum_z q(z) loss(z), written out."""
    pack = trained(20, "task=vae_categorical", "task.latents=3", "task.categories=4", "estimator=rloo", "batch_size=30")
    here = point.Point(pack)
    kind, reference = point.reference_gradient(here, {}, draws=4, warm_up=0, max_states=64)
    x = here.batch[None]
    outputs = pack.task.encoders[0](x)
    states = enumerate_states(3, 4, like=x)[:, None, None].expand(-1, 1, 30, -1, -1)
    log_q = (states * pack.task.latents.logits(outputs).log_softmax(-1)).sum((-2, -1))
    nats = (
        pack.task.likelihood.nats(pack.task.decoders[0](pack.task.latents.features(states)), x)
        + log_q
        + 3 * math.log(4)
    )
    gradients = torch.autograd.grad((log_q.exp() * nats).sum(0).mean(), pack.task.encoder_parameters())
    expected = torch.cat([gradient.flatten() for gradient in gradients]).double()
    assert kind == "exact" and (reference.mean[0] - expected).norm() < 1e-5 * expected.norm()
    assert reference.mean[1] == 0 and reference.draws == 1


def test_unbiased_ones_agree_with_a_sampled_reference():
    """The reference of 64 states as if they were too many: bias cannot be told from 0, that of a biased one can."""
    here = point.Point(trained(100, "estimator=rloo", "task.latents=6", "batch_size=30"))
    kind, reference = point.reference_gradient(
        here, nodes("indecater")["indecater"], draws=200, warm_up=0, max_states=8
    )
    exact = point.reference_gradient(here, {}, draws=4, warm_up=0, max_states=64)[1]
    assert kind == "indecater"
    value, error = moments.relative_bias(reference, exact)
    assert value < 2 * error < 0.1
    estimators = nodes("rloo", "disarm", "muprop", "straight_through", "gumbel_softmax")
    for result in basket.measure(here, estimators, draws=400, warm_up=20, reference=reference):
        assert (result.figures.bias_interval[0] == 0) == result.unbiased, result


# --- moments ---------------------------------------------------------------------------------------------------------


def test_moments_by_hand():
    """Blocks {1, 3, 5} and {2, 6, 10} of one parameter, in chunks of different sizes."""
    chunked = [[torch.tensor([[1.0], [3.0], [5.0]])], [torch.tensor([[2.0], [6.0], [10.0]])]]
    found = moments.collect(chunked)
    assert (found.draws, found.means.flatten().tolist(), found.traces.tolist()) == (6, [3, 6], [4, 16])
    assert found.variance() == pytest.approx((10, 6)) and found.mean[1] == pytest.approx(10 / 6)
    assert moments.square(found.mean) == pytest.approx(4.5**2 - 10 / 6)
    without = [(mean.item(), noise) for mean, noise in found.without_each()]
    assert without == [(6, pytest.approx(16 / 3)), (3, pytest.approx(4 / 3))]
    reference = moments.known(torch.tensor([-2.0]))
    value, error = moments.with_error(moments.bias_square, found, reference)
    first, second = (8**2 - 16 / 3) / 4, (5**2 - 4 / 3) / 4
    assert value == pytest.approx((6.5**2 - 10 / 6) / 4) and error == pytest.approx(abs(first - second) / 2)


def test_an_interval_of_a_bias_holds_the_truth():
    """300 experiments of 200 draws in 5 dimensions, with noise in the reference. Beyond bounds of 5 % below and 10 %
    above are 30 and 50 by chance with a probability below 1e-3."""
    generator = torch.Generator().manual_seed(0)
    spread = torch.linspace(1, 0.2, 5).double()
    truth = torch.full((5,), 0.2**0.5).double()
    for bias in (0.0, 0.5):
        shift, below, above = torch.tensor([bias, 0, 0, 0, 0]).double(), 0, 0
        for _ in range(300):
            noise = torch.randn(2, 20, 10, 5, generator=generator, dtype=torch.float64) * spread
            found = moments.collect([[block] for block in truth + shift + noise[0]])
            reference = moments.collect([[block] for block in truth + 0.3 * noise[1]])
            value, error = moments.relative_bias(found, reference)
            below += value - 2 * error > bias**2
            above += value + 2 * error < bias**2
        assert below <= 30 and above <= 50, (bias, below, above)


# --- along a run -----------------------------------------------------------------------------------------------------


def repeatable(path):
    rows = records.RunRecord(path).basket()
    return [{key: value for key, value in row.items() if not key.startswith("seconds")} for row in rows]


def run(tmp_path, *overrides):
    return train(tmp_path, *TINY, *FEW, *overrides)[0]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return run(tmp_path_factory.mktemp("whole"))


def test_rows_are_loaded(whole):
    frame = records.load_basket(whole.parent)
    assert sorted(frame["step"].unique()) == sorted(along.steps(20, 3)) == [1, 4, 20]
    assert len(frame) == 3 * 12 and set(frame["estimator"]) == {"rloo"} and set(frame["reference"]) == {"exact"}
    assert set(frame["measured"]) == set(frame["method"]) >= {"nvil", "rebar", "gumbel_softmax", "reinforce"}
    assert (frame["parameters"] == 64 * 3 + 3).all() and (frame["examples"] == 10).all()
    assert ((frame["seconds_low"] <= frame["seconds"]) & (frame["seconds"] <= frame["seconds_high"])).all()
    assert (frame["draws"] == 12).all() and (frame["variance"] > 0).all()


def test_two_runs_are_bit_identical_and_training_does_not_notice(whole, tmp_path):
    again = run(tmp_path / "again")
    assert repeatable(again) == repeatable(whole) and again.name == whole.name
    alone = train(tmp_path / "alone", *(option for option in TINY if not option.startswith("basket")))[0]
    kept = [{**row, "seconds": 0} for row in records.read_metrics(alone / records.METRICS)]
    assert kept == [{**row, "seconds": 0} for row in records.read_metrics(whole / records.METRICS)]
    assert alone.name == whole.name


@pytest.mark.parametrize("after", [1, 17, 36])
def test_interrupted_and_resumed_is_never_interrupted(whole, tmp_path, monkeypatch, after):
    """A stop is asked for after so many rows: in the first point, in the second, and after the last row."""
    append = records.RunRecord.append

    def counted(self, row, file=records.METRICS):
        append(self, row, file)
        if file == records.BASKET and len(self.basket()) == after:
            interrupt.ask()

    with monkeypatch.context() as patch:
        patch.setattr(records.RunRecord, "append", counted)
        with pytest.raises(Stopped):
            run(tmp_path)
    interrupt._asked.clear()
    path = tmp_path / "main" / whole.name
    assert len(repeatable(path)) == after and not records.RunRecord(path).is_finished()
    run(tmp_path)
    assert repeatable(path) == repeatable(whole) and records.RunRecord(path).is_finished()


def test_killed_in_the_middle_of_a_row(whole, tmp_path, monkeypatch):
    """What a SIGKILL leaves: the checkpoint of the second point, half of its rows and a torn one."""
    append = records.RunRecord.append

    def killed(self, row, file=records.METRICS):
        append(self, row, file)
        if len(self.basket()) == 15:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(records.RunRecord, "append", killed)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path)
    path = tmp_path / "main" / whole.name
    with open(path / records.BASKET, "a") as file:
        file.write('{"step": 4, "measur')
    run(tmp_path)
    assert "goes on at step 4" in (path / records.LOG).read_text()
    assert repeatable(path) == repeatable(whole)


def test_rows_that_are_gone_are_noticed(tmp_path):
    path = run(tmp_path)
    lines = (path / records.BASKET).read_text().splitlines(keepends=True)
    (path / records.BASKET).write_text("".join(lines[5:]))
    with pytest.raises(records.DamagedRecord, match="basket.jsonl"):
        records.RunRecord(path).outcome()
    (path / records.BASKET).unlink()
    assert not records.RunRecord(path).is_finished()
    run(tmp_path)
    assert "starts again" not in (path / records.LOG).read_text() and len(repeatable(path)) == 36


def test_what_does_not_fit_is_left_out(tmp_path):
    path = run(tmp_path, "task=vae_categorical", "task.categories=3", "steps=2")
    assert "disarm" not in {row["measured"] for row in repeatable(path)}
    assert "basket: disarm is defined for Bernoulli latents" in (path / records.LOG).read_text()


def test_a_basket_changes_no_name():
    assert run_name(config()) == run_name(config("basket=default"))


def test_variants_and_mistakes():
    job = config("basket=default", "+estimator@basket.estimators.rloo_8=rloo", "basket.estimators.rloo_8.num_samples=8")
    assert job["basket"]["estimators"]["rloo_8"]["num_samples"] == 8
    with pytest.raises(UserError, match="basket.draws must be at least 4, not 3"):
        validity.check(config("basket=default", "basket.draws=3"))
    with pytest.raises(UserError, match="examples=2000 is larger than the 1197 training images"):
        point.Point(build([config()], CPU), examples=2000)


def test_a_replica_has_the_rows_that_it_has_alone(whole, tmp_path):
    """In a pack the model is the same up to rounding, and so are the variances."""
    first, second = train(tmp_path, *TINY, *FEW, "replicas=2")
    assert first.name == whole.name
    for mine, theirs in zip(repeatable(first), repeatable(whole), strict=True):
        assert mine["measured"] == theirs["measured"]
        assert mine["variance"] == pytest.approx(theirs["variance"], rel=0.01)
    assert [row["variance"] for row in repeatable(second)] != [row["variance"] for row in repeatable(first)]
