"""A vision-language model's sizes from its config.json alone: parameters, cache, tokens of an image, operations."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from mpa_ray.config import Component
from mpa_ray.errors import ConfigError

_BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "half": 2.0, "float": 4.0}


@dataclass(frozen=True)
class Linear:
    """So many linear layers of one shape."""

    inputs: int
    outputs: int
    count: int = 1


@dataclass(frozen=True)
class Architecture:
    """Weights are counted in matrices: norms and biases are left out, under a thousandth of all."""

    linears: dict[Component, tuple[Linear, ...]]
    num_embeddings: int
    """Parameters of the input embeddings, and of the output head where it is one of its own."""
    head: Linear
    """From the last layer to the vocabulary, be it tied to the embeddings."""
    num_expert_parameters: int
    """In all experts of all layers; 0 for a dense model."""
    expert_share: float
    """Of the experts' parameters those that one token goes through."""
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
    """Pixels of a patch."""
    patches_per_token: int
    """Patches that are merged into one token of the language model."""
    tile_pixels: int | None
    """Pixels of a tile where images are cut into tiles of one size; None where any size is taken."""
    weight_bits: int | None
    """Of a quantized checkpoint."""

    def num_parameters(self, component: Component) -> int:
        found = sum(linear.inputs * linear.outputs * linear.count for linear in self.linears[component])
        return found + (self.num_embeddings + self.num_expert_parameters if component == "language" else 0)

    @property
    def total(self) -> int:
        """All parameters."""
        return sum(self.num_parameters(component) for component in self.linears)

    def num_adapter_parameters(self, components: Iterable[Component], rank: int) -> int:
        """Of LoRA on every linear layer of these components: rank * (inputs + outputs) each (arXiv 2106.09685)."""
        return sum(rank * (x.inputs + x.outputs) * x.count for name in components for x in self.linears[name])

    def weight_bytes(self, dtype: str) -> float:
        """In the number format of an engine: `auto` is 16 bits; a quantized checkpoint has its language model's
        linear layers in fewer."""
        width = _BYTES.get(dtype, 2.0)
        if self.weight_bits is None:
            return self.total * width
        quantized = self.num_parameters("language") - self.num_embeddings
        return quantized * self.weight_bits / 8 + (self.total - quantized) * width

    def kv_bytes_per_token(self, bytes_per_value: float = 2.0, num_gpus: int = 1) -> float:
        """On each of `num_gpus` that share a copy: a key and a value of every layer and head; a head is not cut."""
        heads = max(1, -(-self.num_kv_heads // num_gpus))
        return 2 * self.num_layers * heads * self.head_dim * bytes_per_value

    def image_tokens(self, num_pixels: int) -> int:
        """Tokens of an image of so many pixels; of a tiled one with a view of the whole besides."""
        if self.tile_pixels is None:
            return max(1, num_pixels // (self.patch_pixels * self.patches_per_token))
        tiles = -(-num_pixels // self.tile_pixels)
        return (tiles + (tiles > 1)) * (self.tile_pixels // (self.patch_pixels * self.patches_per_token))

    def vision_operations(self, num_image_tokens: int) -> float:
        """Of one image through vision tower and projector, forwards: 2 for each weight and patch, and attention over
        all patches (of a tile)."""
        patches = num_image_tokens * self.patches_per_token
        together = patches if self.tile_pixels is None else min(patches, self.tile_pixels // self.patch_pixels)
        attention = 4 * self.vision_depth * self.vision_width * together * patches
        return (
            2 * self.num_parameters("vision") * patches
            + attention
            + 2 * self.num_parameters("projector") * num_image_tokens
        )

    def language_operations(self, num_tokens: float, num_before: float = 0.0) -> float:
        """Of tokens through the language model, forwards, behind others in the cache: 2 for each weight, and causal
        attention; the output head apart (2 for each of its weights and drawn token)."""
        active = sum(x.inputs * x.outputs * x.count for x in self.linears["language"])
        attended = num_tokens * (num_before + num_tokens / 2)
        width = self.num_heads * self.head_dim
        return 2 * (active + self.num_expert_parameters * self.expert_share) * num_tokens + (
            4 * self.num_layers * width * attended
        )

    @property
    def head_operations(self) -> float:
        """Of one drawn token."""
        return 2.0 * self.head.inputs * self.head.outputs


def architecture_of(settings: dict[str, Any], model: str) -> Architecture:
    """From the content of config.json: Qwen2-VL to Qwen3-VL, InternVL, SmolVLM, LLaVA and what names its sizes alike.

    Raises:
        ConfigError: a size is not told.
    """
    try:
        return _architecture(settings)
    except (KeyError, TypeError, ZeroDivisionError) as error:
        raise ConfigError(
            "model",
            model,
            f"its config.json does not tell its sizes ({type(error).__name__}: {error}).",
            "Give rates (plan.*), or plan.from_run.",
        ) from error


def _architecture(settings: dict[str, Any]) -> Architecture:
    text = settings.get("text_config") or settings
    vision = settings["vision_config"]
    width, layers, heads = text["hidden_size"], text["num_hidden_layers"], text["num_attention_heads"]
    kv_heads = text.get("num_key_value_heads") or heads
    head_dim = text.get("head_dim") or width // heads
    inner = text["intermediate_size"]
    experts = text.get("num_experts") or text.get("num_local_experts") or 0
    expert_size = 3 * width * text.get("moe_intermediate_size", inner) * layers
    is_tied = text.get("tie_word_embeddings", settings.get("tie_word_embeddings", False))
    language = (
        Linear(width, heads * head_dim, layers),
        Linear(width, kv_heads * head_dim, 2 * layers),
        Linear(heads * head_dim, width, layers),
        *(() if experts else (Linear(width, inner, 2 * layers), Linear(inner, width, layers))),
    )
    # Qwen2-VL calls the language model's width hidden_size here, and its own embed_dim.
    seen = vision.get("embed_dim") or vision["hidden_size"]
    depth = vision.get("depth") or vision["num_hidden_layers"]
    seen_inner = vision.get("intermediate_size") or int(seen * vision.get("mlp_ratio", 4))
    is_gated = "2_5_vl" in vision.get("model_type", "") or "2_5_vl" in settings.get("model_type", "")
    patch = _side(vision["patch_size"])
    merge = vision.get("spatial_merge_size") or settings.get("scale_factor") or 1
    if "downsample_ratio" in settings:
        merge = round(1 / settings["downsample_ratio"])
    channels = vision.get("in_channels") or vision.get("in_chans") or 3
    towers = (
        Linear(channels * vision.get("temporal_patch_size", 1) * patch**2, seen),
        Linear(seen, seen, 4 * depth),
        Linear(seen, seen_inner, (2 if is_gated else 1) * depth),
        Linear(seen_inner, seen, depth),
    )
    merged = seen * merge**2
    projector: tuple[Linear, ...]
    if "spatial_merge_size" in vision:
        num_mergers = 1 + len(vision.get("deepstack_visual_indexes", ()))
        projector = (Linear(merged, merged, num_mergers), Linear(merged, width, num_mergers))
    elif "scale_factor" in settings:
        projector = (Linear(merged, width),)
    else:
        projector = (Linear(merged, width), Linear(width, width))
    return Architecture(
        linears={"language": language, "projector": projector, "vision": towers},
        num_embeddings=text["vocab_size"] * width * (1 if is_tied else 2),
        head=Linear(width, text["vocab_size"]),
        num_expert_parameters=experts * expert_size,
        expert_share=text.get("num_experts_per_tok", 1) / experts if experts else 0.0,
        num_layers=layers,
        hidden_size=width,
        intermediate_size=inner,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        max_position_embeddings=text.get("max_position_embeddings", 4096),
        vision_width=seen,
        vision_depth=depth,
        patch_pixels=patch**2,
        patches_per_token=merge**2,
        tile_pixels=None if "spatial_merge_size" in vision else _side(vision["image_size"]) ** 2,
        weight_bits=_bits(settings.get("quantization_config")),
    )


def _side(size: Any) -> int:
    return int(size[0] if isinstance(size, list) else size)


def _bits(quantization: dict[str, Any] | None) -> int | None:
    if quantization is None:
        return None
    told = quantization.get("bits") or quantization.get("w_bit")
    if told is None and quantization.get("quant_method") == "bitsandbytes":
        return 4 if quantization.get("load_in_4bit", True) else 8
    if told is None:
        groups = quantization.get("config_groups") or {}
        told = next((group["weights"]["num_bits"] for group in groups.values() if group.get("weights")), 8)
    return int(told)
