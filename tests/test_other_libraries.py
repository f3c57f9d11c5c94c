"""``estimators.distributions`` where other libraries take distributions: guides of Pyro, actors of torchrl.

Means are compared within 6 standard errors (2e-9 each, fewer than 20 of them), from fixed seeds.
"""

import pytest
import torch
from torch import distributions as D

from estimators import REINFORCE, RLOO, Exact, ReinMax
from estimators.distributions import OneHotCategorical

X, N = 0.7, 20_000
WEIGHTS = torch.tensor([[0.5, -1.0, 2.0], [1.0, 0.3, -0.7]], dtype=torch.float64)
POSTERIOR = torch.tensor([[0.1, 0.4, -0.3], [-0.6, 0.2, 0.5]], dtype=torch.float64)
PRIOR = torch.tensor([[0.0, 0.5, -0.5], [0.3, 0.0, -0.2]], dtype=torch.float64)


def likelihood(z):
    """``log p(x | z)``, quadratic in ``z``, for which ReinMax is exact in the mean."""
    return D.Normal((z * WEIGHTS).sum((-2, -1)), 1.0).log_prob(torch.tensor(X, dtype=torch.float64))


def exact_gradient():
    """Of the negative ELBO in the logits of the posterior, by enumeration."""
    logits = POSTERIOR.clone().requires_grad_()
    ratio = logits.log_softmax(-1) - PRIOR.log_softmax(-1)
    loss = Exact()(logits, lambda z: (z * ratio).sum((-2, -1)) - likelihood(z))
    return torch.autograd.grad(loss, logits)[0]


def agrees(gradients):
    error = gradients.std(0) / len(gradients) ** 0.5
    return bool(((gradients.mean(0) - exact_gradient()).abs() < 6 * error + 1e-12).all())


def test_the_density_at_a_sample_is_differentiated_as_an_elbo_needs():
    """Through the density of torch's class, which reads the logits by index, the gradient is another one."""
    logits = POSTERIOR.expand(N, 2, 3).clone().requires_grad_()

    def gradients(posterior, prior):
        torch.manual_seed(0)
        z = OneHotCategorical(logits=logits, estimator=ReinMax()).rsample()
        loss = (posterior.log_prob(z) - prior.log_prob(z)).sum(-1) - likelihood(z)
        return torch.autograd.grad(loss.sum(), logits)[0]

    ours = [OneHotCategorical(logits=each, estimator=ReinMax()) for each in (logits, PRIOR)]
    theirs = [D.OneHotCategorical(logits=each) for each in (logits, PRIOR)]
    assert agrees(gradients(*ours)) and not agrees(gradients(*theirs))
    z = theirs[1].sample((5,)).requires_grad_()
    value = ours[1].log_prob(z)
    assert torch.equal(value, theirs[1].log_prob(z))
    assert torch.allclose(torch.autograd.grad(value.sum(), z)[0], PRIOR.log_softmax(-1).expand(5, 2, 3))
    impossible = OneHotCategorical(logits=torch.tensor([0.0, 1.0, -torch.inf]), estimator=ReinMax())
    z = impossible.rsample().detach().requires_grad_()
    assert torch.autograd.grad(impossible.log_prob(z), z)[0].isfinite().all()


@pytest.mark.parametrize("estimator", [ReinMax(), REINFORCE()], ids=lambda e: type(e).__name__)
def test_a_guide_of_pyro(estimator):
    """Pathwise by ``rsample``; with another estimator Pyro makes a score function of ``log_prob``."""
    pyro = pytest.importorskip("pyro")
    from pyro.distributions.torch_distribution import TorchDistributionMixin

    class Latent(OneHotCategorical, TorchDistributionMixin):
        pass

    logits = POSTERIOR.expand(N, 2, 3).clone().requires_grad_()

    def model():
        with pyro.plate("data", N):
            z = pyro.sample("z", Latent(logits=PRIOR, estimator=estimator).expand([N, 2]).to_event(1))
            mean = (z * WEIGHTS).sum((-2, -1))
            pyro.sample("x", pyro.distributions.Normal(mean, 1.0), obs=torch.full((N,), X, dtype=torch.float64))

    def guide():
        with pyro.plate("data", N):
            pyro.sample("z", Latent(logits=logits, estimator=estimator).to_event(1))

    torch.manual_seed(0)
    loss = pyro.infer.Trace_ELBO().differentiable_loss(model, guide)
    assert agrees(torch.autograd.grad(loss, logits)[0])


def test_an_actor_of_torchrl():
    modules = pytest.importorskip("torchrl.modules")
    from tensordict import TensorDict
    from tensordict.nn import InteractionType, TensorDictModule

    torch.manual_seed(0)
    net = torch.nn.Linear(3, 4)
    observations = TensorDict({"observation": torch.randn(5, 3)}, [5])

    def actor(estimator):
        return modules.ProbabilisticActor(
            TensorDictModule(net, in_keys=["observation"], out_keys=["logits"]),
            in_keys=["logits"],
            out_keys=["action"],
            distribution_class=OneHotCategorical,
            distribution_kwargs={"estimator": estimator},
            default_interaction_type=InteractionType.RANDOM,
            return_log_prob=True,
        )

    def gradient(action):
        return torch.autograd.grad((action * torch.arange(4.0)).sum(), net.weight)[0]

    torch.manual_seed(1)
    acted = actor(ReinMax())(observations.clone())
    torch.manual_seed(1)
    z = ReinMax().sample(net(observations["observation"]))
    assert torch.equal(acted["action"], z) and torch.equal(gradient(acted["action"]), gradient(z))
    log_q = net(observations["observation"]).log_softmax(-1)
    assert torch.allclose(acted["action_log_prob"], (acted["action"] * log_q).sum(-1))

    rloo = actor(RLOO(4))
    assert not rloo(observations.clone())["action"].requires_grad  # its sample, for a policy gradient of torchrl's
    q = rloo.get_dist(observations.clone())
    z, pending = q.estimator.propose(q.logits.unsqueeze(-2))  # one latent
    pending.surrogate(-z[..., 0, 2]).sum().backward()
    assert z.shape == (4, 5, 1, 4) and net.weight.grad.abs().sum() > 0
