"""Break a program in one place at a time, and see whether a test notices. A tool, not a test.

    python tests/mutate.py softmax_sgd.py       # or download_data.py

Each mutant meets the test files that name the program, those tests first that failed last, then the
fastest, up to the first failure. Printed are the mutants that survive, and the share of the killed.
"""

import ast
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
import threadpoolctl

ROOT = Path(__file__).resolve().parents[1]
SECONDS = {}  # that each test takes on the program as it is
NOTICED = deque(maxlen=5)  # the tests that failed last
PAIRS = "Pow Mult,FloorDiv Mult,Mult Div,Add Sub,Lt LtE,Gt GtE,Eq NotEq,Is IsNot,In NotIn,And Or"
SWAPS = {a: b for pair in PAIRS.split(",") for a, b in (pair.split(), pair.split()[::-1])}


def variants(node, field):
    """Yield wrong versions of a node, which is in this field of another."""
    if swap := SWAPS.get(type(node).__name__):
        yield getattr(ast, swap)()
    if field in ("test", "ifs"):
        yield ast.UnaryOp(ast.Not(), node)
    match node:
        case ast.UnaryOp():
            yield node.operand
        case ast.Constant(bool(value) | int(value) | float(value)):
            yield ast.Constant(not value if isinstance(value, bool) else value + 1)
        case ast.Call():
            for keyword in node.keywords:
                yield ast.Call(node.func, node.args, [k for k in node.keywords if k is not keyword])
        case ast.Return(value) if value and ast.unparse(value) != "None":
            yield ast.Return()
        case ast.Expr(ast.Call() | ast.Yield() | ast.YieldFrom()) | ast.Raise() | ast.Return():
            yield ast.Pass()
        case ast.AugAssign() | ast.Delete() | ast.Continue() | ast.Break():
            yield ast.Pass()


def mutants(node, top):
    """Yield the source of `top` with each wrong version of each node below, but in f-strings."""
    for field, value in ast.iter_fields(node):
        children = value if isinstance(value, list) else [value]
        for i, child in enumerate(children):
            if isinstance(child, ast.AST) and not isinstance(node, ast.JoinedStr):
                for children[i] in variants(child, field):
                    setattr(node, field, value if children is value else children[i])
                    yield ast.unparse(top)
                children[i] = child
                setattr(node, field, value)
                yield from mutants(child, top)


def pytest_collection_modifyitems(items):
    """A hook: put those tests first that may soon notice."""
    items.sort(key=lambda i: SECONDS.get(i.nodeid, 0) * (0.1 if i.nodeid in NOTICED else 1))


def pytest_runtest_logstart(nodeid):
    """A hook: note when a test begins, and end it should it hang."""
    with open(Path(tempfile.tempdir, "log"), "a") as log:
        print(time.monotonic(), nodeid, file=log)
    signal.alarm(round(5 + 3 * max(SECONDS.values(), default=20)))


def run(base, program, source):
    """Run the tests on a source; return when each began, and "passed" if all did."""
    with tempfile.TemporaryDirectory(dir=base.parent, ignore_cleanup_errors=True) as folder:
        shutil.copytree(base, f"{folder}/project", copy_function=os.link)
        if (child := os.fork()) == 0:
            os.setsid()  # a group of processes, which ends as one
            try:
                signal.signal(signal.SIGALRM, lambda *_: os.killpg(0, signal.SIGKILL))
                os.chdir(f"{folder}/project")
                Path(program).write_text(source)
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                os.environ["TMPDIR"] = tempfile.tempdir = folder
                pytest_runtest_logstart("the tests' collection")
                files = (f for f in Path("tests").glob("test_*") if program[:-3] in f.read_text())
                if pytest.main(["-xq", *map(str, files)], [sys.modules[__name__]]) == 0:
                    pytest_runtest_logstart("passed")
            finally:
                os.killpg(0, signal.SIGKILL)
        os.waitpid(child, 0)
        log = [line.split(maxsplit=1) for line in Path(folder, "log").read_text().splitlines()]
    NOTICED.append(log[-1][1])
    return {test: float(begin) for begin, test in log}


def main(program):
    tree = ast.parse((ROOT / program).read_text())
    original, found, killed = ast.unparse(tree).splitlines(), list(mutants(tree, tree)), 0
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        base = Path(folder).resolve() / "base"
        shutil.copytree(ROOT, base, ignore=shutil.ignore_patterns(".*", "__pycache__", program))
        begun = run(base, program, "\n".join(original))
        assert "passed" in begun, f"a test fails on the program as it is: {list(begun)[-1]}"
        SECONDS.update((test, end - begin) for (test, begin), (_, end) in pairwise(begun.items()))
        threadpoolctl.threadpool_limits(1)  # the mutants share the cores
        start = time.monotonic()
        with get_context("fork").Pool() as pool:
            logs = pool.imap(partial(run, base, program), found)
            for done, (source, begun) in enumerate(zip(found, logs), 1):
                killed += "passed" not in begun
                if "passed" in begun:
                    old, new = next(p for p in zip(original, source.splitlines()) if p[0] != p[1])
                    print(f"survived: {old.strip()}  ->  {new.strip()}", flush=True)
                left = (time.monotonic() - start) / done * (len(found) - done) / 60
                print(f"{done} of {len(found)}, {left:.0f} minutes left", file=sys.stderr)
    print(f"{killed} of {len(found)} mutants killed, {killed / len(found):.1%}")


if __name__ == "__main__":
    main(*sys.argv[1:])
