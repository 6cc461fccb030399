"""Screens of programs: settings, lists, dialogues and dashboards as HTML, shown by headless Chromium.

rng, split ──State (what the screen says)──> HTML ──browser──> picture ──> questions ──> Posed

One browser and one page of it serve all screens of a process.
"""

from __future__ import annotations

import atexit
import io
import os
import random
import shutil
from collections.abc import Callable
from functools import cache
from html import escape
from importlib.util import find_spec
from typing import Any

from PIL import Image

from pumice.data.render import sheet, values
from pumice.data.render.absent import ABSENT
from pumice.data.render.fonts import Split, faces
from pumice.data.render.page import Question
from pumice.data.render.scenes import Posed
from pumice.data.render.sheet import ask, choose
from pumice.types import PumiceError

SIZES = ((448, 448), (560, 448), (672, 448), (360, 640), (672, 560))
NAMES = ("chromium", "chromium-browser", "google-chrome")
STYLES: dict[Split, tuple[str, ...]] = {
    "train": (
        "border-radius:6px;border:1px solid #c8ccd2;background:#fff",
        "border-radius:0;border:2px solid #444;background:#f4f4f4",
        "border-radius:14px;border:0;background:#eef2f8",
    ),
    "heldout": (
        "border-radius:2px;border:0;border-bottom:2px solid #999;background:#fafafa",
        "border-radius:20px;border:1px dashed #888;background:#fff8ee",
    ),
}
"""Looks of fields and cards."""
SWITCHES = (
    "Dark mode|Notifications|Sync|Auto save|Spell check|Location|Bluetooth|Sounds|Backups|Updates|Animations|Cookies|"
    "Read receipts|Wi-Fi only|High contrast|Offline use"
)
BUTTONS = "Save|Cancel|Delete|Send|Export|Import|Print|Share|Refresh|Help|Next|Back|Apply|Reset|Search|Add item|Log out"
COUNTED = "Visitors|Orders|Revenue|Users|Returns|Tickets|Downloads|Errors"
TABS = "Home|Profile|Orders|Reports|Team|Billing|Messages|Calendar|Files|Security|Plans|Support"


def missing() -> str:
    """What to install where there is no browser to draw with, or nothing."""
    if find_spec("playwright") is None:
        return "no playwright: pip install playwright"
    return "" if _chromium() or _own() else f"no browser: apt-get install {NAMES[0]}, or playwright install chromium"


def _chromium() -> str | None:
    return next(filter(None, map(shutil.which, NAMES)), None)


@cache
def _own() -> bool:
    """Whether playwright has brought a browser of its own."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        return os.path.exists(play.chromium.executable_path)  # noqa: PTH110 (a name, not a Path)


_pages: dict[int, tuple[Any, Any, Any]] = {}
"""By process: playwright, browser, page."""


def _page() -> Any:
    """This process's page of a browser, open until `close` or the process's end."""
    from playwright.sync_api import Error, sync_playwright

    process = os.getpid()
    if process not in _pages:
        play = sync_playwright().start()
        try:
            browser = play.chromium.launch(executable_path=_chromium(), args=["--no-sandbox", "--disable-gpu"])
        except Error as error:
            play.stop()
            reason = " ".join(str(error).split())[:160]
            raise PumiceError(f"the browser doesn't start ({reason}): {missing()}") from None
        context = browser.new_context(java_script_enabled=False, offline=True)
        _pages[process] = play, browser, context.new_page()
    return _pages[process][2]


@atexit.register
def close() -> None:
    """End this process's browser. While there is one, nothing else in the thread can use playwright."""
    if found := _pages.pop(os.getpid(), None):
        found[1].close()
        found[0].stop()


def shoot(html: str, size: tuple[int, int]) -> Image.Image:
    """The RGB picture of a page of HTML, of ``size`` or longer, without scripts and without a network.

    Raises:
        PumiceError: the browser doesn't start.
    """
    page = _page()
    page.set_viewport_size({"width": size[0], "height": size[1]})
    page.set_content(html, wait_until="load")
    return Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("RGB")


