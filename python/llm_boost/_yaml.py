"""YAML files: untrusted, so limited in size, depth and expansion; every value knows where it stands."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from llm_boost.errors import ConfigError

# Run configs have about 5 KB, 250 values and 5 levels.
_MAX_BYTES = 256 << 10
_MAX_NODES = 20_000  # after aliases are followed, so that a small file cannot stand for a huge one
_MAX_DEPTH = 32

_PREFIX = "tag:yaml.org,2002:"
_SCALARS = {_PREFIX + name for name in ("null", "bool", "int", "float", "str", "timestamp")}


@dataclass(frozen=True, slots=True)
class Node:
    """A value and its place.

    Attributes:
        value: None, bool, int, float, str, a list of nodes, or a dict from names to nodes.
        where: File and line, or whatever else has set it, for messages.
    """

    value: Any
    where: str

    def plain(self) -> Any:
        """The value without places."""
        if isinstance(self.value, dict):
            return {name: node.plain() for name, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        return self.value


def read_yaml(path: Path) -> Node:
    """Reads a file that holds one YAML document, whose root is a mapping.

    Numbers such as ``1e-5`` are numbers, as YAML 1.2 has them. Tags that would make other objects are refused.

    Raises:
        ConfigError: The file cannot be read, is too large, or is not such a document.
    """
    try:
        if not path.is_file():  # opening a pipe would wait for ever
            raise ConfigError(f"{path}: is not a file")
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise ConfigError(f"{path}: has more than {_MAX_BYTES >> 10} KiB, which no run config needs")
        return parse_yaml(data.decode("utf-8-sig"), str(path))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 at byte {error.start}: {error.reason}") from error


def parse_yaml(text: str, where: str) -> Node:
    """Parses a document whose root is a mapping; `where` starts messages. See `read_yaml`."""
    root = _Document(where).parse(text)
    if not isinstance(root.value, dict):
        kind = "empty" if root.value is None else f"a {type(root.value).__name__}"
        raise ConfigError(f"{where}: the document is {kind}, expected a mapping of keys to values")
    return root


def parse_yaml_value(text: str, where: str) -> Node:
    """Parses a value as it may stand behind a key, for example ``1e-5`` or ``[1, 2]``."""
    root = _Document(where).parse(text)
    return Node(root.value, where)


class _Loader(yaml.SafeLoader):
    """PyYAML's parser, with a limit on nesting."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            raise yaml.composer.ComposerError(
                None, None, f"is nested more than {_MAX_DEPTH} levels deep", self.get_mark()
            )
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


# YAML 1.1, which PyYAML reads, takes 1e-5 and 1.0e6 for text: it wants both a point and a signed exponent.
_Loader.add_implicit_resolver(
    _PREFIX + "float", re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


class _Document:
    """One document: turns PyYAML's nodes into `Node`s."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._num_nodes = 0

    def parse(self, text: str) -> Node:
        try:
            loader = _Loader(text)
            root = loader.get_single_node()
            return Node(None, self._where) if root is None else self._node(loader, root, 0)
        except yaml.MarkedYAMLError as error:
            place = self._place(error.problem_mark) if error.problem_mark else self._where
            raise ConfigError(f"{place}: {error.problem or error.context}") from error
        except yaml.YAMLError as error:
            raise ConfigError(f"{self._where}: is not YAML: {' '.join(str(error).split())}") from error
        except RecursionError as error:
            raise ConfigError(f"{self._where}: is nested too deep") from error

    def _place(self, mark: Any) -> str:
        return f"{self._where}:{mark.line + 1}"

    def _node(self, loader: _Loader, node: yaml.Node, depth: int) -> Node:
        place = self._place(node.start_mark)
        self._num_nodes += 1
        if self._num_nodes > _MAX_NODES:
            raise ConfigError(f"{self._where}: has more than {_MAX_NODES} values once its aliases are followed")
        if depth > _MAX_DEPTH:  # a cycle of aliases
            raise ConfigError(f"{place}: is nested more than {_MAX_DEPTH} levels deep")
        if isinstance(node, yaml.MappingNode) and node.tag == _PREFIX + "map":
            return Node(self._mapping(loader, node, depth), place)
        if isinstance(node, yaml.SequenceNode) and node.tag == _PREFIX + "seq":
            return Node([self._node(loader, item, depth + 1) for item in node.value], place)
        if not isinstance(node, yaml.ScalarNode) or node.tag not in _SCALARS:
            raise ConfigError(f"{place}: the tag {node.tag.replace(_PREFIX, '!!')} is not supported")
        if node.tag == _PREFIX + "timestamp":
            return Node(node.value, place)
        try:
            return Node(loader.construct_object(node), place)
        except (ValueError, KeyError, IndexError) as error:
            kind = node.tag.replace(_PREFIX, "")
            raise ConfigError(f"{place}: {node.value!r:.40} is not a value of type {kind}") from error

    def _mapping(self, loader: _Loader, node: yaml.MappingNode, depth: int) -> dict[str, Node]:
        own: dict[str, Node] = {}
        merged: dict[str, Node] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise ConfigError(f"{self._place(key.start_mark)}: a key is a list or mapping, expected a name")
            if key.tag == _PREFIX + "merge":
                for source in self._merge_sources(loader, value, depth):
                    merged = {**source, **merged}  # the first source wins
                continue
            if key.value in own:
                first = own[key.value].where
                raise ConfigError(
                    f"{self._place(key.start_mark)}: the key '{key.value}' is there twice, also at {first}"
                )
            own[key.value] = self._node(loader, value, depth + 1)
        return {**merged, **own}

    def _merge_sources(self, loader: _Loader, value: yaml.Node, depth: int) -> Iterator[dict[str, Node]]:
        source = self._node(loader, value, depth + 1)
        for item in source.value if isinstance(source.value, list) else [source]:
            if not isinstance(item.value, dict):
                raise ConfigError(f"{item.where}: '<<' merges mappings, not a {type(item.value).__name__}")
            yield item.value
