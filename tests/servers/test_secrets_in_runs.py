"""No file of a run holds a secret of its configuration; the phases run in this process, without Ray."""

from __future__ import annotations

import asyncio
import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from mpa_ray.cli import main
from mpa_ray.config import RunConfig, ScriptedEngineConfig, load_config
from mpa_ray.engine.scripted import ScriptedEngine
from mpa_ray.errors import ConfigError
from mpa_ray.matching import MATCHERS
from mpa_ray.phases.context import RunContext
from mpa_ray.run.parity_export import export_parity
from mpa_ray.stages.annotate import Annotate
from mpa_ray.stages.identify import Identify, WorthAsking
from mpa_ray.stages.image_work import ImageWork
from mpa_ray.stages.judge import parity_samples
from tests.conftest import scripted_tree, served

SECRET = "Zq8xW2kP7vN4tR6y"
"""Part of every planted secret, each of which ends with a different number."""
URL = f"https://me:{SECRET}1@host/x?sig={SECRET}2&w=1"


def configured(images: Path, folder: Path, site: str = "http://127.0.0.1") -> Path:
    signed = [f"{site}/{name}?X-Amz-Signature={SECRET}3" for name in ("010.png", "none.png")]
    entries = [*sorted(map(str, images.glob("00*.png"))), *signed]
    source = folder / "list.jsonl"
    source.write_text("\n".join(json.dumps({"image": entry, "url": URL}) for entry in entries))
    tree = scripted_tree(images, folder / "my run #1")
    tree["source"] = {"path": str(source), "metadata": ["url"], "allow": ["http", "signed_urls"]}
    tree["object_store"] = {"max_attempts": 1}
    arguments = {"hf_token": f"{SECRET}4", "additional_config": {"api_key": f"{SECRET}5", "url": URL}}
    engine = {"kind": "vllm", "engine_args": arguments}
    tree["students"].append({"name": "other", "model": "bundled:demo/models/student", "engine": engine})
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


async def annotate_and_identify(context: RunContext[RunConfig]) -> None:
    """What a pass does with each image, for all shards, with a scripted teacher and student."""
    config, run, pixels = context.config, context.run, (3136, 12544)
    teacher = ScriptedEngine(ScriptedEngineConfig(kind="scripted"), pixels, 8)
    student = ScriptedEngine(ScriptedEngineConfig(kind="scripted", wrong_rate=1.0), pixels, 8)
    annotate = Annotate(teacher, context.task, config.annotate, config.answer)
    identify = Identify(student, context.task, config.answer, WorthAsking(MATCHERS["exact"]))
    for shard in run.manifest().shards:
        refs = run.corpus.read(shard)
        annotations, verdicts = [], []
        for ref, content in zip(refs, context.corpus_reader.read([ref.uri for ref in refs]), strict=True):
            rows = await annotate.visit(ImageWork(ref.image_id, ref.uri, (ref,), content))
            annotations += rows
            verdicts += await identify.visit(ImageWork(ref.image_id, ref.uri, tuple(rows), content))
        assert run.annotations.commit(shard, annotations)
        for name in ("small", "other"):
            assert run.verdicts(name).commit(shard, verdicts)
            export_parity(run, run.parity_dir(name), context.task, parity_samples(verdicts))


