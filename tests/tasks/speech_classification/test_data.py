import io
import json
import struct
import subprocess
import sys
import wave
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import resample_poly

from pipeline import prepared
from pipeline.errors import PipelineError
from pipeline.sounds.wav import read_wav, write_wav
from pipeline.tasks.speech_classification import data as audio
from pipeline.tasks.speech_classification import prepare as spoken
from pipeline.tasks.speech_classification.prepare import prepare as prepare_audio
from tests.data.sources import ROOT, audio_source, complaint, contents, fingerprint

TASK = "speech_classification"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def made():
    return prepare_audio(audio_source(clips=1000), 0, None)


@pytest.fixture(scope="module")
def digits(made, tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits") / "audio"
    prepared.write(folder, TASK, made, 0)
    return folder


def wav(samples: np.ndarray, rate: int = 8000, channels: int = 1) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setparams((channels, samples.dtype.itemsize, rate, 0, "NONE", ""))
        file.writeframes(samples.tobytes())
    return buffer.getvalue()


def clip_folder(folder, speakers=10, rate=8000):
    random = np.random.default_rng(0)
    for label in ("no", "yes"):
        (folder / label).mkdir(parents=True)
        for speaker in range(speakers):
            for take in range(3):
                samples = random.integers(-9000, 9000, 400, dtype=np.int16)
                (folder / label / f"s{speaker}_{take}.wav").write_bytes(wav(samples, rate))
    return folder


def named_clips(folder, name, per_class=6):
    """Clips of two classes; `name` gets the number of each and, of three, its speaker's."""
    random = np.random.default_rng(0)
    for number in range(2 * per_class):
        path = folder / ("no", "yes")[number % 2] / name.format(number, number // 2 % 3)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(wav(random.integers(-9000, 9000, 400, dtype=np.int16)))


class TestSpokenDigits:
    def test_have_every_digit_alike_in_every_split(self, made):
        splits = made.splits
        for split, rows in (("train", 70), ("validation", 10), ("test", 20)):
            labels = splits[split].data["label"].to_numpy()
            assert np.bincount(labels).tolist() == [rows] * 10

    def test_have_different_voices_of_every_accent_in_every_split(self, made):
        splits = made.splits
        voices = {split: set(splits[split]["speaker"]) for split in prepared.SPLITS}
        assert not voices["train"] & voices["validation"]
        assert not voices["train"] & voices["test"]
        assert not voices["validation"] & voices["test"]
        assert sum(map(len, voices.values())) > 700
        for split in prepared.SPLITS:
            assert set(splits[split]["accent"]) == set(spoken.ACCENTS)

    def test_vary_in_speed_and_pitch_within_the_stated_ranges(self, made):
        train = made.splits["train"]
        assert (min(train["speed"]), max(train["speed"])) == (130, 230)
        assert (min(train["pitch"]), max(train["pitch"])) == (25, 75)

    def test_are_audible_short_and_hardly_ever_clipped(self, made):
        clips = [read_wav(content["bytes"], "x") for content in made.splits["train"]["audio"]]
        seconds = [len(samples) / rate for samples, rate in clips]
        peaks = np.array([np.abs(samples.astype(int)).max() for samples, _ in clips])
        assert {rate for _, rate in clips} == {8000}
        assert 0.1 < min(seconds) < max(seconds) < 1.5
        assert peaks.min() > 500
        assert (peaks > 32700).mean() < 0.01

    def test_differ_from_digit_to_digit_more_than_by_chance(self, made):
        """A nearest-centroid classifier of coarse spectra hears voices it has never met."""
        splits = made.splits

        def features(split):
            rows = []
            for content in splits[split]["audio"]:
                samples, _ = read_wav(content["bytes"], "x")
                parts = np.array_split(samples.astype(float), 6)
                spectra = [np.abs(np.fft.rfft(part, 2048))[:1024].reshape(32, 32) for part in parts]
                rows.append(np.log1p(np.concatenate([part.mean(axis=1) for part in spectra])))
            return np.array(rows), splits[split].data["label"].to_numpy()

        train, labels = features("train")
        test, expected = features("test")
        centroids = np.array([train[labels == digit].mean(axis=0) for digit in range(10)])
        distances = ((test[:, None] - centroids) ** 2).sum(axis=2)
        assert (distances.argmin(axis=1) == expected).mean() > 0.5

    def test_are_the_same_bytes_however_many_processes_speak_at_once(self, made, monkeypatch):
        monkeypatch.setattr(spoken, "ThreadPoolExecutor", partial(ThreadPoolExecutor, 1))
        again = prepare_audio(audio_source(clips=1000), 0, None).splits
        for split in prepared.SPLITS:
            assert again[split].data.table.equals(made.splits[split].data.table)

    def test_of_another_seed_are_others(self, made):
        other = prepare_audio(audio_source(clips=100), 1, None).splits
        assert set(other["test"]["speaker"]) != set(made.splits["test"]["speaker"])

    def test_are_capped_evenly_for_the_tiny_profile(self):
        splits = prepare_audio(audio_source(clips=1000), 0, 40).splits
        for split in splits.values():
            assert np.bincount(split.data["label"].to_numpy()).tolist() == [4] * 10

    def test_can_be_had_at_16_khz(self):
        made = prepare_audio(audio_source(clips=100, sample_rate=16000), 0, None)
        assert made.facts.sample_rate == 16000
        assert read_wav(made.splits["test"][0]["audio"]["bytes"], "x")[1] == 16000

    @pytest.mark.parametrize(("clips", "limit"), [(50, None), (1000, 9)])
    def test_too_few_for_every_digit_are_refused(self, clips, limit):
        with pytest.raises(PipelineError, match="fewer clips than there are digits"):
            prepare_audio(audio_source(clips=clips), 0, limit)

    def test_need_a_number_of_clips(self):
        with pytest.raises(PipelineError, match=r"audio\.clips is null"):
            prepare_audio(audio_source(clips=None), 0, None)


class TestEspeak:
    def speak(self, wanted, **options):
        return subprocess.run(
            [sys.executable, spoken._SPEAKER],
            input=json.dumps(wanted).encode(),
            capture_output=True,
            cwd=ROOT,
            check=False,
            **options,
        )

    def test_repeats_byte_for_byte(self):
        wanted = [
            ["one", "en+f1", 175, 50],
            ["two", "en-us+croak", 130, 75],
            ["one", "en", 175, 50],
        ]
        first, again = self.speak(wanted), self.speak(wanted)
        assert first.returncode == 0
        assert first.stdout == again.stdout
        assert struct.unpack("<i", first.stdout[:4]) == (22050,)

    def test_is_never_loaded_into_this_process(self, made):
        with open("/proc/self/maps") as maps:
            assert "espeak" not in maps.read()

    def test_knows_all_840_voices(self):
        voices = spoken.voices()
        assert len(voices) == 840
        assert self.speak([["a", name, 200, 50] for name, _ in voices]).returncode == 0

    @pytest.mark.parametrize(
        "wanted", [[["one", "en-gb", 175, 50]], [["one"]], {}, 3, [[1, 2, 3, 4]]]
    )
    def test_refuses_what_it_can_not_say_with_status_1(self, wanted):
        done = self.speak(wanted)
        assert done.returncode == (0 if wanted == {} else 1)

    def test_failing_is_one_clear_line(self):
        with pytest.raises(PipelineError, match=r"status 1 .*no voice 'nobody'"):
            spoken._speak([("one", "nobody", 175, 50)], 8000)

    def test_missing_is_one_clear_line(self, tmp_path, monkeypatch):
        (tmp_path / "espeakng_loader.py").write_text("raise ImportError('no espeakng_loader here')")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        with pytest.raises(PipelineError, match="no espeakng_loader here"):
            spoken._speak([("one", "en", 175, 50)], 8000)


class TestResample:
    @settings(max_examples=40, deadline=None)
    @given(
        st.lists(st.integers(1, 3000), min_size=1, max_size=5),
        st.sampled_from(
            [(22050, 8000), (22050, 16000), (44100, 8000), (8000, 16000), (11025, 8000)]
        ),
    )
    def test_gives_each_clip_what_it_would_get_alone(self, lengths, rates):
        before, after = rates
        random = np.random.default_rng(0)
        clips = [random.integers(-20000, 20000, n, dtype=np.int16) for n in lengths]
        common = int(np.gcd(*rates))
        for clip, result in zip(clips, spoken.resample(clips, before, after), strict=True):
            alone = resample_poly(clip.astype(float), after // common, before // common)
            expected = alone.round().clip(-32768, 32767)
            assert len(result) == len(expected)
            assert np.abs(result - expected).max() <= 1

    def test_keeps_a_tone_and_removes_what_would_alias(self):
        time = np.arange(22050) / 22050
        tones = [
            (10000 * np.sin(2 * np.pi * hertz * time)).astype(np.int16) for hertz in (1000, 5000)
        ]
        kept, removed = (clip.astype(float) for clip in spoken.resample(tones, 22050, 8000))
        assert np.abs(np.fft.rfft(kept)).argmax() == 1000
        assert kept[400:-400].std() == pytest.approx(10000 / np.sqrt(2), rel=0.01)
        assert removed[400:-400].std() < 20


class TestWav:
    @given(st.lists(st.integers(-32768, 32767), min_size=1), st.sampled_from([8000, 16000]))
    def test_round_trips(self, values, rate):
        samples = np.array(values, np.int16)
        read, read_rate = read_wav(write_wav(samples, rate), "x")
        assert read.tolist() == values
        assert read_rate == rate

    def test_of_other_widths_and_channels_is_brought_to_16_bits_mono(self):
        assert read_wav(wav(np.array([0, 128, 255], np.uint8)), "x")[0].tolist() == [
            -32768,
            0,
            32512,
        ]
        assert read_wav(wav(np.array([1 << 16, -(1 << 31)], "<i4")), "x")[0].tolist() == [
            1,
            -32768,
        ]
        stereo = wav(np.array([10, 20, -30, -10], "<i2"), channels=2)
        assert read_wav(stereo, "x")[0].tolist() == [15, -20]

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (None, "x: is not a PCM WAV"),
            (b"", "x: is not a PCM WAV"),
            (b"RIFF", "x: is not a PCM WAV"),
            (b"ID3 an mp3 file, say", "x: is not a PCM WAV"),
            (wav(np.array([], np.int16)), "x: is empty"),
            (wav(np.arange(99, dtype=np.int16))[:-1], "x: is empty or truncated"),
            (wav(np.arange(99, dtype=np.int16), rate=2_000_000_011), "x: has 2000000011 Hz"),
        ],
    )
    def test_that_is_broken_is_named(self, content, message):
        with pytest.raises(PipelineError, match=message):
            read_wav(content, "x")

    @settings(max_examples=300, deadline=None)
    @given(st.binary(max_size=80), st.integers(0, 44))
    def test_of_arbitrary_bytes_is_read_or_refused_in_one_line(self, content, keep):
        start = wav(np.arange(30, dtype=np.int16))[:keep]
        read = []
        said = complaint(lambda: read.append(read_wav(start + content, "x")))
        assert (said is None) == (len(read) == 1)
        assert said is None or said.startswith("x: ")
        assert all(len(samples) and 4_000 <= rate <= 192_000 for samples, rate in read)


class TestFolder:
    def test_splits_by_the_speaker_in_the_file_name(self, tmp_path):
        source = audio_source(kind="folder", folder=str(clip_folder(tmp_path / "raw")))
        made = prepare_audio(source, 0, None)
        assert made.facts.classes == ["no", "yes"]
        speakers = [set(made.splits[split]["speaker"]) for split in prepared.SPLITS]
        assert [len(names) for names in speakers] == [7, 1, 2]
        assert set.union(*speakers) == {f"s{number}" for number in range(10)}
        # what was cut by the part of the name before the first _ is cut so for ever
        assert fingerprint(made) == (
            "1ec27fb6abec11097f7aa78d1384f08eea37f4c589c1ad7937d940b413641bd3"
        )
        prepared.write(tmp_path / "audio", TASK, made, 0)
        assert sorted(contents(tmp_path / "audio"))[0] == "dataset.json"

    def test_resamples_to_the_stated_rate(self, tmp_path):
        raw = clip_folder(tmp_path / "raw", rate=16000)
        (raw / "no" / "s3_9.wav").write_bytes(wav(np.arange(80, dtype=np.int16), 8000))
        splits = prepare_audio(audio_source(kind="folder", folder=str(raw)), 0, None).splits
        sizes = [
            len(read_wav(row["bytes"], "x")[0]) for part in splits.values() for row in part["audio"]
        ]
        assert sorted(set(sizes)) == [80, 200]

    def test_names_a_corrupt_clip(self, tmp_path):
        raw = clip_folder(tmp_path / "raw")
        (raw / "yes" / "s4_1.wav").write_bytes(b"RIFF nothing")
        with pytest.raises(PipelineError, match=r"yes/s4_1\.wav: is not a PCM WAV"):
            prepare_audio(audio_source(kind="folder", folder=str(raw)), 0, None)

    def test_needs_enough_speakers(self, tmp_path):
        raw = clip_folder(tmp_path / "raw", speakers=2)
        source = audio_source(kind="folder", folder=str(raw))
        message = complaint(lambda: prepare_audio(source, 0, None))
        assert message == (
            f"audio.folder: {raw}: has 2 speakers (s0, s1), too few for the splits train, "
            "validation, test; add others, or set audio.speaker to null: a voice may then be in "
            "several splits"
        )

    @pytest.mark.parametrize(
        ("name", "reason"),
        [
            ("clip{:03}.wav", "finds no speaker in 12 of 12 files (the first is clip000.wav)"),
            ("_{:03}.wav", "finds no speaker in 12 of 12 files (the first is _000.wav)"),
            ("{}/s_0.wav", "finds no speaker in 12 of 12 files (the first is 0/s_0.wav)"),
            (
                "clip{:03}_final.wav",
                "finds 12 speakers in 12 files ('clip000' in clip000_final.wav), so nearly every "
                "file has its own",
            ),
        ],
    )
    def test_whose_names_do_not_tell_the_speaker_is_refused(self, tmp_path, name, reason):
        named_clips(tmp_path / "raw", name)
        source = audio_source(kind="folder", folder=str(tmp_path / "raw"))
        assert complaint(lambda: prepare_audio(source, 0, None)) == (
            f"audio.speaker: '^([^_/]+)_' {reason}; correct the expression, or set audio.speaker "
            "to null where nothing tells the speakers: the splits are then drawn at random"
        )

    @pytest.mark.parametrize(
        ("name", "speaker"),
        [("v{1}/{0:03}.wav", "^([^/]+)/"), ("2026-{0:03}-v{1}.wav", r"-([^-]+)\.wav$")],
    )
    def test_says_where_the_speaker_stands(self, tmp_path, name, speaker):
        named_clips(tmp_path / "raw", name)
        source = audio_source(kind="folder", folder=str(tmp_path / "raw"), speaker=speaker)
        made = prepare_audio(source, 0, None)
        speakers = [set(made.splits[split]["speaker"]) for split in prepared.SPLITS]
        assert sorted(name for part in speakers for name in part) == ["v0", "v1", "v2"]
        assert made.group == "speaker"

    def test_without_speakers_is_split_at_random_and_says_so(self, tmp_path, capsys):
        named_clips(tmp_path / "raw", "clip{:03}.wav", per_class=10)
        source = audio_source(kind="folder", folder=str(tmp_path / "raw"), speaker=None)
        made = prepare_audio(source, 0, None)
        said = "folder raw, split at random: a voice may be in several splits"
        assert capsys.readouterr().out == f"audio.speaker is null: {said}\n"
        prepared.write(tmp_path / "audio", TASK, made, 0)
        assert prepared.read_card(tmp_path / "audio").source == said
        for split, count in {"train": 7, "validation": 1, "test": 2}.items():
            assert np.bincount(made.splits[split]["label"]).tolist() == [count, count]
            assert made.splits[split].column_names == ["audio", "label"]

    @pytest.mark.parametrize(
        ("speaker", "message"),
        [
            ("(", "'(' is no regular expression (missing ), unterminated subpattern"),
            ("^[a-z]+", "'^[a-z]+' has 0 groups; put (…) once, around what is the speaker's name"),
            ("(a)(b)", "'(a)(b)' has 2 groups"),
        ],
    )
    def test_needs_an_expression_with_one_group(self, tmp_path, speaker, message):
        named_clips(tmp_path / "raw", "s{}_0.wav")
        source = audio_source(kind="folder", folder=str(tmp_path / "raw"), speaker=speaker)
        found = complaint(lambda: prepare_audio(source, 0, None))
        assert (found or "").startswith(f"audio.speaker: {message}")


class TestBatches:
    def test_hold_waveforms_scaled_to_one_with_their_lengths(self, digits):
        _, table = prepared.read_split(digits, "validation", TASK)
        batches = audio.load(digits, "validation", batch_size=16, device=CPU)
        for index, batch in zip(batches.order(0), batches.epoch(0), strict=True):
            waveforms, lengths = batch.inputs["waveforms"], batch.inputs["lengths"]
            assert waveforms.dtype == torch.float32
            assert waveforms.shape == (len(index), int(lengths.max()))
            for row, waveform, length in zip(index, waveforms, lengths, strict=True):
                clip = read_wav(table["audio"][int(row)].as_py()["bytes"], "x")[0]
                assert int(length) == len(clip)
                assert (waveform[:length] * 32768).tolist() == clip.tolist()
                assert not waveform[length:].any()

    def test_come_from_files_that_datasets_reads_too(self, digits, tmp_path):
        import datasets

        loaded = datasets.load_dataset(
            "parquet", data_files=str(digits / "test.parquet"), cache_dir=str(tmp_path)
        )["train"]
        assert loaded.features["audio"] == datasets.Audio(sampling_rate=8000, decode=False)
        assert loaded.features["label"].names == list(spoken.DIGITS)
        with wave.open(io.BytesIO(loaded[0]["audio"]["bytes"])) as file:
            assert file.getparams()[:3] == (1, 2, 8000)

    def test_waste_little_on_padding(self, digits):
        train = audio.load(digits, "train", batch_size=32, device=CPU, shuffle=True)
        batches = [batch.inputs for batch in train.epoch(0)]
        used = sum(int(batch["lengths"].sum()) for batch in batches)
        assert 1 - used / sum(batch["waveforms"].numel() for batch in batches) < 0.08

    def test_name_the_row_of_a_corrupt_clip(self, made, tmp_path):
        splits = made.splits
        rows = splits["test"].to_list()
        rows[7]["audio"]["bytes"] = rows[7]["audio"]["bytes"][:-1]
        table = pa.Table.from_pylist(rows, splits["test"].features.arrow_schema)
        broken = prepared.dataset(table, splits["test"].features, np.arange(len(rows)))
        changed = made._replace(splits={**splits, "test": broken})
        prepared.write(tmp_path / "audio", TASK, changed, 0)
        with pytest.raises(PipelineError, match=r"test\.parquet, row 7: is empty or truncated"):
            audio.load(tmp_path / "audio", "test", batch_size=4, device=CPU)
