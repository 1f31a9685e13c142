"""What is installed is what the folders hold, pinned, and layered one way."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import worldflow

ROOT = Path(__file__).parent.parent
FOLDERS = {"worldflow": ROOT / "worldflow", "worldflow.envs": ROOT / "envs", "worldflow.agents": ROOT / "agents"}
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
PINS = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
MAY_IMPORT_ENVS = {
    "anomaly_cases.py",
    "bench_speed.py",
    "cli.py",
    "demo.py",
    "import_command.py",
    "score_command.py",
    "ship.py",
}


def sources(folder: Path) -> list[Path]:
    """The Python files under a folder; `**` does not follow the two links in `worldflow/`."""
    return sorted(folder.rglob("*.py"))


def modules(package: str) -> list[str]:
    """Dotted names of a package's modules, the package itself first."""
    folder = FOLDERS[package]
    names = [".".join([package, *p.relative_to(folder).with_suffix("").parts]) for p in sources(folder)]
    return sorted(name.removesuffix(".__init__") for name in names)


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Every module a file imports, wherever it stands, and whether only type checkers see it."""

    def walk(node: ast.AST, typing_only: bool) -> Iterator[tuple[str, bool]]:
        if isinstance(node, ast.Import):
            yield from ((alias.name, typing_only) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno} imports relatively"
            assert node.module is not None
            # `from worldflow import envs` imports worldflow.envs.
            yield from ((f"{node.module}.{alias.name}", typing_only) for alias in node.names)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.body:
                yield from walk(child, True)
            for child in node.orelse:
                yield from walk(child, typing_only)
        else:
            for child in ast.iter_child_nodes(node):
                yield from walk(child, typing_only)

    return walk(ast.parse(path.read_text()), False)


def declared(*extras: str) -> set[str]:
    """Canonical names of the runtime dependencies and of these extras."""
    lines = PROJECT["dependencies"] + [line for e in extras for line in PROJECT["optional-dependencies"][e]]
    return {str(canonicalize_name(Requirement(line).name)) for line in lines} - {"worldflow"}


@cache
def distributions_by_module() -> dict[str, set[str]]:
    """Which installed distributions provide a top-level module."""
    found = importlib.metadata.packages_distributions()
    return {module: {canonicalize_name(name) for name in names} for module, names in found.items()}


def run_python(code: str, *arguments: str, options: tuple[str, ...] = ("-I",)) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *options, "-c", code, *arguments], capture_output=True, text=True)


def test_the_package_list_is_the_folders() -> None:
    found = set()
    for package, folder in FOLDERS.items():
        for path in sources(folder):
            found.add(".".join([package, *path.relative_to(folder).parent.parts]))
    assert set(PYPROJECT["tool"]["setuptools"]["packages"]) == found
    assert len(PYPROJECT["tool"]["setuptools"]["packages"]) == len(found)
    for package in FOLDERS:
        assert (ROOT / PYPROJECT["tool"]["setuptools"]["package-dir"][package]).samefile(FOLDERS[package])
    for package in found:
        assert (FOLDERS["worldflow"] / Path(*package.split(".")[1:]) / "__init__.py").is_file()


@pytest.mark.parametrize("name", ["envs", "agents"])
def test_the_links_for_type_checkers_lead_to_the_folders(name: str) -> None:
    link = ROOT / "worldflow" / name
    assert link.is_symlink()
    assert link.readlink() == Path("..", name)


def test_the_dependency_arrow_points_one_way() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {module}"
        for package, forbidden in {
            "worldflow": ("worldflow.envs", "worldflow.agents"),
            "worldflow.envs": ("worldflow.agents",),
        }.items()
        for path in sources(FOLDERS[package])
        if not (package == "worldflow" and path.name in MAY_IMPORT_ENVS)
        for module, _ in imports(path)
        if (module + ".").startswith(tuple(f + "." for f in forbidden))
    ]
    assert not wrong


def test_every_import_is_a_declared_dependency() -> None:
    wrong = []
    for folder in [*FOLDERS.values(), ROOT / "tests"]:
        beside = {path.stem for path in sources(ROOT / "tests")} if folder.name == "tests" else set()
        for path in sources(folder):
            for module, typing_only in imports(path):
                top = module.partition(".")[0]
                if top in sys.stdlib_module_names or top == "worldflow" or top in beside:
                    continue
                # jaxtyping, a tool of development, is seen by type checkers only.
                for_development = typing_only or folder.name == "tests"
                allowed = (
                    declared("agents", "bench", "text", "dev")
                    if for_development
                    else declared("agents", "bench", "lerobot", "text")
                )
                if not (distributions_by_module().get(top, {canonicalize_name(top)}) & allowed):
                    wrong.append(f"{path.relative_to(ROOT)} imports {top}")
    assert not wrong


def test_every_dependency_is_pinned_direct_or_not() -> None:
    assert all(re.fullmatch(r"[a-z0-9-]+", name) for name in PINS), "names stand in their canonical form"
    assert not [pin for pin in PINS.values() if "+" in pin], "a local build is one machine's, not everybody's"
    queue = [Requirement(line) for line in PROJECT["dependencies"]]
    queue += [Requirement(line) for lines in PROJECT["optional-dependencies"].values() for line in lines]
    seen: set[tuple[str, str]] = set()
    while queue:
        requirement = queue.pop()
        name = canonicalize_name(requirement.name)
        for extra in {"", *requirement.extras}:
            if name == "worldflow" or (name, extra) in seen:
                continue
            seen.add((name, extra))
            try:
                lines = importlib.metadata.requires(name) or []
            except importlib.metadata.PackageNotFoundError:
                continue  # belongs to an extra that is not installed here
            queue += [r for r in map(Requirement, lines) if r.marker is None or r.marker.evaluate({"extra": extra})]
    assert len(seen) > len(declared())
    assert {name for name, _ in seen} - set(PINS) == set()


def test_importing_worldflow_prints_nothing_and_loads_no_simulator() -> None:
    result = run_python("import sys, worldflow; sys.exit(str({'gymnasium', 'mujoco', 'minari'} & set(sys.modules)))")
    assert (result.stdout, result.stderr.strip()) == ("", "set()")


def test_the_model_needs_neither_simulator_nor_development_tools() -> None:
    block = """
