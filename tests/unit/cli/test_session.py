"""What `firmament status` says of roles that a person must sign again."""

from datetime import UTC, datetime, timedelta

from firmament.cli.session import SOON, expiring

NOW = datetime(2026, 11, 1, tzinfo=UTC)


def role(name, in_days, *, is_online=False):
    expires_at = None if in_days is None else int((NOW + timedelta(days=in_days)).timestamp())
    return {"repository": "image", "role": name, "expires_at": expires_at, "is_online": is_online}


def test_roles_that_expire_soon_are_told_soonest_first():
    roles = [role("root", 59), role("thermo", -1), role("targets", SOON.days + 1), role("none", None)]
    found = expiring([*roles, role("timestamp", 1, is_online=True)], NOW)
    assert [(item["kind"], item["subject"]) for item in found] == [("expiry", "image thermo"), ("expiry", "image root")]
    assert found[0]["sentence"].startswith("The role image thermo has expired on 2026-10-31.")
    assert found[1]["sentence"].startswith("The role image root expires on 2026-12-30.")
    assert {item["next"] for item in found} == {"firmament key expiry --within 60d"}


def test_nothing_that_expires_is_nothing():
    assert expiring([role("root", 300)], NOW) == []
