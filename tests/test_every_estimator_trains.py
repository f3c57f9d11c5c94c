"""Every estimator of ``conf/estimator`` in the harness, on both tasks: trains, with the same numbers in any pack."""

import json
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

import estimators
from training.config import schema
from training.errors import UserError
from training.pack.build import build
from training.pack.evaluation import evaluate_last, summary

NAMES = sorted(path.stem for path in (Path(__file__).parents[1] / "conf" / "estimator").glob("*.yaml"))
TASKS = {
    "vae_bernoulli": ["task=vae_bernoulli", "task.latents=5"],
    "vae_categorical": ["task=vae_categorical", "task.latents=3", "task.categories=4"],
}


def pack(name, task, seeds):
    schema.register()
    with initialize_config_module("conf", version_base="1.3"):
        overrides = [f"estimator={name}", *TASKS[task], "batch_size=20", "optimizer.lr=1e-3", "test_samples=2"]
        config = OmegaConf.to_container(compose("config", overrides=overrides), resolve=True)
    return build([{**config, "seed": seed} for seed in seeds], torch.device("cpu"))


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", NAMES)
def test_training_alone_and_in_a_pack(name, task):
    """Twelve steps; the learned parts of an estimator, its noise and its statistics are per replica, too."""
    try:
        together = pack(name, task, [3, 4, 5])
    except UserError as error:
        assert "is defined for Bernoulli latents" in str(error) and task == "vae_categorical"
        return
    alone = pack(name, task, [4])
    for _ in range(12):
        losses, own = together.train_step(), alone.train_step()
        assert losses.isfinite().all()
        assert torch.allclose(own[0], losses[1], rtol=1e-4), f"{own[0]} alone, {losses[1]} in a pack"
    for ours, theirs in zip(alone.parameters, together.parameters, strict=True):
        assert torch.allclose(ours[0], theirs[1], rtol=1e-2, atol=1e-4)
    state = alone.state(0)
    again = pack(name, task, [4])
    again.restore([state])
    assert torch.equal(again.train_step(), alone.train_step())
    (row,) = evaluate_last(alone)
    assert row["step"] == 13 and row["loss_evaluations"] >= 13 and None not in row.values()
    json.dumps(summary(alone, 0, "finished", row))


def test_the_experiment_has_every_estimator():
    """But ``exact``, which would enumerate 2^20 states, and a second name; a new estimator is in by itself."""
    schema.register()
    with initialize_config_module("conf", version_base="1.3"):
        composed = compose("config", overrides=["+experiment=every_estimator"], return_hydra_config=True)
        params = composed.hydra.sweeper.params
        parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
        (override,) = parser.parse_overrides([f"estimator={params.estimator}"])
        assert set(override.sweep_string_iterator()) == set(NAMES) - {"exact", "annealed_straight_through"}
    assert params.task == ",".join(TASKS)


class ConstantBaseline(estimators.ScoreFunction):
    """The README's example of an estimator of one's own."""

    def __init__(self, constant: float = 1.0):
        super().__init__()
        self.constant = constant

    def signal(self, losses, context):
        return losses - estimators.per_example(self.constant), None


def test_an_estimator_of_ones_own_without_a_schema():
    """A config with ``name``, ``_target_`` and options is all that it takes; its numbers come per replica."""
    schema.register()
    with initialize_config_module("conf", version_base="1.3"):
        config = OmegaConf.to_container(compose("config", overrides=["task.latents=4"]), resolve=True)
    own = {"name": "constant_baseline", "_target_": f"{__name__}.ConstantBaseline", "constant": 30.0}
    packs = [
        build([{**config, "estimator": own, "seed": s} for s in seeds], torch.device("cpu")) for seeds in ([1, 2], [2])
    ]
    for _ in range(5):
        together, alone = (pack.train_step() for pack in packs)
        assert torch.allclose(together[1], alone[0], rtol=1e-5)
