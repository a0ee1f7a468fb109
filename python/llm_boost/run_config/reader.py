"""From a YAML file, and what the command line changes of it, to a checked `RunConfig`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from llm_boost._suggest import unknown_name
from llm_boost._yaml import Node, read_yaml
from llm_boost.errors import ConfigError
from llm_boost.run_config.keys import Section, subsections
from llm_boost.run_config.sections import RootSection


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig(RootSection):
    """A run config: what `load_config` gives, and `Model.from_pretrained` takes.

    The fields are the keys of the file, under the same names and in the same nesting; absent keys are None.
    ``docs/run-configs.md`` says what each of them means.

    Attributes:
        path: The file.
        ignored: Keys of the file that have no effect here -> why.
        places: File and line of each key, or what else has set it.

    Example:
        >>> config = load_config("configs/predict_llama2_7b.yaml")  # doctest: +SKIP
        >>> config.model.model_config.seq_length  # doctest: +SKIP
        4096
    """

    path: Path
    ignored: Mapping[str, str] = field(default_factory=dict)
    places: Mapping[str, str] = field(default_factory=dict)

    def where(self, key: str) -> str:
        """Where a key is set, and its name, to start a message with."""
        return f"{self.places.get(key, self.path)}: {key}"


def load_config(path: str | Path, overrides: Mapping[str, Any] | None = None) -> RunConfig:
    """Reads a run config: the YAML that MindFormers' predict scripts take.

    Keys that matter for training only are accepted and listed in `RunConfig.ignored`.

    Args:
        path: The file; or, where there is none, the name of a run config that comes with llm_boost, with or without
            ``.yaml``.
        overrides: Values to take instead of the file's, by dotted path: ``{"model.model_config.seq_length": 512}``.

    Raises:
        ConfigError: The file is not YAML, a key is unknown, or a value is wrong: all problems in one error, each with
            its line and, for unknown keys, the nearest known one.

    Example:
        >>> load_config("predict_llama2_7b").model.model_config.num_layers
        32
    """
    nodes = {name: _as_node(value, f"overrides of {path}") for name, value in (overrides or {}).items()}
    return read_run_config(Path(path), nodes)


def read_run_config(path: Path, overrides: Mapping[str, Node]) -> RunConfig:
    """As `load_config`, with values that know what has set them."""
    path = _find(path)
    root = read_yaml(path)
    for name, node in overrides.items():
        root = _replaced(root, name.split("."), node)
    reader = _Reader()
    values = reader.values(RootSection, root, "")
    if reader.problems:
        raise ConfigError(f"{path}: cannot be used:\n  " + "\n  ".join(reader.problems))
    return RunConfig(path=path, ignored=reader.ignored, places=reader.places, **values)


def shipped_configs() -> dict[str, Path]:
    """The run configs that come with llm_boost, by name."""
    return {path.stem: path for path in sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))}


def _find(path: Path) -> Path:
    if path.exists():
        return path
    shipped = shipped_configs()
    if path.parent == Path() and path.suffix in ("", ".yaml"):
        if path.stem in shipped:
            return shipped[path.stem]
        raise ConfigError(f"{path}: is not a file; {unknown_name('shipped run config', path.stem, shipped)}")
    raise ConfigError(f"{path}: does not exist; give a file, or one of {', '.join(shipped)}")


class _Reader:
    """Reads sections and collects what is wrong, what is ignored, and where everything stands."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.ignored: dict[str, str] = {}
        self.places: dict[str, str] = {}

    def values(self, kind: type[Section], node: Node, path: str) -> dict[str, Any]:
        """The fields of a section that the file gives."""
        if node.value is None:
            return {}
        if not isinstance(node.value, dict):
            self.problems.append(f"{node.where}: {path} is a {type(node.value).__name__}, expected a mapping of keys")
            return {}
        known = {item.name: item.metadata for item in fields(kind)}
        inside = subsections(kind)
        values = {}
        for name, child in node.value.items():
            full_name = f"{path}.{name}" if path else name
            if name in kind.UNUSED:
                self.ignored[full_name] = kind.UNUSED[name]
            elif name not in known:
                message = unknown_name("key", full_name, _all_keys(RootSection, ""), list_known=False)
                self.problems.append(f"{child.where}: {message}")
            elif name in inside:
                values[name] = inside[name](**self.values(inside[name], child, full_name))
            elif child.value is not None:
                self.places[full_name] = child.where
                values[name] = self._value(known[name]["parse"], child, full_name)
        return values

    def _value(self, parse: Any, node: Node, path: str) -> Any:
        value = node.plain()
        try:
            return parse(value)
        except ValueError as error:
            self.problems.append(f"{node.where}: {path} is {value!r:.60}, {error}")
            return None


def _all_keys(kind: type[Section], prefix: str) -> list[str]:
    """Every key that a section and the sections in it may have, as dotted paths."""
    keys = [prefix + name for name in (*kind.UNUSED, *(item.name for item in fields(kind)))]
    for name, inside in subsections(kind).items():
        keys += _all_keys(inside, f"{prefix}{name}.")
    return keys


def _as_node(value: Any, where: str) -> Node:
    if isinstance(value, Mapping):
        return Node({str(name): _as_node(item, where) for name, item in value.items()}, where)
    if isinstance(value, (list, tuple)):
        return Node([_as_node(item, where) for item in value], where)
    return Node(value, where)


def _replaced(root: Node, path: list[str], node: Node) -> Node:
    """`root` with the value at a path replaced; mappings on the way are made where there are none."""
    if not path:
        return node
    children = root.value if isinstance(root.value, dict) else {}
    child = children.get(path[0], Node(None, node.where))
    return Node({**children, path[0]: _replaced(child, path[1:], node)}, root.where)
