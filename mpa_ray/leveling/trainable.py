"""Choose the components of a model to train, and their learning rates. The default is the language model only."""

from __future__ import annotations

from typing import Any

from torch import nn

from mpa_ray.config import Component, FullConfig, LoraConfig
from mpa_ray.models.components import component_of


def prepare_for_training(model: Any, method: LoraConfig | FullConfig) -> Any:
    """Freeze the weights that are not trained, and add adapters if the method is LoRA.

    Raises:
        ValueError: the model has no module of a configured component, or another component would also be trained.
    """
    if isinstance(method, LoraConfig):
        model = _with_adapters(model, method)
    else:
        for name, parameter in model.named_parameters():
            parameter.requires_grad = component_of(name) in method.components
    trained = {component_of(name) for name, parameter in model.named_parameters() if parameter.requires_grad}
    if absent := set(method.components) - trained:
        raise ValueError(f"{type(model).__name__} has no {', '.join(sorted(absent))} that could be trained")
    if unexpected := trained - set(method.components):
        raise ValueError(f"training {type(model).__name__} would also change {', '.join(sorted(unexpected))}")
    return model


def adapted_modules(model: nn.Module, components: tuple[Component, ...]) -> list[str]:
    """The names of the linear layers of these components, without the output head."""
    head = model.get_output_embeddings()  # type: ignore[operator]
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head and component_of(name) in components
    ]


def learning_rates(method: LoraConfig | FullConfig, learning_rate: float) -> dict[Component, float]:
    """The peak learning rate of each component."""
    if isinstance(method, LoraConfig):
        return dict.fromkeys(("language", "projector", "vision"), learning_rate)
    return {
        "language": learning_rate,
        "projector": method.projector_learning_rate or learning_rate,
        "vision": method.vision_learning_rate or learning_rate / 10,
    }


def parameter_groups(model: nn.Module, method: LoraConfig | FullConfig, learning_rate: float) -> list[dict[str, Any]]:
    """The optimizer's parameter groups: the trainable parameters of each component, with its peak learning rate."""
    rates = learning_rates(method, learning_rate)
    groups: dict[Component, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault(component_of(name), []).append(parameter)
    return [{"params": parameters, "lr": rates[component]} for component, parameters in groups.items()]


def _with_adapters(model: Any, method: LoraConfig) -> Any:
    import peft

    adapters = peft.LoraConfig(
        r=method.rank,
        lora_alpha=method.alpha,  # type: ignore[arg-type]
        lora_dropout=method.dropout,
        target_modules=adapted_modules(model, method.components),
        task_type="CAUSAL_LM",
    )
    return peft.get_peft_model(model, adapters)
