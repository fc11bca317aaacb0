"""Latency and bytes against the number of tasks, 1 to 50, for every family of methods.

Run ``python benchmarks/growth.py``. One thread, the vision transformer of width 128 with 4 layers and 65 tokens, batch
32, rank 4 a task on each of its 24 linear layers. Latency is that of a forward pass without gradients over the plain
frozen model's in the same rounds (see ``rounds.py``). Bytes are those that a task adds to what must be kept, counted from
the state itself and compared with the formula. Families: merged (CoDyRA, GS-LoRA, InfLoRA, one evolving LoRA); a sum of
branches without gates (O-LoRA, IncLoRA); a stack gated per sample (Brainstacks' domains, RecLoRA); a bank of rank-1
experts (MoRA); a stack whose ranks a router picks (SMoRA); projection (OSFT, GPM); replay. The loop over adapters, which
clgym has nowhere, is there for comparison, up to 10 tasks.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from rounds import copied, hardware, measured, ratio, vision_model
from torch import Tensor, nn

from clgym.agents.mora import add_experts
from clgym.attention import lora_targets
from clgym.lora import LoRALinear, LoRASet, adapt
from clgym.ops import router_gate
from clgym.stack import stack

BATCH, R, TASKS = 32, 4, (1, 10, 20, 50)
Made = tuple[nn.Module, Callable[[], int]]


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 0.02


def adapted(model: nn.Module) -> LoRASet:
    model = copied(model)
    lora = adapt(model, r=R, targets=lora_targets(model), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for _, layer in lora.layers:
            layer.Bt.copy_(drawn(*layer.Bt.shape))
    return lora


def merged(model: nn.Module, tasks: int) -> Made:
    """Merge task after task; the last branch is still in training."""
    lora = adapted(model)
    for _ in range(tasks - 1):
        lora.merge_()
    return lora.model, lambda: 0


def summed(model: nn.Module, tasks: int) -> Made:
    return stacked(model, tasks, gated=False)


def gated(model: nn.Module, tasks: int) -> Made:
    return stacked(model, tasks, gated=True)


def stacked(model: nn.Module, tasks: int, *, gated: bool) -> Made:
    lora = adapted(model)
    layers = stack(lora).values()
    for layer in layers:
        for _ in range(tasks - 1):
            layer.freeze()
        layer.gate = torch.rand(BATCH, tasks, generator=torch.Generator().manual_seed(1)) if gated else None
    return lora.model, lambda: sum(t.numel() * t.element_size() for layer in layers for t in (layer.A, layer.Bt))


def bank(model: nn.Module, tasks: int) -> Made:
    lora = adapted(model)
    layers = add_experts(lora, topk=16, temperature=0.01, delta=0.2).values()
    for layer in layers:
        for _ in range(tasks - 1):
            layer.freeze()
    return lora.model, lambda: sum(t.numel() * t.element_size() for at in layers for t in (at.keys, at.values))


class Looped(nn.Module):
    """What a loop over adapters costs: one pair of thin products and one sum per task."""

    def __init__(self, fresh: LoRALinear, tasks: int) -> None:
        """Stand beside an adapted layer."""
        super().__init__()
        self.fresh, self.tasks = fresh, tasks

    @property
    def weight(self) -> Tensor:
        """The frozen weight."""
        return self.fresh.weight

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(..., in)`` to ``(..., out)``."""
        y: Tensor = self.fresh.base(x)
        for _ in range(self.tasks):
            y = y + (x @ self.fresh.A.T) @ self.fresh.Bt * 1.0
        return y


