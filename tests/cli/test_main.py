from __future__ import annotations

import subprocess
import sys
import time

import pytest

from cli.main import COMMANDS, main, parse


def test_help_answers_within_half_a_second_of_processor_time() -> None:
    # Processor time, not wall time: the machine that runs the tests may be busy.
    code = (
        "import contextlib, time\n"
        "from cli.main import main\n"
        "with contextlib.suppress(SystemExit): main(['--help'])\n"
        "print(time.process_time())"
    )
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert float(done.stdout.splitlines()[-1]) < 0.5
    assert all(name in done.stdout for name in COMMANDS)
    assert time.monotonic() - begun < 30


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_without_importing_a_framework(command: str) -> None:
    code = (
        "import contextlib, sys\n"
        "from cli.main import main\n"
        f"with contextlib.suppress(SystemExit): main([{command!r}, '--help'])\n"
        "heavy = {'torch', 'tensorflow', 'reverb', 'grpc', 'mujoco', 'fastapi'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert "usage: apprentice " + command in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


def test_unknown_command_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["train"])
    assert caught.value.code == 2
    assert "invalid choice: 'train'" in capsys.readouterr().err


def test_unknown_flag_is_refused() -> None:
    with pytest.raises(SystemExit):
        parse(["bench", "--jsn"])
