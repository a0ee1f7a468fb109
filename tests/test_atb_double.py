"""The test double of an Ascend device: each rule fires, and each operation computes what its definition says."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import atb_double_collectives
import atb_double_operations
import atb_double_rules
import atb_double_runtime
import pytest

TESTS = Path(__file__).parent
# Scenarios by the settings they need: each group is a process, since the double reads its settings once.
GROUPS = {
    "rules": (atb_double_rules, atb_double_rules.DEFAULT, {}),
    "runtime": (atb_double_runtime, atb_double_runtime.DEFAULT, {}),
    "lazy": (atb_double_runtime, atb_double_runtime.LAZY, {"ATB_DOUBLE_SCHEDULE": "lazy"}),
    "null": (atb_double_runtime, atb_double_runtime.NULL, {"ATB_DOUBLE_MODE": "null"}),
    "operations": (atb_double_operations, atb_double_operations.DEFAULT, {}),
    "310P": (atb_double_operations, atb_double_operations.CHIP_310P, {"ATB_DOUBLE_SOC": "Ascend310P3"}),
}
PAIRS = [scenario.__name__ for scenario in atb_double_collectives.PAIRS]


@pytest.fixture(scope="session")
def double_root() -> Path:
    """The double that the core, which conftest loaded, was built with; else one beside the other build outputs."""
    for line in Path("/proc/self/maps").read_text("utf-8").splitlines():
        if line.endswith("libascendcl.so"):
            return Path(line.split()[-1]).parents[3]
    build = TESTS.parent / "build" / "atb_double"
    for arguments in (["-S", str(TESTS / "atb_double"), "-B", str(build)], ["--build", str(build)]):
        subprocess.run(["cmake", *arguments], check=True, capture_output=True)
    return build / "Ascend"


def start(module: str, root: Path, *arguments: str, **settings: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(TESTS / f"{module}.py"), str(root), *arguments]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ATB_DOUBLE_")}
    return subprocess.Popen(
        command, env={**environment, **settings}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen[str]) -> dict[str, str]:
    out, err = process.communicate()
    assert process.returncode == 0, f"exit status {process.returncode}\n{err}"
    found = json.loads(out)
    assert isinstance(found, dict)
    return found


@pytest.fixture(scope="session")
def results(double_root: Path) -> dict[str, dict[str, str]]:
    """What went wrong in each scenario of each group, as text; empty where all is well."""
    running = {
        name: start(module.__name__, double_root, *[scenario.__name__ for scenario in scenarios], **settings)
        for name, (module, scenarios, settings) in GROUPS.items()
    }
    return {name: finish(process) for name, process in running.items()}


@pytest.mark.parametrize(
    ("group", "scenario"), [(name, s.__name__) for name, (_, scenarios, _) in GROUPS.items() for s in scenarios]
)
def test_scenario(results: dict[str, dict[str, str]], group: str, scenario: str) -> None:
    assert results[group][scenario] == "", results[group][scenario]


@pytest.mark.parametrize("scenario", PAIRS)
def test_two_ranks(double_root: Path, scenario: str) -> None:
    settings = {"ATB_SHARE_MEMORY_NAME_SUFFIX": f"{os.getpid()}_{scenario}"}
    ranks = [start("atb_double_collectives", double_root, scenario, str(rank), **settings) for rank in range(2)]
    assert [finish(rank) for rank in ranks] == [{scenario: ""}, {scenario: ""}]


@pytest.mark.parametrize("leaks", [False, True])
def test_what_is_alive_at_exit_is_an_error(double_root: Path, tmp_path: Path, leaks: bool) -> None:
    log = tmp_path / "log"
    finish(start("atb_double_runtime", double_root, "leak" if leaks else "clean_exit", ATB_DOUBLE_LOG_FILE=str(log)))
    text = log.read_text("utf-8") if log.exists() else ""
    assert ("1 device_memory" in text) == leaks, text


def test_settings_are_checked(double_root: Path) -> None:
    process = start("atb_double_runtime", double_root, "clean_exit", ATB_DOUBLE_MODE="fast")
    assert "ATB_DOUBLE_MODE is 'fast', expected compute or null" in process.communicate()[1]


def test_the_host_cannot_touch_device_memory(double_root: Path) -> None:
    process = start("atb_double_runtime", double_root, "touch_device_memory")
    _, errors = process.communicate()
    assert process.returncode == -signal.SIGSEGV or "SEGV on unknown address" in errors, errors
