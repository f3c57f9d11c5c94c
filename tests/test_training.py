"""The loop: packs, seeds, resuming, optimisers, schedules, gradient variance, divergence."""

import json
import math
import subprocess
import sys

import configs
import pytest
import torch
import yaml

from analysis import records
from training.config.identity import run_name
from training.config.plan import RunPlan, replicated
from training.errors import UserError
from training.pack.build import build
from training.pack.pack import Pack
from training.pack.run import train_runs
from training.progress import PackLine
from training.replicas import schedules
from training.replicas.streams import Streams

CPU = torch.device("cpu")
FAST = ["steps=40", "evaluate_every=20", "test_samples=3", "valid_samples=2", "progress=false", "task.latents=6"]


def config(*overrides, **settings):
    """A composed config as the loop sees it."""
    return configs.config(*FAST, *overrides) | settings


def rows(path):
    return records.read_metrics(path / records.METRICS)


def run_paths(runs_dir, sweep="main"):
    return sorted(path for path in (runs_dir / sweep).iterdir() if path.is_dir())


def train(tmp_path, *overrides, **settings):
    runs = list(replicated(config(*overrides, **settings, runs_dir=str(tmp_path)), overrides))
    train_all(runs)
    return [run.path for run in runs]


def train_all(runs):
    train_runs(runs, PackLine(False), solo=True)


def drop_times(row):
    return {key: value for key, value in row.items() if key != "seconds"}


ESTIMATORS = ["gumbel_softmax", "st_gumbel_softmax", "straight_through", "nvil", "reinforce"]


@pytest.mark.parametrize("task", ["vae_bernoulli", "vae_categorical"])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_run_alone_and_in_a_pack_of_eight(estimator, task):
    """Losses of 50 steps, two epochs, agree to 1e-4 relative, whatever is trained beside the run."""
    job = config(f"estimator={estimator}", f"task={task}", "task.latents=20", "batch_size=50")
    together = build([{**job, "seed": seed} for seed in range(8)], CPU)
    alone = build([{**job, "seed": 5}], CPU)
    for _ in range(50):
        ours, all_losses = alone.train_step(), together.train_step()
        assert torch.allclose(ours[0], all_losses[5], rtol=1e-4)
    assert torch.allclose(alone.tensors.variance.value()[0], together.tensors.variance.value()[5], rtol=1e-3)
    for split in ("valid", "test"):
        expected = together.task.evaluate(split, 3)
        for name, value in alone.task.evaluate(split, 3).items():
            assert torch.allclose(value[0], expected[name][5], rtol=1e-4)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_two_runs_of_one_config_are_bit_identical(tmp_path, estimator):
    first = train(tmp_path / "a", f"estimator={estimator}")[0]
    second = train(tmp_path / "b", f"estimator={estimator}")[0]
    assert list(map(drop_times, rows(first))) == list(map(drop_times, rows(second)))
    assert first.name == second.name


def test_replicas_of_different_settings_train_as_alone():
    """Learning rate, temperature and schedule per replica: each replica equals its solo run."""
    job = config("estimator=gumbel_softmax", "schedule=exponential", "schedule.every=5", "schedule.rate=0.01")
    variants = []
    for seed, (lr, temperature, rate) in enumerate([(1e-3, 1.0, 0.01), (1e-3, 0.7, 0.02), (1e-2, 1.0, 0.0)]):
        variant = json.loads(json.dumps(job)) | {"seed": seed}
        variant["optimizer"]["lr"], variant["estimator"]["temperature"] = lr, temperature
        variant["schedule"]["rate"] = rate
        variants.append(variant)
    together = build(variants, CPU)
    solos = [build([variant], CPU) for variant in variants]
    for _ in range(30):
        losses = together.train_step()
        for r, solo in enumerate(solos):
            assert torch.allclose(solo.train_step()[0], losses[r], rtol=1e-4)
    temperatures = together.estimator.temperature.flatten()
    expected = [max(0.5, start * math.exp(-rate * 25)) for start, rate in ((1.0, 0.01), (0.7, 0.02), (1.0, 0.0))]
    assert temperatures.tolist() == pytest.approx(expected)


def test_a_gap_is_a_number_per_replica_or_a_word():
    """``estimator.gap`` takes 1.0, 1 and p; replicas with numbers of their own train as each alone."""
    gaps = [config("estimator=gapped_straight_through", f"estimator.gap={gap}") for gap in ("0.5", "2", "p")]
    assert [job["estimator"]["gap"] for job in gaps] == [0.5, 2, "p"]
    together = build(gaps[:2], CPU)
    assert together.estimator.gap.flatten().tolist() == [0.5, 2.0] and build(gaps[2:], CPU).estimator.gap == "p"
    solos = [build([job], CPU) for job in gaps]
    for _ in range(3):
        numbers = together.train_step()
        losses = [solo.train_step()[0] for solo in solos]
        assert torch.allclose(torch.stack(losses[:2]), numbers, rtol=1e-4)
    weights = [solo.parameters[0][0] for solo in solos]
    assert all(bool((weights[i] != weights[i - 1]).any()) for i in range(3))


