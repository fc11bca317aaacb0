"""``clgym doctor`` and ``clgym conformance``: whether this installation is healthy and counts right."""

from __future__ import annotations

import pytest

from clgym.doctor import Finding
from tests.conftest import cli, loaded


def test_conformance_passes_and_shows_the_peers() -> None:
    found = loaded("conformance")
    assert found["passed"]
    assert found["failures"] == []
    shown = cli("conformance").stdout
    assert "all as expected" in shown
    assert "forgetting_first_to_last" in shown


def test_conformance_fails_loudly(monkeypatch: pytest.MonkeyPatch) -> None:
    from clgym.conformance import Failure

    monkeypatch.setattr("clgym.conformance.check", lambda: [Failure("case", "last", "0.5", "0.6")])
    result = cli("conformance", exit_code=1)
    assert "1 differ" in result.stdout
    assert not loaded("conformance", exit_code=1)["passed"]


def test_doctor_finds_this_installation_healthy() -> None:
    found = loaded("doctor")
    assert found["healthy"]
    names = {finding["name"]: finding["mark"] for finding in found["findings"]}
    assert names["embedded weights"] == names["self-test"] == names["gymnasium ids"] == "ok"
    assert all(finding["fix"] for finding in found["findings"] if finding["mark"] != "ok")


def test_doctor_exits_with_1_on_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = Finding("torch", "fail", "not installed", "pip install 'torch[x]'")
    monkeypatch.setattr("clgym.doctor.examine", lambda: iter([broken]))
    assert "pip install 'torch[x]'" in cli("doctor", exit_code=1).stdout


def test_doctor_outlives_a_check_that_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    from clgym import doctor

    monkeypatch.setattr("clgym.worlds.tiny_clip.load", lambda: 1 / 0)
    found = {finding.name: finding for finding in doctor.examine()}
    assert found["weights"].mark == "fail"
    assert "ZeroDivisionError" in found["weights"].found
