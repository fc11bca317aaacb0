"""Agents that break one rule each are told which."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from clgym import agent_rules
from clgym.agent import Agent, AgentSpec, Footprint, Setup
from clgym.check import check_agent
from clgym.errors import ContractError
from clgym.events import Answer, Array, Event, Inputs, IntArray, Query, TaskEnd, Train


class Sum(Agent):
    """Answers by the sum of pixels and of all that it was taught.

    Args:
        setup: What is known of the stream.
        step: How fast it learns.
    """

    spec = AgentSpec(id="sum-v0", title="Sum")

    def __init__(self, setup: Setup, *, step: int = 1) -> None:
        super().__init__(setup)
        self.step = step
        self.total = np.zeros(2, np.int64)

    def learn(self, event: Train) -> None:
        assert isinstance(event.targets, np.ndarray)
        self.total += self.step * event.targets.sum()

    def key(self, event: Query) -> IntArray:
        assert isinstance(event.inputs, np.ndarray)
        sums: IntArray = event.inputs.reshape(len(event.inputs), -1).sum(axis=1, dtype=np.int64)
        shifted: IntArray = sums + self.total[0]
        return shifted

    def answer(self, event: Query) -> Answer:
        return self.key(event) % len(event.candidates)

    def state_dict(self) -> dict[str, Any]:
        return {"total": self.total}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.total = np.array(state["total"])


class Nameless(Sum):
    spec = replace(Sum.spec, id="sum")


class Unfounded(Sum):
    spec = replace(Sum.spec, family="replay")


class Speechless(Sum):
    spec = replace(Sum.spec, departs=None)  # type: ignore[arg-type]


class Reader(Sum):
    spec = replace(Sum.spec, modalities=("text",))


class Silent(Sum):
    """Says nothing of its setting."""


class Demanding(Sum):
    """Has a setting without a default.

    Args:
        setup: What is known of the stream.
        step: How fast it learns.
    """

    def __init__(self, setup: Setup, *, step: int) -> None:
        super().__init__(setup, step=step)


class Talkative(Sum):
    def act(self, event: Event) -> Answer | None:
        return super().act(event) if isinstance(event, Query) else np.zeros(1, np.int64)


class Scribbler(Sum):
    def learn(self, event: Train) -> None:
        super().learn(event)
        assert isinstance(event.inputs, np.ndarray)
        event.inputs[:] = 0


class Clumsy(Sum):
    def answer(self, event: Query) -> Answer:
        return self.key(event)[:-1] % len(event.candidates)


class Gambler(Sum):
    entropy = np.random.default_rng(0)

    def learn(self, event: Train) -> None:
        self.total += self.entropy.integers(1000)


class Waverer(Sum):
    asked = 0

    def answer(self, event: Query) -> Answer:
        self.asked += 1
        return (self.key(event) + self.asked) % len(event.candidates)


class Learner(Sum):
    """Learns from questions, though its answers do not show it."""

    def answer(self, event: Query) -> Answer:
        self.total += len(event.candidates) * 5040
        return np.zeros(len(event.inputs), np.int64)


class Exhibit(Sum):
    def features(self, inputs: Inputs) -> Array | None:
        assert isinstance(inputs, np.ndarray)
        return inputs.reshape(len(inputs), -1).astype(np.float32)

    def activations(self, inputs: Inputs) -> Sequence[Array] | None:
        return [np.ones((len(inputs), 3), np.float32)]

    def matrices(self) -> Iterable[Array] | None:
        return [self.total.astype(np.float64)]


class Flat(Exhibit):
    def features(self, inputs: Inputs) -> Array | None:
        return np.ones(len(inputs))


class Crowd(Exhibit):
    def activations(self, inputs: Inputs) -> Sequence[Array] | None:
        return [np.ones((1, len(inputs)))]


class Burst(Exhibit):
    def matrices(self) -> Iterable[Array] | None:
        return [np.array([np.inf])]


class Shy(Exhibit):
    """Takes what it is looked at with for training data."""

    def features(self, inputs: Inputs) -> Array | None:
        self.total += 1
        return super().features(inputs)


class Hooked(Exhibit):
    looked = 0

    def matrices(self) -> Iterable[Array] | None:
        self.looked = 1
        return None

    def answer(self, event: Query) -> Answer:
        return (self.key(event) + self.looked) % len(event.candidates)


class Sociable(Sum):
    def answer(self, event: Query) -> Answer:
        key = self.key(event)
        shared: IntArray = (key + key.sum()) % len(event.candidates)
        return shared


class Absent(Sum):
    """Keeps nothing."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        del state


