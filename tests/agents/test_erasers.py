"""The methods made to forget: each loss against its definition, and what a phase does and leaves alone."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from clgym.errors import SettingError
from clgym.events import EraseEnd, EraseRequest

END = EraseEnd(0)
ERASERS = ("finetune_retain", "gradient_ascent", "random_label", "scrub", "lirf", "fdr")
EACH = pytest.mark.parametrize("agent", ERASERS)


def in_phase(case: Any) -> tuple[Any, Any, Any]:
    """Play until two steps of a phase were taken; return the agent and both batches on the device."""
    gone, kept = case.batch([0, 2], [0, 0]), case.batch([1, 8, 9], [1, 2, 3])
    agent = case.learned()
    case.play(case.request([0, 2], ["cat"]), *case.phase(6, gone, kept)[:2])
    return agent, agent._batch(gone), agent._batch(kept)


def logits(agent: Any, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits over the four classes, now and with the adapters' branches off."""
    rows = agent.class_rows(agent._now().prompts, ensemble=False)
    now = agent.classify(agent.encode(images), rows)
    kept = [layer.Bt.detach().clone() for _, layer in agent.lora.layers]
    for _, layer in agent.lora.layers:
        layer.Bt.detach().zero_()
    then = agent.classify(agent.encode(images), rows)
    for (_, layer), branch in zip(agent.lora.layers, kept, strict=True):
        layer.Bt.detach().copy_(branch)
    assert not torch.allclose(now, then, atol=1e-4)
    return now, then


@EACH
def test_a_phase_changes_the_image_encoder_and_no_class(asked: Callable[..., Any], agent: str) -> None:
    case = asked(agent, erase_lr=1e-2)
    case.learned()
    case.agent.lora.merge_()
    before = {name: layer.base.weight.clone() for name, layer in case.agent.lora.layers}
    rows = case.agent.class_rows(case.prompts, ensemble=False).clone()
    case.play(case.request([0], ["cat"]), *case.phase(4, case.batch([0], [0]), case.batch([8], [2])), END)
    moved = {name for name, layer in case.agent.lora.layers if not torch.equal(layer.base.weight, before[name])}
    assert moved == case.agent.trained
    assert not any(name.startswith("transformer.") for name in moved)
    assert torch.equal(case.agent.class_rows(case.prompts, ensemble=False), rows)
    assert (case.agent.in_phase, case.agent.optimizer) == (False, None)


@EACH
def test_a_task_after_a_request_trains_everything_again(asked_vit: Callable[..., Any], agent: str) -> None:
    case = asked_vit(agent, erase_lr=1e-2)
    case.play(*case.task(0), case.request([0]), *case.phase(2, case.batch([0], [0]), case.batch([1], [1])), END)
    case.play(*case.task(1)[:2])
    learner = case.agent
    assert all(p.requires_grad for p in learner.lora.parameters())
    assert (learner.lr, learner.weight_decay, learner.head_share) == (1e-3, 0.0, 1.0)
    assert all(layer.Bt.any() for _, layer in learner.lora.layers)


@EACH
@pytest.mark.parametrize("granted", [(True, True), (True, False), (False, True), (False, False)])
def test_whatever_is_granted_is_used(asked_vit: Callable[..., Any], agent: str, granted: tuple[bool, bool]) -> None:
    case = asked_vit(agent, erase_lr=1e-2)
    case.learned()
    before = case.ask()
    gone, kept = case.batch([0], [0]), case.batch([8], [2])
    case.play(case.request([0]), *case.phase(4, gone if granted[0] else None, kept if granted[1] else None), END)
    uses = {"finetune_retain": granted[1], "gradient_ascent": granted[0]}.get(agent, any(granted))
    assert np.array_equal(case.ask(), before) == (not uses)


@EACH
def test_the_state_continues_inside_a_phase(asked: Callable[..., Any], agent: str) -> None:
    case = asked(agent)
    case.learned()
    steps = case.phase(4, case.batch([0, 2], [0, 0]), case.batch([8, 9], [2, 3]))
    case.play(case.request([0, 2], ["cat"]), *steps[:2])
    again = case.fresh()
    again.load_state_dict({key: v.clone() if torch.is_tensor(v) else v for key, v in case.agent.state_dict().items()})
    for event in (*steps[2:], END, *case.task(0)):
        case.agent.act(event)
        again.act(event)
    assert np.array_equal(case.ask(), case.ask(again))


