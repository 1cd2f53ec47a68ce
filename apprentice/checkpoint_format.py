"""What a checkpoint says of itself: the manifest, and when it is refused.

A checkpoint is a folder with `manifest.json` and one `<name>.safetensors` for each group of tensors.
The manifest states size, SHA-256, dtypes and shapes of every file, and a digest of itself. Everything
is checked against it before memory is taken for a tensor. Nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Set
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from apprentice.types import EnvironmentSpec

FORMAT_VERSION: Final = 1
MANIFEST: Final = "manifest.json"
MAX_MANIFEST_BYTES: Final = 4 * 2**20
MAX_HEADER_BYTES: Final = 2**20
MAX_FILE_BYTES: Final = 2**32
MAX_FILES: Final = 32
MAX_TENSORS: Final = 4096
PICKLE_SUFFIXES: Final = (".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib")

DTYPES: Final[dict[str, tuple[str, int]]] = {
    "float64": ("F64", 8),
    "float32": ("F32", 4),
    "float16": ("F16", 2),
    "bfloat16": ("BF16", 2),
    "int64": ("I64", 8),
    "int32": ("I32", 4),
    "int16": ("I16", 2),
    "int8": ("I8", 1),
    "uint8": ("U8", 1),
    "bool": ("BOOL", 1),
}
"""By torch's name of the dtype, which the manifest uses: safetensors' code, bytes of one element."""

FILE_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)


class CheckpointError(Exception):
    """A checkpoint was refused, or could not be written."""


class CorruptCheckpoint(CheckpointError):
    """Its bytes are not what its manifest says they are."""


class PickledCheckpoint(CorruptCheckpoint):
    """It is, or holds, a pickle: loading it would run the code of whoever made it."""


class FutureCheckpoint(CheckpointError):
    """It was written by a newer format than this program knows."""


class TensorEntry(BaseModel):
    """Dtype name (as in DTYPES) and shape of one tensor."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dtype: Literal[
        "float64",
        "float32",
        "float16",
        "bfloat16",
        "int64",
        "int32",
        "int16",
        "int8",
        "uint8",
        "bool",
    ]
    shape: tuple[int, ...] = Field(max_length=8)

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * DTYPES[self.dtype][1]


class FileEntry(BaseModel):
    """Size and SHA-256 (hex) of one file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bytes: int = Field(ge=8, le=MAX_FILE_BYTES)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Manifest(BaseModel):
    """All of a checkpoint but its tensors. `files` and `tensors` have the same keys: see `file_name`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: int
    run: str
    steps: int = Field(ge=0)
    """Agent steps that the learner had received."""
    updates: int = Field(ge=0)
    policy_version: int = Field(ge=0)
    experiment: dict[str, JsonValue]
    """The resolved experiment."""
    environment: dict[str, JsonValue]
    """EnvironmentSpec.to_dict()."""
    environment_digest: str
    state: dict[str, JsonValue]
    """Counters and whatever else is not a tensor; the learner's own."""
    libraries: dict[str, str]
    files: dict[str, FileEntry] = Field(max_length=MAX_FILES)
    tensors: dict[str, dict[str, TensorEntry]]
    created: str
    """UTC time as ISO text, for people: the order of checkpoints is the order of steps."""


def file_name(name: str) -> str:
    """Return the name of the file that holds the group of tensors `name`."""
    return f"{name}.safetensors"


def encode_manifest(manifest: Manifest) -> bytes:
    """Return the only bytes that `decode_manifest` accepts for `manifest`.

    Raises CheckpointError where `state` or `experiment` hold a NaN or an infinity.
    """
    try:
        return _with_digest(manifest.model_dump(mode="json"))
    except ValueError as error:
        raise CheckpointError(
            f"expected finite numbers in the checkpoint's state, found one that is not ({error}); "
            "the checkpoint was not written"
        ) from error


