"""The ratios G1 to G9 on one GPU; correctness against float64 is checked first.

Run ``python benchmarks/kernels_gpu.py`` where there is a CUDA device of capability 8.0 or more (``--only G1 G8`` for
some, ``--page docs/speed.md`` to write the table there). ``rounds.py`` says how a ratio is measured. bf16 throughout;
branches are fp32 in clgym and bf16 in PEFT. G1, G2, G8 and G9 replay CUDA graphs of many calls on inputs in rotation,
so that neither the host's time nor a warm cache is in them. G3, G4, G6 and G7 take whole training steps of ViT-B/16 on
64 images, with branches on all 72 linear layers of its blocks; G5 those of one block of an 8B Llama on 8,192 tokens.
"""

from __future__ import annotations

import gc
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace

import gpu_jobs
import torch
from gpu_jobs import Sizes, vit, whole_job
from rounds import HEAD, Row, Times, Work, arguments, doing, measured, publish, ratio

CALLS = 20  # of one graph


def captured(work: Work, calls: int = CALLS) -> Work:
    """Return a replay of many calls as one CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            work()
    return graph.replay


def linear_rows(sizes: Sizes, rounds: int, id: str, shape: tuple[int, int, int], most: float) -> list[Row]:
    rows = []
    for r in (4, 16, 64):
        graphs = {name: captured(work) for name, work in gpu_jobs.linear_job(sizes, shape, r).items()}
        times = measured(graphs, rounds, 1, "cuda")
        again = ratio(times, "again", "frozen")
        of = f"{shape[0]} to {shape[1]}, {shape[2]} tokens, r={r}"
        for mode in ("split", "merged"):
            goal = most if (mode, r) == ("split", 16) else None
            words = f"LoRA step, {mode}, over frozen forward and input gradient, {of}"
            rows.append(Row(id, words, ratio(times, mode, "frozen"), again, at_most=goal))
        rows.append(Row(id, f"PEFT over split, {of}", ratio(times, "peft", "split"), again))
    return rows


def g1(sizes: Sizes, rounds: int) -> list[Row]:
    return linear_rows(sizes, rounds, "G1", sizes.small, 1.45)


def g2(sizes: Sizes, rounds: int) -> list[Row]:
    return linear_rows(sizes, rounds, "G2", sizes.large, 1.10)


def whole_row(id: str, words: str, times: Times, least: float) -> list[Row]:
    return [Row(id, words, ratio(times, "peft", "ours"), ratio(times, "again", "ours"), at_least=least)]


def g3(sizes: Sizes, rounds: int) -> list[Row]:
    times = measured(whole_job(*vit(sizes)), rounds, 3, "cuda")
    return whole_row("G3", "PEFT over ours, whole step of ViT-B, r=16, eager", times, 1.4)


def g4(sizes: Sizes, rounds: int) -> list[Row]:
    graphs = {name: captured(work, 1) for name, work in whole_job(*vit(sizes), capturable=True).items()}
    return whole_row("G4", "the same, both as CUDA graphs", measured(graphs, rounds, 3, "cuda"), 1.3)


def g5(sizes: Sizes, rounds: int) -> list[Row]:
    times = measured(whole_job(*gpu_jobs.llama(sizes), gpu_jobs.BLOCK, gpu_jobs.last_states), rounds, 3, "cuda")
    return whole_row("G5", "PEFT over ours, whole step of an 8B block, 8,192 tokens, r=16, eager", times, 1.15)


def launches(work: Work) -> int:
    """Count the kernels of a call; copies, memsets and the profiler's own marks are none."""
    from torch.profiler import ProfilerActivity, profile

    work()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        work()
        torch.cuda.synchronize()
    on_device = [event for event in seen.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    return sum(not event.is_user_annotation and not event.name.startswith("Mem") for event in on_device)


def g6(sizes: Sizes, rounds: int) -> list[Row]:
    job = whole_job(*vit(sizes))
    counts = {name: launches(work) for name, work in job.items()}
    words = f"kernel launches of a step of ViT-B, ours ({counts['ours']}) over PEFT ({counts['peft']})"
    return [Row("G6", words, counts["ours"] / counts["peft"], counts["again"] / counts["ours"], at_most=0.6)]


def peak(build: Callable[[], Work]) -> int:
    """Return the most bytes that three steps hold, with nothing else on the device."""
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    step = build()
    torch.cuda.reset_peak_memory_stats()
    for _ in range(3):
        step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def g7(sizes: Sizes, rounds: int) -> list[Row]:
    job = gpu_jobs.memory_job(sizes)
    first, theirs, again = peak(job["ours"]), peak(job["peft"]), peak(job["ours"])
    words = "peak memory of a step of ViT-B with dropout, ours over PEFT"
    return [Row("G7", words, first / theirs, again / first, at_most=0.85)]


def g8(sizes: Sizes, rounds: int) -> list[Row]:
    rows = []
    for shape in (sizes.small, sizes.large):
        work, moved = gpu_jobs.thin_job(sizes, shape, 16)
        times = measured({name: captured(call) for name, call in work.items()}, rounds, 1, "cuda")
        speed = statistics.median(CALLS * moved["copy"] / each for each in times["copy"])
        for name in gpu_jobs.THIN:
            value = moved[name] / moved["copy"] * ratio(times, "copy", name)
            of = f"{shape[0]} to {shape[1]}, r=16"
            words = f"bytes a second of {name}, {of}, over those of a copy ({speed / 1e12:.2f} TB/s)"
            rows.append(Row("G8", words, value, ratio(times, "again", "copy"), at_least=0.75))
    return rows


def g9(sizes: Sizes, rounds: int) -> list[Row]:
    times = measured({name: captured(work) for name, work in gpu_jobs.gate_job(sizes).items()}, rounds, 1, "cuda")
    words = "rank gate, 16 of 160 active, over a dense stack of 160 ranks, step"
    return [Row("G9", words, ratio(times, "gated", "dense"), ratio(times, "again", "dense"), at_most=1.15)]


JOBS = {"G1": g1, "G2": g2, "G3": g3, "G4": g4, "G5": g5, "G6": g6, "G7": g7, "G8": g8, "G9": g9}


def main(argv: Sequence[str] | None = None) -> list[Row]:
    """Measure what is asked for, print it, and return it."""
    chosen = arguments(__doc__, 11, list(JOBS), argv)
    if not torch.cuda.is_available():
        sys.exit("Expected a CUDA device; got none that torch sees. Run this where torch.cuda.is_available() is true.")
    rows: list[Row] = []
    sizes = replace(gpu_jobs.TINY, device="cuda") if chosen.quick else Sizes()
    for id in chosen.only:
        doing(id)
        rows += JOBS[id](sizes, chosen.rounds)
        gc.collect()
        torch.cuda.empty_cache()
    publish(chosen, "kernels_gpu", HEAD, [row.cells() for row in rows])
    return rows


if __name__ == "__main__":
    main()
