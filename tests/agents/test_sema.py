"""SEMA: units that are added where images look new, and a router over them (arXiv:2403.18886)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import clgym
from clgym import agent_rules
from clgym.attention import vision_blocks
from clgym.checkpoint import read, write
from clgym.errors import SettingError
from clgym.events import End, Query, TaskEnd, TaskStart, Train
from clgym.mixture import Units

STREAM = "ViT-CIFAR100-CIL-v0"
CPU = torch.device("cpu")


def units_of(*seeds: int, hidden: int = 2) -> Units:
    """Return units of random parameters, width 4 and bottleneck 3: all frozen."""
    units = Units(4, 3, hidden, CPU)
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        units.add(generator)
        with torch.no_grad():
            for p in units.fresh.values():
                p.copy_(torch.randn(p.shape, generator=generator))
        if hidden:
            units.records = torch.tensor([1.0, 2.0, 3.0])
        units.freeze()
    return units


def stream(tokens: int = 5) -> torch.Tensor:
    return torch.randn(6, tokens, 4, generator=torch.Generator().manual_seed(9))


def adapter(units: Units, k: int, x: torch.Tensor) -> torch.Tensor:
    """Return ``W_up relu(W_down x + b) + b'`` of a frozen unit, step by step."""
    p = {name: value[k] for name, value in units.frozen.items()}
    return (x @ p["down"].T + p["down_bias"]).relu() @ p["up"] + p["up_bias"]


# --- The units of a block -----------------------------------------------------------------------------------


def test_a_single_unit_is_a_plain_adapter() -> None:
    x = stream()
    for hidden in (0, 2):
        units = units_of(0, hidden=hidden)
        assert torch.allclose(units(x), adapter(units, 0, x), atol=1e-6)


def test_several_units_are_mixed_by_the_router_on_the_mean_token() -> None:
    units, x = units_of(0, 1, 2), stream()
    weights = torch.stack([units.frozen["router"][k] for k in range(3)])
    share = (x.mean(1) @ weights.T + units.frozen["router_bias"]).softmax(-1)
    expected = sum(share[:, k, None, None] * adapter(units, k, x) for k in range(3))
    assert torch.allclose(units(x), torch.as_tensor(expected), atol=1e-5)


def test_a_new_unit_says_nothing_and_a_silenced_one_changes_nothing() -> None:
    units, x = units_of(0, 1), stream()
    before = units(x)
    units.add(torch.Generator().manual_seed(5))
    assert units.fresh["up"].abs().max() == 0
    with torch.no_grad():
        units.fresh["router_bias"].fill_(-torch.inf)
    assert torch.allclose(units(x), before, atol=1e-6)
    empty = Units(4, 3, 0, CPU)
    empty.add(torch.Generator().manual_seed(0))
    assert torch.equal(empty(x), torch.zeros_like(x))


def test_a_descriptor_scores_by_its_last_errors() -> None:
    units, x = units_of(0, 1), stream()
    units(x)
    m = x.mean(1)
    for k in range(2):
        p = {name: value[k] for name, value in units.frozen.items()}
        back = (m @ p["encode"].T + p["encode_bias"]) @ p["decode"] + p["decode_bias"]
        errors = (back - m).square().mean(1)
        # The records 1, 2, 3 have mean 2 and deviation 1.
        assert torch.allclose(units.scores()[k], (errors - 2).abs(), atol=1e-5)


def test_of_two_records_nothing_is_known() -> None:
    units = Units(4, 3, 2, CPU)
    units.add(torch.Generator().manual_seed(0))
    units(stream())
    units.records = torch.tensor([1.0, 2.0])
    units.freeze()
    assert torch.equal(units.scores(), torch.zeros(1, 6))


def test_the_last_records_are_kept_and_no_gradient_reaches_the_stream() -> None:
    units, x = Units(4, 3, 2, CPU), stream().requires_grad_()
    units.add(torch.Generator().manual_seed(0))
    units(x)
    for _ in range(3):
        loss = units.describe(keep=8)
    assert torch.equal(units.records, torch.cat([units.errors(units.fresh)[0].detach()] * 2)[4:])
    loss.backward()  # type: ignore[no-untyped-call]
    assert x.grad is None
    assert units.fresh["down"].grad is None
    assert units.fresh["decode"].grad is not None


# --- Growth -------------------------------------------------------------------------------------------------


def first_task(play: Any, steps: int, **settings: Any) -> tuple[Any, list[Any]]:
    """Return an agent and the events of one task in batches of 8, none of which it has seen."""
    stage = play("sema", STREAM, steps=steps, **settings)
    events = []
    while not isinstance(stage.event, TaskEnd):
        events.append(stage.event)
        stage.event = stage.env.step(None)[0]
    few = [
        replace(e, inputs=e.inputs[:8], targets=e.targets[:8], ids=e.ids[:8]) if isinstance(e, Train) else e
        for e in events
        if isinstance(e, TaskStart | Train)
    ]
    return stage.agent, [*few, stage.event]


def sizes(agent: Any) -> list[int]:
    return [len(units) for units in agent.blocks]


def digest(agent: Any) -> list[str]:
    """Return a hash of every frozen tensor's first unit."""
    frozen = [value[:1] for units in agent.blocks for value in units.frozen.values()]
    return [hashlib.sha256(value.numpy().tobytes()).hexdigest() for value in frozen]


