"""Train the bundled world's models on a GPU, several at once: steps, losses, and accuracy on held-out images.

    python -m benchmarks.gpu.bundled_models --out FILE [--models student teacher] [--seconds 420] [--dry-run]

Needs neither Ray nor vLLM. The models train on the same GPU in separate processes, since models this small wait for
kernel launches and not for the GPU; further processes paint their images. The curriculum is that of
`mpa_ray.demo.train`, stretched to the given time: each part gets its share of it, and the learning rate depends on the
time instead of the step. The weights of each model are written to MODEL.safetensors beside FILE. A better teacher or
student does not imply a better demo: a student that can already count has no gap to close.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import shutil
import sys
import tempfile
import time
from collections import deque
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.gpu.measuring import GpuMonitor, Options, Record, num_cores, parse_options, timed
from mpa_ray.observability.progress import say

MODELS = ("student", "student-internvl", "teacher")
DRY_RUN = {"models": ["student"], "seconds": 2.0, "batch_size": 8, "num_loaders": 1, "num_questions": 8}
WARMUP_SHARE = 0.1
LOG_EVERY_STEPS = 200
HELD_OUT_SEED = 10_000
LOADER_TIMEOUT_S = 300.0


@dataclass(frozen=True)
class Sizes(Options):
    models: list[str]
    seconds: float
    """The training time of all parts together."""
    batch_size: int
    num_loaders: int
    """Processes that paint images for each model."""
    num_questions: int
    """Held-out questions, each about another image."""
    seed: int

    def checkpoint(self, model: str) -> Path:
        return self.out.with_name(f"{model}.safetensors")


@dataclass(frozen=True)
class LogLine:
    """The progress within one part."""

    part: str
    step: int
    loss: float
    """Mean over the last 50 steps."""
    steps_per_s: float
    data_wait_share: float


@dataclass
class Training:
    """The training of one model."""

    num_parameters: int
    num_steps: int = 0
    num_samples: int = 0
    trained_s: float = 0.0
    exact_match: dict[str, float] = field(default_factory=dict)
    """Share of held-out questions answered exactly: over all, by family, and of whole descriptions."""
    log: list[LogLine] = field(default_factory=list)


def learning_rate(part: Any, progress: float) -> float:
    """Linear warm-up over the first tenth of a part's time, then a cosine from its peak to its final rate."""
    if progress < WARMUP_SHARE:
        return float(part.peak_learning_rate * (progress / WARMUP_SHARE + 1e-3))
    rest = min(1.0, (progress - WARMUP_SHARE) / (1 - WARMUP_SHARE))
    low, high = part.final_learning_rate, part.peak_learning_rate
    return float(low + (high - low) * 0.5 * (1 + math.cos(math.pi * rest)))


class Batches:
    """A model's training batches, made by separate processes while the context is open."""

    def __init__(self, name: str, sizes: Sizes) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._queue = spawn.Queue(maxsize=8 * sizes.num_loaders)
        self._part_number = spawn.Value("i", 0)
        seeds = [1000 * sizes.seed + number for number in range(sizes.num_loaders)]
        self._processes = [
            spawn.Process(
                target=_draw_batches, args=(self._queue, self._part_number, name, seed, sizes.batch_size), daemon=True
            )
            for seed in seeds
        ]

    def __enter__(self) -> Batches:
        for process in self._processes:
            process.start()
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.join()

    def begin_part(self, number: int) -> None:
        """Make batches of this part from now on, and drop the waiting batches of other parts."""
        self._part_number.value = number

    def next(self) -> dict[str, Any]:
        """The next batch of the part, as NumPy arrays.

        Raises:
            queue.Empty: none came within `LOADER_TIMEOUT_S`.
        """
        while True:
            number, batch = self._queue.get(timeout=LOADER_TIMEOUT_S)
            if number == self._part_number.value:
                return dict(batch)


def _draw_batches(queue: Any, part_number: Any, name: str, seed: int, batch_size: int) -> None:
    """Put batches of the current part into the queue until this process is terminated."""
    import torch

    from mpa_ray.demo.train import MODELS as CURRICULA
    from mpa_ray.demo.train import Samples
    from mpa_ray.demo.world import WorldSpec

    torch.set_num_threads(1)
    architecture, parts = CURRICULA[name]
    _, processor = architecture.build(WorldSpec())
    streams = [
        Samples(architecture, processor.tokenizer, WorldSpec(), part, seed + 100 * number).batches(batch_size)
        for number, part in enumerate(parts)
    ]
    while True:
        number = part_number.value
        # As NumPy arrays, since each tensor would need a file descriptor.
        queue.put((number, {key: tensor.numpy() for key, tensor in next(streams[number]).items()}))


