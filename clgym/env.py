"""Plays a scenario: shows its events in order and takes the answers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import gymnasium

from clgym.errors import InvalidAnswerError, RecordError, SettingError, StreamEndedError
from clgym.events import (
    Array,
    End,
    Erase,
    EraseRequest,
    Event,
    Guess,
    Inputs,
    IntArray,
    Query,
    TaskEnd,
    TaskStart,
    Train,
)
from clgym.lifetime import Lifetime
from clgym.lookahead import Lookahead
from clgym.scenario import Scenario
from clgym.scorer import Report
from clgym.seeds import StreamSeeds, next_entropy
from clgym.spaces import AnswerSpace, EventSpace, checked, kind_of


class ContinualEnv(gymnasium.Env[Event, Any]):
    """A scenario behind Gymnasium's ``reset`` and ``step``; one episode is one whole lifetime.

    Observations are events, actions are answers (``None`` where nothing was asked). The reward is the
    mean score of a ``Query`` batch, in [0, 1], and 0.0 elsewhere. Labels of queries stay in here.

    Args:
        scenario: What to play.
        render_mode: ``"ansi"``: one line for the last event; ``"rgb_array"``: the accuracy matrix so far.
        seeds: Which of the stream's generators have a seed of their own; ``None``: none has.
        absent: Requests to forget whose samples never come; see :meth:`counterfactual`.
    """

    metadata = {"render_modes": ["ansi", "rgb_array"], "render_fps": 1}  # noqa: RUF012 - Gymnasium's own form

    def __init__(
        self,
        scenario: Scenario,
        render_mode: str | None = None,
        seeds: StreamSeeds | None = None,
        *,
        absent: Sequence[int] = (),
    ) -> None:
        """Read the settings; no data is loaded before ``reset``."""
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise SettingError(
                f"Expected render_mode to be None, 'ansi' or 'rgb_array'; got {render_mode!r}. Choose one of these."
            )
        self.scenario, self.render_mode, self.seeds = scenario, render_mode, seeds or StreamSeeds()
        self.teaching, self.absent = scenario.teaching, tuple(absent)
        self.observation_space = EventSpace(scenario.shape)
        self.action_space = AnswerSpace(scenario.classes)
        self._position = -1
        self._event: Event = End()
        self._life: Lifetime | None = None
        self._ahead: Lookahead[Any] | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Event, dict[str, Any]]:
        """Start a lifetime and return its first event.

        Args:
            seed: Rewinds the generator: the same seed gives the same lifetime. ``None`` draws the next one.
            options: ``{"resume": state}`` continues exactly where ``get_state`` was called.

        Raises:
            SettingError: ``options`` holds anything else.
            RecordError: The state is of another stream.
        """
        super().reset(seed=seed)
        if unknown := set(options or {}) - {"resume"}:
            raise SettingError(f"Expected the option 'resume' or none; got {sorted(unknown)}. Remove the others.")
        state = (options or {}).get("resume")
        if state is None:
            self._start(next_entropy(self.np_random))
            self._position = 0
        else:
            self._resume(state)
        self._event = self._build(self._position)
        return self._event, self._info()

    def step(self, action: Any) -> tuple[Event, float, bool, bool, dict[str, Any]]:
        """Take the answer to the last event and show the next.

        Args:
            action: Labels int64 ``(B,)`` or log-probabilities ``(B, C)`` after a ``Query``; ``None`` after any
                other event; a :class:`~clgym.events.Guess` fits all.

        Returns:
            The next event, the mean score of the answer in [0, 1] (0.0 where none was asked for), whether
            the stream is over, ``False``, and ``{"position", "length"}`` in events.

        Raises:
            InvalidAnswerError: The answer is missing, unasked for, or of the wrong shape, dtype or range;
                nothing has changed, so the right answer may follow.
            StreamEndedError: There is no event to answer.
        """
        life = self._life
        if life is None or self._position >= len(life.plan.steps) - 1:
            when = "the first reset" if life is None else "the end of the stream"
            raise StreamEndedError(
                f"Expected step() between reset() and the End event; got one at {when}. Call reset() first."
            )
        reward = 0.0
        event = self._event
        if isinstance(event, Query):
            reward = self._score(event, checked(event, action, self.teaching.needs_scores))
        elif action is not None and type(action) is not Guess:
            raise InvalidAnswerError(
                f"Expected None after {type(event).__name__}, which asks nothing; got {kind_of(action)}. "
                "Answer Query events only."
            )
        self._position += 1
        self._event = self._build(self._position)
        return self._event, reward, isinstance(self._event, End), False, self._info()

    def render(self) -> Any:
        """Return the line or picture that ``render_mode`` asks for."""
        if self.render_mode == "ansi":
            return f"{max(self._position, 0):>6} {_line(self._event)}\n"
        if self.render_mode == "rgb_array":
            from clgym.plots import matrix_image

            return matrix_image(self.report())
        return None

    def close(self) -> None:
        """Stop reading ahead."""
        if self._ahead is not None:
            self._ahead.close()
        self._ahead = None

    def report(self, **references: Any) -> Report:
        """Return the accuracy matrix so far, NaN where not yet measured, and its metrics."""
        if self._life is None:
            raise StreamEndedError("Expected report() after reset(); got it before. Call reset() first.")
        return self.scorer.report(**references)

    def fingerprints(self) -> dict[str, str]:
        """Return sha256 of the spec, of the stream's lay-out and of its data, as they stand after ``reset``."""
        spec = json.dumps(asdict(self.scenario.spec), sort_keys=True)
        return {"spec": hashlib.sha256(spec.encode()).hexdigest(), **self._playing().fingerprints()}

    def counterfactual(self, requests: Sequence[int] | None = None) -> ContinualEnv:
        """Return the same stream as if some data had never come, to be reset with the same seed.

        Batches shrink, and nothing is shown of the requests; the order of all else, every draw and every question
        stay what they are. A class of which a task has no sample left is no class of that task, and a task of which
        none is left does not take place, though questions are asked at its end.

        Args:
            requests: Numbers of the requests whose samples never come; ``None``: all that ask to forget.
        """
        if requests is None:
            asked = self._playing().ledger.requests
            requests = [r for r, request in enumerate(asked) if request.kind != "relearn"]
        return ContinualEnv(self.scenario, self.render_mode, self.seeds, absent=requests)

    def look_up(self, ids: IntArray) -> Train:
        """Return training samples by the ids under which they were shown so far; labels index the stream's classes.

        Raises:
            ErasedError: A sample has been erased.
            SettingError: An id has not been shown.
        """
        return self._playing().look_up(ids, self._position)

    @property
    def reads(self) -> list[dict[str, int]]:
        """What the requests have read so far, by service: events, and samples and different samples of both kinds."""
        life = self._playing()
        return life.ledger.reads(life.plan.steps[: self._position + 1])

    def get_state(self) -> dict[str, Any]:
        """Return all that ``reset(options={"resume": state})`` needs: JSON values and arrays."""
        life = self._playing()
        return {
            "entropy": str(life.entropy),
            "position": self._position,
            "length": len(life.plan.steps),
            "generator": json.dumps(self.np_random.bit_generator.state),
            "scorer": self.scorer.get_state(),
        }

    def rescore(self, predictions: Mapping[str, Array], **references: Any) -> Report:
        """Score a log of predictions anew with this lifetime's labels.

        Args:
            predictions: The columns of ``predictions.parquet`` that ``scorer.needs`` names.
            **references: Reference runs, as in :func:`clgym.metrics.scores`.

        Raises:
            RecordError: A row names a point, task or question that this stream does not have.
        """
        self._playing()
        return self.scorer.rescore(predictions, **references)

    def held_out(self, size: int) -> Inputs:
        """Return the inputs of the first questions of every task, without labels: the same for every agent and seed.

        Args:
            size: How many in all, shared out evenly; fewer where a task has fewer questions.
        """
        return self._playing().held_out(size)

    def describe(self, rewards: Array) -> dict[str, Array]:
        """Return the columns of ``events.parquet``: one row per event, with the reward of the act upon it."""
        return self._playing().describe(rewards)

    @property
    def lifetime(self) -> Lifetime:
        """What the last reset drew, labels included: for those who score, never for an agent."""
        return self._playing()

    @property
    def event(self) -> Event:
        """The last event shown."""
        return self._event

    @property
    def position(self) -> int:
        """Number of events before the last one shown."""
        return self._position

    @property
    def tasks_learned(self) -> int:
        """Number of tasks whose training is over, whether the stream says so or not."""
        return sum(end <= self._position for end in self._playing().plan.ends)

    @property
    def round_over(self) -> bool:
        """Whether the last answer was the last at a task boundary."""
        plan = self._playing().plan
        last, now = plan.steps[max(self._position - 1, 0)], plan.steps[self._position]
        return last.kind == "query" and plan.points[last.point].is_row and now.point != last.point

    @property
    def length(self) -> int:
        """Number of events of the lifetime."""
        return len(self._playing().plan.steps)

    @property
    def task_names(self) -> tuple[str, ...]:
        """Names of the tasks in the order of this lifetime."""
        return tuple(task.name for task in self._playing().tasks)

    def _playing(self) -> Lifetime:
        if self._life is None:
            raise StreamEndedError("Expected a stream that was reset; got a new environment. Call reset() first.")
        return self._life

    def _info(self) -> dict[str, Any]:
        return {"position": self._position, "length": self.length}

    def _start(self, entropy: int) -> None:
        """Draw a lifetime: all follows from ``entropy``, but for generators with a seed of their own."""
        self.close()
        self._life = Lifetime(self.scenario, entropy, self.seeds.drawn(entropy), self.absent)
        self.scorer = self._life.scorer()
        if self._life.decodes:
            self._ahead = Lookahead(self._life.read, self._life.next_read)

    def _resume(self, state: Mapping[str, Any]) -> None:
        self._start(int(state["entropy"]))
        if state["length"] != self.length:
            raise RecordError(
                f"Expected the state of a stream of {self.length} events; got one of {state['length']}. "
                "Resume with the scenario and settings it was saved from."
            )
        self.np_random.bit_generator.state = json.loads(state["generator"])
        self.scorer.set_state(state["scorer"])
        self._position = state["position"]

    def _score(self, event: Query, answer: Array) -> float:
        life = self._playing()
        step = life.plan.steps[self._position]
        if step.kind == "query":
            return self.scorer.add(step.point, step.task, life.asked(step), answer)
        return self.scorer.add_online(answer, life.online_labels(step))

    def _build(self, position: int) -> Event:
        """Return the event at a position."""
        life = self._playing()
        return life.event(position, self._read)

    def _read(self, position: int) -> Any:
        life = self._playing()
        return self._ahead.get(position) if self._ahead and life.slow(position) else life.read(position)


def _line(event: Event) -> str:
    """Say in one line what an event holds."""
    match event:
        case TaskStart():
            return f"TaskStart  {event.name or 'a task'}: {len(event.classes)} classes, {event.samples} samples"
        case Train():
            return f"Train      {len(event.inputs)} samples"
        case TaskEnd():
            return "TaskEnd"
        case Query():
            of = "" if event.task is None else f" of task {event.task}"
            return f"Query      {len(event.inputs)} questions{of}, {len(event.candidates)} candidates"
        case EraseRequest():
            return f"EraseRequest  {event.kind}: {len(event.ids)} samples, {event.goal}"
        case Erase():
            brought = {"to forget": event.forget, "to retain": event.retain}
            parts = (f"{len(part.ids)} {how}" for how, part in brought.items() if part is not None)
            return f"Erase      {' and '.join(parts)}"
    return type(event).__name__
