"""Why a process died, from its log and its exit code."""

from __future__ import annotations

import pytest

from mpa_ray.observability.last_words import exit_in_words, in_words, last_error, last_lines

OUT_OF_MEMORY = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."
FROM_VLLM = f"""\
(EngineCore pid=7) INFO 11-27 22:40:50 [core.py:110] Initializing a V1 LLM engine
(EngineCore pid=7) ERROR 11-27 22:40:51 [core.py:1131] EngineCore failed to start.
(EngineCore pid=7) ERROR 11-27 22:40:51 [core.py:1131] Traceback (most recent call last):
(EngineCore pid=7) ERROR 11-27 22:40:51 [core.py:1131]   File "core.py", line 1122, in run_engine_core
(EngineCore pid=7) ERROR 11-27 22:40:51 [core.py:1131]     raise x
(EngineCore pid=7) ERROR 11-27 22:40:51 [core.py:1131] {OUT_OF_MEMORY}
(EngineCore pid=7) Process EngineCore:
Traceback (most recent call last):
  File "actor.py", line 1, in <module>
RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {{'EngineCore': 1}}
"""


@pytest.mark.parametrize(
    ("log", "error"),
    [
        (FROM_VLLM, OUT_OF_MEMORY),
        ("INFO started\nINFO: 3 requests\n", None),
        ("Traceback (most recent call last):\n  File\nMyOwnProblem: no\nrest\n", "MyOwnProblem: no"),
        (
            "Traceback (most recent call last):\n  File\nValidationError: 1 error\n  max_model_len is 7\n"
            "    For further information visit https://x\nINFO after\n",
            "ValidationError: 1 error max_model_len is 7",
        ),
        ("terminate called after throwing an instance of 'std::bad_alloc'\n", "terminate called after throwing"),
        ("\x1b[31mOSError: [Errno 28] No space left on device\x1b[0m\n", "OSError: [Errno 28] No space left on device"),
        ("Fatal Python error: Segmentation fault\n\nThread 0x1\n", "Fatal Python error: Segmentation fault"),
        ("ValueError: old\n" + "INFO fine\n" * 200, None),
        ("ValueError: " + "x" * 5000, "ValueError: xxx"),
    ],
)
def test_the_error_at_the_end_of_a_log_is_found(log: str, error: str | None) -> None:
    last = last_error(log)
    assert last == error or (error is not None and last is not None and last.startswith(error) and len(last) < 1010)


def test_last_lines_leave_out_what_ray_and_vllm_add() -> None:
    log = ":job_id:01\n\n(EngineCore pid=7) INFO 11-27 22:40:50 [core.py:110] loading\nready\n"
    assert last_lines(log, 9) == ["loading", "ready"]
    assert last_lines("a\n" * 50 + "b\n", 2) == ["a", "b"]


def test_an_error_from_another_process_keeps_its_words() -> None:
    class RayTaskError(Exception):
        cause = ValueError("bad rows")

    assert in_words(RayTaskError("a page of text")) == "ValueError: bad rows"
    assert (
        in_words(RuntimeError(f"remote\nTraceback (most recent call last):\n  File\n{OUT_OF_MEMORY}\n"))
        == OUT_OF_MEMORY
    )
    in_ray_data = RuntimeError(
        "ray::FlatMap(...)() (pid=1)\nKeyError: 'no such row'\n\n"
        "The above exception was the direct cause of the following exception:\n\n"
        'ray::FlatMap(...)() (pid=1, ip=1)\n  File "map.py"\n'
        "ray.data.exceptions.UserCodeException: UDF failed to process a data block."
    )
    assert in_words(in_ray_data) == "KeyError: 'no such row'"
    assert in_words(MemoryError()) == "MemoryError"


@pytest.mark.parametrize(
    ("code", "words"), [(-9, "was killed by SIGKILL"), (-11, "was killed by SIGSEGV"), (3, "ended with exit code 3")]
)
def test_exit_codes_are_named(code: int, words: str) -> None:
    assert exit_in_words(code) == words
