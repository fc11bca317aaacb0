"""Agents on a short stream, on either backbone, and agents on a ViT-B/16 that takes no memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import clgym
from clgym.agent import EMBEDDED_CLIP, EMBEDDED_VIT
from clgym.backbones import ClipBackbone
from clgym.events import Event, Query, TaskEnd, TaskStart
from clgym.registry import find
from clgym.vit import ViTBackbone

BACKBONES = [EMBEDDED_CLIP, EMBEDDED_VIT]


class Lifetime:
    """An agent and the events of two tasks of four steps, which are not acted on yet.

    Args:
        agent: Its id.
        backbone: Of the stream.
        settings: Of the agent.
    """

    def __init__(self, agent: str, backbone: str, **settings: Any) -> None:
        """Take the events; questions are set apart."""
        env = clgym.make("CLIP-MTIL-v0", tasks=2, steps=4)
        env.unwrapped.scenario.backbone = backbone  # type: ignore[attr-defined]
        self.agent: Any = clgym.make_agent(agent, env, device="cpu", **settings)
        self.events: list[Any] = []
        self.queries: list[Query] = []
        event: Event = env.reset(seed=0)[0]
        done = False
        while not done:
            asked = isinstance(event, Query)
            (self.queries if asked else self.events).append(event)  # type: ignore[arg-type]
            event, _, done, _, _ = env.step(env.action_space.sample() if asked else None)

    def play(self, kind: type[Event], number: int = 1) -> Any:
        """Act on the events up to the ``number``-th of a kind that has not been acted on, and return it unacted."""
        while number := number - isinstance(self.events[0], kind):
            self.agent.act(self.events.pop(0))
        return self.events[0]

    def batch(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the images and targets of the next batch."""
        event = self.events[0]
        return self.agent.to_device(event.inputs, event.targets)

    def images(self, count: int = 6) -> torch.Tensor:
        """Return images to ask about."""
        return self.agent.to_device(self.queries[-1].inputs[:count], None)[0]


@pytest.fixture(params=BACKBONES)
def backbone(request: pytest.FixtureRequest) -> str:
    """Return each embedded backbone in turn."""
    return str(request.param)


@pytest.fixture
def lives() -> type[Lifetime]:
    """Return what starts an agent's lifetime."""
    return Lifetime


@pytest.fixture
def vit_b_16(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Return what builds an agent on a ViT-B/16 of the meta device, and has it begin and end tasks."""

    def build(agent: str, tasks: int, *, clip: bool = False, **settings: Any) -> Any:
        with torch.device("meta"):
            model: Any = _clip() if clip else _vit()
        if clip:
            model.logit_scale = torch.nn.Parameter(torch.zeros(()))
            made: Any = ClipBackbone("meta", model, None, mean=(0.5,) * 3, std=(0.5,) * 3)
        else:
            made = ViTBackbone("meta", model)
        monkeypatch.setattr("clgym.learner.load_backbone", lambda *_: made)
        setup = clgym.Setup("image", (224, 224, 3), "ViT-B-16/openai" if clip else "timm/vit", 0, "cpu")
        learner = find("agents", agent).load()(setup, **settings)
        for t in range(tasks):
            learner.act(TaskStart(t, "", "", ("a", "b"), ((f"a{t}",), (f"b{t}",)), 2, 1))
            learner.act(TaskEnd(t))
        return learner

    return build


def _vit() -> torch.nn.Module:
    import timm

    return timm.create_model("vit_base_patch16_224", num_classes=0)


def _clip() -> torch.nn.Module:
    import open_clip
    from open_clip.model import CLIP

    config = open_clip.get_model_config("ViT-B-16")
    return CLIP(config["embed_dim"], config["vision_cfg"], config["text_cfg"])
