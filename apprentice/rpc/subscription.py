"""Keeps an actor's weights fresh: one thread that follows the learner's stream of policies."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

import grpc
import structlog

from apprentice.rpc.channel import open_channel
from apprentice.rpc.messages import PolicyAssembler, PolicyUpdate, TornPolicy, signature
from apprentice.rpc.v1 import learner_pb2 as pb
from apprentice.rpc.v1 import learner_pb2_grpc as pb_grpc

log = structlog.get_logger()

SILENCE_SECONDS = 15.0
"""A stream that brings nothing for this long, not even a sign of life, is given up and opened anew."""
LONGEST_PAUSE = 5.0


class PolicySubscription:
    """Holds the newest policy that arrived whole. A torn or differing one is refused and counted."""

    def __init__(
        self,
        address: str,
        options: Sequence[tuple[str, int]],
        slot: int,
        incarnation: int,
        token: str | None = None,
    ) -> None:
        # A connection of its own, which channels to one address share by default: on a slow line a policy
        # under way would hold up the heartbeats behind it for longer than they wait.
        own = ("grpc.use_local_subchannel_pool", 1)
        self._address, self._options, self._token = address, [*options, own], token
        self._slot, self._incarnation = slot, incarnation
        self._lock = threading.Lock()
        self._newest: PolicyUpdate | None = None
        self._known_version = 0
        self._signature: dict[str, tuple[str, tuple[int, ...]]] | None = None
        self._heard = time.monotonic()
        self._closed = threading.Event()
        self._call: Any = None
        self.num_refused = 0
        self._thread = threading.Thread(target=self._follow, name="policies")
        self._thread.start()

    def latest(self) -> PolicyUpdate | None:
        """Return the newest policy not returned before, or None."""
        with self._lock:
            newest, self._newest = self._newest, None
            return newest

    @property
    def age_seconds(self) -> float:
        """Seconds since the learner was last heard of on this stream."""
        return time.monotonic() - self._heard

    def close(self) -> None:
        """End the thread, within a few seconds."""
        self._closed.set()
        with self._lock:
            if self._call is not None:
                self._call.cancel()
        self._thread.join(LONGEST_PAUSE)

    def _follow(self) -> None:
        pause = 0.2
        while not self._closed.is_set():
            channel = open_channel(self._address, self._options, self._token)
            before = self._heard
            try:
                self._read(pb_grpc.LearnerStub(channel))
            except grpc.RpcError as error:
                if not self._closed.is_set():
                    log.debug("the stream of policies broke off", reason=str(error.code()))
            except TornPolicy as error:
                self.num_refused += 1
                log.warning("a policy was refused; the old one stays in use", reason=str(error))
            finally:
                channel.close()
            pause = 0.2 if self._heard != before else min(LONGEST_PAUSE, 2 * pause)
            self._closed.wait(pause)

    def _read(self, stub: pb_grpc.LearnerStub) -> None:
        request = pb.StreamPoliciesRequest(
            slot=self._slot,
            incarnation=self._incarnation,
            known_policy_version=self._known_version,
        )
        call: Any = stub.StreamPolicies(request)
        with self._lock:
            self._call = call
        if self._closed.is_set():
            call.cancel()
        silence = threading.Timer(SILENCE_SECONDS, call.cancel)
        silence.start()
        assembler = PolicyAssembler()
        try:
            for chunk in call:
                self._heard = time.monotonic()
                silence.cancel()
                silence = threading.Timer(SILENCE_SECONDS, call.cancel)
                silence.start()
                update = assembler.add(chunk)
                if update is not None:
                    self._accept(update)
        finally:
            silence.cancel()
            call.cancel()

    def _accept(self, update: PolicyUpdate) -> None:
        found = signature(update.tensors)
        if self._signature is None:
            self._signature = found
        elif found != self._signature:
            raise TornPolicy("its tensors are not those of the policies before it")
        with self._lock:
            if update.policy_version > self._known_version:
                self._known_version = update.policy_version
                self._newest = update
