"""The ops as torch's dispatcher and its compiler see them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from clgym import ops

# Gradients are recorded around these ops, not in them, so opcheck's look at their registration is left out.
CHECKS = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
OFFSETS = (0, 1, 3)


def drawn(*shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def raw_calls() -> dict[str, tuple[Any, ...]]:
    """Return an op's name and arguments for each op of the dispatcher."""
    x, W, b, A, Bt, g = drawn((6, 5), (4, 5), (4,), (3, 5), (3, 4), (3,))
    dy, s, p, gate = drawn((6, 4), (6, 3), (6, 3), (2, 2))
    pool, up, samples = drawn((2, 3, 5), (2, 3, 4), (3, 2, 5))
    index, flat = torch.tensor([1, 0, 1]), [t.abs() for t in drawn((9,), (9,), (9,), (9,))]
    packed, absmax = ops.nf4_quantize(drawn((4, 4))[0], 4)
    order, offsets = ops.group_segments(torch.arange(9) % 3)
    a = torch.softmax(p, -1)
    return {
        "lora_linear": (x, W, b, A, Bt, g, 0.5, 0.2, 7),
        "lora_linear_backward": (dy, x, s, W, A, Bt, g, 0.5, 0.2, 7, True, True, True),
        "stacked_lora": (x, W, b, A, Bt, gate, 0.5, OFFSETS, True),
        "stacked_lora_backward": (dy, x, s, W, A, Bt, gate, 0.5, OFFSETS, 1, True, True, True, True),
        "rank_gate": (p, 2, 0.1, 0.2),
        "rank_gate_backward": (s, p, a, 0.1, None),
        "router_gate": (p, s, g, 2),
        "router_gate_backward": (s, p, s, g, a),
        "batched_lora": (samples, W, b, pool, up, index, 0.5),
        "batched_lora_backward": (
            *(drawn((3, 2, 4))[0], samples, drawn((3, 2, 3))[0], W, pool, up, index, 0.5),
            *(True, True, True),
        ),
        "adamw_prox_": (*flat, torch.tensor(1.0), 0.1, 0.9, 0.99, 1e-8, 0.1, 0.01, 2, 8),
        "group_threshold_": (flat[0], order, offsets, 0.5),
        "project_out": (W, torch.eye(4)[:, :2], True),
        "nf4_dequantize": (packed, absmax, 4, torch.float32),
        "merge_stochastic": (W, A, Bt, g, 0.5, 3, torch.bfloat16),
    }


RAW = raw_calls()


def test_every_op_of_the_dispatcher_is_here() -> None:
    registered = {name.partition("::")[2] for name in torch._C._dispatch_get_all_op_names() if name[:7] == "clgym::"}
    assert registered == set(RAW)


@pytest.mark.parametrize("name", RAW)
def test_opcheck(name: str) -> None:
    opcheck(getattr(torch.ops.clgym, name).default, RAW[name], test_utils=CHECKS)


def learned_calls() -> dict[str, tuple[Callable[..., Tensor], list[Tensor]]]:
    """Return each op with a gradient, as a function of what learns."""
    x, W, b, A, Bt, g = drawn((2, 6, 5), (4, 5), (4,), (3, 5), (3, 4), (3,))
    gate, p, U = (*drawn((2, 2), (2, 6, 7)), torch.linalg.qr(drawn((4, 2))[0]).Q)
    pool, up, index = *drawn((2, 3, 5), (2, 3, 4)), torch.tensor([1, 0])
    packed, absmax = ops.nf4_quantize(drawn((4, 5))[0], 4)
    return {
        "split": (lambda x, A, Bt, g: ops.lora_linear(x, W, b, A, Bt, g, 0.5), [x, A, Bt, g]),
        "dropout": (lambda x, A, Bt: ops.lora_linear(x, W, b, A, Bt, dropout=0.3, seed=5), [x, A, Bt]),
        "merged": (lambda x, A, Bt: ops.lora_linear(x, W, b, A, Bt, mode="merged"), [x, A, Bt]),
        "stacked_lora": (lambda x, A, Bt, g: ops.stacked_lora(x, W, b, A, Bt, g, offsets=OFFSETS), [x, A, Bt, gate]),
        "rank_gate": (lambda p: ops.rank_gate(p, 3, 0.1), [p]),
        "router_gate": (lambda p, z: ops.router_gate(p, z, torch.zeros(7), 3), [p, p.flip(0)]),
        "expert_linear": (
            lambda x, A, Bt: ops.expert_linear(x, W, b, (-A.detach(), Bt.detach()), A, Bt, topk=2, temperature=0.1),
            [x, A, Bt],
        ),
        "batched_lora": (lambda x, A, Bt: ops.batched_lora(x, W, b, A, Bt, index), [x, pool, up]),
        "project_out": (lambda G: ops.project_out(G, U), [W]),
        "nf4_linear": (lambda x: ops.nf4_linear(x, packed, absmax, b, block=4), [x]),
    }


LEARNED = learned_calls()


def gradients(function: Callable[..., Tensor], leaves: Sequence[Tensor]) -> list[Tensor]:
    learned = [leaf.detach().clone().requires_grad_() for leaf in leaves]
    y = function(*learned)
    return [y.detach(), *torch.autograd.grad(y.square().sum(), learned)]


def test_every_op_with_a_gradient_is_compiled_below() -> None:
    assert {"split", "dropout", "merged"} | {op for op in ops.__all__ if op in LEARNED} == set(LEARNED)


@pytest.mark.parametrize("name", LEARNED)
def test_the_compiler_takes_it_whole(name: str) -> None:
    function, leaves = LEARNED[name]
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for ours, theirs in zip(gradients(compiled, leaves), gradients(function, leaves), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_step_of_the_optimizer_is_compiled_whole() -> None:
    def take(w: Tensor, grad: Tensor, m: Tensor, v: Tensor, step: Tensor) -> Tensor:
        return ops.adamw_prox_(w, grad, m, v, step, lr=0.1, kappa=0.05, start=2)

    ends = []
    for function in (take, torch.compile(take, fullgraph=True, backend="aot_eager")):
        state = [*(t.abs() for t in drawn((9,), (9,), (9,), (9,))), torch.tensor(0.0)]
        ends.append([function(*state), *state])
    for ours, theirs in zip(*ends, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.slow
def test_inductor_takes_a_layer_whole() -> None:
    function, leaves = LEARNED["split"]
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True)
    for ours, theirs in zip(gradients(compiled, leaves), gradients(function, leaves), strict=True):
        torch.testing.assert_close(ours, theirs)
