"""Secrets are removed from every form of text, and nothing else is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mpa_ray.corpus.sources.source import metadata_json
from mpa_ray.redaction import has_url_secrets, without_secret_values, without_secrets, without_url_secrets
from mpa_ray.run.run import Run

SECRET = "Zq8xW2kP7vN4"


@pytest.mark.parametrize(
    "url",
    [
        f"https://me:{SECRET}@host/x.png",
        f"https://{SECRET}@host/x.png",
        f"http://me:{SECRET}/{SECRET}@host:9000",
        f"s3://key:{SECRET}@bucket/x",
        f"https://host/x.png?X-Amz-Signature={SECRET}&X-Amz-Expires=60",
        f"https://host/x.png?a=1&X-Amz-Credential={SECRET}%2Feu&X-Amz-Security-Token={SECRET}",
        f"https://host/x.png?sv=2022&sig={SECRET}%3D&se=2030",
        f"https://host/x?Expires=1&Signature={SECRET}~&Key-Pair-Id=K1",
        f"https://host/x?access_token={SECRET}#bytes=0-9",
        f"https://host/x?token={SECRET}",
        f"https://host/x?AWSAccessKeyId={SECRET}&api_key={SECRET}",
        f"https://host/#access_token={SECRET}",
    ],
)
def test_a_url_loses_its_secrets_and_keeps_the_rest(url: str) -> None:
    assert has_url_secrets(url)
    for clean in (without_secrets(f"cannot read {url}: gone"), without_url_secrets(f"cannot read {url}: gone")):
        assert SECRET not in clean
        assert "***" in clean
        assert "host" in clean or "bucket" in clean
        assert clean.endswith(": gone")
    assert without_url_secrets(without_url_secrets(url)) == without_url_secrets(url)


@pytest.mark.parametrize(
    "text",
    [
        "s3://bucket/folder/x@2x.png",
        "https://host:8080/a@b.png",
        "https://host/x.jpg?width=100&tokens=5&design=2",
        "mail me@host.org",
        "/data/x.png#bytes=512-9000",
        "x.parquet#row=7&column=image",
        "eos_token=</s>, image_token='<image>', num_tokens=5, max_num_batched_tokens: 9",
        "the password on the sign: swordfish",
    ],
)
def test_other_text_stays(text: str) -> None:
    assert without_secrets(text) == text
    assert not has_url_secrets(text)


@pytest.mark.parametrize(
    "text",
    [
        f"hf_token={SECRET}",
        f"teacher.engine.engine_args.hf_token = '{SECRET}': is no text.",
        f"{{'hf_token': '{SECRET}', 'seed': 1}}",
        f"{{'hf_token': '{SECRET}",
        f'"aws_secret_access_key": "{SECRET} {SECRET}"',
        f"AsyncEngineArgs(model='x', hf_token='{SECRET}', seed=0)",
        f"Authorization: Bearer {SECRET}",
        f"align --config x --teacher.engine.engine_args.hf_token {SECRET} --source.limit 1",
        f"a token hf_{SECRET}{SECRET}",
        f"password=b'{SECRET}'",
    ],
)
def test_a_named_secret_is_removed(text: str) -> None:
    clean = without_secrets(text)
    assert SECRET not in clean
    assert "***" in clean
    assert without_secrets(clean) == clean


def test_secrets_of_the_environment_are_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("HF_TOKEN", "short")
    monkeypatch.setenv("PWD", "/some/folder")
    assert without_secrets(f"signed with {SECRET}, short, in /some/folder") == "signed with ***, short, in /some/folder"


def test_a_tree_loses_its_secrets() -> None:
    tree = {
        "hf_token": SECRET,
        "seed": 1,
        "nested": [{"kv": {"secret_key": SECRET, "credentials": {"user": SECRET, "port": 1}}}],
        "url": f"https://me:{SECRET}@host",
        "tokens": 7,
        "api_key": None,
    }
    assert without_secret_values(tree) == {
        "hf_token": "***",
        "seed": 1,
        "nested": [{"kv": {"secret_key": "***", "credentials": {"user": "***", "port": "***"}}}],
        "url": "https://***@host",
        "tokens": 7,
        "api_key": None,
    }


QUOTED = 'see "https://host/x?sig=abcdefgh" or \'ftp://me:word@host\' \\"'


def test_metadata_with_a_quoted_signature_is_still_json() -> None:
    """In earlier versions, the backslash that escapes the quotation mark counted as a part of the signature."""
    metadata = json.loads(
        metadata_json({"caption": QUOTED, 'https://host/?token=abcdefgh"': [{"x": QUOTED}, 1, None]}) or ""
    )
    hidden = QUOTED.replace("abcdefgh", "***").replace("me:word", "***")
    assert metadata == {"caption": hidden, 'https://host/?token=***"': [{"x": hidden}, 1, None]}


def test_json_files_of_a_run_with_a_quoted_signature_are_json(tmp_path: Path) -> None:
    run = Run.open(str(tmp_path))
    run.write_json("x.json", {"a": (QUOTED, {QUOTED: 1.5})})
    hidden = QUOTED.replace("abcdefgh", "***").replace("me:word", "***")
    assert run.read_json("x.json") == {"a": [hidden, {hidden: 1.5}]}
