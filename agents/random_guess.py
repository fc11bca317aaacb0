"""Random guessing: what a row of a table is worth when nothing is known at all."""

from __future__ import annotations

import hashlib

import numpy as np

from clgym.agent import Agent, AgentSpec, Setup
from clgym.events import Answer, Erase, EraseEnd, EraseRequest, Query
from clgym.seeds import agent_seed

TIE = 1e-3  # spread of the log-probabilities: enough to rank them, too little to say anything
BOXES = 10  # of an image


class RandomGuess(Agent):
    """Guesses a class uniformly at random, and is as unsure of it as it should be.

    The guess is drawn from the agent's seed and the question alone, so that the same question has the same answer
    whenever and beside whatever it is asked. Log-probabilities are those of the uniform distribution but for
    noise that decides which is the largest.

    Args:
        setup: What is known of the stream.
    """

    spec = AgentSpec(id="random_guess-v0", title="Random guess", family="baseline", modalities=("image", "detection"))

    def __init__(self, setup: Setup) -> None:
        """Turn the seed into the key of the hash."""
        super().__init__(setup)
        self.key = agent_seed(setup.seed).to_bytes(8, "little")

    def answer(self, event: Query) -> Answer:
        """Return log-probabilities ``(B, C)``, or ten detections anywhere ``(B, 10, 4 + C)``, float32."""
        assert isinstance(event.inputs, np.ndarray)
        if event.wants == "boxes":
            width = 4 + len(event.candidates)
            rows = [self._noise(image.tobytes(), BOXES * width) / TIE for image in event.inputs]
            return np.stack(rows).reshape(-1, BOXES, width).astype(np.float32)
        logits = np.stack([self._noise(image.tobytes(), len(event.candidates)) for image in event.inputs])
        answer: Answer = (logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))).astype(np.float32)
        return answer

    def begin_erasure(self, event: EraseRequest) -> None:
        """Agree: what was never learned is forgotten."""
        del event

    def erase(self, event: Erase) -> None:
        """Do nothing."""
        del event

    def end_erasure(self, event: EraseEnd) -> None:
        """Acknowledge."""
        del event

    def _noise(self, content: bytes, classes: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        digest = hashlib.blake2b(content, digest_size=16, key=self.key).digest()
        return np.random.default_rng(int.from_bytes(digest, "little")).uniform(0.0, TIE, classes)
