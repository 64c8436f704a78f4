"""Packaging: a wheel from an sdist has every file and trains alone; checkouts work as they are; PyPI's page.

Recipes stand outside the package: a wheel ships them as fastpsl.recipes, and a checkout finds them by place.
"""

import contextlib
import email.message
import email.policy
import importlib.metadata
import os
import re
import shutil
import site
import subprocess
import sys
import zipfile
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple

import pytest
from markdown_it import MarkdownIt
from typing_extensions import override

import fastpsl
from fastpsl.kernels import draws
from fastpsl.kernels.fused_cpu import by_table
from fastpsl.pipelines.beton import shard
from fastpsl.pipelines.image import libturbo
from fastpsl.scripts.distribution import NAME

ROOT = Path(__file__).resolve().parent.parent
BUILD = "from setuptools.build_meta import *; import sys; sys.stdout.write(build_{kind}(sys.argv[1]))"
LINKED = ("kernels", "pipelines")
REPOSITORY = "https://github.com/fastpsl/fastpsl"
TRAIN = (
    "-m fastpsl.cli train rotation --backbone resnet18 --short-side 36 --size-px 32 --epochs 1 "
    "--max-steps-per-stage 1 --augment-backend torch --no-tensorboard --out run"
)
README = """[page](docs/page.md), [anchor](#title), [there](https://a.org/x.md) `[code](docs/code.md)`
![two
lines](./docs/images/a.png) [by reference][page]

[page]: docs/reference.md

<img alt="x" src='docs/light.png'> <source srcset="docs/dark.png 1x, https://b.org/dark.png 2x">

```html
<img src="docs/code.png"> [code](docs/code.md)
```
"""
PLAIN, RAW = f"{REPOSITORY}/blob/v{fastpsl.__version__}", "https://raw.githubusercontent.com/fastpsl/fastpsl"
PICTURES = f"{RAW}/v{fastpsl.__version__}"


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """Run a program without this checkout on its path, and return its stdout."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    process = subprocess.run(
        command, cwd=cwd, env=inherited | environment, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


def build(kind: str, source: Path, out: Path) -> Path:
    out.mkdir(exist_ok=True)
    run(sys.executable, "-c", BUILD.format(kind=kind), str(out), cwd=source)
    return next(path for path in out.iterdir() if path.suffix in {".gz", ".whl"})


def copied_tree(folder: Path) -> Path:
    leave = shutil.ignore_patterns(
        ".*", "build", "dist", "runs", "__pycache__", "*.egg-info", "*.beton", "*.so"
    )
    return Path(shutil.copytree(ROOT, folder, ignore=leave, symlinks=True))


def with_text_files_as_links(tree: Path) -> Path:
    """Replace the links on top by what git writes on file systems without links."""
    for name in LINKED:
        (tree / name).unlink()
        (tree / name).write_text(f"fastpsl/{name}")
    return tree


class Built(NamedTuple):
    """A tree, the sdist of it, and the wheel of that."""

    tree: Path
    sdist: Path
    wheel: Path


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    folder = tmp_path_factory.mktemp("packaging")
    tree = with_text_files_as_links(copied_tree(folder / "tree"))
    (tree / "fastpsl" / "kernels" / "new").mkdir()
    (tree / "fastpsl" / "kernels" / "new" / "__init__.py").touch()  # ships without being listed
    source = folder / "unpacked"
    source.mkdir()
    sdist = build("sdist", tree, folder / "sdist")
    subprocess.run(["tar", "xf", str(sdist), "-C", str(source), "--strip-components=1"], check=True)
    assert (source / "toolchain/ffcv-shim/include/opencv2/opencv.hpp").exists()
    return Built(tree, sdist, build("wheel", source, folder / "wheel"))


def metadata_of(wheel: Path) -> email.message.Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return email.message_from_bytes(archive.read(name))


def environment_with(*requirements: str | Path, folder: Path, **environment: str) -> Path:
    """Make a virtual environment that has this one's packages behind its own; return its Python."""
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
    python = folder / "bin" / "python"
    packages = Path(run(python, "-c", "import site; print(*site.getsitepackages())", cwd=folder).strip())
    # A path alone: this environment's own .pth files, such as an editable fastpsl's, are not read.
    (packages / "of_the_tests.pth").write_text("\n".join(site.getsitepackages()))
    run(
        sys.executable, "-m", "pip", "-q", "--disable-pip-version-check", "--python", str(python), "install",
        "--no-deps", "--no-index", "--no-build-isolation", *requirements, cwd=folder, **environment,
    )  # fmt: skip
    return python


