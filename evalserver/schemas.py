"""What may be asked of the evaluation server, with its bounds, and what it answers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from apprentice.demonstrations.asking import LONGEST, parse_context
from apprentice.demonstrations.format import DemonstrationError

LARGEST_PIXEL_BUDGET = 640 * 640 * 4000
"""Width times height times frames that one request may ask for."""


EXPERT = "expert"
"""What `beside` says for a demonstration."""
SHOWN = "shown"
"""What a worker is told in place of a file: to take demonstrations of the task that the run keeps."""

Format = Literal["mp4", "gif", "webp", "png", "json"]
MEDIA_TYPES: dict[str, str] = {
    "mp4": "video/mp4",
    "gif": "image/gif",
    "webp": "image/webp",
    "png": "image/png",
}


class EvaluateQuery(BaseModel):
    """The parameters of GET /evaluate."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    checkpoint: Annotated[str, Field(min_length=1, max_length=300)]
    """`RUN`, `RUN:latest`, `RUN:best`, `RUN:STEP`, or `latest` for the newest run's newest."""
    task: Annotated[str, Field(max_length=200)] | None = None
    """Another task than the checkpoint's; its observations and actions must fit the policy. Of a family: any task of
    its division or of another one that is fixed, and the first meta-test task unless this says another."""
    context: Annotated[str, Field(max_length=LONGEST)] | None = None
    """Demonstrations shown to a policy that infers its task, out of those of the task that its run keeps: how many,
    as in `2`, drawn with each episode's seed; or which, as in `ids:7,9` (or `#7,#9`). Such a policy is shown one
    unless this says more; any other refuses it."""
    episodes: Annotated[int, Field(ge=1, le=16)] = 1
    """Episodes to run; the video shows them one after another."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seed of the first episode; the others follow."""
    deterministic: bool = True
    """The policy's mean action rather than a sample."""
    max_steps: Annotated[int, Field(ge=1, le=10_000)] | None = None
    """Agent steps after which an episode is cut; by default it runs to its end."""
    camera: Annotated[str, Field(pattern=r"^[A-Za-z0-9_. -]{1,64}$")] = "0"
    """Camera by index or name; -1 is the free camera."""
    width: Annotated[int, Field(ge=16, le=640)] = 320
    """Width of the video, in pixels."""
    height: Annotated[int, Field(ge=16, le=640)] = 320
    """Height of the video, in pixels."""
    fps: Annotated[float, Field(ge=1, le=120, allow_inf_nan=False)] = 25.0
    """Frames a second, played in real time: only the frames shown are rendered."""
    beside: Annotated[str, Field(min_length=1, max_length=300)] | None = None
    """A second checkpoint, run with the same seeds, shown what fits it, and drawn to the right of the first; or
    `expert`: an episode of the demonstrations that the run learned from, which the policy starts like, with its
    seed. Of a family: the first demonstration that was shown in each episode, or one of the task."""
    format: Format = "mp4"
    """The rollout as video (mp4, gif, webp), as one sheet of pictures (png), or its returns (json)."""

    @field_validator("context")
    @classmethod
    def _says_how_many_or_which(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                parse_context(value)
            except DemonstrationError as error:
                raise ValueError(str(error).removeprefix("context: ")) from None
        return value

    @model_validator(mode="after")
    def _within_budget(self) -> EvaluateQuery:
        if self.format != "json":
            frames = self.episodes * (self.max_steps or 1000)
            wanted = self.width * self.height * frames * (2 if self.beside else 1)
            if wanted > LARGEST_PIXEL_BUDGET:
                raise ValueError(
                    f"expected width x height x frames of at most {LARGEST_PIXEL_BUDGET}, found "
                    f"{self.width} x {self.height} x {frames}; ask for fewer episodes or smaller frames"
                )
        return self


class EpisodeQuery(BaseModel):
    """The parameters of GET /episodes: an episode that a run's periodic evaluation kept."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    run: Annotated[str, Field(min_length=1, max_length=300)]
    """The run's id."""
    steps: Annotated[int, Field(ge=0, lt=10**12)]
    """Agent steps of the evaluated checkpoint."""
    camera: Annotated[str, Field(pattern=r"^[A-Za-z0-9_. -]{1,64}$")] = "0"
    """Camera by index or name; -1 is the free camera."""
    width: Annotated[int, Field(ge=16, le=640)] = 320
    """Width of the video, in pixels."""
    height: Annotated[int, Field(ge=16, le=640)] = 320
    """Height of the video, in pixels."""
    fps: Annotated[float, Field(ge=1, le=120, allow_inf_nan=False)] = 25.0
    """Frames a second, played in real time."""
    format: Literal["mp4", "gif", "webp", "png"] = "mp4"
    """The episode as video, or as one sheet of pictures."""


class EpisodeAnswer(BaseModel):
    """One evaluated episode."""

    seed: int
    environment_return: float
    length: int
    ending: str
    metrics: dict[str, float] = {}
    """What a family's task measures beside the return."""
    context: list[int] = []
    """Ids of the demonstrations that were shown, or of the one that this is."""


class SideAnswer(BaseModel):
    """One checkpoint's episodes."""

    checkpoint: str
    run: str
    steps: int
    task: str
    return_mean: float
    return_min: float
    return_max: float
    episodes: list[EpisodeAnswer]


class EvaluateAnswer(SideAnswer):
    """The answer to GET /evaluate?format=json."""

    deterministic: bool
    beside: SideAnswer | None
    seconds: dict[str, float]
    """Seconds of loading, evaluation, and rendering with encoding."""
    media: dict[str, str]
    """The same rollout in each other format, as links on this server."""


class RunAnswer(BaseModel):
    """One run of the catalogue, as its learner last described it."""

    run: str
    task: str
    state: str
    steps: int = 0
    max_steps: int
    updates: int = 0
    best_return: float | None = None
    evaluation_returns: list[float] = []
    created: str | None = None
    updated: str | None = None
    checkpoints: int


class CheckpointAnswer(BaseModel):
    """One checkpoint of the catalogue."""

    id: str
    run: str
    steps: int
    best: bool


class Problem(BaseModel):
    """An error as application/problem+json (RFC 9457)."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    incident: str | None = None
