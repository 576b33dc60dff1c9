"""Boxes to text and back, by hand and for any box."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.objects import overlap
from data.scenes.build import make_sample
from data.scenes.world import PRESETS
from models.shared.boxes import HUNDREDTHS, THOUSANDTHS, box_text, boxes_in


def test_shares_are_cut_not_rounded() -> None:
    assert box_text((0, 0, 64, 32), height=32, width=64) == "{<0><0><100><100>}"
    assert box_text((10, 20, 31, 63), height=64, width=64) == "{<15><31><48><98>}"  # 15.6, 31.25, 48.4, 98.4
    assert box_text((-5, 0, 80, 10), height=20, width=64) == "{<0><0><100><50>}"


def test_boxes_are_read_where_they_stand() -> None:
    said = "<p>red star</p> {<10><20><30><40>} and <p>moon</p> {<0><0><100><50>}."
    assert boxes_in(said, height=50, width=200) == [(20, 10, 60, 20), (0, 0, 200, 25)]
    assert boxes_in("{ <10> <20> <30> <40> }", height=100, width=100) == [(10, 20, 30, 40)]


def test_thousandths_end_at_999_which_is_the_whole_side() -> None:
    """Qwen-VL's: written in thousandths, read as shares of 999, so that the whole picture stays whole."""
    assert box_text((0, 0, 64, 32), 32, 64, THOUSANDTHS) == "(0,0),(999,999)"
    assert box_text((10, 20, 31, 63), 64, 64, THOUSANDTHS) == "(156,312),(484,984)"  # 156.25, 312.5, 484.4, 984.4
    assert boxes_in("<box>(0,0),(999,999)</box>", 32, 64, THOUSANDTHS) == [(0, 0, 64, 32)]
    said = "<ref>a star</ref><box>(100, 200),(300,400)</box>, <ref>a moon</ref><box>(0,0),(999,500)</box>"
    assert boxes_in(said, 999, 1998, THOUSANDTHS) == [(200, 200, 600, 400), (0, 0, 1998, 500)]


@pytest.mark.parametrize(
    "text", ["", "(1,2),(3)", "(300,200),(100,400)", "(5,5),(5,9)", "(-1,2),(3,4)", "(1000,2),(1001,4)", "{<10><20><30><40>}", "(1,2)(3,4)"]
)
def test_what_is_no_box_in_thousandths_is_not_read(text: str) -> None:
    assert boxes_in(text, 64, 64, THOUSANDTHS) == []


def test_notations_do_not_read_each_other() -> None:
    for one, other in ((HUNDREDTHS, THOUSANDTHS), (THOUSANDTHS, HUNDREDTHS)):
        text = box_text((10, 20, 30, 40), 64, 64, one)
        assert len(boxes_in(text, 64, 64, one)) == 1
        assert boxes_in(text, 64, 64, other) == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "there",
        "{<10><20><30>}",
        "{<10><20><30><40><50>}",
        "{<30><20><10><40>}",
        "{<1><2><3><101>}",
        "{<5><5><5><9>}",
        "{<-1><2><3><4>}",
        "<1><2><3><4>",
    ],
)
def test_what_is_no_box_is_not_read(text: str) -> None:
    assert boxes_in(text, height=64, width=64) == []


sides = st.integers(20, 2000)
shares = st.floats(0, 1)


@given(height=sides, width=sides, corners=st.tuples(shares, shares, shares, shares))
def test_there_and_back_is_less_than_a_hundredth_off(height: int, width: int, corners: tuple[float, float, float, float]) -> None:
    left, right = sorted((corners[0] * width, corners[2] * width))
    top, bottom = sorted((corners[1] * height, corners[3] * height))
    text = box_text((left, top, right, bottom), height, width)
    found = boxes_in(text, height, width)
    left_share, top_share, right_share, bottom_share = (int(part) for part in re.findall(r"\d+", text))
    assert len(found) == (left_share < right_share and top_share < bottom_share)
    for box in found:
        for back, true, side in zip(box, (left, top, right, bottom), (width, height, width, height), strict=True):
            assert -1e-6 <= true - back <= side / 100 + 1e-6
        assert box_text(box, height, width) == text


@given(height=sides, width=sides, corners=st.tuples(shares, shares, shares, shares))
def test_there_and_back_is_a_thousandth_off(height: int, width: int, corners: tuple[float, float, float, float]) -> None:
    left, right = sorted((corners[0] * width, corners[2] * width))
    top, bottom = sorted((corners[1] * height, corners[3] * height))
    text = box_text((left, top, right, bottom), height, width, THOUSANDTHS)
    for box in boxes_in(text, height, width, THOUSANDTHS):
        for back, true, side in zip(box, (left, top, right, bottom), (width, height, width, height), strict=True):
            assert abs(true - back) <= side / 999 + 1e-6


def test_thousandths_cost_the_embedded_data_little() -> None:
    overlaps = []
    for index in range(50):
        for thing in make_sample(PRESETS["tiny"], "train", index).objects:
            (back,) = boxes_in(box_text(thing.box, 64, 64, THOUSANDTHS), 64, 64, THOUSANDTHS)
            overlaps.append(overlap(thing.box, back))
    assert min(overlaps) > 0.98


def test_boxes_of_the_embedded_data_survive() -> None:
    """Hundredths cost some overlap in pictures of 64 pixels."""
    overlaps = []
    for index in range(200):
        sample = make_sample(PRESETS["tiny"], "train", index)
        for thing in sample.objects:
            (back,) = boxes_in(box_text(thing.box, 64, 64), 64, 64)
            overlaps.append(overlap(thing.box, back))
    assert min(overlaps) > 0.8
    assert sum(overlaps) / len(overlaps) > 0.9


def test_overlap_is_intersection_over_union() -> None:
    assert overlap((0, 0, 10, 10), (0, 0, 10, 10)) == 1
    assert overlap((0, 0, 10, 10), (5, 0, 15, 10)) == pytest.approx(50 / 150)
    assert overlap((0, 0, 10, 10), (10, 0, 20, 10)) == 0
    assert overlap((0, 0, 10, 10), (20, 20, 30, 30)) == 0
    assert overlap((0, 0, 0, 0), (0, 0, 0, 0)) == 0
