"""`dict[str, Any]` is only where a format begins that has no type here, so that another one is noticed."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "mpa_ray"
OPEN = "dict[str, " + "Any]"

FOREIGN_FORMATS = {
    # YAML of users, before it is checked, and arguments of engines and of chat templates
    "config/engines.py",
    "config/models.py",
    "config/settings.py",
    "config/setting_values.py",
    # records of sources and benchmarks
    "corpus/sources/arrow_rows.py",
    "corpus/sources/list_records.py",
    "corpus/sources/parquet.py",
    "corpus/sources/saved_dataset.py",
    "corpus/sources/uri_list.py",
    "corpus/sources/webdataset.py",
    "evaluation/benchmarks/file.py",
    # JSON schemas, and arguments and inputs of vLLM
    "engine/protocol.py",
    "engine/vllm/arguments.py",
    "engine/vllm/rendering.py",
    # states, arguments and parameter groups of torch and transformers
    "leveling/checkpoint.py",
    "leveling/trainable.py",
    "leveling/worker.py",
    # settings of checkpoints
    "models/checkpoints.py",
    "models/generation_settings.py",
    "models/omitted_settings.py",
    # rows and options of Ray
    "leveling/step_data.py",
    "pipeline/cluster.py",
    # arguments of boto3
    "storage/object_store.py",
}
READERS_OF_RUNS = {
    # JSON files of a run, before their fields are read
    "run/sealed_json.py",
    "run/phase_record.py",
    "run/run.py",
    "run/training_log.py",
    "run/training_state.py",
}


def test_open_dictionaries_are_only_where_formats_begin() -> None:
    modules = {path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py") if OPEN in path.read_text()}
    assert modules == FOREIGN_FORMATS | READERS_OF_RUNS
