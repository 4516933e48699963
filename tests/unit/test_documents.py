"""What the documents say of the code: files they name exist, and walks stay short."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ARCHITECTURE = (ROOT / "ARCHITECTURE.md").read_text()


def walk(title: str) -> list[str]:
    """The files of a numbered list below a heading, in their order."""
    section = ARCHITECTURE.split(f"### {title}\n", 1)[1].split("\n#", 1)[0]
    return re.findall(r"^\d+\. `([^`]+)`", section, re.MULTILINE)


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
    assert 5 < len(files) <= most
    assert len(set(files)) == len(files)
    assert not [file for file in files if not (ROOT / file).is_file()]


@pytest.mark.parametrize("document", ["ARCHITECTURE.md", "CONTRIBUTING.md", "README.md"])
def test_files_that_a_document_names_exist(document: str) -> None:
    text = (ROOT / document).read_text()
    names = set(re.findall(r"`((?:[a-z_]+/)+[a-z_]+\.(?:py|yaml|md|sh|json))`", text))
    missing = [
        name
        for name in names
        if not (ROOT / name).is_file() and not (ROOT / "mpa_ray" / name).is_file() and not name.startswith("out/")
    ]
    assert not missing


def test_links_between_documents_lead_somewhere() -> None:
    documents = [*ROOT.glob("*.md"), *ROOT.glob("cluster/*.md"), *ROOT.glob("benchmarks/**/README.md")]
    broken = [
        f"{document.name}: {link}"
        for document in documents
        for link in re.findall(r"\]\(([^)#:]+)\)", document.read_text())
        if not (document.parent / link).exists()
    ]
    assert not broken
