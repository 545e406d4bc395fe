"""The journal survives torn lines and full disks; thinning and masking keep their promises."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.tracking.content import dvc_md5
from pipeline.tracking.journal import Journal, Log, Thinning, read
from pipeline.tracking.masking import clean, clean_diff, is_secret, masked
from pipeline.tracking.provenance import written_by_dvc

RECORDS = [{"op": "metrics", "t": t, "values": {"a": t / 3}} for t in range(5)]


@given(cut=st.integers(0, 400))
def test_whatever_a_kill_leaves_every_whole_record_is_read_and_the_next_one_too(
    tmp_path_factory: pytest.TempPathFactory, cut: int
) -> None:
    path = tmp_path_factory.mktemp("journal") / "journal.jsonl"
    log = Log(path)
    for record in RECORDS:
        log.append(record)
    log.close()
    with path.open("r+b") as file:
        file.truncate(min(cut, path.stat().st_size))
    whole = path.read_bytes().count(b"\n")
    ends_whole = path.read_bytes().endswith(b"\n")
    kept = RECORDS[:whole]
    # a cut right before the line break leaves a record that is whole but for that
    last = path.read_bytes().rpartition(b"\n")[2]
    if not ends_whole and last.endswith(b"}}"):
        kept = RECORDS[: whole + 1]
    again = Log(path)
    again.append({"op": "next"})
    again.close()
    assert [record for record, _ in read(path)] == [*kept, {"op": "next"}]


@given(limit=st.integers(1, 300))
def test_a_journal_read_in_pieces_is_the_journal(
    tmp_path_factory: pytest.TempPathFactory, limit: int
) -> None:
    path = tmp_path_factory.mktemp("journal") / "journal.jsonl"
    log = Log(path)
    for record in RECORDS:
        log.append(record)
    log.close()
    found, offset = [], 0
    while piece := list(read(path, offset, limit)):
        found += [record for record, _ in piece]
        offset = piece[-1][1]
    assert found == RECORDS


def test_what_a_full_disk_refuses_waits_and_is_written_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = Log(tmp_path / "journal.jsonl")
    write, full = os.write, True

    def short(file: int, data: bytes) -> int:
        if full:
            raise OSError(28, "No space left on device")
        return write(file, bytes(data)[:7])  # and then only a little at a time

    monkeypatch.setattr(os, "write", short)
    log.append(RECORDS[0])
    assert log.unwritten
    full = False
    log.append(RECORDS[1])
    log.sync()
    assert not log.unwritten
    assert [record for record, _ in read(tmp_path / "journal.jsonl")] == RECORDS[:2]


@given(calls=st.integers(1, 100_000))
def test_a_thinned_series_is_whole_at_first_and_stays_under_its_cap(calls: int) -> None:
    thinning = Thinning()
    kept = [step for step in range(calls) if thinning.keeps()]
    assert kept[:4000] == list(range(min(calls, 4000)))
    assert len(kept) < 10_000
    assert calls - kept[-1] <= thinning.stride


def test_thinning_two_million_points_stays_under_ten_thousand() -> None:
    thinning = Thinning()
    assert sum(thinning.keeps() for _ in range(2_000_000)) < 10_000


@given(split=st.integers(1, 20_000))
def test_a_resumed_series_keeps_the_same_points(split: int) -> None:
    whole, first, second = Thinning(), Thinning(), Thinning()
    expected = [step for step in range(20_000) if whole.keeps()]
    kept = [step for step in range(split) if first.keeps()]
    second.kept = len(kept)  # what the journal tells; it goes on after the last point kept
    kept += [step for step in range(kept[-1] + 1, 20_000) if second.keeps()]
    assert kept == expected


def test_a_folder_has_the_md5_that_dvc_gives_it(tmp_path: Path) -> None:
    from dvc.repo import Repo

    folder = tmp_path / "out"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep.txt").write_text("sorts before deep/")
    (folder / "deep" / "ü.txt").write_text("a")
    (folder / "z.bin").write_bytes(bytes(range(256)))
    with Repo.init(tmp_path, no_scm=True) as repo:
        (added,) = repo.add(str(folder))
    assert dvc_md5(folder) == added.outs[0].hash_info.value


def test_a_kept_file_does_not_change_with_its_source(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    source = tmp_path / "figure.txt"
    source.write_text("first")
    first = journal.keep(source)
    source.write_text("second")
    second = journal.keep(source)
    assert [(journal.files / name).read_text() for name in (first, second)] == ["first", "second"]


@pytest.mark.parametrize(
    "key",
    ["password", "db_password", "hf_token", "HF_TOKEN", "apiKey", "aws.secret_access_key", "auth"],
)
def test_keys_of_secrets_are_known(key: str) -> None:
    assert is_secret(key)


@pytest.mark.parametrize("key", ["max_tokens", "tokenizer", "author", "key", "hidden", "keys"])
def test_keys_of_settings_are_no_secrets(key: str) -> None:
    assert not is_secret(key)


@given(
    st.recursive(
        st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=5)),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abk_"), inner),
    )
)
def test_masking_leaves_everything_else_as_it_is(value: Any) -> None:
    assert json.dumps(masked({"value": value})) == json.dumps({"value": value})


def test_credentials_are_cut_out_of_text() -> None:
    assert clean("see https://me:pa55@host:80/x and ssh://git@host/y") == (
        "see https://host:80/x and ssh://host/y"
    )
    assert (
        clean("https://host/x?access_token=abc&page=2") == "https://host/x?access_token=***&page=2"
    )
    assert "abcdefghij" not in clean("Authorization: Bearer abcdefghijklmnop")
    assert "Zz9" not in clean("key ghp_Zz9" + "a" * 33)
    assert masked({"token": {"nested": "x"}, "list": [{"api_key": 5}]}) == {
        "token": "***",
        "list": [{"api_key": "***"}],
    }


def test_a_diff_of_code_stays_readable_and_loses_its_secrets() -> None:
    diff = """+++ b/run.py
+token = next(tokens)
+connect(password="hunter2", host="x")
+++ b/conf.yaml
+api_key: hunter2
+max_tokens: 5
+++ b/deploy.env
+export DB_PASSWORD=hunter2
+-----BEGIN PRIVATE KEY-----
+hunter2
+-----END PRIVATE KEY-----
+after: 1
"""
    cleaned = clean_diff(diff)
    assert "hunter2" not in cleaned
    for line in (
        "+token = next(tokens)",
        'password="***", host="x"',
        "+max_tokens: 5",
        "+after: 1",
    ):
        assert line in cleaned


def test_the_outputs_that_dvc_writes_are_no_change_of_the_code(tmp_path: Path) -> None:
    (tmp_path / "dvc.yaml").write_text("""
stages:
  one: {cmd: x, outs: [data/a, {models/b: {cache: false}}]}
  two:
    foreach: [x]
    do: {cmd: x, metrics: [{"metrics/${item}.json": {cache: false}}]}
""")
    names = written_by_dvc(tmp_path)
    assert {"dvc.lock", "data/a", "models/b/**", "metrics/*.json"} <= set(names)
