"""A task: the prompts of teacher and students, and how their answers are parsed, compared and scored."""

from __future__ import annotations

import string
from collections.abc import Iterable
from pathlib import Path
from typing import Self

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from mpa_ray.config import MatcherConfig, PlainMatch, Settings
from mpa_ray.config.problems import problem_of, suggestion_for
from mpa_ray.config.regular_file import read_regular_file
from mpa_ray.config.setting_path import setting_path
from mpa_ray.config.setting_values import read_yaml, unstorable_texts, with_types, yaml_problem
from mpa_ray.config.settings import Name
from mpa_ray.errors import ConfigError
from mpa_ray.metrics import METRICS
from mpa_ray.tasks.parser import QuestionAnswer, ReplyError, asks_for_pair, parse_reply

SYSTEM_PROMPT = "You are a helpful assistant."

PREAMBLE = (
    "Look at the image closely before you reply. Notice every object and its colour, shape and place, read any words, "
    "numbers and charts in it, and keep your reply short and true to the image. Then do exactly what is asked next.\n\n"
)
"""The text after the image in every prompt of every task.

It is longer than a block of the KV cache (32 tokens) with every tokenizer that we know. Two prompts on the same image
therefore differ only after the block in which the image ends, and the second prompt finds the whole image in the cache.
"""

JSON_FORMAT = 'Reply with a JSON object and nothing else: {"question": "<the question>", "answer": "<the answer>"}'

_LIBRARY = Path(__file__).parent / "library"
"""The folder with the tasks that come with the package."""


class Labels(Settings):
    """Labels before the question and the answer in a reply. The prompt asks for the first label of each kind."""

    question: tuple[str, ...] = Field(("Question",), min_length=1)
    answer: tuple[str, ...] = Field(("Answer",), min_length=1)


class Task(Settings):
    """A kind of question, with its prompts."""

    name: Name
    version: int = Field(1, ge=1)
    """A part of a run's fingerprint. Increase it when you change a prompt."""
    language: str = Field("en", min_length=2)
    """The language of questions and answers, as an ISO 639 code (`en`, `de`, ...)."""
    annotation_template: str = Field(alias="annotation_prompt", min_length=1)
    """The prompt that asks for a question and its answer. `{format}` stands for the instructions on their format."""
    answer_template: str = Field(alias="answer_prompt", min_length=1)
    """The prompt that asks for an answer. `{question}` stands for the question."""
    labels: Labels = Labels()
    matcher: MatcherConfig = PlainMatch(kind="exact")
    """Decides when two answers agree; `identify.matcher` overrides it."""
    metric: str = "exact_match"
    """The metric for benchmarks whose settings name no metric."""
    teacher_knows_format: bool = False
    """Whether the teacher was trained to write labels that the prompt does not ask for."""
    max_answer_words: int = Field(20, ge=1)
    """A pair with a longer answer is dropped as `answer_too_long`."""

    @field_validator("metric")
    @classmethod
    def _is_a_metric(cls, name: str) -> str:
        if name not in METRICS:
            raise ValueError(f"{name!r} is not a metric; choose one of {', '.join(METRICS)}")
        return name

    @model_validator(mode="after")
    def _placeholders_are_right(self) -> Self:
        _check_placeholders("annotation_prompt", self.annotation_template, {"format"}, required=False)
        _check_placeholders("answer_prompt", self.answer_template, {"question"}, required=True)
        return self

    @property
    def asks_for_format(self) -> bool:
        """Whether a reply to the annotation prompt can be parsed.

        This is the case if the prompt asks for labels or JSON, or if the teacher was trained to write labels.
        """
        template = self.annotation_template
        return (
            self.teacher_knows_format
            or "{format}" in template
            or asks_for_pair(template, self.labels.question, self.labels.answer)
        )

    def annotation_prompt(self, as_json: bool = False) -> str:
        """The text after the image in the prompt that asks for a question and its answer."""
        if "{format}" in self.annotation_template:
            return PREAMBLE + self.annotation_template.format(format=JSON_FORMAT if as_json else self._two_lines())
        return PREAMBLE + self.annotation_template + (f"\n{JSON_FORMAT}" if as_json else "")

    def answer_prompt(self, question: str) -> str:
        """The text after the image in the prompt that asks for an answer. It is the same in every phase."""
        return PREAMBLE + self.answer_text(question)

    def answer_text(self, question: str) -> str:
        """The text of `answer_prompt` without the preamble."""
        return self.answer_template.format(question=question.strip())

    def pair_in(self, reply: str) -> QuestionAnswer | ReplyError:
        """Return the first pair in a teacher's reply, or the reason why it contains none."""
        pairs = parse_reply(reply, self.max_answer_words, self.labels.question, self.labels.answer)
        return pairs if isinstance(pairs, ReplyError) else pairs[0]

    def _two_lines(self) -> str:
        question, answer = self.labels.question[0], self.labels.answer[0]
        return f"Reply with two lines and nothing else:\n{question}: <the question>\n{answer}: <the answer>"


def _check_placeholders(field: str, template: str, allowed: set[str], required: bool) -> None:
    try:
        names = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise ValueError(f"{field}: {error}; write {{{{ and }}}} for braces") from None
    unknown = sorted(set(names) - allowed)
    if unknown:
        raise ValueError(f"{field} has {_placeholders(unknown)}; it may only have {_placeholders(allowed)}")
    if len(names) > 1 or (required and not names):
        number = "must have exactly one" if required else "may have at most one"
        raise ValueError(f"{field} {number} {{{next(iter(allowed))}}}")


def _placeholders(names: Iterable[str]) -> str:
    return ", ".join(f"{{{name}}}" for name in names)


def load_task(path: str | Path) -> Task:
    """Load a task from a YAML file.

    Raises:
        ConfigError: the file cannot be read, or one of its fields is wrong.
    """
    try:
        tree = read_yaml(read_regular_file(path).decode("utf-8-sig"))
    except OSError as error:
        raise ConfigError(
            "task", str(path), f"cannot be read ({error.strerror or error}).", "Give the file of a task."
        ) from error
    except (ValueError, yaml.YAMLError) as error:
        raise ConfigError("task", str(path), f"is not YAML ({yaml_problem(error)}).", "Fix the file.") from error
    for where, _ in unstorable_texts(tree):
        remedy = "Remove the unpaired surrogates, such as \\ud83d."
        raise ConfigError("task", str(path), f"{where} is not UTF-8.", remedy)
    try:
        return Task.model_validate(with_types(tree, Task) if isinstance(tree, dict) else tree)
    except ValidationError as error:
        # Report unknown fields first: if a name is misspelled, the correct name is missing because of it.
        first = min(error.errors(), key=lambda item: item["type"] != "extra_forbidden")
        where = setting_path(Task, first["loc"])
        suggestion = suggestion_for(first, Task).strip() if where else ""
        raise ConfigError(
            "task",
            str(path),
            f"{where or 'the file'}: {problem_of(first)}",
            suggestion or f"Start from a task in {_LIBRARY}.",
        ) from None
