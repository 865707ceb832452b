"""Archives of data sets: unpacked beside themselves, refused where they are unsafe, and nothing left then."""

from __future__ import annotations

import io
import struct
import tarfile
import zipfile

import pytest
import support

from earthmind_jax.data import archives, datasets
from earthmind_jax.errors import UserError


def make_zip(path, files, **options):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, **options) as file:
        for name, data in files:
            file.writestr(name, data)
    return path


def make_tar(path, files, mode="w:gz"):
    with tarfile.open(path, mode) as file:
        for name, data in files:
            info = tarfile.TarInfo(name)
            if isinstance(data, bytes):
                info.size = len(data)
                file.addfile(info, io.BytesIO(data))
            else:
                info.type, info.linkname = data
                file.addfile(info)
    return path


GOOD = [("images/a.txt", b"one"), ("images/deep/b.txt", b"two" * 1000), ("list.txt", b"")]


@pytest.mark.parametrize("name", ["x.zip", "X.ZIP", "x.tar", "x.tar.gz", "x.tgz", "x.tar.bz2", "x.tar.xz"])
def test_unpacked_beside_itself(tmp_path, name):
    mode = {"tar": "w", "gz": "w:gz", "tgz": "w:gz", "bz2": "w:bz2", "xz": "w:xz"}.get(name.rpartition(".")[2])
    make_tar(tmp_path / name, GOOD, mode) if mode else make_zip(tmp_path / name, GOOD)
    (tmp_path / f".unpacking-{name}" / "images").mkdir(parents=True)  # of a run that was killed
    written = []
    assert archives.unpack(tmp_path / name, written.append) == [tmp_path / "images", tmp_path / "list.txt"]
    assert sum(written) == 3003
    for file, data in GOOD:
        assert (tmp_path / file).read_bytes() == data
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["images", "list.txt", name])
    with pytest.raises(UserError, match="holds 'images', which is there already"):
        archives.unpack(tmp_path / name)


