"""Buckets over HTTP: S3 and what speaks like it, and Google's.

pyarrow lists, reads and streams. It has no way to put an object only where there is none, so that one request, and
the removal that leaves no marks behind, are made by the service's own package.
"""

import hashlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qs, urlsplit

from pyarrow import fs

from sftray.train_fn.errors import ConfigError, Problem, StoreError
from sftray.train_fn.patience import Patience, try_patiently
from sftray.train_fn.store_objects import ObjectStore

T = TypeVar("T")
_PIECE = 8 * 2**20  # bytes sent or read at once
_CONNECT_S, _ANSWER_S = 10, 60
_OPTIONS = {"endpoint_override", "region"}
# Words of pyarrow's errors, which have no other mark, for what may pass by itself.
_PASSING = re.compile(
    r"HTTP status (?:408|429|5\d\d)|curlCode|SLOW_DOWN|THROTTLING|REQUEST_TIMEOUT|NETWORK_CONNECTION|INTERNAL_FAILURE"
    r"|SERVICE_UNAVAILABLE|REQUEST_TIME_TOO_SKEWED|[Tt]imed? ?out|Connection (?:reset|refused)"
)
_RIGHTS = re.compile(
    r"Expired|Access ?Denied|EXPIRED|ACCESS_DENIED|InvalidAccessKey|INVALID_ACCESS_KEY|Signature|[Cc]redentials"
)


class HttpBucket:
    """Args:
    root: bucket and prefix, as pyarrow writes them.
    create: puts a key unless there is one; False where there is.
    delete: removes a key; none is fine.
    """

    def __init__(
        self,
        place: str,
        filesystem: Any,
        root: str,
        create: Callable[[str, bytes], bool],
        delete: Callable[[str], None],
        is_transient: Callable[[Exception], bool],
        patience: Patience,
    ) -> None:
        self.place = place
        self._fs, self._root = filesystem, root
        self._create, self._delete = create, delete
        self._is_transient, self._patience = is_transient, patience

    def list(self, prefix: str) -> dict[str, int]:
        folder = prefix.rpartition("/")[0]
        base = f"{self._root}/{folder}" if folder else self._root
        selector = fs.FileSelector(base, allow_not_found=True, recursive=True)
        found = self._try("listed", prefix, lambda: self._fs.get_file_info(selector))
        keys = {info.path.removeprefix(f"{self._root}/"): info.size for info in found if info.is_file}
        return {key: size for key, size in keys.items() if key.startswith(prefix)}

    def get(self, key: str) -> bytes | None:
        return self._try("read", key, lambda: b"".join(self._stream(key)), missing=None)

    def digest(self, key: str) -> str | None:
        def compute() -> str:
            digest = hashlib.sha256()
            for piece in self._stream(key):
                digest.update(piece)
            return digest.hexdigest()

        return self._try("read", key, compute, missing=None)

    def put(self, key: str, data: bytes) -> None:
        def put() -> None:
            with self._open(key) as stream:
                stream.write(data)

        self._try("written", key, put)

    def create(self, key: str, data: bytes) -> bool:
        return self._try("written", key, lambda: self._create(f"{self._root}/{key}", data))

    def delete(self, key: str) -> None:
        self._try("removed", key, lambda: self._delete(f"{self._root}/{key}"))

    def upload(self, path: Path, key: str) -> None:
        def upload() -> None:
            with path.open("rb") as file, self._open(key) as stream:
                while piece := file.read(_PIECE):
                    stream.write(piece)

        self._try("written", key, upload)

    def download(self, key: str, path: Path) -> None:
        def download() -> None:
            pieces = self._stream(key)
            first = next(pieces, b"")
            with path.open("wb") as file:
                file.write(first)
                file.writelines(pieces)

        self._try("read", key, download, missing=None)

    def _open(self, key: str) -> Any:
        return self._fs.open_output_stream(f"{self._root}/{key}", compression=None)

    def _stream(self, key: str) -> Any:
        with self._fs.open_input_stream(f"{self._root}/{key}", compression=None) as stream:
            while piece := stream.read(_PIECE):
                yield piece

    def _try(self, act: str, key: str, what: Callable[[], T], **missing: Any) -> T:
        """`what()`, tried again where that may help. `missing=…`: what stands for an object that is not there."""
        try:
            return try_patiently(what, self._is_transient, self._patience)
        except FileNotFoundError as error:
            if missing:
                return missing["missing"]  # type: ignore[no-any-return]
            raise StoreError(self._describe(act, key, error)) from error
        except StoreError:
            raise
        except Exception as error:
            if not _is_of_storage(error):
                raise
            raise StoreError(self._describe(act, key, error)) from error

    def _describe(self, act: str, key: str, error: Exception) -> Problem:
        fixes = {
            True: "give new credentials, or the right to list, read, write and delete below store.path",
            False: "see that the service answers and that the bucket exists; then sftray resume the run",
        }
        said = " ".join(str(error).split())[:300]
        tried = f", though that was tried {self._patience.tries} times" if self._is_transient(error) else ""
        return Problem(
            f"{key.rsplit('/', 1)[-1] or key} cannot be {act}{tried}",
            where=f"{self.place}/{key}",
            why=said,
            fix=fixes[bool(_RIGHTS.search(said))],
        )


