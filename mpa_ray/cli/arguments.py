"""Parse the words after a command: `RUN --flag --option VALUE --dotted.setting VALUE`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mpa_ray.cli.commands import EVERYWHERE, Command
from mpa_ray.errors import ConfigError, did_you_mean

_LARGEST_NUMBER = 10**9


@dataclass(frozen=True)
class Arguments:
    """A parsed command line."""

    argument: str | None = None
    """The positional argument, such as a run directory."""
    options: Mapping[str, str] = field(default_factory=dict)
    """The values of the command's own options, by name without dashes. An option that takes no value has an empty
    string."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """The values of settings, by their dotted names."""

    def has(self, option: str) -> bool:
        """Whether an option is given."""
        return option in self.options

    def number(self, option: str, default: float) -> float:
        """The value of an option as a number. Raises ConfigError if it is not a number or is negative."""
        text = self.options.get(option)
        try:
            value = float(default if text is None else text)
        except ValueError:
            value = -1.0
        if not 0 <= value <= _LARGEST_NUMBER:
            raise ConfigError(
                f"--{option}", text, f"is not a number from 0 to {_LARGEST_NUMBER:,}.", "Give such a number."
            )
        return value

    def whole_number(self, option: str, default: int) -> int:
        """The value of an option as a whole number. Raises ConfigError if it is not a whole number or is negative."""
        value = self.number(option, default)
        if not value.is_integer():
            raise ConfigError(f"--{option}", self.options[option], "is not a whole number.", "Give a whole number.")
        return int(value)

    def required(self, option: str, remedy: str) -> str:
        """The value of an option. Raises ConfigError with this remedy if it is not given."""
        if option not in self.options:
            raise ConfigError(f"--{option}", None, "is required.", remedy)
        return self.options[option]


def parse(command: Command, words: list[str]) -> Arguments:
    """Parse the words after a command.

    Raises:
        ConfigError: a word is unknown, or an option has no value. The error suggests what the user may have meant.
    """
    argument: str | None = None
    options: dict[str, str] = {}
    settings: dict[str, str] = {}
    queue = list(words)
    while queue:
        word = queue.pop(0)
        if not word.startswith("--"):
            if argument is not None or not command.argument or word.startswith("-"):
                raise _unexpected(command, word)
            argument = word
            continue
        name, equals, value = word.removeprefix("--").partition("=")
        option = command.option(name)
        if option is not None and not option.metavar:
            if equals:
                raise ConfigError(f"--{name}", value, "takes no value.", f"Write --{name} alone.")
            options[name] = ""
            continue
        if option is None:
            _check_is_setting(command, name)
        if not equals:
            value = _value_of(command, name, queue)
        (settings if option is None else options)[name] = value
    return Arguments(argument, options, settings)


def _value_of(command: Command, name: str, queue: list[str]) -> str:
    if not queue or queue[0].startswith("--"):
        is_known = command.option(name) is not None or "." in name or name in _top_level_settings()
        if not is_known:
            raise ConfigError(f"--{name}", None, f"is not an option of mpa-ray {command.name}.", _help(command))
        raise ConfigError(f"--{name}", None, "has no value.", f"Write --{name} VALUE.")
    return queue.pop(0)


def _check_is_setting(command: Command, name: str) -> None:
    """Raise ConfigError for a name that cannot be a setting of this command.

    If the command accepts no settings, no name can be a setting. Otherwise, a name without a dot that is similar to an
    option cannot be one. All other names are checked later, when the configuration is read.
    """
    own = [option.name for option in (*command.options, *EVERYWHERE)]
    suggestion = did_you_mean(f"--{name}", [f"--{option}" for option in own])
    if command.accepts == "none":
        raise ConfigError(
            f"--{name}", None, f"is not an option of mpa-ray {command.name}.", suggestion or _help(command)
        )
    is_setting = command.accepts == "all" and name in _top_level_settings()
    if suggestion and "." not in name and not is_setting:
        raise ConfigError(f"--{name}", None, f"is not an option of mpa-ray {command.name}.", suggestion)


def _top_level_settings() -> set[str]:
    from mpa_ray.config import RunConfig

    return set(RunConfig.model_fields)


def _unexpected(command: Command, word: str) -> ConfigError:
    """An error for a word that is not an option, a value or a positional argument."""
    problem = "is not an option."
    name, equals, value = word.partition("=")
    if command.option("config") is not None and Path(word).suffix in (".yaml", ".yml"):
        remedy = f"Did you mean --config {word}?"
    elif equals and command.accepts != "none":
        remedy = f"Did you mean --{name.lstrip('-')} {value}?"
    elif word.startswith("-") and (option := _abbreviated(command, word.lstrip("-"))) is not None:
        remedy = f"Did you mean --{option}?"
    elif word.startswith("-") and "." in word and command.accepts != "none":
        remedy = f"Did you mean -{word}?"
    else:
        remedy = _help(command)
    return ConfigError(f"mpa-ray {command.name}", word, problem, remedy)


def _abbreviated(command: Command, letters: str) -> str | None:
    names = [option.name for option in (*command.options, *EVERYWHERE)]
    return next((name for name in names if letters and name.startswith(letters)), None)


def _help(command: Command) -> str:
    return f"See mpa-ray {command.name} --help."
