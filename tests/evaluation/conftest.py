"""Check the shapes and dtypes of ``fseg_jax.evaluation`` at every call."""

from jaxtyping import install_import_hook

# ``settings`` is left out: the experiments check its values themselves.
_HOOK = install_import_hook(
    [f"fseg_jax.evaluation.{name}" for name in ("data", "protocols", "report", "results", "run")],
    "beartype.beartype",
)
