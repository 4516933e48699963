"""`python -m mpa_ray` is the command `mpa-ray`."""

import sys

from mpa_ray.cli import main

if __name__ == "__main__":
    sys.exit(main())
