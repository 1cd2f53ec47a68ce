"""The policy an actor follows: the newest one that fits, and chance until there is one."""

from __future__ import annotations

import structlog

from apprentice.networks import Policy, PolicyMismatch, UniformPolicy
from apprentice.rpc import PolicyUpdate
from apprentice.types import ActionBatch, Observation

log = structlog.get_logger()


class FreshPolicy:
    """Acts uniformly at random while `version` is 0, then as the newest accepted policy says."""

    def __init__(self, policy: Policy, uniform: UniformPolicy) -> None:
        self._policy, self._uniform = policy, uniform
        self.version = 0
        self.num_refused = 0

    def act(self, observation: Observation) -> ActionBatch:
        """Choose an action for each of K observations."""
        return (self._policy if self.version else self._uniform).act(observation)

    def take(self, update: PolicyUpdate) -> bool:
        """Use these weights from the next step on, or refuse them whole and keep the old ones."""
        try:
            self._policy.load(update.tensors)
        except PolicyMismatch as error:
            self.num_refused += 1
            log.warning(
                "a policy was refused; the old one stays in use",
                refused=update.policy_version,
                in_use=self.version,
                reason=str(error),
            )
            return False
        self.version = update.policy_version
        return True
