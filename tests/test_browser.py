"""Hostile names, paths, captions and settings are text, wherever people look at them.

On the page, in its figures, in Markdown, in the tables, in DVC's plots and on MLflow's pages: once
by their elements alone, and once in a browser, in which nothing of them may run.
"""

from __future__ import annotations

import csv
import html
import itertools
import os
import re
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from dvc_render.html import render_html
from dvc_render.vega import VegaRenderer

from pipeline.params import Params
from pipeline.records import RunId, read_json, runs_of, write_json, write_table
from pipeline.report.page.again import MLFLOW
from pipeline.report.words import plotted, visible
from pipeline.stages.evaluate import evaluate
from pipeline.stages.publish import publish
from pipeline.tracking import client as tracking
from pipeline.tracking import views
from tests.report.fake_runs import NEAR_COLUMNS, fake_params, write_runs
from tests.tracking.conftest import environment, free_port, stop, wait_for
from tests.tracking.test_plots import ROOT, drawn, table

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))), None
)
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
RUN = "document.title='owned';console.log('owned')"
HOSTILE = (
    f"<script>{RUN}</script>",
    f'"><img src=x onerror="{RUN}">',
    f"' autofocus onfocus={RUN} x='",
    f"</script><script>{RUN}</script>",
    f"</style></title></textarea><svg/onload={RUN}>",
    f"<!--<script>{RUN}",
    f"]]><script>{RUN}</script>",
    f"<svg><a href=javascript:{RUN}><text>x",
    "{{7*7}} {% raw %} ${7*7} $x^2$",
    f"[a](javascript:{RUN}) ![b](x) <b>",
    "a | b || `c` ``d\n\n# e\n\n- f",
    f"`` <img src=x onerror={RUN}> `` \\",
    "[ref]: javascript:alert(1)\n&lt;b&gt; &#60;i&#62; <http://a.test>",
    f'=HYPERLINK("javascript:{RUN}","x")',
    "\x1b[31mred\x1b]0;owned\x07\x00",
    "\u202ederasrever\u2066 \u200f",
)  # each stands in every place
TAME = tuple(f"class {number}" for number in range(len(HOSTILE)))
SVG = {"svg", "defs", "style", "g", "path", "use", "text", "tspan", "rect", "clipPath", "image"}


@dataclass(frozen=True)
class Element:
    """A tag of a page and its attributes."""

    tag: str
    attributes: dict[str, str]


