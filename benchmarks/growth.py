"""Latency and bytes against the number of tasks, 1 to 50, for every family of methods.

Run ``python benchmarks/growth.py`` (``--page docs/speed.md`` to write the table there). One thread, a vision
transformer of width 128 with 4 layers and 65 tokens, batch 32, rank 4 a task on each of its 24 linear layers. Latency
is that of a forward pass without gradients over the plain frozen model's, all families in the same rounds (see
``rounds.py``). Bytes are those that a task adds to what must be kept, counted from the state itself. The families:

* merged: CoDyRA, GS-LoRA, InfLoRA, one evolving LoRA;
* summed stack, branches without gates: O-LoRA, IncLoRA;
* gated stack, branches weighed per sample: Brainstacks' domains, RecLoRA;
* rank bank, rank-1 experts that answer by themselves: MoRA;
* routed ranks, a stack whose ranks a router picks: SMoRA;
* projection, a merged branch and the subspace of old tasks' inputs: GPM, InfLoRA; kept in fp64, and counted for inputs
  of rank 4 a task;
* replay, a merged branch and 20 images a task;
* loop over adapters, which clgym has nowhere, for comparison, up to 10 tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from rounds import Times, arguments, doing, measured, publish, ratio
from steps import adapted, vision_model
from torch import Tensor, nn

from clgym.agents.inflora import GradientMemory
from clgym.agents.mora import add_experts
from clgym.attention import lora_targets
from clgym.lora import LoRALinear
from clgym.memory import SampleMemory
from clgym.ops import router_gate
from clgym.stack import stack

R, IMAGES, LOOPS = 4, 20, 10
Made = tuple[nn.Module, Callable[[], int]]  # what answers, and the bytes that are kept beside it


@dataclass(frozen=True)
class Family:
    """How a method's answers and state grow.

    Attributes:
        make: From the frozen model and the number of tasks, the last of them still in training.
        per_task: Bytes that a task adds to a layer ``in -> out``.
        most: Goal for its latency at 50 tasks over the base.
        over: The family that the goal is a multiple of, if it is not the base.
    """

    make: Callable[[nn.Module, int], Made]
    per_task: Callable[[int, int], int]
    most: float | None = None
    over: str = "base"


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.02


def nbytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def merged(model: nn.Module, tasks: int) -> Made:
    lora = adapted(model, R)
    for _ in range(tasks - 1):
        lora.merge_()
    return lora.model, lambda: 0


def summed(model: nn.Module, tasks: int) -> Made:
    return stacked(model, tasks, None)


def gated(model: nn.Module, tasks: int) -> Made:
    return stacked(model, tasks, drawn(32, tasks))


def stacked(model: nn.Module, tasks: int, gate: Tensor | None) -> Made:
    lora = adapted(model, R)
    layers = stack(lora).values()
    for layer in layers:
        for _ in range(tasks - 1):
            layer.freeze()
        layer.gate = gate
    return lora.model, lambda: nbytes(t for layer in layers for t in (layer.A, layer.Bt))


def bank(model: nn.Module, tasks: int) -> Made:
    lora = adapted(model, R)
    layers = add_experts(lora, topk=16, temperature=0.01, delta=0.2).values()
    for layer in layers:
        for _ in range(tasks - 1):
            layer.freeze()
    return lora.model, lambda: nbytes(t for layer in layers for t in (layer.keys, layer.values))


class Beside(nn.Module):
    """A layer with branches of its own beside an adapted layer's frozen weight."""

    def __init__(self, fresh: LoRALinear, tasks: int) -> None:
        """Draw the branches of all tasks."""
        super().__init__()
        self.fresh, self.tasks = fresh, tasks
        self.weight = fresh.weight  # models ask their layers for its dtype
        wide, ranks = fresh.A.shape[1], R * tasks
        self.A, self.Bt = nn.Buffer(drawn(ranks, wide)), nn.Buffer(drawn(ranks, fresh.Bt.shape[1], seed=1))


