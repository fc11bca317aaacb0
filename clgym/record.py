"""What is kept of a run: enough to recompute every number, written so that nothing is ever half there."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from io import BytesIO
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from clgym.errors import RecordError, SettingError

SCHEMA: Final = 1


class RunRecord(BaseModel):
    """One run of one agent on one scenario with one seed; the content of ``run.json``.

    Attributes:
        layout: Version of this layout.
        clgym: Version of clgym.
        scenario: Scenario id.
        scenario_settings: Settings that differ from the scenario's defaults.
        source: The data's source; results of different sources never share a table.
        backbone: Name of the pre-trained model.
        agent: Agent id.
        agent_settings: Settings that differ from the agent's defaults.
        seed: Fixes order, data order and agent.
        status: ``"running"`` until the end of the stream.
        tasks: Task names in order.
        R: Accuracy matrix ``(T + 1, T)``, unrounded; ``None`` where not measured.
        metrics: Metric id to value, unrounded; ``None`` where undefined.
        fingerprints: sha256 of spec, stream, data and backbone.
        versions: Versions of Python and libraries.
        hardware: Architecture, cores, threads, device, precision.
        resources: Parameters, bytes, seconds, samples.
        files: sha256 of the other files of the run.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    layout: Literal[1] = SCHEMA
    clgym: str
    scenario: str
    scenario_settings: dict[str, Any] = Field(default_factory=dict)
    source: str
    backbone: str
    agent: str
    agent_settings: dict[str, Any] = Field(default_factory=dict)
    seed: int
    status: Literal["running", "finished"] = "running"
    tasks: list[str] = Field(default_factory=list)
    R: list[list[float | None]] = Field(default_factory=list)
    metrics: dict[str, float | None] = Field(default_factory=dict)
    fingerprints: dict[str, str] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=dict)
    hardware: dict[str, Any] = Field(default_factory=dict)
    resources: dict[str, Any] = Field(default_factory=dict)
    files: dict[str, str] = Field(default_factory=dict)

    @property
    def matrix(self) -> npt.NDArray[np.float64]:
        """Return ``R`` as float64 ``(T + 1, T)`` with NaN where not measured."""
        return np.array(self.R, dtype=np.float64)

    @property
    def identity(self) -> tuple[str, ...]:
        """Return what two runs must share to be the same run."""
        chosen = [json.dumps(s, sort_keys=True) for s in (self.scenario_settings, self.agent_settings)]
        return (self.scenario, chosen[0], self.source, self.agent, chosen[1], str(self.seed))

    def save(self, folder: Path) -> None:
        """Write ``run.json`` atomically, with a checksum of its own content."""
        body = self.model_dump(mode="json")
        text = json.dumps({**body, "checksum": _checksum(body)}, indent=1, allow_nan=False)
        write_atomic(folder / "run.json", text.encode() + b"\n")

    @classmethod
    def load(cls, folder: Path) -> RunRecord:
        """Read ``run.json`` and verify it and every file it lists.

        Raises:
            RecordError: A file is missing, truncated or tampered with; the message names it.
        """
        path = folder / "run.json"
        if not path.is_file():
            raise RecordError(f"Expected a run folder with run.json; got {folder}. Pass a folder that clgym run wrote.")
        try:
            body = json.loads(path.read_text(encoding="utf-8"))
            checksum = body.pop("checksum")
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise RecordError(f"Expected whole JSON in {path}; got {error!r}. {_AGAIN}") from error
        if checksum != _checksum(body):
            raise RecordError(f"Expected {path} as clgym wrote it; got other content. {_AGAIN}")
        record = cls.parse(body, path)
        for name, digest in record.files.items():
            verify(folder / name, digest)
        return record

    @classmethod
    def parse(cls, body: Any, path: Path) -> RunRecord:
        """Return the record that JSON values describe; ``path`` is where they were found.

        Raises:
            RecordError: A field is unknown, missing or of another type.
        """
        try:
            return cls.model_validate(body)
        except ValidationError as error:
            fault = error.errors()[0]
            where = ".".join(map(str, fault["loc"]))
            raise RecordError(
                f"Expected layout {SCHEMA} in {path}; got {where}: {fault['msg']}. "
                "Read it with the clgym that wrote it."
            ) from error


_REDO = "Restore it from a copy, or run again with --overwrite."
_DRAFT = ".draft"
_AGAIN = "Restore it from a copy, or delete it and add --resume: what checkpoints hold is kept."


def _checksum(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def same_run(folder: Path, found: RunRecord, new: RunRecord) -> None:
    """Raise unless a folder holds the run that is wanted.

    Raises:
        RecordError: It is another one.
    """
    if found.identity != new.identity:
        raise RecordError(
            f"Expected the run {new.identity} in {folder}; got {found.identity}. Add --overwrite to replace it."
        )


def same_circumstances(found: RunRecord, new: RunRecord) -> None:
    """Raise unless a run can be continued to the record that it would have had without interruption.

    Raises:
        SettingError: Threads, device or versions differ, and with them the last bits of sums.
    """
    if (a := found.hardware["threads"]) != (b := new.hardware["threads"]):
        raise SettingError(
            f"Expected {a} threads, as this run began with; got {b}. "
            f"Set OMP_NUM_THREADS={a}, or sums differ in their last bits."
        )
    was, now = ({"clgym": r.clgym, **r.versions, **r.hardware} for r in (found, new))
    for name in sorted((was.keys() | now.keys()) - {"python", "cores"}):
        if was.get(name) != now.get(name):
            raise SettingError(
                f"Expected {name} {was.get(name)}, as this run began with; got {now.get(name)}. "
                "Continue it as it began, or add --overwrite to start again."
            )


def verify(path: Path, digest: str) -> None:
    """Raise unless a file is there and has that sha256."""
    if not path.is_file():
        raise RecordError(f"Expected the file {path}; got none. {_REDO}")
    if (found := sha256_of(path)) != digest:
        raise RecordError(f"Expected {path} with sha256 {digest[:12]}…; got {found[:12]}…. {_REDO}")


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file so that a crash leaves either the old one or the new one, whole.

    A process that is killed while it writes leaves its draft behind; :func:`sweep` removes it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-", suffix=_DRAFT)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def sweep(folder: Path) -> None:
    """Remove the drafts that killed processes left in a folder; no other file is touched."""
    for draft in folder.glob(f".*{_DRAFT}"):
        draft.unlink(missing_ok=True)


def nullable(values: npt.NDArray[np.float64]) -> list[Any]:
    """Return an array as nested lists with ``None`` for NaN, as JSON wants it."""
    cells = values.astype(object)
    cells[np.isnan(values)] = None
    return cells.tolist()  # type: ignore[no-any-return]


def parquet(columns: dict[str, Any]) -> bytes:
    """Return a Parquet file of named columns; the same columns give the same bytes."""
    sink = BytesIO()
    pq.write_table(pa.table(columns), sink, compression="zstd")
    return sink.getvalue()
