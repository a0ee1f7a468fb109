"""What the core finds out about the machine, and its thread pool."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from llm_boost import _core, _testing


def cgroup(root: Path, membership: str, files: dict[str, str]) -> str:
    (root / "proc" / "self").mkdir(parents=True)
    (root / "proc" / "self" / "cgroup").write_text(membership)
    (root / "proc" / "meminfo").write_text("MemTotal: 900 kB\nMemAvailable:    800 kB\n")
    for name, content in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return str(root)


MASK = len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("membership", "files", "expected"),
    [
        ("0::/\n", {}, MASK),
        ("0::/\n", {"cpu.max": "max 100000\n"}, MASK),
        ("0::/\n", {"cpu.max": "100000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "20000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "6400000 100000\n"}, MASK),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "100000 100000\n"}, 1),
        ("0::/gone\n", {"cpu.max": "100000 100000\n"}, 1),
        (
            "4:cpu,cpuacct:/job\n1:name=systemd:/x\n",
            {"cpu/job/cpu.cfs_quota_us": "100000\n", "cpu/job/cpu.cfs_period_us": "100000\n"},
            1,
        ),
        ("4:cpu:/job\n", {"cpu/job/cpu.cfs_quota_us": "-1\n", "cpu/job/cpu.cfs_period_us": "100000\n"}, MASK),
        ("garbage\n", {"cpu.max": "garbage\n"}, MASK),
    ],
)
def test_threads_follow_affinity_and_quota(
    tmp_path: Path, membership: str, files: dict[str, str], expected: int
) -> None:
    assert _testing.usable_threads(cgroup(tmp_path, membership, files)) == expected


def test_threads_follow_the_affinity_mask() -> None:
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from llm_boost import _core; print(_core.usable_threads())"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "1"
    )
    assert 1 <= _core.usable_threads() <= MASK


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 800 * 1024),
        ({"memory.max": "max\n", "memory.current": "5\n"}, 800 * 1024),
        ({"memory.max": "5000\n", "memory.current": "3000\n"}, 2000),
        ({"memory.max": "5000\n", "memory.current": "6000\n"}, 0),
    ],
)
def test_available_memory(tmp_path: Path, files: dict[str, str], expected: int) -> None:
    assert _testing.available_memory(cgroup(tmp_path, "0::/\n", files)) == expected


@pytest.mark.parametrize("num_threads", [1, 2, 3, 8])
def test_every_member_of_the_pool_works_once_a_job(num_threads: int) -> None:
    sums = _testing.pool_sums(num_threads, 300)
    assert sums == [num_threads * (num_threads - 1) // 2 + num_threads * job for job in range(300)]


@pytest.mark.parametrize("num_threads", [1, 2, 5])
@pytest.mark.parametrize("count", [0, 1, 3, 1000])
def test_every_piece_is_computed_once(num_threads: int, count: int) -> None:
    for _ in range(20):
        assert _testing.share_pieces(num_threads, count, -1) == [1] * count


def test_a_member_that_does_not_come_is_not_waited_for() -> None:
    assert _testing.share_pieces(3, 100, 1) == [1] * 100
