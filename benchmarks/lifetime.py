"""A whole lifetime as a user waits for it: ``clgym run CLIP-MTIL-v0`` in a process of its own, by number of threads.

Run ``python benchmarks/lifetime.py`` on an otherwise idle machine. Wall seconds of the process, start-up, evaluation
points and record included, and the ratio of one thread to two.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time


def seconds(agent: str, threads: int) -> float:
    """Return the wall seconds of one run."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "clgym", "run", "CLIP-MTIL-v0", "--agent", agent, "--out", out, "--quiet"]
        start = time.perf_counter()
        subprocess.run(command, check=True, env=environment)
        return time.perf_counter() - start


def main() -> None:
    """Print a line per agent."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--agents", default="zero_shot,sequential_lora,codyra")
    parser.add_argument("--rounds", type=int, default=1)
    chosen = parser.parse_args()
    for agent in chosen.agents.split(","):
        times = {n: min(seconds(agent, n) for _ in range(chosen.rounds)) for n in (1, 2)}
        print(f"{agent:<16} 1 thread {times[1]:5.1f} s   2 threads {times[2]:5.1f} s   ratio {times[1] / times[2]:.2f}")


if __name__ == "__main__":
    main()
