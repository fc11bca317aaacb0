"""The verb ``clgym sweep``."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from clgym.console import emit, fail, note, percent, plain_table, stdout
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

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from clgym.grid import Cell, Skip
    from clgym.ladder import Choice, Ladder
    from clgym.sweep import Outcome

# What is heavy is imported inside the verb: `clgym list` must answer at once.


class SweepCommand(TyperCommand):
    """Lets ``--ray`` stand with or without an address."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Give a bare ``--ray`` an empty address."""
        return super().parse_args(ctx, with_address(args))


def with_address(words: Sequence[str]) -> list[str]:
    """Return words in which every ``--ray`` has an address, if an empty one.

    >>> with_address(["--ray", "S-v0"]), with_address(["--ray", "10.0.0.1:6379"])
    (['--ray=', 'S-v0'], ['--ray', '10.0.0.1:6379'])
    """
    out = list(words)
    for number, word in enumerate(words):
        after = words[number + 1] if number + 1 < len(words) else ""
        if word == "--ray" and (after.startswith("-") or not (":" in after or after in ("auto", "local"))):
            out[number] = "--ray="
    return out


Scenarios = Annotated[str, typer.Argument(metavar="SCENARIOS", help="Scenario ids, parted by commas.")]
Agents = Annotated[str, typer.Option(help="Agent ids, parted by commas; or all that fit the scenario.")]
OfAgents = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=V1,V2", help="Settings of the agents; AGENT:KEY=V1,V2 of one alone."),
]
OfScenarios = Annotated[
    list[str] | None,
    typer.Option("--with", metavar="KEY=V1,V2", help="Settings of the scenarios; SCENARIO:KEY=V1,V2 of one alone."),
]
Tried = Annotated[
    list[str] | None,
    typer.Option("--ladder", metavar="KEY=V1,V2", help="Try these on the tuning seed, and report at the best."),
]
TuningSeed = Annotated[int, typer.Option(help="Seed that ladders are tried on.")]
Jobs = Annotated[int, typer.Option(help="Runs at a time; 0 is one per core, or per GPU.")]
Threads = Annotated[int, typer.Option(help="Threads of each run; 0 is cores by jobs, and 1 on Ray.")]
RayAddress = Annotated[
    str | None,
    typer.Option(metavar="[ADDRESS]", help="Run on Ray: the cluster there, the running one, or a new one here."),
]
Gpus = Annotated[float | None, typer.Option(help="GPUs that each run claims on Ray, also a fraction.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would be played, and what is done.")]


