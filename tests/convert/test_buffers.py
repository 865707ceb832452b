"""Memory that is used again, files past the page cache, copies of transposed arrays, and hashes from offered bytes."""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
from concurrent.futures import ThreadPoolExecutor

import ml_dtypes
import numpy as np
import pytest

from checkpoints_convert import buffers, transpose
from checkpoints_convert.buffers import PAGE, PlacedFile, empty, read_file, sync, write_file
from checkpoints_convert.digest import Digests
from checkpoints_convert.transpose import copy

SIZES = [0, 1, PAGE - 1, PAGE, buffers.LARGE, buffers.LARGE + 1, 3 * buffers.LARGE - 5]


@pytest.fixture(params=["direct", "not opened so", "not written so"])
def file_system(request, monkeypatch):
    """With and without a file system that knows direct reads and writes."""

    def refuse(*_):
        raise OSError(errno.EINVAL, "no such thing")

    if request.param == "not opened so":
        monkeypatch.setattr(buffers.fcntl, "fcntl", lambda handle, command, *flags: refuse() if flags else 0)
    if request.param == "not written so":  # as where the pages of the disk are larger than ours
        flags = buffers.fcntl.fcntl

        def checked(call):
            def checking(handle, *arguments):
                return refuse() if flags(handle, buffers.fcntl.F_GETFL) & os.O_DIRECT else call(handle, *arguments)

            return checking

        for name in ("write", "pwrite", "preadv"):
            monkeypatch.setattr(os, name, checked(getattr(os, name)))


def drawn(size):
    data = empty(size)
    data[:] = np.frombuffer(np.random.default_rng(size).bytes(size), np.uint8)
    return data


@pytest.mark.parametrize("size", SIZES)
def test_files_hold_what_was_written(tmp_path, file_system, size):
    data = drawn(size)
    write_file(tmp_path / "file", data)
    sync(tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == data.tobytes()
    for start in (0, 1, PAGE, 5000):
        for count in (size, size // 2, buffers.LARGE):
            part = read_file(tmp_path / "file", start, count)
            assert part.tobytes() == data.tobytes()[start : start + count]


def test_parts_go_to_their_places_from_several_threads(tmp_path, file_system):
    rng = np.random.default_rng(0)
    whole = rng.bytes(2**20)
    bounds = [0, *np.sort(rng.choice(2**20, 9, replace=False)).tolist(), 2**20]
    parts = list(itertools.pairwise(bounds))
    file = PlacedFile(tmp_path / "file")

    def write(part):
        start, stop = part
        shift = start % PAGE if start % 2 else 0  # lying in memory as in the file, and not
        data = empty(shift + stop - start)[shift:]
        data[:] = np.frombuffer(whole[start:stop], np.uint8)
        file.write(data, start)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(write, reversed(parts)))
    file.close(durable=True)
    assert (tmp_path / "file").read_bytes() == whole


def test_memory_is_used_again_only_when_nothing_views_it():
    buffers._free.clear()
    first = empty(2**20 + 1)
    place, view = first.ctypes.data, first[5:10]
    view[:] = 7
    del first
    other = empty(2**20 + 1)
    other[:] = 0
    assert other.ctypes.data != place
    assert (view == 7).all()
    del view
    assert empty(2**20 + 1).ctypes.data == place


@pytest.mark.parametrize("dtype", [np.uint8, ml_dtypes.bfloat16, np.float32, np.float64])
@pytest.mark.parametrize(
    ("shape", "axes"),
    [((300, 513), (1, 0)), ((1, 1000), (1, 0)), ((2, 130, 257), (2, 0, 1)), ((5, 7, 600, 3), (2, 3, 1, 0)), ((), ())],
)
def test_copies_are_exact(monkeypatch, dtype, shape, axes):
    monkeypatch.setattr(transpose, "SMALL", 0)
    source = np.random.default_rng(0).integers(0, 255, (*shape, np.dtype(dtype).itemsize), np.uint8)
    source = source.view(dtype).reshape(shape).transpose(axes)
    target = np.empty(source.shape, dtype)
    copy(target, source)
    assert target.tobytes() == source.tobytes()


@pytest.mark.parametrize("order", ["in order", "reversed", "none", "the second file alone"])
def test_hashes_do_not_depend_on_what_is_offered(tmp_path, order):
    files = [tmp_path / name for name in ("a", "b", "c")]
    for number, file in enumerate(files):
        file.write_bytes(np.random.default_rng(number).bytes(10_000))
    offers = [(file, start) for file in files for start in (8, 1000, 5000)]
    if order == "reversed":
        offers.reverse()
    elif order != "in order":
        offers = [] if order == "none" else offers[3:6]
    seen = {}
    digests = Digests(tuple(files), {str(files[0]): "known"}, seen.__setitem__)
    waiting = [digests.offer(file, at, np.fromfile(file, np.uint8, 990, offset=at)) for file, at in offers]
    digests.close()
    found = digests.result()
    assert all(future.done() for future in waiting)
    expected = {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in files[1:]}
    assert seen == expected
    assert found == expected | {str(files[0]): "known"}


def test_bytes_that_were_offered_are_not_read_again(tmp_path):
    (tmp_path / "a").write_bytes(b"on disk")
    digests = Digests((tmp_path / "a",), {}, lambda *_: None)
    digests.offer(tmp_path / "a", 3, np.frombuffer(b"DISK", np.uint8)).result()
    digests.close()
    assert digests.result() == {str(tmp_path / "a"): hashlib.sha256(b"on DISK").hexdigest()}
