"""A damaged fingerprint is reported as damage, and repaired from the copy in run.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mpa_ray.errors import ConfigError, FingerprintMismatch
from mpa_ray.run.audit_deep import audit_deep
from mpa_ray.run.fingerprint_files import FINGERPRINTS, content_of, digest_of
from mpa_ray.run.run import FORMAT, Run
from mpa_ray.storage.local import LocalStorage

SETTINGS: dict[str, Any] = {"prompt": "What colour is it?", "sampling": {"seed": 7}}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run(LocalStorage(str(tmp_path)))
    run.fingerprints.register("corpus", SETTINGS)
    run.corpus.commit("000000", [])
    run.storage.write(
        "run.json", json.dumps({"format": FORMAT, "config": {}, "fingerprints": run.fingerprints.known()}).encode()
    )
    return run


def opened_again(run: Run) -> Run:
    return Run(LocalStorage(run.storage.root), allows_damage=True)


def damage(run: Run, before: bytes, after: bytes) -> None:
    (file,) = Path(run.storage.root, FINGERPRINTS).iterdir()
    file.write_bytes(file.read_bytes().replace(before, after))


@pytest.mark.parametrize(("before", "after"), [(b"colour", b"golour"), (b"7", b"6"), (b"seed", b"reed")])
def test_a_changed_bit_is_not_taken_for_another_setting(run: Run, before: bytes, after: bytes) -> None:
    damage(run, before, after)
    again = opened_again(run)
    with pytest.raises(ConfigError, match=r"corpus\.json cannot be read .*mpa-ray audit /.* --repair") as error:
        again.fingerprints.register("corpus", SETTINGS)
    assert not isinstance(error.value, FingerprintMismatch)
    with pytest.raises(ConfigError, match="cannot be read"):
        # Otherwise the copy in run.json would be replaced.
        again.fingerprints.known()
    (finding,) = [finding for finding in audit_deep(again) if finding.path.startswith(FINGERPRINTS)]
    assert finding.repair()
    assert opened_again(run).fingerprints.fixed("corpus") == SETTINGS
    assert opened_again(run).fingerprints.check("corpus", SETTINGS)


def test_another_setting_is_named(run: Run) -> None:
    with pytest.raises(FingerprintMismatch, match="sampling: was"):
        opened_again(run).fingerprints.register("corpus", {**SETTINGS, "sampling": {"seed": 8}})


def test_fingerprints_of_older_versions_have_no_digest(run: Run) -> None:
    (file,) = Path(run.storage.root, FINGERPRINTS).iterdir()
    assert json.loads(file.read_bytes()) != SETTINGS
    file.write_text(json.dumps(SETTINGS))
    assert opened_again(run).fingerprints.digest("corpus") == digest_of(SETTINGS)
    assert content_of(SETTINGS) == content_of(dict(SETTINGS))
