"""What ``kernels_gpu.py`` measures: each job checks itself against float64, then returns the calls to be timed.

Sizes are those of the goals; with ``TINY`` the jobs run anywhere, but for the thin kernels.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from steps import Answer, Work, adapted, our_step, peft_like, peft_step, plain, vision_model
from torch import Tensor, nn
from torch.nn import functional as F

from clgym import ops
from clgym.lora import LoRALinear, LoRASet, adapt

DTYPE = torch.bfloat16
Made = dict[str, Work]
THIN = ("shrink", "expand", "backward_up", "backward_down")


@dataclass(frozen=True)
class Sizes:
    """What is measured; tests take smaller ones.

    Attributes:
        device: Where.
        small: Widths in and out and tokens of a linear layer of ViT-B.
        large: The same of an 8B language model.
        vit: Arguments of ``vision_model``.
        images: Images of a batch.
        llama: Settings of one block.
        tokens: Length of its sequence.
        rotated: Bytes of inputs in rotation; more than a cache holds.
        copied: Bytes of the copy that gives the bandwidth.
    """

    device: str = "cuda"
    small: tuple[int, int, int] = (768, 768, 12_608)
    large: tuple[int, int, int] = (4096, 4096, 16_384)
    vit: dict[str, int] = field(
        default_factory=lambda: {"width": 768, "layers": 12, "patch": 16, "pixels": 224, "head": 64}
    )
    images: int = 64
    llama: dict[str, int] = field(
        default_factory=lambda: {
            **{"hidden_size": 4096, "intermediate_size": 14_336},
            **{"num_attention_heads": 32, "num_key_value_heads": 8},
        }
    )
    tokens: int = 8192
    rotated: int = 256 << 20
    copied: int = 1 << 30

    def drawn(self, *shape: int, seed: int = 0, dtype: torch.dtype = DTYPE) -> Tensor:
        """Return normal numbers, smaller where they are summed over more."""
        generator = torch.Generator(self.device).manual_seed(100 + seed)
        numbers = torch.randn(shape, generator=generator, device=self.device)
        return numbers.div_(shape[-1] ** 0.5).to(dtype)

    def rotation(self, *shape: int) -> Callable[[], Tensor]:
        """Return what hands out inputs in turn."""
        count = max(2, -(-self.rotated // (2 * shape[0] * shape[1])))
        return itertools.cycle([self.drawn(*shape, seed=seed) for seed in range(count)]).__next__


TINY = Sizes(
    device="cpu",
    small=(72, 80, 50),
    large=(96, 64, 70),
    vit={"width": 32, "layers": 2, "patch": 8, "pixels": 32, "head": 16},
    images=3,
    llama={"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2},
    tokens=10,
    rotated=1,
    copied=64,
)


def far(ours: Tensor, exact: Tensor) -> float:
    """Return the relative error."""
    return float((ours.double() - exact).norm() / exact.norm())


def check_close(what: str, ours: Sequence[Tensor], exact: Sequence[Tensor], most: float = 1e-2) -> None:
    """Raise unless each result is as close to float64 as bf16 allows."""
    errors = [far(a, b) for a, b in zip(ours, exact, strict=True)]
    if not max(errors) <= most:
        raise AssertionError(f"Expected {what} within {most} of float64; got {errors}. Do not trust the times.")


def linear_job(sizes: Sizes, shape: tuple[int, int, int], r: int) -> Made:
    """Return forward and backward of one layer: frozen, with a branch of ours in both modes, and with PEFT's."""
    k, n, m = shape
    W, dy = sizes.drawn(n, k, seed=-1), sizes.drawn(m, n, seed=-2)
    A, Bt = (sizes.drawn(r, width, seed=-3, dtype=torch.float32).requires_grad_() for width in (k, n))
    learned = [A, Bt]
    inputs = sizes.rotation(m, k)

    def frozen() -> tuple[Tensor, ...]:
        x = inputs().detach().requires_grad_()
        return torch.autograd.grad(F.linear(x, W), x, dy)

    def ours(mode: Any) -> Callable[..., tuple[Tensor, ...]]:
        def step(x: Tensor | None = None) -> tuple[Tensor, ...]:
            x = (inputs() if x is None else x).detach().requires_grad_()
            y = ops.lora_linear(x, W.to(x.dtype), None, A, Bt, mode=mode)
            return (y.detach(), *torch.autograd.grad(y, [x, *learned], dy.to(x.dtype)))

        return step

    layer = nn.Linear(k, n, bias=False, device=sizes.device, dtype=DTYPE)
    layer.weight = nn.Parameter(W, requires_grad=False)
    whole = nn.Sequential(layer)
    wrapped = peft_like(adapt(whole, r=r, targets="0", generator=torch.Generator()), nn.Sequential(layer))
    theirs = [p for p in wrapped.parameters() if p.requires_grad]

    def peft() -> tuple[Tensor, ...]:
        x = inputs().detach().requires_grad_()
        return torch.autograd.grad(wrapped(x), [x, *theirs], dy)

    x = inputs()
    with ops.backend("torch"):
        exact = ours("split")(x.double())
    check_close("lora_linear, split", ours("split")(x), exact)
    check_close("lora_linear, merged", ours("merged")(x), exact, 2e-2)  # the weight is rounded once more
    return {"frozen": frozen, "again": frozen, "split": ours("split"), "merged": ours("merged"), "peft": peft}


