"""Every registered scenario and agent keeps the contract, and whoever breaks a rule is told which."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.envs.registration import EnvSpec

from clgym import agent_rules, scenario_rules
from clgym.agent import Agent, AgentSpec, Footprint, Setup
from clgym.check import SMALL, check_agent, check_scenario
from clgym.env import ContinualEnv
from clgym.errors import ContractError, NotRegisteredError
from clgym.events import Answer, Array, End, Event, Inputs, IntArray, Query, TaskStart, Train
from clgym.registry import entries, settings
from clgym.scenario import Scenario, ScenarioSpec, Task, Teaching


def scenes() -> list[tuple[str, str]]:
    """Return every agent with a scenario on each kind of model, except where it cannot do with it."""
    specs = {id: entry.spec for id, entry in entries("agents").items()}
    clip = [(id, "CLIP-MTIL-v0") for id, spec in specs.items() if not spec.needs_head]
    plain = [(id, "ViT-CIFAR100-CIL-v0") for id, spec in specs.items() if not spec.needs_text]
    boxes = [(id, "Detection-Erasure-v0") for id, spec in specs.items() if "detection" in spec.modalities]
    return sorted(clip + plain + boxes)


@pytest.mark.parametrize("id", entries("scenarios"))
def test_scenario(id: str) -> None:
    check_scenario(id, limit=80)


@pytest.mark.parametrize("id", entries("scenarios"))
def test_short_scenario_to_its_end(id: str) -> None:
    check_scenario(id, limit=10_000, **{k: v for k, v in SMALL.items() if k in settings("scenarios", id)})


@pytest.mark.parametrize(("id", "scenario"), scenes())
def test_agent(id: str, scenario: str) -> None:
    check_agent(id, scenario)


def test_every_rule_is_tried_on_something_that_breaks_it() -> None:
    tried = {rule for rule, _ in [*BROKEN_SCENARIOS, *BROKEN_AGENTS]} | {"its_recipe_is_json"}
    assert tried == {rule.__name__ for rule in (*scenario_rules.RULES, *agent_rules.RULES)}


def test_unknown_ids() -> None:
    with pytest.raises(NotRegisteredError, match="Did you mean 'codyra-v0'"):
        check_agent("codira-v0")
    with pytest.raises(NotRegisteredError, match="Did you mean 'CLIP-MTIL-v0'"):
        check_scenario("CLIP-MITL-v0")


# --- Scenarios that break one rule each ---------------------------------------------------------------------


@dataclass(frozen=True)
class Noise:
    """Images of noise, the same for the same index."""

    targets: IntArray
    decodes: bool = False

    def __len__(self) -> int:
        return len(self.targets)

    def batch(self, index: IntArray, rng: np.random.Generator | None = None) -> Inputs:
        return np.stack([np.random.default_rng(i).integers(0, 256, (2, 2, 3), np.uint8) for i in index.tolist()])

    def fingerprint(self) -> str:
        return f"{len(self):064x}"


class Small(Scenario):
    """Two tasks of two classes.

    Args:
        hidden: Hide the task.
    """

    spec = ScenarioSpec(
        id="Broken-v0",
        title="Small",
        paper="none",
        kind="task-incremental",
        modality="image",
        description="For tests.",
        metrics=("average_accuracy",),
    )

    def __init__(self, *, hidden: bool = False) -> None:
        self.shape, self.classes, self.source, self.backbone = (2, 2, 3), 4, "embedded", "none"
        self.teaching = Teaching(
            batch_size=4, query_size=3, passes=2, task_given=not hidden, labels="union" if hidden else "task"
        )

    def data(self, rng: np.random.Generator) -> Noise:
        return Noise(np.arange(8) % 2)

    def tasks(self, rng: np.random.Generator) -> Sequence[Task]:
        data, names = self.data(rng), ("a", "b")
        return [Task(f"task {t}", "", names, tuple((n,) for n in names), data, data) for t in range(2)]


class UnknownMetric(Small):
    spec = replace(Small.spec, metrics=("luck",))


class Mislabelled(Small):
    spec = replace(Small.spec, tags=("online",))


class Undocumented(Small):
    """Says nothing of its setting."""


class Overcounted(Small):
    """Has a label too many.

    Args:
        hidden: Hide the task.
    """

    def data(self, rng: np.random.Generator) -> Noise:
        return Noise(np.arange(8) % 3)


class Forgetful(ContinualEnv):
    """Rewinds only once."""

    _drawn: int | None = None

    def _start(self, entropy: int) -> None:
        self._drawn = entropy if self._drawn is None else self._drawn + 1
        super()._start(self._drawn)


class Sorted(ContinualEnv):
    """Numbers samples by label."""

    def _build(self, position: int) -> Event:
        event = super()._build(position)
        if isinstance(event, Train):
            assert isinstance(event.targets, np.ndarray)
            return replace(event, ids=100 * event.targets.astype(np.int64) + event.ids)
        return event


class Generous(ContinualEnv):
    """Promises more steps than it gives."""

    def _build(self, position: int) -> Event:
        event = super()._build(position)
        return replace(event, steps=event.steps + 1) if isinstance(event, TaskStart) else event


class Telling(str):
    label = 0


class Leaky(ContinualEnv):
    """Shows names that know the label."""

    def _build(self, position: int) -> Event:
        event = super()._build(position)
        return replace(event, candidates=tuple(map(Telling, event.candidates))) if isinstance(event, Query) else event


class Odd(ContinualEnv):
    """Shows an image of another shape."""

    def _build(self, position: int) -> Event:
        event = super()._build(position)
        return replace(event, inputs=event.inputs[:, :1]) if isinstance(event, Query) else event  # type: ignore[call-overload]


class Endless(ContinualEnv):
    """Goes on after the end."""

    def step(self, action: Any) -> tuple[Event, float, bool, bool, dict[str, Any]]:
        if isinstance(self._event, End):
            return self._event, 0.0, True, False, {}
        return super().step(action)


class Amnesic(ContinualEnv):
    """Resumes at the start."""

    def get_state(self) -> dict[str, Any]:
        return {**super().get_state(), "position": 0}


class Anonymous(ContinualEnv):
    """Hashes objects, not content."""

    def fingerprints(self) -> dict[str, str]:
        return {"data": f"{id(self):064x}"}


class Blank(ContinualEnv):
    """Draws nothing."""

    def render(self) -> Any:
        raise RuntimeError("no picture")


class Aliased(ContinualEnv):
    """Hands out one array again and again."""

    _kept: dict[int, Event] = {}  # noqa: RUF012 - shared on purpose

    def _build(self, position: int) -> Event:
        return self._kept.setdefault(position, super()._build(position))


def make(scenario: type[Small] = Small, env: type[ContinualEnv] = ContinualEnv) -> Callable[..., ContinualEnv]:
    return lambda render_mode=None, **settings: env(scenario(**settings), render_mode)


def unstable(render_mode: str | None = None) -> ContinualEnv:
    """Build another stream every time."""
    unstable.calls = getattr(unstable, "calls", 0) + 1  # type: ignore[attr-defined]
    return ContinualEnv(Small(hidden=unstable.calls % 2 == 0), render_mode)  # type: ignore[attr-defined]


BROKEN_SCENARIOS: list[tuple[str, Callable[..., ContinualEnv]]] = [
    ("scenario_says_what_it_is", make(UnknownMetric)),
    ("scenario_says_what_it_is", make(Mislabelled)),
    ("scenario_settings_have_defaults_and_words", make(Undocumented)),
    ("a_seed_fixes_the_lifetime", unstable),
    ("a_seeded_reset_rewinds", make(env=Forgetful)),
    ("every_event_is_in_the_space", make(env=Odd)),
    ("tasks_give_the_steps_they_promise", make(env=Generous)),
    ("targets_are_within_the_classes", make(Overcounted)),
    ("ids_are_one_per_sample_and_say_nothing", make(env=Sorted)),
    ("events_lead_nowhere", make(env=Leaky)),
    ("nothing_comes_after_the_end", make(env=Endless)),
    ("a_state_continues_the_lifetime", make(env=Amnesic)),
    ("writing_into_events_changes_nothing", make(env=Aliased)),
    ("fingerprints_are_stable", make(env=Anonymous)),
    ("gymnasium_accepts_it", make(env=Blank)),
]


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> Callable[..., gymnasium.Env[Any, Any]]:
    """Return what enters an environment in Gymnasium's registry, by a text, for one test, and makes it."""

    def enter(maker: Callable[..., ContinualEnv], **settings: Any) -> gymnasium.Env[Any, Any]:
        module = types.ModuleType("broken")
        module.make = maker  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "broken", module)
        spec = EnvSpec("clgym/Broken-v0", entry_point="broken:make", disable_env_checker=True)
        monkeypatch.setitem(gymnasium.registry, "clgym/Broken-v0", spec)
        return gymnasium.make("clgym/Broken-v0", **settings)

    return enter


