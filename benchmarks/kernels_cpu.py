"""The ratios C1 to C8 on one CPU thread; correctness is checked first.

Run ``python benchmarks/kernels_cpu.py`` (``--only C1 C2`` for some). It prints hardware and versions, then a table with
ratio, goal and the A/A ratio of the same rounds; see ``rounds.py`` for the method. C1, C2 and C8 run the vision
transformer of width 128 with 4 layers and 65 tokens, batch 64, an adapter on each of its 24 linear layers. C7 needs the
``avalanche-lib`` package and says so where it is not installed.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import time
from collections.abc import Callable

import env_step
import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from rounds import copied, hardware, measured, ratio, report, vision_model
from torch import Tensor, nn

import clgym
from clgym.attention import lora_targets
from clgym.env import ContinualEnv
from clgym.events import Query, Train
from clgym.images import ArrayImages
from clgym.lora import LoRASet, adapt
from clgym.optim import AdamWProx
from clgym.scenario import Scenario, ScenarioSpec, Task, Teaching

BATCH = 64
Step = Callable[[], object]


def pictures(seed: int = 0) -> Tensor:
    return torch.randn(BATCH, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def floor_step(model: nn.Module) -> Step:
    """A frozen forward and its input gradient, down to the pixels; a LoRA step stops at the first adapter."""
    model, images = copied(model), pictures().requires_grad_()
    return lambda: torch.autograd.backward(model(images).square().mean())


def ours(model: nn.Module, r: int, targets: list[str] | None = None) -> tuple[nn.Module, LoRASet, Step]:
    model, images = copied(model), pictures()
    lora = adapt(model, r=r, targets=targets or lora_targets(model), generator=torch.Generator().manual_seed(0))
    optimizer = AdamWProx([lora.arena()], lr=1e-3)

    def step() -> None:
        lora.zero_grad()
        torch.autograd.backward(model(images).square().mean())
        optimizer.step()

    return model, lora, step


def real_peft(model: nn.Module, r: int) -> tuple[nn.Module, Step]:
    """PEFT with torch's default AdamW, as its examples have it."""
    config = LoraConfig(r=r, lora_alpha=r, target_modules="|".join(lora_targets(model)))
    wrapped, images = get_peft_model(copied(model), config), pictures()
    optimizer = torch.optim.AdamW([p for p in wrapped.parameters() if p.requires_grad], lr=1e-3, weight_decay=0.0)

    def step() -> None:
        optimizer.zero_grad()
        torch.autograd.backward(wrapped(images).square().mean())
        optimizer.step()

    return wrapped, step


def check_equal_steps(model: nn.Module, r: int) -> None:
    """Raise unless five steps from the same branches end with the same branches."""
    mine, lora, step = ours(model, r)
    theirs, peft_step = real_peft(model, r)
    with torch.no_grad():
        for name, layer in lora.layers:
            other = theirs.base_model.model.get_submodule(name)
            other.lora_A["default"].weight.copy_(layer.A)
            other.lora_B["default"].weight.copy_(layer.Bt.t())
    for _ in range(5):
        step()
        peft_step()
    torch.testing.assert_close(mine(pictures(1)), theirs(pictures(1)), rtol=1e-3, atol=1e-4)
    assert any(bool(layer.Bt.any()) for _, layer in lora.layers)


def c1_c2(rounds: int) -> None:
    model = vision_model()
    for r, least in ((4, 1.3), (16, 1.1)):
        check_equal_steps(model, r)
        times = measured(
            {
                "floor": floor_step(model),
                "again": floor_step(model),
                "ours": ours(model, r)[2],
                "peft": real_peft(model, r)[1],
            },
            rounds,
        )
        again = ratio(times, "again", "floor")
        goal = "<= 1.15" if r == 4 else "-"
        report(
            "C1", f"LoRA step over (frozen forward + input gradient), r={r}", ratio(times, "ours", "floor"), goal, again
        )
        report("C2", f"PEFT over ours, whole step, r={r}", ratio(times, "peft", "ours"), f">= {least}", again)


