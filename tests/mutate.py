"""Break a program in one place at a time, and see whether a test notices. A tool, not a test.

    python tests/mutate.py softmax_sgd.py       # or download_data.py; with a number N after it,
                                                # only every Nth mutant
Each mutant meets the test files that name the program: first the tests that noticed those before
it, then the fastest, up to the first failure. A test that takes 10 s longer than three times the
slowest of its file has failed. Printed are the mutants that survive, and the share of those killed.
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
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import hypothesis.extra.numpy  # noqa: F401  (once, for all processes that are forked)
import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTICED = deque(maxlen=5)  # in each worker: the tests that failed last
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
        case ast.Expr() | ast.AugAssign() | ast.Raise() | ast.Return() | ast.Continue():
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

    def pytest_collection_modifyitems(self, items):
        items.sort(key=lambda item: (item.nodeid not in NOTICED, self.seconds.get(item.nodeid, 0)))

    def pytest_runtest_logstart(self, nodeid):
        os.write(self.log, f"{time.monotonic()} {nodeid}\n".encode())
        # Of its file, for the first to use a fixture of the file waits for it, whichever it is.
        file = nodeid.partition("::")[0]
        slowest = max((s for test, s in self.seconds.items() if test.startswith(file)), default=60)
        signal.alarm(round(10 + 3 * slowest))


def run_pytest(program, seconds, folder):
    """Run the tests in a process of their own, which it ends; log in `folder` when each began."""
    try:
        os.setsid()
        os.chdir(folder / "project")
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        os.environ["TMPDIR"] = tempfile.tempdir = str(folder)
        signal.alarm(60)  # for the tests to be collected
        watch = Watch(seconds, os.open(folder / "log", os.O_WRONLY | os.O_CREAT))
        files = [str(f) for f in Path("tests").glob("test_*") if program[:-3] in f.read_text()]
        os._exit(pytest.main(["-xq", "-p", "no:cacheprovider", *files], plugins=[watch]))
    finally:
        os._exit(1)


def run(base, program, seconds, source):
    """Run the tests on a source; return whether they pass, and when each of them began."""
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
        log = Path(folder, "log").read_text().splitlines()
    begun = {test: float(begin) for begin, test in (line.split(maxsplit=1) for line in log)}
    if status:
        NOTICED.extend(list(begun)[-1:])
    return status == 0, begun


def main(program, every="1"):
    top = ast.parse((ROOT / program).read_text())
    original, survived, fork = ast.unparse(top), 0, get_context("fork")
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(mp_context=fork) as pool:
        base = Path(folder).resolve() / "base"
        shutil.copytree(ROOT, base, ignore=shutil.ignore_patterns(".*", "__pycache__"))
        passed, begun = pool.submit(run, base, program, {}, original).result()
        if not passed:
            sys.exit(f"a test fails on the program as it is: {list(begun)[-1:]}")
        ends = [*list(begun.values())[1:], time.monotonic()]
        seconds = {test: end - begin for (test, begin), end in zip(begun.items(), ends)}
        # The last is the program as it is: no mutant may have damaged what all of them share.
        found = [*list(mutants(top, top))[:: int(every)], (0, original)]
        start, total = time.monotonic(), len(found) - 1
        results = pool.map(partial(run, base, program, seconds), [source for _, source in found])
        for done, ((line, source), result) in enumerate(zip(found, results), 1):
            passed, begun = result
            if passed and source != original:
                survived += 1
                pairs = zip(original.splitlines(), source.splitlines())
                new = next(b.strip() for a, b in pairs if a != b)
                print(f"survived: {program}:{line}: {new}", flush=True)
            left = (time.monotonic() - start) / done * (total - done) / 60
            print(f"{done} of {total}, {left:.0f} minutes left", file=sys.stderr)
    if not passed:
        reason = "a mutant has damaged what all share, or the test fails now and then"
        sys.exit(f"at last a test fails on the program as it is ({reason}): {list(begun)[-1:]}")
    print(f"{total - survived} of {total} mutants killed, {1 - survived / total:.1%}")


if __name__ == "__main__":
    main(*sys.argv[1:])
