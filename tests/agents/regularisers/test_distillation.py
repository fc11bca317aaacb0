"""Prediction and feature distillation, LwF, and the interpolation of WiSE-FT."""

from __future__ import annotations

import copy
import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from clgym.distil import distillation, feature_distance, sigmoid_loss
from clgym.errors import SettingError
from clgym.events import Train
from tests.agents.conftest import Play
from tests.agents.regularisers.conftest import furthest


def gradient(agent: Any, images: Any, targets: Any) -> torch.Tensor:
    gradients = torch.autograd.grad(agent.loss(images, targets), agent.weights.parameters)
    return torch.cat([g.flatten() for g in gradients])


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("lwf", {}),
        ("pred_kd", {}),
        ("pred_kd", {"l2": 1.0, "ewc": 1.0, "feat": 1.0}),
        ("pred_kd", {"class_loss": "bce", "ewc": 1.0}),
        ("feat_kd", {}),
    ],
)
def test_before_the_first_step_a_teacher_teaches_nothing(method: str, settings: dict[str, Any]) -> None:
    play = Play(method, steps=2, **settings)
    batch = play.batch(3)
    taught = gradient(play.agent, *batch)
    play.agent.weight, play.agent.l2, play.agent.ewc, play.agent.feat = 0.0, 0.0, 0.0, 0.0
    alone = gradient(play.agent, *batch)
    assert torch.allclose(taught, alone, atol=1e-5 * float(alone.abs().max()))


def test_lwf_against_its_definition() -> None:
    play = Play("lwf", steps=3, weight=0.5, temperature=3.0)
    images, targets = play.batch(5)
    agent, before = play.agent, play.agent.before
    (earlier,) = agent.earlier
    with torch.no_grad():
        loss = agent.loss(images, targets)
        s = agent.scale * agent.backbone.encode_images(images) @ agent.clip.class_features(earlier, False).T
        agent.weight = 0.0
        task = agent.loss(images, targets)
        agent.weights.put_(before)
        t = agent.scale * agent.backbone.encode_images(images) @ agent.clip.class_features(earlier, False).T
    kd = 9 * -((t / 3).softmax(-1) * (s / 3).log_softmax(-1)).sum(-1).mean()
    assert not torch.allclose(s, t, atol=1e-2)
    assert float(loss) == pytest.approx(float(task + 0.5 * kd), rel=1e-5)


def test_lwf_sums_over_earlier_tasks_with_a_softmax_each() -> None:
    play = Play("lwf", steps=3)
    images, targets = play.batch(5)
    agent = play.agent
    with torch.no_grad():
        one = float(agent.loss(images, targets))
        agent.earlier, agent._texts_before = agent.earlier * 2, ()
        two = float(agent.loss(images, targets))
        agent.weight = 0.0
        none = float(agent.loss(images, targets))
    assert two - none == pytest.approx(2 * (one - none), rel=1e-4)


def test_lwf_over_the_current_classes_distils_in_both_directions() -> None:
    play = Play("lwf", steps=3, over="current")
    images, targets = play.batch(2)
    agent, before = play.agent, play.agent.before
    prompts = agent.task.prompts
    with torch.no_grad():
        loss = agent.loss(images, targets)
        z = agent.backbone.encode_images(images)
        agent.weight = 0.0
        task = agent.loss(images, targets)
        agent.weights.put_(before)
        texts = agent.clip.class_features(prompts, False)
        s, t = agent.scale * z @ texts.T, agent.scale * agent.backbone.encode_images(images) @ texts.T
    assert float(loss) == pytest.approx(float(task + distillation(s, t) + distillation(s.T, t.T)), rel=1e-5)


def test_pred_kd_knows_earlier_classes_only() -> None:
    play = Play("pred_kd", steps=3)
    images, targets = play.batch(5)
    agent = play.agent
    first = agent.earlier

    def term() -> float:
        losses = []
        for weight in (1.0, 0.0):
            agent.weight = weight
            with torch.no_grad():
                losses.append(float(agent.loss(images, targets)))
        return losses[0] - losses[1]

    here = term()
    agent.task = replace(agent.task, prompts=tuple((f"a {i}",) for i in range(len(agent.task.classes))))
    assert term() == pytest.approx(here, abs=1e-4)
    agent.earlier = first[:2]
    assert term() != pytest.approx(here, abs=1e-2)


