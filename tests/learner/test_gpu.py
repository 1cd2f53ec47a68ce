"""What is learned on a GPU is what is learned on a CPU. Where there is no NVIDIA GPU, nothing here runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode

from apprentice.checkpoint import load_policy, read_tensors
from apprentice.config import Experiment
from apprentice.demonstrations.dataset import DemonstrationDataset
from apprentice.environments import experiment_specs
from apprentice.types import EnvironmentSpec, Segment, Trajectory
from benchmarks.made_up import random_segment
from learner.demonstrated import Demonstrated, load_demonstrated
from learner.devices import select_device
from learner.dropout import draw_dropout
from learner.learning import Learning
from learner.sac import Tensors
from tests.family_cases import FAMILY, family_demonstrations
from tests.learner.test_learning import assert_same_state, keep

if not torch.cuda.is_available():
    pytest.skip("needs an NVIDIA GPU", allow_module_level=True)

CPU, GPU = torch.device("cpu"), torch.device("cuda")
LENGTH, NUM_SEGMENTS, NUM_UPDATES = 10, 8, 6
SMALL = {"hidden_size": 32, "encoder_channels": 4, "encoder_features": 8}
STATES = {"normalise_observations": True, "normaliser_floor": 0.03}
PIXELS = ["pixels"]
TOLD, LATENT = ["state", "task_parameters"], ["state", "latent"]


class Case(NamedTuple):
    """An experiment's settings beside those that all share, and whether its demonstrations are a family's."""

    changes: dict[str, Any]
    is_family: bool = False


def single(method: str = "dac", **changes: Any) -> Case:
    discriminator = changes.pop("discriminator", {})
    own = {"method": method, "discriminator": {"hidden_size": 32, **discriminator}}
    own.update(changes.pop("imitation", {}))
    return Case({"imitation": own, "network": {**SMALL, **STATES}, **changes})


def family(reads: list[str], method: str = "dac", **changes: Any) -> Case:
    roles = ("policy", "critic", "discriminator")
    chosen = single(method, reads=dict.fromkeys(roles, reads), **changes)
    return chosen._replace(is_family=True)


def pixels(method: str) -> Case:
    roles = ("policy", "critic") + (("discriminator",) if method != "none" else ())
    return single(
        method,
        reads=dict.fromkeys(roles, PIXELS),
        network=SMALL,
        environment={"frame_stack": 2, "height": 32, "width": 32},
    )


EXTRAS = {
    "dropout": 0.5,
    "mixup": True,
    "spectral_norm": True,
    "input_noise": 0.1,
    "weight_decay": 0.01,
    "entropy_bonus": 0.01,
    "replay_window": 40,
    "replay_window_share": 0.5,
}
CASES = {
    "sac": single("none"),
    "sac-trust-region": single("none", sac={"trust_region": "constraint", "batch_size": 48}),
    "sac-segments": single("none", replay={"sampling": "segments", "sampled_length": 4}),
    "sac-mixed": single("none", replay={"sampling": "mixed", "sampled_length": 4}),
    "sac-pixels": pixels("none"),
    "dac": single("dac", imitation={"demonstration_share": 0.25}),
    "dac-extras": single("dac", discriminator=EXTRAS),
    "dac-pixels": pixels("dac"),
    "dac-absorbing": single("dac", imitation={"absorbing_states": True}),
    "gail": single("gail"),
    "fairl": single("fairl"),
    "airl": single("airl"),
    "sqil": single("sqil"),
    "bc": single("bc"),
    "told": family(TOLD),
    "told-products": family(
        TOLD,
        network={**SMALL, **STATES, "task_products": True},
        imitation={"imagined_share": 0.5},
        discriminator={"weight_decay": 1.0},
        sac={"policy_weight_decay": 1.0, "batch_size": 48},
    ),
    "posterior-products": family(
        LATENT,
        context={"hidden_size": 16, "latent_size": 3},
        network={**SMALL, **STATES, "task_products": True},
        imitation={"imagined_share": 0.5},
    ),
    "posterior": family(LATENT, context={"hidden_size": 16, "latent_size": 3}),
    "posterior-pretrained": family(
        LATENT, context={"hidden_size": 16, "latent_size": 3, "pretrain_updates": 3}
    ),
    "posterior-linear": family(
        LATENT,
        context={"hidden_size": 16, "latent_size": 3, "linear": True, "pretrain_updates": 3},
    ),
    "context_window-linear": family(
        LATENT,
        context={"encoder": "context_window", "latent_size": 3, "linear": True},
    ),
    "context_window": family(
        LATENT, context={"encoder": "context_window", "hidden_size": 16, "latent_size": 3}
    ),
    "posterior-some-tasks": family(
        LATENT,
        context={"hidden_size": 16, "latent_size": 3, "learned_updates": 4},
        replay={"tasks_per_batch": 3},
        imitation={"demonstration_share": 0.25},
    ),
    "meta-cloning": family(LATENT, "bc", context={"hidden_size": 16, "latent_size": 3}),
    "meta-cloning-some-tasks": family(
        LATENT,
        "bc",
        context={"hidden_size": 16, "latent_size": 3},
        replay={"tasks_per_batch": 3},
    ),
}
"""What is asked of all that an experiment may choose: every path on which tensors are made or moved."""
COMPILED = ["sac", "dac", "airl", "posterior", "told-products", "meta-cloning", "sac-pixels"]
"""Those that are compiled as well, which takes long: one of each update."""
NOT_BIT_FOR_BIT = ["meta-cloning", "sac-pixels"]
"""Those of them that, compiled, do not go on bit for bit; why was not found."""


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demonstrations") / "small"
    family_demonstrations(folder, keys=TOLD)
    return folder


def experiment_of(case: Case, recorded: Path, **learner: Any) -> Experiment:
    tree: dict[str, Any] = {
        "name": "test",
        "task": "reacher_goal" if case.is_family else "reacher-easy",
        "environment": {},
        "sac": {"batch_size": 48},
        "replay": {},
        **case.changes,
    }
    tree["learner"] = {"compile": "off", "max_steps": 1000, **learner}
    replay = {"segment_length": LENGTH, "warmup_steps": 20, "capacity": 2000}
    tree["replay"] = {**replay, **tree["replay"]}
    tree["environment"] = {"action_repeat": 4, **tree["environment"]}
    if case.is_family:
        tree["sac"] = {**tree["sac"], "gamma": 0.98}
        tree["environment"] = {"family": FAMILY}
        tree["imitation"] = {**tree["imitation"], "demonstrations": {"file": str(recorded)}}
    return Experiment.model_validate(tree)


def segment_of(spec: EnvironmentSpec, task: int, number: int, context: np.ndarray) -> Segment:
    random = np.random.default_rng(1000 * task + number)
    made = random_segment(random, spec, LENGTH, number)
    return made._replace(task=task, context=context)


def demonstrated_of(
    experiment: Experiment, spec: EnvironmentSpec, device: torch.device
) -> Demonstrated | None:
    """Read what is imitated; of images, which no file bundled here has, take some of random pixels."""
    if "pixels" not in spec.observation or experiment.imitation.method == "none":
        known = load_demonstrated(experiment, spec, device)
        return None if known is None else known[0]
    segments = [segment_of(spec, 9, number, np.zeros(0, np.int64)) for number in range(4)]
    episodes = [
        Trajectory(
            {
                key: values[spec.num_leading_frames(key) - 1 :]
                for key, values in s.observation.items()
            },
            *(s.action, s.pre_tanh_action, s.environment_reward, s.discount, s.ending),
            *(np.zeros((LENGTH + 1, 0)), {}, 0),
        )
        for s in segments
    ]
    keys, stack = tuple(spec.observation), experiment.environment.frame_stack
    return Demonstrated(
        DemonstrationDataset(episodes, keys=keys, frame_stack=stack, device=device), None, None
    )


def begin(name: str, recorded: Path, device: torch.device, **learner: Any) -> Learning:
    """Return a run that has its warm-up and may learn."""
    experiment = experiment_of(CASES[name], recorded, device=device.type, **learner)
    assert select_device(experiment.learner).type == device.type
    specs = experiment_specs(experiment.task, experiment.observation_keys, experiment.environment)
    demonstrated = demonstrated_of(experiment, specs[0], device)
    learning = Learning(experiment, specs, device, demonstrated=demonstrated)
    assert learning.pretrain()
    shown = None if demonstrated is None else demonstrated.context
    for task, spec in enumerate(specs):
        context = np.zeros(0, np.int64)
        if shown is not None:
            context = np.full(experiment.context.most, -1, np.int64)
            context[0] = shown.number[shown.task == task][0]
        for number in range(NUM_SEGMENTS):
            assert learning.receive(segment_of(spec, task, number, context))
    return learning


def learn(learning: Learning, num_updates: int) -> None:
    for _ in range(num_updates):
        learning.update()


def assert_went_the_same_way(first: Tensors, found: Tensors, expected: Tensors) -> None:
    """To 2 % of the way, since Adam makes whole steps of gradients near 0, whose sign may differ."""
    num_moved = 0
    for key, tensor in expected.items():
        if tensor.is_floating_point():
            moved = float((tensor - first[key]).norm())
            num_moved += moved > 0.0
            assert float((found[key] - tensor).norm()) <= 0.02 * moved + 1e-5, key
    assert num_moved >= 1


class DrawnOnTheCPU(TorchFunctionMode):
    """Random numbers for the GPU come from generators of the CPU, so that both devices learn from the same."""

    _DRAWING = (torch.rand, torch.randn, torch.randint, torch.randperm)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = dict(kwargs or {})
        device = given.get("device")
        if func in self._DRAWING and given.get("generator") is not None and device is not None:
            return func(*args, **{**given, "device": CPU}).to(device)
        return func(*args, **given)


@pytest.fixture
def same_numbers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    class OfTheCPU(torch.Generator):
        def __new__(cls, device: Any = None) -> torch.Generator:
            return super().__new__(cls)

    monkeypatch.setattr(torch, "Generator", OfTheCPU)
    with DrawnOnTheCPU():
        yield


@pytest.fixture
def in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Convolutions round their inputs to 10 bits unless they are told not to."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.mark.usefixtures("same_numbers", "in_float32")
@pytest.mark.parametrize("name", CASES)
def test_the_same_numbers_teach_the_same_on_both_devices(
    name: str, recorded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {}
    for device in (CPU, GPU):
        monkeypatch.setattr(
            "learner.judging.draw_dropout",
            lambda *drawn, device=device: draw_dropout(*drawn).to(device),
        )
        learning = begin(name, recorded, device)
        before = learning.state_tensors()["networks"]
        learn(learning, NUM_UPDATES)
        found[device] = (before, learning.state_tensors()["networks"], learning.metrics())
    (first, expected, metrics), (other_first, networks, other_metrics) = found[CPU], found[GPU]
    for key, tensor in expected.items():
        if not tensor.is_floating_point():
            continue
        torch.testing.assert_close(other_first[key], first[key], atol=1e-4, rtol=1e-4)
    assert_went_the_same_way(first, networks, expected)
    assert other_metrics.keys() == metrics.keys()
    for key, value in metrics.items():
        assert other_metrics[key] == pytest.approx(value, rel=0.02, abs=0.01), key


def assert_goes_on(name: str, recorded: Path, mode: str) -> None:
    """Assert that a run that is stopped and resumed ends where one that is not does, bit for bit."""
    whole, resumed = (begin(name, recorded, GPU, compile=mode) for _ in range(2))
    for learning in (whole, resumed):
        learning.prepare()
    learn(whole, NUM_UPDATES)
    saved, counters = whole.state_tensors(), whole.counters
    resumed.load_state(saved, counters, normalised=True)
    learn(whole, NUM_UPDATES)
    learn(resumed, NUM_UPDATES)
    if mode == "on":
        assert all(update.is_recorded for update in resumed.sac._updates.values())  # type: ignore[attr-defined]
    assert_same_state(resumed, whole)


@pytest.mark.parametrize("name", CASES)
def test_a_run_on_a_gpu_goes_on_as_if_it_had_not_stopped(name: str, recorded: Path) -> None:
    assert_goes_on(name, recorded, "off")


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", [n for n in COMPILED if n not in NOT_BIT_FOR_BIT])
def test_compiled_it_goes_on_as_if_it_had_not_stopped(name: str, recorded: Path) -> None:
    assert_goes_on(name, recorded, "on")


@pytest.mark.parametrize(
    "name", ["sac", "dac", "dac-extras", "airl", "posterior", "posterior-products", "bc"]
)
def test_an_update_does_not_wait_for_the_gpu(name: str, recorded: Path) -> None:
    learning = begin(name, recorded, GPU)
    learn(learning, 2)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        learn(learning, 3)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", COMPILED)
def test_compiled_updates_learn_what_plain_ones_do(
    name: str, recorded: Path, in_float32: None
) -> None:
    plain = begin(name, recorded, GPU)
    fast = begin(name, recorded, GPU, compile="on")
    fast.prepare()
    first = plain.state_tensors()["networks"]
    for learning in (plain, fast):
        learn(learning, NUM_UPDATES)
    assert all(update.is_recorded for update in fast.sac._updates.values())  # type: ignore[attr-defined]
    found, expected = (one.state_tensors()["networks"] for one in (fast, plain))
    assert_went_the_same_way(first, found, expected)


@pytest.mark.parametrize("name", ["sac", "dac-pixels", "posterior"])
def test_a_checkpoint_of_a_gpu_is_read_without_one(
    name: str, recorded: Path, tmp_path: Path
) -> None:
    learning = begin(name, recorded, GPU)
    learn(learning, NUM_UPDATES)
    path = keep(learning, tmp_path)
    _, manifest = load_policy(path)
    kept = read_tensors(path, "policy", manifest)
    expected = learning.sac.policy_tensors(averaged=True)
    assert kept.keys() >= expected.keys()
    assert all(torch.equal(kept[key], tensor) for key, tensor in expected.items())


def test_bfloat16_learns_on_a_gpu(recorded: Path) -> None:
    networks = {}
    for precision in ("float32", "bfloat16"):
        learning = begin("dac", recorded, GPU, precision=precision)
        learn(learning, NUM_UPDATES)
        found = learning.metrics()
        assert found["learner/rejected_updates"] == found["discriminator/rejected_updates"] == 0.0
        networks[precision] = learning.state_tensors()["networks"]["critic"]
    assert not torch.equal(networks["bfloat16"], networks["float32"])
    torch.testing.assert_close(networks["bfloat16"], networks["float32"], atol=0.01, rtol=0)


@pytest.mark.parametrize("asked", ["auto", "cuda"])
def test_a_gpu_that_is_there_is_taken(asked: str, recorded: Path) -> None:
    settings = experiment_of(CASES["sac"], recorded, device=asked).learner
    assert select_device(settings).type == "cuda"
    assert torch.backends.cudnn.deterministic
