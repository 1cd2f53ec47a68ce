"""Policies as bytes: what arrives is what was sent, or nothing."""

from __future__ import annotations

import pytest
import torch

from apprentice.rpc.messages import (
    CHUNK_BYTES,
    PolicyAssembler,
    PolicyUpdate,
    TornPolicy,
    decode_policy,
    encode_policy,
)
from apprentice.rpc.v1 import learner_pb2 as pb

TENSORS = {
    "weight": torch.randn(300, 1000),  # more than one chunk
    "half": torch.randn(3, 2).to(torch.bfloat16),
    "counts": torch.arange(5),
    "image": torch.randint(0, 256, (4, 4)).to(torch.uint8),
    "flag": torch.tensor([True, False]),
    "scalar": torch.tensor(2.5),
    "nothing": torch.zeros(0, 3),
    "strided": torch.randn(4, 6).T,
}


def assemble(chunks: list[pb.PolicyChunk]) -> PolicyUpdate | None:
    assembler, update = PolicyAssembler(), None
    for chunk in chunks:
        update = assembler.add(chunk) or update
    return update


def test_tensors_of_every_kind_come_back_the_same() -> None:
    chunks = list(encode_policy(7, TENSORS).chunks())
    assert len(chunks) == 3
    assert all(len(chunk.data) <= CHUNK_BYTES for chunk in chunks)
    update = assemble(chunks)
    assert update is not None
    assert update.policy_version == 7
    assert update.tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert update.tensors[name].dtype == tensor.dtype
        assert torch.equal(update.tensors[name], tensor), name


def test_what_arrives_may_be_written_to() -> None:
    update = assemble(list(encode_policy(1, {"a": torch.zeros(3)}).chunks()))
    assert update is not None
    update.tensors["a"].add_(1)
    assert update.tensors["a"].tolist() == [1, 1, 1]


def test_half_a_policy_is_no_policy() -> None:
    chunks = list(encode_policy(7, TENSORS).chunks())
    assert assemble(chunks[:-1]) is None


def test_one_changed_byte_is_noticed() -> None:
    policy = encode_policy(7, TENSORS)
    data = bytearray(policy.data)
    data[1000] ^= 1
    with pytest.raises(TornPolicy, match="SHA-256"):
        decode_policy(policy.header, bytes(data))


@pytest.mark.parametrize(
    "chunks",
    [
        [pb.PolicyChunk(data=b"abc")],
        [pb.PolicyChunk(header=pb.PolicyHeader(num_bytes=4))] * 2,
        [pb.PolicyChunk(header=pb.PolicyHeader(num_bytes=2)), pb.PolicyChunk(data=b"abc")],
        [pb.PolicyChunk(header=pb.PolicyHeader(num_bytes=1 << 40))],
    ],
    ids=["data first", "two headers", "too much data", "absurd size"],
)
def test_chunks_out_of_order_are_refused(chunks: list[pb.PolicyChunk]) -> None:
    with pytest.raises(TornPolicy):
        assemble(chunks)


@pytest.mark.parametrize(
    "spec",
    [
        pb.TensorSpec(name="a", dtype="float32", shape=[1000]),
        pb.TensorSpec(name="a", dtype="object", shape=[1]),
        pb.TensorSpec(name="a", dtype="float32", shape=[1]),
    ],
    ids=["beyond the data", "unknown dtype", "bytes left over"],
)
def test_a_tensor_list_that_does_not_fit_the_data_is_refused(spec: pb.TensorSpec) -> None:
    policy = encode_policy(1, {"a": torch.zeros(4)})
    header = pb.PolicyHeader()
    header.CopyFrom(policy.header)
    del header.tensors[:]
    header.tensors.append(spec)
    with pytest.raises(TornPolicy):
        decode_policy(header, policy.data)
