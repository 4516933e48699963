"""The settings of public checkpoints, with the keys that they have: what such a file leaves out is left out here.

The scaling of rotary positions and the places of remote code are left out, too. The parameters are those that the
checkpoints' authors publish, in units of 10^9.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import (
    AutoImageProcessor,
    Gemma3Processor,
    Idefics3Processor,
    InternVLProcessor,
    InternVLVideoProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    LlavaProcessor,
    PaliGemmaProcessor,
    Qwen2_5_VLProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from mpa_ray.imaging.image_tokens import WITH_MARKERS, ImageTokenRule, image_token_rule
from mpa_ray.models.omitted_settings import with_defaults
from tests.families import tokenizer

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class PublicModel:
    """A public checkpoint, without its weights and its tokenizer."""

    name: str
    published_parameters: float
    config: dict[str, Any]
    preprocessor_config: dict[str, Any]

    def processor(self, folder: Path) -> Any:
        """The processor of transformers, with these settings and a tokenizer that stands in for the real one."""
        settings = folder / "preprocessor_config.json"
        settings.write_text(json.dumps(self.preprocessor_config))
        return _with_tokenizer(self.config["model_type"], AutoImageProcessor.from_pretrained(folder))


NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))


def public_model(name: str) -> PublicModel:
    """The settings of a public checkpoint."""
    return PublicModel(name, **json.loads((FOLDER / f"{name}.json").read_text()))


def checkpoint(folder: Path, name: str) -> str:
    """A folder with the settings of a public checkpoint."""
    model = public_model(name)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(model.config))
    (folder / "preprocessor_config.json").write_text(json.dumps(model.preprocessor_config))
    return str(folder)


def rule_of(model: PublicModel) -> ImageTokenRule:
    """The rule for the tokens of the model's images."""
    rule = image_token_rule(with_defaults(model.config), model.preprocessor_config)
    assert rule is not None
    return rule


def num_tokens(processor: Any, image: Any, **arguments: Any) -> int:
    """The tokens that the processor writes into a prompt for an image, without those between its tiles."""
    ids = processor(text=[processor.image_token], images=[[image]], return_tensors="pt", **arguments)["input_ids"][0]
    # The placeholder of Gemma 3 becomes other tokens.
    token = getattr(processor.tokenizer, "image_token", None) or processor.image_token
    number = int((ids == processor.tokenizer.convert_tokens_to_ids(token)).sum())
    # Line breaks are several tokens of the tokenizer that stands in for the real one.
    assert len(ids) <= WITH_MARKERS * number + 8
    return number


def _with_tokenizer(model_type: str, images: Any) -> Any:
    """The processor of a family. The arguments are those in the processor_config.json of the public checkpoints."""
    match model_type:
        case "qwen2_vl":
            return Qwen2VLProcessor(images, tokenizer(), Qwen2VLVideoProcessor())
        case "qwen2_5_vl":
            return Qwen2_5_VLProcessor(images, tokenizer(), Qwen2VLVideoProcessor())
        case "qwen3_vl":
            return Qwen3VLProcessor(images, tokenizer(), Qwen3VLVideoProcessor())
        case "idefics3":
            tokens = ("<fake_token_around_image>", "<global-img>", "<image>", "<end_of_utterance>")
            rows = (f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7))
            return Idefics3Processor(images, tokenizer(*tokens, *rows), image_seq_len=64)
        case "internvl":
            named = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"}
            text = tokenizer(**named, video_token="<video>")
            return InternVLProcessor(images, text, InternVLVideoProcessor(), image_seq_length=256)
        case "llava_onevision":
            arguments = {"num_image_tokens": 729, "vision_feature_select_strategy": "full"}
            text = tokenizer("<image>", "<video>")
            return LlavaOnevisionProcessor(images, text, LlavaOnevisionVideoProcessor(), **arguments)
        case "llava":
            arguments = {"patch_size": 14, "num_additional_image_tokens": 1}
            return LlavaProcessor(images, tokenizer("<image>"), vision_feature_select_strategy="default", **arguments)
        case "gemma3":
            named = {
                "boi_token": "<start_of_image>",
                "eoi_token": "<end_of_image>",
                "image_token": "<image_soft_token>",
            }
            return Gemma3Processor(images, tokenizer(**named), image_seq_length=256)
        case "paligemma":
            text = tokenizer("<image>")
            text.bos_token = text.eos_token
            return PaliGemmaProcessor(images, text)
    raise KeyError(model_type)
