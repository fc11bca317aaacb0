"""An agent: learns from labelled batches, answers unlabelled ones."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from clgym.errors import UnsupportedEventError
from clgym.events import (
    Answer,
    Array,
    End,
    Erase,
    EraseEnd,
    EraseRequest,
    Event,
    Inputs,
    Query,
    TaskEnd,
    TaskStart,
    Train,
)

EMBEDDED_CLIP, EMBEDDED_VIT, TIMM = "embedded/tiny-clip", "embedded/tiny-vit", "timm/"
EMBEDDED_YOLOS, TRANSFORMERS = "embedded/tiny-yolos", "transformers/"  # detectors


def reads_text(backbone: str) -> bool:
    """Return whether a backbone has a text encoder, from its name alone.

    >>> reads_text("ViT-B-16/openai"), reads_text("embedded/tiny-vit")
    (True, False)
    """
    return backbone not in (EMBEDDED_VIT, EMBEDDED_YOLOS) and not backbone.startswith((TIMM, TRANSFORMERS))


@dataclass(frozen=True, slots=True)
class AgentSpec:
    """What a method is, in words and constants.

    Attributes:
        id: Name and version, such as ``"codyra-v0"``; the version moves when a change moves any number.
        title: One line.
        paper: The paper, as an arXiv id or DOI; ``""`` for a baseline without one.
        code: The authors' code and the commit that was read, or ``""``.
        departs: How this file differs from paper or released code, and why; ``""`` if it does not.
        family: The survey's family (arXiv:2302.00487, section 4), or ``"baseline"``.
        modalities: What inputs it takes.
        stores_samples: Whether training samples survive their event.
        needs_task_id: Whether a query must say its task.
        needs_text: Whether the backbone must read texts, as CLIP does and a plain vision transformer does not.
        needs_head: Whether it must not: classes have to be rows of a head, and on CLIP they are texts.
        wraps: Name of the setting that names the agent it wraps, or ``""``; ``<wraps>.<name>`` is a setting of that.
        mergeable: Whether inference costs no more than the backbone's.
    """

    id: str
    title: str
    paper: str = ""
    code: str = ""
    departs: str = ""
    family: str = "baseline"
    modalities: tuple[str, ...] = ("image",)
    stores_samples: bool = False
    needs_task_id: bool = False
    needs_text: bool = False
    needs_head: bool = False
    wraps: str = ""
    mergeable: bool = True


@dataclass(frozen=True, slots=True)
class Setup:
    """What an agent may know before the stream starts.

    Attributes:
        modality: ``"image"``, ``"text"`` or ``"detection"``.
        shape: ``(H, W, 3)`` of an image input, or ``()``.
        backbone: Name of the scenario's pre-trained model.
        seed: Fixes the agent's own randomness.
        device: ``"auto"``, ``"cpu"`` or ``"cuda"``.
        precision: ``"fp32"``, or ``"bf16"`` for mixed precision.
        build: Builds the agent that a wrapper wraps, by id, for the same stream; ``None`` is for nobody's wrapper.
    """

    modality: str
    shape: tuple[int, ...]
    backbone: str
    seed: int = 0
    device: str = "auto"
    precision: str = "fp32"
    build: Callable[[str], Agent] | None = field(default=None, compare=False, repr=False)

    @property
    def reads_text(self) -> bool:
        """Whether the backbone has a text encoder."""
        return reads_text(self.backbone)


@dataclass(frozen=True, slots=True)
class Footprint:
    """What an agent costs besides time; the classifier that a vision transformer needs with any method is left out.

    Attributes:
        trainable: Parameters trained in the current task.
        stored: Values kept between tasks beyond the backbone, samples not counted.
        added_at_inference: Parameters used at inference beyond the backbone's.
        sample_bytes: Bytes of stored training samples.
    """

    trainable: int = 0
    stored: int = 0
    added_at_inference: int = 0
    sample_bytes: int = 0


class Agent(ABC):
    """Subclass this in ``agents/<name>.py``.

    ``__init__`` takes a :class:`Setup`, then the method's own settings as keyword arguments, each with a default.
    Gradient methods subclass :class:`clgym.learner.Learner` instead.
    """

    spec: ClassVar[AgentSpec]

    def __init__(self, setup: Setup) -> None:
        """Keep what is known of the stream."""
        self.setup = setup

    def act(self, event: Event) -> Answer | None:
        """Take one event; return the answer to a ``Query``, ``None`` to all others.

        Raises:
            UnsupportedEventError: The agent does not know this kind of event.
        """
        match event:
            case Query():
                return self.answer(event)
            case Train():
                self.learn(event)
            case TaskStart():
                self.begin_task(event)
            case TaskEnd():
                self.end_task(event)
            case EraseRequest():
                self.begin_erasure(event)
            case Erase():
                self.erase(event)
            case EraseEnd():
                self.end_erasure(event)
            case End():
                pass
            case _:
                raise self._unsupported(event)
        return None

    def begin_task(self, event: TaskStart) -> None:
        """Prepare for a task; does nothing unless overridden."""
        del event

    def learn(self, event: Train) -> None:
        """Learn from one batch; does nothing unless overridden."""
        del event

    def end_task(self, event: TaskEnd) -> None:
        """Put a task away; does nothing unless overridden."""
        del event

    def begin_erasure(self, event: EraseRequest) -> None:
        """Take note of what must be forgotten, and of what may be read for it.

        Raises:
            UnsupportedEventError: The agent cannot be asked to forget; a request is never met by silence.
        """
        raise self._unsupported(event)

    def erase(self, event: Erase) -> None:
        """Unlearn with a batch to forget, a batch to retain, or both.

        Raises:
            UnsupportedEventError: Unless overridden.
        """
        raise self._unsupported(event)

    def end_erasure(self, event: EraseEnd) -> None:
        """Finish with a request; returning acknowledges it, and nothing of its samples may be left.

        Raises:
            UnsupportedEventError: Unless overridden.
        """
        raise self._unsupported(event)

    def _unsupported(self, event: Event) -> UnsupportedEventError:
        return UnsupportedEventError(
            f"Expected an event that {self.spec.id} handles; got {type(event).__name__}. "
            "Choose another agent, or override the method of Agent that takes it."
        )

    @abstractmethod
    def answer(self, event: Query) -> Answer:
        """Answer a query without changing state; see :class:`clgym.events.Query` for what is wanted."""

    def state_dict(self) -> dict[str, Any]:
        """Return all that :meth:`load_state_dict` needs: arrays or tensors, and JSON values, by name."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where :meth:`state_dict` was called."""
        del state

    def footprint(self) -> Footprint:
        """Return what the agent costs besides time."""
        return Footprint()

    def features(self, inputs: Inputs) -> Array | None:
        """Return the features ``(B, d)`` that the classifier reads, for :mod:`clgym.whitebox`; ``None`` offers none.

        This and the two methods below change nothing in the agent, and see no labels.
        """
        del inputs
        return None

    def activations(self, inputs: Inputs) -> Sequence[Array] | None:
        """Return the hidden units' mean absolute values over tokens, ``(B, units)`` by layer; ``None`` offers none."""
        del inputs
        return None

    def matrices(self) -> Iterable[Array] | None:
        """Return the network's parameters as they act now, one array each; ``None`` offers none."""
        return None
