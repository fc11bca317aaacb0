"""Reference agents of a run: the same method with other seeds, on the stream as if the erased data had never come.

A request is judged at the evaluation points after it, each against agents that never saw what had been erased by
then. So a stream with several requests has several counterfactual streams, its *stages*: the first without the data of
the first request, the next without those of the first two, and so on. A reference plays each stage up to the last
point that needs it, and takes up a stage where it parts from the one before: agents continue from a state bit for bit.

References draw from seeds of their own and share none with the run. Under exact erasure the run is then one more agent
of their kind, and what they differ by among themselves is the noise that it is held against.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clgym import checkpoint
from clgym.agent import Agent
from clgym.env import ContinualEnv
from clgym.errors import RecordError, SettingError
from clgym.events import Array, Guess, Query
from clgym.lifetime import Lifetime
from clgym.record import RunRecord, parquet, sha256_of, verify, write_atomic
from clgym.registry import make, make_agent
from clgym.rescore import choice
from clgym.runner import folder_of, hardware, versions

FIRST_SEED = 10_000  # references of seed s have the seeds 10000 + 100 s, 10001 + 100 s, ...
MOST = 100
Log = dict[str, Array]


@dataclass(frozen=True, slots=True)
class Stage:
    """A counterfactual stream and the evaluation points that it stands for.

    Attributes:
        absent: Requests whose samples never come.
        points: Numbers of the points.
        fork: Events that it shares with the stage before it; 0 for the first.
        stop: Position after its last needed event.
    """

    absent: tuple[int, ...]
    points: tuple[int, ...]
    fork: int
    stop: int


def stages(env: ContinualEnv, seed: int) -> tuple[list[Stage], list[ContinualEnv]]:
    """Return the stages of a stream and, for each, its environment, reset; none if nothing counterfactual is asked."""
    env.reset(seed=seed)
    life = env.lifetime
    absent: list[int] = []
    groups: dict[tuple[int, ...], list[int]] = {}
    for number, point in enumerate(life.plan.points):
        if point.service >= 0:
            closed = life.ledger.services[point.service].closes
            absent += [r for r in closed if r in judged(life)]
        if absent:
            groups.setdefault(tuple(absent), []).append(number)
    out: list[Stage] = []
    envs: list[ContinualEnv] = []
    for gone, points in groups.items():
        other = env.counterfactual(gone)
        other.reset(seed=seed)
        steps = other.lifetime.plan.steps
        last = max(k for k, step in enumerate(steps) if step.kind == "query" and step.point in points)
        fork = _shared(envs[-1].lifetime, other.lifetime) if envs else 0
        out.append(Stage(gone, tuple(points), fork, last + 1))
        envs.append(other)
    return out, envs


def judged(life: Lifetime) -> list[int]:
    """Return the requests that are held against references: to forget, not to remove, and not for nothing."""
    return [
        r
        for r, request in enumerate(life.ledger.requests)
        if request.kind != "relearn" and request.goal == "counterfactual" and any(map(len, life.ledger.taken(r)))
    ]


def _shared(a: Lifetime, b: Lifetime) -> int:
    """Return how many events two lifetimes of one stream have in common before they part."""
    for position, (mine, yours) in enumerate(zip(a.plan.steps, b.plan.steps, strict=False)):
        if mine != yours:
            return position
        if mine.kind == "train":
            rows = a.ledger.batch(mine.task, mine.batch), b.ledger.batch(mine.task, mine.batch)
            if not np.array_equal(*rows):
                return position
        if mine.kind == "start" and a.ledger.samples(mine.task) != b.ledger.samples(mine.task):
            return position
    return min(len(a.plan.steps), len(b.plan.steps))


def costs(scenario: str, settings: Mapping[str, Any], seed: int, count: int) -> list[dict[str, Any]]:
    """Return what a run and its references cost, in events: a row for the run, and one for each stage.

    Args:
        scenario: Scenario id.
        settings: Settings of the scenario.
        seed: The run's seed.
        count: Number of references; 0 counts the run alone.

    Raises:
        SettingError: ``count`` is out of range, or references are asked for that judge no request.
    """
    made = make(scenario, **settings)
    env: ContinualEnv = made.unwrapped  # type: ignore[assignment]
    found, envs = check(env, scenario, seed, count) if count else ([], [])
    if not count:
        env.reset(seed=seed)
    rows = [_cost("nothing", env.lifetime, 0, env.length, range(len(env.lifetime.plan.points)), 1)]
    for stage, other in zip(found, envs, strict=True):
        absent = f"request{'s' * (len(stage.absent) > 1)} {', '.join(map(str, stage.absent))}"
        rows.append(_cost(absent, other.lifetime, stage.fork, stage.stop, stage.points, count))
    made.close()
    return rows


def check(env: ContinualEnv, scenario: str, seed: int, count: int) -> tuple[list[Stage], list[ContinualEnv]]:
    """Return what :func:`stages` does if references can be played.

    Raises:
        SettingError: ``count`` is out of range, or no request of the stream is judged by references.
    """
    reference_seeds(seed, count)
    found, envs = stages(env, seed)
    if not found:
        raise SettingError(
            f"Expected a stream in which data must be forgotten as if they had never come; got {scenario} without such "
            "a request. Leave --references out."
        )
    return found, envs


def _cost(words: str, life: Lifetime, start: int, stop: int, points: Sequence[int], times: int) -> dict[str, Any]:
    steps = life.plan.steps[start:stop]
    taught = sum(step.kind in ("train", "erase") for step in steps)
    asked = sum(step.stop - step.start for step in steps if step.kind == "query" and step.point in points)
    return {"left_out": words, "times": times, "from": start, "train": times * taught, "questions": times * asked}


def reference_seeds(seed: int, count: int) -> list[int]:
    """Return the seeds of a run's reference agents, none of which a run of a sweep has.

    Raises:
        SettingError: ``count`` is out of range.
    """
    if not 1 <= count <= MOST:
        raise SettingError(f"Expected 1 to {MOST} references; got {count}. Take 3, or 5 for a table.")
    return [FIRST_SEED + MOST * seed + k for k in range(count)]


def folder_for(out: Path, record: RunRecord, agent_seed: int) -> Path:
    """Return where a reference agent's answers are kept, beside the runs of its agent."""
    return out / folder_of(record).parent / "references" / f"seed-{record.seed}" / f"agent-{agent_seed}"


