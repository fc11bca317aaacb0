"""Kernels against the plain ops, in Triton's interpreter; run by ``test_interpreter.py`` in a process of its own.

All in fp32 (the interpreter computes bf16 wrongly), at sizes that fill no block, with outputs that start as NaN: what
a kernel does not write is seen. Races are not: programs run one after the other.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from triton.runtime.interpreter import GridExecutor

from clgym import ops
from clgym.philox import words

M, K, N = 70, 45, 99  # no multiple of a block, nor of four


@pytest.fixture(autouse=True)
def poison(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fill what the launchers allocate, and see that a kernel was launched."""

    def poisoned(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def made(*args: Any, **kwargs: Any) -> Tensor:
            out = make(*args, **kwargs)
            if sys._getframe(1).f_globals["__name__"].startswith("clgym.kernels."):
                out.fill_(float("nan") if out.is_floating_point() else 1)
            return out

        return made

    launches: list[Any] = []

    def counted(self: GridExecutor, *args: Any, **kwargs: Any) -> None:
        launches.append(self)
        launch(self, *args, **kwargs)

    launch = GridExecutor.__call__
    monkeypatch.setattr(GridExecutor, "__call__", counted)
    monkeypatch.setattr(torch, "empty", poisoned(torch.empty))
    monkeypatch.setattr(torch, "empty_like", poisoned(torch.empty_like))
    monkeypatch.setattr(Tensor, "new_empty", poisoned(Tensor.new_empty))
    yield
    assert launches, "no kernel has run"


def drawn(*shapes: tuple[int, ...], seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def both(function: Callable[..., Tensor], learned: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield output and gradients by kernel and by torch."""
    results: list[list[Tensor]] = []
    for name in ("interpret", "torch"):
        leaves = [t.detach().clone().requires_grad_() for t in learned]
        with ops.backend(name):
            y = function(*leaves)
            upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(9))
            results.append([y.detach(), *torch.autograd.grad(y, leaves, upstream)])
    return zip(*results, strict=True)


def agree(function: Callable[..., Tensor], *learned: Tensor, tolerance: float = 2e-5) -> None:
    for ours, theirs in both(function, learned):
        assert ours.shape == theirs.shape
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance * max(1.0, float(theirs.abs().max())))


@pytest.mark.parametrize(("rank", "with_bias", "with_gate"), [(3, True, False), (5, False, True), (35, True, True)])
def test_lora_linear(rank: int, with_bias: bool, with_gate: bool) -> None:
    x, W, b, A, Bt, g = drawn((M, K), (N, K), (N,), (rank, K), (rank, N), (rank,))
    bias = b if with_bias else None

    def f(x: Tensor, A: Tensor, Bt: Tensor, *gate: Tensor) -> Tensor:
        return ops.lora_linear(x, W, bias, A, Bt, gate[0] if gate else None, 0.7)

    agree(f, x, A, Bt, *([g] if with_gate else []))


@pytest.mark.parametrize("rows", [1, 130])
def test_lora_linear_with_one_row_and_with_two_blocks(rows: int) -> None:
    x, W, A, Bt = drawn((rows, K), (N, K), (4, K), (4, N))
    agree(lambda x, A, Bt: ops.lora_linear(x, W, None, A, Bt), x, A, Bt)


def test_lora_linear_with_dropout_draws_the_mask_of_the_plain_op_in_both_passes() -> None:
    x, W, b, A, Bt = drawn((M, K), (N, K), (N,), (4, K), (4, N))
    for seed in (0, 2**40 + 5):
        agree(lambda x, A, Bt, s=seed: ops.lora_linear(x, W, b, A, Bt, dropout=0.3, seed=s), x, A, Bt)


def test_lora_linear_with_a_frozen_branch_and_an_input_that_is_not_contiguous() -> None:
    x, W, A, Bt, g = drawn((K, 2, 35), (N, K), (4, K), (4, N), (4,))
    agree(lambda x: ops.lora_linear(x.permute(1, 2, 0), W, None, A, Bt, g), x)


def test_atomic_sums_are_those_in_order() -> None:
    from clgym.kernels import lora_linear as kernel

    dy, Bt, s = drawn((300, N), (4, N), (300, 4))
    for ordered, atomic in zip(kernel.backward_up(dy, Bt, s), kernel.backward_up(dy, Bt, s, atomic=True), strict=True):
        torch.testing.assert_close(ordered, atomic, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(5,), (7, 5), (7, 10, 5), (7, 1, 5), None], ids=str)
def test_stacked_lora(shape: tuple[int, ...] | None) -> None:
    # Tasks of 2, 0, 3, 1 and 4 ranks; the first five rows are frozen.
    x, W, b, A, Bt = drawn((7, 10, K), (N, K), (N,), (10, K), (10, N))
    gates = drawn(shape, seed=1) if shape else []
    if shape == (7, 1, 5):
        gates, x = drawn((7, 5), seed=1), x[:, :1]
    offsets = (0, 2, 2, 5, 6, 10)

    def f(x: Tensor, A: Tensor, Bt: Tensor, *gate: Tensor) -> Tensor:
        return ops.stacked_lora(x, W, b, A, Bt, gate[0] if gate else None, 0.7, offsets=offsets, frozen=5)

    agree(f, x, A, Bt, *gates)


@pytest.mark.parametrize(("ranks", "topk", "delta"), [(37, 4, None), (37, 4, 0.2), (16, 16, None), (3, 2, 0.1)])
def test_rank_gate(ranks: int, topk: int, delta: float | None) -> None:
    (p,) = drawn((33, ranks))
    agree(lambda p: ops.rank_gate(p, topk, 0.1, delta), p)


def test_rank_gate_takes_the_first_of_equal_responses() -> None:
    p = torch.tensor([[1.0, 2.0, 1.0, 1.0], [0.0, -0.0, 0.0, -0.0], [-1.0, -1.0, -1.0, -2.0]])
    with ops.backend("interpret"):
        active = ops.activations(p, 2, 0.5) > 0
    assert active.tolist() == [[True, True, False, False]] * 3
    agree(lambda p: ops.rank_gate(p, 2, 0.5), p[[0, 2]])


@pytest.mark.parametrize(("ranks", "topk"), [(37, 4), (5, 5)])
def test_router_gate(ranks: int, topk: int) -> None:
    p, logits, bias = drawn((33, ranks), (33, ranks), (ranks,))
    agree(lambda p, logits: ops.router_gate(p, logits, 0.01 * bias, topk), p, logits)


@pytest.mark.parametrize("tokens", [3, 70])
def test_batched_lora(tokens: int) -> None:
    x, W, b, A, Bt = drawn((6, tokens, K), (N, K), (N,), (4, 3, K), (4, 3, N))
    index = torch.tensor([2, 0, 2, 3, 0, 2])  # adapter 1 serves nobody
    agree(lambda x, A, Bt: ops.batched_lora(x, W, b, A, Bt, index, 0.7), x, A, Bt)


@pytest.mark.parametrize("grouped", [False, True])
def test_adamw_prox(grouped: bool) -> None:
    ends = []
    member = torch.arange(1500) % 5 - 1
    groups = ops.group_segments(member) if grouped else None
    for name in ("interpret", "torch"):
        w, m, v, step = drawn((1500,))[0], torch.zeros(1500), torch.zeros(1500), torch.tensor(0.0)
        with ops.backend(name):
            for number in range(10):
                (grad,) = drawn((1500,), seed=number)
                kappa = 0.01 * number
                moments: dict[str, Any] = {"exp_avg": m, "exp_avg_sq": v, "step": step}
                settings: dict[str, Any] = {"betas": (0.9, 0.9999), "weight_decay": 0.1, "start": 3, "stop": 1400}
                ops.adamw_prox_(w, grad, **moments, lr=0.02, kappa=kappa, groups=groups, **settings)
        ends.append((w, m, v, step))
    for ours, theirs in zip(*ends, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert (ends[0][0] == 0).equal(ends[1][0] == 0)
    assert bool((ends[0][0] == 0).any()) != grouped


def test_a_group_below_the_threshold_vanishes() -> None:
    groups = ops.group_segments(torch.tensor([0, 1, 0, -1]))
    with ops.backend("interpret"):
        w = ops.group_threshold_(torch.tensor([3.0, 0.1, 4.0, 9.0]), groups, 2.5)
    assert w.tolist() == pytest.approx([1.5, 0.0, 2.0, 9.0])


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("batch", [(), (3,)])
def test_project_out(side: Any, batch: tuple[int, ...]) -> None:
    (G,) = drawn((*batch, K, N))
    U = torch.linalg.qr(drawn((*batch, K if side == "left" else N, 5), seed=1)[0]).Q
    agree(lambda G: ops.project_out(G, U, side), G)


@pytest.mark.parametrize("block", [2, 64])
def test_nf4_linear(block: int) -> None:
    W, x, b = drawn((N, 64), (5, 64), (N,))
    packed, absmax = ops.nf4_quantize(W, block)
    agree(lambda x: ops.nf4_linear(x, packed, absmax, b, block=block), x)
    with ops.backend("interpret"):
        ours = ops.nf4_dequantize(packed, absmax, block)
    assert torch.equal(ours, ops.nf4_dequantize(packed, absmax, block))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_merge_stochastic_is_the_plain_op_bit_for_bit_up_to_the_order_of_sums(dtype: torch.dtype) -> None:
    W, A, Bt, g = drawn((N, K), (3, K), (3, N), (3,))
    W, A = W.to(dtype), 1e-2 * A
    W[0, 0] = torch.inf
    merged = []
    for name in ("interpret", "torch"):
        with ops.backend(name):
            merged.append(ops.merge_stochastic(W, A, Bt, g, 0.7, seed=3, dtype=torch.bfloat16))
    assert merged[0].dtype == torch.bfloat16
    assert float((merged[0] != merged[1]).float().mean()) < 1e-3
    torch.testing.assert_close(merged[0].float(), merged[1].float(), rtol=2**-7, atol=0)


def test_the_plain_words_are_tritons() -> None:
    import triton
    import triton.language as tl

    def fill(out: Any, seed: Any, block: tl.constexpr) -> None:
        at = tl.arange(0, block)
        drawn = tl.randint4x(seed, at, 7)
        for j in tl.static_range(4):
            tl.store(out + j * block + at, drawn[j].to(tl.int64))

    for seed in (0, 7, 2**40 + 3):
        out = torch.zeros(4, 64, dtype=torch.int64)
        triton.jit(fill)[(1,)](out, seed, block=64)
        assert torch.equal(out & 0xFFFFFFFF, words(1, 256, seed).view(4, 64))
