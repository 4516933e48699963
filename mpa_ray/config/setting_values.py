"""Read YAML files and command lines as trees of settings. The type of a setting decides how its value is read.

Plain YAML would read `no` as a boolean, `12:30` as a number, and `my run #1` as `my run`, because ` #` begins a
comment.
"""

from __future__ import annotations

import os
import re
from collections.abc import Hashable, Iterator, Mapping
from datetime import date
from typing import Any, TypeAlias

import yaml
from pydantic import BaseModel

from mpa_ray.config.setting_path import SettingType
from mpa_ray.errors import ConfigError
from mpa_ray.textual import is_deep, is_storable

Tree: TypeAlias = dict[str, Any]

_NULL = re.compile(r"~|null|Null|NULL|")
_COMMENT = re.compile(r"[ \t]+#[^\n]*")
_MAX_VALUES = 100_000
_SCALARS = ("bool", "int", "float", "timestamp", "str", "value", "null")


class Word(str):
    """A value from the command line, or an unquoted value from a YAML file. The type of the setting decides how it is
    converted."""

    comment: str = ""
    """The comment after the value in the YAML file, from the spaces before `#` to the end of the line."""


class _Loader(yaml.SafeLoader):
    """Reads unquoted values as `Word`, and refuses a key that occurs twice in a mapping."""

    def construct_word(self, node: yaml.ScalarNode) -> object:
        if node.style is not None:
            return node.value
        if node.tag == "tag:yaml.org,2002:null" and node.value != "~":
            return None
        word = Word(node.value)
        text, end = node.end_mark.buffer, node.end_mark.pointer
        comment = _COMMENT.match(text, end) if text is not None else None
        if comment is not None:
            word.comment = comment[0].rstrip()
        return word

    def construct_document(self, node: yaml.Node) -> Any:
        if _num_values(node, {}) > _MAX_VALUES:
            raise yaml.YAMLError(f"its aliases expand to more than {_MAX_VALUES:,} values")
        return super().construct_document(node)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge" or not isinstance(key_node, yaml.ScalarNode):
                continue
            if key_node.value in seen:
                problem = f"the key {key_node.value!r} occurs twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)


def _num_values(node: yaml.Node, counted: dict[int, int]) -> int:
    """The number of values in a document. Each alias counts as all the values of the node that it stands for.

    Every level of aliases may multiply the number. A node that contains itself counts as more than `_MAX_VALUES`.
    """
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) not in counted:
        counted[id(node)] = _MAX_VALUES + 1
        is_list = isinstance(node, yaml.SequenceNode)
        children = node.value if is_list else [item for pair in node.value for item in pair]
        counted[id(node)] = 1 + sum(_num_values(child, counted) for child in children)
    return counted[id(node)]


for _name in _SCALARS:
    _Loader.add_constructor(f"tag:yaml.org,2002:{_name}", _Loader.construct_word)


def read_yaml(text: str) -> Any:
    """Read YAML, with a `Word` for each unquoted value.

    Raises:
        yaml.YAMLError: the text is not YAML, or it is nested too deeply.
    """
    try:
        tree = yaml.load(text, _Loader)
    except RecursionError:
        raise yaml.YAMLError("nested too deeply") from None
    if is_deep(tree):
        raise yaml.YAMLError("nested too deeply")
    return tree


def yaml_problem(error: Exception) -> str:
    """Describe an error of `read_yaml` in one line; PyYAML's own message has up to seven lines."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return " ".join(str(error).split())
    mark = error.problem_mark
    problem = "a tab where only spaces are allowed" if "'\\t'" in str(error.problem) else error.problem
    return f"line {mark.line + 1}, column {mark.column + 1}: {problem}"


def with_types(tree: Tree, kind: type[BaseModel]) -> Tree:
    """Convert each `Word` in a tree to the type of its setting.

    If the setting is text, the word stays text, except that `null` becomes None if the setting may be None. If the
    setting is not text, the word is read as YAML.

    Raises:
        ConfigError: a path was cut off at ` #`, which begins a comment, and only the whole path exists.
    """
    typed: Tree = _typed(tree, SettingType(kind), "")
    return typed


def _typed(value: Any, setting: SettingType, name: str) -> Any:
    prefix = f"{name}." if name else ""
    if isinstance(value, Mapping):
        return {str(key): _typed(item, setting.child(str(key)), f"{prefix}{key}") for key, item in value.items()}
    if isinstance(value, list):
        return [_typed(item, setting.child(index), f"{prefix}{index}") for index, item in enumerate(value)]
    if not isinstance(value, Word):
        return value
    if setting.is_text:
        _check_not_cut(value, name)
        return None if setting.may_be_none and _NULL.fullmatch(value) else str(value)
    tree = parsed(value)
    return _plain(value) if isinstance(tree, Word) else _typed(tree, setting, name)


def _check_not_cut(word: Word, name: str) -> None:
    """Raise ConfigError if the comment after a path is in fact the end of the path."""
    # Look only at the next folder or file, because the rest of the path may be a glob.
    first = f"{word}{word.comment.partition('/')[0]}"
    if word.comment and not os.path.exists(os.path.expanduser(word)) and os.path.exists(os.path.expanduser(first)):
        problem = f"does not exist, but {first!r} does: in YAML, ` #` begins a comment."
        raise ConfigError(name, str(word), problem, "Put the path in quotation marks.")


def parsed(word: Word) -> Any:
    """The mapping or list that a word contains; the word itself if it contains neither."""
    try:
        tree = read_yaml(word)
    except (yaml.YAMLError, ValueError):
        return word
    return tree if isinstance(tree, dict | list) else word


def unstorable_texts(tree: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield the dotted name and the text of every string in a tree that UTF-8 cannot encode, so that a run cannot store
    it."""
    if isinstance(tree, Mapping):
        for key, item in tree.items():
            yield from unstorable_texts(key, path)
            yield from unstorable_texts(item, f"{path}.{key}" if path else str(key))
    elif isinstance(tree, list | tuple):
        for index, item in enumerate(tree):
            yield from unstorable_texts(item, f"{path}.{index}")
    elif isinstance(tree, str) and not is_storable(tree):
        yield path, tree


def _plain(word: Word) -> Any:
    """Convert a word to a boolean, a number or None; a word that is none of them stays text."""
    try:
        value = yaml.safe_load(word)
    except (yaml.YAMLError, ValueError, RecursionError):
        return str(word)
    # YAML 1.1 reads `12:30` as the number 750.
    is_clock = isinstance(value, int | float) and ":" in word
    return str(word) if isinstance(value, str | date) or is_clock else value
