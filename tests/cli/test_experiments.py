from __future__ import annotations

import pytest

from apprentice import exit_codes
from apprentice.config import Experiment
from cli.experiments import differing_settings
from cli.main import main


def test_only_settings_in_which_variants_differ_are_listed() -> None:
    variants = tuple(
        Experiment.model_validate(
            {
                "name": "grid",
                "task": "reacher-easy",
                "variant": number,
                "seed": seed,
                "sac": {"tau": tau},
            }
        )
        for number, (seed, tau) in enumerate([(0, 0.005), (1, 0.005), (0, 0.01)])
    )
    assert differing_settings(variants) == [
        {"seed": 0, "sac.tau": 0.005},
        {"seed": 1, "sac.tau": 0.005},
        {"seed": 0, "sac.tau": 0.01},
    ]


def test_the_tasks_of_a_family_are_listed_by_part(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["experiments", "cheetah_velocity_smile", "--tasks"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["train"] * 17 + ["validation"] * 8 + [
        "test"
    ] * 16
    assert lines[-16] == "test        cheetah_velocity-speed0.094-0437313c  speed 0.0938 m/s"


def test_another_division_is_listed_where_it_is_asked_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["experiments", "reacher_goal-expert", "--tasks", "--set"]
    assert main([*words, "environment.family.split=arcs"]) == 0
    assert "test        reacher_goal-x-0.104_y-0.171-08b297a8  x -0.103752 m  y -0.170984 m" in (
        capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["reacher-easy", "--tasks"], exit_codes.CONFIGURATION, "expected an experiment of a family of tasks"),
        (["--tasks"], exit_codes.CONFIGURATION, "expected the name of an experiment"),
    ],
)  # fmt: skip
def test_tasks_are_listed_of_families_only(
    words: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["experiments", *words]) == code
    assert said in capsys.readouterr().err
