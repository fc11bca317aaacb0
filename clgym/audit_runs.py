"""Plays a finished run again up to its requests, and a reference beside it, so that both can be audited."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from clgym import checkpoint
from clgym.agent import Agent
from clgym.audit import Audit, Bench, audited
from clgym.canary import marked
from clgym.env import ContinualEnv
from clgym.erasure_results import read_answers
from clgym.erasure_scores import Answers, point_of
from clgym.errors import RecordError
from clgym.events import Guess, Query
from clgym.record import RunRecord, write_atomic
from clgym.reference_runs import judged, reference_seeds, stages
from clgym.registry import make, make_agent
from clgym.rescore import check_stream, choice

State = dict[str, Any]
NAME = "audit.json"


def audit(
    folder: Path, record: RunRecord, *, device: str = "auto", precision: str = "fp32", tell: Callable[[str], None]
) -> list[Audit]:
    """Audit every counterfactual request of a finished run, and keep what was found in its ``audit.json``.

    Args:
        folder: Where the run is.
        record: What it was.
        device: As for the run.
        precision: As for the run.
        tell: Is told what is being played.

    Raises:
        RecordError: The stream has no such request, or is another one, or the agent answers otherwise than the run.
    """
    made = make(record.scenario, **choice(record))
    env: ContinualEnv = made.unwrapped  # type: ignore[assignment]
    try:
        found, others = stages(env, record.seed)
        check_stream(folder, record, env.fingerprints())
        if not found:
            raise RecordError(
                f"Expected a run with a request to forget as if data had never come; got {folder}, on "
                f"{record.scenario}. Only such requests are audited."
            )
        player, life, run = _Player(record, device, precision), env.lifetime, read_answers(folder, env.lifetime)
        points = {point_of(life, r) for r in judged(life)}
        tell("playing the run again")
        mine = player.states(env, record.seed, record.agent_settings, points, run)
        (seed,) = reference_seeds(record.seed, 1)
        free = {name: value for name, value in record.agent_settings.items() if name != "agent_seed"}
        theirs: dict[int, State] = {}
        for stage, other in zip(found, others, strict=True):
            tell("playing a reference")
            theirs |= player.states(other, seed, free, points & set(stage.points))
        out = []
        for r in judged(life):
            tell(f"auditing request {r}")
            point, bench = point_of(life, r), Bench(life, r)
            build = player.builder(env, record.seed, record.agent_settings, mine[point])
            reference = player.builder(env, seed, free, theirs[point])
            same = player.answers_as(env, point, build(), run)
            best = float(np.nanmax([run.accuracy(p, bench.questions()) for p in range(point)]))
            out.append(audited(bench, r, best, (build, reference), mine[point], same, record.backbone))
        write_atomic(folder / NAME, json.dumps([plain(one) for one in out], indent=1).encode() + b"\n")
        return out
    finally:
        made.close()


class _Player:
    """Plays the agent of a record, on streams of its scenario, and builds it anew from a state."""

    def __init__(self, record: RunRecord, device: str, precision: str) -> None:
        self._id, self._seed = record.agent, record.seed
        self._means = {"device": device, "precision": precision}

    def _agent(self, env: ContinualEnv, seed: int, settings: Mapping[str, Any]) -> Agent:
        return make_agent(self._id, env, seed, **self._means, **settings)

    def builder(self, env: ContinualEnv, seed: int, settings: Mapping[str, Any], state: State) -> Callable[[], Agent]:
        """Return what builds the agent with a state, anew at each call."""

        def build() -> Agent:
            agent = self._agent(env, seed, settings)
            agent.load_state_dict(state)
            return agent

        return build

    def states(
        self,
        env: ContinualEnv,
        seed: int,
        settings: Mapping[str, Any],
        points: Iterable[int],
        run: Answers | None = None,
    ) -> dict[int, State]:
        """Play with marked ids; return the agent's state, through a file, at the start of evaluation points.

        Raises:
            RecordError: It answers otherwise than the run did.
        """
        event, _ = env.reset(seed=self._seed)
        agent, steps = self._agent(env, seed, settings), env.lifetime.plan.steps
        waiting, out = set(points), {}
        while waiting:
            point = steps[env.position].point if steps[env.position].kind == "query" else -1
            if point in waiting:
                out[point] = through_disk(agent)
                waiting.remove(point)
                if run is not None and not self.answers_as(env, point, agent, run):
                    raise RecordError(
                        "Expected the agent to answer as in the run, played again; got other answers. Audit with the "
                        "device, the precision, the threads and the versions that it was run with."
                    )
            event, *_ = env.step(Guess(0) if isinstance(event, Query) else agent.act(marked(event)))
        return out

    def answers_as(self, env: ContinualEnv, point: int, agent: Agent, run: Answers) -> bool:
        """Whether an agent answers the questions of a point right where the run did."""
        life = env.lifetime
        for position, step in enumerate(life.plan.steps):
            if step.kind == "query" and step.point == point:
                event = life.event(position, life.read)
                assert isinstance(event, Query)
                said = np.asarray(agent.act(event))
                labels = said if said.ndim == 1 else said.argmax(axis=1)
                questions = run.starts[step.task] + life.asked(step)
                if not np.array_equal(labels == run.labels[questions], run.right[point, questions] == 1):
                    return False
        return True


def through_disk(agent: Agent) -> State:
    """Return an agent's state as a file gives it back."""
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint.write(Path(scratch), 0, {"agent": agent.state_dict()})
        return (checkpoint.read(Path(scratch)) or {}).get("agent", {})


def plain(one: Audit) -> dict[str, Any]:
    """Return an audit as JSON values, with what follows from it."""
    return {**asdict(one), "steps": list(one.steps), "ratio": one.ratio, "failed": list(one.failed)}


def kept(folder: Path) -> dict[int, dict[str, Any]]:
    """Return the audits that are kept of a run, by request; none if it was never audited."""
    path = folder / NAME
    if not path.is_file():
        return {}
    return {row["request"]: row for row in json.loads(path.read_text(encoding="utf-8"))}
