"""Why devices failed, and what the failed have in common."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from firmament.errors import error_for_code
from firmament.server.rollouts.decide import Code
from firmament.server.rollouts.machine import COUNTS_AS_FAILED, COUNTS_AS_FINISHED
from firmament.server.rollouts.stats import Common, stands_out

if TYPE_CHECKING:
    from firmament.server.database.port import Connection
    from firmament.server.rollouts.store import RolloutRecord

MAX_REASONS: Final = 50
MAX_COMPARED: Final = 10_000
"""Failed and other finished devices that are compared, at most: enough for any share, and 0.1 s."""
SAMPLE: Final = 5
NOT_IN_COMMON: Final = frozenset({"health"})
"""What a device reports because it failed is no reason for failing."""

SENTENCES: Final[dict[str, str]] = {
    Code.NO_CALL_BACK: "Has not called back",
    Code.TOOK_TOO_LONG: "Took too long",
    Code.SITE: "Its site did not commit as a whole",
    Code.OTHER_RELEASE: "Another release was assigned by hand",
    Code.NOT_APPLICABLE: "The release is not applicable any more",
    Code.NO_WAY_BACK: "Keeps the release: the one before is not published",
    "policy/waiting-for-consent": "Waits for its owner",
    "policy/outside-window": "Waits for its own window",
    "slot/health": "Health check failed after the restart",
    "slot/reverted": "The boot loader fell back to the old slot",
    "reverted": "Went back to the old slot",
    "refused": "Refused the release",
    "failed": "Failed",
    "": "",
}


def sentence(code: str) -> str:
    """Say a code in words."""
    if code in SENTENCES:
        return SENTENCES[code]
    kind = error_for_code(code)
    return code if kind.code == "firmament" else kind.__name__.removesuffix("Error")


def list_reasons(connection: Connection, rollout: RolloutRecord) -> list[dict[str, Any]]:
    """Return failures by reason, the most frequent first, each with what stands out."""
    rows = connection.execute(
        "SELECT code, n FROM rollout_reason WHERE rollout_id = ? AND n > 0 ORDER BY n DESC, code LIMIT ?",
        (rollout.row_id, MAX_REASONS),
    ).fetchall()
    total = sum(row["n"] for row in rows)
    others = _facts_of_others(connection, rollout)
    found = []
    for row in rows:
        common = _common(connection, rollout, row["code"], others)
        found.append(
            {
                "code": row["code"],
                "message": sentence(row["code"]),
                "count": int(row["n"]),
                "share": row["n"] / total,
                "common": common.to_json() if common is not None else None,
                "sample": _sample(connection, rollout, row["code"]),
            }
        )
    return found


def find_common(connection: Connection, rollout: RolloutRecord) -> Common | None:
    """Return what all failed devices have in common, whatever the reason."""
    return _common(connection, rollout, None, _facts_of_others(connection, rollout))


Facts = tuple[Counter[tuple[str, str]], int]


def _common(connection: Connection, rollout: RolloutRecord, code: str | None, others: Facts) -> Common | None:
    failed, n_failed = _facts(connection, rollout, sorted(COUNTS_AS_FAILED), code)
    return stands_out(failed, n_failed, *others)


def _facts_of_others(connection: Connection, rollout: RolloutRecord) -> Facts:
    return _facts(connection, rollout, sorted(COUNTS_AS_FINISHED - COUNTS_AS_FAILED), None)


def _facts(connection: Connection, rollout: RolloutRecord, statuses: list[Any], code: str | None) -> Facts:
    """Count the properties of some finished devices."""
    rows = connection.execute(
        "SELECT d.id, d.hardware, t.source, y.name AS site FROM rollout_target t JOIN device d ON d.id = t.device_id "
        "LEFT JOIN site y ON y.id = t.site_id WHERE t.rollout_id = ? "
        f"AND t.status IN ({', '.join('?' * len(statuses))}) "
        "AND (CAST(? AS TEXT) IS NULL OR t.code = ?) ORDER BY t.device_id LIMIT ?",
        (rollout.row_id, *(status.value for status in statuses), code, code, MAX_COMPARED),
    ).fetchall()
    found: Counter[tuple[str, str]] = Counter()
    for row in rows:
        found["hardware", row["hardware"]] += 1
        found["version before", row["source"]] += 1
        if row["site"] is not None:
            found["site", row["site"]] += 1
    attributes = connection.execute(
        "SELECT x.name, x.value, COUNT(*) AS n FROM device_attribute x WHERE x.device_id IN ("
        f"SELECT t.device_id FROM rollout_target t WHERE t.rollout_id = ? AND t.status IN "
        f"({', '.join('?' * len(statuses))}) AND (CAST(? AS TEXT) IS NULL OR t.code = ?) "
        "ORDER BY t.device_id LIMIT ?) GROUP BY x.name, x.value",
        (rollout.row_id, *(status.value for status in statuses), code, code, MAX_COMPARED),
    )
    for row in attributes:
        if row["name"] not in NOT_IN_COMMON:
            found[row["name"], row["value"]] += int(row["n"])
    return found, len(rows)


def _sample(connection: Connection, rollout: RolloutRecord, code: str) -> list[str]:
    rows = connection.execute(
        "SELECT d.uid FROM rollout_target t JOIN device d ON d.id = t.device_id WHERE t.rollout_id = ? "
        "AND t.status IN ('failed', 'silent') AND t.code = ? ORDER BY t.device_id LIMIT ?",
        (rollout.row_id, code, SAMPLE),
    )
    return [row["uid"] for row in rows]
