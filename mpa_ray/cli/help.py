"""The help texts of the command line: short ones, and long ones with all settings and the exit codes.

The settings are imported only where they are shown, since importing pydantic takes a third of a second.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from mpa_ray.cli.commands import COMMANDS, EVERYWHERE, Command, Option
from mpa_ray.cli.layout import entry, wrapped
from mpa_ray.cli.run_job import EXIT_CODES


def general_help() -> str:
    """The help of `mpa-ray` itself: the commands and three examples."""
    lines = [
        "usage: mpa-ray COMMAND [options]",
        "",
        "Align small vision-language models (students) with a large one (the teacher), without labels.",
        "",
        "commands:",
        *(line for command in COMMANDS.values() for line in entry(command.name, command.summary, width=11)),
        "",
        "options:",
        *_options(EVERYWHERE),
        "",
        "examples:",
        "  mpa-ray init > my.yaml",
        "  mpa-ray align --config my.yaml",
        "  mpa-ray status runs/mine",
        "",
        "`mpa-ray COMMAND --help` shows the options of a command and its most used settings.",
    ]
    return "\n".join(lines)


def general_help_all() -> str:
    """The help of `mpa-ray` itself, all settings and the exit codes."""
    from mpa_ray.cli.settings_help import all_settings_help

    return "\n".join([general_help(), "", *all_settings_help(), "", EXIT_CODES])


def command_help(command: Command) -> str:
    """The help of a command: usage, options, its most used settings, and examples."""
    lines = _usage_and_options(command)
    if command.common_settings:
        from mpa_ray.cli.settings_help import common_settings_help

        where = "in FILE, or as options" if command.accepts == "all" else "as options"
        lines += [f"most used settings, {where}:", *common_settings_help(command.common_settings), ""]
    lines += _examples(command)
    lines += [f"`mpa-ray {command.name} --help-all` also shows the exit codes" + _and_all_settings(command)]
    return "\n".join(lines)


def command_help_all(command: Command) -> str:
    """The help of a command, with all settings that it accepts and the exit codes."""
    lines = [*_usage_and_options(command), *_examples(command)]
    if command.accepts != "none":
        from mpa_ray.cli.settings_help import all_settings_help

        branch = None if command.accepts == "all" else command.accepts
        lines += [*all_settings_help(branch), ""]
    return "\n".join([*lines, EXIT_CODES])


def _usage_and_options(command: Command) -> list[str]:
    lines = [f"usage: mpa-ray {command.name} {command.usage}", ""]
    lines += [*wrapped(f"{command.summary} {command.details}".strip()), ""]
    if command.argument == "RUN":
        lines += ["arguments:", *entry("RUN", "a run directory: a local path or an s3:// URI"), ""]
    return [*lines, "options:", *_options((*command.options, *EVERYWHERE)), ""]


def _options(options: Iterable[Option]) -> Iterator[str]:
    for option in options:
        yield from entry(f"--{option.name} {option.metavar}".rstrip(), option.description)


def _examples(command: Command) -> list[str]:
    return ["examples:", *(f"  {example}" for example in command.examples), ""]


def _and_all_settings(command: Command) -> str:
    return "." if command.accepts == "none" else " and all settings."
