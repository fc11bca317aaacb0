"""What an agent keeps: each function is a rule, named by what must hold, and returns what is wrong or ``""``."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from copy import deepcopy
from dataclasses import fields, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clgym import checkpoint
from clgym.agent import Agent, AgentSpec, Setup
from clgym.env import ContinualEnv
from clgym.errors import UnsupportedEventError
from clgym.events import Event, Query, TaskEnd, Train
from clgym.registry import wrapping
from clgym.scenario_rules import fault_of_settings, fault_of_spec, walk

QUESTIONS = 8  # questions of a query that an agent is asked again and again


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
        setup = Setup(about.spec.modality, about.shape, about.backbone, 0, self.device)
        return self.kind(wrapping(setup, {}))

    @cached_property
    def events(self) -> list[Event]:
        """The stream's events; of each query the first few questions."""
        return [_part(moment.event, slice(QUESTIONS)) for moment in walk(self.env, 2**31)]

    @cached_property
    def pauses(self) -> tuple[int, ...]:
        """Positions before any event, at a random ``Train`` event inside a task, and at a task's end."""
        after = list(zip(self.events, self.events[1:], strict=False))
        inside = [k for k, (a, b) in enumerate(after, 1) if isinstance(a, Train) and isinstance(b, Train)]
        ends = [k for k, (a, _) in enumerate(after, 1) if isinstance(a, TaskEnd)]
        return 0, int(np.random.default_rng(0).choice(inside)), ends[0]

    @cached_property
    def played(self) -> tuple[list[Any], dict[int, dict[str, Any]], Agent]:
        """The answers of a lifetime, the states on disk at the pauses and the end, and the agent."""
        agent, states = self.fresh(), {}
        answers = []
        for position, event in enumerate(self.events):
            if position in self.pauses:
                states[position] = _through_disk(agent)
            answers.append(agent.act(event))
        return answers, states | {-1: _through_disk(agent)}, agent

    @cached_property
    def paused(self) -> tuple[Agent, Query]:
        """Return an agent in the midst of a task, and the query with most questions, the last if several."""
        agent = self.fresh()
        for event in self.events[: self.pauses[1]]:
            agent.act(event)
        queries = [event for event in self.events if isinstance(event, Query)]
        return agent, max(reversed(queries), key=lambda query: len(query.inputs))


def agent_says_what_it_is(trial: Trial) -> str:
    """Its spec is an AgentSpec with a title, an id that ends in ``-vN``, and a paper unless it is a baseline."""
    spec, modality = trial.kind.spec, trial.env.scenario.spec.modality
    if fault := fault_of_spec(spec, AgentSpec, ("id", "title", "family")):
        return fault
    if not spec.paper and spec.family != "baseline":
        return "Expected a paper, or family='baseline'; got neither. Give the paper's arXiv id or DOI."
    if modality not in spec.modalities:
        return f"Expected modalities with {modality!r}; got {spec.modalities}. Check it with another scenario=."
    return ""


def agent_settings_have_defaults_and_words(trial: Trial) -> str:
    """Every argument after ``setup`` is a keyword with a JSON default and a sentence in the class's ``Args``."""
    return fault_of_settings(trial.kind, 1)


def it_plays_to_the_end(trial: Trial) -> str:
    """Its answers are valid, it answers nothing else, and it leaves the events as they were."""
    agent = trial.fresh()
    event, _ = trial.env.reset(seed=0)
    done = False
    while not done:
        before = deepcopy(event)
        answer = agent.act(event)
        if event != before:
            return f"Expected the {type(event).__name__} event as it was; got it changed. Work on copies."
        event, _, done, _, _ = trial.env.step(answer)
    return "" if agent.act(event) is None else "Expected None to End; got an answer. Answer Query events only."


def the_same_seed_gives_the_same_answers(trial: Trial) -> str:
    """All randomness comes from ``setup.seed``, none from global generators."""
    agent = trial.fresh()
    if _same([agent.act(event) for event in trial.events], trial.played[0]):
        return ""
    return "Expected the same answers from the same seed; got others. Draw from a generator of setup.seed alone."


def answering_changes_nothing(trial: Trial) -> str:
    """The same query gets the same answer twice, and ``state_dict`` is the same before and after."""
    agent, query = trial.paused
    before = _through_disk(agent)
    if not _same(agent.act(query), agent.act(query)):
        return "Expected the same answer to the same query; got another. Draw nothing while answering."
    if name := changed(before, _through_disk(agent)):
        return f"Expected answering to change no state; got another {name!r}. Answer without learning."
    return ""


