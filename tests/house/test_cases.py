"""The protocol's list of cases: each is proved by exactly one test, and no test of the list is left out."""

import ast
from collections.abc import Iterator
from pathlib import Path

CAPABILITY = Path(__file__).parent.parent / "capability"
CASES = frozenset([*range(1, 144), 155, 157, 158, 159])
LAST_CASE = 160
WAYS_TO_LEAVE_OUT = frozenset({"skip", "skipif", "xfail", "importorskip", "skipTest"})


def modules() -> Iterator[tuple[Path, ast.Module]]:
    """Yield every file of the capability tests, parsed."""
    for path in sorted(CAPABILITY.glob("*.py")):
        yield path, ast.parse(path.read_text())


def marks(test: ast.FunctionDef) -> Iterator[tuple[str, list[ast.expr]]]:
    """Yield the name and the arguments of each pytest mark of a test."""
    for decorator in test.decorator_list:
        mark = decorator.func if isinstance(decorator, ast.Call) else decorator
        if isinstance(mark, ast.Attribute) and ast.unparse(mark.value) == "pytest.mark":
            yield mark.attr, decorator.args if isinstance(decorator, ast.Call) else []


def proofs() -> list[tuple[int, str]]:
    """Return each case number with the test that claims it."""
    return [
        (ast.literal_eval(number), f"{path.name}::{test.name}")
        for path, module in modules()
        for test in ast.walk(module)
        if isinstance(test, ast.FunctionDef)
        for name, numbers in marks(test)
        if name == "case"
        for number in numbers
    ]


def test_every_case_has_a_test() -> None:
    """A case that nobody proves is a promise that nobody keeps."""
    proved = {number for number, _ in proofs()}

    assert not CASES - proved, f"without a test: {sorted(CASES - proved)}"
    assert proved <= set(range(1, LAST_CASE + 1)), f"not in the list: {sorted(proved - set(range(1, LAST_CASE + 1)))}"


def test_no_case_has_two_tests() -> None:
    """Two tests for one number drift apart, and the second hides that another number has none."""
    tests: dict[int, list[str]] = {}
    for number, test in proofs():
        tests.setdefault(number, []).append(test)

    assert not {number: names for number, names in tests.items() if len(names) > 1}


def test_every_test_of_a_case_is_collected() -> None:
    """A mark on what pytest does not run proves nothing."""
    strays = [test for _, test in proofs() if not test.startswith("test_") or "::test_" not in test]

    assert not strays


def test_no_case_is_left_out() -> None:
    """What is skipped or expected to fail looks green in every report; so neither tests nor what they use may do it."""
    without_a_case = {path.name for path, _ in modules()} - {test.partition("::")[0] for _, test in proofs()}
    found = [
        f"{path.name}:{node.lineno}"
        for path, module in modules()
        for node in ast.walk(module)
        if not (path.name.startswith("test_") and path.name in without_a_case)
        and (
            (isinstance(node, ast.Attribute) and node.attr in WAYS_TO_LEAVE_OUT)
            or (isinstance(node, ast.Name) and node.id in WAYS_TO_LEAVE_OUT)
            or (isinstance(node, ast.ImportFrom) and WAYS_TO_LEAVE_OUT & {alias.name for alias in node.names})
        )
    ]

    assert not found, f"left out: {found}"


def test_no_case_waits_for_the_slow_run() -> None:
    """`make test` leaves slow tests out, and it has to prove the whole list."""
    slow = [
        f"{path.name}::{test.name}"
        for path, module in modules()
        for test in ast.walk(module)
        if isinstance(test, ast.FunctionDef) and {"case", "slow"} <= {name for name, _ in marks(test)}
    ]

    assert not slow, f"slow tests with a case: {slow}"
