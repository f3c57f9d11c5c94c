"""Matrix products in oneDNN: the same numbers as MKL's up to rounding, below autograd and torch.func."""

import shutil

import pytest
import torch

from training.kernels import matmul
from training.kernels.compiled import compiled
from training.pack.runner import COMPILERS

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


@pytest.fixture
def calls(monkeypatch):
    """Replicas, rows and columns of every product in oneDNN."""
    found, products = [], matmul._products
    monkeypatch.setattr(
        matmul,
        "_products",
        lambda a, b, bias: found.append((len(a), a.shape[1], b.shape[2])) or products(a, b, bias),
    )
    return found


@needs_onednn
@pytest.mark.parametrize("bias", [True, False])
def test_layers_of_plain_torch_and_their_gradients(everywhere, calls, bias):
    """So scripts beside which a benchmark puts the harness multiply by the same library."""
    x, layer = torch.randn(7, 6, requires_grad=True), torch.nn.Linear(6, 5, bias=bias)
    exact = x.double() @ layer.weight.double().T + (layer.bias.double() if bias else 0)
    assert close(layer(x), exact) and calls == [(1, 7, 5)]
    inputs = [x, layer.weight]
    gradients = torch.autograd.grad(layer(x).square().sum(), inputs)
    for gradient, reference in zip(gradients, torch.autograd.grad(exact.square().sum(), inputs), strict=True):
        assert close(gradient, reference.double())
    assert sorted(calls[1:]) == [(1, 5, 6), (1, 7, 5), (1, 7, 6)]
    c = torch.randn(7, 5)
    assert close(torch.addmm(c, x, layer.weight.T, beta=0.5), 0.5 * c + x.double() @ layer.weight.double().T)


@needs_onednn
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("replicas", [1, 3])
def test_compiled_code_has_the_products_of_eager_code(everywhere, calls, backend, replicas):
    """Forward, and the gradients by autograd within it; other dtypes are left to the compiler."""
    if backend == "inductor" and not any(map(shutil.which, COMPILERS)):
        pytest.skip("Inductor compiles by a C++ compiler, which is not here")

    def work(tensors):
        x, w, bias, double = tensors
        w = w.detach().requires_grad_()
        y = torch.baddbmm(bias, x, w)
        (gradient,) = torch.autograd.grad(y, w, y.detach())
        return torch.cat((y, gradient, (double @ double).float()), dim=1)

    shapes = (replicas, 7, 6), (replicas, 6, 5), (replicas, 1, 5)
    tensors = [*(torch.randn(*shape) for shape in shapes), torch.randn(replicas, 5, 5, dtype=torch.float64)]
    run = compiled(work, tensors, backend)
    calls.clear()
    result = run(tensors)
    assert calls == [(replicas, 7, 5), (replicas, 6, 5)]
    torch.testing.assert_close(result, work(tensors).detach(), rtol=1e-6, atol=1e-6)


@needs_onednn
def test_other_products_stay_as_they_are(everywhere):
    a, b = torch.randn(2, 4, 3, dtype=torch.float64), torch.randn(2, 3, 5, dtype=torch.float64)
    c = torch.randn(2, 4, 5, dtype=torch.float64)
    assert torch.allclose(torch.baddbmm(c, a, b, beta=0.5, alpha=2), 0.5 * c + 2 * torch.einsum("rnk,rkm->rnm", a, b))
    assert torch.bmm(a[:, :0], b).shape == (2, 0, 5) and torch.bmm(a[:0], b[:0]).shape == (0, 4, 5)


def test_small_products_and_other_processors_keep_torchs_kernels(monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    has_both = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
    for vendor, family, at_full_width in (
        ("AuthenticAMD", 26, True),
        ("AuthenticAMD", 25, False),
        ("GenuineIntel", 6, 0),
    ):
        cpu = f"vendor_id\t: {vendor}\ncpu family\t: {family}\n"
        monkeypatch.setattr(matmul.Path, "read_text", lambda self, cpu=cpu: cpu)
        assert matmul.is_worthwhile() == (has_both and at_full_width)
    monkeypatch.undo()
    monkeypatch.setattr(matmul, "_overrides", None)
    assert not matmul.replacements()
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert not matmul.is_worthwhile()
    assert not matmul._is_large(torch.zeros(8, 100, 64), torch.zeros(8, 64, 20))
    assert matmul._is_large(torch.zeros(8, 100, 784), torch.zeros(8, 784, 200))
