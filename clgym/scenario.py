"""A scenario: a finite stream of tasks, and how they are taught and asked about."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, TypeAlias, get_args

import numpy as np

from clgym.events import Inputs, IntArray

# The survey's kinds of scenario (arXiv:2302.00487, table 1).
Kind: TypeAlias = Literal[
    "instance-incremental",
    "domain-incremental",
    "task-incremental",
    "class-incremental",
    "task-free",
    "online",
    "blurred-boundary",
    "continual-pre-training",
]
KINDS: tuple[str, ...] = get_args(Kind)


class Data(Protocol):
    """Labelled samples, read by index; the labels lie in memory, the inputs need not.

    Attributes:
        targets: Labels, int64 ``(N,)``, indices into the task's classes.
        decodes: Whether reading costs enough to be worth doing ahead, in threads.
    """

    @property
    def targets(self) -> IntArray:
        """Labels, int64 ``(N,)``."""

    @property
    def decodes(self) -> bool:
        """Whether :meth:`batch` decodes files rather than slicing memory."""

    def __len__(self) -> int:
        """Return the number of samples."""

    def batch(self, index: IntArray, rng: np.random.Generator | None = None) -> Inputs:
        """Return fresh inputs at ``index``; ``rng`` draws the training augmentation, ``None`` is the test view."""

    def fingerprint(self) -> str:
        """Return a sha256 (64 hex digits) that changes whenever any sample or label does."""


@dataclass(frozen=True, slots=True)
class Task:
    """One task of a stream.

    Attributes:
        name: Short name, such as ``"aircraft"``.
        description: One sentence.
        classes: Class names in label order.
        prompts: For each class its filled prompt templates, the training one first.
        train: Training data.
        test: Held-out data.
        own: Where boundaries are blurred, the number of leading classes that are the task's own; those after
            them occur in its training data only. 0: all are its own.
        temporary: Classes of which the stream says at the task's start that they may have to be forgotten.
    """

    name: str
    description: str
    classes: tuple[str, ...]
    prompts: tuple[tuple[str, ...], ...]
    train: Data
    test: Data
    own: int = 0
    temporary: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Request:
    """What a stream wants forgotten, or taken up again, at a task's boundary; :class:`clgym.events.EraseRequest`.

    A request without ``delay`` is served where it comes, by itself. Requests with one are served together with all that
    fall due at the same boundary.

    Attributes:
        after: Tasks learned when it comes, from 1.
        kind: As in the event.
        scope: As in the event; for ``"sample"`` left empty, since ids are drawn later.
        train: For each task the rows of its training data in scope, int64 and ascending. Those of tasks that start
            after the request was served are never shown.
        test: For each task the rows of its test data that are of the scope.
        classes: As in the event.
        goal: As in the event.
        notice: As in the event.
        forget: As in the event.
        retain: As in the event.
        shots: As in the event.
        missing: As in the event.
        steps: ``Erase`` events granted.
        batch_size: Largest number of samples of each of their batches; 0 is the stream's.
        delay: Tasks learned between the request and its service.
        unknown: Number of its ids that no sample has.
        atypical: For each task those of its ``train`` rows that are atypical, such as mislabelled; scored apart too.
        groups: Of ``"user"``: for each task the user of each of its ``train`` rows, int64.
    """

    after: int
    kind: Literal["class", "sample", "domain", "task", "user", "relearn"]
    scope: tuple[str, ...] = ()
    train: tuple[IntArray, ...] = ()
    test: tuple[IntArray, ...] = ()
    classes: tuple[str, ...] = ()
    goal: Literal["counterfactual", "removal"] = "counterfactual"
    notice: Literal["none", "temporary"] = "none"
    forget: Literal["none", "few", "full"] = "none"
    retain: Literal["none", "few", "own", "full"] = "none"
    shots: int = 0
    missing: tuple[str, ...] = ()
    steps: int = 0
    batch_size: int = 0
    delay: int = 0
    unknown: int = 0
    atypical: tuple[IntArray, ...] = ()
    groups: tuple[IntArray, ...] = ()


@dataclass(frozen=True, slots=True)
class ScenarioSpec:
    """What a scenario is, in words and constants.

    Attributes:
        id: Name and version, such as ``"CLIP-MTIL-v0"``; the version moves when a change moves any number.
        title: One line.
        paper: Where the protocol was defined: arXiv id or DOI.
        kind: The survey's scenario kind (arXiv:2302.00487, table 1).
        modality: What an input is; ``"detection"``: an image of which objects are wanted, whose data are
            :class:`clgym.boxes.Boxed`.
        description: A paragraph for ``clgym info``.
        metrics: Ids of the metrics that its reports show, in order.
        licences: ``(data, licence)`` pairs.
        tags: The other kinds that its settings turn it into; see :data:`clgym.variants.COMPOSED`.
        hub: Data sets of its hub source, keys of :data:`clgym.hub_sets.SETS`.
        hub_backbone: Model of its hub source.
        superseded_by: Id of the version to use instead, or ``""``.
    """

    id: str
    title: str
    paper: str
    kind: Kind
    modality: Literal["image", "text", "detection"]
    description: str
    metrics: tuple[str, ...]
    licences: tuple[tuple[str, str], ...] = ()
    tags: tuple[Kind, ...] = ()
    hub: tuple[str, ...] = ()
    hub_backbone: str = ""
    superseded_by: str = ""


@dataclass(frozen=True, slots=True)
class Teaching:
    """How a stream is taught and asked: the scenario's constants, so that all agents have one budget.

    Attributes:
        batch_size: Samples of a ``Train`` event.
        steps: ``Train`` events per task, every batch full; 0 means ``passes`` decides.
        passes: Passes over each training set when ``steps`` is 0; the last batch of a pass may be smaller.
        query_size: Largest number of questions of a ``Query``.
        task_given: Whether events say which task they belong to.
        labels: ``"task"``: a query's candidates are its task's classes; ``"union"``: those of all tasks;
            ``"seen"``: those of the tasks learned so far and of the one in training, and only these tasks are
            asked, so that ``R`` is NaN elsewhere.
        needs_scores: Whether log-probabilities are required rather than labels.
        probe_every: Ask about all tasks seen so far every so many ``Train`` events; 0 is never.
        probe_size: Questions per task at such a point.
        prequential: Ask every training batch as a ``Query`` before it is shown with labels.
        boundaries: ``"given"``: each task has its ``TaskStart`` and ``TaskEnd``; ``"hidden"``: one ``TaskStart``
            names all classes of the stream and one ``TaskEnd`` follows the last batch. Questions come at the true
            boundaries either way.
    """

    batch_size: int = 32
    steps: int = 0
    passes: int = 1
    query_size: int = 256
    task_given: bool = True
    labels: Literal["task", "union", "seen"] = "task"
    needs_scores: bool = False
    probe_every: int = 0
    probe_size: int = 64
    prequential: bool = False
    boundaries: Literal["given", "hidden"] = "given"


class Scenario(ABC):
    """Subclass this in ``scenarios/<name>.py``: fill in ``spec``, settings after ``*``, and ``tasks``.

    Attributes:
        teaching: The protocol's constants, set by ``__init__`` from its settings.
        backbone: Name of the pre-trained model the scenario is meant for; see :mod:`clgym.backbones`.
        shape: ``(H, W, 3)`` of an image input, or ``()`` for text.
        classes: Largest number of candidates of a query.
        source: The source's name, part of a run's identity.
    """

    spec: ClassVar[ScenarioSpec]
    teaching: Teaching
    backbone: str
    shape: tuple[int, ...]
    classes: int
    source: str

    @abstractmethod
    def tasks(self, rng: np.random.Generator) -> Sequence[Task]:
        """Return the tasks in the order they are learned; ``rng`` draws orders and few-shot samples."""

    def requests(self, tasks: Sequence[Task], rng: np.random.Generator) -> Sequence[Request]:
        """Return what must be forgotten in the course of the stream, in order; nothing unless overridden.

        Args:
            tasks: What :meth:`tasks` returned.
            rng: Draws scopes, from a generator of its own.
        """
        del tasks, rng
        return ()