LINK, HARD, DEVICE = (tarfile.SYMTYPE, "/etc/passwd"), (tarfile.LNKTYPE, "a.txt"), (tarfile.CHRTYPE, "")
UNSAFE = {
    "up.zip": ([("a.txt", b"1"), ("../out.txt", b"2")], "leads out of the directory"),
    "root.zip": ([("/tmp/C_out.txt", b"2")], "leads out of the directory"),
    "drive.zip": ([("C:/out.txt", b"2")], "leads out of the directory"),
    "back.tar": ([("..\\out.txt", b"2")], "leads out of the directory"),
    "inner.tar": ([("a/../../out.txt", b"2")], "leads out of the directory"),
    "link.tar": ([("a.txt", b"1"), ("l", LINK), ("l/passwd", b"2")], "a link or device"),
    "hard.tar": ([("a.txt", b"1"), ("h", HARD)], "a link or device"),
    "device.tar": ([("d", DEVICE)], "a link or device"),
    "twice.tar": ([("a.txt", b"1"), ("a.txt", b"2")], "holds 'a.txt' twice"),
    "zeros.zip": ([("a.txt", bytes(archives.SMALL + 1))], "packed to fill a disk"),
    "zeros.tar.gz": ([("a.txt", bytes(archives.SMALL // 2)), ("b.txt", bytes(archives.SMALL // 2 + 1))], "fill a disk"),
}


@pytest.mark.parametrize("name", UNSAFE)
def test_unsafe_archives(tmp_path, name):
    files, message = UNSAFE[name]
    folder = tmp_path / "inside"
    folder.mkdir()
    if name.endswith(".zip"):
        make_zip(folder / name, files)
    else:
        make_tar(folder / name, files, "w:gz" if name.endswith("gz") else "w")
    with pytest.raises(UserError, match=message) as error:
        archives.unpack(folder / name)
    assert name in str(error.value)
    assert [path.name for path in folder.iterdir()] == [name]
    assert [path.name for path in tmp_path.iterdir()] == ["inside"]


def test_a_size_that_is_declared_too_small(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "SMALL", 1000)
    path = make_zip(tmp_path / "lie.zip", [("a.txt", bytes(300_000))])
    data = bytearray(path.read_bytes())
    for signature, place in ((b"PK\3\4", 22), (b"PK\1\2", 24)):
        at = data.index(signature) + place
        data[at : at + 4] = struct.pack("<I", 10)
    path.write_bytes(data)
    with pytest.raises(UserError):
        archives.unpack(path)
    assert [file.name for file in tmp_path.iterdir()] == ["lie.zip"]


@pytest.mark.parametrize("name", ["x.zip", "x.tar", "x.tar.gz", "x.tar.xz"])
def test_damaged_archives(tmp_path, name):
    mode = {"tar": "w", "gz": "w:gz", "xz": "w:xz"}.get(name.rpartition(".")[2])
    big = [("a.txt", bytes(range(256)) * 400)]
    make_tar(tmp_path / name, big, mode) if mode else make_zip(tmp_path / name, big)
    whole = (tmp_path / name).read_bytes()
    middle = bytearray(whole)
    middle[len(whole) // 2 : len(whole) // 2 + 40] = b"\xff" * 40
    for content in (whole[: len(whole) // 2], b"nothing of the kind", b"", bytes(middle)):
        (tmp_path / name).write_bytes(content)
        if content == bytes(middle) and name == "x.tar":
            continue  # a plain tar has no check of what it holds
        with pytest.raises(UserError, match=f"{name}' is damaged"):
            archives.unpack(tmp_path / name)
        assert [file.name for file in tmp_path.iterdir()] == [name]


def test_other_archives_and_the_command(tmp_path, capsys):
    code, _, err = support.run(capsys, "data", "unpack", tmp_path)
    assert (code, err) == (2, f"error: '{tmp_path}' holds no archive.\n")
    (tmp_path / "BigEarthNet-S2.tar.zst").write_bytes(b"x")
    with pytest.raises(UserError, match=r"holds archives .* earthmind data unpack"):
        datasets.recognise(tmp_path)
    code, _, err = support.run(capsys, "data", "unpack", tmp_path)
    assert code == 2
    assert "is not a zip or tar file that is read here" in err
    (tmp_path / "BigEarthNet-S2.tar.zst").unlink()
    make_zip(tmp_path / "x.zip", GOOD)
    code, out, _ = support.run(capsys, "data", "unpack", tmp_path)
    assert code == 0
    assert out == f"unpacked {tmp_path / 'images'}\nunpacked {tmp_path / 'list.txt'}\n"


def test_a_second_start_goes_on_with_those_that_are_left(tmp_path, capsys):
    make_zip(tmp_path / "a.zip", GOOD)
    archives.unpack(tmp_path / "a.zip")
    make_tar(tmp_path / "b.tar.gz", [("masks/a.txt", b"three")])
    code, out, err = support.run(capsys, "data", "unpack", tmp_path)
    assert (code, out) == (2, f"unpacked {tmp_path / 'masks'}\n")
    assert f"1 of 2 left: '{tmp_path / 'a.zip'}' holds 'images', which is there already" in err


def test_a_start_after_one_that_was_killed(tmp_path, capsys):
    make_zip(tmp_path / "a.zip", GOOD)
    (tmp_path / ".unpacking-a.zip/images").mkdir(parents=True)
    with pytest.raises(UserError, match=r"holds archives \('a.zip'\)"):
        datasets.recognise(tmp_path)
    assert support.run(capsys, "data", "unpack", tmp_path)[0] == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zip", "images", "list.txt"]


def test_what_macos_adds_to_archives_is_left_out(tmp_path):
    for name in ("a", "b"):
        make_zip(tmp_path / f"{name}.zip", [(f"{name}/x.txt", b"1"), (f"__MACOSX/{name}/._x.txt", b"2")])
        assert archives.unpack(tmp_path / f"{name}.zip") == [tmp_path / name]


@pytest.mark.parametrize("files", [[], [("ds/", b"")], [("a", b"1"), ("a/b", b"2")], [("x" * 300, b"1")]])
def test_archives_that_give_nothing_of_use(tmp_path, files):
    make_zip(tmp_path / "x.zip", files)
    with pytest.raises(UserError, match=r"x.zip' (is damaged|holds no files).*get it again"):
        archives.unpack(tmp_path / "x.zip")
    assert [file.name for file in tmp_path.iterdir()] == ["x.zip"]
