"""What a scenario keeps: each function is a rule, named by what must hold, and returns what is wrong or ``""``."""

from __future__ import annotations

import hashlib
import inspect
import json
import re
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import zip_longest
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env

from clgym.env import ContinualEnv
from clgym.errors import StreamEndedError
from clgym.events import Array, End, Event, Guess, TaskEnd, TaskStart, Train
from clgym.metrics import METRICS
from clgym.scenario import ScenarioSpec
from clgym.settings import arguments
from clgym.variants import COMPOSED

RECIPE = 50  # events by which a rebuilt stream is compared with the first


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
    """Its spec is a ScenarioSpec whose texts are filled in, whose id ends in ``-vN``, whose metrics and tags exist."""
    scenario = stream.make().scenario
    if fault := fault_of_spec(scenario.spec, ScenarioSpec, ("id", "title", "paper", "kind", "description")):
        return fault
    known = inspect.signature(type(scenario)).parameters
    loose = [tag for tag in scenario.spec.tags if COMPOSED.get(tag, "").partition("=")[0] not in known]
    if loose:
        return f"Expected tags that a setting brings about; got {loose}. clgym.variants.COMPOSED names the settings."
    unknown = sorted(set(scenario.spec.metrics) - set(METRICS))
    return f"Expected metrics that exist; got {unknown}. clgym.metrics.METRICS holds them all." if unknown else ""


def scenario_settings_have_defaults_and_words(stream: Stream) -> str:
    """Every setting is a keyword argument with a JSON default and a sentence in the class's ``Args``."""
    return fault_of_settings(type(stream.make().scenario), 0)


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


def writing_into_events_changes_nothing(stream: Stream) -> str:
    """Events hold fresh arrays: what is written into them shows neither in this lifetime nor in the next."""
    env = stream.make()
    before = [_digest(moment) for moment in stream.walk()]
    for moment in walk(env, stream.limit):
        for array in _arrays(moment.event):
            if array.flags.writeable:
                array[...] = 0
    after = [_digest(moment) for moment in walk(env, stream.limit)]
    changed = [position for position, (a, b) in enumerate(zip_longest(before, after)) if a != b]
    return f"Expected fresh arrays; got event {changed[0]} changed by writing. Show copies." if changed else ""


def a_seeded_reset_rewinds(stream: Stream) -> str:
    """``reset(seed=s)`` shows the lifetime of ``s`` again, wherever the environment stands and whatever it drew."""
    env = stream.make()
    list(walk(env, min(stream.limit, RECIPE)))
    env.reset()
    return _first_difference(stream.walk(), walk(env, stream.limit))


