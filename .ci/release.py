"""Build wheel and sdist for publication, the same bytes from the same commit, and check their contents.

    python .ci/release.py dist      (needs the package `build`; `make release` has it)

Files get the commit's time, fixed permissions and sorted names, which setuptools takes from the machine. The wheel has
to hold exactly the rooms' files, the sdist every tracked file except those of this folder and git's own.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
ROOMS = ("root", "common", "reference", "torchport", "export")
GENERATED = ("PKG-INFO", "setup.cfg", "nearest_etf.egg-info/")  # of an sdist


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout


def plain_sdist(path: Path, moment: int) -> bytes:
    """The same archive with sorted members, whose time is `moment` and which have no owner."""
    content = io.BytesIO()
    with tarfile.open(path) as given, tarfile.open(fileobj=content, mode="w", format=tarfile.PAX_FORMAT) as plain:
        for member in sorted(given.getmembers(), key=lambda member: member.name):
            member.mtime, member.uid, member.gid, member.uname, member.gname = moment, 0, 0, "", ""
            member.mode, member.pax_headers = 0o755 if member.isdir() else 0o644, {}
            plain.addfile(member, given.extractfile(member) if member.isfile() else None)
    return gzip.compress(content.getvalue(), mtime=moment)


def plain_wheel(path: Path, moment: int) -> bytes:
    """The same archive with sorted members, whose time is `moment`."""
    content = io.BytesIO()
    with zipfile.ZipFile(path) as given, zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as plain:
        for name in sorted(given.namelist(), key=lambda name: (".dist-info/" in name, name)):  # metadata last, as usual
            entry = zipfile.ZipInfo(name, time.gmtime(moment)[:6])
            entry.compress_type, entry.external_attr, entry.create_system = zipfile.ZIP_DEFLATED, 0o100644 << 16, 3
            plain.writestr(entry, given.read(name))
    return content.getvalue()


def names(content: bytes, wheel: bool) -> set[str]:
    """Files in an archive; of an sdist, below its top folder."""
    if wheel:
        return set(zipfile.ZipFile(io.BytesIO(content)).namelist())
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        return {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}


def expected(wheel: bool) -> set[str]:
    """Files that an archive has to hold, without those that the build generates."""
    tracked = {name for name in git("ls-files").splitlines() if not name.startswith((".ci/", ".git"))}
    if not wheel:
        return tracked
    inside = {name for name in tracked if name.startswith(tuple(f"{room}/" for room in ROOMS))}
    return {f"nearest_etf/{name.removeprefix('root/')}" for name in inside}


def main() -> int:
    output = Path(sys.argv[1] if len(sys.argv) > 1 else "dist")
    if git("status", "--porcelain", "--untracked-files=no"):
        print("files differ from the commit: commit them first", file=sys.stderr)
        return 2
    moment = int(git("log", "-1", "--format=%ct"))
    wrong = []
    with tempfile.TemporaryDirectory() as scratch:
        clone = Path(scratch) / "clone"  # without leftovers of the working tree
        git("clone", "--quiet", str(ROOT), str(clone))
        environment = {**os.environ, "SOURCE_DATE_EPOCH": str(moment)}
        command = [sys.executable, "-m", "build", "--outdir", scratch, str(clone)]
        built = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if built.returncode:
            print(built.stdout[-4000:], built.stderr[-4000:], file=sys.stderr)
            return 1
        output.mkdir(parents=True, exist_ok=True)
        for path in sorted(Path(scratch).glob("nearest_etf-*")):
            wheel = path.suffix == ".whl"
            content = (plain_wheel if wheel else plain_sdist)(path, moment)
            found = {
                name for name in names(content, wheel) if not (".dist-info/" in name or name.startswith(GENERATED))
            }
            wrong += [f"{path.name} lacks {name}" for name in sorted(expected(wheel) - found)]
            wrong += [f"{path.name} also holds {name}" for name in sorted(found - expected(wheel))]
            (output / path.name).write_bytes(content)
            print(f"{hashlib.sha256(content).hexdigest()}  {output / path.name}  ({len(found)} files)")
    print(*wrong, sep="\n", file=sys.stderr)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
