"""The verb ``clgym run``."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clgym.columns import shown
from clgym.console import emit, matrix_table, metrics_table, note, show, stdout, whitebox_table
from clgym.erasure_verb import DryRun, References, check_references, dry_run, play_references
from clgym.errors import SettingError
from clgym.options import (
    RUNS,
    AsJson,
    Device,
    Out,
    Precision,
    ProbeEvery,
    Quiet,
    Seeds,
    Source,
    interrupted,
    of_scenario,
)
from clgym.registry import find

if TYPE_CHECKING:
    from clgym.grid import Cell
    from clgym.record import RunRecord

# What is heavy is imported inside the verb: `clgym list` must answer at once.


def run(
    scenario: Annotated[str, typer.Argument(help="Scenario id.")],
    agent: Annotated[list[str], typer.Option(help="Agent id; may be given again.")],
    seeds: Seeds = "0",
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Setting of the agent.")] = None,
    with_: Annotated[
        list[str] | None, typer.Option("--with", metavar="KEY=VALUE", help="Setting of the scenario.")
    ] = None,
    source: Source = "",
    probe_every: ProbeEvery = None,
    out: Out = RUNS,
    resume: Annotated[bool, typer.Option("--resume", help="Continue what was interrupted.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")] = False,
    device: Device = "auto",
    precision: Precision = "fp32",
    whitebox: Annotated[
        bool, typer.Option("--whitebox", help="Look inside at each task end: ranks, dormant units.")
    ] = False,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Log to TensorBoard.")] = False,
    wandb: Annotated[bool, typer.Option("--wandb", help="Log to Weights & Biases.")] = False,
    references: References = 0,
    dry: DryRun = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Play a scenario with agents, seed after seed, and keep a record of each run."""
    from clgym.grid import seeds as listed
    from clgym.jobs import planned, unclaimed

    if resume and overwrite:
        raise SettingError("Expected --resume or --overwrite; got both. Leave one out.")
    chosen = of_scenario(with_, source, probe_every)
    jobs = planned(scenario, agent, listed(seeds), scenario_settings=chosen, agent_settings=set_ or [])
    if dry:
        return dry_run(jobs, references, as_json)
    if not (resume or overwrite):
        unclaimed(jobs, out)
    if references:
        check_references(jobs, references)
    means: dict[str, Any] = {"resume": resume, "overwrite": overwrite, "device": device, "precision": precision}
    loggers = {"bar": not quiet and sys.stderr.isatty(), "tensorboard": tensorboard, "wandb": wandb}
    done = _play(jobs, out, {**means, "whitebox": whitebox}, loggers, quiet, as_json)
    if references:
        play_references(done, out, references, device=device, precision=precision, quiet=quiet, as_json=as_json)
    _finish_run(done, quiet, as_json)


def _play(
    jobs: Sequence[Cell], out: Path, means: Mapping[str, Any], loggers: Mapping[str, bool], quiet: bool, as_json: bool
) -> dict[Path, RunRecord]:
    """Play runs one after another, print each, and return their records by folder."""
    from clgym.jobs import play, watchers

    done: dict[Path, RunRecord] = {}
    for number, job in enumerate(jobs, 1):
        if not quiet:
            note(f"[{number}/{len(jobs)}] {job.scenario} · {job.agent} · seed {job.seed}")
        folder = out / job.path
        try:
            with ExitStack() as stack:
                done[folder] = play(job, out, callbacks=watchers(stack, **loggers), **means)
        except KeyboardInterrupt as error:
            raise interrupted(f"{folder} keeps a checkpoint", ["--resume"], as_json) from error
        if not (quiet or as_json):
            _show_run(folder, done[folder])
    return done


def _show_run(folder: Path, record: RunRecord) -> None:
    """Print matrix, metrics and folder of one run."""
    console = stdout()
    title = f"{record.scenario} · {record.agent} · seed {record.seed}"
    console.print(matrix_table(record.matrix, record.tasks, title))
    console.print()
    ids = shown(find("scenarios", record.scenario).spec.metrics, record.metrics)
    show(console, metrics_table(record.metrics, ids))
    if "whitebox" in record.resources:
        console.print()
        show(console, whitebox_table(record.resources["whitebox"], record.tasks))
    console.print(f"\nrecord: {folder}\n", markup=False, soft_wrap=True)


def _finish_run(done: dict[Path, RunRecord], quiet: bool, as_json: bool) -> None:
    """Print what all runs come to."""
    payload = {"runs": [{"folder": str(f), **r.model_dump(mode="json")} for f, r in done.items()]}
    if as_json:
        emit(payload, True)
    elif quiet:
        print("\n".join(map(str, done)))
    elif len(done) > 1:
        from clgym.leaderboard.table import rich_tables, summarise

        emit(payload, False, *rich_tables(summarise(done.values()), stdout().width))
