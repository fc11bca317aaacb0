"""LingoCL: any method on a vision transformer, taught towards frozen vectors that a language model gives classes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from clgym.agent import Agent, AgentSpec, Footprint, Setup
from clgym.errors import SettingError
from clgym.events import Answer, Array, Event, Inputs, Query
from clgym.head import TargetHead
from clgym.learner import Learner
from clgym.seeds import agent_seed
from clgym.texts import encode

TARGETS = ("text", "random")


class LingoCL(Agent):
    """A host method whose classifier is frozen language features (LingoCL, arXiv:2403.16124).

    The host's head of trained rows gives way to one vector ``s_c`` of length 1 for every class, which a pre-trained
    language model makes of the class's words at the start of its task and which never changes. With the host's
    feature ``f(x)``, ``logit_c(x) = eta cos(f(x), s_c)``, where only ``eta`` is trained. Everything else is the host's:
    what it trains, on what loss, and what it keeps. Its settings are given as ``host.<name>``, as in
    ``--agent lingocl --set host=replay --set host.lr=1e-3``.

    On CLIP every method's classes are text features as it is, and LingoCL is refused; there its idea is a host with
    its text encoder frozen, such as ``--agent sequential_lora --set targets=vision``.

    Args:
        setup: What is known of the stream.
        host: Id of the wrapped method: any that trains a head on a vision transformer.
        targets: ``"text"``, or ``"random"``: orthonormal directions drawn from the seed; the control that shows what
            the language adds to mere freezing. Where classes outnumber dimensions another basis is begun.
        encoder: Text encoder, as :func:`clgym.texts.encode` knows it; ``""`` is ``"embedded/tiny-clip"`` on an embedded
            backbone and ``"ViT-B-32/openai"`` elsewhere.
        scale: ``eta`` at the start, above 0.

    Raises:
        SettingError: A setting is out of range, or the host cannot do with given vectors.
        SourceMissingError: At the first task: the encoder's weights are not on this machine.
    """

    spec = AgentSpec(
        id="lingocl-v0",
        title="LingoCL (frozen language targets)",
        paper="arXiv:2403.16124",
        family="representation",
        departs=(
            "No code of the authors was found, and what the abstract does not say is ours: the text is the class's "
            "first prompt, eta is learned by its logarithm from 16, and where text and image features differ in "
            "length, a frozen random map with orthonormal rows or columns takes one to the other. Whether samples are "
            "stored and adapters can be merged is as with the host; here said of the default."
        ),
        needs_head=True,
        wraps="host",
    )

    def __init__(
        self,
        setup: Setup,
        *,
        host: str = "sequential_lora",
        targets: str = "text",
        encoder: str = "",
        scale: float = 16.0,
    ) -> None:
        """Build the host, and give it a head without classes."""
        super().__init__(setup)
        if targets not in TARGETS:
            raise SettingError(f"Expected targets to be one of {TARGETS}; got {targets!r}. Choose one of these.")
        if scale <= 0:
            raise SettingError(f"Expected scale above 0; got {scale}. Try 16.")
        if setup.build is None:
            raise SettingError(
                "Expected a setup that builds the host; got one without build. Make lingocl with clgym.make_agent."
            )
        made = setup.build(host)
        if not isinstance(made, Learner) or made.head is None:
            raise SettingError(
                f"Expected a host that trains a head by gradient; got {made.spec.id}. Choose another, such as replay."
            )
        if made.moves_rows:
            raise SettingError(
                f"Expected a host that leaves given vectors as they are; got {made.spec.id}, which aligns the head's "
                "rows after each task. Choose another, such as replay."
            )
        tiny = setup.backbone.startswith("embedded/")
        self.encoder = encoder or ("embedded/tiny-clip" if tiny else "ViT-B-32/openai")
        self.host, self.seed, self.dim = made, agent_seed(setup.seed), made.backbone.embed_dim
        give = self.directions if targets == "random" else self.words
        self.host.head = TargetHead(self.dim, made.device, give, scale)

    def words(self, names: Sequence[str], before: int) -> Tensor:
        """Return what the language model makes of classes, as vectors of the features' length, ``(n, dim)``."""
        del before
        s = encode(self.encoder, names, self.host.device).cpu()  # (n, d)
        if s.shape[1] != self.dim:
            longer, shorter = max(s.shape[1], self.dim), min(s.shape[1], self.dim)
            columns = orthonormal(longer, shorter, torch.Generator().manual_seed(self.seed))
            s = F.normalize(s @ (columns.T if shorter == s.shape[1] else columns), dim=-1)
        return s

    def directions(self, names: Sequence[str], before: int) -> Tensor:
        """Return random directions for classes of which ``before`` came before, ``(n, dim)``."""
        generator, last = torch.Generator().manual_seed(self.seed), before + len(names)
        bases = [orthonormal(self.dim, self.dim, generator) for _ in range(-(-last // self.dim))]
        return torch.cat(bases)[before:last]

    def act(self, event: Event) -> Answer | None:
        """Let the host act."""
        return self.host.act(event)

    def answer(self, event: Query) -> Answer:
        """Let the host answer."""
        return self.host.answer(event)

    def footprint(self) -> Footprint:
        """Return the host's: the targets stand in the place of a classifier's rows, which no method counts."""
        return self.host.footprint()

    def features(self, inputs: Inputs) -> Array | None:
        """Return the host's features."""
        return self.host.features(inputs)

    def activations(self, inputs: Inputs) -> Sequence[Array] | None:
        """Return the host's hidden units."""
        return self.host.activations(inputs)

    def matrices(self) -> Iterable[Array] | None:
        """Return the host's parameters."""
        return self.host.matrices()

    def state_dict(self) -> dict[str, Any]:
        """Return the host's state, of which the head is a part."""
        return self.host.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the host continue; no text is encoded again."""
        self.host.load_state_dict(state)


def orthonormal(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """Draw a matrix ``(rows, columns)`` with orthonormal columns, of no preferred direction; no more than rows.

    >>> q = orthonormal(3, 2, torch.Generator().manual_seed(0))
    >>> torch.allclose(q.T @ q, torch.eye(2), atol=1e-6)
    True
    """
    q, r = torch.linalg.qr(torch.randn(rows, columns, generator=generator, dtype=torch.float64))
    turned: Tensor = q * r.diagonal().sign()
    return turned.float()
