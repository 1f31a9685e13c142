"""Builds the sdist and from it the wheel, installs the wheel elsewhere, and imports and loads all that it holds.

The scratch environment sees the dependencies of the environment this runs in, but none of its `.pth` files:
an editable install of the same package stays out of sight, and so does the repository.

Usage: python .ci/check_wheel.py DIRECTORY_FOR_THE_BUILT_FILES
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import tempfile
import venv
import zipfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent

# Runs in the scratch environment: the modules' names come as arguments.
IMPORT_ALL = """
import importlib, importlib.metadata, sys
root = sys.prefix
for name in sys.argv[1:]:
    module = importlib.import_module(name)
    assert module.__file__.startswith(root), f"{name} came from {module.__file__}, not from the wheel"
(script,) = importlib.metadata.distribution("worldflow").entry_points.select(group="console_scripts")
assert callable(script.load()), f"{script.value} is not callable"
import worldflow
for name in worldflow.worlds():
    worldflow.load(name)
print(f"worldflow {importlib.metadata.version('worldflow')} from the wheel:", end=" ")
print(f"{len(sys.argv) - 1} modules imported, {len(worldflow.worlds())} worlds loaded")
"""


MAX_WORLDS = 25_000_000
"""Most bytes that all worlds in the wheel may take together."""


def expected_files() -> set[str]:
    """What the three source folders and the worlds that ship hold, under the names the wheel gives it."""
    folders = {"worldflow": "worldflow", "worldflow/envs": "envs", "worldflow/agents": "agents"}
    files = {
        f"{package}/{path.name}" for package, folder in folders.items() for path in (REPOSITORY / folder).glob("*.py")
    }
    worlds = {path.relative_to(REPOSITORY).as_posix() for path in (REPOSITORY / "worldflow" / "worlds").glob("*/*")}
    return files | worlds | {"worldflow/py.typed"}


def main() -> None:
    """Exits with 0 if every module of the built wheel imports and every world of it loads."""
    dist = Path(sys.argv[1]).resolve()
    shutil.rmtree(dist, ignore_errors=True)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(dist), str(REPOSITORY)]
    built = subprocess.run(command, capture_output=True, text=True)
    if built.returncode:
        sys.exit(built.stdout + built.stderr)
    (wheel,) = dist.glob("*.whl")

    names = [name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name]
    if sorted(names) != sorted(expected_files()):
        wrong = set(names) ^ expected_files() or "a file stands twice"
        sys.exit(f"{wheel.name} does not hold exactly the source folders' files: {wrong}")
    size = sum(info.file_size for info in zipfile.ZipFile(wheel).infolist() if "/worlds/" in info.filename)
    if size > MAX_WORLDS:
        sys.exit(f"the worlds of {wheel.name} take {size} bytes together; {MAX_WORLDS} are promised as the most")
    sources = sorted(name.removesuffix(".py") for name in names if name.endswith(".py"))
    modules = [name.removesuffix("/__init__").replace("/", ".") for name in sources]

    with tempfile.TemporaryDirectory() as scratch:
        venv.create(scratch, with_pip=False)
        python = Path(scratch, "bin", "python")
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(python)]
        subprocess.run([*pip, "install", "--quiet", "--no-deps", str(wheel)], check=True)
        site = sysconfig.get_path("purelib", vars={"base": scratch})
        Path(site, "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
        result = subprocess.run([python, "-I", "-c", IMPORT_ALL, *modules], cwd=scratch)
    sys.exit(result.returncode)


if __name__ == "__main__":
    main()
