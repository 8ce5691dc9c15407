"""Templates and static files: one environment, hashed names, nothing from elsewhere."""

from __future__ import annotations

import hashlib
import json
import mimetypes
from importlib import resources
from typing import TYPE_CHECKING, Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from firmament import __version__
from firmament.console import charts, formats, words

if TYPE_CHECKING:
    from datetime import datetime

STATIC: Final = ("console.css", "console.js", "icon.svg")
DIGEST_LENGTH: Final = 12


class Assets:
    """Static files under names that change with their bytes, so that browsers may keep them for ever."""

    def __init__(self) -> None:
        self._files: dict[str, tuple[str, bytes]] = {}
        self._names: dict[str, str] = {}
        folder = resources.files("firmament.console") / "static"
        for name in STATIC:
            data = (folder / name).read_bytes()
            stem, _, ending = name.rpartition(".")
            hashed = f"{stem}.{hashlib.sha256(data).hexdigest()[:DIGEST_LENGTH]}.{ending}"
            kind = mimetypes.types_map.get("." + ending, "application/octet-stream")
            self._files[hashed] = (kind, data)
            self._names[name] = f"/static/{hashed}"

    def url(self, name: str) -> str:
        """Return where a file is."""
        return self._names[name]

    def find(self, hashed: str) -> tuple[str, bytes] | None:
        """Return media type and bytes of a hashed name."""
        return self._files.get(hashed)


class Templates:
    """Draws pages; `now` is given so that "3 min ago" is an argument like everything else."""

    def __init__(self, assets: Assets) -> None:
        self._environment = Environment(
            loader=PackageLoader("firmament.console"),
            auto_reload=False,
            autoescape=select_autoescape(default=True, default_for_string=True),
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._environment.filters.update(
            number=formats.number,
            short_number=formats.short_number,
            percent=formats.percent,
            limit=formats.limit_percent,
            size=formats.length,
            duration=formats.duration,
            day=formats.day,
            absolute=formats.absolute,
            iso=formats.iso,
            short_digest=formats.short_digest,
            short_id=formats.short_id,
            pretty=_pretty,
        )
        self._environment.globals.update(
            asset=assets.url,
            share=formats.share,
            plural=formats.plural,
            words=words,
            charts=charts,
            version=__version__,
        )

    def draw(self, name: str, now: datetime, /, **values: Any) -> str:
        """Return a page or a part of one."""
        return self._environment.get_template(name).render(
            now=now,
            ago=lambda at: formats.ago(at, now),
            clock_time=lambda at: formats.clock_time(at, now),
            **values,
        )


def _pretty(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True)
