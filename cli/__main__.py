"""`python -m cli` is `apprentice`."""

import sys

from cli.main import main

sys.exit(main())