def _is_of_storage(error: Exception) -> bool:
    return isinstance(error, OSError) or type(error).__module__.split(".")[0] in {"botocore", "boto3", "google"}


def connect_bucket(url: str, patience: Patience) -> ObjectStore:
    """The store at `s3://…` or `gs://…`. Raises what `connect_store` raises."""
    parts = urlsplit(url)
    options = {key: values[-1] for key, values in parse_qs(parts.query).items()}
    root = f"{parts.netloc}{parts.path}".rstrip("/")
    place = f"{parts.scheme}://{root}"
    unknown = sorted(options.keys() - _OPTIONS)
    if parts.scheme not in _KINDS or not parts.netloc or unknown:
        what = f"{unknown[0]} is no option of a store" if unknown else f"{url} is no place for a store"
        raise ConfigError(
            Problem(f"store.path: {what}", fix="a folder, s3://bucket/prefix?region=name&endpoint_override=http://…")
        )
    return ObjectStore(_KINDS[parts.scheme](place, root, options, patience))


def build_s3(place: str, root: str, options: Mapping[str, str], patience: Patience) -> HttpBucket:
    try:
        import boto3
        from botocore.config import Config
    except ImportError as error:
        raise StoreError(_describe_missing("boto3", "s3", place)) from error
    endpoint, region = options.get("endpoint_override"), options.get("region")
    address = urlsplit(endpoint if endpoint and "://" in endpoint else f"https://{endpoint}") if endpoint else None
    filesystem = fs.S3FileSystem(
        region=region or (boto3.session.Session().region_name or fs.resolve_s3_region(root.split("/")[0])),
        scheme=address.scheme if address else "https",
        endpoint_override=address.netloc if address else None,
        connect_timeout=_CONNECT_S,
        request_timeout=_ANSWER_S,
        # A file goes in many pieces, and must not fail for one of them.
        retry_strategy=fs.AwsDefaultS3RetryStrategy(max_attempts=3),
        allow_delayed_open=True,  # a small object is one request
    )
    client = boto3.client(
        "s3",
        region_name=region,
        endpoint_url=address.geturl() if address else None,
        config=Config(
            connect_timeout=_CONNECT_S,
            read_timeout=_ANSWER_S,
            retries={"total_max_attempts": 1},
            request_checksum_calculation="when_required",  # not every service knows them
            response_checksum_validation="when_required",
            s3={"addressing_style": "path"} if address else {},
        ),
    )

    def create(key: str, data: bytes) -> bool:
        bucket, _, name = key.partition("/")
        try:
            client.put_object(Bucket=bucket, Key=name, Body=data, IfNoneMatch="*")
        except client.exceptions.ClientError as error:
            if _read_status(error) == 412:
                return False
            raise
        return True

    def delete(key: str) -> None:
        bucket, _, name = key.partition("/")
        client.delete_object(Bucket=bucket, Key=name)

    return HttpBucket(place, filesystem, root, create, delete, _may_pass, patience)


def _read_status(error: Exception) -> int:
    response: Any = getattr(error, "response", None) or {}
    return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _may_pass(error: Exception) -> bool:
    """Whether an error of pyarrow or boto3 is worth another try. 409: two conditional requests met."""
    if isinstance(error, FileNotFoundError):
        return False
    status = _read_status(error)
    if status:
        return status in (408, 409, 429) or status >= 500
    from botocore.exceptions import HTTPClientError

    return isinstance(error, HTTPClientError) or (isinstance(error, OSError) and bool(_PASSING.search(str(error))))


def build_gcs(place: str, root: str, options: Mapping[str, str], patience: Patience) -> HttpBucket:
    """Google's own interface: that of S3 which it offers too does not know If-None-Match."""
    try:
        from google.api_core import exceptions
        from google.cloud import storage
    except ImportError as error:
        raise StoreError(_describe_missing("google-cloud-storage", "gcs", place)) from error
    client = storage.Client()

    def find(key: str) -> Any:
        bucket, _, name = key.partition("/")
        return client.bucket(bucket).blob(name)

    def create(key: str, data: bytes) -> bool:
        try:
            find(key).upload_from_string(data, if_generation_match=0)
        except exceptions.PreconditionFailed:
            return False
        return True

    def delete(key: str) -> None:
        try:
            find(key).delete()
        except exceptions.NotFound:
            return

    def may_pass(error: Exception) -> bool:
        code = getattr(error, "code", None)
        return (isinstance(code, int) and (code in (408, 429) or code >= 500)) or bool(_PASSING.search(str(error)))

    return HttpBucket(place, fs.GcsFileSystem(), root, create, delete, may_pass, patience)


_KINDS = {"s3": build_s3, "gs": build_gcs}


def _describe_missing(package: str, extra: str, place: str) -> Problem:
    return Problem(
        f"store.path: {place} needs the package {package}", fix=f"pip install '{package}', or sftray with [{extra}]"
    )
