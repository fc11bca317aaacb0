"""What the regularised methods are played on."""

from __future__ import annotations

from typing import Any

import torch

import clgym
from clgym.events import Query, Train


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


def furthest(values: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> float:
    return max(float((values[name] - others[name]).abs().max()) for name in values)
