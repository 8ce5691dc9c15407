"""The operator API, put together from its domains: what `firmament`, the console and scripts use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from firmament.server.http.account_api import AccountApi
from firmament.server.http.alive_api import AliveApi
from firmament.server.http.consent_api import ConsentApi
from firmament.server.http.evidence_api import EvidenceApi
from firmament.server.http.fleet_api import FleetApi
from firmament.server.http.health_api import HealthApi
from firmament.server.http.image_api import ImageApi
from firmament.server.http.inventory_api import InventoryApi
from firmament.server.http.me_api import MeApi
from firmament.server.http.metrics_api import MetricsApi
from firmament.server.http.out_api import OutApi
from firmament.server.http.outside_api import OutsideApi
from firmament.server.http.parcel_api import ParcelApi
from firmament.server.http.people_api import PeopleApi
from firmament.server.http.questions_api import QuestionsApi
from firmament.server.http.rollout_api import RolloutApi
from firmament.server.http.sbom_api import SbomApi
from firmament.server.http.sealing_api import SealingApi

if TYPE_CHECKING:
    from fastapi import APIRouter

    from firmament.server.parts import Parts


class OperatorApi:
    """All operator paths, put into one router: to include one in another would work out each route again."""

    def __init__(self, parts: Parts, router: APIRouter) -> None:
        for kind in (
            HealthApi,
            AccountApi,
            PeopleApi,
            MeApi,
            ImageApi,
            AliveApi,
            InventoryApi,
            RolloutApi,
            FleetApi,
            QuestionsApi,
            EvidenceApi,
            SbomApi,
            OutApi,
            MetricsApi,
            ConsentApi,
            OutsideApi,
            SealingApi,
            ParcelApi,
        ):
            kind(parts, router)
