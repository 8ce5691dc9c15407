"""Every page of the console with the states it can be in, from the table of routes: a page without an entry fails.

An address may name `{device}` (never offered anything), `{failed}` (went back), `{rollout}` (stopped by itself),
`{session}` and `{token}`.
"""

from firmament.console.views import VIEWS
from firmament.console.views.device import CHANGES as DEVICE_CHANGES
from firmament.console.views.people import CHANGES as PEOPLE_CHANGES
from firmament.console.views.rollouts import ACTIONS
from firmament.console.views.settings import OUTLET_CHANGES

NOT_PAGES = {"/devices.csv", "/audit.jsonl", "/events"}
"""Answers that are no page; each has a test of its own."""
WITHOUT_SIGNING_IN = {"/login": ("/login", "/login?out=1", "/login?outside=refused", "/login?next=%2Fkeys")}
ADDRESSES = {
    "/": ("/",),
    "/devices": (
        "/devices",
        "/devices?q=hardware%3Drpi4",
        "/devices?q=hardware%3D%3Drpi4",
        "/devices?q=nothing",
        "/devices?preset=attention&size=100",
    ),
    "/devices/enrol": ("/devices/enrol",),
    "/devices/views/remove": ("/devices/views/remove?name=sick",),
    "/devices/{device_id}": ("/devices/{device}", "/devices/{failed}"),
    "/devices/{device_id}/why": ("/devices/{device}/why", "/devices/{failed}/why"),
    "/devices/{device_id}/assign": ("/devices/{device}/assign",),
    "/devices/{device_id}/{change}": tuple(f"/devices/{{failed}}/{change}" for change in DEVICE_CHANGES),
    "/rollouts": ("/rollouts", "/rollouts?state=finished"),
    "/rollouts/new": (
        "/rollouts/new",
        "/rollouts/new?release=thermo%2F1.1&selector=hardware%3Dnone",
        "/rollouts/new?release=thermo%2F1.1&selector=hardware%3D%3D",
    ),
    "/rollouts/{rollout_id}": ("{rollout}",),
    "/rollouts/{rollout_id}/targets": ("{rollout}/targets", "{rollout}/targets?status=failed"),
    "/rollouts/{rollout_id}/{action}": tuple(f"{{rollout}}/{action}" for action in ACTIONS),
    "/releases": ("/releases", "/releases?product=thermo"),
    "/releases/{product}/{version}": ("/releases/thermo/1.1", "/releases/pump/2.0", "/releases/pump/1.0"),
    "/releases/{product}/{version}/promote": ("/releases/thermo/1.1/promote",),
    "/keys": ("/keys",),
    "/keys/rehearsal": ("/keys/rehearsal", "/keys/rehearsal?repository=director"),
    "/audit": ("/audit", "/audit?subject=thermo%2F1.1", "/audit?subject=nothing"),
    "/settings": ("/settings",),
    "/settings/second-factor": ("/settings/second-factor",),
    "/settings/second-factor/remove": ("/settings/second-factor/remove",),
    "/settings/sessions/{session_id}/end": ("/settings/sessions/{session}/end", "/settings/sessions/others/end"),
    "/settings/people": ("/settings/people",),
    "/settings/people/{name}/{change}": tuple(f"/settings/people/viewer/{change}" for change in PEOPLE_CHANGES),
    "/settings/tokens": ("/settings/tokens",),
    "/settings/tokens/{token_id}/revoke": ("/settings/tokens/{token}/revoke",),
    "/settings/notifications": ("/settings/notifications",),
    "/settings/notifications/{name}/{change}": tuple(
        f"/settings/notifications/on-call/{change}" for change in OUTLET_CHANGES
    ),
    "/settings/consent": ("/settings/consent", "/settings/consent?release=thermo%2F1.1"),
    "/settings/consent/remove": ("/settings/consent/remove?level=tenant&subject=&update_class=feature",),
    "/settings/about": ("/settings/about",),
}


def pages():
    """The paths of the table of routes that answer with a page."""
    return {view.path for view in VIEWS if "GET" in view.methods and view.path not in NOT_PAGES}


def forms():
    """The paths that take a form."""
    return {view.path for view in VIEWS if "POST" in view.methods}
