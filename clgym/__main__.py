"""The command line: ``clgym --help``."""

from __future__ import annotations

import functools
import gc
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from typer.core import TyperCommand

import clgym
from clgym.console import emit, fail_with, matrix_table, metrics_table, note, percent, plain_table, stdout
from clgym.erasure_verb import audit, erasure
from clgym.errors import ClgymError, NotRegisteredError
from clgym.listing import listing
from clgym.options import AsJson, Runs
from clgym.registry import Room, entries, find
from clgym.run_verb import run
from clgym.sweep_verb import SweepCommand, sweep

# What is heavy is imported inside the verbs: `clgym list` must answer at once.

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Continual learning with pre-trained models, as a gym.",
)


def main() -> None:
    """Run the command line."""
    # What is imported lasts, and was searched for cycles again and again while imports went on.
    gc.set_threshold(100_000, 50, 100)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal that lacks a sign shows "?" rather than fail
    app(prog_name="clgym")


def verb(function: Callable[..., None], cls: type[TyperCommand] | None = None) -> Callable[..., None]:
    """Enter a function as a verb; our own errors become one line and an exit code."""

    @functools.wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> None:
        try:
            function(*args, **kwargs)
        except ClgymError as error:
            fail_with(error, kwargs["as_json"])
            raise typer.Exit(error.exit_code) from error

    name = function.__name__.rstrip("_")
    app.command(name, cls=cls)(guarded)
    return guarded


