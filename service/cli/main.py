"""The entry of the `syncbn` command. Loads the rest inside `main`, so that Ctrl-C during the imports is no traceback either."""

import sys


def main() -> None:
    """Run the command line and exit with its code: 0 success, 1 the job failed, 2 usage, 3 the service cannot be reached, 130 Ctrl-C."""
    try:
        from service.cli.app import app

        app(prog_name="syncbn")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
