"""Checkpoints: one safetensors file each, named by its own hash, so that damage shows and nothing is pickled."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from clgym.errors import RecordError
from clgym.record import write_atomic

KEEP = 2


def write(folder: Path, position: int, states: dict[str, dict[str, Any]]) -> Path:
    """Write the states of a run at an event, atomically, and drop all but the newest two files.

    Args:
        folder: The run's ``checkpoint`` folder.
        position: Events so far.
        states: For each part of the run a flat dict of arrays, tensors and JSON values.
    """
    tensors: dict[str, torch.Tensor] = {}
    values: dict[str, Any] = {}
    for part, state in states.items():
        for name, value in state.items():
            key = f"{part}/{name}"
            if isinstance(value, np.ndarray):
                value = torch.from_numpy(np.ascontiguousarray(value))
            if isinstance(value, torch.Tensor):
                tensors[key] = value.detach().cpu().clone().contiguous()
            else:
                values[key] = value
    # Metadata keys come out of safetensors in no fixed order, hence one entry.
    content = save(tensors, {"values": json.dumps(values, sort_keys=True)})
    digest = hashlib.sha256(content).hexdigest()[:16]
    path = folder / f"{position:09d}-{digest}.safetensors"
    write_atomic(path, content)
    for old in sorted(folder.glob("*.safetensors"))[:-KEEP]:
        old.unlink(missing_ok=True)
    return path


def read(folder: Path) -> dict[str, dict[str, Any]] | None:
    """Return the newest states, tensors as ``torch.Tensor``, or ``None`` where there is no checkpoint.

    Raises:
        RecordError: The newest file is truncated or tampered with; it is named, and no other is touched.
    """
    found = sorted(folder.glob("*.safetensors"))
    if not found:
        return None
    content = found[-1].read_bytes()
    digest = hashlib.sha256(content).hexdigest()[:16]
    try:
        if not found[-1].stem.endswith(digest):
            raise SafetensorError(f"sha256 {digest}…")
        tensors = load(content)
        values = json.loads(_metadata(content)["values"])
    except (SafetensorError, ValueError, KeyError) as error:
        before = f"continue from {found[-2].name}" if len(found) > 1 else "start again"
        raise RecordError(
            f"Expected {found[-1]} as clgym wrote it; got {error}. Delete that file to {before}."
        ) from error
    states: dict[str, dict[str, Any]] = {}
    for key, value in {**tensors, **values}.items():
        part, _, name = key.partition("/")
        states.setdefault(part, {})[name] = value
    return states


def _metadata(content: bytes) -> dict[str, str]:
    """Return the metadata of a safetensors file: eight bytes of length, then JSON."""
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return header["__metadata__"]  # type: ignore[no-any-return]
