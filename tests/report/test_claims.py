"""The page of the claims: every number in its table, text that stays text, figures of their own."""

import html.parser
import math
import re
from xml.etree import ElementTree

import pytest

from attnconv.report import claims

SVG = "{http://www.w3.org/2000/svg}"
ABOUT = {"device": "cpu: a processor, 2 cores", "jax": "0.10.2"}


def part(what, estimate, low, high, verdict, above=None, below=None):
    ends = {"estimate": estimate, "low": low, "high": high, "above": above, "below": below}
    twice = [estimate + 2 * (end - estimate) for end in (low, high)]
    return {"what": what, "verdict": verdict, "widened": twice, **ends}


def line(name, x, y, half=None):
    low, high = (None, None) if half is None else ([v - half for v in y], [v + half for v in y])
    return {"name": name, "x": x, "y": y, "low": low, "high": high}


def result(name="reach", **changes):
    series = [line("cnn", [1, 10, 100], [90.0, 50.0, 10.0], 2.0)]
    series.append(line("attention", [1, 10, 100], [99.0, 98.0, 97.0]))
    return {
        "name": name,
        "statement": "A window ends.",
        "source": "Somebody 2020, section 3: 99.8 %",
        "criterion": "Above 95 %.",
        "verdict": "not decided",
        "parts": [
            part("accuracy, %", 97.123, 96.5, 98.04, "holds", above=95.0),
            part("error", 1.25e-7, 1.25e-7, 1.25e-7, "holds", below=1e-5),
            part("ratio", 1.1, 0.9, 1.3, "not decided", above=1.0, below=2.0),
        ],
        "header": ["model", "accuracy, %"],
        "rows": [["cnn", "97.1 [96.5, 98.0]"], ["attention", "99.0 [98.0, 99.9]"]],
        "figure": {"x": "distance", "y": "accuracy, %", "series": series},
        "setting": "Generated, 3 seeds.",
        "seconds": 123.4,
        "seed": 0,
        "environment": ABOUT,
        **changes,
    }


HOSTILE = "<script>a|b*c_d`e#f</script> [g](h) $x_1$ & ~"


def hostile():
    """Markup wherever a text may stand."""
    figure = {"x": HOSTILE, "y": HOSTILE, "series": [line(HOSTILE, [HOSTILE, "b"], [1.0, 2.0])]}
    figure["series"].append(line("other", ["b", "c"], [3.0, 4.0], 0.5))
    keys = ("statement", "source", "criterion", "setting")
    return result(
        "hostile",
        **dict.fromkeys(keys, HOSTILE),
        parts=[part(HOSTILE, 1.0, 0.0, 2.0, "holds", above=-1.0)],
        header=[HOSTILE, "b"],
        rows=[[HOSTILE, "1"]],
        figure=figure,
    )


