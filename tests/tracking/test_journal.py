"""The journal survives torn lines and full disks; thinning and masking keep their promises."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.tracking.journal import Journal, Log, Thinning, read
from pipeline.tracking.masking import clean, clean_diff, is_secret, masked
from pipeline.tracking.operations import Metrics, Operation, Tags
from pipeline.tracking.provenance import dvc_md5
from tests.tracking.conftest import REPOSITORY

RECORDS: list[Operation] = [Metrics(t=t, values={"a": t / 3}, step=t) for t in range(5)]
NEXT = Tags(t=9, values={"next": 1})


@given(cut=st.integers(0, 500))
def test_whatever_a_kill_leaves_what_was_a_record_stays_one_and_what_was_none_too(
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
    assert len(list(read(path))) == whole
    again = Log(path)
    again.append(NEXT)
    again.close()
    assert [record for record, _ in read(path)] == [*RECORDS[:whole], NEXT]


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


def test_what_a_full_disk_refuses_waits_and_is_written_later_and_then_made_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "journal.jsonl"
    log = Log(path)
    write, full = os.write, True
    durable: list[int] = []

    def short(file: int, data: bytes) -> int:
        if full:
            raise OSError(28, "No space left on device")
        return write(file, bytes(data)[:7])  # and then only a little at a time

    monkeypatch.setattr(os, "write", short)
    monkeypatch.setattr(os, "fsync", lambda file: durable.append(os.fstat(file).st_size))
    log.append(RECORDS[0])
    assert log.unwritten
    full = False
    log.append(RECORDS[1])
    assert durable == []
    log.sync()
    assert not log.unwritten
    assert [record for record, _ in read(path)] == RECORDS[:2]
    assert durable == [path.stat().st_size]


@given(calls=st.integers(1, 100_000))
def test_a_thinned_series_is_whole_at_first_and_stays_under_its_cap(calls: int) -> None:
    thinning = Thinning()
    kept = [step for step in range(calls) if thinning.keeps(step)]
    assert kept[:4000] == list(range(min(calls, 4000)))
    assert len(kept) < 10_000
    assert calls - kept[-1] <= (2 << (len(kept) - 4000) // 500 if calls > 4000 else 1)


def test_thinning_two_million_points_stays_under_ten_thousand() -> None:
    thinning = Thinning()
    assert sum(thinning.keeps(step) for step in range(2_000_000)) < 10_000


@given(
    cut=st.integers(1, 12_000),
    saved=st.integers(0, 12_000),
    every=st.integers(1, 20),
    epoch=st.integers(1, 500),
)
def test_a_resumed_series_keeps_the_same_points(
    cut: int, saved: int, every: int, epoch: int
) -> None:
    """A point every few steps and at each epoch's end; the state that is resumed is older."""
    steps = [step for step in range(12_000) if step % every == 0 or step % epoch == 0]
    whole, first, second = Thinning(), Thinning(), Thinning()
    for thinning in (whole, first, second):
        thinning.WHOLE, thinning.SHARE = 400, 50
    expected = [step for step in steps if whole.keeps(step)]
    kept = [step for step in steps if step < cut and first.keeps(step)]
    for step in kept:  # what the journal tells
        second.add(step)
    resumed = [step for step in steps if step >= min(saved, cut)]
    kept += [step for step in resumed if step > kept[-1] and second.keeps(step)]
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
    [
        *("password", "db_password", "hf_token", "HF_TOKEN", "apiKey", "aws.secret_access_key"),
        *("auth", "smtp_pass", "pw", "hf_tokens", "signing_key", "encryptionKey", "x-api-key"),
        *("AZURE_STORAGE_CONNECTION_STRING", "slack_webhook", "notepad_token"),
    ],
)
def test_keys_of_secrets_are_known(key: str) -> None:
    assert is_secret(key)


@pytest.mark.parametrize(
    "key",
    [
        *("max_tokens", "tokenizer", "author", "key", "hidden", "keys", "passes", "bypass"),
        *("pad_token_id", "eos_token", "token_type_ids", "password_length", "pass_filenames"),
        *("compass", "signature", "primary_key"),
    ],
)
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
    for url in ("https://user:p@ss@host/x", "postgresql://u:p/w@host/x", "https://u:p/w@host/x"):
        assert clean(url) == f"{url.partition(':')[0]}://host/x"
    for url in ("https://host:8080/@scope/x", "https://host/@scope/x", "https://host/a:b/c@1"):
        assert clean(url) == url
    for name in ("sig", "signature", "X-Amz-Signature", "token"):
        assert clean(f"https://host/x?a=1&{name}=abc") == f"https://host/x?a=1&{name}=***"
    assert clean("https://host/x?design=abc") == "https://host/x?design=abc"
    assert "abcdefghij" not in clean("Authorization: Bearer abcdefghijklmnop")
    assert "Zz9" not in clean("key ghp_Zz9" + "a" * 33)
    assert masked({"token": {"nested": "x"}, "list": [{"api_key": 5}]}) == {
        "token": "***",
        "list": [{"api_key": "***"}],
    }


