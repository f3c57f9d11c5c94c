"""The optimiser of a pack against torch's, and the online gradient variance against its definition."""

import pytest
import torch

from training.replicas import optimisers
from training.replicas.variance import GradientVariance


@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_the_optimiser_is_torchs_per_replica(name):
    """Three replicas, two of equal settings, one parameter without a gradient: each equals torch.optim on its own."""
    options = {"weight_decay": 0.1} | (
        {"beta1": 0.8, "beta2": 0.99, "eps": 1e-6} if name == "adam" else {"momentum": 0.7}
    )
    settings = [{"name": name, "lr": lr, **options} for lr in (0.1, 0.02, 0.02)]
    parameters = [torch.nn.Parameter(torch.randn(3, 4, 2)), torch.nn.Parameter(torch.randn(3, 1, 2))]
    unused = torch.nn.Parameter(torch.ones(3, 2))
    own = [[torch.nn.Parameter(p.detach()[r].clone()) for p in parameters] for r in range(3)]
    ours = optimisers.ReplicaOptimizer(settings, torch.device("cpu"))
    kept = ours.start([*parameters, unused])
    theirs = []
    for r, setting in enumerate(settings):
        if name == "adam":
            theirs.append(torch.optim.Adam(own[r], lr=setting["lr"], betas=(0.8, 0.99), eps=1e-6, weight_decay=0.1))
        else:
            theirs.append(torch.optim.SGD(own[r], lr=setting["lr"], momentum=0.7, weight_decay=0.1))
    for _ in range(5):
        # As autograd hands them out: with strides of their own.
        gradients = [torch.randn(3, 2, 4).mT, torch.randn(3, 1, 2, 2)[..., 1]]
        ours.update([*parameters, unused], [*gradients, None], kept)
        for r in range(3):
            for p, gradient in zip(own[r], gradients, strict=True):
                p.grad = gradient[r].clone()
            theirs[r].step()
    for r in range(3):
        for stacked, p in zip(parameters, own[r], strict=True):
            assert torch.allclose(stacked[r], p, rtol=1e-5, atol=1e-7)
    assert torch.equal(unused, torch.ones(3, 2))


def test_gradient_variance_is_the_bias_corrected_variance():
    """Against the definition written out in float64, and against the true variance of stationary gradients."""
    torch.manual_seed(0)
    tracker = GradientVariance.start([torch.zeros(2, 3, 4), torch.zeros(2, 1, 4)])
    first = [torch.zeros(2, 3, 4).double(), torch.zeros(2, 1, 4).double()]
    second = [m.clone() for m in first]
    scale = torch.tensor([1.0, 3.0]).reshape(2, 1, 1)
    for _ in range(3000):
        gradients = [scale * torch.randn_like(m, dtype=torch.float32) + 5 for m in first]
        tracker.update(gradients)
        for m1, m2, g in zip(first, second, gradients, strict=True):
            m1.mul_(0.999).add_(g.double(), alpha=0.001)
            m2.mul_(0.999).add_(g.double() ** 2, alpha=0.001)
    weight = 1 - 0.999**3000
    variances = torch.cat(
        [(m2 / weight - (m1 / weight) ** 2).flatten(1) for m1, m2 in zip(first, second, strict=True)], 1
    )
    assert torch.allclose(tracker.value().double(), variances.mean(1), rtol=1e-3)
    assert torch.allclose(tracker.value(), torch.tensor([1.0, 9.0]), rtol=0.1)
