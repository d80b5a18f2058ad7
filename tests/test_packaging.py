"""The files that describe the project agree with each other and with the code."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import seedx_lite

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "seedx_lite"
SOURCES = sorted(PACKAGE.rglob("*.py"))
PIN = re.compile(r"^([\w.-]+)==(\S+)$", re.M)
# Which parts of the package a part may import; cli, doctor and report may import all.
MAY_IMPORT = {
    "presets": set(),
    "artifacts": set(),
    "world": set(),
    "models": set(),
    "data": {"world"},
    "training": {"data", "world", "models", "pipelines", "presets", "artifacts"},
    "pipelines": {"data", "world", "models", "presets", "artifacts"},
    "evaluation": {"pipelines", "world", "data", "models", "presets", "artifacts"},
    "viz": {"world", "data"},
}


def test_versions_agree():
    """Bug: conda and pip users get different packages, or a dependency that nobody pinned."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = project["dependencies"] + project["optional-dependencies"]["test"]
    names = {re.match(r"[\w.-]+", item)[0] for item in declared}
    pins = dict(PIN.findall((ROOT / "constraints.txt").read_text()))
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    conda = next(item["pip"] for item in environment if isinstance(item, dict))
    assert set(pins) == names
    assert {item for item in conda if item != "-e ."} == {f"{name}=={pin}" for name, pin in pins.items()}
    assert "-e ." in conda
    python = next(item for item in environment if str(item).startswith("python="))
    assert project["requires-python"] == ">=" + python.removeprefix("python=")


def test_pins_satisfy_bounds():
    """Bug: a lower bound above the pin, so that the documented install cannot be resolved."""
    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = dict(PIN.findall((ROOT / "constraints.txt").read_text()))
    for item in project["dependencies"] + project["optional-dependencies"]["test"]:
        requirement = Requirement(item)
        assert requirement.specifier.contains(pins[requirement.name]), item


def test_declared_dependencies_are_those_imported():
    """Bug: the package imports something that only happens to be installed, or declares what nothing uses."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {re.match(r"[\w.-]+", item)[0] for item in project["dependencies"]}
    imported = {name.partition(".")[0] for source in SOURCES for name in _imports(source)}
    third_party = imported - set(sys.stdlib_module_names) - {"seedx_lite"}
    third_party = {{"PIL": "pillow"}.get(name, name) for name in third_party}
    assert third_party <= declared
    # run, not imported, by the package
    assert declared - third_party <= {"jupyterlab", "ipywidgets", "matplotlib", "tokenizers"}


def test_version_is_written_once():
    """Bug: CITATION.cff names a version that was never released."""
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == seedx_lite.__version__


def test_package_data_exists():
    """Bug: an installed wheel without presets, found by whoever does not work in the checkout."""
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["seedx_lite"]
    packed = {path for pattern in patterns for path in PACKAGE.glob(pattern)}
    data = {path for path in PACKAGE.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert data == packed


@pytest.mark.parametrize("modules", ["seedx_lite", "seedx_lite.cli, seedx_lite.presets, seedx_lite.report"])
def test_import_is_light(modules):
    """Bug: `import seedx_lite`, or a misspelt command, waits seconds for torch."""
    heavy = ("torch", "diffusers", "transformers", "numpy")
    code = f"import sys, {modules}; print([name for name in {heavy} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert run.stdout.strip() == "[]"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_source(path):
    """Bugs: an import against the direction of the layers; a file too long to read; the path of a machine."""
    parts = path.relative_to(PACKAGE).parts
    part = parts[0].removesuffix(".py")
    imported = {name.split(".")[1] for name in _imports(path) if name.startswith("seedx_lite.")}
    if part in MAY_IMPORT:
        assert imported - {part, "__version__"} <= MAY_IMPORT[part]
    text = path.read_text()
    assert text.count("\n") <= 400
    assert not re.search(r"(?<![\w.~/-])/(?:home|work|root|Users)/\w", text)


def test_package_can_be_finished():
    """Bug: a package that grows until no reader gets to its end. Docstrings and comments help to get there."""
    assert sum(map(_lines_of_code, SOURCES)) <= 9550


def _lines_of_code(path: Path) -> int:
    text = path.read_text()
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    first = [node.body[0] for node in ast.walk(ast.parse(text)) if isinstance(node, documented) and node.body]
    strings = [n for n in first if isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant)]
    prose = {line for node in strings for line in range(node.lineno, node.end_lineno + 1)}
    lines = enumerate(map(str.strip, text.splitlines()), 1)
    return sum(bool(line) and not line.startswith("#") and number not in prose for number, line in lines)


def test_lint():
    """Bug: style that is a rule here and there only."""
    for command in (["check", "-q"], ["format", "--check", "-q"]):
        subprocess.run([sys.executable, "-m", "ruff", *command, ROOT], check=True)


def test_ci_runs_the_tests():
    """Bug: continuous integration runs something else than everyone else does."""
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    commands = [line for line in script.read_text().splitlines() if line and not line.startswith("#")]
    assert commands[-1] == "exec make test"
    [job] = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"].values()
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    recipe = re.search(r"^test:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.M)[1]
    assert "pytest" in recipe and "--nbval " in recipe and "--dist loadscope" in recipe


def _imports(path: Path) -> set[str]:
    """Absolute names of everything that a file imports, relative imports resolved."""
    package = ["seedx_lite", *path.relative_to(PACKAGE).parts[:-1]]
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] + ([node.module] if node.module else [])
            names |= {".".join([*base, alias.name]) for alias in node.names}
    return names
