"""How the Ascend backend is built: against the headers of each release, and with an installation found or not."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOUBLE = ROOT / "tests" / "atb_double"
BACKEND = ROOT / "csrc" / "backend" / "atb"
COMPILER = shutil.which("c++")
CMAKE = shutil.which("cmake")

needs_compiler = pytest.mark.skipif(COMPILER is None, reason="there is no C++ compiler")
needs_cmake = pytest.mark.skipif(CMAKE is None or COMPILER is None, reason="there is no CMake or no C++ compiler")

# Beside 8.5, which the other tests run with, these hold each declaration that differs between releases.
RELEASES = ("810", "820", "910")
WARNINGS = ("-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Werror")


def lay_out_headers(toolkit: Path, atb: Path, release: str) -> None:
    """The headers of the test double as those of one release."""
    shutil.copytree(DOUBLE / "include_cann", toolkit / "include")
    shutil.copytree(DOUBLE / "include_atb", atb / "include")
    template = atb / "include" / "atb" / "double_release.h.in"
    template.with_suffix("").write_text(template.read_text("utf-8").replace("@ATB_DOUBLE_RELEASE@", release), "utf-8")


# -- Sources -----------------------------------------------------------------------------------------------------------


def compile_all(scratch: Path, release: str, launch_mode: str) -> subprocess.Popen[str]:
    """Starts to compile all sources that see ATB's headers, as one."""
    toolkit, atb = scratch / release / "toolkit", scratch / release / "atb"
    lay_out_headers(toolkit, atb, release)
    lists = (ROOT / "csrc" / "CMakeLists.txt").read_text("utf-8")
    block = re.search(r"^if\(ATB_FOUND\).*?target_sources\((.*?)\)$", lists, re.DOTALL | re.MULTILINE)
    assert block is not None
    found = re.findall(r"backend/atb/(\w+\.cpp)", block[1])
    names = [*found, f"graph_launch_{launch_mode}.cpp"]
    source = scratch / release / "all.cpp"
    source.write_text("".join(f'#include "{BACKEND / name}"\n' for name in names), encoding="utf-8")
    includes = ("-I", ROOT / "csrc", "-isystem", toolkit / "include", "-isystem", atb / "include")
    flags = ("-std=c++20", "-fsyntax-only", *WARNINGS, '-DLLM_BOOST_ATB_VERSIONS="a release"')
    return subprocess.Popen([str(COMPILER), *flags, *includes, source], stderr=subprocess.PIPE, text=True)


@needs_compiler
def test_each_release_has_what_the_sources_call(tmp_path: Path) -> None:
    running = {r: compile_all(tmp_path, r, "absent" if r == "810" else "mode") for r in RELEASES}
    assert {release: compiler.communicate()[1] for release, compiler in running.items()} == dict.fromkeys(RELEASES, "")
    assert [compiler.returncode for compiler in running.values()] == [0] * len(RELEASES)


# -- FindATB.cmake -----------------------------------------------------------------------------------------------------

TOOLKIT_SCRIPT = "/usr/local/Ascend/ascend-toolkit/set_env.sh"
ATB_SCRIPT = "/usr/local/Ascend/nnal/atb/set_env.sh"


