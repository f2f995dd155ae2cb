"""The site that needs nothing but a browser: built, served as plain files, and asked a budget question in Chromium."""

import functools
import http.server
import os
import threading

import pytest

from minglm.errors import InputError
from sim.dashboard import lite

pytestmark = pytest.mark.skipif(os.environ.get("MINGLM_COURSE") != "1", reason="a long walk: make course-check")
ANSWER = ".planner-top .said"


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def site(browser, tmp_path_factory):
    """The address of the built site; its downloads stay in runs/.lite."""
    place = tmp_path_factory.mktemp("lite") / "site"
    try:
        lite.build(place)
    except InputError as err:
        pytest.skip(str(err))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(place)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/planner.html"
    server.shutdown()


def test_the_site_answers_in_the_browser_alone(site, new_page):
    from sim.dashboard import state

    page = new_page()
    page.goto(site, wait_until="commit")
    inside = page.frame_locator("#page")
    inside.locator(ANSWER).wait_for()
    assert inside.locator(ANSWER).inner_text() == state.sentence(state.answer({}))
    inside.locator(".bars .bar b").first.wait_for(state="attached")
    page.wait_for_timeout(4000)  # the page goes to its top and hides the shell around it
    assert inside.locator(ANSWER).is_visible() and not inside.locator(".jp-CodeConsole-input").first.is_visible()
    box = inside.get_by_label("Rent of a chip").first
    box.fill("2-3")
    box.press("Enter")
    want = state.sentence(state.answer({"rent_usd_per_hour": "2-3"}))
    inside.locator(ANSWER, has_text=want[:80]).wait_for()
    assert inside.locator(ANSWER).inner_text() == want
    box.fill("much")
    box.press("Enter")
    inside.locator(".planner .error").wait_for()
    assert inside.locator(ANSWER).inner_text() == want
    assert page.elsewhere == []
