"""Draws a model's state, many times faster than dm_control where the picture may differ a little."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import mujoco
import numpy as np

from apprentice.environments.gl import RenderingUnavailable, open_context, probe_rendering

Quality = Literal["full", "look", "fast"]


class _QualitySettings(NamedTuple):
    """What sets the cost of a frame; None leaves the model's own value."""

    shadow_size: int | None
    multisampling: int | None
    slices: int | None  # of spheres and capsules, around and along
    shadows: bool
    reflections: bool


QUALITIES: dict[str, _QualitySettings] = {
    "full": _QualitySettings(None, None, None, True, True),
    "look": _QualitySettings(256, 0, 14, True, True),
    "fast": _QualitySettings(0, 0, 8, False, False),
}
"""`full` is dm_control's picture exactly; `look` differs from it at edges (mean at most 2 of 255) and
is 8 to 9 times as fast; `fast` has no shadows or reflections, which on reacher is another picture."""


class Renderer:
    """One graphics context and one model's textures and meshes in it, kept alive.

    Use it from the thread that made it. Frames are of one size; the model's fields are read at every
    frame, so targets and colours that an episode sets are drawn as they are.
    """

    def __init__(
        self, model: Any, width: int, height: int, quality: Quality, backend: str | None = None
    ) -> None:
        if backend is None:
            probed = probe_rendering()
            if probed.name == "none":
                raise RenderingUnavailable(f"nothing here can draw: {probed.detail}")
            backend = probed.name
        self._model = model
        self._width, self._height = width, height
        self._gl = open_context(backend, width, height)
        with _drawing_settings(model, QUALITIES[quality], width, height):
            self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_150)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        self._scene = mujoco.MjvScene(model, maxgeom=_max_geoms(model))
        settings = QUALITIES[quality]
        self._scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = settings.shadows
        self._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = settings.reflections
        self._option = mujoco.MjvOption()
        self._option.flags[mujoco.mjtVisFlag.mjVIS_RANGEFINDER] = False
        self._perturbation = mujoco.MjvPerturb()
        self._viewport = mujoco.MjrRect(0, 0, width, height)
        self._buffer = np.empty((height, width, 3), np.uint8)
        self._checked = False

    def render(self, data: Any, camera: int) -> np.ndarray:
        """Draw the state in `data` from a camera (-1 is the free one): a new uint8 [H, W, 3].

        Raises RenderingUnavailable where the first frame comes out in a single colour.
        """
        self._gl.make_current()
        for field in range(self._model.nhfield):
            # Terrain is the one thing that an episode may change and that lives in the context.
            mujoco.mjr_uploadHField(self._model, self._context, field)
        mujoco.mjv_updateScene(
            self._model,
            data,
            self._option,
            self._perturbation,
            self._camera(camera),
            mujoco.mjtCatBit.mjCAT_ALL,
            self._scene,
        )
        mujoco.mjr_render(self._viewport, self._scene, self._context)
        mujoco.mjr_readPixels(self._buffer, None, self._viewport, self._context)
        if not self._checked:
            if self._buffer.max() == self._buffer.min():
                raise RenderingUnavailable(
                    f"expected a picture, found every pixel at {self._buffer.max()}: "
                    "the graphics driver draws nothing"
                )
            self._checked = True
        return self._buffer[::-1].copy()

    def close(self) -> None:
        """Free the context."""
        self._gl.make_current()
        self._context.free()
        self._gl.free()

    def _camera(self, camera: int) -> Any:
        view = mujoco.MjvCamera()
        view.fixedcamid = camera
        if camera == -1:
            view.type = mujoco.mjtCamera.mjCAMERA_FREE
            mujoco.mjv_defaultFreeCamera(self._model, view)
        else:
            view.type = mujoco.mjtCamera.mjCAMERA_FIXED
        return view


def camera_index(model: Any, camera: int | str) -> int:
    """Return the index of a camera by index or name; raise ValueError with those there are."""
    names = [model.camera(index).name for index in range(model.ncam)]
    if isinstance(camera, str):
        if camera in names:
            return names.index(camera)
        if camera.lstrip("-").isdigit():
            camera = int(camera)
    if isinstance(camera, int) and -1 <= camera < model.ncam:
        return camera
    listed = ", ".join(f"{index} {name!r}" for index, name in enumerate(names))
    raise ValueError(f"expected a camera out of -1 (free), {listed}; found {camera!r}")


def _max_geoms(model: Any) -> int:
    """Room for every geom, site, tendon, joint and light that a scene may draw."""
    return 1000 + 10 * int(model.ngeom + model.nsite + model.ntendon + model.njnt + model.nlight)


@contextmanager
def _drawing_settings(
    model: Any, settings: _QualitySettings, width: int, height: int
) -> Iterator[None]:
    """Set what a context reads of the model while it is made; the model is left as it was."""
    quality, size = model.vis.quality, model.vis.global_
    before = (
        quality.shadowsize,
        quality.offsamples,
        quality.numslices,
        quality.numstacks,
        size.offwidth,
        size.offheight,
    )
    if settings.shadow_size is not None:
        quality.shadowsize = settings.shadow_size
    if settings.multisampling is not None:
        quality.offsamples = settings.multisampling
    if settings.slices is not None:
        quality.numslices = quality.numstacks = settings.slices
    size.offwidth, size.offheight = width, height  # a larger buffer costs time with every frame
    try:
        yield
    finally:
        quality.shadowsize, quality.offsamples = before[0], before[1]
        quality.numslices, quality.numstacks = before[2], before[3]
        size.offwidth, size.offheight = before[4], before[5]
