"""Finished media, kept while they are asked for, within a limit of bytes."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from typing import Any, NamedTuple


class Media(NamedTuple):
    """What an evaluation yielded: its report and, unless that is all, a file for a browser."""

    report: dict[str, Any]
    data: bytes
    media_type: str
    etag: str


def make_media(report: dict[str, Any], data: bytes, media_type: str) -> Media:
    """Return media with the ETag of its bytes."""
    return Media(report, data, media_type, f'"{hashlib.sha256(data).hexdigest()[:32]}"')


class MediaCache:
    """The media used last, `limit_bytes` of them at most; what is larger by itself is not kept."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._entries: OrderedDict[str, Media] = OrderedDict()  # used last comes last
        self.num_bytes = 0
        self.num_hits = self.num_misses = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: str) -> Media | None:
        """Return what was kept under `key`, which then counts as used last."""
        media = self._entries.get(key)
        if media is None:
            self.num_misses += 1
            return None
        self.num_hits += 1
        self._entries.move_to_end(key)
        return media

    def put(self, key: str, media: Media) -> None:
        """Keep media under `key`, and forget the longest unused ones that have no room any more."""
        size = _size(media)
        if size > self._limit:
            return
        old = self._entries.pop(key, None)
        if old is not None:
            self.num_bytes -= _size(old)
        self._entries[key] = media
        self.num_bytes += size
        while self.num_bytes > self._limit:
            _, dropped = self._entries.popitem(last=False)
            self.num_bytes -= _size(dropped)


def _size(media: Media) -> int:
    return len(media.data) + 2048  # the report, roughly
