"""The rooms of the C++ core: who may include whom."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
CSRC = ROOT / "csrc"

# What a room may include, besides itself and the standard library.
MAY_INCLUDE = {
    "base": set(),
    "graph": {"base"},
    "model": {"base", "graph"},
    "backend": {"base", "graph", "backend/atb", "backend/cpu"},
    "backend/atb": {"base", "graph", "backend"},
    "backend/cpu": {"base", "graph", "backend"},
    "engine": {"base", "graph", "model", "backend", "backend/cpu"},
    "binding": {"base", "model", "backend", "backend/cpu", "engine"},
    "bench": {"base", "graph", "model", "backend", "backend/cpu", "engine"},
}
# Headers that belong to one room, or to some files of it.
ONLY_IN = {
    re.compile(r"<(acl|atb|hccl)/"): re.compile(r"backend/atb/"),
    re.compile(r"<(immintrin|arm_neon|x86intrin)\.h>"): re.compile(r"backend/cpu/(simd_|kernels_)"),
    re.compile(r"<pybind11/"): re.compile(r"binding/"),
}


def sources() -> list[Path]:
    return sorted(path for path in CSRC.rglob("*") if path.suffix in {".h", ".cpp", ".inc"})


def room_of(name: str) -> str:
    parts = name.split("/")
    return "/".join(parts[:2]) if parts[0] == "backend" and len(parts) > 2 else parts[0]


def test_includes_point_downward() -> None:
    problems = []
    for path in sources():
        name = path.relative_to(CSRC).as_posix()
        room = room_of(name)
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
            match = re.match(r'\s*#\s*include\s+"([^"]+)"', line)
            if match and room_of(match[1]) not in MAY_INCLUDE[room] | {room}:
                problems.append(f"{name}:{number}: {line.strip()}; '{room}' may use {sorted(MAY_INCLUDE[room])}")
    assert not problems, "\n".join(problems)


def test_private_headers_stay_in_their_rooms() -> None:
    problems = []
    for path in sources():
        name = path.relative_to(CSRC).as_posix()
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
            for header, room in ONLY_IN.items():
                if re.match(r"\s*#\s*include", line) and header.search(line) and not room.match(name):
                    problems.append(f"{name}:{number}: {line.strip()}; allowed only in {room.pattern}")
    assert not problems, "\n".join(problems)


def test_kernel_files_use_no_standard_library_templates() -> None:
    """Code that the linker could share between instruction set levels must not exist in them."""
    allowed = {"<immintrin.h>", "<arm_neon.h>", "<cstddef>", "<cstdint>"}
    for path in sources():
        if re.match(r"(kernels_|simd_|shapes_)", path.name):
            for header in re.findall(r"#include (<[^>]+>)", path.read_text("utf-8")):
                assert header in allowed, f"{path.name} includes {header}"
            assert not re.search(r"\bstd::(?!u?int\d+_t|size_t|byte\b)", path.read_text("utf-8")), path.name


def test_the_binding_stays_thin() -> None:
    assert len((CSRC / "binding" / "module.cpp").read_text("utf-8").splitlines()) < 280


def test_files_stay_readable() -> None:
    long = [
        path.name
        for path in [*sources(), *(ROOT / "python").rglob("*.py")]
        if len(path.read_text("utf-8").splitlines()) > 500
    ]
    assert not long


def test_the_version_has_one_home() -> None:
    import llm_boost

    pyproject = (ROOT / "pyproject.toml").read_text("utf-8")
    version = re.search(r'^version = "([^"]+)"', pyproject, re.MULTILINE)
    assert version
    assert llm_boost.__version__ == version[1]
    assert f"## [{version[1]}]" in (ROOT / "CHANGELOG.md").read_text("utf-8")
