"""`llm-boost bench MODEL`: complete and consistent reports; nothing is asserted about speed."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llm_boost import Model
from llm_boost.cli import bench_model, main
from llm_boost.cli.bench_model import Limits, Measurement, Workload, logits_hash

QUICK = (Workload(20, 4, 1), Workload(24, 1, 1), Workload(8, 5, 3), Workload(100_000, 1, 1))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_model, "WORKLOADS", QUICK)
    monkeypatch.setattr(bench_model, "find_limits", lambda _threads: Limits(1e10, 1e11))


def report_of(path: Path, *arguments: str) -> dict[str, Any]:
    assert main(["bench", *arguments, "--json", str(path)]) == 0
    report: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return report


@pytest.mark.usefixtures("quick")
def test_a_report_is_complete(
    tiny_model: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = tiny_model("qwen2_tied")
    report = report_of(tmp_path / "r.json", str(directory), "--repeat", "2")
    assert [r["kind"] for r in report["results"]] == ["decode", "prefill", "decode"]  # what the context has no room for
    assert report["load_seconds"] > 0
    assert report["peak_memory_bytes"] > report["info"]["weight_bytes"] > 0
    for result in report["results"]:
        assert len(result["tokens_per_second"]) == 2
        assert min(result["tokens_per_second"]) > 0
        assert result["limited_by"] in {"bandwidth", "arithmetic"}
        share = {"bandwidth": result["gb_per_second"] / 10, "arithmetic": result["gflop_per_second"] / 100}
        assert result["fraction_of_limit"] == pytest.approx(max(share.values()))
    with Model.from_pretrained(directory) as model:
        assert report["logits_hash"] == logits_hash(model)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("decode 1 ")
    assert lines[2].startswith("prefill 24 ")
    assert lines[3].startswith("decode 3 ")


@pytest.mark.usefixtures("quick")
def test_without_the_limits_there_are_no_fractions(
    tiny_model: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_model, "find_limits", lambda _threads: None)
    report = report_of(tmp_path / "r.json", str(tiny_model("llama_mha")), "--repeat", "1")
    assert report["limits"] is None
    assert all(r["fraction_of_limit"] is None for r in report["results"])


def test_the_machine_has_limits() -> None:
    limits = bench_model.find_limits(1)
    assert limits is not None
    assert limits.bytes_per_second > 1e8
    assert limits.flops_per_second > 1e8


def test_all_tokens_after_the_first_are_timed(tiny_model: Callable[[str], Path]) -> None:
    with Model.from_pretrained(tiny_model("llama_mha"), enable_prefix_caching=False) as model:
        prefill, decode, tokens = bench_model.time_requests(model, [[1, 2, 3]], 6)
    assert prefill > 0
    assert decode > 0
    assert tokens == 5


@pytest.mark.usefixtures("quick")
def test_a_plot_needs_matplotlib(
    tiny_model: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    path = tmp_path / "plot.svg"
    assert main(["bench", str(tiny_model("llama_mha")), "--repeat", "1", "--plot", str(path)]) == 2
    assert "pip install llm_boost[plot]" in capsys.readouterr().err


def test_a_plot_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs the extra 'plot'")
    from llm_boost.cli.bench_plot import plot

    path = tmp_path / "plot.svg"
    plot(path, "a title", ["decode 1"], [Measurement(Workload(1, 2, 1), [123.0], 1.0, 1.0, 0.5, "bandwidth")])
    assert "<svg" in path.read_text("utf-8")


def test_repeat_is_at_least_one(tiny_model: Callable[[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", str(tiny_model("llama_mha")), "--repeat", "0"]) == 2
    assert "--repeat is 0, expected at least 1" in capsys.readouterr().err
