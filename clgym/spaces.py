"""The sets that events and answers belong to, as Gymnasium spaces."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np

from clgym.errors import InvalidAnswerError
from clgym.events import Array, End, Erase, EraseEnd, EraseRequest, Event, Guess, Query, TaskEnd, TaskStart, Train

SLOTS = 100  # most detections of an answer about one image, as COCO counts them


class EventSpace(gymnasium.Space[Event]):
    """Events of a stream whose inputs have one shape.

    Args:
        shape: ``(H, W, 3)`` of an image input, or ``()`` for text.
        seed: Fixes :meth:`sample`.

    Example:
        >>> space = EventSpace((32, 32, 3), seed=0)
        >>> space.sample() in space, TaskEnd(0) in space, "text" in space
        (True, True, False)
    """

    def __init__(self, shape: tuple[int, ...], seed: int | None = None) -> None:
        """Keep the shape of one input."""
        self.input_shape = shape
        super().__init__(None, None, seed)

    @property
    def is_np_flattenable(self) -> bool:
        """Events do not flatten to one array."""
        return False

    def sample(self, mask: Any = None, probability: Any = None) -> Event:
        """Draw a random ``Train`` batch of two."""
        del mask, probability
        inputs: Any = ("a", "b")
        if self.input_shape:
            inputs = self.np_random.integers(0, 256, (2, *self.input_shape), dtype=np.uint8)
        return Train(inputs, self.np_random.integers(0, 2, 2), np.arange(2))

    def contains(self, x: Any) -> bool:
        """Whether ``x`` is an event whose arrays have the right shape and dtype."""
        match x:
            case Train():
                whole = self._inputs(x.inputs) and len(x.ids) == len(x.inputs) == len(x.targets)
                if isinstance(x.targets, np.ndarray) and x.targets.dtype.kind == "f" and x.targets.shape[2:] != (5,):
                    return False
                return whole and x.ids.dtype == np.int64
            case Query():
                return self._inputs(x.inputs) and len(x.prompts) == len(x.candidates) > 0
            case TaskStart():
                return len(x.prompts) == len(x.classes)
            case EraseRequest():
                return x.ids.dtype == np.int64 and x.ids.ndim == 1
            case Erase():
                brought = [batch for batch in (x.forget, x.retain) if batch is not None]
                return 0 < len(brought) == sum(map(self.contains, brought)) and x.step < x.steps
            case TaskEnd() | EraseEnd() | End():
                return True
        return isinstance(x, Event)

    def _inputs(self, inputs: Any) -> bool:
        if not self.input_shape:
            return isinstance(inputs, tuple) and all(isinstance(text, str) for text in inputs)
        image = isinstance(inputs, np.ndarray) and inputs.dtype == np.uint8
        return image and inputs.shape[1:] == self.input_shape and len(inputs) > 0

    def __eq__(self, other: object) -> bool:
        """Equal if of one input shape."""
        return isinstance(other, EventSpace) and self.input_shape == other.input_shape

    def __hash__(self) -> int:
        """Hash the input shape."""
        return hash(self.input_shape)

    def __repr__(self) -> str:
        """Name the space and its shape."""
        return f"EventSpace({self.input_shape})"


class AnswerSpace(gymnasium.Space[Any]):
    """Answers to events: labels, log-probabilities, detections, a :class:`Guess`, or ``None``.

    Shapes are ``(B,)``, ``(B, C)`` and ``(B, Q, 4 + C)``; see :class:`clgym.events.Query`. Membership says that ``x``
    could answer *some* query of the stream; whether it answers the last one is checked by ``step``.

    Args:
        classes: Largest number of candidates of a query.
        seed: Fixes :meth:`sample`.

    Example:
        >>> space = AnswerSpace(3, seed=0)
        >>> None in space, np.array([0, 2]) in space, np.array([3]) in space, space.sample() in space
        (True, True, False, True)
    """

    def __init__(self, classes: int, seed: int | None = None) -> None:
        """Keep the largest number of candidates."""
        self.classes = classes
        super().__init__(None, None, seed)

    @property
    def is_np_flattenable(self) -> bool:
        """Answers do not flatten to one array."""
        return False

    def sample(self, mask: Any = None, probability: Any = None) -> Guess:
        """Draw an action that fits whatever is asked."""
        del mask, probability
        return Guess(int(self.np_random.integers(2**31)))

    def contains(self, x: Any) -> bool:
        """Whether ``x`` could answer some query."""
        if x is None or isinstance(x, Guess):
            return True
        if not isinstance(x, np.ndarray) or not len(x):
            return False
        if x.dtype == np.int64:
            return x.ndim == 1 and bool(((x >= 0) & (x < self.classes)).all())
        if x.dtype not in (np.float32, np.float64):
            return False
        if x.ndim == 3:
            return 4 < x.shape[2] <= 4 + self.classes and 0 < x.shape[1] <= SLOTS and fault_of_boxes(x) == ""
        return x.ndim == 2 and fault_of_scores(x) == ""

    def __eq__(self, other: object) -> bool:
        """Equal if of as many classes."""
        return isinstance(other, AnswerSpace) and self.classes == other.classes

    def __hash__(self) -> int:
        """Hash the number of classes."""
        return hash(self.classes)

    def __repr__(self) -> str:
        """Name the space and its size."""
        return f"AnswerSpace({self.classes})"


def fault_of_scores(scores: Array) -> str:
    """Return what keeps ``scores`` ``(B, C)`` from being log-probabilities, or ``""``.

    Each row's exponentials must sum to 1 within 1e-3; ``-inf`` is allowed, NaN is not.

    >>> fault_of_scores(np.log([[0.5, 0.5]]))
    ''
    >>> fault_of_scores(np.array([[0.5, 0.5]]))
    'rows whose exponentials sum to between 3.297 and 3.297'
    """
    if np.isnan(scores).any():
        return f"NaN in row {int(np.isnan(scores).any(axis=1).argmax())}"
    with np.errstate(over="ignore"):
        total = np.exp(scores).sum(axis=1)
    if not (np.abs(total - 1) < 1e-3).all():
        return f"rows whose exponentials sum to between {total.min():.4g} and {total.max():.4g}"
    return ""


def fault_of_boxes(found: Array) -> str:
    """Return what keeps ``found`` ``(B, Q, 4 + C)`` from being boxes and scores, or ``""``: all lie in [0, 1].

    >>> fault_of_boxes(np.array([[[0.5, 0.5, 0.2, 1.5, 0.9]]]))
    'values from 0.2 to 1.5'
    """
    if np.isnan(found).any():
        return f"NaN in row {int(np.isnan(found).any(axis=(1, 2)).argmax())}"
    return "" if ((found >= 0) & (found <= 1)).all() else f"values from {found.min():.4g} to {found.max():.4g}"


def _checked_boxes(event: Query, action: Any) -> Array:
    """Return detections as an array; a :class:`Guess` becomes one for each image."""
    B, C = len(event.inputs), len(event.candidates)
    if type(action) is Guess:
        return np.random.default_rng(action.seed).random((B, 1, 4 + C), np.float32)
    wanted = f"float detections of shape ({B}, Q, {4 + C}) with Q from 1 to {SLOTS}, all in [0, 1]"
    if not isinstance(action, np.ndarray):
        fault, fix = kind_of(action), "Return agent.act(event)." if action is None else "Convert it to a NumPy array."
    elif (
        action.dtype not in (np.float32, np.float64)
        or action.ndim != 3
        or action.shape != (B, action.shape[1], 4 + C)
        or not 0 < action.shape[1] <= SLOTS
    ):
        fault, fix = kind_of(action), "Give centre x, centre y, width, height and a score per candidate in a row."
    else:
        fault, fix = fault_of_boxes(action), "Boxes are shares of the image, and scores are probabilities."
    if fault:
        raise InvalidAnswerError(f"Expected {wanted}; got {fault}. {fix}")
    return action  # type: ignore[no-any-return]


def checked(event: Query, action: Any, needs_scores: bool) -> Array:
    """Return the answer to a query as an array; a :class:`Guess` becomes labels, or boxes where these are wanted.

    Args:
        event: What is answered.
        action: Labels int64 ``(B,)``, log-probabilities ``(B, C)``, or detections ``(B, Q, 4 + C)``.
        needs_scores: Whether labels are refused.

    Raises:
        InvalidAnswerError: The answer has another shape, dtype or range.
    """
    B, C = len(event.inputs), len(event.candidates)
    if event.wants == "boxes":
        return _checked_boxes(event, action)
    if type(action) is Guess:
        return np.random.default_rng(action.seed).integers(0, C, B)
    wanted = f"float log-probabilities of shape ({B}, {C})"
    if not needs_scores:
        wanted = f"int64 labels of shape ({B},) in [0, {C}) or {wanted}"
    fault, fix = "", "Return agent.act(event)."
    if not isinstance(action, np.ndarray):
        fault = kind_of(action)
        fix = "Convert it to a NumPy array." if action is not None else fix
    elif action.ndim == 1 and not needs_scores:
        if action.dtype != np.int64 or action.shape != (B,):
            fault, fix = kind_of(action), "Give one label per question, with dtype int64."
        elif ((action < 0) | (action >= C)).any():
            fault = f"labels from {action.min()} to {action.max()}"
            fix = "Labels index event.candidates."
    elif action.dtype not in (np.float32, np.float64) or action.shape != (B, C):
        fault, fix = kind_of(action), "Give one row per question and one column per candidate."
    else:
        fault, fix = fault_of_scores(action), "Apply log_softmax over the candidates."
    if fault:
        raise InvalidAnswerError(f"Expected {wanted}; got {fault}. {fix}")
    return action  # type: ignore[no-any-return]


def kind_of(x: Any) -> str:
    """Say in words what a value is.

    >>> kind_of(np.zeros((2, 3))), kind_of(None)
    ('float64 of shape (2, 3)', 'None')
    """
    if isinstance(x, np.ndarray):
        return f"{x.dtype} of shape {x.shape}"
    return "None" if x is None else type(x).__name__
