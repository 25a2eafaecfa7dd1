"""Looking for a secret where it must not be: as it is, in base64, and inside of archives."""

import base64
import gzip
import io
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

_DEPTH = 4  # of archives in archives


def find_secrets(places: Mapping[str, bytes], secrets: Iterable[str]) -> list[str]:
    """Names of places and of the secrets there: `place: secret`."""
    spellings = [(secret, spelling) for secret in secrets for spelling in _spell(secret)]
    return sorted(
        {
            f"{name}: {secret}"
            for name, content in places.items()
            for layer in _unpack(content, _DEPTH)
            for secret, spelling in spellings
            if spelling in layer
        }
    )


def read_files(folder: Path) -> dict[str, bytes]:
    """All that a folder holds, hidden files too, by path. Names count as content."""
    found = {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {**found, f"names in {folder}": "\n".join(map(str, folder.rglob("*"))).encode()}


def _spell(secret: str) -> list[bytes]:
    """The text, and what is the same in its base64 at each of the three places where it may begin."""
    plain = secret.encode()
    shifted = [base64.b64encode(b"\0" * shift + plain)[(0, 2, 3)[shift] :].rstrip(b"=")[:-1] for shift in range(3)]
    return [plain, plain.hex().encode(), *shifted]


def _unpack(content: bytes, depth: int) -> Iterator[bytes]:
    """The content, and that of the archives which begin in it."""
    yield content
    if not depth:
        return
    inner: list[bytes] = []
    if content.startswith(b"\x1f\x8b"):
        try:
            inner = [gzip.decompress(content)]
        except (EOFError, OSError, zlib.error):
            inner = []
    elif zipfile.is_zipfile(io.BytesIO(content)):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            inner = [archive.read(name) for name in archive.namelist()]
    for each in inner:
        yield from _unpack(each, depth - 1)