def test_a_diff_of_code_stays_readable_and_loses_its_secrets() -> None:
    diff = """+++ b/run.py
@@ -0,0 +1,2 @@
+token = next(tokens)
+connect(password="hunter2", host="x")
+++ b/conf.yaml
@@ -0,0 +1,2 @@
+api_key: hunter2
+max_tokens: 5
+++ b/deploy.env
@@ -0,0 +1,5 @@
+export DB_PASSWORD=hunter2
+-----BEGIN PRIVATE KEY-----
+hunter2
+-----END PRIVATE KEY-----
+after: 1
"""
    cleaned = "\n".join(clean_diff(diff.split("\n")))
    assert "hunter2" not in cleaned
    for line in (
        "+token = next(tokens)",
        'password="***", host="x"',
        "+max_tokens: 5",
        "+after: 1",
    ):
        assert line in cleaned


def test_secrets_inside_a_line_of_settings_are_masked() -> None:
    diff = """\
+++ b/conf.yaml
@@ -0,0 +1,6 @@
+hub: {user: me, token: hunter2, "api_key": hunter2 x, max_tokens: 5}
+list: [{password: hunter2}, {name: x}]
+more: {password: hunter2#x, tokens: [1], api_key: [hunter2, hunter2]}
+lr: 0.1  # password: hunter2,x{
+# export DB_PASSWORD=hunter2
+# - token: hunter2
+# token: how to get one, with max_tokens: 5
+++ b/notes.md
@@ -0,0 +1 @@
+# Token: hunter
"""
    masked = """\
+++ b/conf.yaml
@@ -0,0 +1,6 @@
+hub: {user: me, token: ***, "api_key": ***, max_tokens: 5}
+list: [{password: ***}, {name: x}]
+more: {password: ***, tokens: [1], api_key: ***}
+lr: 0.1  # password: ***
+# export DB_PASSWORD=***
+# - token: ***
+# token: how to get one, with max_tokens: 5
+++ b/notes.md
@@ -0,0 +1 @@
+# Token: hunter
"""
    assert list(clean_diff(diff.split("\n"))) == masked.split("\n")


def test_what_is_below_a_secret_key_is_masked_in_the_old_and_in_the_new_file() -> None:
    diff = """\
diff --git a/conf.yaml b/conf.yaml
--- a/conf.yaml
+++ b/conf.yaml
@@ -1,14 +1,15 @@ credentials:
   file: hunter2
 hub:
-  password: |
+  password: >-
-    hunter2
+    hunter2

     hunter2
-  hf_tokens:
-  - hunter2
-  - {name: hunter2}
+  hf_tokens: [
+    hunter2
\\ No newline at end of file
+    hunter2
+  ]
   max_tokens: 5
   users:
   - pass:
       hunter2
   - name: x
@@ -20,1 +20,3 @@ hub:
     deep: 1
+google-auth==2.62.2 \\
+    --hash=sha256:046c
diff --git a/run.py b/run.py
--- a/run.py
+++ b/run.py
@@ -1,1 +1,5 @@
+os.environ["API_KEY"] = "hunter2"
+os.environ['PAGER'] = 'cat'
+token: str = "hunter2"
+password: str = ""
     with_token(
"""
    masked = """\
diff --git a/conf.yaml b/conf.yaml
--- a/conf.yaml
+++ b/conf.yaml
@@ -1,14 +1,15 @@ credentials:
   ***
 hub:
-  password: ***
+  password: ***
-    ***
+    ***

     ***
-  hf_tokens:
-  - ***
-  - ***
+  hf_tokens: ***
+    ***
\\ No newline at end of file
+    ***
+  ]
   max_tokens: 5
   users:
   - pass:
       ***
   - name: x
@@ -20,1 +20,3 @@ hub:
     deep: 1
+google-auth==2.62.2 \\
+    --hash=sha256:046c
diff --git a/run.py b/run.py
--- a/run.py
+++ b/run.py
@@ -1,1 +1,5 @@
+os.environ["API_KEY"] = "***"
+os.environ['PAGER'] = 'cat'
+token: str = "***"
+password: str = ""
     with_token(
"""
    assert list(clean_diff(diff.split("\n"))) == masked.split("\n")


def test_the_command_line_of_dvc_keeps_no_secret(tmp_path: Path) -> None:
    code = "from pipeline.tracking import surroundings; print(*surroundings.dvc()['command'])"
    script = tmp_path / "dvc"
    script.write_text(
        f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {code!r}], check=True)"
    )
    given = ["-S", "train_cnn.hub.token=abc", "--set-param=train_cnn.hub.api_key=def"]
    given += ["-S", "train_cnn.lr=0.1", "https://me:pa55@host/x"]
    done = subprocess.run(
        [sys.executable, str(script), "exp", "run", *given],
        env={**os.environ, "DVC_STAGE": "train_cnn", "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == (
        "dvc exp run -S train_cnn.hub.token=*** --set-param=train_cnn.hub.api_key=*** "
        "-S train_cnn.lr=0.1 https://host/x\n"
    )
