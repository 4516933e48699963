"""The bundled world: generated images with known truth, and small models that were trained on it."""
