"""The shapes and dtypes of evaluation are checked at every call, too."""

from jaxtyping import install_import_hook

_HOOK = install_import_hook("fseg_jax.evaluation", "beartype.beartype")
