"""An agent at work in a short stream, and one on a ViT-B/16, of timm or CLIP, without weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import open_clip
import pytest
import timm
import torch
from open_clip.model import CLIP

import clgym
from clgym.agent import Setup
from clgym.backbones import ClipBackbone
from clgym.events import Query, Train
from clgym.registry import build_agent
from clgym.vit import ViTBackbone


class Play:
    """Two short tasks and an agent in them; questions are guessed to save time."""

    def __init__(self, agent: str, scenario: str, steps: int = 4, **settings: Any) -> None:
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

    def batch(self, number: int = 1) -> Any:
        """Play until the ``number``-th batch waits, and return its images and targets."""
        event = self.until(Train, number)
        return self.agent.to_device(event.inputs, event.targets)

    def to_the_end(self) -> Any:
        """Play the rest, and return the agent."""
        while self.step():
            pass
        return self.agent


@pytest.fixture
def play() -> type[Play]:
    """Return what plays a short stream."""
    return Play


@pytest.fixture
def on_vit_b_16(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Return what builds an agent, by name, on a ViT-B/16 whose weights are shapes alone."""

    def build(agent: str, **settings: Any) -> Any:
        with torch.device("meta"):
            model = timm.create_model("vit_base_patch16_224", num_classes=0)
        backbone = ViTBackbone("timm/vit_base_patch16_224", model)
        monkeypatch.setattr("clgym.learner.load_backbone", lambda name, device: backbone)
        setup = Setup("image", (224, 224, 3), "timm/vit_base_patch16_224.augreg_in21k_ft_in1k", device="cpu")
        return build_agent(agent, setup, settings)

    return build


@pytest.fixture
def on_clip_b_16(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Return what builds an agent, by name, on a CLIP ViT-B/16 whose weights are shapes alone."""

    def build(agent: str, **settings: Any) -> Any:
        config = open_clip.get_model_config("ViT-B-16")
        with torch.device("meta"):
            model = CLIP(config["embed_dim"], config["vision_cfg"], config["text_cfg"])
        model.logit_scale = torch.nn.Parameter(torch.tensor(100.0).log())
        backbone = ClipBackbone("ViT-B-16/openai", model, None, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
        monkeypatch.setattr("clgym.learner.load_backbone", lambda name, device: backbone)
        return build_agent(agent, Setup("image", (224, 224, 3), "ViT-B-16/openai", device="cpu"), settings)

    return build
