"""Matrix products in oneDNN: the same numbers as MKL's up to rounding, below autograd and torch.func."""

import pytest
import torch

from training.kernels import matmul

needs_onednn = pytest.mark.skipif(
    not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")),
    reason="this build of torch has no oneDNN",
)


def close(result, exact):
    return (result.double() - exact).abs().max() <= 1e-5 * exact.abs().max()


@pytest.fixture
def everywhere(monkeypatch):
    """On for this test, whatever the processor and the size."""
    was_on = matmul.is_on()
    monkeypatch.setattr(matmul, "is_worthwhile", lambda: True)
    monkeypatch.setattr(matmul, "SMALLEST", 0)
    assert matmul.use_onednn()
    yield
    if not was_on:
        matmul.use_torch()


@needs_onednn
@pytest.mark.parametrize("replicas", [1, 3])
def test_products_of_every_layout(everywhere, replicas):
    """Row-major, transposed, and rows with gaps between them (one half of interleaved categories)."""
    generator = torch.Generator().manual_seed(0)
    plain, transposed, gaps = (
        torch.randn(replicas, 30, 20, generator=generator),
        torch.randn(replicas, 20, 30, generator=generator).mT,
        torch.randn(replicas, 30, 2, 20, generator=generator)[:, :, 1],
    )
    bias = torch.randn(replicas, 1, 30, generator=generator)
    for a in (plain, transposed, gaps):
        for b in (plain, transposed, gaps):
            exact = a.double() @ b.double().mT
            assert close(a @ b.mT, exact)
            assert close(torch.baddbmm(bias, a, b.mT), exact + bias.double())
            assert close(a.mT @ b, a.double().mT @ b.double())


@needs_onednn
def test_a_replicas_product_does_not_depend_on_its_neighbours(everywhere):
    a, b = torch.randn(5, 100, 64), torch.randn(5, 64, 40)
    assert all(torch.equal((a @ b)[r], (a[r : r + 1] @ b[r : r + 1])[0]) for r in range(5))


@needs_onednn
def test_below_autograd_and_torch_func(everywhere):
    x, w, bias = (torch.randn(2, *shape, dtype=torch.float64) for shape in ((7, 6), (6, 5), (1, 5)))

    def f(x, w, bias):
        return torch.baddbmm(bias, x, w).tanh().sum()

    single = [t.float().requires_grad_() for t in (x, w, bias)]
    double = [t.clone().requires_grad_() for t in (x, w, bias)]
    exact = torch.autograd.grad(f(*double), double)
    for gradient, reference in zip(torch.autograd.grad(f(*single), single), exact, strict=True):
        assert close(gradient, reference)
    detached = [t.detach() for t in single]
    for gradient, reference in zip(torch.func.grad(f, (0, 1, 2))(*detached), exact, strict=True):
        assert close(gradient, reference)
    batched = torch.func.vmap(torch.func.grad(f), in_dims=(0, None, None))(
        torch.stack([detached[0]] * 3), *detached[1:]
    )
    assert close(batched[2], exact[0])


@needs_onednn
def test_other_products_stay_as_they_are(everywhere):
    a, b = torch.randn(2, 4, 3, dtype=torch.float64), torch.randn(2, 3, 5, dtype=torch.float64)
    c = torch.randn(2, 4, 5, dtype=torch.float64)
    assert torch.allclose(torch.baddbmm(c, a, b, beta=0.5, alpha=2), 0.5 * c + 2 * torch.einsum("rnk,rkm->rnm", a, b))
    assert torch.bmm(a[:, :0], b).shape == (2, 0, 5) and torch.bmm(a[:0], b[:0]).shape == (0, 4, 5)


def test_small_products_and_other_processors_keep_torchs_kernels(monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert not matmul.is_worthwhile()
    assert not matmul._is_large(torch.zeros(8, 100, 64), torch.zeros(8, 64, 20))
    assert matmul._is_large(torch.zeros(8, 100, 784), torch.zeros(8, 784, 200))
