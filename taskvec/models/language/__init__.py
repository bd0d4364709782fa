"""What the language-model families share: files, tokenizer, transformers' networks in the canonical layout."""
