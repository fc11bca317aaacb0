"""The ratios C1 to C10 on one CPU thread, the last on two also; correctness is checked first.

Run ``python benchmarks/kernels_cpu.py`` (``--only C1 C3`` for some, ``--page docs/speed.md`` to write the table there).
``rounds.py`` says how a ratio is measured. C1, C2, C8 and C9 run a vision transformer of width 128 with 4 layers and 65
tokens, batch 64, with an adapter on each of its 24 linear layers; C10 runs both encoders of the tiny CLIP. C7 needs
``avalanche-lib`` 0.6.
"""

from __future__ import annotations

import functools
import importlib.util
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import env_step
import numpy as np
import torch
from avalanche_job import SAMPLES, TASKS, variants_of
from rounds import HEAD, Row, Work, arguments, doing, measured, publish, ratio
from steps import adapted, floor_step, our_step, peft_like, peft_step, vision_model
from torch import Tensor, nn

import clgym
from clgym.agent import EMBEDDED_CLIP
from clgym.attention import lora_targets, unfold_attention
from clgym.backbones import load_clip
from clgym.env import ContinualEnv
from clgym.events import Query, Train
from clgym.images import ArrayImages
from clgym.lora import LoRASet
from clgym.optim import AdamWProx
from clgym.reading import encode_class_token, reads_class_token
from clgym.scenario import Scenario, ScenarioSpec, Task, Teaching
from clgym.step_weights import StepWeights

BATCH = 64


def subject(quick: bool) -> nn.Module:
    return vision_model(32, 2, 8, head=16) if quick else vision_model(128, 4, 4)