def screen(rng: random.Random, split: Split) -> Posed:
    """One screen of a program with questions."""
    rng = sheet.stream(rng, f"screen {split}")
    size = rng.choice(SIZES)
    make = rng.choice((settings, inbox, profile, dashboard))
    title, body, questions, absent = make(rng, split)
    tabs: list[str] = rng.sample(TABS.split("|"), rng.randint(3, 4) if size[0] < 500 else rng.randint(3, 5))
    chosen = rng.choice(tabs)
    buttons: list[str] = rng.sample(BUTTONS.split("|"), rng.randint(1, 3))
    html = _whole(rng, split, title, body, tabs, chosen, buttons)
    questions += [
        ask(rng, "screen_title", "What is the title of the screen?|What is this screen called?", title),
        ask(rng, "screen_tab", "Which tab is selected?|Which tab is active?", chosen),
        ask(rng, "screen_buttons", "How many buttons are at the bottom?", str(len(buttons))),
    ]
    other = rng.choice([name for name in BUTTONS.split("|") if name not in buttons])
    there = rng.random() < 0.5
    name = rng.choice(buttons) if there else other
    questions.append(ask(rng, "screen_button", 'Is there a button "{n}"?', "Yes" if there else "No", n=name))
    asked = choose(rng, questions, rng.randint(4, 7)) + (absent if rng.random() < 0.4 else [])
    return Posed((shoot(html, size),), tuple((question, None) for question in asked))


Made = tuple[str, str, list[Question], list[Question]]
"""(title, body in HTML, questions, questions without an answer)."""


def settings(rng: random.Random, split: Split) -> Made:
    """Switches that are on or off."""
    names = rng.sample(SWITCHES.split("|"), rng.randint(3, 6))
    states = {name: rng.random() < 0.5 for name in names}
    rows = "".join(
        f'<div class="row"><span>{name}</span><i class="switch {"on" if on else "off"}"><b></b></i></div>'
        for name, on in states.items()
    )
    out = [ask(rng, "screen_switch", "Is {n} on?|Is {n} switched on?", "Yes" if on else "No", n=name)
           for name, on in states.items()]  # fmt: skip
    out.append(ask(rng, "count", "How many switches are on?", str(sum(states.values()))))
    other = rng.choice([name for name in SWITCHES.split("|") if name not in names])
    return rng.choice(("Settings", "Preferences", "Options")), rows, out, [_lacking(rng, other)]


def inbox(rng: random.Random, split: Split) -> Made:
    """Messages with sender, subject and time; unread ones have a dot."""
    rows, out, senders = "", [], []
    unread = 0
    for _ in range(rng.randint(3, 5)):
        sender, subject = values.person(rng, split), f"{values.word(rng, split)} {values.word(rng, split).lower()}"
        time, new = f"{rng.randint(0, 23):02}:{rng.randint(0, 59):02}", rng.random() < 0.4
        unread += new
        senders.append(sender)
        rows += (
            f'<div class="row card"><span>{"<em></em>" * new}<strong>{escape(sender)}</strong><br>{escape(subject)}'
            f"</span><small>{time}</small></div>"
        )
        out.append(ask(rng, "screen_subject", "What is the subject of the message from {n}?", subject, n=sender))
        out.append(ask(rng, "screen_time", "When did the message from {n} arrive?", time, n=sender))
        out.append(ask(rng, "screen_sender", 'Who sent "{s}"?', sender, s=subject))
    out.append(ask(rng, "count", "How many messages are listed?", str(len(senders))))
    out.append(ask(rng, "count", "How many messages have a dot?", str(unread)))
    question = Question(f"What is the subject of the message from {values.person(rng, split)}?", ABSENT, "absent")
    return rng.choice(("Inbox", "Messages", "Mail")), rows, out, [question]


def profile(rng: random.Random, split: Split) -> Made:
    """Labelled fields that are filled in, or empty."""
    makers: dict[str, Callable[[random.Random, Split], str]] = {
        "Name": values.person, "City": values.city, "Email": values.email, "Phone": values.phone,
        "Company": values.company, "Customer ID": values.code, "Birthday": values.date,
    }  # fmt: skip
    labels = rng.sample(sorted(makers), rng.randint(3, 5))
    filled = {label: makers[label](rng, split) if rng.random() < 0.8 else "" for label in labels}
    rows = "".join(
        f"<label>{label}</label><div class='field'>{escape(value) or '&nbsp;'}</div>" for label, value in filled.items()
    )
    out = [
        ask(rng, "screen_field", "What is the {n}?|What is entered for {n}?", value, n=label)
        for label, value in filled.items()
        if value
    ]
    out.append(ask(rng, "count", "How many fields are empty?", str(sum(not value for value in filled.values()))))
    lacking = [label for label in makers if label not in labels]
    return rng.choice(("Profile", "Account", "Contact details")), rows, out, [_lacking(rng, rng.choice(lacking))]


