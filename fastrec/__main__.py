"""``python -m fastrec`` is the command ``fastrec``."""

import sys

from fastrec._cli import main

if __name__ == "__main__":
    sys.exit(main())
