"""Operator paths whose shapes are worked out when somebody first asks for them.

To work out what 136 paths answer takes longer than everything else a server does of its own when
it starts, and a server answers a few of them, or its devices only. A path is known from the
start; the first request that meets it, or the first question for the description of all paths,
pays a few milliseconds for what that one needs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi.routing import APIRoute
from starlette.routing import compile_path, get_name

if TYPE_CHECKING:
    from collections.abc import Callable


class LateRoute(APIRoute):
    """The framework's route: enough to be matched at once, everything else when it is missed."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        self.path = path
        self.endpoint = endpoint
        self.name = options["name"] or get_name(endpoint)
        self.methods = {method.upper() for method in options["methods"]}
        self.include_in_schema = options["include_in_schema"]
        self.path_regex, self.path_format, self.param_convertors = compile_path(path)
        self._options = options

    def __getattr__(self, name: str) -> Any:
        """Work out what is not there yet; raises AttributeError for what never will be."""
        options = self.__dict__.pop("_options", None)
        if options is None:
            raise AttributeError(name)
        super().__init__(self.path, self.endpoint, **options)
        return getattr(self, name)
