"""Finding a way to draw without a screen: EGL, then OSMesa, tried in a child with a deadline."""

from __future__ import annotations

import atexit
import os
import subprocess
import sys
from functools import cache
from typing import Any, Literal, NamedTuple

BackendName = Literal["egl", "osmesa", "none"]
PROBE_SECONDS = 60.0
INSTALL_LINE = "apt-get install -y libegl1 libgl1 libopengl0 libgl1-mesa-dri"

# The child draws one frame of a small scene; a driver that crashes or hangs takes only it along.
_PROBE = """
import sys
from apprentice.environments.gl import open_context
from apprentice.environments.renderer import Renderer
import mujoco
model = mujoco.MjModel.from_xml_string(
    "<mujoco><worldbody><light pos='0 0 3'/><geom type='sphere' size='.5' rgba='1 0 0 1'/>"
    "</worldbody></mujoco>"
)
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
frame = Renderer(model, 32, 32, "fast", sys.argv[1]).render(data, -1)
assert frame.max() > frame.min(), "the frame is blank"
print("drawn")
"""


class RenderingBackend(NamedTuple):
    """The way to draw that works here, and what was found out about the others."""

    name: BackendName
    detail: str


class RenderingUnavailable(Exception):
    """Nothing here can draw, or what it draws is blank."""


@cache
def probe_rendering() -> RenderingBackend:
    """Try EGL, then OSMesa (or only what MUJOCO_GL names) and return the first that draws.

    Takes about a second for each, and never longer than PROBE_SECONDS. The result is kept for the
    life of the process.
    """
    from apprentice.environments.tasks import REQUESTED_BACKEND

    candidates: tuple[str, ...] = ("egl", "osmesa")
    if REQUESTED_BACKEND is not None:
        candidates = (REQUESTED_BACKEND,)
    found = []
    for name in candidates:
        if name not in ("egl", "osmesa"):
            found.append(f"MUJOCO_GL={name}: expected egl, osmesa or disabled")
            continue
        error = _try(name)
        if error is None:
            return RenderingBackend(name, f"{name} draws")  # type: ignore[arg-type]
        found.append(f"{name}: {error}")
    return RenderingBackend("none", f"{'; '.join(found)}. To mend it: {INSTALL_LINE}")


def _try(name: str) -> str | None:
    environment = {k: v for k, v in os.environ.items() if k != "PYOPENGL_PLATFORM"}
    try:
        result = subprocess.run(  # noqa: S603 - this interpreter, our own text
            [sys.executable, "-c", _PROBE, name],
            env={**environment, "MUJOCO_GL": "disabled"},
            capture_output=True,
            text=True,
            timeout=PROBE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"no frame within {PROBE_SECONDS:.0f} s"
    if result.returncode == 0 and "drawn" in result.stdout:
        return None
    lines = result.stderr.strip().splitlines() or [f"exited with {result.returncode}"]
    return lines[-1][:200]


def open_context(name: str, width: int, height: int) -> Any:
    """Open a graphics context of this backend for frames up to this size.

    Raises RenderingUnavailable where the backend cannot be opened. Graphics libraries are imported
    here and nowhere else.
    """
    os.environ.setdefault("PYOPENGL_PLATFORM", name)
    try:
        if name == "egl":
            from mujoco.egl import GLContext
        elif name == "osmesa":
            from mujoco.osmesa import GLContext
        else:
            raise RenderingUnavailable(f"expected the backend egl or osmesa, found {name!r}")
        context = GLContext(width, height)
        context.make_current()
        # Freed before the library itself is closed at exit; freeing twice does no harm.
        atexit.register(context.free)
    except (ImportError, AttributeError, RuntimeError, OSError) as error:
        raise RenderingUnavailable(
            f"{name} cannot be used for rendering: {error}. To mend it: {INSTALL_LINE}"
        ) from error
    return context
