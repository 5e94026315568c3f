"""Break a program in one place at a time, and see whether a test notices. A tool, not a test.

    python tests/mutate.py softmax_sgd.py       # or download_data.py

Each mutant meets the test files that name the program, the fast tests first, up to the first
failure; a test that hangs has failed. Printed are the mutants that survive, and the share of those
killed.
"""

import ast
import contextlib
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import deque
from functools import partial
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path

import hypothesis.extra.numpy  # noqa: F401  (once, for all processes that are forked)
import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTICED = deque(maxlen=5)  # in each worker: the tests that failed last, which are tried earlier
SWAPS = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Pow: ast.Mult,
    ast.FloorDiv: ast.Mult, ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip


def variants(node, field):
    """Yield wrong versions of a node, which is in this field of another."""
    if type(node) in SWAPS:
        yield SWAPS[type(node)]()
    if field in ("test", "ifs"):
        yield ast.UnaryOp(ast.Not(), node)
    match node:
        case ast.UnaryOp():
            yield node.operand
        case ast.Constant(bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(int(value) | float(value)):
            yield ast.Constant(value + 1)
        case ast.Call():
            for keyword in node.keywords:
                yield ast.Call(node.func, node.args, [k for k in node.keywords if k is not keyword])
        case ast.Return(value) if value and ast.unparse(value) != "None":
            yield ast.Return()
        case ast.Expr(ast.Constant()):
            pass  # a docstring
        case ast.Expr() | ast.AugAssign() | ast.Delete() | ast.Raise() | ast.Return():
            yield ast.Pass()
        case ast.Continue() | ast.Break():
            yield ast.Pass()


def mutants(node, top, line=0):
    """Yield (line, source) for each wrong version of each node below `node`."""
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns") or isinstance(node, ast.JoinedStr):
            continue
        children = value if isinstance(value, list) else [value]
        for i, child in enumerate(children):
            if isinstance(child, ast.AST):
                at = getattr(child, "lineno", line)
                for children[i] in variants(child, field):
                    setattr(node, field, value if children is value else children[i])
                    yield at, ast.unparse(top)
                children[i] = child
                setattr(node, field, value)
                yield from mutants(child, top, at)


class Watch:
    """A plugin of pytest: puts the tests in order, logs the start of each, ends what hangs."""

    def __init__(self, seconds, log):
        self.seconds, self.log = seconds, log
        self.limit = round(10 + 3 * max(seconds.values(), default=60))

    def pytest_collection_modifyitems(self, items):
        weight = {test: 0.1 for test in NOTICED}
        items.sort(key=lambda i: self.seconds.get(i.nodeid, 0) * weight.get(i.nodeid, 1))

    def pytest_runtest_logstart(self, nodeid):
        os.write(self.log, f"{time.monotonic()} {nodeid}\n".encode())
        signal.alarm(self.limit)


def run_pytest(program, seconds, folder):
    """Run the tests in a process of their own, which it ends."""
    try:
        os.setsid()
        os.chdir(folder / "project")
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        os.environ["TMPDIR"] = tempfile.tempdir = str(folder)
        watch = Watch(seconds, os.open(folder / "log", os.O_WRONLY | os.O_CREAT))
        signal.alarm(60)  # for the tests to be collected
        files = [str(f) for f in Path("tests").glob("test_*") if program[:-3] in f.read_text()]
        os._exit(pytest.main(["-xq", "-p", "no:cacheprovider", *files], plugins=[watch]))
    finally:
        os._exit(1)


def run(base, program, seconds, source):
    """Run the tests on a source; return whether they pass, and the seconds that each took."""
    with tempfile.TemporaryDirectory(dir=base.parent, ignore_cleanup_errors=True) as folder:
        project = Path(folder, "project")
        shutil.copytree(base, project, copy_function=os.link)
        (project / program).unlink()  # rather than write through the link
        (project / program).write_text(source)
        if (child := os.fork()) == 0:
            run_pytest(program, seconds, Path(folder))
        try:
            _, status = os.waitpid(child, 0)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)
        log = [*Path(folder, "log").read_text().splitlines(), f"{time.monotonic()} the end"]
    begun = [(float(begin), test) for begin, test in (line.split(maxsplit=1) for line in log)]
    took = {test: end - begin for (begin, test), (end, _) in pairwise(begun)}
    if status:
        NOTICED.extend(list(took)[-1:])
    return status == 0, took


def main(program):
    tree = ast.parse((ROOT / program).read_text())
    original, found, survived = ast.unparse(tree), list(mutants(tree, tree)), 0
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder).resolve() / "base"
        shutil.copytree(ROOT, base, ignore=shutil.ignore_patterns(".*", "__pycache__"))
        passed, seconds = run(base, program, {}, original)
        if not passed:
            sys.exit(f"a test fails on the program as it is: {list(seconds)[-1:]}")
        start = time.monotonic()
        with get_context("fork").Pool() as pool:
            results = pool.imap(partial(run, base, program, seconds), [new for _, new in found])
            for done, ((line, source), (passed, _)) in enumerate(zip(found, results), 1):
                if passed:
                    survived += 1
                    pairs = zip(original.splitlines(), source.splitlines())
                    new = next(b.strip() for a, b in pairs if a != b)
                    print(f"survived: {program}:{line}: {new}", flush=True)
                left = (time.monotonic() - start) / done * (len(found) - done) / 60
                print(f"{done} of {len(found)}, {left:.0f} minutes left", file=sys.stderr)
        passed, seconds = run(base, program, seconds, original)
        if not passed:  # then some were killed by chance, or by what another has damaged
            sys.exit(f"at last a test fails on the program as it is: {list(seconds)[-1:]}")
    killed = len(found) - survived
    print(f"{killed} of {len(found)} mutants killed, {killed / len(found):.1%}")


if __name__ == "__main__":
    main(*sys.argv[1:])
