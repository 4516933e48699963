"""vLLM's asynchronous engine behind the engine protocol."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from itertools import count
from typing import Any

from mpa_ray.config import ModelConfig, ObjectStoreConfig, VllmEngineConfig
from mpa_ray.engine.child_processes import ChildProcesses
from mpa_ray.engine.protocol import EncodedImage, EngineDied, Reply, Request, RequestRefused
from mpa_ray.engine.vllm.arguments import (
    caches_tensors,
    check_adapters,
    engine_arguments,
    num_renderers,
    prepare_environment,
)
from mpa_ray.engine.vllm.budgets import default_batch_tokens
from mpa_ray.engine.vllm.rendering import (
    RawImages,
    Refusal,
    RenderedImage,
    RenderingProcesses,
    RenderingThread,
    has_renderer,
    raw_image,
    scaling_of,
    tokenize,
)
from mpa_ray.engine.vllm.version import check_vllm, installed_version
from mpa_ray.imaging.decode import ImageProblem
from mpa_ray.imaging.prepare import PreparedImage
from mpa_ray.models.chat_template import SpecialTokenInText, load_processor, render
from mpa_ray.models.checkpoints import local_folder, local_model
from mpa_ray.models.generation_settings import repaired_folder
from mpa_ray.models.reply_format import ReplyFormat
from mpa_ray.models.shared_engines import Adapter
from mpa_ray.records import Reason


def start(
    model: ModelConfig,
    settings: VllmEngineConfig,
    max_images_in_flight: int,
    adapters: Mapping[str, Adapter],
    object_store: ObjectStoreConfig,
) -> VllmEngine:
    """Bring the model and its adapters to this machine, then start the engine."""
    local = model.model_copy(update={"model": local_model(model.model, object_store)})
    local_adapters = {
        name: replace(adapter, model=local_folder(adapter.model, object_store)) for name, adapter in adapters.items()
    }
    return VllmEngine(local, settings, max_images_in_flight, local_adapters)


class VllmEngine:
    """One vLLM engine with its prefix cache, on the GPUs or CPUs that this process sees.

    Each image is decoded, scaled and converted to the model's tensors once for all prompts about it, in
    `num_renderers` processes or, if that is 0, in a thread of this process. Each prompt then only adds the tokens of
    the text after the image. If the installed vLLM has no renderer to call, vLLM gets raw prompts and images instead.
    """

    def __init__(
        self,
        model: ModelConfig,
        settings: VllmEngineConfig,
        max_images_in_flight: int,
        adapters: Mapping[str, Adapter] | None = None,
    ) -> None:
        """Start the engine, which takes half a minute or more.

        Args:
            model: The model; its checkpoint is a local folder or a hub name.
            settings: How vLLM serves the model.
            max_images_in_flight: See `VisionLanguageModel`.
            adapters: The adapters that requests may name; their checkpoints are local folders or hub names.

        Raises:
            ConfigError: the checkpoint has no processor for images, or the installed vLLM cannot be used.
            ValueError: the installed vLLM does not serve an adapter of this kind.
            EngineDied: the engine cannot start; the error names the cause.
        """
        adapters = adapters or {}
        prepare_environment(model, settings)
        check_vllm(installed_version())
        from vllm import AsyncEngineArgs
        from vllm.platforms import current_platform
        from vllm.v1.engine.async_llm import AsyncLLM

        on_cpu = current_platform.is_cpu()
        self.max_images_in_flight = max_images_in_flight
        self._processor = load_processor(model.model)
        self._chat_template_args = model.chat_template_args
        self._format = ReplyFormat.of(self._processor, model.chat_template_args, model.max_reasoning_tokens)
        self._image_token_id = self._processor.tokenizer.convert_tokens_to_ids(self._processor.image_token)
        # A request with a seed kills vLLM's CPU engine ("CPU Generator does not use offset").
        self._takes_seeds = not on_cpu
        default_tokens = None if on_cpu else default_batch_tokens(settings.tensor_parallel_size)
        arguments = engine_arguments(model, settings, on_cpu, adapters, default_tokens)
        # Kept as long as the engine, which reads the folder.
        self._generation_settings = repaired_folder(model.model)
        if self._generation_settings is not None:
            arguments.setdefault("generation_config", self._generation_settings.name)
        check_adapters(arguments, adapters)
        self._scaling = scaling_of(self._processor, arguments, model.pixel_limits)
        rendering = (arguments, model.pixel_limits, model.chat_template_args)
        num_processes = num_renderers(model, settings, on_cpu)
        # The processes start before the engine, so that they and the engine load at the same time.
        processes = RenderingProcesses(num_processes, *rendering) if num_processes else None
        self._processes = ChildProcesses()
        try:
            with self._processes.watched():
                self._engine = AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments))
        except RuntimeError as error:
            raise EngineDied(self._processes.why_died(error)) from None
        self._processes.add_current()
        self._caches_tensors = caches_tensors(arguments)
        self.renderer: RenderingProcesses | RenderingThread | RawImages
        """Decodes and scales image files, and runs the model's processor."""
        if processes is not None:
            self.renderer = processes
        elif has_renderer():
            self.renderer = RenderingThread(*rendering)
        else:
            self.renderer = RawImages(self._scaling)
        self._request_ids = count()
        # Numbered from 1, because 0 means "no adapter" to vLLM.
        self._adapters = {name: (number, a.model) for number, (name, a) in enumerate(adapters.items(), 1)}

    async def encode_image(self, image_id: str, content: bytes) -> EncodedImage | ImageProblem:
        rendered = await self.renderer.render_image(content)
        if isinstance(rendered, ImageProblem):
            return rendered
        if isinstance(rendered, Refusal):
            raise rendered.as_error()
        inputs = rendered.image if isinstance(rendered, PreparedImage) else rendered
        return EncodedImage(image_id, rendered.key, inputs)

    async def generate(self, image: EncodedImage, request: Request) -> Reply:
        from vllm.exceptions import VLLMValidationError
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        parameters = self._sampling_params(request)
        started = time.monotonic()
        try:
            prompt = render(self._processor, request.text, self._chat_template_args)
            output = await self._output(image, prompt, parameters, request.adapter)
        except SpecialTokenInText as error:
            raise RequestRefused(Reason.SPECIAL_TOKEN_IN_TEXT, str(error)) from error
        except EngineDeadError as error:
            raise EngineDied(self._processes.why_died(error)) from error
        except (VLLMValidationError, EngineGenerateError, ValueError) as error:
            raise Refusal.of(error).as_error() from error
        finish_reason = output.outputs[0].finish_reason
        if finish_reason not in ("stop", "length"):
            raise RequestRefused(Reason.REQUEST_FAILED, f"vLLM ended the request with {finish_reason!r}")
        return self._reply(output, request, time.monotonic() - started)

    def close(self) -> None:
        self.renderer.close()
        self._engine.shutdown()
        # Deleted now: when the interpreter exits, the modules that its clean-up needs may already be gone.
        del self._engine

    def _sampling_params(self, request: Request) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

        sampling, schema = request.sampling, request.schema
        return SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_tokens=self._format.max_tokens(sampling.max_new_tokens, may_reason=schema is None),
            skip_special_tokens=self._format.skips_special_tokens,
            seed=sampling.seed if sampling.temperature > 0 and self._takes_seeds else None,
            logprobs=0,
            structured_outputs=None if schema is None else StructuredOutputsParams(json=schema),
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    async def _output(self, image: EncodedImage, prompt: str, parameters: Any, adapter: str | None) -> Any:
        """vLLM's final output for a prompt; sends the image's tensors only if the engine has not cached them."""
        rendered = image.inputs
        if not isinstance(rendered, RenderedImage):
            raw = {"prompt": prompt, **raw_image(rendered, image.key, self._scaling)}
            return await self._final_output(raw, parameters, adapter)
        tokens = tokenize(self._engine.renderer, prompt)
        if rendered.is_in_engine and self._caches_tensors:
            output = await self._final_output(rendered.followed_by(tokens, with_tensors=False), parameters, adapter)
            if output.outputs[0].finish_reason != "error":
                return output
            # The tensors are no longer in the engine's cache.
        output = await self._final_output(rendered.followed_by(tokens), parameters, adapter)
        rendered.is_in_engine = True
        return output

    async def _final_output(self, prompt: Any, parameters: Any, adapter: str | None) -> Any:
        from vllm.lora.request import LoRARequest

        lora = LoRARequest(adapter, *self._adapters[adapter]) if adapter is not None else None
        request_id = f"{next(self._request_ids)}"
        async for output in self._engine.generate(prompt, parameters, request_id, lora_request=lora):
            final = output
        return final

    def _reply(self, output: Any, request: Request, elapsed_s: float) -> Reply:
        completion, tokens = output.outputs[0], output.prompt_token_ids
        image_positions = [i for i, token in enumerate(tokens) if token == self._image_token_id]
        num_output_tokens = len(completion.token_ids)
        text, finish_reason = self._format.read(
            completion.text,
            completion.finish_reason,
            request.sampling.max_new_tokens,
            may_reason=request.schema is None,
        )
        return Reply(
            text=text,
            finish_reason=finish_reason,
            num_prompt_tokens=len(tokens),
            num_cached_tokens=output.num_cached_tokens or 0,
            num_output_tokens=num_output_tokens,
            image_end=image_positions[-1] + 1 if image_positions else 0,
            mean_logprob=completion.cumulative_logprob / num_output_tokens if num_output_tokens else None,
            elapsed_s=elapsed_s,
        )
