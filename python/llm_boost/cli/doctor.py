"""``llm-boost doctor``: what this installation can use of the machine, and what to do about each problem."""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llm_boost import __version__, _core

SUMMARY = "show what this installation finds on the machine, and what to do about problems"

_ASCEND = Path("usr/local/Ascend")
_TOOLKIT_SCRIPT = "/usr/local/Ascend/ascend-toolkit/set_env.sh"
_ATB_SCRIPT = "/usr/local/Ascend/nnal/atb/set_env.sh"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report.

    Attributes:
        name: What was looked at.
        value: What was found, in words.
        advice: What to do about it; empty where all is well.
    """

    name: str
    value: str
    advice: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Defines the command's arguments."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def main(arguments: argparse.Namespace) -> int:
    """Prints the findings; problems are no failure of this command."""
    findings = examine(os.environ, Path("/"), _core.device_report())
    if arguments.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
        return 0
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        print(f"{finding.name:{width}}  {finding.value}")
        if finding.advice:
            print(f"{'':{width}}  -> {finding.advice}")
    return 0


def examine(environment: Mapping[str, str], root: Path, device: Mapping[str, Any]) -> list[Finding]:
    """Looks at everything.

    Args:
        environment: The environment variables.
        root: Where the file system begins; tests put it elsewhere.
        device: What `_core.device_report()` gives.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = _core.usable_threads()
    toolkit, atb = _toolkit(environment), _atb(environment)
    return [
        Finding("llm_boost", f"{__version__}, Python {platform.python_version()}, {sys.platform} {platform.machine()}"),
        Finding("backends", ", ".join(_core.backend_names())),
        Finding("cpu kernels", f"{_core.isa_levels()[0]} (of {', '.join(_core.isa_levels())})"),
        Finding("threads", f"{threads} (affinity allows {affinity}, the rest is the control group's CPU quota)"),
        _driver(root),
        toolkit,
        atb,
        _backend(environment, device, toolkit, atb),
        *_devices(device, root),
    ]


def _version(*files: Path) -> str:
    """As cmake/FindATB.cmake finds it."""
    for file in files:
        if file.is_file():
            text = file.read_text("utf-8", errors="replace")
            lines = [line for line in text.splitlines() if re.search(r"[Vv]ersion|: *\d+\.", line)]
            match = re.search(r"\d+\.\d+[A-Za-z0-9.]*", "\n".join(lines))
            if match:
                return match[0]
    return "of an unknown version"


def _driver(root: Path) -> Finding:
    home = root / _ASCEND / "driver"
    if not home.is_dir():
        return Finding("driver", "not found", "no Ascend device can be used: on an Ascend host, install its driver")
    return Finding("driver", _version(home / "version.info"))


def _home(environment: Mapping[str, str], script: str, *names: str) -> tuple[Path | None, str, str]:
    """The directory that the first variable names, or what is wrong and what to do."""
    for name in names:
        if environment.get(name):
            home = Path(environment[name])
            return (
                (home, "", "")
                if home.is_dir()
                else (None, f"{name} is {home}, which is not there", f"install it, then `source {script}`")
            )
    return None, f"not found: {' or '.join(names)} is not set", f"for Ascend devices, `source {script}`"


def _toolkit(environment: Mapping[str, str]) -> Finding:
    home, problem, advice = _home(environment, _TOOLKIT_SCRIPT, "ASCEND_HOME_PATH", "ASCEND_TOOLKIT_HOME")
    if home is None:
        return Finding("CANN", problem, advice)
    infos = sorted(home.glob("*/ascend_toolkit_install.info"))
    version = _version(*infos, home / "version.cfg", home / "compiler" / "version.info")
    if not (home / "lib64" / "libascendcl.so").is_file():
        return Finding("CANN", f"{version}, {home} lacks lib64/libascendcl.so", "install the CANN toolkit again")
    return Finding("CANN", f"{version}, {home}")


def _atb(environment: Mapping[str, str]) -> Finding:
    home, problem, advice = _home(environment, _ATB_SCRIPT, "ATB_HOME_PATH")
    if home is None:
        return Finding("ATB", problem, advice)
    version = _version(home.parent.parent / "version.info", home.parent / "version.info")
    if not (home / "lib" / "libatb.so").is_file():
        return Finding("ATB", f"{version}, {home} lacks lib/libatb.so", "install the NNAL package again")
    return Finding("ATB", f"{version}, {home}")


def _backend(environment: Mapping[str, str], device: Mapping[str, Any], toolkit: Finding, atb: Finding) -> Finding:
    name = "atb backend"
    if not device["is_built"]:
        is_complete = not toolkit.advice and not atb.advice
        advice = "install llm_boost again: CANN and ATB can be found now" if is_complete else ""
        return Finding(name, "not in this build", advice)
    built = f"built for {device['built_for']}, C++ ABI {device['abi']}"
    abi = re.search(r"cxx_abi_([01])/?$", environment.get("ATB_HOME_PATH", ""))
    if abi is not None and int(abi[1]) != device["abi"]:
        return Finding(
            name,
            f"{built}, but ATB_HOME_PATH is of ABI {abi[1]}",
            f"`source {_ATB_SCRIPT} --cxx_abi={device['abi']}`, or install llm_boost again",
        )
    if not toolkit.advice and not atb.advice:
        found = ", ".join(f"{each.name} {each.value.partition(', ')[0]}" for each in (toolkit, atb))
        if found != device["built_for"] and "unknown" not in found + built:
            return Finding(
                name, f"{built}, but here are {found}", "install llm_boost again, to have it built for these"
            )
    return Finding(name, built)


def _devices(device: Mapping[str, Any], root: Path) -> list[Finding]:
    if not device["is_built"]:
        nodes = sorted(root.glob("dev/davinci[0-9]*"))
        if not nodes:
            return [Finding("devices", "none")]
        return [Finding("devices", f"{len(nodes)} that this build cannot use", "source both set_env.sh, install again")]
    if device["problem"]:
        return [Finding("devices", device["problem"], "look at `npu-smi info` and at CANN's log")]
    if device["num_devices"] == 0:
        return [Finding("devices", "none", "look at `npu-smi info`; in a container, pass /dev/davinci* into it")]
    free, total = device["free_bytes"] / 2**30, device["total_bytes"] / 2**30
    advice = "something else uses the device" if device["free_bytes"] < device["total_bytes"] // 2 else ""
    return [
        Finding("devices", f"{device['num_devices']} x {device['soc']}"),
        Finding("device memory", f"{free:.1f} GiB free of {total:.1f} GiB on device 0", advice),
    ]
