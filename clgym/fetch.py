"""What a scenario's hub source needs, what of it is on this machine, and fetching the rest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from clgym.backbones import download_backbone
from clgym.errors import ClgymError, SettingError, SourceMissingError
from clgym.hub import download, missing
from clgym.registry import find


@dataclass(frozen=True, slots=True)
class Needs:
    """What a scenario needs from the hub.

    Attributes:
        scenario: Scenario id.
        backbone: Name of the pre-trained model.
        here: Data sets whose files are on this machine.
        missing: The other data sets.
    """

    scenario: str
    backbone: str
    here: tuple[str, ...]
    missing: tuple[str, ...]


def needs(scenario: str) -> Needs:
    """Return what a scenario needs; nothing is fetched.

    Raises:
        NotRegisteredError: No scenario has that id.
        SettingError: The scenario has no hub source.
    """
    spec = find("scenarios", scenario).spec
    if not spec.hub:
        raise SettingError(f"Expected a scenario with a hub source; got {spec.id}. It needs no download.")
    absent = tuple(name for name in spec.hub if missing([name]))
    return Needs(spec.id, spec.hub_backbone, tuple(name for name in spec.hub if name not in absent), absent)


def fetch(wanted: Needs, progress: Callable[[str], None]) -> Path:
    """Fetch what is missing, and return the file of the model's weights.

    Raises:
        SourceMissingError: The hub could not be reached.
    """
    download(wanted.missing, progress=progress)
    progress(f"Model {wanted.backbone}")
    try:
        return download_backbone(wanted.backbone)
    except ClgymError:
        raise
    except Exception as error:  # the client's errors have no common base
        raise SourceMissingError(
            f"Expected to fetch {wanted.backbone}; got {type(error).__name__}: {error}. "
            "Check the network (and HF_HUB_OFFLINE) and run the command again: it resumes."
        ) from error
