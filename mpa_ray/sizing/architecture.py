"""The sizes of a vision-language model, from its settings alone: parameters, cache, image tokens, operations."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mpa_ray.config import Component
from mpa_ray.errors import ConfigError
from mpa_ray.imaging.image_tokens import FixedTokens, GridTokens, ImageTokenRule, image_token_rule, side_of
from mpa_ray.models.omitted_settings import ConfigJson, with_defaults

_BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "half": 2.0, "float": 4.0}
_LARGEST_SIZE = 10**15
_MAY_BE_ZERO = ("num_expert_parameters", "expert_share")
_NOT_SIZES = ("linears", "head", "image_rule", "has_image_rule", *_MAY_BE_ZERO)
_ONE_PROJECTION = ("gemma3", "paligemma", "idefics3", "smolvlm")
"""Model types whose projector is a single linear layer."""


@dataclass(frozen=True)
class Linear:
    """Linear layers of one shape."""

    inputs: int
    outputs: int
    count: int = 1


@dataclass(frozen=True)
class Architecture:
    """The shapes from which sizes are computed, without norms and biases, which are under 0.1 % of the parameters."""

    linears: dict[Component, tuple[Linear, ...]]
    num_embeddings: int
    """Parameters of the input embeddings, and of the output head unless it is tied to them."""
    head: Linear
    """The output head, from the last layer to the vocabulary, even if it is tied to the embeddings."""
    num_expert_parameters: int
    """Parameters of all experts in all layers; 0 for a dense model."""
    expert_share: float
    """The share of the experts' parameters that one token passes through."""
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position_embeddings: int
    vision_width: int
    vision_depth: int
    patch_pixels: int
    """Pixels of a patch, width times height."""
    patches_per_token: int
    """Patches that are merged into one token of the language model."""
    tile_pixels: int | None
    """Pixels of the vision tower's input if it has a fixed size; None if images may have any size."""
    image_rule: ImageTokenRule
    """How many tokens stand for an image."""
    has_image_rule: bool
    """False if the rule is only an estimate, since the family is not known."""
    weight_bits: int | None
    """Bits per weight of a quantized checkpoint; None if it is not quantized."""

    def num_parameters(self, component: Component) -> int:
        """The number of parameters of one component; embeddings and experts belong to the language model."""
        in_layers = sum(linear.inputs * linear.outputs * linear.count for linear in self.linears[component])
        return in_layers + (self.num_embeddings + self.num_expert_parameters if component == "language" else 0)

    @property
    def total(self) -> int:
        """The number of all parameters."""
        return sum(self.num_parameters(component) for component in self.linears)

    def num_adapter_parameters(self, components: Iterable[Component], rank: int) -> int:
        """Parameters of LoRA on every linear layer: rank * (inputs + outputs) each (arXiv 2106.09685)."""
        return sum(rank * (x.inputs + x.outputs) * x.count for component in components for x in self.linears[component])

    def weight_bytes(self, dtype: str) -> float:
        """Bytes of all weights in the number format of an engine, where `auto` means 16 bits.

        A quantized checkpoint has fewer bits in the linear layers of its language model.
        """
        width = _BYTES.get(dtype, 2.0)
        if self.weight_bits is None:
            return self.total * width
        quantized = self.num_parameters("language") - self.num_embeddings
        return quantized * self.weight_bits / 8 + (self.total - quantized) * width

    def kv_bytes_per_token(self, bytes_per_value: float = 2.0, num_gpus: int = 1) -> float:
        """Bytes per GPU of a token's keys and values in all layers. A head is never split between GPUs."""
        heads = max(1, -(-self.num_kv_heads // num_gpus))
        return 2 * self.num_layers * heads * self.head_dim * bytes_per_value

    def vision_operations(self, num_image_tokens: int) -> float:
        """Floating-point operations of a forward pass of one image through vision tower and projector.

        These are 2 operations per weight and patch (in the projector, per weight and token), and the operations of
        attention. Attention covers the patches of the whole image or, if the image is cut into tiles, of one tile.
        """
        patches = num_image_tokens * self.patches_per_token
        attended = patches if self.tile_pixels is None else min(patches, self.tile_pixels // self.patch_pixels)
        attention = 4 * self.vision_depth * self.vision_width * attended * patches
        return (
            2 * self.num_parameters("vision") * patches
            + attention
            + 2 * self.num_parameters("projector") * num_image_tokens
        )

    def language_operations(self, num_tokens: float, num_before: float = 0.0) -> float:
        """Floating-point operations of a forward pass of tokens after `num_before` cached tokens, without the head.

        There are 2 operations per weight and token, and the operations of causal attention.
        """
        active = sum(x.inputs * x.outputs * x.count for x in self.linears["language"])
        attended = num_tokens * (num_before + num_tokens / 2)
        width = self.num_heads * self.head_dim
        return 2 * (active + self.num_expert_parameters * self.expert_share) * num_tokens + (
            4 * self.num_layers * width * attended
        )

    @property
    def head_operations(self) -> float:
        """Operations of the output head for one output token: 2 per weight."""
        return 2.0 * self.head.inputs * self.head.outputs


def architecture_of(
    settings: Mapping[str, Any],
    model: str,
    processor: Mapping[str, Any] | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> Architecture:
    """Read the config.json of Qwen2-VL to Qwen3-VL, InternVL, SmolVLM, LLaVA, Gemma 3 and models with the same keys.

    Args:
        settings: The content of config.json. The defaults of the model's classes complete it.
        model: The name of the model in errors.
        processor: The settings of the image processor; None stands for the defaults of its class.
        arguments: Arguments with which an engine calls the processor.

    Raises:
        ConfigError: a size is missing, or is one that no model can have.
    """
    try:
        sizes = _architecture(with_defaults(settings), processor or {}, arguments or {})
        _check_sizes(sizes)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise ConfigError(
            "model",
            model,
            f"its config.json lacks a size ({type(error).__name__}: {error}).",
            "Set rates (plan.*), or plan.from_run.",
        ) from error
    return sizes


def _check_sizes(sizes: Architecture) -> None:
    """Raise ValueError for a size that is less than 1, or too large for any model."""
    layers = [linear for component in sizes.linears.values() for linear in component]
    named = {
        f"{name} of a layer": [getattr(layer, name) for layer in layers] for name in ("inputs", "outputs", "count")
    }
    named |= {name: [value] for name, value in vars(sizes).items() if name not in _NOT_SIZES}
    named |= {"vocab_size": [sizes.head.outputs]}
    for name, values in named.items():
        for value in values:
            if value is not None and not 1 <= value <= _LARGEST_SIZE:
                raise ValueError(f"{name} is {value}")
    for name in _MAY_BE_ZERO:
        if not 0 <= getattr(sizes, name) <= _LARGEST_SIZE:
            raise ValueError(f"{name} is {getattr(sizes, name)}")


def _architecture(settings: ConfigJson, processor: Mapping[str, Any], arguments: Mapping[str, Any]) -> Architecture:
    text, vision = settings["text_config"], settings["vision_config"]
    width, num_layers, num_heads = text["hidden_size"], text["num_hidden_layers"], text["num_attention_heads"]
    num_experts = text.get("num_experts") or text.get("num_local_experts") or 0
    expert_size = 3 * width * text.get("moe_intermediate_size", text["intermediate_size"]) * num_layers
    # In Qwen2-VL's vision_config, hidden_size is the language model's width, and embed_dim is the vision tower's.
    vision_width = vision.get("embed_dim") or vision["hidden_size"]
    patch_side = side_of(vision["patch_size"])
    merge, rule = _merge(settings), image_token_rule(settings, processor, arguments)
    return Architecture(
        linears={
            "language": _language_layers(text, is_dense=not num_experts),
            "projector": _projector_layers(settings, vision_width, merge, width),
            "vision": _vision_layers(settings, vision_width, patch_side),
        },
        num_embeddings=text["vocab_size"] * width * (1 if text["tie_word_embeddings"] else 2),
        head=Linear(width, text["vocab_size"]),
        num_expert_parameters=num_experts * expert_size,
        expert_share=text.get("num_experts_per_tok", 1) / num_experts if num_experts else 0.0,
        num_layers=num_layers,
        hidden_size=width,
        intermediate_size=text["intermediate_size"],
        num_heads=num_heads,
        num_kv_heads=text.get("num_key_value_heads") or num_heads,
        head_dim=text.get("head_dim") or width // num_heads,
        max_position_embeddings=text.get("max_position_embeddings", 4096),
        vision_width=vision_width,
        vision_depth=_vision_depth(vision),
        patch_pixels=patch_side**2,
        patches_per_token=merge**2,
        tile_pixels=None if "spatial_merge_size" in vision else side_of(vision["image_size"]) ** 2,
        image_rule=rule or _plain_rule(vision, patch_side, merge),
        has_image_rule=rule is not None,
        weight_bits=_bits(settings.get("quantization_config")),
    )


def _language_layers(text: ConfigJson, *, is_dense: bool) -> tuple[Linear, ...]:
    """The linear layers of attention, and of the gated MLP of a dense model."""
    width, num_layers, num_heads = text["hidden_size"], text["num_hidden_layers"], text["num_attention_heads"]
    num_kv_heads = text.get("num_key_value_heads") or num_heads
    head_dim = text.get("head_dim") or width // num_heads
    attention = (
        Linear(width, num_heads * head_dim, num_layers),
        Linear(width, num_kv_heads * head_dim, 2 * num_layers),
        Linear(num_heads * head_dim, width, num_layers),
    )
    if not is_dense:
        return attention
    inner = text["intermediate_size"]
    return (*attention, Linear(width, inner, 2 * num_layers), Linear(inner, width, num_layers))


def _vision_layers(settings: ConfigJson, width: int, patch_side: int) -> tuple[Linear, ...]:
    """The linear layers of patch embedding, attention and MLP. The MLP is gated in Qwen2.5-VL."""
    vision, depth = settings["vision_config"], _vision_depth(settings["vision_config"])
    inner = vision.get("intermediate_size") or int(width * vision.get("mlp_ratio", 4))
    is_gated = "2_5_vl" in vision.get("model_type", "") or "2_5_vl" in settings.get("model_type", "")
    num_channels = vision.get("in_channels") or vision.get("in_chans") or 3
    return (
        Linear(num_channels * vision.get("temporal_patch_size", 1) * patch_side**2, width),
        Linear(width, width, 4 * depth),
        Linear(width, inner, (2 if is_gated else 1) * depth),
        Linear(inner, width, depth),
    )


def _projector_layers(settings: ConfigJson, vision_width: int, merge: int, width: int) -> tuple[Linear, ...]:
    """The linear layers from the vision tower to the language model."""
    vision, model_type = settings["vision_config"], settings.get("model_type")
    merged_width = vision_width * merge**2
    if "spatial_merge_size" in vision:
        num_mergers = 1 + len(vision.get("deepstack_visual_indexes", ()))
        return Linear(merged_width, merged_width, num_mergers), Linear(merged_width, width, num_mergers)
    if model_type == "minicpmv":
        # A layer for the keys, then attention with its input and output layers, and the projection.
        return Linear(vision_width, width), Linear(width, width, 5)
    if model_type == "gemma3":
        # The patches of a token are averaged.
        return (Linear(vision_width, width),)
    if model_type in _ONE_PROJECTION:
        return (Linear(merged_width, width),)
    return Linear(merged_width, width), Linear(width, width)


def _merge(settings: ConfigJson) -> int:
    """The side of the square of patches that becomes one token."""
    vision = settings["vision_config"]
    if "downsample_ratio" in settings:
        return int(1 / settings["downsample_ratio"] + 0.5)
    if merge := vision.get("spatial_merge_size") or settings.get("scale_factor"):
        return int(merge)
    num_patches = side_of(vision.get("image_size", 1)) // side_of(vision["patch_size"])
    match settings.get("model_type"):
        case "gemma3":
            return round(num_patches / math.sqrt(settings.get("mm_tokens_per_image", 256)))
        case "minicpmv":
            side = settings.get("image_size", 448) // side_of(vision["patch_size"])
            return int(side // math.sqrt(settings.get("query_num", 64)))
        case "internvl" | "internvl_chat" | "phi3_v" | "idefics3" | "smolvlm":
            return 2
    return 1


def _plain_rule(vision: Mapping[str, Any], patch_side: int, merge: int) -> ImageTokenRule:
    """An estimate for other families: a token for each square of patches of the image or of its single tile."""
    if "spatial_merge_size" in vision:
        return GridTokens(patch_side * merge, 1, _LARGEST_SIZE)
    side = side_of(vision["image_size"])
    return FixedTokens((side // (patch_side * merge)) ** 2, side)


def _vision_depth(vision: ConfigJson) -> int:
    return int(vision.get("depth") or vision["num_hidden_layers"])


def _bits(quantization: ConfigJson | None) -> int | None:
    if quantization is None:
        return None
    bits = quantization.get("bits") or quantization.get("w_bit")
    if bits is None and quantization.get("quant_method") == "bitsandbytes":
        return 4 if quantization.get("load_in_4bit", True) else 8
    if bits is None:
        groups = quantization.get("config_groups") or {}
        bits = next((group["weights"]["num_bits"] for group in groups.values() if group.get("weights")), 8)
    return int(bits)
