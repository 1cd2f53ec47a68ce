"""Gives the context encoder a start: behaviour cloning of the context demonstrations' own actions.

From some demonstrations of a task the encoder says which it is; from that and a state a policy, which is thrown
away afterwards, says what the expert did in other demonstrations of the task. Only the encoder is kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import structlog
import torch

from apprentice.config import CloningSettings, Experiment
from apprentice.networks import SquashedGaussianPolicy, with_latent
from apprentice.types import EnvironmentSpec
from learner.cloning import METRICS, STATES, make_cloning_update
from learner.compiling import compiled
from learner.conditioning import Conditioning
from learner.family_batches import places_of_rows
from learner.flat import FlatLayout, adam_state

log = structlog.get_logger()

ROWS_OF_TASK = 16


def pretrain(
    experiment: Experiment,
    spec: EnvironmentSpec,
    conditioning: Conditioning,
    normaliser: tuple[torch.Tensor, torch.Tensor],
    device: torch.device,
    should_stop: Callable[[], bool],
) -> bool:
    """Make `context.pretrain_updates` updates of the encoder; nothing else of the learner changes.

    Return False where a stop was asked for before the last one: the encoder is then not fit to be used.
    """
    settings = experiment.context
    generator = torch.Generator(device).manual_seed(experiment.seed + 5)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(experiment.seed + 6)
        head = SquashedGaussianPolicy(
            with_latent(experiment, spec), ("state", "latent"), experiment.network
        ).to(device)
    head.encoder.state_mean.copy_(normaliser[0])
    head.encoder.state_scale.copy_(normaliser[1])
    layout = FlatLayout(head)
    state = adam_state(layout.flatten(head, device))
    rate = settings.pretrain_learning_rate
    update = compiled(
        make_cloning_update(
            head,
            layout,
            CloningSettings(loss="mean_squared_error", learning_rate=rate),
            None,
            conditioning.parts,
            rate,
        ),
        experiment.learner.compile,
        device,
        STATES,
    )
    size = ROWS_OF_TASK * conditioning.num_tasks
    tasks = places_of_rows(size, conditioning.num_tasks, device)
    nothing, factor = torch.zeros(0, device=device), torch.ones((), device=device)
    started, sums, num_summed = time.monotonic(), torch.zeros(0), 0
    for number in range(settings.pretrain_updates):
        if should_stop():
            return False
        shown, rows = conditioning.batch_of_context(tasks, generator)
        values = update(state, rows, nothing, factor, conditioning.state, shown)
        conditioning.updated(refreshes=False)  # `begin_anew` does, once
        if number % 500 == 0:
            sums, num_summed = torch.zeros_like(values), 0
        sums += values
        num_summed += 1
    error = float(sums[METRICS.index("action_error")]) / max(1, num_summed)
    conditioning.begin_anew()
    log.info(
        "the context encoder was pretrained",
        updates=settings.pretrain_updates,
        action_error=round(error, 4),
        seconds=round(time.monotonic() - started, 1),
    )
    return True
