"""Mappings in mappings, compared leaf by leaf."""

from pipeline.nested import differences


def test_what_differs_is_named_by_its_dotted_key():
    before = {"lr": 0.1, "net": {"depth": 2, "betas": [1, 2]}, "compile": None, "gone": {}}
    after = {"lr": 0.2, "net": {"depth": 2, "betas": [1, 3]}, "compile": {"mode": "max"}}
    assert differences(before, after) == [
        ("compile.mode", None, "max"),
        ("gone", {}, None),
        ("lr", 0.1, 0.2),
        ("net.betas", [1, 2], [1, 3]),
    ]
    assert differences(after, after) == []
