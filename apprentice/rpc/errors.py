"""What can go wrong between an actor and its learner."""


class LearnerError(Exception):
    """Base of all errors a call to the learner may raise."""


class LearnerUnavailable(LearnerError):
    """Nobody answered in time; trying again may help."""


class SlotTaken(LearnerError):
    """The slot asked for is held by a living actor; it is free once that one's lease ends."""


class SpecMismatch(LearnerError):
    """The learner trains on another environment than the actor has; start the actor anew."""


class ProtocolMismatch(LearnerError):
    """Learner and actor are of versions that do not understand one another."""


class NotAMember(LearnerError):
    """The lease has ended; join again."""


class NotAuthorised(LearnerError):
    """The learner asks for a token, and this is not it."""


class Refused(LearnerError):
    """The learner found the request wrong."""
