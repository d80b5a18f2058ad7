"""All notebooks run from nothing at the smallest preset, and say so when a parameter is misspelt."""

from pathlib import Path

import nbformat
import pytest

from seedx_lite.report import reproduce, run_notebook

code, md = nbformat.v4.new_code_cell, nbformat.v4.new_markdown_cell
NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_smoke(path, tmp_path):
    """Bug: a notebook that only works with the artifacts that are already on its author's disk."""
    parameters = {"preset": "smoke", "retrain": True, "runs": str(tmp_path / "runs")}
    chapter = run_notebook(path, tmp_path / path.name, parameters, progress=False)
    assert not chapter.failure, chapter.failure
    assert chapter.title != path.stem and chapter.question, "it needs a title and a question"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_unknown_parameter_of_a_notebook(path, tmp_path):
    """Bug: papermill warns about a misspelt parameter, runs with the default and exits 0."""
    with pytest.raises(ValueError, match=r"no parameter 'retrian'.*retrain"):
        run_notebook(path, tmp_path / path.name, {"retrian": True})


@pytest.fixture
def book(tmp_path):
    """A folder with one notebook of two figures and one that fails."""
    folder = tmp_path / "book"
    folder.mkdir()
    text = [
        "# A <small> book\n\n**Question.** Does `it` run?\n\nMore words.",
        "## Results\n\nThe line *rises* with [scale](x.md).",
    ]
    draw = "%matplotlib inline\nfrom matplotlib import pyplot\nprint('mean', 2 * scale)\npyplot.plot([1, 2]);"
    good = [md(text[0]), parameters(), md(text[1]), code(draw), code(draw)]
    for name, cells in (("00_good", good), ("01_bad", [parameters(), code("raise KeyError('which')")])):
        kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
        nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), folder / f"{name}.ipynb")
    return folder


def parameters():
    return code("scale = 1  # a factor", metadata={"tags": ["parameters"]})


def test_report(book, tmp_path, capsys):
    """Bugs: a failed notebook hidden in a fine-looking report; pictures outside the page; dead links."""
    folder = tmp_path / "runs" / "lite"
    assert reproduce(book, folder, {"scale": 3}) == 1
    page = (folder / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 2
    assert "<pre>mean 6</pre>" in page
    assert "The line <i>rises</i> with scale." in page
    assert "A &lt;small&gt; book" in page and "Does <code>it</code> run?" in page
    assert "1 of 2 notebooks failed" in page and "KeyError" in page
    assert 'href="notebooks/00_good.ipynb"' in page and (folder / "notebooks" / "00_good.ipynb").is_file()
    assert "src=http" not in page and "<script" not in page and "<link" not in page, "it must need nothing else"
    assert f"report: {folder / 'report.html'}" in capsys.readouterr().out


def test_report_of_good_notebooks(book, tmp_path):
    """Bug: an exit status of 1 that no one can rely on."""
    assert reproduce(book, tmp_path, {}, only="good") == 0


def test_unknown_parameter_stops_before_the_first_run(book, tmp_path):
    """Bug: the misspelling is found after the first notebooks have run for minutes."""
    with pytest.raises(ValueError, match=r"00_good.ipynb has no parameter 'scael'; it has scale"):
        reproduce(book, tmp_path / "out", {"scael": 3})
    assert not (tmp_path / "out").exists()


def test_no_notebooks(tmp_path):
    """Bug: `reproduce` in the wrong folder ends well with an empty report."""
    with pytest.raises(FileNotFoundError, match="no notebook in"):
        reproduce(tmp_path, tmp_path / "out", {})
