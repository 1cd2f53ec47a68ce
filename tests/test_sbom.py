"""Bills of materials: whatever an image's lock names is in its bill, and what no lock can name."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ("replay", "actor", "learner", "evalserver")


@pytest.fixture(scope="module")
def bills(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("bills")
    command = [sys.executable, "-W", "error", str(ROOT / "requirements" / "sbom"), str(folder)]
    subprocess.run(command, check=True, timeout=60)
    return {image: json.loads((folder / f"{image}.cdx.json").read_text()) for image in IMAGES}


def versions(bill: dict[str, Any]) -> dict[str, str | None]:
    return {component["name"]: component.get("version") for component in bill["components"]}


@pytest.mark.parametrize("image", IMAGES)
def test_a_bill_names_what_the_lock_names(bills: dict[str, dict[str, Any]], image: str) -> None:
    bill = bills[image]
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    assert bill["metadata"]["component"]["name"] == f"apprentice/{image}"
    text = (ROOT / "requirements" / f"{image}.lock").read_text()
    pinned = dict(re.findall(r"^([A-Za-z0-9._-]+)==([^ ]+)", text, re.MULTILINE))
    assert len(pinned) > 40
    named = versions(bill)
    assert {name: named.get(name) for name in pinned} == pinned
    digests = {h["content"] for one in bill["components"] for h in one.get("hashes", ())}
    assert digests == set(re.findall(r"sha256:([0-9a-f]{64})", text))
    (root,) = (one for one in bill["dependencies"] if one["ref"] == f"apprentice/{image}")
    assert len(root["dependsOn"]) == len(bill["components"])


def test_what_no_lock_names_is_there_too(bills: dict[str, dict[str, Any]]) -> None:
    inside = {"grpc", "boringssl", "abseil-cpp"}
    for image, bill in bills.items():
        named = versions(bill)
        assert named.get("torch") == (None if image == "replay" else "2.13.0")
        assert inside & named.keys() == (set() if image == "evalserver" else inside)
