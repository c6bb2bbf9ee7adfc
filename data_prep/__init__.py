"""Raw text to a WordPiece vocabulary and TFRecord shards; needs no JAX."""
