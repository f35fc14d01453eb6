"""A Vacuum Pipe's document: what may be said in it, and that nothing else has any effect."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.hostile_pipes import CORPUS, GOOD, IGNORED, LEFT_OUT, REFUSED, UNFIT, Hostile
from vac.config.options import Kind
from vac.config.pipe_document import (
    ACCEPTED,
    CACHE_SECONDS,
    LONGEST_CACHE_SECONDS,
    MOST_CHARACTERS,
    Entry,
    PipeDocument,
    parse_pipe,
)
from vac.decoding import MOST_FLAWS, BadJson


def parse(*entries: object, **more: object) -> PipeDocument:
    return parse_pipe(json.dumps({"machinetypes": entries, **more}).encode())


def only(**options: Any) -> Entry:
    """The one machinetype of a document, whose other options are all right."""
    document = parse({"suffix": "x", **options})
    assert document.flaws == ()
    (entry,) = document.entries
    return entry


def test_pipes_may_set_what_the_note_on_configuration_lists_and_nothing_else() -> None:
    listed = """accounting_fqan backoff_seconds container_command cvmfs_repositories disk_gb_per_processor
        fizzle_seconds heartbeat_file heartbeat_seconds image_signing_dn legacy_proxy machine_model
        max_processors max_wallclock_seconds min_processors min_wallclock_seconds root_device root_image
        scratch_device target_share tmp_binds user_data user_data_proxy"""
    assert " ".join(sorted(ACCEPTED)) == " ".join(sorted(listed.split()))


@pytest.mark.parametrize(
    ("option", "given_value", "expected"),
    [
        ("max_wallclock_seconds", 600, 600),
        ("max_wallclock_seconds", "600", 600),
        ("max_wallclock_seconds", 600.0, 600),
        ("max_wallclock_seconds", " 600\t"[:4], 600),
        ("target_share", 0.25, 0.25),
        ("target_share", "0.25", 0.25),
        ("target_share", 3, 3.0),
        ("target_share", 1e-7, 1e-7),
        ("user_data_proxy", True, True),
        ("user_data_proxy", "true", True),
        ("user_data_proxy", "no", False),
        ("user_data_proxy", 1, True),
        ("user_data_proxy", False, False),
        ("tmp_binds", "/scratch /var/spool/pilot", ("/scratch", "/var/spool/pilot")),
        ("tmp_binds", ["/scratch", "/var/spool/pilot"], ("/scratch", "/var/spool/pilot")),
        ("cvmfs_repositories", ["grid.cern.ch"], ("grid.cern.ch",)),
        ("machine_model", "Singularity", "singularity"),
        ("user_data", "user_data.sh", "user_data.sh"),
        ("user_data", "http://vo.example.org:8080/u?a=b&c=~d", "http://vo.example.org:8080/u?a=b&c=~d"),
        ("root_image", "docker://registry.example.org:5000/vo/pilot:el9@sha256:0a", None),
        ("root_image", "/cvmfs/cernvm-prod.cern.ch/cvm4", None),
        ("root_image", "https://example.org/a%20b.iso", None),
        ("root_image", "image.sif", None),
        ("image_signing_dn", r"/CN=cvm-sign0[12]\.cern\.ch$", None),
        ("image_signing_dn", "/CN=.*(one|two)", None),
        ("accounting_fqan", "/vo.example.org/Role=NULL/Capability=NULL", None),
        ("accounting_fqan", "/vo/é", None),
        ("container_command", "/init", None),
    ],
)
def test_values_come_as_json_types_or_as_text(option: str, given_value: object, expected: object) -> None:
    entry = only(**{option: given_value})
    assert entry.values == {option: given_value if expected is None else expected}


def test_user_data_options_are_any_text_and_files_are_names() -> None:
    entry = only(
        user_data_option_pem="-----BEGIN\nx\n\t'\"$`\\ \u2028é",
        user_data_option_port=8080,
        user_data_option_empty="",
        user_data_file_key_1="key.pem",
    )
    assert entry.user_data_options == {
        "pem": "-----BEGIN\nx\n\t'\"$`\\ \u2028é",
        "port": "8080",
        "empty": "",
    }
    assert entry.user_data_files == {"key_1": "key.pem"}


@pytest.mark.parametrize("written", ["8080", "1.5", "1.50", "-0.10", "1e3", "12E-2", "0"])
def test_numbers_for_user_data_come_as_they_were_written(written: str) -> None:
    content = f'{{"machinetypes": [{{"suffix": "x", "user_data_option_n": {written}}}]}}'
    document = parse_pipe(content.encode())
    assert document.flaws == ()
    assert document.entries[0].user_data_options == {"n": written}


def test_an_empty_text_is_as_good_as_nothing() -> None:
    assert only(root_image="", user_data=" ", tmp_binds=[], accounting_fqan="").values in (
        {},
        {"tmp_binds": ()},
    )


@pytest.mark.parametrize(
    ("more", "seconds"),
    [
        ({}, CACHE_SECONDS),
        ({"cache_seconds": 60}, 60),
        ({"cache_seconds": "60"}, 60),
        ({"cache_seconds": 0}, 0),
    ],
)
def test_the_document_says_how_long_it_serves(more: dict[str, object], seconds: int) -> None:
    assert parse(GOOD, **more) == PipeDocument(seconds, parse(GOOD).entries, ())


def test_a_document_can_not_ask_to_be_kept_for_ever() -> None:
    document = parse(GOOD, cache_seconds=10**8)
    assert document.cache_seconds == LONGEST_CACHE_SECONDS
    assert [str(flaw) for flaw in document.flaws] == [
        "$.cache_seconds: 100000000 is more than a week; 604800 is used"
    ]


def test_the_old_flat_format_has_no_types_and_one_clear_message() -> None:
    with pytest.raises(BadJson) as refused:
        parse_pipe(json.dumps({"target_share": 1, "user_data": "x", "root_image": "y"}).encode())
    assert [str(flaw) for flaw in refused.value.flaws] == [
        '$: there is no list "machinetypes": the old flat format, or no pipe at all; it has no types'
    ]


@pytest.mark.parametrize(
    ("entry", "flaw"),
    [
        ({"fizzle_seconds": "x"}, "$.machinetypes[0].fizzle_seconds: 'x' is not an integer, 0 or more"),
        (
            {"user_data": ["a"]},
            "$.machinetypes[0].user_data: a list is not text",
        ),
        (
            {"tmp_binds": ["/a", "b"]},
            "$.machinetypes[0].tmp_binds[1]: 'b' is not an absolute path of letters, digits and _.+@=,-/",
        ),
        (
            {"user_data": "a/b"},
            (
                "$.machinetypes[0].user_data: 'a/b' is not an http:// or https:// URL, "
                "or the name of a file in files/, without directory"
            ),
        ),
        ({"user_data_option_x": [1]}, "$.machinetypes[0].user_data_option_x: a list is not text"),
        ({"a b": 1}, '$.machinetypes[0]["a b"]: is not an option of a pipe\'s machinetype; it is ignored'),
        (
            {"fizle_seconds": 1},
            (
                "$.machinetypes[0].fizle_seconds: is not an option of a pipe's machinetype, "
                "the nearest is fizzle_seconds; it is ignored"
            ),
        ),
        (
            {"container_network": "host"},
            "$.machinetypes[0].container_network: can't be set by a pipe, only by the site; it is ignored",
        ),
        (
            {"vm_model": "docker"},
            "$.machinetypes[0].vm_model: is an old spelling; a pipe has to say machine_model; it is ignored",
        ),
    ],
)
def test_flaws_are_told_with_path_and_what_would_be_right(entry: dict[str, object], flaw: str) -> None:
    assert [str(each) for each in parse({"suffix": "x", **entry}).flaws] == [flaw]


def test_secrets_are_not_in_what_is_told() -> None:
    document = parse({"suffix": "x", "user_data_option_": "hunter2"}, {"user_data_option_x": ["hunter2"]})
    assert "hunter2" not in str(document.flaws)
    assert "hunter2" not in repr(parse({"suffix": "x", "user_data_option_x": "hunter2"}))


def check_bounds(document: PipeDocument) -> None:
    """Whatever the bytes were, what has come out of them is tame."""
    assert 0 <= document.cache_seconds <= LONGEST_CACHE_SECONDS
    suffixes = [entry.suffix for entry in document.entries]
    assert len(set(suffixes)) == len(suffixes)
    assert len(document.flaws) <= MOST_FLAWS + 1
    assert all(str(flaw).isprintable() and len(str(flaw)) < 1000 for flaw in document.flaws)
    for entry in document.entries:
        assert set(entry.values) <= set(ACCEPTED)
        assert set(entry.suffix) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
        for name, value in entry.values.items():
            for text in value if ACCEPTED[name].kind.many else [str(value)]:
                assert text.isprintable()
                assert len(text) <= MOST_CHARACTERS
                assert ".." not in text.split("/") or ACCEPTED[name].kind is Kind.REGEX
        for path in [*entry.user_data_files.values(), entry.values.get("user_data") or ""]:
            assert "/" not in path or path.startswith(("http://", "https://"))
        for text in entry.user_data_options.values():
            text.encode()


@pytest.mark.parametrize("hostile", [pytest.param(hostile, id=name) for name, hostile in CORPUS.items()])
def test_hostile_documents_meet_their_fate(hostile: Hostile) -> None:
    if hostile.fate == REFUSED:
        with pytest.raises(BadJson) as refused:
            parse_pipe(hostile.content)
        assert hostile.path in [flaw.path for flaw in refused.value.flaws]
        return
    document = parse_pipe(hostile.content)
    check_bounds(document)
    plain = parse_pipe(json.dumps({"machinetypes": [GOOD]}).encode())
    assert document.entries[0] == plain.entries[0]
    assert bool(document.flaws) == (hostile.fate != UNFIT)
    assert (len(document.entries) == 1) == (hostile.fate == LEFT_OUT or hostile.path != "")
    if hostile.path:
        assert hostile.path in [flaw.path for flaw in document.flaws]
    if hostile.fate == IGNORED:
        assert all(entry.values == plain.entries[0].values for entry in document.entries)


def test_the_corpus_is_large() -> None:
    assert len(CORPUS) >= 200


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=20), inner, max_size=4),
    max_leaves=10,
)
PLAUSIBLE = (
    st.sampled_from(
        ["x", "/x", "a b", "..", "../x", "http://x/", "docker://x", "600", "true", "/cvmfs/a/b", "a\nb"]
    )
    | st.text(alphabet="ab./:-;$` \n", max_size=12)
    | JSON
)
KEYS = st.sampled_from([*ACCEPTED, "suffix", "user_data_option_x", "user_data_file_x", "token_dir"])
ENTRIES = st.dictionaries(KEYS | st.text(max_size=8), PLAUSIBLE, max_size=6) | JSON
DOCUMENTS = st.fixed_dictionaries(
    {"machinetypes": st.lists(ENTRIES, max_size=4) | JSON}, optional={"cache_seconds": JSON, "x": JSON}
)


@settings(max_examples=150, deadline=None)
@given(DOCUMENTS | JSON)
def test_any_json_is_parsed_within_bounds_or_refused(tree: object) -> None:
    try:
        document = parse_pipe(json.dumps(tree).encode())
    except BadJson as error:
        assert error.flaws
        assert str(error).isprintable()
    else:
        check_bounds(document)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200))
@example(b'{"machinetypes": []}')
@example(b'\xef\xbb\xbf{"machinetypes": []}')
def test_any_bytes_are_parsed_or_refused(content: bytes) -> None:
    try:
        check_bounds(parse_pipe(content))
    except BadJson as error:
        assert error.flaws
