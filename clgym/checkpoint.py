"""Checkpoints: one safetensors file each, named by its own hash, so that damage shows and nothing is pickled."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import threading
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from clgym.errors import RecordError
from clgym.record import write_atomic

KEEP = 2

States = dict[str, dict[str, Any]]


class Patience:
    """Holds Ctrl-C back until the event in hand is finished: half an event cannot be continued.

    A second Ctrl-C does not wait; the last checkpoint stands then.
    """

    def __init__(self) -> None:
        """Wait for nothing yet."""
        self.asked = False

    def __enter__(self) -> Self:
        """Take over Ctrl-C where it would raise ``KeyboardInterrupt`` in this thread."""
        main = threading.current_thread() is threading.main_thread()
        self._mine = main and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if self._mine:
            signal.signal(signal.SIGINT, self._note)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give Ctrl-C back; one that came too late to be acted upon is raised here."""
        if self._mine:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if self.asked and kind is None:
            raise KeyboardInterrupt


def write(folder: Path, position: int, states: States) -> Path:
    """Write the states of a run at an event, atomically, and drop all but the newest two files.

    Args:
        folder: The run's ``checkpoint`` folder.
        position: Events so far.
        states: For each part of the run a flat dict of arrays, tensors and JSON values. Tuples come back as
            lists, NumPy's scalars as arrays without dimensions.

    Raises:
        RecordError: A value is none of these; the message names it.
    """
    tensors: dict[str, torch.Tensor] = {}
    values: States = {part: {} for part in states}
    arrays = []
    for part, state in states.items():
        for name, value in state.items():
            key = f"{part}/{name}"
            if isinstance(value, np.generic):
                value = np.asarray(value)
            if isinstance(value, np.ndarray | torch.Tensor):
                tensors[key] = _tensor(key, value)
                if isinstance(value, np.ndarray):
                    arrays.append(key)
            elif _is_json(value):
                values[part][name] = value
            else:
                raise _unfit(key, repr(value)[:80])
    # Metadata keys come out of safetensors in no fixed order, hence one entry.
    content = save(tensors, {"values": json.dumps({"states": values, "arrays": arrays}, sort_keys=True)})
    digest = hashlib.sha256(content).hexdigest()[:16]
    path = folder / f"{position:09d}-{digest}.safetensors"
    write_atomic(path, content)
    # A second file of one event would push out the one to fall back on.
    twins = [twin for twin in folder.glob(f"{position:09d}-*.safetensors") if twin != path]
    others = [file for file in _files(folder) if file not in twins]
    for old in [*twins, *others[:-KEEP]]:
        old.unlink(missing_ok=True)
    return path


def read(folder: Path) -> States | None:
    """Return the newest states, arrays and tensors as they were given, or ``None`` where there is no checkpoint.

    Raises:
        RecordError: The newest file is truncated or tampered with; it is named, and no other is touched.
    """
    found = _files(folder)
    if not found:
        return None
    content = found[-1].read_bytes()
    digest = hashlib.sha256(content).hexdigest()[:16]
    try:
        if not found[-1].stem.endswith(f"-{digest}"):
            raise SafetensorError(f"sha256 {digest}…")
        tensors = load(content)
        header = json.loads(_metadata(content)["values"])
        states: States = header["states"]
        arrays = set(header["arrays"])
    except (SafetensorError, ValueError, KeyError) as error:
        before = f"continue from {found[-2].name}" if len(found) > 1 else "start again"
        raise RecordError(
            f"Expected {found[-1]} as clgym wrote it; got {error}. Delete that file to {before}."
        ) from error
    for key, tensor in tensors.items():
        part, _, name = key.partition("/")
        states[part][name] = tensor.numpy() if key in arrays else tensor
    return states


def exists(folder: Path) -> bool:
    """Whether there is a checkpoint, whole or not."""
    return bool(_files(folder))


def clear(folder: Path) -> None:
    """Remove all checkpoints of a run."""
    if folder.is_dir():
        shutil.rmtree(folder)


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def _tensor(key: str, value: np.ndarray[Any, Any] | torch.Tensor) -> torch.Tensor:
    """Return a copy that shares memory with nothing, on the CPU."""
    try:
        if isinstance(value, np.ndarray):
            value = torch.from_numpy(value.copy(order="C"))
        if value.dtype == torch.complex128:
            raise TypeError
        return value.detach().cpu().clone(memory_format=torch.contiguous_format)
    except (TypeError, ValueError, RuntimeError) as error:
        raise _unfit(key, f"{type(value).__name__} of {value.dtype}, which safetensors does not hold") from error


def _is_json(value: Any) -> bool:
    """Whether JSON gives a value back as it is, but for tuples; keys that are no texts would change."""
    if isinstance(value, list | tuple):
        return all(map(_is_json, value))
    if isinstance(value, dict):
        return all(isinstance(key, str) for key in value) and all(map(_is_json, value.values()))
    return value is None or isinstance(value, str | int | float)


def _unfit(key: str, got: str) -> RecordError:
    return RecordError(
        f"Expected arrays, tensors and JSON values in a state; got {key} = {got}. Convert it in state_dict()."
    )


def _metadata(content: bytes) -> dict[str, str]:
    """Return the metadata of a safetensors file: eight bytes of length, then JSON."""
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return header["__metadata__"]  # type: ignore[no-any-return]