def looking_inside_changes_nothing(trial: Trial) -> str:
    """``features`` and ``activations`` have one row per input, and they and ``matrices`` leave the agent as it is."""
    agent, query = trial.paused
    before, answer, rows = _through_disk(agent), agent.act(query), len(query.inputs)
    features, layers = agent.features(query.inputs), agent.activations(query.inputs)
    for name, array in [("features", features), *(("activations", layer) for layer in layers or ())]:
        if array is not None and (array.ndim != 2 or len(array) != rows or array.dtype.kind != "f"):
            found = f"{array.dtype} of shape {array.shape}"
            return f"Expected {name} as floats with one row for each of {rows} inputs; got {found}. Flatten the rest."
    norms = [float(np.linalg.norm(matrix)) for matrix in agent.matrices() or ()]
    if not np.isfinite(norms).all():
        return f"Expected finite weights; got norms {norms}. Lower the learning rate, or offer no matrices."
    if name := changed(before, _through_disk(agent)):
        return f"Expected a look inside to change no state; got another {name!r}. Encode without learning."
    if not _same(answer, agent.act(query)):
        return "Expected the same answer after a look inside; got another. Remove every hook."
    return ""


def answers_do_not_depend_on_the_batch(trial: Trial) -> str:
    """A question gets the same answer, within 1e-4, alone, among others and in any order."""
    agent, query = trial.paused
    whole: Any = agent.act(query)
    for how, part in {"backwards": slice(None, None, -1), "alone": slice(1), "in part": slice(1, None)}.items():
        answer: Any = agent.act(_part(query, part))
        numbers = isinstance(whole, np.ndarray)
        if not (np.allclose(answer, whole[part], rtol=0, atol=1e-4) if numbers else answer == whole[part]):
            return f"Expected the same answers asked {how}; got others. Take no statistics of a query's batch."
    return ""


def a_state_continues_bit_for_bit(trial: Trial) -> str:
    """A fresh agent given a state from disk goes on as the first did: from the start, inside a task, between tasks."""
    answers, states, _ = trial.played
    # Each goes as far as the next pause: what a state lacks is missed behind the pause before its use.
    for position, stop in pairwise([*sorted(trial.pauses), len(trial.events)]):
        agent = trial.fresh()
        agent.load_state_dict(states[position])
        if not _same([agent.act(event) for event in trial.events[position:stop]], answers[position:stop]):
            return f"Expected the same answers after event {position}; got others. Add to state_dict what is missing."
        if name := changed(states.get(stop, states[-1]), _through_disk(agent)):
            return f"Expected the same state from event {position} to {stop}; got another {name!r}. Restore it."
    return ""


def its_footprint_counts(trial: Trial) -> str:
    """``footprint()`` holds whole numbers of 0 or more, and samples exactly if the spec says that they are stored."""
    cost, stores = trial.played[2].footprint(), trial.kind.spec.stores_samples
    for field in fields(cost):
        value = getattr(cost, field.name)
        if type(value) is not int or value < 0:
            return f"Expected {field.name} to be an int of 0 or more; got {value!r}. Count parameters or bytes."
    if stores == (cost.sample_bytes > 0):
        return ""
    return f"Expected sample_bytes to fit stores_samples={stores}; got {cost.sample_bytes}. Correct either."


def it_refuses_what_it_does_not_know(trial: Trial) -> str:
    """An event of an unknown kind raises UnsupportedEventError, so that no request is met by silence."""
    try:
        trial.fresh().act(Event())
    except UnsupportedEventError:
        return ""
    return "Expected UnsupportedEventError for an unknown event; got none. Hand it on to Agent.act."


def _part(event: Event, part: slice) -> Event:
    """Return a query with some of its questions; any other event as it is."""
    if not isinstance(event, Query):
        return event
    inputs = event.inputs[part]
    return replace(event, inputs=inputs if isinstance(inputs, tuple) else np.ascontiguousarray(inputs))


def _same(a: Any, b: Any) -> bool:
    """Whether two answers, or lists of them, are the same in every bit."""
    if isinstance(a, list):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and np.array_equal(a, b)
    return bool(a == b)


def _through_disk(agent: Agent) -> dict[str, Any]:
    """Return an agent's state as a run finds it again: written to a checkpoint and read."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint.write(Path(folder), 0, {"agent": agent.state_dict()})
        return (checkpoint.read(Path(folder)) or {}).get("agent", {})


def changed(before: dict[str, Any], after: dict[str, Any]) -> str:
    """Return the name of the first entry in which two states differ, or ``""``."""
    for name in sorted(before.keys() | after.keys()):
        a, b = before.get(name), after.get(name)
        if type(a) is not type(b):
            return name
        if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
            a, b = ((t.dtype, t.shape, t.flatten().view(torch.uint8).numpy().tobytes()) for t in (a, b))
        elif isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
            a, b = ((array.dtype, array.shape, array.tobytes()) for array in (a, b))
        if a != b:
            return name
    return ""


RULES: tuple[Callable[[Trial], str], ...] = (
    agent_says_what_it_is,
    agent_settings_have_defaults_and_words,
    it_plays_to_the_end,
    the_same_seed_gives_the_same_answers,
    answering_changes_nothing,
    looking_inside_changes_nothing,
    answers_do_not_depend_on_the_batch,
    a_state_continues_bit_for_bit,
    its_footprint_counts,
    it_refuses_what_it_does_not_know,
)
