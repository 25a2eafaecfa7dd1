"""The services that keep buckets: S3 and what speaks like it, and Google's.

pyarrow has no way to put an object only where there is none or where it has not changed, so those requests, and the
removal that leaves no marks behind, are made by the service's own package.
"""

import os
import re
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

from pyarrow import fs

from sftray.train_fn.bucket_url import BucketUrl, parse_bucket_url
from sftray.train_fn.errors import ConfigError, Problem, StoreError
from sftray.train_fn.patience import Patience
from sftray.train_fn.store_http import HttpBucket, Service, is_of_storage
from sftray.train_fn.store_objects import ObjectStore

_CONNECT_S, _ANSWER_S = 10, 60
_OWN_REGION = "us-east-1"  # what services that are not Amazon's call theirs, if they are told nothing else
_OPTIONS = {"endpoint_override", "region"}
# Words of pyarrow's errors, which have no other mark, for what may pass by itself.
_PASSING = re.compile(
    r"HTTP status (?:408|429|5\d\d)|curlCode|SLOW_DOWN|THROTTLING|REQUEST_TIMEOUT|NETWORK_CONNECTION|INTERNAL_FAILURE"
    r"|SERVICE_UNAVAILABLE|REQUEST_TIME_TOO_SKEWED|[Tt]imed? ?out|Connection (?:reset|refused)"
)


def connect_bucket(url: str, patience: Patience) -> ObjectStore:
    """The store at `s3://…` or `gs://…`. Raises what `connect_store` raises."""
    return ObjectStore(open_bucket(parse_bucket_url(url), patience))


def open_bucket(url: BucketUrl, patience: Patience) -> HttpBucket:
    """The objects below a URL. Raises what `connect_store` raises."""
    options = url.options
    root = f"{url.bucket}/{url.key}".rstrip("/")
    unknown = sorted(options.keys() - _OPTIONS)
    if url.scheme not in _KINDS or not url.bucket or unknown:
        what = f"{unknown[0]} is no option of a store" if unknown else f"{url} is no place for a store"
        raise ConfigError(
            Problem(f"store.path: {what}", fix="a folder, s3://bucket/prefix?region=name&endpoint_override=http://…")
        )
    service = _connect(url.scheme, url.bucket, options.get("endpoint_override"), options.get("region"))
    return HttpBucket(f"{url.scheme}://{root}", service, root, patience)


@lru_cache(maxsize=64)
def _connect(scheme: str, bucket: str, endpoint: str | None, region: str | None) -> Service:
    """Once in a process: connecting costs tenths of a second, and both packages may be used by many threads.

    Raises:
        StoreError: there is no such bucket, no service that answers, or nothing that it would let in.
    """
    try:
        return _KINDS[scheme](bucket, endpoint, region)
    except StoreError:
        raise
    except Exception as error:
        if not is_of_storage(error) and not isinstance(error, ValueError):  # a malformed endpoint is the second
            raise
        raise StoreError(_describe_unreachable(scheme, bucket, endpoint, error)) from error