class Reader(html.parser.HTMLParser):
    """What a page says by element, what it loads, and whether its elements nest."""

    VOID = ("meta", "link", "br", "img")

    def __init__(self, text):
        super().__init__()
        self.open, self.loads, self.tables, self.words, self.tags = [], [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.loads += [value for name, value in attributes if re.search("src|href|data", name)]
        self.tables += [[]] if tag == "table" else []
        if tag == "tr":
            self.tables[-1].append([])
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        self.open.pop()

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.tables[-1][-1].append(data)
        elif self.open and self.open[-1] != "style":
            self.words.append(data)


def texts(path):
    return ["".join(element.itertext()) for element in ElementTree.parse(path).iter(f"{SVG}text")]


# --- tables ---


def test_a_row_for_each_claim():
    found = [result(), result("scan", verdict="holds", seconds=499.6)]
    assert claims.verdicts(found) == (
        ["claim", "verdict", "statement", "seconds"],
        [
            ["reach", "not decided", "A window ends.", "123"],
            ["scan", "holds", "A window ends.", "500"],
        ],
    )


def test_a_row_for_each_quantity_with_what_is_claimed_of_it():
    header, rows = claims.parts(result())
    assert header == ["quantity", "measured", "widened", "claimed", "verdict"]
    assert rows == [
        ["accuracy, %", "97.1 [96.5, 98]", "[95.9, 99]", "above 95", "holds"],
        ["error", "1.25e-07", "-", "below 1e-05", "holds"],
        ["ratio", "1.1 [0.9, 1.3]", "[0.7, 1.5]", "above 1 and below 2", "not decided"],
    ]


def test_a_bound_of_zero_is_a_bound():
    _, rows = claims.parts(result(parts=[part("gap", 3.0, 1.0, 5.0, "holds", above=0.0)]))
    assert rows == [["gap", "3 [1, 5]", "[-1, 7]", "above 0", "holds"]]


def test_markdown_holds_the_verdicts_the_quantities_and_what_was_measured():
    written = claims.markdown([result(), result("scan")])
    lines = written.splitlines()
    assert lines[0] == "# What the field claims, measured here"
    assert "cpu: a processor, 2 cores, JAX 0.10.2" in written
    assert "in 4 minutes in all" in written
    assert "| reach | not decided | A window ends. | 123 |" in lines
    assert "## reach: not decided" in lines
    assert "![accuracy, % against distance: cnn, attention](claims-scan.svg)" in lines
    assert lines.count("| accuracy, % | 97.1 [96.5, 98] | [95.9, 99] | above 95 | holds |") == 2
    assert lines.count("| cnn | 97.1 [96.5, 98.0] |") == 2
    for text in ("Source: Somebody 2020, section 3: 99.8 %", "Criterion: Above 95 %."):
        assert lines.count(text) == 2
    assert "Setting: Generated, 3 seeds." in lines
    assert written.endswith("\n") and not written.endswith("\n\n")


def test_markdown_keeps_markup_as_text_and_its_tables_whole():
    written = claims.markdown([hostile()])
    assert not re.search(r"(?<!\\)<script", written)
    for mark in "`*_|~":
        inside = [text for text in written.splitlines() if "script" in text]
        assert inside and all(
            not re.search(rf"(?<!\\)\{mark}", text.strip("| ").replace(" | ", " "))
            for text in inside
        )
    columns = None
    for text in written.splitlines():
        bars = len(re.findall(r"(?<!\\)\|", text))
        columns = None if not text.startswith("|") else columns or bars
        assert columns in (None, bars), text


# --- the page ---


def test_the_page_needs_nothing_else_and_says_all(tmp_path):
    found = [result(), result("scan")]
    claims.write(found, tmp_path)
    claims.write_page(found, tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["claims-reach.svg", "claims-scan.svg", "claims.html", "claims.md"]
    text = (tmp_path / "claims.html").read_text(encoding="utf-8")
    reader = Reader(text)
    assert text.startswith("<!DOCTYPE html>")
    assert all(link.startswith("#") for link in reader.loads), "only to what is on the page"
    assert "script" not in reader.tags and "<?xml" not in text
    assert not re.search(r"@import|url\(\s*['\"]?http", text)
    assert reader.tags.count("svg") == 2
    tables = [claims.verdicts(found)]
    for one in found:
        tables += [claims.parts(one), claims.measured(one)]
    assert reader.tables == [[header, *rows] for header, rows in tables]
    words = "".join(reader.words)
    for told in (*claims.about(found[0]), claims.introduction(found), "reach: not decided"):
        assert told in words


def test_the_page_keeps_markup_as_text(tmp_path):
    found = [hostile()]
    claims.write(found, tmp_path)
    claims.write_page(found, tmp_path)
    reader = Reader((tmp_path / "claims.html").read_text(encoding="utf-8"))
    assert "script" not in reader.tags
    assert "".join(reader.words).count(HOSTILE) >= 4
    assert reader.tables[1][1][0] == HOSTILE and reader.tables[2][0][0] == HOSTILE


# --- figures ---


def test_figures_are_the_same_twice_without_dates_or_random_names(tmp_path):
    found = [result(), hostile()]
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
        claims.write(found, folder)
        claims.write_page(found, folder)
    assert len(list(first.iterdir())) == 4
    for path in first.iterdir():
        assert path.read_bytes() == (second / path.name).read_bytes()
    for name in ("reach", "hostile"):
        drawing = (first / f"claims-{name}.svg").read_text()
        assert "dc:date" not in drawing
    assert HOSTILE in texts(first / "claims-hostile.svg"), "also what looks like mathematics"


def drawn(axes):
    """Of each series: x, y, and the ends of its whiskers, from matplotlib's own containers."""
    found = {}
    for container in axes.containers:
        points, _, bars = container.lines
        x, y = (data.tolist() for data in points.get_data())
        ends = [segment[:, 1].tolist() for segment in bars[0].get_segments()] if bars else None
        found[container.get_label()] = x, y, ends, points.get_linestyle()
    return found


def test_points_and_whiskers_are_where_they_belong():
    (axes,) = claims.draw(result()["figure"]).axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("distance", "accuracy, %")
    assert (axes.get_xscale(), axes.get_yscale()) == ("linear", "linear")
    assert drawn(axes) == {
        "cnn": ([1, 10, 100], [90, 50, 10], [[88, 92], [48, 52], [8, 12]], "-"),
        "attention": ([1, 10, 100], [99, 98, 97], None, "-"),
    }


def test_a_label_that_ends_in_log_makes_the_axis_logarithmic():
    figure = result()["figure"]
    (axes,) = claims.draw(figure | {"x": "distance (log)"}).axes
    assert (axes.get_xlabel(), axes.get_xscale(), axes.get_yscale()) == (
        "distance",
        "log",
        "linear",
    )
    (axes,) = claims.draw(figure | {"y": "accuracy, % (log)"}).axes
    assert (axes.get_ylabel(), axes.get_xscale(), axes.get_yscale()) == (
        "accuracy, %",
        "linear",
        "log",
    )


def test_whiskers_below_zero_leave_a_logarithmic_axis_whole(tmp_path):
    figure = {
        "x": "n (log)",
        "y": "error (log)",
        "series": [line("cnn", [1, 10, 100], [0.5, 0.1, 0.02], 0.05)],
    }
    claims.write([result(figure=figure)], tmp_path)
    (axes,) = claims.draw(figure).axes
    low, high = axes.get_ylim()
    assert 1e-4 < low < 0.02 and 0.55 < high < 10


def test_names_stand_in_order_and_series_side_by_side():
    series = [line("cnn", ["simple", "length"], [99.0, 20.0], 1.0)]
    series.append(line("attention", ["length", "jump"], [30.0, 40.0]))
    (axes,) = claims.draw({"x": "", "y": "exact match, %", "series": series}).axes
    labels = [tick.get_text() for tick in axes.get_xticklabels()]
    assert labels == ["simple", "length", "jump"]
    assert axes.get_xticks().tolist() == [0, 1, 2]
    found = drawn(axes)
    (cnn, *_, cnn_line), (attention, *_, attention_line) = found["cnn"], found["attention"]
    assert [round(x) for x in cnn] == [0, 1] and [round(x) for x in attention] == [1, 2]
    assert cnn[1] < attention[0], "side by side"
    assert (cnn_line, attention_line) == ("None", "None"), "names are not joined"
    assert found["cnn"][1] == [99.0, 20.0]


@pytest.mark.parametrize("count", [1, 2])
def test_there_is_a_legend_where_there_are_several_series(count):
    canvas = claims.draw(result()["figure"] | {"series": result()["figure"]["series"][:count]})
    assert len(canvas.legends) == count - 1


def test_a_number_that_is_not_there_is_left_out(tmp_path):
    series = [line("cnn", [1, 2], [1.0, math.nan], 0.1)]
    found = [result(figure={"x": "n", "y": "loss", "series": series})]
    claims.write(found, tmp_path)
    assert ElementTree.parse(tmp_path / "claims-reach.svg").getroot().tag == f"{SVG}svg"
