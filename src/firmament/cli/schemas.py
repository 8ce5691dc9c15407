"""What ``--json`` promises: each document's name, version and the fields it always has.

``{"schema": "firmament.<name>/<version>", ...}``. Fields may be added; a promised one is never
dropped or renamed: that makes a new version beside the old one. tests/contract pins this table,
docs/reference/cli.md prints it, and `require_fields` keeps each command to it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

VERSION: Final = 1

# fmt: off
SCHEMAS: Final[dict[str, str]] = {
    # both commands
    "error":               "code message hint retry exit_code facts",
    "completion":          "shell script",
    "manual":              "pages",
    "rewrapped":           "file version offset length_bytes image_length_bytes",
    # authors
    "ceremony":            "repository version expires_at fingerprint changes old new complete missing",
    "content-keys":        "release content_keys",
    "deltas":              "release deltas dropped missing",
    "diff":                "old new fields files",
    "draft":               "product role_version threshold signed missing complete path",
    "expiry":              "within_days expiries soon",
    "file":                "kind",
    "key":                 "name kind",
    "keys":                "keys",
    "legacy":              "release scheme files",
    "notes-lint":          "ok problems languages",
    "product":             "targets_version",
    "products":            "products",
    "promotion":           "release channel",
    "publish":             "to dry_run",
    "release":             "release manifest",
    "releases":            "releases",
    "role":                "role version",
    "rotation":            "",
    "sealed":              "release suite payloads",
    "verification":        "release target root_version timestamp_version verified opened",
    "vector":              "file",
    "workspace":           "directory product keys has_director gives_up",
    # operators
    "attempt":             "attempt_id",
    "audit-checkpoints":   "checkpoints",
    "audit-events":        "events",
    "audit-export":        "file lines",
    "audit-key":           "keyid key",
    "audit-restart":       "tenant number hash",
    "audit-verification":  "tenant first last events hash checkpoints kept vouched_up_to",
    "certificate-request": "file",
    "config":              "settings",
    "config-path":         "user system project",
    "device":              "device attempts",
    "device-disabled":     "device_id",
    "device-enabled":      "device_id",
    "device-marks":        "device_id pinned muted",
    "devices":             "devices",
    "changed":             "changed",
    "device-count":        "count is_capped sample",
    "group":               "name query count sample",
    "timeline":            "entries",
    "why":                 "device_id release rules first_blocking sentence",
    "group-removed":       "name",
    "groups":              "groups",
    "enrolment":           "device_id file",
    "enrolment-token":     "token",
    "deliveries":          "deliveries",
    "notification":        "id subject severity title text acknowledged_by",
    "notification-preview": "severity title text",
    "notifications":       "outlets notifications",
    "outlet":              "name kind takes target",
    "outlet-removed":      "name",
    "outlet-test":         "ok answer duration_ms",
    "me":                  "name role actions",
    "needs":               "items",
    "operator":            "name role",
    "operator-login":      "role expires_at token_file",
    "operator-logout":     "",
    "operator-token":      "role expires_at",
    "operators":           "people",
    "operator-password":   "",
    "operator-sessions":   "sessions",
    "operator-sessions-revoked": "",
    "operator-token-revoked": "token_id",
    "operator-tokens":     "tokens",
    "operator-totp":       "secret uri",
    "operator-totp-codes": "recovery_codes",
    "operator-totp-removed": "",
    "tenant":              "name",
    "tenants":             "tenants",
    "consent-device":      "device_id opted_out_at security feature",
    "consent-policy":      "rules",
    "consent-report":      "asked agreed postponed declined no_answer opted_out releases",
    "consent-rule":        "level subject update_class mode",
    "parcel":              "file parcel_id kind release devices expires_at length_bytes",
    "provision-file":      "file",
    "receipts-imported":   "receipts",
    "release-log":         "size root seen_before",
    "release-proof":       "release index size leaf root",
    "rollout":             "rollout_id state counts waves total",
    "rollout-action":      "action sentence count counts needs_reason needs_second_person is_possible why_not",
    "rollout-plan":        "release matching count waves excluded consent blockers warnings needs_approval",
    "rollout-reasons":     "reasons",
    "rollout-target":      "device_id wave status",
    "rollouts":            "rollouts",
    "compliance":          "generated_at since until chain releases running vulnerabilities consent opt_outs",
    "sbom":                "release digest components",
    "sbom-added":          "release digest components findings",
    "sbom-diff":           "old new changes",
    "vulnerabilities":     "vulnerabilities",
    "vulnerabilities-stated": "vulnerabilities findings",
    "vulnerability":       "name releases devices fixed_in time_to_patch",
    "vulnerability-dropped": "name",
    "rollout-forecast":    "release devices played_with as_assumed bad_build",
    "server-doctor":       "ok findings",
    "server-init":         "directory ca online_public names addresses port",
    "server-trust":        "trusted",
    "server-migrate":      "database revision",
    "server-backup":       "file rows files length_bytes payloads",
    "server-restore":      "directory rows files payloads",
    "server-gc":           "dry_run blobs length_bytes kept uploads",
    "server-move-payloads": "bucket copied length_bytes there_already published",
    "server-move":         "database rows tables",
    "server-content-key":  "keyid content_keys",
    "wrapping-key-revoked": "device_id",
    "wrapping-key-registered": "device_id",
    # devices
    "agent-doctor":        "ok findings",
    "agent-event":         "event",
    "consent":             "state release_id class consent offer blocked",
    "history":             "attempts",
    "installed":           "files",
    "receipts":            "receipts",
    "page":                "url code",
    "slots":               "slots",
    "provisioned":         "device_id product hardware server",
    "status":              "v state",
    "wrapping-key":        "device_id file",
    # trying out
    "demo":                "ok",
    "demo-console":        "",
    "sim-fleet":           "devices state duration_s counts touched sentence evidence",
    "demo-stop":           "ended",
}
# fmt: on


def require_fields(name: str, value: Mapping[str, Any]) -> None:
    """Raise RuntimeError when a document lacks what its row promises; a mistake in the command."""
    missing = [field for field in SCHEMAS.get(name, "").split() if field not in value]
    if missing:
        msg = f"the document {name} lacks {', '.join(missing)}"
        raise RuntimeError(msg)
    if "schema" in value:
        msg = f"the document {name} would hide its own schema"
        raise RuntimeError(msg)