def vit(sizes: Sizes) -> tuple[nn.Module, Tensor]:
    """Return ViT-B and a batch."""
    side = sizes.vit["pixels"]
    return vision_model(**sizes.vit).to(sizes.device, DTYPE), sizes.drawn(sizes.images, 3, side, side)


def last_states(model: nn.Module, inputs: Tensor) -> Tensor:
    """Answer with the last hidden states of a language model."""
    states: Tensor = model(inputs_embeds=inputs, use_cache=False).last_hidden_state
    return states


def llama(sizes: Sizes) -> tuple[nn.Module, Tensor]:
    """Return one block with random weights, and the states that come in, which pass their gradient on."""
    from transformers import LlamaConfig, LlamaModel

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaModel(LlamaConfig(num_hidden_layers=1, vocab_size=32, **sizes.llama))
    states = sizes.drawn(1, sizes.tokens, sizes.llama["hidden_size"])
    return model.to(sizes.device, DTYPE).requires_grad_(False), states.requires_grad_()


BLOCK = [*(f"layers.0.self_attn.{x}_proj" for x in "qkvo"), *(f"layers.0.mlp.{x}_proj" for x in ("gate", "up", "down"))]


def whole_job(
    model: nn.Module,
    inputs: Tensor,
    targets: Sequence[str] | None = None,
    answer: Answer = plain,
    *,
    capturable: bool = False,
) -> Made:
    """Return whole training steps of ours and of PEFT's, from equal branches."""
    lora, twin = adapted(model, 16, targets), adapted(model, 16, targets)
    wrapped = peft_like(lora, model)
    exact = adapted(model.double(), 16, targets)
    model.to(DTYPE)
    few = inputs[:8, :1024]  # attention in float64 takes the square of the length
    with torch.no_grad():
        truth = answer(exact.model, few.double())
        errors = [far(answer(whole, few), truth) for whole in (lora.model, wrapped)]
    if not errors[0] <= 1.5 * errors[1]:
        raise AssertionError(f"Expected errors of ours no larger than PEFT's; got {errors}. Do not trust the times.")
    return {
        "ours": our_step(lora, inputs, answer),
        "again": our_step(twin, inputs, answer),
        "peft": peft_step(wrapped, inputs, answer, capturable=capturable),
    }


