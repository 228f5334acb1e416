"""`python -m server.cli` is `headrace`, for where the script is not on the path."""

import sys

from server.cli import main

sys.exit(main())
