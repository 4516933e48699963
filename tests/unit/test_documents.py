"""The documents against the code: links, files, settings, YAML and commands that they name, and generated pages."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel

from docs.make_reference import pages
from mpa_ray.config import (
    BenchmarkConfig,
    EvaluationRunConfig,
    ObjectStoreConfig,
    RunConfig,
    ScriptedEngineConfig,
    load_config,
    load_evaluation,
)
from mpa_ray.corpus.places.places import Places
from mpa_ray.errors import ConfigError
from mpa_ray.evaluation.benchmarks import read_benchmark
from mpa_ray.evaluation.benchmarks.questions import COLUMNS
from mpa_ray.tasks.task import Task, load_task

ROOT = Path(__file__).parents[2]
ARCHITECTURE = (ROOT / "ARCHITECTURE.md").read_text()
DOCUMENTS = sorted(
    str(path.relative_to(ROOT))
    for path in ROOT.rglob("*.md")
    if not any(part.startswith(".") or part in ("runs", "out", "build") for part in path.relative_to(ROOT).parts)
)
PAGES = sorted(path.name for path in ROOT.glob("docs/*.md") if path.name != "README.md")
ABOUT_NOW = [document for document in DOCUMENTS if document != "CHANGELOG.md"]
"""The changelog also names what has gone."""

BASE: dict[str, Any] = {
    "run_dir": "runs/mine",
    "source": {"path": "/data/images"},
    "teacher": {"model": "owner/teacher"},
    "students": [{"name": "small", "model": "owner/student"}],
}
"""Completes the YAML of a document that shows a branch alone."""


def read(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def fenced_blocks(document: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", read(document), re.MULTILINE | re.DOTALL)


def indented_blocks(document: str) -> list[str]:
    """Code by indentation, between blank lines outside of fences."""
    text = re.sub(r"^```.*?^```$", "", read(document), flags=re.MULTILINE | re.DOTALL)
    return [textwrap.dedent(block) for block in re.findall(r"(?:^(?: {4}.*| *)\n)+", text, re.MULTILINE)]


def prose(document: str) -> str:
    """The text without code blocks."""
    text = re.sub(r"^```.*?^```$", "", read(document), flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"^ {4}.*$", "", text, flags=re.MULTILINE)


# Walks


def walk(title: str) -> list[str]:
    """The files of a numbered list below a heading, in their order."""
    section = ARCHITECTURE.split(f"### {title}\n", 1)[1].split("\n#", 1)[0]
    return re.findall(r"^\d+\. `([^`]+)`", section, re.MULTILINE)


def files_named_between(title: str) -> set[str]:
    """The files that a walk names in its items and that are no items of it, such as those in parentheses."""
    section = ARCHITECTURE.split(f"### {title}\n", 1)[1].split("\n#", 1)[0]
    items = [f"/{file}" for file in walk(title)]
    names = set(re.findall(r"`([\w/]+\.py)`", section))
    return {name for name in names if not any(item.endswith(f"/{name}") for item in items)}


@pytest.mark.parametrize(
    ("title", "most"),
    [
        ("An image's id, from source to report", 20),
        ("`align` to the first vLLM request", 20),
        ("`align` to the first optimiser step", 14),
    ],
)
def test_a_walk_is_short_and_opens_no_file_twice(title: str, most: int) -> None:
    files = walk(title)
    assert len(files) > 5
    assert len(files) + len(files_named_between(title)) <= most
    assert len(set(files)) == len(files)
    assert not [file for file in files if not (ROOT / file).is_file()]


# Files and links


@pytest.mark.parametrize("document", ABOUT_NOW)
def test_files_that_a_document_names_exist(document: str) -> None:
    names = set(re.findall(r"`((?:[a-z_]+/)+[a-z0-9_.-]+\.(?:py|yaml|md|sh|jsonl?|svg|png))`", read(document)))
    folders = (ROOT, ROOT / "mpa_ray", (ROOT / document).parent)
    missing = [name for name in names if not any((folder / name).is_file() for folder in folders)]
    assert not [name for name in missing if not name.startswith("out/")]


def links(document: str) -> list[str]:
    text = re.sub(r"`[^`\n]*`", "", prose(document))
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    return [target for target in targets if "://" not in target and not target.startswith("mailto:")]


def anchors(document: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a document."""
    text = re.sub(r"^```.*?^```$", "", document.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    found: list[str] = []
    for heading in re.findall(r"^#{1,6} +(.*?) *$", text, re.MULTILINE):
        shown = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        anchor = re.sub(r"[^\w\- ]", "", shown).replace(" ", "-")
        number = sum(re.fullmatch(rf"{re.escape(anchor)}(?:-\d+)?", other) is not None for other in found)
        found.append(f"{anchor}-{number}" if number else anchor)
    return set(found)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_to_files_and_headings_that_exist(document: str) -> None:
    broken = []
    for link in links(document):
        path, _, anchor = link.partition("#")
        target = (ROOT / document).parent / path if path else ROOT / document
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert not broken


def test_every_page_is_in_the_index_and_reachable_from_the_readme() -> None:
    assert set(PAGES) <= set(links("docs/README.md"))
    assert {f"docs/{page}" for page in PAGES} <= set(links("README.md"))


# The README


def test_the_readme_is_short_and_shows_both_commands() -> None:
    text = read("README.md")
    assert len(text.split()) < 1700
    assert re.search(r"^ {4}make demo\b", text, re.MULTILINE)
    assert re.search(r"^ {4}make test\b", text, re.MULTILINE)


def test_pictures_are_small() -> None:
    pictures = list((ROOT / "docs/images").iterdir())
    assert pictures
    assert all(10_000 < picture.stat().st_size < 200_000 for picture in pictures)


# Generated pages


@pytest.mark.parametrize("name", sorted(pages()))
def test_generated_pages_are_up_to_date(name: str) -> None:
    assert read(f"docs/{name}") == pages()[name], "run python -m docs.make_reference"


def test_every_setting_is_documented_but_those_of_scripted_engines() -> None:
    """The settings are taken from the tree's JSON schema, which the generator does not use."""
    schema = RunConfig.model_json_schema()
    knobs = set(ScriptedEngineConfig.model_fields) - {"kind"}
    branches = {name: branch for name, branch in schema["$defs"].items() if name != ScriptedEngineConfig.__name__}
    names = {name for branch in [schema, *branches.values()] for name in branch.get("properties", {})}
    documented = set(re.findall(r"^\| `(\w+)` \|", read("docs/configuration.md"), re.MULTILINE))
    assert names - documented <= {"kind"}
    assert not (knobs - names) & documented


# Settings, YAML and commands


def setting_paths(model: type[BaseModel] = RunConfig, prefix: str = "", above: tuple[type, ...] = ()) -> Iterator[str]:
    """The dotted names of all settings, without the numbers of lists."""
    for name, field in model.model_fields.items():
        path = f"{prefix}{field.alias or name}"
        yield path
        for branch in branches_of(field.annotation):
            if branch not in above:
                yield from setting_paths(branch, f"{path}.", (*above, branch))


def branches_of(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from branches_of(inner)


PATHS = set(setting_paths())
NAMES = {".".join(parts[start:]) for path in PATHS for parts in [path.split(".")] for start in range(len(parts))}
"""The settings, and the ends of their dotted names: documents write `level.seed` for `students.N.level.seed`."""
HEADS = {*RunConfig.model_fields, "level", "engine"}


def settings_named_in(document: str) -> set[str]:
    spans = re.findall(r"`([^`\n]+)`", prose(document))
    dotted = {match[1] for span in spans if (match := re.match(r"((?:\w+\.)+\w+)(?=$|[: ])", span))}
    plain = {re.sub(r"\.(?:N|\d+)(?=\.|$)", "", name) for name in dotted}
    return {
        name
        for name in plain
        if name.split(".")[0] in HEADS and not name.endswith((".py", ".md", ".yaml", ".json", ".html"))
    }


@pytest.mark.parametrize("document", ABOUT_NOW)
def test_settings_that_a_document_names_exist(document: str) -> None:
    assert not settings_named_in(document) - NAMES


def test_the_names_of_settings_are_found() -> None:
    assert "level.replay_share" in settings_named_in("docs/troubleshooting.md")
    assert {"level.method.quantize", "students.level.replay_from", "evaluate.benchmarks"} <= NAMES
    assert "level.no_such" not in NAMES


def check_yaml(text: str, folder: Path) -> type[BaseModel]:
    """Load a document's YAML: a task, a whole file, or a branch of one. Raises ConfigError if it does not load."""
    path = folder / "shown.yaml"
    tree = yaml.safe_load(text)
    if "annotation_prompt" in tree:
        path.write_text(text)
        return type(load_task(path))
    path.write_text(text if "run_dir" in tree else yaml.safe_dump(BASE | tree))
    return type(load_evaluation(str(path)))


@pytest.mark.parametrize("document", ABOUT_NOW)
def test_yaml_that_a_document_shows_is_valid(document: str, tmp_path: Path) -> None:
    for text in fenced_blocks(document, "yaml"):
        assert check_yaml(text, tmp_path) in (Task, RunConfig, EvaluationRunConfig)
    for text in indented_blocks(document):
        if re.search(r"^run_dir:", text, re.MULTILINE):
            check_yaml(text, tmp_path)


def test_yaml_is_found_in_fences_and_by_indentation() -> None:
    assert len(fenced_blocks("docs/evaluation.md", "yaml")) >= 2
    assert any("run_dir:" in block for block in indented_blocks("cluster/README.md"))


OVERRIDE = re.compile(r"--([a-z_]+(?:\.[a-z0-9_]+)+)[ =]('[^']*'|[^\s`]+)")
COMMAND_FILES = [*ABOUT_NOW, *(str(path.relative_to(ROOT)) for path in ROOT.glob("examples/*.yaml"))]


@pytest.mark.parametrize("document", COMMAND_FILES)
def test_overrides_that_a_document_shows_are_valid(document: str, tmp_path: Path) -> None:
    path = tmp_path / "base.yaml"
    path.write_text(yaml.safe_dump(BASE))
    for line in read(document).splitlines():
        if "mpa-ray" in line or "jobs/" in line:
            for name, value in OVERRIDE.findall(line):
                load_config(str(path), {name: value.strip("'")})


def commands_listed() -> set[str]:
    return set(re.findall(r"^\| `mpa-ray ([a-z-]+)", read("docs/commands.md"), re.MULTILINE))


@pytest.mark.parametrize("document", COMMAND_FILES)
def test_commands_that_a_document_shows_are_listed(document: str) -> None:
    shown = set(re.findall(r"(?:^ {4}(?:#  )?|`|#   )mpa-ray ([a-z][a-z-]*)", read(document), re.MULTILINE))
    assert shown <= commands_listed()


def test_every_job_is_a_listed_command() -> None:
    jobs = {path.stem.replace("_", "-") for path in ROOT.glob("jobs/*.py") if not path.stem.startswith("_")}
    assert jobs <= commands_listed()


# Messages


def test_messages_that_the_troubleshooting_page_quotes_exist() -> None:
    """N and M stand for values, STUDENT for a name, and ... for anything."""
    code = "\n".join(path.read_text() for path in ROOT.glob("mpa_ray/**/*.py"))
    messages = re.sub(r'"\s*\n\s*f?"', "", code)
    quotes = re.findall(r'"([^"\n]+)"', prose("docs/troubleshooting.md"))
    parts = [part.strip() for quote in quotes for part in re.split(r"\.\.\.|\b[NM]\b|STUDENT", quote)]
    assert len(parts) > 20
    assert not [part for part in parts if len(part) > 3 and part not in messages]


# Questions of a user's own


def test_the_line_of_questions_that_is_shown_can_be_read(tmp_path: Path) -> None:
    (line,) = fenced_blocks("docs/evaluation.md", "json")
    (tmp_path / "questions.jsonl").write_text(line)
    benchmark = BenchmarkConfig(path=str(tmp_path / "questions.jsonl"))
    (question,) = read_benchmark(benchmark, Places(ObjectStoreConfig()))
    assert question.answers == json.loads(line)["answers"]


def test_every_field_of_questions_is_described() -> None:
    section = read("docs/evaluation.md").split("## Your own questions\n", 1)[1].split("\n## ", 1)[0]
    fields = dict(re.findall(r"^\| `(\w+)` \| (required|optional) \|", section, re.MULTILINE))
    assert set(fields) == set(COLUMNS.values())


@pytest.mark.parametrize("field", ["question_id", "image", "question", "answers"])
def test_fields_of_questions_are_required_as_described(field: str, tmp_path: Path) -> None:
    required = re.findall(r"^\| `(\w+)` \| required \|", read("docs/evaluation.md"), re.MULTILINE)
    assert set(required) == {"question_id", "image", "question", "answers"}
    (line,) = fenced_blocks("docs/evaluation.md", "json")
    entry = {name: value for name, value in json.loads(line).items() if name in required and name != field}
    path = tmp_path / "questions.jsonl"
    path.write_text(json.dumps(entry))
    with pytest.raises(ConfigError, match=f"'{field}' is missing|the {field} are missing"):
        list(read_benchmark(BenchmarkConfig(path=str(path)), Places(ObjectStoreConfig())))
