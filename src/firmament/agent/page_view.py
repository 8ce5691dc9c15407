"""The owner's page as HTML: a pure function of the status, every value escaped, no script, no style attribute."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any, Final

from firmament.agent.page_text import words
from firmament.core.offer import printable, size

if TYPE_CHECKING:
    from collections.abc import Iterator

MARKS: Final = {"done": "✓", "now": "▸", "todo": "○", "failed": "✗"}
MARK_WORDS: Final = {"done": "done", "now": "doing", "todo": "todo", "failed": "failed"}
MESSAGES: Final = frozenset({"said", "wrong-code", "locked", "refused", "limit"})
MAX_HISTORY: Final = 10
REFRESH_S: Final = 5
BUSY: Final = frozenset({"fetching", "staged", "trial"})

STYLE: Final = """:root { color-scheme: light dark; --line: light-dark(#c8ccd2, #454b54);
  --soft: light-dark(#f3f5f7, #20242a);
  --accent: light-dark(#0b5cad, #7db8ff); --on-accent: light-dark(#fff, #10141a); }
* { box-sizing: border-box; }
body { font: 1.05rem/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 40rem; padding: 1rem;
  background: light-dark(#fff, #14171b); color: light-dark(#16191d, #eceff3); }
h1 { font-size: 1.5rem; margin: .5rem 0; } h2 { font-size: 1.25rem; margin: .8rem 0 .2rem; }
h3 { font-size: 1.05rem; margin: 1rem 0 .2rem; }
section { border: 1px solid var(--line); border-radius: .5rem; padding: .3rem 1rem 1rem; margin: 1rem 0; }
progress { width: 100%; height: 1rem; }
ul { padding-left: 1.4rem; margin: .3rem 0; } ol { margin: .3rem 0; list-style: none; padding: 0; }
p { margin: .4rem 0; } .facts { opacity: .85; }
form { display: flex; flex-wrap: wrap; gap: .6rem; margin-top: .8rem; }
label { flex: 1 0 100%; } input { font: inherit; padding: .4rem; width: 9rem; letter-spacing: .2em;
  border: 1px solid var(--line); border-radius: .3rem; background: Canvas; color: CanvasText; }
button { font: inherit; min-height: 2.75rem; padding: .3rem 1rem; border: 1px solid var(--accent); border-radius: .4rem;
  background: var(--soft); color: inherit; cursor: pointer; }
button.yes { background: var(--accent); color: var(--on-accent); }
:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; }
.message { background: var(--soft); border-left: .4rem solid var(--accent); padding: .6rem 1rem; }
table { border-collapse: collapse; width: 100%; }
td { text-align: left; padding: .25rem .4rem; border-top: 1px solid var(--line); }
"""


def render(status: dict[str, Any], history: list[dict[str, Any]], *, language: str, message: str) -> str:
    """Return the whole page; `message` is a word of `MESSAGES`, anything else says nothing."""
    tag, say = words(language)
    return "".join(_page(status, history, tag, say, message))


def _page(
    status: dict[str, Any], history: list[dict[str, Any]], tag: str, say: dict[str, str], message: str
) -> Iterator[str]:
    device = status.get("device") or {}
    running = status.get("running")
    name = _text(device.get("product") or "Firmament")
    refresh = f'<meta http-equiv="refresh" content="{REFRESH_S}">' if status.get("state") in BUSY else ""
    yield f'<!doctype html><html lang="{_text(tag)}"><head><meta charset="utf-8">{refresh}'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f'<title>{name}</title><link rel="stylesheet" href="/style.css"></head><body><main><h1>{name}</h1>'
    if running:
        yield f"<p>{_text(say['runs'].format(version=running['version']))}</p>"
    if message in MESSAGES:
        yield f'<p class="message" role="status">{_text(say[message])}</p>'
    if status.get("state") is None:
        yield f'<p class="message">{_text((status.get("error") or {}).get("message", ""))}</p></main></body></html>'
        return
    yield from _offer(status, say)
    yield from _progress(status, say)
    yield from _switch(status, say)
    yield from _history(history, say)
    yield "</main></body></html>"


def _offer(status: dict[str, Any], say: dict[str, str]) -> Iterator[str]:
    offer, consent = status.get("offer"), status.get("consent") or {}
    if offer is None:
        yield f"<p>{_text(say['none'])}</p>"
        return
    yield f'<section lang="{_text(offer["language"])}"><h2>{_text(offer["title"])}</h2>'
    for section in offer["sections"]:
        yield f"<h3>{_text(section['heading'])}</h3><ul>"
        yield "".join(f"<li>{_text(line)}</li>" for line in section["lines"])
        yield "</ul>"
    yield f'<p class="facts">{_text(offer["facts"])}</p>'
    if "mode" in consent:
        is_yes = consent.get("answer") in {"now", "tonight"}
        if consent.get("needs_answer"):
            yield f"<p>{_text(say['silence'])}</p>"
        answers = [("now", "yes"), ("tonight", "")]
        if consent.get("may_postpone"):
            answers.append(("later", ""))
        answers.append(("skip", ""))
        yield _form(say, [("withdraw", "")] if is_yes else answers, "answer")
    yield "</section>"


def _progress(status: dict[str, Any], say: dict[str, str]) -> Iterator[str]:
    attempt = status.get("attempt")
    if not attempt:
        return
    percent = int(status.get("percent") or 0)
    yield f"<section><h2>{_text(say['progress'])}</h2>"
    yield f'<progress max="100" value="{percent}" aria-label="{_text(say["progress"])}">{percent} %</progress>'
    total, done = attempt.get("total_bytes"), attempt.get("done_bytes")
    amount = f", {size(int(done))} / {size(int(total))}" if status.get("state") == "fetching" and total else ""
    yield f"<p>{percent} %{_text(amount)}</p>"
    if status.get("back_in_s"):
        yield f"<p>{_text(say['back'].format(minutes=max(1, -(-int(status['back_in_s']) // 60))))}</p>"
    elif status.get("blocked"):
        yield f"<p>{_text(status['blocked'])}</p>"
    yield "<ol>"
    for step in status.get("steps") or ():
        mark = step["mark"]
        current = ' aria-current="step"' if mark == "now" else ""
        yield f"<li{current}>{MARKS[mark]} {_text(say[step['name']])} ({_text(say[MARK_WORDS[mark]])})</li>"
    yield "</ol></section>"


def _switch(status: dict[str, Any], say: dict[str, str]) -> Iterator[str]:
    is_out = bool((status.get("consent") or {}).get("opted_out"))
    yield f"<section><h2>{_text(say['auto'])}</h2><p>{_text(say['is-out' if is_out else 'is-in'])}</p>"
    if not is_out:
        yield f"<p>{_text(say['risk'])}</p>"
    yield _form(say, [("opt-in" if is_out else "opt-out", "")], "switch") + "</section>"


def _history(history: list[dict[str, Any]], say: dict[str, str]) -> Iterator[str]:
    if not history:
        return
    yield f"<section><h2>{_text(say['history'])}</h2><table>"
    for ended in reversed(history[-MAX_HISTORY:]):
        cells = (ended["at"], ended["release_id"], ended["status"], ended["message"])
        yield "<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in cells) + "</tr>"
    yield "</table></section>"


def _form(say: dict[str, str], answers: list[tuple[str, str]], name: str) -> str:
    field = f"code-{name}"
    buttons = "".join(
        f'<button name="action" value="{action}" class="{kind}">{_text(say[action])}</button>'
        for action, kind in answers
    )
    # The first button of a form is what Enter presses; this one is disabled, so Enter answers nothing.
    guard = '<button name="action" value="none" hidden disabled></button>'
    return (
        f'<form method="post" action="/answer"><label for="{field}">{_text(say["code"])}</label>'
        f'<input id="{field}" name="code" inputmode="numeric" autocomplete="one-time-code" maxlength="6" required>'
        f"{guard}{buttons}</form>"
    )


def _text(value: object) -> str:
    return escape(printable(str(value)), quote=True)
