"""Language models as others publish them and as they are used: read, written, decoded, exported."""
