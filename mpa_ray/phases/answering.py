"""The pass in which models answer labelled questions."""

from __future__ import annotations

from functools import partial
from typing import Any

from mpa_ray.config import EvaluationRunConfig
from mpa_ray.models.shared_engines import EngineGroup
from mpa_ray.phases.context import RunContext
from mpa_ray.phases.model_groups import stage_for
from mpa_ray.phases.sequence_limit import with_sequence_limit
from mpa_ray.pipeline.pass_spec import Pass
from mpa_ray.records import LabelledQuestion
from mpa_ray.run.dataset import ShardedDataset, ShardTarget
from mpa_ray.run.joined_datasets import Dataset, JoinedDatasets
from mpa_ray.run.phase_record import PhaseKey
from mpa_ray.run.redo import Redo
from mpa_ray.stages.predict import Predict


def answer_pass(
    context: RunContext[EvaluationRunConfig],
    key: PhaseKey,
    group: EngineGroup,
    questions: Dataset[LabelledQuestion],
    answers: ShardTarget[Any],
) -> Pass[Any]:
    """A pass in which the models of one engine answer labelled questions.

    Args:
        context: The run.
        key: The phase that the pass belongs to.
        group: The engine and its models.
        questions: The questions, with all questions about an image in one shard.
        answers: Where rows are committed: a `Prediction` for each question, or an `OfModel[Prediction]` if the group
            has several models.
    """
    config = context.config
    return Pass(
        key=key,
        models=group.names,
        source=questions,
        target=answers,
        model=with_sequence_limit(context, group.base),
        branch=context.run.fingerprints.branches.of_model(group.names[0]),
        make_stage=stage_for(group, partial(Predict, task=context.task, answer=config.answer)),
        reader=context.image_reader,
        reading=config.reading,
        limits=config.limits,
        adapters=group.lora_adapters,
        run_dir=context.run.storage.root,
        redo=Redo(answers, questions, context.again.reasons)
        if isinstance(answers, ShardedDataset | JoinedDatasets)
        else None,
        command=context.command,
    )
