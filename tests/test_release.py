"""What a release rests on: bounds, versions, workflows and forms agree with each other."""

import re
import sys
from pathlib import Path

import pytest
import yaml

import lightning_sparsity

if sys.version_info >= (3, 11):
    import tomllib
else:  # pytest brings it along
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
FORMS = sorted((ROOT / ".github").rglob("*.yml"))
in_a_checkout = pytest.mark.skipif(not FORMS, reason="the source distribution has no workflows")


def workflow(name: str) -> dict[str, dict[str, list[str]]]:
    """The commands of each job, line by line and without comments."""
    jobs = yaml.safe_load((ROOT / ".github/workflows" / name).read_text())["jobs"]
    return {
        job: [line.strip() for step in body["steps"] for line in step.get("run", "").splitlines()]
        for job, body in jobs.items()
    }


def numbers(version: str) -> list[int]:
    """A version without the zeros at its end."""
    found = [int(n) for n in re.findall(r"\d+", version)]
    while found[-1] == 0:
        found.pop()
    return found


def test_the_lowest_versions_are_the_bounds_of_the_project() -> None:
    bounds = re.findall(
        r"^([\w-]+)(?:\[\w+\])?>=([\w.]+)",
        "\n".join(PROJECT["dependencies"] + EXTRAS["test"] + EXTRAS["onnx"]),
        flags=re.MULTILINE,
    )
    pins = re.findall(r"^([\w-]+)==(\S+)$", (ROOT / "tests/lowest.txt").read_text(), re.MULTILINE)
    assert len(bounds) == len(PROJECT["dependencies"] + EXTRAS["test"] + EXTRAS["onnx"])
    assert {n: numbers(v) for n, v in pins} == {n: numbers(v) for n, v in bounds}


def test_the_citation_names_the_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == lightning_sparsity.__version__
    assert citation["license"] == PROJECT["license"]


def test_the_package_has_its_recipes_and_says_that_it_is_typed() -> None:
    package = Path(lightning_sparsity.__file__).parent
    assert (package / "py.typed").is_file()
    assert (package / "recipes" / "curves.yaml").is_file()


@in_a_checkout
@pytest.mark.parametrize("file", FORMS, ids=lambda file: file.name)
def test_workflows_and_forms_are_yaml_with_a_name(file: Path) -> None:
    assert yaml.safe_load(file.read_text())["name"]


@in_a_checkout
def test_workflows_name_extras_that_exist() -> None:
    jobs = [*workflow("ci.yml").values(), *workflow("release.yml").values()]
    lists = re.findall(r"'\.\[([\w,]+)\]'", "\n".join(line for job in jobs for line in job))
    named = {extra for names in lists for extra in names.split(",")}
    assert named
    assert named <= set(EXTRAS)


@in_a_checkout
def test_ci_runs_the_test_command_of_the_readme_on_the_oldest_and_newest_python() -> None:
    (command,) = workflow("ci.yml")["tests"]
    assert command in (ROOT / "README.md").read_text().splitlines()
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]
    known = [c.rpartition(" ")[2] for c in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", c)]
    assert jobs["tests"]["strategy"]["matrix"]["python"] == [known[0], known[-1]]
    assert PROJECT["requires-python"] == f">={known[0]}"


@in_a_checkout
def test_ci_runs_the_checks_that_contributors_run() -> None:
    checks = (ROOT / ".ci/run").read_text().splitlines()
    install, *lint = workflow("ci.yml")["lint"]
    assert install == "python -m pip install -e '.[dev]'"
    assert [line for line in lint if line not in checks] == []
    assert lint


@in_a_checkout
def test_workflows_may_only_read_and_stop_by_themselves() -> None:
    for name in ("ci.yml", "release.yml"):
        whole = yaml.safe_load((ROOT / ".github/workflows" / name).read_text())
        assert whole["permissions"] == {"contents": "read"}
        assert all("timeout-minutes" in job for job in whole["jobs"].values())
