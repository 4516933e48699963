"""The bundled world: generated images with known answers, and small models that were trained on them."""
