"""`python -m apprentice.healthcheck URL`: exits with 0 where the address answers 200, for container engines.

Imports nothing but the standard library, since it is run every few seconds.
"""

from __future__ import annotations

import sys
import urllib.error
import urllib.request

TIMEOUT_SECONDS = 4.0


def find_problem(url: str) -> str | None:
    """Ask an http address; return None where it answers 200, else what it says."""
    if not url.startswith("http://"):
        return f"expected an address that starts with http://, found {url!r}"
    # A proxy of the environment has no business with this machine's own services.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=TIMEOUT_SECONDS):
            return None
    except urllib.error.HTTPError as error:
        return f"{error.code}: {error.read(500).decode('utf-8', 'replace').strip()}"
    except OSError as error:
        return str(error)


def main(arguments: list[str]) -> int:
    """Check one address; return the exit code that a HEALTHCHECK expects."""
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m apprentice.healthcheck URL\n")
        return 2
    problem = find_problem(arguments[0])
    sys.stdout.write(f"{problem or 'ok'}\n")
    return 0 if problem is None else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