class Looped(Beside):
    """What a loop over adapters costs: a pair of thin products, a scaling and a sum per task."""

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(..., in)`` to ``(..., out)``."""
        y: Tensor = self.fresh.base(x)
        for A, Bt in zip(self.A.split(R), self.Bt.split(R), strict=True):
            y = y + (x @ A.T) @ Bt * 1.0
        return y


class Routed(Beside):
    """SMoRA's layer: a router scores every rank, and the best are used."""

    def __init__(self, fresh: LoRALinear, tasks: int) -> None:
        """Draw the router too."""
        super().__init__(fresh, tasks)
        self.router, self.bias = nn.Buffer(drawn(*self.A.shape, seed=2)), nn.Buffer(torch.zeros(len(self.A)))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(..., in)`` to ``(..., out)``."""
        h = router_gate(x @ self.A.T, x @ self.router.T, self.bias, min(8, len(self.bias)))
        y: Tensor = self.fresh.base(x)
        return y + h @ self.Bt


def beside(kind: type[Beside]) -> Callable[[nn.Module, int], Made]:
    def make(model: nn.Module, tasks: int) -> Made:
        lora = adapted(model, R)
        layers = lora.replace(lambda fresh: kind(fresh, tasks)).values()
        return lora.model, lambda: nbytes(t for layer in layers for t in layer.buffers())

    return make


def projected(model: nn.Module, tasks: int) -> Made:
    whole, _ = merged(model, tasks)
    widths = [layer.base.in_features for layer in whole.modules() if isinstance(layer, LoRALinear)]

    def state() -> int:
        kept = {}
        for width in set(widths):
            memory = GradientMemory(torch.zeros(width, 0, dtype=torch.float64))
            for task in range(tasks - 1):
                inputs = drawn(width, R, seed=task).double()
                memory.grow(inputs @ inputs.T, 1.0, "inputs")
            kept[width] = memory.basis.nbytes
        return sum(kept[width] for width in widths)

    return whole, state


def replayed(model: nn.Module, tasks: int) -> Made:
    memory = SampleMemory(0, torch.Generator())
    for task in range(tasks - 1):
        memory.begin_task((("a",),))
        ids = torch.arange(IMAGES) + IMAGES * task
        memory.add(torch.zeros(IMAGES, 32, 32, 3, dtype=torch.uint8), torch.zeros_like(ids), ids)
    return merged(model, tasks)[0], lambda: memory.sample_bytes


def pair(k: int, n: int) -> int:
    return 4 * R * (k + n)


FAMILIES = {
    "merged": Family(merged, lambda k, n: 0, 1.1),
    "summed stack": Family(summed, pair, 1.1),
    "gated stack": Family(gated, pair, 3.0),
    "rank bank": Family(bank, pair, 1.3, "gated stack"),
    "routed ranks": Family(beside(Routed), lambda k, n: pair(k, n) + 4 * R * (k + 1), 1.5, "gated stack"),
    "projection": Family(projected, lambda k, n: 8 * R * k, 1.1),
    "replay": Family(replayed, lambda k, n: 0, 1.1),
    "loop": Family(beside(Looped), pair),
}


def check(model: nn.Module, images: Tensor) -> None:
    """Raise unless a stack of equal branches answers as a loop over them does, and merged ones as the sum does."""
    with torch.no_grad():
        plain = model(images)
        lora = adapted(model, R)
        layers = stack(lora).values()
        for layer in layers:
            layer.freeze()
            layer.freeze()
            layer.gate = torch.ones(len(images), 3)
        expected = lora.model(images)
        for layer in layers:
            layer.gate = None
        torch.testing.assert_close(lora.model(images), expected, rtol=1e-3, atol=1e-4)
        looped = adapted(model, R)
        for layer in looped.replace(lambda fresh: Looped(fresh, 3)).values():
            layer.A, layer.Bt = layer.fresh.A.repeat(3, 1), layer.fresh.Bt.repeat(3, 1)
        torch.testing.assert_close(looped.model(images), expected, rtol=1e-3, atol=1e-4)
        assert float((expected - plain).abs().max()) > 1e-2


def bytes_per_task(name: str, model: nn.Module) -> int:
    """Count what a task adds to the state, and raise unless it is what the formula says."""
    family = FAMILIES[name]
    counted = family.make(model, 3)[1]() - family.make(model, 2)[1]()
    shapes = [model.get_submodule(target).weight.shape for target in lora_targets(model)]
    formula = sum(family.per_task(k, n) for n, k in shapes) + (IMAGES * 32 * 32 * 3 if name == "replay" else 0)
    assert counted == formula, (name, counted, formula)
    return formula


def main(argv: Sequence[str] | None = None) -> list[tuple[str, ...]]:
    """Measure every family, print the table, and return it."""
    chosen = arguments(__doc__, 5, list(FAMILIES), argv)
    torch.set_num_threads(1)
    model = vision_model(32, 1, 8, head=16) if chosen.quick else vision_model(128, 4, 4)
    images = torch.randn(32, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    check(model, images)
    all_times: dict[int, Times] = {}
    for tasks in (1, 3) if chosen.quick else (1, 10, 20, 50):
        doing(f"{tasks} tasks")
        made = {n: FAMILIES[n].make(model, tasks)[0] for n in chosen.only if n != "loop" or tasks <= LOOPS}
        variants = {n: lambda m=m: m(images) for n, m in {"base": model, "again": model, **made}.items()}
        with torch.inference_mode():
            all_times[tasks] = measured(variants, chosen.rounds)
    rows = [line(name, all_times, bytes_per_task(name, model)) for name in chosen.only]
    noise = [f"{ratio(times, 'again', 'base'):.2f}" for times in all_times.values()]
    rows.append(("A/A", *noise, "", ""))
    publish(
        chosen, "growth", ("family", *(f"{n} task{'s' * (n > 1)}" for n in all_times), "goal", "bytes a task"), rows
    )
    return rows


def line(name: str, all_times: dict[int, Times], added: int) -> tuple[str, ...]:
    family = FAMILIES[name]
    shown = [f"{ratio(times, name, 'base'):.2f}" if name in times else "" for times in all_times.values()]
    goal = "" if family.most is None else f"<= {family.most}" + (f" x {family.over}" if family.over != "base" else "")
    return (name, *shown, goal, f"{added:,}")


if __name__ == "__main__":
    main()