def c3(rounds: int) -> None:
    for tensors, size in ((32, 1024), (96, 12_288)):
        generator = torch.Generator().manual_seed(0)
        start, grads = (torch.randn(tensors * size, generator=generator) for _ in range(2))

        def apart(
            foreach: bool, start: Tensor = start, grads: Tensor = grads, size: int = size
        ) -> tuple[list[Tensor], Step]:
            params = [nn.Parameter(piece.clone()) for piece in start.split(size)]
            for p, g in zip(params, grads.split(size), strict=True):
                p.grad = g.clone()
            return list(params), torch.optim.AdamW(params, lr=1e-3, foreach=foreach).step

        def flat(start: Tensor = start, grads: Tensor = grads) -> tuple[Tensor, Step]:
            arena = nn.Parameter(start.clone())
            arena.grad = grads.clone()
            return arena, AdamWProx([arena], lr=1e-3, weight_decay=1e-2).step

        (one, step), (many, foreach) = flat(), apart(True)
        for _ in range(3):
            step()
            foreach()
        torch.testing.assert_close(one, torch.cat([p.flatten() for p in many]))
        variants = {"flat": flat()[1], "again": flat()[1], "foreach": apart(True)[1], "loop": apart(False)[1]}
        times = measured(variants, rounds, repeats=20)
        words = f"AdamW foreach on {tensors} tensors over one flat fused step, {tensors * size / 1e6:.2f}M parameters"
        again = ratio(times, "again", "flat")
        report("C3", words, ratio(times, "foreach", "flat"), ">= 3", again)
        report("C3", words.replace("foreach", "in a loop"), ratio(times, "loop", "flat"), "-", again)


