"""Hand over to setuptools; pyproject.toml has all that it needs to know."""

from setuptools import setup

setup()
