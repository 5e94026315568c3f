"""Break a program in one place at a time, and see whether a test notices.

    python tests/mutate.py softmax_sgd.py tests/test_[cglmos]*.py tests/test_readme.py
    python tests/mutate.py download_data.py tests/test_download*.py

Each mutant runs the given tests in a copy of the project, up to the first failure. Printed are the
mutants that survive, then the share of those that were killed.
"""

import ast
import copy
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 300  # a mutant that takes longer hangs, which is noticed

SWAPS = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Pow: ast.Mult,
    ast.FloorDiv: ast.Mult, ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip


def variants(node: ast.AST) -> Iterator[ast.AST | None]:
    """Yield wrong versions of a node; None is its removal."""
    new = copy.deepcopy(node)
    if isinstance(node, ast.BinOp | ast.BoolOp | ast.AugAssign) and type(node.op) in SWAPS:
        new.op = SWAPS[type(node.op)]()
        yield new
    elif isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPS:
        new.ops[0] = SWAPS[type(node.ops[0])]()
        yield new
    elif isinstance(node, ast.UnaryOp):
        yield node.operand
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield ast.Constant(not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        yield ast.Constant(node.value + 1)
    elif isinstance(node, ast.If | ast.IfExp | ast.While):
        new.test = ast.UnaryOp(ast.Not(), node.test)
        yield new
    elif isinstance(node, ast.Return) and ast.unparse(node) not in ("return", "return None"):
        yield ast.Return(ast.Constant(None))
    elif isinstance(node, ast.Call):
        for keyword in node.keywords:
            yield ast.Call(node.func, node.args, [k for k in node.keywords if k is not keyword])
    if isinstance(node, ast.AugAssign | ast.Raise) or (
        isinstance(node, ast.Expr) and not isinstance(node.value, ast.Constant)
    ):
        yield None


def mutants(node: ast.AST, top: ast.Module) -> Iterator[tuple[int, str, str]]:
    """Yield (line, change, source) for each wrong version of each node below `node`."""
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns") or isinstance(node, ast.JoinedStr):
            continue
        for i, child in enumerate(value if isinstance(value, list) else [value]):
            if not isinstance(child, ast.AST):
                continue
            for variant in variants(child):
                put(node, field, i, variant or ast.Pass())
                ast.fix_missing_locations(top)
                change = f"{ast.unparse(child)} -> {ast.unparse(variant) if variant else 'nothing'}"
                yield child.lineno, " ".join(change.split())[:160], ast.unparse(top)
                put(node, field, i, child)
            yield from mutants(child, top)


def put(node: ast.AST, field: str, i: int, child: ast.AST) -> None:
    if isinstance(getattr(node, field), list):
        getattr(node, field)[i] = child
    else:
        setattr(node, field, child)


def survives(source: str, program: str, tests: list[str], folder: Path, output=subprocess.DEVNULL):
    """Whether all tests pass on `source` in the copy of the project in `folder`."""
    (folder / program).write_text(source)
    line = [sys.executable, "-m", "pytest", "-xq", "-p", "no:cacheprovider", *tests]
    child = subprocess.Popen(
        line, cwd=folder, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        return child.wait(SECONDS) == 0
    except subprocess.TimeoutExpired:
        return False
    finally:
        if child.poll() is None:
            os.killpg(child.pid, 9)
            child.wait()


def main(program: str, tests: list[str]) -> int:
    top = ast.parse((ROOT / program).read_text())
    found = list(mutants(top, top))
    with tempfile.TemporaryDirectory() as folder:
        copies = SimpleQueue()
        for i in range(os.cpu_count()):
            at = Path(folder, str(i))
            shutil.copytree(ROOT, at, ignore=shutil.ignore_patterns("data", ".*"))
            (at / "data").symlink_to(ROOT / "data")
            copies.put(at)

        def tried(mutant: tuple[int, str, str]) -> bool:
            at = copies.get()
            alive = survives(mutant[2], program, tests, at)
            copies.put(at)
            if alive:
                print(f"survived: {program}:{mutant[0]}: {mutant[1]}", flush=True)
            return alive

        if not survives(ast.unparse(top), program, tests, Path(folder, "0"), output=None):
            print("these tests fail on the program itself")
            return 1
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            alive = sum(pool.map(tried, found))
    print(f"{len(found) - alive} of {len(found)} mutants killed, {1 - alive / len(found):.1%}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
