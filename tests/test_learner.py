"""The shared learner: schedule, device, prompts and probabilities."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import clgym
from clgym.device import pick_device
from clgym.errors import SettingError
from clgym.events import Query, TaskEnd, Train
from clgym.learner import Learner
from clgym.registry import entries
from clgym.seeds import agent_seed


def learner(agent: str = "sequential_lora", **settings: Any) -> Learner:
    made = clgym.make_agent(agent, clgym.make("CLIP-MTIL-v0", tasks=1), device="cpu", **settings)
    assert isinstance(made, Learner)
    return made


def test_cosine_without_warm_up() -> None:
    agent = learner()
    agent.start_optimizer([], 4)
    # cos(0), cos(pi/4), cos(pi/2), cos(3 pi/4) mapped to [0, 1], by hand.
    assert [agent.schedule(i) for i in range(4)] == pytest.approx([1.0, 0.853553, 0.5, 0.146447], abs=1e-6)


def test_linear_warm_up_then_cosine() -> None:
    agent = learner()
    agent.warmup = 0.5
    agent.start_optimizer([], 4)
    assert [agent.schedule(i) for i in range(4)] == pytest.approx([0.5, 1.0, 1.0, 0.5])


def test_seeds_of_agents_differ_and_repeat() -> None:
    assert agent_seed(0) == agent_seed(0)
    assert len({agent_seed(s) for s in range(100)}) == 100


def test_unknown_and_absent_devices() -> None:
    with pytest.raises(SettingError, match="Expected device 'auto', 'cpu' or 'cuda'; got 'tpu'"):
        pick_device("tpu")
    if not torch.cuda.is_available():
        with pytest.raises(SettingError, match="Expected a CUDA device; got a machine without one"):
            pick_device("cuda")
    assert pick_device("cpu").type == "cpu"


def test_answers_are_log_probabilities_over_the_candidates() -> None:
    env = clgym.make("CLIP-MTIL-v0", tasks=1)
    event, _ = env.reset(seed=0)
    assert isinstance(event, Query)
    answer = learner().act(event)
    assert isinstance(answer, np.ndarray)
    assert answer.dtype == np.float32
    assert answer.shape == (len(event.inputs), len(event.candidates))
    assert np.allclose(np.exp(answer).sum(1), 1, atol=1e-5)


PROMPTS = (("a red star", "the red star"), ("a blue ring", "the blue ring"))


def test_text_features_are_averaged_over_templates_or_not() -> None:
    agent = learner()
    with torch.no_grad():
        single = agent.clip.encode_texts(["a red star", "a blue ring"])
    assert torch.allclose(agent.class_rows(PROMPTS, ensemble=False), single)
    assert not torch.allclose(agent.class_rows(PROMPTS, ensemble=True), single)


@pytest.mark.parametrize(("targets", "kept"), [("vision", True), ("text", False), ("all", False)])
def test_text_features_are_kept_while_the_text_encoder_stands_still(targets: str, kept: bool) -> None:
    agent = learner(targets=targets)
    env = clgym.make("CLIP-MTIL-v0", tasks=1, steps=2)
    event, _ = env.reset(seed=0)
    while not isinstance(event, Train):
        event = env.step(agent.act(event))[0]
    first = agent.class_rows(PROMPTS, ensemble=False)
    agent.act(event)
    assert (agent.class_rows(PROMPTS, ensemble=False) is first) == kept
    assert agent.training_rows(PROMPTS).requires_grad == (not kept)


def test_mixed_precision_answers_almost_the_same() -> None:
    env = clgym.make("CLIP-MTIL-v0", tasks=1)
    event, _ = env.reset(seed=0)
    full, half = (np.asarray(clgym.make_agent("zero_shot", env, precision=p).act(event)) for p in ("fp32", "bf16"))
    assert not np.array_equal(full, half)
    # Both answers are of one scale, 100, so this holds the cosines to within 0.01.
    assert np.abs((full - half) - (full - half).mean(axis=1, keepdims=True)).max() < 1.0
    with pytest.raises(SettingError, match="Expected precision 'fp32' or 'bf16'; got 'fp8'"):
        clgym.make_agent("zero_shot", env, precision="fp8")


@pytest.mark.parametrize("id", entries("agents"))
def test_features_are_what_is_classified(id: str) -> None:
    kind = entries("agents")[id].load()
    if issubclass(kind, Learner):
        assert kind.logits is Learner.logits, "override encode, from which the white-box columns come"


def test_prompts_and_adapters_show_in_the_features() -> None:
    env: Any = clgym.make("CLIP-MTIL-v0", tasks=1, steps=2)
    for id in ("sequential_lora", "l2p", "dualprompt", "coda_prompt"):
        agent: Any = clgym.make_agent(id, env, device="cpu", lr=0.1)
        event, _ = env.reset(seed=0)
        assert isinstance(event, Query)
        few = env.unwrapped.held_out(3)
        before = agent.features(few), agent.activations(few)
        while not isinstance(event, TaskEnd):
            event, *_ = env.step(agent.act(event))
        after = agent.features(few), agent.activations(few)
        assert before[0].shape == after[0].shape == (3, 64)
        assert not np.allclose(before[0], after[0], atol=1e-3), id
        assert len(before[1]) == len(after[1])
        assert not all(np.allclose(a, b, atol=1e-3) for a, b in zip(before[1], after[1], strict=True)), id