class Routed(nn.Module):
    """SMoRA's layer: a router scores every rank, and the best are used."""

    def __init__(self, fresh: LoRALinear, tasks: int) -> None:
        """Stand beside an adapted layer."""
        super().__init__()
        self.fresh = fresh
        ranks = R * tasks
        self.A, self.Bt = nn.Buffer(drawn(ranks, fresh.A.shape[1])), nn.Buffer(drawn(ranks, fresh.Bt.shape[1]))
        self.router, self.bias = nn.Buffer(drawn(ranks, fresh.A.shape[1])), nn.Buffer(torch.zeros(ranks))

    @property
    def weight(self) -> Tensor:
        """The frozen weight."""
        return self.fresh.weight

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(..., in)`` to ``(..., out)``."""
        h = router_gate(x @ self.A.T, x @ self.router.T, self.bias, min(8, len(self.bias)))
        y: Tensor = self.fresh.base(x) + h @ self.Bt
        return y


def replaced(model: nn.Module, make: Callable[[LoRALinear], nn.Module]) -> tuple[nn.Module, list[nn.Module]]:
    lora, made = adapted(model), []
    for name, layer in lora.layers:
        parent, _, last = name.rpartition(".")
        made.append(make(layer))
        setattr(lora.model.get_submodule(parent), last, made[-1])
    return lora.model, made


def looped(model: nn.Module, tasks: int) -> Made:
    whole, layers = replaced(model, lambda fresh: Looped(fresh, tasks))
    per_task = sum(4 * R * sum(layer.weight.shape) for layer in layers)  # type: ignore[arg-type, misc]
    return whole, lambda: (tasks - 1) * per_task


def routed(model: nn.Module, tasks: int) -> Made:
    whole, layers = replaced(model, lambda fresh: Routed(fresh, tasks))
    per_task = sum(sum(4 * t.numel() for t in layer.buffers()) // tasks for layer in layers)
    return whole, lambda: (tasks - 1) * per_task


def projected(model: nn.Module, tasks: int) -> Made:
    """The weights move; what grows is a basis of ``R`` directions a task on the input side of each layer."""
    lora = adapted(model)
    lora.merge_()
    bases = [
        torch.linalg.qr(drawn(min(R * (tasks - 1), layer.A.shape[1]), layer.A.shape[1]).T).Q for _, layer in lora.layers
    ]
    return lora.model, lambda: sum(4 * basis.numel() for basis in bases)


def replayed(model: nn.Module, tasks: int) -> Made:
    lora = adapted(model)
    store = torch.zeros(20 * (tasks - 1), 32, 32, 3, dtype=torch.uint8)
    return lora.model, lambda: store.numel()


FAMILIES = {
    "merged": (merged, lambda k, n: 0),
    "summed stack": (summed, lambda k, n: 4 * R * (k + n)),
    "gated stack": (gated, lambda k, n: 4 * R * (k + n)),
    "rank bank": (bank, lambda k, n: 4 * R * (k + n)),
    "routed ranks": (routed, lambda k, n: 4 * (R * (2 * k + n) + R)),
    "projection": (projected, lambda k, n: 4 * R * k),
    "replay": (replayed, lambda k, n: None),
    "loop": (looped, lambda k, n: 4 * R * (k + n)),
}


def check() -> None:
    """Raise unless the stack is the loop over equal branches."""
    model, images = vision_model(), torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for make in (summed, looped):
            torch.testing.assert_close(make(model, 3)[0](images), looped(model, 3)[0](images), rtol=1e-3, atol=1e-4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    check()
    model = vision_model()
    widths = [tuple(model.get_submodule(name).weight.shape) for name in lora_targets(model)]  # type: ignore[union-attr]
    images = torch.randn(BATCH, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    print(hardware() + time.strftime("; %Y-%m-%d"))
    print("| family | " + " | ".join(f"{n} tasks" for n in TASKS) + " | bytes a task | by formula |")
    print("|---|" + "---|" * len(TASKS) + "---|---|")
    for name, (make, formula) in FAMILIES.items():
        made = {n: make(model, n) for n in TASKS if name != "loop" or n <= 10}
        variants = {str(n): lambda m=m: m(images) for n, (m, _) in made.items()}  # type: ignore[misc]
        with torch.inference_mode():
            times = measured({"base": lambda: model(images), "again": lambda: model(images), **variants}, chosen.rounds)
        ratios = {n: f"{ratio(times, str(n), 'base'):.2f}" for n in made}
        counted = made[10][1]() / 9
        by_formula = [formula(k, n) for n, k in widths]
        said = f"{sum(b for b in by_formula if b is not None):,}" if None not in by_formula else f"{20 * 32 * 32 * 3:,}"
        cells = " | ".join(ratios.get(n, "-") for n in TASKS)
        print(f"| {name} | {cells} | {counted:,.0f} | {said} |", flush=True)
    print(f"A/A of the last rounds: {ratio(times, 'again', 'base'):.2f}")


if __name__ == "__main__":
    main()
