"""Packaging that pyproject.toml cannot say: two top-level folders ship inside the package.

`kernels/` and `pipelines/` stand at the top of the tree and are installed as `fastpsl.kernels` and `fastpsl.pipelines`;
a top-level `kernels` would break the Hugging Face package of that name.
"""

from setuptools import find_packages, setup

FOLDERS = {"fastpsl": "fastpsl", "fastpsl.pipelines": "pipelines", "fastpsl.kernels": "kernels"}

packages = [
    f"{package}.{below}" if below else package
    for package, folder in FOLDERS.items()
    for below in ["", *find_packages(folder)]
]
setup(packages=packages, package_dir=FOLDERS)
