"""Everything clgym raises on purpose.

A message says what was expected, what came, and what to do, in that order.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ClgymError(Exception):
    """Base class; catch this to catch all of clgym."""

    exit_code = 1


class NotRegisteredError(ClgymError, LookupError):
    """The registry holds nothing under that id."""

    exit_code = 2

    @classmethod
    def among(cls, kind: str, name: str, known: Iterable[str]) -> NotRegisteredError:
        """Build the error, with the nearest known name.

        >>> NotRegisteredError.among("agent", "codira", ["codyra", "replay"])
        NotRegisteredError("Expected a registered agent; got 'codira'. Did you mean 'codyra'? Known: codyra, replay.")
        """
        known = sorted(known)
        near = difflib.get_close_matches(name, known, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        return cls(f"Expected a registered {kind}; got {name!r}.{hint} Known: {', '.join(known)}.")


class SettingError(ClgymError, ValueError):
    """A setting of a scenario, an agent or a command is unknown or out of range."""

    exit_code = 2


class InvalidAnswerError(ClgymError, ValueError):
    """An agent answered outside the action space, or out of turn; the environment's state is unchanged."""

    exit_code = 3


class StreamEndedError(ClgymError, RuntimeError):
    """A step was taken before the first reset or after the end of the stream."""

    exit_code = 3


class SourceError(ClgymError, ValueError):
    """A data source is malformed; the message names the file and the fix."""

    exit_code = 4


class SourceMissingError(ClgymError, FileNotFoundError):
    """Data or weights of a source are not on this machine; the message lists them and how to fetch them."""

    exit_code = 4


class RecordError(ClgymError, ValueError):
    """A run record or checkpoint is truncated, tampered with, or of another run."""

    exit_code = 5


class DependencyError(ClgymError, ImportError):
    """An optional package is needed and not installed; the message names the extra."""

    exit_code = 6


class BackendError(ClgymError, RuntimeError):
    """The backend that was asked for cannot serve the call; the message says why and what can."""

    exit_code = 6


class UnsupportedEventError(ClgymError, NotImplementedError):
    """An agent was shown a kind of event that it does not handle."""

    exit_code = 3


class ErasedError(ClgymError, LookupError):
    """A sample was asked for that the stream has erased; nothing brings it back."""

    exit_code = 8


class ContractError(ClgymError, AssertionError):
    """An agent or a scenario breaks a rule of :mod:`clgym.check`; the message names the rule and the fix."""

    exit_code = 7


class WorkerError(ClgymError, RuntimeError):
    """A process that played a run ended without a word: killed, or out of memory."""

    exit_code = 8
