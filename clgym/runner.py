"""The loop: plays a scenario with an agent, watches what it costs, and keeps a record that survives a kill."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

import clgym
from clgym import checkpoint
from clgym.agent import Agent
from clgym.callbacks import Callback
from clgym.checkpoint import Patience, States
from clgym.env import ContinualEnv
from clgym.erasure_costs import RequestCosts
from clgym.errors import RecordError, SettingError
from clgym.events import End, Event, Query, TaskEnd, Train
from clgym.record import RunRecord, nullable, parquet, same_circumstances, same_run, sha256_of, sweep, write_atomic
from clgym.registry import find, make_agent
from clgym.registry import make as make_env
from clgym.scorer import Report
from clgym.settings import differing
from clgym.whitebox import Looks

LONGEST_NAME = 150  # characters of a folder's name before it is cut; file systems allow 255 bytes


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
    precision: str = "fp32",
    callbacks: Sequence[Callback] = (),
    checkpoint_seconds: float = 60.0,
    whitebox: bool = False,
    **agent_settings: Any,
) -> RunRecord:
    """Play a scenario to its end and return the record.

    A checkpoint is written at the end of each task, after each round of questions, every
    ``checkpoint_seconds`` and on Ctrl-C, which waits for the event in hand; a second Ctrl-C does not wait.
    A finished run keeps no checkpoint.

    Args:
        scenario: Scenario id.
        agent: Agent id.
        seed: Spawns the generators of order, data and agent.
        scenario_settings: Settings of the scenario.
        out: Folder under which ``<scenario>/<agent>/seed-<n>/`` is written; ``None`` writes nothing.
        resume: Continue a run that was interrupted; a finished one is returned as it is.
        overwrite: Replace what is there: the run's whole folder.
        device: ``"auto"``, ``"cpu"`` or ``"cuda"``.
        precision: ``"fp32"``, or ``"bf16"`` for mixed precision.
        callbacks: What watches the run.
        checkpoint_seconds: Longest time between two checkpoints, but for the length of one event; 0 writes one
            at every event.
        whitebox: Keep the columns of :mod:`clgym.whitebox`, before training and at each task end.
        **agent_settings: Settings of the agent.

    Raises:
        NotRegisteredError: An id is unknown.
        SettingError: A setting is unknown or out of range, the folder holds a run already, or a run is resumed
            under circumstances that would change its numbers: threads, device, versions.
        RecordError: A file of the run to resume is damaged, or its data or its model have changed.
    """
    if resume and overwrite:
        raise SettingError("Expected resume or overwrite; got both. Leave one out.")
    if seed < 0:
        raise SettingError(f"Expected a seed of 0 or more; got {seed}. Choose another.")
    chosen, looks = scenario_settings or {}, Looks(whitebox)
    made = make_env(scenario, disable_env_checker=True, **chosen)
    env: ContinualEnv = made.unwrapped  # type: ignore[assignment]
    try:
        record = RunRecord(
            clgym=clgym.__version__,
            scenario=env.scenario.spec.id,
            scenario_settings=differing("scenarios", scenario, chosen),
            source=env.scenario.source,
            backbone=env.scenario.backbone,
            agent=find("agents", agent).spec.id,
            agent_settings=differing("agents", agent, agent_settings),
            seed=seed,
            versions=versions(),
            hardware=hardware(device, precision),
        )
        folder = None if out is None else Path(out) / folder_of(record)
        states = None
        if folder is not None and not overwrite:
            record, states = _existing(folder, record, resume=resume)
            if record.status == "finished":
                looks.require(record.resources, folder)
                return record
        learner = make_agent(agent, made, seed, device=device, precision=precision, **agent_settings)
        if folder is not None and overwrite:
            _empty(folder)
        return _Run(env, learner, record, folder, callbacks, checkpoint_seconds, looks).play(states)
    finally:
        made.close()


def folder_of(record: RunRecord) -> Path:
    """Return ``<scenario>/<agent>/seed-<n>``; settings that are not defaults stand behind the ids.

    >>> folder_of(RunRecord(clgym="", scenario="S-v0", source="", backbone="", agent="a-v0", seed=1,
    ...                     agent_settings={"lr": 0.01})).as_posix()
    'S-v0/a-v0,lr=0.01/seed-1'
    """
    return Path(
        _name(record.scenario, record.scenario_settings),
        _name(record.agent, record.agent_settings),
        f"seed-{record.seed}",
    )


def _name(id: str, chosen: dict[str, Any]) -> str:
    """Return a folder's name that no other settings have; where characters are lost, a hash makes up for them."""
    said = {key: v if isinstance(v, str) else json.dumps(v) for key, v in sorted(chosen.items())}
    text = ",".join([id, *(f"{key}={value}" for key, value in said.items())])
    name = re.sub(r"[^A-Za-z0-9_.,=+-]", "~", text)[:LONGEST_NAME]
    # A text may also hold the separators, or look like a number or another JSON value.
    word = re.compile(r"(?!(true|false|null)$)[A-Za-z_][A-Za-z0-9_.+-]*")
    if name == text and all(word.fullmatch(v) for v in chosen.values() if isinstance(v, str)):
        return name
    whole = json.dumps([id, chosen], sort_keys=True)
    return f"{name}-{hashlib.sha256(whole.encode()).hexdigest()[:10]}"


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that can move a number."""
    names = ("numpy", "torch", "open_clip_torch", "timm", "transformers", "gymnasium")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def hardware(device: str = "auto", precision: str = "fp32") -> dict[str, Any]:
    """Return architecture, cores, threads, accelerator and precision."""
    cuda = torch.cuda.is_available() and device != "cpu"
    return {
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "precision": precision,
    }


def peak_memory() -> int | None:
    """Return the largest resident size of this process so far, bytes; ``None`` where the system does not tell."""
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def footprint(agent: Agent) -> dict[str, int]:
    """Return what an agent says that it costs, and as ``state_bytes`` the size of all arrays in its state."""
    cost = agent.footprint()
    state = agent.state_dict().values()
    size = sum(v.nbytes for v in state if isinstance(v, np.ndarray | np.generic | torch.Tensor))
    names = ("trainable", "stored", "added_at_inference", "sample_bytes")
    return {**{name: getattr(cost, name) for name in names}, "state_bytes": int(size)}


def _existing(folder: Path, new: RunRecord, *, resume: bool) -> tuple[RunRecord, States | None]:
    """Return the record to continue, or the finished one, or the new one; and the states to continue from.

    A run whose ``run.json`` is gone is known by its checkpoint, which holds the record too.
    """
    saved = folder / "checkpoint"
    found = RunRecord.load(folder) if (folder / "run.json").exists() else None
    if found is None and not checkpoint.exists(saved):
        return new, None
    if not resume:
        status = "running" if found is None else found.status
        raise SettingError(
            f"Expected a new run; got {folder}, which holds one that is {status}. "
            "Add --resume to continue it or --overwrite to replace it."
        )
    if found is not None:
        same_run(folder, found, new)
        if found.status == "finished":
            checkpoint.clear(saved)
            return found, None
    states = checkpoint.read(saved)
    if states is None:
        return new, None
    found = RunRecord.parse(states["record"], saved)
    same_run(saved, found, new)
    same_circumstances(found, new)
    return found, states


def _empty(folder: Path) -> None:
    """Remove a run, its ``run.json`` last, so that a kill meanwhile leaves no run that looks whole."""
    for path in sorted(folder.glob("*"), key=lambda path: path.name == "run.json"):
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


class _Run:
    """One run in progress."""

    def __init__(
        self,
        env: ContinualEnv,
        agent: Agent,
        record: RunRecord,
        folder: Path | None,
        callbacks: Sequence[Callback],
        checkpoint_seconds: float,
        looks: Looks,
    ) -> None:
        self.env, self.agent, self.record = env, agent, record
        self.folder, self.callbacks, self.checkpoint_seconds = folder, callbacks, checkpoint_seconds
        self.rewards: list[float] = []
        self.cost: dict[str, Any] = {"seconds": 0.0, "train_seconds": 0.0, "query_seconds": 0.0, "samples": 0}
        self.per_task: list[dict[str, int]] = []
        self.looks, self.requests = looks, RequestCosts()
        self.cuda = record.hardware["device"] != "cpu"
        self.charged = "query_seconds"
        self.lap = time.monotonic()

    def play(self, states: States | None) -> RunRecord:
        """Play from the start, or from the states of a checkpoint, to the end."""
        with Patience() as patience:
            event = self._begin(states)
            for callback in self.callbacks:
                callback.on_start(self.env, self.record, self.folder)
            saved = time.monotonic()
            while not isinstance(event, End):
                answer = self._act(event)
                seen = event
                event, reward, *_ = self.env.step(answer)
                self.rewards.append(reward)
                for callback in self.callbacks:
                    callback.on_event(self.env, seen, reward)
                due = time.monotonic() - saved >= self.checkpoint_seconds
                if self._boundary(seen) or due or patience.asked:
                    self._checkpoint()
                    saved = time.monotonic()
                if patience.asked:
                    raise KeyboardInterrupt
            return self._finish()

    def _begin(self, states: States | None) -> Event:
        """Reset, or restore a checkpoint; return the event to act on."""
        if self.cuda:
            torch.cuda.init()  # type: ignore[no-untyped-call]  # an agent that never used the device has not
            torch.cuda.reset_peak_memory_stats()
        if states is None:
            event, _ = self.env.reset(seed=self.record.seed)
            self.record = self.record.model_copy(
                update={"tasks": list(self.env.task_names), "fingerprints": self._fingerprints()}
            )
            self.looks.take(self.agent, self.env.held_out)
        else:
            event, _ = self.env.reset(options={"resume": {**states["env"], "scorer": states["scorer"]}})
            self._check_fingerprints()
            self.agent.load_state_dict(states["agent"])
            self.rewards = states["run"]["rewards"].tolist()
            self.cost, self.per_task = states["run"]["cost"], states["run"]["per_task"]
            self.looks.restore(states["run"].get("whitebox"))
            self.requests.rows = states["run"]["requests"]
        if self.folder is not None:
            sweep(self.folder)
            sweep(self.folder / "checkpoint")
            self.record.save(self.folder)
        return event

    def _fingerprints(self) -> dict[str, str]:
        backbone = getattr(self.agent, "backbone", None)
        own = {} if backbone is None else {"backbone": backbone.sha256}
        return {**self.env.fingerprints(), **own}

    def _check_fingerprints(self) -> None:
        """Refuse to continue on other data or another model than the run began with."""
        was, now = self.record.fingerprints, self._fingerprints()
        for name in sorted(was.keys() | now.keys()):
            if (a := was.get(name, "none")) != (b := now.get(name, "none")):
                raise RecordError(
                    f"Expected the {name} with sha256 {a[:12]} that this run began with; got {b[:12]}. "
                    "Restore what has changed, or add --overwrite to start again."
                )

    def _act(self, event: Event) -> Any:
        """Let the agent act and charge its time."""
        kind = "query_seconds" if isinstance(event, Query) else "train_seconds"
        self.requests.before(event, self._state_bytes)
        start = time.monotonic()
        if self.cuda and kind != self.charged:
            # What the GPU still has to do was asked for by the events before.
            torch.cuda.synchronize()
            self.cost[self.charged] += time.monotonic() - start
            start = time.monotonic()
        self.charged = kind
        answer = self.agent.act(event)
        spent = time.monotonic() - start
        self.cost[kind] += spent
        self.requests.after(event, spent, self._state_bytes)
        if isinstance(event, Train):
            self.cost["samples"] += len(event.inputs)
        if isinstance(event, TaskEnd):
            self.per_task.append(footprint(self.agent))
            self.looks.take(self.agent, self.env.held_out)
        return answer

    def _state_bytes(self) -> int:
        return footprint(self.agent)["state_bytes"]

    def _boundary(self, seen: Event) -> bool:
        """Whether a task or a round of questions about all tasks just ended; tell of the latter."""
        if not self.env.round_over:
            return isinstance(seen, TaskEnd)
        for callback in self.callbacks:
            callback.on_point(self.env, self.env.tasks_learned)
        return True

    def _take_stock(self) -> None:
        """Bring up to date what the run has cost, over all processes that played it."""
        now = time.monotonic()
        self.cost["seconds"] += now - self.lap
        self.lap = now
        peaks = {"peak_memory_bytes": peak_memory()}
        if self.cuda:
            peaks["peak_cuda_bytes"] = torch.cuda.max_memory_allocated()
        for name, peak in peaks.items():
            self.cost[name] = None if peak is None else max(peak, self.cost.get(name) or 0)

    def _checkpoint(self) -> None:
        if self.folder is None:
            return
        self._take_stock()
        env = self.env.get_state()
        parts = {
            "scorer": env.pop("scorer"),
            "env": env,
            "agent": self.agent.state_dict(),
            "run": {"rewards": np.array(self.rewards), "cost": self.cost, "per_task": self.per_task}
            | {"whitebox": self.looks.rows, "requests": self.requests.rows},
            "record": self.record.model_dump(mode="json"),
        }
        checkpoint.write(self.folder / "checkpoint", env["position"], parts)

    def _finish(self) -> RunRecord:
        """Write what is to be kept, drop the checkpoints, and return the record."""
        self._take_stock()
        report = self.env.report()
        self.record = self.record.model_copy(
            update={
                "status": "finished",
                "R": nullable(report.R),
                "metrics": {k: float(v) if np.isfinite(v) else None for k, v in report.metrics.items()},
                "resources": {**self.cost, "per_task": self.per_task, **self.requests.told(self.env.reads)}
                | ({} if self.looks.rows is None else {"whitebox": self.looks.rows}),
            }
        )
        if self.folder is not None:
            self._write(self.folder, report)
            checkpoint.clear(self.folder / "checkpoint")
        for callback in self.callbacks:
            callback.on_end(self.env, self.record)
        return self.record

    def _write(self, folder: Path, report: Report) -> None:
        from clgym.plots import matrix_figure, png_bytes

        files = {
            "predictions.parquet": parquet(self.env.scorer.predictions()),
            "events.parquet": parquet(self.env.describe(np.array(self.rewards))),
            "matrix.png": png_bytes(matrix_figure(report.R, report.tasks)),
        }
        if self.env.scorer.full is not None:
            files["probes.parquet"] = parquet(self.env.scorer.full.table())
        for name, content in files.items():
            write_atomic(folder / name, content)
        digests = {name: sha256_of(folder / name) for name in files}
        self.record = self.record.model_copy(update={"files": digests})
        # Last, since a record that says finished vouches for its files.
        self.record.save(folder)