def decode_manifest(raw: bytes) -> Manifest:
    """Parse and verify a manifest.

    Raises FutureCheckpoint, PickledCheckpoint, or CorruptCheckpoint saying what was found.
    """
    refuse_pickle(raw[:8], MANIFEST)
    try:
        content = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise CorruptCheckpoint(
            f"{MANIFEST}: expected JSON, found something else: {error}"
        ) from None
    if not isinstance(content, dict):
        raise CorruptCheckpoint(f"{MANIFEST}: expected an object, found {type(content).__name__}")
    version = content.get("format_version")
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise FutureCheckpoint(
            f"{MANIFEST}: expected format version {FORMAT_VERSION} or older, found {version}; "
            "use the version of Apprentice that wrote it, or a newer one"
        )
    digest = content.pop("digest", None)
    try:
        intact = _with_digest(content) == raw
    except (ValueError, RecursionError):  # NaN is JSON to Python, but is never written
        intact = False
    if not intact:
        raise CorruptCheckpoint(
            f"{MANIFEST}: its content does not match its digest {str(digest)[:12]!r}; it was damaged or edited"
        )
    try:
        manifest = Manifest.model_validate(content)
    except ValidationError as error:
        raise CorruptCheckpoint(f"{MANIFEST}: {first_problem(error)}") from error
    _check_consistency(manifest)
    return manifest


def refuse_pickle(start: bytes, what: str) -> None:
    """Raise PickledCheckpoint for what is named like a pickle, or begins like one or like a zip archive.

    `start` are the first 8 bytes of the file `what`. (torch.save writes zip archives.)
    """
    zipped = start.startswith(b"PK\x03\x04")
    named = Path(what).suffix in PICKLE_SUFFIXES
    # A safetensors file may begin with 0x80 0x02 too: then the rest of its header's length is small.
    binary = (
        len(start) >= 2
        and start[0] == 0x80
        and start[1] <= 5
        and int.from_bytes(start[:8].ljust(8, b"\xff"), "little") > MAX_HEADER_BYTES
    )
    if zipped or binary or named:
        raise PickledCheckpoint(
            f"{what}: expected a checkpoint folder ({MANIFEST} and *.safetensors), found a pickled file. "
            "Loading a pickle runs the code of whoever made it, so Apprentice never does, and has no "
            "importer. Train anew; or load it in the program that made it and save its tensors as "
            "safetensors there."
        )


def _with_digest(content: dict[str, Any]) -> bytes:
    body = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    whole = {"digest": hashlib.sha256(body.encode()).hexdigest(), **content}
    return (json.dumps(whole, sort_keys=True, indent=1, allow_nan=False) + "\n").encode()


def _check_consistency(manifest: Manifest) -> None:
    compare_names("manifest's tensors", manifest.tensors.keys(), manifest.files.keys())
    for name, entries in manifest.tensors.items():
        if not FILE_NAME.fullmatch(name):
            raise CorruptCheckpoint(f"{MANIFEST}: {name!r} is no file name of a checkpoint")
        if len(entries) > MAX_TENSORS:
            raise CorruptCheckpoint(f"{MANIFEST}: {name}: more than {MAX_TENSORS} tensors")
        total = sum(entry.num_bytes for entry in entries.values())
        negative = any(size < 0 for entry in entries.values() for size in entry.shape)
        if negative or not 8 + total <= manifest.files[name].bytes <= 8 + MAX_HEADER_BYTES + total:
            raise CorruptCheckpoint(
                f"{MANIFEST}: {name}: {manifest.files[name].bytes} bytes cannot hold its tensors ({total} bytes)"
            )
    try:
        spec = EnvironmentSpec.from_dict(manifest.environment)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise CorruptCheckpoint(
            f"{MANIFEST}: environment: {type(error).__name__}: {error}"
        ) from error
    if spec.digest() != manifest.environment_digest:
        raise CorruptCheckpoint(
            f"{MANIFEST}: environment: expected digest {manifest.environment_digest[:20]!r}, found {spec.digest()!r}"
        )


def compare_names(where: str, found: Set[str], expected: Set[str]) -> None:
    """Raise CorruptCheckpoint where two sets of names differ, naming the first few."""
    missing, extra = sorted(expected - found)[:5], sorted(found - expected)[:5]
    if missing or extra:
        raise CorruptCheckpoint(f"{where}: names missing {missing}, names not expected {extra}")


def first_problem(error: ValidationError) -> str:
    """Return the path of the first key that pydantic refused, and why."""
    problem = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}"
