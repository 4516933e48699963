"""Export the trained student in formats that other programs load: a LoRA adapter and a Hugging Face checkpoint."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoModelForImageTextToText, GenerationConfig

from mpa_ray.errors import RunError
from mpa_ray.imaging.decode import ImageProblem
from mpa_ray.imaging.prepare import ImageScaling
from mpa_ray.leveling.batching import TrainingRow
from mpa_ray.models.chat_template import load_processor, render
from mpa_ray.models.generation_settings import FILE_NAME as GENERATION_FILE
from mpa_ray.models.generation_settings import GenerationSettings
from mpa_ray.models.hub import split_revision
from mpa_ray.models.reply_format import ReplyFormat
from mpa_ray.run.checksums import FILES, JsonChecksums, checksums_of
from mpa_ray.run.export_check import CheckedAnswer, ExportCheck, NearTie, differs_clearly, near_ties
from mpa_ray.run.run import EXPORT, Run
from mpa_ray.tasks.reasoning import final_answer
from mpa_ray.tasks.task import Task

_NUM_NAMED = 3
"""An error lists at most this number of weights."""
_CARD = "README.md"


def load_trained_weights(model: Any, weights: dict[str, torch.Tensor]) -> Any:
    """Load the trained weights into a new copy of the student that is prepared for the same training.

    Raises:
        RunError: `weights` lacks a trainable weight of the model, or has a weight that the model does not have.
    """
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    if missing := sorted(trained - weights.keys()):
        raise RunError(f"The student cannot be exported: training gave no weights for {_first_of(missing)}.")
    unexpected = model.load_state_dict(weights, strict=False).unexpected_keys
    if unexpected:
        raise RunError(f"The student cannot be exported: it does not have the trained weights {_first_of(unexpected)}.")
    return model


def export(
    model: Any,
    processor: Any,
    base: str,
    card: str,
    questions: CheckQuestions,
    run: Run,
    folder: str,
    check_owner: Callable[[], None] = lambda: None,
    inherited: GenerationSettings | None = None,
) -> None:
    """Write `adapter/` (only for LoRA), `merged/`, their checksums and `check.json` into the run.

    The checkpoint in `merged/` is read back and must answer the questions as the model in memory does, unless two
    tokens were about equally likely where an answer begins to differ. Its answers are stored in `check.json`, so that
    they can be compared with the answers of an engine.

    Args:
        model: The trained student.
        processor: Saved beside the weights, with its chat template. If its images have a grid, the saved copy has the
            student's pixel limits, so that it scales an image as in training.
        base: The student's model as configured, which the adapter names as its base model. It is not the path of a
            local copy.
        card: The model card.
        questions: The questions that both models answer.
        run: The run to write into.
        folder: The folder of the run for this training.
        check_owner: Called before each file is written. Raises LostOwnership if another command has taken over.
        inherited: The generation settings of the student's model; None stands for those of the model in memory. The
            export carries over the valid ones.

    Raises:
        RunError: the answers of the checkpoint and of the model in memory differ.
    """
    from peft import PeftModel

    with tempfile.TemporaryDirectory() as scratch:
        adapter, merged = Path(scratch, "adapter"), Path(scratch, "merged")
        if isinstance(model, PeftModel):
            settings = model.peft_config[model.active_adapter]
            settings.base_model_name_or_path, settings.revision = split_revision(base)
            _save(model, adapter, card)
            model = model.merge_and_unload()
        if questions.scaling.grid is not None:
            processor = deepcopy(processor)
            questions.scaling.grid.limit(processor)
        processor.save_pretrained(merged)
        # transformers 5 saves these settings only as a part of processor_config.json, where other programs do not find
        # them.
        processor.image_processor.save_pretrained(merged)
        pad_token_id = processor.tokenizer.pad_token_id
        generation = inherited or GenerationSettings.carried_over(model.generation_config.to_dict(), pad_token_id)
        model.generation_config = generation.config
        _save(model, merged, card)
        _rename_for_vllm(merged, model.config.model_type)
        answers = _answers_of_saved(merged, model, processor, questions)
        check_owner()
        repairs = [f"{GENERATION_FILE}: {line}" for line in generation.repairs]
        questions.record(answers, repairs).write(run, folder)
        checksums: JsonChecksums = {}
        for exported_folder in filter(Path.is_dir, (adapter, merged)):
            # Scoring writes the card again.
            checksums |= checksums_of(exported_folder, f"{exported_folder.name}/", leaving_out=[_CARD])
            _put(exported_folder, run, f"{folder}/{exported_folder.name}", check_owner)
        check_owner()
        run.write_json(f"{folder}/{EXPORT}", {FILES: checksums})


def _answers_of_saved(merged: Path, model: Any, processor: Any, questions: CheckQuestions) -> list[Answer]:
    """Read a saved checkpoint back and return its answers, which must be those of the model in memory."""
    expected = questions.answers(model, processor)
    saved = AutoModelForImageTextToText.from_pretrained(merged, dtype=model.dtype)
    answers: list[Answer] = questions.answers(saved, load_processor(str(merged)))
    different = [
        f"{answer.text!r}, not {other.text!r}"
        for answer, other in zip(answers, expected, strict=True)
        if differs_clearly(other.text, other.near_ties, answer.text)
    ]
    if different:
        problem = "; ".join(different[:_NUM_NAMED])
        raise RunError(f"The exported checkpoint answers differently from the model in memory: {problem}.")
    return answers


def _put(source: Path, run: Run, path: str, check_owner: Callable[[], None]) -> None:
    """Move the files of a local folder into the run. Before each file, check that this command owns the training."""
    for file in sorted(file for file in source.iterdir() if file.is_file()):
        check_owner()
        with tempfile.TemporaryDirectory(dir=source.parent) as alone:
            file.rename(Path(alone, file.name))
            run.storage.put_folder(Path(alone), path)


@dataclass(frozen=True)
class Answer:
    """A greedy answer."""

    text: str
    near_ties: tuple[NearTie, ...] = ()
    """See `near_ties`."""


class CheckQuestions:
    """A few questions with their images, to compare greedy answers before and after export."""

    def __init__(
        self,
        rows: Sequence[TrainingRow],
        contents: Sequence[bytes],
        task: Task,
        scaling: ImageScaling,
        max_new_tokens: int,
        chat_template_args: Mapping[str, Any] | None = None,
        max_reasoning_tokens: int | None = 0,
    ) -> None:
        """Prepare the questions. Rows whose images cannot be read are left out.

        Args:
            rows: The questions.
            contents: The image file of each row.
            task: Defines the prompts.
            scaling: How the student's images are scaled.
            max_new_tokens: The length limit of an answer.
            chat_template_args: The student's arguments for the chat template.
            max_reasoning_tokens: The student's setting of the same name.
        """
        prepared = [(row, scaling.prepare(content)) for row, content in zip(rows, contents, strict=True)]
        self._questions = [(row, image.image) for row, image in prepared if not isinstance(image, ImageProblem)]
        self.scaling = scaling
        """How the student's images are scaled."""
        self._task = task
        self._max_new_tokens = max_new_tokens
        self._chat_template_args = chat_template_args or {}
        self._max_reasoning_tokens = max_reasoning_tokens

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def answers(self, model: Any, processor: Any) -> list[Answer]:
        """Answer the questions greedily, one prompt at a time, so that padding does not change the answers."""
        model = model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
        with _greedy(model):
            return [self._answer(model, processor, row, image) for row, image in self._questions]

    def _answer(self, model: Any, processor: Any, row: TrainingRow, image: Image.Image) -> Answer:
        prompt = render(processor, self._task.answer_prompt(row.sample.question), self._chat_template_args)
        # The processor's own limits are those of the student only after export.
        limits = (self.scaling.min_pixels, self.scaling.max_pixels, self.scaling.max_image_pixels)
        arguments = ImageScaling.of(processor, *limits).processor_arguments([image])
        inputs = processor(text=[prompt], images=[[image]], return_tensors="pt", **arguments)
        replies = ReplyFormat.of(processor, self._chat_template_args, self._max_reasoning_tokens)
        output = model.generate(
            **inputs.to(model.device, model.dtype),
            max_new_tokens=replies.max_tokens(self._max_new_tokens),
            return_dict_in_generate=True,
            output_logits=True,
        )
        tokens = output.sequences[0, inputs["input_ids"].shape[1] :]
        # The logits of a reply with reasoning take over a gigabyte, so they are not copied.
        top_two = torch.stack([logits[0].topk(2).values.float() for logits in output.logits])

        def decode(num_tokens: int) -> str:
            decoded: str = processor.tokenizer.decode(
                tokens[:num_tokens], skip_special_tokens=replies.skips_special_tokens
            )
            return decoded

        text, _ = replies.read(decode(len(tokens)), "length", self._max_new_tokens)
        answer = final_answer(text) or ""
        return Answer(answer, near_ties((top_two[:, 0] - top_two[:, 1]).tolist(), answer.strip(), decode))

    def record(self, answers: Sequence[Answer], repairs: Sequence[str] = ()) -> ExportCheck:
        """Return the questions with these answers, in the form in which the run stores them.

        Args:
            answers: The answers, in the order of the questions.
            repairs: What the export changed in settings that it carried over.
        """
        return ExportCheck(
            tuple(
                CheckedAnswer(
                    annotation_id=row.sample.annotation_id,
                    image_id=row.sample.image_id,
                    uri=row.sample.uri,
                    question=row.sample.question,
                    answer=answer.text,
                    near_ties=answer.near_ties,
                )
                for (row, _), answer in zip(self._questions, answers, strict=True)
            ),
            tuple(repairs),
        )


