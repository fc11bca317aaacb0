"""LingoCL: frozen language targets under any host (arXiv:2403.16124)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import clgym
from clgym import agent_rules
from clgym.agent import Setup
from clgym.agents.lingocl import orthonormal
from clgym.backbones import load_clip
from clgym.checkpoint import read, write
from clgym.errors import NotRegisteredError, SettingError
from clgym.events import End, Query, TaskEnd, TaskStart, Train
from clgym.grid import axes, cell
from clgym.head import GrowingHead
from clgym.registry import find
from clgym.settings import chosen

STREAM = "ViT-CIFAR100-CIL-v0"


def test_targets_never_move_and_take_no_gradient(play: Any) -> None:
    stage = play("lingocl", STREAM, **{"host.lr": 0.1})
    event, host = stage.until(Train, 2), stage.agent.host
    (first,) = host.head.blocks
    before = first.detach().clone()
    host.loss(*host.to_device(event.inputs, event.targets)).backward()
    assert not first.requires_grad
    assert first.grad is None
    assert host.head.log_scale.grad.abs() > 0
    stage.to_the_end()
    assert torch.equal(host.head.blocks[0], before)
    assert [tuple(block.shape) for block in host.head.blocks] == [(10, 96), (10, 96)]
    assert host.head.log_scale.exp().item() != pytest.approx(16, rel=1e-3)


def test_logits_of_old_classes_stay_when_a_task_is_added(play: Any) -> None:
    stage = play("lingocl", STREAM)
    names = [texts[0] for texts in stage.until(TaskStart).prompts]
    stage.step()
    head, features = stage.agent.host.head, torch.randn(5, 96, generator=torch.Generator().manual_seed(0))
    before = head.classify(features, head.rows(names))
    head.grow(["a photo of a forest.", "a photo of a highway."], torch.Generator())
    assert len(head) == 12
    assert torch.equal(head.classify(features, head.rows(names)), before)


def test_targets_keep_the_cosines_of_the_texts(play: Any) -> None:
    stage = play("lingocl", STREAM)
    names = [texts[0] for texts in stage.until(TaskStart).prompts]
    stage.step()
    s = stage.agent.host.head.blocks[0]
    with torch.no_grad():
        texts = load_clip("embedded/tiny-clip", "cpu").encode_texts(names)
    # The texts have 64 numbers, the features 96: a map with orthonormal columns keeps every product.
    assert torch.allclose(s @ s.T, texts @ texts.T, atol=1e-5)


def test_texts_that_are_longer_than_the_features_are_brought_down(play: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    given = F.normalize(torch.randn(3, 200, generator=torch.Generator().manual_seed(0)), dim=-1)
    monkeypatch.setattr("clgym.agents.lingocl.encode", lambda encoder, names, device: given)
    agent = play("lingocl", STREAM).agent
    s = agent.words(["a", "b", "c"], 0)
    rows = orthonormal(200, 96, torch.Generator().manual_seed(agent.seed)).T  # orthonormal rows
    assert s.shape == (3, 96)
    assert torch.allclose(s, F.normalize(given @ rows.T, dim=-1), atol=1e-6)


def test_random_targets_are_orthonormal_and_go_on_with_another_basis(play: Any) -> None:
    agent = play("lingocl", STREAM, targets="random").agent
    whole = agent.directions([""] * 150, 0)
    for basis in (whole[:96], whole[96:]):
        assert torch.allclose(basis @ basis.T, torch.eye(len(basis)), atol=1e-5)
    assert (whole[:96] @ whole[96:].T).abs().max() > 0.1
    # Whatever the division into tasks, the n-th class has the n-th direction.
    assert torch.equal(torch.cat([agent.directions([""] * 90, 0), agent.directions([""] * 60, 90)]), whole)


def test_with_the_hosts_own_head_it_is_the_host(play: Any) -> None:
    wrapped, alone = play("lingocl", STREAM, host="replay"), play("replay", STREAM)
    wrapped.agent.host.head = GrowingHead(96, torch.device("cpu"))
    for stage in (wrapped, alone):
        stage.until(TaskEnd, 2)
        query = stage.until(Query)
    assert np.array_equal(wrapped.agent.act(query), alone.agent.act(query))
    assert agent_rules.changed(wrapped.agent.state_dict(), alone.agent.state_dict()) == ""
    assert wrapped.agent.footprint() == alone.agent.footprint()


def test_settings_of_the_host_reach_it(play: Any) -> None:
    agent = play("lingocl", STREAM, host="replay", **{"host.lr": 0.5, "host.size": 7}).agent
    assert (type(agent.host).__name__, agent.host.lr, agent.host.memory.size) == ("Replay", 0.5, 7)


def test_the_command_line_knows_the_hosts_settings() -> None:
    read = chosen("agents", "lingocl", ["host.size=7", "host=replay"])
    assert read == {"host": "replay", "host.size": 7}
    assert chosen("agents", "lingocl", ["host.size=7", 'host="replay"']) == read  # as a sweep passes it on
    assert cell(STREAM, "lingocl", agent_settings=read).agent_settings == read
    assert cell(STREAM, "lingocl", agent_settings={"host": "replay", "host.size": 200}).agent_settings == {
        "host": "replay"
    }
    played = ["lingocl-v0", "replay-v0"]
    assert axes("agents", played, ["lingocl:host.size=7,8", "lingocl:host=replay", "replay:size=9"]) == {
        "lingocl-v0": {"host": ["replay"], "host.size": [7, 8]},
        "replay-v0": {"size": [9]},
    }
    with pytest.raises(SettingError, match=r"setting of lingocl; got 'host\.sizes'\. Did you mean 'host\.size'\?"):
        chosen("agents", "lingocl", ["host=replay", "host.sizes=7"])
    with pytest.raises(NotRegisteredError, match=r"Expected a registered agent; got 'replai'\. Did you mean 'replay"):
        chosen("agents", "lingocl", ["host=replai"])


@pytest.mark.parametrize("host", ["replay", "single_task", "l2p"])
def test_a_state_on_disk_continues_bit_for_bit(play: Any, host: str, tmp_path: Any) -> None:
    stage, fresh = play("lingocl", STREAM, host=host), play("lingocl", STREAM, host=host).agent
    stage.until(Train, 6)
    write(tmp_path, 0, {"agent": stage.agent.state_dict()})
    fresh.load_state_dict((read(tmp_path) or {})["agent"])
    asked: list[Query] = []
    while not isinstance(stage.event, End):
        if isinstance(stage.event, Query):
            asked.append(stage.event)
        else:
            fresh.act(stage.event)
        stage.step()
    assert np.array_equal(stage.agent.act(asked[-1]), fresh.act(asked[-1]))
    assert agent_rules.changed(stage.agent.state_dict(), fresh.state_dict()) == ""


def refused(message: str, **settings: Any) -> None:
    with pytest.raises(SettingError, match=message):
        clgym.make_agent("lingocl", clgym.make(STREAM), device="cpu", **settings)


def test_settings_out_of_range() -> None:
    refused(r"Expected targets to be one of \('text', 'random'\); got 'word'\. Choose one of these\.", targets="word")
    refused(r"Expected scale above 0; got 0\. Try 16\.", scale=0)
    refused(r"setting of lingocl-v0; got 'host\.sizes'\. Did you mean", **{"host.sizes": 3})


def test_hosts_without_a_head_of_their_own_to_give_up() -> None:
    refused(r"a host that trains a head by gradient; got random_guess-v0\. Choose another", host="random_guess")
    refused(r"a host that trains a head by gradient; got lingocl-v0\. Choose another", host="lingocl")
    refused(r"a host that trains a head by gradient; got simplecil-v0\. Choose another", host="simplecil")
    refused(r"leaves given vectors as they are; got slca-v0, which aligns the head's rows after each", host="slca")
    refused(r"Expected a backbone that reads texts for 'zero_shot'; got 'embedded/tiny-vit'", host="zero_shot")


def test_clip_is_refused() -> None:
    message = r"a backbone without a text encoder for 'lingocl'; got 'embedded/tiny-clip', where classes are texts"
    with pytest.raises(SettingError, match=message):
        clgym.make_agent("lingocl", clgym.make("CLIP-MTIL-v0"))


def test_nobody_builds_the_host() -> None:
    kind = find("agents", "lingocl").load()
    with pytest.raises(SettingError, match=r"Expected a setup that builds the host; got one without build\. Make"):
        kind(Setup("image", (32, 32, 3), "embedded/tiny-vit", device="cpu"))


def test_it_costs_what_its_host_costs(on_vit_b_16: Callable[..., Any]) -> None:
    agent, host = on_vit_b_16("lingocl", **{"host.r": 8}), on_vit_b_16("sequential_lora", r=8)
    # Six linears of 12 blocks: q, k, v and out 768 to 768, fc 768 to 3072 and back.
    assert agent.footprint() == host.footprint()
    assert agent.footprint().trainable == 12 * 8 * (4 * (768 + 768) + 2 * (768 + 3072))
    agent.host.head.targets = lambda names, before: torch.zeros(len(names), 768)
    agent.host.head.grow([f"class {c}" for c in range(100)], torch.Generator())
    assert agent.host.head.count == 100 * 768