def dashboard(rng: random.Random, split: Split) -> Made:
    """Cards with a number each, and how it changed."""
    names = rng.sample(COUNTED.split("|"), rng.randint(2, 4))
    rows, out = "", []
    for name in names:
        number, change = f"{rng.randint(3, 99999):,}", rng.choice((-1, 1)) * rng.randint(1, 60)
        sign = "▲" if change > 0 else "▼"
        rows += (
            f'<div class="card tile"><small>{name}</small><h2>{number}</h2><small>{sign} {abs(change)}%</small></div>'
        )
        out.append(ask(rng, "screen_number", "How many {n} are shown?|What number is shown for {n}?", number, n=name))
        way = "up" if change > 0 else "down"
        out.append(ask(rng, "screen_change", "Did {n} go up or down?|{n}: up or down?", way, n=name))
    return rng.choice(("Dashboard", "Overview", "Today")), f'<div class="tiles">{rows}</div>', out, []


def _lacking(rng: random.Random, name: str) -> Question:
    return ask(rng, "absent", "What is the state of {n}?|What does the screen say for {n}?", ABSENT, n=name)


def _whole(
    rng: random.Random, split: Split, title: str, body: str, tabs: list[str], chosen: str, buttons: list[str]
) -> str:
    """The page around a body: head, tabs, buttons, and one of the split's looks."""
    family = rng.choice(faces(split))[0]
    accent = rng.choice(("#1a5fb4", "#26734d", "#a51d2d", "#613583", "#444", "#b35c00"))
    dark = rng.random() < 0.2
    ground, text = ("#1e2126", "#eee") if dark else (rng.choice(("#fff", "#f5f6f8", "#fbf9f4")), "#1c1c20")
    look = rng.choice(STYLES[split])
    look = look.split("background")[0] + "background:#2b2f36" if dark else look
    shown = "".join(f'<span class="tab{" now" if tab == chosen else ""}">{tab}</span>' for tab in tabs)
    pressed = "".join(f'<span class="button">{name}</span>' for name in buttons)
    style = f"""
*{{box-sizing:border-box}} body{{margin:0;font:{rng.randint(14, 16)}px '{family}',sans-serif;background:{ground};
color:{text}}} header{{background:{accent};color:#fff;padding:10px 14px;font-size:1.25em}}
nav{{padding:8px 10px;border-bottom:1px solid #9995}} .tab{{padding:4px 9px;margin-right:2px}}
.now{{border-bottom:3px solid {accent};font-weight:bold}} main{{padding:10px 14px}}
.row{{display:flex;justify-content:space-between;align-items:center;padding:7px 8px;margin:4px 0}}
.card,.field{{{look};padding:7px 10px;margin:4px 0}} label{{display:block;margin-top:8px;opacity:.8}}
.switch{{width:38px;height:20px;border-radius:10px;background:#999;display:inline-block;position:relative}}
.switch b{{position:absolute;top:2px;left:2px;width:16px;height:16px;border-radius:8px;background:#fff}}
.on{{background:{accent}}} .on b{{left:20px}} em{{display:inline-block;width:9px;height:9px;border-radius:5px;
background:{accent};margin-right:6px}} .tiles{{display:grid;grid-template-columns:1fr 1fr;gap:8px}} h2{{margin:4px 0}}
footer{{padding:10px 14px}} .button{{background:{accent};color:#fff;padding:6px 12px;margin-right:8px;
border-radius:4px}}"""
    return (
        f"<!doctype html><meta charset=utf-8><style>{style}</style><header>{title}</header><nav>{shown}</nav>"
        f"<main>{body}</main><footer>{pressed}</footer>"
    )
