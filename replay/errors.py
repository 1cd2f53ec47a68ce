"""What can go wrong between an actor, the replay server and the learner."""

from __future__ import annotations


class ReplayError(Exception):
    """Base of all errors of the replay."""


class ReplayUnavailable(ReplayError, ConnectionError):
    """The server does not answer, or its feed stayed full, until the deadline. Trying again is right."""


class ReplayMismatch(ReplayError):
    """The server holds other tables than this experiment's: another task, spec or size."""


class SegmentRejected(ReplayError):
    """A segment breaks its contract, and must not be trained on."""

    def __init__(self, reason: str, actor: int = -1) -> None:
        super().__init__(reason)
        self.actor = actor


class ServerRefused(ReplayError):
    """The replay server must not start: its port, folder or memory is not as it should be."""


class PortHeld(ServerRefused):
    """Another process listens on the server's port."""


class FolderHeld(ServerRefused):
    """Another replay server uses the same folder of checkpoints."""


class ForeignEntries(ServerRefused):
    """Something that is no checkpoint lies in Reverb's folder, where it would make Reverb delete its own."""


class NotEnoughMemory(ServerRefused):
    """Full tables would need more memory than the experiment allows."""


class CheckpointFailed(ReplayError):
    """A checkpoint was not written, or not completely."""


class CheckpointUnloadable(ReplayError):
    """Reverb cannot load a checkpoint, or not in time."""
