"""Every benchmark in its official format and as a Parquet mirror, and the errors of files that cannot be used."""

from __future__ import annotations

import asyncio
import io
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mpa_ray.config import AnswerConfig, BenchmarkConfig, ObjectStoreConfig
from mpa_ray.corpus.places.local import LocalPlace
from mpa_ray.corpus.places.places import Places
from mpa_ray.corpus.read import Reader
from mpa_ray.errors import ConfigError
from mpa_ray.evaluation.benchmarks import BENCHMARKS, Benchmark, check_images, question_files, read_benchmark
from mpa_ray.evaluation.benchmarks.inputs import Inputs
from mpa_ray.metrics import METRICS
from mpa_ray.records import LabelledQuestion, from_table, to_table
from mpa_ray.stages.image_work import ImageWork
from mpa_ray.stages.predict import Predict
from mpa_ray.tasks.library import TASKS
from tests.s3_server import CREDENTIALS, s3_server, upload

PLACES = Places(ObjectStoreConfig())
READER = Reader(ObjectStoreConfig())
TEN = [f"answer {n}" for n in range(10)]


def picture(number: int) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (4, 3), (number, 0, 255 - number)).save(content, "PNG")
    return content.getvalue()


def draw(folder: Path, *names: str) -> Path:
    """Different pictures under these names, the first being picture 0."""
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(picture(number))
    return folder


def as_json(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return path


def as_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=2)
    return path


def held(number: int) -> dict[str, Any]:
    return {"bytes": picture(number), "path": f"{number}.png"}


def read(kind: str, path: Path, **settings: Any) -> list[LabelledQuestion]:
    return list(read_benchmark(BenchmarkConfig(kind=kind, path=str(path), **settings), PLACES))


def pictures_of(questions: list[LabelledQuestion]) -> list[int]:
    """The numbers of the questions' pictures, read as a run reads them."""
    pictures = {picture(number): number for number in range(10)}
    return [pictures[cast(bytes, content)] for content in READER.read([question.uri for question in questions])]


def error_of(kind: str, path: Path, **settings: Any) -> str:
    with pytest.raises(ConfigError) as refusal:
        read(kind, path, **settings)
    return str(refusal.value)


def question(question_id: str, image_id: str, uri: object, text: str, answers: list[str], **rest: Any) -> Any:
    return LabelledQuestion(question_id, image_id, str(uri), text, answers, **{"family": "all", **rest})


def test_every_benchmark_names_an_existing_metric() -> None:
    assert {name: benchmark.name for name, benchmark in BENCHMARKS.items()} == {name: name for name in BENCHMARKS}
    assert {benchmark.metric for benchmark in BENCHMARKS.values()} <= METRICS.keys()
    documented = Path(__file__).parents[2].joinpath("docs/evaluation.md").read_text(encoding="utf-8")
    assert not [name for name in BENCHMARKS if f"`{name}`" not in documented]


# TextVQA


def textvqa(number: int, **changes: Any) -> dict[str, Any]:
    return {
        "question_id": 34602 + number,
        "question": f"what is {number}?",
        "question_tokens": ["what"],
        "image_id": f"im{number // 2}",
        "image_classes": ["Sign"],
        "answers": TEN,
        "set_name": "val",
        **changes,
    }


@pytest.mark.parametrize(
    ("folder", "images"), [("train_images", None), ("img/train_images", "img"), ("img", "img"), ("test_images", None)]
)
def test_textvqa_finds_its_images_in_every_layout(folder: str, images: str | None, tmp_path: Path) -> None:
    draw(tmp_path / folder, "im0.jpg", "im1.jpg")
    path = as_json(tmp_path / "TextVQA_0.5.1_val.json", {"dataset_type": "val", "data": [textvqa(n) for n in range(3)]})
    questions = read("textvqa", path, images=str(tmp_path / images) if images else None)
    uris = [tmp_path / folder / name for name in ("im0.jpg", "im0.jpg", "im1.jpg")]
    assert questions == [
        question(str(34602 + n), f"im{n // 2}", uri, f"what is {n}?", TEN) for n, uri in enumerate(uris)
    ]
    assert pictures_of(questions) == [0, 0, 1]
    check_images(questions)


