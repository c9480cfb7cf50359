"""Build with setuptools, without what an earlier build left in build/lib.

setuptools would put modules that are gone since into the next wheel.
"""

import shutil

from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403 - the hooks that stay as they are


def build_wheel(*arguments, **options):
    """Build a wheel from the files that there are now."""
    shutil.rmtree("build/lib", ignore_errors=True)
    return build_meta.build_wheel(*arguments, **options)
