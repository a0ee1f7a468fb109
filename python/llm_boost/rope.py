"""Rotary position embeddings: the frequencies of a model, and the ways to stretch them over longer contexts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Frequencies = npt.NDArray[np.float32]  # [head_dim / 2], radians a position, falling

# The names in run configs (`extend_method`).
METHODS = ("NONE", "PI", "NTK", "LINEAR", "DYNAMIC_NTK", "YARN", "LLAMA3")


@dataclass(frozen=True, slots=True)
class Rope:
    """What the core builds its tables from: ``angle = position * position_scale * inv_freq``.

    Attributes:
        inv_freq: Frequencies in radians a position, [head_dim / 2], of float32 precision.
        position_scale: Positions are multiplied by this.
        amplitude: Cosine and sine are multiplied by this.
    """

    inv_freq: tuple[float, ...]
    position_scale: float = 1.0
    amplitude: float = 1.0


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """How the frequencies of a model are stretched, and by how much.

    Attributes:
        method: One of `METHODS`.
        factor: How many times longer the context becomes.
        original_max_position: Tokens of context before stretching: DYNAMIC_NTK, YARN and LLAMA3 depend on it.
        low_freq_factor: LLAMA3: waves longer than original_max_position / low_freq_factor are stretched in full.
        high_freq_factor: LLAMA3: waves shorter than original_max_position / high_freq_factor stay.
        beta_fast: YARN: frequencies that turn more often than this in the original context stay.
        beta_slow: YARN: those that turn less often than this are stretched in full.
        truncate: YARN: round the limits between them to whole dimensions.
        attention_factor: YARN: cosine and sine are multiplied by this; None for `yarn_amplitude` of the factor.
    """

    method: str = "NONE"
    factor: float = 1.0
    original_max_position: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float | None = None

    def longest_context(self, max_position_embeddings: int) -> int:
        """Most tokens that a model with this scaling and this trained length is meant for."""
        if self.method in ("PI", "NTK", "LINEAR", "DYNAMIC_NTK"):
            return max(max_position_embeddings, int(max_position_embeddings * self.factor))
        if self.method == "YARN":
            return max(max_position_embeddings, int(self.original_max_position * self.factor))
        return max_position_embeddings

    def rope(self, head_dim: int, theta: float, max_model_len: int) -> Rope:
        """The frequencies and factors of a run.

        Args:
            head_dim: Size of an attention head, even.
            theta: Base of the unstretched frequencies.
            max_model_len: Most tokens of a sequence in this run. Only DYNAMIC_NTK depends on it: other
                implementations stretch more as a sequence grows, which cannot be done to keys that are rotated in
                the cache already, and would make a sequence's results depend on how it was batched. Here the
                frequencies are those that this length needs, from the first token on.

        Example:
            >>> RopeScaling("LINEAR", factor=2.0).rope(head_dim=4, theta=10000.0, max_model_len=64).inv_freq
            (0.5, 0.004999999888241291)
        """
        plain = plain_frequencies(head_dim, theta)
        match self.method:
            case "PI":
                return Rope(_as_tuple(plain), position_scale=1.0 / self.factor)
            case "NTK":  # the base times the factor, without the exponent that the method has elsewhere
                return Rope(_as_tuple(plain_frequencies(head_dim, theta * self.factor)))
            case "LINEAR":
                return Rope(_as_tuple(plain / np.float32(self.factor)))
            case "DYNAMIC_NTK":
                return Rope(_as_tuple(plain_frequencies(head_dim, self._dynamic_theta(head_dim, theta, max_model_len))))
            case "YARN":
                amplitude = yarn_amplitude(self.factor) if self.attention_factor is None else self.attention_factor
                return Rope(_as_tuple(self._yarn(plain, head_dim, theta)), amplitude=amplitude)
            case "LLAMA3":
                return Rope(_as_tuple(self._llama3(plain)))
            case _:
                return Rope(_as_tuple(plain))

    def _dynamic_theta(self, head_dim: int, theta: float, max_model_len: int) -> float:
        """The base of "dynamic NTK" scaling for a sequence of `max_model_len` tokens, as in transformers."""
        length = max(max_model_len, self.original_max_position)
        stretch = self.factor * length / self.original_max_position - (self.factor - 1)
        exponent: float = head_dim / max(head_dim - 2, 1)
        return float(theta * stretch**exponent)

    def _yarn(self, plain: Frequencies, head_dim: int, theta: float) -> Frequencies:
        """Peng et al., "YaRN" (2023), section 3.2: stretch slow frequencies, keep fast ones, blend between."""

        def dimension_that_turns(times: float) -> float:
            return head_dim * math.log(self.original_max_position / (times * 2 * math.pi)) / (2 * math.log(theta))

        low, high = dimension_that_turns(self.beta_fast), dimension_that_turns(self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, head_dim - 1)
        if low == high:
            high += 0.001  # as the reference implementations do, so that the ramp has a width
        ramp = (np.arange(head_dim // 2, dtype=np.float32) - np.float32(low)) / np.float32(high - low)
        stretched = np.clip(ramp, 0, 1)
        blend: Frequencies = plain / np.float32(self.factor) * stretched + plain * (1 - stretched)
        return blend

    def _llama3(self, plain: Frequencies) -> Frequencies:
        """Llama 3.1's rule: by wavelength, with a smooth passage between two limits."""
        turns = self.original_max_position * plain.astype(np.float64) / (2 * math.pi)  # in the original context
        kept = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        kept = np.clip(kept, 0, 1).astype(np.float32)
        blend: Frequencies = plain / np.float32(self.factor) * (1 - kept) + plain * kept
        return blend


