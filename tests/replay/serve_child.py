"""A replay server of made-up specs: what `python -m replay` runs, without an experiment file."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from apprentice import exit_codes
from apprentice.config import ReplaySettings
from apprentice.logs import configure_logging
from apprentice.stopping import StopSignal
from apprentice.types import EnvironmentSpec
from replay.errors import ServerRefused
from replay.server import ReplayServer


def main() -> int:
    request = json.loads(sys.argv[1])
    stop = StopSignal().install()
    configure_logging("replay")
    specs = [EnvironmentSpec.from_dict(spec) for spec in request["specs"]]
    settings = ReplaySettings.model_validate(request["settings"])
    try:
        server = ReplayServer(specs, settings, request["port"], Path(request["folder"]))
    except ServerRefused as error:
        print(error, file=sys.stderr)
        return exit_codes.CONFIGURATION
    print("ready", flush=True)
    return 0 if server.serve(stop.asked) else exit_codes.TRY_AGAIN


if __name__ == "__main__":
    sys.exit(main())
