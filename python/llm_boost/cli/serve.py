"""``llm-boost serve``: an OpenAI-compatible server."""

from __future__ import annotations

import argparse
import ipaddress
import os
from dataclasses import fields
from pathlib import Path
from typing import Any

from llm_boost._suggest import unknown_name
from llm_boost._yaml import Node, read_yaml
from llm_boost.cli.options import add_loading_options, load_model
from llm_boost.errors import ConfigError

SUMMARY = "serve a model over HTTP, as OpenAI's API"

_KEY_VARIABLE = "LLM_BOOST_API_KEY"
_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
# The other defaults are those of `ServerSettings` and `Model.from_pretrained`.
_DEFAULTS: dict[str, Any] = {"host": "127.0.0.1", "port": 8000, "insecure": False, "log_level": "info"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Defines the command's arguments. None has a default here, so that --config knows which were given."""
    parser.add_argument("model", metavar="MODEL", help="a model directory, or the name of a pulled model")
    group = parser.add_argument_group("server")
    group.add_argument("--host", help=f"address to listen on (default: {_DEFAULTS['host']})")
    group.add_argument("--port", type=int, help=f"port to listen on (default: {_DEFAULTS['port']})")
    group.add_argument(
        "--api-key", help=f"clients must send it; better in the environment variable {_KEY_VARIABLE}, which ps hides"
    )
    group.add_argument("--insecure", action="store_true", default=None, help="let other machines in without a key")
    group.add_argument(
        "--served-model-name", nargs="+", metavar="NAME", help="what clients call it (default: MODEL's last part)"
    )
    group.add_argument("--max-queue", type=int, help="samples that may wait before requests are refused with 429")
    group.add_argument("--max-body-bytes", type=int, help="largest request body")
    group.add_argument("--drain-seconds", type=float, help="time for open answers after SIGTERM")
    group.add_argument(
        "--allowed-hosts", nargs="+", metavar="HOST", help="names clients may use (default: this machine's, if no key)"
    )
    group.add_argument("--allowed-origins", nargs="+", metavar="ORIGIN", help="web origins that may call (CORS)")
    group.add_argument("--metrics-prefix", help="begins the names of metrics (default: vllm, as dashboards expect)")
    group.add_argument("--log-prompts", action="store_true", default=None, help="write prompts to the log")
    group.add_argument("--log-level", choices=["debug", "info", "warning", "error"], help="least level that is logged")
    group.add_argument("--config", type=Path, metavar="YAML", help="a file of these options; the command line wins")
    add_loading_options(parser)


def main(arguments: argparse.Namespace) -> int:
    """Loads the model and serves it until a signal comes."""
    try:
        from llm_boost.serve import ServerSettings
        from llm_boost.serve.lifecycle import bind, run_server
        from llm_boost.serve.logs import configure_logs
    except ImportError as error:
        raise ConfigError(f'llm-boost serve needs the package {error.name}: pip install "llm_boost[serve]"') from error
    if arguments.config is not None:
        _apply_config(arguments)
    for name, default in _DEFAULTS.items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, default)
    key = arguments.api_key if arguments.api_key is not None else os.environ.get(_KEY_VARIABLE) or None
    if key is None and not arguments.insecure and not _is_loopback(arguments.host):
        raise ConfigError(
            f"--host {arguments.host} lets other machines in: set {_KEY_VARIABLE}, or say --insecure to do without"
        )
    names = arguments.served_model_name or [Path(arguments.model).name]
    given = {
        field.name: value
        for field in fields(ServerSettings)
        if (value := getattr(arguments, field.name, None)) is not None
    }
    given |= {"api_key": key, "served_model_names": tuple(names)}
    if key is None and not arguments.insecure:
        given.setdefault("allowed_hosts", [*_LOOPBACK_NAMES, arguments.host])
    for name in ("allowed_hosts", "allowed_origins"):
        given[name] = tuple(given.get(name, ()))
    settings = ServerSettings(**given)
    configure_logs(arguments.log_level)
    with bind(arguments.host, arguments.port) as bound, load_model(arguments) as model:
        run_server(model, settings, bound)
    return 0


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _apply_config(arguments: argparse.Namespace) -> None:
    """Takes options from a YAML file, by their long names, unless the command line has them.

    Raises:
        ConfigError: The file cannot be read, or has an unknown option or a value of the wrong type.
    """
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False, allow_abbrev=False)
    add_arguments(parser)
    options = {action.dest: action for action in parser._actions if action.option_strings and action.dest != "config"}
    found: dict[str, Node] = {}
    for name, node in read_yaml(arguments.config).value.items():
        key = name.replace("-", "_")
        if key not in options:
            raise ConfigError(f"{node.where}: {unknown_name('option', key, options)}")
        if key in found:
            raise ConfigError(f"{node.where}: {key} is there already, at {found[key].where}; give one of them")
        found[key] = node
        converted = _convert(options[key], node)
        if getattr(arguments, key) is None:
            setattr(arguments, key, converted)


def _convert(action: argparse.Action, node: Node) -> object:
    """The value as the command line would have given it."""
    where, value = f"{node.where}: {action.dest}", node.plain()
    if action.nargs == 0:
        if not isinstance(value, bool):
            raise ConfigError(f"{where} is {value!r:.40}, expected true or false")
        return value
    items = value if isinstance(value, list) and action.nargs == "+" else [value]
    if not items or any(isinstance(item, (bool, dict, list)) or item is None for item in items):
        raise ConfigError(f"{where} is {value!r:.40}, expected a plain value")
    if action.type is None and not all(isinstance(item, str) for item in items):
        raise ConfigError(f"{where} is {value!r:.40}, which YAML takes for a number; put it in quotes")
    kind: Any = action.type or str
    try:
        converted = [kind(str(item)) for item in items]
    except ValueError:
        raise ConfigError(f"{where} is {value!r:.40}, expected {kind.__name__}") from None
    for item in converted:
        if action.choices is not None and item not in action.choices:
            raise ConfigError(f"{where} is {item!r}, expected one of {', '.join(map(str, action.choices))}")
    return converted if action.nargs == "+" else converted[0]
