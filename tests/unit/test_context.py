"""What a run records about the code that made it."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

import pytest

import mpa_ray
from mpa_ray.phases import context


def test_a_run_names_the_version_of_the_code_even_where_no_package_is_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No package is installed under `ray job submit --working-dir`. A refusal names the version in run.json."""

    def without_mpa_ray(name: str) -> str:
        if name == "mpa-ray":
            raise PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(context, "version", without_mpa_ray)
    assert context.installed_versions()["mpa-ray"] == mpa_ray.__version__
