"""The Python API, which the package `mpa_ray` re-exports."""
