"""What an environment shows an agent: frozen events, NumPy arrays, batch first.

``B`` is the batch size, ``C`` the number of candidates. Nothing in an event leads to the label of a
:class:`Query`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]
IntArray: TypeAlias = npt.NDArray[np.int64]
Inputs: TypeAlias = npt.NDArray[np.uint8] | tuple[str, ...]
Wants: TypeAlias = Literal["labels", "scores", "text", "choice", "likelihood", "probability"]
Answer: TypeAlias = Array | tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Event:
    """Base of all events; two events are equal if all their fields are, arrays by value and dtype."""

    def __eq__(self, other: object) -> bool:
        """Compare field by field."""
        if type(self) is not type(other):
            return NotImplemented
        return all(_same(getattr(self, f.name), getattr(other, f.name)) for f in fields(self))

    def __hash__(self) -> int:
        """Hash by kind alone: arrays have no hash, and events are not meant as keys."""
        return hash(type(self))


def _same(a: object, b: object) -> bool:
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b)
    return type(a) is type(b) and a == b


@dataclass(frozen=True, slots=True, eq=False)
class TaskStart(Event):
    """A task begins.

    Attributes:
        task: Position in the stream, from 0, or ``None`` where the scenario hides it.
        name: Name of the task, such as ``"aircraft"``.
        description: One sentence on the task.
        classes: Names of its classes; ``Train.targets`` index them.
        prompts: For each class its filled prompt templates; the first is the one to train with.
        samples: Number of distinct training samples.
        steps: Number of ``Train`` events to come.
    """

    task: int | None
    name: str
    description: str
    classes: tuple[str, ...]
    prompts: tuple[tuple[str, ...], ...]
    samples: int
    steps: int


@dataclass(frozen=True, slots=True, eq=False)
class Train(Event):
    """A labelled batch to learn from.

    Attributes:
        inputs: Images, uint8 ``(B, H, W, 3)`` in [0, 255], or ``B`` strings.
        targets: Labels, int64 ``(B,)``, indices into ``TaskStart.classes``; or ``B`` strings.
        ids: Opaque sample ids, int64 ``(B,)``; the same sample always has the same id.
    """

    inputs: Inputs
    targets: IntArray | tuple[str, ...]
    ids: IntArray


@dataclass(frozen=True, slots=True, eq=False)
class TaskEnd(Event):
    """A task is over; its training data will not be shown again.

    Attributes:
        task: Position in the stream, or ``None`` where the scenario hides it.
    """

    task: int | None


@dataclass(frozen=True, slots=True, eq=False)
class EraseRequest(Event):
    """Data must be forgotten from here on.

    Attributes:
        request: Id of the request.
        kind: What is to be forgotten (``"relearn"`` asks to take it up again).
        scope: Names of the classes, domains, tasks or users, or opaque sample ids as strings.
        goal: ``"counterfactual"``: as if the data had never come; ``"removal"``: no longer able to.
        reads: What may be read while answering, such as ``"none"``, ``"few(4)"``, ``"full"``.
        budget: Largest number of ``Erase`` batches.
        deadline: Events until the request must be acknowledged.
    """

    request: int
    kind: Literal["class", "sample", "domain", "task", "user", "relearn"]
    scope: tuple[str, ...]
    goal: Literal["counterfactual", "removal"]
    reads: str
    budget: int
    deadline: int


@dataclass(frozen=True, slots=True, eq=False)
class Erase(Event):
    """A batch to forget, and, where granted, a batch to retain.

    Attributes:
        request: Id of the request.
        forget: Samples to forget.
        retain: Samples to keep, or ``None``.
    """

    request: int
    forget: Train
    retain: Train | None


@dataclass(frozen=True, slots=True, eq=False)
class EraseEnd(Event):
    """The request is over: from here its ids are gone.

    Attributes:
        request: Id of the request.
    """

    request: int


@dataclass(frozen=True, slots=True, eq=False)
class Query(Event):
    """An unlabelled batch to answer.

    Attributes:
        inputs: Images, uint8 ``(B, H, W, 3)``, or ``B`` strings.
        candidates: Names of the ``C`` classes to choose from.
        prompts: For each candidate its filled prompt templates; methods on CLIP average their features.
        wants: ``"scores"``: float ``(B, C)`` log-probabilities; ``"labels"``: int64 ``(B,)`` indices into
            ``candidates``.
        task: Which task the batch is from, or ``None`` where the scenario hides it.
    """

    inputs: Inputs
    candidates: tuple[str, ...]
    prompts: tuple[tuple[str, ...], ...]
    wants: Wants
    task: int | None


@dataclass(frozen=True, slots=True, eq=False)
class Interact(Event):
    """One step of an inner Gymnasium task; the action is the inner action.

    Attributes:
        observation: Inner observation.
        reward: Inner reward of the last action.
        ended: Whether the inner episode is over.
    """

    observation: Array
    reward: float
    ended: bool


@dataclass(frozen=True, slots=True, eq=False)
class End(Event):
    """The stream is over."""


@dataclass(frozen=True, slots=True)
class Guess:
    """An action that fits every event: a uniformly random answer where one is asked for, else nothing.

    This is what ``AnswerSpace.sample()`` returns, since what may be answered depends on the event.

    Attributes:
        seed: Fixes the answer.
    """

    seed: int