def pictures(seed: int = 0) -> Tensor:
    return torch.randn(BATCH, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def ours(model: nn.Module, r: int, targets: Sequence[str] | None = None) -> tuple[LoRASet, Work]:
    lora = adapted(model, r, targets)
    return lora, our_step(lora, pictures())


def check_equal_steps(model: nn.Module, r: int) -> None:
    """Raise unless five steps from the same branches end with the same answers."""
    lora, step = ours(model, r)
    theirs = peft_like(lora, model)
    peft = peft_step(theirs, pictures())
    before = lora.model(pictures(1)).detach()
    for _ in range(5):
        step()
        peft()
    with torch.no_grad():
        after = lora.model(pictures(1))
        torch.testing.assert_close(after, theirs(pictures(1)), rtol=1e-3, atol=1e-4)
    assert float((after - before).abs().max()) > 1e-2


def c1_c2(rounds: int, quick: bool) -> list[Row]:
    model, rows = subject(quick), []
    for r, least in ((4, 1.3), (16, 1.1)):
        check_equal_steps(model, r)
        lora, step = ours(model, r)
        variants = {"floor": floor_step(model, pictures()), "again": floor_step(model, pictures())}
        variants |= {"ours": step, "peft": peft_step(peft_like(lora, model), pictures())}
        times = measured(variants, rounds)
        again, most = ratio(times, "again", "floor"), 1.15 if r == 4 else None
        words = f"LoRA step, r={r}, over frozen forward and input gradient"
        rows.append(Row("C1", words, ratio(times, "ours", "floor"), again, at_most=most))
        rows.append(
            Row("C2", f"PEFT over ours, whole step, r={r}", ratio(times, "peft", "ours"), again, at_least=least)
        )
    return sorted(rows, key=lambda row: row.id)


def optimizers(tensors: int, size: int) -> dict[str, Callable[[], tuple[list[nn.Parameter], Work]]]:
    """Return makers of AdamW's step: on one flat buffer, and on separate tensors together and one by one."""
    generator = torch.Generator().manual_seed(0)
    start, grads = (torch.randn(tensors * size, generator=generator) for _ in range(2))

    def made(
        parts: int, kind: Callable[[list[nn.Parameter]], torch.optim.Optimizer]
    ) -> tuple[list[nn.Parameter], Work]:
        params = [nn.Parameter(piece.clone()) for piece in start.chunk(parts)]
        for p, grad in zip(params, grads.chunk(parts), strict=True):
            p.grad = grad.clone()
        return params, kind(params).step

    settings = {"lr": 1e-3, "weight_decay": 1e-2}
    return {
        "flat": lambda: made(1, lambda params: AdamWProx(params, **settings)),
        "foreach": lambda: made(tensors, lambda params: torch.optim.AdamW(params, foreach=True, **settings)),
        "loop": lambda: made(tensors, lambda params: torch.optim.AdamW(params, foreach=False, **settings)),
    }


def c3(rounds: int, quick: bool) -> list[Row]:
    rows = []
    for tensors, size in ((32, 1024), (96, 12_288)):
        makers = optimizers(tensors, size // 64 if quick else size)
        ends = []
        for make in makers.values():
            params, step = make()
            for _ in range(3):
                step()
            ends.append(torch.cat([p.detach().flatten() for p in params]))
        for end in ends[1:]:
            torch.testing.assert_close(end, ends[0])
        variants = {name: make()[1] for name, make in makers.items()} | {"again": makers["flat"]()[1]}
        times = measured(variants, rounds, repeats=20)
        again, count = ratio(times, "again", "flat"), f"{tensors} tensors, {tensors * size / 1e6:.2f}M parameters"
        for name, least in (("foreach", 3.0), ("loop", None)):
            words = f"AdamW, {name} on {count}, over fused on one flat buffer"
            rows.append(Row("C3", words, ratio(times, name, "flat"), again, at_least=least))
    return rows


def c4(rounds: int, quick: bool) -> list[Row]:
    first, again = (min(env_step.step_microseconds() for _ in range(1 if quick else 3)) for _ in range(2))
    features, targets = torch.randn(BATCH, 64), torch.arange(BATCH) % 10
    head = nn.Linear(64, 10)
    optimizer = torch.optim.AdamW(head.parameters(), fused=True)

    def step() -> None:
        optimizer.zero_grad()
        torch.autograd.backward(nn.functional.cross_entropy(head(features), targets))
        optimizer.step()

    least = min(measured({"step": step}, rounds, repeats=100)["step"])
    words = "env.step of a trivial stream through gymnasium.make"
    return [
        Row("C4", f"{words}, microseconds", first, again / first, at_most=3.0),
        Row("C4", f"{words}, over a linear head's training step", first / 1e6 / least, again / first, at_most=0.01),
    ]


class Epoch(Scenario):
    """Tasks of two classes of uint8 images, one pass each, and few questions."""

    spec = ScenarioSpec("Epoch-v0", "Epoch", "none", "online", "image", "", ())

    def __init__(self, images: np.ndarray, tasks: int = 1, queries: int = 1) -> None:
        """Keep the images."""
        self.images, self.n_tasks, self.queries = images, tasks, queries
        self.teaching = Teaching(batch_size=BATCH, query_size=BATCH)
        self.backbone, self.source, self.shape, self.classes = "none", "embedded", images.shape[1:], 2 * tasks

    def tasks(self, rng: np.random.Generator) -> list[Task]:
        """Return equal shares of the images."""
        made = []
        for t, share in enumerate(np.array_split(self.images, self.n_tasks)):
            targets = np.arange(len(share)) % 2
            names = (f"a{t}", f"b{t}")
            few = ArrayImages(share[: self.queries], targets[: self.queries])
            made.append(Task(f"task {t}", "", names, ((names[0],), (names[1],)), ArrayImages(share, targets), few))
        return made


def noise(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), np.uint8)


def c5(rounds: int, quick: bool) -> list[Row]:
    images = noise(1_000 if quick else 20_000)
    env = ContinualEnv(Epoch(images))
    kept = torch.from_numpy(images)

    def through_env() -> int:
        event, seen, done = env.reset(seed=0)[0], 0, False
        while not done:
            if isinstance(event, Train):
                seen += len(torch.from_numpy(event.inputs))
            event, _, done, _, _ = env.step(np.zeros(1, np.int64) if isinstance(event, Query) else None)
        return seen

    def by_hand() -> int:
        order, seen = torch.randperm(len(kept)), 0
        for first in range(0, len(kept), BATCH):
            seen += len(kept.index_select(0, order[first : first + BATCH]))
        return seen

    assert through_env() == by_hand() == len(images)
    times = measured({"env": through_env, "hand": by_hand, "again": by_hand}, rounds)
    words = f"an epoch of {len(images):,} images through the environment over permutation and index_select"
    return [Row("C5", words, ratio(times, "env", "hand"), ratio(times, "again", "hand"), at_most=1.1)]


def c6(rounds: int, quick: bool) -> list[Row]:
    settings = {"tasks": 2, "steps": 3 if quick else 30}
    events = env_step.trace(**settings)
    env_step.check(events)
    run = functools.partial(clgym.run, "CLIP-MTIL-v0", "sequential_lora", scenario_settings=settings, lr=1e-3)
    bare = functools.partial(env_step.bare, events)
    times = measured({"run": run, "bare": bare, "again": bare}, max(1, rounds // 2))
    words = "clgym.run over a bare loop that ends with the same weights"
    return [Row("C6", words, ratio(times, "run", "bare"), ratio(times, "again", "bare"), at_most=1.1)]


def c7(rounds: int, quick: bool) -> list[Row]:
    words = "Avalanche over clgym, 5 tasks of 2,000 images, {}, evaluation included"
    goals = {"mlp": 2.0, "cnn": 1.2}
    if importlib.util.find_spec("avalanche") is None:
        why = "avalanche-lib is not installed"
        return [Row("C7", words.format(name), None, at_least=goal, why=why) for name, goal in goals.items()]
    rows = []
    for name, goal in goals.items():
        variants = variants_of(name, Epoch, noise(TASKS * (BATCH if quick else SAMPLES)))
        times = measured(variants, max(1, rounds // 4))
        again = ratio(times, "again", "clgym")
        rows.append(Row("C7", words.format(name), ratio(times, "avalanche", "clgym"), again, at_least=goal))
    return rows


def c8(rounds: int, quick: bool) -> list[Row]:
    """A step on activations kept of the frozen blocks; both ways must end with the same branches."""
    model = subject(quick)
    blocks = len(model.transformer.resblocks)
    last = [name for name in lora_targets(model) if f".{blocks - 1}." in name]
    (lora, step), (twin, _), (_, again) = (ours(model, 4, last) for _ in range(3))
    kept: list[Tensor] = []
    block = twin.model.transformer.resblocks[-1]
    hook = block.register_forward_pre_hook(lambda _, args: kept.append(args[0].detach()))
    with torch.no_grad():
        expected = twin.model(pictures())
    hook.remove()
    optimizer = AdamWProx([twin.arena()], lr=1e-3)

    def answer() -> Tensor:
        pooled, _ = twin.model._pool(block(kept[0]))
        answered: Tensor = pooled @ twin.model.proj
        return answered

    def cached() -> None:
        twin.zero_grad()
        torch.autograd.backward(answer().square().mean())
        optimizer.step()

    with torch.no_grad():
        torch.testing.assert_close(answer(), expected)
    times = measured({"whole": step, "again": again, "cached": cached}, rounds)
    torch.testing.assert_close(lora.arena(), twin.arena(), rtol=1e-3, atol=1e-4)
    words = "LoRA in the last block: step on kept activations of the frozen blocks over the whole step"
    return [Row("C8", words, ratio(times, "cached", "whole"), ratio(times, "again", "whole"), at_most=0.6)]


def c9(rounds: int, quick: bool) -> list[Row]:
    """The last block for the token that is read alone; both ways must end with the same branches."""
    model = subject(quick)
    (lora, step), (_, again), (twin, _) = (ours(model, 16) for _ in range(3))
    optimizer = AdamWProx([twin.arena()], lr=1e-3)
    assert reads_class_token(twin.model)

    def brief() -> None:
        twin.zero_grad()
        torch.autograd.backward(encode_class_token(twin.model, pictures()).square().mean())
        optimizer.step()

    rows = []
    times = measured({"whole": step, "again": again, "brief": brief}, rounds)
    torch.testing.assert_close(lora.arena(), twin.arena(), rtol=1e-3, atol=1e-4)
    words = "one token in the last block over all of them, "
    rows.append(Row("C9", words + "LoRA step, r=16", ratio(times, "brief", "whole"), ratio(times, "again", "whole")))
    with torch.inference_mode():
        answers = {name: functools.partial(lora.model, pictures()) for name in ("whole", "again")}
        times = measured(answers | {"brief": lambda: encode_class_token(lora.model, pictures())}, rounds)
    rows.append(Row("C9", words + "answers", ratio(times, "brief", "whole"), ratio(times, "again", "whole")))
    return rows


def c10(rounds: int, quick: bool) -> list[Row]:
    """The weights of a step at once, q, k and v by one product; both ways must end with the same branches."""
    del quick  # a round takes a tenth of a second
    clip = load_clip(EMBEDDED_CLIP, "cpu")
    texts = [f"a photo of {name}" for name in ("cats", "two dogs", "the sea") * 4]
    model = unfold_attention(clip.model)
    pixels = torch.randint(256, (32, 32, 32, 3), generator=torch.Generator().manual_seed(0)).float()

    def scores(model: nn.Module, images: Tensor) -> Tensor:
        clip.model = model
        return clip.encode_images(images.byte()) @ clip.encode_texts(texts).T

    joint, again, apart = (adapted(model, 16) for _ in range(3))
    for _, layer in apart.layers:
        layer.together = StepWeights()
    made = {"joint": joint, "again": again, "apart": apart}
    steps = {name: our_step(lora, pixels, scores) for name, lora in made.items()}
    rows = []
    for threads, clock in ((1, time.process_time), (2, time.perf_counter)):
        torch.set_num_threads(threads)
        times = measured(steps, rounds, clock=clock)
        words = f"weights of a step at once over layer by layer, LoRA step of the tiny CLIP, threads: {threads}"
        rows.append(Row("C10", words, ratio(times, "joint", "apart"), ratio(times, "again", "joint")))
    torch.set_num_threads(1)
    torch.testing.assert_close(joint.arena(), apart.arena(), rtol=1e-3, atol=1e-3)
    return rows


JOBS = {"C1": c1_c2, "C2": c1_c2, "C3": c3, "C4": c4, "C5": c5, "C6": c6, "C7": c7, "C8": c8, "C9": c9, "C10": c10}


def main(argv: Sequence[str] | None = None) -> list[Row]:
    """Measure what is asked for, print it, and return it."""
    chosen = arguments(__doc__, 11, list(JOBS), argv)
    torch.set_num_threads(1)
    rows: list[Row] = []
    for work in dict.fromkeys(JOBS[id] for id in chosen.only):
        doing(work.__name__.upper().replace("_", " and "))
        rows += work(chosen.rounds, chosen.quick)
    if chosen.quick:
        rows = [replace(row, at_most=None, at_least=None) for row in rows]
    publish(chosen, "kernels_cpu", HEAD, [row.cells() for row in rows])
    return rows


if __name__ == "__main__":
    main()