def test_wheel_from_sdist_holds_every_file(built: Built) -> None:
    with zipfile.ZipFile(built.wheel) as archive:
        shipped = {name for name in archive.namelist() if name.startswith("fastpsl/")}
    files = (path.relative_to(built.tree) for path in (built.tree / "fastpsl").rglob("*") if path.is_file())
    # The C libraries are shipped built, where they can be built, and not as source.
    expected = {path.as_posix() for path in files if "__pycache__" not in path.parts}
    expected = {name for name in expected if not name.endswith((".c", ".h", ".so"))}
    libraries = {name for name in shipped if name.endswith(".so")}
    built_here = {"fastpsl/kernels/_draws.abi3.so"} if draws.library() else set()
    built_here |= {"fastpsl/kernels/_look_up.abi3.so"} if by_table.look_up() else set()
    built_here |= {"fastpsl/pipelines/beton/_read_rows.abi3.so"} if shard.library() else set()
    built_here |= set() if libturbo.why_missing() else {"fastpsl/pipelines/decoders/_turbo.abi3.so"}
    assert libraries == built_here
    expected |= {f"fastpsl/recipes/{path.name}" for path in (built.tree / "recipes").glob("*.py")}
    some = "kernels/new/__init__.py kernels/__init__.pyi tables/psl.json tables/page.md.jinja py.typed"
    assert {f"fastpsl/{name}" for name in (*some.split(), "recipes/jigsaw_r50.py")} <= expected
    assert shipped - libraries == expected


def test_metadata_for_pypi(built: Built) -> None:
    metadata, version = metadata_of(built.wheel), fastpsl.__version__
    assert metadata["Name"] == NAME == "fastpsl-vision"
    assert metadata["License-Expression"] == "Apache-2.0" and metadata["License-File"] == "LICENSE"
    assert metadata["Version"] == version and built.sdist.name == f"fastpsl_vision-{version}.tar.gz"
    assert re.findall(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE) == [version]


def test_no_requirement_nor_extra_is_under_the_agpl(built: Built) -> None:
    """LightlyTrain is, and so it stands in the documentation alone."""
    names = [re.split(r"[^\w.-]", line)[0] for line in metadata_of(built.wheel).get_all("Requires-Dist", [])]
    assert "lightly" in names and "lightly-train" not in [name.replace("_", "-") for name in names]
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            of_it = importlib.metadata.metadata(name)
            fields = ("License", "License-Expression", "Classifier")
            licences = [text.split("\n")[0] for field in fields for text in of_it.get_all(field, [])]
            assert not re.search("AGPL|Affero", " ".join(licences)), name


