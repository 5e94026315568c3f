"""The command download_data.py, as tests start it: with other constants, and something that fails.

    python sabotage.py SETTINGS [arguments of download_data.py]

SETTINGS is JSON: "files", the names of the files that are wanted; "constants" of download_data; and
"sabotage", the name of a function below and its arguments.
"""

import json
import shutil
import signal
import sys
from pathlib import Path

import download_data


def ten_seconds_pass():
    """Nothing has been printed for ten seconds, when the command starts."""
    download_data.last_line -= 10


def signal_at_once(name: str):
    """A signal comes as soon as the temporary folder is made."""
    mkdir = Path.mkdir

    def signalled_mkdir(path, *arguments, **options):
        mkdir(path, *arguments, **options)
        if path.name.startswith(".fetching"):
            signal.raise_signal(getattr(signal, name))

    Path.mkdir = signalled_mkdir


def signals(first: str, second: str):
    """Signals come whenever the temporary folder is about to be removed.

    They are SIGTERM, and from then on the second. The first comes as soon as the folder is "made",
    or only when it is to be "removed".
    """
    coming = [signal.SIGTERM, getattr(signal, second), getattr(signal, second)]
    mkdir, rmtree = Path.mkdir, shutil.rmtree

    def signalled_mkdir(path, *arguments, **options):
        mkdir(path, *arguments, **options)
        if path.name.startswith(".fetching"):
            signal.raise_signal(coming.pop(0))

    def signalled_rmtree(*arguments, **options):
        signal.raise_signal(coming.pop(0))
        rmtree(*arguments, **options)

    shutil.rmtree = signalled_rmtree
    if first == "made":
        Path.mkdir = signalled_mkdir


if __name__ == "__main__":
    settings = json.loads(sys.argv[1])
    sys.argv = ["download_data.py", *sys.argv[2:]]
    vars(download_data).update(settings["constants"])
    download_data.SYSTEM = Path(download_data.SYSTEM)
    download_data.FILES = [f for f in download_data.FILES if f.name in settings["files"]]
    if settings["sabotage"]:
        function, *arguments = settings["sabotage"]
        globals()[function](*arguments)
    sys.exit(download_data.main())
