"""Dataset files that are written here first, in a folder of their own, and then uploaded one by one.

An object store shows an object when all of it is there.
"""

import glob
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import final

from fastpsl.console.progress import operation
from fastpsl.files.atomic import partial_path
from fastpsl.files.digest import blake2b
from fastpsl.files.remote.address import LIMIT_S, answer, file_system
from fastpsl.files.remote.failures import WrongBytesError, persistently
from fastpsl.files.system_errors import remedy
from fastpsl.pipelines.beton.output import journal_path

_SHARD = re.compile(r"-[0-9]{5}-of-([0-9]{5})\.beton")
_READ_ONLY = ("http", "https")
_FILE_LIMIT_S = 600.0  # of tries of one file; ten times a part's, because each try sends all of it anew


@final
class StagedUpload:
    """The place here of a dataset file that is to be elsewhere."""

    def __init__(self, address: str, folder: Path | None = None) -> None:
        scheme, _, path = address.partition("://")
        if scheme.lower() in _READ_ONLY:
            raise ValueError(f"{address}: is read only; give an OUT at s3://, gs:// or hf://, or a path")
        self.address, self._files = address, file_system(address)
        own = Path(tempfile.gettempdir()) / f"fastpsl-uploads-{os.getuid()}"
        place = (folder or own) / blake2b(address.encode(), digest_size=8).hexdigest()
        self._folder, self.local = place, place / path.rpartition("/")[2]
        if self.local.suffix != ".beton":
            raise ValueError(
                f"{address}: is no address of a .beton file; give one, as s3://bucket/train.beton"
            )
        try:
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            advice = remedy(error, "give --cache-dir, a folder on a local disk")
            raise ValueError(f"{place}: cannot be written ({error.strerror}); {advice}") from None

    def begin(self, *, overwrite: bool, resume: bool, shards: bool) -> bool:
        """Check that the files may be uploaded; return whether they are whole here, and only that is left."""
        self._require_access()
        if overwrite and not resume:
            shutil.rmtree(self._folder)
            self._folder.mkdir(mode=0o700)
        # The journal goes when all files have their names. A list alone is of a writing that has failed.
        is_begun = journal_path(self.local).exists()
        is_whole = not is_begun and any(path.suffix != ".csv" for path in self._finished())
        if is_whole and not resume:
            raise ValueError(
                f"{self.address}: an interrupted upload of it is here; --resume goes on with it, --overwrite "
                "starts anew"
            )
        if not (overwrite or is_begun or is_whole) and (there := self._there(shards)):
            raise ValueError(
                f"{there}: exists already; remove it, give --overwrite, or choose another address"
            )
        return is_whole

    def _finished(self) -> Iterator[Path]:
        """Yield the finished files, lists first, and each dataset file before its JSON."""
        # So a JSON is left to the last, and tells of an upload that was interrupted.
        for path in sorted(self._folder.iterdir(), key=lambda path: (path.suffix != ".csv", path)):
            if not path.name.startswith("."):
                yield path

    def _require_access(self) -> None:
        """Write and remove an empty object, so that what is not allowed is known before hours of writing."""
        probe = self._beside(partial_path(self.local).name)

        def call() -> None:
            answer(self._files, "pipe_file", probe, b"")
            answer(self._files, "rm_file", probe)

        if not self.address.startswith("hf://"):  # each would be a commit
            persistently(call, self.address, LIMIT_S)

    def _there(self, shards: bool) -> str | None:
        """Return the address of a file that is there already."""
        pattern = self._shards(".beton") if shards else glob.escape(self.address)
        found = persistently(lambda: self._files.glob(pattern), self.address, LIMIT_S)
        return f"{self.address.partition('://')[0]}://{found[0]}" if found else None

    def _shards(self, ending: str) -> str:
        """Return the glob of the shards of this name, or of an ending that follows theirs."""
        return f"{glob.escape(self._beside(self.local.stem))}-?????-of-?????{ending}"

    def _beside(self, name: str) -> str:
        return f"{self.address.rpartition('/')[0]}/{name}"

    def send(self) -> tuple[int, int]:
        """Upload and remove the finished files. Return the number of dataset files, and of bytes."""
        files = list(self._finished())
        total = sum(path.stat().st_size for path in files)
        num_bytes = 0
        with operation(f"{self.address}: uploading", "MB", total // 1_000_000) as progress:
            for path in files:
                num_bytes += self._send(path)
                progress.update(num_bytes // 1_000_000)
                path.unlink()  # an interrupted upload goes on with what is left
        # After the sending, so that data are there at any moment.
        self._remove_others({match[1] for path in files if (match := _SHARD.search(path.name))})
        shutil.rmtree(self._folder)
        return sum(path.suffix == ".beton" for path in files), num_bytes

    def _remove_others(self, counts: set[str]) -> None:
        """Remove the shards of an older writing, which had another number of them, where shards were sent."""

        def call() -> None:
            for found in self._files.glob(self._shards(".beton*")):
                if (match := _SHARD.search(found)) and match[1] not in counts:
                    answer(self._files, "rm_file", found)

        if counts:
            persistently(call, self.address, LIMIT_S)

    def _send(self, path: Path) -> int:
        address, num_bytes = self._beside(path.name), path.stat().st_size

        def call() -> None:
            self._files.put_file(str(path), address)
            if (there := int(answer(self._files, "info", address)["size"])) != num_bytes:
                raise WrongBytesError(f"{there:,} bytes are there, {num_bytes:,} were sent")

        persistently(call, address, _FILE_LIMIT_S)
        return num_bytes
