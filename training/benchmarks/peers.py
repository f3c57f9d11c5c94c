"""The same training step as others write it, for the benchmark: plain torch by the book and tuned by hand, and Pyro.

Each function returns a ``step()`` that trains one run of 784-200-784 with Bernoulli latents, batch 100, Adam, on
binarised images, and returns its negative ELBO (per example, or their mean or sum). All draw a random batch; none
evaluates or keeps a gradient variance.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, distributions, nn

Step = Callable[[], object]

LATENTS, BATCH, LR = 200, 100, 1e-3
INSTALL = "Pyro is not installed: pip install '.[bench]' -c constraints.txt adds its rows"


def _networks(images: Tensor) -> tuple[nn.Linear, nn.Linear]:
    pixels = images.shape[1]
    return nn.Linear(pixels, LATENTS).to(images.device), nn.Linear(LATENTS, pixels).to(images.device)


def _batch(images: Tensor) -> Tensor:
    return images[torch.randint(len(images), (BATCH,), device=images.device)].float()


def textbook_relaxed(images: Tensor) -> Step:
    """Gumbel-Softmax as a tutorial writes it: modules, ``torch.distributions``, ``torch.optim.Adam``."""
    encoder, decoder = _networks(images)
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=LR)

    def step() -> Tensor:
        x = _batch(images)
        logits = encoder(x)
        temperature = torch.tensor(1.0, device=x.device)
        z = distributions.RelaxedBernoulli(temperature, logits=logits).rsample()
        log_likelihood = distributions.Bernoulli(logits=decoder(z)).log_prob(x).sum(-1)
        prior = distributions.Bernoulli(logits=torch.zeros_like(logits))
        kl = distributions.kl_divergence(distributions.Bernoulli(logits=logits), prior).sum(-1)
        loss = (kl - log_likelihood).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def textbook_score_function(images: Tensor) -> Step:
    """REINFORCE with a moving average as its baseline, as a tutorial writes it."""
    encoder, decoder = _networks(images)
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=LR)
    baseline = torch.zeros((), device=images.device)

    def step() -> Tensor:
        x = _batch(images)
        q = distributions.Bernoulli(logits=encoder(x))
        z = q.sample()
        log_q = q.log_prob(z).sum(-1)
        log_prior = distributions.Bernoulli(logits=torch.zeros_like(z)).log_prob(z).sum(-1)
        nats = log_q - log_prior - distributions.Bernoulli(logits=decoder(z)).log_prob(x).sum(-1)
        learning_signal = nats.detach() - baseline
        baseline.lerp_(nats.detach().mean(), 0.1)
        loss = (nats + learning_signal * log_q).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return nats.detach()

    return step


def _tuned(images: Tensor, networks: list[Tensor], loss: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> Step:
    """A functional step: flat leaves, noise into one buffer, torch's fused Adam.

    ``loss(x, noise)`` gives the objective and the negative ELBO.
    """
    optimizer = torch.optim.Adam(networks, lr=LR, fused=True)
    noise = torch.empty(BATCH, LATENTS, device=images.device)

    def step() -> Tensor:
        rows = torch.randint(len(images), (BATCH,), device=images.device)
        x = images.index_select(0, rows).float()
        objective, nats = loss(x, noise.uniform_(1e-7, 1 - 1e-7))
        gradients = torch.autograd.grad(objective, networks)
        for parameter, gradient in zip(networks, gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
        return nats.detach()

    return step


def _leaves(images: Tensor) -> list[Tensor]:
    return [p.detach().requires_grad_() for network in _networks(images) for p in network.parameters()]


def _nats(logits: Tensor, x: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, x, reduction="sum") / BATCH


def tuned_relaxed(images: Tensor) -> Step:
    """Gumbel-Softmax on the log-odds, tuned by hand."""
    w, b, v, c = leaves = _leaves(images)

    def loss(x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        odds = F.linear(x, w, b)
        z = (odds + noise.logit()).sigmoid()
        kl = (odds.sigmoid() * odds - F.softplus(odds)).sum() / BATCH + LATENTS * math.log(2)
        nats = _nats(F.linear(z, v, c), x) + kl
        return nats, nats

    return _tuned(images, leaves, loss)


def tuned_nvil(images: Tensor, hidden: int = 100) -> Step:
    """NVIL's score function with centring and an input-dependent baseline, tuned by hand."""
    w, b, v, c = leaves = _leaves(images)
    pixels, device = images.shape[1], images.device
    first = nn.Linear(pixels, hidden).to(device)
    w1, b1 = (p.detach().requires_grad_() for p in first.parameters())
    w2, b2 = (torch.zeros(size, device=device, requires_grad=True) for size in ((hidden,), (1,)))
    centre = torch.zeros((), device=device)

    def loss(x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        odds = F.linear(x, w, b)
        z = (noise < odds.detach().sigmoid()).float()
        log_q = -F.binary_cross_entropy_with_logits(odds, z, reduction="none").sum(-1)
        logits = F.linear(z, v, c)
        nats = F.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(-1)
        value = nats.detach() + log_q.detach() + LATENTS * math.log(2)
        baseline = torch.tanh(F.linear(x, w1, b1)) @ w2 + b2
        signal = value - centre - baseline
        centre.lerp_(value.mean(), 0.2)
        return (nats + signal.detach() * log_q + 0.5 * signal**2).mean(), value

    return _tuned(images, [*leaves, w1, b1, w2, b2], loss)


def pyro(images: Tensor, graph: bool) -> Step:
    """Pyro's SVI with Bernoulli latents: ``TraceGraph_ELBO`` with a neural baseline (NVIL), or ``Trace_ELBO``.

    Raises:
        ModuleNotFoundError: without the extra ``bench``.
    """
    ppl: Any = importlib.import_module("pyro")
    from pyro import distributions as dist
    from pyro.infer import SVI, Trace_ELBO, TraceGraph_ELBO

    ppl.enable_validation(False)
    ppl.clear_param_store()
    encoder, decoder = _networks(images)
    baseline = nn.Sequential(nn.Linear(images.shape[1], 100), nn.Tanh(), nn.Linear(100, 1), nn.Flatten(0))
    baseline.to(images.device)
    odds = torch.zeros(BATCH, LATENTS, device=images.device)

    def model(x: Tensor) -> None:
        ppl.module("decoder", decoder)
        with ppl.plate("examples", BATCH):
            z = ppl.sample("z", dist.Bernoulli(logits=odds).to_event(1))
            ppl.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        ppl.module("encoder", encoder)
        infer: Any = {}
        if graph:
            ppl.module("baseline", baseline)
            infer = {"baseline": {"nn_baseline": baseline, "nn_baseline_input": x, "use_decaying_avg_baseline": True}}
        with ppl.plate("examples", BATCH):
            ppl.sample("z", dist.Bernoulli(logits=encoder(x)).to_event(1), infer=infer)

    elbo = TraceGraph_ELBO() if graph else Trace_ELBO()
    svi = SVI(model, guide, ppl.optim.Adam({"lr": LR}), elbo)
    return lambda: svi.step(_batch(images))


def all_peers(images: Tensor) -> dict[str, Step]:
    """Every peer that is installed, by the name that the benchmark prints."""
    peers: dict[str, Step] = {
        "torch.distributions, relaxed": textbook_relaxed(images),
        "torch.distributions, REINFORCE": textbook_score_function(images),
        "plain torch tuned by hand, relaxed": tuned_relaxed(images),
        "plain torch tuned by hand, NVIL": tuned_nvil(images),
    }
    try:
        peers["Pyro Trace_ELBO"] = pyro(images, graph=False)
        peers["Pyro TraceGraph_ELBO, NVIL"] = pyro(images, graph=True)
    except ModuleNotFoundError:
        print(INSTALL)
    return peers