class Dropping(nn.Module):
    """An adapted layer with dropout before its branch, another mask for every call."""

    def __init__(self, fresh: LoRALinear, dropout: float) -> None:
        """Take the layer over."""
        super().__init__()
        self.fresh, self.dropout, self.calls = fresh, dropout, 0
        self.weight = fresh.weight  # models ask their layers for its dtype

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(..., in)`` to ``(..., out)``."""
        self.calls += 1
        base = self.fresh.base
        branch = self.fresh.A, self.fresh.Bt, self.fresh.gate, self.fresh.scale
        return ops.lora_linear(x, base.weight, base.bias, *branch, dropout=self.dropout, seed=self.calls)


def with_dropout(lora: LoRASet, dropout: float = 0.1) -> LoRASet:
    lora.replace(lambda fresh: Dropping(fresh, dropout))
    return lora


def memory_job(sizes: Sizes) -> dict[str, Callable[[], Work]]:
    """Return what builds a step with dropout, of ours and of PEFT's."""
    model, images = vit(sizes)

    def peft() -> Work:
        return peft_step(peft_like(adapted(model, 16), model, dropout=0.1).train(), images)

    return {"ours": lambda: our_step(with_dropout(adapted(model, 16)), images), "peft": peft}


def thin_job(sizes: Sizes, shape: tuple[int, int, int], r: int) -> tuple[Made, dict[str, int]]:
    """Return calls of the copy and of each thin kernel, and the least bytes that each must move."""
    from clgym.kernels import lora_linear as kernel

    k, n, m = shape
    A, B = (sizes.drawn(r, width, seed=-3, dtype=torch.float32) for width in (k, n))
    s, xs, dys = sizes.drawn(m, r, seed=-4), sizes.rotation(m, k), sizes.rotation(m, n)
    x, dy = xs(), dys()
    low, up = A.double(), B.double()
    check_close("shrink", [kernel.shrink(x, A)], [x.double() @ low.T])
    check_close("expand", [kernel.expand(s, B)], [s.double() @ up])
    check_close("backward_up", kernel.backward_up(dy, B, s), [dy.double() @ up.T, s.double().T @ dy.double()])
    check_close("backward_down", [kernel.backward_down(s, x)], [s.double().T @ x.double()])
    source = torch.zeros(sizes.copied // 2, dtype=torch.uint8, device=sizes.device)
    target = torch.empty_like(source)
    work: Made = {
        "copy": lambda: target.copy_(source),
        "again": lambda: target.copy_(source),
        "shrink": lambda: kernel.shrink(xs(), A),
        "expand": lambda: kernel.expand(s, B),
        "backward_up": lambda: kernel.backward_up(dys(), B, s),
        "backward_down": lambda: kernel.backward_down(s, xs()),
    }
    rows = 2 * m * r
    moved = {
        "copy": 2 * source.nbytes,
        "shrink": x.nbytes + A.nbytes + rows,
        "expand": dy.nbytes + B.nbytes + rows,
        "backward_up": dy.nbytes + 2 * B.nbytes + 2 * rows,
        "backward_down": x.nbytes + A.nbytes + rows,
    }
    return work, moved


def gate_job(sizes: Sizes, ranks: int = 160, topk: int = 16) -> Made:
    """Return steps of a bank of rank-1 experts and of a dense stack, each with a tenth of its ranks in training."""
    k, n, m = sizes.small
    fresh = ranks // 10
    W, dy, inputs = sizes.drawn(n, k, seed=-1), sizes.drawn(m, n, seed=-2), sizes.rotation(m, k)
    A, Bt = (sizes.drawn(ranks, width, seed=-3) for width in (k, n))
    bank = A[:-fresh], Bt[:-fresh]
    learned = [t.detach().float().requires_grad_() for t in (A[-fresh:], Bt[-fresh:])]
    stacked = [t.detach().float().requires_grad_() for t in (A, Bt)]

    def gated() -> tuple[Tensor, ...]:
        x = inputs().detach().requires_grad_()
        y = ops.expert_linear(x, W, None, bank, *learned, topk=topk, temperature=0.1)
        return torch.autograd.grad(y, [x, *learned], dy)

    def dense() -> tuple[Tensor, ...]:
        x = inputs().detach().requires_grad_()
        y = ops.stacked_lora(x, W, None, *stacked, offsets=(0, ranks - fresh, ranks), frozen=ranks - fresh)
        return torch.autograd.grad(y, [x, *stacked], dy)

    p = sizes.drawn(m, ranks)
    with ops.backend("torch"):
        exact = ops.rank_gate(p.double(), topk, 0.1)
    check_close("rank_gate", [ops.rank_gate(p, topk, 0.1)], [exact])
    return {"gated": gated, "dense": dense, "again": dense}
