from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from apprentice import experiments
from apprentice.config import Experiment, SACSettings
from apprentice.environments import suite_tasks
from apprentice.experiments import (
    ExperimentError,
    expand,
    experiment_names,
    load_experiment,
    load_resolved,
    save_experiment,
)
from apprentice.plain_yaml import write_yaml
from apprentice.suite_tasks import SUITE_TASKS

Write = Callable[..., str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write an experiment file and return its path."""

    def write(text: str, name: str = "mine") -> str:
        path = tmp_path / f"{name}.yaml"
        path.write_text(text)
        return str(path)

    return write


def _problems(name: str, *overrides: str) -> tuple[str, ...]:
    with pytest.raises(ExperimentError) as caught:
        expand(name, overrides)
    assert all(problem in str(caught.value) for problem in caught.value.problems)
    return caught.value.problems


def test_file_holds_only_what_differs(write: Write) -> None:
    experiment = load_experiment(write("task: reacher-easy\nsac: {tau: 1e-2}"))
    assert experiment == Experiment(
        name="mine", task="reacher-easy", sac=SACSettings(tau=0.01), variant=0
    )


def test_extending_merges_sections_and_replaces_lists(write: Write) -> None:
    write(
        "name: other\ntask: reacher-easy\nseed: 7\nreads: {policy: [state, pixels]}\n"
        "sac: {tau: 0.1, gamma: 0.9}",
        "below",
    )
    write("extends: below\nsac: {tau: 0.2}\nreads: {policy: [pixels]}", "middle")
    experiment = load_experiment(write("extends: middle\ntask: cheetah-run", "above"))
    assert experiment.name == "above"
    assert experiment.task == "cheetah-run"
    assert experiment.seed == 7
    assert (experiment.sac.tau, experiment.sac.gamma) == (0.2, 0.9)
    assert experiment.reads.policy == ("pixels",)


def test_a_preset_goes_before_what_lies_below_it_and_not_before_what_is_beside_it(
    write: Write,
) -> None:
    below = write(
        "task: reacher-easy\nimitation: {method: dac, discriminator: {dropout: 0.5}}", "below"
    )
    preset = "imitation.discriminator.preset=tanh_2x100"
    assert load_experiment(below).imitation.discriminator.dropout == 0.5
    assert load_experiment(below, None, [preset]).imitation.discriminator.dropout == 0.0
    both = [preset, "imitation.discriminator.dropout=0.25"]
    for overrides in (both, both[::-1]):
        assert load_experiment(below, None, overrides).imitation.discriminator.dropout == 0.25
    above = write("extends: below\nimitation: {discriminator: {preset: tanh_2x100}}", "above")
    assert load_experiment(above).imitation.discriminator.dropout == 0.0
    grid = write(
        "extends: below\ngrid: {imitation.discriminator.preset: [null, tanh_2x100]}", "grid"
    )
    found = [one.imitation.discriminator.dropout for one in expand(grid)]
    assert found == [0.5, 0.0]


def test_a_method_sets_what_it_means_whatever_it_is_set_upon() -> None:
    assert load_experiment("dac").imitation.demonstration_share == 0.1
    sqil = load_experiment("dac", None, ["imitation.method=sqil"])
    assert sqil.imitation.demonstration_share == 0.5
    assert load_experiment("dac", None, ["imitation.method=dac"]) == load_experiment("dac")
    own = ["imitation.method=sqil", "imitation.demonstration_share=0.25"]
    assert load_experiment("dac", None, own).imitation.demonstration_share == 0.25
    fairl = load_experiment("dac", None, ["imitation.method=fairl"]).imitation.reward
    assert (fairl.form, fairl.bound) == ("fairl", 10.0)


def test_extending_finds_the_projects_experiments_and_paths(write: Write, tmp_path: Path) -> None:
    assert load_experiment(write("extends: smoke\nseed: 3")).task == "cartpole-balance"
    (tmp_path / "deeper").mkdir()
    below = write("task: finger-spin", "deeper/below")
    assert load_experiment(write("extends: deeper/below.yaml")).task == "finger-spin"
    assert load_experiment(write(f"extends: {below}")).task == "finger-spin"


def test_extending_in_a_circle_is_refused_with_the_circle(write: Write) -> None:
    write("extends: two\ntask: reacher-easy", "one")
    write("extends: three", "two")
    path = write("extends: one", "three")
    (problem,) = _problems(path)
    assert problem == "extends: expected no circle, found three -> one -> two -> three"


def test_extending_what_does_not_exist_names_the_file_that_does(write: Write) -> None:
    path = write("extends: reacher-esy")
    with pytest.raises(ExperimentError) as caught:
        expand(path)
    assert str(caught.value).startswith(path)
    assert "found \"reacher-esy\"; did you mean 'reacher-easy'?" in str(caught.value)


def test_grid_is_the_product_in_the_order_of_the_file(write: Write) -> None:
    path = write("task: reacher-easy\ngrid: {sac.tau: [0.1, 0.2], seed: [5, 6, 7]}")
    variants = expand(path)
    assert [(one.variant, one.sac.tau, one.seed) for one in variants] == [
        (0, 0.1, 5),
        (1, 0.1, 6),
        (2, 0.1, 7),
        (3, 0.2, 5),
        (4, 0.2, 6),
        (5, 0.2, 7),
    ]
    assert load_experiment(path, variant=3) == variants[3]
    assert load_experiment(path) == variants[0]


def test_grid_may_vary_whole_sections(write: Write) -> None:
    path = write(
        "task: reacher-easy\nsac: {gamma: 0.9}\ngrid: {sac: [{tau: 0.1}, {tau: 0.2, gamma: 0.8}]}"
    )
    assert [(one.sac.tau, one.sac.gamma) for one in expand(path)] == [(0.1, 0.9), (0.2, 0.8)]


def test_grid_is_inherited_until_it_is_replaced(write: Write) -> None:
    write("task: reacher-easy\ngrid: {seed: [0, 1, 2]}", "below")
    assert len(expand(write("extends: below"))) == 3
    assert [one.seed for one in expand(write("extends: below\ngrid: {seed: [8, 9]}"))] == [8, 9]
    assert len(expand(write("extends: below\ngrid: {}"))) == 1


def test_variant_that_does_not_exist_is_refused_with_those_that_do(write: Write) -> None:
    path = write("task: reacher-easy\ngrid: {seed: [0, 1, 2]}")
    with pytest.raises(ExperimentError, match="expected a number from 0 to 2, found 3"):
        load_experiment(path, variant=3)
    with pytest.raises(ExperimentError, match="found -1"):
        load_experiment(path, variant=-1)


def test_overrides_go_over_file_and_grid(write: Write) -> None:
    path = write("task: reacher-easy\nseed: 4\nsac: {tau: 0.1}\ngrid: {sac.gamma: [0.8, 0.9]}")
    experiment = load_experiment(
        path,
        variant=1,
        overrides=["seed=5", "sac.tau=1e-3", "reads.policy=[pixels]", "learner.compile=on"],
    )
    assert (experiment.seed, experiment.sac.tau, experiment.sac.gamma) == (5, 0.001, 0.9)
    assert experiment.reads.policy == ("pixels",)
    assert experiment.learner.compile == "on"
    assert load_experiment(path, overrides=["sac={gamma: 0.5}"]).sac.tau == 0.1


def test_overrides_that_are_none_are_refused(write: Write) -> None:
    path = write("task: reacher-easy")
    assert _problems(path, "seed", "=3", "seed=[") == (
        'expected key.path=value, as in sac.tau=0.01, found "seed"',
        'expected key.path=value, as in sac.tau=0.01, found "=3"',
        '"seed=[": line 1, column 2: while parsing a flow node, expected the node content, '
        "but found '<stream end>'",
    )
    assert _problems(path, "sac.gama=0.9") == (
        "sac.gama: unknown setting, found 0.9; did you mean 'gamma'?",
    )
    assert _problems(path, "seed.x=1") == (
        'seed: expected a whole number at least 0 and below 2147483648, found {"x": 1}',
    )
    assert len(_problems(path, ".".join(["a"] * 100_000) + "=1")) == 1


def test_all_problems_are_told_at_once_with_what_is_allowed_and_what_was_meant(
    write: Write,
) -> None:
    path = write(
        """
seed: true
batch_size: 3
zzz: 1
sac: {gama: 0.9, batch_size: -3, tau: "x", adam_betas: [0.9, 0.9, 0.9]}
replay: {sampling: segmants, segment_length: 1.5}
learner: {compile: 7, target_return: high, device: cdua}
reads: {policy: [pixel]}
actor:
"""
    )
    text = (
        r"text matching ^[A-Za-z0-9_]+(-[A-Za-z0-9._-]+)?$ (`domain-task` of the DeepMind Control Suite; a family, "
        "to learn all its train tasks; or the id of one of them)"
    )
    sections = ", ".join(Experiment.model_fields)
    assert set(_problems(path)) == {
        f"task: missing; expected {text}",
        "seed: expected a whole number at least 0 and below 2147483648, found true",
        "batch_size: unknown setting, found 3; did you mean 'sac.batch_size'?",
        f"zzz: unknown setting, found 1; allowed here: {sections}",
        "sac.gama: unknown setting, found 0.9; did you mean 'gamma'?",
        "sac.batch_size: expected a whole number from 1 to 65536, found -3",
        'sac.tau: expected a number above 0 and at most 1, found "x"',
        "sac.adam_betas: expected a list of 2 (a number, a number), found [0.9, 0.9, 0.9]",
        "replay.sampling: expected one of 'transitions', 'segments', 'mixed', found \"segmants\"; "
        "did you mean 'segments'?",
        "replay.segment_length: expected a whole number from 1 to 1024, found 1.5",
        "learner.compile: expected one of 'auto', 'on', 'off', found 7",
        'learner.target_return: expected a number or null, found "high"',
        "learner.device: expected one of 'auto', 'cpu', 'cuda', found \"cdua\"; "
        "did you mean 'cuda'?",
        "reads.policy[0]: expected one of 'state', 'pixels', 'task_parameters', 'latent', found \"pixel\"; "
        "did you mean 'pixels'?",
        "actor: expected a section of settings, found null",
    }


def test_combination_that_cannot_work_is_refused(write: Write) -> None:
    path = write("task: reacher-easy\nreplay: {capacity: 100}")
    (problem,) = _problems(path)
    assert problem.startswith("replay.warmup_steps: expected at most replay.capacity (100)")


def test_unknown_task_is_refused_with_the_nearest(write: Write) -> None:
    expected = "task: expected a task of the DeepMind Control Suite as 'domain-task', found "
    assert _problems(write("task: reacher-esay")) == (
        expected + "\"reacher-esay\"; did you mean 'reacher-easy'?",
    )
    (problem,) = _problems(write("task: x-y"))
    assert problem.startswith(expected + '"x-y"; there are acrobot-swingup, ')


def test_a_division_and_a_task_that_a_family_does_not_have_are_refused() -> None:
    assert _problems("reacher_goal-expert", "environment.family.split=arc") == (
        "environment.family.split: expected one of ['arcs', 'arcs_turned', 'continuous', 'standard'] for reacher_goal, "
        "found 'arc'",
    )
    (problem,) = _problems("reacher_goal-expert", "task=reacher_goal-x0.9")
    assert problem.startswith(
        "task: expected one of the 40 tasks of reacher_goal's division 'standard', found 'reacher_goal-x0.9'; did you "
    )
    goal = "reacher_goal-x0.200_y0.000-22ab3f31"
    assert load_experiment("reacher_goal-expert", overrides=[f"task={goal}"]).task == goal
    (problem,) = _problems(
        "reacher_goal-expert", f"task={goal}", "environment.family.split=continuous"
    )
    assert problem.startswith("task: expected one of the 40 tasks of reacher_goal's division 'co")


def test_what_a_fixed_division_does_not_heed_is_refused() -> None:
    heeds = ["environment.family.split=continuous", "environment.family.num_train=4"]
    load_experiment("reacher_goal-expert", None, heeds)
    for division in ("standard", "arcs", "arcs_turned"):
        problems = _problems(
            "reacher_goal-expert", f"environment.family.split={division}", *heeds[1:]
        )
        assert problems == (
            f"environment.family.num_train: expected 16 with division {division!r}, whose tasks are fixed, found 4; "
            "drawn are those of continuous",
        )


def test_known_tasks_are_those_of_the_suite() -> None:
    assert set(SUITE_TASKS) == set(suite_tasks())


def test_experiment_is_refused_without_importing_a_framework(write: Write) -> None:
    code = (
        "import sys\n"
        "from apprentice.experiments import ExperimentError, load_experiment\n"
        "try: load_experiment(sys.argv[1])\n"
        "except ExperimentError as error: print(error)\n"
        "print(sorted({'torch', 'dm_control', 'mujoco', 'grpc'} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, write("task: reacher-esay")],
        env={**os.environ, "PYTHONPATH": str(experiments.EXPERIMENTS.parent)},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert "did you mean 'reacher-easy'?" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("grid: 3", "grid: expected `key.path: [values]`, found 3"),
        ("grid: {seed: 3}", "grid.seed: expected a list of one or more values, found 3"),
        ("grid: {seed: []}", "grid.seed: expected a list of one or more values, found []"),
        ("grid: {sead: [1]}", "sead: unknown setting, found 1; did you mean 'seed'?"),
        (
            f"grid: {{seed: {list(range(40))}, variant: {list(range(40))}}}",
            "grid: expected at most 1000 variants, found 1600",
        ),
    ],
)
def test_grid_that_is_none_is_refused(write: Write, text: str, problem: str) -> None:
    assert problem in _problems(write(f"task: reacher-easy\n{text}"))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "expected settings as `key: value`, found null"),
        (b"- a", 'expected settings as `key: value`, found ["a"]'),
        (b"\xff\xfe", "expected UTF-8 text, found other bytes at 0"),
        (b"extends: [a]", 'extends: expected an experiment\'s name, found ["a"]'),
        (b"#" * 300_000, "expected at most 65,536 characters of YAML, found 262,145"),
    ],
)
def test_file_that_is_no_experiment_is_refused(
    tmp_path: Path, content: bytes, problem: str
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    assert _problems(str(path)) == (problem,)


def test_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert _problems(str(tmp_path / "none.yaml")) == ("expected a YAML file, found none",)
    assert _problems(str(tmp_path)) != ()
    assert _problems("x" * 1000 + ".yaml") == ("expected a YAML file, found none",)
    (problem,) = _problems("chetah-run")
    assert "did you mean 'cheetah-run'?" in problem


def test_resolved_experiment_is_read_back_equal(write: Write, tmp_path: Path) -> None:
    path = tmp_path / "resolved.yaml"
    for name in (write("task: reacher-easy\nsac: {tau: 1e-5}", "1e-3"), "sac-baselines", "smoke"):
        for experiment in expand(name):
            save_experiment(experiment, path)
            assert load_resolved(path) == experiment
    assert [entry.name for entry in tmp_path.iterdir() if entry.name.startswith(".")] == []


def test_resolved_experiment_can_be_started_from_again(tmp_path: Path) -> None:
    path = tmp_path / "experiment.yaml"
    variant = expand("sac-baselines")[4]
    save_experiment(variant, path)
    assert load_experiment(str(path)) == variant
    assert variant.variant == 4


def test_what_is_not_resolved_is_not_read_as_such(write: Write) -> None:
    with pytest.raises(ExperimentError, match="extends: unknown setting"):
        load_resolved(Path(write("name: mine\ntask: reacher-easy\nextends: smoke")))
    with pytest.raises(ExperimentError, match="name: missing"):
        load_resolved(Path(write("task: reacher-easy")))


def test_all_experiments_of_the_project_can_be_used() -> None:
    assert "reacher-easy" in experiment_names()
    for name in experiment_names():
        variants = expand(name)
        assert [one.variant for one in variants] == list(range(len(variants)))
        assert {one.name for one in variants} == {name}
        assert len(set(map(Experiment.model_dump_json, variants))) == len(variants)


@pytest.mark.parametrize("family", ["cheetah_velocity", "walker_dynamics", "point_mass_goal"])
def test_cloning_sets_the_same_upon_every_family(family: str) -> None:
    """Each extends the family's own meta-imitation, so that what cloning needs is written down twice."""

    def set_upon(name: str) -> dict[str, Any]:
        below, above = load_experiment(f"{name}_smile"), load_experiment(f"{name}-bc")
        found = below.differences(above)
        return {key: of_bc for key, (_, of_bc) in found.items() if key != "name"}

    own, others = set_upon(family), set_upon("reacher_goal")
    assert own and own.keys() == others.keys()
    assert own == others


def test_baselines_are_five_tasks_by_three_seeds() -> None:
    pairs = {(one.task, one.seed) for one in expand("sac-baselines")}
    assert len(pairs) == 15
    assert {seed for _, seed in pairs} == {0, 1, 2}


_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["reacher-easy", "auto", "pixels", "smoke", "\ud800", "a" * 300]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)
_KEYS = st.sampled_from(
    [
        "task",
        "name",
        "seed",
        "variant",
        "extends",
        "grid",
        "environment",
        "reads",
        "network",
        "sac",
        "replay",
        "actor",
        "learner",
        "services",
        "sac.tau",
        "tau",
        "gamma",
        "policy",
        "capacity",
        "target_return",
        "adam_betas",
    ]
) | st.text(max_size=6)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(
    base=st.sampled_from(experiment_names()),
    additions=st.dictionaries(_KEYS, _VALUES, max_size=3),
    nested=st.dictionaries(_KEYS, _VALUES, max_size=2),
    cut=st.none() | st.tuples(st.integers(0, 400), st.integers(0, 12), st.text(max_size=6)),
)
def test_mutated_file_gives_an_experiment_or_says_why_not(
    tmp_path: Path,
    base: str,
    additions: dict[str, object],
    nested: dict[str, object],
    cut: tuple[int, int, str] | None,
) -> None:
    text = (experiments.EXPERIMENTS / f"{base}.yaml").read_text()
    # Later keys replace those of the file, so that not every example ends as a duplicate key.
    for key in additions:
        text = re.sub(rf"(?m)^{re.escape(key)}:.*\n(?:[ #].*\n)*", "", text)
    text += write_yaml(additions | {"sac": nested} if nested and "sac:" not in text else additions)
    if cut is not None:
        start, length, put = cut
        text = text[:start] + put + text[start + length :]
    path = tmp_path / "mutated.yaml"
    path.write_text(text, encoding="utf-8", errors="replace")
    try:
        variants = expand(str(path))
    except ExperimentError as error:
        str(error).encode("utf-8")
        assert error.problems
    else:
        assert all(isinstance(one, Experiment) for one in variants)
        save_experiment(variants[-1], path)
        assert load_resolved(path) == variants[-1]