def test_textvqa_mirror_has_one_picture_for_all_rows_of_an_image(tmp_path: Path) -> None:
    rows = [textvqa(n) | {"image": held(n // 2)} for n in range(3)]
    path = as_parquet(tmp_path / "data/validation-00000-of-00001.parquet", rows)
    questions = read("textvqa", path)
    assert [(q.question_id, q.image_id) for q in questions] == [("34602", "im0"), ("34603", "im0"), ("34604", "im1")]
    assert [q.uri for q in questions] == [f"{path}#row={row}&column=image" for row in (0, 0, 2)]
    assert (questions[0].answers, pictures_of(questions)) == (TEN, [0, 0, 1])


# ST-VQA


def test_stvqa(tmp_path: Path) -> None:
    draw(tmp_path / "images", "coco-text/a.jpg", "VisualGenome/1/b.jpg")
    entries = [
        {
            "question_id": 7,
            "question": "which brand?",
            "answers": ["nokia", "Nokia"],
            "file_path": "coco-text/a.jpg",
            "file_name": "a.jpg",
            "dataset": "coco-text",
        },
        {"question_id": 8, "question": "which number?", "answers": ["7"], "file_path": "VisualGenome/1/b.jpg"},
    ]
    path = as_json(tmp_path / "train_task_3.json", {"data": entries})
    questions = read("stvqa", path, images=str(tmp_path / "images"))
    assert questions == [
        question("7", "coco-text/a.jpg", tmp_path / "images/coco-text/a.jpg", "which brand?", ["nokia", "Nokia"]),
        question("8", "VisualGenome/1/b.jpg", tmp_path / "images/VisualGenome/1/b.jpg", "which number?", ["7"]),
    ]
    assert pictures_of(questions) == [0, 1]


def test_stvqa_mirror_holds_several_pairs_in_a_row(tmp_path: Path) -> None:
    pairs = [["a", "b"], ["c"], ["d", "e"]]
    for part, rows in enumerate((pairs[:2], pairs[2:])):
        as_parquet(
            tmp_path / f"data/train-{part:05d}-of-00002.parquet",
            [
                {"image": held(2 * part + n), "qas": [{"question": f"{q}?", "answers": [q]} for q in row]}
                for n, row in enumerate(rows)
            ],
        )
    questions = read("stvqa", tmp_path / "data")
    assert [q.question_id for q in questions] == ["train-0-0", "train-0-1", "train-1-0", "train-2-0", "train-2-1"]
    assert [q.question for q in questions] == ["a?", "b?", "c?", "d?", "e?"]
    assert [q.answers for q in questions] == [["a"], ["b"], ["c"], ["d"], ["e"]]
    assert len({q.image_id for q in questions}) == 3
    assert questions[4].image_id == "train-00001-of-00002.parquet/0"
    assert pictures_of(questions) == [0, 0, 1, 2, 2]


# ChartQA


def chartqa_folder(root: Path) -> Path:
    draw(root / "test/png", "1.png", "2.png")
    as_json(root / "test/annotations/1.json", {"type": "bar"})
    as_json(root / "test/test_human.json", [{"imgname": "1.png", "query": "how many?", "label": "14"}])
    rows = [{"imgname": f"{n}.png", "query": f"what in {n}?", "label": f"{n}%"} for n in (1, 2)]
    as_json(root / "test/test_augmented.json", rows)
    return root / "test"


def test_chartqa_folder_is_read_in_both_parts(tmp_path: Path) -> None:
    folder = chartqa_folder(tmp_path)
    questions = read("chartqa", folder)
    png = folder / "png"
    assert questions == [
        question("test-augmented-0", "1.png", png / "1.png", "what in 1?", ["1%"], split="augmented"),
        question("test-augmented-1", "2.png", png / "2.png", "what in 2?", ["2%"], split="augmented"),
        question("test-human-0", "1.png", png / "1.png", "how many?", ["14"], split="human"),
    ]
    assert pictures_of(questions) == [0, 1, 0]


@pytest.mark.parametrize("images", ["test/png", "test", "."])
def test_chartqa_file_takes_images_from_elsewhere(images: str, tmp_path: Path) -> None:
    path = chartqa_folder(tmp_path / "all") / "test_human.json"
    questions = read("chartqa", path.rename(tmp_path / "test_human.json"), images=str(tmp_path / "all" / images))
    assert (questions[0].question_id, pictures_of(questions)) == ("test-human-0", [0])


def test_chartqa_mirror_numbers_the_rows_of_the_whole_split(tmp_path: Path) -> None:
    for part in range(2):
        as_parquet(
            tmp_path / f"data/test-{part:05d}-of-00002-e2cd0b7a.parquet",
            [
                {"image": held(2 * part + n), "query": f"{part} {n}?", "label": [f"{n}"], "human_or_machine": n}
                for n in range(2)
            ],
        )
    questions = read("chartqa", tmp_path / "data")
    assert [(q.question_id, q.split, q.question, q.answers) for q in questions] == [
        ("test-human-0", "human", "0 0?", ["0"]),
        ("test-augmented-1", "augmented", "0 1?", ["1"]),
        ("test-human-2", "human", "1 0?", ["0"]),
        ("test-augmented-3", "augmented", "1 1?", ["1"]),
    ]
    assert pictures_of(questions) == [0, 1, 2, 3]


def test_chartqa_other_mirror(tmp_path: Path) -> None:
    rows = [
        {"type": kind, "question": f"{kind}?", "answer": "2014", "image": held(n)}
        for n, kind in enumerate(("human_test", "augmented_test"))
    ]
    questions = read("chartqa", as_parquet(tmp_path / "test.parquet", rows))
    assert [(q.question_id, q.split) for q in questions] == [
        ("test-human-0", "human"),
        ("test-augmented-1", "augmented"),
    ]
    assert ([q.answers for q in questions], pictures_of(questions)) == ([["2014"], ["2014"]], [0, 1])


# VQA and OK-VQA

ANSWERS = [{"answer": f"a{n % 2}", "answer_confidence": "yes", "answer_id": n + 1} for n in range(10)]
VQA_NAMES = {
    "vqav2": ("v2_OpenEnded_mscoco_val2014_questions.json", "v2_mscoco_val2014_annotations.json"),
    "okvqa": ("OpenEnded_mscoco_val2014_questions.json", "mscoco_val2014_annotations.json"),
}


def vqa_questions(*ids: int) -> dict[str, Any]:
    entries = [{"question_id": n, "image_id": n // 10, "question": f"what is {n}?"} for n in ids]
    return {"info": {}, "data_subtype": "val2014", "questions": entries}


def vqa_annotations(*ids: int, **changes: Any) -> dict[str, Any]:
    entries = [
        {
            "question_id": n,
            "image_id": n // 10,
            "question_type": "what is",
            "answer_type": "other",
            "multiple_choice_answer": "a0",
            "answers": ANSWERS,
        }
        | changes
        for n in ids
    ]
    return {"info": {}, "annotations": entries}


@pytest.mark.parametrize("kind", VQA_NAMES)
@pytest.mark.parametrize(
    "name",
    ["COCO_val2014_{:012d}.jpg", "val2014/COCO_val2014_{:012d}.jpg", "{:012d}.jpg", "val2014/{:012d}.jpg"],
)
def test_vqa_joins_its_two_files(kind: str, name: str, tmp_path: Path) -> None:
    images = draw(tmp_path / "images", name.format(1), name.format(2))
    questions_file, annotations_file = VQA_NAMES[kind]
    path = as_json(tmp_path / questions_file, vqa_questions(11, 12, 21))
    as_json(tmp_path / annotations_file, vqa_annotations(21, 12, 11))
    questions = read(kind, path, images=str(images))
    answers = [answer["answer"] for answer in ANSWERS]
    assert questions == [
        question(
            str(n),
            str(n // 10),
            images / name.format(n // 10),
            f"what is {n}?",
            answers,
            family="what is",
            answer_type="other",
        )
        for n in (11, 12, 21)
    ]
    assert pictures_of(questions) == [0, 0, 1]


@pytest.mark.parametrize(("name", "split"), [("q.json", None), ("q.json", "val"), ("train_q.json", "validation")])
def test_vqa_files_may_have_other_names(name: str, split: str | None, tmp_path: Path) -> None:
    path = as_json(tmp_path / name, vqa_questions(11))
    annotations = as_json(tmp_path / "a.json", vqa_annotations(11))
    questions = read("vqav2", path, annotations=str(annotations), split=split)
    assert questions[0].uri == str(tmp_path / "COCO_val2014_000000000001.jpg")


def test_vqav2_mirror(tmp_path: Path) -> None:
    rows = [
        {
            "question_type": "how many",
            "multiple_choice_answer": "a0",
            "answers": ANSWERS,
            "image_id": 5,
            "answer_type": "number",
            "question_id": 50 + n,
            "question": f"{n}?",
            "image": held(3),
        }
        for n in range(3)
    ]
    path = as_parquet(tmp_path / "validation-00000-of-00001.parquet", rows)
    questions = read("vqav2", path)
    assert [(q.question_id, q.image_id, q.family, q.answer_type) for q in questions] == [
        (str(50 + n), "5", "how many", "number") for n in range(3)
    ]
    assert ({q.uri for q in questions}, pictures_of(questions)) == ({f"{path}#row=0&column=image"}, [3, 3, 3])
    assert questions[0].answers == [answer["answer"] for answer in ANSWERS]


def test_okvqa_mirror_has_no_image_ids(tmp_path: Path) -> None:
    rows = [
        {
            "question_id": f"{n}5",
            "image": held(n),
            "question": f"{n}?",
            "answers": TEN,
            "question_type": "four",
            "answer_type": "other",
        }
        for n in range(2)
    ]
    questions = read("okvqa", as_parquet(tmp_path / "val2014-00000-of-00001.parquet", rows))
    assert [(q.question_id, q.image_id, q.family) for q in questions] == [
        ("05", "val2014-00000-of-00001.parquet/0", "four"),
        ("15", "val2014-00000-of-00001.parquet/1", "four"),
    ]
    assert (questions[1].answers, pictures_of(questions)) == (TEN, [0, 1])


@pytest.mark.parametrize(
    ("question_ids", "annotation_ids", "problem"),
    [
        ((11, 12, 13), (11,), "2 questions without an annotation, the first with question_id '12'"),
        ((11,), (11, 13, 12), "2 annotations without a question, the first with question_id '13'"),
        ((11, 11), (11,), "row 1: repeats question_id '11'"),
        ((11,), (11, 11), "row 1: repeats question_id '11'"),
    ],
)
def test_vqa_files_that_do_not_fit_together(
    question_ids: tuple[int, ...], annotation_ids: tuple[int, ...], problem: str, tmp_path: Path
) -> None:
    path = as_json(tmp_path / VQA_NAMES["okvqa"][0], vqa_questions(*question_ids))
    as_json(tmp_path / VQA_NAMES["okvqa"][1], vqa_annotations(*annotation_ids))
    assert problem in error_of("okvqa", path)


def test_vqa_without_annotations_is_a_test_split(tmp_path: Path) -> None:
    path = as_json(tmp_path / "v2_OpenEnded_mscoco_test2015_questions.json", vqa_questions(11))
    message = error_of("vqav2", path)
    assert "answers are missing" in message
    assert str(tmp_path / "v2_mscoco_test2015_annotations.json") in message


# DocVQA and InfographicVQA


def test_docvqa(tmp_path: Path) -> None:
    draw(tmp_path / "documents", "xnbl0037_1.png")
    entry = {
        "questionId": 337,
        "question": "what is the date?",
        "image": "documents/xnbl0037_1.png",
        "docId": 279,
        "ucsf_document_id": "xnbl0037",
        "ucsf_document_page_no": "1",
        "answers": ["1/8/93", "1.8.93"],
        "data_split": "val",
    }
    entries = [entry, entry | {"questionId": 338, "question_types": ["form", "layout"]}]
    path = as_json(tmp_path / "val_v1.0_withQT.json", {"dataset_name": "SP-DocVQA", "data": entries})
    uri = tmp_path / "documents/xnbl0037_1.png"
    questions = read("docvqa", path)
    assert questions == [
        question("337", "documents/xnbl0037_1.png", uri, "what is the date?", ["1/8/93", "1.8.93"]),
        question(
            "338", "documents/xnbl0037_1.png", uri, "what is the date?", ["1/8/93", "1.8.93"], family="form+layout"
        ),
    ]
    assert pictures_of(questions) == [0, 0]
    assert pictures_of(read("docvqa", path, images=str(tmp_path / "documents"))) == [0, 0]


def test_docvqa_mirror(tmp_path: Path) -> None:
    rows = [
        {
            "questionId": str(n),
            "question": f"{n}?",
            "question_types": ["table/list"],
            "image": held(n // 2),
            "docId": 4720,
            "ucsf_document_id": "rnbx0223",
            "ucsf_document_page_no": str(n // 2),
            "answers": [str(n)],
            "data_split": "val",
        }
        for n in range(3)
    ]
    questions = read("docvqa", as_parquet(tmp_path / "DocVQA/validation-00000-of-00001.parquet", rows))
    assert [(q.question_id, q.image_id, q.answers, q.family) for q in questions] == [
        (str(n), f"rnbx0223_{n // 2}", [str(n)], "table/list") for n in range(3)
    ]
    assert pictures_of(questions) == [0, 0, 1]


def infovqa(number: int, **image: Any) -> dict[str, Any]:
    return {
        "questionId": 98313 + number,
        "question": f"{number}?",
        "answers": ["pinterest"],
        "data_split": "val",
        "answer_type": ["single span", "multi-span"],
        "operation/reasoning": ["counting"] * number,
        **image,
    }


def test_infovqa(tmp_path: Path) -> None:
    draw(tmp_path / "images", "37313.jpeg")
    entries = [infovqa(n, image_local_name="37313.jpeg", ocr_output_file="37313.json") for n in range(2)]
    path = as_json(tmp_path / "infographicsVQA_val_v1.0_withQT.json", {"data": entries})
    questions = read("infovqa", path, images=str(tmp_path / "images"))
    uri = tmp_path / "images/37313.jpeg"
    assert questions == [
        question(
            str(98313 + n),
            "37313.jpeg",
            uri,
            f"{n}?",
            ["pinterest"],
            family=family,
            answer_type="single span+multi-span",
        )
        for n, family in enumerate(("all", "counting"))
    ]
    assert pictures_of(questions) == [0, 0]


def test_infovqa_mirror(tmp_path: Path) -> None:
    rows = [infovqa(n, image=held(n // 2), image_url=f"https://example.org/{n // 2}.jpg") for n in range(3)]
    questions = read("infovqa", as_parquet(tmp_path / "validation.parquet", rows))
    assert [q.image_id for q in questions] == [f"https://example.org/{n}.jpg" for n in (0, 0, 1)]
    assert [q.family for q in questions] == ["all", "counting", "counting+counting"]
    assert pictures_of(questions) == [0, 0, 1]


# GQA


def gqa(image: str, **rest: Any) -> dict[str, Any]:
    return {
        "question": "is it red?",
        "answer": "no",
        "imageId": image,
        "fullAnswer": "No, it is not.",
        "types": {"structural": "verify", "semantic": "attr", "detailed": "verifyAttr"},
        **rest,
    }


def test_gqa(tmp_path: Path) -> None:
    draw(tmp_path / "images", "n1.jpg", "n2.jpg")
    entries = {"201": gqa("n2"), "202": gqa("n1"), "203": gqa("n1") | {"types": None}}
    path = as_json(tmp_path / "testdev_balanced_questions.json", entries)
    questions = read("gqa", path, images=str(tmp_path / "images"))
    assert questions == [
        question(str(n), image, tmp_path / f"images/{image}.jpg", "is it red?", ["no"], family=family)
        for n, image, family in ((201, "n2", "verify"), (202, "n1", "verify"), (203, "n1", "all"))
    ]
    assert pictures_of(questions) == [1, 0, 0]


@pytest.mark.parametrize("images", [None, "gqa/testdev_balanced_images", "gqa/testdev_balanced_images/*.parquet"])
def test_gqa_mirror_joins_instructions_and_images(images: str | None, tmp_path: Path) -> None:
    rows = [gqa(f"n{n % 2}", id=f"20{n}", isBalanced=True) for n in range(3)]
    as_parquet(tmp_path / "gqa/testdev_balanced_instructions/testdev-00000-of-00001.parquet", rows)
    folder = tmp_path / "gqa/testdev_balanced_images"
    path = as_parquet(folder / "testdev-00000-of-00001.parquet", [{"id": f"n{n}", "image": held(n)} for n in (1, 0)])
    questions = read(
        "gqa", tmp_path / "gqa/testdev_balanced_instructions", images=str(tmp_path / images) if images else None
    )
    assert [(q.question_id, q.image_id, q.family) for q in questions] == [
        ("200", "n0", "verify"),
        ("201", "n1", "verify"),
        ("202", "n0", "verify"),
    ]
    assert [q.uri for q in questions] == [f"{path}#row={row}&column=image" for row in (1, 0, 1)]
    assert pictures_of(questions) == [0, 1, 0]


def test_gqa_mirror_whose_images_lack_one(tmp_path: Path) -> None:
    path = as_parquet(tmp_path / "questions.parquet", [gqa("n1", id="201")])
    images = as_parquet(tmp_path / "images.parquet", [{"id": "n2", "image": held(0)}])
    assert "has no image 'n1' for question '201'" in error_of("gqa", path, images=str(images))
    assert "this mirror keeps its images in other files" in error_of("gqa", path)


# PathVQA, VQA-RAD and SLAKE


@pytest.mark.parametrize("kind", ["pathvqa", "vqa_rad"])
def test_medical_mirrors_number_their_rows(kind: str, tmp_path: Path) -> None:
    for split in ("test", "train"):
        rows = [{"image": held(n), "question": f"{split} {n}?", "answer": "yes"} for n in range(3)]
        as_parquet(tmp_path / f"data/{split}-00000-of-00001-ff.parquet", rows)
    questions = read(kind, tmp_path / "data", split="test")
    path = tmp_path / "data/test-00000-of-00001-ff.parquet"
    assert questions == [
        question(f"test-{n}", f"{path.name}/{n}", f"{path}#row={n}&column=image", f"test {n}?", ["yes"])
        for n in range(3)
    ]
    assert pictures_of(questions) == [0, 1, 2]


def test_vqa_rad_json(tmp_path: Path) -> None:
    draw(tmp_path / "images", "synpic1.jpg")
    entry = {
        "qid": 3,
        "image_name": "synpic1.jpg",
        "image_organ": "HEAD",
        "question": "is there a mass?",
        "answer": "No",
        "answer_type": "CLOSED ",
        "question_type": "PRES",
        "phrase_type": "freeform",
    }
    questions = read("vqa_rad", as_json(tmp_path / "public.json", [entry, entry | {"qid": 4, "answer": 2}]))
    uri = tmp_path / "images/synpic1.jpg"
    assert questions == [
        question(n, "synpic1.jpg", uri, "is there a mass?", [answer], family="PRES", answer_type="CLOSED")
        for n, answer in (("3", "No"), ("4", "2"))
    ]


def slake(number: int) -> dict[str, Any]:
    language = ("en", "zh")[number % 2]
    return {
        "img_id": 1,
        "img_name": f"xmlab{number // 2}/source.jpg",
        "question": f"{language}?",
        "answer": "是",
        "q_lang": language,
        "modality": "CT",
        "answer_type": "CLOSED",
        "base_type": "vqa",
        "content_type": "Organ",
        "qid": 11934 + number,
    }


@pytest.mark.parametrize("folder", ["imgs/", ""])
def test_slake(folder: str, tmp_path: Path) -> None:
    draw(tmp_path, f"{folder}xmlab0/source.jpg", f"{folder}xmlab1/source.jpg")
    questions = read("slake", as_json(tmp_path / "test.json", [slake(n) for n in range(3)]))
    assert questions == [
        question(
            str(11934 + n),
            f"xmlab{n // 2}/source.jpg",
            tmp_path / f"{folder}xmlab{n // 2}/source.jpg",
            f"{language}?",
            ["是"],
            family="Organ",
            answer_type="CLOSED",
            split=language,
        )
        for n, language in enumerate(("en", "zh", "en"))
    ]
    assert pictures_of(questions) == [0, 0, 1]


@pytest.mark.parametrize("with_images", [True, False])
def test_slake_mirror(with_images: bool, tmp_path: Path) -> None:
    draw(tmp_path / "imgs", "xmlab0/source.jpg", "xmlab1/source.jpg")
    rows = [slake(n) | ({"image": held(n // 2)} if with_images else {}) for n in range(3)]
    questions = read("slake", as_parquet(tmp_path / "test.parquet", rows))
    assert [(q.question_id, q.split, q.answer_type) for q in questions] == [
        (str(11934 + n), language, "CLOSED") for n, language in enumerate(("en", "zh", "en"))
    ]
    assert pictures_of(questions) == [0, 0, 1]


# Any other set


def own(number: int) -> dict[str, Any]:
    return {
        "question_id": f"q{number}",
        "image": f"images/{number}.png",
        "question": f"{number}?",
        "answers": ["one", "1"],
        "family": "count",
    }


def as_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("own.jsonl", as_lines),
        ("own.json", as_lines),
        ("own.json", as_json),
        ("own.parquet", as_parquet),
        ("no-ending", as_parquet),
        ("no-ending", as_json),
    ],
)
def test_own_questions(name: str, write: Callable[[Path, Any], Path], tmp_path: Path) -> None:
    draw(tmp_path / "images", "0.png", "1.png")
    questions = read("questions", write(tmp_path / name, [own(0), own(1)]))
    assert questions == [
        question(f"q{n}", f"images/{n}.png", tmp_path / f"images/{n}.png", f"{n}?", ["one", "1"], family="count")
        for n in range(2)
    ]
    assert pictures_of(questions) == [0, 1]


def test_own_questions_by_the_names_of_their_columns(tmp_path: Path) -> None:
    rows = [
        {
            "key": n,
            "picture": picture(n),
            "ask": f"{n}?",
            "gold": 2.5,
            "task": ["a", "b"],
            "form": "number",
            "page": "p",
        }
        for n in range(2)
    ]
    columns = {
        "id": "key",
        "image": "picture",
        "question": "ask",
        "answers": "gold",
        "family": "task",
        "answer_type": "form",
        "image_id": "page",
    }
    path = as_parquet(tmp_path / "own.parquet", rows)
    uri = f"{path}#row=0&column=picture"
    assert read("questions", path, columns=columns) == [
        question(str(n), "p", uri, f"{n}?", ["2.5"], family="a+b", answer_type="number") for n in range(2)
    ]
    message = error_of("questions", path, columns=columns | {"family": "topic"})
    assert f"{path}': row 0: 'topic' is missing" in message
    assert "'picture' is not a field" in error_of("questions", path, columns={"picture": "image"})


def test_a_struct_without_bytes_names_its_file(tmp_path: Path) -> None:
    draw(tmp_path, "images/0.png")
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = {
        "question_id": ["q"],
        "question": ["?"],
        "answers": [["a"]],
        "image": pa.array([{"bytes": None, "path": "images/0.png"}], kind),
    }
    pq.write_table(pa.table(rows), tmp_path / "own.parquet")
    questions = read("questions", tmp_path / "own.parquet")
    assert (questions[0].image_id, pictures_of(questions)) == ("images/0.png", [0])


# Errors


LABELLED: dict[str, dict[str, Any]] = {
    "textvqa": textvqa(0),
    "stvqa": {"question_id": 1, "question": "?", "answers": ["a"], "file_path": "a.jpg"},
    "docvqa": {"questionId": 1, "question": "?", "answers": ["a"], "image": "a.png"},
    "infovqa": infovqa(0, image_local_name="1.jpeg"),
    "slake": slake(0),
    "questions": own(0),
}


@pytest.mark.parametrize("write", [as_json, as_parquet])
@pytest.mark.parametrize("kind", LABELLED)
def test_a_missing_field_is_named_with_its_file_and_row(
    kind: str, write: Callable[[Path, Any], Path], tmp_path: Path
) -> None:
    entry = LABELLED[kind]
    ids = next(name for name in ("question_id", "questionId", "qid") if name in entry)
    path = tmp_path / ("some.json" if write is as_json else "some.parquet")
    rows = [entry, {name: value for name, value in entry.items() if name != "question"} | {ids: type(entry[ids])(99)}]
    write(path, {"data": rows} if write is as_json and kind != "slake" else rows)
    message = error_of(kind, path)
    assert message.startswith(f"benchmark.path = '{path}': row 1: 'question' is missing.")


@pytest.mark.parametrize("write", [as_json, as_parquet])
@pytest.mark.parametrize("answers", ["left out", None, [], ["", " "], [{"answer": ""}], ""])
def test_a_test_split_is_refused(answers: Any, write: Callable[[Path, Any], Path], tmp_path: Path) -> None:
    row = textvqa(0, answers=answers)
    if answers == "left out":
        del row["answers"]
    path = tmp_path / ("test.json" if write is as_json else "test.parquet")
    write(path, {"data": [row]} if write is as_json else [row])
    message = error_of("textvqa", path)
    assert str(path) in message
    assert "the answers are missing, as in a test split without labels. Use a split with answers" in message


@pytest.mark.parametrize(
    ("answers", "problem"),
    [
        ([["a"]], "'answers' holds a list"),
        ([{"text": "a"}], "an entry of 'answers' has no 'answer'"),
        ([True], "'answers' holds a bool"),
    ],
)
def test_answers_of_another_form(answers: Any, problem: str, tmp_path: Path) -> None:
    assert problem in error_of("textvqa", as_json(tmp_path / "val.json", {"data": [textvqa(0, answers=answers)]}))


def test_a_doubled_question_is_named(tmp_path: Path) -> None:
    path = as_json(tmp_path / "val.json", {"data": [textvqa(0), textvqa(1), textvqa(0)]})
    assert "has question_id '34602' twice" in error_of("textvqa", path)


@pytest.mark.parametrize(
    ("kind", "content", "problem"),
    [
        ("textvqa", '{"data": [', "is not JSON (Expecting value"),
        ("textvqa", '{"entries": []}', "has no list 'data'"),
        ("textvqa", '{"data": []}', "holds no questions"),
        ("textvqa", '{"data": [7]}', "row 0 is not an object"),
        ("chartqa", '"text"', "is not a list"),
        ("questions", json.dumps(own(0)) + '\n{"question_id"\n', "line 2 is not JSON"),
        ("gqa", '{"201": 5}', "question '201' is not an object"),
        ("textvqa", json.dumps({"data": [textvqa(0, question_id=1.5)]}), "row 0: 'question_id' is a float"),
        ("vqav2", "{}", "has no list 'questions'"),
    ],
)
def test_a_file_of_another_form(kind: str, content: str, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "val.json"
    path.write_text(content)
    assert problem in error_of(kind, path)


def test_a_reader_names_the_endings_of_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_lines(inputs: Inputs) -> Iterator[LabelledQuestion]:
        for file in inputs.files:
            with PLACES.open(file.uri) as lines:
                yield from (
                    LabelledQuestion(f"{n}", "i", "/i", line.decode(), ["a"], "all") for n, line in enumerate(lines)
                )

    monkeypatch.setitem(BENCHMARKS, "lines", Benchmark("lines", "anls", read_lines, ("me",), endings=(".txt",)))
    as_json(tmp_path / "val.json", [])
    (tmp_path / "val.txt").write_text("What?")
    assert [question.question for question in read("lines", tmp_path)] == ["What?"]
    spec = BenchmarkConfig(kind="lines", path=str(tmp_path))
    assert [file.name for file in question_files(spec, PLACES)] == ["val.txt"]


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    assert "cannot be read (No such file or directory)" in error_of("textvqa", tmp_path / "val.json")
    assert "does not exist" in error_of("textvqa", tmp_path / "nowhere")
    assert "holds no files that end in .json, .jsonl, .ndjson, .parquet" in error_of("textvqa", tmp_path)
    (tmp_path / "val.parquet").write_bytes(b"PAR1 and no more")
    assert "cannot be read as Parquet" in error_of("textvqa", tmp_path / "val.parquet")
    (tmp_path / "val.json").write_bytes(b"\xff\xfe\x00")
    assert "is not UTF-8" in error_of("textvqa", tmp_path / "val.json")


def test_parquet_of_another_benchmark(tmp_path: Path) -> None:
    path = as_parquet(tmp_path / "val.parquet", [{"caption": "a"}])
    assert "has the columns 'caption', and none of 'question_id'" in error_of("textvqa", path)


def test_a_folder_with_several_splits_needs_the_setting(tmp_path: Path) -> None:
    for split in ("test", "validation"):
        as_parquet(tmp_path / f"{split}-00000-of-00001.parquet", [{"image": held(0), "question": split, "answer": "a"}])
    assert "it has test, val. Choose one" in error_of("pathvqa", tmp_path)
    assert "is not a split of" in error_of("pathvqa", tmp_path, split="train")
    for split in ("val", "validation"):
        assert [q.question_id for q in read("pathvqa", tmp_path, split=split)] == ["val-0"]


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"annotations": "a.json"}, "benchmark.annotations = 'a.json': does not apply to textvqa."),
        ({"columns": {"id": "a"}}, "benchmark.columns = {'id': 'a'}: does not apply to textvqa."),
    ],
)
def test_settings_that_do_not_apply(settings: dict[str, Any], problem: str) -> None:
    assert error_of(**{"kind": "textvqa", "path": Path("val.json"), **settings}).startswith(problem)


@pytest.mark.parametrize("name", ["../secret.png", "a/../../secret.png", "http://example.org/a.png", "file:///a.png"])
def test_images_lie_below_their_folder(name: str, tmp_path: Path) -> None:
    path = as_json(tmp_path / "own.json", [own(0) | {"image": name}])
    assert f"the image {name!r} is outside {tmp_path}" in error_of("questions", path)


def test_missing_images_are_counted_and_the_first_is_named(tmp_path: Path) -> None:
    draw(tmp_path / "images", "0.png")
    questions = read("questions", as_json(tmp_path / "own.json", [own(n) for n in range(3)]))
    check_images(questions[:1])
    with pytest.raises(ConfigError) as refusal:
        check_images(questions)
    message = str(refusal.value)
    assert message.startswith(f"benchmark.images = '{tmp_path}/images/1.png': does not exist, but question 'q1'")
    assert "(missing image files: 2 of 3). Download the benchmark's images" in message


def test_a_name_like_a_locator_is_still_a_name(tmp_path: Path) -> None:
    draw(tmp_path, "a#row=1&column=b")
    questions = read("questions", as_json(tmp_path / "own.json", [own(0) | {"image": "a#row=1&column=b"}]))
    check_images(questions)
    assert pictures_of(questions) == [0]


# Where files are


def test_images_are_not_read_with_the_questions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = random.Random(0).randbytes
    rows = [textvqa(n) | {"image": {"bytes": noise(6 * 2**20), "path": None}} for n in range(4)]
    path = as_parquet(tmp_path / "val.parquet", rows)
    num_bytes = 0
    original = LocalPlace.read

    def counted(self: LocalPlace, *arguments: Any) -> bytes:
        nonlocal num_bytes
        content = original(self, *arguments)
        num_bytes += len(content)
        return content

    monkeypatch.setattr(LocalPlace, "read", counted)
    assert len(read("textvqa", path)) == 4
    assert 0 < num_bytes < path.stat().st_size / 2


def test_a_relative_path_gives_absolute_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(draw(tmp_path, "images/0.png"))
    as_json(tmp_path / "own.json", [own(0)])
    assert read("questions", Path("own.json"))[0].uri == f"{tmp_path}/images/0.png"
    assert read("questions", Path("own.json"), images="images/..")[0].uri.startswith(f"{tmp_path}/")
    as_parquet(tmp_path / "own.parquet", [own(0) | {"image": held(0)}])
    assert read("questions", Path("own.parquet"))[0].uri == f"{tmp_path}/own.parquet#row=0&column=image"


@pytest.fixture(scope="module")
def places() -> Iterator[Places]:
    with pytest.MonkeyPatch.context() as patch, s3_server() as endpoint:
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        yield Places(ObjectStoreConfig(endpoint_url=endpoint))


def test_a_benchmark_at_an_object_store(places: Places, tmp_path: Path) -> None:
    draw(tmp_path / "train_images", "im0.jpg", "im1.jpg")
    as_json(tmp_path / "TextVQA_0.5.1_val.json", {"data": [textvqa(n) for n in range(3)]})
    as_parquet(tmp_path / "mirror/validation-00000-of-00001.parquet", [textvqa(0) | {"image": held(3)}])
    upload(tmp_path, cast(str, places.object_store.endpoint_url), "textvqa")
    root = "s3://bucket/textvqa"
    for images in (None, root, f"{root}/train_images"):
        spec = BenchmarkConfig(kind="textvqa", path=f"{root}/TextVQA_0.5.1_val.json", images=images)
        questions = list(read_benchmark(spec, places))
        assert [q.uri for q in questions] == [f"{root}/train_images/im{n}.jpg" for n in (0, 0, 1)]
        check_images(questions)
    mirror = list(read_benchmark(BenchmarkConfig(kind="textvqa", path=f"{root}/mirror"), places))
    assert mirror[0].uri == f"{root}/mirror/validation-00000-of-00001.parquet#row=0&column=image"
    uris = [questions[2].uri, mirror[0].uri]
    assert Reader(places.object_store).read(uris) == [picture(1), picture(3)]


# From a question to its prediction


def test_answer_type_and_split_reach_the_prediction_and_the_store() -> None:
    labelled = LabelledQuestion("q", "a", "/a", "?", ["1"], "all", "OPEN", "zh")
    stage = Predict(cast(Any, None), TASKS["text_vqa"], AnswerConfig())
    predictions = asyncio.run(stage.visit(ImageWork("a", "/a", (labelled,), None)))
    assert [(p.answer_type, p.split) for p in predictions] == [("OPEN", "zh")]
    assert from_table(to_table([labelled], LabelledQuestion), LabelledQuestion) == [labelled]