def play(
    record: RunRecord, out: Path, count: int, *, device: str, precision: str, tell: Callable[[str], None]
) -> list[Path]:
    """Play the references of a run that are not there yet; return the folders of all.

    Args:
        record: The run.
        out: Folder above all runs.
        count: Number of references.
        device: As for the run.
        precision: As for the run.
        tell: Is told which reference is being played.

    Raises:
        SettingError: ``count`` is out of range, or no request of the stream is judged by references.
    """
    seeds = reference_seeds(record.seed, count)
    made = make(record.scenario, **choice(record))
    env: ContinualEnv = made.unwrapped  # type: ignore[assignment]
    try:
        found, envs = check(env, record.scenario, record.seed, count)
        folders = []
        for number, agent_seed in enumerate(seeds, 1):
            folder = folder_for(out, record, agent_seed)
            about = _identity(record, agent_seed, found, env, device, precision)
            if not _is_there(folder, about):
                tell(f"reference {number}/{count} · {len(found)} stages · agent seed {agent_seed}")
                _save(folder, about, *_played(record, agent_seed, found, envs, device, precision))
            folders.append(folder)
        return folders
    finally:
        made.close()


def _played(
    record: RunRecord,
    agent_seed: int,
    found: Sequence[Stage],
    envs: Sequence[ContinualEnv],
    device: str,
    precision: str,
) -> tuple[Log, Log]:
    """Play all stages with one reference agent; return its answers at their points, and the full ones."""
    logs: list[Log] = []
    fulls: list[Log] = []
    chosen = {name: value for name, value in record.agent_settings.items() if name != "agent_seed"}
    with tempfile.TemporaryDirectory() as scratch:
        for number, (stage, env) in enumerate(zip(found, envs, strict=True)):
            agent = make_agent(record.agent, env, agent_seed, device=device, precision=precision, **chosen)
            if number and stage.fork:
                states = checkpoint.read(Path(scratch, str(number))) or {}
                agent.load_state_dict(states["agent"])
                env.reset(options={"resume": _at(env, stage.fork, record.seed)})
            else:
                env.reset(seed=record.seed)
            after = found[number + 1].fork if number + 1 < len(found) else 0
            _walk(env, agent, stage, after, Path(scratch, str(number + 1)))
            logs.append(_only(env.scorer.predictions(), stage.points))
            full = env.scorer.full
            assert full is not None
            fulls.append(_only(full.columns(), stage.points))
    return _joined(logs), _joined(fulls)


