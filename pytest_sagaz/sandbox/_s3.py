"""The state of the mocked S3."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from moto.s3.models import s3_backends

from pytest_sagaz.sandbox._backends import BUCKET, backends
from pytest_sagaz.sandbox._text import data_of, readable

if TYPE_CHECKING:
    from collections.abc import Mapping

_OF_THE_REQUEST = ("x-amz-content-sha256", "content-md5")
_USUAL_TYPE = ("content-type", "binary/octet-stream")


class S3State:
    """`{"bucket/": "(bucket)", "bucket/key": body}`; an object that has metadata or tags is a dict of the three.

    Of a versioned bucket the newest versions.
    """

    def __init__(self) -> None:
        self._buckets: dict[str, Any] = {}

    def read(self) -> dict[str, Any]:
        """Return what is there."""
        found: dict[str, Any] = {}
        for backend in backends("s3").values():
            for name, bucket in sorted(backend.buckets.items()):
                self._buckets[name] = bucket
                found[f"{name}/"] = BUCKET
                found.update((f"{name}/{key}", made) for key, made in sorted(_objects(backend, bucket).items()))
        return found

    def write(self, state: Mapping[str, Any]) -> None:
        """Put it back."""
        now = self.read()
        if state == now:
            return
        accounts = s3_backends.bucket_accounts  # by which moto finds the owner of a name
        for backend in backends("s3").values():
            for name in [name for name in backend.buckets if f"{name}/" not in state]:
                del backend.buckets[name]
                accounts.pop(name, None)
        for name, bucket in self._buckets.items():
            if f"{name}/" in state:
                backend = backends("s3")[bucket.partition]
                backend.buckets.setdefault(name, bucket)
                accounts[name] = bucket.partition, bucket.account_id
                _write_objects(backend, bucket, state)


def _objects(backend: Any, bucket: Any) -> dict[str, Any]:
    found = {}
    for name in list(bucket.keys):
        key = bucket.keys[name]
        if hasattr(key, "metadata"):  # and is no mark of a deletion
            found[name] = _object(backend, key)
    return found


def _object(backend: Any, key: Any) -> Any:
    body = readable(key.value)
    metadata = {
        name: value
        for name, value in sorted((name.lower(), value) for name, value in key.metadata.items())
        if name not in _OF_THE_REQUEST and (name, value) != _USUAL_TYPE
    }
    tags = dict(sorted(backend.tagger.get_tag_dict_for_resource(key.arn).items()))
    if not metadata and not tags:
        return body
    parts = {"body": body, "metadata": metadata, "tags": tags}
    return {name: part for name, part in parts.items() if name == "body" or part}


def _write_objects(backend: Any, bucket: Any, state: Mapping[str, Any]) -> None:
    prefix = f"{bucket.name}/"
    wanted = {path[len(prefix) :]: made for path, made in state.items() if path.startswith(prefix) and path != prefix}
    found = _objects(backend, bucket)
    for name in found:
        if name not in wanted:
            backend.tagger.delete_all_tags_for_resource(bucket.keys[name].arn)
            bucket.keys.pop(name)
    for name, made in wanted.items():
        if name not in found or found[name] != made:
            _write_object(backend, bucket, name, made)


def _write_object(backend: Any, bucket: Any, name: str, made: Any) -> None:
    parts = made if isinstance(made, dict) else {"body": made}
    bucket.keys.setlist(name, [])  # so that a versioned bucket has no more versions than before
    key = backend.put_object(bucket.name, name, data_of(parts["body"]), disable_notification=True)
    key.set_metadata(dict(parts.get("metadata", {})))
    backend.tagger.delete_all_tags_for_resource(key.arn)
    backend.tagger.tag_resource(key.arn, [{"Key": at, "Value": tag} for at, tag in parts.get("tags", {}).items()])
