"""Shapes and dtypes of every public function are checked at run time, in the tests only."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from jaxtyping import install_import_hook

install_import_hook("attnconv", "beartype.beartype")
