"""Lets only those call the learner who know its token."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc

from apprentice.tokens import bearer, same_token

OPEN = "/grpc.health.v1.Health/"
"""Health checks tell nothing and need no token."""


class RequireToken(grpc.ServerInterceptor):
    """Answers UNAUTHENTICATED to every call without the token, before its message is looked at."""

    def __init__(self, token: str) -> None:
        self._token = token
        self._refusal = grpc.unary_unary_rpc_method_handler(_refuse)
        self._stream_refusal = grpc.unary_stream_rpc_method_handler(_refuse)

    def intercept_service(self, continuation: Callable[[Any], Any], details: Any) -> Any:
        """Pass a call on, or put the refusal in its place."""
        handler = continuation(details)
        if handler is None or details.method.startswith(OPEN):
            return handler
        given = next((v for k, v in details.invocation_metadata if k == "authorization"), "")
        if isinstance(given, str) and same_token(bearer(given), self._token):
            return handler
        if handler.request_streaming:
            return grpc.stream_stream_rpc_method_handler(_refuse)
        return self._stream_refusal if handler.response_streaming else self._refusal


def _refuse(request: object, context: grpc.ServicerContext) -> None:
    context.abort(
        grpc.StatusCode.UNAUTHENTICATED,
        "expected the learner's token as `authorization: Bearer TOKEN`, found none or another; "
        "--token-file names the file that the learner made",
    )
