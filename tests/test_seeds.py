"""Order, data and agent: one seed gives three generators, and fixing one leaves the others as they were."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import clgym
from clgym.env import ContinualEnv
from clgym.events import TaskStart, Train
from clgym.registry import SHARED, make_agent, settings
from clgym.seeds import Entropies, StreamSeeds, agent_seed, first_entropy, next_entropy
from clgym.settings import described


@pytest.fixture
def shuffled(toy: Callable[..., ContinualEnv]) -> Callable[..., ContinualEnv]:
    """Return a maker of streams that draw the order of their tasks, by seeds of generators."""

    def make(**seeds: int) -> ContinualEnv:
        env = toy(tasks=4, train=12, seeds=StreamSeeds(**seeds))
        made = env.scenario.tasks(np.random.default_rng())
        env.scenario.tasks = lambda rng: [made[t] for t in rng.permutation(len(made))]  # type: ignore[method-assign]
        return env

    return make


def order_and_data(env: ContinualEnv, seed: int) -> tuple[Any, Any]:
    """Return what the order generator decides of a lifetime, and what the data generator does."""
    event, _ = env.reset(seed=seed)
    names, ids, batches, done = [], set(), [], False
    rows = {id: row for task in env._playing().ids for row, id in enumerate(task.tolist())}
    while not done:
        match event:
            case TaskStart():
                names.append(event.name)
            case Train():
                ids |= set(event.ids.tolist())
                batches.append([rows[id] for id in event.ids.tolist()])
        answer = env.action_space.sample() if type(event).__name__ == "Query" else None
        event, _, done, _, _ = env.step(answer)
    return (names, [task.tolist() for task in env._playing().ids]), batches


def test_the_generators_of_a_plain_run_are_those_that_recorded_runs_had() -> None:
    # These numbers are part of every record: they may not move.
    entropy = first_entropy(0)
    assert entropy == 5874934615388537135 == next_entropy(np.random.default_rng(np.random.SeedSequence(0)))
    assert agent_seed(0) == 8226343694796210948
    drawn = StreamSeeds().drawn(entropy)
    assert drawn == Entropies(entropy, entropy)
    assert str(drawn) == str(entropy)
    assert drawn.ordering().integers(2**63) == np.random.default_rng([entropy, 0]).integers(2**63)
    assert drawn.batches(3) == (entropy, 1, 3)
    assert drawn.augmentation(3, 5).integers(2**63) == np.random.default_rng([entropy, 2, 3, 5]).integers(2**63)


def test_a_generator_with_a_seed_of_its_own_leaves_the_other_as_it_was(shuffled: Callable[..., ContinualEnv]) -> None:
    plain, other = order_and_data(shuffled(), 0), order_and_data(shuffled(), 7)
    assert plain[0] != other[0]
    assert plain[1] != other[1]
    assert order_and_data(shuffled(order_seed=7), 0) == (other[0], plain[1])
    assert order_and_data(shuffled(data_seed=7), 0) == (plain[0], other[1])
    assert order_and_data(shuffled(order_seed=7, data_seed=7), 0) == other
    assert order_and_data(shuffled(order_seed=0, data_seed=0), 7) == plain


def test_a_fixed_seed_holds_for_every_lifetime(shuffled: Callable[..., ContinualEnv]) -> None:
    env = shuffled(order_seed=7)
    first, _ = order_and_data(env, 0)
    env.reset()
    assert [list(task) for task in env._playing().ids] == first[1]


def test_augmentation_follows_the_data_seed() -> None:
    drawn = {seeds: StreamSeeds(*seeds).drawn(5).augmentation(1, 2).integers(2**63) for seeds in [(None, 7), (7, None)]}
    assert drawn[None, 7] == StreamSeeds().drawn(first_entropy(7)).augmentation(1, 2).integers(2**63)
    assert drawn[7, None] == StreamSeeds().drawn(5).augmentation(1, 2).integers(2**63)


def test_a_stream_is_known_by_what_its_generators_start_from(shuffled: Callable[..., ContinualEnv]) -> None:
    prints = {}
    for seeds in ({}, {"order_seed": 7}, {"data_seed": 7}, {"order_seed": 0, "data_seed": 0}):
        env = shuffled(**seeds)
        env.reset(seed=0)
        prints[str(seeds)] = env.fingerprints()["stream"]
    *different, same = prints.values()
    assert len(set(different)) == 3
    assert same == different[0]


def test_a_resumed_stream_keeps_its_seeds(shuffled: Callable[..., ContinualEnv]) -> None:
    env, again = shuffled(order_seed=7), shuffled(order_seed=7)
    env.reset(seed=0)
    again.reset(options={"resume": env.get_state()})
    assert again.task_names == env.task_names
    assert again.fingerprints() == env.fingerprints()


def test_the_agents_seed_is_its_own() -> None:
    env: Any = clgym.make("CLIP-MTIL-v0", order_seed=3)
    assert env.unwrapped.seeds == StreamSeeds(order_seed=3)
    assert make_agent("sequential_lora", env, 0).setup.seed == 0
    assert make_agent("sequential_lora", env, 0, agent_seed=3).setup.seed == 3


def test_the_seeds_are_settings_with_words() -> None:
    assert {s.name: s.default for s in described("scenarios", "CLIP-MTIL-v0") if "seed" in s.name} == dict.fromkeys(
        SHARED["scenarios"]
    )
    assert described("agents", "codyra-v0")[-1].description == SHARED["agents"]["agent_seed"]
    assert list(settings("agents", "codyra-v0"))[-1] == "agent_seed"
