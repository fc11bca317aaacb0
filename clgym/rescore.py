"""Runs on disk: finds their folders, and scores their predictions anew with the rebuilt scenario's labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clgym.env import ContinualEnv
from clgym.errors import RecordError, SettingError
from clgym.events import Array
from clgym.record import RunRecord
from clgym.registry import make, settings
from clgym.scorer import Report


def run_folders(paths: Sequence[Path]) -> list[Path]:
    """Return the folders with a ``run.json``: the paths themselves, or all below them, each once, in order.

    Raises:
        RecordError: There is none under a path.
    """
    out: dict[Path, Path] = {}
    for path in paths:
        found = sorted(file.parent for file in path.rglob("run.json")) if path.is_dir() else []
        if not found:
            raise RecordError(
                f"Expected a run folder with run.json, or a folder above some; got {path}. "
                "Pass a folder that clgym run wrote."
            )
        for folder in found:
            out.setdefault(folder.resolve(), folder)
    return list(out.values())


def finished(paths: Sequence[Path]) -> tuple[dict[Path, RunRecord], list[Path]]:
    """Return the finished runs under the paths by folder, and the folders of unfinished ones.

    Raises:
        RecordError: A run is damaged, or none is finished.
    """
    records = {folder: RunRecord.load(folder) for folder in run_folders(paths)}
    done = {folder: record for folder, record in records.items() if record.status == "finished"}
    waiting = [folder for folder in records if folder not in done]
    if not done:
        raise RecordError(
            f"Expected a finished run; got {waiting[0]}, which is {records[waiting[0]].status}. "
            "Finish it with clgym run --resume."
        )
    return done, waiting


REFERENCES = {"joint": "joint", "single": "single_task"}  # a reference to the agent that gives it


def reference(kind: str, paths: Sequence[Path], record: RunRecord) -> npt.NDArray[np.float64]:
    """Return what a reference model reaches on each task once it is due, ``R[t, t]``, float64 ``(T,)``.

    Args:
        kind: ``"joint"``: trained on all tasks so far together; ``"single"``: freshly started on the task alone.
        paths: Its runs, or folders above some. Of several agents there, that of :data:`REFERENCES` is taken.
        record: The run to compare; the reference is that of the same stream and seed.

    Raises:
        RecordError: None of the runs is of that stream and seed, or several agents' are and none is the usual one.
    """
    stream = record.fingerprints.get("stream")
    fitting = [run for run in finished(paths)[0].values() if run.fingerprints.get("stream") == stream]
    usual = [run for run in fitting if run.agent.rpartition("-v")[0] == REFERENCES[kind]]
    named = sorted({" ".join([run.agent, *map(str, run.agent_settings.items())]) for run in usual or fitting})
    if len(named) == 1:
        return (usual or fitting)[0].matrix[1:].diagonal()
    raise RecordError(
        f"Expected the runs of one reference agent on the stream of {record.scenario} with seed {record.seed} under "
        f"{', '.join(map(str, paths))}; got {', '.join(named) or 'none'}. "
        f"Run {REFERENCES[kind]} with that seed and those settings, and pass its folder."
    )


def rescored(folder: Path, record: RunRecord, **references: Any) -> Report:
    """Score the predictions of a run with the labels of its scenario, and compare with its matrix.

    ``references`` are as in :func:`clgym.metrics.scores`.

    Raises:
        RecordError: The predictions are missing, or do not give the matrix in ``run.json``, or the scenario
            is no longer the one that was played.
        SourceMissingError: The scenario's data are not on this machine.
    """
    made = make(record.scenario, **choice(record))
    env: ContinualEnv = made.unwrapped  # type: ignore[assignment]
    try:
        env.reset(seed=record.seed)
        check_stream(folder, record, env.fingerprints())
        report = env.rescore(read_log(folder, env.scorer.needs), **references)
    finally:
        made.close()
    _check_matrix(folder, record, report)
    return report


def read_log(folder: Path, names: Sequence[str]) -> dict[str, Array]:
    """Return columns of a run's ``predictions.parquet``.

    Raises:
        RecordError: The file is missing or damaged, or has no such column.
    """
    import pandas as pd

    path = folder / "predictions.parquet"
    if not path.is_file():
        raise RecordError(f"Expected the file {path}; got none. Restore it from a copy, or run again.")
    try:
        columns = pd.read_parquet(path)
        return {name: columns[name].to_numpy() for name in names}
    except (OSError, ValueError, KeyError) as error:
        raise RecordError(f"Expected predictions in {path}; got {error!r}. Run again.") from error


def choice(record: RunRecord) -> dict[str, Any]:
    """Return the scenario's settings as its class takes them: JSON has no tuples."""
    known = settings("scenarios", record.scenario)
    if unknown := sorted(set(record.scenario_settings) - set(known)):
        raise SettingError(
            f"Expected settings of {record.scenario}; got {unknown[0]!r} in a record. "
            f"Score it with clgym {record.clgym}."
        )
    return {
        name: tuple(value) if isinstance(known[name], tuple) else value
        for name, value in record.scenario_settings.items()
    }


def check_stream(folder: Path, record: RunRecord, now: dict[str, str]) -> None:
    """Raise unless a rebuilt stream is the one that a run was played on.

    Raises:
        RecordError: Its lay-out or its data are others.
    """
    for name in ("stream", "data"):
        if (was := record.fingerprints.get(name, "")) != now[name]:
            raise RecordError(
                f"Expected the {name} with sha256 {was[:12]} that {folder / 'run.json'} names; "
                f"got {now[name][:12]}. "
                f"Score it with the data it was played on, and with clgym {record.clgym}."
            )


def _check_matrix(folder: Path, record: RunRecord, report: Report) -> None:
    written = record.matrix
    if written.shape != report.R.shape:
        difference = f"a matrix of {written.shape}, where the predictions give {report.R.shape}"
    elif not np.array_equal(written, report.R, equal_nan=True):
        same = (written == report.R) | (np.isnan(written) & np.isnan(report.R))
        t, j = (int(i) for i in np.argwhere(~same)[0])
        difference = f"R[{t}, {j}] = {written[t, j]:.6f}, where the predictions give {report.R[t, j]:.6f}"
    else:
        return
    raise RecordError(
        f"Expected {folder / 'run.json'} to agree with predictions.parquet; got {difference}. "
        "One of them was changed: run again."
    )
