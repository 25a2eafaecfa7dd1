"""The URL of a place in a bucket: `s3://bucket/some/key?endpoint_override=…&region=…`, or `gs://…`.

A key stands in it as it is: `#`, `%`, `?` and spaces are letters like others, as for the tools of the services. What
follows the last `?` are options only where it looks like them, `word=value` joined by `&`, known or not. A key whose
own end looks so is followed by a query that says nothing, `?&`.
"""

import re
from dataclasses import dataclass
from urllib.parse import parse_qs

_QUERY = re.compile(r"\?(&|[A-Za-z_]+=[^&?]*(?:&[A-Za-z_]+=[^&?]*)*)\Z")
_NOTHING = "&"


@dataclass(frozen=True)
class BucketUrl:
    """`query` is the text of the options, as it was written."""

    scheme: str
    bucket: str
    key: str = ""
    query: str = ""

    def __str__(self) -> str:
        root = f"{self.scheme}://{self.bucket}/{self.key}"
        query = self.query or (_NOTHING if _QUERY.search(root) else "")
        return f"{root}?{query}" if query else root

    @property
    def options(self) -> dict[str, str]:
        return {name: values[-1] for name, values in parse_qs(self.query).items()}


def parse_bucket_url(url: str) -> BucketUrl:
    """Its parts, whatever they are: whether there is such a place is for who opens it to say."""
    scheme, _, rest = url.partition("://")
    found = _QUERY.search(rest)
    bucket, _, key = rest[: found.start() if found else None].partition("/")
    query = found[1] if found and found[1] != _NOTHING else ""
    return BucketUrl(scheme.lower(), bucket, key.strip("/"), query)