@contextmanager
def _greedy(model: Any) -> Iterator[None]:
    """Let the model answer greedily and without penalties, as engines do.

    Only the tokens that begin, end and pad a text are kept from the model's own generation settings. Afterwards, all of
    its settings are restored.
    """
    own = model.generation_config
    model.generation_config = GenerationConfig(
        bos_token_id=own.bos_token_id, eos_token_id=own.eos_token_id, pad_token_id=own.pad_token_id, do_sample=False
    )
    try:
        yield
    finally:
        model.generation_config = own


def _first_of(names: Sequence[str]) -> str:
    return ", ".join(names[:_NUM_NAMED]) + (f" and {len(names) - _NUM_NAMED} more" if len(names) > _NUM_NAMED else "")


def _save(model: Any, target: Path, card: str) -> None:
    model.save_pretrained(target)
    (target / _CARD).write_text(card, encoding="utf-8")


_VLLM_NAMES = {
    # transformers 5 leaves `vision_model.` out of the names of weights. vLLM and older versions of transformers expect
    # this part.
    kind: (re.compile(r"^((?:model\.)?vision_tower\.)(?!vision_model\.)"), r"\1vision_model.")
    for kind in ("llava", "llava_next", "llava_onevision")
}
"""For each model type, a pattern and a replacement that turn the names of weights in transformers into those that vLLM
expects. transformers can read both forms."""


def _rename_for_vllm(folder: Path, model_type: str) -> None:
    if model_type not in _VLLM_NAMES:
        return
    pattern, replacement = _VLLM_NAMES[model_type]
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as content:
            names = content.keys()
            weights = {pattern.sub(replacement, name): content.get_tensor(name) for name in names}
        save_file(weights, file, metadata={"format": "pt"})
    index_file = folder / "model.safetensors.index.json"
    if index_file.is_file():
        index = json.loads(index_file.read_text())
        index["weight_map"] = {pattern.sub(replacement, name): file for name, file in index["weight_map"].items()}
        index_file.write_text(json.dumps(index, indent=2))
