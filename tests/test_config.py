from __future__ import annotations

from collections.abc import Iterator

import pytest
from pydantic import BaseModel, ValidationError

from apprentice.config import (
    CloningSettings,
    DiscriminatorSettings,
    Experiment,
    ReadsSettings,
    ReplaySettings,
    SACSettings,
    Settings,
)


def _sections(model: type[BaseModel], path: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    yield path, model
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _sections(field.annotation, f"{path}{name}.")


def test_every_setting_says_what_it_means() -> None:
    silent = [
        f"{path}{name}"
        for path, model in _sections(Experiment)
        for name, field in model.model_fields.items()
        if not field.description
        and not (isinstance(field.annotation, type) and issubclass(field.annotation, Settings))
    ]
    assert silent == []


def test_every_section_says_what_it_is_about() -> None:
    assert [path for path, model in _sections(Experiment) if not model.__doc__] == []


def test_task_and_name_are_all_that_has_no_default() -> None:
    required = [
        f"{path}{name}"
        for path, model in _sections(Experiment)
        for name, field in model.model_fields.items()
        if field.is_required()
    ]
    assert required == ["name", "task"]


def test_settings_cannot_be_changed() -> None:
    experiment = Experiment(name="one", task="reacher-easy")
    with pytest.raises(ValidationError):
        experiment.seed = 1  # type: ignore[misc]
    with pytest.raises(ValidationError):
        experiment.sac.tau = 0.5  # type: ignore[misc]


def test_defaults_bound_the_age_of_data_to_512_steps() -> None:
    experiment = Experiment(name="one", task="reacher-easy")
    replay, actor = experiment.replay, experiment.actor
    writing = actor.num_actors * actor.environments * replay.segment_length
    waiting = replay.feed_segments * replay.segment_length
    assert writing + waiting <= 512


@pytest.mark.parametrize(
    ("reads", "keys"),
    [
        (ReadsSettings(), ("state",)),
        (ReadsSettings(policy=("pixels",), critic=("state",)), ("state", "pixels")),
        (ReadsSettings(policy=("pixels", "state"), critic=("pixels",)), ("state", "pixels")),
        (ReadsSettings(policy=("pixels",), critic=("pixels",)), ("pixels",)),
    ],
)
def test_observation_keys_are_those_that_anyone_reads(
    reads: ReadsSettings, keys: tuple[str, ...]
) -> None:
    assert Experiment(name="one", task="reacher-easy", reads=reads).observation_keys == keys


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"warmup_steps": 101, "capacity": 100}, "replay.warmup_steps: expected at most"),
        ({"warmup_steps": 1, "capacity": 8}, "replay.segment_length: expected at most"),
        ({"sampling": "segments", "sampled_length": 33}, "replay.sampled_length: expected at most"),
    ],
)
def test_replay_that_could_never_work_is_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ReplaySettings.model_validate(settings)


@pytest.mark.parametrize(
    ("settings", "section", "prefix"),
    [
        (SACSettings, "sac", "policy_"),
        (DiscriminatorSettings, "imitation.discriminator", ""),
        (CloningSettings, "imitation.cloning", ""),
    ],
)
def test_a_decay_that_leaves_nothing_of_the_weights_is_refused(
    settings: type[BaseModel], section: str, prefix: str
) -> None:
    rate, decay = f"{prefix}learning_rate", f"{prefix}weight_decay"
    message = rf"{section}\.{decay}: expected less than 1 / {section}\.{rate} \(1000\)"
    with pytest.raises(ValidationError, match=message):
        settings.model_validate({rate: 1e-3, decay: 1000.0})
    settings.model_validate({rate: 1e-3, decay: 999.0})


def test_several_experts_of_a_task_that_is_no_family_are_refused() -> None:
    several = {"method": "dac", "demonstrations": {"experts": 2}}
    with pytest.raises(
        ValidationError, match="expected 1 with cartpole-swingup, which is no family"
    ):
        Experiment.model_validate(
            {"name": "test", "task": "cartpole-swingup", "imitation": several}
        )


def test_contiguous_pieces_may_be_as_long_as_a_segment() -> None:
    assert ReplaySettings(sampling="segments", sampled_length=32).sampled_length == 32


@pytest.mark.parametrize("keys", [(), ("state", "state"), ("feelings",)])
def test_reads_are_one_or_more_different_keys_that_exist(keys: tuple[str, ...]) -> None:
    with pytest.raises(ValidationError, match="reads|Input should be"):
        ReadsSettings.model_validate({"policy": keys})
