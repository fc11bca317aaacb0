"""The contract that every scenario and every agent keeps, ours and yours: read it as two lists of rules.

A rule takes what is under check and returns what is wrong with it, or ``""``. The name of a function is the
rule; :data:`SCENARIO_RULES` and :data:`AGENT_RULES` are the contract.
"""

from __future__ import annotations

import inspect
import json
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import gymnasium
import numpy as np
import torch
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env

from clgym import checkpoint
from clgym.agent import Agent, AgentSpec, Setup
from clgym.env import ContinualEnv
from clgym.errors import ContractError, StreamEndedError, UnsupportedEventError
from clgym.events import Event, Guess, Query, TaskEnd, TaskStart, Train
from clgym.metrics import METRICS
from clgym.registry import find, settings
from clgym.scenario import ScenarioSpec
from clgym.settings import arguments

SMALL = {"tasks": 2, "steps": 4}  # settings of the stream that agents are checked on, where a scenario has them
RECIPE = 50  # events by which a rebuilt stream is compared with the first
QUESTIONS = 8  # questions of a query that an agent is asked again and again
T = TypeVar("T")


def check_scenario(id_or_env: str | gymnasium.Env[Any, Any], *, limit: int = 400, **chosen: Any) -> None:
    """Hold a scenario to its contract, :data:`SCENARIO_RULES`, guessing every answer.

    Args:
        id_or_env: Scenario id, or an environment as ``gymnasium.make`` returns it.
        limit: Look at so many events of a lifetime; rules on its end need all of them.
        **chosen: Settings of the scenario, if it is given by id.

    Raises:
        ContractError: A rule is broken; the message names it and the fix.
        NotRegisteredError: No scenario has that id.
        SettingError: A setting is unknown or out of range.
    """
    env = id_or_env
    if isinstance(env, str):
        env = gymnasium.make(f"clgym/{find('scenarios', env).spec.id}", **chosen)
    if env.spec is None:
        raise ContractError(
            "Expected an environment with a spec, from which others can rebuild it; got one without. "
            "Register the scenario and pass its id."
        )
    _hold(env.spec.id, SCENARIO_RULES, Stream(env.spec, limit))


def check_agent(
    id_or_class: str | type[Agent], scenario: str = "CLIP-MTIL-v0", *, device: str = "cpu", **chosen: Any
) -> None:
    """Hold an agent to its contract, :data:`AGENT_RULES`, on a short stream.

    Args:
        id_or_class: Agent id, or a class that need not be registered.
        scenario: Id of a scenario whose inputs the agent takes.
        device: ``"cpu"`` or ``"cuda"``.
        **chosen: Settings of the scenario; two tasks of four steps unless chosen otherwise.

    Raises:
        ContractError: A rule is broken; the message names it and the fix.
        NotRegisteredError: No agent or scenario has that id.
        SettingError: A setting of the scenario is unknown or out of range.
    """
    kind = find("agents", id_or_class).load() if isinstance(id_or_class, str) else id_or_class
    id = find("scenarios", scenario).spec.id
    small = {name: value for name, value in SMALL.items() if name in settings("scenarios", id)}
    made = gymnasium.make(f"clgym/{id}", disable_env_checker=True, **{**small, **chosen})
    _hold(kind.__name__, AGENT_RULES, Trial(kind, made.unwrapped, device))  # type: ignore[arg-type]


def _hold(subject: str, rules: Sequence[Callable[[T], str]], case: T) -> None:
    """Raise for the first rule that the case breaks; an error on the way breaks it too."""
    for rule in rules:
        broken = f"{subject} breaks the rule {rule.__name__!r}: "
        try:
            fault = rule(case)
        except Exception as error:
            what = f"Expected no error; got {type(error).__name__}: {error} "
            raise ContractError(f"{broken}{what}The rule reads: {rule.__doc__}") from error
        if fault:
            raise ContractError(broken + fault)


# --- What a scenario keeps ----------------------------------------------------------------------------------