class Delayed(Sum):
    """Notes at the start what only its last answers need, and keeps it out of its state."""

    note, ended = 0, 0

    def learn(self, event: Train) -> None:
        super().learn(event)
        self.note = self.note or 1 + int(event.ids.min())

    def end_task(self, event: TaskEnd) -> None:
        self.ended += 1

    def answer(self, event: Query) -> Answer:
        return (self.key(event) + (self.note if self.ended == 2 else 0)) % len(event.candidates)

    def state_dict(self) -> dict[str, Any]:
        return {"total": self.total, "ended": self.ended}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.ended = state["ended"]


class Opaque(Sum):
    def state_dict(self) -> dict[str, Any]:
        return {"total": self.total, "seen": {1, 2}}


class Boaster(Sum):
    def footprint(self) -> Footprint:
        return Footprint(trainable=-1)


class Hoarder(Sum):
    def footprint(self) -> Footprint:
        return Footprint(sample_bytes=100)


class Deaf(Sum):
    def act(self, event: Event) -> Answer | None:
        return super().act(event) if type(event) is not Event else None


BROKEN_AGENTS: list[tuple[str, type[Agent]]] = [
    ("agent_says_what_it_is", Nameless),
    ("agent_says_what_it_is", Unfounded),
    ("agent_says_what_it_is", Speechless),
    ("agent_says_what_it_is", Reader),
    ("agent_settings_have_defaults_and_words", Silent),
    ("agent_settings_have_defaults_and_words", Demanding),
    ("it_plays_to_the_end", Talkative),
    ("it_plays_to_the_end", Scribbler),
    ("it_plays_to_the_end", Clumsy),
    ("the_same_seed_gives_the_same_answers", Gambler),
    ("answering_changes_nothing", Waverer),
    ("answering_changes_nothing", Learner),
    ("looking_inside_changes_nothing", Flat),
    ("looking_inside_changes_nothing", Crowd),
    ("looking_inside_changes_nothing", Burst),
    ("looking_inside_changes_nothing", Shy),
    ("looking_inside_changes_nothing", Hooked),
    ("answers_do_not_depend_on_the_batch", Sociable),
    ("a_state_continues_bit_for_bit", Absent),
    ("a_state_continues_bit_for_bit", Delayed),
    ("the_same_seed_gives_the_same_answers", Opaque),
    ("its_footprint_counts", Boaster),
    ("its_footprint_counts", Hoarder),
    ("it_refuses_what_it_does_not_know", Deaf),
]


def test_every_rule_is_tried_on_something_that_breaks_it() -> None:
    assert {rule for rule, _ in BROKEN_AGENTS} == {rule.__name__ for rule in agent_rules.RULES}


def test_states_are_compared_bit_by_bit() -> None:
    state = {"a": np.array([0.0, np.nan]), "t": torch.tensor([1.0, 2.0]), "s": torch.tensor(3), "w": [1, "x"]}
    assert agent_rules.changed(state, dict(state)) == ""
    others = {"a": np.array([-0.0, np.nan]), "t": torch.tensor([1, 2]), "s": torch.tensor([3]), "w": [1, "y"]}
    for name, other in others.items():
        assert agent_rules.changed(state, {**state, name: other}) == name
        assert agent_rules.changed(state, {k: v for k, v in state.items() if k != name}) == name


@pytest.mark.parametrize("kind", [Sum, Exhibit])
def test_a_sound_agent_passes(kind: type[Agent]) -> None:
    kind.__doc__ = Sum.__doc__
    check_agent(kind)


@pytest.mark.parametrize(("rule", "kind"), BROKEN_AGENTS, ids=[kind.__name__ for _, kind in BROKEN_AGENTS])
def test_a_broken_agent_is_told_which_rule(rule: str, kind: type[Agent]) -> None:
    kind.__doc__ = kind.__doc__ if kind is Silent else Sum.__doc__
    with pytest.raises(ContractError, match=f"{kind.__name__} breaks the rule '{rule}': Expected .*; got "):
        check_agent(kind)