def _at(env: ContinualEnv, position: int, seed: int) -> dict[str, Any]:
    """Return the state of a stream at a position at which nothing that counts was answered."""
    env.reset(seed=seed)
    return {**env.get_state(), "position": position}


def _walk(env: ContinualEnv, agent: Agent, stage: Stage, fork: int, keep: Path) -> None:
    """Play a stage to its last needed event, and keep the agent's state where the next stage takes it up.

    Questions at points that are not needed are guessed: answering changes no agent.
    """
    life = env.lifetime
    event = env.event
    while env.position < stage.stop:
        if fork and env.position == fork:
            checkpoint.write(keep, fork, {"agent": agent.state_dict()})
        needed = not isinstance(event, Query) or life.plan.steps[env.position].point in stage.points
        event, *_ = env.step(agent.act(event) if needed else Guess(0))


def _only(log: Log, points: Sequence[int]) -> Log:
    kept = np.isin(log["point"], points)
    return {name: column[kept] for name, column in log.items()}


def _joined(logs: Sequence[Log]) -> Log:
    return {name: np.concatenate([log[name] for log in logs]) for name in logs[0]}


def _identity(
    record: RunRecord, agent_seed: int, found: Sequence[Stage], env: ContinualEnv, device: str, precision: str
) -> dict[str, Any]:
    """Return all that a reference's answers follow from, as JSON values."""
    about = {
        "clgym": record.clgym,
        "scenario": record.scenario,
        "scenario_settings": record.scenario_settings,
        "source": record.source,
        "backbone": record.backbone,
        "agent": record.agent,
        "agent_settings": record.agent_settings,
        "seed": record.seed,
        "agent_seed": agent_seed,
        "stages": [[stage.absent, stage.points] for stage in found],
        "fingerprints": env.fingerprints(),
        "versions": versions(),
        "hardware": {k: v for k, v in hardware(device, precision).items() if k != "cores"},
    }
    return json.loads(json.dumps(about))  # type: ignore[no-any-return]


def whole(folder: Path) -> dict[str, Any]:
    """Return what a folder's reference is about, after a look at its files.

    Raises:
        RecordError: There is none, or it is damaged.
    """
    path = folder / "reference.json"
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        about, files = dict(held["about"]), dict(held["files"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RecordError(
            f"Expected a reference in {path}; got {error!r}. Remove {folder} and run again with --references."
        ) from error
    for name, digest in files.items():
        verify(folder / name, digest)
    return about


def _is_there(folder: Path, about: dict[str, Any]) -> bool:
    """Whether a folder holds this reference, whole; another or a damaged one is played anew."""
    try:
        return whole(folder) == about
    except RecordError:
        return False


def _save(folder: Path, about: dict[str, Any], log: Log, full: Log) -> None:
    contents = {
        "predictions.parquet": parquet(log),
        "probes.parquet": parquet({**full, "log_probs": list(full["log_probs"])}),
    }
    for name, content in contents.items():
        write_atomic(folder / name, content)
    digests = {name: sha256_of(folder / name) for name in contents}
    # Last, since it vouches for the other files.
    text = json.dumps({"about": about, "files": digests}, indent=1)
    write_atomic(folder / "reference.json", text.encode() + b"\n")
