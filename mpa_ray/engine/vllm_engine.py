"""vLLM's asynchronous engine behind our protocol: the only file that imports vLLM. Tested with vLLM 0.32 (CPU)."""

from __future__ import annotations

import os
import re
import time
from itertools import count
from typing import Any

from mpa_ray.config import SamplingConfig, VllmEngineConfig
from mpa_ray.engine.protocol import EngineDied, Reply, RequestRefused, VisualPrompt
from mpa_ray.records import Reason
from mpa_ray.rendering import SpecialTokenInText, load_processor, render

_TOO_LONG = re.compile(r"max_model_len|maximum (model|context) length|longer than the maximum", re.IGNORECASE)


class VllmEngine:
    """One vLLM engine with its prefix cache on, on the GPUs or CPUs that this process sees."""

    def __init__(self, model: str, config: VllmEngineConfig, max_images_in_flight: int) -> None:
        """Start the engine; half a minute or more.

        Raises:
            ConfigError: the checkpoint has no processor for images.
        """
        _prepare_environment(config)
        from vllm import AsyncEngineArgs
        from vllm.platforms import current_platform
        from vllm.v1.engine.async_llm import AsyncLLM

        self.max_images_in_flight = max_images_in_flight
        self._processor = load_processor(model)
        self._image_token_id = self._processor.tokenizer.convert_tokens_to_ids(self._processor.image_token)
        arguments: dict[str, Any] = {
            "model": model,
            "dtype": config.dtype,
            "max_num_seqs": config.max_num_seqs,
            "enable_prefix_caching": True,
            "limit_mm_per_prompt": {"image": 1, "video": 0},
            "disable_log_stats": True,
        }
        # A generator of its own for a request ends vLLM's CPU engine ("CPU Generator does not use offset").
        self._takes_seeds = not current_platform.is_cpu()
        if current_platform.is_cpu():
            # vLLM's CPU default of 128 would leave short prompts without one whole block to find again.
            arguments |= {"block_size": 32, "enforce_eager": True}
        if config.block_size is not None:
            arguments["block_size"] = config.block_size
        if config.max_model_len is not None:
            arguments["max_model_len"] = config.max_model_len
        self._engine = AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments | config.engine_args))
        self._request_ids = count()

    async def generate(self, prompt: VisualPrompt, sampling: SamplingConfig) -> Reply:
        from vllm import SamplingParams
        from vllm.exceptions import VLLMValidationError
        from vllm.sampling_params import RequestOutputKind
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        parameters = SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_tokens=sampling.max_new_tokens,
            seed=sampling.seed if sampling.temperature > 0 and self._takes_seeds else None,
            logprobs=0,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        try:
            rendered = render(self._processor, prompt.text)
        except SpecialTokenInText as error:
            raise RequestRefused(Reason.SPECIAL_TOKEN_IN_TEXT, str(error)) from error
        request = {
            "prompt": rendered,
            "multi_modal_data": {"image": prompt.image.image},
            "multi_modal_uuids": {"image": prompt.image.key},
        }
        started = time.monotonic()
        try:
            async for output in self._engine.generate(request, parameters, f"{next(self._request_ids)}"):  # type: ignore[arg-type]
                final = output
        except EngineDeadError as error:
            raise EngineDied(str(error)) from error
        except (VLLMValidationError, EngineGenerateError, ValueError) as error:
            too_long = _TOO_LONG.search(str(error))
            raise RequestRefused(Reason.PROMPT_TOO_LONG if too_long else Reason.REQUEST_FAILED, str(error)) from error
        return self._reply(final, time.monotonic() - started)

    def close(self) -> None:
        self._engine.shutdown()
        # Collected now: at the interpreter's end its own clean-up would find half of vLLM gone.
        del self._engine

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


def _prepare_environment(config: VllmEngineConfig) -> None:
    """Settings that vLLM reads from the environment when it is imported; what the user has set stays."""
    cores = ",".join(map(str, sorted(os.sched_getaffinity(0))))
    for name, value in {
        "VLLM_CPU_KVCACHE_SPACE": str(config.cpu_kv_cache_gib),
        # By default the engine keeps one core for itself, half of a small machine.
        "VLLM_CPU_OMP_THREADS_BIND": cores,
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
    }.items():
        os.environ.setdefault(name, value)