def c4(rounds: int) -> None:
    microseconds = min(env_step.step_microseconds() for _ in range(2))
    features, targets = torch.randn(BATCH, 64), torch.arange(BATCH) % 10
    head = nn.Linear(64, 10)
    optimizer = torch.optim.AdamW(head.parameters(), fused=True)

    def step() -> None:
        optimizer.zero_grad()
        torch.autograd.backward(nn.functional.cross_entropy(head(features), targets))
        optimizer.step()

    times = measured({"step": step, "again": step}, rounds, repeats=100)
    print(f"| C4 | env.step of a trivial stream, microseconds | {microseconds:.1f} | <= 3 | - |")
    share = microseconds / 1e6 / sorted(times["step"])[rounds // 2]
    report("C4", "the same over a linear head's training step", share, "<= 0.01", ratio(times, "again", "step"))


class Epoch(Scenario):
    """One task of uint8 images, one pass, and next to no questions."""

    spec = ScenarioSpec("Epoch-v0", "Epoch", "none", "online", "image", "", ())

    def __init__(self, images: np.ndarray, tasks: int = 1, queries: int = 1) -> None:
        """Keep the images."""
        self.images, self.n_tasks, self.queries = images, tasks, queries
        self.teaching = Teaching(batch_size=BATCH, query_size=BATCH)
        self.backbone, self.source, self.shape, self.classes = "none", "embedded", images.shape[1:], 2 * tasks

    def tasks(self, rng: np.random.Generator) -> list[Task]:
        """Return equal shares of the images."""
        made = []
        for t, share in enumerate(np.array_split(self.images, self.n_tasks)):
            targets = np.arange(len(share)) % 2
            names = (f"a{t}", f"b{t}")
            few = ArrayImages(share[: self.queries], targets[: self.queries])
            made.append(Task(f"task {t}", "", names, ((names[0],), (names[1],)), ArrayImages(share, targets), few))
        return made


def c5(rounds: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (20_000, 32, 32, 3), np.uint8)
    env = ContinualEnv(Epoch(images))
    kept = torch.from_numpy(images)

    def through_env() -> int:
        event, seen, done = env.reset(seed=0)[0], 0, False
        while not done:
            if isinstance(event, Train):
                seen += len(torch.from_numpy(event.inputs))
            event, _, done, _, _ = env.step(np.zeros(1, np.int64) if isinstance(event, Query) else None)
        return seen

    def by_hand() -> int:
        order, seen = torch.randperm(len(kept)), 0
        for first in range(0, len(kept), BATCH):
            seen += len(kept.index_select(0, order[first : first + BATCH]))
        return seen

    assert through_env() == by_hand() == len(images)
    times = measured({"env": through_env, "hand": by_hand, "again": by_hand}, rounds)
    words = "an epoch of 20,000 images through the environment over permutation and index_select"
    report("C5", words, ratio(times, "env", "hand"), "<= 1.10", ratio(times, "again", "hand"))


def c6(rounds: int) -> None:
    settings = {"tasks": 2, "steps": 30}
    events = env_step.trace(**settings)
    env_step.check(events)
    run = functools.partial(clgym.run, "CLIP-MTIL-v0", "sequential_lora", scenario_settings=settings, lr=1e-3)
    bare = functools.partial(env_step.bare, events)
    times = measured({"run": run, "bare": bare, "again": bare}, max(3, rounds // 2))
    report(
        "C6",
        "clgym.run over a bare loop, same weights",
        ratio(times, "run", "bare"),
        "<= 1.10",
        ratio(times, "again", "bare"),
    )


def c7(rounds: int) -> None:
    if importlib.util.find_spec("avalanche") is None:
        print("| C7 | a run of Avalanche over clgym | not measured: avalanche-lib is not installed | >= 2.0 | - |")
        return
    import avalanche_job

    for name, goal in (("mlp", 2.0), ("cnn", 1.2)):
        variants = avalanche_job.variants(name, Epoch)
        times = measured(variants, max(3, rounds // 2))
        words = f"Avalanche over clgym, 5 tasks of 2,000 images, {name}, evaluation included"
        report("C7", words, ratio(times, "avalanche", "clgym"), f">= {goal}", ratio(times, "again", "clgym"))


def c8(rounds: int) -> None:
    model = vision_model()
    last = [name for name in lora_targets(model) if ".3." in name]
    _, lora, step = ours(model, 4, last)
    other, twin, _ = ours(model, 4, last)
    blocks = other.transformer.resblocks
    kept: list[Tensor] = []
    hook = blocks[3].register_forward_pre_hook(lambda _, args: kept.append(args[0].detach()))
    with torch.no_grad():
        expected = other(pictures())
    hook.remove()
    blocks[:3] = [nn.Identity() for _ in range(3)]
    optimizer = AdamWProx([twin.arena()], lr=1e-3)

    def rest() -> Tensor:
        pooled, _ = other._pool(blocks[3](kept[0]))
        return pooled @ other.proj

    def cached() -> None:
        twin.zero_grad()
        torch.autograd.backward(rest().square().mean())
        optimizer.step()

    with torch.no_grad():
        torch.testing.assert_close(rest(), expected)
    times = measured({"whole": step, "again": ours(model, 4, last)[2], "cached": cached}, rounds)
    torch.testing.assert_close(lora.arena(), twin.arena(), rtol=1e-3, atol=1e-5)
    words = "LoRA in the last block: step on kept activations of the frozen blocks over the whole step"
    report("C8", words, ratio(times, "cached", "whole"), "<= 0.6", ratio(times, "again", "whole"))


ALL = {"C1": c1_c2, "C2": c1_c2, "C3": c3, "C4": c4, "C5": c5, "C6": c6, "C7": c7, "C8": c8}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=list(ALL), default=list(ALL))
    parser.add_argument("--rounds", type=int, default=9)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    print(hardware() + time.strftime("; %Y-%m-%d"))
    print("| id | ratio | measured | goal | A/A |\n|---|---|---|---|---|")
    for work in dict.fromkeys(ALL[id] for id in chosen.only):
        work(chosen.rounds)


if __name__ == "__main__":
    main()
