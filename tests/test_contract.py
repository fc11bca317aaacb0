"""Every registered scenario and agent keeps the contract."""

from __future__ import annotations

import pytest

from clgym.check import SMALL, check_agent, check_scenario
from clgym.errors import NotRegisteredError
from clgym.registry import entries, settings


def scenes() -> list[tuple[str, str]]:
    """Return every agent with a scenario on each kind of model, except where it cannot do with it."""
    specs = {id: entry.spec for id, entry in entries("agents").items()}
    clip = [(id, "CLIP-MTIL-v0") for id, spec in specs.items() if not spec.needs_head]
    plain = [(id, "ViT-CIFAR100-CIL-v0") for id, spec in specs.items() if not spec.needs_text]
    boxes = [(id, "Detection-Erasure-v0") for id, spec in specs.items() if "detection" in spec.modalities]
    return sorted(clip + plain + boxes)


@pytest.mark.parametrize("id", entries("scenarios"))
def test_scenario(id: str) -> None:
    check_scenario(id, limit=80)


@pytest.mark.parametrize("id", entries("scenarios"))
def test_short_scenario_to_its_end(id: str) -> None:
    check_scenario(id, limit=10_000, **{k: v for k, v in SMALL.items() if k in settings("scenarios", id)})


@pytest.mark.parametrize(("id", "scenario"), scenes())
def test_agent(id: str, scenario: str) -> None:
    check_agent(id, scenario)


def test_unknown_ids() -> None:
    with pytest.raises(NotRegisteredError, match="Did you mean 'codyra-v0'"):
        check_agent("codira-v0")
    with pytest.raises(NotRegisteredError, match="Did you mean 'CLIP-MTIL-v0'"):
        check_scenario("CLIP-MITL-v0")
