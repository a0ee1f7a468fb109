"""The whole core on AArch64, under an emulator: it computes, and its exact equalities hold there too."""

from __future__ import annotations

import json
import subprocess
from typing import Any

from reference.kernel_client import AARCH64_BIN, EMULATOR, needs_emulator


def bench(*arguments: str) -> dict[str, Any]:
    command = [str(EMULATOR), str(AARCH64_BIN / "llm_boost_bench"), "tiny", "--repeat", "1", "--probe-mib", "1"]
    done = subprocess.run([*command, "--json", "-", *arguments], capture_output=True, text=True, check=True)
    report: dict[str, Any] = json.loads(done.stdout)
    return report


@needs_emulator
def test_a_model_runs_on_neon() -> None:
    report = bench("--threads", "2", "--workloads", "40x3x1")
    assert report["isa"] == "neon"
    assert report["limits"]["flops_per_second"]["probe"] == "fmla"
    hashes = [r["logits_hash"] for r in report["results"]]
    again = bench("--threads", "1", "--max-num-batched-tokens", "7", "--workloads", "40x3x1")
    assert [r["logits_hash"] for r in again["results"]] == hashes
