"""`llm-boost bench MODEL`: complete and consistent reports; nothing is asserted about speed."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

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


class _Answers:
    """Stands for an engine and its queue: the outputs of two requests, in batches that come one after the other."""

    def __init__(self, batches: list[list[tuple[int, str]]]) -> None:
        self._batches = [[SimpleNamespace(request=r, finish_reason=f) for r, f in batch] for batch in batches]
        self._next_request = 0

    def check(self, prompt: list[int], params: object) -> None:
        """Any prompt will do."""

    def submit(self, prompt: list[int], params: object, queue: object) -> int:
        self._next_request += 1
        return self._next_request

    def pop(self, timeout_ms: int) -> list[SimpleNamespace]:
        time.sleep(0.02)
        return self._batches.pop(0)


@pytest.mark.parametrize(
    ("batches", "prefill_steps", "decode_steps", "tokens"),
    [
        ([[(1, "")], [(2, "")], [(1, ""), (2, "")], [(1, "length"), (2, "length")]], 2, 2, 4),
        ([[(1, ""), (1, "length")], [(2, "")], [(2, "length")]], 2, 1, 1),
        ([[(1, ""), (1, "length"), (2, ""), (2, "length")]], 1, 1, 4),  # too fast to tell the prompts from the rest
    ],
)
def test_tokens_after_the_first_are_timed(
    monkeypatch: pytest.MonkeyPatch,
    batches: list[list[tuple[int, str]]],
    prefill_steps: int,
    decode_steps: int,
    tokens: int,
) -> None:
    answers = _Answers(batches)
    monkeypatch.setattr(bench_model._core, "OutputQueue", lambda: answers)
    num_tokens = sum(map(len, batches)) // 2
    model = cast("Model", SimpleNamespace(_core=answers))
    prefill, decode, timed = bench_model.time_requests(model, [[1, 2, 3], [4]], num_tokens)
    assert timed == tokens
    assert prefill >= 0.02 * prefill_steps
    assert decode >= 0.02 * decode_steps


def test_a_real_engine_is_timed(tiny_model: Callable[[str], Path]) -> None:
    with Model.from_pretrained(tiny_model("llama_mha"), enable_prefix_caching=False) as model:
        prefill, decode, tokens = bench_model.time_requests(model, [[1, 2, 3]], 6)
    assert prefill > 0
    assert decode > 0
    assert 1 <= tokens <= 6  # how many come together with the first is up to the threads


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