def a_state_continues_the_lifetime(stream: Stream) -> str:
    """``reset(options={"resume": get_state()})`` shows the last event again, and what follows is the same."""
    env, other = stream.make(), stream.make()
    env.reset(seed=0)
    length = min(stream.limit, env.length)
    (last,) = deque(walk(env, (length + 1) // 2), maxlen=1)
    if other.reset(options={"resume": env.get_state()})[0] != last.event:
        return "Expected the last event after resuming; got another. Build events from the lifetime's seed alone."
    for k in range(length - (length + 1) // 2):
        if env.step(Guess(k)) != other.step(Guess(k)):
            return f"Expected the same event {k + 1} steps after resuming; got another. Keep no state in the data."
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
    """Targets are texts, int64 indices into ``TaskStart.classes``, or boxes with one; every class has a prompt."""
    for start, trains, _ in stream.taught():
        if len(start.prompts) != len(start.classes) or not all(start.prompts):
            return f"Expected a prompt for each class of {start.name!r}; got too few. Fill Task.prompts."
        for targets in (train.targets for train in trains if isinstance(train.targets, np.ndarray)):
            if targets.dtype == np.float32:
                if fault := _fault_of_boxes(targets, len(start.classes)):
                    return fault
            elif targets.dtype != np.int64 or targets.min() < 0 or targets.max() >= len(start.classes):
                return (
                    f"Expected int64 targets in [0, {len(start.classes)}) in task {start.name!r}; got {targets.dtype} "
                    f"from {targets.min()} to {targets.max()}. Number the classes of each task from 0."
                )
    return ""


def _fault_of_boxes(boxes: Array, classes: int) -> str:
    there = boxes[..., 0] >= 0
    of = boxes[there]
    whole = (
        (of[:, 0] == of[:, 0].astype(int)) & (of[:, 0] < classes) & ((of[:, 1:] >= 0) & (of[:, 1:] <= 1)).all(axis=1)
    )
    if whole.all() and (there[:, :-1] >= there[:, 1:]).all():
        return ""
    return f"Expected boxes (B, M, 5) of classes below {classes} in shares of the image, empty rows last; got others."


def ids_are_one_per_sample_and_say_nothing(stream: Stream) -> str:
    """A sample has one id, int64, and no other has it; ids are not in the order of the labels."""
    # Where a start stands for many tasks, each shows its own samples again before the next shows any.
    hidden = stream.make().teaching.boundaries == "hidden"
    for start, trains, _ in stream.taught():
        pairs = [pair for train in trains for pair in zip(train.ids.tolist(), map(_told, train.targets), strict=True)]
        known = dict(pairs)
        if len(known) > start.samples or (not hidden and len(known) != min(start.samples, len(pairs))):
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


def _told(target: Any) -> Any:
    """Return a target as something that can be compared: of boxes, the rows with an object."""
    if isinstance(target, np.ndarray) and target.ndim:
        return tuple(map(tuple, target[target[:, 0] >= 0].tolist()))
    return target


def events_lead_nowhere(stream: Stream) -> str:
    """Events are those of clgym.events and hold plain values and arrays of their own; hidden tasks are hidden."""
    hidden = not stream.make().teaching.task_given
    for position, (event, _, _, _, info) in enumerate(stream.walk()):
        if leak := _leak(event):
            return f"Expected plain values in event {position}; got {leak}. Show copies, of built-in types."
        if hidden and (getattr(event, "task", None) is not None or "task" in info):
            return f"Expected the task hidden; got it in event {position}. Show None."
    return ""


def nothing_comes_after_the_end(stream: Stream) -> str:
    """``End`` comes with ``terminated``, nothing is ever truncated, and then ``step`` refuses."""
    env = stream.make()
    position = -1
    for position, (event, _, terminated, truncated, info) in enumerate(walk(env, stream.limit)):
        if truncated is not False or terminated is not isinstance(event, End):
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


def fault_of_spec(spec: Any, kind: type[Any], texts: Sequence[str]) -> str:
    """Return what is wrong with a spec, or ``""``; ``texts`` names what must not be empty."""
    if type(spec) is not kind:
        return f"Expected spec to be of {kind.__name__}; got {type(spec).__name__}. State it in the class body."
    if not re.fullmatch(r".+-v\d+", spec.id):
        return f"Expected an id that ends in its version; got {spec.id!r}. Begin with {spec.id}-v0."
    empty = [name for name in texts if not getattr(spec, name)]
    wrong = [f.name for f in fields(spec) if f.type == "str" and not isinstance(getattr(spec, f.name), str)]
    return f"Expected texts; got none in {empty + wrong}. Fill them in." if empty or wrong else ""


def fault_of_settings(kind: type[Any], given: int) -> str:
    """Return what is wrong with a class's settings, or ``""``; the first ``given`` arguments are none."""
    words = arguments(inspect.getdoc(kind) or "")
    for setting in list(inspect.signature(kind).parameters.values())[given:]:
        if setting.kind is not setting.KEYWORD_ONLY or setting.default is setting.empty:
            return f"Expected {setting.name} after * and with a default; got {setting}. No setting may be missing."
        json.dumps(setting.default)
        if not words.get(setting.name, "").endswith("."):
            return f"Expected a sentence on {setting.name}; got {words.get(setting.name)!r}. Add it to Args."
    return ""


def _first_difference(first: Iterator[Moment], second: Iterator[Moment]) -> str:
    """Compare event by event, so that no more than two are held."""
    for position, (a, b) in enumerate(zip_longest(first, second)):
        if a != b:
            return f"Expected the same event {position} again; got another. Draw from the lifetime's generator alone."
    return ""


def _arrays(event: Event) -> Iterator[Array]:
    """Yield every array of an event, those of events inside it too."""
    for value in (getattr(event, field.name) for field in fields(event)):
        if isinstance(value, np.ndarray):
            yield value
        elif isinstance(value, Event):
            yield from _arrays(value)


def _digest(moment: Moment) -> str:
    """Return a hash of the arrays and the reward, so that no moment need be held."""
    content = hashlib.sha256(repr(moment[1:]).encode())
    for array in _arrays(moment.event):
        content.update(array.tobytes())
    return content.hexdigest()


def _leak(value: Any) -> str:
    """Return what in a value is neither plain nor an array of its own, or ``""``."""
    if isinstance(value, Event):
        named = type(value).__module__ == Event.__module__
        parts = [getattr(value, field.name) for field in fields(value)]
        return next(filter(None, map(_leak, parts)), "") if named else f"a {type(value).__name__}"
    if type(value) is tuple:
        return next(filter(None, map(_leak, value)), "")
    if type(value) is np.ndarray:
        base = value.base
        own = base is None or (isinstance(base, np.ndarray) and base.size == value.size)
        return "" if own else f"a view into {getattr(base, 'shape', type(base).__name__)}"
    return "" if type(value) in (str, int, float, bool, type(None)) else f"a {type(value).__name__}"


RULES: tuple[Callable[[Stream], str], ...] = (
    scenario_says_what_it_is,
    scenario_settings_have_defaults_and_words,
    a_seed_fixes_the_lifetime,
    its_recipe_is_json,
    a_seeded_reset_rewinds,
    every_event_is_in_the_space,
    tasks_give_the_steps_they_promise,
    targets_are_within_the_classes,
    ids_are_one_per_sample_and_say_nothing,
    events_lead_nowhere,
    nothing_comes_after_the_end,
    a_state_continues_the_lifetime,
    writing_into_events_changes_nothing,
    fingerprints_are_stable,
    gymnasium_accepts_it,
)
