"""6 and 9. What owners say: shown with who, when, which text and language; it sums up, and no rate moves."""

import json
import time
from datetime import UTC, datetime, timedelta

import pytest
from playwright.sync_api import expect
from support.server_world import Device

from firmament.core.digest import Digest
from firmament.core.ids import AttemptId
from firmament.protocol.status import ConsentAnswer
from firmament.protocol.v1.envelope import CONSENT_TYPE, Envelope, pre_authentication_encoding
from firmament.protocol.v1.messages import ConsentEvent

TEXT = "Closes the valve more softly."
ANSWERS = (ConsentAnswer.SKIP, ConsentAnswer.LATER, None, ConsentAnswer.NOW)
"""What the four owners say after they were asked; one says nothing."""


class Owner:
    """A device whose owner is asked."""

    def __init__(self, world, token, number):
        self.device = Device(world.directory / f"valve-{number}", product="valve", hardware="valve-a")
        assert self.device.enrol(world.server, token).status == 200
        self.device.poll(version="1.0", sequence_number=1)
        self.number = 0

    def offered(self):
        """Poll until the rollout has dealt its waves; return the attempt."""
        deadline = time.monotonic() + 30
        while (found := self.device.assignment()) is None:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        return found["attempt_id"]

    def say(self, answer, attempt_id):
        self.number += 1
        now = datetime.now(UTC)
        event = ConsentEvent(
            device_id=self.device.device_id, consent_number=self.number, answer=answer, at=now, actor="uid:1000",
            via="menu", attempt_id=AttemptId(attempt_id), release_id="valve/1.1",
            until=now + timedelta(hours=8) if answer is ConsentAnswer.LATER else None,
            text_digest=str(Digest.of(TEXT.encode())), language="pt",
        )  # fmt: skip
        payload = json.dumps(event.to_json()).encode()
        signature = self.device.key.sign(pre_authentication_encoding(CONSENT_TYPE, payload))
        envelope = Envelope(payload, CONSENT_TYPE, self.device.key.keyid, signature).to_json()
        answer = self.device.client.ask("POST", "/v1/consent", {"v": 1, "events": [envelope]})
        assert answer.status == 200, answer.body


@pytest.fixture(scope="module")
def asked(world):
    """A rollout of which every device's owner was asked, and which one failure would stop."""
    world.publish_release("valve", "1.0", 1, b"v1" * 100, hardware=("valve-a",))
    world.publish_release("valve", "1.1", 2, b"v2" * 100, hardware=("valve-a",), notes={"en": "Softer.", "pt": TEXT})
    token = world.enrolment_token("valve", uses=len(ANSWERS))
    owners = [Owner(world, token, number) for number in range(len(ANSWERS))]
    body = {
        "name": "valve to 1.1", "release": "valve/1.1", "waves": [{"name": "everyone", "percent": 100}],
        "gate": {"limit_ratio": "0", "min_finished": 1},
    }  # fmt: skip
    made = world.admin.ask("POST", "/api/v1/rollouts", body)
    assert made.status == 201, made.body
    yield owners, made.json["rollout_id"]
    for owner in owners:
        owner.device.close()


def test_6_and_9_answers_are_shown_sum_up_and_move_no_rate(asked, world, open_page):
    owners, rollout_id = asked
    page = open_page(world.server.url, "/settings/consent")
    page.get_by_label("For", exact=True).select_option("tenant")
    page.get_by_label("Updates").select_option("feature")
    page.get_by_label("Rule").select_option("ask")
    page.get_by_role("button", name="Set the rule").click()
    expect(page.get_by_role("row", name="every device feature")).to_contain_text("asks the owner")
    for owner, answer in zip(owners, ANSWERS, strict=True):
        attempt_id = owner.offered()
        owner.say(ConsentAnswer.ASKED, attempt_id)
        owner.device.tell(attempt_id, "waiting", code="policy/waiting-for-consent")
        if answer is not None:
            owner.say(answer, attempt_id)
        if answer is ConsentAnswer.SKIP:
            owner.device.tell(attempt_id, "declined")
        if answer is ConsentAnswer.NOW:
            owner.say(ConsentAnswer.WITHDRAWN, attempt_id)  # nothing is written yet: it may be taken back
    page.goto(world.server.url + "/settings/consent?release=valve%2F1.1")
    heads = page.locator("#report thead th").all_inner_texts()
    for row in page.locator("#report tbody tr").all():
        counts = dict(zip(heads[1:], map(int, row.locator("td").all_inner_texts()), strict=True))
        assert counts["Asked"] == sum(counts.values()) - counts["Asked"] == len(ANSWERS)
        assert (counts["Declined"], counts["Postponed"], counts["No answer"]) == (1, 1, 2)
    said = page.get_by_role("row", name="skip valve/1.1")
    for words in ("uid:1000 menu", "pt", str(Digest.of(TEXT.encode()))[7:15]):
        expect(said).to_contain_text(words)
    expect(said.locator("time")).to_be_visible()
    expect(page.get_by_role("row", name="withdrawn")).to_be_visible()
    page.goto(f"{world.server.url}/rollouts/{rollout_id}")
    expect(page.locator("#r-stats .value").nth(2)).to_have_text("0")  # failed
    shown = world.admin.ask("GET", f"/api/v1/rollouts/{rollout_id}").json
    assert (shown["state"], shown["counts"].get("failed", 0), shown["waves"][0]["failed"]) == ("running", 0, 0)
    expect(page.locator("#r-head")).to_contain_text("Rolling out")
    expect(page.locator("#r-why")).to_contain_text("No failure yet")
    page.goto(f"{world.server.url}/devices/{owners[0].device.device_id}")
    expect(page.locator(".plain-list")).to_contain_text("skip to valve/1.1")
    page.goto(world.server.url + "/settings/consent")
    page.get_by_role("row", name="every device feature").get_by_role("link", name="Take away").click()
    page.get_by_role("dialog").get_by_role("button", name="Take it away").click()
    expect(page.get_by_role("status").first).to_contain_text("taken away")


def test_a_rule_that_cannot_be_says_why_and_the_form_survives(world, open_page):
    page = open_page(world.server.url, "/settings/consent", may_say=("400", "404"))
    page.get_by_label("For", exact=True).select_option("group")
    page.get_by_label("Group or device id").fill("nobody-made-it")
    page.get_by_role("button", name="Set the rule").click()
    expect(page.get_by_role("alert")).to_be_visible()
    expect(page.get_by_label("Group or device id")).to_have_value("nobody-made-it")
