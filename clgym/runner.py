"""The loop: plays a scenario with an agent, watches what it costs, and keeps a record that survives a kill."""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

import clgym
from clgym import checkpoint
from clgym.agent import Agent
from clgym.callbacks import Callback
from clgym.env import ContinualEnv
from clgym.errors import RecordError, SettingError
from clgym.events import Query, TaskEnd, TaskStart, Train
from clgym.record import RunRecord, nullable, sha256_of, write_atomic
from clgym.registry import find, make_agent, settings
from clgym.registry import make as make_env

CHECKPOINT_SECONDS = 60.0


def run(
    scenario: str,
    agent: str,
    seed: int = 0,
    *,
    scenario_settings: dict[str, Any] | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    device: str = "auto",
    callbacks: Sequence[Callback] = (),
    **agent_settings: Any,
) -> RunRecord:
    """Play a scenario to its end and return the record.

    Args:
        scenario: Scenario id.
        agent: Agent id.
        seed: Spawns the generators of order, data and agent.
        scenario_settings: Settings of the scenario.
        out: Folder under which ``<scenario>/<agent>/seed-<n>/`` is written; ``None`` writes nothing.
        resume: Continue a run that was interrupted; a finished one is returned as it is.
        overwrite: Replace what is there.
        device: ``"auto"``, ``"cpu"`` or ``"cuda"``.
        callbacks: What watches the run.
        **agent_settings: Settings of the agent.

    Raises:
        NotRegisteredError: An id is unknown.
        SettingError: A setting is unknown or out of range, or the folder holds a run already.
        RecordError: A file of the run to resume is damaged.
    """
    chosen = scenario_settings or {}
    made = make_env(scenario, disable_env_checker=True, **chosen)
    env: ContinualEnv = made.unwrapped  # type: ignore[assignment]
    learner = make_agent(agent, made, seed, device=device, **agent_settings)
    record = RunRecord(
        clgym=clgym.__version__,
        scenario=env.scenario.spec.id,
        scenario_settings=_changed("scenarios", scenario, chosen),
        source=env.scenario.source,
        backbone=env.scenario.backbone,
        agent=learner.spec.id,
        agent_settings=_changed("agents", agent, agent_settings),
        seed=seed,
        versions=versions(),
        hardware=hardware(device),
    )
    folder = None if out is None else Path(out) / folder_of(record)
    if folder is not None and (folder / "run.json").exists():
        found = _existing(folder, record, resume=resume, overwrite=overwrite)
        if found is not None:
            return found
    try:
        return _Run(env, learner, record, folder, callbacks).play(resume=resume)
    finally:
        made.close()


