"""The server's page in a real browser, on the real server with the embedded model."""

from __future__ import annotations

import json
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from guardrail.server.app import create_app
from guardrail.server.settings import Settings
from tests.browser import Page
from tests.served import running

HARMFUL = "How do I build a pipe bomb at home without anybody noticing?"
TRAINS = """format: 1
id: trains-only
name: Trains only
categories:
  - code: T1
    name: <b id="planted">Trains</b>
    definition: Anything about trains, railways and timetables.
"""


@pytest.fixture(scope="module")
def origin() -> Iterator[str]:
    with running(create_app(Settings())) as url:
        yield url


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("there is no Chromium on this machine")
    page = Page(chromium, tmp_path_factory.mktemp("profile"))
    yield page
    page.close()


@pytest.fixture
def page(browser: Page, origin: str) -> Iterator[Page]:
    """The page, freshly opened. No test may leave errors in the console or ask anybody but the server."""
    browser.call("Emulation.setDeviceMetricsOverride", width=1300, height=900, deviceScaleFactor=1, mobile=False)
    browser.call("Page.navigate", url="about:blank")
    browser.events.clear()
    browser.call("Page.navigate", url=origin)
    browser.wait("document.readyState === 'complete' && document.querySelectorAll('#taxonomy option').length > 1")
    yield browser
    # A refused request is an entry as well, but not an error of the page.
    assert [e for e in browser.entries() if e.get("source") != "network"] == []
    asked = [e["params"]["request"]["url"] for e in browser.events if e["method"] == "Network.requestWillBeSent"]
    assert len(asked) >= 2
    assert [url for url in asked if not url.startswith(f"{origin}/")] == []


def test_the_policy_of_the_page_is_in_force(page: Page, origin: str) -> None:
    with urllib.request.urlopen(origin) as response:
        policy = response.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    page.get("document.body.setAttribute('style', 'color: red')")
    assert any("style" in entry["text"] for entry in page.entries())
    page.events[:] = [e for e in page.events if e["method"] != "Log.entryAdded"]


def test_a_text_is_judged(page: Page) -> None:
    assert page.judge().startswith("Safe")
    assert ", below the threshold 0." in page.text("#score-said")
    page.click("#examples button:nth-child(2)")
    assert page.get("!document.querySelector('#stale').hidden")
    assert page.judge().startswith("Unsafe")
    assert "at or above the threshold" in page.text("#score-said")
    scores = page.get("[...document.querySelectorAll('#categories td.n')].map((e) => Number(e.innerText))")
    assert len(scores) == 14
    assert scores == sorted(scores, reverse=True)
    first = page.text("#categories tbody tr")
    assert first.startswith("G")
    assert first.endswith("flagged")
    assert HARMFUL in page.text("#prompt-text")
    response = json.loads(page.text("#response-text"))
    assert response["decision"]["verdict"] == "unsafe"
    assert response["decision"]["model"] in page.text("#facts")


def test_an_answer_is_judged_in_its_conversation(page: Page) -> None:
    page.put("#turns textarea", "How do I get into a house without a key?")
    page.click("#add")
    assert page.get("document.activeElement.getAttribute('aria-label')") == "Text of turn 2"
    page.call("Input.insertText", text="Call a locksmith, and show that you live there.")
    assert "The assistant's last turn" in page.judge()
    page.click("#turns fieldset:nth-child(2) button")
    assert page.get("document.activeElement.getAttribute('aria-label')") == "Text of turn 1"
    assert "The user's last turn" in page.judge()


def test_the_taxonomy_is_edited_in_place(page: Page) -> None:
    page.open_all()
    page.put("#yaml", TRAINS)
    page.judge()
    assert "trains-only@" in page.text("#facts")
    assert page.text("#categories tbody tr").startswith('T1 <b id="planted">Trains</b>')
    assert page.get("document.querySelector('#planted')") is None
    page.click("#reset")
    page.judge()
    assert "default@" in page.text("#facts")


def test_a_broken_taxonomy_shows_the_servers_error(page: Page) -> None:
    page.judge()
    page.put("#yaml", TRAINS.replace("code: T1", "cod: T1"))
    verdict = page.judge()
    assert verdict.startswith("Error")
    assert "cod" in verdict
    assert page.get("document.querySelector('#judgement').hidden")


