"""Packaging that pyproject.toml cannot say: two top-level folders ship inside the package.

`kernels/` and `pipelines/` stand at the top of the tree and are installed as `fastpsl.kernels` and `fastpsl.pipelines`;
a top-level `kernels` would break the Hugging Face package of that name.
"""

from setuptools import setup

setup(
    packages=[
        "fastpsl",
        "fastpsl.backbones",
        "fastpsl.tasks",
        "fastpsl.pipelines",
        "fastpsl.pipelines.decoders",
        "fastpsl.kernels",
    ],
    package_dir={
        "fastpsl": "fastpsl",
        "fastpsl.pipelines": "pipelines",
        "fastpsl.kernels": "kernels",
    },
)