def sweep(
    scenarios: Scenarios,
    agents: Agents,
    seeds: Seeds = "0",
    set_: OfAgents = None,
    with_: OfScenarios = None,
    source: Source = "",
    probe_every: ProbeEvery = None,
    ladder: Tried = None,
    tuning_seed: TuningSeed = 100,
    out: Out = RUNS,
    jobs: Jobs = 0,
    threads: Threads = 0,
    device: Device = "auto",
    precision: Precision = "fp32",
    ray: RayAddress = None,
    gpus: Gpus = None,
    dry_run: DryRun = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Play a grid of scenarios, agents, seeds and settings, many at a time; what is finished is not played again."""
    from clgym.grid import seeds as listed

    texts = (of_scenario(with_, source, probe_every), set_ or [], ladder or [])
    plan = _planned(scenarios, agents, listed(seeds), texts, tuning_seed, out, precision)
    for skip in plan.skipped:
        note(f"Skipped {skip.agent} on {skip.scenario}: {skip.reason}")
    if dry_run:
        _show_plan(plan, out, as_json)
        return
    means: dict[str, Any] = {
        "jobs": jobs,
        "threads": threads,
        "device": device,
        "precision": precision,
        "ray": ray,
        "gpus": gpus,
    }
    try:
        outcomes, choices = _play(plan, out, means, quiet)
    except KeyboardInterrupt as error:
        raise interrupted("runs in hand keep checkpoints", [], as_json) from error
    failed = [outcome for outcome in outcomes if outcome.record is None]
    for outcome in failed:
        _show_failure(outcome, out, device, precision)
    _finish(plan, outcomes, choices, quiet=quiet, as_json=as_json)
    if failed:
        raise typer.Exit(1)


def _play(plan: _Plan, out: Path, means: dict[str, Any], quiet: bool) -> tuple[list[Outcome], list[Choice]]:
    from clgym.board import Board
    from clgym.ladder import tuned
    from clgym.sweep import sweep as play

    with ExitStack() as stack:
        watch = None if quiet else stack.enter_context(Board())
        return tuned(plan.cells, plan.ladders, partial(play, out=out, watch=watch, **means))


@dataclass(frozen=True, slots=True)
class _Plan:
    """What a command asks for: cells, the ladders of some, and agents that a scenario is not played with."""

    cells: list[Cell]
    ladders: dict[Path, Ladder]
    skipped: list[Skip]


def _planned(
    scenarios: str,
    agents: str,
    seeds: Sequence[int],
    texts: tuple[Sequence[str], Sequence[str], Sequence[str]],
    tuning_seed: int,
    out: Path,
    precision: str,
) -> _Plan:
    """Return the plan; ``texts`` are those of ``--with``, ``--set`` and ``--ladder``."""
    from clgym.grid import axes, fitting, grid, ids, playing
    from clgym.ladder import ladders
    from clgym.sweep import finished

    stages = ids("scenarios", _parts(scenarios))
    chosen = "all" if agents == "all" else ids("agents", _parts(agents))
    players = list(dict.fromkeys(id for stage in stages for id in playing(stage, chosen)))
    cells = grid(
        stages,
        chosen,
        seeds,
        scenario_settings=axes("scenarios", stages, texts[0]),
        agent_settings=axes("agents", players, texts[1]),
    )
    tries = {id: values for id, values in axes("agents", players, texts[2], some=True).items() if values}
    waiting = [one for one in cells if not finished(one, out)]
    kept, skipped = fitting(waiting, skip=chosen == "all", precision=precision)
    gone = {one.path for one in waiting} - {one.path for one in kept}
    cells = [one for one in cells if one.path not in gone]
    climbed = ladders(cells, tries, tuning_seed)
    rungs = [rung for ladder in climbed.values() for rung in ladder.rungs]
    fitting([rung for rung in rungs if not finished(rung, out)], skip=False, precision=precision)
    return _Plan(cells, climbed, skipped)


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")]


def _show_plan(plan: _Plan, out: Path, as_json: bool) -> None:
    """Print the cells, and which are finished; a setting that a ladder has yet to choose is a question mark."""
    from clgym.ladder import choose, settled
    from clgym.leaderboard.table import named
    from clgym.sweep import Outcome, finished

    shown = []
    chosen = {}
    for group, ladder in plan.ladders.items():
        tried = {rung.path: Outcome(rung, out / rung.path, finished(rung, out)) for rung in ladder.rungs}
        shown += [_described(rung, out) for rung in ladder.rungs]
        if all(outcome.record for outcome in tried.values()):
            chosen[group] = choose(ladder, tried)
    for one in plan.cells:
        if one.group in plan.ladders and one.group not in chosen:
            open_ = dict.fromkeys(plan.ladders[one.group].steps[0], "?")
            said = {**_identity(one), "agent_settings": {**one.agent_settings, **open_}}
            shown.append({**said, "folder": None, "state": "waiting"})
        else:
            shown.append(_described(settled([one], chosen)[0], out))
    rows = [
        [
            named(cell["scenario"], cell["scenario_settings"]),
            named(cell["agent"], cell["agent_settings"]),
            str(cell["seed"]),
            cell["state"],
        ]
        for cell in shown
    ]
    payload = {"cells": shown, "skipped": [asdict(skip) for skip in plan.skipped]}
    emit(payload, as_json, plain_table(["scenario", "agent", "seed", "state"], rows, whole=(0, 1)))


def _identity(one: Cell) -> dict[str, Any]:
    names = ("scenario", "scenario_settings", "agent", "agent_settings", "seed")
    return {name: getattr(one, name) for name in names}


def _described(one: Cell, out: Path) -> dict[str, Any]:
    """Return a cell and its state as JSON has it."""
    from clgym import checkpoint
    from clgym.sweep import finished

    folder = out / one.path
    state = "interrupted" if checkpoint.exists(folder / "checkpoint") else "waiting"
    return {**_identity(one), "folder": str(folder), "state": "finished" if finished(one, out) else state}


def _finish(plan: _Plan, outcomes: Sequence[Outcome], choices: Sequence[Choice], *, quiet: bool, as_json: bool) -> None:
    """Print what all runs come to."""
    from clgym.leaderboard.table import rich_tables, summarise

    records = [outcome.record for outcome in outcomes if outcome.record]
    rows = summarise(records)
    if quiet and not as_json:
        print("\n".join(str(outcome.folder) for outcome in outcomes if outcome.record))
        return
    cells = [
        {
            **_identity(outcome.cell),
            "folder": str(outcome.folder),
            "state": "finished" if outcome.record else "failed",
            "error": _error(outcome),
        }
        for outcome in outcomes
    ]
    payload = {
        "cells": cells,
        "skipped": [asdict(skip) for skip in plan.skipped],
        "ladders": [_climbed(choice) for choice in choices],
        "table": [asdict(row) for row in rows],
    }
    shown: list[RenderableType] = [_ladder_table(choices), ""] if choices else []
    emit(payload, as_json, *shown, *rich_tables(rows, stdout().width))


def _error(outcome: Outcome) -> dict[str, str] | None:
    return {"kind": outcome.kind, "message": outcome.error} if outcome.error else None


def _climbed(choice: Choice) -> dict[str, Any]:
    """Return a ladder as JSON has it."""
    base = _identity(choice.ladder.base)
    return {
        **{name: value for name, value in base.items() if name != "seed"},
        "tuning_seed": choice.ladder.rungs[0].seed,
        "rungs": [
            {"settings": step, "average_accuracy": accuracy, "folder": str(came.folder), "error": _error(came)}
            for step, accuracy, came in zip(choice.ladder.steps, choice.accuracies, choice.outcomes, strict=True)
        ],
        "chosen": choice.settings,
    }


def _ladder_table(choices: Sequence[Choice]) -> Table:
    """Return every rung with its accuracy on the tuning seed."""
    rows = []
    for choice in choices:
        base, last = choice.ladder.base, len(choice.outcomes) - 1
        for number, (step, accuracy) in enumerate(zip(choice.ladder.steps, choice.accuracies, strict=True)):
            mark = "best, at the end of the ladder" if last > 1 and number in (0, last) else "best"
            failed = "" if accuracy is not None else f"{choice.outcomes[number].kind}, {choice.outcomes[number].log}"
            rung = ", ".join(f"{name}={value}" for name, value in step.items())
            rows.append([base.player, base.stage, rung, percent(accuracy), mark if number == choice.best else failed])
    seed = choices[0].ladder.rungs[0].seed
    return plain_table(["agent", "scenario", "rung", f"average accuracy on seed {seed}, %", ""], rows, whole=(0, 1))


def _show_failure(outcome: Outcome, out: Path, device: str, precision: str) -> None:
    """Say what a run failed with, where its log is, and how to play it alone."""
    one = outcome.cell
    words = ["clgym", "run", one.scenario, "--agent", one.agent, "--seeds", str(one.seed)]
    for option, chosen in (("--with", one.scenario_settings), ("--set", one.agent_settings)):
        words += [word for name, value in chosen.items() for word in (option, f"{name}={json.dumps(value)}")]
    words += ["--out", str(out), "--device", device, "--precision", precision, "--resume"]
    fail(outcome.kind, f"{one} failed with {outcome.kind}: {outcome.error}", False)
    note(f"  log: {outcome.log}\n  alone: {shlex.join(words)}")
