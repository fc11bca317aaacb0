"""DER++ and ER-ACE: what each term is, what is stored, and whom a new batch leaves alone."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import clgym
from clgym.errors import SettingError
from clgym.events import TaskEnd, TaskStart, Train
from tests.agents.conftest import Play

SCENES = ("CLIP-MTIL-v0", "CLIP-XTAIL-v0", "ViT-CIFAR100-CIL-v0")


@pytest.mark.parametrize("scenario", SCENES)
def test_stored_logits_are_what_was_said_and_never_change(scenario: str) -> None:
    play = Play("der_pp", scenario, size=1000)
    event = play.until(Train)
    images, _ = play.agent.to_device(event.inputs, event.targets)
    hidden = play.agent.task.task is None
    with torch.no_grad():
        said = play.agent.logits(images, play.agent.training_rows(play.agent.task.prompts))
    play.step()
    memory = play.agent.memory
    assert torch.allclose(memory["logits"][: len(images)], said, atol=1e-4)
    play.until(TaskEnd, 2)
    classes = len(play.agent.memory.union()[0]) if hidden else max(len(p) for p in memory.prompts)
    assert memory["logits"].shape == (8 * len(images), classes)
    kept = memory["logits"][: len(images)]
    assert torch.allclose(kept[:, : said.shape[1]], said, atol=1e-4)
    assert kept[:, said.shape[1] :].isnan().all()
    assert memory["logits"][-1].isnan().sum() == (0 if hidden else classes - len(memory.prompts[-1]))


def test_without_weights_it_is_sequential_lora_step_by_step() -> None:
    ends = []
    for play in (
        Play("der_pp", "CLIP-MTIL-v0", size=1000, alpha=0.0, beta=0.0, lr=1e-3),
        Play("sequential_lora", "CLIP-MTIL-v0", lr=1e-3),
    ):
        play.until(TaskEnd)
        ends.append(play.agent.lora.arena().detach().clone())
    assert torch.equal(*ends)


@pytest.mark.parametrize("scenario", SCENES)
def test_what_was_just_stored_is_no_reason_to_move(scenario: str) -> None:
    play = Play("der_pp", scenario, size=1000, alpha=5.0, beta=0.0)
    event = play.until(Train)
    agent = play.agent
    images, targets = agent.to_device(event.inputs, event.targets)
    plain = agent.loss(images, targets)
    agent.memory.add(images, targets, torch.from_numpy(event.ids), logits=agent._said)
    assert float(agent.loss(images, targets).detach()) == pytest.approx(float(plain.detach()), rel=1e-5)


@pytest.mark.parametrize("scenario", SCENES)
def test_der_pp_against_its_definition(scenario: str) -> None:
    play = Play("der_pp", scenario, size=20, alpha=0.7, beta=0.4)
    images, targets = play.batch(6)
    agent, memory = play.agent, play.agent.memory
    hidden = agent.task.task is None
    state = agent.generator.get_state()
    loss = float(agent.loss(images, targets).detach())
    agent.generator.set_state(state)

    def told(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, int]:
        """Return logits and labels of stored samples, one by one, each among the classes that count for it."""
        prompts, places = memory.union()
        found, labels = [], []
        for row in rows.tolist():
            task = int(memory["tasks"][row])
            classes = prompts if hidden else memory.prompts[task]
            found.append(agent.logits(memory["images"][row : row + 1], agent.training_rows(classes))[0])
            target = int(memory["targets"][row])
            labels.append(int(places[task][target]) if hidden else target)
        return torch.stack(found), torch.tensor(labels), len(found[0])

    with torch.no_grad():
        mine = places[1][targets] if (places := memory.union()[1]) and hidden else targets
        classes = memory.union()[0] if hidden else agent.task.prompts
        expected = F.cross_entropy(agent.logits(images, agent.training_rows(classes)), mine)
        rows = memory.rows(len(images), mixed=hidden)
        logits, _, width = told(rows)
        pairs = [(a - b) ** 2 for a, b in zip(logits.flatten(), memory["logits"][rows, :width].flatten(), strict=True)]
        known = [float(pair) for pair in pairs if not pair.isnan()]
        assert hidden == (len(known) < len(pairs))
        expected += 0.7 * sum(known) / len(known)
        rows = memory.rows(len(images), mixed=hidden)
        logits, labels, _ = told(rows)
        expected += 0.4 * F.cross_entropy(logits, labels)
    assert loss == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("scenario", SCENES)
def test_er_ace_against_its_definition(scenario: str) -> None:
    play = Play("er_ace", scenario, size=20, weight=0.6)
    images, targets = play.batch(6)
    images, targets = images[:4], targets[:4]
    agent, memory = play.agent, play.agent.memory
    hidden = agent.task.task is None
    state = agent.generator.get_state()
    loss = float(agent.loss(images, targets).detach())
    agent.generator.set_state(state)
    with torch.no_grad():
        present = sorted(set(targets.tolist()))
        rows = agent.training_rows(tuple(agent.task.prompts[c] for c in present))
        labels = torch.tensor([present.index(target) for target in targets.tolist()])
        expected = F.cross_entropy(agent.logits(images, rows), labels)
        old, labels, prompts = memory.draw_mixed(4) if hidden else memory.draw(4)
        expected += 0.6 * F.cross_entropy(agent.logits(old, agent.training_rows(prompts)), labels)
    assert loss == pytest.approx(float(expected), rel=1e-4)


def test_a_new_batch_leaves_the_classes_alone_that_it_lacks() -> None:
    play = Play("er_ace", "ViT-CIFAR100-CIL-v0", weight=0.0)
    images, targets = play.batch(6)
    agent = play.agent
    old, new = torch.autograd.grad(agent.loss(images[:4], targets[:4]), list(agent.head.blocks))
    assert not old.any()
    moved = new.abs().sum(1) > 0
    assert {i for i, is_moved in enumerate(moved.tolist()) if is_moved} == set(targets[:4].tolist())


def test_the_memory_sets_old_classes_against_new_ones() -> None:
    play = Play("er_ace", "ViT-CIFAR100-CIL-v0")
    images, targets = play.batch(6)
    agent = play.agent
    gradients = torch.autograd.grad(agent.loss(images, targets), list(agent.head.blocks))
    assert all(gradient.abs().sum(1).min() > 0 for gradient in gradients)


@pytest.mark.parametrize("agent", ["der_pp", "er_ace"])
def test_footprints(agent: str) -> None:
    play = Play(agent, "CLIP-XTAIL-v0", size=20)
    play.until(TaskStart, 2)
    cost = play.agent.footprint()
    classes = len(play.agent.memory.prompts[0])
    assert cost.trainable == play.agent.lora.trainable_count
    assert cost.sample_bytes == 20 * 32 * 32 * 3
    assert cost.stored == (20 * classes if agent == "der_pp" else 0)


@pytest.mark.parametrize(
    ("agent", "settings", "words"),
    [
        ("der_pp", {"alpha": -1}, "Expected size of 1 or more, and alpha and beta of 0 or more; got 200, -1 and 0.5."),
        ("er_ace", {"size": 0}, "Expected size of 1 or more and weight of 0 or more; got 0 and 1.0. Try 200 and 1."),
    ],
)
def test_settings_out_of_range(agent: str, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingError, match=re.escape(words)):
        clgym.make_agent(agent, clgym.make("CLIP-MTIL-v0"), **settings)
