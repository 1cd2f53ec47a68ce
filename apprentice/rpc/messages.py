"""Policies as bytes and back: named tensors, little-endian, never pickled."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import torch

from apprentice.profiling import Span
from apprentice.rpc.v1 import learner_pb2 as pb

PROTOCOL_VERSION = 1
OLDEST_PROTOCOL_VERSION = 1
"""A learner serves actors that speak any version from this one on to its own; one release back at least."""
CHUNK_BYTES = 1 << 20
LARGEST_POLICY_BYTES = 1 << 30
LARGEST_MESSAGE_BYTES = 16 << 20
LARGEST_REQUEST_BYTES = 1 << 20
"""A heartbeat with all its episodes and spans is some 50 KB."""

_DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "uint8": torch.uint8,
    "int32": torch.int32,
    "int64": torch.int64,
    "bool": torch.bool,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


class TornPolicy(Exception):
    """What arrived is not the whole policy that was announced; nothing of it is used."""


class PolicyUpdate(NamedTuple):
    """One published policy."""

    policy_version: int
    tensors: dict[str, torch.Tensor]


class EpisodeReport(NamedTuple):
    """One finished training episode of one actor."""

    task: int
    environment_return: float
    length: int
    policy_version: int


class EncodedPolicy(NamedTuple):
    """A policy ready to be sent to any number of actors."""

    header: pb.PolicyHeader
    data: bytes

    def chunks(self) -> Iterator[pb.PolicyChunk]:
        """Yield the header, then the data in pieces of at most CHUNK_BYTES."""
        yield pb.PolicyChunk(header=self.header)
        for start in range(0, len(self.data), CHUNK_BYTES):
            yield pb.PolicyChunk(data=self.data[start : start + CHUNK_BYTES])


def encode_policy(policy_version: int, tensors: Mapping[str, torch.Tensor]) -> EncodedPolicy:
    """Encode tensors on the CPU; raise ValueError for a dtype that has no name here."""
    specs, parts = [], []
    for name, tensor in tensors.items():
        if tensor.dtype not in _NAMES:
            raise ValueError(f"{name}: expected one of {sorted(_DTYPES)}, found {tensor.dtype}")
        contiguous = tensor.detach().contiguous()
        specs.append(pb.TensorSpec(name=name, dtype=_NAMES[tensor.dtype], shape=list(tensor.shape)))
        parts.append(contiguous.reshape(-1).view(torch.uint8).numpy().tobytes())
    data = b"".join(parts)
    header = pb.PolicyHeader(
        policy_version=policy_version,
        num_bytes=len(data),
        sha256=hashlib.sha256(data).digest(),
        tensors=specs,
    )
    return EncodedPolicy(header, data)


def decode_policy(header: pb.PolicyHeader, data: bytes) -> PolicyUpdate:
    """Return the policy, or raise TornPolicy where size, digest or tensor list do not agree."""
    if len(data) != header.num_bytes:
        raise TornPolicy(f"expected {header.num_bytes} bytes of policy, found {len(data)}")
    if hashlib.sha256(data).digest() != header.sha256:
        raise TornPolicy("the policy's SHA-256 is not the one announced")
    tensors, start = {}, 0
    for spec in header.tensors:
        if spec.dtype not in _DTYPES:
            raise TornPolicy(f"{spec.name}: expected one of {sorted(_DTYPES)}, found {spec.dtype}")
        dtype = _DTYPES[spec.dtype]
        num_bytes = math.prod(spec.shape) * dtype.itemsize
        if start + num_bytes > len(data):
            raise TornPolicy(f"{spec.name}: its {num_bytes} bytes reach beyond the data")
        piece = bytearray(data[start : start + num_bytes])
        tensor = torch.frombuffer(piece, dtype=dtype) if piece else torch.empty(0, dtype=dtype)
        tensors[spec.name] = tensor.reshape(list(spec.shape))
        start += num_bytes
    if start != len(data):
        raise TornPolicy(f"expected {start} bytes for the tensors listed, found {len(data)}")
    return PolicyUpdate(header.policy_version, tensors)


def signature(tensors: Mapping[str, torch.Tensor]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return dtype and shape by name: what must stay the same from one version to the next."""
    return {name: (_NAMES[t.dtype], tuple(t.shape)) for name, t in tensors.items()}


class PolicyAssembler:
    """Puts chunks together; yields each policy once it is whole."""

    def __init__(self) -> None:
        self._header: pb.PolicyHeader | None = None
        self._data = bytearray()

    def add(self, chunk: pb.PolicyChunk) -> PolicyUpdate | None:
        """Take the next chunk; return the policy it completes, or raise TornPolicy."""
        kind = chunk.WhichOneof("content")
        if kind == "header":
            if self._header is not None:
                raise TornPolicy("a policy began before the one before it was whole")
            if chunk.header.num_bytes > LARGEST_POLICY_BYTES:
                raise TornPolicy(
                    f"expected at most {LARGEST_POLICY_BYTES} bytes, found {chunk.header.num_bytes}"
                )
            self._header, self._data = chunk.header, bytearray()
        elif kind == "data":
            if self._header is None:
                raise TornPolicy("data came before its header")
            self._data += chunk.data
            if len(self._data) > self._header.num_bytes:
                raise TornPolicy(f"expected {self._header.num_bytes} bytes of policy, found more")
        header = self._header
        if header is None or len(self._data) < header.num_bytes:
            return None
        self._header = None
        return decode_policy(header, bytes(self._data))


def span_messages(spans: Mapping[str, Span]) -> Iterable[pb.Span]:
    """Return spans as messages."""
    return [pb.Span(name=name, seconds=s, units=max(0, u)) for name, (s, u) in spans.items()]
