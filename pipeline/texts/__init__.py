"""What reads, writes and damages texts: tables, chats, byte pairs, n-grams, gguf files."""
