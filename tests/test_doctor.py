"""``llm-boost doctor``: what it finds, and what it says to do about it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

import llm_boost
from llm_boost.cli import main
from llm_boost.cli.doctor import examine

NOTHING: dict[str, Any] = {
    "is_built": False,
    "built_for": "",
    "abi": 0,
    "num_devices": 0,
    "soc": "",
    "free_bytes": 0,
    "total_bytes": 0,
    "problem": "",
}
DEVICE: dict[str, Any] = {
    "is_built": True,
    "built_for": "CANN 8.2.RC1, ATB 8.2.RC1",
    "abi": 1,
    "num_devices": 8,
    "soc": "Ascend910B2",
    "free_bytes": 60 << 30,
    "total_bytes": 64 << 30,
    "problem": "",
}


def report(environment: dict[str, str], root: Path, device: dict[str, Any]) -> dict[str, tuple[str, str]]:
    return {finding.name: (finding.value, finding.advice) for finding in examine(environment, root, device)}


@pytest.fixture
def ascend_host(tmp_path: Path) -> tuple[dict[str, str], Path]:
    """A file system with driver, CANN and ATB, and the environment that their scripts make."""
    ascend = tmp_path / "usr/local/Ascend"
    toolkit, atb = ascend / "ascend-toolkit/latest", ascend / "nnal/atb/latest/atb/cxx_abi_1"
    files = {
        ascend / "driver/version.info": "Version=24.1.rc3\n",
        toolkit / "aarch64-linux/ascend_toolkit_install.info": "package_name=Ascend-cann-toolkit\nversion=8.2.RC1\n",
        toolkit / "lib64/libascendcl.so": "",
        ascend / "nnal/atb/latest/version.info": "Ascend-cann-atb : 8.2.RC1\n",
        atb / "lib/libatb.so": "",
    }
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return {"ASCEND_HOME_PATH": str(toolkit), "ATB_HOME_PATH": str(atb)}, tmp_path


def test_a_machine_without_ascend(tmp_path: Path) -> None:
    found = report({}, tmp_path, NOTHING)
    assert found["driver"][0] == "not found"
    assert found["CANN"][0] == "not found: ASCEND_HOME_PATH or ASCEND_TOOLKIT_HOME is not set"
    assert found["CANN"][1].endswith("`source /usr/local/Ascend/ascend-toolkit/set_env.sh`")
    assert found["ATB"][1].endswith("`source /usr/local/Ascend/nnal/atb/set_env.sh`")
    assert found["atb backend"] == ("not in this build", "")
    assert found["devices"] == ("none", "")


def test_an_ascend_host(ascend_host: tuple[dict[str, str], Path]) -> None:
    environment, root = ascend_host
    found = report(environment, root, DEVICE)
    assert {name: advice for name, (_, advice) in found.items() if advice} == {}
    assert found["driver"][0] == "24.1.rc3"
    assert found["CANN"][0].startswith("8.2.RC1, ")
    assert found["ATB"][0].startswith("8.2.RC1, ")
    assert found["atb backend"][0] == "built for CANN 8.2.RC1, ATB 8.2.RC1, C++ ABI 1"
    assert found["devices"][0] == "8 x Ascend910B2"
    assert found["device memory"][0] == "60.0 GiB free of 64.0 GiB on device 0"


@pytest.mark.parametrize(
    ("device", "name", "value", "advice"),
    [
        (NOTHING, "atb backend", "not in this build", "install llm_boost again: CANN and ATB can be found now"),
        ({**DEVICE, "built_for": "CANN 8.5.0, ATB 8.2.RC1"}, "atb backend", "but here are CANN 8.2.RC1", "again"),
        ({**DEVICE, "built_for": "CANN unknown, ATB 8.5.0"}, "atb backend", "CANN unknown", ""),
        ({**DEVICE, "abi": 0}, "atb backend", "but ATB_HOME_PATH is of ABI 1", "--cxx_abi=0"),
        ({**DEVICE, "num_devices": 0}, "devices", "none", "npu-smi info"),
        ({**DEVICE, "problem": "aclInit failed"}, "devices", "aclInit failed", "CANN's log"),
        ({**DEVICE, "free_bytes": 1 << 30}, "device memory", "1.0 GiB free", "something else uses the device"),
    ],
)
def test_problems(
    ascend_host: tuple[dict[str, str], Path], device: dict[str, Any], name: str, value: str, advice: str
) -> None:
    found = report(*ascend_host, device)
    assert value in found[name][0]
    assert advice in found[name][1]


@pytest.mark.parametrize(
    ("variable", "name", "script"),
    [("ASCEND_HOME_PATH", "CANN", "ascend-toolkit/set_env.sh"), ("ATB_HOME_PATH", "ATB", "nnal/atb/set_env.sh")],
)
def test_one_script_is_not_sourced(
    ascend_host: tuple[dict[str, str], Path], variable: str, name: str, script: str
) -> None:
    environment, root = ascend_host
    del environment[variable]
    found = report(environment, root, NOTHING)
    assert found[name][0].startswith("not found: ASCEND_HOME_PATH" if name == "CANN" else "not found: ATB_HOME_PATH")
    assert script in found[name][1]
    assert found["atb backend"] == ("not in this build", "")  # building again would not help yet


def test_a_driver_that_is_missing(ascend_host: tuple[dict[str, str], Path]) -> None:
    environment, root = ascend_host
    shutil.rmtree(root / "usr/local/Ascend/driver")
    found = report(environment, root, {**DEVICE, "num_devices": 0})
    assert found["driver"] == (
        "not found",
        "no Ascend device can be used: on an Ascend host, install its driver",
    )
    assert "npu-smi info" in found["devices"][1]


def test_devices_without_the_backend(ascend_host: tuple[dict[str, str], Path]) -> None:
    environment, root = ascend_host
    for number in range(2):
        (root / "dev").mkdir(exist_ok=True)
        (root / "dev" / f"davinci{number}").touch()
    assert report(environment, root, NOTHING)["devices"] == (
        "2 that this build cannot use",
        "source both set_env.sh, install again",
    )


def test_an_incomplete_toolkit(ascend_host: tuple[dict[str, str], Path]) -> None:
    environment, root = ascend_host
    Path(environment["ASCEND_HOME_PATH"], "lib64/libascendcl.so").unlink()
    found = report({**environment, "ATB_HOME_PATH": "/gone"}, root, NOTHING)
    assert "lacks lib64/libascendcl.so" in found["CANN"][0]
    assert found["ATB"] == (
        "ATB_HOME_PATH is /gone, which is not there",
        "install it, then `source /usr/local/Ascend/nnal/atb/set_env.sh`",
    )


def test_a_library_is_missing_at_run_time(tmp_path: Path) -> None:
    """Then not even the doctor starts: the error says what to source."""
    package = tmp_path / "llm_boost"
    package.mkdir()
    shutil.copy(Path(llm_boost.__file__), package)
    (package / f"_core{sysconfig.get_config_var('EXT_SUFFIX')}").touch()  # what cannot be loaded
    done = subprocess.run([sys.executable, "-c", "import llm_boost"], cwd=tmp_path, capture_output=True, text=True)
    assert "_core" in done.stderr.splitlines()[-1]
    assert "source /usr/local/Ascend/ascend-toolkit/set_env.sh and /usr/local/Ascend/nnal/atb/set_env.sh" in done.stderr


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert "cpu kernels" in text
    assert main(["doctor", "--json"]) == 0
    findings = json.loads(capsys.readouterr().out)
    assert {"name", "value", "advice"} == set(findings[0])