def folder_of(record: RunRecord) -> Path:
    """Return ``<scenario>/<agent>/seed-<n>``; settings that are not defaults stand behind the ids.

    >>> folder_of(RunRecord(clgym="", scenario="S-v0", source="", backbone="", agent="a-v0", seed=1,
    ...                     agent_settings={"lr": 0.01})).as_posix()
    'S-v0/a-v0,lr=0.01/seed-1'
    """

    def name(id: str, chosen: dict[str, Any]) -> str:
        text = ",".join([id, *(f"{key}={value}" for key, value in sorted(chosen.items()))])
        return "".join(c if c.isalnum() or c in "-_.,=+" else "~" for c in text)[:200]

    return Path(
        name(record.scenario, record.scenario_settings),
        name(record.agent, record.agent_settings),
        f"seed-{record.seed}",
    )


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that can move a number."""
    names = ("numpy", "torch", "open_clip_torch", "timm", "transformers", "gymnasium")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def hardware(device: str = "auto") -> dict[str, Any]:
    """Return processor, cores, threads and accelerator."""
    cuda = torch.cuda.is_available() and device != "cpu"
    return {
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if cuda else "cpu",
    }


def peak_memory() -> int | None:
    """Return the largest resident size of this process so far, bytes; ``None`` where the system does not tell."""
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _changed(room: Any, id: str, chosen: dict[str, Any]) -> dict[str, Any]:
    defaults = settings(room, find(room, id).spec.id)
    return {name: value for name, value in sorted(chosen.items()) if defaults.get(name) != value}


def _existing(folder: Path, record: RunRecord, *, resume: bool, overwrite: bool) -> RunRecord | None:
    """Say what becomes of a run that is there already: the finished record, or ``None`` to play."""
    if overwrite:
        for path in sorted(folder.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        return None
    found = RunRecord.load(folder)
    if not resume:
        raise SettingError(
            f"Expected a new run; got {folder}, which holds one that is {found.status}. "
            "Add --resume to continue it or --overwrite to replace it."
        )
    if found.identity != record.identity:
        raise RecordError(f"Expected the run {record.identity} in {folder}; got {found.identity}. Add --overwrite.")
    if found.status == "finished":
        return found
    if (a := found.hardware.get("threads")) != (b := record.hardware["threads"]):
        raise SettingError(
            f"Expected {a} threads, as this run began with; got {b}. "
            f"Set OMP_NUM_THREADS={a}, or sums differ in their last bits."
        )
    return None


class _Run:
    """One run in progress."""

    def __init__(
        self,
        env: ContinualEnv,
        agent: Agent,
        record: RunRecord,
        folder: Path | None,
        callbacks: Sequence[Callback],
    ) -> None:
        self.env, self.agent, self.record = env, agent, record
        self.folder, self.callbacks = folder, callbacks
        self.rewards: list[float] = []
        self.cost: dict[str, Any] = {"seconds": 0.0, "train_seconds": 0.0, "query_seconds": 0.0, "samples": 0}
        self.per_task: list[dict[str, int]] = []

    def play(self, *, resume: bool) -> RunRecord:
        """Play from the start or the last checkpoint to the end."""
        event = self._begin(resume)
        for callback in self.callbacks:
            callback.on_start(self.env, self.record, self.folder or Path())
        saved = started = time.monotonic()
        before = self.cost["seconds"]
        done = False
        try:
            while not done:
                answer = self._act(event)
                seen = event
                event, reward, done, _, _ = self.env.step(answer)
                self.rewards.append(reward)
                for callback in self.callbacks:
                    callback.on_event(self.env, seen, reward)
                now = time.monotonic()
                boundary = self._boundary(seen, event)
                if boundary or now - saved > CHECKPOINT_SECONDS:
                    self.cost["seconds"] = before + now - started
                    self._checkpoint()
                    saved = now
        except KeyboardInterrupt:
            self.cost["seconds"] = before + time.monotonic() - started
            self._checkpoint()
            raise
        self.cost["seconds"] = before + time.monotonic() - started
        return self._finish()

    def _begin(self, resume: bool) -> Any:
        """Reset, or restore the last checkpoint; return the event to act on."""
        states = checkpoint.read(self.folder / "checkpoint") if resume and self.folder else None
        if states is None:
            event, _ = self.env.reset(seed=self.record.seed)
            self.record = self.record.model_copy(
                update={"tasks": list(self.env.task_names), "fingerprints": self._fingerprints()}
            )
            if self.folder is not None:
                self.record.save(self.folder)
            return event
        arrays = {k: v.numpy() if isinstance(v, torch.Tensor) else v for k, v in states["scorer"].items()}
        event, _ = self.env.reset(options={"resume": {**states["env"], "scorer": arrays}})
        self.agent.load_state_dict(states["agent"])
        self.rewards = states["run"]["rewards"].tolist()
        self.cost, self.per_task = states["run"]["cost"], states["run"]["per_task"]
        self.record = self.record.model_copy(
            update={"tasks": list(self.env.task_names), "fingerprints": self._fingerprints()}
        )
        return event

    def _fingerprints(self) -> dict[str, str]:
        backbone = getattr(self.agent, "backbone", None)
        own = {} if backbone is None else {"backbone": backbone.sha256}
        return {**self.env.fingerprints(), **own}

    def _act(self, event: Any) -> Any:
        """Let the agent act and charge its time."""
        start = time.monotonic()
        answer = self.agent.act(event)
        spent = time.monotonic() - start
        self.cost["query_seconds" if isinstance(event, Query) else "train_seconds"] += spent
        if isinstance(event, Train):
            self.cost["samples"] += len(event.inputs)
        if isinstance(event, TaskEnd):
            self.per_task.append(self._footprint())
        return answer

    def _footprint(self) -> dict[str, int]:
        cost = self.agent.footprint()
        state = self.agent.state_dict().values()
        size = sum(v.nbytes for v in state if isinstance(v, np.ndarray | torch.Tensor))
        names = ("trainable", "stored", "added_at_inference", "sample_bytes")
        return {**{name: getattr(cost, name) for name in names}, "state_bytes": int(size)}

    def _boundary(self, seen: Any, event: Any) -> bool:
        """Whether a task just began to wait, or a round of questions just ended."""
        if isinstance(seen, Query) and not isinstance(event, Query):
            if not isinstance(event, Train):
                after = self.env.tasks_learned
                for callback in self.callbacks:
                    callback.on_point(self.env, after)
            return True
        return isinstance(seen, TaskStart | TaskEnd)

    def _checkpoint(self) -> None:
        if self.folder is None:
            return
        state = self.env.get_state()
        scorer = state.pop("scorer")
        run = {"rewards": np.array(self.rewards), "cost": self.cost, "per_task": self.per_task}
        parts = {"env": state, "scorer": scorer, "agent": self.agent.state_dict(), "run": run}
        checkpoint.write(self.folder / "checkpoint", state["position"], parts)

    def _finish(self) -> RunRecord:
        """Write what is to be kept and return the record."""
        report = self.env.report()
        cost = {**self.cost, "peak_memory_bytes": peak_memory(), "per_task": self.per_task}
        if torch.cuda.is_available():
            cost["peak_cuda_bytes"] = torch.cuda.max_memory_allocated()
        self.record = self.record.model_copy(
            update={
                "status": "finished",
                "R": nullable(report.R),
                "metrics": {k: None if np.isnan(v) else v for k, v in report.metrics.items()},
                "resources": cost,
            }
        )
        if self.folder is not None:
            self._write(self.folder, report)
        for callback in self.callbacks:
            callback.on_end(self.env, self.record)
        return self.record

    def _write(self, folder: Path, report: Any) -> None:
        from clgym.plots import matrix_figure, png_bytes

        files = {
            "predictions.parquet": parquet(self.env.scorer.predictions()),
            "events.parquet": parquet(self.env.describe(np.array(self.rewards))),
            "matrix.png": png_bytes(matrix_figure(report.R, report.tasks)),
        }
        for name, content in files.items():
            write_atomic(folder / name, content)
        digests = {name: sha256_of(folder / name) for name in files}
        self.record = self.record.model_copy(update={"files": digests})
        self.record.save(folder)


def parquet(columns: dict[str, Any]) -> bytes:
    """Return a Parquet file of named columns; the same columns give the same bytes."""
    sink = BytesIO()
    pq.write_table(pa.table(columns), sink, compression="zstd")
    return sink.getvalue()
