"""``python -m taskvec`` is the ``taskvec`` command."""

import sys

from taskvec.cli import main

sys.exit(main())
