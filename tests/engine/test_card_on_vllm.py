"""The example for vLLM of a model card gives the answers of the run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.card_examples import blocks, exported_student


@pytest.mark.long
@pytest.mark.timeout(300)
def test_the_example_for_vllm_gives_the_answers_of_the_run(tmp_path: Path) -> None:
    expected = exported_student(tmp_path).answers
    common, _, on_vllm = blocks((tmp_path / "student/merged/README.md").read_text())
    pairs = json.dumps([(row.uri, row.question) for row in expected])
    example = 'print(answers([("image.png", "What is in the image?")]))'
    assert example in on_vllm
    own = f'import json, pathlib; pathlib.Path("answers.json").write_text(json.dumps(answers({pairs})))'
    (tmp_path / "example.py").write_text(common.replace('"."', '"student/merged"') + on_vllm.replace(example, own))
    subprocess.run([sys.executable, "example.py"], cwd=tmp_path, check=True)
    assert json.loads((tmp_path / "answers.json").read_text()) == [row.answer for row in expected]