def test_all_are_one_model_until_the_first_request(asked_vit: Callable[..., Any]) -> None:
    names = (*ERASERS, "gs_lora", "gs_lora_pp", "noop_eraser", "mask_logits", "retrain")
    answers = []
    for name in names:
        case = asked_vit(name)
        case.learned()
        answers.append(case.ask())
    assert all(np.array_equal(answer, answers[0]) for answer in answers)


def test_a_request_without_a_phase_changes_nothing(asked_vit: Callable[..., Any]) -> None:
    case = asked_vit("scrub")
    case.learned()
    before = case.ask()
    case.play(EraseRequest(0, "sample", ("99",), np.array([99])), END)
    assert np.array_equal(case.ask(), before)


def test_finetuning_is_the_cross_entropy_among_all_classes(asked: Callable[..., Any]) -> None:
    agent, gone, kept = in_phase(asked("finetune_retain"))
    with torch.no_grad():
        now, _ = logits(agent, kept[0])
        assert now.shape == (3, 4)
        assert float(agent.erasure_loss(gone, kept)) == pytest.approx(float(F.cross_entropy(now, kept[1])), rel=1e-5)
    assert agent.erasure_loss(gone, None) is None


@pytest.mark.parametrize("share", [0.0, 0.75])
def test_ascent_climbs_what_is_to_be_forgotten(asked: Callable[..., Any], share: float) -> None:
    agent, gone, kept = in_phase(asked("gradient_ascent", share=share))
    with torch.no_grad():
        losses = [float(F.cross_entropy(logits(agent, x)[0], y)) for x, y in (gone, kept)]
        expected = share * losses[1] - (1 - share) * losses[0]
        assert float(agent.erasure_loss(gone, kept)) == pytest.approx(expected, rel=1e-5)


def test_ascent_raises_the_loss(asked_vit: Callable[..., Any]) -> None:
    case = asked_vit("gradient_ascent", erase_lr=1e-3)
    agent, gone, _ = in_phase(case)
    before = float(agent.ce(gone).detach())
    case.play(*case.phase(6, case.batch([0, 2], [0, 0]))[2:])
    assert float(agent.ce(gone).detach()) > before + 0.1


def test_other_labels_are_uniform_over_what_remains(asked_vit: Callable[..., Any]) -> None:
    agent, _, _ = in_phase(asked_vit("random_label"))
    drawn = agent.other_labels(torch.full((3000,), 0))
    assert sorted(set(drawn.tolist())) == [1, 2, 3]  # "cat" is to go
    assert (drawn.bincount(minlength=4)[1:] / 3000).allclose(torch.tensor(1 / 3), atol=0.04)
    assert set(agent.other_labels(torch.full((200,), 2)).tolist()) == {1, 3}


def test_random_labels_and_retained_ones_are_learned_alike(asked: Callable[..., Any]) -> None:
    agent, gone, kept = in_phase(asked("random_label"))
    drawn = torch.tensor([3, 1])
    agent.other_labels = lambda targets: drawn
    with torch.no_grad():
        wrong = F.cross_entropy(logits(agent, gone[0])[0], drawn)
        right = F.cross_entropy(logits(agent, kept[0])[0], kept[1])
        assert float(agent.erasure_loss(gone, kept)) == pytest.approx(float(wrong + right), rel=1e-5)


def test_fdr_holds_the_logits_of_what_remains(asked: Callable[..., Any]) -> None:
    agent, gone, kept = in_phase(asked("fdr", weight=0.5, erase_lr=1e-2))
    drawn = torch.tensor([3, 1])
    agent.other_labels = lambda targets: drawn
    with torch.no_grad():
        now, then = logits(agent, kept[0])
        wrong = F.cross_entropy(logits(agent, gone[0])[0], drawn)
        distance = (now - then).square().sum(1).sqrt().mean()
        assert float(agent.erasure_loss(gone, kept)) == pytest.approx(float(wrong + 0.5 * distance), rel=1e-4)


