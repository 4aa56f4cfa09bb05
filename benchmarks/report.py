"""Make the page of the benchmarks, ``docs/benchmarks.md``, from the figures in ``docs/benchmarks/*.json``.

``./lab bench`` runs it after the benchmarks; the README's table of figures is made here too. What has no figures is
named as not measured.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re
import statistics
import sys
from collections.abc import Mapping, Sequence
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
sys.path.insert(1, f"{sys.path[0]}/tools")

import marked

from benchmarks import measured

README = measured.ROOT / "README.md"
PAGE = measured.ROOT / "docs" / "benchmarks.md"
#: Pages that benchmarks write themselves, and what they show.
PAGES = {
    "profile": "which tasks of `site.yml` take how long on which host",
    "switch": "a switch of the mode under load, and how long each queue is without a consumer",
}
#: Lines of plots, and their marks: told apart on white, on black and without colours.
COLOURS = ("#2f81d6", "#d9730d", "#2e9e58", "#a371d6", "#c9414f", "#8a8a00")
MARKS = ("o", "s", "^", "D", "v", "P")
#: Text and axes: a grey that is as far from white as from black.
INK = "#767676"


@dataclasses.dataclass(frozen=True)
class Figure:
    """A row of the README's table.

    Attributes:
        benchmark: Whose figures have it.
        what: An expression for the comparison's `what`.
        row: What a reader of the README knows it as.
    """

    benchmark: str
    what: str
    row: str


#: What a user cares about most.
HEADLINES = (
    Figure("site", r"nothing to change", "`site.yml` again, with nothing to change"),
    Figure("tasks", r"trigger .* mode celery", "from the trigger of a DAG run to its success, one short task"),
    Figure("direct", r"script on main, one caller", "a command on a VM from a script, without a DAG"),
)


@dataclasses.dataclass(frozen=True)
class Figures:
    """What a benchmark has noted.

    Attributes:
        name: The benchmark.
        date: Of the measurement, in ISO's form.
        machine: What it was measured on.
        versions: Of what was measured, by name.
        comparisons: What was held against what.
        plots: Lines.
        notes: Sentences.
    """

    name: str
    date: str
    machine: str
    versions: Mapping[str, str]
    comparisons: Sequence[measured.Comparison]
    plots: Sequence[measured.Plot]
    notes: Sequence[str]

    @classmethod
    def read(cls, text: str) -> Figures:
        """Read what `measured.write` has written.

        Args:
            text: The content of the file.
        """
        entries: dict[str, Any] = json.loads(text)
        comparisons = [measured.Comparison(**entry) for entry in entries.pop("comparisons")]
        plots = [measured.Plot(**entry) for entry in entries.pop("plots")]
        return cls(comparisons=comparisons, plots=plots, **entries)


def number(value: float) -> str:
    """Write a figure with three digits that count, and none behind the point from 100 on.

    Args:
        value: The figure.
    """
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:#.3g}".rstrip(".")


def shown(values: Sequence[float], unit: str) -> str:
    """Write figures as median and range; short times in ms.

    Args:
        values: One or more.
        unit: Theirs.
    """
    if unit == "s" and statistics.median(values) < 0.1:
        values, unit = [value * 1000 for value in values], "ms"
    text = f"{number(statistics.median(values))} {unit}"
    if len(values) == 1:
        return text
    return f"{text} ({number(min(values))} to {number(max(values))})"


def goal(comparison: measured.Comparison) -> str:
    """Say what is good enough.

    Args:
        comparison: The comparison.
    """
    if comparison.at_most is not None:
        return f"at most {number(comparison.at_most)}"
    return f"at least {number(comparison.at_least or 0)}"


def verdict(comparison: measured.Comparison) -> str:
    """Say whether the goal is reached, or by how much it is missed; and why, or what else there is to know.

    Args:
        comparison: The comparison.
    """
    if comparison.reached:
        text = "yes"
    else:
        bound = comparison.at_most or comparison.at_least or 1
        off = abs(comparison.ratio / bound - 1)
        text = f"**no**, {off:.0%} {'above' if comparison.at_most is not None else 'below'} it"
    return f"{text}: {comparison.note}" if comparison.note else text


def comparison_rows(all_figures: Sequence[Figures]) -> list[tuple[str, ...]]:
    """Return the rows of the table.

    Args:
        all_figures: Of all benchmarks.
    """
    return [
        (
            f"[{figures.name}](#{figures.name})",
            comparison.what,
            shown(comparison.ours, comparison.unit),
            f"{comparison.against}: {shown(comparison.baseline, comparison.unit)}",
            f"{number(comparison.ratio)} x",
            goal(comparison),
            verdict(comparison),
        )
        for figures in all_figures
        for comparison in figures.comparisons
    ]


def section(figures: Figures, plots: Sequence[str]) -> list[str]:
    """Write what a benchmark has beside its rows of the table.

    Args:
        figures: Its figures.
        plots: The file of each plot, as the page is to name it.

    Returns:
        Lines.
    """
    versions = ", ".join(f"{name} {version}" for name, version in sorted(figures.versions.items()))
    lines = [f"## {figures.name}", "", f"Measured on {figures.date}, {figures.machine}; {versions}.", ""]
    for plot, file in zip(figures.plots, plots, strict=True):
        lines += [f"![{plot.title}]({file})", ""]
    lines += [line for note in figures.notes for line in (note, "")]
    return lines


def page(all_figures: Sequence[Figures], expected: Sequence[str], pages: Sequence[str]) -> str:
    """Write the page.

    Args:
        all_figures: Of the benchmarks that have some.
        expected: Names of all benchmarks.
        pages: Those of `PAGES` that are there.

    Returns:
        Markdown.
    """
    comparisons = [comparison for figures in all_figures for comparison in figures.comparisons]
    reached = sum(comparison.reached for comparison in comparisons)
    lines = [
        "# Benchmarks",
        "",
        "Made by `./lab bench` from `docs/benchmarks/*.json`. A figure is of use beside another of the same run alone,",
        "since machines differ: each stands beside what it is held against, as median (smallest to largest) of the",
        "rounds. The ratio is ours to the other.",
        "",
        f"{reached} of {len(comparisons)} goals are reached.",
        "",
    ]
    titles = ("", "what", "ours", "against", "ratio", "goal", "reached")
    lines += [marked.table(titles, comparison_rows(all_figures)), ""]
    measured_names = {figures.name for figures in all_figures} | set(pages)
    missing = [name for name in expected if name not in measured_names]
    if missing:
        lines += [f"Not measured yet: {', '.join(f'`./lab bench {name}`' for name in missing)}.", ""]
    if pages:
        listed = [f"[{name}](benchmarks/{name}.md): {PAGES[name]}" for name in pages]
        lines += ["Pages of their own: " + "; ".join(listed) + ".", ""]
    for figures in all_figures:
        files = [f"benchmarks/{plot_name(figures.name, place)}" for place in range(len(figures.plots))]
        lines += section(figures, files)
    return "\n".join(lines).rstrip() + "\n"


def headline_rows(all_figures: Mapping[str, Figures]) -> list[tuple[str, ...]]:
    """Return the rows of the README's table.

    Args:
        all_figures: Figures by the benchmark's name.
    """
    rows: list[tuple[str, ...]] = []
    for headline in HEADLINES:
        own = all_figures.get(headline.benchmark)
        found = [one for one in (own.comparisons if own else ()) if re.search(headline.what, one.what)]
        if not found:
            rows.append((headline.row, "not measured yet", "", ""))
            continue
        one = found[0]
        rows.append(
            (
                headline.row,
                shown(one.ours, one.unit),
                f"{one.against}: {shown(one.baseline, one.unit)}",
                f"{number(1 / one.ratio)} x" if one.at_most is not None else f"{number(one.ratio)} x",
            )
        )
    return rows


def headlines(all_figures: Mapping[str, Figures]) -> str:
    """Write the README's table.

    Args:
        all_figures: Figures by the benchmark's name.
    """
    return marked.table(("", "here", "against", "better by"), headline_rows(all_figures))


def plot_name(benchmark: str, place: int) -> str:
    """Return the file name of a plot.

    Args:
        benchmark: Whose it is.
        place: Which one of the benchmark's, from 0.
    """
    return f"{benchmark}{f'-{place + 1}' if place else ''}.svg"


def draw(plot: measured.Plot, target: pathlib.Path) -> None:
    """Draw a plot: the same file for the same figures, legible on white and on black.

    Args:
        plot: The plot.
        target: The SVG file.
    """
    import matplotlib  # in an environment of its own; the tables need none

    matplotlib.use("svg")
    from matplotlib import pyplot

    style = {
        "svg.hashsalt": "airflow-on-vms",
        "svg.fonttype": "none",
        "font.family": "sans-serif",
        "font.size": 11,
        "text.color": INK,
        "axes.edgecolor": INK,
        "axes.labelcolor": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with matplotlib.rc_context(style):
        figure, axes = pyplot.subplots(figsize=(7, 3.6), layout="constrained")
        for place, (name, points) in enumerate(sorted(plot.lines.items())):
            axes.plot(
                [x for x, _ in points],
                [y for _, y in points],
                color=COLOURS[place % len(COLOURS)],
                marker=MARKS[place % len(MARKS)],
                label=name,
            )
        axes.set(title=plot.title, xlabel=plot.x, ylabel=plot.y)
        axes.set_ylim(bottom=0)
        axes.grid(visible=True, color=INK, alpha=0.25)
        if len(plot.lines) > 1:
            axes.legend(frameon=False)
        figure.savefig(target, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        pyplot.close(figure)


def programs(directory: pathlib.Path) -> list[str]:
    """Return the names of all benchmarks: the files there that can be executed.

    Args:
        directory: Where they are.
    """
    return sorted(file.stem for file in directory.glob("*.py") if file.stat().st_mode & 0o100)


def write(
    figures_in: pathlib.Path = measured.FIGURES,
    target: pathlib.Path = PAGE,
    readme: pathlib.Path = README,
) -> None:
    """Write page, plots and the README's table.

    Args:
        figures_in: Where the figures are, and the plots go.
        target: The page.
        readme: The README.
    """
    all_figures = [Figures.read(file.read_text()) for file in sorted(figures_in.glob("*.json"))]
    for old in figures_in.glob("*.svg"):
        old.unlink()
    for figures in all_figures:
        for place, plot in enumerate(figures.plots):
            draw(plot, figures_in / plot_name(figures.name, place))
    expected = programs(measured.ROOT / "benchmarks")
    pages = [name for name in PAGES if (figures_in / f"{name}.md").exists()]
    target.write_text(page(all_figures, expected, pages))
    table = headlines({figures.name: figures for figures in all_figures})
    readme.write_text(marked.written(readme.read_text(), {"benchmarks": table}))
    print(f"{target.relative_to(measured.ROOT) if target.is_relative_to(measured.ROOT) else target} is written")


if __name__ == "__main__":
    write()