def test_the_first_task_again_adds_no_unit(play: Any) -> None:
    agent, events = first_task(play, 30, expandable=3)
    for event in events:
        agent.act(event)
    before, trainable = digest(agent), agent.footprint().trainable
    assert trainable == sum(units.size for units in agent.blocks)
    for event in events:
        agent.act(event)
    assert sizes(agent) == [1, 1, 1, 1]
    assert agent.footprint().trainable == 0
    assert digest(agent) == before


def test_a_shifted_stream_adds_a_unit_to_the_shallowest_block_first(play: Any) -> None:
    agent, events = first_task(play, 30, expandable=3)
    for event in events:
        agent.act(event)
    before, at = digest(agent), agent.footprint()
    # All expandable blocks see the shift, as each hands the stream on.
    vision_blocks(agent.backbone.model)[1].whole.register_forward_pre_hook(lambda block, args: (args[0] + 5.0,))
    for event in events[:3]:  # the start, a scan of one step, and a step of training
        agent.act(event)
    assert sizes(agent) == [1, 2, 1, 1]
    for event in events[3:]:
        agent.act(event)
    assert max(sizes(agent)) == 2  # never more than one in a block
    assert digest(agent) == before
    grown = sum(sizes(agent)) - 4
    one = agent.expandable[0]
    assert agent.footprint().trainable == grown * one.size
    assert agent.footprint().added_at_inference == at.added_at_inference + grown * one.size_at_inference
    assert agent.footprint().stored == at.stored + grown * (one.size + 2)


def test_a_block_that_is_not_expandable_never_grows(play: Any) -> None:
    agent, events = first_task(play, 4, threshold=1e-9)
    for _ in range(3):
        for event in events:
            agent.act(event)
    assert sizes(agent) == [1, 1, 1, 3]


def test_the_steps_that_are_left_are_divided_among_blocks(play: Any) -> None:
    agent, events = first_task(play, 25, expandable=3, threshold=1e-9)
    for event in events:
        agent.act(event)
    phases: list[tuple[bool, int, int]] = []
    for event in events[:-1]:
        agent.act(event)
        if not phases or phases[-1][:2] != (agent.scanning, agent.deeper):
            phases.append((agent.scanning, agent.deeper, agent.length))
    # A scan takes 1 of 25 steps. A third of 24, a half of the 15 after the next scan, and the 7 after the last.
    assert phases == [(True, 0, 1), (False, 1, 8), (True, 1, 1), (False, 2, 7), (True, 2, 1), (False, 3, 7)]


# --- The method in a stream -----------------------------------------------------------------------------------


def test_it_starts_as_the_model_that_was_given(play: Any) -> None:
    agent = play("sema", STREAM).agent
    images = torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    plain = play("simplecil", STREAM).agent
    with torch.no_grad():
        assert torch.equal(agent.encode(images), plain.encode(images))


@pytest.mark.parametrize("scanning", [True, False])
def test_a_state_on_disk_continues_bit_for_bit(play: Any, tmp_path: Any, scanning: bool) -> None:
    settings = {"expandable": 3, "threshold": 1e-9, "scan": 0.2}
    stage, fresh = play("sema", STREAM, steps=12, **settings), play("sema", STREAM, steps=12, **settings).agent
    while not (stage.agent.tasks == 2 and stage.agent.scanning == scanning and stage.agent.left == 1):
        stage.step()
    write(tmp_path, 0, {"agent": stage.agent.state_dict()})
    fresh.load_state_dict((read(tmp_path) or {})["agent"])
    asked: list[Query] = []
    while not isinstance(stage.event, End):
        if isinstance(stage.event, Query):
            asked.append(stage.event)
        else:
            fresh.act(stage.event)
        stage.step()
    assert sizes(fresh) == [1, 2, 2, 2]
    assert np.array_equal(stage.agent.act(asked[-1]), fresh.act(asked[-1]))
    assert agent_rules.changed(stage.agent.state_dict(), fresh.state_dict()) == ""


def test_parameters_on_a_vit_b_16_are_the_papers(on_vit_b_16: Callable[..., Any]) -> None:
    agent = on_vit_b_16("sema")
    adapter, router, descriptor = 25_360, 769, 197_504
    assert [units.size for units in agent.blocks] == [adapter] * 9 + [adapter + router + descriptor] * 3
    assert {units.size_at_inference for units in agent.expandable} == {adapter + router}
    cost = agent.footprint()
    assert cost.trainable == 12 * adapter + 3 * (router + descriptor)
    assert cost.stored == cost.trainable + 2 * 3  # mean and deviation of each descriptor
    assert cost.added_at_inference == 12 * adapter + 3 * router


def test_clip_is_refused() -> None:
    message = (
        r"a backbone without a text encoder for 'sema'; got 'embedded/tiny-clip', where classes are texts .* vision"
    )
    with pytest.raises(SettingError, match=message):
        clgym.make_agent("sema", clgym.make("CLIP-MTIL-v0"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"threshold": 0.0},
            r"descriptor_rate and head_rate above 0 and scan in \(0, 1\); got 0\.0, 2\.0, 10\.0 and 0\.04",
        ),
        (
            {"scan": 1.0},
            r"descriptor_rate and head_rate above 0 and scan in \(0, 1\); got 2\.0, 2\.0, 10\.0 and 1\.0",
        ),
        ({"expandable": 5}, r"3 records or more and 0 to 4 expandable blocks; got 16, 0, 500 and 5\. The paper"),
        ({"records": 2}, r"3 records or more and 0 to 4 expandable blocks; got 16, 0, 2 and 0\. The paper"),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        clgym.make_agent("sema", clgym.make(STREAM), device="cpu", **settings)
