"""Networks that cross a service boundary: what actors, learner and evaluation must agree on."""

from apprentice.networks.acting import Policy, PolicyMismatch, UniformPolicy
from apprentice.networks.encoder import ObservationEncoder, initialise_orthogonally
from apprentice.networks.gaussian import log_probability, log_probability_of_sample
from apprentice.networks.policy import SquashedGaussianPolicy, build_policy

__all__ = [
    "ObservationEncoder",
    "Policy",
    "PolicyMismatch",
    "SquashedGaussianPolicy",
    "UniformPolicy",
    "build_policy",
    "initialise_orthogonally",
    "log_probability",
    "log_probability_of_sample",
]
