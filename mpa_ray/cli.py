"""The command line of the jobs: `--config FILE --dotted.override value`, help on all settings, and exit codes."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
import types
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, Union, get_args, get_origin

from pydantic import BaseModel

from mpa_ray.config import ObjectStoreConfig, RunConfig, load_config, load_object_store
from mpa_ray.errors import ConfigError, RunError

WRONG_SETUP, FAILED, INTERRUPTED = 2, 1, 130


def load_from_arguments(description: str | None, arguments: list[str] | None = None) -> RunConfig:
    """Load the configuration that the command line names.

    Args:
        description: Begins the help.
        arguments: The command line; by default that of this process.

    Raises:
        ConfigError: a setting is wrong, or an override has no value.
    """
    options, overrides = parse_options(description, arguments=arguments)
    return load_config(options.config, overrides)


def parse_options(
    description: str | None, *flags: tuple[str, str], arguments: list[str] | None = None
) -> tuple[argparse.Namespace, dict[str, str]]:
    """Parse the command line of a job that has a configuration.

    Args:
        description: Begins the help.
        flags: The job's own flags, such as `--score-only`, each with its help.
        arguments: The command line; by default that of this process.

    Returns:
        The options `config` and the flags, and the overrides by their dotted names.

    Raises:
        ConfigError: an override has no value.
    """
    parser = argparse.ArgumentParser(
        description=description,
        epilog=settings_help(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", required=True, metavar="FILE", help="a YAML file with the settings below")
    for flag, flag_help in flags:
        parser.add_argument(flag, action="store_true", help=flag_help)
    options, words = parser.parse_known_args(arguments)
    return options, dict(_parse_overrides(words))


def parse_run_options(
    parser: argparse.ArgumentParser, arguments: list[str] | None = None
) -> tuple[argparse.Namespace, ObjectStoreConfig]:
    """Parse the command line of a job that reads a run directory.

    Args:
        parser: Has the job's own options; the run directory and the help are added to it.
        arguments: The command line; by default that of this process.

    Returns:
        The options, and how a run at s3:// is reached.

    Raises:
        ConfigError: an option is unknown, or a setting of the object store is wrong.
    """
    parser.add_argument("run_dir", metavar="RUN", help="a run directory, local or at s3://")
    parser.epilog = "--object_store.NAME VALUE sets how s3:// is reached:\n" + "\n".join(
        _help_lines(ObjectStoreConfig, "object_store.")
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.allow_abbrev = False
    options, words = parser.parse_known_args(arguments)
    return options, load_object_store(dict(_parse_overrides(words)))


def run_job(main: Callable[[], int | None]) -> int:
    """Run a job and return its exit code: 0 when it is done, 2 for a wrong setting, 1 if it failed, 130 if interrupted.

    SIGTERM, which `ray job stop` and schedulers send, interrupts it like Ctrl-C.
    """
    if "RAY_LOGGING_CONFIG_ENCODING" not in os.environ:
        logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        return main() or 0
    except ConfigError as error:
        print(f"ConfigError: {error}", file=sys.stderr)
        return WRONG_SETUP
    except RunError as error:
        print(f"RunError: {error}", file=sys.stderr)
        return FAILED
    except OSError as error:
        # A file of the run that could be read or written at the start.
        print(f"RunError: {type(error).__name__}: {error}. The same command continues.", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        # Other threads now lose their connection to Ray; their errors would only confuse.
        threading.excepthook = lambda _: None
        logging.disable()
        print("Interrupted: the same command continues.", file=sys.stderr)
        return INTERRUPTED


def _interrupt(*_: object) -> NoReturn:
    """Interrupt like Ctrl-C, once: Ray sends the signal to each process of a job, and again to its children."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


def _parse_overrides(words: list[str]) -> Iterator[tuple[str, str]]:
    """Read `--dotted.name value` and `--dotted.name=value`."""
    queue = iter(words)
    for word in queue:
        if not word.startswith("--"):
            raise ConfigError("command line", word, "is not an override.", "Write --dotted.name value.")
        name, equals, value = word.removeprefix("--").partition("=")
        override = value if equals else next(queue, None)
        if override is None:
            raise ConfigError(f"--{name}", None, "has no value.", "Write --dotted.name value.")
        yield name, override


def settings_help() -> str:
    """Every setting with its default and its description."""
    return "settings (override any with --dotted.name value):\n" + "\n".join(_help_lines(RunConfig, ""))


def _help_lines(model: type[BaseModel], prefix: str) -> Iterator[str]:
    """A line for each setting of a branch, and for those of the branches below it."""
    for name, field in model.model_fields.items():
        branches = list(_branches(field.annotation))
        dotted = f"{prefix}{name}" + (".0" if get_origin(field.annotation) is list else "")
        default = "required" if field.is_required() else "" if branches else f"default {field.default!r}"
        description = " ".join((field.description or "").split())
        yield f"  --{dotted:<44} {description}{f' ({default})' if default else ''}".rstrip()
        for branch in branches:
            yield from _help_lines(branch, f"{dotted}.")


def _branches(annotation: Any) -> Iterator[type[BaseModel]]:
    """The branches of the configuration tree that a setting may hold."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) in (Union, types.UnionType, list) or hasattr(annotation, "__metadata__"):
        for inner in get_args(annotation):
            yield from _branches(inner)
