"""``clgym list``, ``clgym info`` and ``clgym explain``: what there is, and what it means."""

from __future__ import annotations

from clgym.columns import columns
from clgym.metrics import METRICS
from clgym.whitebox import WHITEBOX
from tests.conftest import cli, loaded, said


def test_list() -> None:
    result = cli("list")
    assert "CLIP-MTIL-v0" in result.stdout
    assert "codyra-v0" in result.stdout
    found = loaded("list")
    assert {"id", "title", "kind", "paper", "with"} == set(found["agents"][0])
    assert list(loaded("list", "--agents")) == ["agents"]
    assert list(loaded("list", "--scenarios")) == ["scenarios"]
    assert {row["kind"] for row in loaded("list", "--kind", "replay")["agents"]} == {"replay"}
    assert "Expected a registered kind; got 'x'." in said(cli("list", "--kind", "x", exit_code=2))


def test_list_of_a_kind_says_how_a_scenario_is_made_so() -> None:
    online = loaded("list", "--kind", "online")
    assert online["agents"] == []
    assert {row["id"] for row in online["scenarios"]} >= {"CLIP-MTIL-v0", "CLIP-XTAIL-v0", "ViT-CIFAR100-CIL-v0"}
    assert {row["with"]["online"] for row in online["scenarios"]} == {"--with passes=1"}
    assert "--with passes=1" in cli("list", "--kind", "online").stdout
    assert "--with" not in cli("list", "--kind", "task-incremental").stdout
    domains = {row["id"] for row in loaded("list", "--kind", "domain-incremental")["scenarios"]}
    assert "ViT-CIFAR100-CIL-v0" in domains
    assert "CLIP-MTIL-v0" not in domains
    nothing = cli("list", "--kind", "continual-pre-training", "--agents").stdout
    assert "Nothing listed is continual-pre-training or can be made so." in nothing


def test_info_of_an_agent() -> None:
    found = loaded("info", "codyra")
    assert found["id"] == "codyra-v0"
    rank = next(setting for setting in found["settings"] if setting["name"] == "r")
    assert rank == {"name": "r", "default": 16, "description": "Rank of every adapter before pruning."}
    shown = cli("info", "codyra").stdout
    assert "arXiv:2412.01004" in shown
    assert "Rank of every adapter before pruning." in shown


def test_info_of_a_scenario_and_of_nothing() -> None:
    assert "licences" in cli("info", "CLIP-MTIL").stdout
    result = cli("info", "CLIP-MTLI-v0", exit_code=2)
    assert "Expected a registered scenario or agent; got 'CLIP-MTLI-v0'. Did you mean" in said(result)


def test_every_setting_is_described() -> None:
    found = loaded("list")
    for row in [*found["scenarios"], *found["agents"]]:
        for setting in loaded("info", row["id"])["settings"]:
            assert setting["description"].endswith("."), (row["id"], setting["name"])


def test_explain() -> None:
    shown = cli("explain", "forgetting").stdout
    assert "max_{t=j..T-1} R[t,j] - R[T,j]" in shown
    assert "arXiv:1801.10112" in shown
    assert loaded("explain", "forgetting")["higher_is_better"] is False
    assert {metric["id"] for metric in loaded("explain")["metrics"]} == set(columns())
    assert set(METRICS) | set(WHITEBOX) | {"trainable", "state_bytes"} <= set(columns())
    assert all(id in cli("explain").stdout for id in columns())
    assert "exp(-sum_k p_k ln p_k)" in cli("explain", "effective_rank").stdout
    assert "range    [0, inf], lower is better" in cli("explain", "stored").stdout
    assert "Did you mean 'forgetting'?" in said(cli("explain", "forgeting", exit_code=2))
