"""Row `c`: `ray.data.llm` processors in three passes, one after another.

Prompts are rendered as in the other rows, and vLLM tokenizes them. A pass ends before the next one begins, since
engines side by side would compete for the cores.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.throughput.work import TASK, Timings, Work, bind_cores, rates
from mpa_ray.engine.cores import threads_per_engine
from mpa_ray.models.checkpoints import weight_bytes

BATCH_SIZE = 16
"""Small batches with many in flight, as Ray's maintainers advise for throughput (ray-project/ray#52634)."""


def passes(work: Work) -> Timings:
    """Run and time the passes of the teacher, and that of the student if there is one."""
    import ray

    os.environ.setdefault("RAY_worker_niceness", "0")
    environment = {"PYTHONPATH": str(Path(__file__).parents[2])}
    ray.init(
        address="local",
        num_cpus=8,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        runtime_env={"env_vars": environment},
    )
    repeated = [file for _ in range(work.repetitions + 1) for file in work.files()]
    rows = [{"file": str(file), "key": f"{n}", "text": TASK.annotation_prompt()} for n, file in enumerate(repeated)]
    replies, first = one_pass(work, work.teacher, rows, work.first_tokens)
    for row in rows:
        row["text"] = TASK.answer_prompt(work.question_of(replies[row["key"]]))
    _, second = one_pass(work, work.teacher, rows, work.second_tokens)
    timings = Timings([1 / (1 / a + 1 / b) for a, b in zip(first, second, strict=True)], [])
    if work.student is not None:
        _, timings.student_images_per_s = one_pass(work, work.student, rows, work.second_tokens)
    return timings


def one_pass(work: Work, model: str, rows: list[dict[str, Any]], max_tokens: int) -> tuple[dict[str, str], list[float]]:
    """Replies by key, and the rate of each repetition except the first, which warms the engine up."""
    import ray
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    config = vLLMEngineProcessorConfig(
        model_source=model,
        engine_kwargs={
            "dtype": work.dtype,
            "max_num_seqs": work.max_num_seqs,
            "max_model_len": work.max_model_len,
            "block_size": 32,
            "enforce_eager": True,
            "limit_mm_per_prompt": {"image": 1, "video": 0},
        },
        batch_size=BATCH_SIZE,
        concurrency=1,
        chat_template_stage=False,
        tokenize_stage=False,
        detokenize_stage=False,
        log_engine_metrics=False,
        placement_group_config={"bundle_per_worker": {"CPU": 1}},
    )
    prompt = Prompt(model, max_tokens, work.image_size**2)
    processor = build_processor(config, preprocess=prompt, postprocess=_done)
    data = ray.data.from_items(rows, override_num_blocks=max(1, len(rows) // BATCH_SIZE))
    replies, done = {}, []
    for row in processor(data).iter_rows():
        replies[row["key"]] = row["reply"]
        # The time at which the row left the engine's stage, since the driver gets rows in bursts.
        done.append((row["at"], 1))
    done.sort()
    return replies, rates(done[0][0], done, work.num_images)[1:]


def _done(row: dict[str, Any]) -> dict[str, Any]:
    return {"key": row["key"], "reply": row["generated_text"], "at": time.time()}


class Prompt:
    """Reads and decodes a row's file and renders its prompt."""

    def __init__(self, model: str, max_tokens: int, max_pixels: int) -> None:
        self._model, self._max_tokens, self._max_pixels = model, max_tokens, max_pixels
        self._processor: Any = None

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        from mpa_ray.imaging.prepare import PreparedImage, prepare
        from mpa_ray.models.chat_template import load_processor, render

        self._processor = self._processor or load_processor(self._model)
        image = prepare(Path(row["file"]).read_bytes(), 56 * 56, self._max_pixels)
        assert isinstance(image, PreparedImage)
        return {
            "key": row["key"],
            "prompt": render(self._processor, row["text"]),
            "multimodal_data": {"image": image.image},
            "multimodal_uuids": {"image": row["key"]},
            "sampling_params": {"temperature": 0, "max_tokens": self._max_tokens, "detokenize": True},
        }


if __name__ == "__main__":
    from benchmarks.throughput.ray_llm import passes as run

    work = Work.load(sys.argv[1])
    # As many as this project's engine takes: here, too, Ray and the stages before the engine need the same machine.
    bind_cores(threads_per_engine(len(os.sched_getaffinity(0)), 1, 1.0, weight_bytes(work.teacher)))
    run(work).save(sys.argv[2])
