"""`walker_dynamics`: the suite's walker walks with a body that it is not told: heavier, slippery, or stiff.

Masses, friction and joint damping are scaled, each by a factor from 0.5 to 2. Reward and observation are those
of `walker-walk`. An episode lasts 12.5 s.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from dm_control.rl import control
from dm_control.suite import walker
from lxml import etree  # type: ignore[import-untyped]

from apprentice.config_family import FamilySettings
from apprentice.environments.families import Family, FamilyError, Parameter, Task, TaskSplit

LEAST, MOST = 0.5, 2.0
"""Range of each factor, drawn evenly on a logarithmic scale."""
EPISODE_SECONDS = 12.5
DENSITY = 1000.0
"""kg/m^3 of every geom whose file does not say: MuJoCo's default."""
_CONTROL_SECONDS = 0.025
_WALK_SPEED = 1.0


class Walk(walker.PlanarWalker):  # type: ignore[misc]
    """The suite's task, with its speed measured."""

    def __init__(self, random: int) -> None:
        super().__init__(move_speed=_WALK_SPEED, random=random)
        self._speeds: list[float] = []

    def initialize_episode(self, physics: Any) -> None:
        """Start as the suite's task does."""
        super().initialize_episode(physics)
        self._speeds = []

    def get_reward(self, physics: Any) -> float:
        """Return the suite's reward."""
        self._speeds.append(float(physics.horizontal_velocity()))
        return float(super().get_reward(physics))

    def episode_metrics(self, physics: Any) -> dict[str, float]:
        """Return the mean horizontal speed of the episode so far in m/s."""
        return {"mean_speed": float(np.mean(self._speeds)) if self._speeds else 0.0}


class WalkerDynamics(Family):
    """Bodies with other masses, friction and damping."""

    name = "walker_dynamics"
    parameters = (
        Parameter("mass", LEAST, MOST, "times"),
        Parameter("friction", LEAST, MOST, "times"),
        Parameter("damping", LEAST, MOST, "times"),
    )
    splits: ClassVar[dict[str, str]] = {
        "standard": "factors drawn, as many tasks as num_train, num_validation, num_test say"
    }

    def divide(self, settings: FamilySettings) -> TaskSplit:
        """Return the bodies of each division."""

        def draw(random: np.random.Generator, _: str) -> dict[str, float]:
            factors = np.exp(random.uniform(np.log(LEAST), np.log(MOST), len(self.parameters)))
            return {p.name: factor for p, factor in zip(self.parameters, factors, strict=True)}

        train, validation, test = self.drawn(settings, draw)
        return TaskSplit(tuple(train), tuple(validation), tuple(test))

    def load(self, task: Task, seed: int, settings: FamilySettings) -> Any:
        """Compile the body of a task and build its environment."""
        xml, assets = walker.get_model_and_assets()
        physics = walker.Physics.from_xml_string(_scaled(xml, task), assets)
        return control.Environment(
            physics,
            Walk(seed),
            time_limit=EPISODE_SECONDS,
            control_timestep=_CONTROL_SECONDS,
        )


def _scaled(xml: bytes, task: Task) -> bytes:
    """Return the model's XML with the task's factors on density, friction and damping."""
    root = etree.fromstring(xml)
    geom, joint = root.find("./default/geom"), root.find("./default/joint")
    if (
        geom is None
        or joint is None
        or "friction" not in geom.attrib
        or "damping" not in joint.attrib
    ):
        raise FamilyError(
            "expected the suite's walker.xml to set friction and damping as defaults; install the locked dm_control"
        )
    friction = [
        float(value) * task.parameters["friction"] for value in geom.get("friction").split()
    ]
    geom.set("friction", " ".join(repr(value) for value in friction))
    geom.set("density", repr(DENSITY * task.parameters["mass"]))
    joint.set("damping", repr(float(joint.get("damping")) * task.parameters["damping"]))
    return bytes(etree.tostring(root))


FAMILY = WalkerDynamics()
