"""Memory that can still be had, in made-up control groups of Linux; room that threads share."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import psutil
import pytest

from pipeline.data.memory import Room, available_memory, cores

GB = 10**9
MACHINE = 64 * GB
V2 = ("memory.max", "memory.current", "inactive_file")
V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=MACHINE))


def member(root, *lines):
    """The control groups that the process is in."""
    file = root / "proc/self/cgroup"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{line}\n" for line in lines))


def group(root, path, names, limit, used, cached=0):
    """A control group: its limit, what is used of it, and how much of that are unused files."""
    folder = root / "sys/fs/cgroup" / path
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\n{names[2]} {cached}\nslab 7\n")


def test_without_control_groups_it_is_the_machines(tmp_path):
    assert available_memory(tmp_path) == MACHINE


def test_a_limit_of_version_2(tmp_path):
    member(tmp_path, "0::/job.slice/run")
    group(tmp_path, "job.slice/run", V2, 8 * GB, 3 * GB, GB)
    assert available_memory(tmp_path) == 6 * GB


def test_the_tightest_of_the_groups_around_counts(tmp_path):
    member(tmp_path, "0::/a/b/c")
    group(tmp_path, "a/b/c", V2, "max", GB)
    group(tmp_path, "a/b", V2, 9 * GB, 8 * GB)
    group(tmp_path, "a", V2, 20 * GB, 9 * GB)
    assert available_memory(tmp_path) == GB


def test_in_a_container_the_mount_itself_is_the_group(tmp_path):
    member(tmp_path, "0::/")
    group(tmp_path, "", V2, 4 * GB, GB)
    assert available_memory(tmp_path) == 3 * GB


@pytest.mark.parametrize("controllers", ["memory", "hugetlb,memory"])
def test_a_limit_of_version_1(tmp_path, controllers):
    member(tmp_path, "5:cpu:/other", f"4:{controllers}:/docker/abc", "1:name=systemd:/", "0::/")
    group(tmp_path, f"{controllers}/docker/abc", V1, 2 * GB, GB, GB // 2)
    group(tmp_path, "cpu/other", V1, 1, 1)
    assert available_memory(tmp_path) == GB * 3 // 2


def test_a_path_outside_of_the_container_is_that_of_the_mount(tmp_path):
    member(tmp_path, "4:memory:/docker/abc")
    group(tmp_path, "memory", V1, 2 * GB, GB)
    assert available_memory(tmp_path) == GB


def test_version_2_beside_version_1(tmp_path):
    member(tmp_path, "4:memory:/", "0::/user")
    group(tmp_path, "memory", V1, 2**63 - 4096, GB)  # what version 1 says for none
    group(tmp_path, "unified/user", V2, 5 * GB, GB)
    assert available_memory(tmp_path) == 4 * GB


def test_more_in_use_than_the_limit_leaves_nothing(tmp_path):
    member(tmp_path, "0::/")
    group(tmp_path, "", V2, GB, 2 * GB)
    assert available_memory(tmp_path) == 0


@pytest.mark.parametrize("limit", ["max", "", "-1", "many", "1.5"])
def test_what_is_no_number_is_no_limit(tmp_path, limit):
    member(tmp_path, "0::/")
    group(tmp_path, "", V2, limit, GB)
    assert available_memory(tmp_path) == MACHINE


def test_damaged_files_are_no_limit(tmp_path):
    member(tmp_path, "", "nonsense", "0::/gone", "4:memory")
    group(tmp_path, "", V2, 3 * GB, GB)
    (tmp_path / "sys/fs/cgroup/memory.stat").write_bytes(b"\xff\n\nalone\ninactive_file x\n")
    assert available_memory(tmp_path) == 2 * GB


def test_threads_have_no_more_than_the_room_and_what_is_larger_comes_alone():
    room, lock, inside, seen = Room(10), threading.Lock(), [], []

    def work(amount):
        with room.of(amount):
            with lock:
                inside.append(amount)
                seen.append(tuple(inside))
            with lock:
                inside.remove(amount)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, [1, 4, 4, 0, 3, 25, 10, 7] * 200))
    assert len(seen) == 1600 and not inside
    assert all(sum(amounts) <= 10 or amounts in ((25,), (25, 0), (0, 25)) for amounts in seen)


def test_whoever_waits_for_room_is_overtaken_by_nobody():
    room, order = Room(10), []

    def work(amount):
        with room.of(amount):
            order.append(amount)

    with ThreadPoolExecutor(2) as pool, room.of(1):
        waiting = pool.submit(work, 25)
        while not room._turn.locked():
            pass
        pool.submit(work, 2)
        assert not waiting.done() and not order
    assert order == [25, 2]


def test_room_is_given_back_where_the_work_fails():
    room = Room(10)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), room.of(10):
            1 / 0  # noqa: B018
    with room.of(10):
        pass


def test_cores_are_those_that_the_process_is_bound_to(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {2, 3}, raising=False)
    assert cores() == 2
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert cores() == 1