def test_no_file_of_a_run_holds_a_secret(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", f"{SECRET}6")
    with served(images) as site:
        run_phases(configured(images, tmp_path, site))
    output = capfd.readouterr()
    assert SECRET not in output.out + output.err
    assert "D_PI (parity samples)" in output.out
    check_files(tmp_path / "my run #1")


def run_phases(path: Path) -> None:
    assert main(["index", "--config", str(path)]) == 0
    context = RunContext.open(load_config(path))
    datasets = ["annotations", "verdicts/small", "verdicts/other"]
    context.begin(writes=datasets)
    asyncio.run(annotate_and_identify(context))
    # A new token does not count as a changed setting.
    changed = load_config(path, {"students.1.engine.engine_args.hf_token": f"{SECRET}7"})
    RunContext.open(changed).begin(reads=datasets)
    with pytest.raises(ConfigError, match=r"student\.engine_args\.seed: was None, now 3"):
        RunContext.open(load_config(path, {"students.1.engine.engine_args.seed": "3"})).begin(reads=datasets)
    assert main(["report", "--config", str(path)]) == 0
    assert main(["status", context.run.storage.root]) == 0
    assert main(["report", context.run.storage.root]) == 0


def check_files(folder: Path) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    tables = {path: pq.read_table(path) for path in files if path.suffix == ".parquet"}
    others = [path for path in files if path not in tables and path.name not in ("llava.json", "messages.jsonl")]
    assert {"run.json", "report.json", "index.html"} <= {path.name for path in others}
    assert len([path for path in others if path.parent.name == "fingerprints"]) == 4
    assert not [path for path in others if SECRET.encode() in path.read_bytes()]
    # `source.allow: [signed_urls]` permits one column to hold them.
    columns = {n for table in tables.values() for n in table.column_names if SECRET in str(table[n].to_pylist())}
    assert columns == {"uri"}
    recorded: Any = json.loads((folder / "run.json").read_text())["config"]["students"][1]["engine"]["engine_args"]
    hidden = {"hf_token": "***", "additional_config": {"api_key": "***", "url": "https://***@host/x?sig=***&w=1"}}
    assert recorded == hidden
    (annotations,) = (table.to_pylist() for path, table in tables.items() if "annotations" in path.parts)
    signed = [(row["state"], row["reason"]) for row in annotations if "127.0.0.1" in row["uri"]]
    assert signed == [("kept", None), ("failed", "unreadable")]
    assert {json.loads(row["metadata"])["url"] for row in annotations} == {"https://***@host/x?sig=***&w=1"}


def test_logs_and_tracebacks_hold_no_secret(capfd: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        logger = logging.getLogger("some.library")
        logger.warning("cannot read %s", URL)
        try:
            raise KeyError(URL)
        except KeyError:
            logger.exception("failed with hf_token='%s'", f"{SECRET}8")
        raise OSError(f"{URL}: gone")

    from mpa_ray.cli.run_job import FAILED, run_job

    handler = logging.StreamHandler()
    logging.getLogger("some.library").addHandler(handler)
    try:
        assert run_job(lambda: fail()) == FAILED
    finally:
        logging.getLogger("some.library").removeHandler(handler)
    output = capfd.readouterr()
    assert output.err.count("https://***@host/x?sig=***&w=1") >= 3
    assert "hf_token='***'" in output.err
    assert SECRET not in output.out + output.err


def test_an_unexpected_error_shows_no_secret() -> None:
    program = f"""
from mpa_ray.cli.run_job import run_job
def fail():
    raise KeyError({URL!r})
run_job(fail)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "KeyError: 'https://***@host/x?sig=***&w=1'" in done.stderr
    assert SECRET not in done.stderr


@pytest.mark.parametrize(
    "setting",
    [
        *["run_dir", "source.path", "task", "teacher.model", "students.0.model", "plan.from_run"],
        *["evaluate.benchmarks.0.path", "evaluate.benchmarks.0.images", "students.0.labels.path"],
        *["object_store.endpoint_url", "evaluate.models.0.model", "students.0.level.replay_from.path"],
    ],
)
@pytest.mark.parametrize(
    "url",
    [f"https://me:{SECRET}@host/x.yaml", f"s3://bucket/x.yaml?X-Amz-Signature={SECRET}", f"http://{SECRET}@host"],
)
def test_a_secret_in_a_setting_is_refused_and_not_shown(
    setting: str, url: str, images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = configured(images, tmp_path)
    others = "{benchmarks: [{path: x}], models: [{name: m, model: x}]}"
    code = main(["index", "--config", str(path), "--evaluate", others, f"--{setting}", url])
    output = capfd.readouterr()
    assert SECRET not in output.out + output.err
    assert (code, f"{setting} = " in output.err) == (2, True)
