"""What several verbs of the command line share: options, and how Ctrl-C is answered."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from clgym.console import fail

INTERRUPTED = 130  # exit code of a program that Ctrl-C ended
RUNS = Path("runs")

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Out = Annotated[Path, typer.Option(help="Where runs are written.")]
Precision = Annotated[str, typer.Option(help="fp32, or bf16 for mixed precision.")]
ProbeEvery = Annotated[
    int | None,
    typer.Option("--probe-every", metavar="N", help="Ask inside tasks every N steps; same as --with probe_every=N."),
]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress, no tables.")]
Runs = Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders, or folders above some.")]
Seeds = Annotated[str, typer.Option(help="Such as 0-2 or 0,1,5.")]
Source = Annotated[str, typer.Option(help="embedded, hub or a folder; the same as --with source=.")]


def of_scenario(texts: list[str] | None, source: str, probe_every: int | None) -> list[str]:
    """Return ``KEY=VALUE`` texts of ``--with`` and of the options that stand for some.

    >>> of_scenario(["tasks=2"], "hub", 10)
    ['tasks=2', 'source=hub', 'probe_every=10']
    """
    out = [*(texts or [])]
    out += [f"source={source}"] if source else []
    out += [] if probe_every is None else [f"probe_every={probe_every}"]
    return out


def interrupted(what: str, more: Sequence[str], as_json: bool) -> typer.Exit:
    """Say how to go on after Ctrl-C: the same command with ``more`` words; return the exit to raise."""
    words = [word for word in sys.argv[1:] if word not in ("--overwrite", *more)]
    again = shlex.join(["clgym", *words, *more])
    fail("Interrupted", f"Interrupted; {what}. Continue with: {again}", as_json)
    return typer.Exit(INTERRUPTED)
