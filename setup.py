"""Hand over to setuptools: pyproject.toml has all that it needs, but for the folder of the recipes."""

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithRecipes(build_py):
    """A build_py that ships recipes/, which stands outside the package, as fastpsl.recipes."""

    def finalize_options(self) -> None:
        """Add the recipes to the packages that pyproject.toml finds."""
        super().finalize_options()
        self.packages = [*self.packages, "fastpsl.recipes"]
        self.package_dir["fastpsl.recipes"] = "recipes"


setup(cmdclass={"build_py": BuildWithRecipes})
