"""Where settings are read, which place wins, and what a wrong one is told."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError

from lading import settings
from lading.oci.errors import SettingsInvalid


def write(folder: Path, text: str | bytes) -> Path:
    file = folder / "lading.yaml"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return file


def problems_of(
    config: Path | None = None, overrides: dict[str, object] | None = None, environ: dict[str, str] | None = None
) -> list[str]:
    with pytest.raises(SettingsInvalid) as caught:
        settings.load(config, overrides or {}, environ=environ or {})
    assert caught.value.exit_code == 2
    return caught.value.message.splitlines()


@pytest.fixture(autouse=True)
def empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep a `lading.yaml` of the developer out of the tests."""
    monkeypatch.chdir(tmp_path)


def test_nothing_needs_to_be_set() -> None:
    """One command starts a registry."""
    in_force = settings.load(None, {}, environ={})

    assert in_force.model_dump() == {
        "data": Path("data"),
        "http": {
            "host": "127.0.0.1",
            "port": 5000,
            "workers": settings.default_workers(),
            "grace_seconds": 30,
            "tls_certificate": None,
            "tls_key": None,
        },
        "auth": {"htpasswd": None, "anonymous_pull": False, "open": False},
        "blobs": {"max_bytes": None, "inline_max_bytes": 16384},
        "uploads": {"ttl_seconds": 604800, "max_sessions": 10000, "max_sessions_per_user": None, "max_bytes": None},
        "storage": {"min_free_bytes": None},
        "manifests": {"sparse_indexes": False},
        "deletes": {"enabled": True, "index_children": True},
        "collection": {
            "lease_seconds": 86400,
            "undo_seconds": 1209600,
            "delay_seconds": 86400,
            "every_seconds": 60,
            "delete_untagged": False,
        },
        "lists": {"max_page_entries": 10000},
        "metrics": {"host": "127.0.0.1", "port": None},
        "snapshots": {"every_seconds": 86400, "keep": 7},
        "scrub": {"every_seconds": 2592000, "max_bytes_per_second": 67108864},
        "log": {"format": "auto", "file": None, "access_file": None},
    }