def test_scrub_goes_up_and_down_in_turn_and_then_down(asked: Callable[..., Any]) -> None:
    agent, gone, kept = in_phase(asked("scrub", alpha=0.3, gamma=0.7, temperature=2.0, ascent=0.5, erase_lr=1e-2))
    with torch.no_grad():
        parts = []
        for images, _ in (gone, kept):
            now, then = (x.div(2.0).softmax(1) for x in logits(agent, images))
            parts.append(4.0 * float((then * (then / now).log()).sum(1).mean()))
        ce = float(F.cross_entropy(logits(agent, kept[0])[0], kept[1]))
        up, down = -parts[0], 0.7 * ce + 0.3 * parts[1]
        found = []
        for agent.step in range(6):
            found.append(float(agent.erasure_loss(gone, kept)))
    assert found == pytest.approx([up, down, up, down, down, down], rel=1e-3)


def test_lirf_pushes_features_and_keeps_the_logits_of_what_remains(asked: Callable[..., Any]) -> None:
    agent, gone, kept = in_phase(asked("lirf", push=0.5, keep=0.25, temperature=2.0, erase_lr=1e-2))
    with torch.no_grad():
        ce = F.cross_entropy(logits(agent, kept[0])[0], kept[1])
        now, then = logits(agent, gone[0])
        soft = (then[:, 1:] / 2).softmax(1)  # without "cat", which goes
        kd = 4 * -(soft * (now[:, 1:] / 2).log_softmax(1)).sum(1).mean()
        z = [F.normalize(x, dim=1) for x in (agent.encode(gone[0]), agent.before(gone[0]))]
        push = (2 - 2 * (z[0] * z[1]).sum(1)).mean()
        assert float(push) > 1e-4
        expected = float(ce + 0.25 * kd - 0.5 * push)
        assert float(agent.erasure_loss(gone, kept)) == pytest.approx(expected, rel=1e-4)


def test_nothing_is_done_by_the_one_that_does_nothing(asked: Callable[..., Any]) -> None:
    case = asked("noop_eraser")
    case.learned()
    before = {key: str(value) for key, value in case.agent.state_dict().items()}
    case.play(case.request([0], ["cat"]), *case.phase(2, case.batch([0], [0]), case.batch([8], [2])), END)
    assert {key: str(value) for key, value in case.agent.state_dict().items()} == before


@pytest.mark.parametrize("mask", ["off", "least"])
def test_a_mask_hides_a_class_and_is_taken_off(asked: Callable[..., Any], mask: str) -> None:
    case = asked("mask_logits", mask=mask)
    case.learned()
    before = case.ask()
    case.play(case.request([0], ["cat"]), *case.phase(2, case.batch([0], [0]), case.batch([8], [2])), END)
    hidden = case.ask()
    rest = before[:, 1:] / before[:, 1:].sum(1, keepdims=True)
    assert np.allclose(hidden[:, 1:] / hidden[:, 1:].sum(1, keepdims=True), rest, atol=1e-5)
    assert np.allclose(hidden[:, 0], hidden[:, 1:].min(1) if mask == "least" else 0.0, atol=1e-6)
    assert np.allclose(hidden.sum(1), 1.0, atol=1e-5)
    case.play(EraseRequest(1, "relearn", ("cat",), np.empty(0, np.int64), ("cat",)), EraseEnd(1))
    assert np.allclose(case.ask(), before, atol=1e-6)


def test_a_mask_hides_no_samples_and_guesses_where_all_is_hidden(asked_vit: Callable[..., Any]) -> None:
    case = asked_vit("mask_logits")
    case.learned()
    before = case.ask()
    case.play(case.request([0, 1]), END)
    assert np.array_equal(case.ask(), before)
    case.play(case.request([0], case.classes, number=1), EraseEnd(1))
    assert np.allclose(case.ask(), 0.25)


@pytest.mark.parametrize(
    ("agent", "setting", "words"),
    [
        ("gradient_ascent", {"share": 1.0}, "Expected share in [0, 1); got 1.0. At 0 retained samples are not used."),
        ("fdr", {"weight": -1.0}, "Expected weight of 0 or more; got -1.0. Try 1.0."),
        ("scrub", {"ascent": 2.0}, "got 0.001, 0.99, 2.0 and 2.0. The code has 0.001, 0.99, 2 and 0.5."),
        ("lirf", {"push": -1.0}, "Expected push and keep of 0 or more and temperature above 0; got -1.0, 0.1 and 2.0."),
        ("mask_logits", {"mask": "on"}, "Expected mask to be one of ('off', 'least'); got 'on'. Choose one of these."),
    ],
)
def test_settings_out_of_range(asked_vit: Callable[..., Any], agent: str, setting: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingError, match=re.escape(words)):
        asked_vit(agent, **setting)
