"""What the environment costs: one step of a trivial stream, and a whole run against a bare PyTorch loop.

Run ``python benchmarks/env_step.py``. The bare loop trains the same model on the same batches in the same order and
answers the same questions, with no environment, no scorer and no record; both must end with equal weights. Rounds are
interleaved; A/A is the bare loop against itself, the noise of the machine.
"""

from __future__ import annotations

import argparse
import functools
import math
import time
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import torch
from torch.nn import functional as F

import clgym
from clgym.attention import lora_targets, unfold_attention
from clgym.backbones import load_clip
from clgym.events import Event, Query, TaskStart, Train
from clgym.lora import LoRASet, adapt
from clgym.scenario import Scenario, ScenarioSpec, Task, Teaching
from clgym.seeds import agent_seed
from clgym.sources import embedded_task


class Trivial(Scenario):
    """Two classes of 2 x 2 images, one sample a batch: nothing but the environment's own cost."""

    spec = ScenarioSpec("Trivial-v0", "Trivial", "none", "online", "image", "", ())

    def __init__(self) -> None:
        """Fix the constants."""
        self.teaching = Teaching(batch_size=1, steps=20_000, query_size=1)
        self.backbone, self.source, self.shape, self.classes = "none", "embedded", (2, 2, 3), 2

    def tasks(self, rng: np.random.Generator) -> list[Task]:
        """Return one task."""
        from clgym.images import ArrayImages

        data = ArrayImages(np.zeros((64, 2, 2, 3), np.uint8), np.arange(64) % 2)
        return [Task("trivial", "", ("a", "b"), (("a",), ("b",)), data, data)]


def step_microseconds() -> float:
    """Return microseconds of one ``env.step`` of the trivial stream, through ``gymnasium.make``."""
    from clgym.env import ContinualEnv

    if "clgym/Trivial-v0" not in gymnasium.registry:
        gymnasium.register("clgym/Trivial-v0", entry_point=lambda **_: ContinualEnv(Trivial()))
    env = gymnasium.make("clgym/Trivial-v0", disable_env_checker=True)
    event, _ = env.reset(seed=0)
    while not isinstance(event, Train):
        event = env.step(np.zeros(1, np.int64) if isinstance(event, Query) else None)[0]
    start = time.process_time()
    for _ in range(10_000):
        env.step(None)
    return (time.process_time() - start) / 10_000 * 1e6


def trace(tasks: int, steps: int) -> list[Event]:
    """Return every event of a short ``CLIP-MTIL-v0``, to feed the bare loop."""
    env = clgym.make("CLIP-MTIL-v0", tasks=tasks, steps=steps, disable_env_checker=True)
    events, done = [env.reset(seed=0)[0]], False
    while not done:
        event, _, done, _, _ = env.step(env.action_space.sample())
        events.append(event)
    return events


def bare(events: list[Event]) -> LoRASet:
    """Train and answer as one would by hand; the same arithmetic as ``sequential_lora``, nothing else."""
    backbone = load_clip("embedded/tiny-clip", "cpu")
    model, scale = unfold_attention(backbone.model), math.exp(backbone.logit_scale)
    generator = torch.Generator().manual_seed(agent_seed(0))
    lora = adapt(model, r=16, targets=lora_targets(model), generator=generator)
    texts: dict[tuple[tuple[str, ...], ...], torch.Tensor] = {}
    for event in events:
        match event:
            case TaskStart():
                lora.merge_()
                lora.reset(generator)
                prompts, steps, step = event.prompts, event.steps, 0
                optimizer = torch.optim.AdamW([lora.arena()], lr=1e-3, weight_decay=0.0, fused=True)
            case Train():
                optimizer.param_groups[0]["lr"] = 1e-3 * 0.5 * (1 + math.cos(math.pi * step / steps))
                optimizer.zero_grad()
                features = backbone.encode_images(event.inputs)
                logits = scale * features @ backbone.class_features(prompts, ensemble=False).T
                F.cross_entropy(logits, torch.from_numpy(event.targets)).backward()
                optimizer.step()
                step += 1
                texts.clear()
            case Query():
                with torch.inference_mode():
                    if event.prompts not in texts:
                        texts[event.prompts] = backbone.class_features(event.prompts, ensemble=True)
                    (scale * backbone.encode_images(event.inputs) @ texts[event.prompts].T).log_softmax(-1).numpy()
    return lora


def seconds(work: Callable[[], Any]) -> float:
    """Return the processor seconds of a call."""
    start = time.process_time()
    work()
    return time.process_time() - start


def check(events: list[Event]) -> None:
    """Raise unless the bare loop and the agent end with the same weights."""
    agent = clgym.make_agent("sequential_lora", clgym.make("CLIP-MTIL-v0"), device="cpu", lr=1e-3)
    for event in events:
        agent.act(event)
    mine, theirs = bare(events).named_tensors(with_base=True), agent.tensors()  # type: ignore[attr-defined]
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tasks", type=int, default=3)
    parser.add_argument("--steps", type=int, default=40)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    print(f"env.step, trivial stream: {step_microseconds():.1f} microseconds")
    for name in ("aircraft", "cars", "digits"):
        embedded_task(name)
    events = trace(chosen.tasks, chosen.steps)
    settings = {"tasks": chosen.tasks, "steps": chosen.steps}
    check(events)
    times: dict[str, list[float]] = {"run": [], "bare": [], "again": []}
    run = functools.partial(clgym.run, "CLIP-MTIL-v0", "sequential_lora", scenario_settings=settings, lr=1e-3)
    for _ in range(chosen.rounds):
        times["bare"].append(seconds(lambda: bare(events)))
        times["run"].append(seconds(run))
        times["again"].append(seconds(lambda: bare(events)))
    loop = np.array(times["bare"])
    print(f"clgym.run / bare loop: {np.median(np.array(times['run']) / loop):.3f}")
    print(f"A/A: {np.median(np.array(times['again']) / loop):.3f}")


if __name__ == "__main__":
    main()
