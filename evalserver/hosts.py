"""Refuses requests under names that are not this server's: what a web page gets by rebinding DNS."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Collection

from starlette.types import ASGIApp, Receive, Scope, Send

from evalserver.problems import problem


class RequireKnownHost:
    """Serves requests whose Host is an IP address, `localhost`, this machine's name or an allowed one.

    A page of another site can make its own name resolve to this server, but it cannot make a browser
    send another name than that, nor an address.
    """

    def __init__(self, app: ASGIApp, allowed: Collection[str] = ()) -> None:
        self._app = app
        names = {"localhost", socket.gethostname(), *allowed}
        self._allowed = {name.lower().rstrip(".") for name in names}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the request, or refuse it with 421."""
        if scope["type"] == "http":
            found = next((value for name, value in scope["headers"] if name == b"host"), b"")
            if not self._is_known(found.decode("latin-1")):
                detail = (
                    f"expected a Host out of {', '.join(sorted(self._allowed))} or an IP address; "
                    "--allowed-hosts adds names"
                )
                await problem(421, "Unknown host", detail)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _is_known(self, host: str) -> bool:
        name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name.lower().rstrip(".") in self._allowed
        return True
