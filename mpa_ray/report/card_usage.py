"""The section "Use" of a model card: how to ask an exported student questions, with transformers and with vLLM."""

from __future__ import annotations

import json

from mpa_ray.config import StudentConfig
from mpa_ray.tasks.task import PREAMBLE, SYSTEM_PROMPT, Task

_TITLE = "## Use\n"
_USAGE = '''## Use

The student was trained and measured with the prompt below, and with images within the pixel limits above. With other
prompts or image sizes, its answers are worse. {sizes}

The checkpoint needs transformers 5; the table above has the version that wrote it. Version 4 does not read it: 4.57.6
cannot load its processor, and would ignore its settings for the positions of tokens.

Run the examples in the folder `merged/`. They give the same answers as mpa_ray. Both begin with this code:

```python
{import_math}from PIL import Image, ImageOps
from transformers import AutoProcessor

STUDENT = "."
SYSTEM = {system}
PROMPT = {prompt}
{pixel_limits}

def load_image(path):
    """Load an image upright, in RGB on a white background{within_limits}."""
    with Image.open(path) as file:
        image = ImageOps.exif_transpose(file)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.new("RGB", rgba.size, "white")
        image.paste(rgba, mask=rgba)
    {scaled_image}


def prompt(processor, question):
    """Put a question into the model's chat template, after the system message and the image."""
    text = PROMPT.format(question=question.strip())
    messages = [
        {{"role": "system", "content": [{{"type": "text", "text": SYSTEM}}]}},
        {{"role": "user", "content": [{{"type": "image"}}, {{"type": "text", "text": text}}]}},
    ]
    return processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False{chat_template_args})
```

With transformers:

```python
import torch
from transformers import AutoModelForImageTextToText

processor = AutoProcessor.from_pretrained(STUDENT)
model = AutoModelForImageTextToText.from_pretrained(STUDENT, dtype="{dtype}")
model = model.eval().to("cuda" if torch.cuda.is_available() else "cpu")


def answer(path, question):
    inputs = processor(text=[prompt(processor, question)], images=[[load_image(path)]], return_tensors="pt")
    inputs = inputs.to(model.device, model.dtype)
    output = model.generate(**inputs, max_new_tokens={max_new_tokens}, do_sample=False, repetition_penalty=1.0)
    return processor.tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True){answer_only}


print(answer("image.png", "What is in the image?"))
```

With vLLM (save the code in a file, because vLLM's worker processes import it again):

```python
import os

# For a CPU: the size of the KV cache in GiB. By default, vLLM needs 92% of the memory to be free.
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")


def answers(pairs):
    """Answer questions about images. A pair holds the path of an image and a question."""
    from vllm import LLM, SamplingParams

    processor = AutoProcessor.from_pretrained(STUDENT)
    llm = LLM(STUDENT, dtype="{dtype}", limit_mm_per_prompt={{"image": 1, "video": 0}}{max_model_len})
    prompts = [
        {{"prompt": prompt(processor, question), "multi_modal_data": {{"image": load_image(path)}}}}
        for path, question in pairs
    ]
    outputs = llm.generate(prompts, SamplingParams(temperature=0, max_tokens={max_new_tokens}))
    return [output.outputs[0].text{answer_only} for output in outputs]


if __name__ == "__main__":
    print(answers([("image.png", "What is in the image?")]))
```
'''


_SCALED_BY_PROCESSOR = {
    "sizes": "The exported processor resizes images to these\nlimits.",
    "import_math": "",
    "pixel_limits": "",
    "within_limits": "",
    "scaled_image": 'return image.convert("RGB")',
}
_SCALED_BY_EXAMPLE = {
    "sizes": "Resize each image with\n`load_image` first, because the processor alone resizes it differently.",
    "import_math": "import math\n\n",
    "pixel_limits": "MIN_PIXELS, MAX_PIXELS = {min_pixels}, {max_pixels}\n",
    "within_limits": ", and resize it to the pixel limits",
    "scaled_image": """image = image.convert("RGB")
    area = image.width * image.height
    if MIN_PIXELS <= area <= MAX_PIXELS:
        return image
    scale = math.sqrt((MAX_PIXELS if area > MAX_PIXELS else MIN_PIXELS) / area)
    whole = math.floor if scale < 1 else math.ceil
    size = max(1, whole(image.width * scale)), max(1, whole(image.height * scale))
    return image.resize(size, Image.Resampling.BICUBIC)""",
}


_CLOSING_TOKENS = 8
"""Enough tokens to close the reasoning, which the student has learned to do before it answers."""


def section_use(card: str) -> str:
    """Return the section of a model card that `usage` wrote; empty if the card has none."""
    _, title, rest = card.partition(_TITLE)
    return title + rest


def usage(
    student: StudentConfig, task: Task, max_new_tokens: int, processor_scales: bool, closing_tag: str = ""
) -> str:
    """Write the section: the prompt, the image sizes, and examples that give the same answers as mpa_ray.

    Args:
        student: The exported student.
        task: The task with the prompt that the student was trained on.
        max_new_tokens: The maximum number of tokens in an answer.
        processor_scales: Whether the exported processor scales images to the student's pixel limits. If not, the
            examples scale them.
        closing_tag: The tag that closes the reasoning which the student's chat template opens; "" if it opens none.
    """
    limits = {"min_pixels": student.min_pixels, "max_pixels": student.max_pixels}
    parts = _SCALED_BY_PROCESSOR if processor_scales else _SCALED_BY_EXAMPLE
    max_model_len = student.engine.max_sequence_tokens
    return _USAGE.format(
        system=_literal(SYSTEM_PROMPT),
        prompt=_literal(PREAMBLE.replace("{", "{{").replace("}", "}}") + task.answer_template),
        **{name: part.format(**limits) for name, part in parts.items()},
        chat_template_args=f", **{student.chat_template_args!r}" if student.chat_template_args else "",
        answer_only=f".rpartition({json.dumps(closing_tag, ensure_ascii=False)})[2].strip()" if closing_tag else "",
        dtype=student.engine.weight_format,
        max_model_len=f", max_model_len={max_model_len}" if max_model_len else "",
        max_new_tokens=max_new_tokens + (_CLOSING_TOKENS if closing_tag else 0),
    )


def _literal(text: str) -> str:
    """Return the Python source of a string, with a literal for each line. JSON's escapes are valid in Python, too."""
    lines = text.splitlines(keepends=True)
    if len(lines) < 2:
        return json.dumps(text, ensure_ascii=False)
    return "\n".join(["(", *(f"    {json.dumps(line, ensure_ascii=False)}" for line in lines), ")"])