import importlib, sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"av", "gymnasium", "mujoco", "minari", "jaxtyping", "tensorboard",
                                      "transformers", "tokenizers", "huggingface_hub"}:
            raise ModuleNotFoundError(f"{name} is not installed on a training node", name=name)
sys.meta_path.insert(0, Missing())
for name in sys.argv[1:]:
    importlib.import_module(name)
"""
    exempt = {f"worldflow.{Path(name).stem}" for name in MAY_IMPORT_ENVS}
    result = run_python(block, *[name for name in modules("worldflow") if name not in exempt])
    assert result.returncode == 0, result.stderr


def test_the_command_is_a_module_too() -> None:
    result = subprocess.run([sys.executable, "-m", "worldflow", "--version"], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, f"worldflow {worldflow.__version__}\n")


@pytest.mark.parametrize("links", ["absent", "text"])
def test_an_editable_install_needs_no_links(links: str, tmp_path: Path) -> None:
    copy, out, site = tmp_path / "copy", tmp_path / "out", tmp_path / "site"
    for folder in FOLDERS.values():
        ignored = ("__pycache__", "envs", "agents") if folder.name == "worldflow" else ("__pycache__",)
        shutil.copytree(folder, copy / folder.name, ignore=shutil.ignore_patterns(*ignored))
    if links == "text":  # what git leaves where a file system has no links
        for name in ("envs", "agents"):
            (copy / "worldflow" / name).write_text(f"../{name}")
    for path in [ROOT / "pyproject.toml", ROOT / "LICENSE", *ROOT.glob("README.md")]:
        shutil.copy(path, copy)
    out.mkdir()
    built = subprocess.run(
        [sys.executable, "-c", "import sys, setuptools.build_meta as b; b.build_editable(sys.argv[1])", str(out)],
        cwd=copy,
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    (wheel,) = out.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(site)
    (metadata,) = importlib.metadata.distributions(path=[str(site)])
    assert metadata.version == worldflow.__version__

    names = [name for package in FOLDERS for name in modules(package)]
    find = """
import importlib.util, site, sys
site.addsitedir(sys.argv[1])
sys.path.append(sys.argv[2])
for name in sys.argv[3:]:
    print(name, importlib.util.find_spec(name).origin)
"""
    # -S keeps the editable install of the tests' own environment out of sight; its dependencies are appended.
    result = run_python(find, str(site), sysconfig.get_path("purelib"), *names, options=("-I", "-S"))
    assert result.returncode == 0, result.stderr
    found = dict(line.split(maxsplit=1) for line in result.stdout.splitlines())
    assert list(found) == names
    assert not {name: origin for name, origin in found.items() if not Path(origin).is_relative_to(copy)}
