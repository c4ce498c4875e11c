"""Memory as the control group allows it, free disk, sizes in words."""

from __future__ import annotations

from pathlib import Path

import pytest

from palimpsest.machine import Memory, cores, disk, in_words, memory

GIB = 1 << 30


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    folder = tmp_path / "proc"
    (folder / "self").mkdir(parents=True)
    lines = f"MemTotal: {16 << 20} kB\nMemFree: {1 << 20} kB\nMemAvailable: {12 << 20} kB\nSwapTotal: {2 << 20} kB\n"
    (folder / "meminfo").write_text(lines)
    (folder / "self" / "cgroup").write_text("0::/a/b\n")
    return folder


def group(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("_", ".", 1)).write_text(f"{content}\n")


def test_without_a_limit_the_machine_counts(proc: Path, tmp_path: Path) -> None:
    assert memory(proc, tmp_path / "none") == Memory(16 * GIB, 12 * GIB, "this machine", 2 * GIB)
    group(tmp_path / "cg" / "a" / "b", memory_max="max", memory_current=3 * GIB)
    assert memory(proc, tmp_path / "cg").total == 16 * GIB


def test_the_least_limit_on_the_way_up_counts_and_droppable_pages_are_free(proc: Path, tmp_path: Path) -> None:
    root = tmp_path / "cg"
    group(root / "a" / "b", memory_max=8 * GIB, memory_current=1 * GIB)
    group(root / "a", memory_max=4 * GIB, memory_current=3 * GIB, memory_stat=f"anon 5\ninactive_file {GIB}")
    found = memory(proc, root)
    assert (found.total, found.available, found.of) == (4 * GIB, 2 * GIB, "this container")


def test_version_one_groups_are_read_too(proc: Path, tmp_path: Path) -> None:
    (proc / "self" / "cgroup").write_text("5:devices:/x\n4:memory:/job\n0::/\n")
    job = tmp_path / "cg" / "memory" / "job"
    job.mkdir(parents=True)
    (job / "memory.limit_in_bytes").write_text(str(2 * GIB))
    (job / "memory.usage_in_bytes").write_text(str(GIB // 2))
    root = job.parent
    (root / "memory.limit_in_bytes").write_text("9223372036854771712")
    (root / "memory.usage_in_bytes").write_text("0")
    found = memory(proc, tmp_path / "cg")
    assert (found.total, found.available) == (2 * GIB, 3 * GIB // 2)


def test_a_container_that_sees_its_own_group_at_the_root(proc: Path, tmp_path: Path) -> None:
    group(tmp_path / "cg", memory_max=GIB, memory_current=0)
    assert memory(proc, tmp_path / "cg").total == GIB


def test_this_machine_has_memory_cores_and_disk(tmp_path: Path) -> None:
    here = memory()
    assert 0 < here.available <= here.total and cores() >= 1
    number, free = disk(tmp_path / "not" / "there" / "yet")
    assert (number, free > 0) == (tmp_path.stat().st_dev, True)


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (150 << 20, "150 MiB"),
        (7 * GIB // 2, "3.5 GiB"),
        (3 << 41, "6.0 TiB"),
    ],
)
def test_sizes_in_words(count: int, words: str) -> None:
    assert in_words(count) == words
