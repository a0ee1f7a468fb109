"""The benchmark program: it runs, its results are complete and consistent. Nothing is asserted about speed."""

from __future__ import annotations

import json
import os
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import pytest

import llm_boost
from llm_boost import _core

PLACES = [Path(llm_boost.__file__).parent / "bin", Path(sysconfig.get_path("scripts"))]
PROGRAM = next(path for place in PLACES if (path := place / "llm_boost_bench").exists())
QUICK = ["--probe-mib", "8", "--threads", "2", "--repeat", "2"]


def run(*arguments: str, isa: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = os.environ | ({"LLM_BOOST_ISA": isa} if isa else {})
    return subprocess.run([PROGRAM, *arguments], capture_output=True, text=True, env=environment)


def run_json(*arguments: str, isa: str | None = None) -> dict[str, Any]:
    done = run(*arguments, *QUICK, "--json", "-", isa=isa)
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def check_result(result: dict[str, Any], unit: str) -> None:
    for rate in (result[f"{unit}_per_second"], result["seconds"]):
        assert 0 < rate["p10"] <= rate["median"] <= rate["p90"]
    assert result["gb_per_second"] == pytest.approx(result["bytes"] / result["seconds"]["median"] / 1e9, rel=1e-4)
    assert result["gflop_per_second"] == pytest.approx(result["flops"] / result["seconds"]["median"] / 1e9, rel=1e-4)
    if result["bytes"] > 0:
        assert result["fraction_of_limit"] > 0
        assert result["limited_by"] in {"bandwidth", "arithmetic"}


def test_a_model_gives_a_complete_report() -> None:
    report = run_json("tiny", "--workloads", "20x6x1,33x4x3", "--layers", "3")
    assert report["threads"] == 2
    assert report["isa"] == _core.isa_levels()[0]
    assert report["command"].endswith("--json -")
    assert report["version"] == llm_boost.__version__
    assert report["commit"]
    assert report["models"][0]["layers"] == 3
    for limit in report["limits"].values():
        assert limit["best"] >= limit["median"] > 0
    kinds = [(r["kind"], r["shape"]["prompt"], r["shape"]["batch"]) for r in report["results"]]
    assert kinds == [("prefill", 20, 1), ("decode", 20, 1), ("prefill", 33, 3), ("decode", 33, 3)]
    for result in report["results"]:
        check_result(result, "tokens")
        assert result["fraction_of_limit_beside"] > 0
        assert {"qkv", "attention", "gate_up", "logits", "engine"} <= {op["name"] for op in result["ops"]}
        assert 0 < sum(op["share"] for op in result["ops"]) < 1.01  # clocks are read one after another
    assert [r["samples"] for r in report["results"]] == [2, 10, 2, 6]


def test_steps_of_part_of_a_batch_are_in_no_breakdown() -> None:
    """Sequences that begin one after another end so too: two of the steps behind the last prompt have all three."""
    report = run_json("tiny", "--workloads", "32x5x3", "--max-num-batched-tokens", "40")
    decode = report["results"][1]
    assert decode["samples"] == 2 * 2
    assert 0.5 < sum(op["share"] for op in decode["ops"]) < 1.01


def test_bytes_and_flops_are_those_of_the_model() -> None:
    """The preset "tiny" by hand: E 64, F 96, H 4, K 2, D 16, V 1000, tied; 2 layers of bf16."""
    report = run_json("tiny", "--workloads", "16x2x1")
    layer = 64 * (64 + 2 * 32) + 64 * 64 + 64 * 192 + 96 * 64
    prefill, decode = report["results"]  # decode is one step, context 17
    # Of the last layer, fifteen tokens need keys and values alone.
    attention = 4 * 4 * 16 * (sum(range(1, 17)) + 16)
    assert prefill["flops"] == pytest.approx(
        2 * (16 * layer + 15 * 64 * 2 * 32 + layer + 64 * 1000) + attention, rel=1e-5
    )
    vectors = 2 * (64 + 64 + 64 + 2 * 32) + 64
    assert decode["flops"] == pytest.approx(2 * (2 * layer + 64 * 1000) + 2 * 4 * 4 * 16 * 17, rel=1e-5)
    # All weights as they are packed, the token's embedding, and the cache.
    packed = report["models"][0]["weight_bytes"]
    elements = 2 * layer + 64 * 1000 + vectors
    assert decode["bytes"] == pytest.approx(packed + packed / elements * 64 + 2 * 2 * 2 * 2 * 16 * 17, rel=1e-5)
    assert 1.5 < packed / elements < 1.6  # 12 bits, and what panels have beside


def test_weights_of_other_types_are_packed_as_they_are() -> None:
    for dtype, size in (("float16", 2), ("float32", 4)):
        packed = run_json("tiny", "--workloads", "16x2x1", "--dtype", dtype)["models"][0]["weight_bytes"]
        assert packed == pytest.approx(size * (2 * (64 * 128 + 64 * 64 + 64 * 192 + 96 * 64) + 64 * 1000), rel=0.05)


def test_logits_depend_on_the_seed_but_not_on_threads_or_chunks() -> None:
    def hashes(*arguments: str) -> list[str]:
        return [r["logits_hash"] for r in run_json("tiny", "--workloads", "40x3x1", *arguments)["results"]]

    expected = hashes()
    assert hashes("--threads", "1", "--max-num-batched-tokens", "7") == expected
    assert hashes("--seed", "2") != expected


@pytest.mark.parametrize("isa", _core.isa_levels())
def test_every_level_has_limits(isa: str) -> None:
    report = run_json("tiny", "--workloads", "8x2x1", isa=isa)
    assert report["isa"] == isa
    assert report["limits"]["flops_per_second"]["best"] > 1e8
    assert ("bf16" in report["limits"]["flops_per_second"]["probe"]) == (isa == "avx512bf16")


@pytest.mark.parametrize(
    ("kernel", "shape"),
    [
        ("gemv", "1x40x64"),
        ("gemm", "5x40x64"),
        ("gemm", "700x96x64"),  # several blocks of rows
        ("attention", "2x3x20x4x2x16"),
        ("rope", "5x2x16"),
        ("norm", "3x70"),
        ("sampler", "1000x20x90"),
        ("scheduler", "4x64"),
    ],
)
def test_kernels(kernel: str, shape: str) -> None:
    report = run_json("kernels", kernel, "--shapes", shape)
    (result,) = report["results"]
    assert result["kind"] == kernel
    assert list(result["shape"].values()) == [int(extent) for extent in shape.split("x")]
    check_result(result, "calls")


def test_text_names_the_facts_of_a_run(tmp_path: Path) -> None:
    done = run("tiny", "--workloads", "8x2x1", *QUICK, "--json", str(tmp_path / "out.json"))
    assert done.returncode == 0
    assert "limits: read" in done.stdout
    assert "of the" in done.stdout
    assert json.loads((tmp_path / "out.json").read_text())["results"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gpt-5"], "there is no preset 'gpt-5'; there are llama2-7b"),
        (["kernels", "gemmm"], "there is no kernel 'gemmm'; there are gemv"),
        (["tiny", "--workload", "8x2x1"], "there is no option '--workload'; there are --workloads"),
        (["tiny", "--workloads", "8x2"], "expected PROMPTxGENERATExBATCH"),
        (["tiny", "--workloads", "8x2xa"], "--workloads is 'a', expected a number from 1"),
        (["tiny", "--layers"], "--layers needs a value: N"),
        (["tiny", "--no-ops=1"], "--no-ops takes no value"),
        (["tiny", "--dtype", "int8"], "--dtype"),
        (["tiny", "--backend", "gpu"], "backend 'gpu' is not available in this build; available: "),
        (["tiny", "--shapes", "1x2"], "--shapes belongs to one kernel"),
        (["kernels", "norm", "--shapes", "3"], "norm has shapes ROWSxCOLUMNS, found 1 extents"),
        (["limits", "now"], "'limits' takes no name"),
    ],
)
def test_errors_name_the_remedy(arguments: list[str], message: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.startswith("llm_boost_bench: ")


def test_help_lists_presets_and_kernels() -> None:
    text = run("--help").stdout
    assert "qwen2-0.5b" in text
    assert "SEQUENCESxTOKENSxCONTEXT" in text
