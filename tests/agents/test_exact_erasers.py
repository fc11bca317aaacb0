"""Methods whose erasure is exact: after a request their state is that of the life without the data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from clgym import checkpoint
from clgym.agent_rules import changed
from clgym.counterfactual import without
from clgym.events import EraseEnd, EraseRequest, Train

END = EraseEnd(0)


def differs(a: Any, b: Any, *besides: str) -> str:
    """Return the first entry in which the states of two agents differ."""
    states = [{k: v for k, v in agent.state_dict().items() if k not in besides} for agent in (a, b)]
    return changed(*states)


def restored(case: Any, folder: Any) -> Any:
    """Return a fresh agent with the state of the case's, through disk."""
    checkpoint.write(folder, 0, {"agent": case.agent.state_dict()})
    again = case.fresh()
    again.load_state_dict((checkpoint.read(folder) or {})["agent"])
    return again


@pytest.mark.parametrize("ids", [[0, 1, 9], [8, 10, 12, 14], list(range(8, 16)), list(range(16))])
def test_retraining_is_the_life_without_the_samples(asked: Callable[..., Any], ids: list[int]) -> None:
    case = asked("retrain")
    case.learned()
    case.play(case.request(ids), *case.phase(2, case.batch(ids[:1], [0]), case.batch([8], [2])), END)
    other = case.fresh()
    for event in without([*case.task(0), *case.task(1)], ids):
        other.act(event)
    assert differs(case.agent, other) == ""
    case.play(*case.task(0))
    for event in case.task(0):
        other.act(event)
    assert differs(case.agent, other) == ""


def test_retraining_waits_until_the_request_is_due(asked_vit: Callable[..., Any]) -> None:
    case = asked_vit("retrain")
    case.play(*case.task(0), case.request([0, 8], deadline=3), *case.task(1))
    assert case.agent.named[0].tolist() == [0, 8]
    kept = [i for event in case.agent.kept if isinstance(event, Train) for i in event.ids.tolist()]
    assert kept == list(range(16))
    case.play(END)
    assert not any(np.isin([0, 8], event.ids).any() for event in case.agent.kept if isinstance(event, Train))
    assert not case.agent.named


def test_retraining_changes_nothing_for_unknown_samples(asked_vit: Callable[..., Any]) -> None:
    case = asked_vit("retrain")
    case.learned()
    other = case.fresh()
    for event in (*case.task(0), *case.task(1)):
        other.act(event)
    case.play(case.request([99]), END)
    assert differs(case.agent, other) == ""
    assert case.agent.footprint().sample_bytes == 16 * 32 * 32 * 3


def test_retraining_continues_from_disk_with_a_request_open(asked_vit: Callable[..., Any], tmp_path: Any) -> None:
    case = asked_vit("retrain")
    case.play(*case.task(0), case.request([0, 2, 8], deadline=3), *case.task(1)[:2])
    again = restored(case, tmp_path)
    for event in (*case.task(1)[2:], END):
        case.agent.act(event)
        again.act(event)
    assert differs(case.agent, again) == ""


@pytest.mark.parametrize("gone", [0, 1])
def test_without_its_unit_the_agent_never_had_the_task(asked: Callable[..., Any], gone: int) -> None:
    case = asked("isolated_lora")
    case.learned()
    ids, mine = list(range(8 * gone, 8 * gone + 8)), slice(2 * gone, 2 * gone + 2)
    case.play(case.request(ids, case.classes[mine]), *case.phase(2, case.batch(ids[:1], [2 * gone]), None), END)
    other = case.fresh()
    for event in case.task(1 - gone):
        other.act(event)
    # Which task came last, and that a request came, is remembered; nothing of its data is.
    assert differs(case.agent, other, "task", "gone") == ""
    assert np.array_equal(case.ask(), case.ask(other))
    assert len(case.agent.units) == 1


