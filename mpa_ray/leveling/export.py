"""The trained student as others take it: an adapter, and an ordinary Hugging Face checkpoint."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoModelForImageTextToText

from mpa_ray.config import LevelConfig, LoraConfig
from mpa_ray.imaging.decode import ImageProblem, prepare
from mpa_ray.leveling.batching import TrainingRow
from mpa_ray.models.chat_template import load_processor, render
from mpa_ray.storage.storage import Storage
from mpa_ray.tasks.task import Task


def take_over(model: Any, weights: dict[str, torch.Tensor]) -> Any:
    """The student before training, prepared as for training, with what training made of its trainable weights.

    Raises:
        AssertionError: weights that the model does not know, or that it lacks.
    """
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert weights.keys() >= trained, f"training gave no {sorted(trained - weights.keys())[:3]}"
    unexpected = model.load_state_dict(weights, strict=False).unexpected_keys
    assert not unexpected, f"training gave {unexpected[:3]}, which the model does not have"
    return model


def export(
    model: Any, processor: Any, base: str, level: LevelConfig, storage: Storage, folder: str, card: str, check: Check
) -> None:
    """Write `adapter/` (with LoRA), `merged/` and `check.json` into the run.

    What `merged/` answers once it is read back has to be what the model in memory answers; it is kept in `check.json`,
    for an engine to be held against.

    Args:
        model: The trained student.
        processor: Saved beside the weights, with its chat template.
        base: What the adapter says it belongs on: the student as it is named, not where this machine keeps it.
        level: How it was trained.
        storage: The run's.
        folder: Where in the run.
        card: The model card.
        check: Questions to ask.

    Raises:
        AssertionError: the checkpoint does not answer as the model did.
    """
    with tempfile.TemporaryDirectory() as scratch:
        adapter, merged = Path(scratch, "adapter"), Path(scratch, "merged")
        if isinstance(level.method, LoraConfig):
            model.peft_config[model.active_adapter].base_model_name_or_path = base
            _save(model, adapter, card)
            model = model.merge_and_unload()
        processor.save_pretrained(merged)
        _save(model, merged, card)
        _rename_for_vllm(merged, model.config.model_type)
        before = check.answers(model, processor)
        again = AutoModelForImageTextToText.from_pretrained(merged, dtype=model.dtype)
        after = check.answers(again, load_processor(str(merged)))
        assert before == after, f"read back, the exported student answers {after} instead of {before}"
        storage.write(f"{folder}/check.json", check.record(after))
        if adapter.is_dir():
            storage.put_folder(adapter, f"{folder}/adapter")
        storage.put_folder(merged, f"{folder}/merged")


def _save(model: Any, target: Path, card: str) -> None:
    model.save_pretrained(target)
    (target / "README.md").write_text(card, encoding="utf-8")


_OTHER_NAMES = {
    # transformers 5 saves the tower's weights without the level at which vLLM (and older transformers) looks for them.
    kind: (re.compile(r"^((?:model\.)?vision_tower\.)(?!vision_model\.)"), r"\1vision_model.")
    for kind in ("llava", "llava_next", "llava_onevision")
}
"""Of weights in a saved checkpoint, by the model's type: what vLLM calls otherwise; transformers reads both."""


def _rename_for_vllm(folder: Path, model_type: str) -> None:
    if model_type not in _OTHER_NAMES:
        return
    pattern, wanted = _OTHER_NAMES[model_type]
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as content:
            weights = {pattern.sub(wanted, name): content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
        save_file(weights, file, metadata={"format": "pt"})
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        told = json.loads(index.read_text())
        told["weight_map"] = {pattern.sub(wanted, name): file for name, file in told["weight_map"].items()}
        index.write_text(json.dumps(told, indent=2))


class Check:
    """A few questions with their images, and greedy answers to them."""

    def __init__(
        self,
        rows: Sequence[TrainingRow],
        contents: Sequence[bytes],
        task: Task,
        pixels: tuple[int, int],
        max_new_tokens: int,
    ) -> None:
        prepared = [(row, prepare(content, *pixels)) for row, content in zip(rows, contents, strict=True)]
        self._asked = [(row, found.image) for row, found in prepared if not isinstance(found, ImageProblem)]
        self._task, self._max_new_tokens = task, max_new_tokens

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def answers(self, model: Any, processor: Any) -> list[str]:
        """One after the other, so that no padding is in the way."""
        model = model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
        found = []
        for row, image in self._asked:
            prompt = render(processor, self._task.answer_prompt(row.sample.question))
            inputs = processor(text=[prompt], images=[[image]], return_tensors="pt").to(model.device, model.dtype)
            output = model.generate(**inputs, max_new_tokens=self._max_new_tokens, do_sample=False)
            found.append(
                processor.tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
            )
        return found

    def record(self, answers: Sequence[str]) -> bytes:
        """For `check.json`."""
        content = [
            {
                "annotation_id": row.sample.annotation_id,
                "image_id": row.sample.image_id,
                "uri": row.sample.uri,
                "question": row.sample.question,
                "answer": answer,
            }
            for (row, _), answer in zip(self._asked, answers, strict=True)
        ]
        return json.dumps({"answers": content}, indent=2, ensure_ascii=False).encode()
