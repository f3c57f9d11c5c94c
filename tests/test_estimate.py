"""What a dry run says that packs will take: from trials, with how sure it is, and with their baskets."""

import copy

import pytest
import torch
from test_training import config

from training.config.plan import RunPlan
from training.sweep import estimate
from training.sweep.estimate import Cost

CPU = torch.device("cpu")


def named(name):
    return config(f"estimator={name}")["estimator"]


def test_a_basket_takes_its_draws_what_is_learned_and_its_rounds_at_every_point(monkeypatch):
    """With steps of a second: 3 points, 10 + 6 + 10 draws, 5 steps of warm-up of NVIL alone, 2 rounds."""
    job = copy.deepcopy(config("basket=default", "task.latents=3", "steps=20"))
    job["basket"] |= {
        "estimators": {"nvil": named("nvil"), "reinforce": named("reinforce")},
        "reference": named("rloo"),
    }
    job["basket"] |= {"points": 3, "draws": 10, "reference_draws": 6, "warm_up": 5, "rounds": 2, "examples": 10}
    monkeypatch.setattr(estimate, "_trials", lambda pack: [float(pack.replicas)] * 3)
    assert estimate._basket(job, CPU, deadline=1e18) == pytest.approx(3 * (10 + 10 + 6 + 5 + 3 * 2))
    job["basket"]["estimators"]["vimco"] = named("vimco")
    job["task"] = {**job["task"], "layers": 2}  # in which VIMCO does not nest
    assert estimate._basket(job, CPU, deadline=1e18) == pytest.approx(3 * (10 + 10 + 6 + 5 + 3 * 2))
    without = config("task.latents=3")
    assert estimate._basket(without, CPU, deadline=1e18) == 0


def test_every_kind_of_pack_is_tried_while_there_is_time_and_the_range_is_that_of_its_steps(monkeypatch):
    packs = [(RunPlan(config(f"task.latents={latents}", "steps=10")),) for latents in (3, 4, 5)]
    tried = []

    def cost(config, replicas, deadline):
        tried.append(config["task"]["latents"])
        return Cost((1.0, 2.0, 4.0), last=3.0, basket=60.0, constant=2.0**20, per_replica=2.0**20)

    monkeypatch.setattr(estimate, "_cost", cost)
    lines = estimate.lines(packs, workers=2)
    assert sorted(tried) == [3, 4, 5]
    assert lines[0].endswith("x 1: about 1:23 (1:13 to 1:43), 1:00 of it for its basket, 2 MiB")
    assert lines[-1].startswith("about 2:46 (2:26 to 3:26) with 2 workers; 3 of 3 kinds of packs were tried")
    monkeypatch.setattr(estimate, "BUDGET_SECONDS", 1e-9)
    monkeypatch.setattr(estimate.time, "monotonic", iter(range(99)).__next__)
    assert estimate.lines(packs, workers=2) == []
    monkeypatch.setattr(estimate, "BUDGET_SECONDS", 1.5)
    lines = estimate.lines(packs, workers=2)
    assert sum("perhaps" in line for line in lines) == 2 and "1 of 3 kinds of packs were tried" in lines[-1]


def test_a_trial_is_bounded(monkeypatch):
    """By its time and its number of rounds."""
    now = 0.0

    def step(seconds):
        def action():
            nonlocal now
            now += seconds

        return action

    monkeypatch.setattr(estimate.time, "perf_counter", lambda: now)
    assert len(estimate._timed(step(0.001), CPU, 6)) == 6
    assert len(estimate._timed(step(0.3), CPU, 6)) == 2
    assert estimate._timed(step(9.0), CPU, 1) == [9.0]
