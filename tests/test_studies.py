"""The studies: each asks one question of `dac`, over three seeds, and the table of them is complete."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

from apprentice.config import Experiment
from apprentice.experiments import EXPERIMENTS, expand
from cli.experiments import differing_settings
from cli.main import parse

STUDIES = EXPERIMENTS / "studies"
DOCS = EXPERIMENTS.parent / "docs" / "studies"
RESULTS = EXPERIMENTS.parent / "benchmarks" / "results"
NAMES = sorted({path.stem for path in STUDIES.glob("*.yaml")} - {"base"})
FOLLOWS = {
    "architecture": {"imitation.discriminator.hidden_size", "imitation.discriminator.dropout"},
    "reward-forms": {"imitation.reward.bound"},
}
"""Settings that move with the one that is asked about: a preset's, and FAIRL's bound."""
LINE = re.compile(r"\| [^|]+\? \| `([a-z-]+)` \| `([a-z_.]+)` \| (\d+) \| (.+) \|")


@cache
def documented() -> dict[str, tuple[str, int, str]]:
    """Return what the table says: setting, number of runs and answer of each file."""
    found = [LINE.fullmatch(line) for line in (DOCS / "README.md").read_text().splitlines()]
    lines = [match.groups() for match in found if match is not None]
    assert len({name for name, *_ in lines}) == len(lines)
    return {name: (setting, int(num), answer) for name, setting, num, answer in lines}


def variants(name: str) -> tuple[Experiment, ...]:
    return expand(str(STUDIES / f"{name}.yaml"))


def value_of(experiment: Experiment, path: str) -> object:
    found: object = experiment
    for key in path.split("."):
        found = getattr(found, key)
    return found


def test_the_table_lists_every_study() -> None:
    assert sorted(documented()) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_study_changes_one_setting_over_three_seeds(name: str) -> None:
    setting, num, _ = documented()[name]
    found = variants(name)
    assert len(found) == num
    changes = differing_settings(found)
    asked = {setting, "seed"}
    assert asked <= set(changes[0]) <= asked | FOLLOWS.get(name, set())
    values = [str(change[setting]) for change in changes]
    assert len(set(values)) >= 2
    seeds = {value: [] for value in values}  # type: dict[str, list[int]]
    for value, change in zip(values, changes, strict=True):
        seeds[value].append(change["seed"])
    assert set(map(tuple, seeds.values())) == {(0, 1, 2)}


@pytest.mark.parametrize("name", NAMES)
def test_the_first_value_of_a_study_is_what_dac_uses(name: str) -> None:
    setting, _, _ = documented()[name]
    assert value_of(variants(name)[0], setting) == value_of(expand("dac")[0], setting)
    assert all(one.imitation.method == "dac" for one in variants(name))


@pytest.mark.parametrize("name", NAMES)
def test_an_answer_has_its_page_and_its_rows(name: str) -> None:
    _, _, answer = documented()[name]
    page, rows = DOCS / f"{name}.md", RESULTS / f"study-{name}.csv"
    assert answer == (f"[{name}.md]({name}.md)" if page.exists() else "ready to run")
    assert page.exists() == rows.exists()


def test_the_commands_of_the_page_can_be_given() -> None:
    text = (DOCS / "README.md").read_text()
    commands = re.findall(r"^    apprentice ([^#\n]+)", text, re.MULTILINE)
    assert len(commands) == 3
    for command in commands:
        parse(command.replace("FILE", "width").replace("SETTING", "sac.gamma").split())


def test_the_example_of_the_page_asks_two_questions_at_once(tmp_path: Path) -> None:
    text = (DOCS / "README.md").read_text()
    example = re.sub("^    ", "", text[text.index("    extends: ") :], flags=re.MULTILINE)
    path = tmp_path / "mine.yaml"
    path.write_text(example.replace("experiments/", f"{EXPERIMENTS}/"))
    asked = {one.imitation.discriminator.penalty_target for one in expand(str(path))}
    assert asked == {"exp_reward"}
    assert len(expand(str(path))) == len(variants("penalties"))


def test_every_choice_of_form_penalty_schedule_and_sampling_is_asked_about() -> None:
    asked = {
        setting: {value_of(one, setting) for one in variants(name)}
        for name, (setting, _, _) in documented().items()
    }
    fields = {
        "imitation.reward.form": 4,
        "imitation.discriminator.penalty": 5,
        "imitation.discriminator.penalty_target": 3,
        "imitation.discriminator.inputs": 3,
        "imitation.discriminator.activation": 4,
        "replay.sampling": 3,
        "sac.trust_region": 3,
    }
    for setting, num in fields.items():
        assert len(asked[setting]) == num, setting
    for setting in ("updates", "period", "replay_window", "dropout", "hidden_size", "preset"):
        assert len(asked[f"imitation.discriminator.{setting}"]) > 1
    assert {"replay.capacity", "sac.batch_size", "sac.reward_scale"} <= set(asked)
