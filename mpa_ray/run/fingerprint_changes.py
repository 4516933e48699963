"""The settings in which two fingerprints of a dataset differ, in words."""

from __future__ import annotations

from itertools import takewhile
from typing import TypeAlias

from mpa_ray.config import ModelBranches
from mpa_ray.models.hub import split_revision
from mpa_ray.textual import Json

Fingerprint: TypeAlias = dict[str, Json]
"""The names and values of the settings that a dataset's content depends on; see `mpa_ray.run.fingerprint`."""

ChangedFields: TypeAlias = dict[str, tuple[Json, Json]]
"""The old and the new value of each field that differs; None if a field is missing."""

_NUM_CHANGES_SHOWN = 4
_MAX_VALUE_LENGTH = 48
_AGAIN = "~"
"""Separates a model from the number of its training in the name of a folder."""
_OUTSIDE_ENGINE = (
    *("model", "min_pixels", "max_pixels", "max_image_pixels"),
    *("chat_template_args", "max_reasoning_tokens"),
)
"""The fields of a model's fingerprint that are not settings of its engine."""
_NOT_OF_MODEL = (
    *("algorithm_version", "task", "task_version", "system_prompt", "preamble", "answer_prompt"),
    "answer.max_new_tokens",
)
"""The fields of the fingerprint of predictions that do not depend on the model."""


def changed_fields(old: Fingerprint, new: Fingerprint) -> ChangedFields:
    """Compare two fingerprints field by field."""
    names = sorted({*old, *new})
    return {name: (old.get(name), new.get(name)) for name in names if _plain(old.get(name)) != _plain(new.get(name))}


def changes_in_words(dataset: str, changed: ChangedFields, branches: ModelBranches) -> str:
    """Name the settings that differ, as the configuration names them, and show both values of the first few."""
    # Short values come first: the name of a task says more than the prompts that differ because of it.
    fields = sorted(changed, key=lambda field: max(len(repr(value)) for value in changed[field]))
    parts = []
    for field in fields[:_NUM_CHANGES_SHOWN]:
        old, new = _cut_to_difference(*map(repr, changed[field]))
        parts.append(f"{_setting(dataset, field, branches)}: was {old}, now {new}")
    if rest := fields[_NUM_CHANGES_SHOWN:]:
        parts.append(f"also {', '.join(_setting(dataset, field, branches) for field in rest)}")
    return "; ".join(parts)


def _setting(dataset: str, field: str, branches: ModelBranches) -> str:
    """The name under which the configuration sets a field of a fingerprint.

    Fingerprints leave out `source.` for the corpus, the branch of the student or of the measured model, and `engine.`.
    """
    kind, _, rest = dataset.partition("/")
    if kind == "corpus":
        return field if field == "algorithm_version" else f"source.{field}"
    of_teacher = field.removeprefix("teacher.")
    if of_teacher != field:
        return f"teacher.{_of_model(of_teacher)}"
    if kind in ("verdicts", "students"):
        branch = branches.students.get(rest.partition("/")[0], "student")
        of_student = field.removeprefix("student.")
        if of_student != field:
            return f"{branch}.{_of_model(of_student)}"
        return f"{branch}.{field}" if field.startswith("level.") else field
    model = rest.rpartition("/predictions/")[2].partition(_AGAIN)[0]
    if kind == "evaluation" and model in branches.measured and field not in _NOT_OF_MODEL:
        return f"{branches.measured[model]}.{_of_model(field)}"
    return field


def _of_model(field: str) -> str:
    """The name of a field of a model's fingerprint below the branch of the model."""
    if field in _OUTSIDE_ENGINE:
        return field
    return "engine.kind" if field == "engine" else f"engine.{field}"


def _cut_to_difference(old: str, new: str) -> tuple[str, str]:
    """Return both texts if they are short, otherwise the part of each text around their first difference."""
    if max(len(old), len(new)) <= _MAX_VALUE_LENGTH:
        return old, new
    differs_at = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(old, new, strict=False)))
    start = max(0, differs_at - _MAX_VALUE_LENGTH // 4)
    return _cut(old, start), _cut(new, start)


def _cut(text: str, start: int) -> str:
    end = start + _MAX_VALUE_LENGTH
    return ("..." if start else "") + text[start:end] + ("..." if end < len(text) else "")


def _plain(value: Json) -> Json:
    """A value as JSON stores it: JSON has no tuples."""
    return list(value) if isinstance(value, tuple) else value


def _remedy_for_new_commit(changed: ChangedFields) -> str | None:
    """How to continue if only the commits of models on the hub have changed; None if other settings have changed."""
    revisions = [(split_revision(str(old)), split_revision(str(new))) for old, new in changed.values()]
    if not all(old[1] and new[1] and old[0] == new[0] for old, new in revisions):
        return None
    names = " and ".join(sorted({str(old) for old, _ in changed.values()}))
    return f"The model has a new commit on the hub. To continue with the earlier one, set the model to {names}."


def remedy_for_changes(dataset: str, changed: ChangedFields) -> str:
    """The remedy if the settings that a dataset was made with have changed."""
    if (remedy := _remedy_for_new_commit(changed)) is not None:
        return remedy
    kind, _, rest = dataset.partition("/")
    if kind in ("verdicts", "students"):
        return f"Undo the change, or rename student {rest.partition('/')[0]}: the teacher's work is kept."
    if kind == "evaluation":
        return "Undo the change, or give the benchmark or the model another name."
    return "Undo the change, or give a new run_dir."
