"""The discriminator as the learner holds it: rows of a batch, logits, rewards, updates."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch.func import functional_call

from apprentice.config import Experiment
from apprentice.config_imitation import RewardSettings
from apprentice.networks.encoder import ABSORBING
from apprentice.types import EnvironmentSpec, Transition
from learner.augmentation import draw_shifts, shift_images
from learner.compiling import compiled
from learner.conditioning import Conditioning
from learner.context_update import CONTEXT_METRICS, ContextBatch
from learner.discriminator import Columns, Discriminator, Rows, spectrally_normalised
from learner.discriminator_update import (
    METRICS,
    STATES,
    DiscriminatorNoise,
    DiscriminatorState,
    DiscriminatorUpdate,
    make_discriminator_update,
)
from learner.dropout import draw_dropout
from learner.flat import AdamState, FlatLayout, adam_state
from learner.rewards import imitation_reward
from learner.sac import SAC, Tensors


class Judge:
    """A discriminator, its optimiser, and its compiled update and reward."""

    def __init__(
        self,
        experiment: Experiment,
        spec: EnvironmentSpec,
        device: torch.device,
        sac: SAC,
        conditioning: Conditioning | None = None,
    ) -> None:
        settings = experiment.imitation.discriminator
        self._settings, self._sac, self._device = settings, sac, device
        self._reward = experiment.imitation.reward
        self._keys = experiment.reads.discriminator
        self._random_shift = experiment.network.random_shift
        self._airl = experiment.imitation.method == "airl"
        self._latent_size = experiment.context.latent_size if "latent" in self._keys else 0
        learned = conditioning is not None and conditioning.learned and self._latent_size > 0
        self._conditioning = conditioning if learned else None
        self.num_metrics = len(METRICS) + (len(CONTEXT_METRICS) if learned else 0)
        size = sum(
            experiment.network.encoder_features
            if key == "pixels"
            else spec.observation[key].shape[0]
            for key in self._keys
            if key != "latent"
        )
        columns = self._columns(spec, size + sac.absorbs)
        kinds = {part.telling is None for part in columns}
        multiplies = experiment.network.task_products and kinds == {False, True}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(experiment.seed + 4)
            module = Discriminator(
                size + sac.absorbs,
                spec.action_size,
                settings,
                airl=self._airl,
                gamma=experiment.sac.gamma,
                latent_size=self._latent_size,
                columns=columns if multiplies else (),
            ).to(device)
            self._layout = FlatLayout(module)
            vectors = {
                name: torch.nn.functional.normalize(torch.randn(shape[0]), dim=0).to(device)
                for name, shape in zip(self._layout.names, self._layout.shapes, strict=True)
                if settings.spectral_norm and ".weights." in name
            }
        self._state = DiscriminatorState(adam_state(self._layout.flatten(module, device)), vectors)
        self._module = module
        plain = make_discriminator_update(
            module,
            self._layout,
            settings,
            experiment.imitation.reward.form,
            sloped(columns).to(device),
            None if self._conditioning is None else self._conditioning.parts,
        )
        self._update: DiscriminatorUpdate = compiled(
            plain, experiment.learner.compile, device, STATES
        )
        self._compile = experiment.learner.compile
        self._plain_reward = _make_reward(module, self._layout, self._reward)
        self._rewards: dict[int, _Reward] = {}  # compiled, by the number of rows

    def rows(
        self, batch: Transition, generator: torch.Generator | None = None, *, told: bool = True
    ) -> Rows:
        """Return what is judged of a batch; images are shifted where a generator is given.

        `latent` comes last, and is left out where the rows are not `told` it.
        """
        rows = self._rows_without_log_probability(batch, generator, told=told)
        if not self._airl:
            return rows
        with torch.no_grad():
            log_probability = self._sac.log_probability(batch.observation, batch.pre_tanh_action)
        return rows._replace(log_probability=log_probability)

    def logits(self, batch: Transition) -> torch.Tensor:
        """Return logits [B], > 0 for what is taken for the expert's."""
        return self.judged(batch)[0]

    def judged(self, batch: Transition) -> tuple[torch.Tensor, torch.Tensor]:
        """Return `logits` and `reward` [B] of one look at the rows."""
        with torch.no_grad():
            rows = self.rows(batch)
            scores = self._scores(rows)
            return scores - rows.log_probability, imitation_reward(scores, self._reward)

    def reward(self, batch: Transition) -> torch.Tensor:
        """Return the reward [B] within its bounds; AIRL's is f, without log pi."""
        rows = self._rows_without_log_probability(batch)
        return self._plain_reward(self._state.adam.parameters, self._state.singular_vectors, rows)

    def compiled_reward(self, batch: Transition) -> torch.Tensor:
        """Return `reward` by compiled code, for batches that lie in memory as the first of their size: SAC's."""
        rows = self._rows_without_log_probability(batch)
        rows = rows._replace(discount=rows.discount.contiguous())
        size = len(rows.discount)
        if size not in self._rewards:
            self._rewards[size] = compiled(self._plain_reward, self._compile, self._device, (0, 1))
        state = self._state
        return self._rewards[size](state.adam.parameters, state.singular_vectors, rows)

    def recovered_reward(self, batch: Transition) -> torch.Tensor:
        """Return what a fresh learner may be trained on [B]: of AIRL g alone, without potential; else `reward`."""
        if not self._airl:
            return self.reward(batch)
        with torch.no_grad():
            parameters = self._parameters()
            rows = self._rows_without_log_probability(batch)
            inputs = rows.inputs[:, : self._module.judged_size]
            own = {
                name.removeprefix("score."): value
                for name, value in parameters.items()
                if name.startswith("score.")
            }
            result: torch.Tensor = functional_call(self._module.score, own, (inputs,))
            return result

    def load_networks(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Take over the networks of a checkpoint, to ask them and not to learn on."""
        for name, view in self.state_views()["networks"].items():
            view.copy_(tensors[name])

    def update(
        self,
        expert: Transition,
        policy: Transition,
        generator: torch.Generator,
        shown: ContextBatch | None = None,
    ) -> torch.Tensor:
        """Make one update; return the values of METRICS, and of CONTEXT_METRICS where `shown` trains the encoder."""
        told = shown is None
        rows = self.rows(expert, generator, told=told), self.rows(policy, generator, told=told)
        noise = self._draw_noise(rows[0], generator)
        state = None
        if shown is not None:
            assert self._conditioning is not None
            state = self._conditioning.state
        return self._update(self._state, *rows, noise, self._sac.rate_factor, state, shown)

    def prepare(
        self,
        expert: Transition,
        policy: Transition,
        generator: torch.Generator,
        shown: ContextBatch | None = None,
    ) -> None:
        """Compile the update on copies of the state."""
        copies = DiscriminatorState(
            AdamState(*(tensor.clone() for tensor in self._state.adam)),
            {name: vector.clone() for name, vector in self._state.singular_vectors.items()},
        )
        told = shown is None
        rows = self.rows(expert, told=told), self.rows(policy, told=told)
        noise = self._draw_noise(rows[0], generator)
        state = None
        if shown is not None:
            assert self._conditioning is not None
            state = self._conditioning.copied_state()
        self._update(copies, *rows, noise, self._sac.rate_factor.clone(), state, shown)

    def state_views(self) -> dict[str, Tensors]:
        """Return all tensors of the state, by the file they are stored in."""
        adam = self._state.adam
        networks = {"discriminator": adam.parameters}
        for name, vector in self._state.singular_vectors.items():
            networks[f"discriminator.{name}.singular_vector"] = vector
        return {
            "networks": networks,
            "optimiser": {
                f"discriminator.{field}": getattr(adam, field)
                for field in ("first_moment", "second_moment", "num_steps")
            },
        }

    def _rows_without_log_probability(
        self, batch: Transition, generator: torch.Generator | None = None, *, told: bool = True
    ) -> Rows:
        """Return `rows` with 0 for log pi."""
        with torch.no_grad():
            observation = self._features(batch.observation, generator)
            inputs = self._settings.inputs
            parts = [observation]
            if self._airl or inputs == "state_action":
                parts.append(batch.action)
            if self._airl or inputs == "state_next_state":
                parts.append(self._features(batch.next_observation, generator))
            if self._latent_size and told:
                parts.append(batch.observation["latent"])
            inputs_of_rows = torch.cat(parts, dim=1)
        return Rows(inputs_of_rows, batch.discount, torch.zeros_like(batch.discount))

    def _parameters(self) -> dict[str, torch.Tensor]:
        vector = self._state.adam.parameters
        return spectrally_normalised(self._layout.unflatten(vector), self._state.singular_vectors)

    def _scores(self, rows: Rows) -> torch.Tensor:
        result: torch.Tensor = functional_call(self._module, self._parameters(), (rows,))
        return result

    def _features(
        self, observation: dict[str, torch.Tensor], generator: torch.Generator | None
    ) -> torch.Tensor:
        parts = []
        if "pixels" in self._keys:
            pixels = observation["pixels"]
            if generator is not None and self._random_shift:
                shifts = draw_shifts(len(pixels), self._random_shift, generator, self._device)
                pixels = shift_images(pixels, shifts)
            parts.append(self._sac.pixel_features(pixels))
        if "state" in self._keys:
            mean, scale = self._sac.normaliser
            parts.append((observation["state"] - mean) * scale)
        if ABSORBING in observation:
            absorbing = observation[ABSORBING]
            parts = [part * (1.0 - absorbing) for part in parts]
            parts.append(absorbing)
        if "task_parameters" in self._keys:
            parts.append(observation["task_parameters"])
        return torch.cat(parts, dim=1)

    def _columns(self, spec: EnvironmentSpec, size: int) -> list[Columns]:
        """Return what the inputs [X] of `rows` are; an observation's features are `size`."""
        told = 0
        if "task_parameters" in self._keys:
            told = spec.observation["task_parameters"].shape[0]
        observed = [Columns(size - told), Columns(told, "task_parameters")]
        columns = list(observed)
        inputs = self._settings.inputs
        if self._airl or inputs == "state_action":
            columns.append(Columns(spec.action_size))
        if self._airl or inputs == "state_next_state":
            columns += observed
        columns.append(Columns(self._latent_size, "latent"))
        return [part for part in columns if part.size]

    def _draw_noise(self, rows: Rows, generator: torch.Generator) -> DiscriminatorNoise:
        settings, device = self._settings, self._device
        num, width = rows.inputs.shape
        uniform = torch.rand((num, 1 + width), generator=generator, device=device)
        mixture = torch.rand(num, generator=generator, device=device) if settings.mixup else None
        inputs, masks = None, None
        if settings.input_noise > 0.0:
            left = 1.0 - self._state.adam.num_steps / settings.input_noise_updates
            size = settings.input_noise * left.clamp_min(0.0)
            inputs = size * torch.randn((2, num, width), generator=generator, device=device)
        if settings.dropout > 0.0:
            shape = (self._module.num_masks, 3 * num, settings.hidden_size)
            masks = draw_dropout(settings.dropout, shape, generator)
        return DiscriminatorNoise(uniform, mixture, inputs, masks)


def sloped(columns: Sequence[Columns]) -> torch.Tensor:
    """Return 1 for each input [X] by which the slope is penalised: all but what tells the task."""
    return torch.cat([torch.full((part.size,), float(part.telling is None)) for part in columns])


_Reward = Callable[[torch.Tensor, dict[str, torch.Tensor], Rows], torch.Tensor]


def _make_reward(module: Discriminator, layout: FlatLayout, settings: RewardSettings) -> _Reward:
    """Build the reward [B] of a vector of parameters [P], singular vectors and rows."""

    def rewarded(
        vector: torch.Tensor, singular_vectors: dict[str, torch.Tensor], rows: Rows
    ) -> torch.Tensor:
        with torch.no_grad():
            parameters = spectrally_normalised(layout.unflatten(vector), singular_vectors)
            scores: torch.Tensor = functional_call(module, parameters, (rows,))
            return imitation_reward(scores, settings)

    return rewarded
