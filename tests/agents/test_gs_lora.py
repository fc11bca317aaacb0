"""GS-LoRA and GS-LoRA++: the bound, the groups, the merge, and the prototypes."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from clgym.errors import SettingError
from clgym.events import EraseEnd

BOTH = pytest.mark.parametrize("agent", ["gs_lora", "gs_lora_pp"])
END = EraseEnd(0)


def in_phase(case: Any, forget: bool = True, retain: bool = True) -> tuple[Any, Any, Any]:
    """Play until a step of a phase was taken; return the agent and both batches on the device."""
    gone, kept = case.batch([0, 2], [0, 0]), case.batch([1, 8, 9], [1, 2, 3])
    agent = case.learned()
    case.play(case.request([0, 2], ["cat"]), case.phase(5, gone if forget else None, kept if retain else None)[0])
    return agent, agent._batch(gone), agent._batch(kept)


def gradient(agent: Any, loss: torch.Tensor) -> torch.Tensor:
    agent.lora.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    found: torch.Tensor = agent.lora.arena().grad
    return found.clone()


def test_the_forget_term_has_no_gradient_above_its_bound(asked_vit: Callable[..., Any]) -> None:
    agent, gone, _ = in_phase(asked_vit("gs_lora", alpha=0.0))
    reached = float(agent.ce(gone).detach())
    agent.bound = reached - 0.01
    assert not gradient(agent, agent.erasure_loss(gone, None)).any()
    agent.bound = reached + 0.01
    assert gradient(agent, agent.erasure_loss(gone, None)).any()


def test_the_loss_against_its_definition(asked: Callable[..., Any]) -> None:
    agent, gone, kept = in_phase(asked("gs_lora", alpha=0.3, beta=0.7, bound=500.0, dense_share=0.0))
    with torch.no_grad():
        ce = [F.cross_entropy(agent.logits(x, agent.rows), y) for x, y in (kept, gone)]
        assert agent.rows.shape[0] == 4
        norms = []
        for block in sorted({name.partition(".mlp.")[0] for name in agent.trained}):
            layers = [layer for name, layer in agent.lora.layers if name in agent.trained and name.startswith(block)]
            assert len(layers) == 2
            norms.append(sum(float(p.square().sum()) for layer in layers for p in (layer.A, layer.Bt)) ** 0.5)
        expected = ce[0] + 0.7 * (500.0 - ce[1]) + 0.3 * sum(norms)
        assert float(agent.erasure_loss(gone, kept)) == pytest.approx(float(expected), rel=1e-5)
        assert float(agent.erasure_loss(None, kept)) == pytest.approx(float(ce[0] + 0.3 * sum(norms)), rel=1e-5)
    assert agent.erasure_loss(None, None) is None


def test_each_group_is_pulled_with_strength_alpha(asked_vit: Callable[..., Any]) -> None:
    agent, _, _ = in_phase(asked_vit("gs_lora", alpha=0.3, dense_share=0.0))
    pulls = gradient(agent, agent.groups.loss(0, 5))
    order, offsets = agent.groups.segments
    parts = [pulls[order[a:b]].norm() for a, b in pairwise(offsets.tolist())]
    assert len(parts) == len(agent.groups.blocks) > 1
    assert torch.stack(parts).allclose(torch.tensor(0.3), rtol=1e-4)
    assert int((pulls != 0).sum()) <= len(order)


@BOTH
@pytest.mark.parametrize("penalty", ["loss", "proximal"])
def test_the_penalty_waits_for_the_dense_part(asked_vit: Callable[..., Any], agent: str, penalty: str) -> None:
    groups = asked_vit(agent, penalty=penalty, alpha=2.0, dense_share=0.4).agent.groups
    assert [groups.strength(step, 5) for step in range(5)] == [0.0, 0.0, 2.0, 2.0, 2.0]
    assert [bool(groups.loss(step, 5) > 0) for step in (1, 2)] == [False, penalty == "loss"]
    kappas = [groups.threshold(step, 5, 0.1)["kappa"] for step in (1, 2)]
    assert kappas == [0.0, 0.2 if penalty == "proximal" else 0.0]


@BOTH
def test_a_huge_threshold_returns_the_model_and_zeroes_every_group(asked: Callable[..., Any], agent: str) -> None:
    case = asked(agent, penalty="proximal", alpha=1e6, dense_share=0.0)
    case.learned()
    before = case.ask()
    case.play(case.request([0], ["cat"]), *case.phase(4, case.batch([0], [0]), case.batch([8], [2])), END)
    assert np.allclose(case.ask(), before, atol=1e-6)
    # The last step of a cosine still moves, so every step's threshold has acted.
    assert case.agent.zero_groups == [len(case.agent.groups.blocks)]
    assert case.agent.state_dict()["zero_groups"] == case.agent.zero_groups


def test_a_moderate_threshold_zeroes_some_groups(asked_vit: Callable[..., Any]) -> None:
    found = []
    for alpha in (0.0, 300.0, 1e6):
        case = asked_vit("gs_lora", penalty="proximal", alpha=alpha, erase_lr=1e-3, dense_share=0.0, bound=50.0)
        case.learned()
        case.play(case.request([0], ["cat"]), *case.phase(12, case.batch([0], [0]), case.batch([8], [2])), END)
        found.append(case.agent.zero_groups[0])
    assert found[0] == 0
    assert found[2] == len(case.agent.groups.blocks)
    assert found[0] <= found[1] <= found[2]


def test_the_penalty_as_a_loss_shrinks_groups_but_zeroes_none(asked_vit: Callable[..., Any]) -> None:
    sizes = []
    for alpha in (0.0, 100.0):
        case = asked_vit("gs_lora", alpha=alpha, dense_share=0.0, erase_lr=1e-2)
        case.learned()
        case.play(case.request([0], ["cat"]), *case.phase(10, case.batch([0], [0]), case.batch([8], [2])))
        sizes.append(case.agent.groups.norms().detach())
        case.play(END)
        assert case.agent.zero_groups == [0]
    assert bool((sizes[1] < 0.8 * sizes[0]).all())


@BOTH
def test_merging_and_drawing_anew_keep_the_answers(asked: Callable[..., Any], agent: str) -> None:
    case = asked(agent)
    case.learned()
    before = case.ask()
    case.play(case.request([0], ["cat"]), *case.phase(3, case.batch([0], [0]), case.batch([8], [2])))
    unmerged = case.ask()
    assert not np.allclose(unmerged, before, atol=1e-4)
    case.play(END)
    assert np.allclose(case.ask(), unmerged, atol=1e-5)
    assert not any(layer.Bt.any() for _, layer in case.agent.lora.layers)
    case.play(case.task(0)[0])
    assert np.allclose(case.ask(), unmerged, atol=1e-5)


@BOTH
def test_only_the_image_encoders_feed_forward_parts_change(asked: Callable[..., Any], agent: str) -> None:
    case = asked(agent)
    case.learned()
    case.agent.lora.merge_()
    before = {name: layer.base.weight.clone() for name, layer in case.agent.lora.layers}
    rows = case.agent.class_rows(case.prompts, ensemble=False).clone()
    case.play(case.request([0], ["cat"]), *case.phase(3, case.batch([0], [0]), case.batch([8], [2])), END)
    moved = {name for name, layer in case.agent.lora.layers if not torch.equal(layer.base.weight, before[name])}
    assert moved == case.agent.trained
    assert all(".mlp." in name and not name.startswith("transformer.") for name in moved)
    assert torch.equal(case.agent.class_rows(case.prompts, ensemble=False), rows)


@BOTH
def test_the_adapters_of_a_vit_b_16_are_the_papers(on_vit_b_16: Callable[..., Any], agent: str) -> None:
    built = on_vit_b_16(agent)
    sizes = [layer.A.numel() + layer.Bt.numel() for name, layer in built.lora.layers if name in built.trained]
    assert sum(sizes) == 737_280  # 12 blocks, 2 linears, rank 8, 768 + 3072
    assert len(built.groups.blocks) == 12


def test_the_footprint_in_a_phase_is_what_it_trains(asked_vit: Callable[..., Any]) -> None:
    agent, _, _ = in_phase(asked_vit("gs_lora"))
    sizes = [layer.A.numel() + layer.Bt.numel() for name, layer in agent.lora.layers if name in agent.trained]
    assert agent.footprint().trainable == sum(sizes)
    agent.act(END)
    assert agent.footprint().trainable == agent.lora.trainable_count > sum(sizes)


def test_prototypes_are_class_means_of_the_model_before_the_phase(asked: Callable[..., Any]) -> None:
    case = asked("gs_lora_pp", erase_lr=1e-2)
    agent = case.learned()
    gone, kept = case.batch([0, 2], [0, 0]), case.batch([8, 9, 10], [2, 3, 2])
    with torch.no_grad():
        features = {i: agent.encode(agent._batch(case.batch([i], [0]))[0])[0] for i in (0, 2, 8, 9, 10)}
    case.play(case.request([0, 2], ["cat"]), *case.phase(4, gone, kept)[:3])
    means = agent.sums / agent.counts[:, None]
    assert torch.allclose(means[0], (features[0] + features[2]) / 2, atol=1e-5)
    assert torch.allclose(means[2], (features[8] + features[10]) / 2, atol=1e-5)
    assert agent.counts.tolist() == [6, 0, 6, 3]
    case.play(END)
    assert (len(agent.sums), len(agent.counts)) == (0, 0)
    assert not any("cat" in str(name) for name in agent.tensors())


def test_a_feature_at_its_prototype_has_no_divergence(asked_vit: Callable[..., Any]) -> None:
    agent, _, _ = in_phase(asked_vit("gs_lora_pp"))
    targets = torch.tensor([0, 2])
    means = agent.sums[targets] / agent.counts[targets, None]
    assert float(agent.divergence(means, targets)) == pytest.approx(0.0, abs=1e-6)
    # Worked by hand: KL between softmaxes of (0, ln 3) and (0, 0) is 3/4 ln 3 - ln 2.
    agent.sums, agent.counts = torch.tensor([[0.0, 2 * np.log(3)]]), torch.tensor([2.0])
    apart = float(agent.divergence(torch.zeros(1, 2), torch.tensor([0])))
    assert apart == pytest.approx(0.75 * np.log(3) - np.log(2), rel=1e-5)


def test_prototypes_add_to_the_plain_loss(asked_vit: Callable[..., Any]) -> None:
    plain, gone, kept = in_phase(asked_vit("gs_lora", erase_lr=1e-3))
    plus, _, _ = in_phase(asked_vit("gs_lora_pp", erase_lr=1e-3, push=0.0, pull=0.0))
    assert all(torch.equal(a, b) for a, b in zip(plain.lora.parameters(), plus.lora.parameters(), strict=True))
    plus.push, plus.pull = 0.5, 0.25
    with torch.no_grad():
        loss = float(plus.erasure_loss(gone, kept))
        away = [float(plus.divergence(plus.encode(x), y)) for x, y in (gone, kept)]
        expected = float(plain.erasure_loss(gone, kept)) + 0.5 * max(0.0, plus.push_bound - away[0]) + 0.25 * away[1]
    assert loss == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("agent", "setting", "words"),
    [
        ("gs_lora", {"beta": -1.0}, "Expected beta of 0 or more and bound above 0; got -1.0 and 10.0."),
        ("gs_lora", {"bound": 0.0}, "got 0.2 and 0.0. The paper has 0.2 and 105."),
        ("gs_lora", {"alpha": -1.0}, "Expected alpha of 0 or more and dense_share in [0, 1]; got -1.0 and 0.2."),
        ("gs_lora", {"dense_share": 1.5}, "got 0.0001 and 1.5. The paper has 1e-4 and 0.2."),
        ("gs_lora", {"penalty": "hard"}, "Expected penalty to be one of ('loss', 'proximal'); got 'hard'."),
        ("gs_lora", {"erase_lr": 0.0}, "Expected erase_lr above 0; got 0.0. Try 1e-3."),
        ("gs_lora_pp", {"push": -1.0}, "Expected push, pull and beta of 0 or more and bounds above 0; got -1.0, 1.0,"),
    ],
)
def test_settings_out_of_range(asked_vit: Callable[..., Any], agent: str, setting: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingError, match=re.escape(words)):
        asked_vit(agent, **setting)
