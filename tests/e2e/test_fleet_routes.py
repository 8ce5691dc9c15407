"""Selecting devices, tags, groups, filters and places over the operator API."""

import pytest
from support.databases import fresh_database
from support.server_world import World


@pytest.fixture(scope="module")
def world(tmp_path_factory, database_kind):
    made = World(tmp_path_factory.mktemp("world"), database=fresh_database(database_kind)).begin()
    yield made
    made.close()


@pytest.fixture(scope="module")
def fleet(world):
    """Three devices: two thermo of which one reports a zone, and a pump."""
    made = [world.device(), world.device(), world.device(product="pump")]
    made[0].poll(attributes={"zone": "Europe/Lisbon", "os": "debian 12"})
    return made


def names(world, query):
    return [
        item["device_id"] for item in world.admin.ask("GET", "/api/v1/devices", fields={"query": query}).json["devices"]
    ]


def test_devices_are_selected_by_what_they_report(world, fleet):
    one, two, pump = (device.device_id for device in fleet)
    assert names(world, "") == [one, two, pump]
    assert names(world, 'attr.zone~"Europe/"') == [one]
    assert names(world, "product=thermo and not has attr.zone") == [two]
    fleet[0].poll(attributes={"os": "debian 13"})
    assert names(world, "has attr.zone") == []
    assert names(world, 'attr.os="debian 13"') == [one]
    listed = world.admin.ask("GET", "/api/v1/devices/attributes").json["attributes"]
    assert listed == [{"name": "os", "values": ["debian 13"]}]


def test_a_query_that_cannot_be_read_names_the_place(world):
    refused = world.admin.ask("GET", "/api/v1/devices/count", fields={"query": "product=thermo and colour=red"})
    assert (refused.status, refused.code) == (400, "request/malformed")
    assert refused.json["facts"]["position"] == 19
    assert refused.json["facts"]["found"] == "colour"


def test_tags_are_put_on_what_was_counted(world, fleet):
    query = {"query": "product=thermo", "add": ["beta"]}
    assert world.admin.ask("GET", "/api/v1/devices/count", fields={"query": "product=thermo"}).json == {
        "count": 2,
        "is_capped": False,
        "limit": 10_000,
    }
    stale = world.admin.ask("POST", "/api/v1/devices/tags", {**query, "expect_count": 3})
    assert (stale.status, stale.code) == (409, "request/conflict")
    assert world.admin.ask("POST", "/api/v1/devices/tags", {**query, "expect_count": 2}).json == {"changed": 2}
    assert world.admin.ask("GET", "/api/v1/tags").json == {"tags": [{"tag": "beta", "count": 2}]}
    one = fleet[0].device_id
    world.admin.ask("POST", "/api/v1/devices/tags", {"ids": [one], "remove": ["beta"], "add": ["lab"]})
    assert names(world, "tag=lab") == [one]
    assert world.admin.ask("GET", f"/api/v1/devices/{one}").json["tags"] == ["lab"]
    assert [event["facts"]["count"] for event in world.server.events("devices.tagged")] == [2, 1]


def test_groups_follow_their_query_or_are_made_by_hand(world, fleet):
    world.admin.ask("PUT", "/api/v1/groups/warm", {"query": "product=thermo"})
    world.admin.ask("PUT", "/api/v1/groups/chosen", {})
    pump = fleet[2].device_id
    assert world.admin.ask("POST", "/api/v1/groups/chosen/members", {"add": [pump]}).json == {"changed": 1}
    assert names(world, "group=chosen") == [pump]
    assert names(world, "group in (warm, chosen)") == [device.device_id for device in fleet]
    listed = world.admin.ask("GET", "/api/v1/groups").json["groups"]
    assert [(group["name"], group["query"], group["count"]) for group in listed] == [
        ("chosen", "", 1),
        ("warm", "product=thermo", 2),
    ]
    nested = world.admin.ask("PUT", "/api/v1/groups/nested", {"query": "group=warm"})
    assert (nested.status, nested.code) == (400, "request/malformed")
    by_hand = world.admin.ask("POST", "/api/v1/groups/warm/members", {"add": [pump]})
    assert (by_hand.status, by_hand.code) == (409, "request/conflict")
    assert world.admin.ask("DELETE", "/api/v1/groups/chosen").status == 204
    assert world.admin.ask("GET", "/api/v1/devices", fields={"query": "group=chosen"}).code == "request/not-found"


def test_a_saved_filter_is_kept_in_its_usual_form(world):
    world.admin.ask("PUT", "/api/v1/filters/late", {"query": "(seen>1d)   AND product = thermo"})
    (saved,) = world.admin.ask("GET", "/api/v1/filters").json["filters"]
    assert (saved["name"], saved["query"]) == ("late", "seen>86400s and product=thermo")
    assert world.admin.ask("DELETE", "/api/v1/filters/late").status == 204
    assert world.admin.ask("GET", "/api/v1/filters").json == {"filters": []}


def test_devices_have_a_site_and_a_gateway_in_front_of_them(world, fleet):
    one, two, pump = (device.device_id for device in fleet)
    world.admin.ask("PUT", f"/api/v1/devices/{one}/place", {"site": "Porto-03"})
    world.admin.ask("PUT", f"/api/v1/devices/{pump}/place", {"site": "Porto-03", "gateway": one})
    assert names(world, "site=Porto-03 and has gateway") == [pump]
    assert names(world, f"gateway={one}") == [pump]
    (site,) = world.admin.ask("GET", "/api/v1/sites").json["sites"]
    assert (site["name"], site["count"]) == ("Porto-03", 2)
    shown = world.admin.ask("GET", f"/api/v1/devices/{pump}").json
    assert (shown["site"], shown["gateway"]) == ("Porto-03", one)
    chain = world.admin.ask("PUT", f"/api/v1/devices/{two}/place", {"gateway": pump})
    assert (chain.status, chain.code) == (409, "request/conflict")