def _version(wanted: bool) -> None:
    if wanted:
        print(f"clgym {clgym.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


@verb
def list_(
    kind: Annotated[str, typer.Option(help="Only scenarios that are or can be made this kind, or this family.")] = "",
    agents: Annotated[bool, typer.Option("--agents", help="Only agents.")] = False,
    scenarios: Annotated[bool, typer.Option("--scenarios", help="Only scenarios.")] = False,
    as_json: AsJson = False,
) -> None:
    """List scenarios and agents."""
    rooms: list[Room] = ["scenarios"] if scenarios or not agents else []
    rooms += ["agents"] if agents or not scenarios else []
    shown, tables = listing(rooms, kind)
    emit(shown, as_json, *tables)


@verb
def info(id: Annotated[str, typer.Argument(metavar="ID", help="Scenario or agent.")], as_json: AsJson = False) -> None:
    """Describe a scenario or an agent: what it is, its settings, where it departs from its paper."""
    from clgym.settings import described

    room, spec = _registered(id)
    chosen = described(room, spec.id)
    facts = {name: value for name, value in asdict(spec).items() if name not in ("id", "title")}
    rows = [[name.replace("_", " "), _fact(value)] for name, value in facts.items() if value != ""]
    names = [[setting.name, repr(setting.default), setting.description] for setting in chosen]
    payload = {"room": room, **asdict(spec), "settings": [asdict(setting) for setting in chosen]}
    emit(
        payload,
        as_json,
        plain_table([f"{spec.id}:", spec.title], rows),
        "",
        plain_table(["setting", "default", "meaning"], names),
    )


def _registered(id: str) -> tuple[Room, Any]:
    rooms: tuple[Room, ...] = ("scenarios", "agents")
    for room in rooms:
        try:
            return room, find(room, id).spec
        except NotRegisteredError:
            continue
    raise NotRegisteredError.among("scenario or agent", id, [*entries("scenarios"), *entries("agents")])


def _fact(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return "\n".join(": ".join(part) if isinstance(part, tuple) else str(part) for part in value)
    return str(value)


verb(run)
verb(erasure)
verb(audit)
verb(sweep, cls=SweepCommand)


@verb
def score(
    runs: Runs,
    joint: Annotated[Path | None, typer.Option(help="Runs of a joint agent, for intransigence.")] = None,
    single: Annotated[
        Path | None, typer.Option(help="Runs of single_task, for the gap to a fresh start and forward transfer.")
    ] = None,
    columns: Annotated[str, typer.Option(metavar="A,B,C", help="What tables show; see clgym explain.")] = "",
    as_json: AsJson = False,
) -> None:
    """Recompute every number of runs from their predictions, and compare with what was recorded."""
    from clgym.columns import chosen, needing, shown, values
    from clgym.leaderboard.table import rich_tables, summarise
    from clgym.rescore import finished, reference, rescored

    ids = chosen(columns) if columns else ()
    given = {kind: path for kind, path in (("joint", joint), ("single", single)) if path is not None}
    done, waiting = finished(runs)
    for folder in waiting:
        note(f"Skipped {folder}: not finished.")
    reports = {}
    for folder, record in done.items():
        note(f"Scoring {folder}")
        references = {kind: reference(kind, [path], record) for kind, path in given.items()}
        reports[folder] = rescored(folder, record, **references)
        done[folder] = record.model_copy(update={"metrics": reports[folder].metrics})
    rows = summarise(done.values(), ids, () if ids else needing(given))
    payload = {
        "runs": [
            {"folder": str(f), "tasks": r.tasks, "R": r.R.tolist(), "metrics": r.metrics} for f, r in reports.items()
        ],
        "table": [asdict(row) for row in rows],
    }
    if len(reports) == 1:
        ((folder, report),) = reports.items()
        ids = ids or shown(find("scenarios", done[folder].scenario).spec.metrics, report.metrics)
        title = f"{rows[0].table} · {rows[0].label} · seed {rows[0].seeds[0]}"
        emit(
            payload,
            as_json,
            matrix_table(report.R, report.tasks, title),
            "",
            metrics_table(values(done[folder]), ids),
        )
    else:
        emit(payload, as_json, *rich_tables(rows, stdout().width))
    note(f"{len(reports)} {'run agrees' if len(reports) == 1 else 'runs agree'} with the predictions.")


@verb
def plot(
    runs: Runs,
    out: Annotated[Path, typer.Option(help="Where pictures are written.")] = Path("plots"),
    as_json: AsJson = False,
) -> None:
    """Draw matrix and lines of each run, and stability against plasticity over all, as PNG and SVG."""
    from clgym.gallery import draw
    from clgym.rescore import finished

    done, waiting = finished(runs)
    for folder in waiting:
        note(f"Skipped {folder}: not finished.")
    paths = [str(path) for path in draw(done, out)]
    if as_json:
        emit({"files": paths}, True)
    else:
        print("\n".join(paths))


@verb
def explain(
    metric: Annotated[str, typer.Argument(help="Metric id; without it all are listed.")] = "",
    as_json: AsJson = False,
) -> None:
    """Say what a metric or another column is: formula, range, direction, source, and what it is not."""
    from clgym.columns import columns
    from clgym.columns import explain as explained

    if metric:
        text = explained(metric)
        emit(_metric(columns()[metric]) | {"text": text}, as_json, escape(text))
        return
    better = {True: "higher", False: "lower", None: ""}
    rows = [[m.id, m.title, better[m.higher_is_better], m.formula] for m in columns().values()]
    table = plain_table(["metric", "title", "better", "formula"], rows)
    emit({"metrics": [_metric(m) for m in columns().values()]}, as_json, table)


def _metric(metric: Any) -> dict[str, Any]:
    names = ("id", "title", "formula", "low", "high", "higher_is_better", "source", "needs", "takes")
    return {name: getattr(metric, name) for name in names}


@verb
def conformance(as_json: AsJson = False) -> None:
    """Hold the metrics to the conformance pack, and show what other libraries call by the same words."""
    from clgym.conformance import check, load

    pack, failures = load(), check()
    numbers = sum(len(case.expected) for case in pack.cases)
    peers = [[word.library, word.word, percent(word.value), word.equals or "none", word.remark] for word in pack.peers]
    payload = {
        "passed": not failures,
        "cases": len(pack.cases),
        "rejected": len(pack.rejected),
        "numbers": numbers,
        "failures": [asdict(failure) for failure in failures],
        "peers": [asdict(word) for word in pack.peers],
    }
    wrong = [[f.case, f.metric, f.expected, f.got] for f in failures]
    verdict = (
        f"{len(failures)} differ" if failures else "all as expected"
    ) + f": {numbers} numbers in {len(pack.cases)} cases, {len(pack.rejected)} inputs to be refused"
    headings = ["library", "its word", "%", "our id", "remark"]
    title = f"What libraries call by the field's words, on the case {pack.peers_case}:\n"
    faults = plain_table(["case", "metric", "expected", "got"], wrong) if failures else ""
    emit(payload, as_json, title, plain_table(headings, peers, whole=(0, 1, 3)), "", verdict, faults)
    if failures:
        raise typer.Exit(1)


@verb
def download(
    scenario: Annotated[str, typer.Argument(help="Scenario id.")],
    check: Annotated[bool, typer.Option("--check", help="Only say what is here and what is not.")] = False,
    as_json: AsJson = False,
) -> None:
    """Fetch the data and the model that a scenario's source "hub" needs."""
    from clgym.fetch import fetch, needs
    from clgym.hub_sets import SETS

    wanted = needs(scenario)
    payload = asdict(wanted)
    rows = [
        [name, SETS[name].repo, SETS[name].licence, "here" if name in wanted.here else "missing"]
        for name in sorted((*wanted.here, *wanted.missing), key=list(SETS).index)
    ]
    title = f"{wanted.scenario} needs, besides the model {wanted.backbone}:\n"
    table = plain_table(["data set", "hub", "licence", "state"], rows, whole=(0, 1))
    if check or not as_json:
        emit(payload, as_json, title, table)
    if not check:
        weights = str(fetch(wanted, note))
        emit({**payload, "fetched": wanted.missing, "weights": weights}, as_json, f"All is here: {weights}")


@verb
def doctor(as_json: AsJson = False) -> None:
    """Look over the installation and say how to mend it."""
    from clgym.doctor import examine

    findings = list(examine())
    marks = {"ok": "[green]ok[/]", "warn": "[yellow]warn[/]", "fail": "[red]fail[/]"}
    table = plain_table(["", "what", "found", "fix"], [])
    for finding in findings:
        cells = [part.replace("[", r"\[") for part in (finding.name, finding.found, finding.fix)]
        table.add_row(marks[finding.mark], *cells)
    healthy = all(finding.mark != "fail" for finding in findings)
    emit({"healthy": healthy, "findings": [asdict(f) for f in findings]}, as_json, table)
    if not healthy:
        raise typer.Exit(1)


if __name__ == "__main__":
    main()