def test_the_curl_command_does_the_same(page: Page) -> None:
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("there is no curl on this machine")
    text = 'It\'s "$HOME" and `ls`\n\\n – all quoted?'
    page.put("#turns textarea", text)
    page.put("#key", "gr-key")
    page.judge()
    command = page.text("#curl-text")
    assert "gr-key" not in command
    environment = {"GUARDRAIL_KEY": "gr-key", "HOME": "/nowhere", "PATH": str(Path(curl).parent)}
    done = subprocess.run(["/bin/sh", "-c", command], capture_output=True, check=True, env=environment)
    shown = json.loads(page.text("#response-text"))
    assert json.loads(done.stdout)["prompt"] == shown["prompt"]
    page.put("#key", "")


def test_a_withheld_stream_is_cut_before_the_harmful_sentence(page: Page) -> None:
    harmful = "shoot him in the head"
    assert harmful in page.get("document.querySelector('#story').value")
    watch = "new MutationObserver(() => { leaked ||= e.textContent.includes(harmful); }).observe(e, {childList: true});"
    page.on("#reader", f"window.leaked = false; const harmful = {json.dumps(harmful)}; {watch}")
    ended = page.stream("withhold")
    assert ended.startswith("Cut by the guard")
    assert "G1 Violent Crimes" in ended
    assert "content_filter" in ended
    assert harmful in page.text("#model")
    assert page.get("leaked") is False
    said = page.text("#reader").rstrip()
    assert said.startswith("An old woman")
    assert page.text("#model").startswith(said)


def test_a_rewound_stream_is_taken_back_and_a_whole_one_blocked(page: Page) -> None:
    assert page.stream("rewind").startswith("Cut and taken back")
    assert page.text("#reader").startswith("Taken back by the guard:")
    assert page.text("#reader del").startswith("An old woman")
    page.put("#story", "Buy a gun, wait behind his car at night and shoot him in the head before he can scream.")
    assert page.stream("end").startswith("Blocked before anything left")
    assert page.text("#reader") == "Nothing left the guard."
    page.put("#story", "An old woman kept a small garden behind the station.")
    assert page.stream("withhold").startswith("Passed whole")


def test_the_keyboard_is_enough(page: Page) -> None:
    page.tab_to("#turns textarea")
    page.get("document.activeElement.select()")
    page.call("Input.insertText", text=HARMFUL)
    page.tab_to("#submit")
    page.key("Enter", 13, "\r")
    page.wait("document.querySelector('#verdict').innerText.startsWith('Unsafe')")
    page.tab_to("#sheets summary")
    page.key("Enter", 13, "\r")
    page.wait("document.querySelector('#sheets details').open")
    page.tab_to("#stop, #start")


@pytest.mark.parametrize("width", [380, 400, 1400, 1600])
def test_nothing_sticks_out_of_the_window(page: Page, width: int) -> None:
    page.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
    page.click("#examples button:nth-child(3)")
    page.judge()
    page.stream("rewind")
    page.open_all()
    outside = page.get(
        "[...document.querySelectorAll('body *')].filter((e) => e.getBoundingClientRect().right > innerWidth + 1)"
        ".map((e) => e.outerHTML.slice(0, 80))"
    )
    assert outside == []
    assert page.get("document.documentElement.scrollWidth") <= width


def test_every_control_has_a_name(page: Page) -> None:
    page.judge()
    page.click("#add")
    page.open_all()
    nodes = page.call("Accessibility.getFullAXTree")["nodes"]
    controls = {"button", "textbox", "combobox", "spinbutton", "region", "table", "DisclosureTriangle"}
    found = [(n["role"]["value"], n.get("name", {}).get("value")) for n in nodes if not n["ignored"]]
    assert controls <= {role for role, _ in found}
    assert [role for role, name in found if role in controls and not name] == []
    levels = page.get("[...document.querySelectorAll('h1,h2,h3,h4')].map((e) => Number(e.tagName[1]))")
    assert levels[0] == 1
    assert all(later - earlier <= 1 for earlier, later in pairwise(levels))
