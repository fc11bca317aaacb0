"""Kernels on a GPU: bf16 against float64 on inputs drawn anew, results that repeat, and what is launched."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from clgym import ops

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

M, K, N = 1000, 770, 1030  # no multiple of a block


def drawn(*shapes: tuple[int, ...], dtype: torch.dtype = torch.bfloat16) -> list[Tensor]:
    return [torch.randn(shape, device="cuda").div_(shape[-1] ** 0.25).to(dtype) for shape in shapes]


def far(ours: Tensor, exact: Tensor) -> float:
    return float((ours.double() - exact).norm() / exact.norm())


def check(function: Callable[..., Tensor], *leaves: Tensor, tolerance: float = 1e-2) -> None:
    """Compare output and gradients with float64, and two runs with each other, bit for bit."""
    results: list[list[Tensor]] = []
    cases = [("triton", leaves), ("triton", leaves), ("torch", tuple(leaf.double() for leaf in leaves))]
    for name, given in cases:
        learned = [leaf.detach().clone().requires_grad_() for leaf in given]
        with ops.backend(name):  # type: ignore[arg-type]
            y = function(*learned)
            dy = torch.randn(y.shape, generator=torch.Generator("cuda").manual_seed(1), device="cuda").to(y.dtype)
            results.append([y.detach(), *torch.autograd.grad(y, learned, dy)])
    for ours, again, exact in zip(*results, strict=True):
        assert torch.equal(ours, again)
        assert far(ours, exact) <= tolerance


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("rank", [4, 16, 64, 200])
def test_lora_linear(rank: int, dtype: torch.dtype) -> None:
    x, W, b, A, Bt, g = drawn((M, K), (N, K), (N,), (rank, K), (rank, N), (rank,), dtype=dtype)

    def f(x: Tensor, A: Tensor, Bt: Tensor, g: Tensor) -> Tensor:
        return ops.lora_linear(x, W.to(x.dtype), b.to(x.dtype), A, Bt, g, 0.5)

    check(f, x, A, Bt, g, tolerance=1e-5 if dtype == torch.float32 else 1e-2)


def test_lora_linear_with_dropout() -> None:
    x, W, A, Bt = drawn((M, K), (N, K), (16, K), (16, N))
    check(lambda x, A, Bt: ops.lora_linear(x, W.to(x.dtype), None, A, Bt, dropout=0.1, seed=2**40), x, A, Bt)


def test_lora_linear_with_a_frozen_branch() -> None:
    x, W, A, Bt = drawn((M, K), (N, K), (16, K), (16, N))
    check(lambda x: ops.lora_linear(x, W.to(x.dtype), None, A.to(x.dtype), Bt.to(x.dtype)), x)


@pytest.mark.parametrize("shape", [(5,), (10, 5), (10, 100, 5)], ids=str)
def test_stacked_lora(shape: tuple[int, ...]) -> None:
    x, W, A, Bt, gate = drawn((10, 100, K), (N, K), (40, K), (40, N), shape)
    offsets = (0, 8, 8, 20, 30, 40)

    def f(x: Tensor, A: Tensor, Bt: Tensor, gate: Tensor) -> Tensor:
        return ops.stacked_lora(x, W.to(x.dtype), None, A, Bt, gate, offsets=offsets, frozen=30)

    check(f, x, A, Bt, gate)


def test_batched_lora() -> None:
    x, W, A, Bt = drawn((9, 33, K), (N, K), (5, 8, K), (5, 8, N))
    index = torch.tensor([4, 0, 4, 1, 1, 1, 0, 4, 2], device="cuda")
    check(lambda x, A, Bt: ops.batched_lora(x, W.to(x.dtype), None, A, Bt, index), x, A, Bt)


def test_gates() -> None:
    # Selections in bf16 and float64 are the same: the responses are the same numbers.
    p, logits = drawn((M, 160), (M, 160))
    bias = torch.zeros(160, device="cuda")
    check(lambda p: ops.rank_gate(p, 16, 0.1, 0.05), p)
    check(lambda p, z: ops.router_gate(p, z, bias, 8), p, logits, tolerance=2e-2)


def test_project_out() -> None:
    (G,) = drawn((3, K, N), dtype=torch.float32)
    U = torch.linalg.qr(torch.randn(3, K, 40, device="cuda")).Q
    check(lambda G: ops.project_out(G, U), G, tolerance=1e-5)
    with ops.backend("triton"):
        assert float((U.mT @ ops.project_out(G, U)).abs().max()) < 1e-4


def test_nf4_linear() -> None:
    W, x = drawn((N, 768), (M, 768))
    packed, absmax = ops.nf4_quantize(W.float())
    check(lambda x: ops.nf4_linear(x, packed, absmax), x)


def test_adamw_prox_against_float64() -> None:
    ends = []
    for name, dtype in (("triton", torch.float32), ("torch", torch.float64)):
        generator = torch.Generator("cuda").manual_seed(0)
        w, m, v = (
            torch.randn(5000, generator=generator, device="cuda").to(dtype),
            *torch.zeros(2, 5000, dtype=dtype).cuda(),
        )
        step = torch.zeros((), device="cuda")
        with ops.backend(name):  # type: ignore[arg-type]
            for _ in range(10):
                grad = torch.randn(5000, generator=generator, device="cuda").to(dtype)
                ops.adamw_prox_(w, grad, m, v, step, lr=0.02, weight_decay=0.1, kappa=0.01, start=100)
        ends.append(w)
    assert far(ends[0], ends[1]) < 1e-5
    assert float(((ends[0] == 0) != (ends[1] == 0)).double().mean()) < 1e-3


def test_merge_stochastic_throws_the_same_dice_as_on_a_cpu() -> None:
    W, A, Bt = drawn((N, K), (16, K), (16, N))
    with ops.backend("triton"):
        ours = ops.merge_stochastic(W, A, 0.01 * Bt, seed=7).cpu()
    theirs = ops.merge_stochastic(W.cpu(), A.cpu(), 0.01 * Bt.cpu(), seed=7)
    assert float((ours != theirs).double().mean()) < 1e-3


def test_what_is_taken_without_being_asked() -> None:
    x, W, A, Bt = drawn((M, K), (N, K), (16, K), (16, N))
    assert ops.explain("lora_linear", x, W, None, A, Bt).path == "triton"
    assert ops.explain("lora_linear", x.double(), W, None, A, Bt).path == "torch"


def test_a_step_is_compiled_whole() -> None:
    x, W, A, Bt = drawn((M, K), (N, K), (16, K), (16, N))
    compiled = torch.compile(lambda x, A: ops.lora_linear(x, W, None, A, Bt), fullgraph=True, backend="aot_eager")
    learned = [t.clone().requires_grad_() for t in (x, A)]
    y = compiled(*learned)
    plain = ops.lora_linear(learned[0], W, None, learned[1], Bt)
    assert torch.equal(y, plain)
    for ours, theirs in zip(
        torch.autograd.grad(y.sum(), learned), torch.autograd.grad(plain.sum(), learned), strict=True
    ):
        assert torch.equal(ours, theirs)