class Moment(NamedTuple):
    """What ``step`` returned."""

    event: Event
    reward: float
    terminated: bool
    truncated: bool
    info: dict[str, Any]


def walk(env: ContinualEnv, limit: int) -> Iterator[Moment]:
    """Yield the first ``limit`` moments of the lifetime of seed 0 whose every answer is a guess."""
    event, info = env.reset(seed=0)
    yield Moment(event, 0.0, False, False, info)
    for k in range(limit - 1):
        moment = Moment(*env.step(Guess(k)))
        yield moment
        if moment.terminated or moment.truncated:
            return


@dataclass(frozen=True)
class Stream:
    """A scenario under check.

    Attributes:
        spec: How to build its environment.
        limit: How many events of a lifetime to look at.
    """

    spec: EnvSpec
    limit: int

    def make(self) -> ContinualEnv:
        """Build the bare environment anew."""
        env: ContinualEnv = gymnasium.make(self.spec, disable_env_checker=True).unwrapped  # type: ignore[assignment]
        return env

    def walk(self) -> Iterator[Moment]:
        """Walk through a fresh environment."""
        return walk(self.make(), self.limit)

    def taught(self) -> Iterator[tuple[TaskStart, list[Train], bool]]:
        """Yield each task's start, its ``Train`` events without inputs, and whether its end was seen."""
        start: TaskStart | None = None
        trains: list[Train] = []
        for event in (moment.event for moment in self.walk()):
            match event:
                case TaskStart():
                    start, trains = event, []
                case Train():
                    trains.append(replace(event, inputs=()))
                case TaskEnd() if start is not None:
                    yield start, trains, True
                    start = None
        if start is not None:
            yield start, trains, False


def scenario_says_what_it_is(stream: Stream) -> str:
    """Its spec is a ScenarioSpec whose texts are filled in, whose id ends in ``-vN`` and whose metrics exist."""
    scenario = stream.make().scenario
    return _fault_of_spec(scenario.spec, ScenarioSpec, ("id", "title", "paper", "kind", "description")) or (
        ""
        if (unknown := set(scenario.spec.metrics) - set(METRICS)) == set()
        else f"Expected metrics that exist; got {sorted(unknown)}. clgym.metrics.METRICS holds them all."
    )


def scenario_settings_have_defaults_and_words(stream: Stream) -> str:
    """Every setting is a keyword argument with a JSON default and a sentence in the class's ``Args``."""
    return _fault_of_settings(type(stream.make().scenario), 0)


