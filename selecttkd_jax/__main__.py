"""`python -m selecttkd_jax` is `selecttkd`."""

import sys

from selecttkd_jax.cli import main

if __name__ == "__main__":
    sys.exit(main())
