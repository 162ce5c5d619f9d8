"""The page: well formed, self-contained, and true to what the coverage says."""

from __future__ import annotations

import json
import os
import re
import stat
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import pytest

from sagaz_core.errors import UsageError
from sagaz_core.faults.kinds import KINDS
from sagaz_core.model import SagaModel, StepModel
from sagaz_core.prove.coverage import Amount, Coverage, Way
from sagaz_core.prove.discreet import Failure
from sagaz_core.report.graph import graph, standings
from sagaz_core.report.layout import layout
from sagaz_core.report.markup import escape, tag
from sagaz_core.report.page import BLIND, BOTH, CANNOT, EXPLORATION, NOT_TRIED, RAN, TESTS, UNSOUND, marks, page
from sagaz_core.report.text import coverage_lines, notes, percent
from sagaz_core.report.write import check_folder, write_report
from tests.report.wellformed import Page

if TYPE_CHECKING:
    from pathlib import Path

    from sagaz_core.prove.saga_coverage import SagaCoverage

EVIL = '<script>alert("1")</script>&\'\x00\x1b[31m\ud800'


def model(name: str = "order", **edges: str) -> SagaModel:
    """Return a saga of steps with a compensation each; `c="a b"` is step c, which depends on a and b."""
    steps = (StepModel(step, tuple(above.split()), has_compensation=True) for step, above in edges.items())
    return SagaModel(name, tuple(steps))


def chain(name: str = "order") -> SagaModel:
    return model(name, reserve="", charge="reserve", ship="charge")


def failure(plan: str, source: str = "test_a") -> Failure:
    return Failure(
        plan, "ORPHAN", plan.partition("@")[0], "it was left", "undo it", "step  done\n----", "pytest", source
    )


def fill(saga: SagaCoverage, one: Failure) -> None:
    saga.failures[one.plan, one.verdict, one.source] = one


@pytest.fixture
def coverage() -> Coverage:
    made = Coverage()
    saga = made.saga(chain())
    saga.tests = {("reserve", "before"), ("reserve", "after")}
    saga.explored = {("reserve", "after"), ("reserve", "crash"), ("charge", "after")}
    saga.ran = {("reserve", "cancel")}
    saga.blind = {"ship"}
    saga.ways[Way("test_a", "merged", "", 2)] = Amount(4851, 1034)
    fill(saga, failure("charge@after"))
    return made


def test_each_cell_says_what_is_known_of_its_pair(coverage: Coverage) -> None:
    (saga,) = coverage.sagas.values()
    found = marks(saga)
    assert set(found) == {(step, kind) for step in saga.model.names for kind in KINDS}
    for kind, expected in {"before": TESTS, "after": BOTH, "crash": EXPLORATION, "cancel": RAN, "hang": CANNOT}.items():
        assert found["reserve", kind] is expected, kind
    assert found["charge", "after"] is UNSOUND
    assert found["charge", "before"] is NOT_TRIED
    assert found["ship", "before"] is BLIND


def test_each_step_says_how_it_stands(coverage: Coverage) -> None:
    (saga,) = coverage.sagas.values()
    assert {step: stand.state for step, stand in standings(saga).items()} == {
        "reserve": "partly",
        "charge": "failing",
        "ship": "blind",
    }
    saga.blind = set()
    saga.explored |= {pair for pair in saga.applicable if pair[0] == "reserve"}
    assert standings(saga)["reserve"].words == "proved 11/11"
    assert standings(saga)["ship"].words == "not proved 0/11"


def test_a_combination_that_fails_shows_at_its_steps(coverage: Coverage) -> None:
    (saga,) = coverage.sagas.values()
    saga.failures.clear()
    fill(saga, failure("ship@before+reserve@undo-fail"))
    assert saga.unsound == set()
    assert {step for step, stand in standings(saga).items() if stand.state == "failing"} == {"reserve", "ship"}


def test_the_page_is_well_formed_and_fetches_nothing(coverage: Coverage) -> None:
    coverage.saga(chain("refund"))
    parsed = Page(page(coverage))
    assert parsed.errors == []
    assert len(parsed.with_class("graph")) == 2
    assert parsed.texts["h2"] == ["order", "refund"]
    assert "url(http" not in page(coverage)


def test_what_a_color_says_is_said_in_words_too(coverage: Coverage) -> None:
    text = page(coverage)
    for words in ("unsound 0/11", "partly proved 3/11", "effect-blind 0/11"):
        assert words in text
    for shown in (BOTH, TESTS, EXPLORATION, UNSOUND, RAN, NOT_TRIED, BLIND):
        assert f'<span class="said-only">{shown.words}</span>' in text
    assert "cannot have it: its action has no timeout" in text


def test_failures_are_there_with_their_table_and_command(coverage: Coverage) -> None:
    parsed = Page(page(coverage))
    (text,) = parsed.texts["article"]
    for part in ("charge@after ORPHAN: it was left", "undo it", "step  done\n----", "Again: pytest", "found by test_a"):
        assert part in text


def test_names_cannot_become_markup() -> None:
    coverage = Coverage()
    name = EVIL.replace("\x00", "").replace("\x1b[31m", "").replace("\ud800", "").replace(" ", "")
    saga = coverage.saga(model(EVIL, **{name: ""}))
    fill(saga, Failure(f"{name}@after", EVIL, name, EVIL, EVIL, EVIL, EVIL, EVIL, EVIL))
    saga.ways[Way(EVIL, EVIL, EVIL, 1)] = Amount(1, 1)
    coverage.incomplete.append(EVIL)
    text = page(coverage)
    parsed = Page(text)
    assert parsed.errors == []
    assert "<script" not in text
    assert not re.search("[\x00\x1b\ud800]", text)
    assert any("alert" in heading for heading in parsed.texts["h2"])


