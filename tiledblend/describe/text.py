"""YAML or JSON text to the mapping that it holds, within bounds."""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterable, Mapping
from typing import Any

import yaml

from tiledblend.errors import UsageError

MAX_NODES = 100_000
MAX_DIGITS = 100


def parse_mapping(text: str, *, where: str) -> dict[str, Any]:
    """The mapping that YAML or JSON text holds. Keys twice and aliases that multiply are refused.

    Raises UsageError naming `where` and, when known, the line.
    """
    try:
        value = _parse(text, where)
    except RecursionError:
        raise UsageError(f"{where}: nested too deeply") from None
    if not isinstance(value, dict):
        raise UsageError(f"{where}: holds a {type(value).__name__}, not a mapping of keys")
    return value


def require_bounded(value: Any, *, where: str) -> None:
    """Raises UsageError for more than `MAX_NODES` keys and values in all: a schema would look at each."""
    waiting, count = [value], 0
    while waiting:
        one = waiting.pop()
        inner = [*one.keys(), *one.values()] if isinstance(one, Mapping) else one if isinstance(one, list) else ()
        count += 1
        if count + len(waiting) + len(inner) > MAX_NODES:
            raise UsageError(f"{where}: has more than {MAX_NODES:,} entries")
        waiting += inner


def _parse(text: str, where: str) -> Any:
    if text.lstrip().startswith("{"):
        try:
            return json.loads(
                text,
                object_pairs_hook=lambda pairs: _unique(pairs, where),
                parse_int=lambda digits: _whole(digits, where),
            )
        except json.JSONDecodeError:
            pass  # YAML's own {flow: style}, or broken: YAML says where
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _expanded_size(node, {}, where)
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        raise UsageError(f"{where}: {_yaml_reason(error)}") from error
    except UsageError:
        raise
    except (ValueError, LookupError, AttributeError, ArithmeticError) as error:
        # What a value's own tag leads to: `!!bool x` is a KeyError in the parser.
        raise UsageError(f"{where}: a value cannot be read: {str(error) or type(error).__name__}") from error


def _whole(digits: str, where: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise UsageError(f"{where}: a number of {len(digits):,} characters")
    return int(digits)


def _unique(pairs: Iterable[tuple[str, Any]], where: str) -> dict[str, Any]:
    mapping: dict[str, Any] = {}
    for key, value in pairs:
        if key in mapping:
            raise UsageError(f"{where}: key {key!r} stands twice in one mapping")
        mapping[key] = value
    return mapping


_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


class _Loader(yaml.SafeLoader):
    """Safe YAML whose mappings have each key once, of a bounded number of entries and of digits."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._entries = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self._entries += 1
        if self._entries > MAX_NODES:
            mark = self.peek_event().start_mark
            raise yaml.composer.ComposerError(None, None, f"the document has more than {MAX_NODES:,} entries", mark)
        return super().compose_node(parent, index)

    def construct_scalar(self, node: Any) -> Any:
        if node.tag in _NUMBERS and len(node.value) > MAX_DIGITS:
            reason = f"a number of {len(node.value):,} characters"
            raise yaml.constructor.ConstructorError(None, None, reason, node.start_mark)
        return super().construct_scalar(node)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key_node, _ in node.value:
            if isinstance(key_node, yaml.ScalarNode) and key_node.tag != "tag:yaml.org,2002:merge":
                if key_node.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"key {key_node.value!r} stands twice in one mapping", key_node.start_mark
                    )
                seen.add(key_node.value)
        return super().construct_mapping(node, deep)


def _expanded_size(node: yaml.Node, sizes: dict[int, int], where: str) -> int:
    """Nodes of the document with every alias written out; refuses loops and documents that explode."""
    if id(node) in sizes:
        if sizes[id(node)] == 0:
            raise UsageError(f"{where}: an alias refers to the mapping that it stands in")
        return sizes[id(node)]
    sizes[id(node)] = 0
    children: list[yaml.Node] = []
    if isinstance(node, yaml.SequenceNode):
        children = node.value
    elif isinstance(node, yaml.MappingNode):
        children = [child for pair in node.value for child in pair]
    total = 1 + sum(_expanded_size(child, sizes, where) for child in children)
    if total > MAX_NODES:
        raise UsageError(f"{where}: its aliases expand to more than {MAX_NODES:,} entries")
    sizes[id(node)] = total
    return total


def _yaml_reason(error: yaml.YAMLError) -> str:
    problem = " ".join(str(getattr(error, "problem", None) or error).split())
    mark = getattr(error, "problem_mark", None)
    return f"line {mark.line + 1}, column {mark.column + 1}: {problem}" if mark else problem
