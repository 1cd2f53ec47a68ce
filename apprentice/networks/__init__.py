"""Networks that cross a service boundary: what actors, learner and evaluation must agree on."""

from apprentice.networks.acting import Policy, PolicyMismatch, UniformPolicy
from apprentice.networks.context import Belief, ContextEncoder, Shown, divergence_from_prior
from apprentice.networks.encoder import ObservationEncoder, initialise_orthogonally
from apprentice.networks.gaussian import log_probability, log_probability_of_sample
from apprentice.networks.policy import (
    CONTEXT_PREFIX,
    SquashedGaussianPolicy,
    build_policy,
    with_latent,
)

__all__ = [
    "CONTEXT_PREFIX",
    "Belief",
    "ContextEncoder",
    "ObservationEncoder",
    "Policy",
    "PolicyMismatch",
    "Shown",
    "SquashedGaussianPolicy",
    "UniformPolicy",
    "build_policy",
    "divergence_from_prior",
    "initialise_orthogonally",
    "log_probability",
    "log_probability_of_sample",
    "with_latent",
]