def plain_frequencies(head_dim: int, theta: float) -> Frequencies:
    """Frequencies ``theta ** (-2 i / head_dim)`` in radians a position, [head_dim / 2].

    The formula of Su et al., "RoFormer" (2021), evaluated in float32 as the reference implementations do.
    """
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    frequencies: Frequencies = np.float32(1.0) / np.power(np.float32(theta), exponents, dtype=np.float32)
    return frequencies


def yarn_amplitude(factor: float, mscale: float = 1.0) -> float:
    """YaRN's factor of cosine and sine, which sharpens attention over longer contexts: ``0.1 m ln(factor) + 1``."""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def _as_tuple(frequencies: Frequencies) -> tuple[float, ...]:
    return tuple(float(frequency) for frequency in frequencies)


# -- Reading -------------------------------------------------------------------------------------------------------

# What config.json calls a rope type -> its method here.
_HUGGING_FACE_METHODS = {
    "default": "NONE",
    "linear": "LINEAR",
    "dynamic": "DYNAMIC_NTK",
    "yarn": "YARN",
    "llama3": "LLAMA3",
}
# The settings of each method: name -> (field, whether it must be there).
_SETTINGS: Mapping[str, Mapping[str, tuple[str, bool]]] = {
    "NONE": {},
    "PI": {"factor": ("factor", True)},
    "NTK": {"factor": ("factor", True)},
    "LINEAR": {"factor": ("factor", True)},
    "DYNAMIC_NTK": {
        "factor": ("factor", True),
        "original_max_position_embeddings": ("original_max_position", False),
    },
    "YARN": {
        "factor": ("factor", True),
        "original_max_position_embeddings": ("original_max_position", False),
        "beta_fast": ("beta_fast", False),
        "beta_slow": ("beta_slow", False),
        "truncate": ("truncate", False),
        "attention_factor": ("attention_factor", False),
        "mscale": ("mscale", False),
        "mscale_all_dim": ("mscale_all_dim", False),
    },
    "LLAMA3": {
        "factor": ("factor", True),
        "low_freq_factor": ("low_freq_factor", True),
        "high_freq_factor": ("high_freq_factor", True),
        "original_max_position_embeddings": ("original_max_position", False),
    },
}


