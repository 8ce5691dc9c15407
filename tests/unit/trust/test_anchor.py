"""Without root metadata nothing is trusted, and the error says so before anything is asked."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from firmament.errors import AnchorMissingError
from firmament.sim.disk import SimDisk
from firmament.trust.client import TrustedClient
from firmament.trust.floors import Floors


def test_an_empty_anchor_is_refused():
    disk = SimDisk()
    with pytest.raises(AnchorMissingError) as caught:
        TrustedClient(
            disk=disk,
            directory=Path("/state/image"),
            anchor=b"",
            source=None,
            floors=Floors(disk, Path("/state")),
            metadata_url="https://updates.example/metadata/",
            reference_time=datetime(2026, 11, 20, tzinfo=UTC),
        )
    assert caught.value.facts == {"repository": "image"}
    assert disk.operations == 0
