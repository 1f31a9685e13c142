"""`python -m worldflow` is the command `worldflow`, where scripts are not on the path."""

import sys

from worldflow.cli import main

sys.exit(main())
