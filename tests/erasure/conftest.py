"""A stream of numbered pixels with requests to forget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from clgym.env import ContinualEnv
from clgym.events import Event, Guess, Inputs, IntArray, Query, Train
from clgym.scenario import Request, Scenario, ScenarioSpec, Task, Teaching

NONE = np.empty(0, np.int64)


@dataclass(frozen=True)
class Pixels:
    """Images that show their task and their row."""

    targets: IntArray
    task: int
    decodes: bool = False

    def __len__(self) -> int:
        return len(self.targets)

    def batch(self, index: IntArray, rng: np.random.Generator | None = None) -> Inputs:
        images = np.full((len(index), 2, 2, 3), 10 * self.task, np.uint8)
        images[:, 0, 0, 0] = index
        return images

    def fingerprint(self) -> str:
        return f"{self.task:064x}"


class Asking(Scenario):
    """Three tasks of two, three and four classes; 12 training and 6 test samples each, row ``i`` of class ``i % C``."""

    spec = ScenarioSpec(
        "Asking-v0", "Asking", "none", "class-incremental", "image", "For tests.", ("average_accuracy",)
    )

    def __init__(self, *asked: Request, noted: Sequence[str] = (), slow: bool = False, **teaching: Any) -> None:
        self.asked, self.noted, self.slow = asked, tuple(noted), slow
        self.shape, self.classes, self.source, self.backbone = (2, 2, 3), 9, "embedded", "none"
        self.teaching = Teaching(**{"labels": "union", "batch_size": 5, "query_size": 4, **teaching})

    def tasks(self, rng: np.random.Generator) -> Sequence[Task]:
        made = []
        for t in range(3):
            classes = tuple(f"t{t}c{c}" for c in range(t + 2))
            train, test = (Pixels(np.arange(n) % len(classes), t, self.slow) for n in (12, 6))
            noted = tuple(name for name in self.noted if name in classes)
            made.append(Task(f"task {t}", "", classes, tuple((c,) for c in classes), train, test, temporary=noted))
        return made

    def requests(self, tasks: Sequence[Task], rng: np.random.Generator) -> Sequence[Request]:
        return self.asked


def rows(*parts: Sequence[int]) -> tuple[IntArray, ...]:
    filled = [*parts, *[()] * (3 - len(parts))]
    return tuple(np.array(part, np.int64) for part in filled)


def of_class(task: int, label: int, **settings: Any) -> Request:
    """Ask for a class of a task to be forgotten, right after that task."""
    count = task + 2
    train, test = [np.arange(n)[np.arange(n) % count == label] for n in (12, 6)]
    where = dict(
        train=tuple(train if t == task else NONE for t in range(3)),
        test=tuple(test if t == task else NONE for t in range(3)),
    )
    name = f"t{task}c{label}"
    usual = {"after": task + 1, "kind": "class", "scope": (name,), "classes": (name,), "steps": 2, "forget": "full"}
    return Request(**{**usual, **where, **settings})


def played(env: ContinualEnv, seed: int = 0) -> list[Event]:
    event, _ = env.reset(seed=seed)
    events, done = [event], False
    while not done:
        event, _, done, _, _ = env.step(Guess(len(events)) if isinstance(event, Query) else None)
        events.append(event)
    return events


def stream(*asked: Request, **settings: Any) -> tuple[ContinualEnv, list[Event]]:
    env = ContinualEnv(Asking(*asked, **settings))
    return env, played(env)


def of(kind: type[Any], events: Sequence[Event]) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]


def places(batch: Train) -> list[tuple[int, int]]:
    """Return task and row of each sample, as its picture shows them."""
    assert isinstance(batch.inputs, np.ndarray)
    return [(int(image[1, 1, 1]) // 10, int(image[0, 0, 0])) for image in batch.inputs]
