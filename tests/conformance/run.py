"""The official OCI conformance suite, with everything switched on, against a freshly started Lading.

    python -m tests.conformance.run [--registry HOST:PORT]

It runs twice: for the development version of the spec, where nothing may fail, be skipped or be switched off, and for
1.1, where the suite itself switches off what that version did not have yet.
"""

import argparse
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from tests.clients.client import built_tools
from tests.clients.processes import DaemonFailedError, lading, scratch_folder

RUN_WITHIN_SECONDS = 600
SHOWN_MESSAGE_CHARACTERS = 600

# The suite's sparse data sets are an image without one of its layers and an index without one of its images.
SETTINGS = {"LADING_MANIFESTS__SPARSE_INDEXES": "true"}

APIS = (
    *("PING", "PULL", "PUSH"),
    *("BLOBS_ATOMIC", "BLOBS_DELETE", "BLOBS_DIGEST_HEADER", "BLOBS_MOUNT_ANONYMOUS", "BLOBS_UPLOAD_CANCEL"),
    *("MANIFESTS_ATOMIC", "MANIFESTS_DELETE", "MANIFESTS_DIGEST_HEADER", "MANIFESTS_TAG_PARAM"),
    *("TAGS_ATOMIC", "TAGS_DELETE", "TAGS_LIST", "REFERRER"),
)
DATA = (
    *("IMAGE", "INDEX", "INDEX_LIST", "SPARSE", "ARTIFACT", "SUBJECT", "SUBJECT_MISSING", "ARTIFACT_LIST"),
    *("SUBJECT_LIST", "DATA_FIELD", "NONDISTRIBUTABLE", "CUSTOM_FIELDS", "NO_LAYERS", "EMPTY_BLOB", "SHA512"),
)
EVERYTHING = {**{f"OCI_API_{api}": "true" for api in APIS}, **{f"OCI_DATA_{data}": "true" for data in DATA}}


@dataclass(frozen=True, slots=True)
class Mode:
    """A version of the spec, and what the suite must report for it."""

    version: str
    environment: dict[str, str]
    fewest_tests: int
    disabled: int
    """How many tests the version itself switches off."""


MODES = (
    Mode("dev", EVERYTHING, fewest_tests=1000, disabled=0),
    # 1.1 knows no cancelling of uploads: one test for each of the two digest algorithms.
    Mode("1.1", {}, fewest_tests=850, disabled=2),
)


@dataclass(frozen=True, slots=True)
class Counts:
    """The totals of one run, as junit.xml states them."""

    tests: int
    failures: int
    errors: int
    skipped: int
    disabled: int

    @property
    def unwanted(self) -> int:
        """How many tests did not pass, though the version has them."""
        return self.failures + self.errors + self.skipped

    def __str__(self) -> str:
        return (
            f"{self.tests} tests, {self.failures} failed, {self.errors} errors, {self.skipped} skipped, "
            f"{self.disabled} disabled"
        )


class SuiteFailedError(Exception):
    """The suite itself did not run to its end."""


def run_suite(mode: Mode, address: str, results: Path) -> ET.Element:
    """Run the suite once and return the root of its report."""
    # Nothing of the caller's own OCI_* settings may change what is tested.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("OCI_")}
    # A registry that was running before holds what an earlier run left.
    namespace = f"conformance-{secrets.token_hex(3)}"
    repositories = {"OCI_REPO1": f"{namespace}/one", "OCI_REPO2": f"{namespace}/two"}
    connection = {"OCI_REGISTRY": address, "OCI_TLS": "disabled", "OCI_VERSION": mode.version}
    results.mkdir()
    done = subprocess.run(
        [built_tools() / "conformance"],
        cwd=results,
        env={**inherited, **connection, **repositories, **mode.environment, "OCI_RESULTS_DIR": str(results)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=RUN_WITHIN_SECONDS,
        check=False,
    )
    report = results / "junit.xml"
    if not report.exists():
        printed = (done.stdout + done.stderr).decode(errors="replace")[-2000:]
        raise SuiteFailedError(f"the suite ended with {done.returncode} and left no report:\n{printed}")
    return ET.parse(report).getroot()


def counts(report: ET.Element) -> Counts:
    """Add up the suites of a report; a total that is not written is none."""
    names = ("tests", "failures", "errors", "skipped", "disabled")
    return Counts(*(sum(int(suite.get(name, "0")) for suite in report.iter("testsuite")) for name in names))


def troubles(report: ET.Element) -> Iterator[str]:
    """Yield each test that did not pass, with what the suite says of it."""
    for test in report.iter("testcase"):
        if test.get("status") != "passed":
            said = (test.findtext("system-out") or test.findtext("system-err") or "").strip()
            yield f"{test.get('status')}: {test.get('name')}\n{said[:SHOWN_MESSAGE_CHARACTERS]}"


def judge(mode: Mode, found: Counts) -> list[str]:
    """Return a sentence for everything that is not as this mode demands."""
    sentences = []
    if found.unwanted:
        sentences.append(f"{mode.version}: {found.unwanted} tests did not pass")
    if found.disabled != mode.disabled:
        sentences.append(f"{mode.version}: {found.disabled} tests are disabled, {mode.disabled} must be")
    if found.tests < mode.fewest_tests:
        sentences.append(f"{mode.version}: only {found.tests} tests ran, at least {mode.fewest_tests} must")
    return sentences


def main() -> int:
    """Run both modes and return the exit code."""
    parser = argparse.ArgumentParser(prog="tests.conformance.run", description="The official OCI conformance suite.")
    parser.add_argument("--registry", metavar="HOST:PORT", help="use this running registry, with sparse indexes on")
    arguments = parser.parse_args()
    if not shutil.which(built_tools() / "conformance"):
        sys.exit("The suite is not installed. `tests/clients/install conformance` installs it.")

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    passed, complaints = 0, 0
    try:
        with ExitStack() as stack:
            scratch = stack.enter_context(scratch_folder())
            address = arguments.registry or stack.enter_context(lading(scratch, SETTINGS))
            for mode in MODES:
                began = time.monotonic()
                report = run_suite(mode, address, scratch / mode.version)
                found = counts(report)
                if found.unwanted or found.disabled != mode.disabled:
                    print("\n".join(troubles(report)))
                print(f"{mode.version}: {found} in {time.monotonic() - began:.1f} s", flush=True)
                sentences = judge(mode, found)
                print("\n".join(sentences), end="\n" if sentences else "")
                passed += found.tests - found.unwanted - found.disabled
                complaints += max(found.failures + found.errors + found.skipped, len(sentences))
    except (AssertionError, DaemonFailedError, SuiteFailedError, subprocess.TimeoutExpired) as error:
        print(error)
        complaints += 1
    print(f"{passed} passed, {complaints} failed")
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