def test_there_is_a_worker_for_each_core_up_to_four(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container that is pinned to one core of sixty-four needs one worker."""
    counts = []
    for cores in (1, 2, 4, 64):
        monkeypatch.setattr("os.sched_getaffinity", lambda _, cores=cores: set(range(cores)))
        counts.append(settings.load(None, {}, environ={}).http.workers)

    assert counts == [1, 2, 4, 4]


def test_a_flag_wins_over_a_variable_and_a_variable_over_the_file(tmp_path: Path) -> None:
    """The nearer to the one start, the stronger."""
    file = write(tmp_path, "http: {port: 1, workers: 1, grace_seconds: 1}\ndata: from-file")
    environ = {"LADING_HTTP__PORT": "2", "LADING_HTTP__WORKERS": "2"}

    trace = settings.trace(file, {"http.port": 3, "http.workers": None}, environ=environ)

    http = trace.settings.http
    assert (http.port, http.workers, http.grace_seconds, trace.settings.data) == (3, 2, 1, Path("from-file"))
    assert trace.sources["http.port"] == "--port"
    assert trace.sources["http.workers"] == "LADING_HTTP__WORKERS"
    assert trace.sources["http.grace_seconds"] == str(file)
    assert trace.sources["http.host"] == "default"
    assert trace.value("http.port") == 3


def test_the_file_beside_us_is_read_unless_another_is_named(tmp_path: Path) -> None:
    """`lading serve` in the directory of a lading.yaml means that file."""
    write(tmp_path, "http: {port: 1}")
    other = tmp_path / "other.yaml"
    other.write_text("http: {workers: 7}")

    assert settings.load(None, {}, environ={}).http.port == 1
    assert settings.load(other, {}, environ={}).http.port == 5000


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "http:\n", "http: {}\nblobs:\n  # max_bytes: 5\n"])
def test_a_file_and_a_section_may_be_empty(tmp_path: Path, text: str) -> None:
    """People comment lines out."""
    assert settings.load(write(tmp_path, text), {}, environ={}) == settings.Settings()


def test_a_variable_says_what_the_same_text_in_the_file_would() -> None:
    """Numbers, switches and null read alike in both; a path stays what was typed."""
    environ = {
        "LADING_DATA": "007",
        "LADING_HTTP__HOST": "::1",
        "LADING_BLOBS__MAX_BYTES": "null",
        "LADING_DELETES__ENABLED": "false",
        "LADING_MANIFESTS__SPARSE_INDEXES": "true",
        "LADING_UPLOADS__TTL_SECONDS": "86400",
        "LADING_LOG__FORMAT": "json",
    }

    in_force = settings.load(None, {}, environ=environ)

    assert (in_force.data, in_force.http.host, in_force.log.format) == (Path("007"), "::1", "json")
    assert (in_force.blobs.max_bytes, in_force.deletes.enabled) == (None, False)
    assert (in_force.manifests.sparse_indexes, in_force.uploads.ttl_seconds) == (True, 86400)


def test_every_setting_has_a_variable_that_sets_it() -> None:
    """The names in the manual are the names that work."""
    texts = {"data": "/x", "http.host": "::", "log.format": "json"}
    pair = {"LADING_HTTP__TLS_CERTIFICATE": "77", "LADING_HTTP__TLS_KEY": "77"}
    users = {"LADING_AUTH__HTPASSWD": "77"}  # without which nobody can be anonymous
    switches = {
        "manifests.sparse_indexes",
        "deletes.enabled",
        "deletes.index_children",
        "auth.anonymous_pull",
        "auth.open",
        "collection.delete_untagged",
    }
    for setting in settings.catalog():
        default = "77.0" if setting.path.startswith("collection.") else "77"
        text = texts.get(setting.path, "true" if setting.path in switches else default)
        beside = pair if setting.variable in pair else users

        trace = settings.trace(None, {}, environ={**beside, setting.variable: text})

        assert trace.sources[setting.path] == setting.variable
        assert str(trace.value(setting.path)).lower() == text


@pytest.mark.parametrize(
    ("variable", "problem"),
    [
        ("LADING_HTTP__TLS_KEY", 'http.tls_key (LADING_HTTP__TLS_KEY): found "/x"'),
        ("LADING_HTTP__TLS_CERTIFICATE", "http.tls_key (default): found null"),
    ],
)
def test_a_certificate_has_a_key(variable: str, problem: str) -> None:
    """Half of TLS would be no TLS, and nobody would be told."""
    assert problems_of(environ={variable: "/x"}) == [
        f"{problem}, wanted both http.tls_certificate and http.tls_key, or neither"
    ]


@pytest.mark.parametrize(
    "environ",
    [
        {"LADING_TOOLS": "/opt", "LADING_FULL": "1", "LADINGX": "1", "lading_data": "x", "PATH": "/bin"},
        {"LADING_HTTP__PORT": "", "LADING_DATA": "", "LADING_BLOBS__MAX_BYTES": ""},
        {
            "LADING_SERVICE_HOST": "10.0.0.1",
            "LADING_SERVICE_PORT": "5000",
            "LADING_SERVICE_PORT_HTTP": "5000",
            "LADING_PORT": "tcp://10.0.0.1:5000",
            "LADING_PORT_5000_TCP": "tcp://10.0.0.1:5000",
            "LADING_PORT_5000_TCP_PROTO": "tcp",
            "LADING_PORT_5000_TCP_PORT": "5000",
            "LADING_PORT_5000_TCP_ADDR": "10.0.0.1",
            "LADING_UI_SERVICE_HOST": "10.0.0.2",
            "LADING_UI_PORT": "tcp://10.0.0.2:80",
        },
    ],
    ids=["not ours", "empty", "kubernetes service links"],
)
def test_variables_that_set_nothing_are_let_be(environ: dict[str, str]) -> None:
    """In Kubernetes a service called `lading` puts such variables into every container, ours too."""
    assert settings.load(None, {}, environ=environ) == settings.Settings()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("uploads: {ttl_seconds: soon}", 'uploads.ttl_seconds ({file}): found "soon", wanted a whole number'),
        ("http: {port: '5000'}", 'http.port ({file}): found "5000", wanted a whole number'),
        ("http: {port: 65536}", "http.port ({file}): found 65536, wanted at most 65535"),
        ("http: {port: true}", "http.port ({file}): found true, wanted a whole number"),
        ("http: {host: ''}", 'http.host ({file}): found "", wanted text that is not empty'),
        ("http: {host: 5}", "http.host ({file}): found 5, wanted text"),
        ('data: "a\\0b"', 'data ({file}): found "a\\u0000b", wanted text without control characters'),
        ("data: [a]", 'data ({file}): found ["a"], wanted a path'),
        ("deletes: {enabled: 1}", "deletes.enabled ({file}): found 1, wanted true or false"),
        ("blobs: {max_bytes: 0}", "blobs.max_bytes ({file}): found 0, wanted at least 1"),
        ("log: {format: xml}", "log.format ({file}): found \"xml\", wanted 'auto', 'console', 'json' or 'journal'"),
        ("http: 5000", "http ({file}): found 5000, wanted a section, `name: value` on each line"),
        ("- data", '{file}: found ["data"], wanted a section, `name: value` on each line'),
        ("stores: x", "stores ({file}): unknown setting"),
        ("http: {prot: 5000}", "http.prot ({file}): unknown setting; did you mean http.port?"),
        ("1: 2", "1 ({file}): unknown setting"),
        ("data: a\ndata: b", '{file}: is not valid YAML: line 2, column 1: "data" comes twice'),
        ("http: {port: 1, port: 2}", '{file}: is not valid YAML: line 1, column 17: "port" comes twice'),
        ("data: a\n  b: c", "{file}: is not valid YAML: line 2, column 4: mapping values are not allowed here"),
        ("data: !!python/name:os.system", "{file}: is not valid YAML: line 1, column 7: "),
        ("[" * 5000, "{file}: is not valid YAML: nested too deeply"),
        (b"data: \xff", "{file}: is not UTF-8 text (byte 6)"),
    ],
)
def test_a_wrong_file_is_told_what_and_where(tmp_path: Path, text: str | bytes, problem: str) -> None:
    """The sentence has the path, the source, what was found and what is wanted."""
    file = write(tmp_path, text)

    (found,) = problems_of(file)

    assert found.startswith(problem.replace("{file}", str(file)))


def test_a_file_that_is_named_must_be_there(tmp_path: Path) -> None:
    """A typo in --config must not start a registry with default settings."""
    missing = tmp_path / "missing.yaml"

    assert problems_of(missing) == [f"{missing}: cannot be read: no such file or directory"]
    assert problems_of(tmp_path) == [f"{tmp_path}: cannot be read: is a directory"]


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("LADING_HTTP__PORT", "x", 'http.port (LADING_HTTP__PORT): found "x", wanted a whole number'),
        ("LADING_HTTP__PORT", "{", 'http.port (LADING_HTTP__PORT): found "{", wanted a whole number'),
        ("LADING_HTTP__PROT", "1", "LADING_HTTP__PROT (environment): unknown setting; did you mean LADING_HTTP__PORT?"),
        ("LADING_PORT", "5000", "LADING_PORT (environment): unknown setting; did you mean LADING_HTTP__PORT?"),
        ("LADING_HTTP", "{port: 1}", "LADING_HTTP (environment): unknown setting"),
        ("LADING_", "", "LADING_ (environment): unknown setting"),
    ],
)
def test_a_wrong_variable_is_told_by_its_name(name: str, text: str, problem: str) -> None:
    """A variable with a typo must not be ignored."""
    (found,) = problems_of(environ={name: text})

    assert found.startswith(problem)


def test_all_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    """Nobody should start four times to find four mistakes."""
    file = write(tmp_path, "http: {port: x, hots: y}\nuploads: {ttl_seconds: -1}")

    problems = problems_of(file, {"http.workers": 0}, {"LADING_DELETES": "no"})

    assert [problem.partition(" ")[0] for problem in problems] == [
        "http.hots",
        "LADING_DELETES",
        "http.port",
        "http.workers",
        "uploads.ttl_seconds",
    ]


@given(st.text(), st.sampled_from(settings.catalog()))
@example("\n- a\n", settings.catalog()[0])
@example("x" * 1000, settings.catalog()[2])
def test_any_text_in_a_variable_is_taken_or_refused_in_one_short_line(text: str, setting: settings.Setting) -> None:
    """Whatever a value holds, the sentence about it stays one printable line."""
    try:
        settings.load(None, {}, environ={setting.variable: text})
    except SettingsInvalid as error:
        sentence = error.message
    else:
        return

    assert sentence.isprintable()
    assert len(sentence) < 250
    assert setting.path in sentence


@pytest.mark.parametrize("field", ["data", "http"])
def test_settings_cannot_be_changed(field: str) -> None:
    """Nothing that was built from a setting may disagree with it later."""
    in_force: Any = settings.load(None, {}, environ={})

    with pytest.raises(ValidationError):
        setattr(in_force, field, getattr(in_force, field))
    with pytest.raises(ValidationError):
        in_force.http.port = 1
