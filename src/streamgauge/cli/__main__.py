"""The command ``streamgauge``, and ``python -m streamgauge.cli``: its start, and its every end."""

import sys

from streamgauge.base import ends


def main() -> int:
    """Run the command of the process's own words; the exit status, see `streamgauge.cli.main`."""
    ends.at_once("streamgauge")
    from streamgauge.cli.main import main as command  # takes time

    ends.by_raising()
    return command()


if __name__ == "__main__":
    sys.exit(main())