def test_the_drawing_alone_is_xml(coverage: Coverage) -> None:
    (saga,) = coverage.sagas.values()
    root = ElementTree.fromstring(graph("order", saga, 1))
    boxes = [node for node in root.iter() if node.tag.endswith("}rect")]
    assert len(boxes) == 3
    assert root.attrib["role"] == "img"


def test_a_box_has_no_color_of_its_own_that_the_dark_style_could_not_change(coverage: Coverage) -> None:
    (saga,) = coverage.sagas.values()
    for node in ElementTree.fromstring(graph("order", saga, 1)).iter():
        if node.tag.endswith("}rect"):
            assert not {"fill", "stroke"} & set(node.attrib)
        if "step" in node.attrib.get("class", "").split():
            assert node.attrib["fill"].startswith("#")  # for a drawing that is taken out of its page


def test_an_incomplete_report_says_so_before_all_else(coverage: Coverage) -> None:
    assert "INCOMPLETE" not in page(coverage)
    coverage.incomplete.append("worker gw1 was lost")
    parsed = Page(page(coverage))
    assert parsed.texts["title"][0].startswith("INCOMPLETE")
    assert parsed.texts["li"] == ["worker gw1 was lost"]
    assert parsed.with_class("banner")[0]["role"] == "alert"


def test_a_report_of_no_sagas_says_that() -> None:
    parsed = Page(page(Coverage()))
    assert parsed.errors == []
    assert parsed.texts["p"] == ["No saga was run, and none is named."]


def test_a_chain_is_drawn_as_one_column() -> None:
    where = layout(chain())
    assert [spot.row for spot in where.steps.values()] == [0, 1, 2]
    assert where.columns == 1
    assert len(where.edges) == 2


def test_an_edge_that_another_way_implies_is_not_drawn() -> None:
    where = layout(model(a="", b="a", c="a b"))
    assert len(where.edges) == 2


def test_an_edge_over_several_rows_passes_beside_the_steps_there() -> None:
    where = layout(model(a="", b="a", c="b", far="", d="c far"))
    long = next(edge for edge in where.edges if len(edge) > 2)
    taken = set(where.steps.values())
    assert [spot.row for spot in long] == [0, 1, 2, 3]
    assert not taken & set(long[1:-1])


def test_no_two_steps_share_a_place() -> None:
    edges = {
        f"s{number}": " ".join(f"s{above}" for above in range(number) if (number * above) % 3) for number in range(14)
    }
    where = layout(model(**edges))
    assert len(set(where.steps.values())) == 14
    for name, above in edges.items():
        assert all(where.steps[step].row < where.steps[name].row for step in above.split())


def test_percent_is_a_hundred_only_when_nothing_is_missing() -> None:
    assert percent(199, 200) == "199/200 (99 %)"
    assert percent(200, 200) == "200/200 (100 %)"
    assert percent(0, 0) == "0/0 (0 %)"


def test_lines_have_a_row_a_saga_and_one_for_all(coverage: Coverage) -> None:
    coverage.saga(chain("refund"))
    assert coverage_lines(coverage) == [
        "saga    your tests  exploration  together    unsound",
        "------  ----------  -----------  ----------  -------",
        "order   2/33 (6 %)  2/33 (6 %)   3/33 (9 %)  1",
        "refund  0/33 (0 %)  0/33 (0 %)   0/33 (0 %)",
        "all     2/66 (3 %)  2/66 (3 %)   3/66 (4 %)  1",
        "order: 4,851 of 4,851 plans of up to 2 faults by 1,034 executions",
        "order: 1 pair run by tests and not checked: assert_sound() checks a run",
        "order: effect-blind: ship (no ledger and no world sees what they do)",
        "refund: nothing runs it under a fault",
    ]


def test_the_deepest_exploration_is_the_one_that_is_told(coverage: Coverage) -> None:
    (saga,) = coverage.sagas.values()
    saga.ways[Way("test_b", "merged", "", 1)] = Amount(99, 99)
    saga.ways[Way("test_c", "merged", "", 2)] = Amount(1, 6, 1)
    assert notes(saga)[0] == "4,852 of 4,853 plans of up to 2 faults by 1,040 executions"


def test_both_files_are_written_and_can_be_read(coverage: Coverage, tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    check_folder(folder, "DIR")
    write_report(folder, coverage)
    write_report(folder, coverage)  # over the old ones
    assert sorted(path.name for path in folder.iterdir()) == ["index.html", "sagaz-report.json"]
    data = json.loads((folder / "sagaz-report.json").read_text(encoding="utf-8"))
    assert Coverage.from_json(data).to_json() == coverage.to_json()
    assert Page((folder / "index.html").read_text(encoding="utf-8")).errors == []
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE((folder / "index.html").stat().st_mode) == 0o666 & ~mask


def test_a_write_that_fails_leaves_the_old_report(
    coverage: Coverage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_report(tmp_path, coverage)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        write_report(tmp_path, Coverage())
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_folder_that_cannot_be_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "dir" / "index.html").mkdir(parents=True)
    for path, why in (
        ("file", "File exists"),
        ("file/below", "Not a directory"),
        ("dir", "index.html in it is a folder"),
    ):
        with pytest.raises(UsageError, match=why) as caught:
            check_folder(tmp_path / path, "--sagaz-report")
        assert str(caught.value).startswith("--sagaz-report ")
        assert "\n" not in str(caught.value)


def test_elements_escape_what_they_are_given() -> None:
    assert tag("p", "<b>", tag("i", "&"), class_='"x"', aria_label="y") == (
        '<p class="&quot;x&quot;" aria-label="y">&lt;b&gt;<i>&amp;</i></p>'
    )
    assert escape("\x00a\tb\n") == "\ufffda\tb\n"