def test_pred_kd_has_no_term_in_the_first_task() -> None:
    play = Play("pred_kd")
    images, targets = play.batch(3)
    agent = play.agent
    with torch.no_grad():
        plain = F.cross_entropy(agent.logits(images, agent.training_rows(agent.task.prompts)), targets)
        assert float(agent.loss(images, targets)) == pytest.approx(float(plain))


@pytest.mark.parametrize(("method", "setting"), [("feat_kd", "weight"), ("pred_kd", "feat")])
def test_features_are_held_to_those_before_the_task(method: str, setting: str) -> None:
    chosen: dict[str, Any] = {setting: 3.0}
    play = Play(method, **chosen)
    images, targets = play.batch(3)
    agent, before = play.agent, play.agent.before
    with torch.no_grad():
        loss = agent.loss(images, targets)
        z = agent.backbone.encode_images(images)
        setattr(agent, setting, 0.0)
        task = agent.loss(images, targets)
        agent.weights.put_(before)
        old = agent.backbone.encode_images(images)
    assert float(feature_distance(z, old)) > 1e-6
    assert float(loss - task) == pytest.approx(float(3 * (z - old).norm(dim=1).square().mean()), rel=1e-2)


@pytest.mark.parametrize("scenario", ["CLIP-MTIL-v0", "ViT-CIFAR100-CIL-v0"])
def test_the_sigmoid_form_is_lwf_mc(scenario: str) -> None:
    # Card A5(b): BCE summed over classes, of the new ones against one-hot targets, of the old against the teacher.
    play = Play("pred_kd", steps=3, scenario=scenario, class_loss="bce")
    images, targets = play.batch(5)
    agent, before = play.agent, play.agent.before
    shift = 25.0 if agent.head is None else 0.0
    with torch.no_grad():
        loss = float(agent.loss(images, targets))
        rows = agent.training_rows(agent.earlier + agent.task.prompts)
        student = (agent.logits(images, rows) - shift).double()
        agent.weights.put_(before)
        teacher = (agent.logits(images, rows) - shift).double().sigmoid()
    old = len(agent.earlier)
    wanted = teacher.clone()
    wanted[:, old:] = F.one_hot(targets, wanted.shape[1] - old)
    # ln p and ln(1 - p), written so that neither of them is rounded away where p is next to 0 or 1.
    each = wanted * student.neg().exp().log1p() + (1 - wanted) * (student + student.neg().exp().log1p())
    assert float((student.sigmoid() - teacher)[:, :old].abs().max()) > 1e-3
    assert loss == pytest.approx(float(each.sum(1).mean()), rel=1e-4)


def test_the_sigmoid_form_lets_classes_alone_that_it_does_not_name() -> None:
    logits = torch.zeros(4, 9, requires_grad=True)
    (slope,) = torch.autograd.grad(sigmoid_loss(logits[:, :5], torch.rand(4, 5)), logits)
    assert not slope[:, 5:].any()
    shares = torch.tensor([[0.2, 0.9]])
    at_teacher = shares.logit().requires_grad_()
    (slope,) = torch.autograd.grad(sigmoid_loss(at_teacher, shares), at_teacher)
    assert float(slope.abs().max()) < 1e-6


def test_pred_kd_with_ewc_is_ewc_where_nothing_is_distilled() -> None:
    # Card A5(g): the Fisher information is that of the earlier task alone, gathered as the agent ewc gathers it.
    ends = []
    cases: tuple[tuple[str, dict[str, Any]], ...] = (
        ("ewc", {"weight": 3e4}),
        ("pred_kd", {"weight": 0.0, "ewc": 3e4}),
        ("ewc", {"weight": 0.0}),
    )
    for method, settings in cases:
        ends.append(Play(method, steps=4, **settings).to_the_end().weights.copy())
    assert furthest(ends[0], ends[1]) < 1e-6
    assert furthest(ends[0], ends[2]) > 1e-5


