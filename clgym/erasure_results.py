"""Runs on disk whose stream had requests to forget: their answers, their references, and what each request came to."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from clgym import detection_scores
from clgym.detection_scorer import DetectionScorer
from clgym.env import ContinualEnv
from clgym.erasure_scores import Answers, RequestScore, scored
from clgym.errors import RecordError
from clgym.events import Array
from clgym.lifetime import Lifetime
from clgym.record import RunRecord
from clgym.reference_runs import folder_for, judged, whole
from clgym.registry import make
from clgym.rescore import check_stream, choice, read_log


def results(folder: Path, record: RunRecord) -> list[RequestScore]:
    """Return what every request of a run came to; requests that need references are left out where there are none.

    Raises:
        RecordError: The run has no request, or its stream, its answers or a reference is damaged or another one.
        SourceMissingError: The scenario's data are not on this machine.
    """
    made = make(record.scenario, **choice(record))
    env: ContinualEnv = made.unwrapped  # type: ignore[assignment]
    try:
        env.reset(seed=record.seed)
        life = env.lifetime
        if life.probing is None:
            raise RecordError(
                f"Expected a run on a stream with requests to forget; got {folder}, on {record.scenario}. "
                "clgym list shows the scenarios."
            )
        check_stream(folder, record, env.fingerprints())
        if isinstance(env.scorer, DetectionScorer):
            scores = detection_scores.scored(life, env.scorer.reading(read_log(folder, env.scorer.needs)))
        else:
            run = read_answers(folder, life)
            references = [read_answers(place, life) for place in reference_folders(folder, record, env)]
            scores = scored(life, record.backbone, run, references)
        return [replace(score, footnotes=score.footnotes | costs(record, life, score.request)) for score in scores]
    finally:
        made.close()


def costs(record: RunRecord, life: Lifetime, r: int) -> dict[str, float]:
    """Return what a request cost the agent (E9): seconds, bytes of its state, and samples read in its phase.

    The samples are those of the phase, which may have served other requests too.
    """
    rows = {row["request"]: row for row in record.resources.get("per_request", [])}
    read = record.resources.get("reads", [])
    if r not in rows or len(read) != len(life.ledger.services):
        return {}
    taken = {name: read[life.ledger.served(r)][name] for name in ("forget_reads", "retain_reads")}
    return {name: rows[r][name] for name in ("seconds", "state_bytes_before", "state_bytes_after")} | taken


def reference_folders(folder: Path, record: RunRecord, env: ContinualEnv) -> list[Path]:
    """Return the folders of a run's references, in the order of their seeds, whole and of this run.

    Raises:
        RecordError: One is of another stream or agent.
    """
    above = folder.resolve().parents[2]
    parent = folder_for(above, record, 0).parent
    found = sorted(parent.glob("agent-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    wanted = {
        "scenario_settings": record.scenario_settings,
        "agent": record.agent,
        "agent_settings": record.agent_settings,
        "seed": record.seed,
        "fingerprints": env.fingerprints(),
    }
    if not judged(env.lifetime):
        return []
    for path in found:
        about = whole(path)
        if wrong := [name for name, value in wanted.items() if about.get(name) != json.loads(json.dumps(value))]:
            raise RecordError(
                f"Expected references of {folder} in {path}; got another {wrong[0]}. "
                "Remove that folder and run again with --references."
            )
    return found


def read_answers(folder: Path, life: Lifetime) -> Answers:
    """Return the answers of a run or a reference.

    Raises:
        RecordError: A file is missing, damaged, or of another stream.
    """
    import pandas as pd

    columns: list[dict[str, Array]] = []
    for name in ("predictions.parquet", "probes.parquet"):
        path = folder / name
        if not path.is_file():
            raise RecordError(f"Expected the file {path}; got none. Restore it from a copy, or run again.")
        try:
            table = pd.read_parquet(path)
            columns.append({str(column): table[column].to_numpy() for column in table})
        except (OSError, ValueError) as error:
            raise RecordError(f"Expected answers in {path}; got {error!r}. Run again.") from error
    log, full = columns
    rows = full["log_probs"]
    full["log_probs"] = np.stack(list(rows)) if len(rows) else np.empty((0, 0), np.float32)
    try:
        return Answers(life, log, full)
    except (KeyError, IndexError) as error:
        raise RecordError(
            f"Expected answers to the questions of its stream in {folder}; got {error!r}. Run again."
        ) from error
