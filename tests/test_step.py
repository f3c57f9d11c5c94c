"""The parts of a step: the optimiser in both of its forms, shared moments."""

import pytest
import torch

from training.replicas import optimisers
from training.replicas.variance import GradientVariance

CPU = torch.device("cpu")
OPTIONS = {
    "adam": {"beta1": 0.8, "beta2": 0.99, "eps": 1e-6, "weight_decay": 0.1},
    "sgd": {"momentum": 0.7, "weight_decay": 0.1},
}


def by_torch(name, setting, parameter):
    if name == "adam":
        betas = (setting["beta1"], setting["beta2"])
        return torch.optim.Adam([parameter], setting["lr"], betas, setting["eps"], setting["weight_decay"])
    return torch.optim.SGD([parameter], setting["lr"], setting["momentum"], weight_decay=setting["weight_decay"])


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("as_one_expression", [False, True])
def test_settings_in_any_order_and_as_one_expression(name, as_one_expression):
    """Equal settings that are not neighbours share a call; both forms are torch's own optimiser, replica by replica."""
    torch.manual_seed(0)
    settings = [{"name": name, "lr": lr} | OPTIONS[name] for lr in (0.1, 0.02, 0.1, 0.05, 0.02)]
    stacked = torch.nn.Parameter(torch.randn(5, 4, 2, dtype=torch.float64))
    own = [torch.nn.Parameter(stacked.detach()[r].clone()) for r in range(5)]
    theirs = [by_torch(name, setting, parameter) for setting, parameter in zip(settings, own, strict=True)]
    ours = optimisers.ReplicaOptimizer(settings, CPU)
    kept = ours.start([stacked])
    numbers = {key: torch.tensor([own[key] for own in settings]).double() for key in settings[0] if key != "name"}
    moments, count = [torch.zeros_like(stacked) for _ in range(2 if name == "adam" else 1)], torch.zeros(())
    for _ in range(5):
        gradient = torch.randn_like(stacked)
        if as_one_expression:
            count += 1
            with torch.no_grad():
                optimisers.update_each(numbers, stacked, gradient, moments, count)
        else:
            ours.update([stacked], [gradient], kept)
        for parameter, optimizer, single in zip(own, theirs, gradient, strict=True):
            parameter.grad = single.clone()
            optimizer.step()
    assert torch.allclose(stacked, torch.stack(list(own)), rtol=1e-6)


def test_adams_second_moment_serves_the_gradient_variance():
    """With beta2 = 0.999 and no weight decay it is the same number; with any other setting it is not taken."""
    torch.manual_seed(0)
    adam = {"name": "adam", "lr": 0.01, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0}
    parameters = [torch.nn.Parameter(torch.randn(2, 4, 3)), torch.nn.Parameter(torch.randn(2, 1, 3))]
    optimizer = optimisers.ReplicaOptimizer([adam, adam | {"lr": 0.1}], CPU)
    kept = optimizer.start(parameters)
    shared = GradientVariance.start(parameters[:1], optimizer.mean_squares(kept, GradientVariance.decay, [0]))
    alone = GradientVariance.start(parameters[:1])
    assert shared.kept_elsewhere
    for _ in range(20):
        gradients = [torch.randn_like(parameter) + 1 for parameter in parameters]
        optimizer.update(parameters, gradients, kept)
        for variance in (shared, alone):
            variance.update(gradients[:1])
    assert torch.allclose(shared.value(), alone.value(), rtol=1e-5)
    for other in ({"beta2": 0.99}, {"weight_decay": 0.1}):
        assert optimisers.ReplicaOptimizer([adam, adam | other], CPU).mean_squares(kept, 0.999, [0]) is None