def test_a_state_of_pred_kd_with_ewc_continues_bit_for_bit() -> None:
    first = Play("pred_kd", steps=4, ewc=100.0, class_loss="bce")
    first.until(Train, 4)
    second = Play("pred_kd", steps=4, ewc=100.0, class_loss="bce")
    second.until(Train, 4)
    fresh = Play("pred_kd", steps=4, ewc=100.0, class_loss="bce").agent
    fresh.load_state_dict(copy.deepcopy(first.agent.state_dict()))
    second.agent = fresh
    assert furthest(first.to_the_end().weights.views(), second.to_the_end().weights.views()) == 0
    assert second.agent.footprint().stored == 2 * second.agent.weights.count


@pytest.mark.parametrize("anchor", ["pretrained", "previous"])
def test_the_ends_of_the_interpolation(anchor: str) -> None:
    untouched = Play("wise_ft", steps=2, alpha=0.0, anchor=anchor)
    pretrained = untouched.agent.weights.copy()
    assert furthest(untouched.to_the_end().weights.views(), pretrained) == 0
    tuned = Play("wise_ft", steps=2, alpha=1.0, anchor=anchor).to_the_end().weights.views()
    assert furthest(tuned, Play("full_finetune", steps=2).to_the_end().weights.views()) == 0


@pytest.mark.parametrize("anchor", ["pretrained", "previous"])
def test_the_middle_of_the_interpolation(anchor: str) -> None:
    play = Play("wise_ft", steps=2, alpha=0.8, anchor=anchor)
    ends = [play.agent.weights.copy()]
    for number in (1, 2):
        play.until(Train)
        before = ends[0] if anchor == "pretrained" else ends[-1]
        while play.agent.optimizer is None or isinstance(play.event, Train):
            play.step()
        trained = play.agent.weights.copy()
        play.step()
        ends.append(play.agent.weights.copy())
        expected = {name: 0.8 * trained[name] + 0.2 * before[name] for name in trained}
        assert furthest(expected, ends[number]) < 1e-6
        assert furthest(trained, ends[number]) > 1e-6


@pytest.mark.parametrize(
    ("method", "settings", "words"),
    [
        ("wise_ft", {"alpha": 1.5}, "Expected alpha in [0, 1]; got 1.5. 1 keeps the fine-tuned weights."),
        ("wise_ft", {"anchor": "zero"}, "Expected anchor to be one of ('pretrained', 'previous'); got 'zero'."),
        ("lwf", {"weight": -1}, "Expected weight of 0 or more and temperature above 0; got -1 and 2.0. Try 1 and 2."),
        ("lwf", {"over": "new"}, "Expected over to be one of ('earlier', 'current'); got 'new'. Choose one of these."),
        ("l2", {"weight": -1}, "Expected weight of 0 or more; got -1. 0 is plain fine-tuning."),
        ("l2", {"penalty": "hard"}, "Expected penalty to be one of ('loss', 'proximal'); got 'hard'."),
        ("ewc", {"weight": -1}, "Expected weight of 0 or more; got -1. 0 is plain fine-tuning."),
        ("ewc", {"decay": 2.0}, "Expected decay in [0, 1] and fisher_share in (0, 1]; got 2.0 and 0.2. Try 1 and 0.2."),
        ("ewc", {"penalty": "hard"}, "Expected penalty to be one of ('loss', 'proximal'); got 'hard'."),
        ("feat_kd", {"weight": -1}, "Expected weight of 0 or more; got -1. 0 is plain fine-tuning."),
        ("pred_kd", {"temperature": 0}, "temperature above 0; got 1.0, 0.0, 0.0, 0.0 and 0. Try 1, 0, 0, 0 and 1."),
        (
            "l2",
            {"class_loss": "mse"},
            "Expected class_loss to be one of ('ce', 'bce'); got 'mse'. Choose one of these.",
        ),
    ],
)
def test_settings_out_of_range(method: str, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingError, match=re.escape(words)):
        Play(method, **settings)


def test_footprints() -> None:
    # Card A5(d): one copy of the weights for L2 and the distillations, and a diagonal Fisher for EWC.
    copies = {"full_finetune": 0, "lwf": 1, "wise_ft": 1, "l2": 1, "ewc": 2, "pred_kd": 1, "feat_kd": 1}
    for method, number in copies.items():
        agent = Play(method).agent
        cost = agent.footprint()
        assert (cost.trainable, cost.stored) == (agent.weights.count, number * agent.weights.count)
    assert agent.weights.count == 3 * 3 * 96 * 96  # q, k and v of three blocks of width 96
