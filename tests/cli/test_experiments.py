from __future__ import annotations

from apprentice.config import Experiment
from cli.experiments import differing_settings


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
