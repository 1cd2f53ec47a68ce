"""Pictures: against dm_control's own, again from stored states, and never where nobody looks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest

from apprentice.config import EnvironmentSettings
from apprentice.environments import (
    RenderingUnavailable,
    make_environment,
    probe_rendering,
)

ROOT = Path(__file__).resolve().parents[2]

needs_graphics = pytest.mark.skipif(
    probe_rendering().name == "none", reason=f"nothing draws here: {probe_rendering().detail}"
)

_REFERENCE = """
import os, sys, json
import numpy as np
os.environ["MUJOCO_GL"] = sys.argv[1]
from dm_control import suite
frames = {}
for task in sys.argv[3:]:
    domain, name = task.split("-", 1)
    environment = suite.load(domain, name, task_kwargs={"random": 0})
    environment.reset()
    for _ in range(3):
        environment.step(np.full(environment.action_spec().shape, 0.2))
    frames[task] = environment.physics.render(84, 84, camera_id=0)
np.savez(sys.argv[2], **frames)
"""


def run(code: str, *arguments: str, **environment: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@needs_graphics
def test_full_is_dm_controls_picture_and_look_nearly_so(tmp_path: Path) -> None:
    tasks = ("reacher-easy", "cheetah-run", "walker-walk")
    run(_REFERENCE, probe_rendering().name, str(tmp_path / "frames.npz"), *tasks)
    reference = np.load(tmp_path / "frames.npz")
    for task in tasks:
        environment = make_environment(task, seed=0)
        environment.reset()
        for _ in range(3):
            environment.step(np.full(environment.spec.action_size, 0.2))
        expected = reference[task].astype(np.float64)
        full = environment.render(84, 84, camera=0, quality="full")
        np.testing.assert_array_equal(full, reference[task])
        look = environment.render(84, 84, camera=0, quality="look")
        difference = np.abs(look - expected)
        assert 0 < difference.mean() <= 2.0, task
        fast = environment.render(84, 84, camera=0, quality="fast")
        assert fast.max() > fast.min()
        environment.close()


@needs_graphics
@pytest.mark.parametrize(
    "task",
    [
        "reacher-easy",
        "finger-turn_easy",
        "fish-swim",
        "swimmer-swimmer6",
        "manipulator-bring_peg",
        "quadruped-escape",
        "point_mass-hard",
        "ball_in_cup-catch",
    ],
)
def test_an_episode_drawn_from_its_stored_states_equals_the_live_one(task: str) -> None:
    live = make_environment(task, seed=4)
    live.reset()
    live.reset()
    fields = live.model_fields()
    states, frames = [], []
    for _ in range(3):
        live.step(np.full(live.spec.action_size, 0.3))
        states.append(live.physics_state())
        frames.append(live.render(64, 48))
    live.close()
    later = make_environment(task, seed=99)
    later.reset()
    later.restore(states[0], fields)
    for state, frame in zip(states, frames, strict=True):
        later.set_physics_state(state)
        np.testing.assert_array_equal(later.render(64, 48), frame)
    later.close()


@needs_graphics
def test_restoring_undoes_what_the_present_episode_set() -> None:
    environment = make_environment("reacher-easy", seed=0)
    environment.reset()
    fields, state = environment.model_fields(), environment.physics_state()
    assert "geom_pos" in fields
    environment.reset()
    environment.restore(state, fields)
    np.testing.assert_array_equal(environment.model_fields()["geom_pos"], fields["geom_pos"])
    environment.restore(state, {})
    assert environment.model_fields() == {}


@needs_graphics
def test_pixels_are_stacked_oldest_first_and_the_first_frame_repeats() -> None:
    settings = EnvironmentSettings(width=32, height=24, frame_stack=3)
    environment = make_environment("cheetah-run", 0, ("state", "pixels"), settings)
    observation = environment.reset().observation
    assert observation["pixels"].shape == (3, 24, 32, 3)
    assert observation["pixels"].dtype == np.uint8
    assert observation["state"].shape == (17,)
    first = observation["pixels"]
    np.testing.assert_array_equal(first[0], first[2])
    second = environment.step(np.ones(6)).observation["pixels"]
    third = environment.step(np.ones(6)).observation["pixels"]
    np.testing.assert_array_equal(second[:2], first[1:])
    np.testing.assert_array_equal(third[:2], second[1:])
    assert not np.array_equal(third[2], third[0])
    environment.close()


@needs_graphics
def test_an_unknown_camera_lists_those_there_are() -> None:
    environment = make_environment("cheetah-run", 0)
    environment.reset()
    with pytest.raises(ValueError, match=r"0 'side', 1 'back'; found 'top'"):
        environment.render(camera="top")
    assert environment.render(32, 32, camera="back").shape == (32, 32, 3)
    environment.close()


_STATE_ONLY = """
import json, sys
import numpy as np
from apprentice.environments import make_environment
for task in ("reacher-easy", "quadruped-escape"):
    environment = make_environment(task, 0)
    environment.reset()
    environment.step(np.zeros(environment.spec.action_size))
names = [name for name in sys.modules if name.split(".")[0] in ("OpenGL", "glfw")]
names += [name for name in sys.modules if name.startswith(("mujoco.egl", "mujoco.osmesa"))]
print(json.dumps(names))
"""


@pytest.mark.parametrize("requested", ["disabled", "egl", "osmesa", "glfw"])
def test_state_alone_never_touches_graphics(requested: str) -> None:
    assert json.loads(run(_STATE_ONLY, MUJOCO_GL=requested)) == []


_HIDDEN = """
import ctypes.util, sys
from apprentice.environments import gl
gl._PROBE = "import ctypes.util; ctypes.util.find_library = lambda name: None\\n" \
    "import ctypes; ctypes.CDLL = lambda *a, **k: (_ for _ in ()).throw(OSError('hidden'))\\n" \
    + gl._PROBE
print(gl.probe_rendering())
"""


def test_without_graphics_libraries_the_probe_says_what_to_install() -> None:
    answer = run(_HIDDEN)
    assert "name='none'" in answer
    assert "apt-get install" in answer


def test_a_backend_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    from apprentice.environments import gl

    monkeypatch.setattr(gl, "_PROBE", "import time; time.sleep(60)")
    monkeypatch.setattr(gl, "PROBE_SECONDS", 0.5)
    assert gl._try("egl") == "no frame within 0 s"


@needs_graphics
def test_a_blank_frame_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from apprentice.environments import renderer

    monkeypatch.setattr(renderer.mujoco, "mjr_readPixels", lambda rgb, *rest: rgb.fill(0))
    environment = make_environment("cheetah-run", 0)
    environment.reset()
    with pytest.raises(RenderingUnavailable, match="every pixel at 0"):
        environment.render(32, 32)


@needs_graphics
def test_frames_of_many_sizes_do_not_fill_the_memory() -> None:
    environment = make_environment("reacher-easy", 0, ("state",), EnvironmentSettings())
    process = psutil.Process()
    try:
        sizes = [(64 + 4 * number, 64) for number in range(16)]
        for width, height in sizes[:4]:
            environment.render(width, height)
        before = process.memory_info().rss
        for width, height in sizes[4:]:
            assert environment.render(width, height).shape == (height, width, 3)
        assert process.memory_info().rss - before < 200 * 2**20  # kept, they were 400 MiB
    finally:
        environment.close()
