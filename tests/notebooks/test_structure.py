"""Every notebook is stored as a reader should find it: run top to bottom, small, no trace of a machine."""

import ast
import copy
import re
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MACHINE_PATH = re.compile(r"(?<![\w.~/-])/(?:home|work|root|tmp|Users|mnt|private)/[\w.-]|[A-Z]:\\Users")
MAX_LINES, MAX_IGNORED, MAX_BYTES = 40, 3, 700_000
IGNORE_TAGS = {"nbval-ignore-output", "nbval-skip", "nbval-raises-exception"}


def problems(notebook) -> list[str]:
    """What is wrong with a notebook, one line each."""
    found = []
    code = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
    counts = [cell.execution_count for cell in code]
    if counts != list(range(1, len(code) + 1)):
        found.append(f"execution counts {counts}: run all cells in a fresh kernel and save")
    for number, cell in enumerate(notebook.cells):
        place = f"cell {number}"
        if len(cell.source.splitlines()) > MAX_LINES and cell.cell_type == "code":
            found.append(f"{place}: more than {MAX_LINES} lines")
        if match := MACHINE_PATH.search(cell.source + str(cell.get("outputs", ""))):
            found.append(f"{place}: path of a machine, {match[0]}")
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                found.append(f"{place}: stored error {output.ename}")
        pictures = [output for output in cell.get("outputs", []) if "image/png" in output.get("data", {})]
        if pictures and not any(output.output_type == "stream" for output in cell.outputs):
            found.append(f"{place}: a picture without printed numbers beside it")
    ignored = sum(bool(IGNORE_TAGS & set(cell.metadata.get("tags", []))) for cell in notebook.cells)
    if ignored > MAX_IGNORED:
        found.append(f"{ignored} cells with an ignore tag, at most {MAX_IGNORED} are allowed")
    if "widgets" in notebook.metadata:
        found.append("widget state: clear it before saving")
    if "papermill" in notebook.metadata:
        found.append("metadata of papermill: commit the notebook itself, not a run of it")
    if notebook.metadata.get("kernelspec", {}).get("name") != "python3":
        found.append("kernelspec is not python3, so others cannot run it")
    return found + parameter_problems(code)


def parameter_problems(code) -> list[str]:
    """The first code cell is tagged `parameters` and holds literals only, each with a comment."""
    if not code or "parameters" not in code[0].metadata.get("tags", []):
        return ["the first code cell is not tagged `parameters`"]
    found = [f"a second cell tagged `parameters`: {cell.source[:40]!r}" for cell in code[1:]
             if "parameters" in cell.metadata.get("tags", [])]  # fmt: skip
    lines = code[0].source.splitlines()
    for node in ast.parse(code[0].source).body:
        line = lines[node.lineno - 1]
        try:
            assert isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
            ast.literal_eval(node.value)
        except (AssertionError, ValueError):
            found.append(f"parameters: not `name = literal`: {line}")
        if "  # " not in line:
            found.append(f"parameters: no comment on {line}")
    names = {node.targets[0].id for node in ast.parse(code[0].source).body if isinstance(node, ast.Assign)}
    return found + [f"parameters: {name} is missing" for name in sorted({"preset", "retrain", "seed", "runs"} - names)]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_structure(path):
    """Bug: a notebook saved half-run passes strict nbval: a cell without stored output compares equal."""
    found = problems(nbformat.read(path, as_version=4))
    if path.stat().st_size >= MAX_BYTES:
        found.append(f"{path.stat().st_size / 1e6:.2f} MB: keep it under 0.7 MB, with fewer or smaller figures")
    assert not found, "\n".join(found)


def good_notebook():
    """A notebook that breaks no rule."""
    parameters = nbformat.v4.new_code_cell(
        'preset = "lite"  # size\nretrain = False  # anew\nseed = 0  # randomness\nruns = "runs"  # results',
        execution_count=1,
        metadata={"tags": ["parameters"]},
    )
    outputs = [
        nbformat.v4.new_output("stream", name="stdout", text="1 mean 0.5\n"),
        nbformat.v4.new_output("display_data", data={"image/png": "iVBORw0KGgo="}),
    ]
    figure = nbformat.v4.new_code_cell("show(1)", execution_count=2, outputs=outputs)
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    return nbformat.v4.new_notebook(cells=[parameters, figure], metadata=kernel)


BREAKS = {
    "execution counts": lambda nb: nb.cells[1].update(execution_count=None),
    "run all cells in a fresh kernel": lambda nb: nb.cells[1].update(execution_count=7),
    "stored error": lambda nb: nb.cells[1].outputs.append(nbformat.v4.new_output("error", ename="X")),
    "path of a machine": lambda nb: nb.cells[1].outputs[0].update(text="saved /home/me/x.png"),
    "widget state": lambda nb: nb.metadata.update(widgets={}),
    "more than 40 lines": lambda nb: nb.cells[1].update(source="x = 1\n" * 41),
    "ignore tag": lambda nb: nb.cells.extend(
        nbformat.v4.new_markdown_cell("", metadata={"tags": ["nbval-ignore-output"]}) for _ in range(4)
    ),
    "without printed numbers": lambda nb: nb.cells[1].outputs.pop(0),
    "not tagged `parameters`": lambda nb: nb.cells[0].metadata.update(tags=[]),
    "no comment": lambda nb: nb.cells[0].update(source=nb.cells[0].source.replace("  # size", "")),
    "not `name = literal`": lambda nb: nb.cells[0].update(source=nb.cells[0].source + "\nx = int(3)  # x"),
    "retrain is missing": lambda nb: nb.cells[0].update(source=nb.cells[0].source.replace("retrain", "re")),
    "kernelspec": lambda nb: nb.metadata.kernelspec.update(name="my-env"),
}  # fmt: skip


@pytest.mark.parametrize("message", BREAKS)
def test_each_rule_is_enforced(message):
    """Bug: a checker that finds nothing, whatever it is given."""
    notebook = good_notebook()
    assert problems(notebook) == []
    broken = copy.deepcopy(notebook)
    BREAKS[message](broken)
    assert any(message in problem for problem in problems(broken)), problems(broken)


@pytest.mark.parametrize(
    ("text", "is_path"),
    [
        ("/tmp/x", True),
        ("at /work/main", True),
        ("C:\\Users\\me", True),
        ("../runs/home/x", False),
        ("a/tmp/b", False),
        ("https://arxiv.org/home/x", False),
        ("train/work ratio", False),
    ],
)
def test_machine_path(text, is_path):
    """Bug: a pattern that reports web addresses and relative paths, so that people switch the rule off."""
    assert bool(MACHINE_PATH.search(text)) is is_path
