"""L2 and EWC: which weights are trained, and how firmly they are held."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import clgym
from clgym.agent import Setup
from clgym.agents.l2 import L2
from clgym.check import check_agent
from clgym.distil import distillation
from clgym.errors import NotRegisteredError, RecordError, SettingError
from clgym.events import Query, TaskStart
from clgym.fisher import Fisher
from clgym.tuning import Weights, tune_attention, tune_encoders
from tests.agents.conftest import Play
from tests.agents.regularisers.conftest import furthest

ATTENTION = ("l2", "ewc", "pred_kd", "feat_kd")


FULL = ("full_finetune", "lwf", "wise_ft")


class Stiff(L2):
    """L2 without give.

    Args:
        setup: What is known of the stream.
    """

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup, weight=1e12, penalty="proximal")


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_distillation_at_the_teacher_is_its_entropy_without_gradient(temperature: float) -> None:
    teacher = torch.randn(5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    student = teacher.clone().requires_grad_()
    loss = distillation(student, teacher, temperature)
    (slope,) = torch.autograd.grad(loss, student)
    p = (teacher / temperature).softmax(-1)
    assert float(slope.abs().max()) < 1e-12
    assert float(loss.detach()) == pytest.approx(float(temperature**2 * -(p * p.log()).sum(-1).mean()))


def test_distillation_leaves_new_classes_alone() -> None:
    # Card A5(h): in the softmax form the gradient with respect to the logits of new classes is 0.
    logits = torch.randn(4, 9, generator=torch.Generator().manual_seed(0)).requires_grad_()
    (slope,) = torch.autograd.grad(distillation(logits[:, :5], torch.zeros(4, 5)), logits)
    assert slope[:, :5].abs().max() > 0
    assert not slope[:, 5:].any()


@pytest.mark.parametrize("cast", [False, True])
def test_weights_are_replaced_for_a_while(cast: bool) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    weights = Weights(model, ["0.weight", "1.weight"])
    x, others = torch.ones(3, 4), {name: 2 * value for name, value in weights.copy().items()}
    with torch.autocast("cpu", torch.bfloat16, enabled=cast):
        plain = torch.autograd.grad(model(x).float().square().sum(), weights.parameters)
        loss = model(x).float().square().sum()
        with weights.replaced(others):
            inside = model(x)
        between = torch.autograd.grad(loss, weights.parameters)
    assert all(torch.equal(a, b) for a, b in zip(plain, between, strict=True))
    assert all(torch.equal(2 * value, others[name]) for name, value in weights.views().items())
    weights.put_(others)
    with torch.autocast("cpu", torch.bfloat16, enabled=cast):
        assert torch.equal(inside, model(x))


@pytest.mark.parametrize("proximal", [False, True])
def test_ewc_on_two_quadratic_tasks_is_the_closed_form(proximal: bool) -> None:
    # Task 2: (theta - b)^T H (theta - b) / 2 + lambda sum F (theta - a)^2, solved by (H + 2 lambda F)^-1 (H b + 2
    # lambda F a), where a is task 1's solution and F its curvature.
    H = torch.tensor([[2.0, 0.5, 0.0], [0.5, 1.0, 0.2], [0.0, 0.2, 3.0]], dtype=torch.float64)
    a, b, fisher = (torch.tensor([v], dtype=torch.float64) for v in ([1.0, -1.0, 2.0], [0.0, 3.0, 1.0], [0.1, 4.0, 0]))
    model = nn.Linear(3, 1, bias=False).double()
    weights, strength, rate = Weights(model, ["weight"]), 0.7, 0.1
    anchor, importance = {"weight": a}, {"weight": fisher}
    weights.put_(anchor)
    for _ in range(1000):
        loss = 0.5 * ((model.weight - b) @ H @ (model.weight - b).T).sum()
        if not proximal:
            loss = loss + strength * weights.distance(anchor, importance)
        (slope,) = torch.autograd.grad(loss, model.weight)
        with torch.no_grad():
            model.weight -= rate * slope
        if proximal:
            weights.pull_(anchor, rate * strength, importance)
    hold = 2 * strength * fisher.diag_embed()[0]
    solution = torch.linalg.solve(H + hold, (H @ b.T + hold @ a.T)[:, 0])
    assert torch.allclose(weights.views()["weight"][0], solution, atol=1e-9)


def test_weights_of_other_names_or_shapes_are_refused() -> None:
    weights = Weights(nn.Linear(2, 3), ["weight"])
    for odd in ({"bias": torch.zeros(3)}, {"weight": torch.zeros(2, 3)}):
        with pytest.raises(RecordError, match="Expected the values of 1 trained weights; got other names or shapes"):
            weights.put_(odd)


def test_unknown_weights_are_refused() -> None:
    model = Play("zero_shot").agent.backbone.model
    with pytest.raises(SettingError, match=re.escape("Expected encoders ('all', 'vision', 'text'); got 'audio'.")):
        tune_encoders(model, "audio")  # type: ignore[arg-type]
    with pytest.raises(NotRegisteredError, match=r"Expected a registered layer; got 'qproj'\. Did you mean 'q_proj'"):
        tune_attention(model, ("qproj",))


@pytest.mark.parametrize("method", ATTENTION)
def test_only_the_projections_of_the_image_encoder_change(method: str) -> None:
    play = Play(method, steps=3)
    before = {name: value.clone() for name, value in play.agent.backbone.model.state_dict().items()}
    after = play.to_the_end().backbone.model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if re.fullmatch(r"visual\..*\.attn\.[qkv]_proj\.weight", name)}


@pytest.mark.parametrize("method", FULL)
def test_everything_but_the_logit_scale_is_trained(method: str) -> None:
    agent = Play(method).agent
    trained = [name for name, p in agent.backbone.model.named_parameters() if p.requires_grad]
    assert set(trained) == {name for name, _ in agent.backbone.model.named_parameters()} - {"logit_scale"}
    assert agent.footprint().trainable == agent.weights.count == sum(p.numel() for p in agent.weights.parameters)


def test_one_encoder_alone() -> None:
    play = Play("full_finetune", steps=2, targets="vision")
    before = {name: value.clone() for name, value in play.agent.backbone.model.state_dict().items()}
    after = play.to_the_end().backbone.model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(name.startswith("visual.") for name in changed)


def test_full_finetuning_learns() -> None:
    record = clgym.run("CLIP-MTIL-v0", "full_finetune", scenario_settings={"tasks": 1, "steps": 30})
    assert record.matrix[1, 0] > record.matrix[0, 0] + 0.1


def test_an_infinitely_stiff_l2_stays_where_it_was() -> None:
    # Card A5(h): lambda -> infinity keeps the encoder at the anchor.
    play = Play("l2", weight=1e12, penalty="proximal")
    pretrained = play.agent.weights.copy()
    assert furthest(play.to_the_end().weights.views(), pretrained) < 1e-6


def test_an_infinitely_stiff_ewc_stays_where_the_fisher_information_is() -> None:
    play = Play("ewc", weight=1e20, penalty="proximal")
    pretrained = play.agent.weights.copy()
    play.until(TaskStart, 2)
    after_first, importance = play.agent.weights.copy(), dict(play.agent.fisher.importance)
    assert furthest(after_first, pretrained) > 1e-4
    after = play.to_the_end().weights.views()
    held = {name: (after[name] - after_first[name])[importance[name] > 1e-10].abs() for name in after}
    assert sum(value.numel() for value in held.values()) > 0.5 * play.agent.weights.count
    assert max(float(value.max()) for value in held.values() if value.numel()) < 1e-6


def test_a_stiff_agent_keeps_the_contract() -> None:
    check_agent(Stiff)


def test_ewc_with_equal_importances_is_l2() -> None:
    # Card A5(h), to 1e-7.
    ends = []
    for method in ("ewc", "l2"):
        play = Play(method, weight=2.0)
        if method == "ewc":
            play.agent.fisher.importance = {name: value + 1 for name, value in play.agent.weights.zeros().items()}
        play.until(TaskStart)
        play.until(Query, 2)
        ends.append(play.agent.weights.copy())
    assert furthest(*ends) < 1e-7


@pytest.mark.parametrize("penalty", ["loss", "proximal"])
def test_a_stronger_penalty_moves_less(penalty: str) -> None:
    moved = []
    for weight in (0.0, 100.0):
        play = Play("l2", weight=weight, penalty=penalty, lr=3e-3)
        pretrained = play.agent.weights.copy()
        play.until(TaskStart, 2)
        moved.append(float(play.agent.weights.distance(pretrained).detach()))
    assert moved[1] < 0.9 * moved[0]


@pytest.mark.parametrize("class_loss", ["ce", "bce"])
@pytest.mark.parametrize("empirical", [False, True])
def test_fisher_information_is_the_squared_gradient_of_batches(empirical: bool, class_loss: str) -> None:
    play = Play("ewc", steps=5, empirical=empirical, fisher_share=0.4, class_loss=class_loss)
    agent, total = play.agent, torch.zeros(play.agent.weights.count)
    for number in range(5):
        images, targets = play.batch()
        play.step()
        if number < 3:
            assert not any(value.any() for name, value in agent.fisher.tensors().items())
            continue
        logits = agent.logits(images, agent.training_rows(agent.task.prompts))
        labels = targets if empirical else logits.argmax(1)
        if class_loss == "ce":
            loss = F.cross_entropy(logits, labels)
        else:
            ones = F.one_hot(labels, logits.shape[1]).float()
            loss = F.binary_cross_entropy_with_logits(logits - 25, ones, reduction="none").sum(1).mean()
        slopes = torch.autograd.grad(loss, agent.weights.parameters)
        total = total + torch.cat([g.flatten() for g in slopes]).square()
    assert int(agent.fisher.tensors()["batches."]) == 2
    agent.end()
    importance = torch.cat([value.flatten() for value in agent.fisher.importance.values()])
    assert torch.allclose(importance, total / 2, rtol=1e-4, atol=1e-6 * float(total.max()))
    assert int(agent.fisher.tensors()["batches."]) == 0


def test_earlier_importances_decay() -> None:
    model = nn.Linear(1, 1, bias=False)
    fisher = Fisher(Weights(model, ["weight"]), decay=0.5)
    for value in (8.0, 2.0):
        for _ in range(2):  # the gradient is the value, twice
            logits = value * model.weight
            fisher.observe(logits, torch.zeros(1, dtype=torch.int64), lambda found, _: found.sum())
        fisher.close()
    assert float(fisher.importance["weight"]) == 0.5 * 8**2 + 2**2
