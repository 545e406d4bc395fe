"""The decoder, its adapters, and its folder as transformers writes it."""
