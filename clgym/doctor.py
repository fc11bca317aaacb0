"""Looks over an installation: what is there, what is missing, and how to mend it."""

from __future__ import annotations

import importlib.util
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

from clgym.errors import ClgymError

NEEDED = (
    "gymnasium",
    "numpy",
    "pandas",
    "torch",
    "open_clip_torch",
    "timm",
    "transformers",
    "datasets",
    "safetensors",
    "pyarrow",
    "scikit-learn",
    "pydantic",
    "typer",
    "rich",
    "matplotlib",
    "Jinja2",
)
EXTRAS = ("tensorboard", "wandb")
SCENARIO = "CLIP-MTIL-v0"  # the one that the self-test plays
Mark = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: What.
        mark: ``"ok"``, ``"warn"`` (works, but less well) or ``"fail"``.
        found: What was found.
        fix: What to do; ``""`` where all is well.
    """

    name: str
    mark: Mark
    found: str
    fix: str = ""


def examine() -> Iterator[Finding]:
    """Yield one finding after another; a check that cannot even run is a finding too."""
    checks: tuple[Callable[[], Iterator[Finding]], ...] = (
        packages,
        accelerator,
        kernels,
        threads,
        weights,
        data,
        extras,
        gymnasium_ids,
        self_test,
    )
    for check in checks:
        try:
            yield from check()
        except Exception as error:  # whatever is broken, the other checks still tell something
            what = str(error) if isinstance(error, ClgymError) else f"{type(error).__name__}: {error}"
            fix = "Install clgym again, or report this." if not isinstance(error, ClgymError) else "See there."
            yield Finding(check.__name__.replace("_", " "), "fail", what, fix)


def packages() -> Iterator[Finding]:
    """Look for what clgym cannot do without."""
    here = ".".join(map(str, sys.version_info[:3]))
    new = sys.version_info >= (3, 11)
    yield Finding("python", "ok" if new else "fail", here, "" if new else "Install Python 3.11 or newer.")
    for name in NEEDED:
        try:
            yield Finding(name, "ok", version(name))
        except PackageNotFoundError:
            yield Finding(name, "fail", "not installed", f"pip install '{name}'")


def accelerator() -> Iterator[Finding]:
    """Look for a GPU, and for triton, which its kernels need."""
    import torch

    if not torch.cuda.is_available():
        built = "built for CUDA" if torch.version.cuda else "built without CUDA"
        yield Finding("cuda", "ok", f"none (torch {built}); the embedded source needs none")
        return
    device = torch.cuda.get_device_properties(0)
    yield Finding("cuda", "ok", f"{device.name}, {device.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}")
    if importlib.util.find_spec("triton"):
        yield Finding("triton", "ok", version("triton"))
    else:
        yield Finding("triton", "warn", "not installed: plain torch instead of kernels", "pip install triton")


def kernels() -> Iterator[Finding]:
    """Say which path the ops take on this machine, and why; see :func:`clgym.ops.explain` for a single call."""
    import torch

    from clgym.backend import KERNELS, Choice, choose

    cuda = torch.cuda.is_available()
    paths: dict[Choice, list[str]] = {}
    for op, kernel in KERNELS.items():
        probe = torch.zeros(1, dtype=kernel.dtypes[0], device="cuda" if cuda else "cpu")
        paths.setdefault(choose(op, probe, min(16, kernel.ranks)), []).append(op)
    for choice, ops in paths.items():
        slow = cuda and choice.path == "torch"
        what = f"{choice.reason}: {', '.join(ops)}"
        fix = "pip install triton, on a GPU of compute capability 8.0 or newer" if slow else ""
        yield Finding(f"ops on {choice.path}", "warn" if slow else "ok", what, fix)


def threads() -> Iterator[Finding]:
    """Compare torch's threads with the cores this process may use."""
    import torch

    count = torch.get_num_threads()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    fits = count <= cores
    yield Finding(
        "threads",
        "ok" if fits else "warn",
        f"{count} on {cores} cores",
        "" if fits else f"Set OMP_NUM_THREADS={cores}: more threads than cores are slower.",
    )


def weights() -> Iterator[Finding]:
    """Compare the embedded weights with their hash."""
    from clgym.worlds import tiny_clip

    tiny_clip.load()
    yield Finding("embedded weights", "ok", f"sha256 {tiny_clip.card()['sha256'][:12]}")


def data() -> Iterator[Finding]:
    """Look at the folder of downloads."""
    from clgym.hub import missing
    from clgym.hub_sets import SETS
    from clgym.images import data_directory

    folder = data_directory()
    above = next(path for path in (folder, *folder.parents) if path.exists())
    here = len(SETS) - len(missing(tuple(SETS)))
    if not above.is_dir() or not os.access(above, os.W_OK):
        fix = "Set CLGYM_DATA to a folder you may write to."
        yield Finding("data folder", "warn", f"{folder}: not writable", fix)
    else:
        yield Finding("data folder", "ok", f"{folder}: {here} of {len(SETS)} hub data sets")


def extras() -> Iterator[Finding]:
    """Look for optional packages."""
    for name in EXTRAS:
        if importlib.util.find_spec(name):
            yield Finding(name, "ok", version(name))
        else:
            fix = f"For clgym run --{name}: pip install 'clgym-suite[{name}]'"
            yield Finding(name, "warn", "not installed (optional)", fix)


def gymnasium_ids() -> Iterator[Finding]:
    """Compare Gymnasium's registry with ours."""
    import gymnasium

    from clgym.registry import entries

    ids = [f"clgym/{id}" for id in entries("scenarios")]
    absent = [id for id in ids if id not in gymnasium.registry]
    yield Finding(
        "gymnasium ids",
        "fail" if absent or not ids else "ok",
        f"{len(ids) - len(absent)} of {len(ids)} scenarios" + (f", without {absent[0]}" if absent else ""),
        "Run import clgym before gymnasium.make." if absent else "",
    )


def self_test() -> Iterator[Finding]:
    """Play a few events of an embedded scenario with random answers."""
    from clgym.events import Guess
    from clgym.registry import make

    start = time.monotonic()
    env = make(SCENARIO, tasks=1, steps=1)
    env.reset(seed=0)
    done, events = False, 0
    while not done:
        _, _, done, _, _ = env.step(Guess(events))
        events += 1
    env.close()
    yield Finding("self-test", "ok", f"{SCENARIO}: {events} events in {time.monotonic() - start:.1f} s")
