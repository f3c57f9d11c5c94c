"""A world model with a categorical latent, 32 latents of 32 categories, as in Dreamer: a dot that moves on a ring.

The one line that changes: ``OneHotCategoricalStraightThrough(logits=logits)`` gets an estimator.
"""

import torch
from torch import nn
from torch.distributions import Independent, kl_divergence

from estimators import ReinMax
from estimators.distributions import OneHotCategorical

torch.manual_seed(0)
PIXELS, LATENTS, CATEGORIES, STATE, ESTIMATOR = 8, 32, 32, 64, ReinMax()
encode, prior = (nn.Linear(n + STATE, LATENTS * CATEGORIES) for n in (PIXELS, 0))
decode, memory = nn.Linear(STATE + LATENTS * CATEGORIES, PIXELS), nn.GRUCell(LATENTS * CATEGORIES, STATE)
model = nn.ModuleList([encode, prior, decode, memory])
optimizer = torch.optim.Adam(model.parameters(), 1e-2)


def latent(logits):
    logits = logits.unflatten(-1, (LATENTS, CATEGORIES))
    probs = 0.99 * logits.softmax(-1) + 0.01 / CATEGORIES  # Dreamer's mixture with a uniform distribution
    return Independent(OneHotCategorical(probs=probs, estimator=ESTIMATOR), 1)


for step in range(81):
    start, speed = torch.randint(PIXELS, (16,)), torch.randint(1, 4, (16,))
    frames = torch.eye(PIXELS)[(start + speed * torch.arange(6)[:, None]) % PIXELS]  # [time, batch, pixels]
    h, loss = torch.zeros(16, STATE), torch.zeros(())
    for frame in frames:
        q, p = latent(encode(torch.cat((frame, h), -1))), latent(prior(h))
        z = q.rsample().flatten(-2)
        logits = decode(torch.cat((h, z), -1))
        loss = loss + nn.functional.cross_entropy(logits, frame) + 0.1 * kl_divergence(q, p).clamp(min=1.0).mean()
        h = memory(z, h)
    optimizer.zero_grad(), loss.backward(), optimizer.step()
    if step % 40 == 0:
        print(f"step {step}: loss {loss.item() / len(frames):.3f}, frames decoded", end=" ")
        print(f"{(logits.argmax(-1) == frame.argmax(-1)).float().mean():.0%}")
