"""What can end an actor, and whether starting it again may help."""


class ActorError(Exception):
    """Base of all errors that end an actor."""


class CannotJoin(ActorError):
    """No learner took this actor in before the deadline; a later start may find one."""


class NoPolicy(ActorError):
    """The learner has published a policy and none arrived; a later start may get it."""


class LearnerLost(ActorError):
    """Nobody renews the lease any more; a new start gets another."""


class DoesNotFit(ActorError):
    """This process cannot serve this learner: other versions, another experiment, no rendering."""