def test_one_pack_is_a_plain_torch_loop():
    """A hand-written loop (torch modules, torch.optim.Adam, the same noise) gives the same losses."""
    job = config(
        "estimator=gumbel_softmax", "estimator.temperature=0.6", "optimizer.lr=1e-2", "data.binarization=static"
    )
    pack, streams = build([job], CPU), Streams([job["seed"]])
    encoder, decoder = torch.nn.Linear(64, 6), torch.nn.Linear(6, 64)
    with torch.no_grad():
        for layer, stacked in ((encoder, pack.task.encoders[0]), (decoder, pack.task.decoders[0])):
            layer.weight.copy_(stacked.weights[0][0].T)
            layer.bias.copy_(stacked.biases[0][0, 0])
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=1e-2)
    order, noise = streams.permutations("order/0", len(pack.data.train))[0], streams.source("estimator")
    for step in range(10):
        x = pack.data.train.pixels[order[step * 100 : (step + 1) * 100]].float()
        odds = encoder(x)
        u = noise((1, 100, 6), torch.float32, CPU, 1)[0]
        y = ((odds + u.log() - torch.log1p(-u)) / 0.6).sigmoid()
        nats = torch.nn.functional.binary_cross_entropy_with_logits(decoder(y), x, reduction="none").sum(-1)
        q = torch.distributions.Bernoulli(logits=odds)
        kl = torch.distributions.kl_divergence(q, torch.distributions.Bernoulli(torch.full_like(odds, 0.5))).sum(-1)
        loss = (nats + kl).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert pack.train_step().item() == pytest.approx(loss.item(), rel=1e-5)


@pytest.mark.parametrize("estimator", ["nvil", "gumbel_softmax"])
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_interrupted_and_resumed_is_never_interrupted(tmp_path, monkeypatch, estimator, optimizer):
    """Bit for bit, with a checkpoint between two evaluations, schedules and dynamic binarisation on."""
    overrides = [f"estimator={estimator}", f"optimizer={optimizer}", "optimizer.lr=1e-3", "replicas=2"]
    if estimator == "gumbel_softmax":
        overrides += ["schedule=exponential", "schedule.every=7", "schedule.rate=0.02"]
    whole = train(tmp_path / "whole", *overrides)
    stop_at = 27

    class Killed(BaseException):
        pass

    original = Pack.train_step

    def killed(self):
        if self.step == stop_at:
            raise Killed
        return original(self)

    monkeypatch.setattr(Pack, "train_step", killed)
    with pytest.raises(Killed):
        train(tmp_path / "resumed", *overrides, checkpoint_seconds=0.0)
    assert not any(records.RunRecord(path).is_finished() for path in run_paths(tmp_path / "resumed"))
    assert [row["step"] for row in rows(run_paths(tmp_path / "resumed")[0])] == [20]
    monkeypatch.setattr(Pack, "train_step", original)
    resumed = train(tmp_path / "resumed", *overrides)
    for a, b in zip(whole, resumed, strict=True):
        assert list(map(drop_times, rows(a))) == list(map(drop_times, rows(b)))


def test_killed_between_the_last_checkpoint_and_the_result(tmp_path, monkeypatch):
    whole = train(tmp_path / "whole")[0]

    class Killed(BaseException):
        pass

    def killed(self, result):
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(records.RunRecord, "finish", killed)
        train(tmp_path / "killed")
    resumed = train(tmp_path / "killed")[0]
    assert list(map(drop_times, rows(resumed))) == list(map(drop_times, rows(whole)))
    results = [json.loads((path / records.RESULT).read_text()) for path in (whole, resumed)]
    assert drop_times(results[0]["metrics"]) == drop_times(results[1]["metrics"])


def test_finished_runs_are_skipped_and_a_sweep_can_be_extended(tmp_path, capsys):
    train(tmp_path, "replicas=2")
    before = {path: (path / records.RESULT).stat().st_mtime_ns for path in run_paths(tmp_path)}
    train(tmp_path, "replicas=3")
    assert capsys.readouterr().out.count("finished already") == 2
    assert len(run_paths(tmp_path)) == 3
    assert all((path / records.RESULT).stat().st_mtime_ns == time for path, time in before.items())


