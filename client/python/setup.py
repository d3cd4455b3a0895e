# SPDX-License-Identifier: Apache-2.0
"""Makes the stubs from proto/ before the package is built; everything else is in pyproject.toml."""
import pathlib
import sys

from setuptools import setup

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
import generate_stubs  # noqa: E402

# A source distribution carries the stubs and has no proto/ beside it.
if generate_stubs.PROTO.is_dir():
    generate_stubs.generate(HERE)
setup()
