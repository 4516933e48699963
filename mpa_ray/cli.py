"""What the jobs share: `--config FILE --dotted.override value`, help from the configuration tree, and exit codes."""

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


def configured(description: str | None, arguments: list[str] | None = None) -> RunConfig:
    """The configuration that the command line names.

    Raises:
        ConfigError: it is wrong, or an override has no value.
    """
    options, overrides = parsed(description, arguments=arguments)
    return load_config(options.config, overrides)


def parsed(
    description: str | None, *flags: tuple[str, str], arguments: list[str] | None = None
) -> tuple[argparse.Namespace, dict[str, str]]:
    """The options `config` and whatever flags there are, each with its help, and the dotted overrides.

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
    for flag, told in flags:
        parser.add_argument(flag, action="store_true", help=told)
    options, rest = parser.parse_known_args(arguments)
    return options, dict(_pairs(rest))


def of_a_run(
    parser: argparse.ArgumentParser, arguments: list[str] | None = None
) -> tuple[argparse.Namespace, ObjectStoreConfig]:
    """The options of a job that looks at a run directory, and how that is reached where it is at s3://.

    Raises:
        ConfigError: an option is unknown, or a setting of the object store is wrong.
    """
    parser.add_argument("run_dir", metavar="RUN", help="a run directory, local or at s3://")
    parser.epilog = "--object_store.NAME VALUE sets how s3:// is reached:\n" + "\n".join(
        _lines(ObjectStoreConfig, "object_store.")
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.allow_abbrev = False
    options, rest = parser.parse_known_args(arguments)
    return options, load_object_store(dict(_pairs(rest)))


def exit_code(main: Callable[[], int | None]) -> int:
    """Run a job: 0 when it is done, 2 for a mistake in its set-up, 1 where it could not go on.

    It ends on SIGTERM, which `ray job stop` and schedulers send, as on Ctrl-C.
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
        # Files of the run that could be read or written when it began.
        print(f"RunError: {type(error).__name__}: {error}. The same command continues.", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        # Threads that are left lose their Ray now: what they would say of it helps nobody.
        threading.excepthook = lambda _: None
        logging.disable()
        print("Interrupted: the same command continues.", file=sys.stderr)
        return INTERRUPTED


def _interrupt(*_: object) -> NoReturn:
    """As Ctrl-C; Ray sends the signal to each process of a job, and again to those below it."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


def _pairs(words: list[str]) -> Iterator[tuple[str, str]]:
    queue = iter(words)
    for word in queue:
        if not word.startswith("--"):
            raise ConfigError("command line", word, "is not an override.", "Write --dotted.name value.")
        name, equals, value = word.removeprefix("--").partition("=")
        given = value if equals else next(queue, None)
        if given is None:
            raise ConfigError(f"--{name}", None, "has no value.", "Write --dotted.name value.")
        yield name, given


def settings_help() -> str:
    """Every setting with its default and its sentence."""
    return "settings (override any with --dotted.name value):\n" + "\n".join(_lines(RunConfig, ""))


def _lines(model: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        branches = list(_models(field.annotation))
        dotted = f"{prefix}{name}" + (".0" if get_origin(field.annotation) is list else "")
        default = "required" if field.is_required() else "" if branches else f"default {field.default!r}"
        told = " ".join((field.description or "").split())
        yield f"  --{dotted:<44} {told}{f' ({default})' if default else ''}".rstrip()
        for branch in branches:
            yield from _lines(branch, f"{dotted}.")


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) in (Union, types.UnionType, list) or hasattr(annotation, "__metadata__"):
        for inner in get_args(annotation):
            yield from _models(inner)
