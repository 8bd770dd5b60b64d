"""Records on disk: the contract, folders and shards, and how examples are read from them."""
