"""Full fine-tuning, LwF, WiSE-FT, L2, EWC, PredKD and FeatKD: what each term is, and what it leaves alone."""

from __future__ import annotations

import copy
import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import clgym
from clgym.agent import Setup
from clgym.agents.l2 import L2
from clgym.check import check_agent
from clgym.distil import distillation, feature_distance, sigmoid_loss
from clgym.errors import NotRegisteredError, RecordError, SettingError
from clgym.events import Query, TaskStart, Train
from clgym.fisher import Fisher
from clgym.tuning import Weights, tune_attention, tune_encoders

ATTENTION = ("l2", "ewc", "pred_kd", "feat_kd")
FULL = ("full_finetune", "lwf", "wise_ft")


class Play:
    """A short stream and an agent in it; questions are guessed to save time."""

    def __init__(self, agent: str, steps: int = 4, scenario: str = "CLIP-MTIL-v0", **settings: Any) -> None:
        self.env = clgym.make(scenario, tasks=2, steps=steps)
        self.agent: Any = clgym.make_agent(agent, self.env, device="cpu", **settings)
        self.event: Any = self.env.reset(seed=0)[0]

    def step(self) -> bool:
        guess = isinstance(self.event, Query)
        answer = self.env.action_space.sample() if guess else self.agent.act(self.event)
        self.event, _, done, _, _ = self.env.step(answer)
        return not done

    def until(self, kind: type, number: int = 1) -> Any:
        """Play until the ``number``-th event of a kind waits to be acted on, and return it."""
        while number := number - isinstance(self.event, kind):
            self.step()
        return self.event

    def to_the_end(self) -> Any:
        while self.step():
            pass
        return self.agent

    def batch(self, number: int = 1) -> Any:
        event = self.until(Train, number)
        return self.agent.to_device(event.inputs, event.targets)


def gradient(agent: Any, images: Any, targets: Any) -> torch.Tensor:
    gradients = torch.autograd.grad(agent.loss(images, targets), agent.weights.parameters)
    return torch.cat([g.flatten() for g in gradients])


def furthest(values: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> float:
    return max(float((values[name] - others[name]).abs().max()) for name in values)


# --- Distillation and plain weights -------------------------------------------------------------------------


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


# --- What is trained -----------------------------------------------------------------------------------------


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


# --- L2 and EWC ----------------------------------------------------------------------------------------------


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


class Stiff(L2):
    """L2 without give.

    Args:
        setup: What is known of the stream.
    """

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup, weight=1e12, penalty="proximal")


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


# --- Distillation from the model before the task -------------------------------------------------------------


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


# --- WiSE-FT -------------------------------------------------------------------------------------------------


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


# --- Settings and costs --------------------------------------------------------------------------------------


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
