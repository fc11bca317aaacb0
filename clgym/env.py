"""Plays a scenario: shows its events in order and takes the answers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import gymnasium
import numpy as np

from clgym.errors import InvalidAnswerError, RecordError, SettingError, StreamEndedError
from clgym.events import Array, End, Event, Guess, Inputs, IntArray, Query, TaskEnd, TaskStart, Train, Wants
from clgym.labels import LabelSpace
from clgym.lookahead import Lookahead
from clgym.plan import Plan, Step, batch_index, plan
from clgym.scenario import Scenario, Task
from clgym.scorer import Report, Scorer
from clgym.seeds import Entropies, StreamSeeds, next_entropy
from clgym.spaces import AnswerSpace, EventSpace, fault_of_scores


@dataclass(frozen=True, slots=True)
class _Lifetime:
    """What one reset draws: the tasks in order, the plan, label space, sample ids and question order."""

    entropy: int
    drawn: Entropies
    tasks: tuple[Task, ...]
    plan: Plan
    space: LabelSpace
    ids: tuple[IntArray, ...]
    questions: tuple[IntArray, ...]


class ContinualEnv(gymnasium.Env[Event, Any]):
    """A scenario behind Gymnasium's ``reset`` and ``step``; one episode is one whole lifetime.

    Observations are events, actions are answers (``None`` where nothing was asked). The reward is the
    mean score of a ``Query`` batch, in [0, 1], and 0.0 elsewhere. Labels of queries stay in here.

    Args:
        scenario: What to play.
        render_mode: ``"ansi"``: one line for the last event; ``"rgb_array"``: the accuracy matrix so far.
        seeds: Which of the stream's generators have a seed of their own; ``None``: none has.
    """

    metadata = {"render_modes": ["ansi", "rgb_array"], "render_fps": 1}  # noqa: RUF012 - Gymnasium's own form

    def __init__(self, scenario: Scenario, render_mode: str | None = None, seeds: StreamSeeds | None = None) -> None:
        """Read the settings; no data is loaded before ``reset``."""
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise SettingError(
                f"Expected render_mode to be None, 'ansi' or 'rgb_array'; got {render_mode!r}. Choose one of these."
            )
        self.scenario, self.render_mode, self.seeds = scenario, render_mode, seeds or StreamSeeds()
        self.teaching = scenario.teaching
        self._told = self.teaching.task_given and self.teaching.boundaries == "given"
        self.observation_space = EventSpace(scenario.shape)
        self.action_space = AnswerSpace(scenario.classes)
        self._position = -1
        self._event: Event = End()
        self._life: _Lifetime | None = None
        self._ahead: Lookahead[Inputs] | None = None

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
            reward = self._score(life, event, self._checked(event, action))
        elif action is not None and type(action) is not Guess:
            raise InvalidAnswerError(
                f"Expected None after {type(event).__name__}, which asks nothing; got {_kind(action)}. "
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
        life = self._playing()
        spec = json.dumps(asdict(self.scenario.spec), sort_keys=True)
        stream = json.dumps(
            [
                asdict(self.teaching),
                str(life.drawn),
                [[t.name, t.classes, t.prompts, len(t.train), len(t.test)] for t in life.tasks],
            ]
        )
        data = "".join(t.train.fingerprint() + t.test.fingerprint() for t in life.tasks)
        named = {"spec": spec, "stream": stream, "data": data}
        return {name: hashlib.sha256(text.encode()).hexdigest() for name, text in named.items()}

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
            predictions: The columns of ``predictions.parquet``; only ``point``, ``task``, ``question`` and
                ``prediction`` are read.
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
        life = self._playing()
        share = -(-size // len(life.tasks))
        parts = [t.test.batch(order[:share]) for t, order in zip(life.tasks, life.questions, strict=True)]
        if isinstance(parts[0], tuple):
            return tuple(text for part in parts for text in part)
        return np.concatenate(parts)

    def describe(self, rewards: Array) -> dict[str, Array]:
        """Return the columns of ``events.parquet``: one row per event, with the reward of the act upon it."""
        steps = self._playing().plan.steps
        kinds = {"start": "TaskStart", "train": "Train", "ask": "Query", "end": "TaskEnd", "query": "Query"}
        return {
            "position": np.arange(len(steps), dtype=np.int32),
            "kind": np.array([kinds.get(s.kind, "End") for s in steps]),
            "task": np.array([s.task for s in steps], np.int16),
            "point": np.array([s.point for s in steps], np.int32),
            "reward": np.append(rewards, 0.0).astype(np.float64),
        }

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
        return last.kind == "query" and plan.points[last.point].step == 0 and now.point != last.point

    @property
    def length(self) -> int:
        """Number of events of the lifetime."""
        return len(self._playing().plan.steps)

    @property
    def task_names(self) -> tuple[str, ...]:
        """Names of the tasks in the order of this lifetime."""
        return tuple(task.name for task in self._playing().tasks)

    def _playing(self) -> _Lifetime:
        if self._life is None:
            raise StreamEndedError("Expected a stream that was reset; got a new environment. Call reset() first.")
        return self._life

    def _info(self) -> dict[str, Any]:
        return {"position": self._position, "length": self.length}

    def _start(self, entropy: int) -> None:
        """Draw a lifetime: all follows from ``entropy``, but for generators with a seed of their own."""
        self.close()
        drawn = self.seeds.drawn(entropy)
        rng = drawn.ordering()
        tasks = tuple(self.scenario.tasks(rng))
        laid = plan([len(t.train) for t in tasks], [len(t.test) for t in tasks], self.teaching)
        sizes = [len(t.train) for t in tasks]
        ids = np.split(rng.permutation(sum(sizes)), np.cumsum(sizes)[:-1])
        # The order of questions is part of the stream, not of a lifetime: question 7 is the same for every seed.
        questions = tuple(np.random.default_rng(j).permutation(len(t.test)) for j, t in enumerate(tasks))
        space = LabelSpace(tasks, self.teaching)
        self._life = _Lifetime(entropy, drawn, tasks, laid, space, tuple(ids), questions)
        labels = [
            space.labels(j, t.test.targets[order]) for j, (t, order) in enumerate(zip(tasks, questions, strict=True))
        ]
        asked = sum(step.stop - step.start for step in laid.steps)
        online = sum(laid.train_steps) if self.teaching.prequential else 0
        self.scorer = Scorer([t.name for t in tasks], labels, laid.points, asked, online)
        if any(t.train.decodes or t.test.decodes for t in tasks):
            self._ahead = Lookahead(self._read, self._next_read)

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

    def _score(self, life: _Lifetime, event: Query, answer: Array) -> float:
        step = life.plan.steps[self._position]
        if step.kind == "query":
            return self.scorer.add(step.point, step.task, step.start, answer)
        return self.scorer.add_online(answer, self._targets(life, step))

    def _checked(self, event: Query, action: Any) -> Array:
        """Return the answer as an array, or raise; ``event`` is what it answers."""
        B, C = len(event.inputs), len(event.candidates)
        if type(action) is Guess:
            return np.random.default_rng(action.seed).integers(0, C, B)
        only = self.teaching.needs_scores
        wanted = f"float log-probabilities of shape ({B}, {C})"
        if not only:
            wanted = f"int64 labels of shape ({B},) in [0, {C}) or {wanted}"
        fault, fix = "", "Return agent.act(event)."
        if not isinstance(action, np.ndarray):
            fault = _kind(action)
            fix = "Convert it to a NumPy array." if action is not None else fix
        elif action.ndim == 1 and not only:
            if action.dtype != np.int64 or action.shape != (B,):
                fault, fix = _kind(action), "Give one label per question, with dtype int64."
            elif ((action < 0) | (action >= C)).any():
                fault = f"labels from {action.min()} to {action.max()}"
                fix = "Labels index event.candidates."
        elif action.dtype not in (np.float32, np.float64) or action.shape != (B, C):
            fault, fix = _kind(action), "Give one row per question and one column per candidate."
        else:
            fault, fix = fault_of_scores(action), "Apply log_softmax over the candidates."
        if fault:
            raise InvalidAnswerError(f"Expected {wanted}; got {fault}. {fix}")
        return action  # type: ignore[no-any-return]

    def _build(self, position: int) -> Event:
        """Return the event at a position."""
        life = self._playing()
        step = life.plan.steps[position]
        t = step.task
        shown = t if self._told else None
        match step.kind:
            case "over":
                return End()
            case "end":
                return TaskEnd(shown)
            case "start":
                return self._task_start(life, t)
        slow = life.tasks[t].test.decodes if step.kind == "query" else life.tasks[t].train.decodes
        inputs = self._ahead.get(position) if slow and self._ahead else self._read(position)
        if step.kind == "train":
            index = self._index(life, step)
            return Train(inputs, life.space.targets(t, life.tasks[t].train.targets[index]), life.ids[t][index])
        point = life.plan.points[step.point] if step.kind == "query" else None
        met = t + 1 if point is None else point.after + (point.step > 0)
        names, prompts = life.space.candidates(t, met, taught=point is None)
        wants: Wants = "scores" if self.teaching.needs_scores else "labels"
        return Query(inputs, names, prompts, wants, shown)

    def _task_start(self, life: _Lifetime, t: int) -> TaskStart:
        """Return the start of a task, or with ``t = -1`` that of the whole stream."""
        classes, prompts = life.space.start(t)
        of = life.tasks if t < 0 else (life.tasks[t],)
        samples = sum(len(task.train) for task in of)
        steps = sum(life.plan.train_steps) if t < 0 else life.plan.train_steps[t]
        if not self._told:
            return TaskStart(None, "", "", classes, prompts, samples, steps)
        return TaskStart(t, life.tasks[t].name, life.tasks[t].description, classes, prompts, samples, steps)

    def _index(self, life: _Lifetime, step: Step) -> IntArray:
        return batch_index(len(life.tasks[step.task].train), step.batch, self.teaching, life.drawn.batches(step.task))

    def _targets(self, life: _Lifetime, step: Step) -> IntArray:
        return life.space.labels(step.task, life.tasks[step.task].train.targets[self._index(life, step)])

    def _read(self, position: int) -> Inputs:
        """Return the inputs of the event at a position; called ahead of time, from threads."""
        life = self._playing()
        step = life.plan.steps[position]
        task = life.tasks[step.task]
        if step.kind == "query":
            return task.test.batch(life.questions[step.task][step.start : step.stop])
        rng = life.drawn.augmentation(step.task, step.batch) if task.train.decodes else None
        return task.train.batch(self._index(life, step), rng)

    def _next_read(self, position: int) -> int | None:
        steps = self._playing().plan.steps
        for later in range(position + 1, len(steps)):
            if steps[later].kind in ("train", "ask", "query"):
                return later
        return None


def _kind(x: Any) -> str:
    if isinstance(x, np.ndarray):
        return f"{x.dtype} of shape {x.shape}"
    return "None" if x is None else type(x).__name__


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
    return type(event).__name__