def read_scaling(
    method: str, settings: Mapping[str, Any], max_position_embeddings: int, *, freqs_mgr: bool = False
) -> tuple[RopeScaling, list[str]]:
    """Checks the settings of a method, under Hugging Face's names, which MindFormers has too.

    Args:
        method: One of `METHODS`.
        settings: The settings by name; None stands for "not given".
        max_position_embeddings: What stands in for ``original_max_position_embeddings`` where that is not given.
        freqs_mgr: Take ``mscale`` and ``mscale_all_dim`` of YARN as MindFormers does, where zero counts as given.

    Returns:
        The scaling, and what is wrong with it: empty when it can be used.
    """
    known = _SETTINGS[method]
    problems = [
        f"'{name}' is no setting of {method}; it has {_names(known)}" for name in settings.keys() - known.keys()
    ]
    problems += [f"{method} needs '{name}'" for name, (_, must) in known.items() if must and settings.get(name) is None]
    values: dict[str, Any] = {"original_max_position": max_position_embeddings}
    for name in sorted(known.keys() & settings.keys()):
        value = settings[name]
        if value is not None:
            problems += _setting_problem(name, value)
            values[known[name][0]] = value
    mscale, all_dim = values.pop("mscale", None), values.pop("mscale_all_dim", None)
    if problems:
        return RopeScaling(), sorted(problems)
    given = mscale is not None and all_dim is not None if freqs_mgr else bool(mscale and all_dim)
    if given and "attention_factor" not in values:
        factor = values["factor"]
        values["attention_factor"] = yarn_amplitude(factor, mscale) / yarn_amplitude(factor, all_dim)
    scaling = RopeScaling(method, **values)
    if method == "LLAMA3" and scaling.low_freq_factor >= scaling.high_freq_factor:
        problems.append("high_freq_factor must be greater than low_freq_factor")
    if method == "YARN" and scaling.beta_slow >= scaling.beta_fast:
        problems.append("beta_fast must be greater than beta_slow")
    return scaling, problems


def read_hugging_face_scaling(
    settings: Mapping[str, Any], max_position_embeddings: int
) -> tuple[RopeScaling, list[str]]:
    """Reads ``rope_scaling`` or ``rope_parameters`` of a config.json; see `read_scaling`."""
    kind = settings.get("rope_type", settings.get("type", "default"))
    if not isinstance(kind, str) or kind not in _HUGGING_FACE_METHODS:
        known = _names(_HUGGING_FACE_METHODS)
        return RopeScaling(), [f"rope type {kind!r:.40} is not supported; {known} are"]
    # These say which type it is, or are read elsewhere, or record how the model was made.
    others = ("rope_type", "type", "rope_theta", "partial_rotary_factor", "finetuned")
    rest = {name: value for name, value in settings.items() if name not in others}
    return read_scaling(_HUGGING_FACE_METHODS[kind], rest, max_position_embeddings)


def _setting_problem(name: str, value: object) -> list[str]:
    if name == "truncate":
        return [] if type(value) is bool else [f"{name} is {value!r:.40}, expected true or false"]
    if name == "original_max_position_embeddings":
        if type(value) is int and 0 < value <= 1 << 24:
            return []
        return [f"{name} is {value!r:.40}, expected an integer from 1 to {1 << 24}"]
    low = 1.0 if name == "factor" else 0.0
    number = float(value) if isinstance(value, (int, float)) and type(value) is not bool else math.nan
    positive = name not in ("mscale", "mscale_all_dim")
    if math.isfinite(number) and number >= low and (number > 0 or not positive) and number <= 1e6:
        return []
    return [f"{name} is {value!r:.40}, expected a number {'of at least ' + str(int(low)) if low else 'above 0'}"]


def _names(names: Mapping[str, object]) -> str:
    return ", ".join(names) or "none"