def build_s3(bucket: str, endpoint: str | None, region: str | None) -> Service:
    try:
        import boto3
        from botocore.config import Config
    except ImportError as error:
        raise StoreError(_describe_missing("boto3", "s3", f"s3://{bucket}")) from error
    endpoint = endpoint or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    address = urlsplit(endpoint if "://" in endpoint else f"https://{endpoint}") if endpoint else None
    filesystem = fs.S3FileSystem(
        region=region or boto3.session.Session().region_name or _find_region(bucket, endpoint),
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
    return _wrap_client(filesystem, client)


def _find_region(bucket: str, endpoint: str | None) -> str:
    """Amazon is asked where a bucket of its own is; other services have their buckets in one place."""
    found: str = _OWN_REGION if endpoint else fs.resolve_s3_region(bucket)
    return found


def _wrap_client(filesystem: Any, client: Any) -> Service:
    def put(key: str, data: bytes, **condition: str) -> bool:
        bucket, _, name = key.partition("/")
        try:
            client.put_object(Bucket=bucket, Key=name, Body=data, **condition)
        except client.exceptions.ClientError as error:
            if _read_status(error) == 412 or ("IfMatch" in condition and _read_status(error) == 404):
                return False
            raise
        return True

    def read(key: str) -> tuple[bytes, str]:
        bucket, _, name = key.partition("/")
        try:
            found = client.get_object(Bucket=bucket, Key=name)
            return found["Body"].read(), found["ETag"]
        except client.exceptions.NoSuchKey as error:
            raise FileNotFoundError(key) from error

    def list_marks(prefix: str) -> dict[str, str]:
        bucket, _, name = prefix.partition("/")
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=name)
        return {f"{bucket}/{found['Key']}": found["ETag"] for page in pages for found in page.get("Contents", ())}

    def delete(key: str) -> None:
        bucket, _, name = key.partition("/")
        client.delete_object(Bucket=bucket, Key=name)

    return Service(
        filesystem,
        create=lambda key, data: put(key, data, IfNoneMatch="*"),
        delete=delete,
        read=read,
        replace=lambda key, data, version: put(key, data, IfMatch=version),
        list_marks=list_marks,
        may_pass=_may_pass,
    )


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
    from botocore.exceptions import ConnectionError, HTTPClientError, IncompleteReadError, SSLError

    if isinstance(error, ConnectionError | HTTPClientError | IncompleteReadError):
        return not isinstance(error, SSLError)  # a certificate does not mend itself
    return isinstance(error, OSError) and bool(_PASSING.search(str(error)))


def build_gcs(bucket: str, endpoint: str | None, region: str | None) -> Service:
    """Google's own interface: that of S3 which it offers too does not know If-None-Match."""
    try:
        from google.api_core import exceptions
        from google.cloud import storage
    except ImportError as error:
        raise StoreError(_describe_missing("google-cloud-storage", "gcs", f"gs://{bucket}")) from error
    client = storage.Client()

    def find(key: str) -> Any:
        bucket, _, name = key.partition("/")
        return client.bucket(bucket).blob(name)

    def put(key: str, data: bytes, generation: int) -> bool:
        try:
            find(key).upload_from_string(data, if_generation_match=generation)
        except (exceptions.PreconditionFailed, exceptions.NotFound):
            return False
        return True

    def read(key: str) -> tuple[bytes, str]:
        blob = find(key)
        try:
            return blob.download_as_bytes(), str(blob.generation)
        except exceptions.NotFound as error:
            raise FileNotFoundError(key) from error

    def list_marks(prefix: str) -> dict[str, str]:
        bucket, _, name = prefix.partition("/")
        return {f"{bucket}/{blob.name}": str(blob.generation) for blob in client.list_blobs(bucket, prefix=name)}

    def delete(key: str) -> None:
        try:
            find(key).delete()
        except exceptions.NotFound:
            return

    def may_pass(error: Exception) -> bool:
        code = getattr(error, "code", None)
        return (isinstance(code, int) and (code in (408, 429) or code >= 500)) or bool(_PASSING.search(str(error)))

    return Service(
        fs.GcsFileSystem(),
        create=lambda key, data: put(key, data, 0),
        delete=delete,
        read=read,
        replace=lambda key, data, version: put(key, data, int(version)),
        list_marks=list_marks,
        may_pass=may_pass,
    )


_KINDS = {"s3": build_s3, "gs": build_gcs}


def _describe_unreachable(scheme: str, bucket: str, endpoint: str | None, error: Exception) -> Problem:
    fixes = {
        "s3": "see that the bucket's name is right and this machine reaches the service; ?region=NAME saves asking "
        "Amazon where the bucket is, and ?endpoint_override=http://HOST:PORT names a service of another's",
        "gs": "gcloud auth application-default login, or name a key file in GOOGLE_APPLICATION_CREDENTIALS",
    }
    at = f" at {endpoint}" if endpoint else ""
    what = f"store.path: {scheme}://{bucket}{at} cannot be opened"
    return Problem(what, why=" ".join(str(error).split())[:300], fix=fixes[scheme])


def _describe_missing(package: str, extra: str, place: str) -> Problem:
    return Problem(
        f"store.path: {place} needs the package {package}", fix=f"pip install '{package}', or sftray with [{extra}]"
    )
