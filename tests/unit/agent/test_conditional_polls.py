"""A device that was told "nothing to do" asks only whether anything changed, and not for ever (ADR-0037)."""

from types import SimpleNamespace

import pytest
from unit.agent.test_agent import device, server_of

from firmament.agent.consent import Who
from firmament.agent.events import Trouble
from firmament.agent.machine import State
from firmament.agent.policy import DEFAULT_FULL_POLL_S, Policy
from firmament.errors import NothingToDoError

ASK, POLL = "GET /v1/poll", "POST /v1/poll"
HOUR_S = 3600


@pytest.fixture
def idle():
    return begun()


def begun(**policy):
    """A device whose server has nothing for it, after its first poll."""
    world = device(policy=Policy(**policy))
    server = server_of(world)
    offered, server.assignment = server.assignment, None
    agent = world.start()
    server.requests.clear()
    agent.tick()
    made = SimpleNamespace(world=world, server=server, agent=agent, offered=offered)
    assert requests(made) == [POLL]
    return made


def requests(made):
    found = [request for request in made.server.requests if request.endswith("/v1/poll")]
    made.server.requests.clear()
    return found


def later(made, hours=1.1):
    """Let time pass and the device ask; return what it asked."""
    made.world.ideal.clock.advance(hours * HOUR_S)
    made.agent.tick()
    return requests(made)


def test_it_asks_briefly_until_a_signed_answer_is_due(idle):
    asked = [later(idle) for _ in range(12)]
    assert asked[:5] == [[ASK]] * 5
    full = [number for number, found in enumerate(asked) if found == [POLL]]
    assert full == [5, 11]
    assert 5 < DEFAULT_FULL_POLL_S / HOUR_S <= 6


def test_what_changed_is_fetched_at_once(idle):
    later(idle)
    idle.server.assignment = idle.offered
    assert later(idle) == [ASK, POLL]
    assert idle.agent.status().state is not State.IDLE


def test_a_server_that_lies_delays_an_update_by_hours_and_no_more(idle):
    """Case 71."""
    idle.server.says_nothing_changed = True
    idle.server.assignment = idle.offered
    asked = [later(idle) for _ in range(6)]
    assert asked == [[ASK]] * 5 + [[POLL]]
    assert idle.agent.status().state is not State.IDLE


def test_it_polls_in_full_when_it_has_something_new_to_say(idle):
    idle.agent.opt_out(Who("uid:0", "command"))
    assert later(idle) == [POLL]
    assert later(idle) == [ASK]


def test_it_polls_in_full_after_a_restart(idle):
    later(idle)
    idle.agent = idle.world.start()
    idle.agent.tick()
    assert requests(idle) == [POLL]


def test_a_person_who_asks_gets_a_signed_answer(idle):
    with pytest.raises(NothingToDoError):
        idle.agent.check()
    assert requests(idle) == [POLL]


def test_its_owner_may_want_every_answer_signed():
    made = begun(full_poll_s=0)
    assert [later(made) for _ in range(3)] == [[POLL]] * 3


def test_a_server_that_does_not_know_it_is_not_asked_so():
    made = begun()
    made.server.tag = ""
    assert later(made) == [ASK, POLL]  # its last answer had a tag
    assert [later(made) for _ in range(2)] == [[POLL]] * 2


@pytest.mark.parametrize("status", [200, 204, 301, 400, 401, 403, 404, 429, 500, 503])
def test_whatever_else_is_said_leads_to_a_poll(idle, status):
    answer = SimpleNamespace(status=status, headers={"location": "http://x/"}, close=lambda: None)
    ordinary = idle.server.request
    idle.world.ideal.server.request = lambda method, url, **more: (
        answer if (method, url[-8:]) == ("GET", "/v1/poll") else ordinary(method, url, **more)
    )
    assert later(idle) == [POLL]


def test_without_a_network_it_backs_off_and_then_polls_in_full(idle):
    idle.server.is_reachable = False
    for _ in range(3):
        assert later(idle) == []
    idle.server.is_reachable = True
    assert later(idle) == [POLL]
    assert later(idle) == [ASK]


def test_an_answer_with_a_tag_that_is_no_header_is_refused(idle):
    idle.server.tag = 'a"\r\nx: y'
    assert later(idle, 7) == [POLL]
    troubles = [event for event in idle.world.heard if isinstance(event, Trouble)]
    assert [event.code for event in troubles] == ["transfer"]
    assert later(idle, 7) == [POLL]  # and never with that header
