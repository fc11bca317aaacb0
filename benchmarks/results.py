"""Every agent on the embedded CLIP-MTIL-v0: a learning-rate ladder on a tuning seed, then the seeds that are reported.

Run ``python benchmarks/results.py --out runs`` (``--jobs 2`` for two processes); it writes ``docs/results.md`` and the
pictures beside it. Finished runs are not played again, so it can be stopped and started.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from clgym.leaderboard.table import markdown, summarise
from clgym.record import RunRecord
from clgym.runner import folder_of, versions

DOCS = Path(__file__).parents[1] / "docs"
TUNING_SEED, SEEDS = 100, (0, 1, 2)
LADDER = (2.5e-4, 5e-4, 1e-3, 2e-3)
TUNED = ("sequential_lora", "replay", "codyra")
CONTROLS = {"codyra": ({"gates": "random"}, {"prox": "released"})}
Job = tuple[str, int, tuple[tuple[str, object], ...]]


def play(out: Path, job: Job) -> RunRecord:
    """Play one run in a process of its own with one thread, or take the finished one."""
    agent, seed, settings = job
    words = [word for name, value in settings for word in ("--set", f"{name}={value}")]
    command = [sys.executable, "-m", "clgym", "run", "CLIP-MTIL-v0", "--agent", agent, "--seeds", str(seed), *words]
    command += ["--out", str(out), "--resume", "--quiet", "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
    record = RunRecord(
        clgym="",
        scenario="CLIP-MTIL-v0",
        source="",
        backbone="",
        agent=f"{agent}-v0",
        agent_settings=dict(settings),
        seed=seed,
    )
    print("done:", agent, seed, dict(settings), flush=True)
    return RunRecord.load(out / folder_of(record))


def main() -> None:
    """Play what is missing and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs"))
    parser.add_argument("--jobs", type=int, default=2)
    chosen = parser.parse_args()

    def all_of(jobs: list[Job]) -> list[RunRecord]:
        with ThreadPoolExecutor(chosen.jobs) as pool:
            return list(pool.map(lambda job: play(chosen.out, job), jobs))

    ladder = [(agent, TUNING_SEED, (("lr", lr),)) for agent in TUNED for lr in LADDER]
    tuned = dict(zip([(a, s[0][1]) for a, _, s in ladder], all_of(ladder), strict=True))
    best = {a: max(LADDER, key=lambda lr, a=a: tuned[a, lr].metrics["average_accuracy"] or 0) for a in TUNED}  # type: ignore[misc]
    settled: list[tuple[str, tuple[tuple[str, object], ...]]] = [("zero_shot", ()), ("joint", ())]
    settled += [(agent, (("lr", best[agent]),)) for agent in TUNED]
    settled += [(a, (*sorted(more.items()), ("lr", best[a]))) for a, extra in CONTROLS.items() for more in extra]
    records = all_of([(agent, seed, tuple(sorted(s))) for agent, s in settled for seed in SEEDS])
    rungs = {a: [f"{100 * (tuned[a, lr].metrics['average_accuracy'] or 0):.1f}" for lr in LADDER] for a in TUNED}
    machine = records[0].hardware
    minutes = sum(r.resources["seconds"] for r in records) / 60
    lines = [
        "# Results on the embedded CLIP-MTIL-v0",
        "",
        "Written by `python benchmarks/results.py --out runs`; every number is recomputed from the run records.",
        f"Seeds {', '.join(map(str, SEEDS))}; mean and 95 % t-interval over seeds, in percent. "
        f"{machine['machine']}, one thread a run, {minutes:.0f} minutes in all, torch {versions()['torch']}.",
        "",
        markdown(summarise(records)),
        "",
        f"Learning rates were chosen on seed {TUNING_SEED}, which is not reported, by average accuracy after the last "
        "task:",
        "",
        "| agent | " + " | ".join(f"{lr:g}" for lr in LADDER) + " |",
        "|---|" + "---|" * len(LADDER),
        *(f"| {agent} | {' | '.join(cells)} |" for agent, cells in rungs.items()),
        "",
    ]
    notes = DOCS / "results_notes.md"
    lines += [notes.read_text(encoding="utf-8")] if notes.exists() else []
    (DOCS / "results.md").write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
