"""A hopper whose episode ends when it falls: `hopper-hop_until_fall`, no task of the suite.

Body, reward and observation are those of the suite's `hop`. An episode starts upright, bent a little at
random, and terminates with discount 0 once the torso is less than 0.45 m above the foot or tilted by more
than 1 rad. It is there because no task of the suite but `lqr` terminates, and imitation must be right where
tasks do (DAC, arXiv 1809.02925, section 4.2).
"""

from __future__ import annotations

from typing import Any

from dm_control.rl import control
from dm_control.suite import hopper

LOWEST_TORSO = 0.45
"""Metres between torso and foot."""
LARGEST_TILT = 1.0
"""Radians."""
START_SPREAD = 0.05
"""Radians by which each joint is away from straight at the start, at most."""
_CONTROL_SECONDS, _LIMIT_SECONDS = 0.02, 20.0


class HopUntilFall(hopper.Hopper):  # type: ignore[misc]
    """The suite's hopping task with another start and an end."""

    def __init__(self, random: int) -> None:
        super().__init__(hopping=True, random=random)

    def initialize_episode(self, physics: Any) -> None:
        """Stand the body up, with its joints bent at random within their limits."""
        for joint in ("waist", "hip", "knee", "ankle"):
            low, high = physics.named.model.jnt_range[joint]
            angle = self.random.uniform(-START_SPREAD, START_SPREAD)
            physics.named.data.qpos[joint] = min(max(angle, low), high)
        self._timeout_progress = 0

    def get_termination(self, physics: Any) -> float | None:
        """Return discount 0 where it has fallen."""
        tilt = abs(float(physics.named.data.qpos["rooty"][0]))
        fallen = float(physics.height()) < LOWEST_TORSO or tilt > LARGEST_TILT
        return 0.0 if fallen else None


def load_hop_until_fall(seed: int) -> Any:
    """Build the environment with its random state seeded."""
    physics = hopper.Physics.from_xml_string(*hopper.get_model_and_assets())
    return control.Environment(
        physics,
        HopUntilFall(seed),
        time_limit=_LIMIT_SECONDS,
        control_timestep=_CONTROL_SECONDS,
    )
