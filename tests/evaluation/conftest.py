"""The shapes and dtypes of evaluation are checked at every call, too."""

from jaxtyping import install_import_hook

# Not those of ``settings``: that words and numbers are right is checked by the experiments.
_HOOK = install_import_hook(
    [f"fseg_jax.evaluation.{name}" for name in ("data", "protocols", "report", "results", "run")],
    "beartype.beartype",
)
