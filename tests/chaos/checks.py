"""What must hold after any chaos, asked of the rows alone."""

import json

from support.server_world import run_command

ENDS = {"confirmed", "reverted", "failed", "refused"}


def lost_reports(server, devices) -> int:
    """Count reports that a device was told are stored, and are not."""
    query = "SELECT d.uid, r.number FROM report r JOIN device d ON d.id = r.device_id"
    stored = {(row["uid"], row["number"]) for row in server.rows(query)}
    return sum((one.device.device_id, number) not in stored for one in devices for number in one.acknowledged)


def most_in_flight(server, rollout_id: str) -> int:
    """Return how many attempts of a rollout were ever open at once, from the chain of events: it orders commits."""
    open_now: set[str] = set()
    most = 0
    for row in server.rows("SELECT kind, subject, facts FROM event WHERE kind LIKE 'attempt.%' ORDER BY number"):
        facts = json.loads(row["facts"])
        if row["kind"] == "attempt.assigned" and facts.get("rollout_id") == rollout_id:
            open_now.add(facts["attempt_id"])
        elif row["kind"] == "attempt.moved" and facts["state"] in ENDS:
            open_now.discard(facts["attempt_id"])
        elif row["kind"] == "attempt.cancelled":
            open_now.discard(row["subject"])
        most = max(most, len(open_now))
    return most


def early_starts(server, rollout_id: str) -> int:
    """Count devices that were started before their wave was opened."""
    wave_of = {
        row["uid"]: row["wave"]
        for row in server.rows(
            "SELECT d.uid, t.wave FROM rollout_target t JOIN device d ON d.id = t.device_id "
            "JOIN rollout r ON r.id = t.rollout_id WHERE r.uid = ?",
            rollout_id,
        )
    }
    opened, early = 0, 0
    for row in server.rows("SELECT kind, subject, facts FROM event ORDER BY number"):
        facts = json.loads(row["facts"])
        if row["kind"] == "wave.opened" and row["subject"] == rollout_id:
            opened = max(opened, facts["wave"])
        elif row["kind"] == "attempt.assigned" and facts.get("rollout_id") == rollout_id:
            early += wave_of[row["subject"]] > opened
    return early


def attempts_of_each(server) -> int:
    """Return the most attempts that any one device was given."""
    return max((row["n"] for row in server.rows("SELECT count(*) AS n FROM attempt GROUP BY device_id")), default=0)


def audit_verifies(world, directory) -> bool:
    """Whether the whole chain of events holds, as an auditor sees it."""
    token = directory / "audit-token"
    token.write_text(world.admin.token + "\n")
    token.chmod(0o600)
    where = ("--server", world.server.url, "--ca", world.server.ca, "--token-file", token)
    key = directory / "audit-key"
    run_command("audit", "key", "--out", key, *where)
    return run_command("audit", "verify", "--key", key, *where, check=False).returncode == 0
