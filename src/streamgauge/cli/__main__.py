"""``python -m streamgauge.cli``: the command line without the installed command."""

import sys

from streamgauge.cli.main import main

sys.exit(main())
