"""`python -m worldflow` is the command `worldflow`, where scripts are not on the path."""

import sys

from worldflow.cli import main

if __name__ == "__main__":
    sys.exit(main())
