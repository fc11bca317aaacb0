"""Scenarios that break one rule each are told which."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec

from clgym import scenario_rules
from clgym.check import check_scenario
from clgym.env import ContinualEnv
from clgym.errors import ContractError
from clgym.events import End, Event, Inputs, IntArray, Query, TaskStart, Train
from clgym.scenario import Scenario, ScenarioSpec, Task, Teaching


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


def test_every_rule_is_tried_on_something_that_breaks_it() -> None:
    tried = {rule for rule, _ in BROKEN_SCENARIOS} | {"its_recipe_is_json"}
    assert tried == {rule.__name__ for rule in scenario_rules.RULES}


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