def test_units_do_not_depend_on_each_other(asked: Callable[..., Any]) -> None:
    one, two = asked("isolated_lora"), asked("isolated_lora")
    one.play(*one.task(0), *one.task(1))
    two.play(*two.task(1), *two.task(0))
    assert all(torch.equal(a.adapter, b.adapter) for a, b in zip(one.agent.units, two.agent.units[::-1], strict=True))
    assert not torch.equal(one.agent.units[0].adapter, one.agent.units[1].adapter)
    assert np.array_equal(one.ask(), two.ask())


def test_each_class_is_judged_by_its_own_unit(asked: Callable[..., Any]) -> None:
    case = asked("isolated_lora")
    agent = case.learned()
    images = torch.from_numpy(case.batch(range(100, 103), [0] * 3).inputs)
    with torch.no_grad():
        found = agent.answering_logits(images, case.prompts)
        for unit, mine in zip(agent.units, (slice(0, 2), slice(2, 4)), strict=True):
            agent.lora.arena().detach().copy_(unit.adapter)
            rows = unit.rows if agent.head is not None else agent.class_rows(case.prompts[mine], True)
            assert torch.allclose(found[:, mine], agent.logits(images, rows), atol=1e-5)


def test_a_class_of_several_units_has_their_mean(asked_vit: Callable[..., Any]) -> None:
    case = asked_vit("isolated_lora")
    case.play(*case.task(0))
    alone = case.agent.answering_logits(torch.zeros(1, 32, 32, 3, dtype=torch.uint8), case.prompts[:2])
    case.agent.units.append(case.agent.units[0])
    both = case.agent.answering_logits(torch.zeros(1, 32, 32, 3, dtype=torch.uint8), case.prompts[:2])
    assert torch.allclose(both, alone)
    assert float(case.ask()[:, 2:].max()) < 1e-6  # classes that nobody met


def test_a_part_is_learned_anew_from_its_own_retained_samples(asked: Callable[..., Any]) -> None:
    case = asked("isolated_lora")
    case.learned()
    before = case.agent.units[1].adapter.clone()
    # Of "cat" and "dog", even ids are cats; 8 is of the other unit, 98 of none.
    retain = case.batch([1, 3, 8, 98], [1, 1, 2, 3])
    case.play(case.request([0, 2, 4, 6], ["cat"]), *case.phase(3, case.batch([0], [0]), retain), END)
    kept, new = case.agent.units
    assert torch.equal(kept.adapter, before)
    assert (new.names, new.ids.tolist()) == ([case.prompts[1][0]], [1, 3])
    assert not case.agent.erasing.teaching
    assert not any(np.isin([0, 2, 4, 6], unit.ids).any() for unit in case.agent.units)
    assert case.agent.state_dict()["left"].numel() == 0


def test_a_part_without_retained_samples_is_gone(asked_vit: Callable[..., Any]) -> None:
    case = asked_vit("isolated_lora")
    case.learned()
    case.play(case.request([0]), *case.phase(2, case.batch([0], [0]), case.batch([8], [2])), END)
    assert [unit.names for unit in case.agent.units] == [[texts[0] for texts in case.prompts[2:]]]
    assert (case.agent.optimizer, case.agent.erasing.teaching) == (None, False)
    assert not case.agent.lora.arena().any()


def test_isolation_continues_from_disk_inside_a_phase(asked: Callable[..., Any], tmp_path: Any) -> None:
    case = asked("isolated_lora")
    case.learned()
    steps = case.phase(4, None, case.batch([1, 3], [1, 1]))
    case.play(case.request([0, 2, 4, 6], ["cat"]), *steps[:2])
    again = restored(case, tmp_path)
    for event in (*steps[2:], END, *case.task(0)):
        case.agent.act(event)
        again.act(event)
    assert differs(case.agent, again) == ""


def test_relearning_is_welcome(asked_vit: Callable[..., Any]) -> None:
    case = asked_vit("isolated_lora")
    case.learned()
    case.play(case.request(range(8), case.classes[:2]), END)
    case.play(EraseRequest(1, "relearn", case.classes[:2], np.empty(0, np.int64), case.classes[:2]), EraseEnd(1))
    case.play(*case.task(0))
    other = case.fresh()
    for event in (*case.task(1), *case.task(0)):
        other.act(event)
    assert differs(case.agent, other, "task") == ""
