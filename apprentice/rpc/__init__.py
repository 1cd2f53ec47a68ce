"""What actors, views and tools need to talk to the learner."""

from apprentice.rpc.client import (
    ActorReport,
    HeartbeatReply,
    LearnerClient,
    LearnerStatus,
    Membership,
)
from apprentice.rpc.errors import (
    LearnerError,
    LearnerUnavailable,
    NotAMember,
    NotAuthorised,
    ProtocolMismatch,
    Refused,
    SlotTaken,
    SpecMismatch,
)
from apprentice.rpc.messages import EpisodeReport, PolicyUpdate
from apprentice.rpc.subscription import PolicySubscription

__all__ = [
    "ActorReport",
    "EpisodeReport",
    "HeartbeatReply",
    "LearnerClient",
    "LearnerError",
    "LearnerStatus",
    "LearnerUnavailable",
    "Membership",
    "NotAMember",
    "NotAuthorised",
    "PolicySubscription",
    "PolicyUpdate",
    "ProtocolMismatch",
    "Refused",
    "SlotTaken",
    "SpecMismatch",
]
