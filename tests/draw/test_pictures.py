"""Why: a report goes to people who have nothing else: it must be whole, safe to open, and right."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from html.parser import HTMLParser
from math import nan

import pytest

from evenflow.draw import report_html, timeline_svg
from evenflow.draw.curve import curve_svg
from evenflow.draw.island import script_json
from evenflow.errors import InputError
from evenflow.timeline import waits
from tests.files.samples import sample_metrics, sample_plan, sample_timelines

HOSTILE = "</script><script>alert(\"1\")</script><img src=x onerror=alert(1)> $title ${data} & 'quote'"


class Page(HTMLParser):
    """Tags in order, and the text inside each script and heading."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts, self._open = [], {}, None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._open = dict(attrs).get("id") or tag

    def handle_data(self, data):
        self.texts[self._open] = self.texts.get(self._open, "") + data

    def handle_endtag(self, tag):
        self._open = None


@pytest.fixture(scope="module")
def report():
    plan = sample_plan()
    predicted, measured = sample_timelines(plan)
    return plan, predicted, measured, report_html(plan, predicted, measured, sample_metrics(30))


def test_the_island_holds_both_timelines(report):
    _, predicted, measured, text = report
    data = json.loads(Page(text).texts["timeline"])
    assert [own["origin"] for own in data["timelines"]] == ["predicted", "measured"]
    for own, timeline in zip(data["timelines"], (predicted, measured), strict=True):
        assert own["step_s"] == pytest.approx(timeline.step_s, abs=1e-8)
        assert min(rank["begin_s"] for rank in own["ranks"]) == 0
        for rank, truth in zip(own["ranks"], timeline.ranks, strict=True):
            assert len(rank["actions"]) == len(rank["starts"]) == len(rank["ends"]) == 2 * 8 + 2
            assert rank["actions"][-2:] == ["NORM", "STEP"]
            busy = sum(
                end - start
                for token, start, end in zip(rank["actions"], rank["starts"], rank["ends"], strict=True)
                if re.fullmatch(r"\d+[FB]\d+", token)
            )
            assert busy == pytest.approx(truth.busy_s, abs=1e-6)


def test_the_island_says_who_was_waited_for(report):
    _, predicted, _, text = report
    data = json.loads(Page(text).texts["timeline"])
    for number, rank in enumerate(data["timelines"][0]["ranks"]):
        told = sum(sum(parts[:-3]) for parts in rank["waits"].values())
        assert told == pytest.approx(sum(wait.seconds for wait in waits(predicted)[number]), abs=1e-6)
    first = data["timelines"][0]["ranks"][3]
    assert first["actions"][0] == "3F0"
    assert first["waits"]["0"][0] > 0
    assert first["waits"]["0"][-3:-1] == [2, "2F0"]
    assert first["waits"]["0"][-1] in ("rank 0's forward of stage 0", "rank 1's forward of stage 1")


def test_the_page_says_the_main_figures(report):
    plan, predicted, measured, text = report
    for figure in (predicted.step_s, measured.step_s):
        assert f"{figure:.2f} s" in text or f"{figure * 1e3:.0f} ms" in text
    assert "+10.0%" in text
    assert "0-2: embedding + 2 blocks" in text
    assert "model.embed_tokens, model.layers.1" in text
    for note in plan.notes:
        assert note in text
    assert "The run, 30 steps" in text


def test_the_page_needs_no_network(report):
    links = set(re.findall(r"https?://[^\s\"'<>)]*", report[-1]))
    assert links <= {"http://www.w3.org/2000/svg"}
    assert not [tag for tag, attrs in Page(report[-1]).tags if "src" in attrs or "href" in attrs]
    assert "default-src 'none'" in report[-1]


def test_hostile_names_stay_text():
    plan = replace(sample_plan(name=HOSTILE), cluster=HOSTILE, notes=(HOSTILE,), costs={HOSTILE: "assumed"})
    plan = replace(plan, layers=tuple(replace(layer, name=HOSTILE) for layer in plan.layers))
    predicted, measured = sample_timelines(plan)
    page = Page(report_html(plan, predicted, measured, ()))
    assert [tag for tag, _ in page.tags].count("script") == 2
    assert "img" not in [tag for tag, _ in page.tags]
    assert page.texts["h1"] == HOSTILE
    assert json.loads(page.texts["timeline"])["timelines"]


def test_a_plan_that_never_ran_is_a_page_too():
    plan = sample_plan(1)
    predicted, _ = sample_timelines(plan)
    text = report_html(plan, predicted, None, ())
    assert len(json.loads(Page(text).texts["timeline"])["timelines"]) == 1
    assert "measured" not in re.sub(r"<script.*?</script>|<style.*?</style>", "", text, flags=re.S).replace(
        "link measured", ""
    )
    assert "The run" not in text


def test_a_large_report_stays_small():
    plan = sample_plan(16, 64, 40)
    text = report_html(plan, *sample_timelines(plan), sample_metrics(20_000))
    assert len(text.encode()) < 2_000_000


def test_a_diverged_loss_leaves_a_gap():
    svg = curve_svg([(1, 3.0), (2, 2.0), (3, nan), (4, 5.0), (5, 4.0), (6, nan), (7, 1.0)], "loss", str)
    assert svg.count("<polyline") == 2
    assert svg.count("<circle") == 1
    assert "nan" not in re.sub(r"<title>.*?</title>|aria-label=\"[^\"]*\"", "", svg)
    ElementTree.fromstring(svg)
    ElementTree.fromstring(curve_svg([(1, nan)], "loss", str))
    ElementTree.fromstring(curve_svg([(5, 2.0)], "loss", str))


def test_a_curve_flat_to_its_last_bit_is_drawn():
    svg = curve_svg([(1, 1.0), (2, 1.0000000000000002), (3, 1.0)], "loss", str)
    assert 1 < svg.count('class="grid"') < 12
    ElementTree.fromstring(curve_svg([(1, -1e60), (2, 1e60)], "loss", str))


def test_the_picture_has_a_box_for_each_action():
    predicted, measured = sample_timelines(sample_plan())
    root = ElementTree.fromstring(timeline_svg([predicted, measured]))
    kinds = [node.get("class") for node in root.iter("{http://www.w3.org/2000/svg}rect")]
    assert kinds.count("f") == kinds.count("b") == 2 * 4 * 8 + 1  # and one in the legend
    assert kinds.count("o") == 2 * 4 * 2 + 1
    words = [node.text for node in root.iter("{http://www.w3.org/2000/svg}text")]
    assert words.count("rank 3") == 2
    assert "Predicted" in words
    assert "Measured" in words


def test_boxes_stand_where_their_time_says():
    predicted, measured = sample_timelines(sample_plan())
    root = ElementTree.fromstring(timeline_svg([predicted, measured]))
    lanes = [node for node in root.iter("{http://www.w3.org/2000/svg}rect") if node.get("class") == "l"][1:]
    ratio = float(lanes[4].get("width")) / float(lanes[0].get("width"))
    assert ratio == pytest.approx(1.1, abs=0.01)  # one scale for both, and the measured step is a tenth longer


def test_a_picture_of_nothing_is_refused():
    with pytest.raises(InputError, match="no timeline to draw"):
        timeline_svg([])
    with pytest.raises(InputError, match="320 or more would do"):
        timeline_svg([sample_timelines(sample_plan())[0]], width=100)


def test_an_island_cannot_end_its_script():
    text = script_json({"name": HOSTILE, "lines": "\u2028<!--"})
    assert not set(text) & set("<>&\u2028")
    assert json.loads(text)["name"] == HOSTILE
