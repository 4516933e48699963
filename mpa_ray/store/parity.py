"""Export D_PI in the forms that trainers read: Parquet, LLaVA-style JSON and TRL-style messages."""

from __future__ import annotations

import json
from collections.abc import Sequence

from mpa_ray.records import ParitySample
from mpa_ray.store.parquet import from_parquet, to_parquet
from mpa_ray.store.run import Run
from mpa_ray.tasks.task import SYSTEM_PROMPT, Task


def export_parity(run: Run, student: str, task: Task, samples: Sequence[ParitySample]) -> None:
    """Write `parity/STUDENT/`; the prompt in each form is the one that identification used."""
    folder = f"parity/{student}"
    run.storage.write(f"{folder}/parity.parquet", to_parquet(samples, ParitySample))
    llava = [_llava(task, sample) for sample in samples]
    run.storage.write(f"{folder}/llava.json", json.dumps(llava, ensure_ascii=False, indent=1).encode())
    lines = [json.dumps(_messages(task, sample), ensure_ascii=False) + "\n" for sample in samples]
    run.storage.write(f"{folder}/messages.jsonl", "".join(lines).encode())
    run.write_json(f"{folder}/manifest.json", {"num_samples": len(samples)})


def read_parity(run: Run, student: str) -> list[ParitySample]:
    """The exported samples of a student."""
    return from_parquet(run.storage.read(f"parity/{student}/parity.parquet"), ParitySample)


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
