"""The Python API. `mpa_ray` itself exports it."""
