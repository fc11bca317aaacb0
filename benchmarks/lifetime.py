"""A whole lifetime as a user waits for it: ``clgym run`` in a process of its own, by number of threads.

Run ``python benchmarks/lifetime.py`` on an otherwise idle machine. Wall seconds of the process, start-up, evaluation
points and record included: of each round, in order, and the ratio of the least to that of the first number of threads.
First comes the machine's own pace on one thread, by which seconds on another machine can be told: large matrix
products, steps of a rank-16 LoRA on the tiny CLIP's image encoder (batch 32), and images that it evaluates (batch 500).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import torch

from clgym.attention import lora_targets, unfold_attention
from clgym.lora import adapt
from clgym.optim import AdamWProx
from clgym.worlds import tiny_clip


def seconds(scenario: str, agent: str, threads: int) -> float:
    """Return the wall seconds of one run."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "clgym", "run", scenario, "--agent", agent, "--out", out, "--quiet"]
        start = time.perf_counter()
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
        return time.perf_counter() - start


def pace(work: Callable[[], object], amount: float, seconds: float = 3.0) -> float:
    """Return how much of ``amount`` per call is done in a second, at the best of the calls in some seconds."""
    best, end = float("inf"), time.perf_counter() + seconds
    while (start := time.perf_counter()) < end:
        work()
        best = min(best, time.perf_counter() - start)
    return amount / best


def machine() -> str:
    """Return the machine's pace on one thread."""
    torch.set_num_threads(1)
    square = torch.randn(1024, 1024)
    model = unfold_attention(tiny_clip.build().visual.eval())
    lora = adapt(model, r=16, targets=lora_targets(model), generator=torch.Generator().manual_seed(0))
    images, many = torch.randn(32, 3, 32, 32), torch.randn(500, 3, 32, 32)
    optimizer = AdamWProx([lora.arena()], lr=1e-3)

    def step() -> None:
        optimizer.zero_grad(set_to_none=False)
        torch.autograd.backward(model(images).square().mean())
        optimizer.step()

    @torch.inference_mode()
    def evaluate() -> None:
        model(many)

    products = pace(lambda: square @ square, 2 * 1024**3 / 1e9)
    return (
        f"one thread: {products:.0f} GFLOP/s in matrix products, {pace(step, 1):.0f} LoRA steps/s, "
        f"{pace(evaluate, len(many)):.0f} images/s"
    )


def main() -> None:
    """Print the machine's pace and a line per agent."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenario", default="CLIP-MTIL-v0")
    parser.add_argument("--agents", default="zero_shot,sequential_lora,codyra")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--rounds", type=int, default=1)
    chosen = parser.parse_args()
    counts = [int(count) for count in chosen.threads.split(",")]
    print(machine(), flush=True)
    for agent in chosen.agents.split(","):
        times = {n: [seconds(chosen.scenario, agent, n) for _ in range(chosen.rounds)] for n in counts}
        for n, rounds in times.items():
            listed = " ".join(f"{s:6.1f}" for s in rounds)
            ratio = min(times[counts[0]]) / min(rounds)
            print(f"{agent:<16} threads {n}: {listed} s   ratio {ratio:.2f}", flush=True)


if __name__ == "__main__":
    main()