def test_a_run_that_another_process_trains_is_left_alone(tmp_path, capsys):
    job = config(runs_dir=str(tmp_path))
    (run,) = replicated(job)
    record = run.record
    assert record.claim.take()
    train_all([run])
    assert "being trained by another process" in capsys.readouterr().out and not record.is_finished()


def test_the_record_of_a_run(tmp_path):
    path = train(tmp_path, "estimator=nvil", "seed=3", "optimizer.lr=2e-3")[0]
    result = json.loads((path / records.RESULT).read_text())
    assert result["status"] == "finished" and result["step"] == 40 and result["loss_evaluations"] == 40
    assert {"data", "binarization", "prior", "test_samples", "evaluation_is_bound"} <= result["protocol"].keys()
    assert result["objective"] == {"kl": "sampled", "samples": "hard", "is_bound": True}
    assert {"python", "torch"} <= result["versions"].keys() and result["wall_seconds"] > 0
    saved = yaml.safe_load((path / records.CONFIG).read_text())
    assert saved["seed"] == 3 and saved["replicas"] == 1 and saved["optimizer"]["lr"] == 2e-3
    frame = records.load(tmp_path)
    assert frame["step"].tolist() == [20, 40] and set(frame["status"]) == {"finished"}
    assert frame["estimator"].iloc[0] == "nvil" and frame["optimizer.lr"].iloc[0] == 2e-3
    last = frame.iloc[-1]
    assert last["test_bound"] >= last["test_elbo"] - 0.5 and last["gradient_variance"] > 0
    assert {"originals", "reconstructions", "samples"} == set(__import__("numpy").load(path / records.IMAGES))


@pytest.mark.parametrize("estimator", ["gumbel_softmax", "spike_and_exponential", "overlapping_exponential"])
def test_a_soft_objective_is_not_called_a_bound(tmp_path, estimator):
    path = train(tmp_path, f"estimator={estimator}")[0]
    objective = json.loads((path / records.RESULT).read_text())["objective"]
    assert objective == {"kl": "analytic", "samples": "relaxed", "is_bound": False}


def test_a_diverged_replica_does_not_touch_its_neighbours(tmp_path, monkeypatch):
    """One learning rate explodes: its run is marked with its step, the others equal those of a healthy pack bitwise."""
    job = config("estimator=gumbel_softmax", runs_dir=str(tmp_path))

    def variants(lr):
        runs = [json.loads(json.dumps(job)) | {"seed": seed} for seed in range(3)]
        runs[1]["optimizer"]["lr"] = lr
        return runs

    train_all([RunPlan(run) for run in variants(1e38)])
    train_all([RunPlan(run) for run in variants(1e-3)])
    by_name = {path.name: path for path in run_paths(tmp_path)}
    sick, healthy = (by_name[run_name(variants(lr)[1])] for lr in (1e38, 1e-3))
    result = json.loads((sick / records.RESULT).read_text())
    assert result["status"] == "diverged" and 1 <= result["diverged_at"] <= 40
    assert json.loads((healthy / records.RESULT).read_text())["status"] == "finished"
    pack = [build(variants(lr), CPU) for lr in (1e38, 1e-3)]
    for _ in range(20):
        a, b = (p.train_step() for p in pack)
        assert torch.equal(a[[0, 2]], b[[0, 2]])


def test_an_exception_is_a_failed_run_with_its_reason(tmp_path, monkeypatch):
    def broken(self, split, samples):
        raise RuntimeError("out of luck")

    monkeypatch.setattr("tasks.vae.VAE.evaluate", broken)
    with pytest.raises(RuntimeError, match="out of luck"):
        train(tmp_path)
    frame = records.load(tmp_path)
    assert frame["status"].tolist() == ["failed"] and "out of luck" in frame["error"].iloc[0]
    assert not run_paths(tmp_path)[0].joinpath("claim").exists()


@pytest.mark.parametrize(("rate", "floor"), [(1e-5, 69_315), (1e-4, 6_932)])
def test_the_papers_temperature_schedule(rate, floor):
    """max(0.5, exp(-r t)) refreshed every N steps; the floor is reached at step 69,315 (r = 1e-5) or 6,932 (1e-4)."""
    schedule = {"name": "exponential", "rate": rate, "minimum": 0.5, "every": 1}
    runs = [{"schedule": each, "estimator": {"temperature": 1.0}} for each in (schedule, schedule | {"every": 500})]
    annealing = schedules.Annealing(runs, CPU)
    fine, coarse = (annealing.at(torch.tensor(step)) for step in (floor - 2, floor))
    assert fine[0] > 0.5 == coarse[0]
    assert annealing.at(torch.tensor(1499))[1].item() == pytest.approx(math.exp(-rate * 1000), rel=1e-15)


