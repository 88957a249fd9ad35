"""Why: a page that is right as text may still fail in a browser, or show the wrong action under the pointer."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from evenflow.draw import report_html
from evenflow.search import compare_schedules, each_faster
from evenflow.timeline import Findings
from tests.files.samples import sample_metrics, sample_plan, sample_timelines


@pytest.fixture(scope="module")
def page(browser, tmp_path_factory):
    """A report with everything on it, opened; the browser and the data that stands in it."""
    plan = sample_plan()
    predicted, measured = sample_timelines(plan)
    compared = tuple((own.schedule, own.plan, own.reason) for own in compare_schedules(plan))
    findings = Findings(each_faster(plan, measured), (), compared)
    plan = replace(plan, memory_limit=2 * max(rank.peak_bytes for rank in predicted.ranks))
    file = tmp_path_factory.mktemp("page") / "report.html"
    file.write_text(report_html(plan, predicted, measured, sample_metrics(1000), findings))
    browser.get_log("browser")  # what other pages said
    browser.get(f"file://{file}")
    return browser


def _pixels(page, canvas="lanes"):
    """A canvas as it is once what was asked of it is drawn, two frames on: a busy machine draws late."""
    return page.execute_async_script(
        "const done = arguments[arguments.length - 1];"
        "requestAnimationFrame(() => requestAnimationFrame("
        f"() => done(document.getElementById('{canvas}').toDataURL())))"
    )


def _hover(page, x, y):
    page.execute_script(
        "const c = document.getElementById('lanes'), p = c.getBoundingClientRect();"
        "c.dispatchEvent(new PointerEvent('pointermove',"
        " {clientX: p.left + arguments[0], clientY: p.top + arguments[1], bubbles: true}))",
        x,
        y,
    )
    return page.execute_script("const t = document.getElementById('tip'); return t.hidden ? '' : t.textContent")


def _key(page, key):
    page.execute_script(
        "const c = document.getElementById('lanes'); c.focus();"
        "c.dispatchEvent(new KeyboardEvent('keydown', {key: arguments[0], bubbles: true}))",
        key,
    )


def _island(page):
    return json.loads(page.execute_script("return document.getElementById('timeline').textContent"))


def _place(page, panel, rank, box, share=0.5):
    """Where in the canvas a box is, by the page's own measures: label 62, share 58, heading 34, axis 30."""
    data = _island(page)
    wide, high = page.execute_script(
        "const c = document.getElementById('lanes'); return [c.clientWidth, c.clientHeight]"
    )
    span = max(own["span_s"] for own in data["timelines"])
    own = data["timelines"][panel]["ranks"][rank]
    moment = own["starts"][box] + share * (own["ends"][box] - own["starts"][box])
    ranks, panels = len(data["timelines"][0]["ranks"]), len(data["timelines"])
    lane = ((high - 30) / panels - 34) / ranks
    top = panel * (34 + ranks * lane) + 34 + rank * lane
    return 62 + moment / span * (wide - 120), top + lane / 2


def test_it_loads_without_a_word_on_the_console(page):
    assert [entry for entry in page.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []
    assert page.execute_script("return document.querySelectorAll('h2').length") >= 8
    assert page.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")


@pytest.mark.parametrize(("panel", "rank", "box"), [(0, 0, 0), (0, 2, 5), (1, 3, 4), (1, 1, 9)])
def test_hovering_shows_the_action_there(page, panel, rank, box):
    own = _island(page)["timelines"][panel]
    tip = _hover(page, *_place(page, panel, rank, box))
    assert tip.startswith(f"{own['ranks'][rank]['actions'][box]} · rank {rank}, {own['origin']}")
    assert "starts at" in tip
    assert "takes" in tip


def test_hovering_over_idle_says_who_was_waited_for(page):
    x, y = _place(page, 0, 3, 0, 0.0)
    tip = _hover(page, x - 5, y)
    assert tip.startswith("idle before 3F0 · rank 3, predicted")
    assert "waiting for rank 2 (2F0)" in tip


def test_keys_zoom_move_and_walk(page):
    whole = _pixels(page)
    _key(page, "+")
    closer = _pixels(page)
    assert closer != whole
    _key(page, "ArrowRight")
    assert _pixels(page) != closer
    _key(page, "0")
    _key(page, "Escape")
    page.execute_script(
        "document.getElementById('lanes').dispatchEvent(new PointerEvent('pointerleave', {bubbles: true}))"
    )
    _key(page, "ArrowDown")
    _key(page, ".")
    tip = page.execute_script("return document.getElementById('tip').textContent")
    assert tip.startswith("1")
    assert "rank 1" in tip
    _key(page, "Escape")
    assert page.execute_script("return document.getElementById('tip').hidden")


def test_buttons_and_wheel_zoom(page):
    _key(page, "0")
    whole = _pixels(page)
    page.find_element("css selector", "[data-do=in]").click()
    assert _pixels(page) != whole
    page.find_element("css selector", "[data-do=all]").click()
    page.execute_script(
        "const c = document.getElementById('lanes'), p = c.getBoundingClientRect();"
        "c.dispatchEvent(new WheelEvent('wheel', {deltaY: -50, clientX: p.left + 400, clientY: p.top + 60,"
        " bubbles: true, cancelable: true}))"
    )
    assert _pixels(page) != whole


def test_light_and_dark_differ_and_both_can_be_read(page):
    """Ink against page has at least the contrast that WCAG 2 asks of text (4.5), in both."""

    def contrast():
        colours = page.execute_script("const s = getComputedStyle(document.body); return [s.color, s.backgroundColor]")
        levels = []
        for colour in colours:
            parts = [int(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
            linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
            levels.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])
        return (max(levels) + 0.05) / (min(levels) + 0.05), colours

    seen = []
    for scheme in ("light", "dark"):
        page.execute_cdp_cmd(
            "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        )
        ratio, colours = contrast()
        assert ratio > 4.5
        seen.append((colours, _pixels(page), _pixels(page, "memory")))
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert all(light != dark for light, dark in zip(*seen, strict=True))
