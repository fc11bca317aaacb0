"""How the kernel benchmarks measure: variants in turn, round by round, and ratios within a round.

The machine may be shared. Processor time of one thread does not count what others do; what they do to clocks and caches
meets all variants of a round alike. A ratio is the median over rounds of the quotients within a round. The A/A ratio, a
variant against its own copy in the same rounds, says how far from 1 a ratio of equals lies: nothing is known better.
"""

from __future__ import annotations

import copy
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version

import torch
from torch import nn

Times = Mapping[str, list[float]]


def measured(variants: Mapping[str, Callable[[], object]], rounds: int, repeats: int = 1) -> Times:
    """Return processor seconds of each variant in each round; a first round warms up and is not counted."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds + 1):
        for name, work in variants.items():
            start = time.process_time()
            for _ in range(repeats):
                work()
            if number:
                times[name].append((time.process_time() - start) / repeats)
    return times


def ratio(times: Times, above: str, below: str) -> float:
    """Return the median over rounds of ``above / below``."""
    return statistics.median(a / b for a, b in zip(times[above], times[below], strict=True))


def report(id: str, words: str, value: float, goal: str, again: float) -> None:
    """Print one line of the table: the ratio, its goal, and the A/A ratio of the same rounds."""
    print(f"| {id} | {words} | {value:.2f} | {goal} | {again:.2f} |", flush=True)


def hardware() -> str:
    """Describe the machine and the versions that matter, for the page that quotes a number."""
    model = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            model = next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    gpu = f", {torch.cuda.get_device_name()}, CUDA {torch.version.cuda}" if torch.cuda.is_available() else ""
    return (
        f"{model}{gpu}, {torch.get_num_threads()} thread(s), {torch.backends.cpu.get_cpu_capability()}; "
        f"Python {platform.python_version()}, torch {torch.__version__}, numpy {version('numpy')}, "
        f"peft {version('peft')}, clgym {version('clgym-suite')}"
    )


def vision_model(width: int = 128, layers: int = 4, patch: int = 4) -> nn.Module:
    """Return open_clip's vision transformer for 32-pixel images, random weights, attention unfolded, frozen."""
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    from clgym.attention import unfold_attention

    with torch.random.fork_rng():
        torch.manual_seed(0)
        vision = CLIPVisionCfg(image_size=32, patch_size=patch, width=width, layers=layers, head_width=width // 4)
        text = CLIPTextCfg(context_length=8, vocab_size=16, width=32, heads=2, layers=1)
        model = CLIP(embed_dim=64, vision_cfg=vision, text_cfg=text).visual.eval()
    return unfold_attention(model).requires_grad_(False)


def copied(model: nn.Module) -> nn.Module:
    """Return a copy that shares nothing."""
    return copy.deepcopy(model)
