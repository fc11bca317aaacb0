"""One seed, three named generators: ``order`` and ``data`` of a stream, and ``agent``; each can be fixed alone.

* **order**: the order of tasks and classes, the few-shot samples, the ids of samples.
* **data**: the order of training samples, and their augmentation.
* **agent**: whatever an agent draws, initialisation first.

A stream's generators start from one number, its lifetime's *entropy*, which follows from the seed. ``order_seed=3``
gives a stream the order that the seed 3 has, ``data_seed=3`` its batches, and ``agent_seed=3`` its agent's draws; what
is not fixed follows from the run's seed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from gymnasium.utils import seeding

from clgym.errors import SettingError


@dataclass(frozen=True, slots=True)
class StreamSeeds:
    """Which of a stream's generators have a seed of their own; ``None`` follows the lifetime.

    Attributes:
        order_seed: Of the order of tasks and classes, the few-shot samples and the ids.
        data_seed: Of the order of training samples and their augmentation.

    Raises:
        SettingError: A seed is no whole number of 0 or more.
    """

    order_seed: int | None = None
    data_seed: int | None = None

    def __post_init__(self) -> None:
        """Check the seeds."""
        for name in ("order_seed", "data_seed"):
            check_seed(name, getattr(self, name))

    def drawn(self, entropy: int) -> Entropies:
        """Return what the generators of a lifetime start from."""
        order, data = (entropy if seed is None else first_entropy(seed) for seed in (self.order_seed, self.data_seed))
        return Entropies(order, data)


@dataclass(frozen=True, slots=True)
class Entropies:
    """What the generators of one lifetime start from; two lifetimes with the same two numbers are the same.

    Attributes:
        order: Of the generator of order.
        data: Of the generator of data.
    """

    order: int
    data: int

    def __str__(self) -> str:
        """Name the lifetime; one number where no generator has a seed of its own."""
        return str(self.order) if self.order == self.data else f"{self.order}, {self.data}"

    def ordering(self) -> np.random.Generator:
        """Return the generator of order."""
        return np.random.default_rng([self.order, 0])

    def batches(self, task: int) -> tuple[int, ...]:
        """Return what fixes the order of a task's training samples, see :func:`clgym.plan.batch_index`."""
        return (self.data, 1, task)

    def augmentation(self, task: int, batch: int) -> np.random.Generator:
        """Return the generator of a batch's augmentation."""
        return np.random.default_rng([self.data, 2, task, batch])


def first_entropy(seed: int) -> int:
    """Return the entropy of the first lifetime after ``reset(seed=seed)``."""
    return next_entropy(seeding.np_random(seed)[0])


def next_entropy(generator: np.random.Generator) -> int:
    """Draw a lifetime's entropy."""
    return int(generator.integers(2**63))


def agent_seed(seed: int) -> int:
    """Return the seed of an agent's own generator: the third that one seed spawns, after order and data."""
    return int(np.random.SeedSequence(seed).spawn(3)[2].generate_state(1, np.uint64)[0] >> 1)


def check_seed(name: str, seed: object) -> None:
    """Do nothing if a seed is ``None`` or a whole number of 0 or more.

    Raises:
        SettingError: It is anything else.
    """
    whole = isinstance(seed, int) and not isinstance(seed, bool) and seed >= 0
    if seed is not None and not whole:
        raise SettingError(
            f"Expected {name} as a whole number of 0 or more; got {seed!r}. Leave it out to follow the run's seed."
        )