def gymnasium_accepts_it(stream: Stream) -> str:
    """``gymnasium.utils.env_checker.check_env`` finds nothing to warn of, render modes included."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(stream.make())
    return ""


def its_recipe_is_json(stream: Stream) -> str:
    """``EnvSpec.from_json(spec.to_json())`` builds the same stream, so a record can name it."""
    again = Stream(EnvSpec.from_json(stream.spec.to_json()), min(stream.limit, RECIPE))
    if stream.spec.nondeterministic:
        return "Expected a stream that its seed fixes; got nondeterministic=True. Draw from the given generator."
    return _first_difference(replace(stream, limit=again.limit).walk(), again.walk())


def a_seed_fixes_the_lifetime(stream: Stream) -> str:
    """Two environments show the same events, rewards and info from the same seed on."""
    return _first_difference(stream.walk(), stream.walk())


def a_seeded_reset_rewinds_whatever_was_done_to_the_events(stream: Stream) -> str:
    """Events hold fresh arrays: writing into them changes neither this lifetime nor the next."""
    env = stream.make()
    for moment in walk(env, stream.limit):
        for holder in (moment.event, getattr(moment.event, "forget", None), getattr(moment.event, "retain", None)):
            for name in ("inputs", "targets", "ids"):
                array = getattr(holder, name, None)
                if isinstance(array, np.ndarray) and array.flags.writeable:
                    array[...] = 0
    return _first_difference(stream.walk(), walk(env, stream.limit))


def a_state_continues_the_lifetime(stream: Stream) -> str:
    """``reset(options={"resume": get_state()})`` shows the last event again, and what follows is the same."""
    half, env, other = max(1, stream.limit // 2), stream.make(), stream.make()
    event = [moment.event for moment in walk(env, half)][-1]
    if other.reset(options={"resume": env.get_state()})[0] != event:
        return "Expected the last event after resuming; got another. Build events from the lifetime's seed alone."
    for k in range(min(stream.limit, env.length) - half):
        if env.step(Guess(k)) != other.step(Guess(k)):
            return f"Expected the same event {k + 1} steps after resuming; got another. Keep no state in data."
    return ""


def every_event_is_in_the_space(stream: Stream) -> str:
    """``observation_space`` holds every event, ``action_space`` its own samples, and no reward leaves [0, 1]."""
    env = stream.make()
    for position, (event, reward, *_) in enumerate(walk(env, stream.limit)):
        if event not in env.observation_space:
            return f"Expected event {position} in {env.observation_space}; got another {type(event).__name__}."
        if type(reward) is not float or not 0 <= reward <= 1:
            return f"Expected a float reward in [0, 1]; got {reward!r} at event {position}. Score by the mean."
    fits = env.action_space.sample() in env.action_space
    return "" if fits else "Expected the action space to hold its samples; it does not. See AnswerSpace."


def tasks_give_the_steps_they_promise(stream: Stream) -> str:
    """``TaskStart.steps`` Train events lie between a task's start and its end."""
    for start, trains, ended in stream.taught():
        if len(trains) > start.steps or (ended and len(trains) < start.steps):
            return f"Expected {start.steps} Train events in task {start.task}; got {len(trains)}. See clgym.plan."
    return ""


def targets_are_within_the_classes(stream: Stream) -> str:
    """Targets are texts, or int64 indices into ``TaskStart.classes``; every class has a prompt."""
    for start, trains, _ in stream.taught():
        if len(start.prompts) != len(start.classes) or not all(start.prompts):
            return f"Expected a prompt for each class of {start.name!r}; got too few. Fill Task.prompts."
        for targets in (train.targets for train in trains if isinstance(train.targets, np.ndarray)):
            if targets.dtype != np.int64 or targets.min() < 0 or targets.max() >= len(start.classes):
                return (
                    f"Expected int64 targets in [0, {len(start.classes)}) in task {start.name!r}; got {targets.dtype} "
                    f"from {targets.min()} to {targets.max()}. Number the classes of each task from 0."
                )
    return ""


def ids_are_one_per_sample_and_say_nothing(stream: Stream) -> str:
    """A sample has one id, int64, and no other has it; ids are not in the order of the labels."""
    for start, trains, _ in stream.taught():
        pairs = [pair for train in trains for pair in zip(train.ids.tolist(), train.targets, strict=True)]
        known = dict(pairs)
        if len(known) != min(start.samples, len(pairs)):
            return (
                f"Expected {min(start.samples, len(pairs))} ids in task {start.name!r}; got {len(known)}. "
                "Give every sample one id, and show all samples before showing one again."
            )
        if any(known[id] != target for id, target in pairs):
            return f"Expected one target per id in task {start.name!r}; got two. Give every sample its own id."
        in_order = [known[id] for id in sorted(known)]
        if len(set(in_order)) > 1 and len(in_order) >= 2 * len(set(in_order)) and in_order == sorted(in_order):
            return f"Expected ids that say nothing; got ids in the order of the labels in {start.name!r}. Permute them."
    return ""


