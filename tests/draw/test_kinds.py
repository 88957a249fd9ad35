"""Why: a schedule in halves, or of several stages a rank, is only understood if its boxes can be told apart."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from importlib.resources import files
from itertools import combinations

import pytest

from evenflow.cost import LinkCost, RankCost, StageCost, StageMemory
from evenflow.draw import timeline_svg
from evenflow.draw.boxes import boxes
from evenflow.draw.html import page_legend
from evenflow.program import build_program, default_stage_rank, even_work
from evenflow.simulate import Hardware, simulate

SVG = "{http://www.w3.org/2000/svg}"
P, M = 3, 6


def timeline_of(schedule, stages_per_rank=1):
    """F, I and W of a rank's stages take a second each for a microbatch, a transfer 0.1 s."""
    stage_rank = default_stage_rank(schedule, P, stages_per_rank)
    stages = len(stage_rank)
    share = 1.0 / stages_per_rank
    costs = (StageCost(share, 2 * share, share, share),) * stages
    work = replace(even_work(stage_rank, M), costs=costs, transfer_s=(0.1,) * (stages - 1))
    memory = (StageMemory(0, 0, 0, 0, 1, 1, 0, 0),) * stages
    hardware = Hardware(costs, (RankCost(0.2, 1.0),) * P, LinkCost(0.1, float("inf")), memory)
    return simulate(build_program(schedule, stage_rank, M, work), hardware)


def drawn(timelines, width=960):
    """Classes of the picture's rectangles, and its texts."""
    root = ElementTree.fromstring(timeline_svg(timelines, width))
    return [own.get("class") for own in root.iter(f"{SVG}rect")], [own.text for own in root.iter(f"{SVG}text")]


def lightness(colour):
    """CIE L*: what is left of a colour in greyscale."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 116 * sum(by * part for by, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True)) ** (1 / 3) - 16


def test_halves_are_boxes_of_their_own_and_in_the_legend():
    kinds, words = drawn([timeline_of("zb-h1")])
    assert kinds.count("f") == kinds.count("i") == kinds.count("w") == P * M + 1  # and one in the legend
    assert "backward, input half" in words
    assert "backward, weight half" in words
    assert "backward" not in words
    assert "b" not in kinds


def test_a_legend_has_only_what_occurs():
    whole, halves = timeline_of("1f1b"), timeline_of("zb-h1")
    kinds, words = drawn([whole])
    assert not {"i", "w", "k kl"} & set(kinds)
    assert "backward" in words
    words = re.findall(r"</span>([^<]+)</span>", page_legend([whole]))
    assert words == ["forward", "backward", "norm and update", "idle", "critical path"]
    assert re.findall('class="swatch (\\w+)"', page_legend([halves])) == ["f", "i", "w", "o", "idle", "path"]
    assert re.findall('class="swatch (\\w+)"', page_legend([whole, halves])) == [
        "f",
        "b",
        "i",
        "w",
        "o",
        "idle",
        "path",
    ]


def test_later_stages_of_a_rank_have_a_band():
    kinds, words = drawn([timeline_of("zb-v", 2)])
    assert kinds.count("k kf") == kinds.count("k ki") == kinds.count("k kw") == P * M
    assert kinds.count("f") == 2 * P * M + 1
    assert "first to last stage of a rank" in words
    assert "bands" in page_legend([timeline_of("zb-v", 2)])
    kinds, words = drawn([timeline_of("zb-h1")])
    assert not [kind for kind in kinds if kind.startswith("k")]
    assert "first to last stage of a rank" not in words


def test_a_band_is_the_thicker_the_later_the_stage():
    timeline = timeline_of("interleaved", 3)
    found = {(box.event.action.stage, box.band) for box in boxes(timeline, 1) if box.number}
    assert found == {(1, 0.0), (4, 0.5), (7, 1.0)}
    assert {box.band for box in boxes(timeline, 1) if not box.number} == {0.0}


@pytest.mark.parametrize("width", [320, 500, 960])
def test_a_legend_takes_as_many_rows_as_it_needs(width):
    root = ElementTree.fromstring(timeline_svg([timeline_of("zb-v", 2)], width))
    texts = list(root.iter(f"{SVG}text"))
    heading = next(float(own.get("y")) for own in texts if own.text == "Predicted")
    legend = [own for own in texts if float(own.get("y")) < heading]
    assert len(legend) == 6
    assert all(float(own.get("x")) + 6.6 * len(own.text) <= width for own in legend)
    assert len({(own.get("x"), own.get("y")) for own in legend}) == 6
    assert max(float(own.get("y")) for own in legend) < heading - 20


def test_kinds_differ_without_colour_and_alike_in_picture_and_page():
    css = (files("evenflow.draw") / "assets" / "report.css").read_text(encoding="utf-8")
    svg = timeline_svg([timeline_of("1f1b")])
    names = {"f": "forward", "i": "input", "b": "backward", "w": "weight"}
    fills = {kind: re.search(rf"\.{kind}{{fill:(#\w{{6}})}}", svg).group(1) for kind in names}
    for kind, name in names.items():
        assert re.findall(rf"--{name}: (#\w{{6}});", css) == [fills[kind]]
    for one, other in combinations(fills.values(), 2):
        assert abs(lightness(one) - lightness(other)) > 10
