"""The benchmark measures what it says: peers that learn, floors with the step's own products."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from training import benchmark
from training.benchmarks import peers

IMAGES = (torch.rand(200, 50, generator=torch.Generator().manual_seed(0)) < 0.1).to(torch.uint8)


@pytest.mark.parametrize(
    "peer",
    [
        peers.textbook_relaxed,
        peers.textbook_score_function,
        peers.tuned_relaxed,
        peers.tuned_nvil,
        lambda images: peers.pyro(images, graph=False),
        lambda images: peers.pyro(images, graph=True),
    ],
)
def test_peers_learn(peer):
    """Each is a complete training step: pixels that are mostly off become likelier within 300 steps."""
    torch.manual_seed(0)
    try:
        step = peer(IMAGES)
    except ModuleNotFoundError:
        pytest.skip(peers.INSTALL)
    losses = [float(torch.as_tensor(step()).mean()) for _ in range(300)]
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])


def test_the_floor_counts_nvils_baseline():
    flops = {}
    for estimator in ("gumbel_softmax", "nvil"):
        with FlopCounterMode(display=False) as counter:
            benchmark.matrix_products(estimator, 2, torch.device("cpu"), own=True)()
        flops[estimator] = counter.get_total_flops()
    one = 2 * 2 * 100 * 784 * 200
    assert flops == {"gumbel_softmax": 5 * one, "nvil": 6 * one}


@pytest.mark.parametrize("estimator", ["gumbel_softmax", "nvil"])
def test_the_floor_counts_what_a_step_keeps(estimator):
    """Parameters, gradients and two moments, and the gradient's first moment of the encoder: in and out, 4 bytes."""
    pack = benchmark.make_pack(estimator, 2, torch.device("cpu"))
    assert pack.tensors.variance.kept_elsewhere
    numbers = 4 * sum(p.numel() for p in pack.parameters) + sum(m.numel() for m in pack.tensors.variance.first)
    assert benchmark.copied_bytes(2, estimator) == 8 * numbers


def test_a_copy_moves_as_many_bytes_as_it_says():
    assert 2 * benchmark.copy_of(800, torch.device("cpu"))().nbytes == 800


def test_times_are_taken_in_turns():
    calls = []
    seconds = benchmark.in_turns({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 0.0, calls=2)
    assert "".join(calls[:12]) == "aaabbbaaabbb" and seconds.keys() == {"a", "b"}
