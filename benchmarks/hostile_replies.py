"""A million hostile replies through the parser: each must end in pairs or in a reason, and none may raise an error.

    python benchmarks/hostile_replies.py [--num-replies 1000000] [--seed 0] [--num-parts 20] [--part 2]

A third of the replies are pairs in a form that some model uses, a third are such replies with random damage (cut off,
pieces removed, doubled, swapped or inserted), and a third are random pieces: labels in many languages, tags of
reasoning, markup, JSON, LaTeX, special tokens, invisible characters and lone surrogates. One reply in a thousand
repeats a piece thousands of times. Undamaged pairs must be parsed back. Each reply is also read as an answer to a
question. With `--part`, only that part is measured, and its result is added to those of the parts before it.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from mpa_ray.observability.progress import Progress, say
from mpa_ray.tasks.parser import QuestionAnswer, ReplyError, parse_reply
from mpa_ray.tasks.reasoning import final_answer
from mpa_ray.textual import is_storable

RESULT = ROOT / "benchmarks/results/hostile_replies.json"
QUESTIONS = ("What colour is the bus?", "Is it red? Or blue?", "Name the animal.", "这是什么？", "De quelle couleur ?")  # noqa: RUF001
ANSWERS = ("red", "1,299.99 $", "-3.5%", "dark red", "红色", "10:10", "It is a bus.", "a.org/b?c=d")
FORMS = (
    "Question: {q}\nAnswer: {a}",
    "**Question:** {q}\n**Answer:** {a}",
    "__Question:__ {q}\n__Answer:__ {a}",
    "## Question\n{q}\n\n## Answer\n{a}",
    "1. **Question:** {q}\n   **Answer:** {a}",
    "Q. {q}\nA. {a}",
    "Question: {q}<br/>\nAnswer: {a}<br/>",
    "<p><b>Question:</b> {q}</p>\n<p><b>Answer:</b> {a}</p>",
    "<ul><li>Question: {q}</li><li>Answer: {a}</li></ul>",
    "| Question | Answer |\n|---|---|\n| {q} | {a} |",
    "<table><tr><th>Question</th><th>Answer</th></tr><tr><td>{q}</td><td>{a}</td></tr></table>",
    '{{"question": "{q}", "answer": "{a}"}}',
    '```json\n[{{"question": "{q}", "answer": "{a}"}}]\n```',
    "<think>Question: no?\nAnswer: no</think>Question: {q}\nAnswer: {a}",
    "Question: no? Answer: no</think>\n\nQuestion: {q}\nAnswer: {a}",
    "◁think▷hm◁/think▷<answer>Question: {q}\nAnswer: {a}</answer>",
    "Question: {q}\nAnswer: <|begin_of_box|>{a}<|end_of_box|>",
    "Question: <image>\n{q}\nAnswer: {a}<|im_end|>\n<|im_start|>user\nMore?",
    "Question\u202f: {q}\nRéponse\u202f: {a}",
    "\ufeff问题：{q}\n答案：{a}",  # noqa: RUF001
    "\u200eQuestion: {q}\u200b\n\u200eAnswer: {a}\u200b",
    "Question: {q}\nAnswer: {a}\nUser: And the car?",
)
PIECES = (
    *(
        "Question: ",
        "Answer: ",
        "Q. ",
        "A. ",
        "Q1: ",
        "A1: ",
        "问题\uff1a",
        "答案\uff1a",
        "Frage: ",
        "الإجابة: ",
        "Final Answer",
    ),
    *("<think>", "</think>", "◁think▷", "◁/think▷", "[THINK]", "[/THINK]", "<|channel>thought\n", "<channel|>"),
    *(
        "<|begin_of_box|>",
        "<|end_of_box|>",
        "\\boxed{",
        "$\\boxed{\\text{",
        "}",
        "<answer>",
        "</answer>",
        "<CONCLUSION>",
    ),
    *("**", "__", "~~", "`", "```", "#", "> ", "- ", "1. ", "| ", "|---|", "\\|", "~", "==", "_", "*"),
    *(
        "<br>",
        "<b>",
        "</b>",
        "<p>",
        "</p>",
        "<li>",
        "<td>",
        "</table>",
        "<h2>",
        "<",
        ">",
        "</",
        "<x y",
        "<image>",
        "<ima<image>ge>",
        "&lt;image&gt;",
    ),
    *("&nbsp;", "&quot;", "&#0;", "&#x110000;", "&#55357;", "&", "&amp;lt;", "&NotAnEntity;"),
    *(
        "{",
        "}",
        "[",
        "]",
        '"',
        ",",
        ":",
        '{"question": ',
        '"answer": ',
        "null",
        "\\u",
        "\\ud83d",
        "\\frac",
        "\\n",
        "\\",
    ),
    *("<|im_end|>", "<|im_start|>assistant\n", "</s>", "<s>", "[INST]", "<end_of_turn>", "\nuser\n", "\nUser: "),
    *("\ufeff", "\u200b", "\u202e", "\u2066", "\u200d", "\u202f", "\u3000", "\u2028", "\0", "\x0b", "\x7f", "\ud83d"),
    *(
        "?",
        "\uff1f",
        "...",
        "red",
        "I'm sorry, but I cannot ",
        "As an AI",
        " ",
        "\n",
        "\n\n",
        "\r\n",
        "\t",
        "0",
        "é",
        "北京",
    ),
)


@dataclass(frozen=True)
class HostileReply:
    """A reply, and the pair that it must give; None if it may give any pair or reason."""

    text: str
    pair: QuestionAnswer | None = None


@dataclass
class Outcomes:
    """What became of the replies."""

    num_replies: int = 0
    num_parsed_back: int = 0
    """Undamaged pairs, all of which were parsed back."""
    outcomes: Counter[str] = field(default_factory=Counter)
    num_without_answer: int = 0
    """Replies that are all reasoning when they are read as answers."""
    elapsed_s: float = 0.0
    max_reply_ms: float = 0.0


def hostile_replies(count: int, seed: int) -> Iterator[HostileReply]:
    """Yield replies; equal seeds give equal replies."""
    rng = random.Random(seed)
    for number in range(count):
        if number % 1000 == 999:
            yield HostileReply("Question: " + rng.choice(PIECES) * rng.randrange(1000, 4000) + rng.choice(PIECES))
        elif number % 3 == 0:
            pair = QuestionAnswer(rng.choice(QUESTIONS), rng.choice(ANSWERS))
            yield HostileReply(rng.choice(FORMS).format(q=pair.question, a=pair.answer), pair)
        elif number % 3 == 1:
            text = rng.choice(FORMS).format(q=rng.choice(QUESTIONS), a=rng.choice(ANSWERS))
            for _ in range(rng.randrange(1, 6)):
                text = _damaged(text, rng)
            yield HostileReply(text)
        else:
            yield HostileReply("".join(rng.choices(PIECES, k=rng.randrange(25))))


def _damaged(text: str, rng: random.Random) -> str:
    start, end = sorted(rng.randrange(len(text) + 1) for _ in range(2))
    before, part, after = text[:start], text[start:end], text[end:]
    changes = (before, before + after, before + 2 * part + after, after + part + before, part)
    return rng.choice((*changes, before + rng.choice(PIECES) + part + after, before + rng.choice(PIECES) + after))


def check(reply: HostileReply) -> str:
    """Parse a reply, check the result, and return `pair` or the reason why there is none."""
    result = parse_reply(reply.text)
    assert result == parse_reply(reply.text), reply
    if reply.pair is not None:
        assert result == [reply.pair], (reply, result)
    if isinstance(result, ReplyError):
        return str(result)
    assert result, reply
    for pair in result:
        for text in (pair.question, pair.answer):
            assert text, (reply, result)
            assert text == text.strip(), (reply, result)
            assert "<image>" not in text, (reply, result)
            assert is_storable(text) or not is_storable(reply.text), (reply, result)
    return "pair"


def measure(count: int, seed: int) -> Outcomes:
    """Check replies, and return what became of them."""
    total = Outcomes()
    with Progress(f"seed {seed}", count, "replies") as progress:
        for reply in hostile_replies(count, seed):
            started = time.perf_counter()
            outcome = check(reply)
            answer = final_answer(reply.text)
            elapsed_s = time.perf_counter() - started
            assert answer is None or isinstance(answer, str), reply
            total.num_replies += 1
            total.num_parsed_back += reply.pair is not None
            total.outcomes[outcome] += 1
            total.num_without_answer += answer is None
            total.elapsed_s += elapsed_s
            total.max_reply_ms = max(total.max_reply_ms, 1000 * elapsed_s)
            progress.advance(1)
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-replies", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num-parts", type=int, default=20)
    parser.add_argument("--part", type=int, help="measure only this part, counted from 0")
    arguments = parser.parse_args()
    for part in range(arguments.num_parts) if arguments.part is None else [arguments.part]:
        total = measure(arguments.num_replies // arguments.num_parts, arguments.num_parts * arguments.seed + part)
        parts = json.loads(RESULT.read_text())["parts"] if part else []
        rounded = {"elapsed_s": round(total.elapsed_s, 1), "max_reply_ms": round(total.max_reply_ms)}
        parts[part:] = [{**vars(total), "outcomes": dict(total.outcomes.most_common()), **rounded}]
        outcomes = sum((Counter(one["outcomes"]) for one in parts), Counter())
        result = {
            "conditions": {"python": platform.python_version(), "seed": arguments.seed},
            "num_replies": sum(one["num_replies"] for one in parts),
            "num_parsed_back": sum(one["num_parsed_back"] for one in parts),
            "outcomes": dict(outcomes.most_common()),
            "parts": parts,
        }
        RESULT.write_text(json.dumps(result, indent=1) + "\n")
        say(f"{result['num_replies']} replies: {json.dumps(result['outcomes'])}")


if __name__ == "__main__":
    main()
