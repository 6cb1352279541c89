"""The figures: the same bytes twice, the numbers at their places, legible whatever the input."""

import math
import re
from xml.etree import ElementTree

import pytest

from attnconv.report import figures, values

SVG = "{http://www.w3.org/2000/svg}"


def texts(path):
    return ["".join(element.itertext()) for element in ElementTree.parse(path).iter(f"{SVG}text")]


def test_files_are_written_and_the_same_twice(summary, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    written = figures.write(summary, first)
    assert [path.name for path in written] == [
        "accuracy_by_train_size.svg",
        "accuracy_by_cost.svg",
        "differences.svg",
    ]
    for path, again in zip(written, figures.write(summary, second), strict=True):
        assert path.read_bytes() == again.read_bytes()
        assert b"date" not in path.read_bytes()


def test_odd_summaries_give_valid_svg(odd_summary, tmp_path):
    for path in figures.write(odd_summary, tmp_path):
        assert ElementTree.parse(path).getroot().tag == f"{SVG}svg"


def test_words_in_the_figures(summary, tmp_path):
    sizes, costs, differences = (texts(path) for path in figures.write(summary, tmp_path))
    assert {"digits", "Training examples", "Test accuracy, %", "100", "1167"} <= set(sizes)
    assert [name for name in sizes if name in ("mlp", "cnn", "hybrid")] == ["cnn", "hybrid", "mlp"]
    assert {"Parameters (equal within 0.0%)", "FLOPs, forward", "Seconds of training"} <= set(costs)
    assert "established, in the colour of the model ahead" in differences
    assert {"mlp − cnn", "cnn − hybrid", "1167 training examples"} <= set(differences)


def test_markup_and_dollars_in_names_stay_text(make_summary, tmp_path):
    name = "a<b>&$x_1$"
    summary = make_summary({(name, 10): (0.5, 0.4, 0.6)}, name=name)
    for path in figures.write(summary, tmp_path):
        assert any(name in text for text in texts(path))


def test_scores_are_drawn_where_they_belong(summary):
    """Points and whiskers in data coordinates, read back from matplotlib's own containers."""
    (axes,) = figures.by_train_size(summary).axes
    drawn = {}
    for container in axes.containers:
        line, _, (bars,) = container.lines
        ends = [segment[:, 1].tolist() for segment in bars.get_segments()]
        drawn[line.get_color()] = (line.get_xdata(), line.get_ydata(), ends)
    x, y, ends = drawn[values.styles(["cnn"])["cnn"].colour]
    assert list(y) == pytest.approx([82.0, 98.9])
    assert ends[1] == pytest.approx([98.0, 99.5])
    assert [abs(math.log10(a / b)) < 0.07 for a, b in zip(x, (100, 1167), strict=True)] == [
        True
    ] * 2


def test_established_is_filled_and_open_is_hollow(summary):
    panels = figures.differences(summary).axes
    assert [panel.get_title(loc="left") or panel.get_title() for panel in panels] == [
        "100 training examples",
        "1167 training examples",
    ]
    faces = [container.lines[0].get_markerfacecolor() for container in panels[1].containers]
    cnn, hybrid = (values.styles([name])[name].colour for name in ("cnn", "hybrid"))
    assert faces == [cnn, hybrid, "white"], "in the colour of the one that is ahead"
    assert [c.lines[0].get_xdata()[0] for c in panels[1].containers] == pytest.approx(
        [-1.9, -1.7, 0.2]
    )


def test_a_crowded_forest_shows_the_largest_size_only(odd_summary):
    if len(odd_summary["comparisons"]) > 45:
        assert figures.forest_sizes(odd_summary) == [1167]


def test_equal_costs_stand_side_by_side(make_summary):
    scores = {("mlp", 100): (0.7, 0.6, 0.8), ("cnn", 100): (0.8, 0.7, 0.9)}
    cells = make_summary(scores, params={"mlp": 20000, "cnn": 20200})["cells"]
    first, second = figures.cost_positions(cells, "params")
    assert first < 20000 < 20200 < second
    assert figures.cost_label(cells, "params", "Parameters") == "Parameters (equal within 1.0%)"
    assert figures.cost_positions(cells, "flops") == [1234567, 2469134]


def test_ticks_are_few_and_inside():
    for low, high in ((3, 3), (1.9, 7.1), (20_011, 20_159), (1e4, 9e8)):
        ticks = figures.log_ticks([low, high])
        start, end = figures.limits([low, high])
        assert 1 <= len(ticks) <= 7
        assert start < low <= high < end
        assert all(start <= tick <= end for tick in ticks)


def test_close_sizes_share_one_label():
    assert figures.spaced([100, 1000, 1167]) == [100, 1167]
    assert figures.spaced([100, 400, 1167]) == [100, 400, 1167]


def test_one_look_for_a_family_everywhere():
    alone, together = values.styles(["cnn"]), values.styles(["mine", "attention", "cnn"])
    assert alone["cnn"] == together["cnn"]
    many = values.styles([f"family_{i}" for i in range(20)])
    assert len(set(many.values())) == 20, "colour and marker together tell twenty names apart"
    known = ["mlp", "local", "cnn", "attention", "hybrid", "graph_conv", "graph_attention"]
    colours = {look.colour for look in values.styles(known).values()}
    assert len(colours) == len(known)
    assert all(re.fullmatch(r"#[0-9a-f]{6}", colour) for colour in colours)


def test_a_window_has_the_colour_of_its_family_and_a_marker_of_its_own():
    sizes = (9, 17, 33, 65, 129, 257)
    families = ("cnn", "attention")
    names = [*families, *(f"{name}:{size}" for name in families for size in sizes)]
    looks = values.styles(names)
    assert len(set(looks.values())) == len(names)
    for family in families:
        colours = {looks[name].colour for name in names if name.startswith(family)}
        assert colours == {values.styles([family])[family].colour}
    for size in sizes:
        assert looks[f"cnn:{size}"].marker == looks[f"attention:{size}"].marker
    assert values.styles(["mine:9"])["mine:9"].colour == values.styles(["mine"])["mine"].colour
    assert values.styles(["a:b"])["a:b"] == values.styles(["mine"])["mine"], "no window but a name"


def test_scores_by_window(windowed, tmp_path):
    written = {path.stem: path for path in figures.write(windowed, tmp_path)}
    words = texts(written["accuracy_by_window"])
    labels = ["9", "17", "33", "attention"]
    assert [word for word in words if word in labels] == [*labels, "attention"], "ticks, legend"
    assert "universal_dependencies/en_ewt:1.0.1, 12,543 training examples" in words
    assert "mlp" not in words

    (axes,) = figures.by_window(windowed).axes
    lines = [container.lines[0] for container in axes.containers]
    assert [line.get_linestyle() for line in lines] == ["-", "-", "None"]
    assert [line.get_ydata().tolist() for line in lines] == [
        pytest.approx([91.0, 93.4, 93.8]),
        pytest.approx([90.5, 92.9]),
        pytest.approx([94.0]),
    ]
    cnn, attention, whole = (line.get_xdata().tolist() for line in lines)
    assert [round(x) for x in (*cnn, *attention)] == [9, 17, 32, 9, 17]
    assert all(a < b for a, b in zip(cnn, attention, strict=False)), "side by side"
    assert whole[0] >= 66, "without a window: to the right, away from the largest"


def test_windows_are_drawn_where_a_family_has_two(make_summary):
    one = {(name, 10): (0.5, 0.4, 0.6) for name in ("cnn:9", "attention:9", "attention")}
    assert values.by_window(make_summary(one)) == {}
    two = make_summary({("cnn:33", 10): (0.6, 0.5, 0.7), ("cnn:9", 10): (0.5, 0.4, 0.6), **one})
    families = values.by_window(two)
    assert {name: [cell["model"] for cell in cells] for name, cells in families.items()} == {
        "cnn": ["cnn:9", "cnn:33"],
        "attention": ["attention:9", "attention"],
    }
    places, labels = figures.window_places(families)
    assert labels == {9.0: "9", 33.0: "33", places["attention"]: "attention"}
    assert places["cnn:9"] < 9 < places["attention:9"] < places["cnn:33"] < places["attention"]