def nothing_in_an_event_leads_elsewhere(stream: Stream) -> str:
    """Events hold plain values and arrays of their own; a query has no attribute beyond its fields."""
    hidden = not stream.make().teaching.task_given
    for position, moment in enumerate(stream.walk()):
        event = moment.event
        loose = set(dir(event)) - set(dir(Event)) - {field.name for field in fields(event)}
        loose -= {"__match_args__", "__slots__", "__annotations__"}
        if isinstance(event, Query) and loose:
            return f"Expected a query with its fields alone; got {sorted(loose)} at event {position}. Remove them."
        if (leak := _leak([getattr(event, field.name) for field in fields(event)])) is not None:
            return f"Expected plain values of its own in event {position}; got {leak}. Copy what is shown."
        if hidden and (getattr(event, "task", None) is not None or "task" in moment.info):
            return f"Expected a hidden task; got it in event {position}. Show None."
    return ""


def nothing_comes_after_the_end(stream: Stream) -> str:
    """``End`` comes with ``terminated``, nothing is ever truncated, and then ``step`` refuses."""
    env = stream.make()
    position = -1
    for position, (event, _, terminated, truncated, info) in enumerate(walk(env, stream.limit)):
        if truncated is not False or terminated is not (type(event).__name__ == "End"):
            return f"Expected terminated at End alone; got {terminated}, {truncated} at {type(event).__name__}."
        if info.get("position") != position:
            return f"Expected info['position'] to be {position}; got {info.get('position')}. Count every event."
    if position + 1 < env.length:
        return ""
    try:
        env.step(None)
    except StreamEndedError:
        return ""
    return "Expected StreamEndedError after End; got another event. Refuse to step."


def fingerprints_are_stable(stream: Stream) -> str:
    """``fingerprints()`` names spec, stream and data by sha256, the same in every process and after any event."""
    seen = []
    for limit in (1, min(stream.limit, RECIPE)):
        env = stream.make()
        list(walk(env, limit))
        seen.append(env.fingerprints())
    if seen[0] != seen[1]:
        return f"Expected the same fingerprints; got {seen}. Hash content, not objects."
    whole = all(re.fullmatch("[0-9a-f]{64}", sha) for sha in seen[0].values())
    return "" if whole else f"Expected 64 hex digits; got {seen[0]}. Use sha256."


SCENARIO_RULES: tuple[Callable[[Stream], str], ...] = (
    scenario_says_what_it_is,
    scenario_settings_have_defaults_and_words,
    its_recipe_is_json,
    a_seed_fixes_the_lifetime,
    every_event_is_in_the_space,
    tasks_give_the_steps_they_promise,
    targets_are_within_the_classes,
    ids_are_one_per_sample_and_say_nothing,
    nothing_in_an_event_leads_elsewhere,
    nothing_comes_after_the_end,
    a_state_continues_the_lifetime,
    a_seeded_reset_rewinds_whatever_was_done_to_the_events,
    fingerprints_are_stable,
    gymnasium_accepts_it,
)


# --- What an agent keeps ------------------------------------------------------------------------------------


class Trial:
    """An agent under check, on one short stream.

    Args:
        kind: The agent's class.
        env: The stream.
        device: Where the agent computes.
    """

    def __init__(self, kind: type[Agent], env: ContinualEnv, device: str) -> None:
        """Build nothing yet."""
        self.kind, self.env, self.device = kind, env, device

    def fresh(self) -> Agent:
        """Build the agent anew, from the same seed."""
        about = self.env.scenario
        return self.kind(Setup(about.spec.modality, about.shape, about.backbone, 0, self.device))

    @cached_property
    def events(self) -> list[Event]:
        """The stream's events; of each query the first few questions."""
        short = []
        for event in (moment.event for moment in walk(self.env, 2**31)):
            few = isinstance(event, Query)
            short.append(replace(event, inputs=event.inputs[:QUESTIONS]) if isinstance(event, Query) else event)
            del few
        return short

    @cached_property
    def middle(self) -> int:
        """The position after a ``Train`` event drawn from those inside a task."""
        inner = [k + 1 for k, (a, b) in enumerate(_pairs(self.events)) if isinstance(a, Train) and isinstance(b, Train)]
        return int(np.random.default_rng(0).choice(inner))
