"""One contract for all tasks, and what ``check_task`` says of those that break it."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from estimators import Exact
from tasks import (
    VAE,
    Primary,
    SemiSupervised,
    StructuredPrediction,
    TaskError,
    Toy,
    ToyBernoulli3,
    ToySimplex,
    check_task,
)
from tasks.check import small_data
from training.config import schema

GREY = replace(
    small_data(),
    binarization="none",
    **{name: replace(getattr(small_data(), name), levels=3) for name in ("train", "valid", "test")},
)
TASKS = {
    "vae": partial(VAE, latents=3),
    "vae, categorical": partial(VAE, latents=2, categories=3, hidden=(4,), prior="learned", output_bias="data_mean"),
    "vae, analytic KL": partial(VAE, latents=3, kl="analytic"),
    "vae, gaussian": partial(VAE, latents=2, likelihood="gaussian"),
    "vae, cosine": partial(VAE, latents=2, likelihood="von_mises_fisher"),
    "vae, two layers": partial(VAE, latents=2, layers=2, prior="learned"),
    "vae, two layers, categorical": partial(
        VAE, latents=1, categories=3, layers=2, centred=True, hidden=(4,), kl="analytic"
    ),
    "vae, two layers, gaussian": partial(VAE, latents=1, layers=2, centred=True, likelihood="gaussian"),
    "vae, two layers, cosine": partial(VAE, latents=1, layers=2, square_hidden=1, likelihood="von_mises_fisher"),
    "structured": partial(StructuredPrediction, latents=2),
    "semi_supervised": partial(SemiSupervised, categories=2, labelled=4, style=2, hidden=(4,)),
    "semi_supervised, conv": partial(
        SemiSupervised, categories=2, labelled=4, style=2, network="conv", channels=(2, 2, 2), warm_up=3
    ),
    "toy": partial(Toy, latents=2, categories=3),
    "toy_bernoulli3": ToyBernoulli3,
    "toy_simplex": partial(ToySimplex, latents=2),
}


def data_of(name):
    return GREY if name.endswith(("gaussian", "cosine")) else None


@pytest.mark.parametrize("name", TASKS)
def test_every_task_keeps_the_contract(name):
    check_task(TASKS[name], data_of(name), exact=Exact())


def test_no_task_is_left_out():
    covered = {getattr(task, "func", task) for task in TASKS.values()}
    assert covered == set(schema.TASKS.values())


class Broken(VAE):
    """Right but for what a case changes."""

    def __init__(self, data, streams):
        super().__init__(data, streams, latents=2)


def case(sentence, **changes):
    return pytest.param(changes, sentence, id=sentence)


def noisy(task, batch, estimator):
    return VAE.loss(task, batch, estimator) + torch.rand(())


def through_the_estimator(task, split, num_samples, details=False):
    task.count = getattr(task, "count", 0) + 1
    return {name: value + task.count for name, value in VAE.evaluate(task, split, num_samples, details).items()}


def detached(task, batch, estimator):
    losses = VAE.loss(task, batch, estimator)
    kl = task.latents.kl(task.encoders[0](batch), None)
    return losses - kl + kl.detach()


def worn(task, split, num_samples, details=False):
    found = VAE.evaluate(task, split, num_samples, details)
    with torch.no_grad():
        task.prior_outputs += 1e-3
    return found


BROKEN = [
    case("one value for each replica and example", loss=lambda t, b, e: VAE.loss(t, b, e).mean(-1)),
    case("couples examples", loss=lambda t, b, e: VAE.loss(t, b, e) + VAE.loss(t, b, e).mean(-1, keepdim=True)),
    case("couples replicas", loss=lambda t, b, e: VAE.loss(t, b, e) + VAE.loss(t, b, e).mean(0)),
    case("has another loss alone than in a pack", loss=noisy),
    case("losses that are not finite", loss=lambda t, b, e: VAE.loss(t, b, e) / 0),
    case("without a gradient", loss=lambda t, b, e: VAE.loss(t, b, e).detach()),
    case("is not that of its value", loss=detached),
    case("samples in front", _nats=lambda t, g, b, x: VAE._nats(t, g, b, x).reshape(-1, *x.shape[:2])[0]),
    case("when it is asked again", evaluate=through_the_estimator),
    case("changed by its own evaluation", evaluate=worn),
    case("one number for each replica", evaluate=lambda t, *a, **k: {"bound": torch.zeros(())}),
    case("as its primary metric", primary=property(lambda t: Primary("accuracy"))),
    case("no tasks.base.Primary", primary="bound"),
    case("cannot be written as JSON", protocol=lambda t: {"evaluation_is_bound": True, "what": object()}),
    case("does not say evaluation_is_bound", protocol=lambda t: {}),
    case("a number for each replica", protocol=lambda t: {"evaluation_is_bound": True, "m": torch.zeros(1)}),
    case("not some of its parameters", encoder_parameters=lambda t: []),
    case("at most 2 images", examples=lambda t, n: [{"x": torch.zeros(5, 4, 3)}] * t.replicas),
    case("instead of 3", examples=lambda t, n: []),
    case("but context_features is 5", context_features=5),
]


@pytest.mark.parametrize(("changes", "sentence"), BROKEN)
def test_what_is_broken_is_said_in_words(changes, sentence):
    with pytest.raises(TaskError, match=sentence):
        check_task(type("Broken", (Broken,), changes), exact=Exact())


def test_a_loss_that_is_not_the_estimators_value_is_found():
    """The exponential of an estimate is not the estimate of an exponential."""

    def exponential(task, batch, estimator):
        return VAE.loss(task, batch, estimator).exp()

    with pytest.raises(TaskError, match="whose mean over exact samples is"):
        check_task(type("Broken", (Broken,), {"loss": exponential}), exact=Exact())


def test_parameters_belong_to_replicas_and_start_from_their_seed():
    class Shared(Broken):
        def __init__(self, data, streams):
            super().__init__(data, streams)
            self.scale = nn.Parameter(torch.ones(()))

    class Unseeded(Broken):
        def __init__(self, data, streams):
            super().__init__(data, streams)
            self.scale = nn.Parameter(torch.rand(streams.replicas, 1))

    for made, words in ((Shared, "a parameter scale of shape"), (Unseeded, "starts scale from other numbers alone")):
        with pytest.raises(TaskError, match=words):
            check_task(made)


def test_what_is_no_task():
    with pytest.raises(TaskError, match="must derive from tasks.base.Task"):
        check_task(lambda data, streams: nn.Linear(2, 2))
    with pytest.raises(TaskError, match="abstract"):
        check_task(type("Empty", (VAE.__mro__[2],), {}))
