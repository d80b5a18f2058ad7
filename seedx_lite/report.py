"""Run the notebooks and gather their figures, with the numbers beside them, in one self-contained page."""

import html
import os
import platform
import re
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

ANSI = re.compile(r"\x1b\[[0-9;]*m")
PAGE = Path(__file__).with_suffix(".html")


class Figure(NamedTuple):
    """The pictures of one cell of a notebook; none in a cell tagged `report`, whose numbers are the point."""

    pngs: list[str]  # in base64
    caption: str  # Markdown
    numbers: str  # what its cell printed


@dataclass
class Chapter:
    """One executed notebook."""

    path: Path
    title: str
    question: str
    figures: list[Figure]
    seconds: float = 0.0
    failure: str = ""


def check_parameters(notebook: Path, parameters: dict[str, Any]) -> None:
    """Raise ValueError on a parameter that the notebook does not have; papermill alone would only warn."""
    import papermill

    known = papermill.inspect_notebook(notebook)
    for name in parameters:
        if name not in known:
            raise ValueError(f"{notebook.name} has no parameter {name!r}; it has {', '.join(known) or 'none'}")


def run_notebook(notebook: Path, target: Path, parameters: dict[str, Any], progress: bool = True) -> Chapter:
    """Execute `notebook` in its own folder and write the result to `target`; a failure is noted, not raised. Raises
    ValueError on a parameter that the notebook does not have."""
    import nbformat
    import papermill

    check_parameters(notebook, parameters)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    start, failure = time.perf_counter(), ""
    options = {"kernel_name": "python3", "store_widget_state": False, "record_timing": False}
    options |= {"progress_bar": progress, "extra_arguments": ["--log-level=50"]}
    try:
        papermill.execute_notebook(notebook, target, parameters, cwd=notebook.parent, **options)
    except Exception as error:  # whatever it is, the other notebooks and the report go on
        failure = ANSI.sub("", str(error)).strip() or type(error).__name__
    chapter = read_chapter(nbformat.read(target if target.exists() else notebook, as_version=4), target)
    chapter.seconds, chapter.failure = time.perf_counter() - start, failure
    return chapter


def read_chapter(notebook: Any, path: Path) -> Chapter:
    """Title (the first heading), question (the paragraph opening with **Question.**) and figures of a notebook, whose
    captions are the last paragraphs of Markdown before them."""
    titles, questions, figures, caption = [], [], [], ""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            for text in re.split(r"\n\s*\n", cell.source.strip()):
                if heading := re.match(r"#+\s+(.*)", text):
                    titles.append(heading[1])
                elif text.startswith("**Question.**"):
                    questions.append(text.removeprefix("**Question.**"))
                elif not re.match(r"[|!<$`-]", text):
                    caption = text
        elif cell.cell_type == "code":
            numbers = "\n".join(text for text in map(_text, cell.outputs) if text)
            data = [output.get("data", {}) for output in cell.outputs]
            pngs = ["".join(entry["image/png"].split()) for entry in data if "image/png" in entry]
            if pngs or "report" in cell.metadata.get("tags", ()):
                figures.append(Figure(pngs, caption, numbers))
    return Chapter(path, next(iter(titles), path.stem), next(iter(questions), ""), figures)


def _text(output: Any) -> str:
    """What an output of a cell says; progress bars and the names of objects say nothing."""
    text = output.text if output.get("name") == "stdout" else output.get("data", {}).get("text/plain", "")
    return "" if re.match("<|.*it/s]", text) else ANSI.sub("", text).strip("\n")


def find_notebooks(notebooks: str | Path, parameters: dict[str, Any], only: str = "") -> list[Path]:
    """The notebooks to run. Raises FileNotFoundError if there is none and ValueError on a parameter that one lacks."""
    paths = sorted(path for path in Path(notebooks).glob("*.ipynb") if only in path.stem)
    if not paths:
        what, remedy = f" named *{only}*" if only else "", "run this in the repository, or give --notebooks FOLDER"
        raise FileNotFoundError(f"no notebook{what} in {Path(notebooks).resolve()}: {remedy}")
    for path in paths:
        check_parameters(path, parameters)
    return paths


def reproduce(notebooks: str | Path, folder: str | Path, parameters: dict[str, Any], only: str = "") -> int:
    """Run all notebooks, write `folder`/report.html; returns 1 if one failed, else 0. Raises as `find_notebooks`."""
    paths = find_notebooks(notebooks, parameters, only)
    folder, chapters = Path(folder), []
    for number, path in enumerate(paths, 1):
        print(f"[{number}/{len(paths)}] {path.stem}", flush=True)
        chapters.append(run_notebook(path, folder / "notebooks" / path.name, parameters))
        failure = chapters[-1].failure
        print(f"      {chapters[-1].seconds:.0f} s{', FAILED: ' + failure.splitlines()[-1] if failure else ''}")
    draft = folder / "report.tmp"
    draft.write_text(render(chapters, parameters, folder), encoding="utf-8")
    print(f"report: {draft.replace(folder / 'report.html')}")
    return int(any(chapter.failure for chapter in chapters))


def render(chapters: list[Chapter], parameters: dict[str, Any], folder: Path) -> str:
    """The report: HTML with style and pictures inside, links relative to `folder`."""
    import jinja2

    page = jinja2.Environment(autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined)
    page.filters |= {"markdown": _inline, "link": lambda path: os.path.relpath(path, folder)}
    return page.from_string(PAGE.read_text(encoding="utf-8")).render(
        chapters=chapters,
        chosen=", ".join(f"{name}={value}" for name, value in parameters.items()) or "their defaults",
        cores=f"{os.cpu_count()} cores ({platform.machine()})",
        software=f"Python {platform.python_version()}, torch {version('torch')}, {time.strftime('%Y-%m-%d %H:%M')}",
    )


def _inline(markdown: str) -> str:
    """The Markdown that occurs within a paragraph, as HTML; links keep only their text."""
    text = re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", html.escape(" ".join(markdown.split())))
    for mark, tag in (("`", "code"), (r"\*\*", "b"), (r"\*", "i")):
        text = re.sub(rf"{mark}(.+?){mark}", rf"<{tag}>\1</{tag}>", text)
    return text
