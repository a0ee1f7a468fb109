"""The server's application on Ray Serve: replicas of a model behind one address.

It needs ``pip install "llm_boost[ray]"``. ``docs/ray.md`` has an example with two replicas.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_boost._suggest import unknown_name
from llm_boost.errors import ConfigError
from llm_boost.model import Model

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from llm_boost.serve import ServerSettings

# What `app` takes, besides the arguments of `deployment` -> how the text is read.
_LOADING = {
    "backend": str,
    "dtype": str,
    "activation_dtype": str,
    "num_threads": int,
    "block_size": int,
    "num_blocks": int,
    "max_num_seqs": int,
    "max_model_len": int,
    "max_num_batched_tokens": int,
}
_ARGUMENTS = {"model": str, "num_replicas": int, "num_cpus": int, "served_model_name": str, "api_key": str, **_LOADING}


def deployment(
    model: str | Path,
    *,
    num_replicas: int = 1,
    num_cpus: int = 1,
    settings: ServerSettings | None = None,
    **loading: Any,
) -> Any:
    """A ``ray.serve.Application`` with replicas of a model; ``ray.serve.run`` starts it.

    Args:
        model: What each replica loads: a model directory, which all nodes must have, or the name of a pulled model.
        num_replicas: How many there are. Ray sends each request to one with few under way.
        num_cpus: Cores that Ray keeps for each, and threads that it computes with unless `loading` says otherwise.
        settings: Of each replica's server; None for the last part of `model` as its name, and defaults.
        **loading: Further arguments of `Model.from_pretrained`.

    Raises:
        ConfigError: Ray or the server's packages are not installed.

    Example:
        >>> ray.serve.run(deployment("smollm2-135m-instruct", num_replicas=2))  # doctest: +SKIP
    """
    serve, server = _import("ray.serve"), _import("llm_boost.serve")
    name = str(model)
    chosen: ServerSettings = settings or server.ServerSettings(served_model_names=(Path(name).name,))
    options = {"num_threads": num_cpus, "max_num_seqs": 64, **loading}

    def build() -> Starlette:  # in the replica
        from llm_boost.serve import create_app

        return create_app(Model.from_pretrained(name, use_tqdm=False, **options), chosen)

    replicas = serve.deployment(
        serve.ingress(build)(),
        name="llm_boost",
        num_replicas=num_replicas,
        ray_actor_options={"num_cpus": num_cpus},
        # As many as the replica's own queue admits, and some more, so that it and not Ray says when it is full.
        max_ongoing_requests=2 * (options["max_num_seqs"] + chosen.max_queue),
    )
    return replicas.bind()


def app(arguments: Mapping[str, str]) -> Any:
    """`deployment` for ``serve run llm_boost.integrations.ray:app model=NAME num_replicas=2 ...``.

    Args:
        arguments: Arguments of `deployment` and of `Model.from_pretrained`, ``served_model_name`` and ``api_key``.

    Raises:
        ConfigError: One of them is unknown or malformed, or there is no model.
    """
    if unknown := [name for name in arguments if name not in _ARGUMENTS]:
        raise ConfigError(unknown_name("argument of the Ray application", unknown[0], _ARGUMENTS))
    if "model" not in arguments:
        raise ConfigError("the Ray application got no model; add model=NAME")
    values = {name: _read(name, text) for name, text in arguments.items()}
    names = (values.pop("served_model_name", Path(values["model"]).name),)
    key = values.pop("api_key", None)
    settings = _import("llm_boost.serve").ServerSettings(served_model_names=names, api_key=key)
    return deployment(settings=settings, **values)


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(f'replicas need the package {error.name}: pip install "llm_boost[ray]"') from error


def _read(name: str, text: str) -> Any:
    try:
        return _ARGUMENTS[name](text)
    except ValueError:
        raise ConfigError(f"{name} is {text!r:.40}, expected an integer") from None
