"""What the scripts of this folder share: running nibble, saying where something differs, and showing that a difference would be seen."""
import contextlib
import pathlib
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]


class Differs(Exception):
    pass


def expect(holds, what):
    if not holds:
        raise Differs(what)


def expect_red(what, compare):
    """What was spoiled on purpose has to be noticed, or the comparison proves nothing."""
    try:
        compare()
    except Differs:
        return
    raise Differs(f"{what}: what was spoiled on purpose was not noticed")


def run(program, *arguments):
    done = subprocess.run([str(program), *map(str, arguments)], capture_output=True, text=True)
    expect(done.returncode == 0, f"nibble {arguments[0]} ended with {done.returncode}: {done.stderr.strip()}")
    return done.stdout


@contextlib.contextmanager
def scratch():
    folder = pathlib.Path(tempfile.mkdtemp(prefix="nibble-interop-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def finish(main):
    """Runs main(); the process ends with 1 where something differs."""
    try:
        main()
    except Differs as difference:
        print(f"DIFFERS: {difference}", flush=True)
        sys.exit(1)
