"""Byte ranges of media in memory (RFC 9110, sections 13 and 14): what seeking in a video needs."""

from __future__ import annotations

import re

from fastapi import Request, Response

_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})", re.ASCII)


def answer_with(
    data: bytes, media_type: str, etag: str, headers: dict[str, str], request: Request
) -> Response:
    """Answer with all of `data` (200), the part asked for (206), or why neither is sent (304, 416).

    Several ranges in one request, numbers longer than any file, or a range of another version are
    answered with all of it.
    """
    common = {
        **headers,
        "ETag": etag,
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, no-cache",
    }
    if etag in _listed(request.headers.get("if-none-match", "")):
        return Response(status_code=304, headers=common)
    match = _RANGE.fullmatch(request.headers.get("range", "").strip())
    if match is None or request.headers.get("if-range", etag) != etag:
        return Response(data, media_type=media_type, headers=common)
    span = _span(match[1], match[2], len(data))
    if span is None:
        common["Content-Range"] = f"bytes */{len(data)}"
        return Response(status_code=416, headers=common)
    first, last = span
    common["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
    return Response(data[first : last + 1], 206, common, media_type)


def _listed(text: str) -> set[str]:
    return {part.strip().removeprefix("W/") for part in text.split(",")}


def _span(first: str, last: str, size: int) -> tuple[int, int] | None:
    """Return the first and last byte of a range; None where nothing of it is there."""
    if not first and not last:
        return None
    if not first:
        return (max(0, size - int(last)), size - 1) if int(last) and size else None
    start = int(first)
    end = min(size - 1, int(last)) if last else size - 1
    return (start, end) if start <= end and start < size else None