def write(path: Path, text: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def install(root: Path, release: str, abi: int = 1) -> dict[str, str]:
    """An installation without any library in its files, and the environment that its scripts would make."""
    toolkit, nnal = root / "ascend-toolkit" / "latest", root / "nnal" / "atb" / "latest"
    home = nnal / "atb" / f"cxx_abi_{abi}"
    lay_out_headers(toolkit, home, release)
    version = ".".join(release)
    write(toolkit / "lib64" / "libascendcl.so")
    write(toolkit / "aarch64-linux" / "ascend_toolkit_install.info", f"package_name=toolkit\nversion={version}\n")
    write(home / "lib" / "libatb.so")
    write(nnal / "version.info", f"Ascend-cann-atb : {version}\n")
    return {"ASCEND_HOME_PATH": str(toolkit), "ATB_HOME_PATH": str(home)}


def run_cmake(scratch: Path, environment: dict[str, str], *arguments: str | Path) -> str:
    """What CMake says about a project that looks for ATB, on standard error."""
    done = subprocess.run(
        [str(CMAKE), *arguments],
        cwd=scratch,
        env={"PATH": "/usr/bin:/bin", **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def not_found(scratch: Path, environment: dict[str, str]) -> list[str]:
    """What FindATB.cmake misses, a line each."""
    script = scratch / "find.cmake"
    write(script, f'list(APPEND CMAKE_MODULE_PATH "{ROOT}/cmake")\nfind_package(ATB QUIET)\n')
    with script.open("a", encoding="utf-8") as file:
        file.write('message("${ATB_NOT_FOUND_MESSAGE}")\nif(ATB_FOUND)\n  message(FATAL_ERROR "found")\nendif()\n')
    return [line.strip() for line in run_cmake(scratch, environment, "-P", script).splitlines() if line.strip()]


@needs_cmake
def test_nothing_is_sourced(tmp_path: Path) -> None:
    assert not_found(tmp_path, {"ASCEND_HOME_PATH": ""}) == [
        f"ASCEND_HOME_PATH or ASCEND_TOOLKIT_HOME is not set: source {TOOLKIT_SCRIPT}",
        f"ATB_HOME_PATH is not set: source {ATB_SCRIPT}",
    ]


@needs_cmake
@pytest.mark.parametrize(
    ("variable", "script"),
    [
        ("ASCEND_HOME_PATH", f"ASCEND_HOME_PATH or ASCEND_TOOLKIT_HOME is not set: source {TOOLKIT_SCRIPT}"),
        ("ATB_HOME_PATH", f"ATB_HOME_PATH is not set: source {ATB_SCRIPT}"),
    ],
)
def test_one_of_two_is_sourced(tmp_path: Path, variable: str, script: str) -> None:
    environment = install(tmp_path, "850")
    del environment[variable]
    assert not_found(tmp_path, environment) == [script]


@needs_cmake
@pytest.mark.parametrize(
    ("variable", "file", "package", "script"),
    [
        ("ASCEND_HOME_PATH", "include/acl/acl.h", "the CANN toolkit", TOOLKIT_SCRIPT),
        ("ASCEND_HOME_PATH", "lib64/libascendcl.so", "the CANN toolkit", TOOLKIT_SCRIPT),
        ("ATB_HOME_PATH", "include/atb/atb_infer.h", "NNAL", ATB_SCRIPT),
        ("ATB_HOME_PATH", "lib/libatb.so", "NNAL", ATB_SCRIPT),
    ],
)
def test_a_file_is_missing(tmp_path: Path, variable: str, file: str, package: str, script: str) -> None:
    environment = install(tmp_path, "850")
    missing = Path(environment[variable], file)
    missing.unlink()
    assert not_found(tmp_path, environment) == [f"{missing} does not exist: install {package}, then source {script}"]


@needs_cmake
def test_a_home_that_names_no_abi(tmp_path: Path) -> None:
    environment = install(tmp_path, "850")
    plain = Path(environment["ATB_HOME_PATH"]).rename(tmp_path / "atb")
    assert not_found(tmp_path, {**environment, "ATB_HOME_PATH": str(plain)}) == [
        f"ATB_HOME_PATH is {plain}, expected a directory cxx_abi_0 or cxx_abi_1: source {ATB_SCRIPT}"
    ]


@needs_cmake
@pytest.mark.parametrize(("release", "abi", "has_launch_mode"), [("810", 0, "FALSE"), ("910", 1, "TRUE")])
def test_an_installation(tmp_path: Path, release: str, abi: int, has_launch_mode: str) -> None:
    """Versions, ABI, and what the headers have, also where only the toolkit's older variable is set."""
    environment = install(tmp_path, release, abi)
    environment["ASCEND_TOOLKIT_HOME"] = environment.pop("ASCEND_HOME_PATH")
    text = f"""cmake_minimum_required(VERSION 3.20)
        project(looks LANGUAGES CXX)
        list(APPEND CMAKE_MODULE_PATH "{ROOT}/cmake")
        find_package(ATB REQUIRED)
        get_target_property(definitions ATB::ATB INTERFACE_COMPILE_DEFINITIONS)
        if(ATB_HAS_LAUNCH_MODE)
          set(has TRUE)
        else()
          set(has FALSE)
        endif()
        message("found ${{ATB_VERSIONS}} | ${{definitions}} | ${{has}}")"""
    write(tmp_path / "project" / "CMakeLists.txt", text)
    found = run_cmake(tmp_path, environment, "-S", tmp_path / "project", "-B", tmp_path / "build")
    version = ".".join(release)
    assert f"found CANN {version}, ATB {version} | _GLIBCXX_USE_CXX11_ABI={abi} | {has_launch_mode}\n" in found
