"""Continual learning as a gym: scenarios ask, agents answer, the scorer remembers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

from clgym.agent import Agent, AgentSpec, Footprint, Setup
from clgym.registry import make, make_agent, register_scenarios
from clgym.scenario import Scenario, ScenarioSpec, Task, Teaching

if TYPE_CHECKING:
    from clgym.runner import run

__all__ = [
    "Agent",
    "AgentSpec",
    "Footprint",
    "Scenario",
    "ScenarioSpec",
    "Setup",
    "Task",
    "Teaching",
    "make",
    "make_agent",
    "run",
]

register_scenarios()


def __getattr__(name: str) -> Any:
    """Import what is heavy on first use."""
    if name == "run":
        from clgym.runner import run

        return run
    raise AttributeError(f"module 'clgym' has no attribute {name!r}")