def train(name: str, sizes: Sizes) -> Training:
    """Train one model through all its parts, score it on held-out images and save it."""
    import torch

    from mpa_ray.demo.train import MODELS as CURRICULA
    from mpa_ray.demo.train import exact_match_shares, save
    from mpa_ray.demo.world import WorldSpec

    torch.manual_seed(sizes.seed)
    # The evaluation is always on CPUs, and all models share them.
    torch.set_num_threads(max(1, num_cores() // len(sizes.models)))
    architecture, parts = CURRICULA[name]
    model, processor = architecture.build(WorldSpec())
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    model = model.to("cuda" if torch.cuda.is_available() else "cpu")
    training = Training(num_parameters=sum(parameter.numel() for parameter in model.parameters()))
    total_steps = sum(part.num_steps for part in parts)
    started = time.monotonic()
    with Batches(name, sizes) as batches:
        for number, part in enumerate(parts):
            batches.begin_part(number)
            # The time is divided in proportion to the steps of the shipped curriculum.
            seconds = sizes.seconds * part.num_steps / total_steps
            training.num_steps += train_part(name, model, part, batches, seconds, training.log)
    training.trained_s = round(time.monotonic() - started, 1)
    training.num_samples = training.num_steps * sizes.batch_size
    model = model.float().cpu()
    training.exact_match = exact_match_shares(
        architecture, model, processor.tokenizer, WorldSpec(), sizes.num_questions, seed=HELD_OUT_SEED
    )
    with tempfile.TemporaryDirectory() as folder:
        save(model, processor, Path(folder))
        shutil.copy(Path(folder, "model.safetensors"), sizes.checkpoint(name))
    return training


def train_part(name: str, model: Any, part: Any, batches: Batches, seconds: float, log: list[LogLine]) -> int:
    """Train for `seconds` from the arrival of the first batch; returns the number of steps."""
    import torch

    from mpa_ray.demo.train import make_optimizers

    optimizers = make_optimizers(model)
    model.train()
    losses: deque[Any] = deque(maxlen=50)
    batch = batches.next()
    started, wait_s, num_steps = time.monotonic(), 0.0, 0

    def write_log() -> None:
        elapsed_s = time.monotonic() - started
        loss = round(float(torch.stack(list(losses)).mean()), 4)
        line = LogLine(part.name, num_steps, loss, round(num_steps / elapsed_s, 2), round(wait_s / elapsed_s, 3))
        say(f"{name}: {line}")
        log.append(line)

    while (progress := (time.monotonic() - started) / seconds) < 1:
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(part, progress)
        losses.append(train_step(model, batch, optimizers))
        num_steps += 1
        if num_steps % LOG_EVERY_STEPS == 0:
            write_log()
        waiting_since = time.monotonic()
        batch = batches.next()
        wait_s += time.monotonic() - waiting_since
    write_log()
    return num_steps


def train_step(model: Any, batch: dict[str, Any], optimizers: list[Any]) -> Any:
    """One optimiser step; returns the loss, which stays on the device."""
    import torch

    device = next(model.parameters()).device
    inputs = {key: torch.from_numpy(value).to(device, non_blocking=True) for key, value in batch.items()}
    with torch.autocast(device.type, dtype=torch.bfloat16):
        loss = model(**inputs).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    return loss.detach()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.bundled_models", description=__doc__)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--seconds", type=float, default=420, help="training time of all parts together")
    parser.add_argument("--batch-size", type=int, default=48)
    parser.add_argument("--num-loaders", type=int, default=4, help="processes that paint images, for each model")
    parser.add_argument("--num-questions", type=int, default=600, help="held-out questions")
    parser.add_argument("--seed", type=int, default=0)
    sizes = Sizes(**parse_options(parser, DRY_RUN))
    record = Record(sizes)
    with GpuMonitor() as monitor, ExitStack() as pools, timed("train"):
        started_s = time.monotonic()
        spawn = multiprocessing.get_context("spawn")
        # A pool for each model: a process that dies breaks its own pool only.
        running = {
            name: pools.enter_context(ProcessPoolExecutor(1, spawn)).submit(train, name, sizes) for name in sizes.models
        }
        for name, training in running.items():
            error = training.exception()
            if error is None:
                record.add(name, asdict(training.result()))
            else:
                record.fail(name, f"{type(error).__name__}: {error}")
        record.summarise(**monitor.between(started_s, time.monotonic()))
    return record.exit_code


if __name__ == "__main__":
    sys.exit(main())