def test_a_wheel_with_libjpeg_turbo_carries_its_notices(tmp_path: Path) -> None:
    """A build with a library of one's own fails where it has no notices. No code compiles here."""
    tree, prefix = copied_tree(tmp_path / "tree"), tmp_path / "libjpeg"
    (prefix / "doc").mkdir(parents=True)
    code = BUILD.format(kind="wheel")
    command = [sys.executable, "-c", code, str(tmp_path)]
    inherited = {**os.environ, "FASTPSL_LIBJPEG": str(prefix), "CC": "false"}
    inherited.pop("PYTHONPATH", None)
    refused = subprocess.run(command, cwd=tree, env=inherited, capture_output=True, text=True, check=False)
    assert refused.returncode and f"{prefix}/doc/LICENSE.md" in refused.stderr
    texts = {"LICENSE.md": b"the terms of BSD\n", "README.ijg": b"the notice\xe9\r\n"}
    for name, text in texts.items():
        (prefix / "doc" / name).write_bytes(text)
    subprocess.run(command, cwd=tree, env=inherited, capture_output=True, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    notices = [f"licenses/libjpeg-turbo/{name}" for name in texts]
    assert metadata_of(wheel).get_all("License-File") == ["LICENSE", *notices]
    with zipfile.ZipFile(wheel) as archive:
        (info,) = {name.partition("/")[0] for name in archive.namelist() if ".dist-info/" in name}
        assert [archive.read(f"{info}/licenses/{notice}") for notice in notices] == [*texts.values()]


def test_twine_finds_nothing_to_mend(built: Built) -> None:
    pytest.importorskip("twine")
    pytest.importorskip("comrak")  # without it, twine does not look at Markdown
    run(sys.executable, "-m", "twine", "check", "--strict", built.sdist, built.wheel, cwd=built.sdist.parent)


class Addresses(HTMLParser):
    """A list of what links and pictures of a page lead to."""

    def __init__(self, markdown: str):
        super().__init__()
        self.found: list[str] = []
        self.feed(MarkdownIt("commonmark", {"html": True}).enable("table").render(markdown))

    @override
    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("href", "src"):
                self.found.append(value or "")
            elif name == "srcset":
                self.found += [candidate.split()[0] for candidate in (value or "").split(",")]


def test_links_of_each_kind_become_absolute(tmp_path: Path) -> None:
    tree = copied_tree(tmp_path / "tree")
    (tree / "README.md").write_text(README)
    code = "from setuptools.build_meta import *; prepare_metadata_for_build_wheel('.')"
    run(sys.executable, "-c", code, cwd=tree)
    (metadata,) = tree.glob("*.dist-info/METADATA")
    page = email.message_from_bytes(metadata.read_bytes()).get_payload()
    assert isinstance(page, str)
    assert Addresses(page).found == [
        f"{PLAIN}/docs/page.md", "#title", "https://a.org/x.md", f"{PICTURES}/docs/images/a.png",
        f"{PLAIN}/docs/reference.md", f"{PICTURES}/docs/light.png", f"{PICTURES}/docs/dark.png",
        "https://b.org/dark.png",
    ]  # fmt: skip
    assert "`[code](docs/code.md)`" in page and '<img src="docs/code.png"> [code](docs/code.md)\n```' in page


WRONG = re.compile(r"""pip\s+install\s+(?:-\S+\s+)*["'`]?fastpsl(?!-vision)\b|["'`]fastpsl\\?\[""")


def test_every_hint_names_our_distribution() -> None:
    """`fastpsl` alone would install another project."""
    folders = ("fastpsl", "recipes", "bench", "docs", "tests", "toolchain", ".github")
    texts = [path for folder in folders for path in (ROOT / folder).rglob("*.*") if path.suffix in
             {".py", ".pyi", ".md", ".sh", ".yml", ".json", ".toml"}]  # fmt: skip
    texts += [
        path for path in ROOT.glob("*") if path.is_file() and path.suffix in {".md", ".toml", ".cff", ""}
    ]
    assert len(texts) > 500
    wrong = [f"{path.relative_to(ROOT)}: {found[0]}" for path in texts if path != Path(__file__)
             for found in WRONG.finditer(path.read_text(errors="replace"))]  # fmt: skip
    assert not wrong
    for text in (
        'pip install "fastpsl[ffcv]"',
        "pip install -U fastpsl",
        "`fastpsl[dev]`",
        r"'fastpsl\[x\]'",
    ):
        assert WRONG.search(text), text
    for text in ('pip install "fastpsl-vision[ffcv]"', "pip uninstall fastpsl", "x = fastpsl[0]"):
        assert not WRONG.search(text), text


SHIPPED = """
import fastpsl.recipes.jigsaw_r50 as recipe, fastpsl
from fastpsl.scripts.distribution import stranger, version_line
from fastpsl.scripts.recipe_files import recipe_path
print(fastpsl.__file__, recipe.__file__, recipe_path('jigsaw_r50'), stranger(), version_line(), sep=chr(10))
"""


@pytest.fixture(scope="module")
def installed(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the Python of an environment into which the wheel was installed."""
    return environment_with(built.wheel, folder=tmp_path_factory.mktemp("installed") / "venv")


def test_a_wheel_has_its_recipes(installed: Path, tmp_path: Path) -> None:
    package, recipe, found, stranger, version = run(installed, "-c", SHIPPED, cwd=tmp_path).splitlines()
    home = installed.parents[1]
    assert Path(package).is_relative_to(home) and Path(recipe).is_relative_to(home)
    assert (found, stranger) == (recipe, "None")
    assert version.startswith(f"fastpsl-vision {fastpsl.__version__}, Python ")
    assert "doctor" in run(installed.with_name("fastpsl"), "--help", cwd=tmp_path)


@pytest.mark.slow
def test_a_wheel_trains(installed: Path, tmp_path: Path) -> None:
    run(installed, *TRAIN.split(), cwd=tmp_path)
    assert (tmp_path / "run" / "metrics.jsonl").read_text().count("\n") > 0


EDITABLE = """
import fastpsl
from fastpsl.scripts.distribution import stranger
from fastpsl.scripts.recipe_files import find_recipe, recipe_path
print(fastpsl.__file__, recipe_path('knn'), find_recipe('knn').name, stranger(), sep=chr(10))
"""


@pytest.mark.slow
def test_an_editable_install_finds_the_recipes_of_its_checkout(tmp_path: Path) -> None:
    tree = copied_tree(tmp_path / "tree")
    python = environment_with("-e", tree, folder=tmp_path / "venv", CC="false")
    package, recipe, name, stranger = run(python, "-c", EDITABLE, cwd=tmp_path / "venv").splitlines()
    assert (Path(package), Path(recipe)) == (tree / "fastpsl" / "__init__.py", tree / "recipes" / "knn.py")
    assert (name, stranger) == ("knn", "None")


def test_a_bare_checkout_is_imported_without_an_install(tmp_path: Path) -> None:
    """Covers a checkout with text files as links, as on file systems without links."""
    tree = with_text_files_as_links(copied_tree(tmp_path / "tree"))
    code = (
        "import fastpsl.kernels.draws, fastpsl.pipelines.interface.dataset as module; print(module.__file__)"
    )
    printed = run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(tree))
    assert printed.strip() == str(tree / "fastpsl" / "pipelines" / "interface" / "dataset.py")


FIND = """
from fastpsl.scripts.recipe_files import find_recipe, recipe_path
print(recipe_path('knn'), find_recipe('knn').name)
"""


def test_recipes_are_found_in_a_checkout_and_in_an_installed_package(tmp_path: Path) -> None:
    """The installed package's own come first, whatever stands beside it."""
    tree = copied_tree(tmp_path / "tree")
    for place in (tree / "recipes", tree / "fastpsl" / "recipes"):
        shutil.copytree(ROOT / "recipes", place, dirs_exist_ok=True)
        printed = run(sys.executable, "-c", FIND, cwd=tmp_path / "tree" / "docs", PYTHONPATH=str(tree))
        assert printed.split() == [str(place / "knn.py"), "knn"]


@pytest.mark.parametrize("name", LINKED)
def test_links_on_top_are_tracked_and_relative(name: str) -> None:
    assert os.readlink(ROOT / name) == f"fastpsl/{name}"
    if (ROOT / ".git").exists():
        listed = subprocess.run(
            ["git", "-C", str(ROOT), "ls-files", "-s", name], capture_output=True, text=True, check=True
        )
        assert listed.stdout.startswith("120000 "), listed.stdout