class Page(HTMLParser):
    """The elements of a page in their order, and its text; as a browser reads them."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.elements: list[Element] = []
        self.said: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(Element(tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        self.said.append(data)

    @property
    def text(self) -> str:
        return spaces_as_one("\n".join(self.said))

    @property
    def shape(self) -> list[tuple[str, ...]]:
        """Every element outside of drawings, with the names of its attributes."""
        return [(of.tag, *of.attributes) for of in self.elements if of.tag not in SVG]


def spaces_as_one(text: str) -> str:
    return " ".join(text.split())


def git(folder: Path, *words: str) -> None:
    configured = ("-c", "user.name=<i>me", "-c", "user.email=a@b")
    subprocess.run(["git", "-C", str(folder), *configured, *words], check=True, capture_output=True)


def under_git(folder: Path, name: str) -> None:
    """A repository with a hostile branch and subject, in which a hostile file has changed."""
    file = f"{name.replace('/', '|')[:80]}.py".replace("\0", "")
    git(folder, "init", "-q", "-b", re.sub(r"[\s~^:?*\[\\]|\.\.", "", name)[:60].strip("/") or "b")
    (folder / file).write_text("1")
    git(folder, "add", file)
    git(folder, "commit", "-q", "-m", name.replace("\0", ""))
    (folder / file).write_text("2")


def named(names: tuple[str, ...]) -> Params:
    """Settings with such names wherever text is free."""
    params = fake_params(shots=(5,), seeds=(0, 1), baselines=("finetune",))
    tree = params.model_dump(mode="json", by_alias=True)
    tree["data"] |= {"target": f"data/{' '.join(names)}", "source": f"data/{names[1]}"}
    tree["weights"] |= {"file": f"pretrained/{names[0]}"}
    tree["diagnostics"] |= {"latent": names[3]}
    tree["methods"]["breakdown"] |= {"note": names[0], names[3]: {names[2]: list(names)}}
    return Params.model_validate(tree)


def make(folder: Path, names: tuple[str, ...]) -> None:
    """A project whose classes, images, data, weights, causes and commits bear such names."""
    os.chdir(folder)
    params = named(names)
    write_runs(params, names, diverged=[RunId("finetune", 5, 0)])
    near = [
        (n, n + 1, f"{one}/image {n}.png", one, "test", f"{two}/image {n + 1}.png", two, "train")
        for n, (one, two) in enumerate(itertools.pairwise(names))
    ]
    write_table("prepared/near_duplicates.csv", [(*pair, 0.97, 1) for pair in near], NEAR_COLUMNS)
    for run in runs_of(params.compare):
        path = run.folder / "record.json"
        record = read_json(path) | {"reason": " ".join(names), "device": names[0]}
        record["parameters"] = params.model_dump(mode="json", by_alias=True)
        record["phases"] = [
            {**phase, "rule": names[0], "images_seen": 9} for phase in record["phases"]
        ]
        write_json(path, record)
    for seed in (0, 1):
        diagnosis = Path(f"predictions/breakdown-n5-s{seed}.diagnosis.json")
        write_json(diagnosis, read_json(diagnosis) | {"collapsed": True, "cause": names[seed]})
    summary = Path("prepared/summary.json")
    more = {"left": {"out": {name: name for name in names}}, names[1]: list(names)}
    write_json(summary, read_json(summary) | more)
    under_git(folder, names[0])
    evaluate(params)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """The same project twice: with hostile names, and with tame ones."""
    here = Path.cwd()
    made = {}
    for kind, names in (("hostile", HOSTILE), ("tame", TAME)):
        made[kind] = tmp_path_factory.mktemp(kind)
        make(made[kind], names)
    os.chdir(here)
    yield made


def pages(folders: dict[str, Path], of: Any) -> tuple[Page, Page]:
    return Page(of(folders["hostile"])), Page(of(folders["tame"]))


def page(folder: Path) -> str:
    return (folder / "reports/index.html").read_text(encoding="utf-8")


def rendered(folder: Path) -> str:
    """The short report as a page, by a reader of Markdown that lets HTML through."""
    markdown = pytest.importorskip("markdown_it", reason="there is no reader of Markdown")
    reader = markdown.MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    return str(reader.render((folder / "reports/report.md").read_text(encoding="utf-8")))


def plots(folder: Path) -> str:
    """What ``dvc plots show`` writes of the tables, without the programs that it loads."""
    shown = []
    for name, about in drawn().items():
        with (folder / table(about)).open(newline="", encoding="utf-8") as file:
            rows = [row | {"rev": "workspace"} for row in csv.DictReader(file)]
        settings = about | {"y": about["y"][table(about)], "template_dir": str(ROOT / ".dvc/plots")}
        shown.append(VegaRenderer(rows, name, **settings))
    written = Path(render_html(shown, folder / "plots" / "index.html")).read_text(encoding="utf-8")
    return re.sub(r'<script src="https:[^"]*"></script>', "", written).replace(
        "<body>", "<body><script>vegaEmbed = () => {}</script>"
    )


@pytest.mark.parametrize("of", [page, rendered, plots])
def test_names_add_no_element(folders: dict[str, Path], of: Any) -> None:
    hostile, tame = pages(folders, of)
    assert len(tame.elements) > 8
    assert hostile.shape == tame.shape


def test_the_page_has_neither_code_nor_ways_out(folders: dict[str, Path]) -> None:
    for element in Page(page(folders["hostile"])).elements:
        assert element.tag not in ("script", "iframe", "object", "embed", "form", "base", "link")
        assert not any(name.startswith("on") for name in element.attributes), element
        target = element.attributes.get("href", "#")
        drawn = element.tag == "image" and target.startswith("data:image/png;base64,")
        assert target.startswith("#") or target == MLFLOW or drawn
        assert element.attributes.get("src", "data:image/png;base64,").startswith("data:image/png;")


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_can_be_read_on_the_page(folders: dict[str, Path], name: str) -> None:
    said = Page(page(folders["hostile"])).text
    assert said.count(spaces_as_one(visible(name))) > 3


def test_nothing_on_the_page_hides_or_turns_the_text_around(folders: dict[str, Path]) -> None:
    for written in (
        page(folders["hostile"]),
        (folders["hostile"] / "reports/report.md").read_text(),
    ):
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", written)


def test_figures_are_drawings_alone(folders: dict[str, Path]) -> None:
    figures = sorted((folders["hostile"] / "reports/figures").glob("*.svg"))
    assert len(figures) > 5
    for figure in figures:
        for element in ElementTree.parse(figure).iter():
            assert element.tag.removeprefix("{http://www.w3.org/2000/svg}") in SVG, figure
            for name, value in element.attrib.items():
                assert not name.startswith("on")
                assert "href" not in name or value.startswith(("#", "data:image/png;base64,"))


def test_tables_hold_the_names_as_they_are(folders: dict[str, Path]) -> None:
    """A table is read by programs: what a spreadsheet would run is quoted, not altered."""
    root = folders["hostile"]
    with (root / "predictions/finetune-n5-s0.csv").open(newline="", encoding="utf-8") as file:
        assert next(csv.reader(file))[3:] == [f"p_{name}" for name in HOSTILE]
    with (root / "reports/confusion.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["actual"] for row in rows} == set(map(plotted, HOSTILE))
    for path in root.glob("reports/*.csv"):
        with path.open(newline="", encoding="utf-8") as file:
            assert len({len(row) for row in csv.reader(file)}) == 1, path


@dataclass(frozen=True)
class Seen:
    """What a browser shows of an address at last, and what was said on its console."""

    page: Page
    title: str
    console: list[str]


def browse(address: str, seconds: float = 5) -> Seen:
    """Load a page as a person would, with nothing beyond loopback in reach."""
    with tempfile.TemporaryDirectory() as profile:
        done = subprocess.run(
            [
                str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
                "--disable-background-networking", "--disable-component-update", "--disable-sync",
                "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
                f"--user-data-dir={profile}", "--enable-logging=stderr",
                f"--virtual-time-budget={1000 * seconds:.0f}", "--dump-dom", address,
            ],
            capture_output=True, text=True, timeout=120, errors="replace",
        )  # fmt: skip
    assert done.returncode == 0 and "<html" in done.stdout, done.stderr[-2000:]
    said = re.findall(r"CONSOLE[^]]*\] (.*)", done.stderr)
    return Seen(Page(done.stdout), title_of(done.stdout), said)


def title_of(text: str) -> str:
    found = re.search("<title>(.*?)</title>", text, flags=re.DOTALL)
    return html.unescape(found[1]) if found else ""


def framed(folder: Path, *files: Path) -> str:
    """The address of a page with each file in a frame, as each would stand alone."""
    frames = "".join(f'<iframe src="{file.as_uri()}"></iframe>' for file in files)
    (folder / "frames.html").write_text(
        f"<!doctype html><meta charset=utf-8><title>frames</title>{frames}", encoding="utf-8"
    )
    return (folder / "frames.html").as_uri()


def document(folder: Path, name: str, body: str) -> Path:
    path = folder / name
    path.write_text(f"<!doctype html><meta charset=utf-8>{body}", encoding="utf-8")
    return path


@needs_browser
def test_the_browser_would_run_such_names(tmp_path: Path) -> None:
    bare = [document(tmp_path, f"{n}.html", name) for n, name in enumerate(HOSTILE[:2])]
    assert sum('"owned"' in line for line in browse(framed(tmp_path, *bare)).console) == 2


@needs_browser
def test_nothing_runs_on_the_page(folders: dict[str, Path]) -> None:
    seen, written = (
        browse((folders["hostile"] / "reports/index.html").as_uri()),
        page(folders["hostile"]),
    )
    assert seen.console == []
    assert seen.page.shape == Page(written).shape
    assert seen.title == title_of(written) and visible(HOSTILE[0]) in seen.title


@needs_browser
def test_nothing_runs_in_figures_markdown_and_plots(folders: dict[str, Path]) -> None:
    root = folders["hostile"]
    shown = [
        *sorted((root / "reports/figures").glob("*.svg")),
        document(root, "report.html", rendered(root)),
        document(root, "drawn.html", plots(root)),
    ]
    assert browse(framed(root, *shown)).console == []


@pytest.fixture
def served(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """MLflow's pages of the hostile project: its charts, a summary and a run, with artifacts."""
    root, port = folders["hostile"], free_port()
    monkeypatch.chdir(root)
    for name in ("MLFLOW_TRACKING_URI", "DVC_ROOT", "DVC_EXP_NAME"):
        monkeypatch.delenv(name, raising=False)
    (root / "dvc.yaml").write_text("stages: {}\n")
    publish(named(HOSTILE))
    place = tracking.store(root)
    client = tracking.open_client(place)
    number = tracking.experiment(client, tracking.RESULTS, place)
    runs = [run.info.run_id for run in client.search_runs([number])]
    process: subprocess.Popen[bytes] = subprocess.Popen(
        [sys.executable, "-m", "pipeline.tracking.ui", str(port)],
        cwd=root, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    server = f"http://127.0.0.1:{port}"
    parts = ("", "/artifacts/index.html", "/artifacts/report.md")
    try:
        wait_for(server, process)
        about = f"{server}/#/experiments/{number}/runs"
        shown = [f"{about}/{run}{part}" for run in runs[:2] for part in parts]
        yield [views.page(server, number), *shown]
    finally:
        stop(process)
        process.communicate()


@needs_browser
@pytest.mark.torture
@pytest.mark.filterwarnings("ignore:The ..noload.. loader strategy is deprecated")
def test_nothing_runs_on_the_pages_of_mlflow(served: list[str]) -> None:
    said = ""
    for address in served:
        seen = browse(address, 40)
        assert not [line for line in seen.console if '"owned"' in line], address
        assert seen.title != "owned"
        said += seen.page.text
    assert "summary of 2 methods" in said
    assert "document.title='owned'" in said  # it is there to be read
