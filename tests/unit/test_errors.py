"""The tree of errors: its codes and statuses are the specification's, and the drawing shows all of it."""

import inspect
import re
from collections.abc import Iterator

import pytest

from lading.oci import errors
from lading.oci.errors import LadingError, RegistryError, StartRefused

# Distribution-spec "Error Codes" with Docker's additions, and the statuses that each may come with.
CODES = {
    "BLOB_UNKNOWN": {404},
    "BLOB_UPLOAD_INVALID": {400},
    "BLOB_UPLOAD_UNKNOWN": {404},
    "DENIED": {403},
    "DIGEST_INVALID": {400},
    "MANIFEST_BLOB_UNKNOWN": {400},
    "MANIFEST_INVALID": {400},
    "MANIFEST_UNKNOWN": {404},
    "NAME_INVALID": {400},
    "NAME_UNKNOWN": {404},
    "PAGINATION_NUMBER_INVALID": {400},
    "RANGE_INVALID": {416},
    "SIZE_INVALID": {400, 413},
    "TAG_INVALID": {400},
    "TOOMANYREQUESTS": {429},
    "UNAUTHORIZED": {401},
    "UNAVAILABLE": {503, 507},
    "UNKNOWN": {408, 500},
    "UNSUPPORTED": {400, 405, 414, 431},
}


def descendants(root: type[LadingError]) -> Iterator[type[LadingError]]:
    for child in root.__subclasses__():
        yield child
        yield from descendants(child)


def on_the_page(root: type[LadingError]) -> list[type[LadingError]]:
    return [child for child in descendants(root) if child.__module__ == errors.__name__]


ANSWERS: list[type[RegistryError]] = [child for child in on_the_page(RegistryError) if issubclass(child, RegistryError)]
REFUSALS = on_the_page(StartRefused)


def drawing() -> str:
    """Return the part of the page's docstring that is drawn."""
    return "\n".join(line for line in (errors.__doc__ or "").splitlines() if line.startswith("    "))


def drawn_branch(root: str) -> list[str]:
    """Return the lines drawn below `root`."""
    lines = drawing().splitlines()
    start = next(number for number, line in enumerate(lines) if re.search(rf"\b{root}\b", line))
    indent = lines[start].index(root)
    below = []
    for line in lines[start + 1 :]:
        if not re.match(rf".{{{indent}}}[|`]--", line):
            break
        below.append(line[indent + 3 :])
    return below


@pytest.mark.parametrize("error", ANSWERS, ids=lambda error: error.__name__)
def test_an_answer_has_a_code_and_a_status_that_go_together(error: type[RegistryError]) -> None:
    """Clients decide by these two what to do next; an invented code decides nothing."""
    assert error.code in CODES
    assert error.status in CODES[error.code]
    assert error.message
    assert error.message != RegistryError.message


def test_every_code_of_the_specification_is_answered_by_some_error() -> None:
    """A situation without its code would be answered by another's."""
    answered: dict[str, set[int]] = {}
    for error in ANSWERS:
        answered.setdefault(error.code, set()).add(error.status)

    assert answered == CODES


def test_every_error_is_documented() -> None:
    """The page is where the manual of errors is made from; an inherited docstring says nothing."""
    silent = [str(error) for error in (LadingError, *on_the_page(LadingError)) if not vars(error).get("__doc__")]

    assert not silent


def test_the_drawing_names_every_class_and_no_other() -> None:
    """It is read before the page, and believed."""
    drawn = re.findall(r"\b[A-Z][a-z]+(?:[A-Z][a-z]+)*\b", re.sub(r"  [a-z].*$", "", drawing(), flags=re.MULTILINE))
    classes = ["LadingError", *(error.__name__ for error in on_the_page(LadingError))]

    assert sorted(set(drawn) - {"HTTP", "OCI"}) == sorted(classes)
    assert len(classes) == len(set(classes))


def test_the_drawing_puts_every_class_where_it_is() -> None:
    """Whoever catches a branch has to know what is on it."""
    starts = re.findall(r"\b[A-Z]\w+", " ".join(drawn_branch("StartRefused")))
    answers = re.findall(r"\b[A-Z]\w+", " ".join(drawn_branch("RegistryError")))

    assert sorted(starts) == sorted(error.__name__ for error in REFUSALS)
    assert sorted(answers) == sorted(error.__name__ for error in ANSWERS)


def test_the_drawing_gives_every_answer_its_status() -> None:
    """A number that was changed in the code only is a lie."""
    drawn: dict[str, int] = {}
    for line in drawn_branch("RegistryError"):
        waiting: list[str] = []
        for word in re.findall(r"[A-Z]\w+|\d{3}", line):
            if word.isdigit():
                drawn.update(dict.fromkeys(waiting, int(word)))
                waiting = []
            else:
                waiting.append(word)
        assert not waiting, f"no status behind {waiting}"

    assert drawn == {error.__name__: error.status for error in ANSWERS}


@pytest.mark.parametrize("error", REFUSALS, ids=lambda error: error.__name__)
def test_a_refused_start_says_why_and_what_to_do(error: type[StartRefused]) -> None:
    """A supervisor sees the exit code, a person the two sentences."""
    refusal = error("the port is taken", "name another with --port")

    assert (refusal.message, refusal.hint, str(refusal)) == (
        "the port is taken",
        "name another with --port",
        "the port is taken",
    )
    assert 1 <= error.exit_code < 126


def test_codes_are_written_nowhere_else() -> None:
    """Code and status live on one page, so the page is the whole truth."""
    assert all("code" not in inspect.signature(error).parameters for error in ANSWERS)
    assert all("status" not in inspect.signature(error).parameters for error in ANSWERS)
