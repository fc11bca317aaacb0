"""A head that grows: rows by name, and learners that have one on a backbone without texts."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import clgym
from clgym.agent import EMBEDDED_VIT
from clgym.errors import RecordError
from clgym.events import Query, TaskEnd, TaskStart, Train
from clgym.head import GrowingHead, TargetHead

CPU = torch.device("cpu")


def grown(*tasks: list[str]) -> GrowingHead:
    head, generator = GrowingHead(3, CPU), torch.Generator().manual_seed(0)
    for names in tasks:
        head.grow(names, generator)
    return head


def test_a_class_keeps_its_row_when_others_come() -> None:
    head = grown(["cat", "dog"])
    before = head.rows(["dog", "cat"]).detach().clone()
    head.grow(["bird", "dog"], torch.Generator().manual_seed(1))
    assert torch.equal(head.rows(["dog", "cat"]), before)
    assert head.groups == [["cat", "dog"], ["bird"]]
    assert (len(head), head.count) == (3, 12)
    assert head.met(["bird", "fish"]).tolist() == [True, False]
    assert head.rows([]).shape == (0, 4)
    assert all(bool((block.abs() <= 3**-0.5).all()) for block in head.blocks)


def test_a_state_brings_back_rows_and_names() -> None:
    head = grown(["cat", "dog"], ["bird"])
    again = GrowingHead(3, CPU)
    again.restore(head.groups, head.state())
    assert torch.equal(again.rows(["bird", "cat"]), head.rows(["bird", "cat"]))
    with pytest.raises(RecordError, match="Expected head rows of 4 values for 2 classes"):
        again.restore([["cat", "dog"]], head.state())


def agent_and_events(agent: str, **settings: Any) -> Any:
    """Return an agent on the tiny vision transformer and the events of two tasks; answers are guessed."""
    env = clgym.make("CLIP-MTIL-v0", tasks=2, steps=3)
    env.unwrapped.scenario.backbone = EMBEDDED_VIT  # type: ignore[attr-defined]
    made: Any = clgym.make_agent(agent, env, device="cpu", **settings)
    event, _ = env.reset(seed=0)
    events, done = [event], False
    while not done:
        event, _, done, _, _ = env.step(env.action_space.sample() if isinstance(event, Query) else None)
        events.append(event)
    return made, events


def test_a_learner_grows_trains_and_answers_with_a_head() -> None:
    agent, events = agent_and_events("sequential_lora")
    queries = [event for event in events if isinstance(event, Query)]
    unmet = agent.act(queries[0])
    assert np.allclose(unmet, -np.log(len(queries[0].candidates)), atol=1e-5)  # no class has a row yet
    train = [event for event in events if not isinstance(event, Query)]
    ends = [i for i, event in enumerate(train) if isinstance(event, TaskEnd)]
    for event in train[: ends[0] + 1]:
        agent.act(event)
    first = next(event for event in train if isinstance(event, TaskStart))
    names = [texts[0] for texts in first.prompts]
    assert list(agent.head.names) == names
    old = agent.head.rows(names).detach().clone()
    for event in train[ends[0] + 1 : ends[1] + 1]:
        agent.act(event)
    # Only the task's own classes compete, so the rows of earlier ones are not moved.
    assert torch.equal(agent.head.rows(names), old)
    images, _ = agent.to_device(queries[0].inputs[:2], None)
    with torch.no_grad():
        rows = agent.head.rows([texts[0] for texts in queries[0].prompts])
        features = agent.backbone.encode_images(images)
        expected = (features @ rows[:, :-1].T + rows[:, -1]).log_softmax(-1)
    some = agent.act(queries[0])[:2]
    assert np.allclose(some, expected.numpy(), atol=1e-4)


def test_classes_that_were_never_taught_get_no_probability() -> None:
    agent, events = agent_and_events("sequential_lora")
    query = next(event for event in events if isinstance(event, Query))
    start = next(event for event in events if isinstance(event, TaskStart))
    agent.act(start)
    prompts = (*query.prompts[:2], ("a photo of a fish.",))
    images, _ = agent.to_device(query.inputs[:3], None)
    with torch.inference_mode():
        p = agent.answering_logits(images, prompts).softmax(-1)
    assert torch.equal(p[:, 2], torch.zeros(3))


def test_distillation_leaves_old_rows_where_they_are() -> None:
    agent, events = agent_and_events("pred_kd", weight=10.0)
    train = [event for event in events if not isinstance(event, Query)]
    second = [i for i, event in enumerate(train) if isinstance(event, TaskStart)][1]
    for event in train[: second + 1]:
        agent.act(event)
    old = agent.head.rows(agent.head.groups[0]).detach().clone()
    batch = next(event for event in train[second:] if isinstance(event, Train))
    agent.act(batch)
    agent.act(batch)
    assert torch.equal(agent.head.rows(agent.head.groups[0]), old)
    images, targets = agent.to_device(batch.inputs, batch.targets)
    plain = F.cross_entropy(agent.logits(images, agent.training_rows(agent.task.prompts)), targets)
    assert (agent.loss(images, targets) > plain).item()


@pytest.mark.parametrize("agent", ["sequential_lora", "codyra", "mora", "l2", "lwf", "replay"])
def test_a_state_on_disk_continues_bit_for_bit(agent: str) -> None:
    first, events = agent_and_events(agent)
    train = [event for event in events if not isinstance(event, Query)]
    query = next(event for event in events if isinstance(event, Query))
    for event in train[:7]:
        first.act(event)
    second, _ = agent_and_events(agent)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for event in train[7:]:
        first.act(event)
        second.act(event)
    assert np.array_equal(first.act(query), second.act(query))


def given(*vectors: tuple[float, ...]) -> TargetHead:
    """Return a head of these vectors, one class each, with ``eta`` of 2."""
    whole = torch.tensor(vectors)
    return TargetHead(2, CPU, lambda names, before: whole[before : before + len(names)], 2.0)


def test_frozen_targets_are_compared_by_scaled_cosine() -> None:
    head = given((1.0, 0.0), (0.0, 1.0))
    head.grow(["cat"], torch.Generator())
    head.grow(["dog", "cat"], torch.Generator())
    features = torch.tensor([[3.0, 4.0]], requires_grad=True)
    logits = head.classify(features, head.rows(["dog", "cat"]))
    assert torch.allclose(logits, torch.tensor([[1.6, 1.2]]))  # 2 * 4 / 5 and 2 * 3 / 5
    assert head.trained() == [head.log_scale]
    assert (head.groups, head.count, head.rows([]).shape) == ([["cat"], ["dog"]], 4, (0, 2))
    (by_scale,) = torch.autograd.grad(logits.sum(), [head.log_scale])
    assert by_scale.item() == pytest.approx(2.8)  # of logits in proportion to eta, by its logarithm


def test_a_state_brings_back_targets_and_scale() -> None:
    head, again = given((1.0, 0.0)), given()
    head.grow(["cat"], torch.Generator())
    with torch.no_grad():
        head.log_scale.fill_(3.0)
    again.restore(head.groups, head.state())
    assert torch.equal(again.rows(["cat"]), head.rows(["cat"]))
    assert len(again.empty()) == 0
    assert again.empty().log_scale.exp().item() == pytest.approx(2.0)
    blocks = {name: value for name, value in head.state().items() if name != "log_scale"}
    with pytest.raises(RecordError, match=r"Expected the scale of a head of frozen targets; got \['block.0'\] alone"):
        again.restore(head.groups, blocks)
