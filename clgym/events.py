"""What an environment shows an agent: frozen events, NumPy arrays, batch first.

``B`` is the batch size, ``C`` the number of candidates, ``M`` the largest number of objects in a picture. Nothing in an
event leads to the label of a :class:`Query`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]
IntArray: TypeAlias = npt.NDArray[np.int64]
Boxes: TypeAlias = npt.NDArray[np.float32]
Inputs: TypeAlias = npt.NDArray[np.uint8] | tuple[str, ...]
Wants: TypeAlias = Literal["labels", "scores", "text", "choice", "likelihood", "probability", "boxes"]
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
        temporary: Classes that may have to be forgotten later; announced where the scenario gives notice.
    """

    task: int | None
    name: str
    description: str
    classes: tuple[str, ...]
    prompts: tuple[tuple[str, ...], ...]
    samples: int
    steps: int
    temporary: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Train(Event):
    """A labelled batch to learn from.

    Attributes:
        inputs: Images, uint8 ``(B, H, W, 3)`` in [0, 255], or ``B`` strings.
        targets: Labels, int64 ``(B,)``, indices into ``TaskStart.classes``; or ``B`` strings; or the objects in each
            image, float32 ``(B, M, 5)``: such an index, then centre x, centre y, width and height of the box as shares
            of the image, in [0, 1]; rows without an object have index -1, then zeros, and come last.
        ids: Opaque sample ids, int64 ``(B,)``; the same sample always has the same id.
    """

    inputs: Inputs
    targets: IntArray | Boxes | tuple[str, ...]
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
    """Data must be forgotten: here, or after ``deadline`` more events; answered with ``None``.

    What may be read comes in ``Erase`` events, in one phase for all requests that are open by then, and each is closed
    by its own ``EraseEnd``. A request for samples that were never shown, or that are gone already, has no phase.

    Attributes:
        request: Number of the request, from 0.
        kind: What is to be forgotten; ``"relearn"`` lifts the requests of that scope, of which new data follow.
        scope: Names of the classes, domains, tasks or users, or sample ids as text.
        ids: Ids of the samples to forget, as they were shown, int64 ``(n,)``, ascending; empty for ``"relearn"``.
        classes: Names of the classes of which nothing is to remain; none where samples of a class stay.
        goal: ``"counterfactual"``: be as if the data had never come; ``"removal"``: no longer be able to, even where
            the pre-trained model was.
        notice: ``"temporary"``: ``TaskStart.temporary`` had announced it.
        forget: What of the samples to forget comes in ``Erase`` events: none, ``shots`` per class, or all.
        retain: What of the others comes: none, ``shots`` per class, or all; ``"own"``: none comes, but what the agent
            keeps may be used, which ``"none"`` forbids.
        shots: Samples per class of ``"few"``; 0 without it.
        missing: Retained classes of which nothing comes.
        budget: Number of ``Erase`` events of the phase that serves this request alone; together they have the sum.
        deadline: Events until the phase begins; 0 is now.
    """

    request: int
    kind: Literal["class", "sample", "domain", "task", "user", "relearn"]
    scope: tuple[str, ...]
    ids: IntArray
    classes: tuple[str, ...] = ()
    goal: Literal["counterfactual", "removal"] = "counterfactual"
    notice: Literal["none", "temporary"] = "none"
    forget: Literal["none", "few", "full"] = "none"
    retain: Literal["none", "few", "own", "full"] = "none"
    shots: int = 0
    missing: tuple[str, ...] = ()
    budget: int = 0
    deadline: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Erase(Event):
    """What may be read to serve the open requests: a batch to forget, a batch to retain, or both.

    Attributes:
        requests: Numbers of the requests that the phase serves.
        classes: Names of the classes met so far; targets of both batches index them.
        prompts: For each class its filled prompt templates.
        forget: Samples to forget, or ``None``.
        retain: Samples to keep, or ``None``.
        step: Number of this event within its phase, from 0.
        steps: Number of ``Erase`` events of the phase.
    """

    requests: tuple[int, ...]
    classes: tuple[str, ...]
    prompts: tuple[tuple[str, ...], ...]
    forget: Train | None
    retain: Train | None
    step: int
    steps: int


@dataclass(frozen=True, slots=True, eq=False)
class EraseEnd(Event):
    """The request is over: answering ``None`` acknowledges it, and from here its ids are gone.

    Attributes:
        request: Number of the request.
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
            ``candidates``; ``"boxes"``: float ``(B, Q, 4 + C)`` of Q from 1 to 100 detections: a box as in ``Train``,
            then how likely it holds an object of each candidate, all in [0, 1].
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
