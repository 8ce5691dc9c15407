"""Rotate the key that content keys are wrapped for: make a new one, wrap everything anew, remove the old ones.

In this order a crash leaves more key files than are needed and no row that none of them opens;
rotating again finishes. What an old copy of database and key files gives away it gives away still.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from firmament.server import events
from firmament.server.events import Event
from firmament.server.payloads.content_keys import renew_all
from firmament.server.payloads.custody import key_files, load_custodian, make_key

if TYPE_CHECKING:
    from datetime import datetime

    from firmament.durable import Disk
    from firmament.server.database.opening import CommandDatabase
    from firmament.server.database.port import Connection
    from firmament.server.layout import Layout
    from firmament.server.scope import Scope


def rotate(disk: Disk, layout: Layout, database: CommandDatabase, scope: Scope, now: datetime) -> dict[str, Any]:
    """Rotate while no server runs in this directory; returns keyid and how many keys were wrapped anew.

    Raises KeyWrapError when a row is for a key that is not here; then nothing was removed.
    """
    newest = make_key(disk, layout.content)
    custodian = load_custodian(disk, layout.content)

    def renew(connection: Connection) -> int:
        count = renew_all(connection, custodian)
        events.append(connection, scope, Event.CONTENT_KEYS_RENEWED, now, keyid=custodian.keyid, keys=count)
        return count

    count = database.transact(renew)
    for path in key_files(disk, layout.content):
        if path != newest:
            disk.remove(path)
    disk.sync_directory(layout.content)
    return {"keyid": custodian.keyid, "content_keys": count}
