"""Progress on a terminal and in a pipe: one updating line that nothing garbles, or plain lines; rates and estimates."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from mpa_ray.observability.progress import STABLE_COUNTS, STABLE_S, Progress, clock
from mpa_ray.observability.rate import format_rate, per_second
from mpa_ray.observability.status_line import fit

ROOT = Path(__file__).parents[2]

PHASES = """
    import logging, sys, threading, time, warnings
    from mpa_ray.observability.progress import Progress, say, say_error

    def phase(label, counts):
        with Progress(label, sum(counts), "images", every_s=0.05) as progress:
            for count in counts:
                time.sleep(0.15)
                progress.advance(count, 20.0)

    stderr = logging._StderrHandler()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s", handlers=[stderr])
    threads = [threading.Thread(target=phase, args=(label, [8] * 12)) for label in ("annotate", "identify small")]
    for thread in threads:
        thread.start()
        time.sleep(0.1)
    time.sleep(0.3)
    say("a line of ours")
    print("a printed", end=" ")
    time.sleep(0.2)
    print("line")
    logging.getLogger("other").warning("a record")
    warnings.warn("a warning", stacklevel=1)
    say_error("an error of ours")
    for thread in threads:
        thread.join()
    print("end")
"""
COUNTED = re.compile(r"annotate: \d+/96 images \(\d+%\), 20\.0 images/s")


def on_terminal(code: str, **environment: str) -> str:
    """What a Python program writes to a terminal of 80 columns."""
    parent, child = pty.openpty()
    settings = {**os.environ, "TERM": "xterm", "COLUMNS": "80", "PYTHONPATH": str(ROOT), **environment}
    settings = {name: value for name, value in settings.items() if value}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    with subprocess.Popen(command, stdin=child, stdout=child, stderr=child, env=settings) as program:
        os.close(child)
        written = b"".join(_chunks(parent))
    os.close(parent)
    assert program.returncode == 0, written.decode()
    return written.decode()


def _chunks(descriptor: int) -> Iterator[bytes]:
    while True:
        try:
            chunk = os.read(descriptor, 65536)
        except OSError:
            # Linux reports the end of a terminal as an error.
            return
        if not chunk:
            return
        yield chunk


def screen(written: str) -> list[str]:
    """The rows that a terminal shows in the end."""
    rows, column = [""], 0
    for part in re.findall(r"\x1b\[K|\r|\n|[^\x1b\r\n]+", written):
        if part == "\x1b[K":
            rows[-1] = rows[-1][:column]
        elif part == "\r":
            column = 0
        elif part == "\n":
            rows.append("")
        else:
            rows[-1] = rows[-1][:column] + part + rows[-1][column + len(part) :]
            column += len(part)
    return rows


def test_phases_share_one_line_and_other_output_goes_above_it() -> None:
    written = on_terminal(PHASES, NO_COLOR="")
    rows = [row for row in screen(written) if row]
    assert [row for row in rows if "done" not in row and "UserWarning" not in row] == [
        "a line of ours",
        "a printed line",
        "WARNING: a record",
        "an error of ours",
        "end",
    ]
    assert sorted(re.sub(r" in .*", "", row) for row in rows if "done" in row) == [
        "annotate: done, 96 images",
        "identify small: done, 96 images",
    ]
    assert [row for row in rows if "UserWarning" in row] == ["<string>:23: UserWarning: a warning"]
    assert re.search(r"annotate: \d+%  \|  identify small: \d+%", written)
    assert all(len(text) < 80 for text in re.findall(r"\x1b\[K([^\x1b\r\n]*)", written))


@pytest.mark.parametrize("environment", [{"TERM": "dumb"}, {"NO_COLOR": "1"}, {"RAY_LOG_TO_DRIVER": "1"}])
def test_a_terminal_without_updates_has_plain_lines(environment: dict[str, str]) -> None:
    written = on_terminal(PHASES, **environment)
    assert "\x1b" not in written
    assert "\r\n" in written
    assert "\r" not in written.replace("\r\n", "")
    assert "annotate: 96 images" in written.splitlines()
    assert any(COUNTED.fullmatch(line) for line in written.splitlines())


def test_a_pipe_has_plain_lines() -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PHASES)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    lines = done.stdout.splitlines()
    assert "\x1b" not in done.stdout + done.stderr
    assert {"annotate: 96 images", "identify small: 96 images"} <= set(lines)
    assert any(COUNTED.fullmatch(line) for line in lines)
    assert "an error of ours" in done.stderr.splitlines()


def test_an_interrupted_command_leaves_no_line_behind() -> None:
    code = """
        import sys, threading, time
        from mpa_ray.cli.run_job import run_job
        from mpa_ray.observability.progress import Progress

        def forever():
            with Progress("annotate", 10, "images"):
                time.sleep(600)

        def main():
            threading.Thread(target=forever, daemon=True).start()
            time.sleep(1)
            raise KeyboardInterrupt

        assert run_job(main) == 130
    """
    written = on_terminal(code, NO_COLOR="")
    assert "annotate: starting" in written
    assert screen(written) == ["Interrupted: run the same command again to continue.", ""]


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_remaining_time_is_estimated_once_the_rate_is_stable() -> None:
    at = Clock()
    progress = Progress("annotate", 1000, "images", clock=at)
    at.now += 30
    assert progress.line() == "annotate: starting, 0:30 so far"
    progress.advance(10, 10.0)
    at.now += STABLE_S
    for _ in range(STABLE_COUNTS - 2):
        progress.advance(10, 10.0)
    assert progress.line() == f"annotate: {10 * (STABLE_COUNTS - 1)}/1000 images (3%), 10.0 images/s"
    progress.advance(10, 10.0)
    assert progress.line() == "annotate: 40/1000 images (4%), 10.0 images/s, 1:36 left"


def test_fast_counts_are_no_stable_rate() -> None:
    at = Clock()
    progress = Progress("annotate", 1000, "images", clock=at)
    for _ in range(10):
        at.now += 1
        progress.advance(10, 10.0)
    assert "left" not in progress.line()


def test_without_a_measured_rate_the_estimate_is_from_the_time_since_the_start() -> None:
    at = Clock()
    progress = Progress("audit", 100, "shards", done=20, clock=at)
    for _ in range(STABLE_COUNTS):
        at.now += STABLE_S / 2
        progress.advance(5)
    assert progress.line() == "audit: 40/100 shards (40%), 1:30 left"


class Part:
    def __init__(self, line: str, short: str) -> None:
        self._line, self._short = line, short

    def line(self) -> str:
        return self._line

    def short_line(self) -> str:
        return self._short


def test_a_row_is_shortened_until_it_fits() -> None:
    parts = [Part(f"phase {number}: 10/20 images", f"phase {number}: 50%") for number in range(4)]
    assert fit(parts[:2], 60) == "phase 0: 10/20 images  |  phase 1: 10/20 images"
    assert fit(parts[:2], 40) == "phase 0: 50%  |  phase 1: 50%"
    assert fit(parts, 45) == "phase 0: 50%  |  phase 1: 50% and 2 more"
    assert fit(parts, 5) == "phase"
    assert fit([], 5) == ""


def test_rates_are_written_with_the_digits_that_matter() -> None:
    assert [format_rate(rate) for rate in (14783.2, 139.7, 7.41, 0.0312)] == ["14,783", "140", "7.4", "0.031"]
    assert (per_second(10, 4.0), per_second(0, 0.0)) == (2.5, None)


def test_times_have_hours_where_there_are_hours() -> None:
    assert [clock(seconds) for seconds in (5.9, 125, 3600, 45296)] == ["0:05", "2:05", "1:00:00", "12:34:56"]


def test_a_limit_is_not_printed_as_the_count(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("index", 500, "images", says_end=False, is_limit=True):
        pass
    assert capsys.readouterr().out == "index: at most 500 images\n"


def test_a_repeated_line_has_the_time(capsys: pytest.CaptureFixture[str]) -> None:
    """In earlier versions, the line `3/3 steps (100%)` was printed again and again while a student was exported."""
    at = Clock()
    with Progress("level", 3, "steps", every_s=0.001, says_end=False, clock=at) as progress:
        progress.advance(3)
        lines: list[str] = []
        while len(lines) < 4:
            at.now += 1
            lines += capsys.readouterr().out.splitlines()
    lines = lines[lines.index("level: 3/3 steps (100%)") :]
    assert all(re.fullmatch(r"level: 3/3 steps \(100%\), \d+:\d\d so far", line) for line in lines[1:])
