"""Kinds of scenario that a stream is turned into by settings: online, task-free, with blurred boundaries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from clgym.errors import SettingError
from clgym.events import IntArray
from clgym.parts import Parts, picked
from clgym.scenario import Kind, Task, Teaching

# The setting that makes a stream one of this kind, where the scenario's tags say that it can be one.
COMPOSED: dict[Kind, str] = {
    "online": "passes=1",
    "task-free": "boundaries=hidden",
    "blurred-boundary": "blur=0.1",
    "domain-incremental": "shift=domain",
    "instance-incremental": "shift=instance",
}
ONLINE_BATCH = 10  # samples, as in most online protocols (arXiv:1902.10486)
ROUNDS = 30  # of random exchanges, by which a sample's new task no longer depends on its old one


@dataclass(frozen=True, slots=True)
class Variant:
    """How a stream departs from one whose boundaries are told and sharp and whose samples are seen often.

    Attributes:
        boundaries: ``"given"``, or ``"hidden"``: one start names all classes, and no event tells the task.
        passes: Passes over each task's training data, 1 being the online setting, in batches of
            :data:`ONLINE_BATCH`; 0 leaves the scenario's constants.
        blur: Share of each task's training samples that is exchanged for other tasks', in [0, 1).
        steps: ``Train`` events per task that the user asks for; 0 leaves the scenario's constants.

    Raises:
        SettingError: A setting is out of range, or two exclude each other.
    """

    boundaries: str = "given"
    passes: int = 0
    blur: float = 0.0
    steps: int = 0

    def __post_init__(self) -> None:
        """Check the settings."""
        if self.boundaries not in ("given", "hidden"):
            raise SettingError(
                f"Expected boundaries 'given' or 'hidden'; got {self.boundaries!r}. Choose one of these."
            )
        if not 0 <= self.blur < 1:
            raise SettingError(f"Expected blur as a share from 0 to below 1; got {self.blur}. Try 0.1.")
        not_negative(passes=self.passes, steps=self.steps)
        if self.passes and self.steps:
            raise SettingError(f"Expected passes or steps; got {self.passes} and {self.steps}. Leave one out.")

    def teach(self, usual: Teaching) -> Teaching:
        """Return how the stream is taught, given how it is taught usually."""
        out = replace(usual, steps=self.steps) if self.steps else usual
        if self.passes:
            size = ONLINE_BATCH if self.passes == 1 else usual.batch_size
            out = replace(out, steps=0, passes=self.passes, batch_size=size)
        return replace(out, boundaries="hidden", task_given=False) if self.boundaries == "hidden" else out

    def mix(self, tasks: Sequence[Task], rng: np.random.Generator) -> list[Task]:
        """Return the tasks with their training data as they are shown."""
        return blurred(tasks, self.blur, rng) if self.blur else list(tasks)


def not_negative(**settings: int) -> None:
    """Raise unless every setting is 0 or more.

    Raises:
        SettingError: One is not; the message names it.
    """
    for name, value in settings.items():
        if value < 0:
            raise SettingError(f"Expected {name} to be 0 or more; got {value}. 0 takes the default.")


def blurred(tasks: Sequence[Task], share: float, rng: np.random.Generator) -> list[Task]:
    """Exchange a share of each task's training samples with other tasks', past and future.

    Every task gives away as many samples as it gets, drawn at random; none gets its own back. The classes that come
    in with them follow the task's own, in the order of the stream. Test data stay as they are, and no sample is
    copied. A task larger than all others together exchanges no more than they can take.

    Args:
        tasks: The tasks in the order they are learned.
        share: Share of each task's training samples, in [0, 1).
        rng: Source of all randomness.

    Raises:
        SettingError: There is only one task.
    """
    if len(tasks) < 2:
        raise SettingError("Expected two tasks or more to blur the boundaries between; got one. Leave blur out.")
    sizes = [len(task.train) for task in tasks]
    counts = [round(share * size) for size in sizes]
    counts = [min(count, sum(counts) - count) for count in counts]
    moving = [np.sort(rng.permutation(size)[:count]) for size, count in zip(sizes, counts, strict=True)]
    came = _exchanged(np.repeat(np.arange(len(tasks)), counts), rng)
    starts = np.cumsum([0, *counts])
    of = np.searchsorted(starts, came, side="right") - 1
    rows = np.concatenate(moving)[came]
    # Held once, so that the fingerprint of each is computed once and not by every task.
    sources = [picked(task.train, np.arange(len(task.train)), task.train.targets) for task in tasks]
    out = []
    for t, task in enumerate(tasks):
        mine = slice(starts[t], starts[t + 1])
        kept, index = np.full(sizes[t], t), np.arange(sizes[t])
        kept[moving[t]], index[moving[t]] = of[mine], rows[mine]
        targets, classes, prompts = _renumbered(tasks, t, moving[t], of[mine], rows[mine])
        train = Parts(sources, kept, index, targets)
        out.append(replace(task, classes=classes, prompts=prompts, train=train, own=len(task.classes)))
    return out


def _exchanged(owner: IntArray, rng: np.random.Generator) -> IntArray:
    """Return which sample comes to each place, int64 ``(M,)``, places and samples numbered by owner; none to its own.

    A shift by the largest owner's number is one such exchange; random pairs of places then swap what they hold
    wherever both may.
    """
    total = len(owner)
    holds: IntArray = (np.arange(total) + np.bincount(owner).max(initial=0)) % max(total, 1)
    for _ in range(ROUNDS):
        pairs = rng.permutation(total)[: total // 2 * 2].reshape(-1, 2)
        a, b = pairs[:, 0], pairs[:, 1]
        may = (owner[holds[a]] != owner[b]) & (owner[holds[b]] != owner[a])
        a, b = a[may], b[may]
        holds[a], holds[b] = holds[b], holds[a]
    return holds


def _renumbered(
    tasks: Sequence[Task], t: int, places: IntArray, of: IntArray, rows: IntArray
) -> tuple[IntArray, tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """Return labels, classes and prompts of task ``t`` once samples ``rows`` of tasks ``of`` stand at ``places``."""
    task = tasks[t]
    came = [tasks[j].classes[tasks[j].train.targets[row]] for j, row in zip(of, rows, strict=True)]
    foreign = set(came) - set(task.classes)
    known: dict[str, tuple[str, ...]] = {}
    for other in tasks:
        for name, texts in zip(other.classes, other.prompts, strict=True):
            known.setdefault(name, texts)
    new = tuple(name for name in known if name in foreign)
    classes = (*task.classes, *new)
    number = {name: i for i, name in enumerate(classes)}
    targets = task.train.targets.copy()
    targets[places] = [number[name] for name in came]
    return targets, classes, (*task.prompts, *(known[name] for name in new))
