"""A task: the prompts that a model sees, and nothing about models, images or clusters."""

from __future__ import annotations

from dataclasses import dataclass

SYSTEM_PROMPT = "You are a helpful assistant."

PREAMBLE = (
    "Look at the image closely before you reply. Notice every object and its colour, shape and place, read any words, "
    "numbers and charts in it, and keep your reply short and true to the image. Then do exactly what is asked next.\n\n"
)
"""What follows the image in every prompt of every task.

It is longer than one block of the KV cache (32 tokens with every tokenizer we know), so that two prompts on one image
part only after the block in which the image ends, and the second finds the whole image in the cache.
"""

REPLY_FORMAT = "Reply with two lines and nothing else:\nQuestion: <the question>\nAnswer: <the answer>"

JSON_FORMAT = 'Reply with a JSON object and nothing else: {"question": "<the question>", "answer": "<the answer>"}'

ANSWER_INSTRUCTION = "Answer in a single word or phrase."


@dataclass(frozen=True)
class Task:
    """One kind of question, as prompts."""

    name: str
    annotation_instruction: str
    """Asks the teacher for a question and its answer."""
    reply_format: str = REPLY_FORMAT
    """Says how to label the two; follows the instruction unless replies are held to JSON."""
    answer_instruction: str = ANSWER_INSTRUCTION
    version: int = 1
    """Goes up whenever a prompt changes; part of a run's fingerprint."""

    def annotation_prompt(self, as_json: bool = False) -> str:
        """The text after the image when the teacher writes a pair."""
        return PREAMBLE + "\n".join(
            filter(None, (self.annotation_instruction, JSON_FORMAT if as_json else self.reply_format))
        )

    def answer_prompt(self, question: str) -> str:
        """The text after the image when any model answers: in annotation, identification, leveling and evaluation."""
        return f"{PREAMBLE}{question.strip()}\n{self.answer_instruction}"