def test_only_the_named_estimators_are_annealed():
    job = config("estimator=nvil", "schedule=exponential", "schedule.only=[gumbel_softmax]")
    build([job], CPU).train_step()
    for only, anneals in (("gumbel_softmax", True), ("gumbel_softmax on vae_bernoulli", True), ("nvil on toy", False)):
        job = config("schedule=exponential", f"schedule.only=[{only}]")
        assert (job["estimator"]["name"], job["task"]["name"]) == ("gumbel_softmax", "vae_bernoulli")
        assert schedules.anneals(job) is anneals
    job = config("estimator=straight_through", "schedule=exponential", "schedule.rate=1", "schedule.every=1")
    pack = build([job], CPU)
    pack.train_step()
    pack.train_step()
    assert pack.estimator.temperature.item() == pytest.approx(0.5)


def test_a_temperature_that_is_learned_is_not_annealed():
    """By a schedule it would change nothing, which is said; fixed, it is annealed."""
    job = config(
        "estimator=rebar", "schedule=exponential", "schedule.rate=9", "schedule.every=1", "schedule.minimum=0.2"
    )
    with pytest.raises(
        UserError, match="estimator=rebar is learned, so nothing would change; use estimator.learn=false"
    ):
        build([job], CPU)
    job["estimator"]["learn"] = False
    pack = build([job], CPU)
    pack.train_step()
    pack.train_step()
    assert pack.estimator.temperature.item() == pytest.approx(0.2)


def test_an_unreadable_or_malicious_checkpoint_starts_the_run_again(tmp_path, monkeypatch, capsys):
    import pickle

    class Malicious:
        def __reduce__(self):
            return (open, (str(tmp_path / "owned"), "w"))

    expected = [drop_times(row) for row in rows(train(tmp_path / "a")[0])]
    for number, content in enumerate((b"", b"garbage", pickle.dumps(Malicious()))):
        job = config(runs_dir=str(tmp_path / f"b{number}"))
        (run,) = replicated(job)
        path = run.path
        path.mkdir(parents=True)
        (path / records.CHECKPOINT).write_bytes(content)
        train_all([run])
        assert "not a readable checkpoint" in capsys.readouterr().err
        assert [drop_times(row) for row in rows(path)] == expected
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["steps=0"], "steps must be at least 1"),
        (["batch_size=5000"], "batch_size=5000 is larger than the 1197 training images of data=digits"),
        (["optimizer.lr=0"], "optimizer.lr must be positive"),
        (["optimizer=sgd", "optimizer.momentum=1"], r"optimizer.momentum must be in \[0, 1\)"),
        (["estimator.temperature=0"], "estimator.temperature must be positive and finite, not 0.0"),
        (["estimator.temperature=-1"], "temperature must be positive"),
        (["estimator=gapped_straight_through", "estimator.gap=q"], "gap must be positive and finite or 'p'"),
        (["task.categories=1"], "task.categories must be at least 2"),
        (["estimator=nvil", "schedule=exponential"], "anneals a temperature, but estimator=nvil has none"),
        (["data.binarization=sometimes"], "binarization"),
        (["data.name=cifar"], "cifar"),
        (["data=mnist", "data.root=/nonexistent", "data.download=false"], "/nonexistent"),
        (["device=cuda:7"], "CUDA devices are visible"),
        (["device=abacus"], "device must be"),
        (["logger=wandb", "logger.mode=sometimes"], "logger.mode must be offline or online"),
        (["logger=wandb", "logger.mode=online"], "needs a key: set WANDB_API_KEY"),
        (["replicas=0"], "replicas must be from 1 to 100000, not 0"),
        (["seed=-1"], "seed must be at least 0, not -1"),
    ],
)
def test_a_users_mistake_is_one_sentence_and_leaves_nothing(tmp_path, monkeypatch, overrides, sentence):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UserError, match=sentence) as caught:
        train(tmp_path, *overrides)
    assert "\n" not in str(caught.value)
    assert not any(path.is_file() for path in tmp_path.rglob("*"))
    with pytest.raises(FileNotFoundError):
        records.load(tmp_path)


def test_wandb_offline_keeps_one_run_per_run_beside_the_local_record(tmp_path):
    """Read back with wandb's own reader of its offline format."""
    paths = train(tmp_path, "estimator=nvil", "logger=wandb", "replicas=2", "sweep=grid")
    assert all(records.RunRecord(path).is_finished() for path in paths)
    for path in paths:
        (folder,) = (path / "wandb").glob("offline-run-*")
        command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(folder)]
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
        entries = [json.loads(line) for line in lines]
        (run,) = (entry["run"] for entry in entries if entry["type"] == "run")
        assert run["display_name"] == path.name and run["run_group"] == "grid"
        assert sum(entry["type"] == "history" for entry in entries) == len(rows(path))
