"""Rotary frequencies: against transformers, and against MindFormers' formulas."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from llm_boost import ConfigError, Model, ModelInfo
from llm_boost.model_config import ModelConfig
from llm_boost.rope import METHODS, Rope, RopeScaling, plain_frequencies, read_hugging_face_scaling, read_scaling

GOLDENS = json.loads((Path(__file__).parent / "golden" / "rope.json").read_text("utf-8"))
# The power, the division and the blend of each side round to float32, which is one part in 2^24 each time, and the
# power may be wrong by two of these.
ULPS = 6 * 2.0**-24


def with_config(directory: Path, target: Path, changes: Mapping[str, Any]) -> Path:
    shutil.copytree(directory, target)
    path = target / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **changes}), "utf-8")
    return target


@pytest.mark.parametrize("name", GOLDENS["frequencies"])
def test_frequencies_are_those_of_transformers(name: str) -> None:
    golden = GOLDENS["frequencies"][name]
    scaling, problems = read_hugging_face_scaling(golden["parameters"], golden["max_position_embeddings"])
    assert not problems
    rope = scaling.rope(golden["head_dim"], golden["theta"], golden["length"])
    np.testing.assert_allclose(rope.inv_freq, golden["inv_freq"], rtol=ULPS, atol=0)
    assert rope.amplitude == pytest.approx(golden["amplitude"], rel=1e-12)
    assert rope.position_scale == 1
    plain = plain_frequencies(golden["head_dim"], golden["theta"])
    assert np.allclose(rope.inv_freq, plain, rtol=1e-3) == (name == "dynamic within the trained length")


@pytest.mark.parametrize("name", GOLDENS["logits"])
def test_logits_are_those_of_transformers(name: str, tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    golden = GOLDENS["logits"][name]
    directory = with_config(tiny_model("llama_mha"), tmp_path / "m", golden["changes"])
    tokens = golden["token_ids"]
    # As long as the prompt, because the frequencies of dynamic scaling follow from it.
    with Model.from_pretrained(directory, max_model_len=len(tokens), activation_dtype="float32") as model:
        logits = forward(model, model.info(), tokens)[3::4, ::8]
    # Two layers of sums of up to 176 products that are below 4: 2 * 176 * 4 * 2^-24, about 1e-4.
    expected = np.array(golden["logits"])
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)
    others = [np.array(other["logits"]) for key, other in GOLDENS["logits"].items() if key != name]
    assert all(np.abs(other - expected).max() > 0.1 for other in others)  # each method would be told from the others


def forward(model: Model, info: ModelInfo, tokens: list[int]) -> npt.NDArray[np.float32]:
    count = len(tokens)
    return model.forward(
        token_ids=tokens,
        positions=range(count),
        slots=range(count),
        seq_begin=[0, count],
        context_len=[count],
        block_table=[range(-(-info.max_model_len // info.block_size))],
        logit_rows=range(count),
    )


# -- MindFormers' FreqsMgr, as its formulas say, in float64 ---------------------------------------------------------


def freqs_mgr(method: str, scaling: Any, dim: int, theta: float, positions: int) -> tuple[Any, Any]:
    """The angles [positions, dim / 2], and what cosine and sine are multiplied by."""
    j = np.arange(dim // 2)
    if method == "NTK":
        theta = theta * scaling
    frequency = theta ** (-2 * j / dim)
    position = np.arange(positions).astype(np.float64)
    mscale = 1.0
    if method == "PI":
        position = position / scaling
    elif method == "LINEAR":
        frequency = frequency / scaling["factor"]
    elif method == "YARN":
        original = scaling["original_max_position_embeddings"]

        def correction(rotations: float) -> float:
            return dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(theta))

        low = max(math.floor(correction(scaling["beta_fast"])), 0)
        high = min(math.ceil(correction(scaling["beta_slow"])), dim - 1)
        keep = 1 - np.clip((j - low) / (high - low), 0, 1)
        frequency = frequency / scaling["factor"] * (1 - keep) + frequency * keep
        growth = 0.1 * math.log(scaling["factor"])
        mscale = (growth * scaling["mscale"] + 1) / (growth * scaling["mscale_all_dim"] + 1)
    elif method == "LLAMA3":
        scaled = []
        for f in frequency:
            wavelength = 2 * math.pi / f
            original, factor = scaling["original_max_position_embeddings"], scaling["factor"]
            low_factor, high_factor = scaling["low_freq_factor"], scaling["high_freq_factor"]
            smooth = (original / wavelength - low_factor) / (high_factor - low_factor)
            if wavelength < original / high_factor:
                scaled.append(f)
            elif wavelength > original / low_factor:
                scaled.append(f / factor)
            else:
                scaled.append((1 - smooth) * f / factor + smooth * f)
        frequency = np.array(scaled)
    return np.outer(position, frequency), mscale


YARN = {"factor": 4.0, "original_max_position_embeddings": 64, "beta_fast": 8, "beta_slow": 1, "mscale": 0.8}
LLAMA3 = {"factor": 8.0, "original_max_position_embeddings": 64, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


@pytest.mark.parametrize(
    ("method", "factor"),
    [
        ("NONE", 1.0),
        ("PI", 2.0),
        ("PI", 3.7),
        ("NTK", 2.0),
        ("NTK", 3.7),
        ("LINEAR", {"factor": 3.0}),
        ("YARN", {**YARN, "mscale_all_dim": 0.5}),
        ("YARN", {**YARN, "mscale_all_dim": 0}),
        ("LLAMA3", LLAMA3),
    ],
)
@pytest.mark.parametrize(("dim", "theta"), [(128, 10000.0), (64, 1e6), (32, 500.0)])
def test_tables_are_those_of_freqs_mgr(method: str, factor: Any, dim: int, theta: float) -> None:
    positions = 256
    settings = {} if method == "NONE" else factor if isinstance(factor, dict) else {"factor": factor}
    scaling, problems = read_scaling(method, settings, 64, freqs_mgr=True)
    assert not problems
    cos, sin = tables(scaling.rope(dim, theta, positions), positions)
    angles, mscale = freqs_mgr(method, factor, dim, theta, positions)
    # An angle is off by its own rounding and those of position and frequency; the fastest turns a radian a position.
    tolerance = positions * (ULPS + 2 * 2.0**-24)
    np.testing.assert_allclose(cos, np.cos(angles) * mscale, rtol=0, atol=tolerance * mscale)
    np.testing.assert_allclose(sin, np.sin(angles) * mscale, rtol=0, atol=tolerance * mscale)


def tables(rope: Rope, positions: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """As the core computes them."""
    scaled = np.arange(positions, dtype=np.float32) * np.float32(rope.position_scale)
    angles = np.outer(scaled, np.array(rope.inv_freq, np.float32)).astype(np.float64)
    return np.cos(angles) * rope.amplitude, np.sin(angles) * rope.amplitude


# -- Settings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "settings", "problem"),
    [
        ("PI", {}, "PI needs 'factor'"),
        ("NTK", {"factor": "2"}, "factor is '2', expected a number of at least 1"),
        ("LINEAR", {"factor": 0.9}, "factor is 0.9"),
        ("LINEAR", {"factor": math.inf}, "factor is inf"),
        ("LINEAR", {"factor": True}, "factor is True"),
        ("LINEAR", {"factor": 2, "beta_fast": 1}, "'beta_fast' is no setting of LINEAR; it has factor"),
        ("YARN", {"factor": 2, "original_max_position_embeddings": 1.5}, "original_max_position_embeddings is 1.5"),
        ("YARN", {"factor": 2, "beta_fast": 0}, "beta_fast is 0, expected a number above 0"),
        ("YARN", {"factor": 2, "beta_fast": 1, "beta_slow": 2}, "beta_fast must be greater than beta_slow"),
        ("YARN", {"factor": 2, "truncate": 1}, "truncate is 1, expected true or false"),
        ("LLAMA3", {"factor": 8, "low_freq_factor": 1}, "LLAMA3 needs 'high_freq_factor'"),
        ("LLAMA3", {**LLAMA3, "low_freq_factor": 4.0}, "high_freq_factor must be greater than low_freq_factor"),
    ],
)
def test_wrong_settings(method: str, settings: dict[str, Any], problem: str) -> None:
    _, problems = read_scaling(method, settings, 2048)
    assert len(problems) == 1
    assert problems[0].startswith(problem)


@pytest.mark.parametrize("method", METHODS)
def test_extremes_give_finite_frequencies(method: str) -> None:
    scaling = RopeScaling(method, factor=1e6, original_max_position=1, attention_factor=1e6)
    for head_dim in (2, 4, 256):
        rope = scaling.rope(head_dim, 1e12, 1 << 24)
        assert np.isfinite(rope.inv_freq).all()
        assert len(rope.inv_freq) == head_dim // 2


@pytest.mark.parametrize(
    ("settings", "longest"),
    [
        ({}, 512),
        ({"rope_scaling": {"type": "linear", "factor": 2.5}}, 1280),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, 1024),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}}, 1024),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}, "original_max_position_embeddings": 200}, 800),
        ({"rope_scaling": {"rope_type": "llama3", **LLAMA3}}, 512),
        ({"rope_scaling": {"type": "linear", "factor": 3}, "rope_parameters": {"rope_type": "default"}}, 1536),
    ],
)
def test_context_that_may_be_asked_for(
    settings: dict[str, Any], longest: int, tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    directory = with_config(tiny_model("llama_mha"), tmp_path / "m", settings)
    assert ModelConfig.from_directory(directory).longest_context == longest
    with Model.from_pretrained(directory, max_model_len=longest) as model:
        assert model.info().max_model_len == longest
    with pytest.raises(ConfigError, match=f"max_model_len is {longest + 1}, but"):
        Model.from_pretrained(directory, max_model_len=longest + 1)
    with Model.from_pretrained(directory) as model:  # what the config says, unless more is asked for
        assert model.info().max_model_len == 512
