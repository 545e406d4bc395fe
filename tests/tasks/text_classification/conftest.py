"""A small encoder, and what goes into it."""

from pathlib import Path

import pytest
import torch

from tests.models.presets import preset

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "good", "bad", "film", "book", "."]


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of 2 layers and 11 words, saved as any encoder is."""
    from transformers import BertConfig, BertModel, BertTokenizer

    folder = tmp_path_factory.mktemp("encoder")
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=32,
    )  # fmt: skip
    torch.manual_seed(0)
    BertModel(config).save_pretrained(folder)
    vocabulary = {word: number for number, word in enumerate(WORDS)}
    BertTokenizer(vocab=vocabulary, model_max_length=32).save_pretrained(folder)
    return folder


def settings(folder: Path, **changes):
    return preset("transformer", "folder", name=str(folder), max_length=16, **changes)


def inputs(tokenizer, *texts: str) -> dict[str, torch.Tensor]:
    batch = tokenizer(
        list(texts), padding=True, truncation=True, max_length=16, return_tensors="pt"
    )
    return {key: batch[key] for key in ("input_ids", "attention_mask")}
