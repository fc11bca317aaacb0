"""InfLoRA: adapters whose input side is fixed beforehand, where old tasks' inputs are not and the new one's are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clgym.agent import AgentSpec, Footprint, Setup
from clgym.attention import Encoders
from clgym.errors import SettingError
from clgym.events import TaskStart, Train
from clgym.learner import Learner, learning_rate
from clgym.lora import LoRALinear
from clgym.tuning import grouped, regrouped

SPECTRA = ("released", "inputs")
ROW_NORM = 3**-0.5  # of a row of B_t; that of a Kaiming-uniform start
NOTHING = 1e-10  # share of the energy below which a direction is rounding


@dataclass(slots=True)
class GradientMemory:
    """The subspace of a layer's inputs that old tasks use, as an orthonormal basis of it or of its complement.

    A linear layer's gradients lie in the span of its inputs, so an update that is orthogonal to the subspace changes
    nothing on it. The complement is kept once it is the smaller (DualGPM, as InfLoRA uses it).

    Attributes:
        basis: fp64 ``(d, m)``.
        dual: Whether the basis is that of the complement.
    """

    basis: Tensor
    dual: bool = False

    def free(self, x: Tensor) -> Tensor:
        """Return the part of ``(d, n)`` that is orthogonal to the subspace."""
        inside = self.basis @ (self.basis.T @ x)
        return inside if self.dual else x - inside

    def principal(self, covariance: Tensor, spectrum: str) -> tuple[Tensor, Tensor]:
        """Return the principal directions ``(d, k)`` of what the subspace leaves of inputs, and the energy in each.

        Args:
            covariance: ``C = E[x x^T]``, fp64 ``(d, d)``, or a multiple of it.
            spectrum: ``"inputs"``: the energies are eigenvalues of ``P C P``, where ``P`` projects on what is free; or
                ``"released"``: squared singular values of ``P C``.

        Returns:
            Largest first; directions without energy are left out.
        """
        free = self.free(covariance)
        if spectrum == "released":
            directions, values, _ = torch.linalg.svd(free)
            values = values.square()
        else:
            values, directions = torch.linalg.eigh(self.free(free.T))
            values, directions = values.flip(0), directions.flip(1)
        there = values > NOTHING * total(covariance, spectrum)
        return directions[:, there], values[there]

    def grow(self, covariance: Tensor, energy: float, spectrum: str) -> None:
        """Take in principal directions of new inputs until the subspace holds their share ``energy``.

        Args:
            covariance: See :meth:`principal`.
            energy: In [0, 1].
            spectrum: See :meth:`principal`.
        """
        directions, values = self.principal(covariance, spectrum)
        allowed = (1 - energy + NOTHING) * total(covariance, spectrum)
        left = values.sum() - F.pad(values.cumsum(0), (1, 0))  # after taking none, one, two, ...
        taken = directions[:, : int((left > allowed).sum())]
        if self.dual:
            self.basis = without(self.basis, taken)
            return
        self.basis = torch.linalg.qr(torch.cat([self.basis, taken], dim=1)).Q
        if self.basis.shape[1] > len(covariance) / 2:
            everything = torch.eye(len(covariance), dtype=self.basis.dtype, device=self.basis.device)
            self.basis, self.dual = without(everything, self.basis), True


def total(covariance: Tensor, spectrum: str) -> Tensor:
    """Return the energy of all directions together, see :meth:`GradientMemory.principal`."""
    return covariance.square().sum() if spectrum == "released" else covariance.trace()


def without(basis: Tensor, taken: Tensor) -> Tensor:
    """Return an orthonormal basis of what is left of a span without some directions within it.

    >>> without(torch.eye(3), torch.eye(3)[:, :1]).abs().sum(1).tolist()
    [0.0, 1.0, 1.0]
    """
    rest: Tensor = torch.linalg.svd(basis - taken @ (taken.T @ basis), full_matrices=False).U
    return rest[:, : max(basis.shape[1] - taken.shape[1], 0)]


def sites(layers: Sequence[tuple[str, LoRALinear]]) -> dict[str, list[LoRALinear]]:
    """Return the layers that have the same input, by a name of it: q, k and v of an attention have."""
    found: dict[str, list[LoRALinear]] = {}
    for name, layer in layers:
        parent, _, last = name.rpartition(".")
        found.setdefault(f"{parent}.in" if last in ("q_proj", "k_proj", "v_proj") else name, []).append(layer)
    return found


class InfLoRA(Learner):
    """Interference-free low-rank adaptation (arXiv:2404.00228).

    ``W + A_t B_t`` on the key and value projections. Before a task ``B_t``, which reduces the dimension, is set to the
    ``r`` principal directions of the task's own inputs in what old tasks' inputs leave free, and is frozen; ``A_t``
    alone is trained, from zero. So the update lies where it helps the new task and changes nothing on the old ones'
    inputs. After the task the branch is merged, and the inputs' directions enter the memory until it holds a share
    ``energy`` of them, which rises from task to task.

    Args:
        setup: What is known of the stream.
        r: Rank of every branch.
        energy: Share of a task's inputs that the memory must hold after the first task, in [0, 1]; higher keeps more
            and leaves less room.
        energy_end: The same after ``tasks`` tasks and later; between them it rises in equal steps.
        tasks: Tasks over which it rises.
        share: Share of a task's steps at its start whose inputs fix ``B_t``, during which no branch is trained, and at
            its end whose inputs enter the memory, in (0, 0.5].
        spectrum: What energy is: ``"released"``: squared eigenvalues of the inputs' covariance, for which the paper's
            shares were chosen; or ``"inputs"``: the eigenvalues, as in GPM, which fills the memory sooner.
        layers: Which linear layers of every block are adapted; those of one block's attention share their inputs.
        targets: Which encoders are adapted: ``"vision"``, ``"text"`` or ``"all"``.
        lr: Peak learning rate of AdamW; ``None`` is 5e-4 on a real model, 2e-3 on the tiny ViT and 5e-4 on the
            tiny CLIP.
        ensemble: Average a class's text features over all its templates when answering.

    Raises:
        SettingError: A setting is out of range.
    """

    spec = AgentSpec(
        id="inflora-v0",
        title="InfLoRA",
        paper="arXiv:2404.00228",
        code="github.com/liangyanshuo/InfLoRA@0d102e9",
        family="optimisation",
        departs=(
            "A stream does not come back, so inputs are gathered from a task's first and last batches as they pass, at "
            "the weights of that moment; the code reads the task twice more. The number of tasks is not known, so the "
            "energy rises over a set number. The memory always holds at least its share; the code stops one direction "
            "short after the first task. Where less than r directions are free, the other rows of B are zero; the "
            "code's are arbitrary. On CLIP the image encoder alone is adapted."
        ),
    )

    def __init__(
        self,
        setup: Setup,
        *,
        r: int = 10,
        energy: float = 0.95,
        energy_end: float = 1.0,
        tasks: int = 10,
        share: float = 0.05,
        spectrum: str = "released",
        layers: tuple[str, ...] = ("k_proj", "v_proj"),
        targets: Encoders = "vision",
        lr: float | None = None,
        ensemble: bool = True,
    ) -> None:
        """Put branches on the backbone; the memory is empty."""
        rate = learning_rate(lr, setup, real=5e-4, tiny=5e-4 if setup.reads_text else 2e-3)
        super().__init__(setup, lr=rate, ensemble=ensemble)
        if not 0 <= energy <= energy_end <= 1 or tasks < 1 or not 0 < share <= 0.5:
            raise SettingError(
                f"Expected 0 <= energy <= energy_end <= 1, tasks of 1 or more and share in (0, 0.5]; got {energy}, "
                f"{energy_end}, {tasks} and {share}. Try 0.95, 1, 10 and 0.05."
            )
        if spectrum not in SPECTRA:
            raise SettingError(f"Expected spectrum to be one of {SPECTRA}; got {spectrum!r}. Choose one of these.")
        self.energy, self.energy_end, self.tasks = energy, energy_end, tasks
        self.share, self.spectrum = share, spectrum
        self.lora = self.adapt(r=r, targets=targets, layers=layers)
        self.sites = sites(self.lora.layers)
        self.memory: dict[str, GradientMemory] = {}
        self.gathered: dict[str, Tensor] = {}  # sum of x x^T, by the input's name
        for name, (first, *_) in self.sites.items():
            d = first.A.shape[1]
            self.memory[name] = GradientMemory(torch.zeros(d, 0, dtype=torch.float64, device=self.device))
            self.gathered[name] = torch.zeros(d, d, dtype=torch.float64, device=self.device)
            first.register_forward_pre_hook(self._gatherer(name))
        for _, layer in self.lora.layers:
            layer.A.requires_grad_(False)  # the paper's B_t; its A_t is the transpose of our Bt
        self.gathering, self.learned = False, 0

    def _gatherer(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def gather(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if self.gathering:
                x = inputs[0].detach().flatten(0, -2).float()  # (N, d)
                self.gathered[name] += x.T @ x

        return gather

    @torch.no_grad()
    def begin(self, task: TaskStart) -> Sequence[nn.Parameter]:
        """Empty the branches until the task's inputs are known."""
        assert self.lora is not None
        self.lora.arena().zero_()
        return [layer.Bt for _, layer in self.lora.layers]

    def learn(self, event: Train) -> None:
        """Gather inputs at the task's ends, fix ``B_t`` between them, and take one step."""
        ends = max(1, round(self.share * self.steps))
        if self.step == ends:
            self.fix()
        self.gathering = self.step < ends or self.step >= self.steps - ends
        super().learn(event)
        self.gathering = False

    @torch.no_grad()
    def fix(self) -> None:
        """Set ``B_t`` to the principal directions of the inputs so far, in what the memory leaves free."""
        for name, layers in self.sites.items():
            memory, covariance = self.memory[name], self.gathered[name]
            directions, _ = memory.principal(covariance, self.spectrum)
            chosen = memory.free(directions[:, : layers[0].r]).T * ROW_NORM  # (at most r, d)
            for layer in layers:
                layer.A.zero_()
                layer.A[: len(chosen)] = chosen
            covariance.zero_()

    @torch.no_grad()
    def end(self) -> None:
        """Merge the branches, and let the memory take in the task's inputs."""
        assert self.lora is not None
        self.lora.merge_()
        rise = min(self.learned / self.tasks, 1.0)
        for name, memory in self.memory.items():
            energy = self.energy + (self.energy_end - self.energy) * rise
            memory.grow(self.gathered[name], energy, self.spectrum)
            self.gathered[name].zero_()
        self.learned += 1

    def tensors(self) -> dict[str, Tensor]:
        """Return branches and weights, the memory, and what is gathered."""
        assert self.lora is not None
        basis = {name: memory.basis for name, memory in self.memory.items()}
        dual = {name: torch.tensor(memory.dual) for name, memory in self.memory.items()}
        counts = {"learned": torch.tensor(self.learned)}
        lora = self.lora.named_tensors(with_base=True)
        return grouped(lora=lora, basis=basis, dual=dual, gathered=self.gathered, count=counts)

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take back what :meth:`tensors` returned."""
        assert self.lora is not None
        groups = regrouped(tensors, self.device)
        self.lora.load_tensors(groups["lora"])
        self.memory = {name: GradientMemory(groups["basis"][name], bool(groups["dual"][name])) for name in self.memory}
        self.gathered, self.learned = groups["gathered"], int(groups["count"]["learned"])

    def footprint(self) -> Footprint:
        """Count the trained side of the branches, and the memory as stored."""
        assert self.lora is not None
        trained = sum(layer.Bt.numel() for _, layer in self.lora.layers)
        return Footprint(trained, stored=sum(memory.basis.numel() for memory in self.memory.values()))
