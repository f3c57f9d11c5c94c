"""A top-1 mixture of experts: eight linear experts for a function with four linear pieces.

The one line that changes: ``F.gumbel_softmax(self.router(x), hard=True)`` becomes ``reinmax(self.router(x))``.
"""

import torch
from torch import nn

from estimators.functional import reinmax

torch.manual_seed(0)


class MixtureOfExperts(nn.Module):
    def __init__(self, features, experts):
        super().__init__()
        self.router = nn.Sequential(nn.Linear(features, 32), nn.ReLU(), nn.Linear(32, experts))
        self.experts = nn.ModuleList(nn.Linear(features, 1) for _ in range(experts))

    def forward(self, x):
        if not self.training:  # each token goes to one expert only
            chosen, y = self.router(x).argmax(-1), x.new_zeros(len(x), 1)
            for index, expert in enumerate(self.experts):
                y[chosen == index] = expert(x[chosen == index])
            return y
        gate = reinmax(self.router(x))  # [tokens, experts], one-hot, differentiable
        return torch.einsum("te,teo->to", gate, torch.stack([expert(x) for expert in self.experts], 1))


model = MixtureOfExperts(2, experts=8)
optimizer = torch.optim.Adam(model.parameters(), 3e-2)
slopes = torch.tensor([[3.0, -1.0], [-2.0, 4.0], [1.0, 5.0], [-4.0, -3.0]])
for step in range(501):
    x = torch.randn(256, 2)
    y = (x * slopes[(x > 0).long() @ torch.tensor([1, 2])]).sum(-1, keepdim=True)  # a slope for each quadrant
    loss = (model.train()(x) - y).square().mean()
    optimizer.zero_grad(), loss.backward(), optimizer.step()
    if step % 250 == 0:
        print(f"step {step}: unexplained variance {(model.eval()(x) - y).square().mean() / y.var():.3f}")
