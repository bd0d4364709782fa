"""``taskvec`` and ``python -m taskvec``: the command, from its first to its last moment as a process."""

import signal
import sys


def command() -> None:
    """Run the command and exit with its status."""
    # Python's own handler would show where in the imports Ctrl-C fell
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from taskvec.cli import main
    from taskvec.runner import signals

    status = main()
    signals.end_in_silence()
    sys.exit(status)


if __name__ == "__main__":
    command()
