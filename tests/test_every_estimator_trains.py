"""Every estimator of ``conf/estimator`` on every kind of model: trains, with the same numbers in any pack."""

import json
from pathlib import Path

import configs
import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser

import estimators
from training.config import schema
from training.errors import UserError
from training.pack.build import build
from training.pack.evaluation import evaluate_last, summary

NAMES = sorted(path.stem for path in (Path(__file__).parents[1] / "conf" / "estimator").glob("*.yaml"))
DEEP = ["task.hidden=[5]", "task.prior=learned", "task.centred=true"]
TASKS = {
    "vae_bernoulli": ["task.latents=5"],
    "vae_categorical": ["task.latents=3", "task.categories=4"],
    "deep_vae_bernoulli": ["task.latents=4", *DEEP],
    "deep_vae_categorical": ["task.latents=2", "task.categories=3", *DEEP],
    "sbn_bernoulli": ["task.latents=4"],
    "sbn_categorical": ["task.latents=3", "task.categories=3"],
    "semi_supervised": ["task.labelled=20", "task.style=3", "task.hidden=[8]"],
}
STEPS = {"vae": 12, "deep": 3, "sbn": 3, "semi": 3}
"""By the first word of a task."""


def built(name, task, *seeds):
    """A pack for each of ``seeds``, which are lists."""
    overrides = [f"estimator={name}", f"task={task}", *TASKS[task], "batch_size=10"]
    # Adam would make whole steps of the rounding in a gradient of 0, which differs in a pack.
    overrides += ["optimizer=sgd", "optimizer.lr=1e-3"]
    overrides += ["test_samples=2", "valid_samples=2", "train_samples=2", "data.train_evaluated=100"]
    config = configs.config(*overrides)
    return [build([{**config, "seed": seed} for seed in own], torch.device("cpu")) for own in seeds]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", NAMES)
def test_training_alone_and_in_a_pack(name, task):
    """The learned parts of an estimator, its noise and its statistics are per replica, and those of nested ones per
    layer, too; the step after a checkpoint is bit for bit that of the run that went on; its record is written."""
    try:
        together, alone, again = built(name, task, [3, 4, 5], [4], [4])
    except UserError as error:
        refused = "is defined for Bernoulli latents" in str(error) and not task.endswith("_bernoulli")
        nests = "does not nest: with the 2 layers" in str(error) and name == "vimco" and task[:3] in ("dee", "sbn")
        assert refused or nests, error
        return
    steps = STEPS[task.split("_")[0]]
    for _ in range(steps):
        losses, own = together.train_step(), alone.train_step()
        assert losses.isfinite().all()
        assert torch.allclose(own[0], losses[1], rtol=1e-4), f"{own[0]} alone, {losses[1]} in a pack"
    for ours, theirs in zip(alone.parameters, together.parameters, strict=True):
        assert torch.allclose(ours[0], theirs[1], rtol=1e-3, atol=1e-5)
    again.restore([alone.state(0)])
    assert torch.equal(again.train_step(), alone.train_step())
    assert all(torch.equal(a, b) for a, b in zip(again.parameters, alone.parameters, strict=True))
    (row,) = evaluate_last(alone)
    assert row["step"] == steps + 1 and row["loss_evaluations"] == (steps + 1) * alone.evaluations
    assert None not in row.values()
    result = json.loads(json.dumps(summary(alone, 0, "finished", row)))
    if task.startswith(("deep_vae", "sbn")):
        assert result["protocol"]["layers"] == 2
    kl = "sampled" if alone.estimator.unbiased or name == "nvil" else "analytic"
    assert result["objective"]["kl"] == ("none" if task.startswith("sbn") else kl)


def test_the_experiment_has_every_estimator():
    """But ``exact``, which would enumerate 2^20 states, and a second name; a new estimator is in by itself."""
    schema.register()
    with initialize_config_module("conf", version_base="1.3"):
        composed = compose("config", overrides=["+experiment=every_estimator"], return_hydra_config=True)
        params = composed.hydra.sweeper.params
        parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
        (override,) = parser.parse_overrides([f"estimator={params.estimator}"])
        assert set(override.sweep_string_iterator()) == set(NAMES) - {"exact", "annealed_straight_through"}
    assert composed.hydra.sweeper.cases.task.vae.task == "vae_bernoulli,vae_categorical"


class ConstantBaseline(estimators.ScoreFunction):
    """The README's example of an estimator of one's own."""

    def __init__(self, constant: float = 1.0):
        super().__init__()
        self.constant = constant

    def signal(self, losses, context):
        return losses - estimators.per_example(self.constant), None


def test_an_estimator_of_ones_own_without_a_schema():
    """A config with ``name``, ``_target_`` and options is all that it takes; its numbers come per replica."""
    config = configs.config("task.latents=4")
    own = {"name": "constant_baseline", "_target_": f"{__name__}.ConstantBaseline", "constant": 30.0}
    packs = [
        build([{**config, "estimator": own, "seed": s} for s in seeds], torch.device("cpu")) for seeds in ([1, 2], [2])
    ]
    for _ in range(5):
        together, alone = (pack.train_step() for pack in packs)
        assert torch.allclose(together[1], alone[0], rtol=1e-5)
