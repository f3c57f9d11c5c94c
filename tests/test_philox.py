"""Noise by counting: the published vectors, uniform and independent numbers, the same alone and in a pack."""

import math

import pytest
import torch

from training.kernels import philox
from training.replicas.streams import CountedSource, Streams

CPU = torch.device("cpu")
SEEDS = [5, 6, 7]
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]
"""Counter, key and numbers of philox4x32-10 in the file kat_vectors of Random123, the authors' own library."""


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_known_answers(counter, key, expected):
    counter, key = (tuple(torch.tensor([word]) for word in words) for words in (counter, key))
    assert tuple(int(word) for word in philox.philox(counter, key)) == expected


def by_the_definition(key, draw, step, place):
    """One number of 31 bits, by Python's integers."""
    counters = -(-1001 // 4)
    (a, b, c, d), (k, m) = (place % counters, draw, step & philox.LOW, step >> 32), (key & philox.LOW, key >> 32)
    for _ in range(10):
        x, y = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b, c, d = (y >> 32) ^ b ^ k, y & philox.LOW, (x >> 32) ^ d ^ m, x & philox.LOW
        k, m = (k + 0x9E3779B9) & philox.LOW, (m + 0xBB67AE85) & philox.LOW
    return ((a, b, c, d)[place // counters] >> 1) * 2.0**-31


def test_which_number_stands_where():
    """Key: the replica's. Counter: position, draw, step."""
    keys, step = torch.tensor([2**63 - 1, 12345]), 2**33 + 7
    noise = philox.uniform(keys, 3, torch.tensor(step), (7, 2, 11, 13), 1)
    for outer, replica, example, latent in [(0, 0, 0, 0), (6, 1, 10, 12), (3, 0, 5, 1), (2, 1, 0, 7)]:
        place = (outer * 11 + example) * 13 + latent
        expected = by_the_definition(int(keys[replica]), 3, step, place)
        assert noise[outer, replica, example, latent].item() == pytest.approx(expected, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_ends_are_open(monkeypatch, dtype):
    """Words of all zeros and of all ones: what a logarithm is taken of is neither 0 nor 1."""
    for word in (0, philox.LOW):
        ones = torch.full((1, 1), word)
        monkeypatch.setattr(philox, "philox", lambda counter, key, ones=ones: (ones, ones, ones, ones))
        noise = philox.uniform(torch.tensor([1]), 0, torch.tensor(0), (1, 2), 0, dtype)
        assert noise.dtype == dtype and noise.min() > 0 and noise.max() < 1
        assert noise.log().isfinite().all() and torch.log1p(-noise).isfinite().all()


def drawn(source, clock, step, *draws):
    clock.fill_(step)
    source.rewind()
    return [source(*draw).clone() for draw in draws]


def test_noise_depends_on_seed_purpose_step_and_draw_alone():
    """Whatever the pack, in whatever order steps are visited; all numbers differ."""
    single, double = ((3, 4, 2), torch.float32, CPU, 1), ((9, 3, 4, 2), torch.float64, CPU, 1)
    clock = torch.zeros((), dtype=torch.int64)
    whole = CountedSource(SEEDS, "estimator", clock)
    steps = {step: drawn(whole, clock, step, single, double, single) for step in range(12)}
    alone = CountedSource([6], "estimator", clock)
    for step in (10, 1, 11):
        ours = drawn(
            alone, clock, step, ((1, 4, 2), *single[1:]), ((9, 1, 4, 2), *double[1:]), ((1, 4, 2), *single[1:])
        )
        for mine, theirs, dim in zip(ours, steps[step], (0, 1, 0), strict=True):
            assert torch.equal(mine.squeeze(dim), theirs.select(dim, 1))
    other = drawn(CountedSource(SEEDS, "binarization", clock), clock, 0, single)
    numbers = torch.cat([noise.double().flatten() for own in [*steps.values(), other] for noise in own])
    assert len(numbers.unique()) == len(numbers)
    with pytest.raises(ValueError, match="expected 1 replicas"):
        alone((2, 4, 2), torch.float32, CPU, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_numbers_are_uniform_and_independent(dtype):
    """Chi-squared of 256 cells, and correlations, also of the tails, between seeds, steps, draws, purposes and places.

    Each within 5 standard errors: a false alarm in 1e5 tries (about 20 looks at numbers that are the same each time).
    """
    count = 40_000
    clock = torch.zeros((), dtype=torch.int64)
    shape = ((3, count, 1), dtype, CPU, 1)
    first, second = drawn(CountedSource(SEEDS, "estimator", clock), clock, 0, shape, shape)
    (later,) = drawn(CountedSource(SEEDS, "estimator", clock), clock, 1, shape)
    (other,) = drawn(CountedSource(SEEDS, "labelled", clock), clock, 0, shape)
    for noise in (first, second, later, other):
        found = torch.histc(noise.double(), 256, 0, 1)
        squares = float(((found - 3 * count / 256) ** 2).sum() / (3 * count / 256))
        assert abs(squares - 255) < 5 * math.sqrt(2 * 255)
    pairs = [(first[0], first[1]), (first, second), (first, later), (first, other), (first[:, 1:], first[:, :-1])]
    for x, y in pairs:
        for change in (lambda u: u, torch.log, lambda u: torch.log1p(-u)):
            a, b = (change(values.double()).flatten() for values in (x, y))
            assert abs(torch.corrcoef(torch.stack((a, b)))[0, 1]) < 5 / math.sqrt(a.numel())
    bits = (first.double() * 2**24).long()
    for bit in range(24):
        assert abs((bits >> bit & 1).double().mean() - 0.5) < 5 * 0.5 / math.sqrt(first.numel())


def test_orders_of_data_are_permutations(monkeypatch):
    """Each of a seed and an epoch; a place is taken by any image as often as by another."""
    monkeypatch.setattr(Streams, "counts", lambda self, device: True)
    orders = Streams(range(2000)).orders(0, 10)
    assert torch.equal(orders.sort(dim=1).values, torch.arange(10).expand(2000, 10))
    assert torch.equal(Streams([7, 1999]).orders(0, 10), orders[[7, 1999]])
    assert not torch.equal(Streams([7]).orders(1, 10)[0], orders[7])
    found = torch.stack([(orders == image).double().mean(0) for image in range(10)])
    assert (found - 0.1).abs().max() < 5 * math.sqrt(0.1 * 0.9 / 2000)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("shape", "dim"), [((3, 100, 200), 0), ((5, 3, 7, 2), 1), ((3, 1), 0)])
def test_the_kernel_makes_the_same_numbers_on_cuda(dtype, shape, dim):
    keys, step = torch.tensor([2**63 - 1, 12345, 2**40 + 1]), torch.tensor(2**33 + 7)
    ours = philox.uniform(keys.cuda(), 3, step.cuda(), shape, dim, dtype)
    assert philox.no_kernel == "" and torch.equal(ours.cpu(), philox.uniform(keys, 3, step, shape, dim, dtype))
