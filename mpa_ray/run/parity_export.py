"""Exports D_PI in the formats that trainers read: Parquet, LLaVA-style JSON and TRL-style messages."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.parquet as pq

from mpa_ray.records import ParitySample, arrow_schema, to_table
from mpa_ray.run.checksums import FILES, checksums_of, read_checked
from mpa_ray.run.parquet_rows import iter_parquet, iter_tables
from mpa_ray.run.run import Run
from mpa_ray.tasks.task import SYSTEM_PROMPT, Task
from mpa_ray.textual import Json

_CHUNK_SIZE = 10_000


def export_parity(
    run: Run, folder: str, task: Task, samples: Iterable[ParitySample], extra: Mapping[str, Json] | None = None
) -> int:
    """Write D_PI to a folder of the run, and return the number of samples.

    The prompts are the same as in identification. Only a few thousand samples are in memory at a time.

    Args:
        run: The run to write to.
        folder: `Run.parity_dir` or `Run.rematch_dir`.
        task: The task, for its prompts.
        samples: The samples of D_PI.
        extra: Additional entries of the manifest.
    """
    num_samples = 0
    with TemporaryDirectory() as scratch:
        schema = arrow_schema(ParitySample)
        with (
            pq.ParquetWriter(Path(scratch, "parity.parquet"), schema, compression="zstd") as table,
            Path(scratch, "llava.json").open("w", encoding="utf-8") as llava,
            Path(scratch, "messages.jsonl").open("w", encoding="utf-8") as messages,
        ):
            llava.write("[")
            queue = iter(samples)
            while chunk := list(islice(queue, _CHUNK_SIZE)):
                table.write_table(to_table(chunk, ParitySample))
                for number, sample in enumerate(chunk, num_samples):
                    llava.write(("," if number else "") + "\n" + json.dumps(_llava(task, sample), ensure_ascii=False))
                    messages.write(json.dumps(_messages(task, sample), ensure_ascii=False) + "\n")
                num_samples += len(chunk)
            llava.write("\n]\n")
        checksums = checksums_of(Path(scratch))
        run.storage.put_folder(Path(scratch), folder)
    run.write_json(run.manifest_path(folder), {"num_samples": num_samples, **(extra or {}), FILES: checksums})
    return num_samples


def parity_of(run: Run, student: str) -> Iterator[ParitySample]:
    """Yield a student's exported samples, with a few thousand in memory at a time."""
    return iter_parquet(_content(run, student), ParitySample)


def parity_tables(run: Run, student: str) -> Iterator[pa.Table]:
    """Yield a student's exported samples as tables of a few thousand rows."""
    return iter_tables(_content(run, student), ParitySample)


def _content(run: Run, student: str) -> bytes:
    folder = run.parity_dir(student)
    return read_checked(run.storage, folder, "parity.parquet", run.read_json(run.manifest_path(folder)))


def read_parity(run: Run, student: str) -> list[ParitySample]:
    """Return all exported samples of a student."""
    return list(parity_of(run, student))


def _llava(task: Task, sample: ParitySample) -> dict[str, object]:
    return {
        "id": sample.annotation_id,
        "image": sample.uri,
        **_metadata(sample),
        "conversations": [
            {"from": "human", "value": f"<image>\n{task.answer_prompt(sample.question)}"},
            {"from": "gpt", "value": sample.answer},
        ],
    }


def _messages(task: Task, sample: ParitySample) -> dict[str, object]:
    prompt = [{"type": "image"}, {"type": "text", "text": task.answer_prompt(sample.question)}]
    return {
        "messages": [
            {"role": "system", "content": [{"type": "text", "text": SYSTEM_PROMPT}]},
            {"role": "user", "content": prompt},
            {"role": "assistant", "content": [{"type": "text", "text": sample.answer}]},
        ],
        "images": [sample.uri],
        **_metadata(sample),
    }


def _metadata(sample: ParitySample) -> dict[str, object]:
    return {"metadata": json.loads(sample.metadata)} if sample.metadata else {}
