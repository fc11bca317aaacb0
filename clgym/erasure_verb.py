"""The verb ``clgym erasure``, and what ``clgym run --references`` adds to a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from clgym.console import emit, note, percent, plain_table, stdout
from clgym.errors import RecordError
from clgym.metrics import METRICS
from clgym.options import AsJson, Device, Precision, Runs

if TYPE_CHECKING:
    from clgym.audit import Audit
    from clgym.erasure_scores import RequestScore
    from clgym.grid import Cell
    from clgym.record import RunRecord

References = Annotated[
    int, typer.Option("--references", metavar="K", help="Also play K agents on the stream without the erased data.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would be played, in events.")]

AUDITED = ("request", "steps to relearn", "ratio", "recovered", "probe, few", "probe, full", "traces", "failed")
COSTS = ("seconds", "state_bytes_before", "state_bytes_after", "forget_reads", "retain_reads")

# What is heavy is imported inside: `clgym list` must answer at once.


def erasure(runs: Runs, as_json: AsJson = False) -> None:
    """Say how requests to forget were met: every number of each request, against the references."""
    from clgym.erasure_results import results
    from clgym.rescore import finished

    done, waiting = finished(runs)
    for folder in waiting:
        note(f"Skipped {folder}: not finished.")
    found = {}
    for folder, record in done.items():
        found[folder] = results(folder, record)
        if not found[folder]:
            raise RecordError(
                f"Expected references of {folder}; got none. Play them with clgym run --resume --references 3."
            )
    groups: dict[tuple[str, str], list[Path]] = {}
    for folder, record in done.items():
        groups.setdefault((record.scenario, str(folder.parent)), []).append(folder)
    payload = {
        "runs": [
            {"folder": str(folder), "requests": [_plain(score) for score in scores]} for folder, scores in found.items()
        ]
    }
    tables = [
        table for folders in groups.values() for table in _tables([(done[f], found[f]) for f in folders], folders)
    ]
    emit(payload, as_json, *tables)


def audit(runs: Runs, device: Device = "auto", precision: Precision = "fp32", as_json: AsJson = False) -> None:
    """Look into agents after requests to forget: relearning, recovery, what their state holds, a probe."""
    from clgym.audit_runs import audit as audit_run
    from clgym.audit_runs import plain
    from clgym.rescore import finished

    done, waiting = finished(runs)
    for folder in waiting:
        note(f"Skipped {folder}: not finished.")
    found = {}
    for folder, record in done.items():
        note(f"Auditing {folder}")
        found[folder] = audit_run(folder, record, device=device, precision=precision, tell=note)
    payload = {"runs": [{"folder": str(f), "requests": [plain(one) for one in all_]} for f, all_ in found.items()]}
    tables: list[Any] = []
    for folder, all_ in found.items():
        record = done[folder]
        table = plain_table(AUDITED, [_audit_row(one) for one in all_])
        table.title, table.title_justify = escape(f"{record.scenario} · {record.agent} · seed {record.seed}"), "left"
        table.caption = "agent / reference; accuracies in %"
        tables += [table, ""]
    emit(payload, as_json, *tables)


def _audit_row(one: Audit) -> list[str]:
    def pair(values: tuple[float, float] | None) -> str:
        return "-" if values is None else " / ".join(map(percent, values))

    from clgym.audit import BUDGET

    steps = " / ".join("never" if k > BUDGET else str(k) for k in one.steps)
    seen = [f"{trace.count} {trace.kind} in {trace.where}" for trace in one.traces]
    seen += [] if one.same else ["answers otherwise after a restart"]
    probes = [pair(one.probes.get(name)) for name in ("few", "full")]
    return [
        str(one.request), steps, f"{one.ratio:.2f}", pair(one.recovery), *probes, escape("\n".join(seen)) or "none",
        ", ".join(one.failed) or "none",
    ]  # fmt: skip


def _plain(score: RequestScore) -> dict[str, Any]:
    """Return a score as JSON values, NaN as ``None``."""
    out = asdict(score)
    for name in ("metrics", "footnotes"):
        out[name] = {key: None if value != value else float(value) for key, value in out[name].items()}
    out["curves"] = {
        key: [[None if x != x else float(x) for x in row] for row in rows] for key, rows in out["curves"].items()
    }
    return out


def _tables(runs: Sequence[tuple[RunRecord, list[RequestScore]]], folders: Sequence[Path]) -> list[Any]:
    """Return a table for each request, over the seeds of one agent, with what audits found."""
    out: list[Any] = []
    record = runs[0][0]
    seeds = ", ".join(str(record.seed) for record, _ in runs)
    keys = list(dict.fromkeys((score.request, score.subset) for _, scores in runs for score in scores))
    for request, subset in keys:
        same = [s for _, scores in runs for s in scores if (s.request, s.subset) == (request, subset)]
        about = same[0]
        what = f"{about.subset} samples of " if subset else ""
        scope = ", ".join(about.scope[:4]) + (" ..." if len(about.scope) > 4 else "") if len(runs) == 1 else ""
        title = f"{record.scenario} · {record.agent} · seed {seeds} · request {request}: {what}{about.kind} {scope}"
        out += [_table(same, f"{title} · {about.goal} · {_verdict(folders, request)}"), ""]
    return out


def _verdict(folders: Sequence[Path], request: int) -> str:
    """Return what is known beyond answers: ``"suppression"`` if an audit of any run failed, or that there was none."""
    from clgym.audit_runs import kept

    audits = [kept(folder).get(request) for folder in folders]
    failed = sorted({name for one in audits if one for name in one["failed"]})
    if failed:
        return f"suppression ({', '.join(failed)})"
    return "audited" if all(audits) else "not audited"


def _table(same: Sequence[RequestScore], title: str) -> Table:
    """Return the metrics of one request; several seeds as mean and 95 % t-interval."""
    from clgym.leaderboard.table import estimate

    rows = []
    for id in same[0].metrics:
        found = estimate([score.metrics[id] for score in same])
        shown = percent(found.mean) if len(same) == 1 else f"{percent(found.mean)} ± {percent(found.half)}"
        notes = same[0].footnotes
        beside = {
            "gap_forget": f"references {percent(notes['erased_low'])} to {percent(notes['erased_high'])}"
            if "erased_low" in notes
            else "",
            "js_excess": f"floor {percent(notes['js_floor'])}" if "js_floor" in notes else "",
            "ks_excess": f"floor {percent(notes['ks_floor'])}, p {notes['ks_p']:.3f}" if "ks_floor" in notes else "",
            "mia_gap": f"AUC {percent(notes['mia_low'])} to {percent(notes['mia_high'])}" if "mia_low" in notes else "",
        }
        rows.append([id, shown, beside.get(id, "") if len(same) == 1 else "", escape(METRICS[id].title)])
    table = plain_table(["metric", "%", "", "title"], rows)
    table.title, table.title_justify = escape(title), "left"
    table.caption, table.caption_justify = _cost(same), "left"
    return table


def _cost(same: Sequence[RequestScore]) -> str | None:
    """Say what a request cost (E9), the mean over seeds; nothing if a run did not measure it."""
    if not all("seconds" in score.footnotes for score in same):
        return None
    mean = {name: sum(score.footnotes[name] for score in same) / len(same) for name in COSTS}
    return (
        f"cost (E9): {mean['seconds']:.2g} s; {mean['forget_reads']:,.0f} samples read to forget, "
        f"{mean['retain_reads']:,.0f} to retain; state {mean['state_bytes_before'] / 1e6:.3g} MB before, "
        f"{mean['state_bytes_after'] / 1e6:.3g} after"
    )


def dry_run(jobs: Sequence[Cell], count: int, as_json: bool) -> None:
    """Print what runs and their references would cost, in events."""
    from clgym.reference_runs import costs

    payload, rows = [], []
    for job in jobs:
        parts = costs(job.scenario, job.scenario_settings, job.seed, count)
        payload.append({"agent": job.agent, "seed": job.seed, "parts": parts})
        first = parts[0]["train"]
        for part in parts:
            share = part["train"] / first if first else float("nan")
            cells = [part["times"], part["left_out"], part["train"], part["questions"], f"{share:.1f}"]
            rows.append([f"{job.agent} · seed {job.seed}", *map(str, cells)])
    emit(
        {"runs": payload},
        as_json,
        plain_table(["run", "times", "left out", "train events", "questions", "lifetimes"], rows),
    )


def check_references(jobs: Sequence[Cell], count: int) -> None:
    """Refuse references that cannot be played before a run is; all runs are on one stream.

    Raises:
        SettingError: ``count`` is out of range, or no request of the stream is judged by references.
    """
    from clgym.reference_runs import check
    from clgym.registry import make

    made = make(jobs[0].scenario, **jobs[0].scenario_settings)
    try:
        check(made.unwrapped, jobs[0].scenario, jobs[0].seed, count)  # type: ignore[arg-type]
    finally:
        made.close()


def play_references(
    done: Mapping[Path, RunRecord], out: Path, count: int, *, device: str, precision: str, quiet: bool, as_json: bool
) -> None:
    """Play the references of finished runs, and print what their requests came to."""
    from clgym.erasure_results import results
    from clgym.reference_runs import play

    for folder, record in done.items():
        tell = (lambda words: None) if quiet else note
        play(record, out, count, device=device, precision=precision, tell=tell)
        if not (quiet or as_json):
            for table in _tables([(record, results(folder, record))], [folder]):
                stdout().print(table)
