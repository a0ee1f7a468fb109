"""The registry through which a framework finds a boost, as ``mindspore.experimental.llm_boost.register`` has it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

from llm_boost._suggest import unknown_name
from llm_boost.errors import ConfigError

_Class = TypeVar("_Class", bound=type)


class LlmBoostType:
    """The backends that a run config's ``llm_backend`` may name."""

    BUILDIN = "BuildIn"
    """The best that this machine has: ATB on an Ascend NPU, else the CPU."""
    LLMBOOST = "LLMBoost"
    """The original's other NPU backend, of which there is only one here: the same as BUILDIN."""
    ATB = "ATB"
    CPU = "CPU"


class LlmBoostRegister:
    """Finds the class that runs a model: by backend, then by the name of the model's family.

    Example:
        >>> LlmBoostRegister.is_exist("BuildIn", "Llama")
        True
        >>> boost = LlmBoostRegister.get_instance("BuildIn", "Qwen", config=config)  # doctest: +SKIP
    """

    registry: ClassVar[dict[str, dict[str, type]]] = {}

    @classmethod
    def register(cls, boost_type: str = LlmBoostType.BUILDIN, alias: str | None = None) -> Callable[[_Class], _Class]:
        """A class decorator that adds the class under `alias`, or its own name, to a backend."""

        def add(boost_class: _Class) -> _Class:
            cls.registry.setdefault(boost_type, {})[alias or boost_class.__name__] = boost_class
            return boost_class

        return add

    @classmethod
    def is_exist(cls, boost_type: str, model_name: str | None = None) -> bool:
        """Whether a backend is known and, if a name is given, whether it has that model."""
        models = cls.registry.get(boost_type)
        return models is not None and (not model_name or model_name in models)

    @classmethod
    def get_cls(cls, boost_type: str, model_name: str | None = None) -> type:
        """The class that runs a model.

        Raises:
            ConfigError: The backend or the model is unknown.
        """
        if boost_type not in cls.registry:
            raise ConfigError(unknown_name("llm_backend", str(boost_type), cls.registry))
        if model_name not in cls.registry[boost_type]:
            raise ConfigError(unknown_name("boost_model_name", str(model_name), cls.registry[boost_type]))
        return cls.registry[boost_type][model_name]

    @classmethod
    def get_instance(
        cls, boost_type: str = LlmBoostType.BUILDIN, model_name: str | type | None = None, **kwargs: Any
    ) -> Any:
        """Makes the object that runs a model: ``get_cls(...)(**kwargs)``, or ``model_name(**kwargs)`` for a class.

        Raises:
            ConfigError: The backend or the model is unknown, or the config cannot be used.
        """
        boost_class = model_name if isinstance(model_name, type) else cls.get_cls(boost_type, model_name)
        return boost_class(**kwargs)
