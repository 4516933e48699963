"""Find the command that the first word names, and run it or print its help."""

from __future__ import annotations

from importlib import import_module

from mpa_ray.cli.arguments import parse
from mpa_ray.cli.commands import COMMANDS, EVERYWHERE, Command
from mpa_ray.cli.run_job import run_job
from mpa_ray.errors import ConfigError, did_you_mean

_HELP = ("-h", "--help", "help")


def run_command(words: list[str]) -> int:
    """Run a command line without its first word, `mpa-ray`, and return the exit code."""
    return run_job(lambda: _run(words))


def _run(words: list[str]) -> int | None:
    if "--version" in words:
        from mpa_ray import __version__

        print(f"mpa-ray {__version__}")
        return 0
    if words[:1] == ["help"] and words[1:] and words[1] not in _HELP:
        return _run([*words[1:], "--help"])
    if not words or words[0] in _HELP:
        from mpa_ray.cli.help import general_help

        print(general_help())
        return 0
    if words[0] == "--help-all":
        from mpa_ray.cli.help import general_help_all

        print(general_help_all())
        return 0
    command, rest = _command_of(words[0], words), words[1:]
    if any(word in _HELP[:2] for word in rest):
        from mpa_ray.cli.help import command_help

        print(command_help(command))
        return 0
    if "--help-all" in rest:
        from mpa_ray.cli.help import command_help_all

        print(command_help_all(command))
        return 0
    arguments = parse(command, rest)
    handler = import_module("mpa_ray.cli.handlers").HANDLERS[command.name]
    code: int | None = handler(arguments)
    return code


def _command_of(name: str, words: list[str]) -> Command:
    if name in COMMANDS:
        return COMMANDS[name]
    options = [f"--{option.name}" for option in EVERYWHERE]
    if name.startswith("-"):
        command = next((word for word in words if word in COMMANDS), None)
        letter = name.removeprefix("-").lower()
        short = next((f"Did you mean {option}?" for option in options if option[2:3] == letter), "")
        remedy = short or did_you_mean(name, options)
        if command is not None:
            others = " ".join(word for word in words if word != command)
            remedy = f"Write mpa-ray {command} {others}."
        raise ConfigError(
            "mpa-ray", name, "is not a command.", remedy or "The command comes first: see mpa-ray --help."
        )
    remedy = did_you_mean(name, [*COMMANDS, *options]) or f"Choose one of {', '.join(COMMANDS)}."
    raise ConfigError("mpa-ray", name, "is not a command.", remedy)
