"""A base's settings for generation: what an export carries over of them, held against transformers' own rules."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import GenerationConfig

from mpa_ray.models.generation_settings import GenerationSettings, repaired_folder

PAD = 7
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    # settings of a base, and those of them that are changed: None if they are left out
    "temperature without sampling": ({"temperature": 0.9, "max_length": 4096}, {"temperature": None}),
    "top_p without sampling": ({"top_p": 0.6, "do_sample": False}, {"top_p": None}),
    "top_k without sampling": ({"top_k": 1, "repetition_penalty": 1.05}, {"top_k": None}),
    "min_p without sampling": ({"min_p": 0.05}, {"min_p": None}),
    "typical_p without sampling": ({"typical_p": 0.9}, {"typical_p": None}),
    "cutoffs without sampling": ({"epsilon_cutoff": 3e-4}, {"epsilon_cutoff": None}),
    "early stopping of one beam": ({"num_beams": 1, "early_stopping": True}, {"early_stopping": None}),
    "length penalty of one beam": ({"length_penalty": 0.8}, {"length_penalty": None}),
    "several greedy replies": ({"num_return_sequences": 3}, {"num_return_sequences": None}),
    "more replies than beams": ({"num_beams": 2, "num_return_sequences": 3}, {"num_return_sequences": None}),
    "negative pad token": ({"pad_token_id": -1, "eos_token_id": [2, 3]}, {"pad_token_id": PAD}),
    "scores without a dictionary": ({"output_scores": True}, {"output_scores": None}),
    "a cache that is not used": (
        {"use_cache": False, "cache_implementation": "static"},
        {"cache_implementation": None},
    ),
    "an unknown kind of cache": ({"cache_implementation": "warm"}, {"cache_implementation": None}),
    "an unknown way to stop": ({"num_beams": 4, "early_stopping": "soon"}, {"early_stopping": None}),
    "no new tokens": ({"max_new_tokens": 0}, {"max_new_tokens": None}),
    "a forced token that is suppressed": (
        {"forced_eos_token_id": 2, "suppress_tokens": [2]},
        {"suppress_tokens": None},
    ),
    "an argument of generate": ({"stopping_criteria": []}, {"stopping_criteria": None}),
    "Qwen2-VL-7B": (
        {"bos_token_id": 1, "pad_token_id": 1, "do_sample": True, "eos_token_id": [3, 1], "top_k": 1, "top_p": 0.001},
        {},
    ),
    "beams": ({"num_beams": 4, "early_stopping": True, "length_penalty": 0.8, "num_return_sequences": 2}, {}),
    "penalties": ({"repetition_penalty": 1.05, "no_repeat_ngram_size": 3}, {}),
    "a setting of another library": ({"chat_format": "chatml", "transformers_version": "4.37.0"}, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_valid_settings_are_carried_over_and_others_repaired(case: str, tmp_path: Path) -> None:
    inherited, changes = CASES[case]
    settings = GenerationSettings.carried_over(inherited, PAD)
    # Raises an error for settings that transformers refuses.
    settings.config.save_pretrained(tmp_path)
    default = GenerationConfig()
    for name, value in ({**inherited, "transformers_version": None} | changes).items():
        expected = getattr(default, name, None) if value is None else value
        assert getattr(settings.config, name, None) == expected, name
    assert [line.split()[0] for line in settings.repairs] == [*changes]
    assert all(len(line.splitlines()) == 1 and ": " in line for line in settings.repairs)
    # A second export changes nothing more.
    again = GenerationSettings.of_checkpoint(str(tmp_path))
    assert again is not None
    assert not again.repairs
    assert again.config.to_dict() == settings.config.to_dict()


def test_a_line_says_what_is_changed_and_why() -> None:
    settings = GenerationSettings.carried_over({"temperature": 0.9, "pad_token_id": -1}, PAD)
    pad, temperature = settings.repairs
    assert pad.startswith("pad_token_id -1 is now 7: `pad_token_id` should be positive")
    assert temperature.startswith("temperature 0.9 is left out: `do_sample` is not set to `True`")
    (line,) = GenerationSettings.carried_over({"pad_token_id": -1}).repairs
    assert line.startswith("pad_token_id -1 is left out: ")


def test_an_engine_gets_settings_that_it_can_read(tmp_path: Path) -> None:
    file = tmp_path / "generation_config.json"
    file.write_text(json.dumps({"num_return_sequences": 3, "eos_token_id": [2, 106]}))
    with pytest.raises(ValueError, match="num_return_sequences"):
        GenerationConfig.from_pretrained(tmp_path)
    folder = repaired_folder(str(tmp_path))
    assert folder is not None
    with folder as name:
        assert GenerationConfig.from_pretrained(name).eos_token_id == [2, 106]
    file.write_text(json.dumps({"do_sample": True, "temperature": 0.7}))
    assert repaired_folder(str(tmp_path)) is None
    file.unlink()
    assert repaired_folder(str(tmp_path)) is None


@pytest.mark.parametrize("content", [None, "", "[1]", "{", '"greedy"'])
def test_a_checkpoint_without_settings_has_none(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "generation_config.json").write_text(content)
    assert GenerationSettings.of_checkpoint(str(tmp_path)) is None
