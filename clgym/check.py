"""The contract that every scenario and every agent keeps, ours and yours.

The contract itself is two lists: :data:`clgym.scenario_rules.RULES` and :data:`clgym.agent_rules.RULES`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import gymnasium

from clgym import agent_rules, scenario_rules
from clgym.agent import Agent
from clgym.errors import ContractError
from clgym.registry import find, settings

# Settings of the stream that agents are checked on, where a scenario has them.
SMALL = {"tasks": 2, "steps": 3, "requests": 1, "erase_steps": 2}
T = TypeVar("T")


def check_scenario(id_or_env: str | gymnasium.Env[Any, Any], *, limit: int = 400, **chosen: Any) -> None:
    """Hold a scenario to its contract, :data:`clgym.scenario_rules.RULES`, guessing every answer.

    Args:
        id_or_env: Scenario id, or an environment as ``gymnasium.make`` returns it.
        limit: Look at so many events of a lifetime; rules on its end need all of them.
        **chosen: Settings of the scenario, if it is given by id.

    Raises:
        ContractError: A rule is broken; the message names it and the fix.
        NotRegisteredError: No scenario has that id.
        SettingError: A setting is unknown or out of range.
    """
    env = id_or_env
    if isinstance(env, str):
        env = gymnasium.make(f"clgym/{find('scenarios', env).spec.id}", **chosen)
    if env.spec is None:
        raise ContractError(
            "Expected an environment with a spec, from which others can rebuild it; got one without. "
            "Register the scenario and pass its id."
        )
    _hold(env.spec.id, scenario_rules.RULES, scenario_rules.Stream(env.spec, limit))


def check_agent(
    id_or_class: str | type[Agent], scenario: str = "CLIP-MTIL-v0", *, device: str = "cpu", **chosen: Any
) -> None:
    """Hold an agent to its contract, :data:`clgym.agent_rules.RULES`, on a short stream.

    Args:
        id_or_class: Agent id, or a class that need not be registered.
        scenario: Id of a scenario whose inputs the agent takes.
        device: ``"cpu"`` or ``"cuda"``.
        **chosen: Settings of the scenario; two tasks of four steps unless chosen otherwise.

    Raises:
        ContractError: A rule is broken; the message names it and the fix.
        NotRegisteredError: No agent or scenario has that id.
        SettingError: A setting of the scenario is unknown or out of range.
    """
    kind = find("agents", id_or_class).load() if isinstance(id_or_class, str) else id_or_class
    id = find("scenarios", scenario).spec.id
    small = {name: value for name, value in SMALL.items() if name in settings("scenarios", id)}
    made = gymnasium.make(f"clgym/{id}", disable_env_checker=True, **{**small, **chosen})
    trial = agent_rules.Trial(kind, made.unwrapped, device)  # type: ignore[arg-type]
    _hold(id_or_class if isinstance(id_or_class, str) else kind.__name__, agent_rules.RULES, trial)


def _hold(subject: str, rules: Sequence[Callable[[T], str]], case: T) -> None:
    """Raise for the first rule that the case breaks; an error on the way breaks it too."""
    for rule in rules:
        broken = f"{subject} breaks the rule {rule.__name__!r}: "
        try:
            fault = rule(case)
        except Exception as error:
            got = f"{type(error).__name__}: {error}".rstrip(".")
            raise ContractError(f"{broken}Expected no error; got {got}. The rule reads: {rule.__doc__}") from error
        if fault:
            raise ContractError(broken + fault)
