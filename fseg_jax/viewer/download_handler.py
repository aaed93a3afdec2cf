"""Handler of downloads from the folder of outputs."""

import asyncio
import tempfile
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import IO
from urllib.parse import unquote

from tornado.iostream import StreamClosedError
from tornado.web import HTTPError, StaticFileHandler

_BLOCK_BYTES = 1 << 20


class DownloadHandler(StaticFileHandler):
    """Downloads of the folder of outputs: a file as it is, a folder as a ZIP archive."""

    def validate_absolute_path(self, root: str, absolute_path: str) -> str:
        """Resolve a path.

        Raises:
            HTTPError: 404: it is missing, hidden, or outside the folder.
        """
        try:
            path = Path(absolute_path).resolve()
            exists = path.exists()
        except (OSError, ValueError):  # invalid file names
            raise HTTPError(404) from None
        inside = path.is_relative_to(root) and path != Path(root)
        if not inside or any(part.startswith(".") for part in path.relative_to(root).parts):
            raise HTTPError(404)
        if not exists:
            raise HTTPError(404)
        return str(path)

    async def get(self, path: str, include_body: bool = True) -> None:
        """Answer with a file or an archive."""
        target = Path(self.validate_absolute_path(self.root, str(Path(self.root) / unquote(path))))
        self.set_header("Content-Disposition", f'attachment; filename="{_format_ascii_name(target)}"')
        self.set_header("Cache-Control", "no-store")
        if not target.is_dir():
            await super().get(path, include_body)
            return
        loop = asyncio.get_running_loop()
        with tempfile.TemporaryFile() as file:
            await loop.run_in_executor(None, _archive, target, file)
            file.seek(0)
            self.set_header("Content-Type", "application/zip")
            with suppress(StreamClosedError):  # the client has left
                while block := file.read(_BLOCK_BYTES):
                    self.write(block)
                    await self.flush()

    def set_extra_headers(self, path: str) -> None:
        """Forbid caches to store files."""
        self.set_header("Cache-Control", "no-store")


def _format_ascii_name(path: Path) -> str:
    name = path.name + (".zip" if path.is_dir() else "")
    return "".join(c if c.isascii() and c.isprintable() and c not in '"\\' else "_" for c in name)


def _archive(folder: Path, file: IO[bytes]) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:  # chunks are compressed already
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                archive.write(path, folder.name / path.relative_to(folder))
