"""A contextual bandit whose reward is a black box: plain Python numbers, no gradient, no closure.

The estimator proposes actions, the environment answers, ``pending.surrogate`` makes a loss of the answers.
"""

import random

import torch
from torch import nn

from estimators import RLOO, category

torch.manual_seed(0)
random.seed(0)
CONTEXTS, ACTIONS = 6, 10


def reward(context: int, action: int) -> float:
    """The environment: one action of ten pays in each context, and the pay is noisy."""
    return float(action == (3 * context + 1) % ACTIONS) + random.gauss(0, 0.3)


policy = nn.Linear(CONTEXTS, ACTIONS)
estimator = RLOO(num_samples=4)
optimizer = torch.optim.Adam(policy.parameters(), 3e-2)
for step in range(201):
    contexts = torch.randint(CONTEXTS, (32,))
    logits = policy(nn.functional.one_hot(contexts, CONTEXTS).float()).unsqueeze(-2)  # [batch, 1 latent, actions]
    z, pending = estimator.propose(logits)
    actions = category(z).squeeze(-1).tolist()  # [4 samples, batch]
    rewards = torch.tensor([[reward(*pair) for pair in zip(contexts.tolist(), row, strict=True)] for row in actions])
    losses = pending.surrogate(-rewards)  # lower is better
    optimizer.zero_grad(), losses.mean().backward(), optimizer.step()
    if step % 100 == 0:
        print(f"step {step}: reward per action {rewards.mean():.2f}")
