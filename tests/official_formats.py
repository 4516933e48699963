"""Writes questions about the bundled world's images in the official format of every benchmark."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from mpa_ray.demo.world import WorldSpec, paint, sample_question, sample_scene


@dataclass(frozen=True)
class PictureQuestion:
    """A question about a picture, and its only correct answer."""

    picture: Image.Image
    number: int
    """The number of the image."""
    question: str
    answer: str


def draw_questions(num_images: int, per_image: int, seed: int) -> list[PictureQuestion]:
    """Draw different questions about each image. Questions about the same image are adjacent."""
    rng = random.Random(seed)
    questions: list[PictureQuestion] = []
    while len(questions) < num_images * per_image:
        scene = sample_scene(WorldSpec(), rng)
        drawn = filter(None, (sample_question(scene, rng) for _ in range(20 * per_image)))
        answers = {question.question: question.answer for question in drawn}
        if len(answers) >= per_image:
            number, picture = len(questions) // per_image, paint(scene)
            questions += [PictureQuestion(picture, number, *pair) for pair in list(answers.items())[:per_image]]
    return questions


def write_official(kind: str, folder: Path, questions: list[PictureQuestion]) -> dict[str, str]:
    """Write a benchmark of this kind, and return its settings."""
    folder.mkdir(parents=True)
    return {"kind": kind, **_WRITERS[kind](folder, questions)}


def _save(questions: list[PictureQuestion], folder: Path, name: str) -> None:
    for question in questions:
        path = folder / name.format(question.number)
        path.parent.mkdir(parents=True, exist_ok=True)
        # PNG for any file name: the models were trained on sharp edges, and decoding depends only on the content.
        question.picture.save(path, "PNG")


def _json(path: Path, content: Any) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return str(path)


def _parquet(path: Path, questions: list[PictureQuestion], **columns: list[Any]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    _save(questions, path.parent / "aside", "{}.png")
    images = [{"bytes": (path.parent / f"aside/{q.number}.png").read_bytes(), "path": None} for q in questions]
    pq.write_table(pa.table({"image": images, **columns}), path)
    return str(path)


def _textvqa(folder: Path, questions: list[PictureQuestion]) -> dict[str, str]:
    _save(questions, folder, "train_images/im{}.jpg")
    data = [
        {
            "question_id": n,
            "question": q.question,
            "image_id": f"im{q.number}",
            "image_classes": ["Sign"],
            "answers": [q.answer] * 10,
            "set_name": "val",
        }
        for n, q in enumerate(questions)
    ]
    return {"path": _json(folder / "TextVQA_0.5.1_val.json", {"dataset_type": "val", "data": data})}


def _stvqa(folder: Path, questions: list[PictureQuestion]) -> dict[str, str]:
    _save(questions, folder / "images", "coco-text/{}.jpg")
    data = [
        {
            "question_id": n,
            "question": q.question,
            "answers": [q.answer],
            "file_path": f"coco-text/{q.number}.jpg",
            "file_name": f"{q.number}.jpg",
            "dataset": "coco-text",
        }
        for n, q in enumerate(questions)
    ]
    return {"path": _json(folder / "train_task_3.json", {"data": data}), "images": str(folder / "images")}


def _chartqa(folder: Path, questions: list[PictureQuestion]) -> dict[str, str]:
    _save(questions, folder / "test/png", "{}.png")
    entries = [{"imgname": f"{q.number}.png", "query": q.question, "label": q.answer} for q in questions]
    _json(folder / "test/test_human.json", entries[::2])
    _json(folder / "test/test_augmented.json", entries[1::2])
    return {"path": str(folder / "test")}


def _vqa(questions_name: str, annotations_name: str) -> Callable[[Path, list[PictureQuestion]], dict[str, str]]:
    def write(folder: Path, questions: list[PictureQuestion]) -> dict[str, str]:
        _save(questions, folder / "val2014", "COCO_val2014_{:012d}.jpg")
        entries = [{"question_id": n, "image_id": q.number, "question": q.question} for n, q in enumerate(questions)]
        annotations = [
            {
                "question_id": n,
                "image_id": q.number,
                "question_type": "what is",
                "answer_type": "other",
                "multiple_choice_answer": q.answer,
                "answers": [{"answer": q.answer, "answer_confidence": "yes", "answer_id": k + 1} for k in range(10)],
            }
            for n, q in enumerate(questions)
        ]
        path = _json(folder / questions_name, {"data_subtype": "val2014", "questions": entries})
        _json(folder / annotations_name, {"annotations": annotations})
        return {"path": path, "images": str(folder / "val2014")}

    return write


def _docvqa(folder: Path, questions: list[PictureQuestion]) -> dict[str, str]:
    _save(questions, folder / "documents", "{}_1.png")
    data = [
        {
            "questionId": n,
            "question": q.question,
            "image": f"documents/{q.number}_1.png",
            "docId": q.number,
            "ucsf_document_id": str(q.number),
            "ucsf_document_page_no": "1",
            "answers": [q.answer],
            "data_split": "val",
            "question_types": ["form"],
        }
        for n, q in enumerate(questions)
    ]
    return {"path": _json(folder / "val_v1.0_withQT.json", {"dataset_name": "SP-DocVQA", "data": data})}


def _infovqa(folder: Path, questions: list[PictureQuestion]) -> dict[str, str]:
    _save(questions, folder / "images", "{}.jpeg")
    data = [
        {
            "questionId": n,
            "question": q.question,
            "image_local_name": f"{q.number}.jpeg",
            "answers": [q.answer],
            "answer_type": ["single span"],
            "operation/reasoning": ["counting"],
            "data_split": "val",
        }
        for n, q in enumerate(questions)
    ]
    path = _json(folder / "infographicsVQA_val_v1.0_withQT.json", {"data": data})
    return {"path": path, "images": str(folder / "images")}


def _gqa(folder: Path, questions: list[PictureQuestion]) -> dict[str, str]:
    _save(questions, folder / "images", "n{}.jpg")
    entries = {
        str(n): {
            "question": q.question,
            "answer": q.answer,
            "imageId": f"n{q.number}",
            "types": {"structural": "query", "semantic": "attr", "detailed": "categoryAttr"},
        }
        for n, q in enumerate(questions)
    }
    path = _json(folder / "testdev_balanced_questions.json", entries)
    return {"path": path, "images": str(folder / "images")}


def _pathvqa(folder: Path, questions: list[PictureQuestion]) -> dict[str, str]:
    path = folder / "data/test-00000-of-00001.parquet"
    columns = {"question": [q.question for q in questions], "answer": [q.answer for q in questions]}
    return {"path": _parquet(path, questions, **columns)}


def _vqa_rad(folder: Path, questions: list[PictureQuestion]) -> dict[str, str]:
    _save(questions, folder / "images", "synpic{}.jpg")
    entries = [
        {
            "qid": n,
            "image_name": f"synpic{q.number}.jpg",
            "question": q.question,
            "answer": q.answer,
            "answer_type": "OPEN",
            "question_type": "COLOR",
        }
        for n, q in enumerate(questions)
    ]
    return {"path": _json(folder / "VQA_RAD Dataset Public.json", entries), "images": str(folder / "images")}


def _slake(folder: Path, questions: list[PictureQuestion]) -> dict[str, str]:
    _save(questions, folder / "imgs", "xmlab{}/source.jpg")
    entries = [
        {
            "img_id": q.number,
            "img_name": f"xmlab{q.number}/source.jpg",
            "question": q.question,
            "answer": q.answer,
            "q_lang": ("en", "zh")[n % 2],
            "answer_type": "OPEN",
            "content_type": "Color",
            "qid": n,
        }
        for n, q in enumerate(questions)
    ]
    return {"path": _json(folder / "test.json", entries), "images": str(folder / "imgs")}


def _own(folder: Path, questions: list[PictureQuestion]) -> dict[str, str]:
    _save(questions, folder, "{}.png")
    rows = [
        {"question_id": str(n), "image": f"{q.number}.png", "question": q.question, "answers": [q.answer]}
        for n, q in enumerate(questions)
    ]
    (folder / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"path": str(folder / "own.jsonl")}


_WRITERS = {
    "textvqa": _textvqa,
    "stvqa": _stvqa,
    "chartqa": _chartqa,
    "okvqa": _vqa("OpenEnded_mscoco_val2014_questions.json", "mscoco_val2014_annotations.json"),
    "vqav2": _vqa("v2_OpenEnded_mscoco_val2014_questions.json", "v2_mscoco_val2014_annotations.json"),
    "docvqa": _docvqa,
    "infovqa": _infovqa,
    "gqa": _gqa,
    "pathvqa": _pathvqa,
    "vqa_rad": _vqa_rad,
    "slake": _slake,
    "questions": _own,
}
