"""Advances a dm_control physics as its own `step` does, without what that spends around MuJoCo."""

from __future__ import annotations

from typing import Any

import mujoco
from dm_control.rl.control import PhysicsError


class Simulation:
    """Steps one physics; the numbers are those of `physics.step`, at half its cost."""

    def __init__(self, physics: Any) -> None:
        self._model: Any = physics.model.ptr
        self._data: Any = physics.data.ptr
        self._counts: Any = physics.data.warning.number
        self._seen: bytes = self._counts.tobytes()
        self._legacy = bool(physics.legacy_step)
        # With the others, mj_step1 has been called for this state: the step begins in the middle.
        self._halfway = physics.model.opt.integrator != mujoco.mjtIntegrator.mjINT_RK4.value

    def reset(self) -> None:
        """Take MuJoCo's warnings so far as known; to be called after the physics was reset."""
        self._seen = self._counts.tobytes()

    def step(self, num_substeps: int) -> None:
        """Advance; raise PhysicsError where MuJoCo warned of the state: not finite, overfull."""
        model, data = self._model, self._data
        if not self._legacy:
            mujoco.mj_step(model, data, num_substeps)
        else:
            if not self._halfway:
                mujoco.mj_step(model, data, num_substeps)
            else:
                mujoco.mj_step2(model, data)
                if num_substeps > 1:
                    mujoco.mj_step(model, data, num_substeps - 1)
            mujoco.mj_step1(model, data)
        if self._counts.tobytes() != self._seen:
            self._seen = self._counts.tobytes()
            kinds = list(mujoco.mjtWarning.__members__)
            named = [kind for kind, count in zip(kinds, self._counts, strict=False) if count]
            raise PhysicsError(f"MuJoCo warned of {', '.join(named)}")
