"""Hand over to setuptools what pyproject.toml cannot say: the recipes' folder, PyPI's page, the licences."""

import ast
import os
import re
import shutil
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
REPOSITORY = "fastpsl/fastpsl"
# Addresses in Markdown and in HTML within it. Code comes first, so that it stays as it is.
ADDRESS = re.compile(
    r"""
    (?P<code>  ^\ {0,3}(?P<fence>`{3,}|~{3,}) .*? (?:^\ {0,3}(?P=fence)[`~]*\ *$ | \Z)
             | (?<!`)(?P<ticks>`+)(?!`) (?:(?!\n\s*\n).)+? (?<!`)(?P=ticks)(?!`))
    | (?P<before>  (?P<picture>!\[[^\]]*\]\(\s*<?)
                 | \]\(\s*<?
                 | ^\ {0,3}\[(?!\^)[^\]\n]+\]:\s+<? )(?P<address>[^\s)>]+)
    | (?P<name>(?<=\s)(?:src|srcset|href)\s*=\s*)(?P<quote>["'])(?P<value>.*?)(?P=quote)
    """,
    re.VERBOSE | re.MULTILINE | re.DOTALL,
)


class BuildWithRecipes(build_py):
    """A build_py that ships recipes/, which stands outside the package, as fastpsl.recipes."""

    def finalize_options(self) -> None:
        """Add the recipes to the packages that pyproject.toml finds."""
        super().finalize_options()
        self.packages = [*self.packages, "fastpsl.recipes"]
        self.package_dir["fastpsl.recipes"] = "recipes"


def version() -> str:
    """Return the literal `__version__` of fastpsl/__init__.py, without an import of torch."""
    for node in ast.parse((ROOT / "fastpsl" / "__init__.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__version__":
            return str(ast.literal_eval(node.value))
    raise AssertionError("fastpsl/__init__.py has no __version__")


def absolute_links(markdown: str, tag: str) -> str:
    """Return Markdown whose relative links and pictures lead to the repository.

    PyPI shows the README away from its neighbours. Code, absolute addresses and anchors stay as they are.

    Args:
        markdown: The text of README.md, which stands at the top of the repository.
        tag: The tag of the version, such as v0.1.0.
    """

    def absolute(address: str, *, is_picture: bool) -> str:
        if re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*:|//|#", address):
            return address
        path = address.removeprefix("./")
        if is_picture:
            return f"https://raw.githubusercontent.com/{REPOSITORY}/{tag}/{path}"
        return f"https://github.com/{REPOSITORY}/blob/{tag}/{path}"

    def replaced(match: re.Match[str]) -> str:
        if match["code"]:
            return match[0]
        if match["before"]:
            return match["before"] + absolute(match["address"], is_picture=bool(match["picture"]))
        attribute, value = match["name"], match["value"].strip()
        if attribute.startswith("srcset"):  # such as "small.png 1x, large.png 2x"
            candidates = (candidate.split(maxsplit=1) for candidate in value.split(",") if candidate.strip())
            value = ", ".join(
                " ".join([absolute(path, is_picture=True), *size]) for path, *size in candidates
            )
        else:
            value = absolute(value, is_picture=attribute.startswith("src"))
        return f"{attribute}{match['quote']}{value}{match['quote']}"

    return ADDRESS.sub(replaced, markdown)


# The C libraries have no Python in them: ctypes loads them, and they serve every version. Without a compiler
# or libjpeg other code does their work. No product is fused with a sum, so all CPUs compute the same bits.
COMPILE_ARGS = ["-O3", "-std=gnu11", "-fvisibility=hidden", "-ffp-contract=off"]
DECODERS = "fastpsl/pipelines/decoders"
draws = Extension(
    "fastpsl.kernels._draws",
    ["fastpsl/kernels/draws.c"],
    libraries=["m"],
    extra_compile_args=COMPILE_ARGS,
    py_limited_api=True,
    optional=True,
)
look_up = Extension(
    "fastpsl.kernels._look_up",
    ["fastpsl/kernels/look_up.c"],
    libraries=["m"],
    extra_compile_args=COMPILE_ARGS,
    py_limited_api=True,
    optional=True,
)
read_rows = Extension(
    "fastpsl.pipelines.beton._read_rows",
    ["fastpsl/pipelines/beton/read_rows.c"],
    extra_compile_args=COMPILE_ARGS,
    py_limited_api=True,
    optional=True,
)
# FASTPSL_LIBJPEG names a folder with a static libjpeg-turbo, its headers and its notices, in the place of the
# system's.
libjpeg = os.environ.get("FASTPSL_LIBJPEG", "")
licences = ["LICENSE"]
if libjpeg:  # what contains libjpeg-turbo must carry these; setuptools takes files below this folder alone
    (ROOT / "licenses" / "libjpeg-turbo").mkdir(parents=True, exist_ok=True)
    for name in ("LICENSE.md", "README.ijg"):
        licences.append(f"licenses/libjpeg-turbo/{name}")
        shutil.copyfile(Path(libjpeg, "doc", name), ROOT / licences[-1])
turbo = Extension(
    "fastpsl.pipelines.decoders._turbo",
    [
        f"{DECODERS}/{name}.c"
        for name in ("samples", "turbo", "huffman", "pack", "unpack", "shrink", "area", "isotropic")
    ],
    depends=[f"{DECODERS}/{name}.h" for name in ("turbo", "handle", "coefficients")],
    include_dirs=[f"{libjpeg}/include"] if libjpeg else [],
    extra_objects=[f"{libjpeg}/lib/libjpeg.a"] if libjpeg else [],
    libraries=["m"] if libjpeg else ["jpeg", "m"],
    extra_compile_args=COMPILE_ARGS,
    extra_link_args=["-Wl,--exclude-libs,ALL", "-pthread"],
    py_limited_api=True,
    optional=True,
)

setup(
    license_files=licences,
    ext_modules=[draws, look_up, read_rows, turbo],
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
    cmdclass={"build_py": BuildWithRecipes},
    long_description=absolute_links((ROOT / "README.md").read_text(encoding="utf-8"), f"v{version()}"),
    long_description_content_type="text/markdown",
)
