"""What can be wrong with a machine, looked at one thing at a time."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Literal, NamedTuple

from apprentice.commands import output_of
from apprentice.compiler import find_compiler
from apprentice.ports import describe_holder, is_free

TORCH_VERSION = "2.13.0"
SET_UP = "requirements/install base"
_ROOT = Path(__file__).resolve().parents[1]
_CHILD_SECONDS = 90.0

Level = Literal["OK", "WARN", "FAIL"]


class Finding(NamedTuple):
    """What was found out about one thing, and what to do where it is not as it should be."""

    name: str
    level: Level
    found: str
    advice: str = ""


def check_python() -> Finding:
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    if sys.version_info[:2] != (3, 11):
        advice = "use Python 3.11: rm -rf .venv, then make run PYTHON=/path/to/python3.11"
        return Finding("python", "FAIL", found, advice)
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        advice = "use Linux on x86-64: Reverb is built for nothing else"
        return Finding("python", "FAIL", found, advice)
    return Finding("python", "OK", found)


def check_libraries(lock: Path = _ROOT / "requirements" / "base.lock") -> Finding:
    """Compare what is installed with what the lock file says, and torch with its one version."""
    try:
        pins = dict(re.findall(r"^([A-Za-z0-9._-]+)==([^ \\]+)", lock.read_text(), re.MULTILINE))
    except OSError as error:
        return Finding(
            "libraries", "WARN", f"{lock}: {error.strerror}", "check the project out anew"
        )
    missing, other = [], []
    for name, version in (pins | {"torch": TORCH_VERSION}).items():
        try:
            installed = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            missing.append(f"{name} {version}")
            continue
        # torch's builds call themselves 2.13.0+cpu and the like.
        if installed.partition("+")[0] != version:
            other.append(f"{name} {installed} instead of {version}")
    if missing or other:
        parts = [f"{len(missing)} missing: {', '.join(missing[:5])}"] if missing else []
        parts += [f"{len(other)} of another version: {', '.join(other[:5])}"] if other else []
        return Finding("libraries", "FAIL" if missing else "WARN", "; ".join(parts), SET_UP)
    return Finding("libraries", "OK", f"{len(pins) + 1} as locked")


def check_processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> Finding:
    try:
        flags = set(re.findall(r"^flags\s*:(.*)$", cpuinfo.read_text(), re.MULTILINE)[0].split())
    except (OSError, IndexError):
        return Finding("processor", "WARN", "its abilities cannot be read")
    wanted = ("avx", "avx2", "avx512f", "avx512_bf16", "amx_bf16")
    known = [flag for flag in wanted if flag in flags]
    found = f"{len(os.sched_getaffinity(0))} cores, {' '.join(known) or 'no vector instructions'}"
    if "avx" not in flags:
        advice = "TensorFlow, and so the replay server, needs AVX: use another machine"
        return Finding("processor", "FAIL", found, advice)
    if "avx512f" not in flags:
        return Finding("processor", "OK", f"{found}; updates are faster with AVX-512")
    return Finding("processor", "OK", found)


def check_torch() -> Finding:
    try:
        import torch
    except (ImportError, OSError) as error:
        return Finding("torch", "FAIL", f"cannot be imported: {error}", SET_UP)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    capability = torch.backends.cpu.get_cpu_capability()
    found = f"{torch.__version__}, {device}, {torch.get_num_threads()} threads, {capability}"
    if torch.version.cuda is not None and not torch.cuda.is_available():
        found += " (the build for GPUs works, and is larger than the one for CPUs)"
    return Finding("torch", "OK", found)


def check_compiler() -> Finding:
    compiler = find_compiler()
    if compiler.remedy is None:
        return Finding("compiler", "OK", compiler.found)
    found = f"{compiler.found}: updates are not compiled, and slower"
    return Finding("compiler", "WARN", found, compiler.remedy)


def check_replay() -> Finding:
    """Load Reverb in a child: where it does not suit the machine it ends the process."""
    code, output = _child(
        sys.executable, "-c", "from replay.importing import load_reverb; load_reverb()"
    )
    if code == 0:
        version = importlib.metadata.version("dm-reverb")
        return Finding("replay", "OK", f"Reverb {version} loads")
    last = output.splitlines()[-1][:200] if output else f"ended with {code}"
    return Finding("replay", "FAIL", f"Reverb does not load: {last}", SET_UP)


def check_rendering() -> Finding:
    try:
        from apprentice.environments import probe_rendering
    except (ImportError, OSError) as error:
        return Finding("rendering", "FAIL", f"dm_control cannot be imported: {error}", SET_UP)
    backend = probe_rendering()
    if backend.name == "none":
        advice = "training from states works without; see the line to type above"
        return Finding("rendering", "WARN", backend.detail, advice)
    return Finding("rendering", "OK", backend.detail)


def check_port(host: str, port: int) -> Finding:
    if is_free(host, port):
        return Finding("port", "OK", f"{port} is free for the evaluation server")
    return Finding(
        "port",
        "WARN",
        f"{port}, the evaluation server's, is held by {describe_holder(port)}",
        "end that process, or use --set services.evalserver_port=0",
    )


def check_disk(folder: Path) -> Finding:
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free / 2**30
    return _compare("disk", free, 10.0, 2.0, f"free in {folder}", "free some, or use --runs DIR")


def check_memory(cgroup: Path = Path("/sys/fs/cgroup/memory.max")) -> Finding:
    import psutil

    available = psutil.virtual_memory().available / 2**30
    # Where there is no such file, or it says "max", the machine itself is the limit.
    with suppress(OSError, ValueError):
        available = min(available, int(cgroup.read_text()) / 2**30)
    advice = "end other programs, or use --set replay.capacity=100000"
    return _compare("memory", available, 6.0, 3.0, "available", advice)


def check_docker() -> Finding:
    absent = "absent; only `docker compose up` needs it"
    if shutil.which("docker") is None:
        return Finding("docker", "OK", absent)
    code, output = _child("docker", "version", "--format", "{{.Server.Version}}")
    if code != 0:
        return Finding(
            "docker", "OK", "the client is here, no engine answers; only compose needs it"
        )
    return Finding("docker", "OK", f"engine {output.splitlines()[0]}")


def all_checks(host: str, port: int, folder: Path) -> tuple[Callable[[], Finding], ...]:
    """Return the checks in the order in which what they find builds on one another."""
    return (
        check_python,
        check_libraries,
        check_processor,
        check_torch,
        check_compiler,
        check_replay,
        check_rendering,
        lambda: check_port(host, port),
        lambda: check_disk(folder),
        check_memory,
        check_docker,
    )


def _compare(
    name: str, gigabytes: float, enough: float, least: float, what: str, advice: str
) -> Finding:
    found = f"{gigabytes:.1f} GiB {what}"
    if gigabytes >= enough:
        return Finding(name, "OK", found)
    wanted = f"{found}, expected {enough:g} or more"
    return Finding(name, "WARN" if gigabytes >= least else "FAIL", wanted, advice)


def _child(*command: str) -> tuple[int, str]:
    """Run a command that finds our packages; return as `output_of`."""
    path = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), str(_ROOT))))
    environment = {**os.environ, "PYTHONPATH": path}
    return output_of(*command, seconds=_CHILD_SECONDS, environment=environment)
