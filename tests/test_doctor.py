"""``llm-boost doctor``: what it finds, and what it says to do about it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

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
    "built_for": "CANN 8.5.0, ATB 8.5.0",
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
    assert found["atb backend"][0] == "built for CANN 8.5.0, ATB 8.5.0, C++ ABI 1"
    assert found["devices"][0] == "8 x Ascend910B2"
    assert found["device memory"][0] == "60.0 GiB free of 64.0 GiB on device 0"


@pytest.mark.parametrize(
    ("device", "name", "value", "advice"),
    [
        (NOTHING, "atb backend", "not in this build", "install llm_boost again: CANN and ATB can be found now"),
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


def test_an_incomplete_toolkit(ascend_host: tuple[dict[str, str], Path]) -> None:
    environment, root = ascend_host
    Path(environment["ASCEND_HOME_PATH"], "lib64/libascendcl.so").unlink()
    found = report({**environment, "ATB_HOME_PATH": "/gone"}, root, NOTHING)
    assert "lacks lib64/libascendcl.so" in found["CANN"][0]
    assert found["ATB"] == (
        "ATB_HOME_PATH is /gone, which is not there",
        "install it, then `source /usr/local/Ascend/nnal/atb/set_env.sh`",
    )


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert "cpu kernels" in text
    assert main(["doctor", "--json"]) == 0
    findings = json.loads(capsys.readouterr().out)
    assert {"name", "value", "advice"} == set(findings[0])