Registered = Callable[..., "gymnasium.Env[Any, Any]"]


@pytest.mark.parametrize("hidden", [False, True])
def test_a_sound_scenario_passes(registered: Registered, hidden: bool) -> None:
    check_scenario(registered(make(), hidden=hidden))


@pytest.mark.parametrize(("rule", "maker"), BROKEN_SCENARIOS, ids=[rule for rule, _ in BROKEN_SCENARIOS])
def test_a_broken_scenario_is_told_which_rule(
    registered: Registered, rule: str, maker: Callable[..., ContinualEnv]
) -> None:
    with pytest.raises(ContractError, match=f"clgym/Broken-v0 breaks the rule '{rule}': Expected .*; got "):
        check_scenario(registered(maker))


def test_settings_that_are_not_json(registered: Registered) -> None:
    with pytest.raises(ContractError, match="breaks the rule 'its_recipe_is_json': Expected no error; got "):
        check_scenario(registered(make(), hidden=lambda: True))


def test_an_environment_without_a_spec() -> None:
    with pytest.raises(ContractError, match="Register the scenario and pass its id"):
        check_scenario(ContinualEnv(Small()))


# --- Agents that break one rule each ------------------------------------------------------------------------


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
    ("the_same_seed_gives_the_same_answers", Opaque),
    ("its_footprint_counts", Boaster),
    ("its_footprint_counts", Hoarder),
    ("it_refuses_what_it_does_not_know", Deaf),
]


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
