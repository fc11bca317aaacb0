"""``clgym download``: what a scenario needs, and what is said without network."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from clgym.registry import find
from tests.conftest import cli, loaded, said


def test_download_check_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLGYM_DATA", str(tmp_path))
    found = loaded("download", "CLIP-MTIL-v0", "--check")
    assert found["here"] == []
    assert len(found["missing"]) == 11
    assert "missing" in cli("download", "CLIP-MTIL-v0", "--check").stdout
    assert found["backbone"] == "ViT-B-16/openai"


def test_download_is_of_what_the_scenario_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLGYM_DATA", str(tmp_path))
    found = loaded("download", "ViT-VTAB-CIL-v0", "--check")
    assert found["missing"] == ["resisc45", "dtd", "oxford_pet", "eurosat", "flowers"]
    assert found["backbone"] == "timm/vit_base_patch16_224.augreg_in21k_ft_in1k"
    shown = cli("download", "CLIP-ImageNet100-CIL-v0", "--check").stdout
    assert "ILSVRC/imagenet-1k" in shown
    assert "mteb" not in shown


def test_download_of_a_scenario_without_a_hub_source(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = find("scenarios", "CLIP-MTIL-v0")
    monkeypatch.setattr("clgym.fetch.find", lambda room, id: replace(entry, spec=replace(entry.spec, hub=())))
    words = "Expected a scenario with a hub source; got CLIP-MTIL-v0. It needs no download."
    assert words in said(cli("download", "CLIP-MTIL-v0", "--check", exit_code=2))


def test_download_without_network_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(**kwargs: object) -> None:
        raise ConnectionError("no network")

    monkeypatch.setenv("CLGYM_DATA", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    result = cli("download", "CLIP-MTIL-v0", exit_code=4)
    assert "got ConnectionError: no network. Check the network" in said(result)
    assert loaded("download", "CLIP-MTIL-v0", exit_code=4)["error"]["kind"] == "SourceMissingError"


def test_download_of_weights_without_network_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(name: str) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr("clgym.fetch.download", lambda names, progress: None)
    monkeypatch.setattr("clgym.fetch.download_backbone", offline)
    result = cli("download", "CLIP-MTIL-v0", exit_code=4)
    assert "Expected to fetch ViT-B-16/openai; got ConnectionError: no network." in said(result)
